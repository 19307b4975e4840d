//! Sleeping until something may have changed.
//!
//! # Design
//! One poll over everything that can free a GPU: the exits of processes (pidfd), descriptors that
//! others make readable, claims that end out of sight (a thread that waits for their locks), and
//! the time. Nothing else is done in between. Where the kernel refuses a pidfd (before Linux 5.3,
//! in some sandboxes), the process is asked for once a second.

use crate::policy::{EXIT_POLL_INTERVAL, PLACE_PERIOD};
use crate::proc;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// More processes than this are asked for once a second: descriptors are few.
const MAX_PIDFDS: usize = 256;
/// So many calls are answered in this time: a caller without end delays no other work.
const MAX_CALLS: usize = 20;
const CALL_PERIOD: Duration = Duration::from_millis(200);

/// What may free a GPU.
#[derive(Debug, Clone, Default)]
pub(crate) struct WakeSources {
    /// Processes whose exit may.
    pub(crate) pids: Vec<u32>,
    /// The time at which something may have ended.
    pub(crate) at: Option<Instant>,
    /// What becomes readable when a claim ends that lies out of sight.
    pub(crate) events: Vec<Arc<OwnedFd>>,
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
    /// A descriptor became readable.
    Called,
    /// The time of the sources has come.
    Time,
    /// A waiter has left the queue.
    Departed,
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
    /// The socket by which others call this waiter to look again.
    calls: Option<OwnedFd>,
    /// When the first of the calls came that are counted, and how many they are.
    called: (Instant, usize),
    /// Until when no call is listened to, for too many came.
    deaf_until: Option<Instant>,
    /// What becomes readable when a waiter leaves the queue, where that is to be shown.
    departures: Option<OwnedFd>,
    /// Until when departures are left alone, for one has just been told of.
    departures_rest_until: Option<Instant>,
    /// What others than this process read, or nobody.
    unread: Vec<OwnedFd>,
}

impl WakeLoop {
    pub(crate) fn new() -> Self {
        Self {
            exits: HashMap::new(),
            polled: HashSet::new(),
            exited: HashSet::new(),
            calls: None,
            called: (Instant::now(), 0),
            deaf_until: None,
            departures: None,
            departures_rest_until: None,
            unread: Vec::new(),
        }
    }

    /// Also wakes when this inotify descriptor tells of something, at most once a [`PLACE_PERIOD`].
    pub(crate) fn follow_departures(&mut self, departures: OwnedFd) {
        self.departures = Some(departures);
    }

    /// Also wakes when a message comes to this socket.
    pub(crate) fn listen(&mut self, calls: OwnedFd) {
        self.calls = Some(calls);
    }

    /// Also wakes for as long as this descriptor is readable; it is never read.
    pub(crate) fn wake_while_readable(&mut self, descriptor: OwnedFd) {
        self.unread.push(descriptor);
    }

    /// Forgets what ended the sleeps so far: to be called before a look, so that what happens
    /// during the look ends the next sleep.
    pub(crate) fn drain(&mut self) {
        let Some(calls) = &self.calls else { return };
        let receive =
            |_: &usize| rustix::net::recv(calls, &mut [0; 1], RecvFlags::DONTWAIT).is_ok();
        let any = (0..MAX_CALLS).take_while(receive).count() > 0;
        let now = Instant::now();
        let (since, count) = self.called;
        self.called = match now.duration_since(since) < CALL_PERIOD {
            true => (since, count + usize::from(any)),
            false => (now, usize::from(any)),
        };
        if self.called.1 > MAX_CALLS {
            self.deaf_until = Some(self.called.0 + CALL_PERIOD);
        }
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
        loop {
            let ask = (!self.polled.is_empty()).then(|| Instant::now() + EXIT_POLL_INTERVAL);
            let now = Instant::now();
            self.deaf_until = self.deaf_until.filter(|until| *until > now);
            let rest = self.departures_rest_until.filter(|until| *until > now);
            self.departures_rest_until = rest;
            let ends = [sources.at, until, ask, self.deaf_until, rest];
            if let Some(reason) = self.poll(&sources.events, ends.into_iter().flatten().min()) {
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
            let only_deaf = has_come(self.deaf_until) || has_come(rest);
            if has_come(until) || !only_deaf && ask.is_none_or(|ask| ask > now) {
                return WakeReason::Tick;
            }
        }
    }

    /// One poll; `None` where only time has passed or a signal has come.
    fn poll(&mut self, events: &[Arc<OwnedFd>], end: Option<Instant>) -> Option<WakeReason> {
        let limit = end.map(|end| end.saturating_duration_since(Instant::now()));
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        let pids: Vec<u32> = self.exits.keys().copied().collect();
        let calls = self.calls.iter().filter(|_| self.deaf_until.is_none());
        let events = events.iter().map(|event| &**event);
        let departures = self.departures.iter();
        let departures = departures.filter(|_| self.departures_rest_until.is_none());
        let others = calls
            .chain(&self.unread)
            .chain(events)
            .chain(departures.clone());
        let follows = departures.count();
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
        // What calls is left for the next look to read: by `drain`, before that look.
        let (others, departed) = ready[pids.len()..].split_at(ready.len() - pids.len() - follows);
        if others.contains(&true) {
            return Some(WakeReason::Called);
        }
        if exited.is_empty() && departed.contains(&true) {
            self.read_departures();
            return Some(WakeReason::Departed);
        }
        (!exited.is_empty()).then_some(WakeReason::Exited(exited))
    }

    /// Reads what is told of departures; how many they are is counted elsewhere.
    fn read_departures(&mut self) {
        self.departures_rest_until = Instant::now().checked_add(PLACE_PERIOD);
        let Some(departures) = &self.departures else {
            return;
        };
        let mut buffer = [0; 4096];
        while rustix::io::read(departures, &mut buffer).is_ok_and(|read| read > 0) {}
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
}

fn is_readable(pidfd: &OwnedFd) -> bool {
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&now)) == Ok(1)
}
