//! Large requests do not starve: the longest-waiting one that has lost patience gathers what it can
//! use.
//!
//! One request gathers at a time among those that see the same devices, so that no two keep from
//! each other what both need.

use crate::claim::Waiter;
use crate::gpu::Snapshot;
use crate::ids::{Device, DeviceId};
use crate::proc;
use crate::select::{self, Constraints, Selection, Verdict};
use std::cmp::Reverse;
use std::time::Duration;

/// What is kept for the request that gathers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kept {
    /// The devices that it can use, in ascending order.
    pub devices: Vec<DeviceId>,
    /// The process that waits, where it is in sight.
    pub pid: Option<u32>,
    /// Why others do not get them.
    pub reason: String,
}

/// The request that gathers: of `waiters`, in their order, the first that has lost patience and can
/// ever be met. `now` is the time since boot.
pub(crate) fn gatherer<'a>(
    waiters: &'a [Waiter],
    snapshot: &Snapshot,
    now: Duration,
) -> Option<&'a Waiter> {
    let all = snapshot.device_ids();
    waiters.iter().find(|waiter| {
        waiter.has_lost_patience(now)
            && !is_at_limit(waiter, snapshot)
            && !matches!(
                select::select(snapshot, &constraints(waiter, &all, snapshot)),
                Selection::Impossible(_)
            )
    })
}

/// What is kept of `left` for the request that gathers.
pub(crate) fn keep(waiter: &Waiter, left: &[DeviceId], snapshot: &Snapshot) -> Kept {
    let is_usable = |id: &DeviceId| {
        let one = Constraints {
            num_gpus: 1,
            ..constraints(waiter, &[*id], snapshot)
        };
        let is_whole = waiter.num_gpus == 1 || snapshot.device(*id).mig().is_none();
        is_whole && matches!(select::select(snapshot, &one), Selection::Chosen(_))
    };
    let mut devices: Vec<DeviceId> = left.iter().copied().filter(is_usable).collect();
    let missing = waiter.num_gpus.saturating_sub(devices.len());
    devices.extend(drained(waiter, left, snapshot).into_iter().take(missing));
    devices.sort_unstable();
    Kept {
        devices,
        pid: waiter.process.map(|process| process.pid),
        reason: reason(&proc::user_name(waiter.uid), waiter.num_gpus),
    }
}

/// The shared devices of `left` that a request can use once enough of their shares have ended: no
/// more shares are given there. Those of which the least is given go first.
fn drained(waiter: &Waiter, left: &[DeviceId], snapshot: &Snapshot) -> Vec<DeviceId> {
    let wanted = waiter.min_free_memory.max(waiter.share).unwrap_or(0);
    let is_drained = |id: &DeviceId| {
        let device = snapshot.device(*id);
        let is_large = device
            .memory()
            .total
            .value()
            .is_none_or(|total| total >= wanted);
        let lacks = waiter
            .share
            .is_none_or(|bytes| device.shareable().is_ok_and(|room| room < bytes));
        let is_shared = matches!(device.verdict(), Verdict::Shared(_));
        is_shared && is_large && lacks && waiter.wants(&device.key())
    };
    let given = |id: &DeviceId| -> u64 {
        let shares = snapshot.device(*id).claims().iter();
        shares.filter_map(|share| share.memory).sum()
    };
    let mut devices: Vec<DeviceId> = left.iter().copied().filter(is_drained).collect();
    devices.sort_by_key(|id| (given(id), Reverse(*id)));
    devices
}

/// What was kept when the machine was recorded.
pub(crate) fn recorded(snapshot: &Snapshot) -> Option<Kept> {
    let gatherer = snapshot.waiting.iter().find(|one| !one.kept.is_empty())?;
    let is_kept = |device: &Device| gatherer.kept.contains(&device.key());
    let user = gatherer.user.as_deref().unwrap_or("another user");
    Some(Kept {
        devices: snapshot.devices().filter(is_kept).map(Device::id).collect(),
        pid: None,
        reason: reason(user, gatherer.num_gpus),
    })
}

/// Says of each device that is kept why others do not get it, though it is free.
pub(crate) fn tell(snapshot: &mut Snapshot) {
    let Some(kept) = recorded(snapshot) else {
        return;
    };
    for id in kept.devices {
        snapshot.add_reason(id, &kept.reason);
    }
}

/// Why others do not get what is kept.
fn reason(user: &str, num_gpus: usize) -> String {
    let gpus = match num_gpus {
        1 => "a GPU".to_owned(),
        n => format!("{n} GPUs"),
    };
    format!("kept for {user}, who has waited longest and needs {gpus}")
}

/// What a request asks for of these devices.
pub(crate) fn constraints(
    waiter: &Waiter,
    devices: &[DeviceId],
    snapshot: &Snapshot,
) -> Constraints {
    let is_wanted = |device: &Device| waiter.wants(&device.key());
    let devices = devices.iter().map(|id| snapshot.device(*id));
    Constraints {
        num_gpus: waiter.num_gpus,
        least_used: false,
        tolerate: waiter.tolerate,
        min_free_memory: waiter.min_free_memory,
        share: waiter.share,
        devices: devices.filter(is_wanted).map(Device::id).collect(),
    }
}

/// Whether its user would hold more GPUs with it than one user may: then its turn comes when some
/// of those are given back.
fn is_at_limit(waiter: &Waiter, snapshot: &Snapshot) -> bool {
    let Some(most) = waiter.max_per_user else {
        return false;
    };
    let uid = waiter.uid.to_string();
    let is_users = |device: &Device| {
        let mut users = device.claims().iter();
        users.any(|claim| claim.user.as_ref() == Some(&uid))
    };
    snapshot.devices().filter(is_users).count() + waiter.num_gpus > most
}
