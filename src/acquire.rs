//! Finding GPUs and claiming them: the only place where probing, selecting, claiming and waiting meet.

use crate::claim::{Claim, ClaimGuard, ClaimStore, Form, Holder, Requester, Ticket, Waiter, Wants};
use crate::environment::{Environment, INSIDE, ParentLaunch};
use crate::gpu::{Gpu, Snapshot};
use crate::ids::{self, DeviceId};
use crate::probe::{self, Detail, Probe, ProbeChoice};
use crate::select::{self, Constraints, Selection, Verdict};
use crate::status::{Scope, describe, forget_claims, mark, open_claims};
use crate::wait::{WakeLoop, WakeReason, WakeSources};
use crate::{Error, ErrorKind, Result, amount, proc};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How long somebody who came first may take to take what it could.
const HANDOFF_GRACE: Duration = Duration::from_millis(250);
/// How often to glance at the locks of claims in another PID namespace: nobody tells that one is gone while a child
/// of the claim's process still has the file open.
const LOCK_POLL_INTERVAL: Duration = Duration::from_millis(30);

/// How long to leave a driver alone that has failed while a launch waits; each further failure doubles it.
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// What to find, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// How many GPUs; at least 1.
    pub num_gpus: usize,
    /// Never wait: take those with the most free memory.
    pub least_used: bool,
    /// Give up after this time; zero looks once. `None` waits for ever.
    pub timeout: Option<Duration>,
    /// Look again at least this often while waiting.
    pub interval: Duration,
    /// Ids of GPUs to leave out: indices, starts of UUIDs, PCI bus ids.
    pub exclude: Vec<String>,
    /// Ids of the GPUs to choose among; `None` is all.
    pub only: Option<Vec<String>>,
    /// Only GPUs with this many bytes free.
    pub min_free_memory: Option<u64>,
    /// Choose among what `CUDA_VISIBLE_DEVICES` allows. In a batch job this is so in any case.
    pub inherit: bool,
    /// Name the GPUs by UUID even where an index would do.
    pub uuid: bool,
    /// For whom to claim them.
    pub claim: ClaimPolicy,
    /// Where to read the machine's state.
    pub probe: ProbeChoice,
    /// What to read for showing it.
    pub detail: Detail,
    /// Find out which CPU cores are near the GPUs.
    pub cpu_affinity: bool,
}

impl Default for Request {
    fn default() -> Self {
        Self {
            num_gpus: 1,
            least_used: false,
            timeout: None,
            interval: Duration::from_secs(30),
            exclude: Vec::new(),
            only: None,
            min_free_memory: None,
            inherit: false,
            uuid: false,
            claim: ClaimPolicy::Process {
                command: String::new(),
            },
            probe: ProbeChoice::Auto,
            detail: Detail::default(),
            cpu_affinity: false,
        }
    }
}

/// Whether and for whom to claim what is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClaimPolicy {
    /// Neither heed nor make claims.
    No,
    /// For this process and what it becomes by exec; the claim ends with the [`Acquisition`] or the process.
    Process {
        /// What others are told that it runs; empty for its present command line.
        command: String,
    },
    /// For the shell that started this process.
    Shell {
        /// How long the claim lasts while the shell has not started a program.
        hold: Duration,
        /// What the shell will do with what is printed.
        form: OutputForm,
    },
}

/// What a shell does with a printed choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputForm {
    /// Assignments in front of one command.
    Prefix,
    /// Exported variables.
    Export,
    /// Ids alone.
    Ids,
}

/// GPUs found, and claimed where that was asked for.
#[derive(Debug)]
pub struct Acquisition {
    /// The machine as it was seen. With [`Detail::default`] it holds only what the choice needed.
    pub snapshot: Snapshot,
    /// What was chosen, in ascending order.
    pub devices: Vec<DeviceId>,
    /// The devices that there were to choose among.
    pub allowed: Vec<DeviceId>,
    /// The ids for `CUDA_VISIBLE_DEVICES`.
    pub ids: Vec<String>,
    /// The CPU cores near them, where [`Request::cpu_affinity`] asks for them; empty where unknown.
    pub cpu_affinity: Vec<usize>,
    /// The claim on them.
    pub claim: Option<ClaimGuard>,
    around: Vec<String>,
}

