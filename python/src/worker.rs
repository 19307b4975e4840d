//! Asking the driver, and waiting, on a thread of its own.
//!
//! # Design
//! A call into the driver can take seconds, or for ever, and nothing can interrupt it. So the
//! thread that Python runs on never makes one: it sleeps on a descriptor, and leaves a worker
//! behind that does not answer. A worker never calls Python, so it holds up neither an interpreter
//! that ends nor another thread.

use crate::wakeup::Wakeup;
use autocvd::text::WaitSummary;
use autocvd::{CancelToken, Error, Observer, WaitStatus};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

/// What a worker tells.
pub(crate) enum Event<T> {
    Warning(String),
    /// There is something to wait for.
    Waiting(Box<Wait>),
    Ended(autocvd::Result<T>),
}

/// What is waited for.
pub(crate) struct Wait {
    pub(crate) summary: WaitSummary,
    pub(crate) deadline: Option<Instant>,
}

/// What both sides know.
struct Shared {
    wakeup: Arc<Wakeup>,
    cancel: CancelToken,
    /// Since when the driver has been asked.
    asked_since: Mutex<Option<Instant>>,
}

impl Shared {
    fn set_asked_since(&self, since: Option<Instant>) {
        *self
            .asked_since
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = since;
    }
}

/// A thread that works, seen from the one that waits for it.
pub(crate) struct Worker<T> {
    shared: Arc<Shared>,
    events: Receiver<Event<T>>,
    thread: Option<JoinHandle<()>>,
}

impl<T: Send + 'static> Worker<T> {
    /// Starts `work`, which `cancel` ends.
    ///
    /// # Errors
    /// Where the process may have no more threads or descriptors.
    pub(crate) fn start(
        checks: Checks,
        cancel: CancelToken,
        work: impl FnOnce(&mut Reporter<T>) -> autocvd::Result<T> + Send + 'static,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            wakeup: Arc::new(Wakeup::new()?),
            cancel,
            asked_since: Mutex::new(None),
        });
        let (sender, events) = channel();
        let mut reporter = Reporter {
            shared: shared.clone(),
            sender,
            checks,
            failure: None,
        };
        let run = move || {
            let ended =
                catch_unwind(AssertUnwindSafe(|| work(&mut reporter))).unwrap_or_else(|_| {
                    Err(Error::Observer(
                        "autocvd panicked; please report what it wrote to stderr".into(),
                    ))
                });
            let ended = reporter.failure.take().map_or(ended, Err);
            reporter.send(Event::Ended(ended));
        };
        let builder = thread::Builder::new().name("autocvd".into());
        let thread = Some(without_signals(|| builder.spawn(run))?);
        Ok(Self {
            shared,
            events,
            thread,
        })
    }

    pub(crate) fn wakeup(&self) -> &Arc<Wakeup> {
        &self.shared.wakeup
    }

    /// The next thing that it has told.
    pub(crate) fn next(&mut self) -> Option<Event<T>> {
        let event = self.events.try_recv().ok()?;
        if let (Event::Ended(_), Some(thread)) = (&event, self.thread.take()) {
            // It has nothing left to do. A fork would warn of a thread that is still there.
            let _ = thread.join();
        }
        Some(event)
    }

    /// Since when the driver has been asked, where it has not answered yet.
    pub(crate) fn asked_since(&self) -> Option<Instant> {
        *self
            .shared
            .asked_since
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Drop for Worker<T> {
    /// What it still finds is dropped, and so is the claim on it.
    fn drop(&mut self) {
        self.shared.cancel.cancel();
    }
}

/// What a worker looks after while it waits.
#[derive(Default)]
pub(crate) struct Checks {
    /// The keys of the units that the asking thread has claimed.
    pub(crate) own_claims: Vec<String>,
    /// Whether somebody reads who is on the GPUs.
    pub(crate) wants_detail: bool,
}

/// The worker's side.
pub(crate) struct Reporter<T> {
    shared: Arc<Shared>,
    sender: Sender<Event<T>>,
    checks: Checks,
    /// What ends the wait.
    failure: Option<Error>,
}

impl<T> Reporter<T> {
    fn send(&self, event: Event<T>) {
        // Where nobody listens any more the event is dropped, and the claim in it.
        let _ = self.sender.send(event);
        self.shared.wakeup.notify();
    }
}

impl<T> Observer for Reporter<T> {
    fn warn(&mut self, text: &str) {
        self.send(Event::Warning(text.to_owned()));
    }

    fn waiting(&mut self, status: &WaitStatus) {
        if let Some(error) = own_claims_in_the_way(&self.checks.own_claims, status) {
            self.failure = Some(error);
            return self.shared.cancel.cancel();
        }
        self.send(Event::Waiting(Box::new(Wait {
            summary: WaitSummary::of(status),
            deadline: status.deadline,
        })));
    }

    fn wants_detail(&self) -> bool {
        self.checks.wants_detail
    }

    fn probe_started(&mut self, _deadline: Option<Instant>) {
        self.shared.set_asked_since(Some(Instant::now()));
        // Who sleeps for as long as the driver is silent has to know that it is asked.
        self.shared.wakeup.notify();
    }

    fn probe_finished(&mut self) {
        self.shared.set_asked_since(None);
    }
}

/// Why a wait was ended that could only have been for this thread itself.
#[derive(Debug)]
pub(crate) struct WouldWaitForItself(String);

impl std::fmt::Display for WouldWaitForItself {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for WouldWaitForItself {}

/// A thread that waits for what it has itself claimed would wait for ever, where no time is set.
fn own_claims_in_the_way(own: &[String], status: &WaitStatus) -> Option<Error> {
    if status.deadline.is_some() || own.is_empty() {
        return None;
    }
    let candidates = status.candidates.iter();
    let mine: Vec<String> = candidates
        .map(|id| status.snapshot.device(*id))
        .filter(|device| own.contains(&device.key()))
        .map(|device| device.label())
        .collect();
    let all = status.candidates.len();
    if mine.is_empty() || all - mine.len() >= status.num_gpus {
        return None;
    }
    let text = format!(
        "of the {all} to choose among, this thread has already claimed {}, and would wait for \
         itself; release those first, or set a timeout",
        mine.join(", ")
    );
    Some(Error::Observer(Box::new(WouldWaitForItself(text))))
}

/// Starts a thread that no signal is delivered to: they are for the thread that Python handles them
/// on.
fn without_signals<T>(start: impl FnOnce() -> T) -> T {
    let mut before = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: both sets live here, and the first one is filled before it is used.
    let is_set = unsafe {
        let mut all = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) == 0
    };
    let started = start();
    if is_set {
        // SAFETY: the call above has written it.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut()) };
    }
    started
}
