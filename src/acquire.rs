//! Finding GPUs and claiming them: the only place where probing, selecting, claiming and waiting meet.

use crate::claim::{Asking, Claim, Claims, Form, Held, Holder, Ticket, Waiter, Wants};
use crate::environment::{Environment, INSIDE, Inside};
use crate::gpu::{Gpu, Snapshot};
use crate::ids::{self, Unit};
use crate::machine::{Whom, describe, forget_claims, mark, open_claims};
use crate::probe::{self, Detail, Probe, ProbeChoice};
use crate::select::{self, Selection, Verdict, Wish};
use crate::wait::{Sleeper, Watch, Woken};
use crate::{Error, ErrorKind, Result, amount, proc};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How long somebody who came first may take to take what it could.
const COURTESY: Duration = Duration::from_millis(250);
/// How often to glance at the locks of claims in another PID namespace: nobody tells that one is gone while a child
/// of the claim's process still has the file open.
const GLANCE: Duration = Duration::from_millis(30);

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
    pub claim: Claiming,
    /// Where to read the machine's state.
    pub probe: ProbeChoice,
    /// What to read for showing it.
    pub detail: Detail,
    /// Find out which CPU cores are near the GPUs.
    pub near_cores: bool,
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
            claim: Claiming::Process { command: String::new() },
            probe: ProbeChoice::Auto,
            detail: Detail::default(),
            near_cores: false,
        }
    }
}

/// Whether and for whom to claim what is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claiming {
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
        use_as: UseAs,
    },
}

/// What a shell does with a printed choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UseAs {
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
    pub units: Vec<Unit>,
    /// The units that there were to choose among.
    pub allowed: Vec<Unit>,
    /// The ids for `CUDA_VISIBLE_DEVICES`.
    pub ids: Vec<String>,
    /// The CPU cores near them, where [`Request::near_cores`] asks for them; empty where unknown.
    pub near_cores: Vec<usize>,
    /// The claim on them.
    pub claim: Option<Held>,
    around: Vec<String>,
}

