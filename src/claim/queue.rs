//! The queue: of the requests that a freed device satisfies, the longest-waiting one gets it.
//!
//! A position is a pair of files in `queue/` whose name sorts by age: a symbolic link that leads
//! nowhere and says for what its owner waits, and a socket by which others tell it to look again.
//! The socket is bound as long as its process lives, which the kernel tells every sender, in
//! whatever namespace. A message has no content; more than a few of them are dropped.
//!
//! # Who is woken
//! A waiter that stands behind [`LOOKOUTS`] others which would take whatever it would take need not
//! watch any device: it sleeps until one of them leaves. Of each other user one of these counts.
//! Who leaves calls those for whom that makes
//! a difference, and for one that is killed the closest one behind it watches: so each chain of
//! waiters ends in one that watches the devices itself.

use super::cleanup;
use super::directory::Directory;
use crate::policy::{LOOKOUTS, PATIENCE};
use crate::proc::{self, ProcessId, Stat};
use rustix::fs::{FileType, Mode, OFlags, inotify};
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use std::cell::OnceCell;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::str::FromStr;
use std::time::{Duration, SystemTime};

pub(super) const DIRECTORY: &str = "queue";
const SOCKET: &str = ".socket";
/// How long a launch may take from its socket to its position.
const TAKING_A_POSITION: Duration = Duration::from_secs(60);
/// Of one user so many positions count: more can only be meant to slow down others.
const POSITIONS_PER_USER: usize = 1024;
/// A launch that does not wait looks at so many of those who have lost patience.
const MAX_GATHERERS: usize = 64;
/// A record of a request for more devices is nobody's.
const MAX_GPUS: usize = 4096;

/// For what a request waits.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Demand {
    /// How many devices.
    pub num_gpus: usize,
    /// How much free memory each needs, in bytes.
    pub min_free_memory: Option<u64>,
    /// How many bytes of each, where a share is enough.
    pub share: Option<u64>,
    /// How many bytes idle processes may hold on each.
    pub tolerate: Option<u64>,
    /// The keys of the devices it may have.
    pub devices: Vec<String>,
    /// The shell for which it asks, where that is not for its own process.
    pub shell: Option<ProcessId>,
    /// After which time it gathers.
    pub patience: Duration,
    /// How many devices its user may hold by claims.
    pub max_per_user: Option<usize>,
}

/// A request that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Waiter {
    /// The name of its position.
    pub name: String,
    /// How many devices it waits for.
    pub num_gpus: usize,
    /// How much free memory each needs, in bytes.
    pub min_free_memory: Option<u64>,
    /// How many bytes of each, where a share is enough.
    pub share: Option<u64>,
    /// How many bytes idle processes may hold on each.
    pub tolerate: Option<u64>,
    /// The user whose request it is.
    pub uid: u32,
    /// The process that waits, where that lives in this process's PID namespace.
    pub process: Option<ProcessId>,
    /// The shell for which it asks, where that is not for its own process.
    shell: Option<ProcessId>,
    /// After which time it gathers.
    patience: Duration,
    /// How many devices its user may hold by claims.
    pub max_per_user: Option<usize>,
    /// The innermost claim that it is inside of.
    inside: String,
    /// The PID namespace that it says it lives in.
    namespace: Option<u64>,
    devices: Vec<u32>,
}

