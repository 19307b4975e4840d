//! The one error of the library, with what the user can do about it.

use std::fmt;

/// What kind of failure an [`Error`] is. The program's exit codes follow from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// Something that should not happen did.
    Unexpected,
    /// A value was wrong: an id that names no GPU here, an unreadable file.
    WrongValue,
    /// The request can never be met on this machine.
    Impossible,
    /// No GPU became free in time.
    TimedOut,
    /// No NVIDIA GPU can be read here.
    NoGpu,
}

/// Why there are no GPUs to give: a message of one line
/// that quotes what was wrong and ends with what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    kind: ErrorKind,
    message: String,
}

impl Error {
    /// An error of `kind` whose text is `message`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }

    /// What kind of failure this is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// `Result` with this library's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;
