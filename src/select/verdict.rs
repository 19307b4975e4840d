//! The verdict on one device: a pure function of what is known of it.
//!
//! # Design
//! A GPU is free when its state could be read, its compute mode lets contexts be made, no live claim
//! is on it and no process computes on it. The driver's process list settles the last point only
//! where it can be complete; elsewhere memory and utilization have to speak, with little tolerance.
//! An unknown fact is never taken for zero.

use crate::amount::bytes as amount;
use crate::gpu::{ClaimInfo, ComputeMode, Memory, Process, ProcessView, Snapshot, State};
use crate::ids::{Device, DeviceId};
use crate::policy::{IDLE_MEMORY, IDLE_UTILIZATION, UNEXPLAINED_MEMORY, UNEXPLAINED_PERCENT};

/// What can be said of one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nobody uses it.
    Free,
    /// Somebody computes on it; the text says who.
    Busy(String),
    /// It cannot be told whether somebody uses it; the text says why.
    Unknown(String),
    /// Another launch has taken it.
    Claimed(String),
    /// It cannot be used.
    Unavailable(String),
}

impl Verdict {
    /// The state that JSON and tables show. Unknown is shown as busy: it is not given away.
    pub fn state(&self) -> State {
        match self {
            Self::Free => State::Free,
            Self::Busy(_) | Self::Unknown(_) => State::Busy,
            Self::Claimed(_) => State::Claimed,
            Self::Unavailable(_) => State::Unavailable,
        }
    }

    /// Why, where there is something to say.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Free => None,
            Self::Busy(why) | Self::Unknown(why) | Self::Claimed(why) | Self::Unavailable(why) => {
                Some(why)
            }
        }
    }
}

impl Device<'_> {
    /// Whether it can be given, and why not.
    pub fn verdict(self) -> Verdict {
        if let Some(reason) = self.unusable() {
            return Verdict::Unavailable(reason.to_owned());
        }
        let mode = self.gpu().compute_mode;
        if mode == Some(ComputeMode::Prohibited) {
            let text = "its compute mode is PROHIBITED ('nvidia-smi -c DEFAULT' allows computing)";
            return Verdict::Unavailable(text.into());
        }
        if self.gpu().mig.is_some() && self.mig().is_none() {
            let text =
                "MIG is enabled, and it has no MIG devices ('nvidia-smi mig -cgi' makes them)";
            return Verdict::Unavailable(text.into());
        }
        if self.uuid().is_none() && !self.snapshot().indices_are_ordinals() {
            let text = "its UUID cannot be read, and its index may mean another GPU to CUDA";
            return Verdict::Unavailable(text.into());
        }
        let recorded = self
            .recorded()
            .map(|recorded| (recorded.state, recorded.reason.as_deref()));
        let because =
            |reason: Option<&str>, otherwise: &str| reason.unwrap_or(otherwise).to_owned();
        if let (Some((State::Claimed, reason)), []) = (recorded, self.claims()) {
            return Verdict::Claimed(because(reason, "claimed when it was recorded"));
        }
        if let Some(claim) = self.claims().first() {
            return Verdict::Claimed(format!("claimed by {}", describe_claim(claim)));
        }
        let seen = Evidence::of(self).judge(mode);
        // A recording may have seen more than it could write down; it never makes a GPU freer than
        // the facts.
        match (&seen, recorded) {
            (Verdict::Free, Some((State::Busy, reason))) => {
                Verdict::Busy(because(reason, "busy when it was recorded"))
            }
            _ => seen,
        }
    }

    /// Since when it is taken, as far as it is known: Unix time in seconds.
    pub(crate) fn taken_since(self) -> Option<u64> {
        let processes = self.processes().unwrap_or_default().iter();
        let computing = processes.filter(|process| process.kind.computes());
        match self.claims().first() {
            Some(claim) => claim.since,
            None => computing.filter_map(|process| process.started).min(),
        }
    }
}

/// What the verdict on one device rests on.
struct Evidence<'a> {
    memory: Memory,
    utilization: Option<u32>,
    processes: Option<&'a [Process]>,
    is_mig: bool,
    memory_is_numa_node: bool,
    view: ProcessView,
}

impl<'a> Evidence<'a> {
    fn of(device: Device<'a>) -> Self {
        Self {
            memory: device.memory(),
            utilization: device.utilization(),
            processes: device.processes(),
            is_mig: device.mig().is_some(),
            memory_is_numa_node: device.gpu().memory_is_numa_node,
            view: device.snapshot().process_view,
        }
    }

