//! Values that a forked child does not share with its parent.
//!
//! A fork copies what memory holds, a lock that another thread has just taken included, and in the
//! child nobody ever opens it. So a child begins with a value of its own.

use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Mutex, MutexGuard};

/// A value for each process, behind a lock.
pub(crate) struct ForkLocal<T: 'static>(AtomicPtr<Slot<T>>);

struct Slot<T> {
    /// The process that made it.
    pid: u32,
    value: Mutex<T>,
}

impl<T: Default + Send> ForkLocal<T> {
    pub(crate) const fn new() -> Self {
        Self(AtomicPtr::new(null_mut()))
    }

    /// This process's value, which its first use makes.
    pub(crate) fn lock(&self) -> MutexGuard<'static, T> {
        let pid = std::process::id();
        let mut slot = self.0.load(Ordering::Acquire);
        loop {
            // SAFETY: it is null or came out of a box that was leaked below.
            let known: Option<&'static Slot<T>> = unsafe { slot.as_ref() };
            if let Some(known) = known.filter(|known| known.pid == pid) {
                return known
                    .value
                    .lock()
                    .unwrap_or_else(|poisoned| poisoned.into_inner());
            }
            // What the parent had is left as it is: a lock cannot be told from one that will be
            // opened.
            let fresh = Box::into_raw(Box::new(Slot {
                pid,
                value: Mutex::new(T::default()),
            }));
            slot = match self
                .0
                .compare_exchange(slot, fresh, Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(_) => fresh,
                Err(other) => {
                    // SAFETY: no other thread has seen it.
                    drop(unsafe { Box::from_raw(fresh) });
                    other
                }
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static NUMBERS: ForkLocal<Vec<u32>> = ForkLocal::new();

    #[test]
    fn it_is_one_value_within_a_process_and_another_one_in_a_forked_child() {
        NUMBERS.lock().push(1);
        NUMBERS.lock().push(2);
        assert_eq!(*NUMBERS.lock(), [1, 2]);
        // As a child sees it: made by another process, and locked.
        let slot = NUMBERS.0.load(Ordering::Acquire);
        let theirs = Slot {
            pid: std::process::id() + 1,
            value: Mutex::new(vec![3]),
        };
        let theirs: &'static Slot<Vec<u32>> = Box::leak(Box::new(theirs));
        let _locked = theirs.value.lock().expect("no other thread has it");
        NUMBERS
            .0
            .store(std::ptr::from_ref(theirs).cast_mut(), Ordering::Release);
        assert!(NUMBERS.lock().is_empty());
        NUMBERS.0.store(slot, Ordering::Release);
    }
}
