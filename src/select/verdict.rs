//! The verdict on one device: a pure function of what is known of it.
//!
//! # Design
//! A GPU is free when its state could be read, its compute mode lets contexts be made, no live
//! claim is on it and no process computes on it. The driver's process list settles the last point
//! only where it can be complete; elsewhere memory and utilization have to speak, with little
//! tolerance. An unknown fact is never taken for zero; where the machine has no such thing, another
//! fact decides.

use crate::amount::bytes as amount;
use crate::gpu::{
    ClaimInfo, ComputeMode, Fact, Health, Memory, Process, ProcessKind, ProcessView, RESERVED,
    Snapshot, State,
};
use crate::ids::{Device, DeviceId};
use crate::policy::{
    DESKTOP_PROGRAM_MEMORY, GRAPHICS_MEMORY, IDLE_MEMORY, IDLE_UTILIZATION, LESS_THAN_A_CONTEXT,
    UNEXPLAINED_MEMORY, UNEXPLAINED_PERCENT, WINDOWS_DESKTOP_MEMORY, WINDOWS_DESKTOP_PERCENT,
};

/// Why a device is given last that is free.
const SUSPECT: &str = "comes last: 2 commands in a row failed on it within 10 s of their start";

/// What can be said of one device, and why.
///
/// ```
/// use autocvd::{Environment, NoObserver, ProbeChoice, Verdict};
///
/// let recorded = ProbeChoice::File("examples/shared-server.json".into());
/// let machine = autocvd::status(&recorded, &Environment::default(), &mut NoObserver)?;
/// for device in machine.devices() {
///     match device.verdict() {
///         Verdict::Free => println!("{} is free", device.label()),
///         other => println!("{}: {}", device.label(), other.reason().unwrap_or("not free")),
///     }
/// }
/// # Ok::<(), autocvd::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// No process uses it.
    Free,
    /// A process computes on it; the text says which.
    Busy(String),
    /// Nothing but its utilization keeps it from being free, which is an average over the driver's
    /// last sample period, and false while a GPU is being initialized; the text says how much.
    SeemsBusy(String),
    /// It cannot be told now whether it is in use; the text says why.
    Unknown(String),
    /// It can never be told on this machine whether it is in use; the text says why.
    Unknowable(String),
    /// Another launch has taken it.
    Claimed(String),
    /// Other launches have taken shares of it; the text says who, and what is left.
    Shared(String),
    /// It cannot be used.
    Unavailable(String),
}

impl Verdict {
    /// The state that JSON and tables show. Unknown is shown as busy: it is not given away.
    pub fn state(&self) -> State {
        match self {
            Self::Free => State::Free,
            Self::Busy(_) | Self::SeemsBusy(_) | Self::Unknown(_) | Self::Unknowable(_) => {
                State::Busy
            }
            Self::Claimed(_) => State::Claimed,
            Self::Shared(_) => State::Shared,
            Self::Unavailable(_) => State::Unavailable,
        }
    }

    /// Why, where there is something to say.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Free => None,
            Self::Busy(why)
            | Self::SeemsBusy(why)
            | Self::Unknown(why)
            | Self::Unknowable(why)
            | Self::Claimed(why)
            | Self::Shared(why)
            | Self::Unavailable(why) => Some(why),
        }
    }
}

impl<'a> Device<'a> {
    /// Whether it can be given, and why not.
    pub fn verdict(self) -> Verdict {
        if let Some(reason) = self.unusable() {
            return Verdict::Unavailable(reason.to_owned());
        }
        if self.is_reserved() {
            return Verdict::Unavailable(RESERVED.to_owned());
        }
        if let Some(fault) = self.fault() {
            return Verdict::Unavailable(fault.to_owned());
        }
        let recorded_as = |state| self.recorded().filter(|recorded| recorded.state == state);
        if let Some(recorded) = recorded_as(State::Unavailable) {
            let reason = recorded.reason.as_deref();
            return Verdict::Unavailable(reason.unwrap_or("not usable").to_owned());
        }
        if self.uuid().is_none() && !self.snapshot().indices_are_ordinals() {
            let text = "its UUID cannot be read, and its index may mean another GPU to CUDA";
            return Verdict::Unavailable(text.into());
        }
        let recorded = || recorded_as(State::Claimed).or_else(|| recorded_as(State::Shared));
        if let ([], Some(recorded)) = (self.claims(), recorded()) {
            let reason = recorded.reason.as_deref();
            return Verdict::Claimed(reason.unwrap_or("claimed when it was recorded").to_owned());
        }
        let mut shares = self.claims().iter();
        if let Some(claim) = shares.find(|claim| !claim.is_share()) {
            return Verdict::Claimed(format!("claimed by {}", describe_claim(claim)));
        }
        match self.claims() {
            [] => self.use_verdict(),
            [first] => Verdict::Shared(format!("shared by {}", describe_claim(first))),
            [first, others @ ..] => Verdict::Shared(format!(
                "shared by {} and {} more",
                describe_claim(first),
                others.len()
            )),
        }
    }

