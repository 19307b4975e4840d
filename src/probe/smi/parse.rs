//! The output of `nvidia-smi -q -x` and `nvidia-smi -L`, as data: pure functions of text.
//!
//! # Design
//!
//! What is damaged must not read as idle. The document has to be whole (every tag closed, as many
//! GPUs as its header counts); inside it only direct children are read, since `mig_device` holds
//! tags of the same names as the GPU around it; and a list of processes is believed only if
//! everything in it was understood.

use super::xml::{Element, document};
use crate::gpu::{
    ComputeMode, Fact, Gpu, Health, Memory, Mig, MigDevice, Process, ProcessKind, ProcessView,
    RecoveryAction, Snapshot, Source, Utilization,
};
use crate::pci::PciBusId;

/// What nvidia-smi prints, with or without brackets, in place of a value that it has not got.
const ABSENT: [&str; 14] = [
    "",
    NOT_APPLICABLE[0],
    NOT_APPLICABLE[1],
    NOT_APPLICABLE[2],
    "None",
    "Not Found",
    "Not available in WDDM driver model",
    "Unknown",
    UNKNOWN_ERROR,
    ERR,
    NO_PERMISSION,
    LOST,
    NEEDS_RESET,
    "Insufficient Size",
];
/// Those of them that say that the machine has no such thing.
const NOT_APPLICABLE: [&str; 3] = [
    "N/A",
    "Not Supported",
    "Requested functionality has been deprecated",
];
// The texts of nvmlErrorString, but for ERR!.
const UNKNOWN_ERROR: &str = "Unknown Error";
const ERR: &str = "ERR!";
const NO_PERMISSION: &str = "Insufficient Permissions";
const LOST: &str = "GPU is lost";
const NEEDS_RESET: &str = "GPU requires reset";

/// Reads the output of `nvidia-smi -q -x`. Text around the document (an infoROM warning) is passed
/// over, and its document type is never fetched. [`Snapshot::process_view`] is left to the caller,
/// `links` is empty.
///
/// # Errors
/// What is wrong with it, in one line, where the document is not whole.
pub(crate) fn parse(xml: &[u8]) -> Result<Snapshot, String> {
    let log = document(&String::from_utf8_lossy(xml), "nvidia_smi_log")?;
    // A tag that lost its first bracket leaves its rest behind as text.
    if [&log]
        .into_iter()
        .chain(log.children("gpu"))
        .any(|element| !element.text.trim().is_empty())
    {
        return Err("its XML is damaged: there is text between the elements".to_owned());
    }
    let attached = log
        .value("attached_gpus")
        .and_then(|count| count.parse::<usize>().ok());
    let attached = attached.ok_or("its output does not say how many GPUs there are")?;
    let mut gpus: Vec<Gpu> = log.children("gpu").map(gpu).collect();
    if gpus.len() != attached {
        // Leaving one out would shift the numbers of those behind it, and CUDA's with them.
        return Err(format!(
            "it counts {attached} GPUs but describes {}; one may be lost: look for Xid errors in \
             'dmesg', then reset that GPU or reboot",
            gpus.len()
        ));
    }
    // The document's order is the index as far as anybody has seen; the PCI bus order is it by
    // definition.
    if gpus.iter().all(|gpu| gpu.pci_bus_id.is_some()) {
        gpus.sort_by_key(|gpu| gpu.pci_bus_id);
    }
    for (gpu, index) in gpus.iter_mut().zip(0..) {
        gpu.index = index;
    }
    Ok(Snapshot {
        recording: None,
        waiting: Vec::new(),
        source: Source::NvidiaSmi,
        // The second is the name from R610 on, and the only one from CUDA 14 on.
        driver_version: log
            .value("driver_version")
            .or_else(|| log.value("kmd_version"))
            .map(str::to_owned),
        process_view: ProcessView::default(),
        gpus,
        links: Vec::new(),
    })
}

