//! The kernel's locks: which bytes of a device's lock file mean what, and the calls that lock them.
//!
//! The files have no content; a lock may lie beyond their end. All locks are open-file-description
//! locks: they belong to the open file, so that a judge inherits them without a gap, two threads
//! of one process exclude each other, and no other descriptor of the file can drop them.

use super::share::{GRANULE_BITS, Share};
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// The bits that number a byte within one nesting level, which has a byte for each granule.
const LEVEL_BITS: u32 = GRANULE_BITS;
/// How many bytes one nesting level has.
const LEVEL_LENGTH: u64 = 1 << LEVEL_BITS;
/// The first offset past all levels.
const LEVELS_END: u64 = 1 << 60;
/// The first of the bytes that stand for claims.
const TOKENS: u64 = 1 << 62;
/// How many tokens there are.
pub(super) const TOKEN_LIMIT: u64 = 1 << 61;

/// Bytes of a lock file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    start: u64,
    /// Zero is up to the last byte that can be.
    length: u64,
}

impl Range {
    /// Locked by those who took a device that was claimed already. They share it.
    pub(super) const GUESTS: Self = Self {
        start: LEVELS_END,
        length: 1,
    };
    /// The whole file.
    pub(super) const ALL: Self = Self {
        start: 0,
        length: 0,
    };

    /// The device as the launches of one nesting level share it out: 0 is outside of all others.
    pub(super) const fn level(level: u32) -> Self {
        Self {
            start: (level as u64) << LEVEL_BITS,
            length: 1 << LEVEL_BITS,
        }
    }

    /// A run of granules, from the first one to the one past the last.
    const fn granules(level: u32, (start, end): (u64, u64)) -> Self {
        Self {
            start: ((level as u64) << LEVEL_BITS) + start,
            length: end - start,
        }
    }

    /// Everything that stands against a claim at `level`: the level itself and all below it, and
    /// for the outermost one the guests.
    pub(super) const fn obstacles(level: u32) -> Self {
        let start = (level as u64) << LEVEL_BITS;
        let end = if level == 0 {
            LEVELS_END + 1
        } else {
            LEVELS_END
        };
        Self {
            start,
            length: end - start,
        }
    }

    /// What is nested inside `level`, and for the outermost one the guests.
    pub(super) const fn nested(level: u32) -> Self {
        let inner = Self::obstacles(level + 1);
        let guests = if level == 0 { 1 } else { 0 };
        Self {
            start: inner.start,
            length: inner.length + guests,
        }
    }

    /// The byte that is locked as long as the claim of this token lasts.
    pub(super) const fn token(token: u64) -> Self {
        Self {
            start: TOKENS + token,
            length: 1,
        }
    }
}

/// Who may hold the same bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// All that ask for the same mode.
    Shared,
    /// No other open file.
    Exclusive,
}

/// A lock of another open file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Conflict {
    start: u64,
    length: u64,
    /// The process, where it is a record lock: then another program than autocvd holds it.
    pub(super) pid: Option<u32>,
}

impl Conflict {
    /// Whether it may be a share's: it is less than a level.
    pub(super) fn is_partial(self) -> bool {
        self.length > 0 && self.length < LEVEL_LENGTH && self.start < LEVELS_END
    }
}

/// What other open files have locked of a device, as far as it stands against a claim at a level.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Taken {
    /// The whole device.
    Whole,
    /// These granules of it, in this level or in one below it.
    Granules(Share),
}

