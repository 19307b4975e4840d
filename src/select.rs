//! Which devices to give: pure functions of a [`Snapshot`] and [`Constraints`].

mod sets;
mod shares;
mod verdict;

pub use verdict::Verdict;

use crate::amount::bytes as amount;
use crate::error::{BlockedDevice, Restriction, Shortage};
use crate::gpu::{ComputeMode, Fact, Memory, Snapshot, State};
use crate::ids::{Device, DeviceId};
use std::cmp::Reverse;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Constraints {
    /// How many GPUs.
    pub num_gpus: usize,
    /// Take the GPUs with the most free memory, used or not.
    pub least_used: bool,
    /// Only GPUs with this many bytes free.
    pub min_free_memory: Option<u64>,
    /// How many bytes of each, where a share is enough.
    pub share: Option<u64>,
    /// How much memory, in bytes, idle processes may hold on a GPU that is given.
    pub tolerate: Option<u64>,
    /// The devices to choose among.
    pub devices: Vec<DeviceId>,
}

/// What comes of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Selection {
    /// These, in ascending order.
    Chosen(Vec<DeviceId>),
    /// Not now: only these of the devices would do.
    NotNow {
        /// The devices that could be given.
        free: Vec<DeviceId>,
    },
    /// Never on this machine.
    Impossible(Box<Shortage>),
}

/// Chooses devices.
///
/// Among free ones the higher index goes first; of several, the best connected set
/// ([`Snapshot::links`]) goes first, and the higher indices among equals. Those on which COMMANDs
/// have failed go last, and those that cannot be claimed only where too few others could ever do.
pub(crate) fn select(snapshot: &Snapshot, constraints: &Constraints) -> Selection {
    let judge = |id: &DeviceId| {
        let device = snapshot.device(*id);
        (device, device.verdict())
    };
    let judged: Vec<(Device, Verdict)> = constraints.devices.iter().map(judge).collect();
    let mut usable = judged.clone();
    usable.retain(|(device, verdict)| {
        let whole = constraints.num_gpus == 1 || device.mig().is_none();
        let knowable = constraints.least_used || !matches!(verdict, Verdict::Unknowable(_));
        let large = constraints.is_large_enough(capacity(device.memory()));
        whole && large && knowable && !matches!(verdict, Verdict::Unavailable(_))
    });
    if usable.len() < constraints.num_gpus {
        let shortage = shortage(snapshot, constraints, &judged, usable.len());
        return Selection::Impossible(Box::new(shortage));
    }
    let is_claimable = |(device, _): &(Device, Verdict)| device.unclaimable().is_none();
    // What cannot be claimed may be given twice: it is better to wait for the others.
    if !constraints.least_used
        && usable.iter().filter(|one| is_claimable(one)).count() >= constraints.num_gpus
    {
        usable.retain(is_claimable);
    }
    usable.retain(|(device, _)| {
        device
            .memory_shortfall(constraints.min_free_memory)
            .is_none()
    });
    if let Some(bytes) = constraints.share {
        let usable: Vec<Device> = usable.into_iter().map(|(device, _)| device).collect();
        let mut fitting = shares::with_room(&usable, bytes, constraints.tolerate);
        let is_enough = fitting.len() >= constraints.num_gpus;
        fitting.truncate(constraints.num_gpus);
        fitting.sort_unstable();
        return match is_enough {
            true => Selection::Chosen(fitting),
            false => Selection::NotNow { free: fitting },
        };
    }
    if constraints.least_used {
        return least_used(constraints.num_gpus, usable);
    }
    let free = preferred(&usable, constraints);
    if free.len() < constraints.num_gpus {
        return Selection::NotNow { free };
    }
    let free = match constraints.min_free_memory {
        Some(_) => smallest_first(snapshot, free, constraints.num_gpus),
        None => free,
    };
    Selection::Chosen(sets::best(snapshot, &free, constraints.num_gpus))
}

