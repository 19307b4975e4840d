//! A machine's state read from a file: the JSON that `autocvd status --json` prints.
//!
//! Reading is lenient where that cannot do harm (fields that are missing are unknown, unknown fields are
//! passed over) and strict where it could (a field of the wrong type is an error).

use super::{Detail, Probe};
use crate::gpu::{Gpu, Link, Mig, ProcessView, Snapshot, Source};
use crate::{Error, ErrorKind, Result};
use rustix::fs::{Mode, OFlags};
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::io::Read;
use std::path::Path;

/// A recorded machine: nothing on it ever changes.
pub struct FileProbe(pub Snapshot);

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
/// [`ErrorKind::WrongValue`] where the file cannot be read or does not hold what `status --json` prints.
pub fn read(path: &Path) -> Result<Snapshot> {
    let wrong = |what: String| {
        let hint = "give a file that 'autocvd status --json' wrote";
        Error::new(
            ErrorKind::WrongValue,
            format!("--from '{}': {what}; {hint}", path.display()),
        )
    };
    let mut text = String::new();
    open(path)
        .and_then(|file| file.take(MAX_BYTES + 1).read_to_string(&mut text))
        .map_err(|e| wrong(e.to_string()))?;
    if text.len() as u64 > MAX_BYTES {
        return Err(wrong("the file is larger than 64 MiB".into()));
    }
    parse(&text).map_err(wrong)
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
pub fn parse(text: &str) -> std::result::Result<Snapshot, String> {
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
    })
}

/// The JSON of a snapshot, which [`parse`] reads back.
pub fn to_json(snapshot: &Snapshot) -> String {
    serde_json::to_string_pretty(&document(snapshot)).expect(SERIALIZES)
}

/// The same JSON in one line.
pub fn to_json_line(snapshot: &Snapshot) -> String {
    serde_json::to_string(&document(snapshot)).expect(SERIALIZES)
}

const SERIALIZES: &str = "plain data with string keys always serializes";

fn document(snapshot: &Snapshot) -> Document<'_> {
    Document {
        schema: SCHEMA,
        source: snapshot.source,
        driver_version: snapshot.driver_version.clone(),
        process_view: snapshot.process_view,
        gpus: (&snapshot.gpus).into(),
        links: (&snapshot.links).into(),
    }
}

/// `"mig"`: an object with devices where MIG is enabled; anything that says 'not enabled' is read as none.
// Not an untagged enum: serde's code for one is larger than all that parses command lines here.
pub(crate) fn mig<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<Option<Mig>, D::Error> {
    struct Form;

    impl<'de> Visitor<'de> for Form {
        type Value = Option<Mig>;

        fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
            f.write_str("an object with MIG devices, true, false, a word or null")
        }

        fn visit_unit<E>(self) -> std::result::Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_bool<E>(self, enabled: bool) -> std::result::Result<Self::Value, E> {
            Ok(enabled.then(Mig::default))
        }

        fn visit_str<E>(self, word: &str) -> std::result::Result<Self::Value, E> {
            Ok(word.eq_ignore_ascii_case("enabled").then(Mig::default))
        }

        fn visit_map<A: MapAccess<'de>>(
            self,
            mut map: A,
        ) -> std::result::Result<Self::Value, A::Error> {
            let (mut enabled, mut mig) = (true, Mig::default());
            while let Some(key) = map.next_key::<String>()? {
                match key.as_str() {
                    "enabled" => enabled = map.next_value()?,
                    "devices" => mig.devices = map.next_value()?,
                    _ => {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
            }
            Ok(enabled.then_some(mig))
        }
    }

    deserializer.deserialize_any(Form)
}

/// Unix time in seconds; what is not a whole number is unknown, for it only serves display.
pub(crate) fn time<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<Option<u64>, D::Error> {
    let value = Option::<serde_json::Value>::deserialize(deserializer)?;
    Ok(value.and_then(|value| {
        value
            .as_u64()
            .or_else(|| value.as_f64().map(|seconds| seconds as u64))
    }))
}

/// NVML's names in NVML's spelling; nvidia-smi's (`Exclusive_Process`) are read too.
pub(crate) mod compute_mode {
    use crate::gpu::ComputeMode;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    pub(crate) fn serialize<S: Serializer>(
        mode: &Option<ComputeMode>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        mode.map(ComputeMode::name).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<ComputeMode>, D::Error> {
        let Some(word) = Option::<String>::deserialize(deserializer)? else {
            return Ok(None);
        };
        ComputeMode::from_name(&word)
            .map(Some)
            .ok_or_else(|| D::Error::custom(format!("unknown compute mode '{word}'")))
    }
}