impl Acquisition {
    /// The variables that give the GPUs to a program.
    pub fn variables(&self) -> [(&'static str, String); 2] {
        [("CUDA_DEVICE_ORDER", "PCI_BUS_ID".to_owned()), ("CUDA_VISIBLE_DEVICES", self.ids.join(","))]
    }

    /// The variable that tells an autocvd inside that program what to choose among.
    pub fn inside(&self) -> (&'static str, String) {
        let own = self.claim.as_ref().map(|held| held.name().to_owned());
        let claims = self.around.iter().cloned().chain(own).collect();
        let units = self.units.iter().map(|unit| unit.key(&self.snapshot)).collect();
        (INSIDE, Inside { claims, units }.to_string())
    }
}

/// What a waiter sees.
pub struct Waiting<'a> {
    /// The machine, judged.
    pub snapshot: &'a Snapshot,
    /// The units to choose among.
    pub allowed: &'a [Unit],
    /// Those of them that could be given.
    pub free: &'a [Unit],
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
pub struct Unobserved;

impl Observer for Unobserved {}

/// Finds GPUs as `request` says, waits for them if need be, and claims them.
///
/// # Errors
/// Of every [`ErrorKind`]; the message is one line.
pub fn acquire(request: &Request, environment: &Environment, observer: &mut dyn Observer) -> Result<Acquisition> {
    if request.num_gpus == 0 {
        return Err(Error::new(ErrorKind::WrongValue, "0 GPUs asked for; ask for 1 or more"));
    }
    let came = proc::since_boot();
    let asking = if request.claim == Claiming::No { None } else { Asking::now() };
    let deadline = request.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    observer.looking(true, deadline);
    let mut probe = probe::open(&request.probe, environment.nvml_library.clone())?;
    let snapshot = probe.begin(request.detail)?;
    observer.looking(false, deadline);
    let around = environment.inside.as_ref().map(|inside| inside.claims.clone()).unwrap_or_default();
    let mut claims = match request.claim {
        Claiming::No => None,
        _ => open_claims(&environment.claim_dir, around, &*probe, observer),
    };
    if let (Some(claims), Some(asking)) = (&mut claims, asking) {
        claims.for_shell(asking);
    }
    let allowed = allowed(request, environment, &snapshot, claims.as_mut())?;
    let all = ids::units(&snapshot).len();
    let keys = (allowed.len() < all).then(|| allowed.iter().map(|unit| unit.key(&snapshot)).collect());
    let (num_gpus, min_free_memory) = (request.num_gpus, request.min_free_memory);
    let mut search = Search {
        request,
        wants: Wants { num_gpus, min_free_memory, units: keys },
        wish: Wish { num_gpus, least_used: request.least_used, min_free_memory, allowed },
        once: request.least_used || !probe.is_live() || request.timeout == Some(Duration::ZERO),
        probe,
        claims,
        came,
        deadline,
        sleeper: None,
        ticket: None,
        rank: 0,
        courtesy: HashMap::new(),
        courtesy_ends: None,
        last_watch: Watch::default(),
        retry: None,
    };
    let mut first = Some(snapshot);
    loop {
        match search.step(first.take(), observer)? {
            Step::Found { mut snapshot, units, ids, claim } => {
                if request.detail.all {
                    describe(&mut snapshot, Whom::Named);
                }
                let around = search.claims.as_ref().map(|claims| claims.around().to_vec()).unwrap_or_default();
                let near_cores = if request.near_cores { search.near_cores(&snapshot, &units) } else { Vec::new() };
                let allowed = std::mem::take(&mut search.wish.allowed);
                return Ok(Acquisition { snapshot, units, allowed, ids, near_cores, claim, around });
            }
            Step::Again => {}
            Step::Sleep(watch) => search.sleep(&watch, observer)?,
        }
    }
}

/// A request under way.
struct Search<'a> {
    request: &'a Request,
    wish: Wish,
    /// The wish as others are told it.
    wants: Wants,
    /// Whether one look is all there will be.
    once: bool,
    deadline: Option<Instant>,
    probe: Box<dyn Probe>,
    claims: Option<Claims>,
    /// The time since boot at which the request came: its place in the queue.
    came: Duration,
    sleeper: Option<Sleeper>,
    ticket: Option<Ticket>,
    /// How many came before, as of the last look.
    rank: usize,
    /// Since when others could have taken what they came first for.
    courtesy: HashMap<String, Instant>,
    /// When the first of those whom the last look let pass has had its time.
    courtesy_ends: Option<Instant>,
    /// What the last look that succeeded waits for.
    last_watch: Watch,
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
struct Look {
    snapshot: Snapshot,
    selection: Selection,
    known: Vec<Claim>,
    /// How many others came first and could have what is free.
    behind: usize,
}

/// What comes of one look.
enum Step {
    Found {
        snapshot: Snapshot,
        units: Vec<Unit>,
        ids: Vec<String>,
        claim: Option<Held>,
    },
    /// Look again now.
    Again,
    /// Look again when one of these things has happened.
    Sleep(Watch),
}

impl Search<'_> {
    /// One look, from the lock to the claim; `first` is the beginning of the first one.
    fn step(&mut self, first: Option<Snapshot>, observer: &mut dyn Observer) -> Result<Step> {
        // Those who came later look without the lock at first: most of them find that somebody before them
        // was faster, and 256 who want the lock would keep the first from it.
        let mut lock = None;
        let mut look = if self.rank > 0 { Some(self.begin_and_look(None, observer)) } else { None };
        if look.as_ref().is_none_or(|look| matches!(look, Ok(Look { selection: Selection::Chosen(_), .. }))) {
            lock = self.claims.as_ref().map(Claims::lock);
            look = None;
        }
        let look = look.unwrap_or_else(|| self.begin_and_look(first, observer));
        let look = look.and_then(possible);
        let Look { mut snapshot, selection, known, behind } = match look {
            Ok(look) => look,
            Err(error) if self.sleeper.is_none() => return Err(error),
            Err(error) => {
                drop(lock);
                return self.after_failure(&error, observer);
            }
        };
        let free = match selection {
            Selection::Impossible(why) => return Err(Error::new(ErrorKind::Impossible, why)),
            Selection::Chosen(units) => match self.claim(&snapshot, &units, observer)? {
                Some((ids, claim)) => return Ok(Step::Found { snapshot, units, ids, claim }),
                None => {
                    // Somebody without the lock was faster: look again, not in step with them.
                    drop(lock);
                    std::thread::sleep(Duration::from_micros(u64::from(std::process::id()) % 64 * 100));
                    return Ok(Step::Again);
                }
            },
            Selection::NotNow { free } => free,
        };
        drop(lock);
        if self.sleeper.is_none() && !self.once {
            // What happens from here on wakes the sleeper; what happened until here is seen by another look.
            self.start_waiting(observer);
            return Ok(Step::Again);
        }
        let late = self.deadline.is_some_and(|deadline| deadline <= Instant::now());
        if self.once || late {
            describe(&mut snapshot, Whom::Named);
            return Err(self.timed_out(&snapshot, free.len()));
        }
        if observer.wants_detail() {
            describe(&mut snapshot, Whom::All);
        }
        let mut watch = self.watch(&snapshot, &known);
        let (allowed, num_gpus) = (&self.wish.allowed[..], self.wish.num_gpus);
        let deadline = self.deadline;
        if !self.sleeper.as_ref().is_some_and(Sleeper::is_settling) {
            let (snapshot, free, min_free_memory) = (&snapshot, &free[..], self.wish.min_free_memory);
            observer.waiting(&Waiting { snapshot, allowed, free, num_gpus, min_free_memory, behind, deadline });
        }
        self.last_watch = watch.clone();
        // A GPU that could not be read may be a free one: no exit tells when it can be.
        let is_unknown = |unit: &Unit| matches!(select::judge(*unit, &snapshot), Verdict::Unknown(_));
        if self.wish.allowed.iter().any(is_unknown) {
            watch.add_time(self.next_retry());
        } else {
            self.retry = None;
        }
        // Now, for there is time: when it wakes there is none.
        self.rank = self.ticket.as_ref().map_or(0, Ticket::rank);
        Ok(Step::Sleep(watch))
    }

