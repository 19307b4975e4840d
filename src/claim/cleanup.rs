//! Files to remove should this process be ended by a signal: a claim that nobody was told of, a place in
//! the queue. Dead processes' files never count; this only spares others the looking.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, Ordering};

/// The one path of its kind that this process has, if any.
pub(crate) struct Slot(AtomicPtr<std::ffi::c_char>);

/// The claim that is being made.
pub(crate) static CLAIM: Slot = Slot(AtomicPtr::new(null_mut()));
/// The place in the queue.
pub(crate) static TICKET: Slot = Slot(AtomicPtr::new(null_mut()));

/// What this process is called by while it waits.
pub(crate) static BELL: Slot = Slot(AtomicPtr::new(null_mut()));

impl Slot {
    /// Remembers `path`. A path that is replaced is leaked: a signal handler may be reading it.
    pub(crate) fn set(&self, path: &Path) {
        if let Ok(path) = CString::new(path.as_os_str().as_bytes()) {
            self.0.store(path.into_raw(), Ordering::Release);
        }
    }

    /// Forgets the path.
    pub(crate) fn clear(&self) {
        self.0.store(null_mut(), Ordering::Release);
    }

    fn take(&self) -> Option<&'static std::ffi::CStr> {
        let path = self.0.swap(null_mut(), Ordering::AcqRel);
        // SAFETY: `set` stored a string that is never freed.
        (!path.is_null()).then(|| unsafe { std::ffi::CStr::from_ptr(path) })
    }
}

/// Removes the files. Only system calls, so that a signal handler may do it.
pub fn remove_files() {
    for path in [CLAIM.take(), TICKET.take(), BELL.take()]
        .into_iter()
        .flatten()
    {
        let _ = rustix::fs::unlink(path);
    }
}
