//! Finding GPUs and claiming them: where probing, selecting, claiming and waiting meet.

mod candidates;
mod fairness;
mod limit;
mod reading;
mod rechecks;
mod retry;
mod watching;

use crate::cancel::CancelToken;
use crate::claim;
use crate::claim::{
    Ancestor, Ancestry, Asked, Claim, ClaimFor, ClaimGuard, ClaimStore, Claimed, Demand, Holding,
    Target, Ticket, Waiter,
};
use crate::environment::{DeviceOrder, Environment, INSIDE, MEMORY};
use crate::error::{BlockedDevice, Error, Restriction, Result, Timeout};
use crate::gpu::{ProcessView, Snapshot};
use crate::ids::{self, Device, DeviceId};
use crate::observer::{NoObserver, Observer, WaitStatus};
use crate::openers::Openers;
use crate::policy::{
    PATIENCE, PLACE_PERIOD, SETTLING_LOOKS, SETTLING_PAUSE, UTILIZATION_AGAIN, wakeup_jitter,
};
use crate::probe::{self, Detail, Probe, ProbeChoice};
use crate::proc;
use crate::request::{ClaimPolicy, OutputForm, Request};
use crate::select::{Constraints, Selection, Verdict};
use crate::site::SiteConfig;
use crate::status::{Scope, attach_claims, forget_claims, open_claims, resolve_processes};
use crate::wait::{WakeLoop, WakeReason, WakeSources};
use candidates::Candidates;
use fairness::{Courtesy, Handoff};
use reading::{Extent, Links};
use rechecks::Rechecks;
use retry::Backoff;
use std::time::{Duration, Instant};

/// GPUs found, and claimed where that was asked for.
#[derive(Debug)]
#[must_use = "the claim on the GPUs ends when this is dropped"]
pub struct Acquisition {
    /// The machine as it was seen: what the choice needed, and all of it only
    /// [with details](Request::with_details).
    pub snapshot: Snapshot,
    /// What was chosen, in ascending order.
    pub devices: Vec<DeviceId>,
    /// The devices that there were to choose among.
    pub candidates: Vec<DeviceId>,
    /// The ids for `CUDA_VISIBLE_DEVICES`.
    pub ids: Vec<String>,
    /// The CPU cores near them, where [`Request::with_cpu_affinity`] asks for them; empty where
    /// unknown.
    pub cpu_affinity: Vec<usize>,
    /// How many bytes of each are given: of a share, or of the share that this process is inside
    /// of; `None` where they are given whole.
    pub memory: Option<u64>,
    /// The claim on them.
    pub claim: Option<ClaimGuard>,
    ancestry: Ancestry,
}

impl Acquisition {
    /// The variables that give the GPUs to a program.
    pub fn variables(&self) -> Vec<(&'static str, String)> {
        let mut variables = vec![
            ("CUDA_DEVICE_ORDER", "PCI_BUS_ID".to_owned()),
            ("CUDA_VISIBLE_DEVICES", self.ids.join(",")),
        ];
        variables.extend(self.memory.map(|bytes| (MEMORY, bytes.to_string())));
        variables
    }

    /// The variable that tells an autocvd inside that program what to choose among.
    pub fn inside(&self) -> (&'static str, String) {
        let claimed = self.claim.as_ref();
        let mut inside = claimed.map_or_else(|| self.ancestry.clone(), ClaimGuard::inside);
        // What could not be claimed was given all the same.
        let is_claimed = |claim: &ClaimGuard| claim.device_count() == self.devices.len();
        if !claimed.is_some_and(is_claimed) {
            inside = inside.with(Ancestor {
                token: None,
                devices: keys_of(&self.devices, &self.snapshot),
                holding: Holding::Whole,
            });
        }
        (INSIDE, inside.to_string())
    }

    /// What people call the devices: `GPU 1, GPU 2`.
    pub fn label(&self) -> String {
        let devices = self.devices.iter();
        let labels: Vec<String> = devices
            .map(|id| self.snapshot.device(*id).label())
            .collect();
        labels.join(", ")
    }

    /// Sets all variables for a child process.
    pub fn apply<'a>(
        &self,
        command: &'a mut std::process::Command,
    ) -> &'a mut std::process::Command {
        command.envs(self.variables()).envs([self.inside()])
    }
}

