//! What the program tells of a choice: to people with `-v`, to scripts with `--json`.

use autocvd::acquire::{Acquisition, Request};
use autocvd::ids;
use autocvd::select::{self, Verdict};
use std::io::Write;
use tracing::Level;

/// Starts telling on standard error: warnings always, what is done and why with `-v`, more with `-vv`.
/// Without `-v` there is next to nothing to tell, and no subscriber to pay for.
pub(super) fn start(verbose: u8, quiet: bool) {
    let level = match verbose {
        _ if quiet => return,
        0 => return,
        1 => Level::INFO,
        2 => Level::DEBUG,
        _ => Level::TRACE,
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
pub(super) fn choice(found: &Acquisition, request: &Request) {
    let snapshot = &found.snapshot;
    let labels: Vec<String> = found
        .devices
        .iter()
        .map(|device| device.label(snapshot))
        .collect();
    let how = match (request.least_used, request.num_gpus) {
        (true, _) => "the most free memory",
        (false, 1) => "free; the highest index goes first",
        (false, _) => "free; the best connected set goes first, then the highest indices",
    };
    tracing::info!("chose {} ({how})", labels.join(", "));
    for device in ids::devices(snapshot)
        .into_iter()
        .filter(|device| !found.devices.contains(device))
    {
        let why = match select::judge(device, snapshot) {
            Verdict::Unavailable(reason) => reason,
            _ if !found.allowed.contains(&device) => {
                "not to be chosen (--exclude, --only, --inherit, or the launch around this one)"
                    .to_owned()
            }
            Verdict::Free => {
                match select::memory_shortfall(device, snapshot, request.min_free_memory) {
                    Some(reason) => reason,
                    None => "free, but not needed".to_owned(),
                }
            }
            verdict => verdict.reason().unwrap_or("no reason").to_owned(),
        };
        tracing::info!("passed over {}: {why}", device.label(snapshot));
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
    if !ids::indices_are_ordinals(snapshot) {
        tracing::info!(
            "printing UUIDs: a GPU that CUDA does not count, or MIG, makes indices mean other GPUs to CUDA"
        );
    }
}

/// The choice as one JSON object.
pub(super) fn json(found: &Acquisition) -> String {
    let gpus: Vec<serde_json::Value> = found
        .devices
        .iter()
        .map(|device| {
            let gpu = device.gpu(&found.snapshot);
            let name = device
                .mig_device(&found.snapshot)
                .map_or(&gpu.name, |device| &device.name);
            serde_json::json!({
                "index": gpu.index,
                "uuid": device.uuid(&found.snapshot),
                "pci_bus_id": gpu.pci_bus_id,
                "name": name,
            })
        })
        .collect();
    let env: serde_json::Map<_, _> = found
        .variables()
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.into()))
        .collect();
    serde_json::json!({ "gpus": gpus, "env": env }).to_string()
}
