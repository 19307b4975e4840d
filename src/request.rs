//! What is asked for.

use crate::cancel::CancelToken;
use crate::ids::IdForm;
use crate::policy;
use crate::probe::{Detail, ProbeChoice};
use std::time::Duration;

/// Which GPUs to find, and how. Without more, one GPU, for this process, however long it takes.
///
/// ```
/// use autocvd::Request;
/// use std::time::Duration;
///
/// let request = Request::new()
///     .num_gpus(2)
///     .min_free_memory(40 << 30)
///     .exclude(["0"])
///     .timeout(Duration::from_secs(3600));
/// # let _ = request;
/// ```
#[derive(Debug, Clone)]
#[must_use = "a request does nothing until it is passed to `acquire`"]
pub struct Request {
    pub(crate) num_gpus: usize,
    pub(crate) least_used: bool,
    pub(crate) timeout: Option<Duration>,
    pub(crate) interval: Duration,
    pub(crate) patience: Option<Duration>,
    pub(crate) exclude: Vec<String>,
    pub(crate) only: Option<Vec<String>>,
    pub(crate) min_free_memory: Option<u64>,
    pub(crate) share: Option<u64>,
    pub(crate) tolerate: Option<u64>,
    pub(crate) inherit: bool,
    pub(crate) id_form: IdForm,
    pub(crate) claim: ClaimPolicy,
    pub(crate) probe: ProbeChoice,
    pub(crate) detail: Detail,
    pub(crate) cpu_affinity: bool,
    pub(crate) cancel: Option<CancelToken>,
}

impl Default for Request {
    fn default() -> Self {
        Self {
            num_gpus: 1,
            least_used: false,
            timeout: None,
            interval: policy::INTERVAL,
            patience: None,
            exclude: Vec::new(),
            only: None,
            min_free_memory: None,
            share: None,
            tolerate: None,
            inherit: false,
            id_form: IdForm::default(),
            claim: ClaimPolicy::default(),
            probe: ProbeChoice::Auto,
            detail: Detail::Decision,
            cpu_affinity: false,
            cancel: None,
        }
    }
}

impl Request {
    /// One GPU, for this process, however long it takes.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many GPUs; at least 1.
    pub fn num_gpus(self, num_gpus: usize) -> Self {
        Self { num_gpus, ..self }
    }

    /// Never wait: take the GPUs with the most free memory, in use or not.
    pub fn least_used(self) -> Self {
        Self {
            least_used: true,
            ..self
        }
    }

    /// Give up after this time; zero looks once and does not wait.
    pub fn timeout(self, timeout: Duration) -> Self {
        Self {
            timeout: Some(timeout),
            ..self
        }
    }

    /// Look again at least this often while waiting; 30 s unless told. What frees a GPU is seen at
    /// once in any case.
    pub fn interval(self, interval: Duration) -> Self {
        Self { interval, ..self }
    }

    /// Gather after this time of waiting: GPUs that this request can use are then kept for it until
    /// it has enough. 5 minutes unless told, here or by `AUTOCVD_PATIENCE`.
    pub fn patience(self, patience: Duration) -> Self {
        Self {
            patience: Some(patience),
            ..self
        }
    }

    /// Leave these out: indices, UUIDs or unique starts of them, PCI bus ids.
    pub fn exclude<I: IntoIterator<Item: Into<String>>>(self, ids: I) -> Self {
        let exclude = ids.into_iter().map(Into::into).collect();
        Self { exclude, ..self }
    }

    /// Choose among these alone: indices, UUIDs or unique starts of them, PCI bus ids.
    pub fn only<I: IntoIterator<Item: Into<String>>>(self, ids: I) -> Self {
        let only = Some(ids.into_iter().map(Into::into).collect());
        Self { only, ..self }
    }

    /// Only GPUs with this many bytes free.
    pub fn min_free_memory(self, bytes: u64) -> Self {
        Self {
            min_free_memory: Some(bytes),
            ..self
        }
    }

    /// Take a share of this many bytes of each GPU instead of whole GPUs: other shares go beside
    /// it, as long as their sum is no more than the GPU's memory. The fullest GPU that has room
    /// goes first. Nothing keeps a program within its share.
    ///
    /// With [`least_used`](Self::least_used) it does not wait, and ends with
    /// [`Error::TimedOut`](crate::Error::TimedOut) where no GPU has room.
    pub fn share(self, bytes: u64) -> Self {
        Self {
            share: Some(bytes),
            ..self
        }
    }

    /// Take GPUs too whose processes together hold at most this many bytes and do not compute (at
    /// most 5 % utilization), such as monitors and idle notebooks. GPUs that are free go first.
    pub fn tolerate(self, bytes: u64) -> Self {
        Self {
            tolerate: Some(bytes),
            ..self
        }
    }

    /// Choose among what `CUDA_VISIBLE_DEVICES` allows. In a batch job this is so in any case.
    pub fn inherit(self) -> Self {
        Self {
            inherit: true,
            ..self
        }
    }

    /// Name the GPUs by UUID even where an index would do.
    pub fn by_uuid(self) -> Self {
        let id_form = IdForm::Uuid;
        Self { id_form, ..self }
    }

    /// Whether and for whom to claim what is found; for this process unless told.
    pub fn claim(self, claim: ClaimPolicy) -> Self {
        Self { claim, ..self }
    }

    /// Where to read the machine's state.
    pub fn probe(self, probe: ProbeChoice) -> Self {
        Self { probe, ..self }
    }

    /// Also read what the decision does not need, for showing it: names, utilization, the driver's
    /// version and complete process lists.
    pub fn with_details(self) -> Self {
        Self {
            detail: Detail::Everything,
            ..self
        }
    }

    /// End with [`Error::Cancelled`](crate::Error::Cancelled) once the token is cancelled.
    pub fn cancelled_by(self, token: &CancelToken) -> Self {
        Self {
            cancel: Some(token.clone()),
            ..self
        }
    }

    /// Find out which CPU cores are near the GPUs:
    /// [`Acquisition::cpu_affinity`](crate::Acquisition::cpu_affinity).
    pub fn with_cpu_affinity(self) -> Self {
        Self {
            cpu_affinity: true,
            ..self
        }
    }
}

/// Whether and for whom to claim what is found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClaimPolicy {
    /// Ignore existing claims and make none.
    No,
    /// For this process; the claim ends with the [`Acquisition`](crate::Acquisition) or the
    /// process.
    #[default]
    Process,
    /// For the program that this process becomes by exec, and for what that leaves behind: see
    /// [`ClaimGuard::persist`](crate::ClaimGuard::persist).
    Command {
        /// Its name.
        program: String,
    },
    /// For the shell that started this process.
    Shell {
        /// How long the claim lasts while the shell has not started a program.
        hold: Duration,
        /// What the shell will do with what is printed.
        form: OutputForm,
    },
}

/// What a shell does with a printed choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum OutputForm {
    /// Assignments in front of one command.
    Prefix,
    /// Exported variables.
    Export,
    /// Ids alone.
    Ids,
}
