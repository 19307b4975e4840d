//! A search for GPUs as Python sees it: an object that is waited for, and can be left.

use crate::claim::Claim;
use crate::worker::{Checks, Event, Wait, Worker};
use crate::{GpuTimeoutError, exception};
use autocvd::text::duration;
use autocvd::{
    Acquisition, CancelToken, Device, Environment, Observer, ProbeChoice, Request, State, acquire,
};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use std::os::fd::RawFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long the driver may be silent before a line says so.
const SILENCE: Duration = Duration::from_secs(5);
/// What the line says.
const SILENCE_TEXT: &str = "autocvd: the NVIDIA driver has not answered for 5 s; still waiting for \
                            it (see dmesg; Ctrl-C ends this)";
/// How long a driver that is asked shortly before the deadline may take to answer.
const LAST_LOOK: Duration = Duration::from_secs(1);
/// How long it may take to answer where there is one look and no wait: without persistence mode a
/// GPU takes seconds.
const ONE_LOOK: Duration = Duration::from_secs(30);

/// What a search brings.
enum Outcome {
    Found(Box<Found>),
    /// Whether the devices that were asked about serve.
    Serves(bool),
    Status(String),
}

/// GPUs that were found.
struct Found {
    acquisition: Acquisition,
    passed_over: Vec<String>,
}

