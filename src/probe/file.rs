//! A machine's state read from a file: the JSON that `autocvd status --json` prints.
//!
//! Reading is lenient where that cannot do harm (fields that are missing are unknown, unknown
//! fields are passed over) and strict where it could (a field of the wrong type is an error).

use super::{Detail, Probe};
use crate::gpu::{
    ComputeMode, Fact, Gpu, Health, Judgement, Link, ProcessView, RESERVED, Recording, Snapshot,
    Source, State, WaitingRequest, json,
};
use crate::{Error, Result};
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use std::io::Read;
use std::path::Path;

/// A recorded machine: nothing on it ever changes.
pub(crate) struct FileProbe(pub Snapshot);

impl Probe for FileProbe {
    fn begin(&mut self, _: Detail) -> Result<Snapshot> {
        Ok(self.0.clone())
    }

    fn read(&mut self, _: &mut Gpu, _: ProcessView, _: Detail) {}

    fn links(&mut self, _: &[u32]) -> Vec<Link> {
        self.0.links.clone()
    }

    fn cpu_affinity(&mut self, _: u32) -> Vec<usize> {
        Vec::new()
    }

    fn is_live(&self) -> bool {
        false
    }
}

/// The version of the form.
const SCHEMA: u32 = 1;
/// Far beyond any real machine: 64 GPUs with a thousand processes each are 10 MB.
const MAX_BYTES: u64 = 64 << 20;
/// The same in objects: GPUs, processes, claims, links and waiting requests.
const MAX_OBJECTS: usize = 250_000;
/// The same in GPUs and MIG devices: what weighs them against each other takes the square of their
/// number and more.
const MAX_DEVICES: usize = 512;

#[derive(Deserialize)]
struct Document {
    schema: u32,
    /// Has to be there, and to be one that is known; it says nothing of the machine.
    #[serde(rename = "source")]
    _source: Source,
    #[serde(default, deserialize_with = "json::time")]
    time: Option<u64>,
    host: Option<String>,
    boot_id: Option<String>,
    version: Option<String>,
    driver_version: Option<String>,
    #[serde(default)]
    process_view: ProcessView,
    gpus: Vec<Gpu>,
    #[serde(default)]
    links: Vec<Link>,
    #[serde(default)]
    waiting: Vec<WaitingRequest>,
}

/// What is read of a document beside its facts: which of the null ones this machine does not have.
#[derive(Deserialize)]
struct Absences {
    gpus: Vec<Absence>,
}

#[derive(Deserialize)]
struct Absence {
    #[serde(default)]
    not_applicable: Vec<String>,
}

#[derive(Serialize)]
struct ShownDocument<'a> {
    schema: u32,
    source: Source,
    time: Option<u64>,
    host: Option<&'a str>,
    boot_id: Option<&'a str>,
    version: Option<&'a str>,
    driver_version: Option<&'a str>,
    process_view: ProcessView,
    gpus: Vec<ShownGpu<'a>>,
    links: &'a [Link],
    waiting: &'a [WaitingRequest],
}

#[derive(Serialize)]
struct ShownGpu<'a> {
    #[serde(flatten)]
    gpu: &'a Gpu,
    not_applicable: Vec<&'static str>,
}

/// Lists the facts that do not apply to a GPU, by the names of their members.
fn not_applicable(gpu: &Gpu) -> Vec<&'static str> {
    let facts = [
        ("memory.total", gpu.memory.total.is_not_applicable()),
        ("memory.used", gpu.memory.used.is_not_applicable()),
        ("memory.free", gpu.memory.free.is_not_applicable()),
        ("utilization.gpu", gpu.utilization.gpu.is_not_applicable()),
        (
            "utilization.memory",
            gpu.utilization.memory.is_not_applicable(),
        ),
        ("compute_mode", gpu.compute_mode.is_not_applicable()),
        ("processes", gpu.processes.is_not_applicable()),
    ];
    facts
        .into_iter()
        .filter_map(|(name, applies_not)| applies_not.then_some(name))
        .collect()
}

