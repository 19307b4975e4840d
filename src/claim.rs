//! What other launches have taken: claims, without a daemon.
//!
//! # Design
//! Each launch writes one file into a directory that all launches share. It names the GPUs and the process
//! for which they are claimed, and counts only while that process lives, so that no file ever has to be
//! cleaned up for a GPU to be free again. There are two kinds:
//!
//! - *for a process*: the one that wrote it, also after it has become another program (exec). Where its
//!   pid cannot be looked up (another PID namespace, hidepid), a POSIX record lock on the file stands for
//!   it: such a lock survives exec, is not inherited by children, and the kernel drops it when the
//!   process ends, however it ends.
//! - *a lease for a shell* (`lease.rs`): the program that the shell will start cannot hold a lock, so the
//!   lease is judged by what /proc shows of the shell and its children.
//!
//! Choosing and claiming are one step under a master lock, a `flock` on the directory itself, which the
//! kernel drops with its holder. A holder that was stopped would hold up everybody, so nobody waits for
//! it longer than `PATIENCE`. Correctness does not rest on the lock: every launch looks once more after
//! it has written its claim and steps back if it sees another one on the same GPU. Of two launches, at
//! least the one that wrote later sees the other.

mod bell;
mod directory;
mod lease;
mod own;
mod queue;
mod record;

mod cleanup;

use crate::proc::{self, ProcessId};
use directory::Directory;
pub(crate) use directory::Lock;
use lease::LeaseState;
pub(crate) use queue::{Ticket, Waiter, Wants};
use record::{Kind, Record};
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use cleanup::remove_files;
pub(crate) use lease::{Form, Requester};

/// How long to wait for the master lock before going on without it.
const PATIENCE: Duration = Duration::from_millis(300);

/// How long a claim is left alone that cannot be judged from here.
const UNCLEAR_FOR: Duration = Duration::from_secs(24 * 3600);

/// The claims of this machine, as this process sees and makes them.
pub(crate) struct ClaimStore {
    directory: Directory,
    namespace: Option<u64>,
    boot: String,
    /// The claims inside which this process was started, the outermost first: the last one's GPUs are
    /// what there is to choose from.
    around: Vec<String>,
    /// Who asks: the shell's older leases end by it.
    requester: Option<Requester>,
    /// The names that the last look at all claims found: what it judged needs no second look.
    judged: HashSet<String>,
    /// What is remembered of leases whose program was seen to run, by the claim's name.
    seen: HashMap<String, Vec<ProcessId>>,
}

/// A claim that counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claim {
    /// The name of its file, which no other claim of this boot has.
    pub name: String,
    /// The keys of the GPUs.
    pub devices: Vec<String>,
    /// The process that holds it, in its own namespace.
    pub pid: u32,
    /// The user whose file it is.
    pub uid: u32,
    /// What that process runs.
    pub command: String,
    /// Unix time in seconds.
    pub since: u64,
    /// The claim inside which it was made.
    pub parent: Option<String>,
    /// What tells when it may have ended.
    pub end: End,
    /// Whether it is a lease for a program that this process descends from, which cannot end before this process does.
    pub held_by_ancestor: bool,
}

/// What tells when a claim may have ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct End {
    /// The exit of one of these processes of this namespace; empty where they live in another one.
    pub pids: Vec<u32>,
    /// The passing of this time.
    pub at: Option<Instant>,
}

/// Whether a claim counts.
enum Liveness {
    /// It does.
    Counts(End),
    /// It does, and is a lease for a program that this process descends from.
    Around(End),
    /// It does not any more.
    Ended,
    /// Not as far as can be seen from here (another PID namespace, hidepid, another machine).
    Unclear,
}

/// For whom to claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Holder {
    /// This process, and what it becomes by exec.
    Process {
        /// The command line it will have, for others to read.
        command: String,
    },
    /// The shell that asked, for `hold` until its program is seen to run, and then as long as that.
    Shell {
        /// How long to wait for the program.
        hold: Duration,
        /// What was printed, which tells the program from the shell's other children.
        form: Form,
    },
}

