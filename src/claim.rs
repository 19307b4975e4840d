//! What other launches have taken: claims, without a daemon.
//!
//! # Design
//! Each device has one file in a directory that all launches share, and a claim is a lock that the
//! kernel keeps on it ([`lock`]): choosing and claiming are one system call a device, the kernel
//! drops the lock however its holder ends, and no other launch has to believe anything that stands
//! in a file. Which bytes are locked says how deep the claim is nested.
//!
//! A process that claims for itself holds the lock itself ([`in_process`]). For what a shell
//! starts, and for a COMMAND that may close what it inherits, a small process of autocvd's holds
//! it: the
//! [`judge`] of that shell, which sees with its user's rights what the claim is for and when that
//! is over. What a launch is nested in, it knows by a [token](ancestry). Those who wait have a
//! [position](queue), and who holds what is published [for people](holder) to read.

mod ancestry;
mod cleanup;
mod directory;
mod failures;
mod holder;
mod in_process;
mod judge;
mod kept;
mod lock;
mod queue;
mod requester;
mod share;

use crate::fork_local::ForkLocal;
use crate::policy::TURN_PAUSE;
use crate::proc::{self, ProcessId};
pub(crate) use ancestry::Ancestor;
pub(crate) use ancestry::Ancestry;
use ancestry::Token;
pub use cleanup::remove_files;
use directory::Directory;
pub(crate) use directory::default_path;
pub(crate) use holder::ClaimKind;
use holder::Holder;
use in_process::NotInherited;
use judge::link::{Address, Attached, Question};
use judge::{Lease, Parent, Purpose};
use lock::{Mode, Range, Taken};
pub(crate) use queue::{Demand, Ticket, Waiter};
pub(crate) use requester::Requester;
use rustix::process::{Resource, getrlimit};
pub(crate) use share::{Holding, Share};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How many claims of one device are told of at most.
const MAX_TOLD: usize = 64;
/// How often a launch tries to lock granules of which others lock some at the same time.
const SHARE_ATTEMPTS: u32 = 8;
/// How often a cleaner may remove what a launch has just locked before the job runs without a
/// claim.
const MAX_REMOVALS: u32 = 8;
/// How long a device is given last of which a claim has failed.
const FAILURE_COUNTS: Duration = Duration::from_secs(10);
/// Descriptors from here on are left alone by programs and scripts that number theirs.
const HIGH_DESCRIPTOR: i32 = 200;

/// The claims that this process holds itself, so that it is not nested in one of its own.
static OWN: ForkLocal<Vec<Token>> = ForkLocal::new();

/// The judge of this process's shell has been told that the shell asks again: its leases end whose
/// programs have. It does so while this process asks the driver.
pub(crate) struct Asked {
    requester: Requester,
    of_shell: Option<Question>,
    /// A shell becomes the last launch of its script.
    of_itself: Option<Question>,
}

impl Asked {
    /// Tells the judge; `None` where /proc does not show the shell.
    pub(crate) fn tell(path: &Path, claim_for: &ClaimFor) -> Option<Self> {
        let requester = Requester::detect()?;
        let directory = Directory::find(path).ok();
        let tell = |shell: ProcessId, pid: u32| {
            let address = Address {
                shell,
                ..Address::of(&requester, directory.as_ref()?)
            };
            judge::link::tell_asks(address, pid, claim_for.form())
        };
        Some(Self {
            of_shell: tell(requester.shell, requester.requester_pid),
            of_itself: tell(requester.itself, requester.itself.pid),
            requester,
        })
    }

    /// The shell that asks.
    pub(crate) fn shell(&self) -> ProcessId {
        self.requester.shell
    }
}

/// The claims of this machine, as this process sees and makes them.
pub(crate) struct ClaimStore {
    directory: Directory,
    namespace: Option<u64>,
    /// The launches inside which this process was started.
    ancestry: Ancestry,
    /// Who asks: the shell's older leases end by it.
    requester: Option<Requester>,
    /// The judge of the shell, if it has one that answers.
    judge: Option<Attached>,
    /// Lock files that have been opened, by their device's key.
    files: HashMap<String, OwnedFd>,
    /// The highest descriptor that is kept open for the next look.
    max_descriptor: u64,
    /// Why the last look could not open the lock files of these devices.
    unclaimable: HashMap<String, String>,
    /// Why claims of these devices failed, and until when they count as unclaimable for that.
    failed: HashMap<String, (String, Instant)>,
    /// What becomes readable when a claim ends that lies out of sight.
    unlocked: HashMap<WakeHint, Arc<OwnedFd>>,
    /// How often what this process had locked was removed from where others look.
    removals: u32,
}

/// A claim that counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claim {
    /// The key of its device.
    pub device: String,
    /// What it is for; `None` where its holder has told nobody.
    pub kind: Option<ClaimKind>,
    /// What it has of the device; `None` where that is all of it.
    pub share: Option<Share>,
    /// Its token, as it stands in the environment of what it is for.
    pub token: Option<String>,
    /// The process it is for, where that lives in this process's PID namespace.
    pub process: Option<ProcessId>,
    /// Its pid.
    pub pid: Option<u32>,
    /// The user whose claim it is.
    pub uid: Option<u32>,
    /// Unix time in seconds.
    pub since: Option<u64>,
    /// Unix time in seconds at which it ends unless a program is seen.
    pub until: Option<u64>,
    /// The version of autocvd that made it, where its holder has told.
    pub version: Option<String>,
    /// Whether the process it is for has ended, so that its judge is about to let go of it.
    pub is_ending: bool,
    /// How many claims it is inside of.
    pub level: u32,
    /// What tells when it has ended.
    pub wake: WakeHint,
}