    /// Whether a process uses it, as far as processes, memory and utilization tell.
    fn judge(&self, mode: Option<ComputeMode>) -> Verdict {
        let listed = self.processes.unwrap_or_default();
        let users: Vec<&Process> = listed
            .iter()
            .filter(|process| process.kind.computes())
            .collect();
        if let Some((first, others)) = users.split_first() {
            let more = if others.is_empty() {
                String::new()
            } else {
                format!(" and {} more", others.len())
            };
            return Verdict::Busy(format!("used by {}{more}", describe_process(first)));
        }
        // NVML asks the compute mode through the MIG devices, and not every driver answers there.
        if mode.is_none() && !self.is_mig {
            return Verdict::Unknown("unknown: its compute mode cannot be read".into());
        }
        match (self.processes, self.view) {
            (Some(_), ProcessView::Host) => self.without_hidden_process(listed),
            (Some(_), ProcessView::Container) => {
                self.judge_without_process_list("in a container the process list proves nothing")
            }
            (None, _) => self.judge_without_process_list("the process list cannot be read"),
        }
    }

    /// The list is complete and names nobody who computes: memory may still tell of a process that is hidden or dying.
    fn without_hidden_process(&self, listed: &[Process]) -> Verdict {
        let may_explain_all = listed.iter().any(|process| process.used_memory.is_none());
        if self.memory_is_numa_node || may_explain_all {
            return Verdict::Free;
        }
        let Some(unexplained) = self.unexplained() else {
            return Verdict::Unknown("unknown: its used memory cannot be read".into());
        };
        let total = u128::from(self.memory.total.unwrap_or(0));
        let beyond_share = u128::from(unexplained) * 100 > total * UNEXPLAINED_PERCENT;
        match unexplained > UNEXPLAINED_MEMORY && beyond_share {
            true => Verdict::Busy(format!(
                "{} held by no visible process",
                amount(unexplained)
            )),
            false => Verdict::Free,
        }
    }

    /// The list proves nothing: free only if next to nothing is held and nothing runs.
    fn judge_without_process_list(&self, why: &str) -> Verdict {
        let Some(unexplained) = self.unexplained() else {
            return Verdict::Unknown(format!("unknown: {why}, nor can its used memory"));
        };
        if unexplained > IDLE_MEMORY {
            return Verdict::Busy(format!(
                "{} held by no visible process ({why})",
                amount(unexplained)
            ));
        }
        match self.utilization {
            Some(percent) if percent > IDLE_UTILIZATION => Verdict::Busy(format!(
                "{percent} % utilization by no visible process ({why})"
            )),
            _ => Verdict::Free,
        }
    }

    /// Used memory that no listed process accounts for, in bytes.
    fn unexplained(&self) -> Option<u64> {
        let held = self
            .processes
            .unwrap_or_default()
            .iter()
            .filter_map(|process| process.used_memory);
        let explained = held.fold(0, u64::saturating_add);
        self.memory.used.map(|used| used.saturating_sub(explained))
    }
}

fn describe_process(process: &Process) -> String {
    describe_owner(Some(process.pid), &process.user, &process.command)
}

fn describe_claim(claim: &ClaimInfo) -> String {
    describe_owner(claim.pid, &claim.user, &claim.command)
}

/// `pid 4242 (audio: python train.py)`, as far as it is known.
fn describe_owner(pid: Option<u32>, user: &Option<String>, command: &Option<String>) -> String {
    let short = |command: &String| -> String {
        match command.char_indices().nth(48) {
            Some((end, _)) => format!("{}…", &command[..end]),
            None => command.clone(),
        }
    };
    let process = pid.map_or_else(
        || "a process out of sight".to_owned(),
        |pid| format!("pid {pid}"),
    );
    match (user, command) {
        (Some(user), Some(command)) => format!("{process} ({user}: {})", short(command)),
        (Some(user), None) => format!("{process} ({user})"),
        (None, Some(command)) => format!("{process} ({})", short(command)),
        (None, None) => process,
    }
}

impl Snapshot {
    /// Writes down the verdict on every GPU and MIG device, and for a GPU with MIG devices a
    /// summary of theirs. To judge again gives the same.
    pub fn judge(&mut self) {
        for id in self.device_ids() {
            let verdict = self.device(id).verdict();
            let (state, reason) = self.judgement_mut(id);
            *state = Some(verdict.state());
            *reason = verdict.reason().map(str::to_owned);
        }
        for gpu in &mut self.gpus {
            if let Some(mig) = gpu.mig.as_ref().filter(|mig| !mig.devices.is_empty()) {
                let states = || mig.devices.iter().filter_map(|part| part.state);
                let order = [State::Free, State::Claimed, State::Busy];
                let best = order
                    .into_iter()
                    .find(|state| states().any(|s| s == *state));
                let free = states().filter(|state| *state == State::Free).count();
                gpu.state = Some(best.unwrap_or(State::Unavailable));
                gpu.reason = Some(match &gpu.unusable {
                    Some(reason) => reason.clone(),
                    None => format!("{free} of {} MIG devices free", mig.devices.len()),
                });
            }
        }
    }

    fn judgement_mut(&mut self, id: DeviceId) -> (&mut Option<State>, &mut Option<String>) {
        let gpu = &mut self.gpus[id.gpu];
        match (id.mig, &mut gpu.mig) {
            (Some(place), Some(mig)) => {
                let part = &mut mig.devices[place];
                (&mut part.state, &mut part.reason)
            }
            _ => (&mut gpu.state, &mut gpu.reason),
        }
    }
}