    /// What comes of a look that failed during a wait: the driver could be read when the wait began, and what does
    /// not answer now may answer later. It is asked ever more rarely; what the last look found is still waited for.
    fn after_failure(&mut self, error: &Error, observer: &mut dyn Observer) -> Result<Step> {
        if let Some(sleeper) = &mut self.sleeper {
            sleeper.rearm();
        }
        if self.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            let limit = amount::duration(self.request.timeout.unwrap_or_default());
            let text = format!("no GPU could be read within {limit}: {error}");
            return Err(Error::new(ErrorKind::TimedOut, text));
        }
        if self.retry.is_none() {
            observer.warn(&format!("{error}; it is asked again, ever more rarely"));
        }
        let mut watch = Watch { at: None, ..self.last_watch.clone() };
        watch.add_time(self.next_retry());
        Ok(Step::Sleep(watch))
    }

    /// When to ask a driver again that has just failed. Looks that come before that, for other reasons, leave it.
    fn next_retry(&mut self) -> Instant {
        let now = Instant::now();
        match self.retry {
            Some(retry) if retry.at > now => retry.at,
            past => {
                let pause = past.map_or(FIRST_RETRY, |retry| retry.pause.saturating_mul(2)).min(self.request.interval);
                self.retry = Some(Retry { at: now + pause, pause });
                now + pause
            }
        }
    }

    /// Begins a look, unless `first` is its beginning, and takes it.
    fn begin_and_look(&mut self, first: Option<Snapshot>, observer: &mut dyn Observer) -> Result<Look> {
        observer.looking(true, self.deadline);
        let begun = first.map_or_else(|| self.probe.begin(self.request.detail), Ok);
        let look = begun.map(|snapshot| self.look(snapshot));
        observer.looking(false, self.deadline);
        look
    }

    /// Reads what a choice left unread: a GPU that was lost while this process waited shifts CUDA's numbers.
    fn read_the_rest(&mut self, snapshot: &mut Snapshot) {
        let unread = |gpu: &Gpu| gpu.processes.is_none() && gpu.mig.is_none();
        for gpu in (0..snapshot.gpus.len()).filter(|gpu| unread(&snapshot.gpus[*gpu])).collect::<Vec<_>>() {
            self.read(gpu, snapshot);
        }
    }

    /// Looks at claims and GPUs, and chooses.
    fn look(&mut self, mut snapshot: Snapshot) -> Look {
        if let Some(sleeper) = &mut self.sleeper {
            sleeper.rearm();
        }
        let known = self.claims.as_mut().map(Claims::live).unwrap_or_default();
        match &self.claims {
            Some(_) => mark(&mut snapshot, &known),
            // Claims that were recorded are heeded, unless none are to be.
            None if self.request.claim == Claiming::No => forget_claims(&mut snapshot),
            None => {}
        }
        let mut selection = self.read_and_select(&mut snapshot);
        let endless = self.deadline.is_none() && !self.once;
        if endless && matches!(selection, Selection::NotNow { .. }) && known.iter().any(|claim| claim.around) {
            // The program that this process is part of holds GPUs that nobody else gets, and does not end
            // before this process does: rather those than to wait for itself for ever.
            let others: Vec<Claim> = known.iter().filter(|claim| !claim.around).cloned().collect();
            mark(&mut snapshot, &others);
            selection = self.read_and_select(&mut snapshot);
        }
        let mut behind = 0;
        let first = match (&selection, &self.claims) {
            (Selection::Chosen(_), Some(claims)) if !self.wish.least_used => claims.waiting_before(self.came),
            _ => Vec::new(),
        };
        if first.is_empty() {
            self.courtesy.clear();
            self.courtesy_ends = None;
        } else {
            (selection, behind) = self.let_pass(&first, &mut snapshot);
        }
        if self.sleeper.is_some() && matches!(selection, Selection::Chosen(_)) && !self.request.uuid {
            self.read_the_rest(&mut snapshot);
        }
        Look { snapshot, selection, known, behind }
    }

    /// Reads as many GPUs as the choice needs: where one is enough, the preferred one may settle it.
    fn read_and_select(&mut self, snapshot: &mut Snapshot) -> Selection {
        let mut gpus: Vec<usize> = self.wish.allowed.iter().map(|unit| unit.gpu).collect();
        gpus.dedup();
        let one_is_enough = self.wish.num_gpus == 1 && !self.wish.least_used && !self.request.detail.all;
        for gpu in gpus.into_iter().rev() {
            let units = self.wish.allowed.iter().copied().filter(|unit| unit.gpu == gpu).collect::<Vec<_>>();
            let claimed = |unit: &Unit| matches!(select::judge(*unit, snapshot), Verdict::Claimed(_));
            // Whether it is large enough is to be known at once, claimed or not.
            let settled = !self.wish.least_used && self.wish.min_free_memory.is_none() && !self.request.detail.all;
            if settled && units.iter().all(claimed) {
                continue;
            }
            self.read(gpu, snapshot);
            if one_is_enough {
                let wish = Wish { allowed: units, ..self.wish.clone() };
                if let chosen @ Selection::Chosen(_) = select::select(snapshot, &wish) {
                    return chosen;
                }
            }
        }
        if snapshot.links.is_empty() && select::links_matter(snapshot, &self.wish) {
            let free = select::free(snapshot, &self.wish);
            snapshot.links = self.probe.links(&free.iter().map(|unit| unit.gpu(snapshot).index).collect::<Vec<_>>());
        }
        select::select(snapshot, &self.wish)
    }

    fn read(&mut self, gpu: usize, snapshot: &mut Snapshot) {
        let view = snapshot.process_view;
        self.probe.read(&mut snapshot.gpus[gpu], view, self.request.detail);
    }

    /// Leaves alone what those who came first would take. Returns what remains, and how many they are.
    fn let_pass(&mut self, first: &[Waiter], snapshot: &mut Snapshot) -> (Selection, usize) {
        self.read_the_rest(snapshot);
        let mut left = ids::units(snapshot);
        let mut waited: HashMap<String, Instant> = HashMap::new();
        self.courtesy_ends = None;
        let now = Instant::now();
        for waiter in first {
            let wanted = |unit: &&Unit| match &waiter.wants.units {
                Some(keys) => keys.contains(&unit.key(snapshot)),
                None => true,
            };
            let wish = Wish {
                num_gpus: waiter.wants.num_gpus,
                least_used: false,
                min_free_memory: waiter.wants.min_free_memory,
                allowed: left.iter().filter(wanted).copied().collect(),
            };
            let Selection::Chosen(theirs) = select::select(snapshot, &wish) else { continue };
            let since = self.courtesy.get(&waiter.name).copied().unwrap_or(now);
            waited.insert(waiter.name.clone(), since);
            if now.duration_since(since) < COURTESY {
                let end = since + COURTESY;
                self.courtesy_ends = Some(self.courtesy_ends.map_or(end, |known| known.min(end)));
                left.retain(|unit| !theirs.contains(unit));
            }
        }
        self.courtesy = waited;
        let mut wish = self.wish.clone();
        wish.allowed.retain(|unit| left.contains(unit));
        match select::select(snapshot, &wish) {
            chosen @ Selection::Chosen(_) => (chosen, 0),
            // They will have taken it soon, and then it is busy, not impossible.
            Selection::NotNow { free } => (Selection::NotNow { free }, self.courtesy.len()),
            Selection::Impossible(_) => (Selection::NotNow { free: Vec::new() }, self.courtesy.len()),
        }
    }

    /// Claims what was chosen; `None` where somebody else was faster.
    fn claim(
        &mut self,
        snapshot: &Snapshot,
        units: &[Unit],
        observer: &mut dyn Observer,
    ) -> Result<Option<(Vec<String>, Option<Held>)>> {
        // After a wait all have been read: one of which nothing can be read now may be none to CUDA.
        let silent = |gpu: &Gpu| gpu.compute_mode.is_none() && gpu.memory.total.is_none() && gpu.mig.is_none();
        let uuid = self.request.uuid || (self.sleeper.is_some() && snapshot.gpus.iter().any(silent));
        let ids = ids::for_cuda(units, uuid, snapshot)?;
        let Some(claims) = &mut self.claims else { return Ok(Some((ids, None))) };
        let holder = match &self.request.claim {
            Claiming::No => return Ok(Some((ids, None))),
            Claiming::Process { command } => Holder::Process { command: command.clone() },
            Claiming::Shell { hold, use_as } => {
                let form = match use_as {
                    UseAs::Prefix => Form::Prefix(ids.join(",")),
                    UseAs::Export => Form::Exported(ids.join(",")),
                    UseAs::Ids => Form::Ids,
                };
                Holder::Shell { hold: *hold, form }
            }
        };
        let keys: Vec<String> = units.iter().map(|unit| unit.key(snapshot)).collect();
        match claims.claim(&keys, &holder) {
            Ok(Some(held)) => Ok(Some((ids, Some(held)))),
            Ok(None) => Ok(None),
            // A folder that cannot be used (a full disk, a quota) costs the claim, not the job.
            Err(error) => {
                observer.warn(&format!("the GPUs are not claimed: {error}; other launches may pick the same ones"));
                Ok(Some((ids, None)))
            }
        }
    }

    fn start_waiting(&mut self, observer: &mut dyn Observer) {
        let mut sleeper = Sleeper::new(self.claims.as_ref().map(Claims::path));
        if let (Some(claims), None) = (&mut self.claims, &self.ticket) {
            match claims.queue(self.came, &self.wants) {
                Ok(ticket) => {
                    sleeper.listen(&ticket);
                    self.ticket = Some(ticket);
                }
                Err(error) => observer.warn(&format!("waiting without a place in the queue: {error}")),
            }
        }
        self.sleeper = Some(sleeper);
    }

    /// The CPU cores near the units.
    fn near_cores(&mut self, snapshot: &Snapshot, units: &[Unit]) -> Vec<usize> {
        let mut cores: Vec<usize> =
            units.iter().flat_map(|unit| self.probe.near_cores(unit.gpu(snapshot).index)).collect();
        cores.sort_unstable();
        cores.dedup();
        cores
    }

    /// What may free a GPU for this request.
    fn watch(&self, snapshot: &Snapshot, known: &[Claim]) -> Watch {
        let mut watch = Watch::default();
        let units: Vec<Unit> = self.wish.allowed.clone();
        let keys: Vec<String> = units.iter().map(|unit| unit.key(snapshot)).collect();
        for claim in known.iter().filter(|claim| claim.units.iter().any(|unit| keys.contains(unit))) {
            watch.pids.extend(&claim.end.pids);
            if claim.end.pids.is_empty() {
                watch.out_of_sight.push(claim.name.clone());
            }
            if let Some(at) = claim.end.at {
                watch.add_time(at);
            }
        }
        for unit in units {
            let part = unit.mig_device(snapshot).map(|device| &device.processes);
            let processes = part.unwrap_or(&unit.gpu(snapshot).processes);
            watch.pids.extend(processes.iter().flatten().map(|process| process.pid));
        }
        watch.pids.sort_unstable();
        watch.pids.dedup();
        if let Some(end) = self.courtesy_ends {
            watch.add_time(end);
        }
        watch
    }

    /// Sleeps until another look may bring more, or the deadline has come.
    fn sleep(&mut self, watch: &Watch, observer: &mut dyn Observer) -> Result<()> {
        let Some(sleeper) = &mut self.sleeper else { return Ok(()) };
        // An interval beyond the clock's range is for ever.
        let again = Instant::now().checked_add(self.request.interval);
        let end = [again, self.deadline].into_iter().flatten().min();
        let (claims, out_of_sight) = (self.claims.as_ref(), &watch.out_of_sight);
        let glance = claims.filter(|_| !out_of_sight.is_empty()).map(|_| GLANCE);
        loop {
            let tick = [observer.tick_every(), glance].into_iter().flatten().min().map(|every| Instant::now() + every);
            let woken = sleeper.sleep(watch, [tick, end].into_iter().flatten().min());
            observer.tick()?;
            if woken == Woken::Changed || claims.is_some_and(|claims| claims.has_let_go(out_of_sight)) {
                break;
            }
            if end.is_some_and(|end| end <= Instant::now()) {
                return Ok(());
            }
        }
        std::thread::sleep(stagger(self.rank));
        Ok(())
    }

    fn timed_out(&self, snapshot: &Snapshot, free: usize) -> Error {
        let wanted = self.wish.num_gpus;
        let after = match self.request.timeout {
            Some(timeout) if !timeout.is_zero() && self.sleeper.is_some() => {
                format!("within {}", amount::duration(timeout))
            }
            _ => "now".to_owned(),
        };
        let why: Vec<String> = self
            .wish
            .allowed
            .iter()
            .filter_map(|unit| {
                let verdict = select::judge(*unit, snapshot);
                let little = select::too_little(*unit, snapshot, self.wish.min_free_memory);
                let reason = match &verdict {
                    Verdict::Free => little?,
                    // The least used one may be in use.
                    other if self.wish.least_used => little.or_else(|| other.reason().map(str::to_owned))?,
                    other => other.reason()?.to_owned(),
                };
                Some(format!("{}: {reason}", unit.label(snapshot)))
            })
            .collect();
        let help = if self.wish.least_used {
            "try again later"
        } else {
            "wait longer (--timeout), or take the least used (-l)"
        };
        let gpus = if wanted == 1 { "no GPU is free".to_owned() } else { format!("{free} of {wanted} GPUs are free") };
        Error::new(ErrorKind::TimedOut, format!("{gpus} {after} ({}); {help}", why.join("; ")))
    }
}