    /// Why it is given last, if so.
    pub fn suspicion(self) -> Option<String> {
        let suspect = || self.is_suspect().then(|| SUSPECT.to_owned());
        self.why_unclaimable().or_else(suspect)
    }

    /// What is to be said of a device that no launch can claim.
    pub(crate) fn why_unclaimable(self) -> Option<String> {
        let why = self.unclaimable()?;
        Some(format!("comes last: it cannot be claimed ({why})"))
    }

    /// What keeps it from being used at all, of what is known of it.
    pub(crate) fn fault(self) -> Option<&'static str> {
        if self.gpu().compute_mode == Fact::Value(ComputeMode::Prohibited) {
            return Some(
                "its compute mode is PROHIBITED ('nvidia-smi -c DEFAULT' allows computing)",
            );
        }
        if let Some(fault) = self.gpu().health.and_then(Health::fault) {
            return Some(fault);
        }
        let is_empty = self.gpu().mig.is_some() && self.mig().is_none();
        is_empty.then_some(
            "MIG is enabled, and it has no MIG devices ('nvidia-smi mig -cgi' makes them)",
        )
    }

    /// Whether a process uses it, claims apart. A recording may have seen more than it could write
    /// down; it never makes a GPU freer than the facts.
    pub(super) fn use_verdict(self) -> Verdict {
        let recorded = self
            .recorded()
            .filter(|recorded| recorded.state == State::Busy);
        match (Evidence::of(self).judge(), recorded) {
            (Verdict::Free, Some(recorded)) => {
                let reason = recorded.reason.as_deref();
                Verdict::Busy(reason.unwrap_or("busy when it was recorded").to_owned())
            }
            (seen, _) => seen,
        }
    }

    /// Whether nothing keeps it from being free but idle processes that hold no more than `most`
    /// bytes together.
    pub(crate) fn is_tolerable(self, most: u64) -> bool {
        let is_exclusive = matches!(
            self.gpu().compute_mode,
            Fact::Value(ComputeMode::ExclusiveProcess | ComputeMode::ExclusiveThread)
        );
        let held: Option<u64> = self.computing().map(|process| process.used_memory).sum();
        matches!(self.verdict(), Verdict::Busy(_))
            && self.computing().next().is_some()
            && !is_exclusive
            && held.is_some_and(|held| held <= most)
            && matches!(self.utilization(), Fact::Value(percent) if percent <= IDLE_UTILIZATION)
            && Evidence::of(self).judge_beside_processes() == Verdict::Free
    }

    /// Whether the driver's list, which is complete, names nobody who explains its memory.
    pub(crate) fn is_held_unseen(self) -> bool {
        let evidence = Evidence::of(self);
        self.mig().is_none()
            && evidence.view == ProcessView::Host
            && evidence.processes.value().is_some()
            && self.computing().next().is_none()
            && matches!(evidence.judge_by_complete_list(), Verdict::Busy(_))
    }

    /// Since when it is taken, as far as it is known: Unix time in seconds.
    pub(crate) fn taken_since(self) -> Option<u64> {
        let computing = self.computing();
        match self.claims().first() {
            Some(claim) => claim.since,
            None => computing.filter_map(|process| process.started).min(),
        }
    }

    /// The processes that compute on it, as far as they are listed.
    pub fn computing(self) -> impl Iterator<Item = &'a Process> + Clone {
        let listed = self.processes().value().unwrap_or_default();
        listed
            .iter()
            .filter(|process| process.computes_beside(listed))
    }
}

impl Process {
    /// Whether it computes. Of a desktop's programs that draw by Vulkan the driver says C+G: where
    /// a display server or compositor is among the processes listed, small ones are taken for that.
    pub(crate) fn computes_beside(&self, listed: &[Process]) -> bool {
        let is_small = self
            .used_memory
            .is_some_and(|held| held <= DESKTOP_PROGRAM_MEMORY);
        let draws = |process: &Process| process.kind == ProcessKind::Graphics;
        match self.kind {
            _ if self.ignored => false,
            ProcessKind::Graphics => false,
            ProcessKind::ComputeGraphics => !(is_small && listed.iter().any(draws)),
            ProcessKind::Compute | ProcessKind::MpsCompute | ProcessKind::Unlisted => true,
        }
    }
}

