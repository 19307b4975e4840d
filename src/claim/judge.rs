//! The judge of a shell: a small process of autocvd's own that holds the locks of what the shell
//! was given, and lets go of each when its work is over.
//!
//! It begins as a fork of the launch that has just locked the devices, and so inherits the locks
//! without a gap. It is detached from the terminal and closes everything else, stdout first, for a
//! command substitution waits for that. One judge serves all launches of a shell: a later one hands
//! its locked files over by a socket. When a judge is killed, its locks go with it.

mod exit;
pub(super) mod link;
mod removal;
mod rules;
mod title;

use super::ancestry::{Ancestor, Ancestry, Token};
use super::directory::Directory;
use super::holder::{self, ClaimKind, Holder};
use super::lock;
use super::queue;
use super::requester::Requester;
use super::share::Holding;
use crate::proc::{self, ProcessId};
use link::{Address, Attached, Listener, Message, RESERVED_FILES};
use removal::RemovalWatch;
pub(super) use rules::{Lease, Purpose};
use rules::{Shell, State};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Resource, getrlimit, setrlimit};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long a judge stays that has nothing to hold: a loop of launches gets one judge, not one
/// each.
const LINGER: Duration = Duration::from_secs(60);
/// How often, and how soon again, a judge looks whether a COMMAND is over when its shell asks
/// again.
const SETTLING_LOOKS: u32 = 8;
const SETTLING_PAUSE: Duration = Duration::from_micros(500);
/// How many launches it listens to at a time, where it may have that many descriptors.
const MAX_CONNECTIONS: usize = 64;
/// The descriptors of a judge without leases, and those that it opens for a moment.
const BASE_DESCRIPTORS: usize = 12;
/// How often a judge tells cleaners of old files that its lock files are in use.
const UPKEEP: Duration = Duration::from_secs(3600);
/// How soon a judge acts on the removal of a lock file, and looks again, for the directory may be
/// next, of which the kernel tells nothing; and how often where it tells nothing at all.
const FIRST_REMOVAL_LOOK: Duration = Duration::from_millis(2);
const LAST_REMOVAL_LOOK: Duration = Duration::from_secs(1);

/// What becomes of the launch that starts a judge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parent {
    /// It ends at once, and its children are init's.
    Ends,
    /// It becomes a program, which is to have no children that it has not started.
    Execs,
}

/// Lets `lease` live on without this process: with the judge of the shell, or one of its own.
/// Returns its files, which this process may close now.
pub(super) fn keep(
    mut lease: Lease,
    requester: Option<&Requester>,
    attached: Option<&Attached>,
    directory: &Directory,
    parent: Parent,
) -> (Vec<OwnedFd>, io::Result<()>) {
    // Now: what is short may have ended before a judge has done anything.
    lease.begin();
    let address = requester.map(|requester| Address::of(requester, directory));
    let hand_over =
        |attached| address.is_some_and(|address| link::hand_over(address, attached, &lease));
    if hand_over(attached) {
        return (lease.files, Ok(()));
    }
    // Before the fork: the shell's next launch may come before the judge has done anything.
    let listener = address.and_then(Listener::bind);
    // Another judge of this shell may have come up at the same time: one of them is enough.
    if listener.is_none() && hand_over(None) {
        return (lease.files, Ok(()));
    }
    let forked = fork(parent);
    if let Ok(Fork::Judge) = forked {
        // Nothing may get out of here: what lies above on the stack is the launch's.
        let judged = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            Judge::begin(lease, requester, listener, directory.clone()).run();
        }));
        // SAFETY: it ends the process without running what the launch has registered for its end.
        unsafe { libc::_exit(judged.is_err().into()) };
    }
    (lease.files, forked.map(drop))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fork {
    Launch,
    Judge,
}

fn fork(parent: Parent) -> io::Result<Fork> {
    // SAFETY: the child goes on in this thread alone, with memory and locks as they are; the C
    // library sees to its own.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 if parent == Parent::Ends => Ok(Fork::Judge),
        // SAFETY: as above; the process in between ends at once.
        0 => match unsafe { libc::fork() } {
            0 => Ok(Fork::Judge),
            // SAFETY: it ends this process.
            answer => unsafe { libc::_exit((answer < 0).into()) },
        },
        _ if parent == Parent::Ends => Ok(Fork::Launch),
        child => {
            let mut status = 0;
            // SAFETY: the kernel writes the status.
            let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
            // Where SIGCHLD is ignored, nobody tells.
            match waited == child && status != 0 {
                true => Err(io::Error::from(io::ErrorKind::WouldBlock)),
                false => Ok(Fork::Launch),
            }
        }
    }
}