/// Finds GPUs as `request` says, waits for them if need be, and claims them.
///
/// # Errors
/// Every case of [`Error`].
///
/// ```
/// use autocvd::{Environment, NoObserver, ProbeChoice, Request, acquire};
///
/// // A machine that was recorded; without this line it is the present one.
/// let request = Request::new().probe(ProbeChoice::File("examples/desktop.json".into()));
/// let found = acquire(&request.num_gpus(2), &Environment::default(), &mut NoObserver)?;
/// assert_eq!(found.label(), "GPU 0, GPU 1");
/// assert_eq!(found.variables()[1], ("CUDA_VISIBLE_DEVICES", "0,1".to_owned()));
/// # Ok::<(), autocvd::Error>(())
/// ```
pub fn acquire(
    request: &Request,
    environment: &Environment,
    observer: &mut dyn Observer,
) -> Result<Acquisition> {
    if request.num_gpus == 0 {
        return Err(Error::NoGpusRequested);
    }
    let site = &environment.site;
    site.warnings.iter().for_each(|text| observer.warn(text));
    let enqueued_at = proc::since_boot();
    let asked = match request.claim {
        _ if matches!(request.probe, ProbeChoice::File(_)) => None,
        ClaimPolicy::No | ClaimPolicy::Process => None,
        ClaimPolicy::Command { .. } | ClaimPolicy::Shell { .. } => {
            Asked::tell(&environment.claim_dir, &claim_for(&request.claim, &[]))
        }
    };
    let deadline = request
        .timeout
        .and_then(|timeout| Instant::now().checked_add(timeout));
    observer.probe_started(deadline);
    let mut probe = open_probe(request, environment)?;
    let mut snapshot = probe.begin(request.detail)?;
    observer.probe_finished();
    for text in site.reserve(&mut snapshot, &mut *probe) {
        observer.warn(&text);
    }
    let limit = limit::Limit::of(request, environment, &*probe);
    if let Some(limit) = &limit {
        limit.check(request.num_gpus, &snapshot)?;
    }
    let mut claims = match request.claim {
        ClaimPolicy::No => None,
        _ => open_claims(environment, &*probe, observer)?,
    };
    let shell = match request.claim {
        ClaimPolicy::Shell { .. } => asked.as_ref().map(Asked::shell),
        _ => None,
    };
    if let (Some(claims), Some(asked)) = (&mut claims, asked) {
        claims.begin(asked);
    }
    if product_names_matter(request, environment) {
        snapshot
            .gpus
            .iter_mut()
            .for_each(|gpu| probe.read_name(gpu));
    }
    let Candidates {
        devices,
        restrictions,
    } = Candidates::of(request, environment, &snapshot, claims.as_mut(), observer)?;
    let keys = keys_of(&devices, &snapshot);
    let (num_gpus, share) = (request.num_gpus, request.share);
    // A device that has less free has no room for the share.
    let min_free_memory = request.min_free_memory.max(share);
    let attempt = Attempt {
        request,
        site,
        over_limit: None,
        demand: Demand {
            num_gpus,
            min_free_memory,
            share,
            tolerate: request.tolerate,
            devices: keys,
            shell,
            patience: request
                .patience
                .or(environment.patience)
                .unwrap_or(PATIENCE),
            max_per_user: limit.as_ref().map(limit::Limit::most),
        },
        limit,
        constraints: Constraints {
            num_gpus,
            least_used: request.least_used && share.is_none(),
            share,
            min_free_memory,
            tolerate: request.tolerate,
            devices,
        },
        restrictions,
        once: request.least_used || !probe.is_live() || request.timeout == Some(Duration::ZERO),
        probe,
        claims,
        enqueued_at,
        deadline,
        wake_loop: None,
        ticket: None,
        place_period: None,
        ahead: Vec::new(),
        may_sleep: false,
        handoff: Handoff::default(),
        last_sources: WakeSources::default(),
        others_need_lists: false,
        backoff: Backoff::new(request.interval),
        second_reading: SecondReading::NotNeeded,
        links: Links::NotAsked,
        rechecks: Rechecks::new(request.interval),
        openers: Openers::default(),
        watched: Vec::new(),
        last: None,
        carried: Vec::new(),
        next_full: None,
    };
    attempt.run(snapshot, observer)
}

/// As [`acquire`], but never waits and has no observer: one look at the machine.
///
/// # Errors
/// Every case of [`Error`]; [`Error::TimedOut`] where not enough GPUs are free now.
///
/// ```
/// use autocvd::{ClaimPolicy, Environment, ProbeChoice, Request, try_acquire};
///
/// let request = Request::new()
///     .probe(ProbeChoice::File("examples/desktop.json".into()))
///     .claim(ClaimPolicy::No);
/// let found = try_acquire(&request, &Environment::default())?;
/// assert_eq!(found.ids, ["1"]);
/// # Ok::<(), autocvd::Error>(())
/// ```
pub fn try_acquire(request: &Request, environment: &Environment) -> Result<Acquisition> {
    let once = request.clone().timeout(Duration::ZERO);
    acquire(&once, environment, &mut NoObserver)
}

