//! Who asks for GPUs: the shell that reads what this process prints.

use crate::proc::{self, ProcessId, Stat};

/// The shell that started this process, or whatever did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Requester {
    /// This process's parent, or, where that is a mere fork made for the command substitution, the
    /// shell it was forked from.
    pub(super) shell: ProcessId,
    /// Which program image the shell ran then.
    pub(super) image: u64,
    /// This process.
    pub(super) itself: ProcessId,
    /// The shell's child by which it asks: this process, or that fork.
    pub(super) requester_pid: u32,
    /// The PID namespace of all of them.
    pub(super) namespace: u64,
}

impl Requester {
    /// `None` where /proc does not show the shell.
    pub(crate) fn detect() -> Option<Self> {
        // Elsewhere /proc shows other processes by the pids of this namespace.
        let namespace = proc::pid_namespace()?;
        let mut requester_pid = std::process::id();
        let itself = ProcessId::of(requester_pid)?;
        let mut shell = Stat::read(rustix::process::getppid()?.as_raw_pid().unsigned_abs())?;
        let own = proc::pipe_to_stdout();
        while shell.parent > 0 && own.is_some_and(|own| own.is_stdout_of(shell.id.pid)) {
            let Some(parent) = Stat::read(shell.parent) else {
                break;
            };
            if !shell.is_fork_of(&parent) {
                break;
            }
            requester_pid = shell.id.pid;
            shell = parent;
        }
        Some(Self {
            itself,
            shell: shell.id,
            image: shell.image,
            requester_pid,
            namespace,
        })
    }
}
