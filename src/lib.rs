//! Finds free NVIDIA GPUs, or waits for them.
//!
//! [`acquire()`] is the whole of it: it looks at the machine, chooses, claims, and waits if need be. The
//! library neither prints nor exits; the program `autocvd` is its first user.
//!
//! ```no_run
//! use autocvd::{Environment, Request, NoObserver, acquire};
//!
//! let request = Request::new().num_gpus(2);
//! let found = acquire(&request, &Environment::read(), &mut NoObserver)?;
//! for (name, value) in found.variables() {
//!     println!("{name}={value}"); // CUDA_DEVICE_ORDER=PCI_BUS_ID, CUDA_VISIBLE_DEVICES=2,3
//! }
//! # Ok::<(), autocvd::Error>(())
//! ```
//!
//! # Design
//! A decision is a pure function ([`select`]) of a [`Snapshot`](gpu::Snapshot) that a [`probe`] has read. What other launches
//! have taken is in the [`claim`]s. [`acquire`](mod@acquire) is the only place where these meet, and [`wait`] sleeps in between.

pub mod acquire;
pub mod amount;
pub mod claim;
pub mod environment;
pub mod error;
mod fork_local;
pub mod gpu;
pub mod ids;
mod observer;
mod pci;
mod policy;
pub mod probe;
pub mod proc;
mod request;
pub mod select;
pub mod status;
#[cfg(feature = "text")]
pub mod text;
pub mod wait;

pub use acquire::{Acquisition, acquire};
pub use environment::Environment;
pub use error::{Error, ErrorKind, Result};
pub use observer::{NoObserver, Observer, WaitStatus};
pub use pci::PciBusId;
pub use request::{ClaimPolicy, OutputForm, Request};