impl Acquisition {
    /// The variables that give the GPUs to a program.
    pub fn variables(&self) -> [(&'static str, String); 2] {
        [
            ("CUDA_DEVICE_ORDER", "PCI_BUS_ID".to_owned()),
            ("CUDA_VISIBLE_DEVICES", self.ids.join(",")),
        ]
    }

    /// The variable that tells an autocvd inside that program what to choose among.
    pub fn inside(&self) -> (&'static str, String) {
        let own = self.claim.as_ref().map(|held| held.name().to_owned());
        let claims = self.around.iter().cloned().chain(own).collect();
        let devices = self
            .devices
            .iter()
            .map(|device| device.key(&self.snapshot))
            .collect();
        (INSIDE, ParentLaunch { claims, devices }.to_string())
    }
}

/// What a waiter sees.
pub struct Waiting<'a> {
    /// The machine, judged.
    pub snapshot: &'a Snapshot,
    /// The devices to choose among.
    pub allowed: &'a [DeviceId],
    /// Those of them that could be given.
    pub free: &'a [DeviceId],
    /// How many are asked for.
    pub num_gpus: usize,
    /// How many bytes each is to have free.
    pub min_free_memory: Option<u64>,
    /// How many others came first and will get what is free.
    pub behind: usize,
    /// When to give up.
    pub deadline: Option<Instant>,
}

/// Who is told what happens meanwhile.
pub trait Observer {
    /// Something is not as it should be, but the work goes on.
    fn warn(&mut self, _text: &str) {}

    /// There is something to wait for: called after each look that found too little.
    fn waiting(&mut self, _waiting: &Waiting) {}

    /// Whether [`waiting`](Self::waiting) wants users, commands and times of processes.
    fn wants_detail(&self) -> bool {
        false
    }

    /// How often [`tick`](Self::tick) is to be called while waiting; it is also called after signals.
    fn tick_every(&self) -> Option<Duration> {
        None
    }

    /// Called before and after the driver is asked, which may take long or for ever.
    fn looking(&mut self, _looking: bool, _deadline: Option<Instant>) {}

    /// Called while waiting; an error ends the wait and becomes its result.
    fn tick(&mut self) -> Result<()> {
        Ok(())
    }
}

/// An observer that looks away.
pub struct NoObserver;

impl Observer for NoObserver {}

/// Finds GPUs as `request` says, waits for them if need be, and claims them.
///
/// # Errors
/// Of every [`ErrorKind`]; the message is one line.
pub fn acquire(
    request: &Request,
    environment: &Environment,
    observer: &mut dyn Observer,
) -> Result<Acquisition> {
    if request.num_gpus == 0 {
        return Err(Error::new(
            ErrorKind::WrongValue,
            "0 GPUs asked for; ask for 1 or more",
        ));
    }
    let enqueued_at = proc::since_boot();
    let requester = if request.claim == ClaimPolicy::No {
        None
    } else {
        Requester::now()
    };
    let deadline = request
        .timeout
        .and_then(|timeout| Instant::now().checked_add(timeout));
    observer.looking(true, deadline);
    let mut probe = probe::open(&request.probe, environment.nvml_library.clone())?;
    let snapshot = probe.begin(request.detail)?;
    observer.looking(false, deadline);
    let around = environment
        .inside
        .as_ref()
        .map(|inside| inside.claims.clone())
        .unwrap_or_default();
    let mut claims = match request.claim {
        ClaimPolicy::No => None,
        _ => open_claims(&environment.claim_dir, around, &*probe, observer),
    };
    if let (Some(claims), Some(requester)) = (&mut claims, requester) {
        claims.set_requester(requester);
    }
    let allowed = allowed(request, environment, &snapshot, claims.as_mut())?;
    let all = ids::devices(&snapshot).len();
    let keys =
        (allowed.len() < all).then(|| allowed.iter().map(|device| device.key(&snapshot)).collect());
    let (num_gpus, min_free_memory) = (request.num_gpus, request.min_free_memory);
    let mut search = Attempt {
        request,
        wants: Wants {
            num_gpus,
            min_free_memory,
            devices: keys,
        },
        constraints: Constraints {
            num_gpus,
            least_used: request.least_used,
            min_free_memory,
            allowed,
        },
        once: request.least_used || !probe.is_live() || request.timeout == Some(Duration::ZERO),
        probe,
        claims,
        enqueued_at,
        deadline,
        wake_loop: None,
        ticket: None,
        rank: 0,
        satisfiable_since: HashMap::new(),
        handoff_deadline: None,
        last_watch: WakeSources::default(),
        retry: None,
    };
    let mut first = Some(snapshot);
    loop {
        match search.step(first.take(), observer)? {
            Outcome::Found {
                mut snapshot,
                devices,
                ids,
                claim,
            } => {
                if request.detail.all {
                    describe(&mut snapshot, Scope::Named);
                }
                let around = search
                    .claims
                    .as_ref()
                    .map(|claims| claims.around().to_vec())
                    .unwrap_or_default();
                let cpu_affinity = if request.cpu_affinity {
                    search.cpu_affinity(&snapshot, &devices)
                } else {
                    Vec::new()
                };
                let allowed = std::mem::take(&mut search.constraints.allowed);
                return Ok(Acquisition {
                    snapshot,
                    devices,
                    allowed,
                    ids,
                    cpu_affinity,
                    claim,
                    around,
                });
            }
            Outcome::Again => {}
            Outcome::Sleep(watch) => search.sleep(&watch, observer)?,
        }
    }
}

