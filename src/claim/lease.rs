//! A claim for the shell that asked.
//!
//! # Design
//! `eval $(autocvd) prog` leaves nothing of autocvd running, so a lease is judged by what /proc shows of
//! the shell: it lasts for the time of `--hold`, or, once the program is seen, as long as the program. The
//! program is a child that the shell has started since, or the shell itself once it has become the
//! program by exec. A child counts if it carries the `CUDA_VISIBLE_DEVICES` that was printed, where its
//! environment can be read: a shell also starts `$(hostname)` and the like.

use super::End;
use super::record::{Fields, read_list, read_process, write_process};
use crate::proc::{self, Environ, ProcessId, Stat};
use std::time::{Duration, Instant};

/// When to look again at what is just changing.
const SOON: Duration = Duration::from_millis(10);
/// As good as for ever, and within the range of every clock.
const MAX_HOLD: Duration = Duration::from_secs(100 * 365 * 86400);

/// What was printed, by which the program is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Form {
    /// Assignments in front of one command: the value of `CUDA_VISIBLE_DEVICES`.
    Prefix(String),
    /// Exported variables, for all that the shell starts from now on.
    Exported(String),
    /// Ids alone: the shell does with them what it wants.
    Ids,
}

/// What is written down of a lease, besides what every claim has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lease {
    /// The time since boot until which it lasts while no program has been seen.
    pub(super) until: Duration,
    /// When it was made: clock ticks since boot.
    pub(super) made: u64,
    /// The shell's child by which it asked.
    pub(super) requester_pid: Option<u32>,
    /// The children that the shell had then.
    pub(super) before: Vec<u32>,
    /// What the shell was running then: its command line.
    pub(super) shell: String,
    pub(super) form: Form,
    /// The program, once it was seen.
    pub(super) program: Option<Vec<ProcessId>>,
}

/// How things stand with a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum LeaseState {
    Ended,
    /// The time is over, and what the shell runs cannot be seen from here.
    Unclear,
    /// No program has been seen yet.
    Waiting(End),
    /// The program runs.
    Running {
        program: Vec<ProcessId>,
        end: End,
    },
}

/// What a child of the shell is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Child {
    /// The program, or as good as it.
    Program,
    /// Not to be told yet: the shell's own fork, which may be running exported programs inside or become the
    /// program, or a process in the midst of its exec.
    Unclear,
    /// Something else.
    Other,
}

impl Lease {
    /// Without `asking`, whose shell cannot be seen, the time alone counts.
    pub(super) fn new(requester: Option<&Requester>, hold: Duration, form: Form) -> Self {
        let now = proc::since_boot();
        let shell = requester.map(|requester| requester.shell.pid);
        Self {
            until: now.saturating_add(hold.min(MAX_HOLD)),
            made: ticks(now),
            requester_pid: requester.map(|requester| requester.requester_pid),
            before: shell.map(proc::children).unwrap_or_default(),
            shell: shell.map(line).unwrap_or_default(),
            form,
            program: None,
        }
    }

    pub(super) fn write(&self, line: &mut impl FnMut(&str, &str)) {
        let list = |items: Vec<String>| items.join(",");
        line("until", &self.until.as_millis().to_string());
        line("made", &self.made.to_string());
        if let Some(requester_pid) = self.requester_pid {
            line("requester_pid", &requester_pid.to_string());
        }
        line(
            "before",
            &list(self.before.iter().map(u32::to_string).collect()),
        );
        line("shell", &self.shell);
        match &self.form {
            Form::Prefix(ids) => line("prefix", ids),
            Form::Exported(ids) => line("exported", ids),
            Form::Ids => {}
        }
        if let Some(program) = &self.program {
            line(
                "program",
                &list(program.iter().copied().map(write_process).collect()),
            );
        }
    }

    pub(super) fn parse(fields: &Fields) -> Option<Self> {
        let form = match (fields.get("prefix"), fields.get("exported")) {
            (Some(ids), _) => Form::Prefix(ids.to_owned()),
            (None, Some(ids)) => Form::Exported(ids.to_owned()),
            (None, None) => Form::Ids,
        };
        Some(Self {
            until: Duration::from_millis(fields.get("until")?.parse().ok()?),
            made: fields.get("made")?.parse().ok()?,
            requester_pid: fields.get("requester_pid").and_then(|pid| pid.parse().ok()),
            before: read_list(fields.get("before")?, |pid| pid.parse().ok())?,
            shell: fields.get("shell")?.to_owned(),
            form,
            program: match fields.get("program") {
                Some(text) => Some(read_list(text, read_process)?),
                None => None,
            },
        })
    }

