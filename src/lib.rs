//! Finds free NVIDIA GPUs, or waits for them.

pub mod acquire;
pub mod claim;
#[cfg(feature = "cli")]
pub mod cli;
pub mod environment;
pub mod error;
pub mod gpu;
pub mod ids;
pub mod probe;
pub mod proc;
pub mod select;
pub mod wait;

pub use error::{Error, ErrorKind, Result};
