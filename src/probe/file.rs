//! A machine's state read from a file: the JSON that `autocvd status --json` prints.
//!
//! Reading is lenient where that cannot do harm (fields that are missing are unknown, unknown fields are
//! passed over) and strict where it could (a field of the wrong type is an error).

use super::{Detail, Probe};
use crate::gpu::{Gpu, Judgement, Link, ProcessView, Recording, Snapshot, Source, State, json};
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

#[derive(Serialize, Deserialize)]
struct Document<'a> {
    schema: u32,
    source: Source,
    #[serde(default, deserialize_with = "json::time")]
    time: Option<u64>,
    #[serde(default)]
    host: Option<String>,
    #[serde(default)]
    boot_id: Option<String>,
    #[serde(default)]
    version: Option<String>,
    #[serde(default)]
    driver_version: Option<String>,
    #[serde(default)]
    process_view: ProcessView,
    gpus: std::borrow::Cow<'a, [Gpu]>,
    #[serde(default)]
    links: std::borrow::Cow<'a, [Link]>,
}

/// Reads a recorded machine.
///
/// # Errors
/// [`Error::UnreadableFile`] where the file cannot be read or does not hold what `status --json` prints.
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

/// Opens for reading. A FIFO that nobody writes to does not hold us up: it reads as empty; one that has a
/// writer, as in `--from <(…)`, is waited for.
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
    let document: Document = serde_json::from_str(text).map_err(|e| e.to_string())?;
    if document.schema != SCHEMA {
        return Err(format!(
            "schema {} is not known here, only {SCHEMA}",
            document.schema
        ));
    }
    let mut gpus = document.gpus.into_owned();
    gpus.iter_mut().for_each(take_for_recorded);
    gpus.sort_by_key(|gpu| gpu.index);
    if let Some(pair) = gpus.windows(2).find(|pair| pair[0].index == pair[1].index) {
        return Err(format!("two GPUs have index {}", pair[0].index));
    }
    Ok(Snapshot {
        source: Source::File,
        driver_version: document.driver_version,
        process_view: document.process_view,
        gpus,
        links: document.links.into_owned(),
        recording: Some(Box::new(Recording {
            time: document.time,
            host: document.host,
            boot_id: document.boot_id,
            version: document.version,
        })),
    })
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

fn document(snapshot: &Snapshot) -> Document<'_> {
    let recording = snapshot.recording.as_deref().cloned().unwrap_or_default();
    Document {
        schema: SCHEMA,
        source: snapshot.source,
        time: recording.time,
        host: recording.host,
        boot_id: recording.boot_id,
        version: recording.version,
        driver_version: snapshot.driver_version.clone(),
        process_view: snapshot.process_view,
        gpus: (&snapshot.gpus).into(),
        links: (&snapshot.links).into(),
    }
}