fn gpu(element: &Element) -> Gpu {
    let place = element.child("pci").and_then(|pci| pci.value("pci_bus_id"));
    let pci_bus_id = place.or(element.id.as_deref()).and_then(PciBusId::parse);
    let rows = rows(element);
    let mut gpu = Gpu {
        uuid: element
            .value("uuid")
            .filter(|uuid| uuid.starts_with("GPU-"))
            .map(str::to_owned),
        pci_bus_id,
        name: element.value("product_name").map(str::to_owned),
        memory: memory(element),
        utilization: utilization(element),
        // `Exclusive_Process`, and `Exclusive Process` before driver 346.
        compute_mode: element.fact("compute_mode", |mode| {
            ComputeMode::from_name(&mode.replace(' ', "_"))
        }),
        mig: mig(element, rows.as_ref().value().map(Vec::as_slice)),
        processes: rows.map(processes),
        // Hopper and Blackwell beside a Grace CPU; HMM, the other mode, leaves the memory to the
        // driver.
        memory_is_numa_node: element
            .value("addressing_mode")
            .is_some_and(|mode| mode.eq_ignore_ascii_case("ATS")),
        health: health(element),
        minor_number: number(element, "minor_number"),
        ..Gpu::default()
    };
    if let Some(reason) = unusable(element) {
        // The list of a lost GPU is empty, not unreadable: without the device there is nothing to
        // ask.
        gpu.processes = Fact::Unknown;
        for device in gpu.mig.iter_mut().flat_map(|mig| &mut mig.devices) {
            device.processes = Fact::Unknown;
            device.unusable = Some(reason.to_owned());
        }
        gpu.unusable = Some(reason.to_owned());
    }
    gpu
}

/// Why a GPU cannot be used and what helps, if so.
fn unusable(gpu: &Element) -> Option<&'static str> {
    let says = |element: &Element, message: &str| bare(&element.text).eq_ignore_ascii_case(message);
    // A lost GPU answers some questions from the driver's cache, so any one field may be the one to
    // tell.
    if gpu.any(&|element| says(element, LOST)) {
        return Some(
            "the GPU is lost: see 'dmesg' for its Xid error, then reboot (or reset the GPU)",
        );
    }
    let required = gpu
        .child("gpu_reset_status")
        .and_then(|status| status.value("reset_required"));
    if required == Some("Yes") || gpu.any(&|element| says(element, NEEDS_RESET)) {
        return Some(
            "the GPU needs a reset: end what runs on it, then run 'nvidia-smi --gpu-reset' as \
             root, or reboot",
        );
    }
    // Only what a working GPU always answers: fans, clocks and utilization print errors on sound
    // ones, and an amount of memory that cannot be read is one that is unknown.
    let vital = [
        gpu.child("uuid"),
        gpu.child("product_name"),
        gpu.child("fb_memory_usage"),
    ];
    let fails = |message| vital.iter().flatten().any(|element| says(element, message));
    if fails(UNKNOWN_ERROR) || fails(ERR) {
        return Some(
            "the driver cannot read it (Unknown Error): in a container, restart that; else reset \
             it or reboot",
        );
    }
    // The memory of a MIG-enabled GPU is not for everyone to read, its UUID is.
    gpu.child("uuid")
        .is_some_and(|uuid| says(uuid, NO_PERMISSION))
        .then_some(
            "not permitted: ask for access to its /dev/nvidia* device, or pass it to the container",
        )
}

/// What the driver says of its health; older ones say nothing.
fn health(gpu: &Element) -> Option<Health> {
    // `None` is a value here.
    let action = gpu
        .child("gpu_recovery_action")
        .map(|action| bare(&action.text));
    let action = action.filter(|text| !ABSENT.contains(text) || *text == "None");
    let rows = gpu.child("remapped_rows");
    let failure = rows.and_then(|rows| rows.value("remapped_row_failure"));
    let health = Health {
        recovery_action: action.map(RecoveryAction::from_smi_name),
        remap_failed: failure.map(|failure| failure.eq_ignore_ascii_case("Yes")),
    };
    (health != Health::default()).then_some(health)
}

fn memory(owner: &Element) -> Memory {
    let Some(usage) = owner.child("fb_memory_usage") else {
        return Memory::default();
    };
    let get = |name| usage.fact(name, bytes);
    Memory {
        total: get("total"),
        used: get("used"),
        free: get("free"),
    }
}

fn utilization(gpu: &Element) -> Utilization {
    let Some(element) = gpu.child("utilization") else {
        return Utilization::default();
    };
    let get = |name| element.fact(name, percent);
    Utilization {
        gpu: get("gpu_util"),
        memory: get("memory_util"),
    }
}

/// One `process_info`: the process, and the MIG device that it is on.
struct Row {
    process: Process,
    gpu_instance_id: Option<u32>,
    compute_instance_id: Option<u32>,
}

