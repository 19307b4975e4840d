//! What the program reports of a choice or of a failure: to people in words, to scripts as JSON.

use super::exec;
use super::failure::Failure;
use super::options::{Launch, Output, Verbosity};
use autocvd::text;
use autocvd::{Acquisition, DeviceId, Error, Verdict};
use std::io::Write;
use tracing::Level;

/// Starts writing to standard error what the verbosity asks for. Without `-v` there is next to
/// nothing to say, and no subscriber to pay for.
pub(super) fn start(verbosity: Verbosity) {
    let level = match verbosity {
        Verbosity::Quiet | Verbosity::Normal => return,
        Verbosity::Verbose => Level::INFO,
        Verbosity::Debug => Level::DEBUG,
        Verbosity::Trace => Level::TRACE,
    };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(|| IgnoreWriteErrors)
        .with_ansi(false)
        .with_target(false)
        .without_time()
        .with_level(false)
        .init();
}

/// Standard error, where it can be written to: what is told is not worth a job.
struct IgnoreWriteErrors;

impl Write for IgnoreWriteErrors {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        let _ = std::io::stderr().write_all(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Says what was chosen, what was passed over and for what.
pub(super) fn choice(found: &Acquisition, launch: &Launch) {
    let snapshot = &found.snapshot;
    let labels = found.devices.iter().map(|id| snapshot.device(*id).label());
    let labels: Vec<String> = labels.collect();
    let how = match (launch.least_used, found.devices.len()) {
        _ if launch.share.is_some() => "the fullest that has room for the share",
        (true, _) => "the most free memory",
        (false, 1) => "free; the highest index goes first",
        (false, _) => "free; the best connected set goes first, then the highest indices",
    };
    tracing::info!("chose {} ({how})", labels.join(", "));
    let given = found.devices.iter().map(|id| snapshot.device(*id));
    for device in given.filter(|_| !launch.least_used) {
        let verdict = device.verdict();
        if let (Some(why), Verdict::Shared(_)) = (verdict.reason(), &verdict) {
            tracing::info!("{}: {why}", device.label());
        } else if let Some(why) = verdict.reason() {
            tracing::info!("tolerated on {}: {why}, idle (--tolerate)", device.label());
        }
    }
    for device in found.devices.iter().map(|id| snapshot.device(*id)) {
        if let Some(why) = device.suspicion() {
            tracing::info!("{} {why}; there was no other", device.label());
        }
    }
    let passed_over = snapshot
        .devices()
        .filter(|device| !found.devices.contains(&device.id()));
    for device in passed_over {
        let why = match device.verdict() {
            Verdict::Unavailable(reason) => reason,
            _ if !found.candidates.contains(&device.id()) => {
                "not to be chosen (--exclude, --only, --inherit, or the launch around this one)"
                    .to_owned()
            }
            Verdict::Free | Verdict::Shared(_) if launch.share.is_some() => {
                let bytes = launch.share.unwrap_or_default();
                match device.shareable() {
                    Ok(room) if room >= bytes => "there is a fuller one that has room".to_owned(),
                    Ok(room) => format!("only {} of it left", text::bytes(room)),
                    Err(why) => why,
                }
            }
            Verdict::Free => {
                let shortfall = device.memory_shortfall(launch.min_free_memory);
                let last = || device.suspicion().unwrap_or("but not needed".to_owned());
                shortfall.unwrap_or_else(|| format!("free, {}", last()))
            }
            verdict => verdict.reason().unwrap_or("no reason").to_owned(),
        };
        tracing::info!("passed over {}: {why}", device.label());
    }
    for link in &snapshot.links {
        tracing::debug!(
            "GPU {} and GPU {}: {} NVLinks, ancestor {:?}",
            link.gpus.0,
            link.gpus.1,
            link.nvlinks,
            link.ancestor
        );
    }
    if !snapshot.indices_are_ordinals() {
        tracing::info!(
            "printing UUIDs: indices would be ambiguous because a GPU is hidden from CUDA or MIG \
             is enabled"
        );
    }
}

/// The choice as one JSON object.
pub(super) fn json(found: &Acquisition) -> String {
    let gpu = |id: &DeviceId| {
        let device = found.snapshot.device(*id);
        serde_json::json!({
            "index": device.gpu().index,
            "uuid": device.uuid(),
            "pci_bus_id": device.gpu().pci_bus_id.map(|id| id.to_string()),
            "name": device.name(),
        })
    };
    let gpus: Vec<serde_json::Value> = found.devices.iter().map(gpu).collect();
    let env: serde_json::Map<_, _> = found
        .variables()
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.into()))
        .collect();
    serde_json::json!({ "gpus": gpus, "env": env }).to_string()
}

/// The failure that stands for an error of the library.
pub(super) fn failure(error: &Error, launch: &Launch) -> Failure {
    let mut failure = Failure::of(error, &launch.origins);
    if matches!(error, Error::UnknownDevice { .. }) {
        failure.message.push_str(&missing_dashes(launch));
    }
    failure
}

/// `-x 0 python train.py` takes the program for an id.
fn missing_dashes(launch: &Launch) -> String {
    if matches!(launch.output, Output::Command { .. }) {
        return String::new();
    }
    match launch.ids.iter().skip(1).find(|id| exec::is_program(id)) {
        Some(program) => format!("; to run a command, put '--' in front of it: -- {program} …"),
        None => String::new(),
    }
}
