//! `NVML_MPS_DEVICE_ENUMERATION`, which puts the devices of an MPS session in the GPUs' place.
//!
//! NVML reads the variable when it is initialized, and then answers neither for process lists nor
//! for compute modes. autocvd therefore takes it out of its own environment. COMMAND gets it back.

use std::ffi::OsString;
use std::sync::OnceLock;

const VARIABLE: &str = "NVML_MPS_DEVICE_ENUMERATION";

/// The value that was taken out.
static VALUE: OnceLock<OsString> = OnceLock::new();

/// Takes the variable out of the environment. To be called while the process has one thread.
pub(super) fn hide() {
    if let Some(value) = std::env::var_os(VARIABLE) {
        // SAFETY: the program has just begun, and no other thread reads the environment.
        unsafe { std::env::remove_var(VARIABLE) };
        VALUE.get_or_init(|| value);
    }
}

/// The variable as COMMAND is to find it, where it was set.
pub(super) fn variable() -> Option<(&'static str, &'static OsString)> {
    VALUE.get().map(|value| (VARIABLE, value))
}
