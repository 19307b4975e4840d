//! Who is told what happens while a request is under way.

use crate::Result;
use crate::gpu::Snapshot;
use crate::ids::DeviceId;
use std::time::{Duration, Instant};

/// What a waiter sees.
#[non_exhaustive]
pub struct WaitStatus<'a> {
    /// The machine as it was read last.
    pub snapshot: &'a Snapshot,
    /// The devices to choose among.
    pub candidates: &'a [DeviceId],
    /// Those of them that could be given.
    pub free: &'a [DeviceId],
    /// How many are asked for.
    pub num_gpus: usize,
    /// How many bytes each is to have free.
    pub min_free_memory: Option<u64>,
    /// How many bytes of each, where a share is enough.
    pub share: Option<u64>,
    /// How many bytes idle processes may hold.
    pub(crate) tolerate: Option<u64>,
    /// How many others asked earlier inside the same launch, or outside of any, and can act.
    pub waiters_ahead: usize,
    /// The devices that are kept for a request that has waited for so long.
    pub kept: &'a [DeviceId],
    /// For whom they are.
    pub(crate) kept_reason: Option<&'a str>,
    /// When to give up.
    pub deadline: Option<Instant>,
}

/// Is told what happens meanwhile, and can end the wait.
///
/// ```
/// use autocvd::{Observer, WaitStatus};
///
/// struct Log;
///
/// impl Observer for Log {
///     fn waiting(&mut self, status: &WaitStatus) {
///         eprintln!("{} of {} are free", status.free.len(), status.num_gpus);
///     }
/// }
/// ```
pub trait Observer {
    /// Something is not as it should be, but the work goes on.
    fn warn(&mut self, _text: &str) {}

    /// GPUs are given that could not be claimed: other launches may pick the same ones.
    fn unclaimed(&mut self, text: &str) {
        self.warn(text);
    }

    /// There is something to wait for: called after each look at the machine that found too little.
    fn waiting(&mut self, _status: &WaitStatus) {}

    /// Whether [`waiting`](Self::waiting) wants users, commands and times of processes.
    fn wants_detail(&self) -> bool {
        false
    }

    /// Whether [`place_changed`](Self::place_changed) is to be called between the looks.
    fn follows_place(&self) -> bool {
        false
    }

    /// Others have left the queue: so many are ahead now.
    fn place_changed(&mut self, _waiters_ahead: usize) {}

    /// How often [`tick`](Self::tick) is to be called while waiting; it is also called after
    /// signals.
    fn tick_every(&self) -> Option<Duration> {
        None
    }

    /// The driver is about to be asked, which may take long or for ever.
    fn probe_started(&mut self, _deadline: Option<Instant>) {}

    /// The driver has answered.
    fn probe_finished(&mut self) {}

    /// Called while waiting.
    ///
    /// # Errors
    /// An error ends the wait and becomes its result.
    fn tick(&mut self) -> Result<()> {
        Ok(())
    }
}

/// An observer that does nothing.
pub struct NoObserver;

impl Observer for NoObserver {}