/// The indices, keys, variables and name of what was found; what was passed over and why; the
/// claim.
type FoundParts = (
    Vec<u32>,
    Vec<String>,
    Vec<(&'static str, String)>,
    String,
    Vec<String>,
    Option<Py<Claim>>,
);

/// A search that is under way on a thread of its own.
#[pyclass(frozen, module = "autocvd._autocvd")]
pub(crate) struct Search(Mutex<Running>);

struct Running {
    /// `None` after it has ended or was left.
    worker: Option<Worker<Outcome>>,
    started: Instant,
    timeout: Option<Duration>,
    wait: Option<Wait>,
    /// Whether the driver's present silence was told of.
    silence_told: bool,
    outcome: Option<autocvd::Result<Outcome>>,
    /// The claim on what was found: whoever asked may be interrupted before taking note of it.
    claim: Option<Py<Claim>>,
}

impl Search {
    pub(crate) fn start(
        timeout: Option<Duration>,
        checks: Checks,
        cancel: CancelToken,
        work: impl FnOnce(&mut dyn Observer) -> autocvd::Result<OutcomeOf> + Send + 'static,
    ) -> PyResult<Self> {
        let worker = Worker::start(checks, cancel, move |reporter| {
            work(reporter).map(|outcome| outcome.0)
        })
        .map_err(|error| {
            PyRuntimeError::new_err(format!(
                "cannot start a thread to ask the driver on: {error}"
            ))
        })?;
        let (wait, outcome, silence_told) = (None, None, false);
        let started = Instant::now();
        Ok(Self(Mutex::new(Running {
            worker: Some(worker),
            started,
            timeout,
            wait,
            silence_told,
            outcome,
            claim: None,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Running> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An outcome, made by one of the functions below.
pub(crate) struct OutcomeOf(Outcome);

/// Finds and claims GPUs.
pub(crate) fn find(
    request: &Request,
    environment: &Environment,
    reasons: Reasons,
    observer: &mut dyn Observer,
) -> autocvd::Result<OutcomeOf> {
    let acquisition = acquire(request, environment, observer)?;
    let passed_over = match reasons {
        Reasons::Read { min_free_memory } => passed_over(&acquisition, min_free_memory),
        Reasons::Unread => Vec::new(),
    };
    Ok(OutcomeOf(Outcome::Found(Box::new(Found {
        acquisition,
        passed_over,
    }))))
}

/// Whether somebody reads why GPUs were passed over.
pub(crate) enum Reasons {
    Unread,
    Read { min_free_memory: Option<u64> },
}

/// Devices that this process has claimed, and what they are to be now.
pub(crate) struct Own {
    pub(crate) keys: Vec<String>,
    pub(crate) num_gpus: usize,
    pub(crate) min_free_memory: Option<u64>,
}

/// Finds out whether devices that this process has claimed are among those that `look`, a request
/// that reads all of them and does not wait, may choose, and have what is wanted.
pub(crate) fn serves(
    look: &Request,
    own: &Own,
    environment: &Environment,
    observer: &mut dyn Observer,
) -> autocvd::Result<OutcomeOf> {
    let seen = acquire(look, environment, observer)?;
    let serves = |key: &String| {
        let candidates = seen.candidates.iter().map(|id| seen.snapshot.device(*id));
        let device = { candidates }.find(|device| device.key() == *key);
        device.is_some_and(|device| is_large_enough(device, own.min_free_memory))
    };
    let serves = own.keys.len() == own.num_gpus && own.keys.iter().all(serves);
    Ok(OutcomeOf(Outcome::Serves(serves)))
}

/// Whether a device is usable, and has so many bytes free or in use by this process.
fn is_large_enough(device: Device, wanted: Option<u64>) -> bool {
    if device.verdict().state() == State::Unavailable {
        return false;
    }
    let Some(wanted) = wanted else { return true };
    let processes = device.processes().value().unwrap_or_default().iter();
    let own = processes.filter(|process| process.pid == std::process::id());
    let own: u64 = own.filter_map(|process| process.used_memory).sum();
    let free = device.memory().free;
    free.value()
        .is_some_and(|free| free.saturating_add(own) >= wanted)
}

/// Reads the machine's state, for showing it.
pub(crate) fn status(
    environment: &Environment,
    observer: &mut dyn Observer,
) -> autocvd::Result<OutcomeOf> {
    let snapshot = autocvd::status(&ProbeChoice::Auto, environment, observer)?;
    Ok(OutcomeOf(Outcome::Status(snapshot.to_json())))
}

/// The environment of this process, as it was before autocvd set anything in it.
pub(crate) fn environment(visible: Option<String>, inside: Option<String>) -> Environment {
    let mut environment = Environment::read().started_inside(inside.as_deref());
    environment.cuda_visible_devices = visible;
    environment
}

/// Why each device that was not chosen was passed over.
fn passed_over(found: &Acquisition, min_free_memory: Option<u64>) -> Vec<String> {
    let reason = |device: Device| {
        let verdict = device.verdict();
        if verdict.state() != State::Unavailable && !found.candidates.contains(&device.id()) {
            return "not among those to choose from".to_owned();
        }
        let shortfall = device.memory_shortfall(min_free_memory);
        let reason = shortfall.or_else(|| verdict.reason().map(str::to_owned));
        reason.unwrap_or_else(|| "free, but not needed".to_owned())
    };
    let devices = found.snapshot.devices();
    devices
        .filter(|device| !found.devices.contains(&device.id()))
        .map(|device| format!("passed over {}: {}", device.label(), reason(device)))
        .collect()
}

#[pymethods]
impl Search {
    /// The descriptor that is readable while there is something to tell.
    fn fileno(&self) -> RawFd {
        self.lock()
            .worker
            .as_ref()
            .map_or(-1, |worker| worker.wakeup().descriptor())
    }

    /// Sleeps until there is something to tell, a signal arrives or so many seconds have passed.
    fn wait(&self, py: Python<'_>, seconds: f64) {
        let limit = Duration::try_from_secs_f64(seconds).ok();
        let wakeup = self
            .lock()
            .worker
            .as_ref()
            .map(|worker| worker.wakeup().clone());
        if let Some(wakeup) = wakeup {
            py.detach(|| wakeup.wait(limit));
        }
    }

    /// What has happened since the last call: pairs of a kind ('warning', 'waiting', 'silence') and
    /// a text.
    fn news(&self) -> PyResult<Vec<(&'static str, String)>> {
        self.lock().news()
    }

    /// Whether it has ended.
    fn is_done(&self) -> bool {
        self.lock().outcome.is_some()
    }

    /// Seconds until there may be news that nothing wakes for.
    fn next_check(&self) -> Option<f64> {
        self.lock()
            .next_check()
            .map(|at| at.saturating_duration_since(Instant::now()).as_secs_f64())
    }

    /// What is waited for now, with the time left.
    fn countdown(&self) -> Option<String> {
        let running = self.lock();
        let wait = running.wait.as_ref()?;
        let left = wait
            .deadline
            .map(|deadline| deadline.saturating_duration_since(Instant::now()));
        // It is cut where it is shown.
        Some(wait.summary.line_within(left, usize::MAX))
    }

    /// Leaves it: it takes nothing any more, and what it has taken is free again.
    fn cancel(&self) {
        let mut running = self.lock();
        running.worker = None;
        running.outcome = None;
        if let Some(claim) = running.claim.take() {
            claim.get().release();
        }
    }

    /// What it has found.
    fn found(&self, py: Python<'_>) -> PyResult<FoundParts> {
        let Outcome::Found(found) = self.lock().take()? else {
            return Err(not_asked());
        };
        let Found {
            mut acquisition,
            passed_over,
        } = *found;
        let snapshot = &acquisition.snapshot;
        let devices = acquisition.devices.iter();
        let devices: Vec<Device> = devices.map(|id| snapshot.device(*id)).collect();
        let indices = devices.iter().map(|device| device.gpu().index).collect();
        let keys = devices.iter().map(|device| device.key()).collect();
        let label: Vec<String> = devices.iter().map(|device| device.label()).collect();
        let mut variables = acquisition.variables();
        if acquisition.claim.is_some() {
            variables.push(acquisition.inside());
        }
        let claim = acquisition.claim.take().map(Claim::new);
        let claim = claim.map(|claim| Py::new(py, claim)).transpose()?;
        self.lock().claim = claim.as_ref().map(|claim| claim.clone_ref(py));
        Ok((
            indices,
            keys,
            variables,
            label.join(", "),
            passed_over,
            claim,
        ))
    }

    /// Whether the devices that were asked about serve.
    fn serves(&self) -> PyResult<bool> {
        match self.lock().take()? {
            Outcome::Serves(serves) => Ok(serves),
            _ => Err(not_asked()),
        }
    }

    /// The machine's state as `autocvd status --json` prints it.
    fn status(&self) -> PyResult<String> {
        match self.lock().take()? {
            Outcome::Status(status) => Ok(status),
            _ => Err(not_asked()),
        }
    }
}

fn not_asked() -> PyErr {
    PyRuntimeError::new_err("this search does not look for that")
}

impl Running {
    fn news(&mut self) -> PyResult<Vec<(&'static str, String)>> {
        let mut news = Vec::new();
        if let Some(worker) = &self.worker {
            worker.wakeup().clear();
        }
        while let Some(event) = self.worker.as_mut().and_then(Worker::next) {
            match event {
                Event::Warning(text) => news.push(("warning", text)),
                Event::Waiting(wait) => {
                    if let Some(line) = self.line(&wait) {
                        news.push(("waiting", line));
                    }
                    self.wait = Some(*wait);
                }
                Event::Ended(outcome) => {
                    self.outcome = Some(outcome);
                    self.worker = None;
                    return Ok(news);
                }
            }
        }
        let Some(since) = self.worker.as_ref().and_then(Worker::asked_since) else {
            self.silence_told = false;
            return Ok(news);
        };
        let now = Instant::now();
        if self
            .driver_deadline(since)
            .is_some_and(|deadline| deadline <= now)
        {
            self.worker = None;
            let waited = duration(
                self.timeout
                    .filter(|timeout| !timeout.is_zero())
                    .unwrap_or(ONE_LOOK),
            );
            let text = format!(
                "the NVIDIA driver did not answer within {waited}; see dmesg, or give a longer \
                 timeout"
            );
            return Err(GpuTimeoutError::new_err(text));
        }
        if !self.silence_told && now.duration_since(since) >= SILENCE {
            self.silence_told = true;
            news.push(("silence", SILENCE_TEXT.to_owned()));
        }
        Ok(news)
    }

    /// What to tell of a wait, unless it is what was told last.
    fn line(&self, wait: &Wait) -> Option<String> {
        let line = wait.summary.line();
        match (&self.wait, self.timeout) {
            (Some(last), _) if last.summary.line() == line => None,
            (None, Some(timeout)) => Some(format!("{line}; gives up after {}", duration(timeout))),
            _ => Some(line),
        }
    }

    /// Until when a driver that is asked since then has to answer.
    fn driver_deadline(&self, since: Instant) -> Option<Instant> {
        match self.timeout? {
            Duration::ZERO => since.checked_add(ONE_LOOK),
            timeout => Some(self.started.checked_add(timeout)?.max(since + LAST_LOOK)),
        }
    }

    fn next_check(&self) -> Option<Instant> {
        let since = self.worker.as_ref()?.asked_since()?;
        let told = (!self.silence_told).then(|| since + SILENCE);
        [told, self.driver_deadline(since)]
            .into_iter()
            .flatten()
            .min()
    }

    fn take(&mut self) -> PyResult<Outcome> {
        let outcome = self
            .outcome
            .take()
            .ok_or_else(|| PyRuntimeError::new_err("the search has not ended"))?;
        outcome.map_err(exception)
    }
}
