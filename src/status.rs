//! The machine as it is shown: what a probe reads, with the claims and all that /proc adds to them.

use crate::claim::{Claim, ClaimKind, ClaimStore, Share, Waiter};
use crate::environment::Environment;
use crate::gather;
use crate::gpu::{
    ClaimInfo, Judgement, Link, Process, Recording, ShareHolder, Snapshot, State, WaitingRequest,
};
use crate::observer::Observer;
use crate::openers::Openers;
use crate::policy::{SETTLING_LOOKS, SETTLING_PAUSE};
use crate::probe::{self, Detail, Probe, ProbeChoice};
use crate::shares;
use crate::site::SiteConfig;
use crate::topology;
use crate::{Error, Result, proc};
use std::time::{SystemTime, UNIX_EPOCH};

/// The kind of a claim on a share, whatever it is for.
const SHARE: &str = "share";

/// A machine to look at as a whole, once or again and again.
///
/// ```
/// use autocvd::{Environment, NoObserver, ProbeChoice, StatusReader};
///
/// let recorded = ProbeChoice::File("examples/desktop.json".into());
/// let mut reader = StatusReader::open(&recorded, &Environment::default(), &mut NoObserver)?;
/// for device in reader.look(&mut NoObserver)?.devices() {
///     println!("{}: {:?}", device.label(), device.verdict());
/// }
/// assert!(!reader.is_live(), "a recording stays as it is");
/// # Ok::<(), autocvd::Error>(())
/// ```
pub struct StatusReader {
    probe: Box<dyn Probe>,
    claims: Option<ClaimStore>,
    site: SiteConfig,
    num_gpus: u32,
    /// How its GPUs are connected, once that has been asked: it does not change.
    links: Option<Vec<Link>>,
    openers: Openers,
}

impl StatusReader {
    /// Opens the source of its state and the directory of claims; `observer` is told if that
    /// directory cannot be used.
    ///
    /// # Errors
    /// [`NoGpu`](crate::Error::NoGpu) where no GPU can be read.
    pub fn open(
        choice: &ProbeChoice,
        environment: &Environment,
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        let site = &environment.site;
        site.warnings.iter().for_each(|text| observer.warn(text));
        observer.probe_started(None);
        let probe = probe::open_to_show(choice, environment.nvml_library.clone());
        observer.probe_finished();
        let probe = probe?;
        // To show the machine is to show the claims around this process too.
        let claims = open_claims(environment, &*probe, observer)?;
        Ok(Self {
            probe,
            claims,
            site: site.clone(),
            num_gpus: 0,
            links: None,
            openers: Openers::default(),
        })
    }

    /// Does not ask how the GPUs are connected, which takes many calls of the driver.
    #[must_use]
    pub fn without_links(mut self) -> Self {
        self.links = Some(Vec::new());
        self
    }

    /// The GPUs of the last [`look`](Self::look) of which it is known, by index, and whether the
    /// driver keeps each initialized while no process uses it.
    pub fn persistence_mode(&mut self) -> Vec<(u32, bool)> {
        (0..self.num_gpus)
            .filter_map(|index| Some((index, self.probe.persistence_mode(index)?)))
            .collect()
    }

    /// The state of all its GPUs with their claims, judged.
    ///
    /// # Errors
    /// [`NoGpu`](crate::Error::NoGpu) where no GPU can be read.
    pub fn look(&mut self, observer: &mut dyn Observer) -> Result<Snapshot> {
        observer.probe_started(None);
        let snapshot = self.read();
        observer.probe_finished();
        let mut snapshot = snapshot?;
        if self.is_live() {
            if let Some(claims) = &mut self.claims {
                let mut all = attach_claims(&mut snapshot, claims);
                for _ in 0..SETTLING_LOOKS {
                    if !all.iter().any(Claim::is_settling) {
                        break;
                    }
                    std::thread::sleep(SETTLING_PAUSE);
                    all = attach_claims(&mut snapshot, claims);
                }
                keep(&mut snapshot, &claims.waiters());
            }
            (0..snapshot.gpus.len()).for_each(|gpu| shares::attribute(&mut snapshot, gpu));
            self.openers.attach(&mut snapshot);
            resolve_processes(&mut snapshot, Scope::All);
            snapshot.recording = Some(Box::new(recording()));
        }
        snapshot.judge();
        gather::tell(&mut snapshot);
        Ok(snapshot)
    }

    /// Whether another look can have another answer.
    pub fn is_live(&self) -> bool {
        self.probe.is_live()
    }