/// The look, unless what it saw can never meet the request.
fn possible(look: Look) -> Result<Look> {
    let Selection::Impossible(why) = &look.selection else { return Ok(look) };
    Err(match probe::none_can_be_read(look.snapshot.source, &look.snapshot.gpus) {
        Some(why) => Error::new(ErrorKind::NoGpu, why),
        None => Error::new(ErrorKind::Impossible, why.clone()),
    })
}

/// Of many who wake at once, each lets those who came before it look first: a millisecond for each of the
/// next ones, less for those further behind, so that nobody's answer takes longer than is promised.
fn stagger(rank: usize) -> Duration {
    let (near, far) = (rank.min(20) as u64, rank.saturating_sub(20).min(200) as u64);
    Duration::from_micros(near * 1000 + far * 100)
}

/// The units that the request may have.
fn allowed(
    request: &Request,
    environment: &Environment,
    snapshot: &Snapshot,
    mut claims: Option<&mut Claims>,
) -> Result<Vec<Unit>> {
    let mut allowed = ids::units(snapshot);
    if let Some(inside) = &environment.inside {
        // Variables travel to other machines and outlive what they tell of: the claims themselves count.
        let keys = match &mut claims {
            Some(claims) if !inside.claims.is_empty() => claims.surroundings().unwrap_or_default(),
            _ => inside.units.clone(),
        };
        let around: Vec<Unit> = allowed.iter().copied().filter(|unit| keys.contains(&unit.key(snapshot))).collect();
        if !around.is_empty() {
            tracing::debug!("inside another autocvd: choosing among its {} GPUs", around.len());
            allowed = around;
        } else if let Some(claims) = claims {
            claims.forget_surroundings();
        }
    }
    if request.inherit || environment.batch_job.is_some() {
        if let (false, Some(variable)) = (request.inherit, environment.batch_job) {
            tracing::info!("in a batch job ({variable}): choosing among what CUDA_VISIBLE_DEVICES allows");
        }
        if let Some(value) = &environment.cuda_visible_devices {
            let visible = ids::visible(value, snapshot);
            if visible.is_empty() {
                let text = format!(
                    "CUDA_VISIBLE_DEVICES='{value}' allows none of this machine's GPUs; ask the batch system for GPUs, or unset it"
                );
                return Err(Error::new(ErrorKind::Impossible, text));
            }
            allowed.retain(|unit| visible.contains(unit));
        }
    }
    let resolve = |option: &str, ids: &[String]| -> Result<Vec<Unit>> {
        let mut units = Vec::new();
        for id in ids {
            units.extend(ids::resolve(id, snapshot).map_err(|e| Error::new(e.kind(), format!("--{option}: {e}")))?);
        }
        Ok(units)
    };
    if let Some(only) = &request.only {
        let only = resolve("only", only)?;
        allowed.retain(|unit| only.contains(unit));
    }
    let exclude = resolve("exclude", &request.exclude)?;
    allowed.retain(|unit| !exclude.contains(unit));
    Ok(allowed)
}
