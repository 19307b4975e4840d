//! How long each claim lasts that a judge holds.
//!
//! The table of the contract: a COMMAND's as long as it and all that it left behind; a printed
//! prefix's for its hold, and then as long as a program of that choice and a little longer; a
//! shell's as long as the shell; printed ids' for their hold.

use super::super::ancestry::{Ancestry, Token};
use super::super::directory::Directory;
use super::super::failures::{self, Ending};
use super::super::lock::{self, Mode, Range};
use super::super::requester::Requester;
use super::super::share::Holding;
use super::{exit, title};
use crate::proc::{self, Environ, ProcessId, Stat};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::cell::Cell;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// How long a lease outlives the last of its programs: a function may be about to start another.
const GRACE: Duration = Duration::from_millis(250);
/// How often to look for the next program meanwhile.
const GRACE_LOOK: Duration = Duration::from_millis(10);
/// How often to look for the first program: at first, and at most.
const FIRST_LOOK: Duration = Duration::from_millis(1);
const LAST_LOOK: Duration = Duration::from_millis(100);
/// How long a fork of the shell may take to become a program on a machine with much to do.
const FORK_AGE: Duration = Duration::from_secs(10);
/// How often to look again at what a COMMAND has left behind: at first, and at most.
const LEFT_LOOK: Duration = Duration::from_millis(20);
const LEFT_LOOK_MAX: Duration = Duration::from_secs(30);
/// When to look again at what is in the midst of an exec.
const EXEC_LOOK: Duration = Duration::from_millis(1);
/// How often to look where the kernel has no pidfd.
const WITHOUT_PIDFD: Duration = Duration::from_millis(50);
/// The parent of the kernel's own threads.
const KTHREADD: u32 = 2;
/// How deep subshells are followed.
const MAX_DEPTH: u32 = 4;

/// What a claim is for, and by what its program is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::claim) enum Purpose {
    /// A program that autocvd becomes. It and its children carry the token.
    Command(ProcessId),
    /// Assignments in front of a command: the value of `CUDA_VISIBLE_DEVICES`.
    Prefix(String),
    /// Variables of the shell: the same.
    Shell(String),
    /// Ids with which the shell does what it wants.
    Ids,
}

/// A process, with what tells its end.
#[derive(Debug)]
struct Watched {
    id: ProcessId,
    pidfd: Option<OwnedFd>,
}

impl Watched {
    fn new(id: ProcessId) -> Self {
        let pid = i32::try_from(id.pid).ok().and_then(Pid::from_raw);
        let pidfd = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        // The lowest number is given out: so many are open.
        let max = super::descriptor_limit() / 4;
        let pidfd = pidfd.filter(|pidfd| usize::try_from(pidfd.as_raw_fd()).is_ok_and(|n| n < max));
        // Its number may have been another's by then. Without /proc the start is not known.
        let is_it = id.pid == std::process::id() || id.start == 0 || id.is_alive();
        Self {
            id,
            pidfd: pidfd.filter(|_| is_it),
        }
    }

    /// How it has ended, where that can be told.
    fn status(&self) -> Option<i32> {
        exit::status(self.id, self.pidfd.as_ref()?)
    }

    fn has_ended(&self) -> bool {
        match &self.pidfd {
            Some(pidfd) => {
                let now = Timespec {
                    tv_sec: 0,
                    tv_nsec: 0,
                };
                poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&now)) == Ok(1)
            }
            None if self.id.start == 0 => !proc::exists(self.id.pid),
            None => !self.id.is_alive(),
        }
    }
}

/// The shell that a judge serves.
pub(super) struct Shell {
    pub(super) id: ProcessId,
    /// The program image that it ran when it asked first.
    image: u64,
    watched: Watched,
}

impl Shell {
    pub(super) fn new(requester: &Requester) -> Self {
        let Requester {
            shell: id, image, ..
        } = *requester;
        Self {
            id,
            image,
            watched: Watched::new(id),
        }
    }

    pub(super) fn has_ended(&self) -> bool {
        self.watched.has_ended()
    }

    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.watched.pidfd.as_ref().map(AsFd::as_fd)
    }
}

/// A launch that asks for the shell.
pub(super) struct Asks {
    /// In which form: the name of a purpose.
    pub(super) form: String,
    /// The shell's child by which it asks.
    pub(super) pid: u32,
    /// All of the shell's children, ended ones that it has not taken note of included.
    pub(super) siblings: Vec<u32>,
}

