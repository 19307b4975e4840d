//! What Python has to do with a wait: signals, and telling of it.

use super::claims;
use autocvd::amount;
use autocvd::ids::Device;
use autocvd::text::WaitSummary;
use autocvd::{Error, ErrorKind};
use autocvd::{Observer, WaitStatus};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use std::time::{Duration, Instant};

/// How soon a signal is seen that came just before the sleep; during it, the signal ends the sleep.
const SIGNALS: Duration = Duration::from_millis(50);
/// How often the time left is told.
const SECOND: Duration = Duration::from_secs(1);

/// Tells Python of a wait, and ends it when Python has something to raise.
pub(crate) struct Watcher {
    /// Called with each line; `None` tells nothing.
    tell: Option<Py<PyAny>>,
    /// Whether a line replaces the last one: then it counts down.
    in_place: bool,
    warn: Py<PyAny>,
    /// Only there does Python handle signals.
    on_main_thread: bool,
    timeout: Option<Duration>,
    deadline: Option<Instant>,
    picture: WaitSummary,
    told: String,
    /// The exception that ends the wait.
    pub(crate) failure: Option<PyErr>,
}

impl Watcher {
    pub(crate) fn new(
        tell: Option<Py<PyAny>>,
        in_place: bool,
        warn: Py<PyAny>,
        on_main_thread: bool,
        timeout: Option<Duration>,
    ) -> Self {
        let (picture, told) = (WaitSummary::default(), String::new());
        Self {
            tell,
            in_place,
            warn,
            on_main_thread,
            timeout,
            deadline: None,
            picture,
            told,
            failure: None,
        }
    }

    fn call(&mut self, function: impl FnOnce(Python<'_>, &Self) -> PyResult<()>) {
        if self.failure.is_none() {
            self.failure = Python::attach(|py| function(py, self)).err();
        }
    }

    fn tell_picture(&mut self) {
        let is_first = self.told.is_empty();
        let line = match self.in_place {
            true => {
                let left = self
                    .deadline
                    .map(|deadline| deadline.saturating_duration_since(Instant::now()));
                // What is in place is cut where it is shown.
                self.picture.line_within(left, usize::MAX)
            }
            false => self.picture.line(),
        };
        if self.tell.is_none() || line == self.told {
            return;
        }
        let limit = self.timeout.filter(|_| is_first && !self.in_place);
        let limit = limit.map(|limit| format!("; gives up after {}", amount::duration(limit)));
        let shown = format!("{line}{}", limit.unwrap_or_default());
        self.told = line;
        self.call(|py, watcher| match &watcher.tell {
            Some(tell) => tell.call1(py, (shown,)).map(drop),
            None => Ok(()),
        });
    }

    /// A thread that waits for what it has itself claimed would wait for ever, where no time is set.
    fn check_own_claims(&mut self, status: &WaitStatus) {
        if status.deadline.is_some() {
            return;
        }
        self.call(|_, _| {
            let own = claims::of_this_thread();
            let is_own = |device: &Device| own.contains(&device.key());
            let candidates = status.candidates.iter().map(|id| status.snapshot.device(*id));
            let own: Vec<Device> = candidates.filter(is_own).collect();
            if own.is_empty() || status.candidates.len() - own.len() >= status.num_gpus {
                return Ok(());
            }
            let labels: Vec<String> = own.into_iter().map(Device::label).collect();
            let (wanted, all) = (status.num_gpus, status.candidates.len());
            Err(PyValueError::new_err(format!(
                "num_gpus={wanted}: of the {all} to choose among, this thread has already claimed {}, and would wait \
                 for itself; call autocvd.release() first",
                labels.join(", ")
            )))
        });
    }
}

impl Observer for Watcher {
    fn warn(&mut self, text: &str) {
        self.call(|py, watcher| watcher.warn.call1(py, (text,)).map(drop));
    }

    fn waiting(&mut self, status: &WaitStatus) {
        self.check_own_claims(status);
        self.deadline = status.deadline;
        self.picture = WaitSummary::of(status);
        self.tell_picture();
    }

    fn wants_detail(&self) -> bool {
        self.tell.is_some()
    }

    fn tick_every(&self) -> Option<Duration> {
        let counting = self.tell.is_some() && self.in_place && self.deadline.is_some();
        match self.failure {
            Some(_) => Some(Duration::ZERO),
            None if self.on_main_thread => Some(SIGNALS),
            None => counting.then_some(SECOND),
        }
    }

    fn tick(&mut self) -> autocvd::Result<()> {
        if self.on_main_thread {
            self.call(|py, _| py.check_signals());
        }
        if self.in_place {
            self.tell_picture();
        }
        match self.failure {
            // The text is seen by nobody: `failure` is raised in its place.
            Some(_) => Err(Error::new(ErrorKind::Unexpected, "an exception in Python")),
            None => Ok(()),
        }
    }
}