/// What tells when a claim has ended. A holder that lives on calls those who wait.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum WakeHint {
    /// The exit of this process.
    Exit(u32),
    /// Nothing but the lock itself: the holder is out of sight. The device's key, and the token.
    Unlock(String, Option<u64>),
}

/// What to claim of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// All of it.
    Whole,
    /// All of it, beside those who have claimed it already.
    Guest,
    /// A share of its memory.
    Share {
        /// How many bytes.
        bytes: u64,
        /// How many bytes the device has.
        memory: u64,
        /// Of how many bytes all shares together may be, this one included.
        limit: u64,
    },
}

/// What has been locked of a device.
enum Locked {
    Whole,
    Share(Share),
}

/// What comes of claiming devices.
pub(crate) struct Claimed {
    /// The claim; `None` where none of them could be claimed.
    pub guard: Option<ClaimGuard>,
    /// The keys of those that could not be claimed, and why.
    pub unclaimed: Vec<(String, String)>,
}

/// A device to claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// Its key.
    pub key: String,
    /// How much of it.
    pub extent: Extent,
}

/// For whom to claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ClaimFor {
    /// This process, until it ends or lets go. A forked child has no part in it.
    Process,
    /// The program that this process becomes, and what that leaves behind.
    Command {
        /// Its name.
        program: String,
    },
    /// Assignments in front of a command, printed for the shell that asked: for `hold` until a
    /// program with this value of `CUDA_VISIBLE_DEVICES` is seen, and then as long as that.
    Prefix {
        /// How long to wait for the program.
        hold: Duration,
        /// The value.
        ids: String,
    },
    /// Variables of the shell that asked, until it ends.
    Shell {
        /// How long it lasts where the shell cannot be seen.
        hold: Duration,
        /// The value of `CUDA_VISIBLE_DEVICES`.
        ids: String,
    },
    /// Ids with which the shell does what it wants.
    Ids {
        /// How long it lasts.
        hold: Duration,
    },
}

impl ClaimFor {
    /// How the judge of the shell is told of it.
    fn form(&self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Command { .. } => "command",
            Self::Prefix { .. } => "prefix",
            Self::Shell { .. } => "shell",
            Self::Ids { .. } => "ids",
        }
    }
}

/// Devices that this process has claimed. In a forked child it is nothing: the claim is its
/// parent's.
#[derive(Debug)]
#[must_use = "the claim ends when this is dropped"]
pub struct ClaimGuard {
    /// The process that made it.
    pid: u32,
    token: Token,
    ancestry: Ancestry,
    devices: Vec<String>,
    holding: Holding,
    directory: Directory,
    namespace: Option<u64>,
    requester: Option<Requester>,
    judge: Option<Attached>,
    claim_for: ClaimFor,
    files: Files,
    /// Whether it lives on when this is dropped.
    persists: bool,
}

/// The locked files, in the order of the devices.
#[derive(Debug)]
enum Files {
    OfProcess(Vec<NotInherited>),
    ToPassOn(Vec<OwnedFd>),
}

impl Files {
    fn iter(&self) -> Box<dyn Iterator<Item = &OwnedFd> + '_> {
        match self {
            Self::OfProcess(files) => Box::new(files.iter().map(NotInherited::file)),
            Self::ToPassOn(files) => Box::new(files.iter()),
        }
    }
}

