//! What is on this machine: NVML, else nvidia-smi, or a file.

#[cfg(feature = "serde")]
pub mod file;
pub mod smi;