/// A launch that is connected.
struct Connection {
    socket: OwnedFd,
    /// How many files it may hand over without waiting for an answer.
    reserved: usize,
}

impl Connection {
    fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            reserved: 0,
        }
    }
}

struct Judge {
    shell: Option<Shell>,
    /// Whether all leases have been judged since the shell ended.
    shell_end_seen: bool,
    leases: Vec<Lease>,
    directory: Directory,
    namespace: Option<u64>,
    listener: Option<Listener>,
    connections: Vec<Connection>,
    max_descriptors: usize,
    /// What tells that lock files are removed.
    removal: Option<RemovalWatch>,
    /// Since when it has had nothing to hold.
    idle_since: Option<Duration>,
    next_upkeep: Duration,
    /// When to look whether lock files were removed, besides when the kernel tells.
    next_look: Duration,
    /// When one was removed last.
    removed_at: Duration,
}

impl Judge {
    /// Makes a judge of a freshly forked process.
    fn begin(
        lease: Lease,
        requester: Option<&Requester>,
        listener: Option<Listener>,
        directory: Directory,
    ) -> Self {
        std::panic::set_hook(Box::new(|_| {}));
        let mut kept: Vec<RawFd> = lease.files.iter().map(AsRawFd::as_raw_fd).collect();
        kept.extend(lease.descriptors().map(|watched| watched.as_raw_fd()));
        kept.push(directory.descriptor().as_raw_fd());
        kept.extend(listener.iter().map(|listener| listener.as_fd().as_raw_fd()));
        close_all_but(kept);
        detach();
        let descriptors = raise_descriptor_limit();
        listener.iter().for_each(Listener::adopt);
        let namespace = proc::pid_namespace();
        let shell = requester.map(Shell::new);
        let mut judge = Self {
            shell,
            shell_end_seen: false,
            leases: Vec::new(),
            directory,
            namespace,
            listener,
            connections: Vec::new(),
            max_descriptors: descriptors,
            removal: None,
            idle_since: None,
            next_upkeep: proc::since_boot() + UPKEEP,
            next_look: Duration::MAX,
            removed_at: Duration::ZERO,
        };
        judge.accept_lease(lease);
        holder::sweep(&judge.directory);
        judge
    }

    fn accept_lease(&mut self, lease: Lease) {
        self.publish(&lease);
        if lease.was_ended(&self.directory) {
            // The launch has ended it: what it printed could not be written.
            holder::withdraw(&self.directory, lease.token);
            return;
        }
        self.leases
            .iter_mut()
            .for_each(|earlier| earlier.is_followed_by(&lease));
        self.leases.push(lease);
        self.directory.keep_from_cleaners();
        if self.removal.is_none() {
            self.watch_removal();
        }
        self.describe();
    }

    /// Hears of files that are removed from now on, and looks whether some were.
    fn watch_removal(&mut self) {
        self.removal = RemovalWatch::new(&self.directory);
        self.keep_locked(proc::since_boot());
    }

    /// Locks the lock files anew that were removed.
    fn keep_locked(&mut self, now: Duration) {
        let pause = (now.saturating_sub(self.removed_at) / 8).max(FIRST_REMOVAL_LOOK);
        let is_quiet = pause > LAST_REMOVAL_LOOK;
        self.next_look = match is_quiet && self.removal.is_some() {
            true => Duration::MAX,
            false => now + pause.min(LAST_REMOVAL_LOOK),
        };
        if self.leases.is_empty() {
            return;
        }
        if !self.directory.is_current() {
            self.move_to_new_directory();
        }
        for lease in &mut self.leases {
            lease.keep_locked(&self.directory);
        }
    }

    /// Tells cleaners of old files that the lock files are in use.
    fn keep_young(&mut self, now: Duration) {
        self.directory.keep_from_cleaners();
        self.leases.iter().for_each(Lease::keep_young);
        self.next_upkeep = now + UPKEEP;
    }