/// GPUs that this process has claimed. Dropping it ends a process's claim, and leaves a lease. In a forked
/// child it is nothing: the claim is its parent's.
#[derive(Debug)]
pub struct ClaimGuard {
    /// The process that made it.
    pid: u32,
    name: String,
    path: PathBuf,
    /// The locked file; POSIX locks end when any descriptor of the file is closed.
    file: Option<File>,
}

impl ClaimStore {
    /// Opens the directory, making it if it is not there.
    ///
    /// # Errors
    /// What keeps it from being used: then there are no claims to heed or make.
    pub(crate) fn open(directory: &Path, around: Vec<String>) -> io::Result<Self> {
        Ok(Self {
            directory: Directory::open(directory)?,
            namespace: proc::pid_namespace(),
            boot: proc::boot_id(),
            around,
            requester: None,
            judged: HashSet::new(),
            seen: HashMap::new(),
        })
    }

    /// Tells that this process asks for its shell, whose older leases end now unless their programs run.
    pub(crate) fn set_requester(&mut self, requester: Requester) {
        self.requester = Some(requester);
    }

    /// Makes choosing and claiming one step: to be held from [`active`](Self::active) to [`try_claim`](Self::try_claim).
    /// `None` where it cannot be had.
    pub(crate) fn lock(&self) -> Option<Lock> {
        let deadline = Instant::now() + PATIENCE;
        let mut pause = Duration::from_micros(50);
        loop {
            if let Some(lock) = self.directory.try_lock().ok()? {
                return Some(lock);
            }
            if Instant::now() >= deadline {
                tracing::debug!("the claims' lock is held for too long; going on without it");
                return None;
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(2));
        }
    }

    /// The claims that count now, this process's own surroundings left out: what it was started inside
    /// of, and leases of its shell that end because the shell asks again.
    pub(crate) fn active(&mut self) -> Vec<Claim> {
        if let Err(error) = self.directory.refresh() {
            tracing::debug!("the directory of claims is gone: {error}");
        }
        let names = self.directory.claims();
        let others: Vec<&String> = names
            .iter()
            .filter(|name| !self.around.contains(name))
            .collect();
        let live: Vec<Claim> = others
            .into_iter()
            .filter_map(|name| self.read(name))
            .collect();
        self.judged = names.into_iter().collect();
        self.seen
            .retain(|name, _| live.iter().any(|claim| claim.name == *name));
        live
    }

    /// A claim, if it counts.
    fn read(&mut self, name: &str) -> Option<Claim> {
        if let Some(record) = self
            .directory
            .own_text(name)
            .and_then(|text| Record::parse(&text))
        {
            let end = End {
                pids: vec![record.holder.pid],
                at: None,
            };
            return Some(record.into_claim(name, rustix::process::geteuid().as_raw(), end));
        }
        let file = self.directory.open_file(name)?;
        let uid = rustix::fs::fstat(&file).ok()?.st_uid;
        let record = Record::read(&file)?;
        let life = if record.boot == self.boot {
            self.life(name, &file, &record)
        } else {
            Liveness::Unclear
        };
        let (end, around) = match life {
            Liveness::Counts(end) => (end, false),
            Liveness::Around(end) => (end, true),
            // Anybody's leftovers are harmless; to remove them only keeps the directory small.
            Liveness::Ended => {
                self.directory.remove_own(name, uid);
                // It ends because its shell, which lives on, asks again.
                if self
                    .requester
                    .as_ref()
                    .is_some_and(|requester| requester.shell() == record.holder)
                {
                    queue::call_all(&self.directory);
                }
                return None;
            }
            // Those who see more may still count it.
            Liveness::Unclear => {
                let written = file.metadata().and_then(|meta| meta.modified()).ok()?;
                if written.elapsed().is_ok_and(|age| age > UNCLEAR_FOR) {
                    self.directory.remove_own(name, uid);
                }
                return None;
            }
        };
        Some(Claim {
            held_by_ancestor: around,
            ..record.into_claim(name, uid, end)
        })
    }