/// Opens the probe, which initializes only the GPUs that the request can have, where their names
/// alone tell which those are.
fn open_probe(request: &Request, environment: &Environment) -> Result<Box<dyn Probe>> {
    let narrow = |names: &Snapshot| Candidates::gpus_by_name(request, environment, names);
    let narrow: probe::Narrow = match Candidates::are_narrowed_by_name(request, environment) {
        true => Some(&narrow),
        false => None,
    };
    probe::open(&request.probe, environment.nvml_library.clone(), narrow)
}

/// Whether the candidates depend on the names of products: an id may be a part of one, and indices
/// that count the fastest GPU first mean something where all are alike.
fn product_names_matter(request: &Request, environment: &Environment) -> bool {
    let by_speed = environment.cuda_device_order == DeviceOrder::FastestFirst;
    let mut listed = request.only.iter().flatten().chain(&request.exclude);
    request.inherit && by_speed || listed.any(|id| ids::may_be_name(id))
}

/// Tells of each chosen device that another launch has claimed.
fn tell_of_claims(devices: &[DeviceId], snapshot: &mut Snapshot, observer: &mut dyn Observer) {
    let is_claimed = |id: &&DeviceId| !snapshot.device(**id).claims().is_empty();
    let claimed: Vec<DeviceId> = devices.iter().filter(is_claimed).copied().collect();
    if claimed.is_empty() {
        return;
    }
    resolve_processes(snapshot, Scope::Named);
    let tell = |id: &DeviceId| {
        let device = snapshot.device(*id);
        let verdict = device.verdict();
        let why = verdict.reason().unwrap_or("claimed");
        format!("{} is shared: it is {why}", device.label())
    };
    let told: Vec<String> = claimed.iter().map(tell).collect();
    observer.warn(&told.join("; "));
}

/// Tells of each chosen device of which something that decides could not be read.
fn tell_of_unknown(devices: &[DeviceId], snapshot: &Snapshot, observer: &mut dyn Observer) {
    let tell = |id: &DeviceId| {
        let device = snapshot.device(*id);
        match device.verdict() {
            Verdict::Unknown(why) => {
                let why = why.strip_prefix("unknown: ").unwrap_or(&why);
                Some(format!("{} is given, though {why}", device.label()))
            }
            _ => None,
        }
    };
    let told: Vec<String> = devices.iter().filter_map(tell).collect();
    if !told.is_empty() {
        observer.warn(&told.join("; "));
    }
}

/// Tells of each chosen device on which COMMANDs have failed: the others are in use, and a sweep
/// would lose job after job there.
fn tell_of_suspects(devices: &[DeviceId], snapshot: &Snapshot, observer: &mut dyn Observer) {
    let tell = |id: &DeviceId| {
        let device = snapshot.device(*id);
        let is_claimable = device.unclaimable().is_none();
        let why = device.suspicion().filter(|_| is_claimable)?;
        Some(format!("{} {why}", device.label()))
    };
    let told: Vec<String> = devices.iter().filter_map(tell).collect();
    if !told.is_empty() {
        let told = told.join("; ");
        observer.warn(&format!(
            "{told}; it is given because the others are in use"
        ));
    }
}

/// Tells of those of the chosen devices that could not be claimed, by their keys, and why.
fn tell_of_unclaimed(
    unclaimed: &[(String, String)],
    devices: &[DeviceId],
    snapshot: &Snapshot,
    observer: &mut dyn Observer,
) {
    let tell = |id: &DeviceId| {
        let device = snapshot.device(*id);
        let why = unclaimed.iter().find(|(key, _)| *key == device.key());
        why.map(|(_, why)| format!("{} ({why})", device.label()))
    };
    let told: Vec<String> = devices.iter().filter_map(tell).collect();
    observer.unclaimed(&format!(
        "not claimed: {}; other launches may pick the same",
        told.join(", ")
    ));
}

/// What claims know the devices by.
fn keys_of(devices: &[DeviceId], snapshot: &Snapshot) -> Vec<String> {
    devices
        .iter()
        .map(|id| snapshot.device(*id).key())
        .collect()
}

/// A share of this device, which has room for it.
fn share_of(device: Device, bytes: u64) -> claim::Extent {
    let memory = device.memory();
    let free = memory.free.value().unwrap_or(0);
    let shares = device.claims().iter();
    let (held, unused) = shares.fold((0_u64, 0_u64), |(held, unused), share| {
        let all = share.memory.unwrap_or(0);
        let used = share.used_memory.unwrap_or(0);
        (
            held.saturating_add(all),
            unused.saturating_add(all.saturating_sub(used)),
        )
    });
    claim::Extent::Share {
        bytes,
        memory: memory.total.value().unwrap_or(free),
        // What is left now is left for all that are made from now on.
        limit: held.saturating_add(free).saturating_sub(unused),
    }
}

