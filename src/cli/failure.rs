//! Why the program ends without having done what was asked.

use super::advice::{Origins, with_advice};
use super::exit_code::ExitCode;
use autocvd::Error;

/// A failure as it is reported: an exit code and one line of text.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) code: ExitCode,
    pub(super) message: String,
}

impl Failure {
    pub(super) fn new(code: ExitCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    /// A wrong option or value.
    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self::new(ExitCode::Usage, message)
    }

    /// Standard output does not take what is written to it.
    pub(super) fn cannot_write(error: std::io::Error) -> Self {
        Self::new(
            ExitCode::Unexpected,
            format!("cannot write to standard output: {error}"),
        )
    }
}

impl Failure {
    /// An error of the library, with what to do about it. `names` says where values came from.
    pub(super) fn of(error: &Error, names: &Origins) -> Self {
        let code = match error {
            error if error.is_wrong_value() => ExitCode::Usage,
            error if error.is_impossible() => ExitCode::Impossible,
            error if error.is_timeout() => ExitCode::TimedOut,
            error if error.is_no_gpu() => ExitCode::NoGpu,
            _ => ExitCode::Unexpected,
        };
        Self::new(code, with_advice(error, names))
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::of(&error, &Origins::default())
    }
}