/// A request under way.
struct Attempt<'a> {
    request: &'a Request,
    constraints: Constraints,
    /// The wish as others are told it.
    wants: Wants,
    /// Whether one look is all there will be.
    once: bool,
    deadline: Option<Instant>,
    probe: Box<dyn Probe>,
    claims: Option<ClaimStore>,
    /// The time since boot at which the request came: its place in the queue.
    enqueued_at: Duration,
    wake_loop: Option<WakeLoop>,
    ticket: Option<Ticket>,
    /// How many came before, as of the last look.
    rank: usize,
    /// Since when others could have taken what they came first for.
    satisfiable_since: HashMap<String, Instant>,
    /// When the first of those whom the last look let pass has had its time.
    handoff_deadline: Option<Instant>,
    /// What the last look that succeeded waits for.
    last_watch: WakeSources,
    /// When to ask again after looks that did not read all that they needed.
    retry: Option<Retry>,
}

/// The next attempt at a driver that has failed.
#[derive(Clone, Copy)]
struct Retry {
    at: Instant,
    /// How long it was left alone for that.
    pause: Duration,
}

/// What one look brought.
struct Observation {
    snapshot: Snapshot,
    selection: Selection,
    known: Vec<Claim>,
    /// How many others came first and could have what is free.
    behind: usize,
}

/// What comes of one look.
enum Outcome {
    Found {
        snapshot: Snapshot,
        devices: Vec<DeviceId>,
        ids: Vec<String>,
        claim: Option<ClaimGuard>,
    },
    /// Look again now.
    Again,
    /// Look again when one of these things has happened.
    Sleep(WakeSources),
}

