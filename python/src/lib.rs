//! The native part of the Python module: the library, with Python's exceptions, signals and threads.
//! What users call and read about is in `autocvd/__init__.py`.

mod claims;
mod watcher;

use pyo3::prelude::*;

/// The native part of autocvd.
#[pymodule(gil_used = true)]
mod _autocvd {
    use super::{claims, watcher};
    use autocvd::environment::Environment;
    use autocvd::probe::{ProbeChoice, file};
    use autocvd::status as machine_status;
    use autocvd::{ClaimPolicy, Request, acquire};
    use autocvd::{Error, ErrorKind, text};
    use pyo3::exceptions::{PyOSError, PyRuntimeError, PyTimeoutError, PyValueError};
    use pyo3::prelude::*;
    use std::time::Duration;
    use watcher::Watcher;

    /// GPUs, the environment that gives them to CUDA, what to call them, and what to release them by.
    type BlockedDevice = (Vec<u32>, Vec<(&'static str, String)>, String, Option<u64>);

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }

    /// Finds, waits for and claims GPUs.
    #[pyfunction]
    #[pyo3(signature = (*, num_gpus, least_used, timeout, interval, exclude, only, min_free_memory, inherit, claim, visible, tell, in_place, warn, on_main_thread))]
    #[expect(
        clippy::too_many_arguments,
        reason = "they are the function's, by name"
    )]
    fn take(
        py: Python<'_>,
        num_gpus: usize,
        least_used: bool,
        timeout: Option<f64>,
        interval: f64,
        exclude: Vec<String>,
        only: Option<Vec<String>>,
        min_free_memory: Option<u64>,
        inherit: bool,
        claim: bool,
        visible: Option<String>,
        tell: Option<Py<PyAny>>,
        in_place: bool,
        warn: Py<PyAny>,
        on_main_thread: bool,
    ) -> PyResult<BlockedDevice> {
        let timeout = timeout.map(Duration::from_secs_f64);
        let mut request = Request::new()
            .num_gpus(num_gpus)
            .interval(Duration::from_secs_f64(interval))
            .exclude(exclude);
        if least_used {
            request = request.least_used();
        }
        if let Some(timeout) = timeout {
            request = request.timeout(timeout);
        }
        if let Some(only) = only {
            request = request.only(only);
        }
        if let Some(bytes) = min_free_memory {
            request = request.min_free_memory(bytes);
        }
        if inherit {
            request = request.inherit();
        }
        if !claim {
            request = request.claim(ClaimPolicy::No);
        }
        // Read before other threads run: Python changes the environment only while it holds them up.
        let environment = Environment {
            cuda_visible_devices: visible,
            ..Environment::read()
        };
        let mut watcher = Watcher::new(tell, in_place, warn, on_main_thread, timeout);
        let found = py.detach(|| acquire(&request, &environment, &mut watcher));
        if let Some(error) = watcher.failure {
            return Err(error);
        }
        let mut found = found.map_err(exception)?;
        let snapshot = &found.snapshot;
        let devices = || found.devices.iter().map(|id| snapshot.device(*id));
        let indices = devices().map(|device| device.gpu().index).collect();
        let labels: Vec<String> = devices().map(|device| device.label()).collect();
        let keys = devices().map(|device| device.key()).collect();
        let variables = found.variables().into();
        let token = found.claim.take().map(|held| claims::keep(held, keys));
        Ok((indices, variables, labels.join(", "), token))
    }

    /// Ends one of this process's claims, or all of them.
    #[pyfunction]
    #[pyo3(signature = (token=None))]
    fn release(token: Option<u64>) {
        claims::release(token);
    }

    /// In a forked child: lets go of what is its parent's.
    #[pyfunction]
    fn after_fork() {
        claims::release(None);
    }

    /// The machine's state as `autocvd status --json` prints it.
    #[pyfunction]
    fn status(py: Python<'_>, warn: Py<PyAny>) -> PyResult<String> {
        let environment = Environment::read();
        let mut watcher = Watcher::new(None, false, warn, false, None);
        let snapshot =
            py.detach(|| machine_status::status(&ProbeChoice::Auto, &environment, &mut watcher));
        match watcher.failure {
            Some(error) => Err(error),
            None => Ok(file::to_json(&snapshot.map_err(exception)?)),
        }
    }

    /// Seconds from a text such as '2m 30s'.
    #[pyfunction]
    fn parse_duration(text: &str) -> PyResult<f64> {
        text::parse_duration(text)
            .map(|duration| duration.as_secs_f64())
            .map_err(PyValueError::new_err)
    }

    /// Bytes from a text such as '10GiB'.
    #[pyfunction]
    fn parse_size(text: &str) -> PyResult<u64> {
        text::parse_size(text).map_err(PyValueError::new_err)
    }

    fn exception(error: Error) -> PyErr {
        let text = error.to_string();
        match error.kind() {
            ErrorKind::WrongValue | ErrorKind::Impossible => PyValueError::new_err(in_python(text)),
            ErrorKind::TimedOut => PyTimeoutError::new_err(in_python(text)),
            ErrorKind::NoGpu => PyOSError::new_err(text),
            ErrorKind::Unexpected => PyRuntimeError::new_err(in_python(text)),
        }
    }

    /// The library's messages name the program's options: here they are arguments.
    fn in_python(mut text: String) -> String {
        for (option, argument) in [
            ("--exclude", "exclude"),
            ("--only", "only"),
            ("--inherit", "inherit"),
            ("--min-free-memory", "min_free_memory"),
            ("--timeout", "timeout"),
            ("(-l)", "(least_used=True)"),
            ("with -x ", "with exclude="),
        ] {
            text = text.replace(option, argument);
        }
        text
    }
}
