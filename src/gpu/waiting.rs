//! The queue as it is shown.

use super::json;
use serde::{Deserialize, Serialize};

/// A request that waits.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct WaitingRequest {
    /// The process that waits; `None` where it lives in another PID namespace.
    pub pid: Option<u32>,
    /// The name of its user, or the number where it has none.
    pub user: Option<String>,
    /// The command that waits, or the shell's that asked for the GPUs; `None` where /proc hides it.
    pub command: Option<String>,
    /// Since when it waits: Unix time in seconds.
    #[serde(deserialize_with = "json::time")]
    pub since: Option<u64>,
    /// How many GPUs it waits for.
    pub num_gpus: usize,
    /// How many bytes each is to have free.
    pub min_free_memory: Option<u64>,
    /// Whether a share of each is enough.
    pub share: bool,
    /// Its place in the queue, from 1: among the requests inside the same launch, or outside of
    /// any.
    pub place: usize,
    /// The UUIDs of the devices that are kept for it, because it has waited for so long.
    pub kept: Vec<String>,
}
