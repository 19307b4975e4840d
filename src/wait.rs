//! Sleeping until something may have changed.
//!
//! # Design
//! One poll over everything that can free a GPU: the exits of processes (pidfd), a call from somebody who
//! ended a claim or found a GPU that this process came first for (the bell of its place in the queue),
//! claims that end out of sight (inotify on the directory of claims, where there are such, and a glance at their locks
//! now and then), and the time. Nothing else is done in between. Where a descriptor cannot be had (old kernels,
//! another user's process in a sandbox), the interval covers it.

use crate::policy::{IMMINENT, RECHECKS_MS};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, ReadFlags, WatchFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::collections::{HashMap, HashSet};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// More processes than this are left to the interval: descriptors are few.
const MAX_PIDFDS: usize = 256;

/// What may free a GPU.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct WakeSources {
    /// Processes whose exit may.
    pub pids: Vec<u32>,
    /// Times at which something may have ended.
    pub at: Option<Instant>,
    /// The names of claims that may end out of sight: in another PID namespace.
    pub out_of_sight: Vec<String>,
}

impl WakeSources {
    /// Adds a time; the earliest counts.
    pub(crate) fn add_time(&mut self, at: Instant) {
        self.at = Some(self.at.map_or(at, |known| known.min(at)));
    }
}

/// Why the sleep ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WakeReason {
    /// Something may have changed.
    Changed,
    /// The given time came, or a signal.
    Tick,
}

/// A sleeper and what it keeps between sleeps.
pub(crate) struct WakeLoop {
    exits: HashMap<u32, OwnedFd>,
    /// Processes that had ended before they could be watched, or that live in another namespace.
    exited: HashSet<u32>,
    /// The directory of claims.
    claims: Option<PathBuf>,
    notify: Option<OwnedFd>,
    bell: Option<OwnedFd>,
    /// What others than this process read, or nobody.
    unread: Vec<OwnedFd>,
    /// The looks that are due after an exit.
    rechecks: Vec<Instant>,
}

impl WakeLoop {
    /// A sleeper that can also watch the directory of claims, where there is one.
    pub(crate) fn new(claims: Option<&Path>) -> Self {
        let claims = claims.map(Path::to_owned);
        Self {
            exits: HashMap::new(),
            exited: HashSet::new(),
            claims,
            notify: None,
            bell: None,
            unread: Vec::new(),
            rechecks: Vec::new(),
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

    /// Forgets what woke it so far: to be called before a look, so that what happens during the look wakes it again.
    pub(crate) fn drain(&mut self) {
        self.drain_descriptors();
        let now = Instant::now();
        self.rechecks.retain(|due| *due > now);
    }

    /// Sleeps until `watch` says that something may have changed, but not beyond `until`.
    pub(crate) fn sleep(&mut self, watch: &WakeSources, until: Option<Instant>) -> WakeReason {
        self.follow(&watch.pids);
        if !watch.out_of_sight.is_empty() && self.notify.is_none() && self.claims.is_some() {
            self.notify = self.claims.take().as_deref().and_then(watch_folder);
            if self.notify.is_some() {
                // What happened before is seen by another look.
                return WakeReason::Changed;
            }
        }
        let changes = [watch.at, self.rechecks.iter().min().copied()]
            .into_iter()
            .flatten()
            .min();
        let end = [changes, until].into_iter().flatten().min();
        let limit = end.map(|end| end.saturating_duration_since(Instant::now()));
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        let pids: Vec<u32> = self.exits.keys().copied().collect();
        let mut fds: Vec<PollFd> = pids
            .iter()
            .map(|pid| PollFd::from_borrowed_fd(self.exits[pid].as_fd(), PollFlags::IN))
            .collect();
        let others = self.notify.iter().chain(&self.bell).chain(&self.unread);
        fds.extend(others.map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)));
        let woken = poll(&mut fds, limit.as_ref());
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        match woken {
            Ok(0) | Err(_) => {
                let passed = changes.is_some_and(|time| time <= Instant::now());
                return if passed {
                    WakeReason::Changed
                } else {
                    WakeReason::Tick
                };
            }
            Ok(_) => {}
        }
        for (pid, _) in pids.iter().zip(&ready).filter(|(_, ready)| **ready) {
            self.exits.remove(pid);
            self.exited.insert(*pid);
            self.look_after_exit();
        }
        let mut changed = ready[..pids.len()].iter().any(|ready| *ready);
        if ready[pids.len()..].contains(&true) {
            changed |= self.drain_descriptors();
        }
        if changed {
            WakeReason::Changed
        } else {
            WakeReason::Tick
        }
    }

    /// Whether another look is due at once: what is seen between a process's exit and the driver's taking note
    /// of it is worth no words.
    pub(crate) fn recheck_imminent(&self) -> bool {
        let soon = Instant::now() + IMMINENT;
        self.rechecks.iter().any(|due| *due <= soon)
    }

    fn look_after_exit(&mut self) {
        let now = Instant::now();
        self.rechecks = RECHECKS_MS
            .iter()
            .map(|after| now + Duration::from_millis(*after))
            .collect();
    }

    /// Watches these processes and no others.
    fn follow(&mut self, pids: &[u32]) {
        self.exits.retain(|pid, _| pids.contains(pid));
        self.exited.retain(|pid| pids.contains(pid));
        for pid in pids.iter().take(MAX_PIDFDS) {
            if self.exits.contains_key(pid) {
                continue;
            }
            let Some(process) = i32::try_from(*pid).ok().and_then(Pid::from_raw) else {
                continue;
            };
            match pidfd_open(process, PidfdFlags::empty()) {
                Ok(pidfd) if !has_exited(&pidfd) => {
                    self.exits.insert(*pid, pidfd);
                }
                // It ended since the look. Once only: a pid of another namespace is never found, and a
                // zombie that the driver still lists has ended for as long as nobody waits for it.
                Ok(_) | Err(Errno::SRCH) => {
                    if self.exited.insert(*pid) {
                        self.look_after_exit();
                    }
                }
                Err(_) => {}
            }
        }
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

fn has_exited(pidfd: &OwnedFd) -> bool {
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&now)) == Ok(1)
}

fn watch_folder(path: &Path) -> Option<OwnedFd> {
    let notify =
        inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC).ok()?;
    inotify::add_watch(&notify, path, WatchFlags::CLOSE_WRITE | WatchFlags::DELETE).ok()?;
    Some(notify)
}