    /// Is found, and tells of its leases, where launches look from now on.
    fn move_to_new_directory(&mut self) {
        let Ok(directory) = self.directory.successor() else {
            return;
        };
        // The old directory's number may be the next one's: nobody must find the judge by it.
        self.listener = None;
        self.directory = directory;
        self.directory.keep_from_cleaners();
        self.removal = RemovalWatch::new(&self.directory);
        let shell = self.shell.as_ref().zip(self.namespace);
        let address = shell.map(|(shell, namespace)| Address {
            shell: shell.id,
            namespace,
            directory: &self.directory,
        });
        self.listener = address.and_then(Listener::bind);
        self.leases.iter().for_each(|lease| self.publish(lease));
    }

    fn run(mut self) {
        loop {
            let now = proc::since_boot();
            let shell_ended = self.shell.as_ref().is_none_or(Shell::has_ended);
            self.update(now);
            self.shell_end_seen = shell_ended;
            let removal = self.removal.as_ref();
            if removal.is_some_and(RemovalWatch::has_seen_one) {
                self.removed_at = now;
                self.next_look = now + FIRST_REMOVAL_LOOK;
            }
            if now >= self.next_look {
                self.keep_locked(now);
            }
            if now >= self.next_upkeep {
                self.keep_young(now);
            }
            match (self.leases.is_empty(), self.idle_since) {
                // A launch that is attached may hand over a lease without waiting for an answer.
                (true, _) if !self.connections.is_empty() => self.idle_since = None,
                (true, _) if shell_ended || self.listener.is_none() => return,
                (true, Some(since)) if now >= since + LINGER => return,
                (true, None) => {
                    self.directory.leave_to_cleaners();
                    self.idle_since = Some(now);
                }
                (true, Some(_)) => {}
                (false, _) => self.idle_since = None,
            }
            self.sleep(now);
            self.serve();
        }
    }

    /// Ends what is over.
    fn update(&mut self, now: Duration) {
        let shell = self.shell.as_ref();
        let ended =
            |lease: &mut Lease| lease.is_due(shell, now) && lease.update(shell) == State::Ended;
        let over = take_out(&mut self.leases, ended);
        self.end(over);
    }

    fn end(&mut self, over: Vec<Lease>) {
        if over.is_empty() {
            return;
        }
        for lease in over {
            lease
                .files
                .iter()
                .for_each(|file| lock::unlock(file, lock::Range::ALL));
            queue::notify(&self.directory, &lease.devices, self.namespace);
            holder::withdraw(&self.directory, lease.token);
        }
        self.describe();
    }

