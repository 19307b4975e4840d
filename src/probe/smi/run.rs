//! A program run to its end within a time limit, and what it wrote.

use crate::probe::nvml::MPS_VIEW;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionbio};
use rustix::process::{
    Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, set_parent_process_death_signal,
};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What a program wrote and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Output {
    /// Its exit code; `None` where a signal ended it.
    pub code: Option<i32>,
    /// What it wrote on stdout.
    pub stdout: Vec<u8>,
    /// What it wrote on stderr.
    pub stderr: Vec<u8>,
}

/// 16 GPUs with all that can be told of them are 2 MB.
const MOST_OUTPUT: usize = 64 << 20;
/// How often to look whether the child has ended where the kernel (before 5.3) cannot tell.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// How long to wait for a killed child. One that is stuck in the driver does not even die.
const GRACE: Duration = Duration::from_millis(200);

/// Runs `program` in its own process group until it ends or the time is up, then kills the group.
///
/// # Errors
/// What went wrong and what to do about it, in one line: it cannot be run, or the time was up.
pub(crate) fn run(program: &OsStr, args: &[&str], time_limit: Duration) -> Result<Output, String> {
    let start = Instant::now();
    let name = program.to_string_lossy();
    let mut command = Command::new(program);
    // However this process ends, by a signal handler too: nobody reads any more what the child
    // would say.
    let ends_with_this = || Ok(set_parent_process_death_signal(Some(Signal::KILL))?);
    // SAFETY: between fork and exec it makes one system call, and touches nothing else.
    unsafe { command.pre_exec(ends_with_this) };
    let mut child = command
        .args(args)
        // Its messages are looked for in English.
        .env("LC_ALL", "C")
        .env_remove(MPS_VIEW)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(|error| {
            format!(
                "'{name}' cannot be run: {error}; check that it is an executable for this machine"
            )
        })?;
    let result = communicate(&mut child, start, time_limit).map_err(|failure| match failure {
        Failure::TimeUp => format!(
            "'{name}' did not answer within {time_limit:?} and was ended: the driver may hang; see \
             'dmesg' for NVRM lines, and reboot if it stays so"
        ),
        Failure::TooMuch => format!(
            "'{name}' wrote more than {} MiB: is it nvidia-smi?",
            MOST_OUTPUT >> 20
        ),
        Failure::Io(error) => format!("'{name}' cannot be read from: {error}; try again"),
    });
    if result.is_err() {
        end(&mut child);
    }
    result
}

