//! The names of GPUs: what a user may write, what `CUDA_VISIBLE_DEVICES` means, and what to print.

use crate::gpu::{ComputeMode, Gpu, MigDevice, Snapshot, Source, State};
use crate::{Error, ErrorKind, Result};

/// What a process can be given: a whole GPU, or one MIG device of a GPU on which MIG is enabled.
/// Positions are those in [`Snapshot::gpus`] and [`Mig::devices`](crate::gpu::Mig::devices); the order
/// is that of the indices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId {
    /// The GPU's position in the snapshot.
    pub gpu: usize,
    /// The MIG device's position on it.
    pub mig: Option<usize>,
}

impl DeviceId {
    /// The GPU, or the one that the MIG device is part of.
    pub fn gpu(self, snapshot: &Snapshot) -> &Gpu {
        &snapshot.gpus[self.gpu]
    }

    /// The MIG device, where it is one.
    pub fn mig_device(self, snapshot: &Snapshot) -> Option<&MigDevice> {
        let mig = snapshot.gpus[self.gpu].mig.as_ref()?;
        mig.devices.get(self.mig?)
    }

    /// Its UUID.
    pub fn uuid(self, snapshot: &Snapshot) -> Option<&str> {
        match self.mig_device(snapshot) {
            Some(device) => device.uuid.as_deref(),
            None => self.gpu(snapshot).uuid.as_deref(),
        }
    }

    /// What claims know it by: its UUID, else its place on the bus, which other launches read alike.
    pub fn key(self, snapshot: &Snapshot) -> String {
        let gpu = self.gpu(snapshot);
        let own = self
            .uuid(snapshot)
            .or(gpu.pci_bus_id.as_deref())
            .map(str::to_owned);
        own.unwrap_or_else(|| format!("index-{}", gpu.index))
    }

    /// What people call it: `GPU 2`, or `GPU 2 MIG 0`.
    pub fn label(self, snapshot: &Snapshot) -> String {
        let gpu = self.gpu(snapshot).index;
        match self.mig_device(snapshot) {
            Some(device) => format!("GPU {gpu} MIG {}", device.index),
            None => format!("GPU {gpu}"),
        }
    }
}

/// All that can be given on this machine, in ascending order.
pub fn devices(snapshot: &Snapshot) -> Vec<DeviceId> {
    let mut devices = Vec::with_capacity(snapshot.gpus.len());
    (0..snapshot.gpus.len()).for_each(|gpu| add_devices_of(snapshot, gpu, &mut devices));
    devices
}

/// The GPU itself; its MIG devices where MIG is enabled, for then it cannot be used as a whole.
fn add_devices_of(snapshot: &Snapshot, gpu: usize, devices: &mut Vec<DeviceId>) {
    match &snapshot.gpus[gpu].mig {
        Some(mig) if !mig.devices.is_empty() => {
            devices.extend((0..mig.devices.len()).map(|device| DeviceId {
                gpu,
                mig: Some(device),
            }));
        }
        _ => devices.push(DeviceId { gpu, mig: None }),
    }
}

fn devices_of(snapshot: &Snapshot, gpu: usize) -> Vec<DeviceId> {
    let mut devices = Vec::new();
    add_devices_of(snapshot, gpu, &mut devices);
    devices
}

/// The devices that an id names: an index, a UUID or a unique start of one, a PCI bus id, long or short.
///
/// # Errors
/// [`ErrorKind::WrongValue`] where it names none, or more than one.
pub fn resolve(id: &str, snapshot: &Snapshot) -> Result<Vec<DeviceId>> {
    let found: Vec<Vec<DeviceId>> = if let Ok(index) = id.parse::<u32>() {
        matching_gpus(snapshot, |gpu| gpu.index == index)
    } else if let Some(wanted) = PciBusId::parse(id) {
        matching_gpus(snapshot, |gpu| {
            gpu.pci_bus_id.as_deref().and_then(PciBusId::parse) == Some(wanted)
        })
    } else {
        by_uuid(id, snapshot)
    };
    match <[Vec<DeviceId>; 1]>::try_from(found) {
        Ok([devices]) => Ok(devices),
        Err(none) if none.is_empty() => Err(Error::new(
            ErrorKind::WrongValue,
            format!("'{id}' names no GPU here; {}", valid_ids_hint(snapshot)),
        )),
        Err(several) => Err(Error::new(
            ErrorKind::WrongValue,
            format!(
                "'{id}' is the start of {} UUIDs; write more of it",
                several.len()
            ),
        )),
    }
}

