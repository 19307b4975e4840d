//! Ending a request from another thread.

use rustix::event::{EventfdFlags, eventfd};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Ends requests from another thread: [`Request::cancelled_by`](crate::Request::cancelled_by).
/// Its clones are one.
///
/// ```
/// use autocvd::{CancelToken, Environment, NoObserver, ProbeChoice, Request, acquire};
///
/// let token = CancelToken::new()?;
/// let request = Request::new()
///     .probe(ProbeChoice::File("examples/shared-server.json".into()))
///     .cancelled_by(&token);
/// std::thread::spawn(move || token.cancel()).join().expect("it only cancels");
/// let result = acquire(&request, &Environment::default(), &mut NoObserver);
/// assert!(result.is_err_and(|error| error.is_cancelled()));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct CancelToken(Arc<State>);

#[derive(Debug)]
struct State {
    is_cancelled: AtomicBool,
    /// Readable once it is cancelled.
    event: OwnedFd,
}

impl CancelToken {
    /// A token that is not cancelled yet.
    ///
    /// # Errors
    /// Where the process may have no more descriptors.
    pub fn new() -> std::io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let is_cancelled = AtomicBool::new(false);
        Ok(Self(Arc::new(State {
            is_cancelled,
            event,
        })))
    }

    /// Ends the requests that listen to this token, now and from now on, as soon as no driver call
    /// is under way: they take nothing.
    pub fn cancel(&self) {
        self.0.is_cancelled.store(true, Ordering::Release);
        // It cannot fail but where it is readable already.
        let _ = rustix::io::write(&self.0.event, &1_u64.to_ne_bytes());
    }

    /// Whether it has been cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.0.is_cancelled.load(Ordering::Acquire)
    }

    /// Becomes readable once it is cancelled.
    pub(crate) fn event(&self) -> BorrowedFd<'_> {
        self.0.event.as_fd()
    }
}