/// The free devices, in ascending order, and no suspect, tolerated or unclaimable ones unless the
/// others are too few: then as many of them as are missing, the higher indices first.
fn preferred(usable: &[(Device, Verdict)], constraints: &Constraints) -> Vec<DeviceId> {
    let (claimable, mut unclaimable): (Vec<_>, Vec<_>) = usable
        .iter()
        .partition(|(device, _)| device.unclaimable().is_none());
    let (free, others): (Vec<_>, Vec<_>) = claimable
        .into_iter()
        .partition(|(_, verdict)| *verdict == Verdict::Free);
    let (suspect, free): (Vec<_>, Vec<_>) = free
        .into_iter()
        .partition(|(device, _)| device.is_suspect());
    let most = constraints.tolerate;
    let is_tolerated =
        |(device, _): &&(Device, Verdict)| most.is_some_and(|most| device.is_tolerable(most));
    let (last, tolerated): (Vec<_>, Vec<_>) = others
        .into_iter()
        .filter(is_tolerated)
        .partition(|(device, _)| device.is_suspect());
    unclaimable.retain(|one| one.1 == Verdict::Free || is_tolerated(one));
    let mut chosen: Vec<DeviceId> = free.iter().map(|(device, _)| device.id()).collect();
    for more in [tolerated, suspect, last, unclaimable] {
        let missing = constraints.num_gpus.saturating_sub(chosen.len());
        let more = more.iter().rev().map(|(device, _)| device.id());
        chosen.extend(more.take(missing));
    }
    chosen.sort_unstable();
    chosen
}

/// Where sizes differ, the `num_gpus` with the least total memory, the higher indices among equals:
/// the large ones stay for those who need them. All where the choice is among equals.
fn smallest_first(snapshot: &Snapshot, free: Vec<DeviceId>, num_gpus: usize) -> Vec<DeviceId> {
    let total = |id: &DeviceId| {
        let total = snapshot.device(*id).memory().total;
        total.value().unwrap_or(u64::MAX)
    };
    let mut smallest = free;
    smallest.sort_by_key(|id| (total(id), Reverse(*id)));
    let last = total(&smallest[num_gpus - 1]);
    if total(&smallest[0]) == last {
        smallest.retain(|id| total(id) == last);
    } else {
        smallest.truncate(num_gpus);
    }
    smallest.sort_unstable();
    smallest
}

/// The whole GPUs that are free.
pub(crate) fn free_gpus(snapshot: &Snapshot, constraints: &Constraints) -> Vec<DeviceId> {
    let is_free =
        |id: &DeviceId| id.mig.is_none() && snapshot.device(*id).verdict() == Verdict::Free;
    constraints
        .devices
        .iter()
        .copied()
        .filter(is_free)
        .collect()
}

/// Whether [`select`] would have a choice between sets, so that [`Snapshot::links`] matter.
pub(crate) fn links_matter(snapshot: &Snapshot, constraints: &Constraints) -> bool {
    constraints.num_gpus > 1
        && !constraints.least_used
        && constraints.share.is_none()
        && free_gpus(snapshot, constraints).len() > constraints.num_gpus
}

impl Constraints {
    /// Whether a device of this capacity, in bytes, can ever have as much free as is wanted. One of
    /// unknown capacity may.
    fn is_large_enough(&self, capacity: Option<u64>) -> bool {
        match (self.min_free_memory, capacity) {
            (Some(wanted), Some(capacity)) => capacity >= wanted,
            _ => true,
        }
    }
}

impl Device<'_> {
    /// What is to be said of a device that has less free memory than is wanted, or perhaps has.
    pub fn memory_shortfall(self, wanted: Option<u64>) -> Option<String> {
        let wanted = wanted?;
        match self.memory().free {
            Fact::Value(free) if free >= wanted => None,
            Fact::Value(free) => Some(format!("only {} free", amount(free))),
            Fact::NotApplicable | Fact::Unknown => Some("only an unknown amount free".to_owned()),
        }
    }
}