    /// The children that may be the program, started since and while the lease stood: within its time, or later
    /// while a program of it runs.
    fn children(&self, shell: u32, one_runs: bool) -> Vec<(Stat, Child)> {
        let latest = ticks(self.until);
        let since = |stat: &Stat| {
            let new = !self.before.contains(&stat.id.pid) || stat.id.start > self.made;
            new && (one_runs || stat.id.start <= latest) && stat.runs() && stat.comm != "autocvd"
        };
        let found = proc::children(shell)
            .into_iter()
            .filter_map(Stat::read)
            .filter(since);
        let known = found.map(|stat| {
            let kind = self.kind_of(stat.id.pid, stat.id.start <= latest);
            (stat, kind)
        });
        known.collect()
    }

    /// What a process is that was started `in_time`, or later: then only what was printed tells it from all else
    /// that the shell starts.
    fn kind_of(&self, child: u32, in_time: bool) -> Child {
        let (Form::Prefix(ids) | Form::Exported(ids)) = &self.form else {
            return match in_time {
                false => Child::Other,
                // Before its exec a child looks like the shell, and may become another autocvd.
                true if line(child) == self.shell => Child::Unclear,
                true => Child::Program,
            };
        };
        match proc::variable(child, "CUDA_VISIBLE_DEVICES", ids) {
            Environ::Set => Child::Program,
            // What cannot be read takes no risk.
            Environ::Hidden if in_time => Child::Program,
            // In the midst of an exec it may become the program, or anything else.
            Environ::Execing if in_time => Child::Unclear,
            Environ::NotSet
                if in_time
                    && matches!(self.form, Form::Exported(_))
                    && line(child) == self.shell =>
            {
                Child::Unclear
            }
            Environ::Hidden | Environ::Execing | Environ::NotSet => Child::Other,
        }
    }
}

/// How things stand with `lease` of `shell`, given the program seen so far. `asking`: this process asks for
/// a lease; if it does so for that shell, the shell is done with its older ones unless their programs run.
pub(super) fn lease_state(
    lease: &Lease,
    shell: ProcessId,
    same_namespace: bool,
    seen: Option<&[ProcessId]>,
    requester: Option<&Requester>,
) -> LeaseState {
    let requester = requester.filter(|requester| requester.shell == shell);
    let now = proc::since_boot();
    let left = lease.until.checked_sub(now);
    let until = left.map(|left| Instant::now() + left);
    let stat = same_namespace.then(|| Stat::read(shell.pid)).flatten();
    let seen_alive = || {
        seen.unwrap_or_default()
            .iter()
            .copied()
            .filter(|id| id.is_alive())
    };
    // By exec, which some shells do unasked for the last command of a script.
    let became_another = match stat {
        None if !same_namespace || shell.pid == 0 || proc::exists(shell.pid) => {
            return match until {
                Some(_) => LeaseState::Waiting(End {
                    pids: vec![],
                    at: until,
                }),
                None => LeaseState::Unclear,
            };
        }
        Some(stat) if stat.id == shell && stat.runs() => {
            let line = line(shell.pid);
            let end = |at| End {
                pids: vec![shell.pid],
                at,
            };
            let kind = match stat.comm == "autocvd" {
                _ if line == lease.shell => None,
                // It asks itself.
                true => Some(Child::Other),
                // In the midst of an exec it has no command line.
                false if line.is_empty() => Some(Child::Unclear),
                false if lease.form == Form::Ids && seen.is_some() => Some(Child::Other),
                false => Some(lease.kind_of(shell.pid, true)),
            };
            match kind {
                Some(Child::Program) => {
                    return LeaseState::Running {
                        program: vec![shell],
                        end: end(None),
                    };
                }
                Some(Child::Unclear) => {
                    return LeaseState::Waiting(end(Some(Instant::now() + SOON)));
                }
                Some(Child::Other) => true,
                None => false,
            }
        }
        _ => return LeaseState::Ended,
    };
    let mut children = lease.children(shell.pid, seen_alive().next().is_some());
    children.retain(|(stat, _)| {
        requester.is_none_or(|requester| stat.id.pid != requester.requester_pid)
    });
    let mut program: Vec<ProcessId> = children
        .iter()
        .filter(|(_, kind)| *kind == Child::Program)
        .map(|(stat, _)| stat.id)
        .collect();
    // Also one that has since become another one, without the variable.
    let known: Vec<ProcessId> = seen_alive().filter(|id| !program.contains(id)).collect();
    program.extend(known);
    let unclear = children
        .iter()
        .filter(|(_, kind)| *kind == Child::Unclear)
        .map(|(stat, _)| stat.id.pid);
    let mut pids: Vec<u32> = program.iter().map(|id| id.pid).chain(unclear).collect();
    pids.push(shell.pid);
    let alive = pids.len() > 1;
    if !program.is_empty() {
        return LeaseState::Running {
            program,
            end: End { pids, at: None },
        };
    }
    // Nothing tells that a program starts, and its end must not be missed: worth a look now and then, less
    // often as time goes by.
    let age = now.saturating_sub(Duration::from_millis(
        lease.made.saturating_mul(1000) / rustix::param::clock_ticks_per_second(),
    ));
    let look = (age / 2).clamp(SOON, Duration::from_secs(5));
    let at = left.map(|left| Instant::now() + left.min(look));
    if alive {
        return LeaseState::Waiting(End { pids, at });
    }
    match until {
        Some(_)
            if seen.is_none()
                && !became_another
                && requester.is_none_or(|requester| requester.is_concurrent_with(lease)) =>
        {
            LeaseState::Waiting(End { pids, at })
        }
        _ => LeaseState::Ended,
    }
}

