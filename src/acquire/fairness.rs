//! Of the requests that a freed GPU satisfies, the longest-waiting one gets it.

use crate::claim::Waiter;
use crate::gpu::Snapshot;
use crate::ids::Device;
use crate::policy::HANDOFF_GRACE;
use crate::select::{self, Constraints, Selection};
use std::time::Instant;

/// What is left to those who asked earlier, and for how long: one grace period for all of them.
#[derive(Default)]
pub(super) struct Handoff {
    /// When they are passed over.
    deadline: Option<Instant>,
}

impl Handoff {
    /// The last look left nothing to others.
    pub(super) fn clear(&mut self) {
        self.deadline = None;
    }

    /// When those to whom something is left are passed over.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Leaves alone what `earlier` waiters would take, the longest-waiting first, and `call`s them.
    /// Returns what remains.
    pub(super) fn yield_to_earlier(
        &mut self,
        earlier: &[Waiter],
        own: &Constraints,
        snapshot: &Snapshot,
        call: impl Fn(&Waiter),
    ) -> Selection {
        let now = Instant::now();
        let is_over = self.deadline.is_some_and(|deadline| deadline <= now);
        let mut left = snapshot.device_ids();
        let mut leaves_something = false;
        for waiter in earlier {
            let is_wanted = |device: &Device| waiter.wants(&device.key());
            let theirs = left.iter().map(|id| snapshot.device(*id)).filter(is_wanted);
            let constraints = Constraints {
                num_gpus: waiter.num_gpus,
                least_used: false,
                tolerate: waiter.tolerate,
                min_free_memory: waiter.min_free_memory,
                devices: theirs.map(Device::id).collect(),
            };
            let Selection::Chosen(theirs) = select::select(snapshot, &constraints) else {
                continue;
            };
            leaves_something = true;
            if !is_over {
                left.retain(|device| !theirs.contains(device));
            }
            if self.deadline.is_none() {
                call(waiter);
            }
        }
        if leaves_something {
            self.deadline = self.deadline.or(Some(now + HANDOFF_GRACE));
        }
        let mut constraints = own.clone();
        constraints.devices.retain(|device| left.contains(device));
        match select::select(snapshot, &constraints) {
            // They will have taken it soon, and then it is busy, not impossible.
            Selection::Impossible(_) => Selection::NotNow { free: Vec::new() },
            selection => selection,
        }
    }
}
