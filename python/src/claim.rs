//! A claim of this process.

use autocvd::ClaimGuard;
use pyo3::prelude::*;
use std::mem::ManuallyDrop;
use std::sync::{Mutex, PoisonError};

/// A claim. It ends when it is released, or else with the process: an object that is collected ends
/// nothing, for when the interpreter ends, CUDA has not let go of the GPUs yet.
#[pyclass(frozen, module = "autocvd._autocvd")]
pub(crate) struct Claim {
    guard: Mutex<Option<ManuallyDrop<ClaimGuard>>>,
}

impl Claim {
    pub(crate) fn new(guard: ClaimGuard) -> Self {
        Self {
            guard: Mutex::new(Some(ManuallyDrop::new(guard))),
        }
    }
}

#[pymethods]
impl Claim {
    /// Ends it; a second time nothing happens.
    pub(crate) fn release(&self) {
        let guard = self
            .guard
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        drop(guard.map(ManuallyDrop::into_inner));
    }

    /// Whether it has not ended yet.
    fn is_held(&self) -> bool {
        self.guard
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_some()
    }

    /// Lets the program keep it that this process is about to become.
    fn keep_across_exec(&self) {
        let mut guard = self.guard.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(guard) = &mut *guard {
            // Without a descriptor to spare the claim ends with this program.
            let _ = guard.keep_across_exec();
        }
    }

    /// In a forked child: lets go of what is its parent's. Another thread may have been at it when
    /// the child was made.
    fn forget(&self) {
        let guard = self
            .guard
            .try_lock()
            .ok()
            .and_then(|mut guard| guard.take());
        drop(guard.map(ManuallyDrop::into_inner));
    }
}