impl Asks {
    pub(super) fn to_text(&self) -> String {
        let siblings: Vec<String> = self.siblings.iter().map(u32::to_string).collect();
        format!("{}\n{}\n{}", self.form, self.pid, siblings.join(","))
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut lines = text.split('\n');
        Some(Self {
            form: lines.next()?.to_owned(),
            pid: lines.next()?.parse().ok()?,
            siblings: lines
                .next()?
                .split(',')
                .filter_map(|pid| pid.parse().ok())
                .collect(),
        })
    }
}

/// Whether a lease goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Lasts,
    Ended,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// No program has been seen yet.
    Pending,
    /// One has.
    Running,
    /// The last one has ended.
    Grace { until: Duration },
}

/// What a process is to a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A program of it.
    Program,
    /// It may become one: it is forked, or in the midst of an exec.
    Unclear,
    Other,
}

/// A claim that a judge holds.
#[derive(Debug)]
pub(in crate::claim) struct Lease {
    pub(in crate::claim) token: Token,
    /// The claims around it.
    pub(in crate::claim) ancestry: Ancestry,
    /// The keys of its devices.
    pub(in crate::claim) devices: Vec<String>,
    /// What it has of them.
    pub(in crate::claim) holding: Holding,
    /// What people call them.
    pub(in crate::claim) label: String,
    /// The program's name.
    pub(in crate::claim) program: String,
    /// The locked files.
    pub(in crate::claim) files: Vec<OwnedFd>,
    pub(in crate::claim) purpose: Purpose,
    /// The child of the shell that asked for it.
    pub(in crate::claim) requester_pid: u32,
    /// The launch, or the child that got its claim: what the claim is for has started later. `None`
    /// where /proc does not show it.
    pub(in crate::claim) launch: Option<ProcessId>,
    /// The times since boot when it was made, and up to which no program need be seen.
    made: Duration,
    pub(in crate::claim) until: Duration,
    /// The launch that took the next share of the same devices: what the shell has started since is
    /// not this one's.
    followed_by: Option<ProcessId>,
    /// When to look again, besides the end of what is watched.
    pub(super) due: Option<Duration>,
    phase: Phase,
    watched: Vec<Watched>,
    /// Whether one look has found nothing that was left behind, and when the next one is due.
    nothing_left: bool,
    left_look: Duration,
}

impl Lease {
    pub(in crate::claim) fn new(
        token: Token,
        ancestry: Ancestry,
        devices: Vec<String>,
        files: Vec<OwnedFd>,
        purpose: Purpose,
        hold: Duration,
    ) -> Self {
        let made = proc::since_boot();
        Self {
            token,
            ancestry,
            devices,
            holding: Holding::Whole,
            label: String::new(),
            program: String::new(),
            files,
            purpose,
            requester_pid: std::process::id(),
            launch: None,
            made,
            until: made.saturating_add(hold),
            followed_by: None,
            due: Some(made),
            phase: Phase::Pending,
            watched: Vec::new(),
            nothing_left: false,
            left_look: LEFT_LOOK,
        }
    }

    /// Begins to watch: to be called before its COMMAND can have ended.
    pub(super) fn begin(&mut self) {
        if let Purpose::Command(id) = self.purpose {
            self.watched.push(Watched::new(id));
        }
    }

    /// Whether the launch has dropped its locks since it gave them away. Where that cannot be told,
    /// it has not.
    pub(super) fn was_ended(&self, directory: &Directory) -> bool {
        let Some((key, file)) = self.devices.first().zip(self.files.first()) else {
            return false;
        };
        let Ok(other) = directory.find_lock_file(key) else {
            return false;
        };
        let locked = lock::conflict(&other, self.token.range(), Mode::Shared);
        matches!(locked, Ok(None)) && directory.names_file(key, file)
    }

    pub(super) fn to_text(&self) -> String {
        let (form, value) = match &self.purpose {
            Purpose::Command(id) => ("command", id.to_string()),
            Purpose::Prefix(ids) => ("prefix", ids.clone()),
            Purpose::Shell(ids) => ("shell", ids.clone()),
            Purpose::Ids => ("ids", String::new()),
        };
        let nanoseconds = |time: Duration| time.as_nanos().min(u64::MAX.into()).to_string();
        [
            self.token.to_string(),
            self.ancestry.to_string(),
            self.devices.join(","),
            self.label.clone(),
            proc::printable(self.program.as_bytes()),
            form.to_owned(),
            value,
            self.requester_pid.to_string(),
            self.launch.map(|id| id.to_string()).unwrap_or_default(),
            nanoseconds(self.made),
            nanoseconds(self.until),
            self.holding.to_string(),
        ]
        .join("\n")
    }

