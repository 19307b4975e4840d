//! The queue as it is shown.

#[cfg(feature = "serde")]
use super::json;
#[cfg(feature = "serde")]
use serde::{Deserialize, Serialize};

/// A request that waits.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
#[non_exhaustive]
pub struct WaitingRequest {
    /// The process that waits; `None` where it lives in another PID namespace.
    #[cfg_attr(feature = "serde", serde(default))]
    pub pid: Option<u32>,
    /// The name of its user, or the number where it has none.
    #[cfg_attr(feature = "serde", serde(default))]
    pub user: Option<String>,
    /// The command that waits, or the shell's that asked for the GPUs; `None` where /proc hides it.
    #[cfg_attr(feature = "serde", serde(default))]
    pub command: Option<String>,
    /// Since when it waits: Unix time in seconds.
    #[cfg_attr(feature = "serde", serde(default, deserialize_with = "json::time"))]
    pub since: Option<u64>,
    /// How many GPUs it waits for.
    #[cfg_attr(feature = "serde", serde(default))]
    pub num_gpus: usize,
    /// How many bytes each is to have free.
    #[cfg_attr(feature = "serde", serde(default))]
    pub min_free_memory: Option<u64>,
    /// Whether a share of each is enough.
    #[cfg_attr(feature = "serde", serde(default))]
    pub share: bool,
    /// Its place in the queue, from 1: among the requests inside the same launch, or outside of
    /// any.
    #[cfg_attr(feature = "serde", serde(default))]
    pub place: usize,
}