impl ClaimStore {
    /// Opens the directory, making it if it is not there.
    ///
    /// # Errors
    /// What keeps it from being used: then there are no claims to respect or make.
    pub(crate) fn open(directory: &Path) -> io::Result<Self> {
        Ok(Self {
            directory: Directory::open(directory)?,
            namespace: proc::pid_namespace(),
            ancestry: Ancestry::default(),
            requester: None,
            judge: None,
            files: HashMap::new(),
            max_descriptor: getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX) / 2,
            unclaimable: HashMap::new(),
            failed: HashMap::new(),
            unlocked: HashMap::new(),
            removals: 0,
        })
    }

    /// Makes the directory safe if this process may, and says what is wrong with it otherwise. Root
    /// does so with those inside it too, which are of whoever claimed or waited first.
    pub(crate) fn secure(&self) -> Option<String> {
        if rustix::process::geteuid().is_root() {
            for name in [holder::DIRECTORY, queue::DIRECTORY] {
                self.directory.secure_inner(name);
            }
        }
        self.directory.secure()
    }

    /// Goes on as the launch of that requester, once the judges that were told have let go of what
    /// is over.
    pub(crate) fn begin(&mut self, asked: Asked) {
        self.judge = asked.of_shell.and_then(Question::attach);
        asked.of_itself.and_then(Question::attach);
        self.requester = Some(asked.requester);
    }

    /// Makes this process see the machine as the launches around it left it: those that `told`
    /// names, which its environment does, or the lease that process `from` or one of its ancestors
    /// is a program of. Returns the keys of the devices of the innermost one that still counts.
    pub(crate) fn nest(&mut self, told: Option<&Ancestry>, from: Option<u32>) -> Option<&[String]> {
        let own = OWN.lock();
        let is_other =
            |ancestor: &Ancestor| ancestor.token.is_none_or(|token| !own.contains(&token));
        let told = told.cloned().unwrap_or_default().0;
        let told = self.living(Ancestry(told.into_iter().take_while(is_other).collect()));
        drop(own);
        let lease =
            from.and_then(|from| judge::ancestry_of_lease(from, self.namespace, &self.directory));
        let lease = self.living(lease.unwrap_or_default());
        self.ancestry = if lease.level() > told.level() {
            lease
        } else {
            told
        };
        self.ancestry.devices()
    }

    /// Makes this process see the machine as the process around it left it that has claimed just
    /// these devices for itself: which of its claims a program was given, its environment may not
    /// tell. Returns whether there is such a process.
    pub(crate) fn nest_in_process(&mut self, devices: &[String]) -> bool {
        let Some(namespace) = self.namespace else {
            return false;
        };
        let (mut around, mut next) = (Vec::new(), rustix::process::getppid());
        while let Some(stat) =
            next.and_then(|pid| proc::Stat::read(pid.as_raw_pid().unsigned_abs()))
        {
            around.push(stat.id);
            let parent = i32::try_from(stat.parent).ok();
            next = parent
                .filter(|_| around.len() < 64)
                .and_then(rustix::process::Pid::from_raw);
        }
        let found = Holder::find(&self.directory, Some(namespace), &around, devices);
        let Some((process, token, holding)) = found else {
            return false;
        };
        // What the environment tells may be another claim of the same process.
        while let Some(last) = self.ancestry.0.last().and_then(|last| last.token) {
            let of_last = Holder::of(&self.directory, last).and_then(|(_, holder)| holder.process);
            if of_last != Some(process) {
                break;
            }
            self.ancestry.0.pop();
        }
        self.ancestry.0.push(Ancestor {
            token: Some(token),
            devices: devices.to_vec(),
            holding,
        });
        true
    }

    /// The launches up to the innermost one whose claim still counts, with those inside it that
    /// made none.
    fn living(&self, mut ancestry: Ancestry) -> Ancestry {
        let has_claim = |ancestor: &Ancestor| ancestor.token.is_some();
        while let Some(innermost) = ancestry.0.iter().rposition(has_claim) {
            if ancestry.0[innermost].is_alive(&self.directory) {
                break;
            }
            ancestry.0.truncate(innermost);
        }
        ancestry
    }

    /// Sees the claims around this process like all others.
    pub(crate) fn ignore_ancestors(&mut self) {
        self.ancestry = Ancestry::default();
    }

    /// The launches inside which this process was started.
    pub(crate) fn ancestry(&self) -> &Ancestry {
        &self.ancestry
    }

    /// Begins another look: the directory may have been removed and made anew meanwhile.
    pub(crate) fn refresh(&mut self) {
        if !self.directory.is_current() {
            self.files.clear();
            if let Err(error) = self.directory.refresh() {
                tracing::debug!("the directory of claims is gone: {error}");
            }
        }
    }

    /// The share of this device that the claims around this process leave to it, in bytes; `None`
    /// where they leave it all of it.
    pub(crate) fn ancestor_share(&self, key: &str) -> Option<u64> {
        self.ancestry.share(key).map(Share::bytes)
    }

    /// Whether the claims around this process leave it shares, not whole devices.
    pub(crate) fn is_inside_share(&self) -> bool {
        self.ancestry.is_share()
    }

    /// The claims that stand against one on this device. Those around this process do not.
    pub(crate) fn active(&mut self, key: &str) -> Vec<Claim> {
        let Some(file) = self.file(key) else {
            return Vec::new();
        };
        let range = Range::obstacles(self.ancestry.level());
        let claims = match lock::conflict(&file, range, Mode::Exclusive) {
            Ok(None) => Vec::new(),
            Ok(Some(obstacle)) => {
                let mut claims = self.claims_on(key, &file);
                match self.taken(key, &file, obstacle) {
                    Taken::Granules(granules) => self.shares(key, claims, &granules),
                    Taken::Whole => {
                        if claims.iter().all(|claim| claim.share.is_some()) {
                            claims.push(Claim {
                                pid: obstacle.pid,
                                ..Claim::of_unknown(key, WakeHint::Unlock(key.to_owned(), None))
                            });
                        }
                        claims
                    }
                }
            }
            Err(error) => {
                let why = self.directory.why_unclaimable(key, &error);
                self.unclaimable.insert(key.to_owned(), why);
                Vec::new()
            }
        };
        self.keep_file(key, file);
        claims
    }

    /// Why no launch can claim this device, as of the last look.
    pub(crate) fn unclaimable(&self, key: &str) -> Option<String> {
        let failed = self.failed.get(key);
        let failed = failed.filter(|(_, until)| *until > Instant::now());
        let failed = failed.map(|(why, _)| why);
        self.unclaimable.get(key).or(failed).cloned()
    }

    /// Waits until no other launch of this user counts what the user holds, and keeps others from
    /// it until the file is dropped; `None` where that cannot be had in time.
    pub(crate) fn take_turn(&self, deadline: Instant) -> Option<OwnedFd> {
        let file = self.directory.user_file().ok()?;
        while !lock::try_lock(&file, Range::ALL, Mode::Exclusive).ok()? {
            if Instant::now() >= deadline {
                return None;
            }
            std::thread::sleep(TURN_PAUSE);
        }
        Some(file)
    }

    /// A text that this user's launches, or root's, have kept in the last `age`.
    pub(crate) fn kept_text(&self, name: &str, age: Duration) -> Option<String> {
        self.directory.kept_text(name, age)
    }

    /// Keeps a text for the next launches of this user.
    pub(crate) fn keep_text(&self, name: &str, text: &str) {
        if let Err(error) = self.directory.keep_text(name, text) {
            tracing::debug!("{name} is not kept: {error}");
        }
    }

    /// Until when this device is to be given last, in Unix seconds: COMMANDs have failed on it.
    pub(crate) fn suspect_until(&self, key: &str) -> Option<u64> {
        self.files.get(key).and_then(failures::suspect_until)
    }

    /// What others have of the device beside the launches around this process, where `obstacle` is
    /// one lock that stands against a claim.
    fn taken(&self, key: &str, file: &OwnedFd, obstacle: lock::Conflict) -> Taken {
        let around = self.ancestry.share(key);
        if around.is_none() && !obstacle.is_partial() {
            return Taken::Whole;
        }
        match (lock::taken(file, self.ancestry.level()), around) {
            (Ok(Taken::Granules(granules)), Some(around)) => {
                Taken::Granules(granules.within(around))
            }
            (Ok(taken), _) => taken,
            (Err(_), _) => Taken::Whole,
        }
    }

    /// What is published of all claims on the device but those around this process.
    fn claims_on(&self, key: &str, file: &OwnedFd) -> Vec<Claim> {
        let ancestors = &self.ancestry.0;
        let is_around = |token: &Token| {
            let mut tokens = ancestors.iter().map(|ancestor| ancestor.token);
            tokens.any(|around| around == Some(*token))
        };
        let tokens = lock::tokens(file, MAX_TOLD).into_iter();
        let tokens = tokens.map(Token::from_number);
        tokens
            .filter(|token| !is_around(token))
            .map(|token| self.claim(key, token))
            .collect()
    }

    /// The shares that make up the locked `granules`: those of `claims` that are not inside another
    /// one, and one more of what none of them tells of.
    fn shares(&self, key: &str, claims: Vec<Claim>, granules: &Share) -> Vec<Claim> {
        let (mut told, untold): (Vec<Claim>, Vec<Claim>) =
            claims.into_iter().partition(|claim| claim.share.is_some());
        told.sort_by_key(|claim| claim.level);
        let mut shares = Vec::new();
        let mut covered = Share::default();
        for claim in told {
            let share = claim.share.as_ref().map(|share| share.within(granules));
            let share = share.unwrap_or_default();
            if !share.is_within(&covered) {
                covered = covered.and(&share);
                shares.push(claim);
            }
        }
        let rest = granules.without(&covered);
        if rest.bytes() > 0 {
            let untold = untold.into_iter().find(|claim| claim.kind.is_none());
            let hint = || WakeHint::Unlock(key.to_owned(), None);
            shares.push(Claim {
                share: Some(rest),
                ..untold.unwrap_or_else(|| Claim::of_unknown(key, hint()))
            });
        }
        shares
    }

    /// What is published of a claim.
    fn claim(&self, key: &str, token: Token) -> Claim {
        let hint = WakeHint::Unlock(key.to_owned(), Some(token.number()));
        let Some((uid, holder)) = Holder::of(&self.directory, token) else {
            return Claim {
                token: Some(token.to_string()),
                ..Claim::of_unknown(key, hint)
            };
        };
        let here = holder.namespace.is_some() && holder.namespace == self.namespace;
        // It is only believed of processes of its own user.
        let is_users = |pid: u32| proc::owner(pid).is_none_or(|owner| owner == uid);
        let process = holder
            .process
            .filter(|process| here && is_users(process.pid));
        let place = holder.devices.iter().position(|device| device == key);
        let share = place.and_then(|place| holder.holding.share(place));
        let keeper = Some(holder.keeper).filter(|pid| here && is_users(*pid));
        Claim {
            kind: Some(holder.kind),
            share: share.cloned(),
            token: Some(token.to_string()),
            level: holder.level,
            process,
            pid: process.map(|process| process.pid),
            uid: Some(uid),
            since: Some(holder.since),
            until: holder.until,
            version: holder.version,
            is_ending: holder.until.is_none()
                && holder
                    .process
                    .is_some_and(|process| here && !process.is_alive()),
            wake: keeper.map_or(hint, WakeHint::Exit),
            device: key.to_owned(),
        }
    }

    /// The device's lock file: to be put back. `None` where it has not been claimed yet, or cannot
    /// be.
    fn file(&mut self, key: &str) -> Option<OwnedFd> {
        self.unclaimable.remove(key);
        let file = self.open_file(key, Directory::find_lock_file);
        if let Err(error) = &file {
            if error.kind() != io::ErrorKind::NotFound {
                let why = self.directory.why_unclaimable(key, error);
                self.unclaimable.insert(key.to_owned(), why);
            }
        }
        file.ok()
    }

    /// The device's lock file, which was opened for an earlier look or is opened now.
    fn open_file(
        &mut self,
        key: &str,
        open: impl Fn(&Directory, &str) -> io::Result<OwnedFd>,
    ) -> io::Result<OwnedFd> {
        if let Some(file) = self.files.remove(key) {
            return Ok(file);
        }
        match open(&self.directory, key) {
            Err(error) if error.raw_os_error() == Some(libc::EMFILE) => {
                self.files.clear();
                open(&self.directory, key)
            }
            opened => opened,
        }
    }

    /// Keeps a lock file open for the next look, where this process has descriptors to spare.
    fn keep_file(&mut self, key: &str, file: OwnedFd) {
        if u64::try_from(file.as_raw_fd()).is_ok_and(|number| number <= self.max_descriptor) {
            self.files.insert(key.to_owned(), file);
        }
    }

    /// Claims the devices, all or none but those that are known to be unclaimable; `None` where one
    /// of the others is claimed, or turns out to be unclaimable.
    ///
    /// # Errors
    /// Where the directory is removed again and again.
    pub(crate) fn try_claim(
        &mut self,
        targets: &[Target],
        claim_for: &ClaimFor,
    ) -> io::Result<Option<Claimed>> {
        let mut targets: Vec<&Target> = targets.iter().collect();
        // All launches lock them in one order.
        targets.sort_unstable_by(|one, other| one.key.cmp(&other.key));
        let token = Token::random()?;
        if targets.len() > 1 {
            self.make_files(&targets);
        }
        let mut files = Vec::with_capacity(targets.len());
        let mut shares = Vec::new();
        let (mut devices, mut unclaimed) = (Vec::new(), Vec::new());
        for target in targets {
            // Those that were locked already are closed, and so unlocked.
            match self.lock_device(target, token) {
                Ok(Some((file, locked))) => {
                    devices.push(target.key.clone());
                    files.push(file);
                    match locked {
                        Locked::Whole => {}
                        Locked::Share(share) => shares.push(share),
                    }
                }
                Ok(None) => return Ok(None),
                Err(error) => {
                    let was_known = self.unclaimable(&target.key).is_some();
                    let why = self.directory.why_unclaimable(&target.key, &error);
                    let until = Instant::now() + FAILURE_COUNTS;
                    self.failed.insert(target.key.clone(), (why.clone(), until));
                    if !was_known {
                        return Ok(None);
                    }
                    unclaimed.push((target.key.clone(), why));
                }
            }
        }
        if files.is_empty() {
            return Ok(Some(Claimed {
                guard: None,
                unclaimed,
            }));
        }
        if !self.directory.is_current() {
            // Nobody looks there any more.
            self.files.clear();
            self.directory.refresh()?;
            self.was_removed()?;
            return Ok(None);
        }
        let mut guard = ClaimGuard {
            pid: std::process::id(),
            token,
            ancestry: self.ancestry.clone(),
            devices,
            holding: match shares.is_empty() {
                true => Holding::Whole,
                false => Holding::Shares(shares),
            },
            directory: self.directory.clone(),
            namespace: self.namespace,
            requester: self.requester.clone(),
            judge: self.judge.clone(),
            claim_for: claim_for.clone(),
            files: Files::ToPassOn(Vec::new()),
            persists: false,
        };
        guard.files = match claim_for {
            ClaimFor::Process => {
                OWN.lock().push(token);
                guard.directory.keep_from_cleaners();
                guard.publish();
                Files::OfProcess(files.into_iter().map(NotInherited::new).collect())
            }
            _ => {
                cleanup::set_claim(&files);
                Files::ToPassOn(files)
            }
        };
        Ok(Some(Claimed {
            guard: Some(guard),
            unclaimed,
        }))
    }

    /// Makes the lock files that are not there, so that all are new at the same time.
    fn make_files(&mut self, targets: &[&Target]) {
        for Target { key, .. } in targets {
            if let Ok(file) = self.open_file(key, Directory::lock_file) {
                self.keep_file(key, file);
            }
        }
    }

    /// Locks what is wanted of a device, and the byte of the token; `None` where it is claimed.
    fn lock_device(
        &mut self,
        target: &Target,
        token: Token,
    ) -> io::Result<Option<(OwnedFd, Locked)>> {
        let key = &target.key;
        // A cleaner may remove the file or the directory between two steps, but not for ever.
        for _ in 0..8 {
            let file = match self.open_file(key, Directory::lock_file) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    self.refresh();
                    continue;
                }
                file => file?,
            };
            self.directory.settle(&file);
            if !lock::try_lock(&file, token.range(), Mode::Exclusive)? {
                // Nobody else has this token: all of the file is locked.
                return match target.extent {
                    Extent::Guest => Err(io::Error::other("another program has locked it")),
                    Extent::Whole | Extent::Share { .. } => Ok(None),
                };
            }
            let Some(locked) = self.lock_extent(&file, target)? else {
                lock::unlock(&file, Range::ALL);
                self.keep_file(key, file);
                return Ok(None);
            };
            if !self.directory.names_file(key, &file) {
                continue;
            }
            if !self.is_parent_on(key, &file) {
                self.leave_parent();
                return Ok(None);
            }
            return Ok(Some((file, locked)));
        }
        self.was_removed()?;
        Ok(None)
    }

    /// Whether the innermost claim around this process still has the device. The kernel drops
    /// several devices one after another, so that another one proves nothing.
    fn is_parent_on(&self, key: &str, file: &OwnedFd) -> bool {
        let mut ancestors = self.ancestry.0.iter().rev();
        let parent = ancestors.find_map(|ancestor| Some((ancestor, ancestor.token?)));
        let Some((parent, token)) = parent else {
            return true;
        };
        match parent.devices.iter().any(|device| device == key) {
            true => matches!(
                lock::conflict(file, token.range(), Mode::Shared),
                Ok(Some(_))
            ),
            false => parent.is_alive(&self.directory),
        }
    }

    /// Goes on as a launch of those around the innermost claim around this process.
    fn leave_parent(&mut self) {
        let mut ancestry = std::mem::take(&mut self.ancestry);
        while ancestry.0.pop().is_some_and(|last| last.token.is_none()) {}
        self.ancestry = self.living(ancestry);
    }

    /// Notes that what was locked has been removed from where others look.
    ///
    /// # Errors
    /// Where that happens again and again.
    fn was_removed(&mut self) -> io::Result<()> {
        self.removals += 1;
        match self.removals < MAX_REMOVALS {
            true => Ok(()),
            false => Err(io::Error::other("it is removed again and again")),
        }
    }

    /// Of two launches of different levels, each locks first and then looks whether the other one
    /// has: so at least one sees the other.
    fn lock_extent(&self, file: &OwnedFd, target: &Target) -> io::Result<Option<Locked>> {
        let level = self.ancestry.level();
        let around = self.ancestry.share(&target.key);
        let is_free = |range| -> io::Result<bool> {
            Ok(lock::conflict(file, range, Mode::Exclusive)?.is_none())
        };
        match (target.extent, around) {
            (Extent::Whole, None) => {
                let is_ours = lock::try_lock(file, Range::level(level), Mode::Exclusive)?
                    && is_free(Range::nested(level))?;
                Ok(is_ours.then_some(Locked::Whole))
            }
            (Extent::Guest, around) => {
                let is_ours = lock::try_lock(file, Range::GUESTS, Mode::Shared)?;
                let locked = around.map_or(Locked::Whole, |share| Locked::Share(share.clone()));
                Ok(is_ours.then_some(locked))
            }
            (Extent::Whole, Some(around)) => {
                self.lock_share(file, around, around.bytes(), around.bytes())
            }
            (Extent::Share { bytes, limit, .. }, Some(around)) => {
                self.lock_share(file, around, bytes, limit)
            }
            (
                Extent::Share {
                    bytes,
                    memory,
                    limit,
                },
                None,
            ) => self.lock_share(file, &Share::of_device(memory), bytes, limit),
        }
    }

    /// Locks so many bytes of `region`, in granules that nobody else has, as long as all shares in
    /// it are of at most `limit` bytes together.
    fn lock_share(
        &self,
        file: &OwnedFd,
        region: &Share,
        bytes: u64,
        limit: u64,
    ) -> io::Result<Option<Locked>> {
        let level = self.ancestry.level();
        let others = || -> io::Result<Option<Share>> {
            Ok(match lock::taken(file, level)? {
                Taken::Whole => None,
                Taken::Granules(granules) => Some(granules.within(region)),
            })
        };
        for _ in 0..SHARE_ATTEMPTS {
            let Some(share) =
                others()?.and_then(|taken| region.without(&taken).first(bytes.min(region.bytes())))
            else {
                return Ok(None);
            };
            if !lock::try_lock_share(file, level, &share)? {
                continue;
            }
            // What others have locked meanwhile may be more than is left for all.
            let fits = others()?.is_some_and(|taken| {
                let all = taken.bytes().saturating_add(bytes);
                taken.within(&share).bytes() == 0 && all <= limit.max(bytes)
            });
            if fits {
                return Ok(Some(Locked::Share(share)));
            }
            lock::unlock_share(file, level, &share);
            return Ok(None);
        }
        Ok(None)
    }

    /// What becomes readable once a claim has ended that lies out of sight.
    pub(crate) fn watch_unlock(&mut self, hint: &WakeHint) -> Option<Arc<OwnedFd>> {
        let WakeHint::Unlock(key, token) = hint else {
            return None;
        };
        if let Some(known) = self.unlocked.get(hint) {
            return Some(known.clone());
        }
        let file = self.directory.find_lock_file(key).ok()?;
        let range = token.map_or(Range::level(self.ancestry.level()), |token| {
            Token::from_number(token).range()
        });
        let flags = rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK;
        let event = Arc::new(rustix::event::eventfd(0, flags).ok()?);
        let told = event.clone();
        let wait = move || {
            // In a thread of its own, for the kernel tells of it by nothing else.
            let _ = lock::wait_until_unlocked(&file, range);
            let _ = rustix::io::write(&*told, &1_u64.to_ne_bytes());
        };
        std::thread::Builder::new()
            .stack_size(64 << 10)
            .spawn(wait)
            .ok()?;
        self.unlocked.insert(hint.clone(), event.clone());
        Some(event)
    }

    /// Forgets the claims that are not among these.
    pub(crate) fn watch_only(&mut self, claims: &[Claim]) {
        self.unlocked
            .retain(|hint, _| claims.iter().any(|claim| claim.wake == *hint));
    }

    /// Takes a position in the queue of those who wait.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub(crate) fn queue(&mut self, enqueued_at: Duration, demand: &Demand) -> io::Result<Ticket> {
        // A judge has few descriptors, and those who wait may be many.
        self.judge = None;
        self.directory.refresh()?;
        let inside = self.inside();
        Ticket::take(&self.directory, self.namespace, inside, enqueued_at, demand)
    }

    /// Those who wait inside the same launch and came before `enqueued_at`, the longest-waiting
    /// first.
    pub(crate) fn waiters_ahead(&self, enqueued_at: Duration) -> Vec<Waiter> {
        let inside = self.inside();
        queue::ahead(
            &self.directory,
            enqueued_at,
            self.namespace,
            inside.as_deref(),
        )
    }

    /// Those of [`waiters_ahead`](Self::waiters_ahead) who have lost patience; of many the first.
    pub(crate) fn impatient_ahead(&self, enqueued_at: Duration) -> Vec<Waiter> {
        let inside = self.inside();
        queue::impatient_ahead(
            &self.directory,
            enqueued_at,
            self.namespace,
            inside.as_deref(),
        )
    }

    /// All who wait, the longest-waiting first.
    pub(crate) fn waiters(&self) -> Vec<Waiter> {
        queue::all(&self.directory, self.namespace)
    }

    /// Tells a waiter to look again.
    pub(crate) fn call(&self, waiter: &Waiter) {
        queue::call_waiter(&self.directory, waiter);
    }

    fn inside(&self) -> Option<String> {
        let tokens = self
            .ancestry
            .0
            .iter()
            .rev()
            .find_map(|ancestor| ancestor.token);
        tokens.map(|token| token.to_string())
    }
}

