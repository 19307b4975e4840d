//! Finds free NVIDIA GPUs, or waits for them.

pub mod error;
pub mod gpu;
pub mod probe;

pub use error::{Error, ErrorKind, Result};
