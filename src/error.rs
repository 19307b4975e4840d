//! Why there are no GPUs to give.

use crate::amount;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// `Result` with this library's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Why there are no GPUs to give: a case with its data. Its text is one line that quotes what was
/// wrong.
///
/// # Design
/// The text says what is so, and names no option of the program and no argument of the Python
/// module: each of them adds what to do about it in its own words, by the case.
///
/// ```
/// use autocvd::{Environment, ProbeChoice, Request, try_acquire};
///
/// let request = Request::new().probe(ProbeChoice::File("examples/shared-server.json".into()));
/// let error = try_acquire(&request.num_gpus(9), &Environment::default()).expect_err("8 GPUs");
/// assert!(error.is_impossible());
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// 0 GPUs were asked for.
    #[error("0 GPUs asked for; ask for 1 or more")]
    NoGpusRequested,

    /// An id names no GPU of this machine.
    #[error("'{id}' names no GPU here; {}", valid_indices(*num_gpus))]
    UnknownDevice {
        /// The id as it was given.
        id: String,
        /// In which list it was given.
        list: IdList,
        /// How many GPUs there are.
        num_gpus: usize,
    },

    /// An id is the start of more than one UUID.
    #[error("'{id}' is ambiguous: {matches} UUIDs start with it; use a longer prefix")]
    AmbiguousDevice {
        /// The id as it was given.
        id: String,
        /// In which list it was given.
        list: IdList,
        /// How many UUIDs start with it.
        matches: usize,
    },

    /// The directory of claims is a relative path: each launch would mean another one.
    #[error("AUTOCVD_CLAIM_DIR='{}' is a relative path; give the whole path", path.display())]
    RelativeClaimDir {
        /// The path as it was given.
        path: PathBuf,
    },

    /// A file does not hold the state of a machine.
    #[error("'{}': {reason}", path.display())]
    UnreadableFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
        /// The error of the operating system, where it is one.
        source: Option<std::io::Error>,
    },

    /// A GPU that was chosen has to be named by its UUID, and its UUID cannot be used.
    #[error("the UUID of {device} {}", unusable_uuid(uuid.as_deref()))]
    UnusableUuid {
        /// What people call it: `GPU 2`.
        device: String,
        /// The GPU's index.
        index: u32,
        /// The text that is no UUID; `None` where it cannot be read.
        uuid: Option<String>,
        /// Whether it comes from a file.
        recorded: bool,
    },

    /// `CUDA_VISIBLE_DEVICES` allows none of this machine's GPUs.
    #[error("CUDA_VISIBLE_DEVICES='{value}' allows none of this machine's GPUs")]
    NothingVisible {
        /// The value.
        value: String,
    },

    /// An index in `CUDA_VISIBLE_DEVICES` counts the GPUs by their speed, and they are not alike.
    #[error(
        "CUDA_VISIBLE_DEVICES='{value}' counts the fastest GPU first, and this machine's differ: \
         set CUDA_DEVICE_ORDER=PCI_BUS_ID, or name them by UUID"
    )]
    AmbiguousOrder {
        /// The value.
        value: String,
    },

    /// The request can never be met on this machine.
    #[error("{0}")]
    Impossible(Box<Shortage>),

    /// No GPU became free in time.
    #[error("{0}")]
    TimedOut(Box<Timeout>),

    /// The driver gave no answer until the time was over.
    #[error("no GPU could be read within {}: {source}", amount::duration(*after))]
    UnreadableInTime {
        /// How long the request waited.
        after: Duration,
        /// What the driver answered last.
        source: Box<Error>,
    },

    /// No NVIDIA GPU can be read here.
    #[error("{reason}")]
    NoGpu {
        /// What NVML, nvidia-smi or both of them say, and what helps.
        reason: String,
    },

    /// The request was cancelled: [`CancelToken`](crate::CancelToken).
    #[error("the request was cancelled")]
    Cancelled,

    /// The observer ended the wait.
    #[error("{0}")]
    Observer(Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    pub(crate) fn no_gpu(reason: impl Into<String>) -> Self {
        Self::NoGpu {
            reason: reason.into(),
        }
    }

    /// Whether a value of the request was wrong: an id that names no GPU here, an unreadable file.
    pub fn is_wrong_value(&self) -> bool {
        match self {
            Self::NoGpusRequested
            | Self::UnknownDevice { .. }
            | Self::AmbiguousDevice { .. }
            | Self::AmbiguousOrder { .. }
            | Self::RelativeClaimDir { .. }
            | Self::UnreadableFile { .. } => true,
            Self::UnusableUuid { recorded, .. } => *recorded,
            _ => false,
        }
    }

    /// Whether the request can never be met on this machine.
    pub fn is_impossible(&self) -> bool {
        matches!(self, Self::Impossible(_) | Self::NothingVisible { .. })
    }

    /// Whether the time was over.
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::TimedOut(_) | Self::UnreadableInTime { .. })
    }

    /// Whether no NVIDIA GPU can be read here.
    pub fn is_no_gpu(&self) -> bool {
        matches!(self, Self::NoGpu { .. })
    }

    /// Whether the request was cancelled.
    pub fn is_cancelled(&self) -> bool {
        matches!(self, Self::Cancelled)
    }
}

