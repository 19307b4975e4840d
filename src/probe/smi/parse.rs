//! The output of `nvidia-smi -q -x` and `nvidia-smi -L`, as data: pure functions of text.
//!
//! # Design
//!
//! What is damaged must not read as idle. The document has to be whole (every tag closed, as many GPUs as its
//! header counts); inside it only direct children are read, since `mig_device` holds tags of the same names as
//! the GPU around it; and a list of processes is believed only if everything in it was understood.

use super::xml::{Element, document};
use crate::gpu::{
    ComputeMode, Gpu, Memory, Mig, MigDevice, Process, ProcessKind, ProcessView, Snapshot, Source,
    Utilization,
};
use crate::pci::PciBusId;

/// What nvidia-smi prints, with or without brackets, in place of a value that it has not got.
const ABSENT: [&str; 14] = [
    "",
    "N/A",
    "None",
    "Not Supported",
    "Not Found",
    "Not available in WDDM driver model",
    "Unknown",
    UNKNOWN_ERROR,
    ERR,
    NO_PERMISSION,
    LOST,
    NEEDS_RESET,
    "Requested functionality has been deprecated",
    "Insufficient Size",
];
// The texts of nvmlErrorString, but for ERR!.
const UNKNOWN_ERROR: &str = "Unknown Error";
const ERR: &str = "ERR!";
const NO_PERMISSION: &str = "Insufficient Permissions";
const LOST: &str = "GPU is lost";
const NEEDS_RESET: &str = "GPU requires reset";

/// Reads the output of `nvidia-smi -q -x`. Text around the document (an infoROM warning) is passed over, and its
/// document type is never fetched. [`Snapshot::process_view`] is left to the caller, `links` is empty.
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
            "it counts {attached} GPUs but describes {}; one may be lost: look for Xid errors in 'dmesg', \
             then reset that GPU or reboot",
            gpus.len()
        ));
    }
    // The document's order is the index as far as anybody has seen; the PCI bus order is it by definition.
    if gpus.iter().all(|gpu| gpu.pci_bus_id.is_some()) {
        gpus.sort_by_key(|gpu| gpu.pci_bus_id);
    }
    for (gpu, index) in gpus.iter_mut().zip(0..) {
        gpu.index = index;
    }
    Ok(Snapshot {
        recording: None,
        source: Source::NvidiaSmi,
        driver_version: log.value("driver_version").map(str::to_owned),
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
        compute_mode: element
            .value("compute_mode")
            .and_then(|m| ComputeMode::from_name(&m.replace(' ', "_"))),
        mig: mig(element, rows.as_deref()),
        processes: rows.map(|rows| rows.into_iter().map(|row| row.process).collect()),
        // Hopper and Blackwell beside a Grace CPU; HMM, the other mode, leaves the memory to the driver.
        memory_is_numa_node: element
            .value("addressing_mode")
            .is_some_and(|mode| mode.eq_ignore_ascii_case("ATS")),
        ..Gpu::default()
    };
    if let Some(reason) = unusable(element) {
        // The list of a lost GPU is empty, not unreadable: without the device there is nothing to ask.
        gpu.processes = None;
        for device in gpu.mig.iter_mut().flat_map(|mig| &mut mig.devices) {
            device.processes = None;
            device.unusable = Some(reason.to_owned());
        }
        gpu.unusable = Some(reason.to_owned());
    }
    gpu
}

/// Why a GPU cannot be used and what helps, if so.
fn unusable(gpu: &Element) -> Option<&'static str> {
    let says = |element: &Element, message: &str| bare(&element.text).eq_ignore_ascii_case(message);
    // A lost GPU answers some questions from the driver's cache, so any one field may be the one to tell.
    if gpu.any(&|element| says(element, LOST)) {
        return Some(
            "the GPU is lost: see 'dmesg' for its Xid error, then reboot (or reset the GPU)",
        );
    }
    let required = gpu
        .child("gpu_reset_status")
        .and_then(|status| status.value("reset_required"));
    let action = gpu.value("gpu_recovery_action");
    if required == Some("Yes")
        || action == Some("Reset")
        || gpu.any(&|element| says(element, NEEDS_RESET))
    {
        return Some(
            "the GPU needs a reset: end what runs on it, then run 'nvidia-smi --gpu-reset' as root, or reboot",
        );
    }
    if action == Some("Reboot") {
        return Some("the GPU needs a reboot of the machine to recover from an error");
    }
    // Only what a working GPU always answers: fans, clocks and utilization print errors on sound ones.
    let fb = gpu.child("fb_memory_usage");
    let vital = [
        gpu.child("uuid"),
        gpu.child("product_name"),
        fb,
        fb.and_then(|fb| fb.child("total")),
    ];
    let fails = |message| vital.iter().flatten().any(|element| says(element, message));
    if fails(UNKNOWN_ERROR) || fails(ERR) {
        return Some(
            "the driver cannot read it (Unknown Error): in a container, restart that; else reset it or reboot",
        );
    }
    // The memory of a MIG-enabled GPU is not for everyone to read, its UUID is.
    gpu.child("uuid")
        .is_some_and(|uuid| says(uuid, NO_PERMISSION))
        .then_some(
            "not permitted: ask for access to its /dev/nvidia* device, or pass it to the container",
        )
}

fn memory(owner: &Element) -> Memory {
    let Some(usage) = owner.child("fb_memory_usage") else {
        return Memory::default();
    };
    let get = |name| usage.value(name).and_then(bytes);
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
    let get = |name| element.value(name).and_then(percent);
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

/// A GPU's list of processes, if all of it can be read. No driver since 418 prints anything inside the element
/// for a GPU without processes; `N/A` and its like stand there when the list cannot be had.
fn rows(gpu: &Element) -> Option<Vec<Row>> {
    let list = gpu.child("processes")?;
    if !list.text.trim().is_empty() {
        return None;
    }
    let rows = list.children.iter().map(row).collect::<Option<Vec<_>>>()?;
    // WDDM is WSL2, where the list leaves out what runs under Windows and in other distributions.
    let wddm = gpu
        .child("driver_model")
        .and_then(|model| model.value("current_dm"))
        .is_some_and(|dm| dm != "TCC");
    (!wddm || rows.iter().any(|row| row.process.kind.computes())).then_some(rows)
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
    // `nvidia-smi -L` numbers them in the same order, should the document ever leave them unnumbered.
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
            memory: memory(element),
            ..MigDevice::default()
        });
    let mut devices: Vec<MigDevice> = devices.collect();
    if let Some(rows) = rows {
        distribute(rows, &mut devices);
    }
    Some(Mig { devices })
}

/// Gives each MIG device the processes that are on it. One that cannot be placed may be on any of the devices that
/// it is not known to be off; their lists stay unknown.
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
            .map(|list| list.into_iter().flatten().collect());
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

/// Reads the output of `nvidia-smi -L`, which alone names the UUIDs of MIG devices. Lines that are something else
/// are passed over.
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