/// For whom to claim a choice of which these ids are printed.
fn claim_for(policy: &ClaimPolicy, ids: &[String]) -> ClaimFor {
    let ids = ids.join(",");
    match policy {
        ClaimPolicy::No | ClaimPolicy::Process => ClaimFor::Process,
        ClaimPolicy::Command { program } => ClaimFor::Command {
            program: program.clone(),
        },
        ClaimPolicy::Shell { hold, form } => {
            let hold = *hold;
            match form {
                OutputForm::Prefix => ClaimFor::Prefix { hold, ids },
                OutputForm::Export => ClaimFor::Shell { hold, ids },
                OutputForm::Ids => ClaimFor::Ids { hold },
            }
        }
    }
}

/// A request under way.
struct Attempt<'a> {
    request: &'a Request,
    /// What the administrator sets for all users.
    site: &'a SiteConfig,
    /// How many GPUs this user may hold, where that is limited.
    limit: Option<limit::Limit>,
    /// What is to be said where the user would hold more, as of the last look.
    over_limit: Option<BlockedDevice>,
    constraints: Constraints,
    /// What narrowed the choice of devices.
    restrictions: Vec<Restriction>,
    /// The constraints as others are told them.
    demand: Demand,
    /// Whether one look is all there will be.
    once: bool,
    deadline: Option<Instant>,
    probe: Box<dyn Probe>,
    claims: Option<ClaimStore>,
    /// The time since boot at which the request came: its place in the queue.
    enqueued_at: Duration,
    /// Set once it waits.
    wake_loop: Option<WakeLoop>,
    ticket: Option<Ticket>,
    /// How often its place is counted anew where the kernel does not tell who leaves the queue.
    place_period: Option<Duration>,
    /// The processes of those ahead that would take whatever this request would take, as of the
    /// last look, the closest one last.
    ahead: Vec<u32>,
    /// Whether these are enough to leave the watching of devices to them.
    may_sleep: bool,
    handoff: Handoff,
    /// What the last look that succeeded waits for.
    last_sources: WakeSources,
    /// Whether one of those ahead tolerates processes: then all of them are to be read.
    others_need_lists: bool,
    backoff: Backoff,
    second_reading: SecondReading,
    links: Links,
    rechecks: Rechecks,
    openers: Openers,
    /// The processes whose exit is waited for, and the position of the GPU that each is on.
    watched: Vec<(u32, usize)>,
    /// The machine as the last look saw it.
    last: Option<Snapshot>,
    /// The GPUs that the present look takes over from the last one, by position.
    carried: Vec<usize>,
    /// When to read all GPUs again though nothing told of a change.
    next_full: Option<Instant>,
}

/// When to read utilization again that alone kept a GPU from being free at the first reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SecondReading {
    NotNeeded,
    DueAt(Instant),
    Done,
}

impl SecondReading {
    /// Whether it is to be made now.
    fn take_due(&mut self) -> bool {
        let is_due = matches!(self, Self::DueAt(time) if *time <= Instant::now());
        if is_due {
            *self = Self::Done;
        }
        is_due
    }
}

/// What one look brought.
struct Observation {
    snapshot: Snapshot,
    selection: Selection,
    known: Vec<Claim>,
    /// How many others came first.
    waiters_ahead: usize,
}

/// What was found.
struct Found {
    snapshot: Snapshot,
    devices: Vec<DeviceId>,
    ids: Vec<String>,
    claim: Option<ClaimGuard>,
}

/// What comes of one look.
enum Outcome {
    Found(Box<Found>),
    /// Look again now.
    Again,
    /// Look again when one of these things has happened.
    Sleep(WakeSources),
}

