//! What to undo should this process be ended by a signal: a claim that its judge holds already, but
//! of which nothing has been printed yet, and the queue position, whose files never count once
//! their process has ended, but cost others a look.

use super::directory::Directory;
use super::lock::{self, Range};
use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicI32, AtomicPtr, Ordering};

struct Position {
    directory: RawFd,
    names: [CString; 2],
}

static POSITION: AtomicPtr<Position> = AtomicPtr::new(null_mut());

/// Remembers two files. What is replaced is leaked: a signal handler may be reading it.
pub(super) fn set(directory: &Directory, names: [&str; 2]) {
    let [Ok(first), Ok(second)] = names.map(CString::new) else {
        return;
    };
    let directory = directory.descriptor().as_raw_fd();
    let position = Box::new(Position {
        directory,
        names: [first, second],
    });
    POSITION.store(Box::into_raw(position), Ordering::Release);
}

/// Forgets them: to be called before the directory is closed.
pub(super) fn clear() {
    POSITION.store(null_mut(), Ordering::Release);
}

/// The locked files of a claim; -1 is none.
static CLAIM: [AtomicI32; 64] = [const { AtomicI32::new(-1) }; 64];

/// Remembers the files of a claim whose judge is to be told if this process ends by a signal. Of
/// more than 64 the rest ends by the rules of their purpose.
pub(super) fn set_claim(files: &[OwnedFd]) {
    for (slot, file) in CLAIM.iter().zip(files) {
        slot.store(file.as_raw_fd(), Ordering::Release);
    }
}

/// Forgets them: to be called before they are closed.
pub(super) fn forget_claim() {
    for slot in &CLAIM {
        slot.store(-1, Ordering::Release);
    }
}

/// Ends the claim, whoever holds it, and removes the files. Only system calls, so that a signal
/// handler may do it.
pub fn remove_files() {
    for slot in &CLAIM {
        let file = slot.swap(-1, Ordering::AcqRel);
        if file >= 0 {
            // SAFETY: the file is open until `forget_claim` is called.
            let file = unsafe { BorrowedFd::borrow_raw(file) };
            lock::unlock(file, Range::ALL);
        }
    }

    let position = POSITION.swap(null_mut(), Ordering::AcqRel);
    // SAFETY: `set` stored a value that is never freed.
    let Some(position) = (unsafe { position.as_ref() }) else {
        return;
    };
    // SAFETY: the directory is open until `clear` is called.
    let directory = unsafe { BorrowedFd::borrow_raw(position.directory) };
    for name in &position.names {
        let name: &CStr = name;
        let _ = rustix::fs::unlinkat(directory, name, rustix::fs::AtFlags::empty());
    }
}
