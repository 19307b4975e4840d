//! Which processes on a device belong to its shares, and how much memory those of each share hold.
//!
//! A process belongs to a share if it descends from what the share is for, or carries its token in
//! an environment that may be read. Where the holder of a share is out of sight (another PID
//! namespace, hidepid), nothing is told of its processes: the verdict then rests on memory.

use crate::gpu::{ClaimInfo, Process, ShareHolder, Snapshot};
use crate::ids::{Device, DeviceId};
use crate::proc::{self, Environ, ProcessId, Stat};

/// How many ancestors of a process are looked at.
const MAX_DEPTH: usize = 64;

/// The process that a share is for, where it runs and can be seen.
fn visible(holder: &ShareHolder) -> Option<ProcessId> {
    holder
        .process
        .filter(|process| Stat::read(process.pid).is_some_and(|stat| stat.id == *process))
}

/// Whether that process was one of this namespace, and has ended.
fn has_ended(holder: &ShareHolder) -> bool {
    let is_hidden = |pid| proc::exists(pid) && Stat::read(pid).is_none();
    holder
        .process
        .is_some_and(|process| !process.is_alive() && !is_hidden(process.pid))
}

/// Marks the processes of a GPU that belong to its shares, and adds up what they hold.
pub(crate) fn attribute(snapshot: &mut Snapshot, gpu: usize) {
    let is_shared = |device: &Device| {
        let mut claims = device.claims().iter();
        claims.any(|claim| claim.share_holder.is_some())
    };
    // Nothing is allocated for a GPU that is not shared.
    let shared: Vec<DeviceId> = snapshot
        .devices_of(gpu)
        .filter(is_shared)
        .map(Device::id)
        .collect();
    if shared.is_empty() || !snapshot.pids_are_known() {
        return;
    }
    for id in shared {
        let device = snapshot.device(id);
        let mut claims = device.claims().to_vec();
        let mut processes = device.processes().value().unwrap_or_default().to_vec();
        attribute_on_device(&mut claims, &mut processes);
        *snapshot.claims_mut(id) = claims;
        if let Some(list) = snapshot.processes_mut(id) {
            *list = processes;
        }
    }
}

fn attribute_on_device(claims: &mut [ClaimInfo], processes: &mut [Process]) {
    let holders: Vec<Option<ProcessId>> = claims
        .iter()
        .map(|claim| visible(claim.share_holder.as_ref()?))
        .collect();
    for (claim, holder) in claims.iter_mut().zip(&holders) {
        claim.used_memory = holder.map(|_| 0);
    }
    for process in processes {
        let owner = owner_by_descent(process.pid, &holders).or_else(|| {
            let owner = owner_by_token(process.pid, claims)?;
            // What a COMMAND has left behind is seen as well as the COMMAND was.
            let claim = &mut claims[owner];
            let holder = claim.share_holder.as_ref();
            if holder.is_some_and(has_ended) {
                claim.used_memory.get_or_insert(0);
            }
            Some(owner)
        });
        process.in_share = owner.is_some();
        let (Some(owner), Some(held)) = (owner, process.used_memory) else {
            continue;
        };
        // A shell may have several shares, and it cannot be told whose program is whose: they are
        // filled one after another.
        let of_one_holder: Vec<usize> = (0..claims.len())
            .filter(|other| {
                *other == owner || holders[owner].is_some() && holders[*other] == holders[owner]
            })
            .collect();
        let mut left = held;
        for (place, other) in of_one_holder.iter().enumerate() {
            let claim = &mut claims[*other];
            let Some(used) = &mut claim.used_memory else {
                continue;
            };
            let room = claim.memory.unwrap_or(0).saturating_sub(*used);
            let is_last = place + 1 == of_one_holder.len();
            let part = if is_last { left } else { left.min(room) };
            *used = used.saturating_add(part);
            left -= part;
        }
    }
}

/// The share whose holder is the nearest to this process among its ancestors and itself.
fn owner_by_descent(pid: u32, holders: &[Option<ProcessId>]) -> Option<usize> {
    let mut next = pid;
    for _ in 0..MAX_DEPTH {
        let stat = Stat::read(next).filter(|stat| stat.id.pid > 1)?;
        let owner = holders.iter().position(|holder| *holder == Some(stat.id));
        if owner.is_some() {
            return owner;
        }
        next = stat.parent;
    }
    None
}

/// The share whose token stands in the environment of this process, as in what a COMMAND has left
/// behind.
fn owner_by_token(pid: u32, claims: &[ClaimInfo]) -> Option<usize> {
    claims.iter().position(|claim| {
        let holder = claim.share_holder.as_ref();
        let token = holder.and_then(|holder| holder.token.as_ref());
        token.is_some_and(|token| proc::environ_holds(pid, token.as_bytes()) == Environ::Set)
    })
}