/// All that can ever be free: the driver keeps some for itself, which it counts neither as used nor
/// as free.
fn capacity(memory: Memory) -> Option<u64> {
    match (memory.used, memory.free) {
        (Fact::Value(used), Fact::Value(free)) => {
            let sum = used.saturating_add(free);
            Some(sum.min(memory.total.value().unwrap_or(u64::MAX)))
        }
        _ => memory.total.value(),
    }
}

/// The most free memory first; claimed ones and those of which that cannot be told, and then
/// exclusive ones that a process has taken, only where no others are left. Among each of these,
/// suspect ones and then unknown ones go last.
fn least_used(num_gpus: usize, mut usable: Vec<(Device, Verdict)>) -> Selection {
    if usable.len() < num_gpus {
        let free = usable.iter().map(|(device, _)| device.id()).collect();
        return Selection::NotNow { free };
    }
    usable.sort_by_key(|(device, verdict)| {
        let free = device.memory().free.value();
        let is_claimed = matches!(verdict, Verdict::Claimed(_) | Verdict::Shared(_))
            || device.unclaimable().is_some();
        let mode = device.gpu().compute_mode.value();
        let is_exclusive = mode.is_some_and(ComputeMode::is_exclusive);
        let is_taken = is_exclusive && device.use_verdict() != Verdict::Free;
        let is_unknown =
            free.is_none() || matches!(verdict, Verdict::Unknown(_) | Verdict::Unknowable(_));
        let order = Reverse((free, device.id()));
        (is_taken, is_claimed, device.is_suspect(), is_unknown, order)
    });
    let best = usable.iter().take(num_gpus);
    let mut chosen: Vec<DeviceId> = best.map(|(device, _)| device.id()).collect();
    chosen.sort_unstable();
    Selection::Chosen(chosen)
}

/// Why a request can never be met.
fn shortage(
    snapshot: &Snapshot,
    constraints: &Constraints,
    judged: &[(Device, Verdict)],
    usable: usize,
) -> Shortage {
    let is_mig = |(device, verdict): &(Device, Verdict)| {
        device.mig().is_some() && verdict.state() != State::Unavailable
    };
    let unusable = judged.iter().filter_map(|(device, verdict)| match verdict {
        Verdict::Unavailable(reason) | Verdict::Unknowable(reason) => Some(BlockedDevice {
            label: device.label(),
            reason: reason.clone(),
        }),
        _ => None,
    });
    let wanted = constraints.min_free_memory;
    let too_small = wanted.and_then(|wanted| largest_is_too_small(judged, wanted));
    let mut restrictions = Vec::new();
    if too_small.is_some() {
        restrictions.push(Restriction::MinFreeMemory);
    }
    if judged
        .iter()
        .any(|(_, verdict)| matches!(verdict, Verdict::Unknowable(_)))
    {
        restrictions.push(Restriction::Unknowable);
    }
    Shortage {
        requested: constraints.num_gpus,
        usable,
        total: snapshot.gpus.len(),
        several_mig_devices: constraints.num_gpus > 1 && judged.iter().any(is_mig),
        unusable: unusable.collect(),
        restrictions,
        too_small,
    }
}

/// What is to be said where no device can ever have `wanted` bytes free.
fn largest_is_too_small(judged: &[(Device, Verdict)], wanted: u64) -> Option<String> {
    let largest = |of: fn(Memory) -> Option<u64>| {
        let sizes = judged.iter().filter_map(|(device, _)| of(device.memory()));
        sizes.max().filter(|largest| *largest < wanted).map(amount)
    };
    let all = largest(|memory| memory.total.value()).map(|total| format!("has {total} in all"));
    let most =
        || largest(capacity).map(|most| format!("can have {most}, the driver keeps the rest"));
    let largest = all.or_else(most)?;
    Some(format!(
        "{} of free memory asked for, the largest {largest}",
        amount(wanted)
    ))
}

#[cfg(test)]
mod tests;