impl Attempt<'_> {
    /// Looks, and sleeps in between, until something is found; `first` is the beginning of the
    /// first look.
    fn run(mut self, first: Snapshot, observer: &mut dyn Observer) -> Result<Acquisition> {
        let mut extent = Extent::Begun(Box::new(first));
        loop {
            self.check_cancelled()?;
            let outcome = self.step(extent, observer)?;
            let Found {
                mut snapshot,
                devices,
                ids,
                claim,
            } = match outcome {
                Outcome::Found(found) => *found,
                Outcome::Sleep(sources) => {
                    extent = self.sleep(&sources, observer)?;
                    continue;
                }
                Outcome::Again => {
                    extent = Extent::Full;
                    continue;
                }
            };
            if snapshot.process_view == ProcessView::Wsl {
                tracing::info!(
                    "in WSL2 no process can be listed: that little memory is used and little is \
                     computed is all that can be known"
                );
            }
            if self.request.detail == Detail::Everything {
                self.openers.attach(&mut snapshot);
                resolve_processes(&mut snapshot, Scope::Named);
            }
            let cpu_affinity = match self.request.cpu_affinity {
                true => self.cpu_affinity(&snapshot, &devices),
                false => Vec::new(),
            };
            let ancestry = self.claims.as_ref().map(ClaimStore::ancestry).cloned();
            let claimed = claim.as_ref().and_then(ClaimGuard::memory);
            return Ok(Acquisition {
                memory: self.request.share.or(claimed),
                snapshot,
                devices,
                candidates: self.constraints.devices,
                ids,
                cpu_affinity,
                claim,
                ancestry: ancestry.unwrap_or_default(),
            });
        }
    }

    /// One look, and the claim if it finds enough.
    fn step(&mut self, extent: Extent, observer: &mut dyn Observer) -> Result<Outcome> {
        let Observation {
            mut snapshot,
            selection,
            known,
            waiters_ahead,
        } = match self
            .observe(extent, observer)
            .and_then(|look| self.possible(look))
        {
            Ok(look) => look,
            Err(error) if self.wake_loop.is_none() => return Err(error),
            Err(error) => return self.after_failure(error, observer),
        };
        if matches!(self.links, Links::Wanted) {
            self.ask_for_links(&snapshot);
            return Ok(Outcome::Again);
        }
        let free = match selection {
            Selection::Impossible(shortage) => return Err(Error::Impossible(shortage)),
            Selection::Chosen(devices) => {
                let Some((ids, claim)) = self.claim(&snapshot, &devices, observer)? else {
                    // Another launch was faster: look again, not in step with it.
                    let pause = u64::from(std::process::id()) % 64 * 100;
                    std::thread::sleep(Duration::from_micros(pause));
                    return Ok(Outcome::Again);
                };
                if self.constraints.share.is_some() {
                    self.tell_of_overdrawn_shares(&mut snapshot, observer);
                }
                if self.constraints.least_used {
                    tell_of_claims(&devices, &mut snapshot, observer);
                    tell_of_unknown(&devices, &snapshot, observer);
                }
                if self.constraints.devices.len() > devices.len() {
                    tell_of_suspects(&devices, &snapshot, observer);
                }
                return Ok(Outcome::Found(Box::new(Found {
                    snapshot,
                    devices,
                    ids,
                    claim,
                })));
            }
            Selection::NotNow { free } => free,
        };
        if self.wake_loop.is_none() && !self.once {
            if let Some(over) = &self.over_limit {
                observer.warn(&format!("{} {}; waiting", over.label, over.reason));
            }
            // What happens from here on ends the sleep; what happened until here is seen by
            // another look.
            self.start_waiting(observer);
            return Ok(Outcome::Again);
        }
        self.openers.attach(&mut snapshot);
        if self.once || self.is_late() {
            resolve_processes(&mut snapshot, Scope::Named);
            return Err(self.timed_out(&snapshot, free.len()));
        }
        if observer.wants_detail() {
            resolve_processes(&mut snapshot, Scope::All);
        }
        let mut sources = self.wake_sources(&snapshot, &known);
        self.last_sources = sources.clone();
        if !self.rechecks.is_imminent() {
            observer.waiting(&WaitStatus {
                snapshot: &snapshot,
                candidates: &self.constraints.devices,
                free: &free,
                num_gpus: self.constraints.num_gpus,
                min_free_memory: self.constraints.min_free_memory,
                share: self.constraints.share,
                tolerate: self.constraints.tolerate,
                waiters_ahead,
                kept: self.handoff.kept().map_or(&[], |kept| &kept.devices),
                kept_reason: self.handoff.kept().map(|kept| &*kept.reason),
                deadline: self.deadline,
            });
        }
        // A GPU that could not be read may be a free one: no exit tells when it can be.
        let is_unknown =
            |id: &DeviceId| matches!(snapshot.device(*id).verdict(), Verdict::Unknown(_));
        match self.constraints.devices.iter().any(is_unknown) {
            true => sources.add_time(self.backoff.next()),
            false => self.backoff.reset(),
        }
        // What a driver says of utilization while it initializes a GPU is false.
        let seems_busy =
            |id: &DeviceId| matches!(snapshot.device(*id).verdict(), Verdict::SeemsBusy(_));
        let seems_busy = self.constraints.devices.iter().any(seems_busy);
        if seems_busy && self.second_reading == SecondReading::NotNeeded {
            self.second_reading = SecondReading::DueAt(Instant::now() + UTILIZATION_AGAIN);
        }
        if let SecondReading::DueAt(time) = self.second_reading {
            sources.add_time(time);
        }
        self.last = Some(snapshot);
        Ok(Outcome::Sleep(sources))
    }

    /// What comes of a look that failed during a wait: the driver could be read when the wait
    /// began, and what does not answer now may answer later. It is asked ever more rarely; what the
    /// last look found is still waited for.
    fn after_failure(&mut self, error: Error, observer: &mut dyn Observer) -> Result<Outcome> {
        if let Some(wake_loop) = &mut self.wake_loop {
            wake_loop.drain();
        }
        if self.is_late() {
            let after = self.request.timeout.unwrap_or_default();
            return Err(Error::UnreadableInTime {
                after,
                source: Box::new(error),
            });
        }
        if self.backoff.is_fresh() {
            observer.warn(&format!("{error}; it is asked again, ever more rarely"));
        }
        let mut sources = WakeSources {
            at: None,
            ..self.last_sources.clone()
        };
        sources.add_time(self.backoff.next());
        Ok(Outcome::Sleep(sources))
    }

    fn is_late(&self) -> bool {
        self.deadline
            .is_some_and(|deadline| deadline <= Instant::now())
    }

    /// Begins a look, and takes it.
    fn observe(&mut self, extent: Extent, observer: &mut dyn Observer) -> Result<Observation> {
        observer.probe_started(self.deadline);
        let begun = self.begin(extent);
        let look = begun.map(|snapshot| self.look(snapshot));
        observer.probe_finished();
        look
    }

    /// Looks at claims and GPUs, and chooses.
    fn look(&mut self, mut snapshot: Snapshot) -> Observation {
        if let Some(wake_loop) = &mut self.wake_loop {
            wake_loop.drain();
        }
        let mut known = Vec::new();
        match &mut self.claims {
            Some(claims) => {
                known = attach_claims(&mut snapshot, claims);
            }
            // Claims that were recorded count, unless none are to.
            None if self.request.claim == ClaimPolicy::No => forget_claims(&mut snapshot),
            None => {}
        }
        self.read_what_was_released(&snapshot);
        let mut selection = self.choose_settled(&mut snapshot, &mut known);
        let is_chosen = matches!(selection, Selection::Chosen(_));
        let (earlier, courtesy) = match &self.claims {
            Some(claims) if !self.once => (claims.waiters_ahead(self.enqueued_at), Courtesy::ToAll),
            // A launch that looks once has no time to leave to others what they could take now.
            Some(claims) if is_chosen => (
                claims.impatient_ahead(self.enqueued_at),
                Courtesy::ToGatherer,
            ),
            _ => (Vec::new(), Courtesy::ToGatherer),
        };
        let waiters_ahead = earlier.len();
        let own = self.ticket.as_ref().map(Ticket::waiter);
        let covers = earlier
            .iter()
            .filter(|one| own.is_some_and(|own| one.covers(own)));
        self.may_sleep = own.is_some_and(|own| own.may_sleep_behind(covers.clone()));
        self.ahead = covers.filter_map(|one| Some(one.process?.pid)).collect();
        let now = proc::since_boot();
        let gathers = |waiter: &Waiter| waiter.has_lost_patience(now);
        if self.claims.is_none() && is_chosen {
            let remains = self.handoff.yield_as_recorded(&self.constraints, &snapshot);
            selection = remains.unwrap_or(selection);
        } else if earlier.is_empty() || !is_chosen && !earlier.iter().any(gathers) {
            self.handoff.clear();
        } else {
            // What is left to others is judged by what is, not by what was.
            let others_need_lists = earlier
                .iter()
                .any(|waiter| waiter.tolerate.or(waiter.share).is_some());
            if !self.carried.is_empty() || others_need_lists && !self.others_need_lists {
                self.others_need_lists = others_need_lists;
                self.carried.clear();
                self.read_and_select(&mut snapshot);
            }
            self.read_the_rest(&mut snapshot);
            loop {
                let call = |waiter: &Waiter| {
                    self.claims.iter().for_each(|claims| claims.call(waiter));
                };
                selection = self.handoff.yield_to_earlier(
                    &earlier,
                    courtesy,
                    &self.constraints,
                    &snapshot,
                    call,
                );
                match &selection {
                    Selection::Chosen(chosen) if !self.confirm(chosen, &mut snapshot) => {}
                    _ => break,
                }
            }
        }
        Observation {
            snapshot,
            selection,
            known,
            waiters_ahead,
        }
    }

    /// Chooses; a first look that does not find enough waits a moment for what is about to end: it
    /// may be the only one.
    fn choose_settled(&mut self, snapshot: &mut Snapshot, known: &mut Vec<Claim>) -> Selection {
        let mut looks = 0;
        loop {
            let mut selection = self.choose(snapshot);
            self.apply_limit(&mut selection, snapshot);
            // A GPU that comes last is not given before one whose claim is about to end.
            let is_last = |id: &DeviceId| snapshot.device(*id).is_suspect();
            let is_met = match &selection {
                Selection::Chosen(chosen) => {
                    !self.constraints.least_used && !chosen.iter().any(is_last)
                }
                _ => false,
            };
            let is_settled = is_met || !known.iter().any(Claim::is_settling);
            match &mut self.claims {
                Some(claims)
                    if !is_settled && self.wake_loop.is_none() && looks < SETTLING_LOOKS =>
                {
                    looks += 1;
                    std::thread::sleep(SETTLING_PAUSE);
                    *known = attach_claims(snapshot, claims);
                }
                _ => return selection,
            }
        }
    }

    /// Claims what was chosen; `None` where another launch was faster.
    fn claim(
        &mut self,
        snapshot: &Snapshot,
        devices: &[DeviceId],
        observer: &mut dyn Observer,
    ) -> Result<Option<(Vec<String>, Option<ClaimGuard>)>> {
        let ids = ids::for_cuda(devices, self.request.id_form, snapshot)?;
        // Until the claim is made.
        let Ok(_turn) = self.take_turn(devices, snapshot) else {
            return Ok(None);
        };
        let Some(claims) = &mut self.claims else {
            return Ok(Some((ids, None)));
        };
        if self.request.claim == ClaimPolicy::No {
            return Ok(Some((ids, None)));
        }
        let target = |id: &DeviceId| {
            let device = snapshot.device(*id);
            let extent = match (self.constraints.share, device.verdict()) {
                (Some(bytes), _) => share_of(device, bytes),
                // Only the least used one may be another's.
                (None, Verdict::Claimed(_) | Verdict::Shared(_)) => claim::Extent::Guest,
                (None, _) => claim::Extent::Whole,
            };
            Target {
                key: device.key(),
                extent,
            }
        };
        let targets: Vec<Target> = devices.iter().map(target).collect();
        match claims.try_claim(&targets, &claim_for(&self.request.claim, &ids)) {
            Ok(Some(Claimed { guard, unclaimed })) => {
                if !unclaimed.is_empty() {
                    tell_of_unclaimed(&unclaimed, devices, snapshot, observer);
                }
                Ok(Some((ids, guard)))
            }
            Ok(None) => Ok(None),
            // A directory that cannot be used costs the claim, not the job.
            Err(error) => {
                observer.unclaimed(&format!(
                    "the GPUs are not claimed: {error}; other launches may pick the same ones"
                ));
                Ok(Some((ids, None)))
            }
        }
    }

    /// Tells of the shares whose processes hold more than they asked for.
    fn tell_of_overdrawn_shares(&self, snapshot: &mut Snapshot, observer: &mut dyn Observer) {
        let overdrawn = |snapshot: &Snapshot| -> Vec<String> {
            let devices = self
                .constraints
                .devices
                .iter()
                .map(|id| snapshot.device(*id));
            let told = devices.filter_map(|device| {
                let told = device.overdrawn()?;
                Some(format!("{}: {told}", device.label()))
            });
            told.collect()
        };
        if overdrawn(snapshot).is_empty() {
            return;
        }
        resolve_processes(snapshot, Scope::Named);
        observer.warn(&overdrawn(snapshot).join("; "));
    }

    fn start_waiting(&mut self, observer: &mut dyn Observer) {
        let mut wake_loop = WakeLoop::new();
        if let (Some(claims), None) = (&mut self.claims, &self.ticket) {
            match claims.queue(self.enqueued_at, &self.demand) {
                Ok(ticket) => {
                    ticket
                        .calls()
                        .into_iter()
                        .for_each(|calls| wake_loop.listen(calls));
                    if observer.follows_place() {
                        match ticket.departures() {
                            Ok(events) => wake_loop.follow_departures(events),
                            // This user's processes watch as many directories as they may.
                            Err(_) => self.place_period = Some(PLACE_PERIOD),
                        }
                    }
                    self.ticket = Some(ticket);
                }
                Err(error) => {
                    observer.warn(&format!("waiting without a position in the queue: {error}"));
                }
            }
        }
        // Where it cannot be had, the token is looked at whenever something else ends the sleep.
        let cancelled = self.request.cancel.as_ref().map(CancelToken::event);
        let cancelled = cancelled.and_then(|event| event.try_clone_to_owned().ok());
        cancelled
            .into_iter()
            .for_each(|event| wake_loop.wake_while_readable(event));
        self.wake_loop = Some(wake_loop);
    }

    /// The CPU cores near the devices.
    fn cpu_affinity(&mut self, snapshot: &Snapshot, devices: &[DeviceId]) -> Vec<usize> {
        let gpus = devices.iter().map(|id| snapshot.gpus[id.gpu].index);
        let mut cores: Vec<usize> = gpus.flat_map(|gpu| self.probe.cpu_affinity(gpu)).collect();
        cores.sort_unstable();
        cores.dedup();
        cores
    }

    /// Sleeps until another look may bring more, or the deadline has come. Returns how much that
    /// look has to read.
    fn sleep(&mut self, sources: &WakeSources, observer: &mut dyn Observer) -> Result<Extent> {
        let Some(wake_loop) = &mut self.wake_loop else {
            return Ok(Extent::Full);
        };
        // An interval beyond the clock's range is for ever.
        let end = [self.next_full, self.deadline].into_iter().flatten().min();
        let extent = loop {
            let tick = [observer.tick_every(), self.place_period];
            let tick = tick.into_iter().flatten().min();
            let tick = tick.map(|every| Instant::now() + every);
            let reason = wake_loop.sleep(sources, [tick, end].into_iter().flatten().min());
            observer.tick()?;
            if self
                .request
                .cancel
                .as_ref()
                .is_some_and(CancelToken::is_cancelled)
            {
                return Ok(Extent::Full);
            }
            match reason {
                WakeReason::Exited(pids) => {
                    let watched = self.watched.iter().filter(|(pid, _)| pids.contains(pid));
                    let gpus: Vec<usize> = watched.map(|(_, gpu)| *gpu).collect();
                    // The exit of one who waits says nothing of a GPU.
                    break match gpus.is_empty() {
                        true => Extent::Full,
                        false => Extent::Gpus(gpus),
                    };
                }
                WakeReason::Called => break Extent::Full,
                WakeReason::Time => {
                    let due = self.rechecks.take_due();
                    // Another time than that of a recheck has come.
                    let is_other = due.is_empty() || self.backoff.is_due();
                    break match self.second_reading.take_due() || is_other {
                        true => Extent::Full,
                        false => Extent::Gpus(due),
                    };
                }
                WakeReason::Tick if self.place_period.is_none() => {}
                WakeReason::Departed | WakeReason::Tick => {
                    if let Some(claims) = &self.claims {
                        observer.place_changed(claims.waiters_ahead(self.enqueued_at).len());
                    }
                }
            }
            if end.is_some_and(|end| end <= Instant::now()) {
                return Ok(Extent::Full);
            }
        };
        std::thread::sleep(wakeup_jitter(self.ahead.len()));
        Ok(extent)
    }

    fn timed_out(&self, snapshot: &Snapshot, free: usize) -> Error {
        let blocked = |id: &DeviceId| {
            let device = snapshot.device(*id);
            let shortfall = match self.constraints.share {
                Some(bytes) => device.share_shortfall(bytes, self.constraints.tolerate),
                None => device.memory_shortfall(self.constraints.min_free_memory),
            };
            let kept = self.handoff.kept().filter(|kept| kept.devices.contains(id));
            let kept = kept.map(|kept| kept.reason.clone());
            let reason = match device.verdict() {
                Verdict::Free => shortfall.or(kept).or_else(|| device.why_unclaimable())?,
                Verdict::Shared(_) if self.constraints.share.is_some() => shortfall.or(kept)?,
                // The least used one may be in use.
                other if self.constraints.least_used => {
                    shortfall.or_else(|| other.reason().map(str::to_owned))?
                }
                other => other.reason()?.to_owned(),
            };
            Some(BlockedDevice {
                label: device.label(),
                reason,
            })
        };
        let waited = |timeout: &Duration| !timeout.is_zero() && self.wake_loop.is_some();
        Error::TimedOut(Box::new(Timeout {
            requested: self.constraints.num_gpus,
            free,
            after: self.request.timeout.filter(waited),
            least_used: self.request.least_used,
            share: self.request.share.is_some(),
            over_limit: self.over_limit.is_some(),
            blocked: self
                .constraints
                .devices
                .iter()
                .filter_map(blocked)
                .chain(self.over_limit.clone())
                .collect(),
        }))
    }

    /// The look, unless what it saw can never meet the request.
    fn possible(&self, look: Observation) -> Result<Observation> {
        let Selection::Impossible(shortage) = &look.selection else {
            return Ok(look);
        };
        if let Some(why) = probe::none_can_be_read(look.snapshot.source, &look.snapshot.gpus) {
            return Err(Error::no_gpu(why));
        }
        let mut shortage = shortage.clone();
        shortage.restrictions.extend(&self.restrictions);
        Err(Error::Impossible(shortage))
    }

    fn check_cancelled(&self) -> Result<()> {
        match &self.request.cancel {
            Some(token) if token.is_cancelled() => Err(Error::Cancelled),
            _ => Ok(()),
        }
    }
}