impl Waiter {
    /// Whether it would take whatever frees `other` from waiting, so that `other` need not look for
    /// it while this one can act. Each must see the other's process.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        let sees = self.namespace.is_some() && self.namespace == other.namespace;
        let is_as_small = self.num_gpus <= other.num_gpus
            && self.min_free_memory.unwrap_or(0) <= other.min_free_memory.unwrap_or(0)
            && self.tolerate >= other.tolerate;
        let share = match (self.share, other.share) {
            (None, None) => true,
            (Some(one), Some(other)) => one <= other,
            _ => false,
        };
        // One user may be at the limit while another one is not.
        let is_unlimited = self.max_per_user.is_none() || self.uid == other.uid;
        let has_all = || other.devices.iter().all(|hash| self.devices.contains(hash));
        sees && self.is_beside(other) && is_as_small && share && is_unlimited && has_all()
    }

    /// The time since boot at which the request came.
    pub(crate) fn enqueued_at(&self) -> Option<Duration> {
        let nanoseconds = self.name.split_once('-')?.0.parse().ok()?;
        Some(Duration::from_nanos(nanoseconds))
    }

    /// The command that waits, or the shell's that asks; `None` where /proc hides it.
    pub(crate) fn command(&self) -> Option<String> {
        let is_users = |id: &ProcessId| id.is_alive() && proc::owner(id.pid) == Some(self.uid);
        match self.shell.filter(is_users) {
            Some(shell) => proc::command(shell.pid),
            None => proc::launched_command(self.process?.pid),
        }
    }

    /// Whether it has waited for so long that it gathers; `now` is the time since boot.
    pub(crate) fn has_lost_patience(&self, now: Duration) -> bool {
        self.enqueued_at()
            .and_then(|enqueued_at| enqueued_at.checked_add(self.patience))
            .is_some_and(|end| end <= now)
    }

    /// Whether those who [cover](Self::covers) it are enough to sleep behind them. Of another user
    /// one counts: who publishes requests that never take anything keeps nobody else asleep.
    pub(crate) fn may_sleep_behind<'a>(&self, covers: impl Iterator<Item = &'a Self>) -> bool {
        let mut strangers = Vec::new();
        let counts = covers.filter(|ahead| {
            let is_counted = ahead.uid == self.uid || !strangers.contains(&ahead.uid);
            strangers.extend(Some(ahead.uid).filter(|_| is_counted));
            is_counted
        });
        counts.take(LOOKOUTS).count() == LOOKOUTS
    }

    /// Whether it is made inside a claim.
    pub(crate) fn is_nested(&self) -> bool {
        !self.inside.is_empty()
    }

    /// Whether both requests are made inside the same claim, or inside none.
    pub(crate) fn is_beside(&self, other: &Self) -> bool {
        self.inside == other.inside
    }
    /// Whether it would take the device of this key.
    pub(crate) fn wants(&self, key: &str) -> bool {
        self.devices.contains(&hash(key))
    }
}

/// A position in the queue. It is given up when dropped.
#[must_use = "the position is given up when this is dropped"]
pub(crate) struct Ticket {
    waiter: Waiter,
    queue: Queue,
    socket: OwnedFd,
}

impl Ticket {
    pub(super) fn take(
        directory: &Directory,
        namespace: Option<u64>,
        inside: Option<String>,
        enqueued_at: Duration,
        demand: &Demand,
    ) -> io::Result<Self> {
        let directory = directory.make_inner(DIRECTORY)?;
        let name = name(enqueued_at);
        let socket_name = format!("{name}{SOCKET}");
        let socket = datagram_socket()?;
        let address = format!(
            "/proc/self/fd/{}/{socket_name}",
            directory.descriptor().as_raw_fd()
        );
        rustix::net::bind(&socket, &SocketAddrUnix::new(address)?)?;
        cleanup::set(&directory, [&name, &socket_name]);
        let text = describe(inside, demand);
        let uid = rustix::process::geteuid().as_raw();
        let waiter = parse(&text, name, uid, namespace)
            .ok_or_else(|| io::Error::other("nobody waits for so many GPUs"))?;
        let ticket = Self {
            waiter,
            queue: Queue {
                directory,
                namespace,
            },
            socket,
        };
        // The umask took its share. Nobody but this user or the directory's owner can have put
        // another file there since.
        let mode = Mode::from_raw_mode(0o666);
        let flags = rustix::fs::AtFlags::empty();
        let Queue { directory, .. } = &ticket.queue;
        rustix::fs::chmodat(directory.descriptor(), &socket_name, mode, flags)?;
        directory.publish(&ticket.waiter.name, &text)?;
        Ok(ticket)
    }

    /// What becomes readable when this waiter is called to look again.
    pub(crate) fn calls(&self) -> io::Result<OwnedFd> {
        self.socket.try_clone()
    }

    /// What becomes readable when a waiter leaves the queue: an inotify descriptor.
    pub(crate) fn departures(&self) -> io::Result<OwnedFd> {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let departures = inotify::init(flags)?;
        let directory = self.queue.directory.descriptor().as_raw_fd();
        let path = format!("/proc/self/fd/{directory}");
        inotify::add_watch(&departures, path, inotify::WatchFlags::DELETE)?;
        Ok(departures)
    }

    /// The request, as others see it.
    pub(crate) fn waiter(&self) -> &Waiter {
        &self.waiter
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        cleanup::clear();
        let Self { waiter, queue, .. } = self;
        queue.directory.remove(&waiter.name);
        queue.directory.remove(&format!("{}{SOCKET}", waiter.name));
        queue.call_successors(waiter);
    }
}