/// Marks what is unknown of a GPU and listed as not applicable. Names that are not known are passed
/// over.
fn mark_not_applicable(gpu: &mut Gpu, names: &[String]) {
    fn mark<T>(fact: &mut Fact<T>) {
        if fact.is_unknown() {
            *fact = Fact::NotApplicable;
        }
    }
    for name in names {
        match name.as_str() {
            "memory.total" => mark(&mut gpu.memory.total),
            "memory.used" => mark(&mut gpu.memory.used),
            "memory.free" => mark(&mut gpu.memory.free),
            "utilization.gpu" => mark(&mut gpu.utilization.gpu),
            "utilization.memory" => mark(&mut gpu.utilization.memory),
            "compute_mode" => mark(&mut gpu.compute_mode),
            "processes" => mark(&mut gpu.processes),
            _ => {}
        }
    }
}

/// Reads a recorded machine.
///
/// # Errors
/// [`Error::UnreadableFile`] where the file cannot be read or does not hold what `status --json`
/// prints.
pub(crate) fn read(path: &Path) -> Result<Snapshot> {
    let wrong = |reason: String, source| Error::UnreadableFile {
        path: path.to_owned(),
        reason,
        source,
    };
    let mut text = String::new();
    open(path)
        .and_then(|file| file.take(MAX_BYTES + 1).read_to_string(&mut text))
        .map_err(|error| wrong(error.to_string(), Some(error)))?;
    if text.len() as u64 > MAX_BYTES {
        return Err(wrong("the file is larger than 64 MiB".into(), None));
    }
    parse(&text).map_err(|reason| wrong(reason, None))
}

/// Opens for reading. A FIFO without a writer does not block the launch: it reads as empty; one
/// that has a writer, as in `--from <(…)`, is waited for.
fn open(path: &Path) -> std::io::Result<std::fs::File> {
    let at_once = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, at_once, Mode::empty())?;
    rustix::fs::fcntl_setfl(&file, OFlags::empty())?;
    Ok(file.into())
}

/// Parses the text of a recorded machine.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn parse(text: &str) -> std::result::Result<Snapshot, String> {
    if text.trim().is_empty() {
        return Err("the file is empty".into());
    }
    // Each may take half a kilobyte, however few bytes it has in the file.
    if text.bytes().filter(|byte| *byte == b'{').count() > MAX_OBJECTS {
        return Err(format!("the file holds more than {MAX_OBJECTS} objects"));
    }
    let document: Document = serde_json::from_str(text).map_err(|e| e.to_string())?;
    if document.schema != SCHEMA {
        return Err(format!(
            "schema {} is not known here, only {SCHEMA}",
            document.schema
        ));
    }
    let of_gpu = |gpu: &Gpu| 1 + gpu.mig.as_ref().map_or(0, |mig| mig.devices.len());
    if document.gpus.iter().map(of_gpu).sum::<usize>() > MAX_DEVICES {
        return Err(format!(
            "the file holds more than {MAX_DEVICES} GPUs and MIG devices"
        ));
    }
    let absences: Absences = serde_json::from_str(text).map_err(|e| e.to_string())?;
    let mut gpus = document.gpus;
    for (gpu, absence) in gpus.iter_mut().zip(absences.gpus) {
        mark_not_applicable(gpu, &absence.not_applicable);
    }
    gpus.iter_mut().for_each(take_for_recorded);
    gpus.sort_by_key(|gpu| gpu.index);
    if let Some(pair) = gpus.windows(2).find(|pair| pair[0].index == pair[1].index) {
        return Err(format!("two GPUs have index {}", pair[0].index));
    }
    let mut snapshot = Snapshot {
        source: Source::File,
        driver_version: document.driver_version,
        process_view: document.process_view,
        gpus,
        links: document.links,
        waiting: document.waiting,
        recording: Some(Box::new(Recording {
            time: document.time,
            host: document.host,
            boot_id: document.boot_id,
            version: document.version,
        })),
    };
    forget_what_the_facts_tell(&mut snapshot);
    Ok(snapshot)
}