fn matching_gpus(snapshot: &Snapshot, wanted: impl Fn(&Gpu) -> bool) -> Vec<Vec<DeviceId>> {
    let positions = (0..snapshot.gpus.len()).filter(|&gpu| wanted(&snapshot.gpus[gpu]));
    positions.map(|gpu| devices_of(snapshot, gpu)).collect()
}

/// UUIDs that are `id` or start with it; an exact one rules out longer ones.
fn by_uuid(id: &str, snapshot: &Snapshot) -> Vec<Vec<DeviceId>> {
    if id.is_empty() {
        return Vec::new();
    }
    let matching = |matches: &dyn Fn(&str) -> bool| {
        let mut found = matching_gpus(snapshot, |gpu| gpu.uuid.as_deref().is_some_and(matches));
        for device in devices(snapshot)
            .into_iter()
            .filter(|device| device.mig.is_some())
        {
            let legacy = || legacy_mig_name(device, snapshot).is_some_and(|name| name == id);
            if device.uuid(snapshot).is_some_and(matches) || legacy() {
                found.push(vec![device]);
            }
        }
        found
    };
    let exact = matching(&|uuid| uuid.eq_ignore_ascii_case(id));
    if !exact.is_empty() {
        return exact;
    }
    matching(&|uuid| {
        uuid.get(..id.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(id))
    })
}

/// How drivers before R470 named a MIG device; later ones still read it.
fn legacy_mig_name(device: DeviceId, snapshot: &Snapshot) -> Option<String> {
    let mig = device.mig_device(snapshot)?;
    let parent = device.gpu(snapshot).uuid.as_deref()?;
    Some(format!(
        "MIG-{parent}/{}/{}",
        mig.gpu_instance_id?, mig.compute_instance_id?
    ))
}

fn valid_ids_hint(snapshot: &Snapshot) -> String {
    match snapshot.gpus.last() {
        None => "there are none".into(),
        Some(gpu) if gpu.index == 0 => "there is only GPU 0".into(),
        Some(gpu) => {
            format!(
                "give an index from 0 to {}, a UUID or a PCI bus id ('autocvd status' shows them)",
                gpu.index
            )
        }
    }
}

/// A place on the PCI bus, in the order in which CUDA counts under `CUDA_DEVICE_ORDER=PCI_BUS_ID`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PciBusId {
    domain: u32,
    bus: u32,
    device: u32,
    function: u32,
}

impl PciBusId {
    /// Reads `00000000:3B:00.0`, `0000:3b:00.0`, `3b:00.0` and `3b:00`.
    pub fn parse(text: &str) -> Option<Self> {
        let hex = |part: &str, digits: usize| {
            let plain = !part.is_empty()
                && part.len() <= digits
                && part.bytes().all(|b| b.is_ascii_hexdigit());
            plain.then(|| u32::from_str_radix(part, 16).ok()).flatten()
        };
        let (place, function) = text.rsplit_once('.').unwrap_or((text, "0"));
        let mut parts = place.rsplit(':');
        let (device, bus) = (parts.next()?, parts.next()?);
        let domain = parts.next().unwrap_or("0");
        if parts.next().is_some() {
            return None;
        }
        Some(Self {
            domain: hex(domain, 8)?,
            bus: hex(bus, 2)?,
            device: hex(device, 2)?,
            function: hex(function, 1)?,
        })
    }
}