    /// `files` are those of [`files`](Self::files), and then the
    /// [`descriptors`](Self::descriptors).
    pub(super) fn parse(text: &str, mut files: Vec<OwnedFd>) -> Option<Self> {
        let mut lines = text.split('\n');
        let mut line = || lines.next();
        let token = line()?.parse().ok()?;
        let ancestry = line()?.parse().ok()?;
        let devices: Vec<String> = line()?.split(',').map(str::to_owned).collect();
        let (label, program) = (line()?.to_owned(), line()?.to_owned());
        let (form, value) = (line()?, line()?);
        let purpose = match form {
            "command" => Purpose::Command(value.parse().ok()?),
            "prefix" => Purpose::Prefix(value.to_owned()),
            "shell" => Purpose::Shell(value.to_owned()),
            "ids" => Purpose::Ids,
            _ => return None,
        };
        let requester_pid = line()?.parse().ok()?;
        let launch = line()?.parse().ok();
        let made = Duration::from_nanos(line()?.parse().ok()?);
        let until = Duration::from_nanos(line()?.parse().ok()?);
        let holding = Holding::parse(line()?, devices.len())?;
        let pidfd = (files.len() > devices.len()).then(|| files.pop()).flatten();
        let watched = match purpose {
            Purpose::Command(id) => vec![Watched { id, pidfd }],
            _ => Vec::new(),
        };
        let lease = Self::new(token, ancestry, devices, files, purpose, Duration::ZERO);
        (lease.files.len() == lease.devices.len()).then_some(Self {
            label,
            program,
            watched,
            requester_pid,
            launch,
            made,
            until,
            holding,
            ..lease
        })
    }

    /// What a launch inside it is told.
    pub(super) fn inside(&self) -> Ancestry {
        super::inside(&self.ancestry, self.token, &self.devices, &self.holding)
    }