    fn life(&mut self, name: &str, file: &File, record: &Record) -> Liveness {
        let same_namespace = record.namespace.is_some() && record.namespace == self.namespace;
        match &record.kind {
            Kind::Process => {
                let pids = if same_namespace {
                    vec![record.holder.pid]
                } else {
                    vec![]
                };
                let counts = Liveness::Counts(End { pids, at: None });
                match same_namespace
                    .then(|| proc::Stat::read(record.holder.pid))
                    .flatten()
                {
                    Some(stat) if stat.id == record.holder && stat.runs() => counts,
                    Some(_) => Liveness::Ended,
                    None if same_namespace && !proc::exists(record.holder.pid) => Liveness::Ended,
                    None if directory::is_locked(file) => counts,
                    // It may have closed the file, as sudo does.
                    None => Liveness::Unclear,
                }
            }
            Kind::Lease(lease) => {
                let seen = self.seen.get(name).or(lease.program.as_ref()).cloned();
                let requester = self.requester.as_ref();
                match lease::lease_state(
                    lease,
                    record.holder,
                    same_namespace,
                    seen.as_deref(),
                    requester,
                ) {
                    LeaseState::Ended => Liveness::Ended,
                    LeaseState::Unclear => Liveness::Unclear,
                    LeaseState::Waiting(end) => Liveness::Counts(end),
                    LeaseState::Running { program, end } => {
                        let around = program.iter().any(|program| proc::is_ancestor(program.pid));
                        if seen.as_ref() != Some(&program) {
                            self.remember(name, record, &program);
                            self.seen.insert(name.to_owned(), program);
                        }
                        if around {
                            Liveness::Around(end)
                        } else {
                            Liveness::Counts(end)
                        }
                    }
                }
            }
        }
    }

    /// Writes down that a lease's program was seen, for launches that come after it has ended.
    fn remember(&self, name: &str, record: &Record, program: &[ProcessId]) {
        let Kind::Lease(lease) = &record.kind else {
            return;
        };
        let lease = lease::Lease {
            program: Some(program.to_vec()),
            ..lease.clone()
        };
        let record = Record {
            kind: Kind::Lease(lease),
            ..record.clone()
        };
        // Only its owner: a file of another user's would be out of its owner's hands.
        if let Err(error) = self.directory.replace_own(name, &record.to_text()) {
            tracing::trace!("claim {name}: {error}");
        }
    }

