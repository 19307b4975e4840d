//! How a process has ended that is no child of this one.
//!
//! From Linux 6.15 on a pidfd tells it that was opened before the end. Before, /proc does as long
//! as the parent has not waited for the process, if it is of the same user: a race, and what is not
//! seen is not judged.

use crate::proc::{self, ProcessId};
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};
use std::os::fd::OwnedFd;

/// linux/pidfd.h: `struct pidfd_info` in its first version.
#[repr(C)]
struct PidfdInfo {
    mask: u64,
    cgroup: u64,
    ids: [u32; 11],
    exit_code: i32,
}

/// PIDFD_INFO_EXIT.
const EXIT: u64 = 1 << 3;
/// PIDFD_GET_INFO.
const GET_INFO: Opcode = opcode::read_write::<PidfdInfo>(0xFF, 11);

/// The status of an ended process, as wait(2) has it; `None` where nothing tells.
pub(super) fn status(id: ProcessId, pidfd: &OwnedFd) -> Option<i32> {
    // Its parent may wait for it at any moment, from which on only the pidfd tells.
    let told = told_by_pidfd(pidfd).or_else(|| proc::status_of_zombie(id));
    told.or_else(|| told_by_pidfd(pidfd))
}

fn told_by_pidfd(pidfd: &OwnedFd) -> Option<i32> {
    let mut info = PidfdInfo {
        mask: EXIT,
        cgroup: 0,
        ids: [0; 11],
        exit_code: 0,
    };
    // SAFETY: PIDFD_GET_INFO reads and writes a struct of this form, whose size the opcode holds.
    let asked = unsafe { ioctl(pidfd, Updater::<GET_INFO, _>::new(&mut info)) };
    (asked.is_ok() && info.mask & EXIT != 0).then_some(info.exit_code)
}
