//! Finds free NVIDIA GPUs, or waits for them.

pub mod error;
pub mod gpu;
pub mod ids;
pub mod probe;
pub mod select;

pub use error::{Error, ErrorKind, Result};