fn datagram_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::DGRAM,
        flags,
        None,
    )?)
}

/// Sorts by age.
fn name(enqueued_at: Duration) -> String {
    format!("{:020}-{}", enqueued_at.as_nanos(), std::process::id())
}

fn is_position(name: &str) -> bool {
    !name.ends_with(SOCKET)
}

fn describe(inside: Option<String>, demand: &Demand) -> String {
    let mut text = format!("num_gpus={}", demand.num_gpus);
    let mut add = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            text += &format!(" {name}={value}");
        }
    };
    let process = ProcessId::own().zip(proc::pid_namespace());
    add("process", process.map(|(own, _)| own.to_string()));
    add("namespace", process.map(|(_, id)| id.to_string()));
    add("shell", demand.shell.map(|shell| shell.to_string()));
    add(
        "min_free_memory",
        demand.min_free_memory.map(|bytes| bytes.to_string()),
    );
    add("share", demand.share.map(|bytes| bytes.to_string()));
    add("tolerate", demand.tolerate.map(|bytes| bytes.to_string()));
    let patience = u64::try_from(demand.patience.as_millis()).unwrap_or(u64::MAX);
    add("patience", Some(patience.to_string()));
    add(
        "max_per_user",
        demand.max_per_user.map(|most| most.to_string()),
    );
    add("inside", inside);
    let devices: Vec<String> = demand
        .devices
        .iter()
        .map(|key| format!("{:x}", hash(key)))
        .collect();
    add("devices", Some(devices.join(",")));
    text
}

