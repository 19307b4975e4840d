//! Of the requests that a freed GPU satisfies, the longest-waiting one gets it.

use crate::claim::Waiter;
use crate::gpu::Snapshot;
use crate::ids::Device;
use crate::policy::HANDOFF_GRACE;
use crate::select::{self, Constraints, Selection};
use std::collections::HashMap;
use std::time::Instant;

/// What is left to those who asked earlier, and for how long.
#[derive(Default)]
pub(super) struct Handoff {
    /// Per earlier waiter: since when its request has been satisfiable.
    satisfiable_since: HashMap<String, Instant>,
    /// When the first of those to whom the last look left something has had its time.
    deadline: Option<Instant>,
}

impl Handoff {
    /// The last look left nothing to others.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// When the next of those to whom something is left is passed over.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Leaves alone what `earlier` waiters would take, the longest-waiting first. Returns what
    /// remains, and how many they are.
    pub(super) fn yield_to_earlier(
        &mut self,
        earlier: &[Waiter],
        own: &Constraints,
        snapshot: &Snapshot,
    ) -> (Selection, usize) {
        let now = Instant::now();
        let mut left = snapshot.device_ids();
        let before = std::mem::take(self);
        for waiter in earlier {
            let is_wanted = |device: &Device| match &waiter.wants.devices {
                Some(keys) => keys.contains(&device.key()),
                None => true,
            };
            let theirs = left.iter().map(|id| snapshot.device(*id)).filter(is_wanted);
            let constraints = Constraints {
                num_gpus: waiter.wants.num_gpus,
                least_used: false,
                tolerate: None,
                min_free_memory: waiter.wants.min_free_memory,
                devices: theirs.map(Device::id).collect(),
            };
            let Selection::Chosen(theirs) = select::select(snapshot, &constraints) else {
                continue;
            };
            let since = before
                .satisfiable_since
                .get(&waiter.name)
                .copied()
                .unwrap_or(now);
            self.satisfiable_since.insert(waiter.name.clone(), since);
            if now.duration_since(since) < HANDOFF_GRACE {
                let end = since + HANDOFF_GRACE;
                self.deadline = Some(self.deadline.map_or(end, |known| known.min(end)));
                left.retain(|device| !theirs.contains(device));
            }
        }
        let mut constraints = own.clone();
        constraints.devices.retain(|device| left.contains(device));
        let ahead = self.satisfiable_since.len();
        match select::select(snapshot, &constraints) {
            chosen @ Selection::Chosen(_) => (chosen, 0),
            // They will have taken it soon, and then it is busy, not impossible.
            Selection::NotNow { free } => (Selection::NotNow { free }, ahead),
            Selection::Impossible(_) => (Selection::NotNow { free: Vec::new() }, ahead),
        }
    }
}
