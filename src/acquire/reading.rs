//! Reading as much of the machine as a choice needs, and no more.

use super::Attempt;
use crate::error::Result;
use crate::gpu::{ClaimInfo, Gpu, Link, Snapshot};
use crate::ids::{Device, DeviceId, IdForm};
use crate::probe::Detail;
use crate::select::{self, Constraints, Selection, Verdict};
use crate::shares;
use crate::topology;
use std::time::Instant;

/// What is known of how GPUs are joined, which does not change.
#[derive(Debug, Clone)]
pub(super) enum Links {
    NotAsked,
    /// A choice depends on it.
    Wanted,
    Known(Vec<Link>),
}

/// How much a look reads.
#[derive(Clone)]
pub(super) enum Extent {
    /// As much as the choice needs of all GPUs; this is the beginning of the look.
    Begun(Box<Snapshot>),
    /// As much as the choice needs of all GPUs.
    Full,
    /// These GPUs, by position, and those whose claims have ended: nothing tells of a change
    /// elsewhere.
    Gpus(Vec<usize>),
}

impl Attempt<'_> {
    /// Begins a look of this extent: what is not to be read is taken over from the last one.
    pub(super) fn begin(&mut self, extent: Extent) -> Result<Snapshot> {
        self.carried.clear();
        let wanted = match &extent {
            Extent::Gpus(gpus) => Some(gpus.clone()),
            Extent::Begun(_) | Extent::Full => {
                self.next_full = Instant::now().checked_add(self.request.interval);
                None
            }
        };
        let mut snapshot = match extent {
            Extent::Begun(snapshot) => *snapshot,
            Extent::Full | Extent::Gpus(_) => {
                let mut snapshot = self.probe.begin(self.request.detail)?;
                // An id that names none here has been told of.
                let _ = self.site.reserve(&mut snapshot, &mut *self.probe);
                snapshot
            }
        };
        let last = self.last.as_ref();
        let last = last.filter(|last| is_same_machine(&snapshot, last));
        if let (Some(wanted), Some(last)) = (wanted, last) {
            for (at, gpu) in snapshot.gpus.iter_mut().enumerate() {
                if !wanted.contains(&at) && is_unread(gpu) {
                    *gpu = last.gpus[at].clone();
                    self.carried.push(at);
                }
            }
        }
        Ok(snapshot)
    }

    /// Reads the GPUs too whose claims have ended since the last look.
    pub(super) fn read_what_was_released(&mut self, snapshot: &Snapshot) {
        let Some(last) = &self.last else { return };
        let claims = |snapshot: &Snapshot, gpu: usize| {
            let on_each = snapshot.devices_of(gpu).map(|device| {
                let shown = |claim: &ClaimInfo| (claim.pid, claim.since, claim.memory);
                device.claims().iter().map(shown).collect::<Vec<_>>()
            });
            on_each.collect::<Vec<_>>()
        };
        self.carried
            .retain(|gpu| claims(snapshot, *gpu) == claims(last, *gpu));
    }

    /// Reads and selects until all that is chosen can be used.
    pub(super) fn choose(&mut self, snapshot: &mut Snapshot) -> Selection {
        loop {
            match self.read_and_select(snapshot) {
                // It is made again when the links are known.
                selection if matches!(self.links, Links::Wanted) => return selection,
                Selection::Chosen(chosen) if !self.confirm(&chosen, snapshot) => {}
                // Before it waits: what waits for a sick GPU waits in vain.
                Selection::NotNow { .. }
                    if self.wake_loop.is_none() && self.finds_sick_ones(snapshot) => {}
                selection => return selection,
            }
        }
    }

    /// Asks what is left to ask before a choice is given: the driver, for the health of what is
    /// chosen; and where indices would be printed each GPU for an answer, since one that is lost
    /// shifts CUDA's numbers. Returns whether all that is chosen can be used.
    pub(super) fn confirm(&mut self, chosen: &[DeviceId], snapshot: &mut Snapshot) -> bool {
        for id in chosen {
            let gpu = &mut snapshot.gpus[id.gpu];
            if gpu.health.is_none() || self.carried.contains(&id.gpu) {
                self.probe.read_health(gpu);
            }
        }
        if self.request.id_form == IdForm::Index && snapshot.may_be_indices() {
            self.touch_all(snapshot);
        }
        let is_unusable =
            |id: &DeviceId| matches!(snapshot.device(*id).verdict(), Verdict::Unavailable(_));
        !chosen.iter().any(is_unusable)
    }

    /// Asks for the health of all candidates of which it is not known. Returns whether one is sick.
    fn finds_sick_ones(&mut self, snapshot: &mut Snapshot) -> bool {
        let mut gpus: Vec<usize> = self.constraints.devices.iter().map(|id| id.gpu).collect();
        gpus.dedup();
        let mut found = false;
        for at in gpus {
            let gpu = &mut snapshot.gpus[at];
            if gpu.health.is_none() {
                self.probe.read_health(gpu);
                found |= gpu.health.is_some_and(|health| health.fault().is_some());
            }
        }
        found
    }

    /// Asks all GPUs that have not answered in this look.
    fn touch_all(&mut self, snapshot: &mut Snapshot) {
        let view = snapshot.process_view;
        for (at, gpu) in snapshot.gpus.iter_mut().enumerate() {
            if !gpu.has_answered() || self.carried.contains(&at) {
                self.probe.touch(gpu, view);
            }
        }
    }

    /// Reads as many GPUs as the choice needs: where one is enough, the preferred one may settle
    /// it.
    pub(super) fn read_and_select(&mut self, snapshot: &mut Snapshot) -> Selection {
        let mut gpus: Vec<usize> = self.constraints.devices.iter().map(|id| id.gpu).collect();
        gpus.dedup();
        // One without a UUID can be given only where indices are sure.
        let is_nameless = |id: &DeviceId| snapshot.device(*id).uuid().is_none();
        if self.constraints.devices.iter().any(is_nameless) {
            self.touch_all(snapshot);
        }
        let brief = !self.constraints.least_used
            && self.constraints.share.is_none()
            && self.request.detail == Detail::Decision;
        for gpu in gpus.into_iter().rev() {
            let mut devices = self.constraints.devices.clone();
            devices.retain(|id| id.gpu == gpu);
            let is_claimed = |id: &DeviceId| {
                let verdict = snapshot.device(*id).verdict();
                matches!(verdict, Verdict::Claimed(_) | Verdict::Shared(_))
            };
            // Whether it is large enough is to be known at once, claimed or not.
            let settled = brief && self.constraints.min_free_memory.is_none();
            if settled && devices.iter().all(is_claimed) {
                continue;
            }
            self.read(gpu, snapshot);
            // Where memory is asked for, the smallest that is enough is to be found; and a free GPU
            // goes before one that is tolerated.
            if brief
                && self.constraints.num_gpus == 1
                && self.constraints.min_free_memory.is_none()
                && self.constraints.tolerate.is_none()
            {
                let constraints = Constraints {
                    devices,
                    ..self.constraints.clone()
                };
                // After one that comes last there may be another one.
                let comes_last = |id: &DeviceId| {
                    let device = snapshot.device(*id);
                    device.is_suspect() || device.unclaimable().is_some()
                };
                match select::select(snapshot, &constraints) {
                    Selection::Chosen(chosen) if !chosen.iter().any(comes_last) => {
                        return Selection::Chosen(chosen);
                    }
                    _ => {}
                }
            }
        }
        if snapshot.links.is_empty() && select::links_matter(snapshot, &self.constraints) {
            if matches!(self.links, Links::NotAsked) {
                self.links = match self.kept_links(snapshot) {
                    Some(links) => Links::Known(links),
                    None => Links::Wanted,
                };
            }
            if let Links::Known(links) = &self.links {
                snapshot.links.clone_from(links);
            }
        }
        select::select(snapshot, &self.constraints)
    }

    /// How the free candidates are joined, where an earlier launch has kept it.
    fn kept_links(&mut self, snapshot: &Snapshot) -> Option<Vec<Link>> {
        let free = select::free_gpus(snapshot, &self.constraints);
        let free: Vec<usize> = free.iter().map(|id| id.gpu).collect();
        let claims = self.claims.as_ref()?;
        topology::kept(claims, &mut *self.probe, snapshot, &free)
    }

    /// Asks how the GPUs are joined: many calls of the driver, made once, while no lock is held.
    pub(super) fn ask_for_links(&mut self, snapshot: &Snapshot) {
        let links = match &self.claims {
            Some(claims) => topology::ask(Some(claims), &mut *self.probe, snapshot),
            // They are not kept, so that those of the candidates are enough.
            None => {
                let mut gpus: Vec<usize> =
                    self.constraints.devices.iter().map(|id| id.gpu).collect();
                gpus.dedup();
                let indices: Vec<u32> = gpus.iter().map(|gpu| snapshot.gpus[*gpu].index).collect();
                self.probe.links(&indices)
            }
        };
        self.links = Links::Known(links);
    }

    /// Reads what a choice left unread.
    pub(super) fn read_the_rest(&mut self, snapshot: &mut Snapshot) {
        let no_list = |gpu: &Gpu| gpu.processes.is_unknown() && gpu.mig.is_none();
        for gpu in 0..snapshot.gpus.len() {
            if no_list(&snapshot.gpus[gpu]) {
                // It was taken over unread.
                self.carried.retain(|carried| *carried != gpu);
                self.read(gpu, snapshot);
            }
        }
    }

    fn read(&mut self, gpu: usize, snapshot: &mut Snapshot) {
        if self.carried.contains(&gpu) {
            shares::attribute(snapshot, gpu);
            return;
        }
        let view = snapshot.process_view;
        // One process that computes ends the reading of lists early; it may be one to ignore or
        // to tolerate, or of a share.
        let constraints = &self.constraints;
        let needs_all =
            constraints.tolerate.is_some() || constraints.share.is_some() || self.others_need_lists;
        let settles = self.site.ignore.is_empty() && !needs_all;
        let detail = match settles {
            true => self.request.detail,
            false => Detail::Everything,
        };
        self.probe.read(&mut snapshot.gpus[gpu], view, detail);
        self.site.mark_ignored(snapshot, gpu);
        self.confine_to_share(gpu, snapshot);
        shares::attribute(snapshot, gpu);
    }

    /// Inside a share, the share is all there is of its device: what is beside it is its
    /// neighbours', and what its own launches hold is in their claims.
    fn confine_to_share(&self, gpu: usize, snapshot: &mut Snapshot) {
        let claims = self.claims.as_ref();
        let Some(claims) = claims.filter(|claims| claims.is_inside_share()) else {
            return;
        };
        let ids: Vec<DeviceId> = snapshot.devices_of(gpu).map(Device::id).collect();
        for id in ids {
            if let Some(bytes) = claims.ancestor_share(&snapshot.device(id).key()) {
                snapshot.confine(id, bytes);
            }
        }
    }
}

/// Whether the same GPUs can be used as before.
fn is_same_machine(now: &Snapshot, before: &Snapshot) -> bool {
    let identity = |gpu: &Gpu| (gpu.unusable.is_some(), gpu.uuid.clone(), gpu.mig.is_some());
    now.gpus
        .iter()
        .map(identity)
        .eq(before.gpus.iter().map(identity))
}

/// Whether the probe has only begun to tell of this GPU. nvidia-smi tells all at once.
fn is_unread(gpu: &Gpu) -> bool {
    gpu.compute_mode.is_unknown() && gpu.memory.total.is_unknown() && gpu.processes.is_unknown()
}
