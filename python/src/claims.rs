//! The claims of this process, kept until they are released or it ends.
//!
//! The list is only touched by threads that hold the GIL: so no thread holds its lock while another forks.

use autocvd::claim::ClaimGuard;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::thread::{self, ThreadId};

struct Kept {
    token: u64,
    thread: ThreadId,
    devices: Vec<String>,
    _held: ClaimGuard,
}

/// Never dropped: at the end of the process the kernel ends its claims, after CUDA has let go of the GPUs.
static KEPT: Mutex<Vec<Kept>> = Mutex::new(Vec::new());

/// Never used again: who releases by an old one releases nothing.
static NEXT: AtomicU64 = AtomicU64::new(0);

fn kept() -> MutexGuard<'static, Vec<Kept>> {
    KEPT.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Keeps a claim on `devices`; returns what to release it by.
pub(crate) fn keep(held: ClaimGuard, devices: Vec<String>) -> u64 {
    let token = NEXT.fetch_add(1, Ordering::Relaxed);
    kept().push(Kept {
        token,
        thread: thread::current().id(),
        devices,
        _held: held,
    });
    token
}

/// Ends one claim, or all. In a forked child it closes files and ends nothing: [`ClaimGuard`] knows whose it is.
pub(crate) fn release(token: Option<u64>) {
    kept().retain(|one| token.is_some_and(|token| token != one.token));
}

/// The devices that this thread has claimed.
pub(crate) fn of_this_thread() -> Vec<String> {
    let this = thread::current().id();
    kept()
        .iter()
        .filter(|one| one.thread == this)
        .flat_map(|one| one.devices.clone())
        .collect()
}
