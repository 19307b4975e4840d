//! The COMMANDs that have failed soon after their start, by device. A sick GPU is always the free
//! one, and would get job after job of a sweep.
//!
//! A device's lock file holds them as a line of text, `COUNT TIME`: how many COMMANDs in a row have
//! failed early, and when the last one did, in Unix seconds. Everybody can write there, so nothing
//! but the order among free devices rests on it, for no longer than [`SUSPICION`].

use crate::policy::{EARLY_FAILURE, SUSPICION, SUSPICIOUS_FAILURES};
use std::os::fd::OwnedFd;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// More than the line can take.
const MAX_BYTES: usize = 64;

/// How a COMMAND ended, as far as it tells of its device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// It has worked there.
    Worked,
    /// It has failed soon after its start.
    FailedEarly,
    /// It tells nothing: a user or another program has ended it, or it was never there.
    Unrelated,
}

/// The signals by which a program ends that has met an error.
const CRASHES: [i32; 7] = [
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGABRT,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGSEGV,
    libc::SIGSYS,
];
/// What shells call a command that cannot be run, or is not found.
const NOT_RUN: [i32; 2] = [126, 127];
/// What shells add to the signal that has ended a command.
const SHELL_SIGNALS: i32 = 128;

impl Ending {
    /// What a status of wait(2) tells, so long after the start.
    pub(super) fn of(status: i32, after: Duration) -> Self {
        let signal = match (libc::WIFSIGNALED(status), libc::WEXITSTATUS(status)) {
            (true, _) => libc::WTERMSIG(status),
            (false, 0) => return Self::Worked,
            (false, code) if NOT_RUN.contains(&code) => return Self::Unrelated,
            (false, code) if code > SHELL_SIGNALS && code <= SHELL_SIGNALS + libc::SIGRTMAX() => {
                code - SHELL_SIGNALS
            }
            (false, _) => libc::SIGABRT,
        };
        match CRASHES.contains(&signal) {
            _ if after > EARLY_FAILURE => Self::Worked,
            true => Self::FailedEarly,
            false => Self::Unrelated,
        }
    }
}

/// What a lock file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Record {
    count: u32,
    /// Unix time in seconds.
    last: u64,
}

impl Record {
    /// What the file holds that still counts.
    fn read(file: &OwnedFd, now: u64) -> Option<Self> {
        let mut bytes = [0; MAX_BYTES];
        let length = rustix::io::pread(file, &mut bytes, 0).ok()?;
        Self::parse(&bytes[..length], now)
    }

    fn parse(bytes: &[u8], now: u64) -> Option<Self> {
        let line = bytes.split(|byte| *byte == b'\n').next()?;
        let (count, last) = std::str::from_utf8(line).ok()?.split_once(' ')?;
        let record = Self {
            count: count.parse().ok()?,
            last: last.parse().ok()?,
        };
        let age = now.checked_sub(record.last)?;
        (age < SUSPICION.as_secs()).then_some(record)
    }
}

/// Notes how a COMMAND has ended on the device of this lock file.
pub(super) fn note(file: &OwnedFd, ending: Ending) {
    let now = unix_time();
    // What cannot be written costs the note.
    let _ = match ending {
        Ending::Unrelated => return,
        Ending::Worked => match rustix::fs::fstat(file) {
            Ok(stat) if stat.st_size == 0 => return,
            _ => rustix::fs::ftruncate(file, 0),
        },
        Ending::FailedEarly => {
            let before = Record::read(file, now).map_or(0, |record| record.count);
            let line = format!("{} {now}\n", before.saturating_add(1));
            rustix::io::pwrite(file, line.as_bytes(), 0).map(drop)
        }
    };
}

/// Until when the device of this lock file is to be given last, in Unix seconds; `None` where there
/// is nothing against it.
pub(super) fn suspect_until(file: &OwnedFd) -> Option<u64> {
    let record = Record::read(file, unix_time())?;
    (record.count >= SUSPICIOUS_FAILURES).then(|| record.last + SUSPICION.as_secs())
}

/// Whether these bytes make a device suspect at this time.
#[cfg(any(test, fuzzing))]
pub(super) fn is_suspicious(bytes: &[u8], now: u64) -> bool {
    Record::parse(bytes, now).is_some_and(|record| record.count >= SUSPICIOUS_FAILURES)
}

fn unix_time() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_soon_after_the_start_tells_of_the_device_and_an_interruption_does_not() {
        let (soon, late) = (Duration::from_secs(1), Duration::from_secs(11));
        let exit = |code: i32| code << 8;
        for (status, after, expected) in [
            (exit(0), soon, Ending::Worked),
            (exit(1), soon, Ending::FailedEarly),
            (exit(255), soon, Ending::FailedEarly),
            (libc::SIGSEGV, soon, Ending::FailedEarly),
            (exit(128 + libc::SIGABRT), soon, Ending::FailedEarly),
            (exit(127), soon, Ending::Unrelated),
            (libc::SIGINT, soon, Ending::Unrelated),
            (libc::SIGKILL, soon, Ending::Unrelated),
            (exit(128 + libc::SIGTERM), soon, Ending::Unrelated),
            (exit(1), late, Ending::Worked),
            (exit(127), late, Ending::Unrelated),
            (libc::SIGKILL, late, Ending::Worked),
        ] {
            assert_eq!(Ending::of(status, after), expected, "{status:#x} {after:?}");
        }
    }

    #[test]
    fn two_failures_in_a_row_make_a_device_suspect_and_one_that_works_clears_it() {
        let file = OwnedFd::from(tempfile::tempfile().expect("a temporary file"));
        note(&file, Ending::FailedEarly);
        assert_eq!(suspect_until(&file), None);
        note(&file, Ending::Unrelated);
        note(&file, Ending::FailedEarly);
        let until = suspect_until(&file).expect("two have failed");
        assert!(until.abs_diff(unix_time() + SUSPICION.as_secs()) <= 1);
        note(&file, Ending::Worked);
        assert_eq!(suspect_until(&file), None);
        note(&file, Ending::FailedEarly);
        assert_eq!(suspect_until(&file), None);
    }

    #[test]
    fn what_others_write_counts_for_ten_minutes_at_most_or_not_at_all() {
        let parse = |text: &str| Record::parse(text.as_bytes(), 1000);
        assert_eq!(
            parse("2 900\nrest"),
            Some(Record {
                count: 2,
                last: 900
            })
        );
        for text in [
            "",
            "\n",
            "2",
            "2 400",
            "2 1001",
            "-2 900",
            "2  900",
            "2 18446744073709551616",
            "9999999999 900",
            "\u{ff}",
        ] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }
}
