//! The machine's state as nvidia-smi tells it: what there is to fall back to where NVML cannot be
//! loaded.

mod error_text;
pub(crate) mod parse;
mod run;
mod xml;

pub(crate) use error_text::explain;
pub(crate) use parse::{ListedMigDevice, parse, parse_list};
pub(crate) use run::{Output, run};

use super::{Detail, Probe, kernel, process_view};
use crate::Error;
use crate::gpu::{Gpu, Link, ProcessView, Snapshot};
use rustix::fs::{Access, access};
use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Where nvidia-smi lives when it is not on PATH: WSL2, the usual place, GKE and its like, NixOS.
const PLACES: [&str; 5] = [
    "/usr/lib/wsl/lib",
    "/usr/bin",
    "/usr/local/nvidia/bin",
    "/run/opengl-driver/bin",
    "/run/current-system/sw/bin",
];

/// How long a call may take: on large or busy machines it has been seen to take 24 s.
const TIME_LIMIT: Duration = Duration::from_secs(30);

/// nvidia-smi, which tells everything at once.
pub(crate) struct NvidiaSmi {
    /// What the first call told, until it is asked for.
    first: Option<Snapshot>,
}

impl NvidiaSmi {
    /// Calls it for the first time.
    ///
    /// # Errors
    /// One line that says why it is of no help, and what to do.
    pub(crate) fn open() -> Result<Self, String> {
        let first = probe(TIME_LIMIT)?;
        match first.gpus.is_empty() {
            true => Err(
                "nvidia-smi finds no GPU; check that the machine has one and that this process \
                 may see it"
                    .into(),
            ),
            false => Ok(Self { first: Some(first) }),
        }
    }
}

impl Probe for NvidiaSmi {
    fn begin(&mut self, _: Detail) -> crate::Result<Snapshot> {
        let told = self.first.take().map_or_else(|| probe(TIME_LIMIT), Ok);
        let told = told.map_err(Error::no_gpu)?;
        super::with_a_readable_gpu(Snapshot {
            process_view: process_view(),
            ..told
        })
    }

    fn read(&mut self, _: &mut Gpu, _: ProcessView, _: Detail) {}

    fn links(&mut self, _: &[u32]) -> Vec<Link> {
        Vec::new()
    }

    fn cpu_affinity(&mut self, _: u32) -> Vec<usize> {
        Vec::new()
    }
}

/// Reads the machine's state from nvidia-smi: one call, and a second where MIG devices lack their
/// UUIDs.
/// [`Snapshot::process_view`] is left to the caller.
///
/// # Errors
/// What went wrong and what to do about it, in one line.
pub(crate) fn probe(time_limit: Duration) -> Result<Snapshot, String> {
    let program = find(std::env::var_os("PATH").as_deref()).ok_or(
        "nvidia-smi is not on PATH: install the NVIDIA driver's utilities, or add their \
         directory to PATH",
    )?;
    probe_with(program.as_os_str(), time_limit)
}

fn probe_with(program: &OsStr, time_limit: Duration) -> Result<Snapshot, String> {
    let start = Instant::now();
    let mut snapshot = read(&run(program, &["-q", "-x"], time_limit)?)?;
    name_mig_devices(&mut snapshot, || {
        match run(program, &["-L"], time_limit.saturating_sub(start.elapsed())) {
            Ok(output) => parse_list(&output.stdout),
            Err(error) => {
                tracing::warn!("{error}");
                Vec::new()
            }
        }
    });
    for gpu in &mut snapshot.gpus {
        if gpu.memory.used.is_not_applicable() {
            gpu.memory = kernel::shared_memory();
        }
        // The document tells how addresses are translated, not whether the memory is a node.
        gpu.memory_is_numa_node &= kernel::has_node_without_cpus();
    }
    Ok(snapshot)
}

/// The program, as a shell would find it or where it usually is. Entries of PATH that depend on the
/// current directory are passed over.
fn find(path: Option<&OsStr>) -> Option<PathBuf> {
    let on_path =
        std::env::split_paths(path.unwrap_or_default()).filter(|directory| directory.is_absolute());
    let mut candidates = on_path
        .chain(PLACES.map(PathBuf::from))
        .map(|directory| directory.join("nvidia-smi"));
    candidates.find(|program| program.is_file() && access(program, Access::EXEC_OK).is_ok())
}

/// What the output of `nvidia-smi -q -x` says, given how it ended.
fn read(output: &Output) -> Result<Snapshot, String> {
    let text = || {
        let [stdout, stderr] =
            [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
        format!("{stderr}\n{stdout}")
    };
    match (output.code, parse(&output.stdout)) {
        (Some(0), Ok(snapshot)) => Ok(snapshot),
        // 14: an infoROM is corrupt, which does not keep a GPU from computing. Any other code tells
        // of something that befell one GPU or came after the document, if the document is whole.
        (code, Ok(snapshot)) if !snapshot.gpus.is_empty() || code == Some(14) => {
            let warning = String::from_utf8_lossy(&output.stderr);
            tracing::warn!(
                ?code,
                "nvidia-smi complains, but its output is whole: {}",
                warning.trim()
            );
            Ok(snapshot)
        }
        // It succeeded and wrote a document, but not a whole one.
        (Some(0 | 14), Err(error)) if error != xml::NOT_XML => Err(format!(
            "nvidia-smi cannot be relied on: {error}; run 'nvidia-smi -q -x' to see"
        )),
        (code, _) => Err(explain(code, &text())),
    }
}

/// Gives the MIG devices their UUIDs and names, from `list` where they have none.
fn name_mig_devices(snapshot: &mut Snapshot, list: impl FnOnce() -> Vec<ListedMigDevice>) {
    let devices = || {
        snapshot
            .gpus
            .iter()
            .flat_map(|gpu| &gpu.mig)
            .flat_map(|mig| &mig.devices)
    };
    if devices().all(|device| device.uuid.is_some()) {
        return;
    }
    let listed = list();
    let major = snapshot
        .driver_version
        .as_deref()
        .and_then(|v| v.split('.').next()?.parse::<u32>().ok());
    for gpu in &mut snapshot.gpus {
        let Some(gpu_uuid) = gpu.uuid.as_deref() else {
            continue;
        };
        for device in gpu
            .mig
            .iter_mut()
            .flat_map(|mig| &mut mig.devices)
            .filter(|device| device.uuid.is_none())
        {
            if let Some(entry) = listed
                .iter()
                .find(|l| l.gpu_uuid == gpu_uuid && l.index == device.index)
            {
                device.uuid = Some(entry.uuid.clone());
                device.name = gpu
                    .name
                    .as_deref()
                    .map(|name| format!("{name} MIG {}", entry.profile));
            } else if let (Some(..470), Some(gi), Some(ci)) =
                (major, device.gpu_instance_id, device.compute_instance_id)
            {
                // Until driver 470 a MIG device's name was made of numbers.
                device.uuid = Some(format!("MIG-{gpu_uuid}/{gi}/{ci}"));
            }
        }
    }
}

#[cfg(test)]
mod tests;