    fn sleep(&self, now: Duration) {
        let idle_end = self.idle_since.map(|since| since + LINGER);
        let times = self.leases.iter().filter_map(|lease| lease.due);
        let next = times
            .chain(idle_end)
            .chain([self.next_upkeep, self.next_look])
            .min();
        let limit = next.map(|next| next.saturating_sub(now));
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        let watched = self.leases.iter().flat_map(Lease::descriptors);
        let shell = self.shell.iter().filter(|_| !self.shell_end_seen);
        let shell = shell.filter_map(|shell| shell.descriptor());
        // The others wait in the socket's queue until one of these goes.
        let is_full = self.connections.len() >= self.max_connections();
        let listener = self.listener.iter().filter(|_| !is_full).map(AsFd::as_fd);
        let connections = self.connections.iter();
        let connections = connections.map(|connection| connection.socket.as_fd());
        let removal = self.removal.iter().map(AsFd::as_fd);
        let all = watched.chain(shell).chain(listener).chain(connections);
        let all = all.chain(removal);
        let mut all: Vec<PollFd> = all
            .map(|fd: BorrowedFd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
            .collect();
        let _ = poll(&mut all, limit.as_ref());
    }

    /// Answers who asks.
    fn serve(&mut self) {
        if let Some(listener) = &self.listener {
            let room = self
                .max_connections()
                .saturating_sub(self.connections.len());
            let new = listener.accept().take(room);
            self.connections.extend(new.map(Connection::new));
        }
        let mut at = 0;
        while let Some(connection) = self.connections.get(at) {
            let goes_on = match link::receive(&connection.socket) {
                Ok(Some(message)) => self.answer(message, at),
                Ok(None) => false,
                Err(error) => error.kind() == io::ErrorKind::WouldBlock,
            };
            if goes_on {
                at += 1;
            } else {
                self.connections.remove(at);
            }
        }
    }

    fn max_connections(&self) -> usize {
        (self.max_descriptors / 4).clamp(1, MAX_CONNECTIONS)
    }

    /// Whether there are descriptors for so many more files, with those that others may hand over.
    /// Launches that connect later take a quarter at most, and processes that are watched the last
    /// one.
    fn has_room(&self, files: usize) -> bool {
        let held = self.leases.iter().map(|lease| lease.files.len());
        let connected = self.connections.iter();
        let connected = connected.map(|connection| 1 + connection.reserved);
        let used = BASE_DESCRIPTORS + held.chain(connected).sum::<usize>();
        used + files <= self.max_descriptors / 2
    }

    /// Answers the launch of the connection at this place; whether the connection is to go on.
    fn answer(&mut self, message: Message, place: usize) -> bool {
        let now = proc::since_boot();
        let shell = self.shell.as_ref();
        match message {
            Message::Asks(asks) => {
                // What has ended already must not stand in the way. One look sees that a COMMAND
                // has ended, and the next ones that it has left nothing behind.
                for look in 0..SETTLING_LOOKS {
                    self.update(proc::since_boot());
                    if !self.leases.iter().any(Lease::is_settling) {
                        break;
                    }
                    if look > 0 {
                        std::thread::sleep(SETTLING_PAUSE);
                    }
                }
                let shell = self.shell.as_ref();
                let is_over = |lease: &mut Lease| lease.ends_when_asked(&asks, shell, now);
                let over = take_out(&mut self.leases, is_over);
                self.end(over);
                let has_room = self.has_room(RESERVED_FILES);
                self.connections[place].reserved = if has_room { RESERVED_FILES } else { 0 };
                self.reply(place, if has_room { "" } else { link::FULL });
            }
            Message::Keep(lease) => {
                let reserved = self.connections[place].reserved;
                let more = lease.files.len().saturating_sub(reserved);
                if more > 0 && !self.has_room(more) {
                    // The launch keeps it otherwise.
                    return false;
                }
                // The launch is to go on. Who holds the lease may be told after that.
                self.reply(place, "");
                self.accept_lease(*lease);
            }
            Message::Inside(chain) => {
                let mut around = self
                    .leases
                    .iter()
                    .filter(|lease| lease.is_around(&chain, shell));
                // The last one is what the variables are from.
                let inside = around.next_back().map(|lease| lease.inside().to_string());
                self.reply(place, &inside.unwrap_or_default());
            }
            Message::Release => {
                let is_shells = |lease: &mut Lease| !matches!(lease.purpose, Purpose::Command(_));
                let over = take_out(&mut self.leases, is_shells);
                let count = over.len();
                self.end(over);
                self.reply(place, &count.to_string());
            }
        }
        true
    }

    fn reply(&self, place: usize, answer: &str) {
        link::reply(&self.connections[place].socket, answer);
    }

    fn publish(&self, lease: &Lease) {
        let wall = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let (kind, process) = match &lease.purpose {
            Purpose::Command(id) => (ClaimKind::Command, Some(*id)),
            Purpose::Shell(_) => (ClaimKind::Shell, self.shell.as_ref().map(|shell| shell.id)),
            Purpose::Prefix(_) | Purpose::Ids => {
                (ClaimKind::Lease, self.shell.as_ref().map(|shell| shell.id))
            }
        };
        let left = lease.until.saturating_sub(proc::since_boot());
        let until = wall.saturating_add(left).as_secs();
        let holder = Holder {
            kind,
            process: process.filter(|process| process.start > 0),
            keeper: std::process::id(),
            namespace: self.namespace,
            since: wall.as_secs(),
            until: matches!(lease.purpose, Purpose::Ids).then_some(until),
            level: lease.ancestry.level(),
            holding: lease.holding.clone(),
            devices: lease.devices.clone(),
            version: Holder::own_version(),
        };
        // It is only for show.
        let _ = holder.publish(&self.directory, lease.token);
    }

    /// Tells in the list of processes what this one is for.
    fn describe(&self) {
        let labels: Vec<&str> = self.leases.iter().map(|lease| &*lease.label).collect();
        let shell = self
            .shell
            .as_ref()
            .and_then(|shell| proc::Stat::read(shell.id.pid));
        let command = self.leases.iter().find_map(|lease| match &lease.purpose {
            Purpose::Command(id) => Some(format!("{} {}", lease.program, id.pid)),
            _ => None,
        });
        let whom = shell.map(|shell| format!("{} {}", shell.comm, shell.id.pid));
        let whom = command.or(whom).unwrap_or_else(|| "a shell".into());
        let what = if labels.is_empty() {
            "nothing".into()
        } else {
            labels.join(", ")
        };
        title::set(&format!("autocvd: {what} for {whom}"));
    }
}

/// What a launch made for `ancestry` with this token and these devices is to those inside it.
pub(super) fn inside(
    ancestry: &Ancestry,
    token: Token,
    devices: &[String],
    holding: &Holding,
) -> Ancestry {
    ancestry.with(Ancestor {
        token: Some(token),
        devices: devices.to_vec(),
        holding: holding.clone(),
    })
}

/// Takes those out of `leases` that are `over`.
fn take_out(leases: &mut Vec<Lease>, over: impl Fn(&mut Lease) -> bool) -> Vec<Lease> {
    let all = std::mem::take(leases);
    let (out, kept) = all
        .into_iter()
        .map(|mut lease| (over(&mut lease), lease))
        .partition::<Vec<_>, _>(|(over, _)| *over);
    leases.extend(kept.into_iter().map(|(_, lease)| lease));
    out.into_iter().map(|(_, lease)| lease).collect()
}

/// Closes stdin, stdout and stderr, and then all descriptors but these.
fn close_all_but(mut kept: Vec<RawFd>) {
    for standard in 0..=2 {
        // SAFETY: the launch's use of them ended with the fork.
        unsafe { libc::close(standard) };
    }
    // Whatever is opened next must not take their numbers.
    let flags = OFlags::RDWR;
    for _ in 0..=2 {
        if let Ok(null) = rustix::fs::open("/dev/null", flags, Mode::empty()) {
            std::mem::forget(null);
        }
    }
    kept.sort_unstable();
    let mut next = 3;
    for descriptor in kept.into_iter().filter(|descriptor| *descriptor > 2) {
        close_range(next, descriptor - 1);
        next = descriptor + 1;
    }
    close_range(next, RawFd::MAX);
}

fn close_range(first: RawFd, last: RawFd) {
    if first > last {
        return;
    }
    // SAFETY: nothing in this process uses what it closes.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    if closed != 0 {
        // Before Linux 5.9.
        for descriptor in first..=last.min(4096) {
            // SAFETY: as above.
            unsafe { libc::close(descriptor) };
        }
    }
}