/// In which list of a request an id was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdList {
    /// [`Request::only`](crate::Request::only).
    Only,
    /// [`Request::exclude`](crate::Request::exclude).
    Exclude,
}

/// What keeps a request from choosing among all devices of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Restriction {
    /// What the launch around this one holds.
    Ancestor,
    /// `CUDA_VISIBLE_DEVICES`.
    VisibleDevices,
    /// [`Request::only`](crate::Request::only).
    Only,
    /// [`Request::exclude`](crate::Request::exclude).
    Exclude,
    /// [`Request::min_free_memory`](crate::Request::min_free_memory).
    MinFreeMemory,
    /// [`Request::by_uuid`](crate::Request::by_uuid), where the UUID of a GPU cannot be read.
    Uuid,
    /// How many GPUs one user may hold: `max_per_user` in /etc/autocvd.conf.
    MaxPerUser,
    /// That it can never be told on this machine whether a GPU is in use.
    Unknowable,
}

/// A device that is not to be had, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockedDevice {
    /// What people call it: `GPU 2`, or `GPU 2 MIG 0`.
    pub label: String,
    /// Why it is not to be had.
    pub reason: String,
}

/// Why a request can never be met.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Shortage {
    /// How many GPUs were asked for.
    pub requested: usize,
    /// How many of them may be used.
    pub usable: usize,
    /// How many GPUs the machine has.
    pub total: usize,
    /// Whether more than one was asked for where MIG is enabled: a process can use one MIG device.
    pub several_mig_devices: bool,
    /// What cannot be used at all.
    pub unusable: Vec<BlockedDevice>,
    /// What is to be said where no GPU can ever have as much free memory as is wanted.
    pub too_small: Option<String>,
    /// What narrowed the choice, and where each narrowed it.
    pub restrictions: Vec<Restriction>,
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} asked for, ", gpus(self.requested))?;
        if self.several_mig_devices {
            let usable = gpus(self.usable);
            return write!(
                f,
                "but MIG is enabled and a process can use one MIG device alone ({usable} without \
                 MIG)"
            );
        }
        match self.total {
            all if all == self.usable => write!(f, "this machine has {all}")?,
            all => write!(
                f,
                "{} of this machine's {} may be used",
                self.usable,
                gpus(all)
            )?,
        }
        let unusable = group(&self.unusable);
        let why: Vec<String> = unusable.into_iter().chain(self.too_small.clone()).collect();
        match &why[..] {
            [] => Ok(()),
            why => write!(f, " ({})", why.join("; ")),
        }
    }
}

