//! The Python module, tested in Python: this lays it out as a package and runs python/tests.
#![cfg(feature = "cli")]

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use tempfile::TempDir;

/// The path of the interpreter; `None` where there is none.
static PYTHON: LazyLock<Option<PathBuf>> = LazyLock::new(|| {
    // What is on PATH may be a wrapper that needs more of the environment than the tests leave it.
    let mut ask = Command::new("python3");
    let output = ask
        .args(["-c", "import sys; print(sys.executable)"])
        .stdin(Stdio::null())
        .output()
        .ok()?;
    let path = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| path.trim().into())
});

/// A directory with the package as pip would lay it out.
fn package() -> TempDir {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let package = directory.path().join("autocvd");
    fs::create_dir(&package).expect("a new directory");
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/autocvd");
    for entry in fs::read_dir(&sources).expect("the package's sources") {
        let entry = entry.expect("a readable directory");
        if entry.path().is_file() {
            symlink(entry.path(), package.join(entry.file_name())).expect("a new link");
        }
    }
    symlink(built("lib_autocvd.so"), package.join("_autocvd.abi3.so")).expect("a new link");
    directory
}

/// A shared object that is built with the tests, as a dev-dependency: it lies beside them.
fn built(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a process knows its program");
    let library = test.with_file_name(name);
    assert!(
        library.exists(),
        "{} does not exist: cargo has put it elsewhere",
        library.display()
    );
    library
}

fn passes(module: &str) {
    let Some(python) = &*PYTHON else {
        common::skip("needs python3");
        return;
    };
    let package = package();
    let output = common::with_default_signals(&mut Command::new(python))
        .args(["-W", "error::SyntaxWarning", "-m", "unittest", "-v", module])
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("python/tests"))
        .env("PYTHONPATH", package.path())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("AUTOCVD_TEST_LIBRARY", built("libfake_nvml.so"))
        .env("AUTOCVD_TEST_PROGRAM", env!("CARGO_BIN_EXE_autocvd"))
        .stdin(Stdio::null())
        .output()
        .expect("an interpreter that has just run");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    for (_, reason) in told
        .lines()
        .filter_map(|line| line.split_once(" ... skipped "))
    {
        common::skip(reason.trim_matches(['\'', '"']));
    }
}

#[test]
fn each_argument_does_what_is_promised() {
    passes("test_arguments");
}

#[test]
fn an_allocation_is_a_list_with_all_that_goes_with_it() {
    passes("test_allocation");
}

#[test]
fn threads_share_one_environment_and_nothing_else() {
    passes("test_threads");
}

#[test]
fn other_tasks_run_while_one_waits() {
    passes("test_async");
}

#[test]
fn neither_the_driver_nor_stderr_holds_python_up() {
    passes("test_interrupt");
}

#[test]
fn the_environment_is_set_and_heeded() {
    passes("test_environment");
}

#[test]
fn a_wait_can_be_watched_and_interrupted() {
    passes("test_waiting");
}

#[test]
fn claims_belong_to_the_process_that_made_them() {
    passes("test_claims");
}

#[test]
fn children_choose_among_what_their_parent_holds() {
    passes("test_children");
}

#[test]
fn shares_go_beside_each_other() {
    passes("test_shares");
}

#[test]
fn what_goes_in_and_comes_out_has_types() {
    passes("test_types");
}

#[test]
fn what_the_older_autocvd_documents_still_works() {
    passes("test_upstream");
}

#[test]
fn auto_status_and_main_do_what_is_promised() {
    passes("test_modules");
}

#[test]
fn recipes_work_with_the_tools_that_are_installed() {
    passes("test_recipes");
}