/// A GPU's list of processes, if all of it can be read. No driver since 418 prints anything inside
/// the element for a GPU without processes; `N/A` and its like stand there when the list cannot be
/// had.
fn rows(gpu: &Element) -> Fact<Vec<Row>> {
    let Some(list) = gpu.child("processes") else {
        return Fact::Unknown;
    };
    match bare(&list.text) {
        "" => {}
        text if NOT_APPLICABLE.contains(&text) => return Fact::NotApplicable,
        _ => return Fact::Unknown,
    }
    let Some(rows) = list.children.iter().map(row).collect::<Option<Vec<_>>>() else {
        return Fact::Unknown;
    };
    // WDDM is Windows', where the list leaves out what runs under Windows and in other
    // distributions. A driver model that cannot be read may be that; Linux's driver says N/A.
    let model = gpu
        .child("driver_model")
        .and_then(|model| model.child("current_dm"));
    let is_wddm = model.is_some_and(|model| !["N/A", "TCC"].contains(&bare(&model.text)));
    if is_wddm && !rows.iter().any(|row| row.process.kind.computes()) {
        return Fact::Unknown;
    }
    Fact::Value(rows)
}

/// The processes of a list, each once: one that computes and draws may be listed as either.
fn processes(rows: Vec<Row>) -> Vec<Process> {
    let mut processes: Vec<Process> = Vec::new();
    for Row { process, .. } in rows {
        match processes.iter_mut().find(|known| known.pid == process.pid) {
            Some(known) => {
                known.kind = match (known.kind, process.kind) {
                    (ProcessKind::Compute, ProcessKind::Graphics)
                    | (ProcessKind::Graphics, ProcessKind::Compute) => ProcessKind::ComputeGraphics,
                    (ProcessKind::Graphics, kind) => kind,
                    (kind, _) => kind,
                };
                known.used_memory = known.used_memory.max(process.used_memory);
            }
            None => processes.push(process),
        }
    }
    processes
}

fn row(info: &Element) -> Option<Row> {
    if info.name != "process_info" || !info.text.trim().is_empty() {
        return None;
    }
    let kind = match info.value("type") {
        Some("G") => ProcessKind::Graphics,
        Some("C+G" | "G+C") => ProcessKind::ComputeGraphics,
        Some("M" | "M+C" | "C+M") => ProcessKind::MpsCompute,
        // Whatever a later driver calls it, it has the GPU.
        _ => ProcessKind::Compute,
    };
    let process = Process {
        pid: info.value("pid")?.parse().ok().filter(|pid| *pid != 0)?,
        kind,
        user: None,
        command: info.value("process_name").map(str::to_owned),
        used_memory: info.value("used_memory").and_then(bytes),
        started: None,
        ignored: false,
        in_share: false,
    };
    Some(Row {
        process,
        gpu_instance_id: number(info, "gpu_instance_id"),
        compute_instance_id: number(info, "compute_instance_id"),
    })
}

fn number(element: &Element, name: &str) -> Option<u32> {
    element.value(name).and_then(|number| number.parse().ok())
}

fn mig(gpu: &Element, rows: Option<&[Row]>) -> Option<Mig> {
    let enabled = gpu
        .child("mig_mode")
        .and_then(|mode| mode.value("current_mig"))
        == Some("Enabled");
    let elements: Vec<&Element> = gpu
        .child("mig_devices")
        .iter()
        .flat_map(|e| e.children("mig_device"))
        .collect();
    if !enabled && elements.is_empty() {
        return None;
    }
    let indices: Vec<Option<u32>> = elements
        .iter()
        .map(|element| number(element, "index"))
        .collect();
    // `nvidia-smi -L` numbers them in the same order, should the document ever leave them
    // unnumbered.
    let numbered = indices
        .iter()
        .enumerate()
        .all(|(at, index)| index.is_some() && !indices[..at].contains(index));
    let devices = elements
        .iter()
        .zip(&indices)
        .zip(0..)
        .map(|((element, index), place)| MigDevice {
            index: index.filter(|_| numbered).unwrap_or(place),
            gpu_instance_id: number(element, "gpu_instance_id"),
            compute_instance_id: number(element, "compute_instance_id"),
            uuid: element
                .value("uuid")
                .filter(|uuid| uuid.starts_with("MIG-"))
                .map(str::to_owned),
            // A share of the GPU's memory is no share of the machine's.
            memory: Some(memory(element))
                .filter(|memory| !memory.used.is_not_applicable())
                .unwrap_or_default(),
            ..MigDevice::default()
        });
    let mut devices: Vec<MigDevice> = devices.collect();
    if let Some(rows) = rows {
        distribute(rows, &mut devices);
    }
    Some(Mig { devices })
}