enum Failure {
    TimeUp,
    TooMuch,
    Io(std::io::Error),
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Errno> for Failure {
    fn from(error: Errno) -> Self {
        Self::Io(error.into())
    }
}

/// Reads both pipes until the child has ended. Their ends are not waited for: a grandchild may hold
/// them open, and what the child wrote is in them by the time it has ended.
fn communicate(child: &mut Child, start: Instant, time_limit: Duration) -> Result<Output, Failure> {
    let mut stdout = Pipe::new(
        child
            .stdout
            .take()
            .expect("stdout was asked to be piped")
            .into(),
    )?;
    let mut stderr = Pipe::new(
        child
            .stderr
            .take()
            .expect("stderr was asked to be piped")
            .into(),
    )?;
    // Missing before Linux 5.3, and denied in some sandboxes.
    let exited = pidfd_open(Pid::from_child(child), PidfdFlags::empty()).ok();
    loop {
        // Asked before the pipes are read, so that nothing is left in them once it has ended.
        let status = child.try_wait()?;
        stdout.read()?;
        stderr.read()?;
        if let Some(status) = status {
            return Ok(Output {
                code: status.code(),
                stdout: stdout.bytes,
                stderr: stderr.bytes,
            });
        }
        let left = time_limit
            .checked_sub(start.elapsed())
            .filter(|left| !left.is_zero())
            .ok_or(Failure::TimeUp)?;
        let left = if exited.is_some() {
            left
        } else {
            left.min(LOOK_AGAIN)
        };
        // A limit beyond what the kernel can count is none.
        let timeout = Timespec::try_from(left).ok();
        let pipes = [&stdout, &stderr]
            .into_iter()
            .filter_map(|pipe| pipe.reader.as_ref().map(AsFd::as_fd));
        let fds = pipes.chain(exited.as_ref().map(AsFd::as_fd));
        let mut fds: Vec<_> = fds
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
            .collect();
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The reading end of a pipe and what came out of it.
struct Pipe {
    /// `None` once its end was reached.
    reader: Option<File>,
    bytes: Vec<u8>,
}

impl Pipe {
    fn new(reader: OwnedFd) -> Result<Self, Failure> {
        ioctl_fionbio(&reader, true)?;
        Ok(Self {
            reader: Some(reader.into()),
            bytes: Vec::new(),
        })
    }

    /// Takes what there is.
    fn read(&mut self) -> Result<(), Failure> {
        let mut buffer = [0; 16 << 10];
        while let Some(reader) = &mut self.reader {
            match reader.read(&mut buffer) {
                Ok(0) => self.reader = None,
                Ok(length) if self.bytes.len() + length > MOST_OUTPUT => {
                    return Err(Failure::TooMuch);
                }
                Ok(length) => self.bytes.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// Kills the child with all that it started, and reaps it if it dies soon.
fn end(child: &mut Child) {
    // Nobody has reaped it, so its number is still its own.
    if let Err(error) = kill_process_group(Pid::from_child(child), Signal::KILL) {
        tracing::debug!("cannot end process group {}: {error}", child.id());
    }
    let start = Instant::now();
    while matches!(child.try_wait(), Ok(None)) && start.elapsed() < GRACE {
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[cfg(test)]
mod tests {
    use super::{Output, run};
    use std::ffi::OsStr;
    use std::time::{Duration, Instant};

    const LONG: Duration = Duration::from_secs(60);

    fn sh(script: &str, time_limit: Duration) -> Result<Output, String> {
        run(OsStr::new("sh"), &["-c", script], time_limit)
    }

    #[test]
    fn both_outputs_and_the_exit_code_are_kept() {
        let output = sh("echo out; echo err >&2; exit 9", LONG).expect("runs");
        assert_eq!(
            output,
            Output {
                code: Some(9),
                stdout: b"out\n".into(),
                stderr: b"err\n".into()
            }
        );
        assert_eq!(sh("kill -9 $$", LONG).expect("runs").code, None);
    }

    #[test]
    fn large_output_on_both_pipes_does_not_block() {
        let script = "head -c 3000000 /dev/zero >&2; head -c 3000000 /dev/zero; head -c 3000000 \
                      /dev/zero >&2";
        let output = sh(script, LONG).expect("runs");
        assert_eq!(
            (output.stdout.len(), output.stderr.len()),
            (3_000_000, 6_000_000)
        );
    }

    #[test]
    fn stdin_is_empty_and_the_locale_is_c() {
        assert_eq!(sh("cat; echo $LC_ALL", LONG).expect("runs").stdout, b"C\n");
    }

    #[test]
    fn a_program_that_closes_its_outputs_is_still_waited_for() {
        assert_eq!(
            sh("exec >&- 2>&-; sleep 0.1; exit 3", LONG)
                .expect("runs")
                .code,
            Some(3)
        );
    }

    #[test]
    fn a_grandchild_that_keeps_the_pipes_open_holds_nobody_up() {
        let start = Instant::now();
        let output = sh("echo out; sleep 20 & echo $!", LONG).expect("runs");
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "waited for the grandchild"
        );
        let text = String::from_utf8(output.stdout).expect("text");
        let pid = text
            .strip_prefix("out\n")
            .expect("what was written first")
            .trim();
        sh(&format!("kill {pid}"), LONG).expect("the grandchild is ours to end");
    }

    #[test]
    fn at_the_time_limit_the_whole_group_is_killed() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("pid");
        let script = format!("sleep 30 & echo $! > '{}'; wait", file.display());
        let start = Instant::now();
        let error = sh(&script, Duration::from_secs(2)).expect_err("takes too long");
        assert!(start.elapsed() < Duration::from_secs(20));
        assert!(
            error.contains("within 2s") && error.contains("dmesg"),
            "{error}"
        );
        let grandchild = std::fs::read_to_string(file).expect("it got as far as that");
        let stat = format!("/proc/{}/stat", grandchild.trim());
        // A zombie that its new parent has not reaped yet is dead too.
        let dead = |stat: &str| {
            stat.rsplit_once(") ")
                .is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
        };
        while std::fs::read_to_string(&stat).is_ok_and(|stat| !dead(&stat)) {
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "the grandchild lives on"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_program_that_ignores_signals_is_killed_too() {
        let error = sh(
            "trap '' TERM INT HUP; while :; do sleep 1; done",
            Duration::from_millis(100),
        );
        assert!(error.is_err_and(|error| error.contains("within 100ms")));
    }

    #[test]
    fn endless_output_is_cut_off() {
        let error = sh("cat /dev/zero", LONG).expect_err("endless");
        assert!(error.contains("64 MiB"), "{error}");
    }

    #[test]
    fn what_cannot_be_run_says_so() {
        let error = run(OsStr::new("/nonexistent/nvidia-smi"), &[], LONG).expect_err("not there");
        assert!(
            error.starts_with("'/nonexistent/nvidia-smi' cannot be run: "),
            "{error}"
        );
    }
}