impl Attempt<'_> {
    /// One look, from the lock to the claim; `first` is the beginning of the first one.
    fn step(&mut self, first: Option<Snapshot>, observer: &mut dyn Observer) -> Result<Outcome> {
        // Those who came later look without the lock at first: most of them find that somebody before them
        // was faster, and 256 who want the lock would keep the first from it.
        let mut lock = None;
        let mut look = if self.rank > 0 {
            Some(self.begin_and_look(None, observer))
        } else {
            None
        };
        if look.as_ref().is_none_or(|look| {
            matches!(
                look,
                Ok(Observation {
                    selection: Selection::Chosen(_),
                    ..
                })
            )
        }) {
            lock = self.claims.as_ref().map(ClaimStore::lock);
            look = None;
        }
        let look = look.unwrap_or_else(|| self.begin_and_look(first, observer));
        let look = look.and_then(possible);
        let Observation {
            mut snapshot,
            selection,
            known,
            behind,
        } = match look {
            Ok(look) => look,
            Err(error) if self.wake_loop.is_none() => return Err(error),
            Err(error) => {
                drop(lock);
                return self.after_failure(&error, observer);
            }
        };
        let free = match selection {
            Selection::Impossible(why) => return Err(Error::new(ErrorKind::Impossible, why)),
            Selection::Chosen(devices) => match self.claim(&snapshot, &devices, observer)? {
                Some((ids, claim)) => {
                    return Ok(Outcome::Found {
                        snapshot,
                        devices,
                        ids,
                        claim,
                    });
                }
                None => {
                    // Somebody without the lock was faster: look again, not in step with them.
                    drop(lock);
                    std::thread::sleep(Duration::from_micros(
                        u64::from(std::process::id()) % 64 * 100,
                    ));
                    return Ok(Outcome::Again);
                }
            },
            Selection::NotNow { free } => free,
        };
        drop(lock);
        if self.wake_loop.is_none() && !self.once {
            // What happens from here on wakes the sleeper; what happened until here is seen by another look.
            self.start_waiting(observer);
            return Ok(Outcome::Again);
        }
        let late = self
            .deadline
            .is_some_and(|deadline| deadline <= Instant::now());
        if self.once || late {
            describe(&mut snapshot, Scope::Named);
            return Err(self.timed_out(&snapshot, free.len()));
        }
        if observer.wants_detail() {
            describe(&mut snapshot, Scope::All);
        }
        let mut watch = self.watch(&snapshot, &known);
        let (allowed, num_gpus) = (&self.constraints.allowed[..], self.constraints.num_gpus);
        let deadline = self.deadline;
        if !self
            .wake_loop
            .as_ref()
            .is_some_and(WakeLoop::recheck_imminent)
        {
            let (snapshot, free, min_free_memory) =
                (&snapshot, &free[..], self.constraints.min_free_memory);
            observer.waiting(&Waiting {
                snapshot,
                allowed,
                free,
                num_gpus,
                min_free_memory,
                behind,
                deadline,
            });
        }
        self.last_watch = watch.clone();
        // A GPU that could not be read may be a free one: no exit tells when it can be.
        let is_unknown =
            |device: &DeviceId| matches!(select::judge(*device, &snapshot), Verdict::Unknown(_));
        if self.constraints.allowed.iter().any(is_unknown) {
            watch.add_time(self.next_retry());
        } else {
            self.retry = None;
        }
        // Now, for there is time: when it wakes there is none.
        self.rank = self.ticket.as_ref().map_or(0, Ticket::rank);
        Ok(Outcome::Sleep(watch))
    }

    /// What comes of a look that failed during a wait: the driver could be read when the wait began, and what does
    /// not answer now may answer later. It is asked ever more rarely; what the last look found is still waited for.
    fn after_failure(&mut self, error: &Error, observer: &mut dyn Observer) -> Result<Outcome> {
        if let Some(wake_loop) = &mut self.wake_loop {
            wake_loop.rearm();
        }
        if self
            .deadline
            .is_some_and(|deadline| deadline <= Instant::now())
        {
            let limit = amount::duration(self.request.timeout.unwrap_or_default());
            let text = format!("no GPU could be read within {limit}: {error}");
            return Err(Error::new(ErrorKind::TimedOut, text));
        }
        if self.retry.is_none() {
            observer.warn(&format!("{error}; it is asked again, ever more rarely"));
        }
        let mut watch = WakeSources {
            at: None,
            ..self.last_watch.clone()
        };
        watch.add_time(self.next_retry());
        Ok(Outcome::Sleep(watch))
    }

    /// When to ask a driver again that has just failed. Looks that come before that, for other reasons, leave it.
    fn next_retry(&mut self) -> Instant {
        let now = Instant::now();
        match self.retry {
            Some(retry) if retry.at > now => retry.at,
            past => {
                let pause = past
                    .map_or(FIRST_RETRY, |retry| retry.pause.saturating_mul(2))
                    .min(self.request.interval);
                self.retry = Some(Retry {
                    at: now + pause,
                    pause,
                });
                now + pause
            }
        }
    }

    /// Begins a look, unless `first` is its beginning, and takes it.
    fn begin_and_look(
        &mut self,
        first: Option<Snapshot>,
        observer: &mut dyn Observer,
    ) -> Result<Observation> {
        observer.looking(true, self.deadline);
        let begun = first.map_or_else(|| self.probe.begin(self.request.detail), Ok);
        let look = begun.map(|snapshot| self.look(snapshot));
        observer.looking(false, self.deadline);
        look
    }

    /// Reads what a choice left unread: a GPU that was lost while this process waited shifts CUDA's numbers.
    fn read_the_rest(&mut self, snapshot: &mut Snapshot) {
        let unread = |gpu: &Gpu| gpu.processes.is_none() && gpu.mig.is_none();
        for gpu in (0..snapshot.gpus.len())
            .filter(|gpu| unread(&snapshot.gpus[*gpu]))
            .collect::<Vec<_>>()
        {
            self.read(gpu, snapshot);
        }
    }

    /// Looks at claims and GPUs, and chooses.
    fn look(&mut self, mut snapshot: Snapshot) -> Observation {
        if let Some(wake_loop) = &mut self.wake_loop {
            wake_loop.rearm();
        }
        let known = self
            .claims
            .as_mut()
            .map(ClaimStore::live)
            .unwrap_or_default();
        match &self.claims {
            Some(_) => mark(&mut snapshot, &known),
            // Claims that were recorded are heeded, unless none are to be.
            None if self.request.claim == ClaimPolicy::No => forget_claims(&mut snapshot),
            None => {}
        }
        let mut selection = self.read_and_select(&mut snapshot);
        let endless = self.deadline.is_none() && !self.once;
        if endless
            && matches!(selection, Selection::NotNow { .. })
            && known.iter().any(|claim| claim.around)
        {
            // The program that this process is part of holds GPUs that nobody else gets, and does not end
            // before this process does: rather those than to wait for itself for ever.
            let others: Vec<Claim> = known
                .iter()
                .filter(|claim| !claim.around)
                .cloned()
                .collect();
            mark(&mut snapshot, &others);
            selection = self.read_and_select(&mut snapshot);
        }
        let mut behind = 0;
        let first = match (&selection, &self.claims) {
            (Selection::Chosen(_), Some(claims)) if !self.constraints.least_used => {
                claims.waiters_ahead(self.enqueued_at)
            }
            _ => Vec::new(),
        };
        if first.is_empty() {
            self.satisfiable_since.clear();
            self.handoff_deadline = None;
        } else {
            (selection, behind) = self.yield_to_earlier(&first, &mut snapshot);
        }
        if self.wake_loop.is_some()
            && matches!(selection, Selection::Chosen(_))
            && !self.request.uuid
        {
            self.read_the_rest(&mut snapshot);
        }
        Observation {
            snapshot,
            selection,
            known,
            behind,
        }
    }

    /// Reads as many GPUs as the choice needs: where one is enough, the preferred one may settle it.
    fn read_and_select(&mut self, snapshot: &mut Snapshot) -> Selection {
        let mut gpus: Vec<usize> = self
            .constraints
            .allowed
            .iter()
            .map(|device| device.gpu)
            .collect();
        gpus.dedup();
        let one_is_enough = self.constraints.num_gpus == 1
            && !self.constraints.least_used
            && !self.request.detail.all;
        for gpu in gpus.into_iter().rev() {
            let devices = self
                .constraints
                .allowed
                .iter()
                .copied()
                .filter(|device| device.gpu == gpu)
                .collect::<Vec<_>>();
            let claimed =
                |device: &DeviceId| matches!(select::judge(*device, snapshot), Verdict::Claimed(_));
            // Whether it is large enough is to be known at once, claimed or not.
            let settled = !self.constraints.least_used
                && self.constraints.min_free_memory.is_none()
                && !self.request.detail.all;
            if settled && devices.iter().all(claimed) {
                continue;
            }
            self.read(gpu, snapshot);
            if one_is_enough {
                let constraints = Constraints {
                    allowed: devices,
                    ..self.constraints.clone()
                };
                if let chosen @ Selection::Chosen(_) = select::select(snapshot, &constraints) {
                    return chosen;
                }
            }
        }
        if snapshot.links.is_empty() && select::links_matter(snapshot, &self.constraints) {
            let free = select::free(snapshot, &self.constraints);
            snapshot.links = self.probe.links(
                &free
                    .iter()
                    .map(|device| device.gpu(snapshot).index)
                    .collect::<Vec<_>>(),
            );
        }
        select::select(snapshot, &self.constraints)
    }

    fn read(&mut self, gpu: usize, snapshot: &mut Snapshot) {
        let view = snapshot.process_view;
        self.probe
            .read(&mut snapshot.gpus[gpu], view, self.request.detail);
    }

    /// Leaves alone what those who came first would take. Returns what remains, and how many they are.
    fn yield_to_earlier(
        &mut self,
        first: &[Waiter],
        snapshot: &mut Snapshot,
    ) -> (Selection, usize) {
        self.read_the_rest(snapshot);
        let mut left = ids::devices(snapshot);
        let mut waited: HashMap<String, Instant> = HashMap::new();
        self.handoff_deadline = None;
        let now = Instant::now();
        for waiter in first {
            let wanted = |device: &&DeviceId| match &waiter.wants.devices {
                Some(keys) => keys.contains(&device.key(snapshot)),
                None => true,
            };
            let constraints = Constraints {
                num_gpus: waiter.wants.num_gpus,
                least_used: false,
                min_free_memory: waiter.wants.min_free_memory,
                allowed: left.iter().filter(wanted).copied().collect(),
            };
            let Selection::Chosen(theirs) = select::select(snapshot, &constraints) else {
                continue;
            };
            let since = self
                .satisfiable_since
                .get(&waiter.name)
                .copied()
                .unwrap_or(now);
            waited.insert(waiter.name.clone(), since);
            if now.duration_since(since) < HANDOFF_GRACE {
                let end = since + HANDOFF_GRACE;
                self.handoff_deadline =
                    Some(self.handoff_deadline.map_or(end, |known| known.min(end)));
                left.retain(|device| !theirs.contains(device));
            }
        }
        self.satisfiable_since = waited;
        let mut constraints = self.constraints.clone();
        constraints.allowed.retain(|device| left.contains(device));
        match select::select(snapshot, &constraints) {
            chosen @ Selection::Chosen(_) => (chosen, 0),
            // They will have taken it soon, and then it is busy, not impossible.
            Selection::NotNow { free } => {
                (Selection::NotNow { free }, self.satisfiable_since.len())
            }
            Selection::Impossible(_) => (
                Selection::NotNow { free: Vec::new() },
                self.satisfiable_since.len(),
            ),
        }
    }

    /// ClaimStore what was chosen; `None` where somebody else was faster.
    fn claim(
        &mut self,
        snapshot: &Snapshot,
        devices: &[DeviceId],
        observer: &mut dyn Observer,
    ) -> Result<Option<(Vec<String>, Option<ClaimGuard>)>> {
        // After a wait all have been read: one of which nothing can be read now may be none to CUDA.
        let silent = |gpu: &Gpu| {
            gpu.compute_mode.is_none() && gpu.memory.total.is_none() && gpu.mig.is_none()
        };
        let uuid =
            self.request.uuid || (self.wake_loop.is_some() && snapshot.gpus.iter().any(silent));
        let ids = ids::for_cuda(devices, uuid, snapshot)?;
        let Some(claims) = &mut self.claims else {
            return Ok(Some((ids, None)));
        };
        let holder = match &self.request.claim {
            ClaimPolicy::No => return Ok(Some((ids, None))),
            ClaimPolicy::Process { command } => Holder::Process {
                command: command.clone(),
            },
            ClaimPolicy::Shell { hold, form } => {
                let form = match form {
                    OutputForm::Prefix => Form::Prefix(ids.join(",")),
                    OutputForm::Export => Form::Exported(ids.join(",")),
                    OutputForm::Ids => Form::Ids,
                };
                Holder::Shell { hold: *hold, form }
            }
        };
        let keys: Vec<String> = devices.iter().map(|device| device.key(snapshot)).collect();
        match claims.claim(&keys, &holder) {
            Ok(Some(held)) => Ok(Some((ids, Some(held)))),
            Ok(None) => Ok(None),
            // A directory that cannot be used (a full disk, a quota) costs the claim, not the job.
            Err(error) => {
                observer.warn(&format!(
                    "the GPUs are not claimed: {error}; other launches may pick the same ones"
                ));
                Ok(Some((ids, None)))
            }
        }
    }

    fn start_waiting(&mut self, observer: &mut dyn Observer) {
        let mut wake_loop = WakeLoop::new(self.claims.as_ref().map(ClaimStore::path));
        if let (Some(claims), None) = (&mut self.claims, &self.ticket) {
            match claims.queue(self.enqueued_at, &self.wants) {
                Ok(ticket) => {
                    wake_loop.listen(&ticket);
                    self.ticket = Some(ticket);
                }
                Err(error) => {
                    observer.warn(&format!("waiting without a place in the queue: {error}"))
                }
            }
        }
        self.wake_loop = Some(wake_loop);
    }

    /// The CPU cores near the devices.
    fn cpu_affinity(&mut self, snapshot: &Snapshot, devices: &[DeviceId]) -> Vec<usize> {
        let mut cores: Vec<usize> = devices
            .iter()
            .flat_map(|device| self.probe.cpu_affinity(device.gpu(snapshot).index))
            .collect();
        cores.sort_unstable();
        cores.dedup();
        cores
    }

    /// What may free a GPU for this request.
    fn watch(&self, snapshot: &Snapshot, known: &[Claim]) -> WakeSources {
        let mut watch = WakeSources::default();
        let devices: Vec<DeviceId> = self.constraints.allowed.clone();
        let keys: Vec<String> = devices.iter().map(|device| device.key(snapshot)).collect();
        for claim in known
            .iter()
            .filter(|claim| claim.devices.iter().any(|device| keys.contains(device)))
        {
            watch.pids.extend(&claim.end.pids);
            if claim.end.pids.is_empty() {
                watch.out_of_sight.push(claim.name.clone());
            }
            if let Some(at) = claim.end.at {
                watch.add_time(at);
            }
        }
        for device in devices {
            let part = device.mig_device(snapshot).map(|device| &device.processes);
            let processes = part.unwrap_or(&device.gpu(snapshot).processes);
            watch
                .pids
                .extend(processes.iter().flatten().map(|process| process.pid));
        }
        watch.pids.sort_unstable();
        watch.pids.dedup();
        if let Some(end) = self.handoff_deadline {
            watch.add_time(end);
        }
        watch
    }

    /// Sleeps until another look may bring more, or the deadline has come.
    fn sleep(&mut self, watch: &WakeSources, observer: &mut dyn Observer) -> Result<()> {
        let Some(wake_loop) = &mut self.wake_loop else {
            return Ok(());
        };
        // An interval beyond the clock's range is for ever.
        let again = Instant::now().checked_add(self.request.interval);
        let end = [again, self.deadline].into_iter().flatten().min();
        let (claims, out_of_sight) = (self.claims.as_ref(), &watch.out_of_sight);
        let glance = claims
            .filter(|_| !out_of_sight.is_empty())
            .map(|_| LOCK_POLL_INTERVAL);
        loop {
            let tick = [observer.tick_every(), glance]
                .into_iter()
                .flatten()
                .min()
                .map(|every| Instant::now() + every);
            let woken = wake_loop.sleep(watch, [tick, end].into_iter().flatten().min());
            observer.tick()?;
            if woken == WakeReason::Changed
                || claims.is_some_and(|claims| claims.has_let_go(out_of_sight))
            {
                break;
            }
            if end.is_some_and(|end| end <= Instant::now()) {
                return Ok(());
            }
        }
        std::thread::sleep(wakeup_jitter(self.rank));
        Ok(())
    }

    fn timed_out(&self, snapshot: &Snapshot, free: usize) -> Error {
        let wanted = self.constraints.num_gpus;
        let after = match self.request.timeout {
            Some(timeout) if !timeout.is_zero() && self.wake_loop.is_some() => {
                format!("within {}", amount::duration(timeout))
            }
            _ => "now".to_owned(),
        };
        let why: Vec<String> = self
            .constraints
            .allowed
            .iter()
            .filter_map(|device| {
                let verdict = select::judge(*device, snapshot);
                let little =
                    select::memory_shortfall(*device, snapshot, self.constraints.min_free_memory);
                let reason = match &verdict {
                    Verdict::Free => little?,
                    // The least used one may be in use.
                    other if self.constraints.least_used => {
                        little.or_else(|| other.reason().map(str::to_owned))?
                    }
                    other => other.reason()?.to_owned(),
                };
                Some(format!("{}: {reason}", device.label(snapshot)))
            })
            .collect();
        let help = if self.constraints.least_used {
            "try again later"
        } else {
            "wait longer (--timeout), or take the least used (-l)"
        };
        let gpus = if wanted == 1 {
            "no GPU is free".to_owned()
        } else {
            format!("{free} of {wanted} GPUs are free")
        };
        Error::new(
            ErrorKind::TimedOut,
            format!("{gpus} {after} ({}); {help}", why.join("; ")),
        )
    }
}