    fn read(&mut self) -> Result<Snapshot> {
        let detail = Detail::Everything;
        let mut snapshot = self.probe.begin(detail)?;
        self.num_gpus = u32::try_from(snapshot.gpus.len()).unwrap_or(u32::MAX);
        let _ = self.site.reserve(&mut snapshot, &mut *self.probe);
        let view = snapshot.process_view;
        for gpu in 0..snapshot.gpus.len() {
            self.probe.read(&mut snapshot.gpus[gpu], view, detail);
            self.site.mark_ignored(&mut snapshot, gpu);
        }
        if self.links.is_none() {
            self.links = Some(self.read_links(&snapshot));
        }
        snapshot.links = self.links.clone().unwrap_or_default();
        Ok(snapshot)
    }

    /// How its GPUs are connected: as launches know it, so that what is recorded decides as they
    /// do.
    fn read_links(&mut self, snapshot: &Snapshot) -> Vec<Link> {
        if !self.is_live() || snapshot.gpus.len() < 2 {
            return snapshot.links.clone();
        }
        let gpus = snapshot.gpus.iter().enumerate();
        let usable = gpus.filter(|(_, gpu)| gpu.unusable.is_none());
        let usable: Vec<usize> = usable.map(|(at, _)| at).collect();
        let claims = self.claims.as_ref();
        let kept =
            claims.and_then(|claims| topology::kept(claims, &mut *self.probe, snapshot, &usable));
        kept.unwrap_or_else(|| topology::ask(claims, &mut *self.probe, snapshot))
    }
}

/// Writes down who waits, and what is kept for the one who gathers.
fn keep(snapshot: &mut Snapshot, waiters: &[Waiter]) {
    snapshot.waiting = waiting(waiters);
    // What a launch inside another one waits for is claimed here.
    let outside: Vec<Waiter> = waiters
        .iter()
        .filter(|one| !one.is_nested())
        .cloned()
        .collect();
    let Some(gatherer) = gather::gatherer(&outside, snapshot, proc::since_boot()) else {
        return;
    };
    let kept = gather::keep(gatherer, &snapshot.device_ids(), snapshot).devices;
    let kept = kept.iter().map(|id| snapshot.device(*id).key()).collect();
    let place = waiters.iter().position(|one| one.name == gatherer.name);
    if let Some(request) = place.and_then(|place| snapshot.waiting.get_mut(place)) {
        request.kept = kept;
    }
}

/// What is shown of those who wait.
fn waiting(waiters: &[Waiter]) -> Vec<WaitingRequest> {
    let (now, since_boot) = (SystemTime::now(), proc::since_boot());
    let since = |waiter: &Waiter| {
        let age = since_boot.checked_sub(waiter.enqueued_at()?)?;
        let time = now.checked_sub(age)?.duration_since(UNIX_EPOCH);
        time.ok().map(|time| time.as_secs())
    };
    let request = |(at, waiter): (usize, &Waiter)| {
        let ahead = waiters[..at].iter().filter(|other| other.is_beside(waiter));
        WaitingRequest {
            pid: waiter.process.map(|process| process.pid),
            user: Some(proc::user_name(waiter.uid)),
            command: waiter.command(),
            since: since(waiter),
            num_gpus: waiter.num_gpus,
            min_free_memory: waiter.min_free_memory,
            share: waiter.share.is_some(),
            place: ahead.count() + 1,
            kept: Vec::new(),
        }
    };
    waiters.iter().enumerate().map(request).collect()
}

/// Here and now.
fn recording() -> Recording {
    let time = SystemTime::now().duration_since(UNIX_EPOCH);
    let host = rustix::system::uname();
    Recording {
        time: time.ok().map(|time| time.as_secs()),
        host: Some(host.nodename().to_string_lossy().into_owned()),
        boot_id: Some(proc::boot_id()).filter(|id| !id.is_empty()),
        version: Some(env!("CARGO_PKG_VERSION").to_owned()),
    }
}

/// The state of the whole machine with its claims, judged, for showing it.
///
/// # Errors
/// [`NoGpu`](crate::Error::NoGpu) where no GPU can be read.
///
/// ```
/// use autocvd::{Environment, NoObserver, ProbeChoice, State};
///
/// let recorded = ProbeChoice::File("examples/shared-server.json".into());
/// let machine = autocvd::status(&recorded, &Environment::default(), &mut NoObserver)?;
/// let free = machine.devices().filter(|device| device.state() == Some(State::Free));
/// assert_eq!(free.count(), 2);
/// # Ok::<(), autocvd::Error>(())
/// ```
pub fn status(
    choice: &ProbeChoice,
    environment: &Environment,
    observer: &mut dyn Observer,
) -> Result<Snapshot> {
    StatusReader::open(choice, environment, observer)?.look(observer)
}