/// A short name for a key. A device that has the same one by chance costs a needless wake-up.
fn hash(key: &str) -> u32 {
    key.bytes().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

/// Those inside the same claim who came before `enqueued_at` and can act, the longest-waiting
/// first.
pub(super) fn ahead(
    directory: &Directory,
    enqueued_at: Duration,
    namespace: Option<u64>,
    inside: Option<&str>,
) -> Vec<Waiter> {
    let own = name(enqueued_at);
    Queue::open(directory, namespace).map_or_else(Vec::new, |queue| {
        let ahead = queue.waiters(|name| *name < own);
        ahead
            .filter(|waiter| waiter.inside == inside.unwrap_or_default())
            .collect()
    })
}

/// As [`ahead`], but those alone who have lost patience, and the first of them only.
pub(super) fn impatient_ahead(
    directory: &Directory,
    enqueued_at: Duration,
    namespace: Option<u64>,
    inside: Option<&str>,
) -> Vec<Waiter> {
    let own = name(enqueued_at);
    let now = proc::since_boot();
    Queue::open(directory, namespace).map_or_else(Vec::new, |queue| {
        let read = queue.read(|name| *name < own);
        let ahead = read.filter(|waiter| {
            waiter.has_lost_patience(now) && waiter.inside == inside.unwrap_or_default()
        });
        ahead
            .filter(|waiter| can_act(&queue.directory, waiter))
            .take(MAX_GATHERERS)
            .collect()
    })
}

/// All who can act, the longest-waiting first.
pub(super) fn all(directory: &Directory, namespace: Option<u64>) -> Vec<Waiter> {
    Queue::open(directory, namespace)
        .map_or_else(Vec::new, |queue| queue.waiters(|_| true).collect())
}

/// Calls those whom it concerns that these devices may be free.
pub(super) fn notify(directory: &Directory, devices: &[String], namespace: Option<u64>) {
    let Some(queue) = Queue::open(directory, namespace) else {
        return;
    };
    let hashes: Vec<u32> = devices.iter().map(|key| hash(key)).collect();
    queue.call_lookouts(&hashes, |_| true);
}

/// Tells a waiter to look again.
pub(super) fn call_waiter(directory: &Directory, waiter: &Waiter) {
    if let Ok(queue) = directory.inner(DIRECTORY) {
        call(&queue, &waiter.name);
    }
}

/// The positions of all who wait.
struct Queue {
    directory: Directory,
    /// The PID namespace of this process.
    namespace: Option<u64>,
}

impl Queue {
    /// `None` where no launch has ever waited.
    fn open(directory: &Directory, namespace: Option<u64>) -> Option<Self> {
        let directory = directory.inner(DIRECTORY).ok()?;
        Some(Self {
            directory,
            namespace,
        })
    }

    /// Calls those who may want one of these devices, but none who stands behind enough others that
    /// are called and would take whatever it would take.
    fn call_lookouts(&self, devices: &[u32], is_behind: impl Fn(&String) -> bool) {
        let mut called: Vec<Waiter> = Vec::new();
        for waiter in self.read(is_behind) {
            let wants = devices.iter().any(|hash| waiter.devices.contains(hash));
            let ahead = called.iter().filter(|ahead| ahead.covers(&waiter));
            // Whether a process lives is asked last: it takes longest.
            if wants && !waiter.may_sleep_behind(ahead) && can_act(&self.directory, &waiter) {
                call(&self.directory, &waiter.name);
                called.push(waiter);
            }
        }
    }

    /// Calls those for whom it makes a difference that this one has left: those who slept behind it
    /// and now have to watch themselves or behind another one, and where things were kept for it
    /// those who may want them.
    fn call_successors(&self, left: &Waiter) {
        if left.has_lost_patience(proc::since_boot()) {
            return self.call_lookouts(&left.devices, |name| *name > left.name);
        }
        let mut ahead: Vec<(Waiter, OnceCell<bool>)> = Vec::new();
        for waiter in self.read(|_| true) {
            if waiter.name > left.name && left.covers(&waiter) {
                let covers = || ahead.iter().filter(|(ahead, _)| ahead.covers(&waiter));
                let is_able = |(ahead, known): &&(Waiter, OnceCell<bool>)| {
                    *known.get_or_init(|| can_act(&self.directory, ahead))
                };
                // It may not know yet that some of them are stopped.
                let with_left = covers().map(|(ahead, _)| ahead).chain([left]);
                let slept = waiter.may_sleep_behind(with_left);
                let last = covers().next_back();
                let was_closest = last.is_none_or(|(last, _)| last.name < left.name);
                let able = || covers().filter(is_able).map(|(ahead, _)| ahead);
                let is_to_watch = || !waiter.may_sleep_behind(able());
                if slept && (was_closest || is_to_watch()) && can_act(&self.directory, &waiter) {
                    call(&self.directory, &waiter.name);
                }
            }
            ahead.push((waiter, OnceCell::new()));
        }
    }

    /// Those of these names who can act, in their order; each is read when it is asked for.
    fn waiters(&self, is_wanted: impl Fn(&String) -> bool) -> impl Iterator<Item = Waiter> + '_ {
        let read = self.read(is_wanted);
        read.filter(|waiter| can_act(&self.directory, waiter))
    }

    /// Removes old sockets of launches that were killed before they took their position. In
    /// `names`, which are sorted, a position stands before its socket.
    fn sweep(&self, names: &[String]) {
        let mut earlier = "";
        for name in names {
            let is_orphan = name
                .strip_suffix(SOCKET)
                .is_some_and(|position| position != earlier);
            earlier = name;
            let Some(stat) = is_orphan.then(|| self.directory.stat(name)).flatten() else {
                continue;
            };
            let made = SystemTime::UNIX_EPOCH + Duration::from_secs(stat.st_mtime.unsigned_abs());
            if made.elapsed().is_ok_and(|age| age > TAKING_A_POSITION) {
                self.directory.remove_own(name, stat.st_uid);
            }
        }
    }

    /// The records of these names, whether their processes live or not.
    fn read(&self, is_wanted: impl Fn(&String) -> bool) -> impl Iterator<Item = Waiter> + '_ {
        let mut names = self.directory.names();
        names.sort_unstable();
        self.sweep(&names);
        names.retain(|name| is_position(name) && is_wanted(name));
        let mut counts: HashMap<u32, usize> = HashMap::new();
        names.into_iter().filter_map(move |name| {
            let (owner, text) = self.directory.published(&name)?;
            let count = counts.entry(owner).or_default();
            *count += 1;
            if *count > POSITIONS_PER_USER {
                return None;
            }
            parse(&text, name, owner, self.namespace)
        })
    }
}

fn field<'a>(text: &'a str, wanted: &str) -> Option<&'a str> {
    text.split(' ')
        .find_map(|field| field.strip_prefix(wanted)?.strip_prefix('='))
}

