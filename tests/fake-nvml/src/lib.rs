//! A library that speaks NVML's C interface.
