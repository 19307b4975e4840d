//! A library that speaks NVML's C interface, told what to say by files in one directory: the one
//! that `FAKE_NVML` names, else the one the library itself lies in.
//!
//! - `machine.json` describes the machine ([`config::Machine`]); it is read again whenever it
//!   changed.
//! - `procs/<device>/<pid>` is a process that has registered itself on a device, which is a GPU's
//!   index, `<gpu>.<mig>` or a UUID ([`processes`]).
//! - `calls`, if it exists, gets the name of every NVML function called, one a line.
//! - `initializations`, if it exists, gets the index of every GPU that a process has initialized.

mod api;
mod call;
mod config;
mod devices;
mod ffi;
mod processes;
mod stubs;