pub(super) fn parse(
    text: &str,
    name: String,
    uid: u32,
    own_namespace: Option<u64>,
) -> Option<Waiter> {
    fn value<T: FromStr>(text: &str, name: &str) -> Option<T> {
        field(text, name)?.parse().ok()
    }
    let is_here = own_namespace.is_some() && value(text, "namespace") == own_namespace;
    let process = |name| value(text, name).filter(|_: &ProcessId| is_here);
    let devices = field(text, "devices")?.split(',');
    let num_gpus = value(text, "num_gpus")?;
    let waiter = Waiter {
        name,
        num_gpus,
        min_free_memory: value(text, "min_free_memory"),
        share: value(text, "share"),
        tolerate: value(text, "tolerate"),
        uid,
        process: process("process"),
        shell: process("shell"),
        patience: value(text, "patience").map_or(PATIENCE, Duration::from_millis),
        max_per_user: value(text, "max_per_user"),
        inside: field(text, "inside").unwrap_or_default().to_owned(),
        namespace: value(text, "namespace"),
        devices: devices
            .filter_map(|hash| u32::from_str_radix(hash, 16).ok())
            .collect(),
    };
    (1..=MAX_GPUS).contains(&num_gpus).then_some(waiter)
}

/// Whether the position is one of a process that waits and is not stopped. One that has ended is
/// cleared away.
fn can_act(queue: &Directory, waiter: &Waiter) -> bool {
    let Waiter { name, uid, .. } = waiter;
    if let Some(process) = waiter.process {
        if let Some(stat) = Stat::read(process.pid) {
            let is_owners =
                stat.id == process && stat.runs() && proc::owner(process.pid) == Some(*uid);
            let start = u128::from(process.start) * 1_000_000_000
                / u128::from(rustix::param::clock_ticks_per_second());
            let came_alive = waiter
                .enqueued_at()
                .is_some_and(|enqueued_at| start <= enqueued_at.as_nanos());
            if is_owners && came_alive {
                return !stat.is_stopped();
            }
            discard(queue, name, *uid);
            return false;
        }
        if !proc::exists(process.pid) {
            discard(queue, name, *uid);
            return false;
        }
    }
    // Out of sight: its socket tells whether it lives.
    let is_bound = connect(queue, name, *uid).is_some();
    if !is_bound {
        discard(queue, name, *uid);
    }
    is_bound
}

fn discard(queue: &Directory, name: &str, owner: u32) {
    queue.remove_own(name, owner);
    let socket = format!("{name}{SOCKET}");
    if let Some(stat) = queue.stat(&socket) {
        queue.remove_own(&socket, stat.st_uid);
    }
}

/// The address of a waiter's socket: of that file itself, whatever takes its name meanwhile.
fn address(queue: &Directory, name: &str) -> Option<(OwnedFd, SocketAddrUnix, u32)> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let socket = format!("{name}{SOCKET}");
    let file = rustix::fs::openat(queue.descriptor(), socket, flags, Mode::empty()).ok()?;
    let stat = rustix::fs::fstat(&file).ok()?;
    let is_socket = FileType::from_raw_mode(stat.st_mode) == FileType::Socket;
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()?;
    is_socket.then_some((file, address, stat.st_uid))
}

fn connect(queue: &Directory, name: &str, owner: u32) -> Option<()> {
    let (_file, address, socket_owner) = address(queue, name)?;
    let socket = datagram_socket().ok()?;
    (socket_owner == owner).then_some(())?;
    rustix::net::connect(&socket, &address).ok()
}