/// The claims in the directory that the environment names.
///
/// # Errors
/// [`RelativeClaimDir`](Error::RelativeClaimDir): each launch would mean another directory.
pub(crate) fn open_claims(
    environment: &Environment,
    probe: &dyn Probe,
    observer: &mut dyn Observer,
) -> Result<Option<ClaimStore>> {
    if !probe.is_live() {
        return Ok(None);
    }
    let path = &environment.claim_dir;
    if path.is_relative() {
        return Err(Error::RelativeClaimDir { path: path.clone() });
    }
    let shown = path.display();
    Ok(match ClaimStore::open(path) {
        Ok(claims) => {
            if let Some(risk) = claims.secure() {
                observer.warn(&format!("claims in '{shown}' are not safe: {risk}"));
            }
            Some(claims)
        }
        Err(error) => {
            observer.unclaimed(&format!(
                "'{shown}' cannot be used for claims: {error}; other launches may pick the same \
                 GPUs (name another directory in AUTOCVD_CLAIM_DIR)"
            ));
            None
        }
    })
}

/// Writes the claims onto the GPUs that they are on; returns them all.
pub(crate) fn attach_claims(snapshot: &mut Snapshot, claims: &mut ClaimStore) -> Vec<Claim> {
    forget_claims(snapshot);
    claims.refresh();
    let mut all = Vec::new();
    for id in snapshot.device_ids() {
        let key = snapshot.device(id).key();
        let on_it = claims.active(&key);
        *snapshot.claims_mut(id) = on_it.iter().map(claim_info).collect();
        *snapshot.suspicion_mut(id) = claims.suspect_until(&key);
        *snapshot.unclaimable_mut(id) = claims.unclaimable(&key);
        all.extend(on_it);
    }
    all
}

fn claim_info(claim: &Claim) -> ClaimInfo {
    let share_holder = claim.share.is_some().then(|| ShareHolder {
        process: claim.process,
        token: claim.token.clone(),
    });
    let kind = match claim.share {
        Some(_) => Some(SHARE),
        None => claim.kind.map(ClaimKind::name),
    };
    ClaimInfo {
        kind: kind.map(str::to_owned),
        pid: claim.pid,
        user: claim.uid.map(|uid| uid.to_string()),
        command: claim.pid.and_then(proc::command),
        since: claim.since,
        until: claim.until,
        version: claim.version.clone(),
        memory: claim.share.as_ref().map(Share::bytes),
        used_memory: None,
        share_holder,
    }
}

/// Takes the claims off all devices, those that were recorded included, and what is noted with them
/// of failed commands.
pub(crate) fn forget_claims(snapshot: &mut Snapshot) {
    let is_claimed =
        |recorded: &mut Judgement| matches!(recorded.state, State::Claimed | State::Shared);
    snapshot.waiting.clear();
    for gpu in &mut snapshot.gpus {
        gpu.claims.clear();
        gpu.suspect_until = None;
        gpu.unclaimable = None;
        gpu.recorded.take_if(is_claimed);
        for part in gpu.mig.iter_mut().flat_map(|mig| &mut mig.devices) {
            part.claims.clear();
            part.suspect_until = None;
            part.unclaimable = None;
            part.recorded.take_if(is_claimed);
        }
    }
}

/// Which processes to describe.
#[derive(Clone, Copy)]
pub(crate) enum Scope {
    /// All of them.
    All,
    /// Of the processes on a GPU those that a verdict may name.
    Named,
}

/// Adds what /proc tells of the processes, and the names of users.
pub(crate) fn resolve_processes(snapshot: &mut Snapshot, scope: Scope) {
    if snapshot.source == crate::gpu::Source::File {
        return;
    }
    let known = snapshot.pids_are_known();
    for id in snapshot.device_ids() {
        for claim in snapshot.claims_mut(id) {
            if let Some(uid) = claim.user.as_ref().and_then(|user| user.parse().ok()) {
                claim.user = Some(proc::user_name(uid));
            }
        }
    }
    for gpu in &mut snapshot.gpus {
        let parts = gpu
            .mig
            .iter_mut()
            .flat_map(|mig| mig.devices.iter_mut().map(|device| &mut device.processes));
        for processes in parts.chain([&mut gpu.processes]).filter(|_| known) {
            let processes = processes.items_mut();
            let computes = |process: &Process| process.computes_beside(processes);
            let named = processes.iter().position(computes).unwrap_or(0);
            let shown = match scope {
                Scope::All => processes,
                Scope::Named => processes.get_mut(named..=named).unwrap_or_default(),
            };
            for process in shown {
                if let Some(id) = proc::ProcessId::of(process.pid) {
                    process.user = process.user.take().or_else(|| proc::user(process.pid));
                    process.command = proc::command(process.pid).or(process.command.take());
                    process.started = proc::started(id);
                }
            }
        }
    }
}
