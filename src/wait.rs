//! Sleeping until something may have changed.
//!
//! # Design
//! One poll over everything that can free a GPU: the exits of processes (pidfd), descriptors that
//! others make readable, claims that end out of sight (inotify on the directory of claims, where
//! there are such), and the time. Nothing else is done in between. Where the kernel refuses a pidfd
//! (before Linux 5.3, in some sandboxes), the process is asked for once a second.

use crate::policy::EXIT_POLL_INTERVAL;
use crate::proc;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, ReadFlags, WatchFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::collections::{HashMap, HashSet};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// More processes than this are asked for once a second: descriptors are few.
const MAX_PIDFDS: usize = 256;

/// What may free a GPU.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct WakeSources {
    /// Processes whose exit may.
    pub(crate) pids: Vec<u32>,
    /// The time at which something may have ended.
    pub(crate) at: Option<Instant>,
    /// The names of claims that may end out of sight: in another PID namespace.
    pub(crate) out_of_sight: Vec<String>,
}

impl WakeSources {
    /// Adds a time; the earliest counts.
    pub(crate) fn add_time(&mut self, at: Instant) {
        self.at = Some(self.at.map_or(at, |known| known.min(at)));
    }
}

/// Why the sleep ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum WakeReason {
    /// These processes have exited.
    Exited(Vec<u32>),
    /// A descriptor became readable, or the directory of claims has changed.
    Called,
    /// The time of the sources has come.
    Time,
    /// The other given time came, or a signal.
    Tick,
}

/// What is kept between sleeps.
pub(crate) struct WakeLoop {
    exits: HashMap<u32, OwnedFd>,
    /// Processes for which the kernel gives no descriptor.
    polled: HashSet<u32>,
    /// Processes that have exited, or live in another namespace.
    exited: HashSet<u32>,
    /// The directory of claims.
    claims: Option<PathBuf>,
    notify: Option<OwnedFd>,
    bell: Option<OwnedFd>,
    /// What others than this process read, or nobody.
    unread: Vec<OwnedFd>,
}

impl WakeLoop {
    /// One that can also watch the directory of claims, where there is one.
    pub(crate) fn new(claims: Option<&Path>) -> Self {
        Self {
            exits: HashMap::new(),
            polled: HashSet::new(),
            exited: HashSet::new(),
            claims: claims.map(Path::to_owned),
            notify: None,
            bell: None,
            unread: Vec::new(),
        }
    }

    /// Also wakes when this descriptor becomes readable, and reads it.
    pub(crate) fn listen(&mut self, bell: OwnedFd) {
        self.bell = Some(bell);
    }

    /// Also wakes for as long as this descriptor is readable; it is never read.
    pub(crate) fn wake_while_readable(&mut self, descriptor: OwnedFd) {
        self.unread.push(descriptor);
    }

    /// Forgets what ended the sleeps so far: to be called before a look, so that what happens
    /// during the look ends the next sleep.
    pub(crate) fn drain(&mut self) {
        self.drain_descriptors();
    }

    /// Whether the exit of this process has been seen.
    pub(crate) fn has_exited(&self, pid: u32) -> bool {
        self.exited.contains(&pid)
    }

    /// Sleeps until `sources` say that something may have changed, but not beyond `until`.
    pub(crate) fn sleep(&mut self, sources: &WakeSources, until: Option<Instant>) -> WakeReason {
        let exited = self.follow(&sources.pids);
        if !exited.is_empty() {
            return WakeReason::Exited(exited);
        }
        if !sources.out_of_sight.is_empty() && self.notify.is_none() && self.claims.is_some() {
            self.notify = self.claims.take().as_deref().and_then(watch_directory);
            if self.notify.is_some() {
                // What happened before is seen by another look.
                return WakeReason::Called;
            }
        }
        loop {
            let ask = (!self.polled.is_empty()).then(|| Instant::now() + EXIT_POLL_INTERVAL);
            let end = [sources.at, until, ask].into_iter().flatten().min();
            if let Some(reason) = self.poll(end) {
                return reason;
            }
            let exited: Vec<u32> = self
                .polled
                .iter()
                .copied()
                .filter(|pid| !proc::exists(*pid))
                .collect();
            if !exited.is_empty() {
                self.polled.retain(|pid| !exited.contains(pid));
                self.exited.extend(&exited);
                return WakeReason::Exited(exited);
            }
            let now = Instant::now();
            let has_come = |time: Option<Instant>| time.is_some_and(|time| time <= now);
            if has_come(sources.at) {
                return WakeReason::Time;
            }
            // A signal ends the sleep too, unless it is one of those that ask for exits.
            if has_come(until) || ask.is_none_or(|ask| ask > now) {
                return WakeReason::Tick;
            }
        }
    }