/// How many descriptors it may have: as many as its user lets it, for all leases of the shell need
/// some.
fn raise_descriptor_limit() -> usize {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // It cannot fail where the limit is not raised beyond the maximum.
    let _ = setrlimit(Resource::Nofile, limit);
    descriptor_limit()
}

fn descriptor_limit() -> usize {
    let limit = getrlimit(Resource::Nofile).current;
    limit.map_or(usize::MAX, |limit| {
        usize::try_from(limit).unwrap_or(usize::MAX)
    })
}

/// Leaves the terminal, the working directory and all signals of the launch.
fn detach() {
    let _ = rustix::process::setsid();
    let _ = rustix::process::chdir("/");
    let ignored = [
        libc::SIGHUP,
        libc::SIGINT,
        libc::SIGQUIT,
        libc::SIGPIPE,
        libc::SIGXFSZ,
        libc::SIGTSTP,
        libc::SIGTTIN,
        libc::SIGTTOU,
        libc::SIGALRM,
    ];
    for signal in 1..=libc::SIGRTMAX() {
        let action = if ignored.contains(&signal) {
            libc::SIG_IGN
        } else {
            libc::SIG_DFL
        };
        // SAFETY: no handler of the launch runs any more, and none is installed.
        unsafe { libc::signal(signal, action) };
    }
    // SAFETY: the set is plain memory that sigemptyset fills.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// The claim that surrounds the process `from` as a program of a shell's lease: the judges of the
/// shells that it descends from are asked, the nearest first.
pub(super) fn ancestry_of_lease(
    from: u32,
    namespace: Option<u64>,
    directory: &Directory,
) -> Option<Ancestry> {
    let namespace = namespace?;
    let mut chain: Vec<ProcessId> = Vec::new();
    let mut next = from;
    while next > 0 && chain.len() < 64 {
        let stat = proc::Stat::read(next)?;
        chain.push(stat.id);
        // A shell that has become the program is inside its own lease.
        if let Some(ancestry) = link::ask_inside(
            Address {
                shell: stat.id,
                namespace,
                directory,
            },
            &chain,
        ) {
            return Some(ancestry);
        }
        next = stat.parent;
    }
    None
}
