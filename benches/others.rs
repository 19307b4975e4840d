//! Other programs for the same job, from PyPI, in an environment of their own below target/. Here
//! they talk to the same library, or to a stand-in for nvidia-smi that answers at once.

use crate::setup::{Bench, target};
use crate::timing::Subject;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

/// What cannot be measured here, and why.
type Skipped = (String, String);

pub(crate) fn all(bench: &Bench) -> Vec<Result<Subject, Skipped>> {
    let environment = target().join("bench-python");
    let installed = install(&environment);
    let mut found = Vec::new();
    for (name, program) in [
        (
            "autocvd 0.2.1 (Python), on the stand-in nvidia-smi",
            "autocvd",
        ),
        ("nvisel (nvitop)", "nvisel"),
    ] {
        found.push(match &installed {
            Ok(()) => works(name, bench.command(environment.join("bin").join(program))),
            Err(why) => Err((name.to_owned(), why.clone())),
        });
    }
    let python = Command::new("python3")
        .args(["-c", "import sys; print(sys.executable)"])
        .output();
    let python = python
        .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        .unwrap_or_default();
    let module = lay_out_module(&bench.path("python"));
    for (name, script) in [
        ("python3 -c pass", "pass"),
        ("python3: import autocvd", "import autocvd"),
        (
            "python3: import autocvd; autocvd.autocvd()",
            "import autocvd; autocvd.autocvd(verbose=False)",
        ),
    ] {
        let mut command = bench.command(Path::new(&python));
        command
            .args(["-c", script])
            .env("PYTHONPATH", bench.path("python"));
        found.push(match &module {
            Ok(()) => works(name, command),
            Err(why) => Err((name.to_owned(), why.to_string())),
        });
    }
    found
}

/// This repository's module, as pip would lay it out below `directory`. Cargo builds it for the
/// tests, and puts it beside them.
fn lay_out_module(directory: &Path) -> io::Result<()> {
    let package = directory.join("autocvd");
    fs::create_dir_all(&package)?;
    for file in fs::read_dir("python/autocvd")? {
        let file = file?;
        symlink(file.path().canonicalize()?, package.join(file.file_name()))?;
    }
    let extension = std::env::current_exe()?
        .with_file_name("lib_autocvd.so")
        .canonicalize()?;
    symlink(extension, package.join("_autocvd.abi3.so"))
}

/// A program that succeeds at least once.
fn works(name: &str, mut command: Command) -> Result<Subject, Skipped> {
    let skipped = |why: String| (name.to_owned(), why);
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| skipped(error.to_string()))?;
    if output.status.success() {
        return Ok(Subject::new(name, command));
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(skipped(format!(
        "{}: {}",
        output.status,
        stderr.lines().last().unwrap_or_default()
    )))
}

fn install(environment: &Path) -> Result<(), String> {
    if environment.join("bin/nvisel").exists() {
        return Ok(());
    }
    let run = |program: &Path, arguments: &[&str]| {
        let output = Command::new(program)
            .args(arguments)
            .output()
            .map_err(|error| error.to_string())?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        let last = stderr.lines().last().unwrap_or_default();
        if output.status.success() {
            Ok(())
        } else {
            Err(format!("cannot be installed: {last}"))
        }
    };
    run(
        Path::new("python3"),
        &["-m", "venv", &environment.to_string_lossy()],
    )?;
    run(
        &environment.join("bin/pip"),
        &["install", "--quiet", "autocvd==0.2.1", "nvitop"],
    )
}
