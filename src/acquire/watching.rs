//! What may free a GPU for a request, as little of it as tells.

use super::Attempt;
use super::rechecks::Pace;
use crate::claim::{Claim, WakeHint};
use crate::gpu::{Process, ProcessView, Snapshot};
use crate::ids::Device;
use crate::policy::{GATHERER_POLL_INTERVAL, HIDDEN_POLL_INTERVAL, OLDEST_OF};
use crate::proc::Stat;
use crate::select::Verdict;
use crate::wait::WakeSources;
use std::time::Instant;

/// What has to happen before a device can be given.
enum Blocker {
    /// One of these processes exits.
    Exits(Vec<u32>),
    /// The same, or nothing that tells: they are not on the driver's list.
    MayExit(Vec<u32>),
    /// A driver notices an exit that has happened, or a process that cannot be seen exits.
    Unseen,
    /// Something that is waited for elsewhere: the end of a claim, an answer of the driver.
    Other,
}

impl Attempt<'_> {
    /// What may free a GPU for this request.
    ///
    /// A GPU on which a process computes cannot become free before that process exits, so one
    /// process of each GPU is watched, the oldest. A request behind enough others that would take
    /// what it would take watches the closest of them alone.
    pub(super) fn wake_sources(&mut self, snapshot: &Snapshot, known: &[Claim]) -> WakeSources {
        let mut sources = WakeSources::default();
        let watched = std::mem::take(&mut self.watched);
        if let (Some(closest), true) = (self.ahead.last(), self.may_sleep) {
            sources.pids.push(*closest);
            self.claims
                .iter_mut()
                .for_each(|claims| claims.watch_only(&[]));
            self.rechecks.stop_all();
            return sources;
        }
        self.watch_claims(known, &mut sources);
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
            let mut unseen = false;
            for device in candidates {
                match self.blocker(device, &before) {
                    Blocker::Exits(pids) => {
                        self.watched.extend(pids.iter().map(|pid| (*pid, gpu)));
                        sources.pids.extend(pids);
                    }
                    Blocker::MayExit(pids) => {
                        self.watched.extend(pids.iter().map(|pid| (*pid, gpu)));
                        sources.pids.extend(pids);
                        unseen = true;
                    }
                    Blocker::Unseen => unseen = true,
                    Blocker::Other => {}
                }
            }
            match (unseen, snapshot.process_view) {
                (false, _) => self.rechecks.stop(gpu),
                (true, ProcessView::Host) => self.rechecks.start(gpu, Pace::Slowing),
                (true, ProcessView::Container | ProcessView::Wsl) => {
                    self.rechecks.start(gpu, Pace::Every(HIDDEN_POLL_INTERVAL));
                }
            }
        }
        sources.pids.extend(self.handoff.processes());
        if self.handoff.kept().is_some() {
            sources.add_time(Instant::now() + GATHERER_POLL_INTERVAL);
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

    /// What is in the way of giving this device, given the processes that were watched before.
    fn blocker(&self, device: Device, before: &[u32]) -> Blocker {
        let processes = device.processes().value().unwrap_or_default();
        match device.verdict() {
            // Too little of its memory is free: any exit may change that.
            Verdict::Free => {
                let pids = processes.iter().take(OLDEST_OF).map(|process| process.pid);
                Blocker::Exits(pids.collect())
            }
            Verdict::Busy(_) if device.computing().all(Process::is_unlisted) => {
                let pids = device.computing().take(OLDEST_OF);
                match device.computing().next() {
                    Some(_) => Blocker::MayExit(pids.map(|process| process.pid).collect()),
                    None => Blocker::Unseen,
                }
            }
            Verdict::Busy(_) | Verdict::SeemsBusy(_) => match self.oldest(device, before) {
                Some(pid) => Blocker::Exits(vec![pid]),
                None => Blocker::Unseen,
            },
            // The end of a share is told as that of a claim is. A stranger may be in the way, or a
            // process whose exit the driver has not noticed.
            Verdict::Shared(_) => {
                let strangers: Vec<u32> = device
                    .strangers()
                    .take(OLDEST_OF)
                    .map(|process| process.pid)
                    .collect();
                let alive = strangers
                    .iter()
                    .copied()
                    .filter(|pid| crate::proc::exists(*pid));
                let alive: Vec<u32> = alive.collect();
                match (strangers.is_empty(), alive.is_empty()) {
                    (true, _) => Blocker::Other,
                    (false, true) => Blocker::Unseen,
                    (false, false) => Blocker::Exits(alive),
                }
            }
            Verdict::Unknown(_)
            | Verdict::Unknowable(_)
            | Verdict::Claimed(_)
            | Verdict::Unavailable(_) => Blocker::Other,
        }
    }

    /// The oldest of the computing processes that run, or the one that was watched before.
    fn oldest(&self, device: Device, before: &[u32]) -> Option<u32> {
        let has_exited = |pid: u32| {
            let wake_loop = self.wake_loop.as_ref();
            wake_loop.is_some_and(|wake_loop| wake_loop.has_exited(pid))
        };
        let computing = device.computing();
        let computing = || computing.clone().map(|process| process.pid);
        let kept = computing().find(|pid| before.contains(pid) && !has_exited(*pid));
        let started = |pid: u32| match Stat::read(pid) {
            Some(stat) => stat.runs().then_some((stat.id.start, pid)),
            // Another user's process may be hidden, and the kernel tells of its exit all the same.
            None => crate::proc::exists(pid).then_some((u64::MAX, pid)),
        };
        kept.or_else(|| {
            let running = computing().take(OLDEST_OF).filter(|pid| !has_exited(*pid));
            running.filter_map(started).min().map(|(_, pid)| pid)
        })
    }
}