impl Claim {
    /// Whether it will soon be seen otherwise: its judge, which has just begun, has not told of it
    /// yet, or is about to let go of it.
    pub(crate) fn is_settling(&self) -> bool {
        self.is_ending || self.kind.is_none() && matches!(self.wake, WakeHint::Unlock(_, Some(_)))
    }

    fn of_unknown(key: &str, wake: WakeHint) -> Self {
        Self {
            device: key.to_owned(),
            kind: None,
            share: None,
            token: None,
            process: None,
            level: 0,
            pid: None,
            uid: None,
            since: None,
            until: None,
            version: None,
            is_ending: false,
            wake,
        }
    }
}

/// Ends all claims in a directory that printed choices made for the shell that started this
/// process. Returns how many these were.
///
/// # Errors
/// Where the directory of claims cannot be used.
pub(crate) fn release_shell_claims(claim_dir: &Path) -> io::Result<usize> {
    let claims = ClaimStore::open(claim_dir)?;
    let requester = Requester::detect();
    Ok(requester.map_or(0, |requester| {
        judge::link::release(Address::of(&requester, &claims.directory))
    }))
}

impl ClaimGuard {
    /// What a launch inside it is told.
    pub(crate) fn inside(&self) -> Ancestry {
        judge::inside(&self.ancestry, self.token, &self.devices, &self.holding)
    }

