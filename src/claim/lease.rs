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
use crate::proc::{self, ProcessId, Stat};
use std::time::{Duration, Instant};

/// What was printed, by which the program is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Form {
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
pub(super) enum Standing {
    Ended,
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
    /// The shell's own fork, which may be running exported programs inside.
    Subshell,
    /// Something else.
    Other,
}

/// More than a century: in milliseconds it is a number that can be read back.
const LONGEST_HOLD: Duration = Duration::from_secs(u32::MAX as u64);

impl Lease {
    pub(super) fn new(shell: ProcessId, hold: Duration, form: Form) -> Self {
        let now = proc::since_boot();
        Self {
            until: now + hold.min(LONGEST_HOLD),
            made: ticks(now),
            before: proc::children(shell.pid),
            shell: line(shell.pid),
            form,
            program: None,
        }
    }

    pub(super) fn write(&self, line: &mut impl FnMut(&str, &str)) {
        let list = |items: Vec<String>| items.join(",");
        line("until", &self.until.as_millis().to_string());
        line("made", &self.made.to_string());
        line("before", &list(self.before.iter().map(u32::to_string).collect()));
        line("shell", &self.shell);
        match &self.form {
            Form::Prefix(ids) => line("prefix", ids),
            Form::Exported(ids) => line("exported", ids),
            Form::Ids => {}
        }
        if let Some(program) = &self.program {
            line("program", &list(program.iter().copied().map(write_process).collect()));
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
            before: read_list(fields.get("before")?, |pid| pid.parse().ok())?,
            shell: fields.get("shell")?.to_owned(),
            form,
            program: match fields.get("program") {
                Some(text) => Some(read_list(text, read_process)?),
                None => None,
            },
        })
    }

    /// The children that may be the program, started since and while the lease stood.
    fn children(&self, shell: u32) -> Vec<(Stat, Child)> {
        let latest = ticks(self.until);
        let since = |stat: &Stat| {
            let new = !self.before.contains(&stat.id.pid) || stat.id.start > self.made;
            new && stat.id.start <= latest && stat.runs() && stat.comm != "autocvd"
        };
        let found = proc::children(shell).into_iter().filter_map(Stat::read).filter(since);
        found.map(|stat| (self.kind_of(stat.id.pid), stat)).map(|(kind, stat)| (stat, kind)).collect()
    }

    fn kind_of(&self, child: u32) -> Child {
        let (Form::Prefix(ids) | Form::Exported(ids)) = &self.form else { return Child::Program };
        // What cannot be read takes no risk.
        if proc::has_variable(child, "CUDA_VISIBLE_DEVICES", ids).unwrap_or(true) {
            return Child::Program;
        }
        match self.form {
            Form::Exported(_) if line(child) == self.shell => Child::Subshell,
            _ => Child::Other,
        }
    }
}

/// How things stand with `lease` of `shell`, given the program seen so far. `asks_again`: this process was
/// started by that shell, which is done with the lease unless its program runs.
pub(super) fn standing(
    lease: &Lease,
    shell: ProcessId,
    same_namespace: bool,
    seen: Option<&[ProcessId]>,
    asks_again: bool,
) -> Standing {
    let now = proc::since_boot();
    let until = lease.until.checked_sub(now).map(|left| Instant::now() + left);
    let stat = same_namespace.then(|| Stat::read(shell.pid)).flatten();
    let Some(stat) = stat else {
        let gone = same_namespace && shell.pid != 0 && !proc::exists(shell.pid);
        return match until {
            Some(_) if !gone => Standing::Waiting(End { pids: vec![], at: until }),
            _ => Standing::Ended,
        };
    };
    if stat.id != shell || !stat.runs() {
        return Standing::Ended;
    }
    if line(shell.pid) != lease.shell {
        return Standing::Running { program: vec![shell], end: End { pids: vec![shell.pid], at: None } };
    }
    let children = lease.children(shell.pid);
    let mut program: Vec<ProcessId> =
        children.iter().filter(|(_, kind)| *kind == Child::Program).map(|(stat, _)| stat.id).collect();
    let known = seen.unwrap_or_default().iter();
    program.extend(known.filter(|id| !children.iter().any(|(stat, _)| stat.id == **id) && id.is_alive()));
    let subshells = children.iter().filter(|(_, kind)| *kind == Child::Subshell).map(|(stat, _)| stat.id.pid);
    let mut pids: Vec<u32> = program.iter().map(|id| id.pid).chain(subshells).collect();
    pids.push(shell.pid);
    let alive = pids.len() > 1;
    if !program.is_empty() {
        return Standing::Running { program, end: End { pids, at: None } };
    }
    if alive {
        return Standing::Waiting(End { pids, at: until });
    }
    // This process itself is among the children that the shell had then: it did not ask again, but at
    // the same time.
    let asked_meanwhile = lease.before.iter().any(|&pid| pid == std::process::id() || is_between(pid, shell.pid));
    match until {
        Some(_) if seen.is_none() && (!asks_again || asked_meanwhile) => Standing::Waiting(End { pids, at: until }),
        _ => Standing::Ended,
    }
}

/// Whether `pid` is a subshell between `shell` and this process.
fn is_between(pid: u32, shell: u32) -> bool {
    let parent = rustix::process::getppid().map_or(0, |parent| parent.as_raw_pid() as u32);
    pid != shell && parent != shell && proc::is_ancestor(pid)
}

/// The shell that reads what this process prints: its parent, or, where that is a mere fork made for the
/// command substitution, the shell it was forked from.
pub(super) fn asking_shell() -> Option<ProcessId> {
    let mut shell = Stat::read(rustix::process::getppid()?.as_raw_pid().unsigned_abs())?;
    let own = proc::stdout_of(std::process::id());
    let piped = own.as_ref().is_some_and(|path| path.as_os_str().as_encoded_bytes().starts_with(b"pipe:"));
    while piped && shell.parent > 0 && proc::stdout_of(shell.id.pid) == own {
        let Some(parent) = Stat::read(shell.parent) else { break };
        if line(parent.id.pid) != line(shell.id.pid) || line(shell.id.pid).is_empty() {
            break;
        }
        shell = parent;
    }
    Some(shell.id)
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
