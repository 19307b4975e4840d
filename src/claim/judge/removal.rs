//! Lock files that are removed while they are locked: a launch that makes one anew would not see
//! the lock. The judge hears of a removal and locks the new file before a launch does, which [lets
//! a new file alone](super::super::directory::Directory::settle) for a moment.

use super::super::directory::Directory;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// What tells of files that are removed from the directory of claims, or of its own removal.
pub(super) struct RemovalWatch(OwnedFd);

impl RemovalWatch {
    /// `None` where the user watches too much already.
    pub(super) fn new(directory: &Directory) -> Option<Self> {
        let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).ok()?;
        let path = format!("/proc/self/fd/{}", directory.descriptor().as_raw_fd());
        let of_files = WatchFlags::DELETE | WatchFlags::MOVED_FROM;
        let of_itself = WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF;
        inotify::add_watch(&watch, path, of_files | of_itself).ok()?;
        Some(Self(watch))
    }

    /// Whether something was removed since it was asked last.
    pub(super) fn has_seen_one(&self) -> bool {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(&self.0, &mut buffer);
        let mut seen = false;
        while events
            .next()
            .is_ok_and(|event| event.events() != ReadFlags::empty())
        {
            seen = true;
        }
        seen
    }
}

impl AsFd for RemovalWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