/// Who asks for a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Requester {
    /// The shell that reads what this process prints: its parent, or, where that is a mere fork made for
    /// the command substitution, the shell it was forked from.
    shell: ProcessId,
    /// The shell's child by which it asks: this process, or that fork.
    requester_pid: u32,
    /// The shell's children at that time, ended ones that it has not taken note of included.
    siblings: Vec<u32>,
}

impl Requester {
    /// To be called early: who asks at the same time is told from who asks again by what is there now.
    /// `None` where /proc does not show the shell.
    pub(crate) fn detect() -> Option<Self> {
        // Elsewhere /proc shows other processes by the pids of this namespace.
        if !proc::shows_this_namespace() {
            return None;
        }
        let mut requester_pid = std::process::id();
        let mut shell = Stat::read(rustix::process::getppid()?.as_raw_pid().unsigned_abs())?;
        let own = proc::pipe_to_stdout();
        while shell.parent > 0 && own.is_some_and(|own| own.is_stdout_of(shell.id.pid)) {
            let Some(parent) = Stat::read(shell.parent) else {
                break;
            };
            if line(parent.id.pid) != line(shell.id.pid) || line(shell.id.pid).is_empty() {
                break;
            }
            requester_pid = shell.id.pid;
            shell = parent;
        }
        Some(Self {
            shell: shell.id,
            requester_pid,
            siblings: proc::children(shell.id.pid),
        })
    }

    pub(super) fn shell(&self) -> ProcessId {
        self.shell
    }

    /// Whether the one who made `lease` asked at the same time and not before: each was there when the other
    /// one asked.
    fn is_concurrent_with(&self, lease: &Lease) -> bool {
        let was_there = lease
            .requester_pid
            .is_some_and(|requester_pid| self.siblings.contains(&requester_pid));
        let was_here = || {
            ProcessId::of(self.requester_pid)
                .is_some_and(|requester_pid| requester_pid.start <= lease.made)
        };
        was_there || (lease.before.contains(&self.requester_pid) && was_here())
    }
}

/// The command line as it is written down.
fn line(pid: u32) -> String {
    proc::command(pid).unwrap_or_default()
}

/// A time since boot in the clock ticks of /proc.
fn ticks(time: Duration) -> u64 {
    let ticks = time.as_millis() * u128::from(rustix::param::clock_ticks_per_second()) / 1000;
    u64::try_from(ticks).unwrap_or(u64::MAX)
}