/// Locks the range unless another open file has it.
pub(super) fn try_lock(file: impl AsFd, range: Range, mode: Mode) -> io::Result<bool> {
    match fcntl(file, libc::F_OFD_SETLK, lock_type(mode), range) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Unlocks the range for all who share the open file.
pub(super) fn unlock(file: impl AsFd, range: Range) {
    // It cannot fail on a descriptor that could be locked.
    let _ = fcntl(file, libc::F_OFD_SETLK, libc::F_UNLCK, range);
}

/// A lock of another open file that stands against one of this `mode`.
pub(super) fn conflict(file: impl AsFd, range: Range, mode: Mode) -> io::Result<Option<Conflict>> {
    let found = fcntl(file, libc::F_OFD_GETLK, lock_type(mode), range)?;
    if found.l_type == libc::F_UNLCK as libc::c_short {
        return Ok(None);
    }
    let pid = u32::try_from(found.l_pid).ok().filter(|pid| *pid > 0);
    Ok(Some(Conflict {
        start: found.l_start as u64,
        length: found.l_len as u64,
        pid,
    }))
}

/// Returns once no open file holds the range exclusively any more.
pub(super) fn wait_until_unlocked(file: impl AsFd, range: Range) -> io::Result<()> {
    loop {
        match fcntl(&file, libc::F_OFD_SETLKW, libc::F_RDLCK, range) {
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    unlock(&file, range);
    Ok(())
}

/// The tokens of all claims on the device, at most `limit` of them, in no order.
pub(super) fn tokens(file: impl AsFd, limit: usize) -> Vec<u64> {
    let locks = locks(file, TOKENS, TOKENS + TOKEN_LIMIT, limit).unwrap_or_default();
    // A lock of more than one byte is another program's, which locks the whole file.
    let of_claims = locks.iter().filter(|lock| lock.length == 1);
    of_claims.map(|lock| lock.start - TOKENS).collect()
}

/// What others have of the device that stands against a claim at `level`.
pub(super) fn taken(file: impl AsFd, level: u32) -> io::Result<Taken> {
    if level == 0 && conflict(&file, Range::GUESTS, Mode::Exclusive)?.is_some() {
        return Ok(Taken::Whole);
    }
    let start = Range::level(level).start;
    let locks = locks(&file, start, LEVELS_END, usize::MAX)?;
    let mut runs = Vec::with_capacity(locks.len());
    for lock in locks {
        let start = lock.start % LEVEL_LENGTH;
        if !lock.is_partial() || start + lock.length > LEVEL_LENGTH {
            return Ok(Taken::Whole);
        }
        runs.push((start, start + lock.length));
    }
    Ok(Taken::Granules(Share::from_runs(runs)))
}

/// Locks all granules of the share, or none; whether it has.
pub(super) fn try_lock_share(file: impl AsFd, level: u32, share: &Share) -> io::Result<bool> {
    for run in share.runs() {
        if !try_lock(&file, Range::granules(level, run), Mode::Exclusive)? {
            unlock_share(&file, level, share);
            return Ok(false);
        }
    }
    Ok(true)
}

/// Unlocks the granules of the share for all who share the open file.
pub(super) fn unlock_share(file: impl AsFd, level: u32, share: &Share) {
    for run in share.runs() {
        unlock(&file, Range::granules(level, run));
    }
}

/// The locks of other open files from `start` up to `end`, at most about `limit` of them, in no
/// order. The shared ones are those of waiters, and are none.
fn locks(file: impl AsFd, start: u64, end: u64, limit: usize) -> io::Result<Vec<Conflict>> {
    let mut found = Vec::new();
    // The kernel names any one lock in a range, so that the rest of it is asked for in two halves.
    let mut open = vec![(start, end)];
    while let Some((start, end)) = open.pop() {
        if start >= end || found.len() >= limit {
            continue;
        }
        let range = Range {
            start,
            length: end - start,
        };
        let Some(lock) = conflict(&file, range, Mode::Shared)? else {
            continue;
        };
        found.push(lock);
        if lock.length > 0 {
            open.push((start, lock.start));
            open.push((lock.start + lock.length, end));
        }
    }
    Ok(found)
}

fn lock_type(mode: Mode) -> libc::c_int {
    match mode {
        Mode::Shared => libc::F_RDLCK,
        Mode::Exclusive => libc::F_WRLCK,
    }
}

fn fcntl(
    file: impl AsFd,
    command: libc::c_int,
    kind: libc::c_int,
    range: Range,
) -> io::Result<libc::flock> {
    // SAFETY: all zeroes are a valid value of this plain structure; l_pid has to be zero.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = range.start as libc::off_t;
    lock.l_len = range.length as libc::off_t;
    // SAFETY: the descriptor is open, and the kernel writes to the structure alone.
    match unsafe { libc::fcntl(file.as_fd().as_raw_fd(), command, &raw mut lock) } {
        0 => Ok(lock),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    fn open(path: &std::path::Path) -> File {
        let options = &mut File::options();
        options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .expect("our own")
    }

    #[test]
    fn two_open_files_exclude_each_other_and_the_kernel_tells_of_it() {
        let place = tempfile::tempdir().expect("a directory");
        let (one, two) = (
            open(&place.path().join("gpu")),
            open(&place.path().join("gpu")),
        );
        assert!(try_lock(&one, Range::level(0), Mode::Exclusive).expect("locks"));
        assert!(!try_lock(&two, Range::level(0), Mode::Exclusive).expect("locks"));
        assert!(try_lock(&two, Range::level(1), Mode::Exclusive).expect("locks"));
        let seen = |file, range| {
            conflict(file, range, Mode::Exclusive)
                .expect("locks")
                .is_some()
        };
        assert!(seen(&one, Range::nested(0)) && !seen(&one, Range::nested(1)));
        drop(one);
        assert!(try_lock(&two, Range::level(0), Mode::Exclusive).expect("locks"));
    }

    #[test]
    fn guests_share_and_stand_against_the_outermost_level_alone() {
        let place = tempfile::tempdir().expect("a directory");
        let files = [(); 3].map(|()| open(&place.path().join("gpu")));
        assert!(try_lock(&files[0], Range::GUESTS, Mode::Shared).expect("locks"));
        assert!(try_lock(&files[1], Range::GUESTS, Mode::Shared).expect("locks"));
        let seen = |range| {
            conflict(&files[2], range, Mode::Exclusive)
                .expect("locks")
                .is_some()
        };
        assert!(seen(Range::obstacles(0)) && seen(Range::nested(0)));
        assert!(!seen(Range::level(0)) && !seen(Range::obstacles(1)) && !seen(Range::nested(1)));
    }

    #[test]
    fn all_tokens_are_found_and_waiters_are_none() {
        let place = tempfile::tempdir().expect("a directory");
        let wanted = [0, 1, 7, TOKEN_LIMIT - 1, 1 << 40];
        let files = wanted.map(|token| {
            let file = open(&place.path().join("gpu"));
            assert!(try_lock(&file, Range::token(token), Mode::Exclusive).expect("locks"));
            file
        });
        let waiter = open(&place.path().join("gpu"));
        assert!(try_lock(&waiter, Range::token(9), Mode::Shared).expect("locks"));
        let reader = open(&place.path().join("gpu"));
        let mut found = tokens(&reader, 64);
        found.sort_unstable();
        assert_eq!(found, [0, 1, 7, 1 << 40, TOKEN_LIMIT - 1]);
        drop(files);
        assert!(tokens(&reader, 64).is_empty());
    }
}
