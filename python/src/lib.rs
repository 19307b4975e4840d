//! The native part of the Python module: the library, with Python's exceptions, and a thread that
//! asks the driver. What users call and read about is in `autocvd/__init__.py`.

mod claim;
mod search;
mod wakeup;
mod worker;

use autocvd::{Error, IdList, Restriction, Shortage};
use pyo3::exceptions::{PyOSError, PyRuntimeError, PyTimeoutError, PyValueError};
use pyo3::prelude::*;
use worker::WouldWaitForItself;

pyo3::create_exception!(
    autocvd,
    NoGpuError,
    PyOSError,
    "No NVIDIA GPU can be read here."
);
pyo3::create_exception!(
    autocvd,
    GpuTimeoutError,
    PyTimeoutError,
    "The GPUs did not become free in time."
);

/// The native part of autocvd.
#[pymodule(gil_used = false)]
mod _autocvd {
    #[pymodule_export]
    use super::claim::Claim;
    #[pymodule_export]
    use super::search::Search;
    #[pymodule_export]
    use super::{GpuTimeoutError, NoGpuError};
    use crate::search::{self, Own, Reasons};
    use crate::worker::Checks;
    use autocvd::{CancelToken, ClaimPolicy, Environment, Request, text};
    use pyo3::exceptions::PyValueError;
    use pyo3::prelude::*;
    use std::time::Duration;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }

    /// What to find, as the function's arguments say it.
    #[derive(FromPyObject)]
    #[pyo3(from_item_all)]
    struct Wanted {
        num_gpus: usize,
        least_used: bool,
        exclude: Vec<String>,
        only: Option<Vec<String>>,
        min_free_memory: Option<u64>,
        share: Option<u64>,
        inherit: bool,
        claim: bool,
    }

    impl Wanted {
        /// What the choice is among, and how many of it.
        fn request(&self) -> Request {
            let mut request = Request::new()
                .num_gpus(self.num_gpus)
                .exclude(self.exclude.clone());
            if let Some(only) = &self.only {
                request = request.only(only.clone());
            }
            if self.inherit {
                request = request.inherit();
            }
            request
        }
    }

    /// Starts finding, waiting for and claiming GPUs.
    #[pyfunction]
    #[pyo3(signature = (
        wanted, *, timeout, interval, visible, inside, own_claims, wants_detail, explains,
    ))]
    #[expect(
        clippy::too_many_arguments,
        reason = "they are the function's, by name"
    )]
    fn find(
        wanted: Wanted,
        timeout: Option<f64>,
        interval: f64,
        visible: Option<String>,
        inside: Option<String>,
        own_claims: Vec<String>,
        wants_detail: bool,
        explains: bool,
    ) -> PyResult<Search> {
        let timeout = timeout.map(Duration::from_secs_f64);
        let mut request = wanted.request().interval(Duration::from_secs_f64(interval));
        if wanted.least_used {
            request = request.least_used();
        }
        if let Some(timeout) = timeout {
            request = request.timeout(timeout);
        }
        if let Some(bytes) = wanted.min_free_memory {
            request = request.min_free_memory(bytes);
        }
        if let Some(bytes) = wanted.share {
            request = request.share(bytes);
        }
        if !wanted.claim {
            request = request.claim(ClaimPolicy::No);
        }
        let mut reasons = Reasons::Unread;
        if explains {
            request = request.with_details();
            let min_free_memory = wanted.min_free_memory.or(wanted.share);
            reasons = Reasons::Read { min_free_memory };
        }
        // Read before other threads run: Python changes the environment only while it holds them
        // up.
        let environment = search::environment(visible, inside);
        let cancel = CancelToken::new()?;
        let request = request.cancelled_by(&cancel);
        let checks = Checks {
            own_claims,
            wants_detail,
        };
        Search::start(timeout, checks, cancel, move |observer| {
            search::find(&request, &environment, reasons, observer)
        })
    }

    /// Starts finding out whether devices that this process has claimed are what is wanted. Fails
    /// where that can never be met.
    #[pyfunction]
    #[pyo3(signature = (wanted, keys, *, timeout, visible, inside))]
    fn compare(
        wanted: Wanted,
        keys: Vec<String>,
        timeout: Option<f64>,
        visible: Option<String>,
        inside: Option<String>,
    ) -> PyResult<Search> {
        let timeout = timeout.map(Duration::from_secs_f64);
        let look = wanted
            .request()
            .least_used()
            .timeout(Duration::ZERO)
            .claim(ClaimPolicy::No)
            .with_details();
        let own = Own {
            keys,
            num_gpus: wanted.num_gpus,
            min_free_memory: wanted.min_free_memory,
        };
        let environment = search::environment(visible, inside);
        let cancel = CancelToken::new()?;
        let look = look.cancelled_by(&cancel);
        Search::start(timeout, Checks::default(), cancel, move |observer| {
            search::serves(&look, &own, &environment, observer)
        })
    }

    /// Starts reading the machine's state.
    #[pyfunction]
    fn status() -> PyResult<Search> {
        let environment = Environment::read();
        let cancel = CancelToken::new()?;
        Search::start(None, Checks::default(), cancel, move |observer| {
            search::status(&environment, observer)
        })
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
}

pub(crate) fn exception(error: Error) -> PyErr {
    let text = with_advice(&error);
    match &error {
        error if error.is_wrong_value() || error.is_impossible() => PyValueError::new_err(text),
        error if error.is_timeout() => GpuTimeoutError::new_err(text),
        error if error.is_no_gpu() => NoGpuError::new_err(text),
        Error::Observer(cause) if cause.is::<WouldWaitForItself>() => PyValueError::new_err(text),
        _ => PyRuntimeError::new_err(text),
    }
}

/// The error in one line that ends with what to do, in the words of the function's arguments.
fn with_advice(error: &Error) -> String {
    match error {
        Error::UnknownDevice { list, .. } | Error::AmbiguousDevice { list, .. } => {
            let argument = match list {
                IdList::Only => "only",
                IdList::Exclude => "exclude",
            };
            format!("{argument}: {error}")
        }
        Error::UnusableUuid { index, .. } => {
            format!("{error}; leave it out with exclude={index}")
        }
        Error::NothingVisible { .. } => {
            format!("{error}; ask the batch system for GPUs, or unset it")
        }
        Error::Impossible(shortage) => {
            format!("{error}; {}", about_shortage(shortage))
        }
        Error::TimedOut(timeout) if timeout.least_used => format!("{error}; try again later"),
        Error::TimedOut(timeout) if timeout.share => {
            format!("{error}; wait longer (timeout), or ask for a smaller share (min_free_memory)")
        }
        Error::TimedOut(_) => {
            format!("{error}; wait longer (timeout), or take the least used (least_used=True)")
        }
        _ => error.to_string(),
    }
}

fn about_shortage(shortage: &Shortage) -> String {
    let names = shortage
        .restrictions
        .iter()
        .map(|restriction| match restriction {
            Restriction::Only => "only",
            Restriction::Exclude => "exclude",
            Restriction::MinFreeMemory => "min_free_memory",
            Restriction::VisibleDevices => "CUDA_VISIBLE_DEVICES",
            _ => "the launch around this one",
        });
    let names: Vec<&str> = names.collect();
    let ask = format!("ask for at most {}", shortage.usable);
    match (&names[..], shortage.usable) {
        ([], _) => ask,
        (names, 0) => format!("allow more ({})", names.join(", ")),
        (names, _) => format!("{ask}, or allow more ({})", names.join(", ")),
    }
}
