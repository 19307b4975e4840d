//! The exit codes, in one table.

/// How the program ends when no signal ends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum ExitCode {
    Success = 0,
    Unexpected = 1,
    Usage = 2,
    Impossible = 3,
    TimedOut = 4,
    NoGpu = 5,
    CannotRun = 126,
    NotFound = 127,
}

impl ExitCode {
    pub(super) fn number(self) -> i32 {
        i32::from(self as u8)
    }
}

/// What the help and the manual say of each code.
pub(super) const TABLE: [(&str, &str); 9] = [
    ("0", "done"),
    ("1", "an unexpected error"),
    ("2", "a wrong option or value"),
    ("3", "the request can never be met here"),
    ("4", "the timeout passed"),
    ("5", "no NVIDIA GPU can be read"),
    ("126", "COMMAND cannot be run"),
    ("127", "COMMAND is not found"),
    ("128+N", "ended by signal N"),
];