    /// ClaimStore `devices`; `None` where another launch turns out to have claimed one of them since
    /// [`active`](Self::active) was asked.
    ///
    /// # Errors
    /// Where the claim cannot be written.
    pub(crate) fn try_claim(
        &mut self,
        devices: &[String],
        holder: &Holder,
    ) -> io::Result<Option<ClaimGuard>> {
        let name = self.directory.new_name();
        let record = self.record(devices, holder);
        let (path, file) = match self.directory.create(&name) {
            // A cleaner has removed the directory since the look.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.directory.refresh()?;
                self.directory.create(&name)?
            }
            answer => answer?,
        };
        cleanup::CLAIM.set(&path);
        let mut held = ClaimGuard {
            name: name.clone(),
            path,
            file: None,
            pid: std::process::id(),
        };
        if let Err(error) = self.write(&name, &record, file, &mut held) {
            held.release();
            self.directory.discard(&name);
            if error.kind() != io::ErrorKind::NotFound {
                return Err(error);
            }
            // This process was stopped for so long that somebody took the unfinished file for abandoned.
            self.directory.refresh()?;
            return Ok(None);
        }
        if !self.directory.is_current() {
            // Nobody looks there any more.
            self.directory.remove(&name);
            held.release();
            self.directory.refresh()?;
            return Ok(None);
        }
        let mut others = self.directory.claims();
        others.retain(|other| *other != name && !self.judged.contains(other));
        let rival = others
            .iter()
            .filter_map(|other| self.read(other))
            .find(|other| other.devices.iter().any(|device| devices.contains(device)));
        if let Some(rival) = rival {
            tracing::debug!(
                "claim {} by pid {} came first; choosing again",
                rival.name,
                rival.pid
            );
            held.release();
            return Ok(None);
        }
        Ok(Some(held))
    }

    /// Fills and publishes the file of a claim.
    fn write(
        &self,
        name: &str,
        record: &Record,
        mut file: File,
        held: &mut ClaimGuard,
    ) -> io::Result<()> {
        let text = record.to_text();
        if record.kind == Kind::Process {
            let mut file = directory::out_of_the_way(file);
            directory::lock(&file)?;
            own::remember(&held.path, &text);
            file.write_all(text.as_bytes())?;
            held.file = Some(file);
        } else {
            // It is closed before it counts: waiters watch for claims' files being closed.
            file.write_all(text.as_bytes())?;
            drop(file);
        }
        self.directory.publish(name)
    }

    fn record(&self, devices: &[String], holder: &Holder) -> Record {
        let (kind, process, command) = match holder {
            Holder::Process { command } => {
                let own = ProcessId::own().unwrap_or(ProcessId {
                    pid: std::process::id(),
                    start: 0,
                });
                let command = Some(command.clone()).filter(|command| !command.is_empty());
                (
                    Kind::Process,
                    own,
                    command
                        .or_else(|| proc::command(own.pid))
                        .unwrap_or_default(),
                )
            }
            Holder::Shell { hold, form } => {
                let requester = self.requester.as_ref();
                // Pid 0 is nobody.
                let shell = requester.map_or(ProcessId { pid: 0, start: 0 }, Requester::shell);
                let lease = lease::Lease::new(requester, *hold, form.clone());
                let command = lease.shell.clone();
                (Kind::Lease(lease), shell, command)
            }
        };
        let since = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |time| time.as_secs());
        Record {
            kind,
            devices: devices.to_vec(),
            holder: process,
            namespace: self.namespace,
            boot: self.boot.clone(),
            parent: self.around.last().cloned(),
            command,
            since,
        }
    }

    /// Whether one of these claims of other processes, which counted because it was locked, is so no more.
    pub(crate) fn has_let_go(&self, names: &[String]) -> bool {
        names.iter().any(|name| {
            self.directory
                .open_file(name)
                .is_none_or(|file| self.has_ended(&file))
        })
    }

    /// A lease is not locked: its time tells.
    fn has_ended(&self, file: &File) -> bool {
        !directory::is_locked(file)
            && Record::read(file).is_none_or(|record| record.kind == Kind::Process)
    }

    /// Takes a place in the queue of those who wait.
    ///
    /// # Errors
    /// Where the place cannot be written.
    pub(crate) fn queue(
        &mut self,
        enqueued_at: Duration,
        wants: &queue::Wants,
    ) -> io::Result<Ticket> {
        self.directory.refresh()?;
        Ticket::take(
            &self.directory,
            self.namespace,
            self.around.last().map(String::as_str),
            enqueued_at,
            wants,
        )
    }

    /// Those who wait for GPUs of the same ancestor_devices and came before `came`, the longest-waiting first.
    pub(crate) fn waiters_ahead(&self, enqueued_at: Duration) -> Vec<queue::Waiter> {
        queue::before(
            &self.directory,
            enqueued_at,
            self.namespace,
            self.around.last().map(String::as_str),
        )
    }

    /// The directory, whose files' being closed tells of claims that end out of sight: in another PID namespace.
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The claims inside which this process was started, the outermost first.
    pub(crate) fn ancestor_claims(&self) -> &[String] {
        &self.around
    }

    /// The keys of the GPUs that surround this process: those of the innermost claim that still counts.
    /// Claims that have ended are forgotten.
    pub(crate) fn ancestor_devices(&mut self) -> Option<Vec<String>> {
        while let Some(name) = self.around.last().cloned() {
            if let Some(claim) = self.read(&name) {
                return Some(claim.devices);
            }
            self.around.pop();
        }
        None
    }

    /// Heeds the claims around this process like all others.
    pub(crate) fn ignore_ancestors(&mut self) {
        self.around.clear();
    }
}

impl ClaimGuard {
    /// What others call the claim, for processes started inside it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Ends the claim.
    pub fn release(&mut self) {
        if self.pid == std::process::id() {
            let _ = std::fs::remove_file(&self.path);
            own::forget(&self.path);
            cleanup::CLAIM.clear();
            // The process lives on, so that no exit tells those who wait.
            if let Some(directory) = self
                .path
                .parent()
                .and_then(|directory| Directory::open(directory).ok())
            {
                queue::call_all(&directory);
            }
        }
        self.file = None;
    }