    /// How many devices are claimed.
    pub(crate) fn device_count(&self) -> usize {
        self.devices.len()
    }

    /// How much memory of each device is claimed, in bytes; `None` where that is all of it.
    pub fn memory(&self) -> Option<u64> {
        self.holding.memory()
    }

    /// Lets the claim live on without this process, as long as what it is for. `label` is what
    /// people call the devices. It can still be [released](Self::release).
    ///
    /// # Errors
    /// Where no process can be started that holds it.
    pub fn persist(&mut self, label: &str) -> io::Result<()> {
        let Files::ToPassOn(files) = &mut self.files else {
            return Ok(());
        };
        let own = ProcessId::own();
        let own = own.unwrap_or(ProcessId {
            pid: std::process::id(),
            start: 0,
        });
        let (purpose, hold) = match &self.claim_for {
            ClaimFor::Process => return Ok(()),
            ClaimFor::Command { .. } => (Purpose::Command(own), Duration::ZERO),
            ClaimFor::Prefix { hold, ids } => (Purpose::Prefix(ids.clone()), *hold),
            ClaimFor::Shell { hold, ids } => (Purpose::Shell(ids.clone()), *hold),
            ClaimFor::Ids { hold } => (Purpose::Ids, *hold),
        };
        // Not duplicates: there may be too few descriptors for these.
        let files = std::mem::take(files);
        let (ancestry, devices) = (self.ancestry.clone(), self.devices.clone());
        let mut lease = Lease::new(self.token, ancestry, devices, files, purpose, hold);
        lease.holding = self.holding.clone();
        lease.label = label.to_owned();
        if let ClaimFor::Command { program } = &self.claim_for {
            lease.program = program.clone();
        }
        if let Some(requester) = &self.requester {
            lease.requester_pid = requester.requester_pid;
            lease.launch = Some(requester.itself);
        }
        let parent = match self.claim_for {
            ClaimFor::Command { .. } => Parent::Execs,
            _ => Parent::Ends,
        };
        let (files, kept) = judge::keep(
            lease,
            self.requester.as_ref(),
            self.judge.as_ref(),
            &self.directory,
            parent,
        );
        self.files = Files::ToPassOn(files);
        self.persists = kept.is_ok();
        kept
    }

