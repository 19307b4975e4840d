//! What may free a GPU for a request, as little of it as tells.

use super::Attempt;
use super::rechecks::Pace;
use crate::claim::{Claim, WakeHint};
use crate::gpu::{ProcessView, Snapshot};
use crate::ids::Device;
use crate::policy::{HIDDEN_POLL_INTERVAL, IDLE_POLL_INTERVAL, OLDEST_OF};
use crate::proc::Stat;
use crate::select::Verdict;
use crate::wait::WakeSources;

/// What may free a device.
#[derive(Default)]
struct Hints {
    /// The exit of one of these processes.
    exits: Vec<u32>,
    /// Something of which no event tells: the device is read again at this pace.
    pace: Option<Pace>,
}

impl Hints {
    fn exits(pids: impl IntoIterator<Item = u32>) -> Self {
        let exits = pids.into_iter().take(OLDEST_OF).collect();
        Self { exits, pace: None }
    }

    fn at(self, pace: Pace) -> Self {
        let pace = Some(pace);
        Self { pace, ..self }
    }
}

impl Attempt<'_> {
    /// What may free a GPU for this request.
    ///
    /// A GPU on which a process computes cannot become free before that process exits, so one
    /// process of each GPU is watched, the oldest.
    pub(super) fn wake_sources(&mut self, snapshot: &Snapshot, known: &[Claim]) -> WakeSources {
        let mut sources = WakeSources::default();
        self.watch_claims(known, &mut sources);
        let watched = std::mem::take(&mut self.watched);
        let mut gpus: Vec<usize> = self.constraints.devices.iter().map(|id| id.gpu).collect();
        gpus.dedup();
        for gpu in gpus {
            let before: Vec<u32> = watched
                .iter()
                .filter(|(_, on)| *on == gpu)
                .map(|(pid, _)| *pid)
                .collect();
            let candidates = snapshot.devices_of(gpu);
            let candidates =
                candidates.filter(|device| self.constraints.devices.contains(&device.id()));
            let hints: Vec<Hints> = candidates
                .map(|device| self.hints(device, &before))
                .collect();
            for hint in &hints {
                self.watched
                    .extend(hint.exits.iter().map(|pid| (*pid, gpu)));
                sources.pids.extend(&hint.exits);
            }
            // Of several MIG devices the one that may change soonest sets the pace.
            match hints.iter().filter_map(|hint| hint.pace).min() {
                Some(pace) => self.rechecks.start(gpu, pace),
                None => self.rechecks.stop(gpu),
            }
        }
        sources.pids.sort_unstable();
        sources.pids.dedup();
        let times = [self.handoff.deadline(), self.rechecks.next()];
        times
            .into_iter()
            .flatten()
            .for_each(|time| sources.add_time(time));
        sources
    }

    fn watch_claims(&mut self, known: &[Claim], sources: &mut WakeSources) {
        let Some(claims) = &mut self.claims else {
            return;
        };
        for claim in known {
            match &claim.wake {
                WakeHint::Exit(pid) => sources.pids.push(*pid),
                WakeHint::Unlock(..) => sources.events.extend(claims.watch_unlock(&claim.wake)),
            }
        }
        claims.watch_only(known);
    }

    /// What may free this device, given the processes that were watched before.
    fn hints(&self, device: Device, before: &[u32]) -> Hints {
        let processes = device.processes().value().unwrap_or_default();
        match device.verdict() {
            // Too little of its memory is free: any exit may change that.
            Verdict::Free => Hints::exits(processes.iter().map(|process| process.pid)),
            Verdict::Busy(_) | Verdict::SeemsBusy(_) => {
                let most = self.constraints.tolerate;
                let tolerated = most.and_then(|most| self.tolerable(device, most));
                tolerated
                    .or_else(|| self.oldest(device, before).map(|pid| Hints::exits([pid])))
                    .unwrap_or_else(|| Hints::default().at(unseen(device)))
            }
            // The end of a claim and an answer of the driver are waited for elsewhere.
            Verdict::Unknown(_)
            | Verdict::Unknowable(_)
            | Verdict::Claimed(_)
            | Verdict::Unavailable(_) => Hints::default(),
        }
    }

    /// What may make a device tolerable on which processes compute. Whichever of them exits, the
    /// others may hold little enough; and they may become idle.
    fn tolerable(&self, device: Device, most: u64) -> Option<Hints> {
        let computing = device.computing().map(|process| process.pid);
        let (exited, running): (Vec<u32>, Vec<u32>) =
            computing.partition(|pid| self.has_exited(*pid));
        let hints = Hints::exits(running);
        match (hints.exits.is_empty(), exited.is_empty()) {
            (true, _) => None,
            (false, false) => Some(hints.at(unseen(device))),
            (false, true) if device.is_tolerable_once_idle(most) => {
                Some(hints.at(Pace::Every(IDLE_POLL_INTERVAL)))
            }
            (false, true) => Some(hints),
        }
    }

    fn has_exited(&self, pid: u32) -> bool {
        let wake_loop = self.wake_loop.as_ref();
        wake_loop.is_some_and(|wake_loop| wake_loop.has_exited(pid))
    }

    /// The oldest of the computing processes that run, or the one that was watched before.
    fn oldest(&self, device: Device, before: &[u32]) -> Option<u32> {
        let computing = device.computing();
        let computing = || computing.clone().map(|process| process.pid);
        let kept = computing().find(|pid| before.contains(pid) && !self.has_exited(*pid));
        let started = |pid: u32| match Stat::read(pid) {
            Some(stat) => stat.runs().then_some((stat.id.start, pid)),
            // Another user's process may be hidden, and the kernel tells of its exit all the same.
            None => crate::proc::exists(pid).then_some((u64::MAX, pid)),
        };
        kept.or_else(|| {
            let running = computing()
                .take(OLDEST_OF)
                .filter(|pid| !self.has_exited(*pid));
            running.filter_map(started).min().map(|(_, pid)| pid)
        })
    }
}

/// How often a device is read that a driver has not let go of yet, or whose processes are hidden.
fn unseen(device: Device) -> Pace {
    match device.snapshot().process_view {
        ProcessView::Host => Pace::Slowing,
        ProcessView::Container | ProcessView::Wsl => Pace::Every(HIDDEN_POLL_INTERVAL),
    }
}