/// What the verdict on one device rests on.
pub(super) struct Evidence<'a> {
    device: Device<'a>,
    memory: Memory,
    utilization: Fact<u32>,
    processes: Fact<&'a [Process]>,
    view: ProcessView,
}

impl<'a> Evidence<'a> {
    pub(super) fn of(device: Device<'a>) -> Self {
        Self {
            device,
            memory: device.memory(),
            utilization: device.utilization(),
            processes: device.processes(),
            view: device.snapshot().process_view,
        }
    }

    /// Whether a process uses it, as far as processes, memory and utilization tell.
    fn judge(&self) -> Verdict {
        let mut users = self.device.computing();
        if let Some(first) = users.next() {
            let is_listed = first.kind != ProcessKind::Unlisted;
            let first = describe_process(first);
            let who = match users.count() {
                0 => first,
                others => format!("{first} and {others} more"),
            };
            return Verdict::Busy(match (is_listed, self.unexplained()) {
                (false, Fact::Value(held)) => {
                    let held = amount(held);
                    format!("{held} held by {who}, which the driver does not list")
                }
                _ => format!("used by {who}"),
            });
        }
        self.judge_beside_processes()
    }

    /// The same, listed processes apart.
    fn judge_beside_processes(&self) -> Verdict {
        // NVML asks the compute mode through the MIG devices, and not every driver answers there.
        if self.device.gpu().compute_mode.is_unknown() && self.device.mig().is_none() {
            return Verdict::Unknown("unknown: its compute mode cannot be read".into());
        }
        match (self.processes, self.view) {
            (_, ProcessView::Wsl) => self.judge_on_wsl(),
            (Fact::Value(_), ProcessView::Host) => self.judge_by_complete_list(),
            (Fact::Value(_), ProcessView::Container) => {
                self.judge_without_list("in a container the process list proves nothing")
            }
            (Fact::NotApplicable | Fact::Unknown, _) => {
                self.judge_without_list("the process list cannot be read")
            }
        }
    }

    /// The same for a device that has shares, of which so many bytes are not accounted for by
    /// processes that are seen. What it computes says nothing.
    pub(super) fn judge_beside_shares(&self, unused: u64) -> Verdict {
        if self.device.gpu().compute_mode.is_unknown() && self.device.mig().is_none() {
            return Verdict::Unknown("its compute mode cannot be read".into());
        }
        let most = match (self.processes, self.view) {
            (Fact::Value(_), ProcessView::Host) => return self.judge_by_complete_list(),
            (_, ProcessView::Wsl) => {
                WINDOWS_DESKTOP_MEMORY.max(self.share(WINDOWS_DESKTOP_PERCENT))
            }
            _ => IDLE_MEMORY,
        };
        match self.unexplained() {
            Fact::Value(held) if held.saturating_sub(unused) > most => Verdict::Busy(format!(
                "{} held by no visible process, more than the shares are of",
                amount(held)
            )),
            Fact::Value(_) => Verdict::Free,
            Fact::NotApplicable | Fact::Unknown => {
                Verdict::Unknown("its used memory cannot be read".into())
            }
        }
    }

    /// The list is complete and names no process that computes: memory may still tell of a process
    /// that is hidden or dying.
    fn judge_by_complete_list(&self) -> Verdict {
        if self.device.gpu().memory_is_numa_node {
            return Verdict::Free;
        }
        match self.unexplained() {
            // The GPU's share of the machine's memory is told by nothing.
            Fact::NotApplicable => Verdict::Free,
            Fact::Unknown => Verdict::Unknown("unknown: its used memory cannot be read".into()),
            Fact::Value(held)
                if held > UNEXPLAINED_MEMORY && held > self.share(UNEXPLAINED_PERCENT) =>
            {
                Verdict::Busy(format!("{} held by no visible process", amount(held)))
            }
            Fact::Value(_) => Verdict::Free,
        }
    }

    /// The list proves nothing: free only if next to nothing is held and nothing runs.
    fn judge_without_list(&self, why: &str) -> Verdict {
        match self.unexplained() {
            Fact::Unknown => Verdict::Unknown(format!(
                "unknown: {why}, and its used memory cannot be read"
            )),
            Fact::NotApplicable => self.judge_without_memory(why),
            Fact::Value(_) if self.has_no_context() => Verdict::Free,
            Fact::Value(held) if held > IDLE_MEMORY => Verdict::Busy(format!(
                "{} held by no visible process ({why})",
                amount(held)
            )),
            Fact::Value(_) => self.judge_by_utilization(why),
        }
    }

