//! Which GPUs to give: pure functions of a [`Snapshot`] and a [`Constraints`].
//!
//! # Design
//! A GPU is free when its state could be read, its compute mode lets contexts be made, no live claim is
//! on it and nobody computes on it. The driver's process list settles the last point only where it can
//! be complete; elsewhere memory and utilization have to speak, with little tolerance. What is unknown
//! is never given away, except by least-used, which ranks it last.

mod sets;

use crate::amount::bytes as amount;
use crate::gpu::{ClaimInfo, ComputeMode, Memory, Process, ProcessView, Snapshot, State};
use crate::ids::{self, DeviceId};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// Where the process list is complete: memory that no process explains is a dying or hidden process
/// beyond this, or beyond [`UNEXPLAINED_PERCENT`] of the GPU's memory.
const UNEXPLAINED: u64 = GIB;
const UNEXPLAINED_PERCENT: u128 = 5;
/// Where the process list proves nothing: what an idle GPU may hold, and how busy it may seem (percent).
const UNEXPLAINED_BLIND: u64 = 256 * MIB;
const UTILIZATION_BLIND: u32 = 5;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Constraints {
    /// How many GPUs.
    pub num_gpus: usize,
    /// Take the GPUs with the most free memory, used or not.
    pub least_used: bool,
    /// Only GPUs with this many bytes free.
    pub min_free_memory: Option<u64>,
    /// The devices to choose among.
    pub allowed: Vec<DeviceId>,
}

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

/// What comes of a wish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// These, in ascending order.
    Chosen(Vec<DeviceId>),
    /// Not now: only these of the allowed ones would do.
    NotNow {
        /// The devices that could be given.
        free: Vec<DeviceId>,
    },
    /// Never on this machine; the text says why and what to do.
    Impossible(String),
}

/// The verdict on a device.
pub fn judge(device: DeviceId, snapshot: &Snapshot) -> Verdict {
    let gpu = device.gpu(snapshot);
    let facts = match device.mig_device(snapshot) {
        Some(device) => Evidence {
            memory: device.memory,
            utilization: None,
            processes: device.processes.as_deref(),
            claims: &device.claims,
            recorded: (device.state, device.reason.as_deref()),
            memory_is_numa_node: gpu.memory_is_numa_node,
            view: snapshot.process_view,
        },
        None => Evidence {
            memory: gpu.memory,
            utilization: gpu.utilization.gpu,
            processes: gpu.processes.as_deref(),
            claims: &gpu.claims,
            recorded: (gpu.state, gpu.reason.as_deref()),
            memory_is_numa_node: gpu.memory_is_numa_node,
            view: snapshot.process_view,
        },
    };
    let because = |reason: Option<&str>, otherwise: &str| reason.unwrap_or(otherwise).to_owned();
    if gpu.state == Some(State::Unavailable) {
        // A recording says of the GPU only how many of its MIG devices are free, and of each why it is not.
        let own = device
            .mig_device(snapshot)
            .filter(|device| device.state == gpu.state);
        let reason = own
            .and_then(|device| device.reason.as_deref())
            .or(gpu.reason.as_deref());
        return Verdict::Unavailable(because(reason, "not usable"));
    }
    if gpu.compute_mode == Some(ComputeMode::Prohibited) {
        return Verdict::Unavailable(
            "its compute mode is PROHIBITED ('nvidia-smi -c DEFAULT' allows computing)".into(),
        );
    }
    if gpu.mig.is_some() && device.mig.is_none() {
        return Verdict::Unavailable(
            "MIG is enabled, and it has no MIG devices ('nvidia-smi mig -cgi' makes them)".into(),
        );
    }
    if let (Some(State::Unavailable), reason) = facts.recorded {
        return Verdict::Unavailable(because(reason, "not usable"));
    }
    if device.uuid(snapshot).is_none() && !ids::indices_are_ordinals(snapshot) {
        return Verdict::Unavailable(
            "its UUID cannot be read, and its index may mean another GPU to CUDA".into(),
        );
    }
    match facts.recorded {
        (Some(State::Claimed), reason) if facts.claims.is_empty() => {
            return Verdict::Claimed(because(reason, "claimed when it was recorded"));
        }
        _ => {}
    }
    if let Some(claim) = facts.claims.first() {
        return Verdict::Claimed(format!(
            "claimed by {}",
            who(claim.pid, &claim.user, &claim.command)
        ));
    }
    let seen = facts.in_use(gpu.compute_mode, device.mig.is_some());
    // A recording may have seen more than it could write down; it never makes a GPU freer than the facts.
    match (&seen, facts.recorded) {
        (Verdict::Free, (Some(State::Busy), reason)) => {
            Verdict::Busy(because(reason, "busy when it was recorded"))
        }
        _ => seen,
    }
}

