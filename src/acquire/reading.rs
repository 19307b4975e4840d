//! Reading as much of the machine as a choice needs, and no more.

use super::Attempt;
use crate::gpu::{Gpu, Snapshot};
use crate::ids::DeviceId;
use crate::probe::Detail;
use crate::select::{self, Constraints, Selection, Verdict};

impl Attempt<'_> {
    /// Reads as many GPUs as the choice needs: where one is enough, the preferred one may settle it.
    pub(super) fn read_and_select(&mut self, snapshot: &mut Snapshot) -> Selection {
        let mut gpus: Vec<usize> = self.constraints.devices.iter().map(|id| id.gpu).collect();
        gpus.dedup();
        let brief = !self.constraints.least_used && self.request.detail == Detail::Decision;
        for gpu in gpus.into_iter().rev() {
            let mut devices = self.constraints.devices.clone();
            devices.retain(|id| id.gpu == gpu);
            let is_claimed =
                |id: &DeviceId| matches!(snapshot.device(*id).verdict(), Verdict::Claimed(_));
            // Whether it is large enough is to be known at once, claimed or not.
            let settled = brief && self.constraints.min_free_memory.is_none();
            if settled && devices.iter().all(is_claimed) {
                continue;
            }
            self.read(gpu, snapshot);
            if brief && self.constraints.num_gpus == 1 {
                let constraints = Constraints {
                    devices,
                    ..self.constraints.clone()
                };
                if let chosen @ Selection::Chosen(_) = select::select(snapshot, &constraints) {
                    return chosen;
                }
            }
        }
        if snapshot.links.is_empty() && select::links_matter(snapshot, &self.constraints) {
            let free = select::free_gpus(snapshot, &self.constraints);
            let indices: Vec<u32> = free.iter().map(|id| snapshot.gpus[id.gpu].index).collect();
            snapshot.links = self.probe.links(&indices);
        }
        select::select(snapshot, &self.constraints)
    }

    /// Reads what a choice left unread: a GPU that was lost while this process waited shifts CUDA's
    /// numbers.
    pub(super) fn read_the_rest(&mut self, snapshot: &mut Snapshot) {
        let is_unread = |gpu: &Gpu| gpu.processes.is_none() && gpu.mig.is_none();
        for gpu in 0..snapshot.gpus.len() {
            if is_unread(&snapshot.gpus[gpu]) {
                self.read(gpu, snapshot);
            }
        }
    }

    fn read(&mut self, gpu: usize, snapshot: &mut Snapshot) {
        let view = snapshot.process_view;
        self.probe
            .read(&mut snapshot.gpus[gpu], view, self.request.detail);
    }
}
