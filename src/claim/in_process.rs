//! Locks of this process that a forked child shall not keep: an open file is shared by both, and
//! with it the lock. So the child closes it before anything else runs there.

use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::ptr::null_mut;
use std::sync::Once;
use std::sync::atomic::{AtomicI32, AtomicPtr, Ordering};

/// A descriptor in a list that only grows, for a lock could be left locked by a fork.
struct Entry {
    /// -1 is none.
    descriptor: AtomicI32,
    next: *mut Entry,
}

static ENTRIES: AtomicPtr<Entry> = AtomicPtr::new(null_mut());
static HANDLER: Once = Once::new();

unsafe extern "C" {
    fn pthread_atfork(
        prepare: Option<extern "C" fn()>,
        parent: Option<extern "C" fn()>,
        child: Option<extern "C" fn()>,
    ) -> libc::c_int;
}

/// An open file that ends with this process, whatever it forks.
#[derive(Debug)]
pub(super) struct NotInherited {
    /// In a forked child it is closed already.
    file: ManuallyDrop<OwnedFd>,
    entry: &'static AtomicI32,
    process: u32,
}

impl NotInherited {
    pub(super) fn new(file: OwnedFd) -> Self {
        HANDLER.call_once(|| {
            // SAFETY: the handler makes system calls and reads atomics alone.
            unsafe { pthread_atfork(None, None, Some(close_in_child)) };
        });
        let entry = register(file.as_raw_fd());
        Self {
            file: ManuallyDrop::new(file),
            entry,
            process: std::process::id(),
        }
    }

    pub(super) fn file(&self) -> &OwnedFd {
        &self.file
    }
}

impl Drop for NotInherited {
    fn drop(&mut self) {
        if self.process == std::process::id() {
            self.entry.store(-1, Ordering::Release);
            // SAFETY: it is dropped here alone.
            unsafe { ManuallyDrop::drop(&mut self.file) };
        }
    }
}

fn entries() -> impl Iterator<Item = &'static Entry> {
    let mut next = ENTRIES.load(Ordering::Acquire);
    std::iter::from_fn(move || {
        // SAFETY: it is null or came out of a box that was leaked below.
        let entry: &'static Entry = unsafe { next.as_ref() }?;
        next = entry.next;
        Some(entry)
    })
}

/// Puts a descriptor into the list.
fn register(descriptor: RawFd) -> &'static AtomicI32 {
    let order = (Ordering::AcqRel, Ordering::Relaxed);
    for entry in entries() {
        if entry
            .descriptor
            .compare_exchange(-1, descriptor, order.0, order.1)
            .is_ok()
        {
            return &entry.descriptor;
        }
    }
    let entry = Box::leak(Box::new(Entry {
        descriptor: descriptor.into(),
        next: null_mut(),
    }));
    let mut first = ENTRIES.load(Ordering::Acquire);
    loop {
        entry.next = first;
        match ENTRIES.compare_exchange(first, entry, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => return &entry.descriptor,
            Err(other) => first = other,
        }
    }
}

extern "C" fn close_in_child() {
    for entry in entries() {
        let descriptor = entry.descriptor.swap(-1, Ordering::AcqRel);
        if descriptor >= 0 {
            // SAFETY: it is open, and its owner's copy in the child does not close it.
            unsafe { libc::close(descriptor) };
        }
    }
}
