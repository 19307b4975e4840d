//! Becoming another program.

use super::exit_code::ExitCode;
use super::failure::Failure;
use super::{mps_view, signals, standard_output};
use rustix::fs::Access;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Looks the program up before any waiting is done for it.
pub(super) fn check(name: &OsStr) -> Result<(), Failure> {
    find_program(name)
        .map(drop)
        .map_err(|error| cannot_run(name, &error))
}

/// Becomes `command` with these variables; returns only if that fails.
pub(super) fn become_command(command: &[OsString], variables: &[(&str, String)]) -> Failure {
    let Some((program, arguments)) = command.split_first() else {
        return Failure::new(ExitCode::Unexpected, "no command to become");
    };
    let mut next = Command::new(program);
    next.args(arguments)
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .envs(mps_view::variable());
    let ignores_sigpipe = signals::is_ignored(libc::SIGPIPE);
    if ignores_sigpipe || signals::must_be_restored() {
        let restore = move || {
            signals::restore();
            if ignores_sigpipe {
                // The standard library has just set it to its default.
                signals::set_action(libc::SIGPIPE, libc::SIG_IGN);
            }
            Ok(())
        };
        // SAFETY: nothing else runs in this process, and all that is called is async-signal-safe.
        unsafe { next.pre_exec(restore) };
    }
    standard_output::give_back();
    cannot_run(program, &next.exec())
}

fn cannot_run(name: &OsStr, error: &std::io::Error) -> Failure {
    let name = name.to_string_lossy();
    match error.kind() {
        std::io::ErrorKind::NotFound => Failure::new(
            ExitCode::NotFound,
            format!("'{name}': command not found; check its name and PATH"),
        ),
        _ => Failure::new(
            ExitCode::CannotRun,
            format!("'{name}' cannot be run: {error}; check that it is a program and executable"),
        ),
    }
}

/// Whether a word names a program that could be run: it was meant as COMMAND.
pub(super) fn is_program(word: &str) -> bool {
    find_program(OsStr::new(word)).is_ok()
}

/// The program file that `name` stands for, as execvp(3) looks it up; the error is that of the best
/// candidate.
fn find_program(name: &OsStr) -> std::io::Result<std::path::PathBuf> {
    use std::os::unix::ffi::OsStrExt;
    let runnable = |path: &std::path::Path| -> std::io::Result<()> {
        let meta = fs::metadata(path)?;
        if meta.is_dir() {
            return Err(std::io::Error::from(std::io::ErrorKind::PermissionDenied));
        }
        Ok(rustix::fs::access(path, Access::EXEC_OK)?)
    };
    if name.as_bytes().contains(&b'/') {
        return runnable(name.as_ref()).map(|()| name.into());
    }
    if name.is_empty() {
        return Err(std::io::ErrorKind::NotFound.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/bin:/usr/bin".into());
    let mut failure = std::io::Error::from(std::io::ErrorKind::NotFound);
    for directory in std::env::split_paths(&path) {
        let candidate = if directory.as_os_str().is_empty() {
            ".".into()
        } else {
            directory
        }
        .join(name);
        match runnable(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => failure = error,
            Err(_) => {}
        }
    }
    Err(failure)
}

/// Lets this process, and so what it becomes, run only on the CPU cores near its GPUs.
///
/// # Errors
/// Why it runs where it did before.
pub(super) fn bind(near: &[usize]) -> Result<(), String> {
    if near.is_empty() {
        return Err("the CPU cores near the GPUs are not known here".into());
    }
    let present = rustix::thread::sched_getaffinity(None).map_err(|e| e.to_string())?;
    let mut mask = rustix::thread::CpuSet::new();
    for core in near
        .iter()
        .copied()
        .filter(|core| *core < rustix::thread::CpuSet::MAX_CPU && present.is_set(*core))
    {
        mask.set(core);
    }
    if mask.count() == 0 {
        return Err("this process may run on none of the cores near the GPUs".into());
    }
    rustix::thread::sched_setaffinity(None, &mask).map_err(|e| e.to_string())
}
