//! Finds free NVIDIA GPUs, or waits for them.
//!
//! [`acquire`] reads the machine, chooses GPUs, waits for them if need be, and claims them.
//! [`try_acquire`] does the same and never waits. [`status()`] shows the machine with its claims.
//! The library neither prints nor exits; the program `autocvd` is its first user.
//!
//! ```no_run
//! use autocvd::{Environment, NoObserver, Request, acquire};
//! use std::process::Command;
//!
//! let request = Request::new().num_gpus(2);
//! let found = acquire(&request, &Environment::read(), &mut NoObserver)?;
//! for (name, value) in found.variables() {
//!     println!("{name}={value}"); // CUDA_DEVICE_ORDER=PCI_BUS_ID, CUDA_VISIBLE_DEVICES=2,3
//! }
//! // The GPUs are claimed until `found` is dropped.
//! found.apply(&mut Command::new("train")).status()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Where to look
//! | | |
//! | --- | --- |
//! | what is asked for | [`Request`], [`ClaimPolicy`], [`ProbeChoice`], [`Environment`] |
//! | what comes of it | [`Acquisition`], [`ClaimGuard`], [`Error`] |
//! | a wait | [`Observer`], [`WaitStatus`], [`CancelToken`] |
//! | the machine | [`status()`], [`StatusReader`], [`Snapshot`], [`Device`], [`Verdict`] |
//! | one GPU | [`Gpu`], [`MigDevice`], [`Process`], [`ClaimInfo`], [`Fact`] |
//! | what people write and read | [`text`]: times, sizes, a line about a wait |
//!
//! Sizes are bytes, utilization is percent, times are Unix seconds.
//!
//! # Design
//! A decision is a pure function of a [`Snapshot`] that a probe has read: NVML, nvidia-smi or a
//! file. What other launches hold is in the claims, which the kernel ends with their holders. Every
//! metric is a [`Fact`], and what is unknown is never taken for zero.

mod acquire;
mod amount;
mod cancel;
mod claim;
mod columns;
mod environment;
mod error;
mod fact;
mod fork_local;
/// For the fuzz targets alone.
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod gather;
mod gpu;
mod ids;
mod observer;
mod openers;
mod pci;
mod policy;
mod probe;
mod proc;
mod request;
mod select;
mod shares;
mod site;
mod status;
pub mod text;
mod topology;
mod wait;

/// What the program `autocvd` takes of the inside. It is no promise to others.
#[doc(hidden)]
pub mod program {
    pub use crate::amount::rfc3339;
    pub use crate::claim::remove_files;
    pub use crate::columns::{truncate, width};
    pub use crate::proc::{is_unprintable, printable};
    pub use crate::site::SiteConfig;
}

pub use acquire::{Acquisition, acquire, try_acquire};
pub use cancel::CancelToken;
pub use claim::ClaimGuard;
pub use environment::Environment;
pub use error::{BlockedDevice, Error, IdList, Restriction, Result, Shortage, Timeout};
pub use fact::Fact;
pub use gpu::{
    ClaimInfo, ComputeMode, Gpu, Health, Link, Memory, Mig, MigDevice, Process, ProcessKind,
    ProcessView, RecoveryAction, Snapshot, Source, State, TopologyLevel, Utilization,
    WaitingRequest,
};
pub use ids::{Device, DeviceId};
pub use observer::{NoObserver, Observer, WaitStatus};
pub use pci::PciBusId;
pub use probe::ProbeChoice;
pub use request::{ClaimPolicy, OutputForm, Request};
pub use select::Verdict;
pub use status::{StatusReader, status};