    /// Lets the claim live on: it is now the shell's.
    pub fn persist(mut self) {
        cleanup::CLAIM.clear();
        self.file = None;
        std::mem::forget(self);
    }

    /// Lets the claim live on through exec: the locked file stays open, out of the way of the
    /// descriptors that programs and shell scripts number themselves.
    ///
    /// # Errors
    /// Where the descriptor's flags cannot be changed.
    pub fn keep_across_exec(&self) -> io::Result<()> {
        if let Some(file) = &self.file {
            rustix::io::fcntl_setfd(file.as_fd(), rustix::io::FdFlags::empty())?;
        }
        Ok(())
    }
}

impl Drop for ClaimGuard {
    fn drop(&mut self) {
        if self.file.is_some() {
            self.release();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(directory: &tempfile::TempDir) -> ClaimStore {
        ClaimStore::open(&directory.path().join("claims"), Vec::new())
            .expect("a directory of our own")
    }

    fn hold(claims: &mut ClaimStore, device: &str) -> ClaimGuard {
        let holder = Holder::Process {
            command: "a test".into(),
        };
        claims
            .try_claim(&[device.to_owned()], &holder)
            .expect("it can be written")
            .expect("nobody else is here")
    }

    /// Whether another process sees a lock on the file: in a process of its own, for one's own locks are not told.
    fn is_locked_for_others(held: &ClaimGuard) -> bool {
        let locks = std::fs::read_to_string("/proc/locks").expect("Linux has it");
        let inode =
            std::os::unix::fs::MetadataExt::ino(&held.path.metadata().expect("it is there"));
        locks
            .lines()
            .any(|lock| lock.contains("POSIX") && lock.contains(&format!(":{inode} ")))
    }

    #[test]
    fn a_claim_that_ends_while_its_process_lives_calls_those_who_wait() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut first = claims(&directory);
        let mut held = hold(&mut first, "GPU-1");
        let ticket = claims(&directory)
            .queue(Duration::from_secs(1), &Wants::default())
            .expect("a place");
        let bell = ticket.bell().expect("it has one");
        let mut call = [0; 8];
        assert_eq!(
            rustix::io::read(&bell, &mut call),
            Err(rustix::io::Errno::AGAIN),
            "nobody has called yet"
        );
        held.release();
        assert_eq!(rustix::io::read(&bell, &mut call), Ok(1));
    }

    #[test]
    fn a_claim_stays_locked_whatever_this_process_reads_and_claims_later() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut first = claims(&directory);
        let held = hold(&mut first, "GPU-1");
        assert!(is_locked_for_others(&held));
        let mut second = claims(&directory);
        assert_eq!(second.active().len(), 1);
        let mut other = hold(&mut second, "GPU-2");
        assert!(is_locked_for_others(&held) && is_locked_for_others(&other));
        other.release();
        assert_eq!(
            second
                .active()
                .iter()
                .map(|claim| &claim.devices[0])
                .collect::<Vec<_>>(),
            ["GPU-1"]
        );
        assert!(is_locked_for_others(&held));
    }

    #[test]
    fn of_the_threads_of_a_process_only_one_gets_a_gpu() {
        let directory = tempfile::tempdir().expect("a directory");
        let held = hold(&mut claims(&directory), "GPU-1");
        let holder = Holder::Process {
            command: String::new(),
        };
        assert!(
            claims(&directory)
                .try_claim(&["GPU-1".into()], &holder)
                .expect("it can be written")
                .is_none()
        );
        drop(held);
        assert!(
            claims(&directory)
                .try_claim(&["GPU-1".into()], &holder)
                .expect("it can be written")
                .is_some()
        );
    }

    #[test]
    fn a_forked_child_does_not_end_its_parents_claim() {
        let directory = tempfile::tempdir().expect("a directory");
        let held = hold(&mut claims(&directory), "GPU-1");
        // What the child of a fork has: the same, under another pid.
        let path = held.path.clone();
        drop(ClaimGuard {
            pid: held.pid + 1,
            name: held.name.clone(),
            path: path.clone(),
            file: Some(tempfile::tempfile().expect("a file")),
        });
        assert!(path.exists() && is_locked_for_others(&held));
        drop(held);
        assert!(!path.exists());
    }
}
