//! How the program ends: exit codes, and what standard output gets when it fails.

use super::advice::with_advice;
use super::{args, signals, variables};
use autocvd::Error;
use rustix::fs::{Mode, OFlags};
use std::ffi::OsString;
use std::io::Write;
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd};
use std::os::unix::ffi::OsStrExt;

pub(super) const UNEXPECTED: i32 = 1;
pub(super) const WRONG_VALUE: i32 = 2;
pub(super) const IMPOSSIBLE: i32 = 3;
pub(super) const TIMED_OUT: i32 = 4;
pub(super) const NO_GPU: i32 = 5;
pub(super) const CANNOT_RUN: i32 = 126;
pub(super) const NOT_FOUND: i32 = 127;

/// Why the program ends without having done what was asked.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) code: i32,
    /// One line.
    pub(super) message: String,
}

impl Failure {
    pub(super) fn new(code: i32, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let code = match &error {
            error if error.is_wrong_value() => WRONG_VALUE,
            error if error.is_impossible() => IMPOSSIBLE,
            error if error.is_timeout() => TIMED_OUT,
            error if error.is_no_gpu() => NO_GPU,
            _ => UNEXPECTED,
        };
        Self::new(code, with_advice(&error))
    }
}

/// What a shell evaluates when there is nothing to give: with a command behind it, alone or sourced, in
/// every shell, it runs nothing and ends in `code`.
pub(super) fn guard(code: i32) -> String {
    format!("sh -c 'exit {code}' autocvd\n")
}

/// Ends the program with `failure`.
pub(super) fn fail(failure: &Failure) -> i32 {
    signals::clear_line();
    // What is quoted, such as a value or another user's command line, may hold ends of lines and worse.
    let text = format!(
        "autocvd: {}\n",
        autocvd::text::printable(failure.message.as_bytes())
    );
    let _ = std::io::stderr().write_all(text.as_bytes());
    if signals::guards_output() {
        let _ = write_stdout(&guard(failure.code));
    }
    failure.code
}

/// Writes to standard output, all of it and at once. The standard library's own way takes a closed one for
/// a success.
pub(super) fn write_stdout(text: &str) -> std::io::Result<()> {
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        match rustix::io::write(std::io::stdout(), rest) {
            Ok(written) => rest = &rest[written..],
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Takes the places of standard descriptors that are closed, lest a file that is opened later, perhaps one
/// of the driver's, gets what is written there. They are closed again for what the program becomes.
pub(super) fn fill_standard_descriptors() {
    // SAFETY: nobody closes them here.
    let is_open = |fd| rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(fd) }).is_ok();
    if (0..=2).all(is_open) {
        return;
    }
    // Read-only: what is written to a closed standard output is to fail.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    while let Ok(lowest_free) = rustix::fs::open("/dev/null", flags, Mode::empty()) {
        if lowest_free.as_raw_fd() > 2 {
            break;
        }
        let _ = lowest_free.into_raw_fd();
    }
}

/// Makes a panic end like every other failure: in words, with a code, and running nothing.
pub(super) fn catch_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic
            .location()
            .map(|place| format!(" at {}:{}", place.file(), place.line()))
            .unwrap_or_default();
        let payload = panic.payload();
        let cause = payload.downcast_ref::<String>().map(String::as_str);
        let cause = cause.or_else(|| payload.downcast_ref::<&str>().copied());
        let cause = cause.unwrap_or("no message").replace('\n', " ");
        let message = format!(
            "internal error{place}: {cause}; please report it with the command that you ran"
        );
        autocvd::remove_files();
        signals::exit_now(fail(&Failure::new(UNEXPECTED, message)));
    }));
}

/// Whether a failure has to tell the shell to run nothing, judged before the arguments are parsed: not
/// where the output is no assignment. When in doubt it does.
pub(super) fn output_is_evaluated(args: &[OsString]) -> bool {
    let mut options = args.iter().skip(1).map(|arg| arg.as_bytes()).peekable();
    if matches!(
        options.peek(),
        Some(&(b"status" | b"completions" | b"man" | b"help"))
    ) {
        return false;
    }
    let by_variable =
        |name: &str| std::env::var(name).is_ok_and(|value| args::boolean(&value) == Ok(true));
    if by_variable("AUTOCVD_ID_ONLY") || by_variable("AUTOCVD_JSON") {
        return false;
    }
    while let Some(arg) = options.next() {
        match arg {
            b"--id-only" | b"--json" => return false,
            // Without a COMMAND behind it, it changes nothing.
            b"--" => return options.next().is_none(),
            _ if variables::has_switch(arg, b"o") => return false,
            _ => {}
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_runs_nothing_and_is_told_in_one_line() {
        const INNER: &str = "AUTOCVD_TEST_PANICS";
        if std::env::var_os(INNER).is_some() {
            signals::guard_output(true);
            catch_panics();
            panic!("one line\nand another");
        }
        // A process of its own, for a panic ends it.
        let mut test = std::process::Command::new(
            std::env::current_exe().expect("a process knows its program"),
        );
        test.args([
            "--exact",
            "cli::exit::tests::a_panic_runs_nothing_and_is_told_in_one_line",
            "--nocapture",
        ]);
        let output = test.env(INNER, "1").output().expect("it runs");
        let (stdout, stderr) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        assert_eq!(output.status.code(), Some(UNEXPECTED), "{stdout}{stderr}");
        assert!(stdout.ends_with(&guard(UNEXPECTED)), "{stdout}");
        assert!(
            stderr.starts_with("autocvd: internal error at src/cli/exit.rs:"),
            "{stderr}"
        );
        assert!(
            stderr.contains(": one line and another; please report it")
                && stderr.lines().count() == 1,
            "{stderr}"
        );
    }

    #[test]
    fn only_what_a_shell_evaluates_is_guarded() {
        for (line, guarded) in [
            ("", true),
            ("-n 0", true),
            ("-s --nonsense", true),
            ("--only status", true),
            ("-xo", true),
            ("-x foo", true),
            ("-o -n 0", false),
            ("-qo -n 0", false),
            ("-vlo", false),
            ("-on 0", false),
            ("-no", true),
            ("-n 0 --", true),
            ("-o -n 0 --", false),
            ("--id-only", false),
            ("-t soon --json", false),
            ("-n 99 -- prog", false),
            ("status --nonsense", false),
            ("completions nosuchshell", false),
        ] {
            let args: Vec<OsString> = std::iter::once("autocvd")
                .chain(line.split_whitespace())
                .map(Into::into)
                .collect();
            assert_eq!(output_is_evaluated(&args), guarded, "{line}");
        }
    }
}