/// Gives each MIG device the processes that are on it. One that cannot be placed may be on any of
/// the devices that it is not known to be off; their lists stay unknown.
fn distribute(rows: &[Row], devices: &mut [MigDevice]) {
    let place = |row: &Row, device: &MigDevice| match (row.gpu_instance_id, row.compute_instance_id)
    {
        (Some(gi), Some(ci)) => {
            Some((Some(gi), Some(ci)) == (device.gpu_instance_id, device.compute_instance_id))
        }
        (Some(gi), None) if device.gpu_instance_id.is_some_and(|id| id != gi) => Some(false),
        _ => None,
    };
    // On a device that is not listed: then the ids are not what they seem.
    let stray = |row: &Row| {
        devices
            .iter()
            .all(|device| place(row, device) == Some(false))
    };
    if rows.iter().any(stray) {
        return;
    }
    for device in devices {
        let identified = device.gpu_instance_id.is_some() && device.compute_instance_id.is_some();
        let on_it = |row: &Row| place(row, device).map(|on_it| on_it.then(|| row.process.clone()));
        let processes: Option<Vec<_>> = rows.iter().map(on_it).collect();
        device.processes = processes
            .filter(|_| identified)
            .map(|list| list.into_iter().flatten().collect())
            .into();
    }
}

/// A MIG device as `nvidia-smi -L` lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ListedMigDevice {
    /// The UUID of the GPU that it is a part of.
    pub gpu_uuid: String,
    /// Its number on that GPU.
    pub index: u32,
    /// `MIG-` and 36 hexadecimal digits and dashes; before driver 470 `MIG-GPU-<uuid>/<gi>/<ci>`.
    pub uuid: String,
    /// Its profile: `1g.10gb`.
    pub profile: String,
}

/// Reads the output of `nvidia-smi -L`, which alone names the UUIDs of MIG devices. Lines that are
/// something else are passed over.
pub(crate) fn parse_list(text: &[u8]) -> Vec<ListedMigDevice> {
    let text = String::from_utf8_lossy(text);
    let mut gpu = None;
    let mut devices = Vec::new();
    for line in text.lines().map(str::trim) {
        let uuid = line
            .split_once("(UUID: ")
            .and_then(|(_, rest)| rest.split_once(')'))
            .map(|(uuid, _)| uuid.trim());
        if line.starts_with("GPU ") {
            gpu = uuid.filter(|uuid| uuid.starts_with("GPU-"));
        } else if let Some(rest) = line.strip_prefix("MIG ") {
            let Some((profile, rest)) = rest.split_once("Device") else {
                continue;
            };
            let index = rest
                .split_once(':')
                .and_then(|(index, _)| index.trim().parse().ok());
            let uuid = uuid.filter(|uuid| uuid.starts_with("MIG-"));
            if let (Some(gpu), Some(index), Some(uuid)) = (gpu, index, uuid) {
                let (gpu_uuid, uuid, profile) =
                    (gpu.to_owned(), uuid.to_owned(), profile.trim().to_owned());
                devices.push(ListedMigDevice {
                    gpu_uuid,
                    index,
                    uuid,
                    profile,
                });
            }
        }
    }
    devices
}

impl Element {
    /// What the only child of that name says of a fact, as `read` understands its value.
    fn fact<'a, T>(&'a self, name: &str, read: impl FnOnce(&'a str) -> Option<T>) -> Fact<T> {
        let text = self.child(name).map(|child| bare(&child.text));
        match self.value(name) {
            Some(value) => read(value).into(),
            None if text.is_some_and(|text| NOT_APPLICABLE.contains(&text)) => Fact::NotApplicable,
            None => Fact::Unknown,
        }
    }

    /// The text of the only child of that name, if there is one and it holds a value.
    fn value(&self, name: &str) -> Option<&str> {
        let text = self.child(name)?.text.trim();
        (!ABSENT
            .iter()
            .any(|absent| absent.eq_ignore_ascii_case(bare(text))))
        .then_some(text)
    }
}

/// The text without the brackets that some versions put around what is not a value.
fn bare(text: &str) -> &str {
    let text = text.trim();
    text.strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'))
        .unwrap_or(text)
}

/// `40960 MiB`. Drivers before 340 wrote MB and meant MiB.
fn bytes(text: &str) -> Option<u64> {
    let (number, device) = text.split_once(' ')?;
    let factor: u64 = match device.trim() {
        "B" | "bytes" => 1,
        "KiB" | "KB" => 1 << 10,
        "MiB" | "MB" => 1 << 20,
        "GiB" | "GB" => 1 << 30,
        "TiB" | "TB" => 1 << 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

/// `35 %`.
fn percent(text: &str) -> Option<u32> {
    text.strip_suffix('%')?
        .trim_end()
        .parse()
        .ok()
        .filter(|percent| *percent <= 100)
}

#[cfg(test)]
mod tests;
