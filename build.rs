//! Links the program with the static form of GCC's unwinder where there is one: loading the shared one,
//! which is only needed for backtraces, would be a tenth of all the program does. Links it at a fixed address.

use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let target = std::env::var("TARGET").unwrap_or_default();
    let native = std::env::var("HOST").is_ok_and(|host| host == target);
    // A linker of its own (zig, for older C libraries) has an unwinder of its own.
    let named = std::env::var_os("RUSTC_LINKER").is_some_and(|linker| linker != "cc");
    if !native || named || !target.ends_with("-linux-gnu") {
        return;
    }
    // At a fixed address the loader has 1500 addresses less to correct at each start, and the file needs no list
    // of them.
    println!("cargo:rustc-link-arg-bins=-no-pie");
    // gcc answers with the bare name where it has no such file.
    let answer = Command::new("cc")
        .arg("-print-file-name=libgcc_eh.a")
        .output();
    let path = answer
        .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        .unwrap_or_default();
    if path.starts_with('/') {
        println!("cargo:rustc-link-arg-bins=-Wl,--whole-archive,{path},--no-whole-archive");
    }
}
