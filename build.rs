//! Links the program with the static form of GCC's unwinder where a trial link with it succeeds:
//! to load the shared one, which only backtraces need, takes a tenth of all the time of a start.
//! Where the trial fails the program is linked as Rust links it.

use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let target = variable("TARGET");
    // Another linker than the host's C compiler (zig, a cross compiler) has an unwinder of its own.
    let named = std::env::var_os("RUSTC_LINKER").is_some_and(|linker| linker != "cc");
    if target != variable("HOST") || named || !target.ends_with("-linux-gnu") {
        return;
    }
    let Some(unwinder) = static_unwinder() else {
        return;
    };
    let unwinder = unwinder.display();
    // Since GCC 14 it needs a symbol of ld.so, which comes with libc where libc stands behind it.
    let argument = format!("-Wl,--whole-archive,{unwinder},--no-whole-archive,-lc");
    if links_with(&argument, Path::new(&variable("OUT_DIR"))) {
        println!("cargo:rustc-link-arg-bins={argument}");
    }
}

fn static_unwinder() -> Option<PathBuf> {
    let answer = Command::new("cc")
        .arg("-print-file-name=libgcc_eh.a")
        .output()
        .ok()?;
    let path = PathBuf::from(String::from_utf8(answer.stdout).ok()?.trim());
    // gcc answers with the bare name where it has no such file.
    path.is_absolute().then_some(path)
}

/// Whether a program is linked with this argument on a line like rustc's: without what the C
/// compiler adds to its own, the libraries first. The program refers to nothing, as after LTO.
fn links_with(argument: &str, directory: &Path) -> bool {
    let (source, program) = (directory.join("trial.c"), directory.join("trial"));
    if std::fs::write(&source, "int main(void) { return 0; }\n").is_err() {
        return false;
    }
    let mut link = Command::new("cc");
    link.arg(&source)
        .args(["-Wl,--as-needed", "-lgcc_s", "-lc", "-pie", "-fPIE"])
        .args(["-nodefaultlibs", argument, "-o"])
        .arg(&program);
    link.output().is_ok_and(|output| output.status.success())
}