/// The look, unless what it saw can never meet the request.
fn possible(look: Observation) -> Result<Observation> {
    let Selection::Impossible(why) = &look.selection else {
        return Ok(look);
    };
    Err(
        match probe::none_can_be_read(look.snapshot.source, &look.snapshot.gpus) {
            Some(why) => Error::new(ErrorKind::NoGpu, why),
            None => Error::new(ErrorKind::Impossible, why.clone()),
        },
    )
}

/// Of many who wake at once, each lets those who came before it look first: a millisecond for each of the
/// next ones, less for those further behind, so that nobody's answer takes longer than is promised.
fn wakeup_jitter(rank: usize) -> Duration {
    let (near, far) = (rank.min(20) as u64, rank.saturating_sub(20).min(200) as u64);
    Duration::from_micros(near * 1000 + far * 100)
}

/// The devices that the request may have.
fn allowed(
    request: &Request,
    environment: &Environment,
    snapshot: &Snapshot,
    mut claims: Option<&mut ClaimStore>,
) -> Result<Vec<DeviceId>> {
    let mut allowed = ids::devices(snapshot);
    if let Some(inside) = &environment.inside {
        // Variables travel to other machines and outlive what they tell of: the claims themselves count.
        let keys = match &mut claims {
            Some(claims) if !inside.claims.is_empty() => {
                claims.ancestor_devices().unwrap_or_default()
            }
            _ => inside.devices.clone(),
        };
        let around: Vec<DeviceId> = allowed
            .iter()
            .copied()
            .filter(|device| keys.contains(&device.key(snapshot)))
            .collect();
        if !around.is_empty() {
            tracing::debug!(
                "inside another autocvd: choosing among its {} GPUs",
                around.len()
            );
            allowed = around;
        } else if let Some(claims) = claims {
            claims.ignore_ancestors();
        }
    }
    if request.inherit || environment.batch_job.is_some() {
        if let (false, Some(variable)) = (request.inherit, environment.batch_job) {
            tracing::info!(
                "in a batch job ({variable}): choosing among what CUDA_VISIBLE_DEVICES allows"
            );
        }
        if let Some(value) = &environment.cuda_visible_devices {
            let visible = ids::visible(value, snapshot);
            if visible.is_empty() {
                let text = format!(
                    "CUDA_VISIBLE_DEVICES='{value}' allows none of this machine's GPUs; ask the batch system for GPUs, or unset it"
                );
                return Err(Error::new(ErrorKind::Impossible, text));
            }
            allowed.retain(|device| visible.contains(device));
        }
    }
    let resolve = |option: &str, ids: &[String]| -> Result<Vec<DeviceId>> {
        let mut devices = Vec::new();
        for id in ids {
            devices.extend(
                ids::resolve(id, snapshot)
                    .map_err(|e| Error::new(e.kind(), format!("--{option}: {e}")))?,
            );
        }
        Ok(devices)
    };
    if let Some(only) = &request.only {
        let only = resolve("only", only)?;
        allowed.retain(|device| only.contains(device));
    }
    let exclude = resolve("exclude", &request.exclude)?;
    allowed.retain(|device| !exclude.contains(device));
    Ok(allowed)
}
