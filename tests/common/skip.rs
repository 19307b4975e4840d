//! What a test needs of its machine beyond a shell and coreutils: a test that lacks it is skipped,
//! says so at once, and is counted by the last test file (`what_was_skipped.rs`).

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::process::parent_id;
use std::path::{Path, PathBuf};
use std::thread;

/// Where the skipped tests of one `cargo test` are noted: its test files have cargo as their
/// parent.
fn list() -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("skipped");
    directory.join(parent_id().to_string())
}

/// Says what this test lacks, past the test harness, which keeps the output of tests that pass.
pub fn skip(lacks: &str) {
    let thread = thread::current();
    let lacks = lacks.trim().replace('\n', "; ");
    let line = format!("{}: {lacks}\n", thread.name().unwrap_or("a test"));
    let _ = write!(std::io::stderr(), "skipped: {line}");
    // Where it cannot be noted, it has been said.
    let list = list();
    let _ = list.parent().map(fs::create_dir_all);
    let file = OpenOptions::new().create(true).append(true).open(list);
    // One write, so that lines of several tests do not mix.
    let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
}

/// The lines noted during this `cargo test` so far: `TEST: what it lacks`.
pub fn take_skipped() -> Vec<String> {
    let lines = fs::read_to_string(list()).unwrap_or_default();
    // With it go the lists of earlier runs that were cut short: a pid may come again.
    let _ = list().parent().map(fs::remove_dir_all);
    lines.lines().map(str::to_owned).collect()
}

/// Whether a program is on PATH; where it is not, the test is skipped, or the part that needs it.
#[must_use]
pub fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|directory| directory.join(program).is_file());
    if !found {
        skip(&format!("needs {program}"));
    }
    found
}

/// Those of these programs that are on PATH; the test is skipped for the others.
pub fn installed<const N: usize>(
    programs: [&'static str; N],
) -> impl Iterator<Item = &'static str> {
    programs.into_iter().filter(|program| has(program))
}

/// Whether this is the host's PID namespace; in another one, a container's, an empty process list
/// proves nothing, and tests of what a list proves are skipped.
#[must_use]
pub fn has_host_pids() -> bool {
    // The kernel's fixed number of the first one (PROC_PID_INIT_INO).
    let namespace = fs::read_link("/proc/self/ns/pid");
    let is_host = namespace.is_ok_and(|link| link.as_os_str() == "pid:[4026531836]");
    if !is_host {
        skip("needs the host's PID namespace");
    }
    is_host
}