fn call(queue: &Directory, name: &str) {
    let Some((_file, address, _)) = address(queue, name) else {
        return;
    };
    let Ok(socket) = datagram_socket() else {
        return;
    };
    // It may be gone, or have calls enough: neither matters.
    let _ = rustix::net::sendto(
        &socket,
        b"",
        SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
        &address,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demand() -> Demand {
        let devices = vec!["GPU-1".into(), "GPU-2".into()];
        Demand {
            num_gpus: 2,
            min_free_memory: Some(3),
            share: Some(5),
            tolerate: Some(7),
            devices,
            shell: None,
            patience: Duration::from_millis(1500),
            max_per_user: Some(9),
        }
    }

    #[test]
    fn a_waiter_is_read_with_what_it_waits_for_and_can_be_called() {
        let place = tempfile::tempdir().expect("a directory");
        let directory = Directory::open(&place.path().join("claims")).expect("our own");
        let now = proc::since_boot();
        let namespace = proc::pid_namespace();
        let ticket = Ticket::take(&directory, namespace, None, now, &demand()).expect("a position");
        let later = now + Duration::from_secs(1);
        for namespace in [namespace, None] {
            let found = ahead(&directory, later, namespace, None);
            assert_eq!(found.len(), 1);
            assert_eq!((found[0].num_gpus, found[0].min_free_memory), (2, Some(3)));
            assert_eq!((found[0].share, found[0].tolerate), (Some(5), Some(7)));
            assert_eq!(found[0].enqueued_at(), Some(now));
            assert_eq!(found[0].max_per_user, Some(9));
            assert!(!found[0].has_lost_patience(later));
            assert!(found[0].has_lost_patience(later + Duration::from_millis(500)));
            assert!(found[0].wants("GPU-1") && !found[0].wants("GPU-3"));
            assert!(ahead(&directory, now, namespace, None).is_empty());
            assert!(ahead(&directory, later, namespace, Some("x")).is_empty());
        }
        let calls = ticket.calls().expect("a descriptor");
        let mut buffer = [0; 8];
        let heard = |buffer: &mut [u8; 8]| {
            rustix::net::recv(&calls, buffer, rustix::net::RecvFlags::DONTWAIT).is_ok()
        };
        notify(&directory, &["GPU-3".into()], namespace);
        assert!(!heard(&mut buffer));
        // More than it can hold.
        (0..1000).for_each(|_| notify(&directory, &["GPU-2".into()], namespace));
        assert!(heard(&mut buffer));
        drop(ticket);
        assert!(ahead(&directory, later, namespace, None).is_empty());
        assert_eq!(
            directory.inner(DIRECTORY).expect("made").names(),
            [] as [&str; 0]
        );
    }

    #[test]
    fn a_waiter_covers_those_alone_that_would_take_no_more_than_it() {
        let read = |text: &str| parse(text, "1-1".into(), 7, Some(5)).expect("well formed");
        let base = "num_gpus=2 process=9:9 namespace=5 min_free_memory=40 devices=1,2,3";
        let one = read(base);
        let covered = [
            base.to_owned(),
            base.replace("num_gpus=2", "num_gpus=3"),
            base.replace("=40", "=41"),
            base.replace("1,2,3", "3,1"),
        ];
        for text in covered {
            assert!(one.covers(&read(&text)), "{text}");
        }
        let others = [
            base.replace("num_gpus=2", "num_gpus=1"),
            base.replace("min_free_memory=40 ", ""),
            base.replace("1,2,3", "1,4"),
            base.replace("namespace=5", "namespace=6"),
            base.replace("namespace=5", ""),
            format!("inside=x {base}"),
            format!("share=1 {base}"),
            format!("tolerate=1 {base}"),
        ];
        for text in others {
            assert!(!one.covers(&read(&text)), "{text}");
        }
        let share = |bytes: u64| read(&format!("share={bytes} {base}"));
        assert!(share(5).covers(&share(5)) && share(5).covers(&share(6)));
        assert!(!share(5).covers(&share(4)) && !share(5).covers(&one));
        // Another user may be at the limit.
        let limited = read(&format!("max_per_user=3 {base}"));
        let strangers = parse(base, "1-1".into(), 8, Some(5)).expect("well formed");
        assert!(limited.covers(&one) && !limited.covers(&strangers));
        assert!(one.covers(&strangers));
        // However many one other user has, another waiter watches for itself.
        assert!(one.may_sleep_behind([&one; LOOKOUTS].into_iter()));
        assert!(!one.may_sleep_behind([&one; LOOKOUTS - 1].into_iter()));
        assert!(!one.may_sleep_behind([&strangers; 9].into_iter()));
        assert!(one.may_sleep_behind([&strangers, &one, &one].into_iter()));
    }

    #[test]
    fn a_position_whose_process_has_ended_or_is_anothers_is_none() {
        let place = tempfile::tempdir().expect("a directory");
        let directory = Directory::open(&place.path().join("claims")).expect("our own");
        let queue = directory.make_inner(DIRECTORY).expect("our own");
        let namespace = proc::pid_namespace().expect("tests run where /proc is");
        let own = ProcessId::own().expect("it runs");
        let later = proc::since_boot();
        let name = format!("{:020}-1", later.as_nanos());
        for process in [
            "1:7".into(),
            format!("{}:1", own.pid),
            "4194304:5".into(),
            "x".into(),
        ] {
            let text = format!("num_gpus=1 process={process} namespace={namespace} devices=1");
            queue.publish(&name, &text).expect("our own");
            let later = later + Duration::from_secs(1);
            assert!(
                ahead(&directory, later, Some(namespace), None).is_empty(),
                "{process}"
            );
            queue.remove(&name);
        }
        // Older than its process.
        let text = format!("num_gpus=1 process={own} namespace={namespace} devices=1");
        queue
            .publish("00000000000000000001-1", &text)
            .expect("our own");
        assert!(ahead(&directory, later, Some(namespace), None).is_empty());
    }
}