/// What the document says of states was judged when it was written: here it is evidence.
fn take_for_recorded(gpu: &mut Gpu) {
    let recorded = |state: Option<State>, reason: Option<String>| match state {
        Some(State::Unavailable) => {
            let reason = reason.unwrap_or_else(|| "not usable".to_owned());
            (Some(reason), None)
        }
        state => (None, state.map(|state| Judgement { state, reason })),
    };
    (gpu.unusable, gpu.recorded) = recorded(gpu.state.take(), gpu.reason.take());
    for part in gpu.mig.iter_mut().flat_map(|mig| &mut mig.devices) {
        (part.unusable, part.recorded) = recorded(part.state.take(), part.reason.take());
    }
}

/// Forgets that a device could not be used where that follows from what else was recorded: what
/// remains is what the driver itself said, and CUDA does not count such a GPU.
fn forget_what_the_facts_tell(snapshot: &mut Snapshot) {
    for id in snapshot.device_ids() {
        let device = snapshot.device(id);
        let is_nameless = device.uuid().is_none() && device.gpu().has_answered();
        let is_reserved = device.is_reserved() && device.unusable() == Some(RESERVED);
        let has_fault = device.fault().is_some() || is_reserved;
        let gpu = &mut snapshot.gpus[id.gpu];
        let (unusable, recorded) = match (id.mig, &mut gpu.mig) {
            (Some(part), Some(mig)) => {
                let part = &mut mig.devices[part];
                (&mut part.unusable, &mut part.recorded)
            }
            _ => (&mut gpu.unusable, &mut gpu.recorded),
        };
        if has_fault {
            *unusable = None;
        } else if is_nameless && unusable.is_some() {
            // It could not be named; CUDA counts it all the same.
            let (state, reason) = (State::Unavailable, unusable.take());
            *recorded = Some(Judgement { state, reason });
        }
    }
    // What was judged of a divided GPU sums up its parts.
    for gpu in &mut snapshot.gpus {
        let parts = gpu.mig.iter().flat_map(|mig| &mig.devices);
        if parts.clone().next().is_some() {
            gpu.recorded = None;
            let all_alike = parts.clone().all(|part| part.unusable.is_some());
            let is_prohibited = gpu.compute_mode == Fact::Value(ComputeMode::Prohibited);
            let is_sick = gpu.health.and_then(Health::fault).is_some();
            if all_alike || is_prohibited || is_sick {
                gpu.unusable = None;
            }
        }
    }
}

impl Snapshot {
    /// What `autocvd status --json` prints, which [`ProbeChoice::File`](crate::ProbeChoice::File)
    /// reads back.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(&document(self)).expect(SERIALIZES)
    }

    /// The same JSON in one line.
    pub fn to_json_line(&self) -> String {
        serde_json::to_string(&document(self)).expect(SERIALIZES)
    }
}

const SERIALIZES: &str = "plain data with string keys always serializes";

fn document(snapshot: &Snapshot) -> ShownDocument<'_> {
    let recording = snapshot.recording.as_deref();
    let shown = |gpu| ShownGpu {
        gpu,
        not_applicable: not_applicable(gpu),
    };
    ShownDocument {
        schema: SCHEMA,
        source: snapshot.source,
        time: recording.and_then(|recording| recording.time),
        host: recording.and_then(|recording| recording.host.as_deref()),
        boot_id: recording.and_then(|recording| recording.boot_id.as_deref()),
        version: recording.and_then(|recording| recording.version.as_deref()),
        driver_version: snapshot.driver_version.as_deref(),
        process_view: snapshot.process_view,
        gpus: snapshot.gpus.iter().map(shown).collect(),
        links: &snapshot.links,
        waiting: &snapshot.waiting,
    }
}
