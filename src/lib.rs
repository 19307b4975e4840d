//! Finds free NVIDIA GPUs, or waits for them.

pub mod claim;
pub mod error;
pub mod gpu;
pub mod ids;
pub mod probe;
pub mod proc;
pub mod select;

pub use error::{Error, ErrorKind, Result};