    /// One poll; `None` where only time has passed or a signal has come.
    fn poll(&mut self, end: Option<Instant>) -> Option<WakeReason> {
        let limit = end.map(|end| end.saturating_duration_since(Instant::now()));
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        let pids: Vec<u32> = self.exits.keys().copied().collect();
        let others = self.notify.iter().chain(&self.bell).chain(&self.unread);
        let mut fds: Vec<PollFd> = pids
            .iter()
            .map(|pid| &self.exits[pid])
            .chain(others)
            .map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN))
            .collect();
        if !poll(&mut fds, limit.as_ref()).is_ok_and(|ready| ready > 0) {
            return None;
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        let exited = pids.iter().zip(&ready).filter(|(_, ready)| **ready);
        let exited: Vec<u32> = exited.map(|(pid, _)| *pid).collect();
        for pid in &exited {
            self.exits.remove(pid);
            self.exited.insert(*pid);
        }
        // What calls is left for the next look to read, if a process has exited too: it is then
        // read by `drain`, before that look.
        let own = ready[pids.len()..].iter().any(|ready| *ready);
        let cancelled = ready[ready.len() - self.unread.len()..].contains(&true);
        if own && (self.drain_descriptors() || cancelled) {
            return Some(WakeReason::Called);
        }
        (!exited.is_empty()).then_some(WakeReason::Exited(exited))
    }

    /// Watches these processes and no others; returns those that have exited since the last look.
    fn follow(&mut self, pids: &[u32]) -> Vec<u32> {
        self.exits.retain(|pid, _| pids.contains(pid));
        self.polled.retain(|pid| pids.contains(pid));
        self.exited.retain(|pid| pids.contains(pid));
        let mut exited = Vec::new();
        for pid in pids {
            let known = self.exits.contains_key(pid) || self.polled.contains(pid);
            if known || self.exited.contains(pid) {
                continue;
            }
            let Some(process) = i32::try_from(*pid).ok().and_then(Pid::from_raw) else {
                continue;
            };
            let pidfd = match self.exits.len() < MAX_PIDFDS {
                true => pidfd_open(process, PidfdFlags::empty()),
                false => Err(Errno::MFILE),
            };
            match pidfd {
                Ok(pidfd) if !is_readable(&pidfd) => {
                    self.exits.insert(*pid, pidfd);
                }
                // Once only: a pid of another namespace is never found, and a zombie that the
                // driver still lists has ended for as long as its parent does not reap it.
                Ok(_) | Err(Errno::SRCH) => {
                    self.exited.insert(*pid);
                    exited.push(*pid);
                }
                Err(_) => {
                    self.polled.insert(*pid);
                }
            }
        }
        exited
    }

    /// Reads what the bell and inotify have to tell; whether any of it matters.
    fn drain_descriptors(&mut self) -> bool {
        let mut matters = false;
        if let Some(bell) = &self.bell {
            while rustix::io::read(bell, &mut [0; 256]).is_ok_and(|read| read > 0) {
                matters = true;
            }
        }
        let Some(notify) = &self.notify else {
            return matters;
        };
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(notify, &mut buffer);
        while let Ok(event) = reader.next() {
            let name = event
                .file_name()
                .map(|name| name.to_bytes())
                .unwrap_or_default();
            matters |= !name.starts_with(b".") && !event.events().contains(ReadFlags::ISDIR);
        }
        matters
    }
}

fn is_readable(pidfd: &OwnedFd) -> bool {
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&now)) == Ok(1)
}

fn watch_directory(path: &Path) -> Option<OwnedFd> {
    let notify =
        inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC).ok()?;
    inotify::add_watch(&notify, path, WatchFlags::CLOSE_WRITE | WatchFlags::DELETE).ok()?;
    Some(notify)
}