/// What a value of `CUDA_VISIBLE_DEVICES` allows, as CUDA reads it: entries count up to the first that
/// is invalid; empty, `-1` and Slurm's `NoDevFiles` allow nothing. Indices count the GPUs that CUDA can use.
pub fn visible(value: &str, snapshot: &Snapshot) -> Vec<DeviceId> {
    let usable: Vec<usize> = (0..snapshot.gpus.len())
        .filter(|&gpu| !hidden_from_cuda(&snapshot.gpus[gpu]))
        .collect();
    let mut allowed = Vec::new();
    for entry in value.split(',').map(str::trim) {
        let found = match entry.parse::<usize>() {
            Ok(ordinal) => usable.get(ordinal).map(|&gpu| devices_of(snapshot, gpu)),
            Err(_) => <[Vec<DeviceId>; 1]>::try_from(by_uuid(entry, snapshot))
                .ok()
                .map(|[devices]| devices),
        };
        let Some(found) = found else { break };
        allowed.extend(found);
    }
    allowed.sort_unstable();
    allowed.dedup();
    allowed
}

/// Whether CUDA does not count the GPU, so that those behind it have other ordinals than indices.
fn hidden_from_cuda(gpu: &Gpu) -> bool {
    gpu.state == Some(State::Unavailable) && gpu.compute_mode != Some(ComputeMode::Prohibited)
}

/// Whether each index is the ordinal that CUDA will use under `CUDA_DEVICE_ORDER=PCI_BUS_ID`.
pub fn indices_are_ordinals(snapshot: &Snapshot) -> bool {
    let contiguous = snapshot
        .gpus
        .iter()
        .enumerate()
        .all(|(place, gpu)| gpu.index as usize == place);
    // Where one place is unknown the GPUs stand in the driver's order, which may be another than the bus's.
    let sorted = || {
        snapshot
            .gpus
            .iter()
            .filter_map(|gpu| PciBusId::parse(gpu.pci_bus_id.as_deref()?))
            .is_sorted()
    };
    let in_order = snapshot.gpus.iter().all(|gpu| gpu.pci_bus_id.is_some()) || sorted();
    contiguous
        && in_order
        && !snapshot
            .gpus
            .iter()
            .any(|gpu| gpu.mig.is_some() || hidden_from_cuda(gpu))
}

/// The ids of `chosen` for `CUDA_VISIBLE_DEVICES`: indices, or UUIDs where `uuid` asks for them or an
/// index could mean another GPU to CUDA.
///
/// # Errors
/// [`ErrorKind::Unexpected`], or [`ErrorKind::WrongValue`] for a recorded machine, where a UUID is needed
/// and unknown, or holds other characters than UUIDs do: shells evaluate what is printed.
pub fn for_cuda(chosen: &[DeviceId], uuid: bool, snapshot: &Snapshot) -> Result<Vec<String>> {
    let uuid = uuid || !indices_are_ordinals(snapshot);
    let mut sorted = chosen.to_vec();
    sorted.sort_unstable();
    let wrong = |device: DeviceId, what: &str| {
        let kind = if snapshot.source == Source::File {
            ErrorKind::WrongValue
        } else {
            ErrorKind::Unexpected
        };
        let (label, index) = (device.label(snapshot), device.gpu(snapshot).index);
        Error::new(
            kind,
            format!("the UUID of {label} {what}; leave it out with -x {index}"),
        )
    };
    let id = |device: DeviceId| match (uuid, device.uuid(snapshot)) {
        (false, _) => Ok(device.gpu(snapshot).index.to_string()),
        (true, Some(uuid)) if is_shell_safe(uuid) => Ok(uuid.to_owned()),
        (true, Some(uuid)) => Err(wrong(
            device,
            &format!("is {uuid:?}, which is no form of a UUID"),
        )),
        (true, None) => Err(wrong(
            device,
            "cannot be read, and its index may mean another GPU to CUDA",
        )),
    };
    sorted.into_iter().map(id).collect()
}

/// Whether the text has only the characters of UUIDs; the slash is in MIG names of drivers before R470.
fn is_shell_safe(uuid: &str) -> bool {
    !uuid.is_empty()
        && uuid
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'/'))
}

#[cfg(test)]
mod tests;