    /// Takes note of a later lease of the same shell. Two shares of one device have programs with
    /// the same value: which of them a job of the shell is of is told by when it was forked.
    pub(super) fn is_followed_by(&mut self, later: &Self) {
        let is_shared = matches!(self.holding, Holding::Shares(_));
        let is_prefix = matches!(self.purpose, Purpose::Prefix(_));
        if is_shared && is_prefix && self.purpose == later.purpose {
            self.followed_by = self.followed_by.or(later.launch);
        }
    }

    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.watched
            .iter()
            .filter_map(|watched| watched.pidfd.as_ref())
            .map(AsFd::as_fd)
    }

    /// Whether there is something to look at.
    pub(super) fn is_due(&self, shell: Option<&Shell>, now: Duration) -> bool {
        let passed = self.due.is_some_and(|due| due <= now);
        let waits_for_shell = self.watched.is_empty() && self.phase != Phase::Running;
        let alone = || waits_for_shell && shell.is_some_and(Shell::has_ended);
        passed || self.watched.iter().any(Watched::has_ended) || alone()
    }

    /// Looks whether it goes on, and sets when to look again.
    pub(super) fn update(&mut self, shell: Option<&Shell>) -> State {
        let now = proc::since_boot();
        let watched = std::mem::take(&mut self.watched).into_iter();
        let (ended, running) = watched.partition::<Vec<_>, _>(Watched::has_ended);
        self.watched = running;
        ended.iter().for_each(|watched| self.note_end(watched, now));
        self.due = self
            .watched
            .iter()
            .any(|one| one.pidfd.is_none())
            .then(|| now + WITHOUT_PIDFD);
        match self.purpose.clone() {
            Purpose::Ids => self.until_hold(now),
            Purpose::Command(id) => self.update_command(id, now),
            Purpose::Shell(ids) => self.update_shell(&ids, shell, now),
            Purpose::Prefix(ids) => self.update_prefix(&ids, shell, now),
        }
    }

    /// Notes on its devices how COMMAND has ended, if it is this process. Of a share its end tells
    /// nothing: the others may have taken its memory.
    fn note_end(&self, ended: &Watched, now: Duration) {
        if self.purpose != Purpose::Command(ended.id) || self.holding != Holding::Whole {
            return;
        }
        if let Some(status) = ended.status() {
            let ending = Ending::of(status, now.saturating_sub(self.made));
            self.files
                .iter()
                .for_each(|file| failures::note(file, ending));
        }
    }

    fn until_hold(&mut self, now: Duration) -> State {
        self.due = Some(self.until);
        if now >= self.until {
            State::Ended
        } else {
            State::Lasts
        }
    }

    fn update_command(&mut self, id: ProcessId, now: Duration) -> State {
        if self.watched.iter().any(|watched| watched.id == id) {
            return State::Lasts;
        }
        let token = self.token.to_string();
        let own = rustix::process::geteuid().as_raw();
        let unclear = Cell::new(false);
        let carries = |stat: &Stat| match proc::environ_holds(stat.id.pid, token.as_bytes()) {
            Environ::Set => true,
            Environ::Execing => {
                // A thread of the kernel never is.
                unclear.set(unclear.get() || stat.parent != KTHREADD);
                false
            }
            Environ::NotSet | Environ::Unreadable => false,
        };
        let last = proc::last_pid();
        let left = self.started_since(own, carries);
        if left.is_empty() && self.watched.is_empty() {
            if unclear.get() {
                self.nothing_left = false;
                self.due = Some(now + EXEC_LOOK);
                return State::Lasts;
            }
            // None can have been missed where none has started meanwhile.
            self.nothing_left |= last.is_some() && proc::last_pid() == last;
        }
        self.goes_on_with(left, now)
    }

    /// Whether the next look may well be the last.
    pub(super) fn is_settling(&self) -> bool {
        matches!(self.purpose, Purpose::Command(_)) && self.watched.is_empty()
    }

    /// Goes on as long as these run, and what they start.
    fn goes_on_with(&mut self, left: Vec<ProcessId>, now: Duration) -> State {
        if left.is_empty() && self.watched.is_empty() {
            // One may have forked and ended while the others were looked at: only two looks are
            // proof.
            let again = !std::mem::replace(&mut self.nothing_left, true);
            if again {
                self.due = Some(now);
            }
            return if again { State::Lasts } else { State::Ended };
        }
        self.nothing_left = false;
        self.watch(left);
        self.due = Some(now + self.left_look);
        self.left_look = (self.left_look * 2).min(LEFT_LOOK_MAX);
        State::Lasts
    }

    fn watch(&mut self, ids: Vec<ProcessId>) {
        for id in ids {
            if self.watched.iter().all(|watched| watched.id != id) {
                self.watched.push(Watched::new(id));
            }
        }
    }

    /// The processes of `user` that have started since the claim was made.
    fn started_since(&self, user: u32, wanted: impl Fn(&Stat) -> bool) -> Vec<ProcessId> {
        let made = proc::ticks(self.made);
        let later = self.launch.and_then(proc::later_than);
        let own = |pid: &u32| proc::owner(*pid) == Some(user);
        let all = later.unwrap_or_else(proc::all).into_iter();
        all.filter(own)
            .filter_map(Stat::read)
            .filter(|stat| stat.id.start >= made && stat.runs() && !is_ours(stat))
            .filter(wanted)
            .map(|stat| stat.id)
            .collect()
    }

    fn update_shell(&mut self, ids: &str, shell: Option<&Shell>, now: Duration) -> State {
        match shell {
            // Nobody can tell when it ends.
            None => self.until_hold(now),
            Some(shell) if !shell.has_ended() => {
                self.due = shell.watched.pidfd.is_none().then(|| now + WITHOUT_PIDFD);
                State::Lasts
            }
            Some(shell) => {
                let mut left = Vec::new();
                if self.add_orphans(ids, shell, &mut left) {
                    self.due = Some(now + GRACE_LOOK);
                    return State::Lasts;
                }
                self.goes_on_with(left, now)
            }
        }
    }

    /// Adds the programs that an ended shell has left behind; whether something else of it may
    /// become one. What it started is now a child of the same process as the judge.
    fn add_orphans(&self, ids: &str, shell: &Shell, found: &mut Vec<ProcessId>) -> bool {
        let reaper = rustix::process::getppid();
        let reaper = reaper.map_or(0, |pid| pid.as_raw_pid().unsigned_abs());
        let own = rustix::process::geteuid().as_raw();
        let orphans = self.started_since(own, |stat| stat.parent == reaper);
        let mut unclear = false;
        for stat in orphans.into_iter().filter_map(|id| Stat::read(id.pid)) {
            match self.kind(&stat, ids, shell) {
                // What cannot be read may be anybody's.
                Kind::Program if self.carries(&stat, ids) => found.push(stat.id),
                Kind::Unclear if stat.image == shell.image => {
                    let inside = self.add_children(stat.id.pid, ids, shell, None, found, 1);
                    unclear |= inside || is_young(&stat);
                }
                _ => {}
            }
        }
        unclear
    }

    fn carries(&self, stat: &Stat, ids: &str) -> bool {
        proc::variable(stat.id.pid, "CUDA_VISIBLE_DEVICES", ids) == Environ::Set
    }

    fn update_prefix(&mut self, ids: &str, shell: Option<&Shell>, now: Duration) -> State {
        let Some(shell) = shell else {
            return self.until_hold(now);
        };
        let ended = shell.has_ended();
        // Before its programs are looked for: what it becomes meanwhile may be one.
        let became_another = shell.became_another();
        let unclear = self.find_programs(ids, shell, ended, None);
        if !self.watched.is_empty() {
            self.phase = Phase::Running;
            return State::Lasts;
        }
        if ended && !unclear {
            return State::Ended;
        }
        let look = match self.phase {
            Phase::Running => {
                self.phase = Phase::Grace { until: now + GRACE };
                GRACE_LOOK
            }
            Phase::Grace { .. } if unclear => {
                self.phase = Phase::Grace { until: now + GRACE };
                GRACE_LOOK
            }
            Phase::Grace { until } if now >= until => return State::Ended,
            Phase::Grace { until } => GRACE_LOOK.min(until - now),
            Phase::Pending if unclear => GRACE_LOOK,
            Phase::Pending if now >= self.until || became_another => return State::Ended,
            Phase::Pending => {
                let age = now.saturating_sub(self.made);
                (age / 4).clamp(FIRST_LOOK, LAST_LOOK).min(self.until - now)
            }
        };
        self.due = Some(now + look);
        State::Lasts
    }

    /// Adds the programs that run to those that are watched; whether something else may become one.
    fn find_programs(
        &mut self,
        ids: &str,
        shell: &Shell,
        shell_ended: bool,
        except: Option<u32>,
    ) -> bool {
        let mut found = Vec::new();
        let unclear = if shell_ended {
            self.add_orphans(ids, shell, &mut found)
        } else {
            let itself = Stat::read(shell.id.pid)
                .filter(|stat| shell.became_another() && Some(stat.id.pid) != except);
            let kind = itself.as_ref().map(|stat| self.kind(stat, ids, shell));
            if let (Some(stat), Some(Kind::Program)) = (&itself, kind) {
                found.push(stat.id);
            }
            let children = self.add_children(shell.id.pid, ids, shell, except, &mut found, 0);
            children || kind == Some(Kind::Unclear)
        };
        self.watch(found);
        unclear
    }

    /// Adds the programs among the children of `parent`; whether one of them may become a program.
    fn add_children(
        &self,
        parent: u32,
        ids: &str,
        shell: &Shell,
        except: Option<u32>,
        found: &mut Vec<ProcessId>,
        depth: u32,
    ) -> bool {
        let made = proc::ticks(self.made);
        let mut unclear = false;
        for pid in proc::children(parent) {
            let Some(stat) = Stat::read(pid) else {
                continue;
            };
            let since = stat.id.start >= made && stat.runs() && !is_ours(&stat);
            // Of two that started in one tick the later one has the higher pid.
            let age = |id: ProcessId| (id.start, id.pid);
            let next = self.followed_by.filter(|_| depth == 0);
            let is_anothers = next.is_some_and(|next| age(stat.id) > age(next));
            if !since || is_anothers || pid == self.requester_pid || Some(pid) == except {
                continue;
            }
            match self.kind(&stat, ids, shell) {
                Kind::Program => found.push(stat.id),
                Kind::Other => {}
                // A subshell is told by what it runs, and one that runs nothing by time.
                Kind::Unclear if depth < MAX_DEPTH && !proc::children(pid).is_empty() => {
                    unclear |= self.add_children(pid, ids, shell, except, found, depth + 1);
                }
                Kind::Unclear => unclear |= is_young(&stat),
            }
        }
        unclear
    }

    fn kind(&self, stat: &Stat, ids: &str, shell: &Shell) -> Kind {
        if stat.image != 0 && stat.image == shell.image {
            return Kind::Unclear;
        }
        match proc::variable(stat.id.pid, "CUDA_VISIBLE_DEVICES", ids) {
            Environ::Set => Kind::Program,
            Environ::Execing => Kind::Unclear,
            // What cannot be read takes no risk, until one was seen that could.
            Environ::Unreadable if self.phase == Phase::Pending => Kind::Program,
            Environ::Unreadable | Environ::NotSet => Kind::Other,
        }
    }

    /// Whether it is over now that the shell asks again.
    pub(super) fn ends_when_asked(
        &mut self,
        asks: &Asks,
        shell: Option<&Shell>,
        now: Duration,
    ) -> bool {
        let Some(shell) = shell else { return false };
        let ids = match &self.purpose {
            Purpose::Prefix(ids) => ids.clone(),
            Purpose::Shell(ids) if asks.form == "shell" => ids.clone(),
            _ => return false,
        };
        // A shell that has become a launch asks after all that it asked before.
        if asks.pid != shell.id.pid && self.is_concurrent_with(asks) {
            return false;
        }
        self.watched.retain(|watched| !watched.has_ended());
        let unclear = self.find_programs(&ids, shell, false, Some(asks.pid));
        if let (false, Purpose::Prefix(_)) = (self.watched.is_empty(), &self.purpose) {
            self.phase = Phase::Running;
            self.due = None;
        }
        let over = self.watched.is_empty() && !unclear;
        if matches!(self.purpose, Purpose::Shell(_)) {
            // As long as the shell, whatever it starts.
            self.watched.clear();
        }
        self.due = self.due.or_else(|| unclear.then(|| now + GRACE_LOOK));
        over
    }

    /// Whether who asks now did so at the same time as who made this lease, and not after it: the
    /// shell has taken note of neither one's end, or this one was there already.
    fn is_concurrent_with(&self, asks: &Asks) -> bool {
        let started = ProcessId::of(asks.pid).map(|process| process.start);
        asks.siblings.contains(&self.requester_pid)
            || started.is_some_and(|start| start < proc::ticks(self.made))
    }

    /// Whether a process with these ancestors, the nearest first, up to the shell, belongs to it.
    pub(super) fn is_around(&self, chain: &[ProcessId], shell: Option<&Shell>) -> bool {
        let Some(shell) = shell else { return false };
        let (Purpose::Prefix(ids) | Purpose::Shell(ids)) = &self.purpose else {
            return false;
        };
        let is_program = |id: &ProcessId| {
            let since = id.start >= proc::ticks(self.made) || *id == shell.id;
            let stat = Stat::read(id.pid).filter(|stat| stat.id == *id);
            since && stat.is_some_and(|stat| self.kind(&stat, ids, shell) == Kind::Program)
        };
        chain.iter().any(is_program)
    }

    /// Tells cleaners that the lock files are in use.
    pub(super) fn keep_young(&self) {
        for file in &self.files {
            // SAFETY: no times are given, so that the file's become the present.
            unsafe { libc::futimens(file.as_raw_fd(), std::ptr::null()) };
        }
    }

    /// Locks the lock files anew that were removed.
    pub(super) fn keep_locked(&mut self, directory: &Directory) {
        for (place, (key, file)) in self.devices.iter().zip(&mut self.files).enumerate() {
            if directory.names_file(key, file) {
                continue;
            }
            let Ok(fresh) = directory.lock_file(key) else {
                continue;
            };
            let level = self.ancestry.level();
            let locked = |range, mode| matches!(lock::try_lock(&fresh, range, mode), Ok(true));
            // Where the device is another one's already, it is now shared with that one.
            let is_ours = locked(self.token.range(), Mode::Exclusive)
                && match self.holding.share(place) {
                    None => {
                        locked(Range::level(level), Mode::Exclusive)
                            || locked(Range::GUESTS, Mode::Shared)
                    }
                    Some(share) => matches!(lock::try_lock_share(&fresh, level, share), Ok(true)),
                };
            if is_ours {
                *file = fresh;
            }
        }
    }
}

impl Shell {
    /// Whether it has become another program by exec.
    fn became_another(&self) -> bool {
        Stat::read(self.id.pid).is_some_and(|stat| stat.image != 0 && stat.image != self.image)
    }
}

/// Whether it is a launch or a judge.
fn is_ours(stat: &Stat) -> bool {
    stat.comm == "autocvd" || stat.comm.as_bytes() == title::NAME.to_bytes()
}

fn is_young(stat: &Stat) -> bool {
    proc::ticks(proc::since_boot()).saturating_sub(stat.id.start) < proc::ticks(FORK_AGE)
}
