//! How a waiter is called: a FIFO beside its place in the queue.
//!
//! inotify would do as well, but the kernel takes some milliseconds to close an inotify descriptor, and a
//! waiter has to close it just when it has got what it waited for.

use super::directory::Directory;
use rustix::fs::{CWD, FileType, Mode, OFlags};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

const PREFIX: &str = ".bell-";

pub(super) fn path(directory: &Directory, name: &str) -> PathBuf {
    directory.path().join(file_name(name))
}

pub(super) fn file_name(name: &str) -> String {
    format!("{PREFIX}{name}")
}

/// Makes the bell of the place `name`, which everybody may ring; what is returned becomes readable when somebody does.
pub(super) fn hang(path: &Path) -> Option<OwnedFd> {
    let everybody = Mode::from_raw_mode(0o666);
    rustix::fs::mknodat(CWD, path, FileType::Fifo, everybody, 0).ok()?;
    // Open for writing too: else it would stay readable once the first who rang is gone.
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let bell = rustix::fs::openat(CWD, path, flags, Mode::empty()).ok()?;
    // The umask took its share.
    rustix::fs::fchmod(&bell, everybody).ok()?;
    Some(bell)
}

/// Calls the waiter. Nobody may be there any more, or it may be no FIFO: neither matters.
pub(super) fn ring(path: &Path) {
    // Open for reading too: a waiter that leaves just now must not make it a SIGPIPE.
    let flags =
        OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NOCTTY;
    let Ok(bell) = rustix::fs::openat(CWD, path, flags, Mode::empty()) else {
        return;
    };
    let is_fifo = rustix::fs::fstat(&bell)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo);
    if is_fifo {
        let _ = rustix::io::write(&bell, b"!");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bell_is_heard_and_one_that_nobody_hears_or_that_is_none_does_no_harm() {
        let directory = tempfile::tempdir().expect("a directory");
        let place = directory.path().join("bell");
        let bell = hang(&place).expect("a FIFO");
        ring(&place);
        assert_eq!(rustix::io::read(&bell, &mut [0; 8]), Ok(1));
        drop(bell);
        // Rust's test harness ignores SIGPIPE, which the program does not: no error may come of it at all.
        let flags = OFlags::RDWR | OFlags::NONBLOCK;
        let alone =
            rustix::fs::openat(CWD, &place, flags, Mode::empty()).expect("it is still there");
        ring(&place);
        assert_eq!(rustix::io::write(&alone, b"!"), Ok(1));
        let file = directory.path().join("file");
        std::fs::write(&file, "text").expect("our own directory");
        ring(&file);
        assert_eq!(std::fs::read(&file).expect("it is there"), b"text");
        ring(&directory.path().join("nothing"));
    }
}
