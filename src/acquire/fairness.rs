//! Of the requests that a freed GPU satisfies, the longest-waiting one gets it.

use crate::claim::Waiter;
use crate::gather::{self, Kept};
use crate::gpu::Snapshot;
use crate::ids::DeviceId;
use crate::policy::{GATHERER_GRACE, HANDOFF_GRACE};
use crate::proc;
use crate::select::{self, Constraints, Selection};
use std::time::{Duration, Instant};

/// What is left to those who asked earlier, and for how long.
#[derive(Default)]
pub(super) struct Handoff {
    /// When those who can take what is free are passed over: one grace period for all of them.
    deadline: Option<Instant>,
    /// The same for the request that gathers, once enough is free for it.
    gatherer_deadline: Option<Instant>,
    /// The processes to which something was left at the last look.
    processes: Vec<u32>,
    /// What is kept for the request that gathers, as of the last look.
    kept: Option<Kept>,
}

/// Whether a launch can wait for others to take what is left to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Courtesy {
    /// It leaves to others what they could take now.
    ToAll,
    /// It looks once, and leaves alone what is kept for the request that gathers.
    ToGatherer,
}

impl Handoff {
    /// The last look left nothing to others.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// When the next of those to whom something is left is passed over.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let now = Instant::now();
        let deadlines = [self.deadline, self.gatherer_deadline]
            .into_iter()
            .flatten();
        deadlines.filter(|deadline| *deadline > now).min()
    }

    /// The processes whose end gives back what is left to them.
    pub(super) fn processes(&self) -> impl Iterator<Item = u32> + '_ {
        let gatherer = self.kept.iter().filter_map(|kept| kept.pid);
        self.processes.iter().copied().chain(gatherer)
    }

    /// What is kept for the request that gathers.
    pub(super) fn kept(&self) -> Option<&Kept> {
        self.kept.as_ref()
    }

    /// Leaves alone what `earlier` waiters would take, the longest-waiting first, and `call`s them.
    /// Returns what remains.
    pub(super) fn yield_to_earlier(
        &mut self,
        earlier: &[Waiter],
        courtesy: Courtesy,
        own: &Constraints,
        snapshot: &Snapshot,
        call: impl Fn(&Waiter),
    ) -> Selection {
        let gatherer = gather::gatherer(earlier, snapshot, proc::since_boot());
        let mut left = snapshot.device_ids();
        let (mut deadline, mut gatherer_deadline) = (None, None);
        self.kept = None;
        self.processes.clear();
        for waiter in earlier {
            let gathers = gatherer.is_some_and(|gatherer| gatherer.name == waiter.name);
            if courtesy == Courtesy::ToGatherer && !gathers {
                continue;
            }
            let constraints = gather::constraints(waiter, &left, snapshot);
            let (theirs, grace) = match select::select(snapshot, &constraints) {
                Selection::Chosen(theirs) if gathers => {
                    self.kept = Some(Kept {
                        devices: theirs.clone(),
                        ..gather::keep(waiter, &[], snapshot)
                    });
                    let known = self.gatherer_deadline;
                    let grace = Grace::since(known, GATHERER_GRACE, &mut gatherer_deadline);
                    (theirs, grace)
                }
                Selection::Chosen(theirs) => {
                    let grace = Grace::since(self.deadline, HANDOFF_GRACE, &mut deadline);
                    (theirs, grace)
                }
                _ if gathers => {
                    let kept = gather::keep(waiter, &left, snapshot);
                    left.retain(|device| !kept.devices.contains(device));
                    self.kept = Some(kept);
                    continue;
                }
                _ => continue,
            };
            if grace != Grace::IsOver {
                self.processes.extend(waiter.process.map(|id| id.pid));
                left.retain(|device| !theirs.contains(device));
            }
            if grace == Grace::Begins {
                call(waiter);
            }
        }
        (self.deadline, self.gatherer_deadline) = (deadline, gatherer_deadline);
        self.select(own, &left, snapshot)
    }

    /// Leaves alone what was kept for a request when the machine was recorded. Returns what
    /// remains.
    pub(super) fn yield_as_recorded(
        &mut self,
        own: &Constraints,
        snapshot: &Snapshot,
    ) -> Option<Selection> {
        self.kept = gather::recorded(snapshot);
        let kept = self.kept.as_ref()?;
        let mut left = snapshot.device_ids();
        left.retain(|device| !kept.devices.contains(device));
        Some(self.select(own, &left, snapshot))
    }

    /// What remains of `left`.
    fn select(&self, own: &Constraints, left: &[DeviceId], snapshot: &Snapshot) -> Selection {
        if own.least_used {
            return self.least_used(own, snapshot);
        }
        let mut constraints = own.clone();
        constraints.devices.retain(|device| left.contains(device));
        match select::select(snapshot, &constraints) {
            // They will have taken it soon, and then it is busy, not impossible.
            Selection::Impossible(_) => Selection::NotNow { free: Vec::new() },
            selection => selection,
        }
    }

    /// The least used never waits: it takes what is kept only where too little else is unclaimed.
    fn least_used(&self, own: &Constraints, snapshot: &Snapshot) -> Selection {
        let kept = self.kept.iter().flat_map(|kept| &kept.devices).copied();
        let kept: Vec<DeviceId> = kept.filter(|id| own.devices.contains(id)).collect();
        let is_claimed = |id: &DeviceId| !snapshot.device(*id).claims().is_empty();
        let mut constraints = own.clone();
        constraints
            .devices
            .retain(|id| !kept.contains(id) && !is_claimed(id));
        for device in kept {
            if let chosen @ Selection::Chosen(_) = select::select(snapshot, &constraints) {
                return chosen;
            }
            constraints.devices.push(device);
            constraints.devices.sort_unstable();
        }
        match select::select(snapshot, &constraints) {
            chosen @ Selection::Chosen(_) => chosen,
            _ => select::select(snapshot, own),
        }
    }
}

/// Where a grace period stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Grace {
    Begins,
    Lasts,
    IsOver,
}

impl Grace {
    /// Goes on with a grace period that ends at `known`, or begins one.
    fn since(known: Option<Instant>, length: Duration, deadline: &mut Option<Instant>) -> Self {
        let now = Instant::now();
        *deadline = Some(known.unwrap_or(now + length));
        match known {
            None => Self::Begins,
            Some(end) if end <= now => Self::IsOver,
            Some(_) => Self::Lasts,
        }
    }
}
