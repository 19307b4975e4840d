//! The program `autocvd`.
#![cfg_attr(not(test), no_main)]

mod cli;

use std::ffi::{CStr, OsString, c_char, c_int};
use std::os::unix::ffi::OsStringExt;

/// The C library's entry, not Rust's: Rust's runtime would ignore SIGPIPE for this program and for
/// the COMMAND that it becomes, and costs as much as all of the argument parsing.
///
/// # Safety
/// To be called by the C library, with the arguments of the process.
#[cfg_attr(not(test), unsafe(export_name = "main"))]
#[cfg_attr(
    test,
    expect(dead_code, reason = "the test harness has an entry of its own")
)]
unsafe extern "C" fn c_main(argc: c_int, argv: *const *const c_char) -> c_int {
    let count = usize::try_from(argc).unwrap_or(0);
    let args = (0..count).map(|at| {
        // SAFETY: the C library passes `argc` strings that live as long as the process.
        let arg = unsafe { CStr::from_ptr(*argv.add(at)) };
        OsString::from_vec(arg.to_bytes().to_vec())
    });
    cli::run(args.collect())
}