/// What the verdict on one device rests on.
struct Evidence<'a> {
    memory: Memory,
    utilization: Option<u32>,
    processes: Option<&'a [Process]>,
    claims: &'a [ClaimInfo],
    recorded: (Option<State>, Option<&'a str>),
    memory_is_numa_node: bool,
    view: ProcessView,
}

impl Evidence<'_> {
    /// Whether somebody uses it, as far as processes, memory and utilization tell.
    fn in_use(&self, mode: Option<ComputeMode>, is_mig: bool) -> Verdict {
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
            return Verdict::Busy(format!(
                "used by {}{more}",
                who(Some(first.pid), &first.user, &first.command)
            ));
        }
        // NVML asks the compute mode through the MIG devices, and not every driver answers there.
        if mode.is_none() && !is_mig {
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
        match unexplained > UNEXPLAINED && beyond_share {
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
        if unexplained > UNEXPLAINED_BLIND {
            return Verdict::Busy(format!(
                "{} held by no visible process ({why})",
                amount(unexplained)
            ));
        }
        match self.utilization {
            Some(percent) if percent > UTILIZATION_BLIND => Verdict::Busy(format!(
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

/// Whether the verdict on a GPU needs to know what its graphics processes hold: its used memory is
/// beyond what an idle GPU holds.
pub(crate) fn memory_needs_explaining(memory: Memory) -> bool {
    memory.used.is_none_or(|used| used > UNEXPLAINED_BLIND)
}

/// `pid 4242 (audio: python train.py)`, as far as it is known.
pub(crate) fn who(pid: Option<u32>, user: &Option<String>, command: &Option<String>) -> String {
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

/// Since when a device is taken, as far as it is known: Unix time in seconds.
#[cfg(feature = "text")]
pub(crate) fn since(device: DeviceId, snapshot: &Snapshot) -> Option<u64> {
    let gpu = device.gpu(snapshot);
    let (claims, processes) = match device.mig_device(snapshot) {
        Some(device) => (&device.claims, &device.processes),
        None => (&gpu.claims, &gpu.processes),
    };
    let computing = processes
        .iter()
        .flatten()
        .filter(|process| process.kind.computes());
    claims.first().map_or_else(
        || computing.filter_map(|process| process.started).min(),
        |claim| claim.since,
    )
}

/// Chooses devices for `wish`.
///
/// Among free ones the higher index goes first; of several, the best connected set
/// ([`Snapshot::links`]) goes first, and the higher indices among equals.
pub fn select(snapshot: &Snapshot, constraints: &Constraints) -> Selection {
    let judged: Vec<(DeviceId, Verdict)> = constraints
        .allowed
        .iter()
        .map(|&device| (device, judge(device, snapshot)))
        .collect();
    let usable: Vec<(DeviceId, Verdict)> = judged
        .iter()
        .filter(|(device, verdict)| {
            let whole = constraints.num_gpus == 1 || device.mig.is_none();
            let most = capacity(memory(*device, snapshot));
            let large = constraints
                .min_free_memory
                .is_none_or(|wanted| most.is_none_or(|most| most >= wanted));
            whole && large && !matches!(verdict, Verdict::Unavailable(_))
        })
        .cloned()
        .collect();
    if usable.len() < constraints.num_gpus {
        return Selection::Impossible(impossible(snapshot, constraints, &judged, usable.len()));
    }
    let enough = |device: DeviceId| {
        memory_shortfall(device, snapshot, constraints.min_free_memory).is_none()
    };
    if constraints.least_used {
        return least_used(
            snapshot,
            constraints.num_gpus,
            usable
                .into_iter()
                .filter(|(device, _)| enough(*device))
                .collect(),
        );
    }
    let free: Vec<DeviceId> = usable
        .iter()
        .filter(|(device, verdict)| *verdict == Verdict::Free && enough(*device))
        .map(|(device, _)| *device)
        .collect();
    if free.len() < constraints.num_gpus {
        return Selection::NotNow { free };
    }
    Selection::Chosen(sets::best(snapshot, &free, constraints.num_gpus))
}

/// The whole GPUs that are free.
pub fn free(snapshot: &Snapshot, constraints: &Constraints) -> Vec<DeviceId> {
    let free =
        |device: &DeviceId| device.mig.is_none() && judge(*device, snapshot) == Verdict::Free;
    constraints.allowed.iter().copied().filter(free).collect()
}

/// Whether [`select`] would have a choice between sets, so that [`Snapshot::links`] matter.
pub fn links_matter(snapshot: &Snapshot, constraints: &Constraints) -> bool {
    constraints.num_gpus > 1
        && !constraints.least_used
        && free(snapshot, constraints).len() > constraints.num_gpus
}

/// What is to be said of a device that has less free memory than is wanted, or perhaps has.
pub fn memory_shortfall(
    device: DeviceId,
    snapshot: &Snapshot,
    wanted: Option<u64>,
) -> Option<String> {
    let (wanted, free) = (wanted?, memory(device, snapshot).free);
    match free {
        Some(free) if free >= wanted => None,
        Some(free) => Some(format!("only {} free", amount(free))),
        None => Some("only an unknown amount free".to_owned()),
    }
}

/// All that can ever be free: the driver keeps some for itself, which it counts neither as used nor as free.
fn capacity(memory: Memory) -> Option<u64> {
    match (memory.used, memory.free) {
        (Some(used), Some(free)) => Some(
            used.saturating_add(free)
                .min(memory.total.unwrap_or(u64::MAX)),
        ),
        _ => memory.total,
    }
}

fn memory(device: DeviceId, snapshot: &Snapshot) -> Memory {
    device
        .mig_device(snapshot)
        .map_or(device.gpu(snapshot).memory, |device| device.memory)
}

/// The most free memory first; claimed ones, then occupied exclusive ones and unknown ones, only where
/// no others are left.
fn least_used(
    snapshot: &Snapshot,
    num_gpus: usize,
    mut usable: Vec<(DeviceId, Verdict)>,
) -> Selection {
    if usable.len() < num_gpus {
        return Selection::NotNow {
            free: usable.into_iter().map(|(device, _)| device).collect(),
        };
    }
    usable.sort_by_key(|(device, verdict)| {
        let free = memory(*device, snapshot).free;
        let taken = matches!(verdict, Verdict::Claimed(_));
        let exclusive = device
            .gpu(snapshot)
            .compute_mode
            .is_some_and(ComputeMode::is_exclusive);
        let full = *verdict != Verdict::Free && exclusive;
        let unknown = free.is_none() || matches!(verdict, Verdict::Unknown(_));
        (taken, full, unknown, std::cmp::Reverse((free, *device)))
    });
    let mut chosen: Vec<DeviceId> = usable
        .into_iter()
        .take(num_gpus)
        .map(|(device, _)| device)
        .collect();
    chosen.sort_unstable();
    Selection::Chosen(chosen)
}

/// Why `wish` can never be met, and what to do.
fn impossible(
    snapshot: &Snapshot,
    constraints: &Constraints,
    judged: &[(DeviceId, Verdict)],
    usable: usize,
) -> String {
    let count = |n: usize| {
        if n == 1 {
            "1 GPU".to_owned()
        } else {
            format!("{n} GPUs")
        }
    };
    let mut text = format!("{} asked for, ", count(constraints.num_gpus));
    let mig = judged
        .iter()
        .filter(|(device, verdict)| device.mig.is_some() && verdict.state() != State::Unavailable)
        .count();
    if constraints.num_gpus > 1 && mig > 0 {
        text += &format!(
            "but MIG is enabled and a process can use one MIG device alone ({} without MIG); ask for 1",
            count(usable)
        );
        return text;
    }
    text += &match snapshot.gpus.len() {
        all if all == usable => format!("this machine has {all}"),
        all => format!("{usable} of this machine's {} may be used", count(all)),
    };
    let mut why: Vec<String> = judged
        .iter()
        .filter_map(|(device, verdict)| match verdict {
            Verdict::Unavailable(reason) => Some(format!("{}: {reason}", device.label(snapshot))),
            _ => None,
        })
        .collect();
    if let Some(wanted) = constraints.min_free_memory {
        let largest = |of: fn(Memory) -> Option<u64>| {
            let sizes = constraints
                .allowed
                .iter()
                .filter_map(|device| of(memory(*device, snapshot)));
            sizes.max().filter(|largest| *largest < wanted).map(amount)
        };
        let has = largest(|memory| memory.total).map(|total| format!("has {total} in all"));
        let largest = has.or_else(|| {
            largest(capacity).map(|most| format!("can have {most}, the driver keeps the rest"))
        });
        if let Some(largest) = largest {
            why.push(format!(
                "{} of free memory asked for, the largest {largest}",
                amount(wanted)
            ));
        }
    }
    if !why.is_empty() {
        text += &format!(" ({})", why.join("; "));
    }
    match (
        usable,
        constraints.allowed.len() < ids::devices(snapshot).len(),
    ) {
        (0, true) => {
            text + "; allow others (--exclude, --only, --inherit, --min-free-memory, the autocvd around this one)"
        }
        (0, false) => text + "; 'autocvd status' shows the machine",
        (_, true) => {
            text + &format!(
                "; ask for at most {usable}, or allow others (--exclude, --only, --inherit, the autocvd around this one)"
            )
        }
        (_, false) => text + &format!("; ask for at most {usable}"),
    }
}

impl Snapshot {
    /// Writes the verdict on every GPU and MIG device into its state and reason.
    pub fn judge(&mut self) {
        for device in ids::devices(self) {
            let verdict = judge(device, self);
            let (state, reason) = (Some(verdict.state()), verdict.reason().map(str::to_owned));
            let gpu = &mut self.gpus[device.gpu];
            match (device.mig, &mut gpu.mig) {
                (Some(device), Some(mig)) => {
                    mig.devices[device].state = state;
                    mig.devices[device].reason = reason;
                }
                _ => (gpu.state, gpu.reason) = (state, reason),
            }
        }
        for gpu in &mut self.gpus {
            if let Some(mig) = gpu
                .mig
                .as_ref()
                .filter(|mig| !mig.devices.is_empty() && gpu.state.is_none())
            {
                let states = || mig.devices.iter().filter_map(|device| device.state);
                let order = [State::Free, State::Claimed, State::Busy];
                gpu.state = order
                    .into_iter()
                    .find(|state| states().any(|s| s == *state))
                    .or(Some(State::Unavailable));
                let free = states().filter(|state| *state == State::Free).count();
                gpu.reason = Some(format!("{free} of {} MIG devices free", mig.devices.len()));
            }
        }
    }
}

#[cfg(test)]
mod tests;