/// Why a request was not met in time.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Timeout {
    /// How many GPUs were asked for.
    pub requested: usize,
    /// How many could be had.
    pub free: usize,
    /// How long the request waited; `None` where it looked once.
    pub after: Option<Duration>,
    /// Whether it was content with GPUs in use:
    /// [`Request::least_used`](crate::Request::least_used).
    pub least_used: bool,
    /// Whether shares were enough: [`Request::share`](crate::Request::share).
    pub share: bool,
    /// Whether it was the user's limit that was in the way (`max_per_user` in /etc/autocvd.conf).
    pub over_limit: bool,
    /// What is not to be had, and why.
    pub blocked: Vec<BlockedDevice>,
}

impl fmt::Display for Timeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(after) = self.after {
            write!(f, "timed out after {}: ", amount::duration(after))?;
        }
        match (self.requested, self.free) {
            _ if self.over_limit => f.write_str("no more GPUs may be had")?,
            (1, _) => write!(f, "no GPU is free")?,
            (wanted, 1) => write!(f, "only 1 of the {wanted} requested GPUs is free")?,
            (wanted, 0) => write!(f, "none of the {wanted} requested GPUs is free")?,
            (wanted, free) => write!(f, "only {free} of the {wanted} requested GPUs are free")?,
        }
        if self.after.is_none() {
            write!(f, " now")?;
        }
        match &group(&self.blocked)[..] {
            [] => Ok(()),
            why => write!(f, " ({})", why.join("; ")),
        }
    }
}

fn gpus(count: usize) -> String {
    match count {
        1 => "1 GPU".to_owned(),
        count => format!("{count} GPUs"),
    }
}

/// The reasons, each told once for all devices that it is the reason of.
fn group(blocked: &[BlockedDevice]) -> Vec<String> {
    let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
    for BlockedDevice { label, reason } in blocked {
        match groups.iter_mut().find(|(known, _)| known == reason) {
            Some((_, labels)) => labels.push(label),
            None => groups.push((reason, vec![label])),
        }
    }
    let told = |(reason, labels): (&str, Vec<&str>)| format!("{}: {reason}", labels.join(", "));
    groups.into_iter().map(told).collect()
}

fn valid_indices(num_gpus: usize) -> String {
    match num_gpus {
        0 => "there are none".to_owned(),
        1 => "there is only GPU 0".to_owned(),
        n => format!("give an index from 0 to {}, a UUID or a PCI bus id", n - 1),
    }
}

fn unusable_uuid(uuid: Option<&str>) -> String {
    match uuid {
        Some(uuid) => format!("is {uuid:?}, which is no form of a UUID"),
        None => "cannot be read, and its index may mean another GPU to CUDA".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocked(label: &str, reason: &str) -> BlockedDevice {
        BlockedDevice {
            label: label.into(),
            reason: reason.into(),
        }
    }

    #[test]
    fn one_reason_is_told_once_for_all_gpus_that_it_concerns() {
        let blocked = [
            blocked("GPU 0", "lost"),
            blocked("GPU 1", "busy"),
            blocked("GPU 2", "lost"),
        ];
        assert_eq!(group(&blocked), ["GPU 0, GPU 2: lost", "GPU 1: busy"]);
    }

    #[test]
    fn a_timeout_says_how_many_were_free() {
        let timeout = |requested, free, after| Timeout {
            requested,
            free,
            after,
            least_used: false,
            share: false,
            over_limit: false,
            blocked: vec![blocked("GPU 0", "busy")],
        };
        let second = Some(Duration::from_secs(1));
        for (timeout, expected) in [
            (
                timeout(1, 0, second),
                "timed out after 1 s: no GPU is free (GPU 0: busy)",
            ),
            (timeout(1, 0, None), "no GPU is free now (GPU 0: busy)"),
            (
                timeout(2, 1, second),
                "timed out after 1 s: only 1 of the 2 requested GPUs is free (GPU 0: busy)",
            ),
            (
                timeout(2, 0, None),
                "none of the 2 requested GPUs is free now (GPU 0: busy)",
            ),
            (
                timeout(4, 2, None),
                "only 2 of the 4 requested GPUs are free now (GPU 0: busy)",
            ),
        ] {
            assert_eq!(timeout.to_string(), expected);
        }
    }
}