    /// Neither the list nor memory proves anything.
    fn judge_without_memory(&self, why: &str) -> Verdict {
        let list_may_come = self.view == ProcessView::Host && self.processes.is_unknown();
        match self.utilization {
            Fact::Value(_) => self.judge_by_utilization(why),
            Fact::Unknown => Verdict::Unknown(format!(
                "unknown: {why}, and its utilization cannot be read"
            )),
            Fact::NotApplicable if list_may_come => Verdict::Unknown(format!("unknown: {why}")),
            Fact::NotApplicable => Verdict::Unknowable(format!(
                "whether it is in use can never be told here: {why}, and this machine tells \
                 neither its used memory nor its utilization"
            )),
        }
    }

    /// The desktop of Windows holds memory, and its programs are not listed.
    fn judge_on_wsl(&self) -> Verdict {
        let why = "in WSL2 no process can be listed";
        let most = WINDOWS_DESKTOP_MEMORY.max(self.share(WINDOWS_DESKTOP_PERCENT));
        match self.unexplained() {
            Fact::Value(_) if self.has_no_context() => Verdict::Free,
            Fact::Value(held) if held > most => Verdict::Busy(format!(
                "{} held, more than a desktop does ({why})",
                amount(held)
            )),
            Fact::Value(_) if self.utilization.is_unknown() => Verdict::Unknown(format!(
                "unknown: {why}, and its utilization cannot be read"
            )),
            Fact::Value(_) => self.judge_by_utilization(why),
            Fact::NotApplicable | Fact::Unknown => self.judge_without_list(why),
        }
    }

    fn judge_by_utilization(&self, why: &str) -> Verdict {
        match self.utilization {
            Fact::Value(percent) if percent > IDLE_UTILIZATION => Verdict::SeemsBusy(format!(
                "{percent} % utilization by no visible process ({why})"
            )),
            _ => Verdict::Free,
        }
    }

    fn has_no_context(&self) -> bool {
        matches!(self.memory.used, Fact::Value(used) if used <= LESS_THAN_A_CONTEXT)
    }

    /// Used memory that no listed process accounts for, in bytes.
    fn unexplained(&self) -> Fact<u64> {
        let listed = self.processes.value().unwrap_or_default().iter();
        let listed = listed.filter(|process| process.kind != ProcessKind::Unlisted);
        let held = listed.map(|process| process.used_memory.unwrap_or(GRAPHICS_MEMORY));
        let explained = held.fold(0, u64::saturating_add);
        self.memory.used.map(|used| used.saturating_sub(explained))
    }

    /// So many percent of its memory, in bytes.
    fn share(&self, percent: u128) -> u64 {
        let total = u128::from(self.memory.total.value().unwrap_or(0));
        u64::try_from(total * percent / 100).unwrap_or(u64::MAX)
    }
}

pub(super) fn describe_process(process: &Process) -> String {
    describe_owner(Some(process.pid), &process.user, &process.command)
}

pub(super) fn describe_claim(claim: &ClaimInfo) -> String {
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
            let device = self.device(id);
            let verdict = device.verdict();
            let (rest, details) = match verdict {
                Verdict::Shared(_) => device.describe_shares(),
                _ => (None, None),
            };
            let told = verdict.reason().map(str::to_owned);
            let told = told.or_else(|| device.suspicion());
            let (state, reason, shareable) = self.judgement_mut(id);
            *state = Some(verdict.state());
            *reason = told.map(|told| told + &details.unwrap_or_default());
            *shareable = rest;
        }
        for gpu in &mut self.gpus {
            if let Some(mig) = gpu.mig.as_ref().filter(|mig| !mig.devices.is_empty()) {
                let states = || mig.devices.iter().filter_map(|part| part.state);
                let order = [State::Free, State::Shared, State::Claimed, State::Busy];
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

    /// Adds why others do not get a device.
    pub(crate) fn add_reason(&mut self, id: DeviceId, text: &str) {
        let reason = self.judgement_mut(id).1;
        *reason = Some(match reason.take() {
            Some(known) => format!("{known}; {text}"),
            None => text.to_owned(),
        });
    }

    fn judgement_mut(
        &mut self,
        id: DeviceId,
    ) -> (&mut Option<State>, &mut Option<String>, &mut Option<u64>) {
        let gpu = &mut self.gpus[id.gpu];
        match (id.mig, &mut gpu.mig) {
            (Some(place), Some(mig)) => {
                let part = &mut mig.devices[place];
                (&mut part.state, &mut part.reason, &mut part.shareable)
            }
            _ => (&mut gpu.state, &mut gpu.reason, &mut gpu.shareable),
        }
    }
}