    /// Hands the claim to a child process: it lasts until the child, and what the child leaves
    /// behind that carries the variables it was given, have ended, whatever becomes of this
    /// process. A small process of autocvd's holds it from now on.
    ///
    /// # Errors
    /// Where the child is not to be seen, or no process can be started that holds the claim: then
    /// it has ended.
    ///
    /// ```no_run
    /// use autocvd::{Environment, NoObserver, Request, acquire};
    /// use std::process::Command;
    ///
    /// let mut found = acquire(&Request::new(), &Environment::read(), &mut NoObserver)?;
    /// let child = found.apply(&mut Command::new("train")).spawn()?;
    /// if let Some(claim) = found.claim.take() {
    ///     claim.hand_to(&child)?;
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn hand_to(mut self, child: &std::process::Child) -> io::Result<()> {
        let ended = || io::Error::new(io::ErrorKind::NotFound, "the child is not to be seen");
        let child = ProcessId::of(child.id()).ok_or_else(ended)?;
        // Descriptors that a fork does not close: the process that is to hold the claim is one.
        let files = self.files.iter().map(OwnedFd::try_clone);
        let files = files.collect::<io::Result<_>>()?;
        let (ancestry, devices) = (self.ancestry.clone(), self.devices.clone());
        let purpose = Purpose::Command(child);
        let mut lease = Lease::new(
            self.token,
            ancestry,
            devices,
            files,
            purpose,
            Duration::ZERO,
        );
        lease.holding = self.holding.clone();
        lease.label = self.devices.join(", ");
        lease.launch = Some(child);
        // Its keeper tells of it anew.
        holder::withdraw(&self.directory, self.token);
        judge::keep(lease, None, None, &self.directory, Parent::Execs).1?;
        OWN.lock().retain(|token| *token != self.token);
        self.persists = true;
        Ok(())
    }

