//! A descriptor that is readable while a worker has something to tell.

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::{fcntl_dupfd_cloexec, read, write};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// An eventfd. It stays clear of the standard streams: in a process that has closed those, what
/// Python prints must not end up in it.
pub(crate) struct Wakeup(OwnedFd);

impl Wakeup {
    pub(crate) fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let event = if event.as_raw_fd() > 2 {
            event
        } else {
            fcntl_dupfd_cloexec(&event, 3)?
        };
        Ok(Self(event))
    }

    pub(crate) fn descriptor(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Makes the descriptor readable.
    pub(crate) fn notify(&self) {
        // It can only fail where it is readable already.
        let _ = write(&self.0, &1u64.to_ne_bytes());
    }

    /// Makes the descriptor wait for the next [`notify`](Self::notify).
    pub(crate) fn clear(&self) {
        let _ = read(&self.0, &mut [0; 8]);
    }

    /// Sleeps until the descriptor is readable, a signal arrives or `limit` has passed.
    pub(crate) fn wait(&self, limit: Option<Duration>) {
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        let _ = poll(
            &mut [PollFd::from_borrowed_fd(self.0.as_fd(), PollFlags::IN)],
            limit.as_ref(),
        );
    }
}