    /// Lets the claim live on through exec without a judge, as long as the program keeps the files
    /// open: they are put out of the way of the descriptors that scripts number themselves.
    ///
    /// # Errors
    /// Where a descriptor cannot be had.
    pub fn keep_across_exec(&mut self) -> io::Result<()> {
        for file in self.files.iter() {
            let high = rustix::io::fcntl_dupfd_cloexec(file, HIGH_DESCRIPTOR)?;
            rustix::io::fcntl_setfd(&high, rustix::io::FdFlags::empty())?;
            std::mem::forget(high);
        }
        self.persists = true;
        Ok(())
    }

    /// Ends the claim, whoever else holds its files by now.
    pub fn release(&mut self) {
        if self.pid != std::process::id() {
            return;
        }
        self.files
            .iter()
            .for_each(|file| lock::unlock(file, Range::ALL));
        if self.claim_for == ClaimFor::Process {
            OWN.lock().retain(|token| *token != self.token);
        }
        queue::notify(&self.directory, &self.devices, self.namespace);
        holder::withdraw(&self.directory, self.token);
        self.files = Files::ToPassOn(Vec::new());
        self.persists = true;
    }

    /// Tells who holds it.
    fn publish(&self) {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        let holder = Holder {
            kind: ClaimKind::Command,
            process: ProcessId::own(),
            keeper: std::process::id(),
            namespace: self.namespace,
            since,
            until: None,
            level: self.ancestry.level(),
            holding: self.holding.clone(),
            devices: self.devices.clone(),
            version: Holder::own_version(),
        };
        if let Err(error) = holder.publish(&self.directory, self.token) {
            tracing::debug!("nobody is told who holds the claim: {error}");
        }
    }
}

impl Drop for ClaimGuard {
    fn drop(&mut self) {
        if let Files::ToPassOn(_) = self.files {
            cleanup::forget_claim();
        }
        if !self.persists {
            self.release();
        }
    }
}

/// Reads a text as everything that other users may have written in the directory of claims. Returns
/// whether it tells of a holder, of a waiter, and of failures that count.
#[cfg(any(test, fuzzing))]
pub(crate) fn read_records(text: &str) -> [bool; 3] {
    let holder = Holder::parse(text);
    if let Some(holder) = &holder {
        let written = holder.to_string();
        assert_eq!(Holder::parse(&written).as_ref(), Some(holder), "{written}");
    }
    let (name, record) = text.split_once('\n').unwrap_or((text, text));
    let waiter = queue::parse(record, name.to_owned(), 0, Some(1));
    let is_waiter = waiter.is_some_and(|waiter| {
        let _ = waiter.wants("GPU-1");
        waiter.enqueued_at().is_some()
    });
    let is_suspicious = failures::is_suspicious(text.as_bytes(), 1_764_000_000);
    [holder.is_some(), is_waiter, is_suspicious]
}

#[cfg(test)]
mod tests;
