//! The names of GPUs: what a user may write, what `CUDA_VISIBLE_DEVICES` means, and what to print.

use crate::error::{Error, IdList, Result};
use crate::gpu::{
    ClaimInfo, ComputeMode, Fact, Gpu, Judgement, Memory, MigDevice, Process, Snapshot, Source,
    State,
};
use crate::pci::PciBusId;

/// The positions of a device: those in [`Snapshot::gpus`] and
/// [`Mig::devices`](crate::gpu::Mig::devices). The order is that of the indices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId {
    /// The GPU's position in the snapshot.
    pub gpu: usize,
    /// The MIG device's position on it.
    pub mig: Option<usize>,
}

/// What a process can be given: a whole GPU, or one MIG device of a GPU on which MIG is enabled.
/// A view of a [`Snapshot`], which [`Snapshot::devices`] gives.
///
/// ```
/// use autocvd::{Environment, NoObserver, ProbeChoice};
///
/// let recorded = ProbeChoice::File("examples/mig.json".into());
/// let machine = autocvd::status(&recorded, &Environment::default(), &mut NoObserver)?;
/// let labels: Vec<String> = machine.devices().map(|device| device.label()).collect();
/// assert!(labels.contains(&"GPU 0 MIG 0".to_owned()));
/// let free = machine.devices().filter_map(|device| device.memory().free.value());
/// println!("{} bytes are free in all", free.sum::<u64>());
/// # Ok::<(), autocvd::Error>(())
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Device<'a> {
    snapshot: &'a Snapshot,
    id: DeviceId,
    gpu: &'a Gpu,
    mig: Option<&'a MigDevice>,
}

impl<'a> Device<'a> {
    /// Its positions in the snapshot.
    pub fn id(self) -> DeviceId {
        self.id
    }

    /// The machine that it is part of.
    pub(crate) fn snapshot(self) -> &'a Snapshot {
        self.snapshot
    }

    /// The GPU, or the one that the MIG device is part of.
    pub fn gpu(self) -> &'a Gpu {
        self.gpu
    }

    /// The MIG device, where it is one.
    pub fn mig(self) -> Option<&'a MigDevice> {
        self.mig
    }

    /// Its UUID.
    pub fn uuid(self) -> Option<&'a str> {
        self.mig.map_or(&self.gpu.uuid, |mig| &mig.uuid).as_deref()
    }

    /// The product name, with the profile for a MIG device.
    pub fn name(self) -> Option<&'a str> {
        self.mig.map_or(&self.gpu.name, |mig| &mig.name).as_deref()
    }

    /// Its memory, in bytes.
    pub fn memory(self) -> Memory {
        self.mig.map_or(self.gpu.memory, |mig| mig.memory)
    }

    /// How busy it was over the driver's last sample period, in percent; a MIG device has no such
    /// metric.
    pub fn utilization(self) -> Fact<u32> {
        match self.mig {
            Some(_) => Fact::NotApplicable,
            None => self.gpu.utilization.gpu,
        }
    }

    /// The processes that have a context on it.
    pub fn processes(self) -> Fact<&'a [Process]> {
        let processes = self.mig.map_or(&self.gpu.processes, |mig| &mig.processes);
        processes.as_ref().map(Vec::as_slice)
    }

    /// Whether it is kept for a request that has waited for so long, as the snapshot says.
    pub fn is_kept(self) -> bool {
        let mut waiting = self.snapshot().waiting.iter();
        waiting.any(|request| request.kept.contains(&self.key()))
    }

    /// The launches that have taken it.
    pub fn claims(self) -> &'a [ClaimInfo] {
        self.mig.map_or(&self.gpu.claims, |mig| &mig.claims)
    }

    /// Why it cannot be used at all, where the probe says so.
    pub(crate) fn unusable(self) -> Option<&'a str> {
        let own = self.mig.and_then(|mig| mig.unusable.as_deref());
        own.or(self.gpu.unusable.as_deref())
    }

    /// Whether the administrator keeps it from everybody.
    pub(crate) fn is_reserved(self) -> bool {
        self.gpu.reserved || self.mig.is_some_and(|mig| mig.reserved)
    }

    /// Whether launches take it last: COMMANDs have failed on it one after another.
    pub(crate) fn is_suspect(self) -> bool {
        let until = self
            .mig
            .map_or(self.gpu.suspect_until, |mig| mig.suspect_until);
        until.is_some()
    }

    /// Why no launch can claim it, if so.
    pub fn unclaimable(self) -> Option<&'a str> {
        let why = self
            .mig
            .map_or(&self.gpu.unclaimable, |mig| &mig.unclaimable);
        why.as_deref()
    }

    /// What was judged when the machine was recorded.
    pub(crate) fn recorded(self) -> Option<&'a Judgement> {
        self.mig
            .map_or(&self.gpu.recorded, |mig| &mig.recorded)
            .as_ref()
    }

    /// The state that [`Snapshot::judge`] has written down.
    pub fn state(self) -> Option<State> {
        self.mig.map_or(self.gpu.state, |mig| mig.state)
    }

    /// What claims know it by: its UUID, else its place on the bus, which other launches read
    /// alike.
    pub fn key(self) -> String {
        let place = || self.gpu.pci_bus_id.map(|id| id.to_string());
        let own = self.uuid().map(str::to_owned).or_else(place);
        own.unwrap_or_else(|| format!("index-{}", self.gpu.index))
    }

    /// What people call it: `GPU 2`, or `GPU 2 MIG 0`.
    pub fn label(self) -> String {
        let gpu = self.gpu.index;
        match self.mig {
            Some(mig) => format!("GPU {gpu} MIG {}", mig.index),
            None => format!("GPU {gpu}"),
        }
    }

    /// How drivers before R470 named a MIG device; later ones still read it.
    fn legacy_mig_name(self) -> Option<String> {
        let (mig, parent) = (self.mig?, self.gpu.uuid.as_deref()?);
        let (gi, ci) = (mig.gpu_instance_id?, mig.compute_instance_id?);
        Some(format!("MIG-{parent}/{gi}/{ci}"))
    }
}

impl Snapshot {
    /// The device at these positions.
    ///
    /// # Panics
    /// Where the snapshot has no such device.
    pub fn device(&self, id: DeviceId) -> Device<'_> {
        let gpu = &self.gpus[id.gpu];
        let mig = id
            .mig
            .and_then(|place| gpu.mig.as_ref()?.devices.get(place));
        Device {
            snapshot: self,
            id,
            gpu,
            mig,
        }
    }

    /// All that can be given on this machine, in ascending order: the GPUs, and in place of a GPU
    /// on which MIG is enabled its MIG devices, if it has any.
    pub fn devices(&self) -> impl Iterator<Item = Device<'_>> {
        (0..self.gpus.len()).flat_map(|gpu| self.devices_of(gpu))
    }

    /// The positions of [`Snapshot::devices`].
    pub fn device_ids(&self) -> Vec<DeviceId> {
        self.devices().map(Device::id).collect()
    }

    /// The GPU itself; its MIG devices where MIG is enabled, for then it cannot be used as a whole.
    pub(crate) fn devices_of(&self, gpu: usize) -> impl Iterator<Item = Device<'_>> {
        let parts = self.gpus[gpu]
            .mig
            .as_ref()
            .map_or(0, |mig| mig.devices.len());
        let whole = (parts == 0).then_some(DeviceId { gpu, mig: None });
        let parts = (0..parts).map(move |mig| DeviceId {
            gpu,
            mig: Some(mig),
        });
        whole.into_iter().chain(parts).map(|id| self.device(id))
    }

    /// The claims on a device.
    pub(crate) fn claims_mut(&mut self, id: DeviceId) -> &mut Vec<ClaimInfo> {
        let gpu = &mut self.gpus[id.gpu];
        match (id.mig, &mut gpu.mig) {
            (Some(place), Some(mig)) => &mut mig.devices[place].claims,
            _ => &mut gpu.claims,
        }
    }

    /// Until when a device is taken last.
    pub(crate) fn suspicion_mut(&mut self, id: DeviceId) -> &mut Option<u64> {
        let gpu = &mut self.gpus[id.gpu];
        match (id.mig, &mut gpu.mig) {
            (Some(place), Some(mig)) => &mut mig.devices[place].suspect_until,
            _ => &mut gpu.suspect_until,
        }
    }

    /// Why no launch can claim a device.
    pub(crate) fn unclaimable_mut(&mut self, id: DeviceId) -> &mut Option<String> {
        let gpu = &mut self.gpus[id.gpu];
        match (id.mig, &mut gpu.mig) {
            (Some(place), Some(mig)) => &mut mig.devices[place].unclaimable,
            _ => &mut gpu.unclaimable,
        }
    }

    /// The processes on a device, where they are known.
    pub(crate) fn processes_mut(&mut self, id: DeviceId) -> Option<&mut Vec<Process>> {
        let gpu = &mut self.gpus[id.gpu];
        match (id.mig, &mut gpu.mig) {
            (Some(place), Some(mig)) => mig.devices[place].processes.value_mut(),
            _ => gpu.processes.value_mut(),
        }
    }

    /// Makes a device look like one that has so much memory and nothing on it.
    pub(crate) fn confine(&mut self, id: DeviceId, bytes: u64) {
        let gpu = &mut self.gpus[id.gpu];
        let (memory, processes) = match (id.mig, &mut gpu.mig) {
            (Some(place), Some(mig)) => {
                let part = &mut mig.devices[place];
                (&mut part.memory, &mut part.processes)
            }
            _ => (&mut gpu.memory, &mut gpu.processes),
        };
        *memory = Memory {
            total: Fact::Value(bytes),
            used: Fact::Value(0),
            free: Fact::Value(bytes),
        };
        *processes = Fact::Value(Vec::new());
    }

    /// Marks a device as kept from everybody.
    pub(crate) fn reserve(&mut self, id: DeviceId) {
        let gpu = &mut self.gpus[id.gpu];
        match (id.mig, &mut gpu.mig) {
            (Some(place), Some(mig)) => mig.devices[place].reserved = true,
            _ => gpu.reserved = true,
        }
    }

    /// Whether each index is the ordinal that CUDA will use under `CUDA_DEVICE_ORDER=PCI_BUS_ID`:
    /// no GPU is hidden from CUDA, and each has answered a question that touches it.
    pub fn indices_are_ordinals(&self) -> bool {
        self.may_be_indices() && self.gpus.iter().all(Gpu::has_answered)
    }

    /// Whether each index is CUDA's ordinal unless a GPU is lost of which that is not known yet.
    pub(crate) fn may_be_indices(&self) -> bool {
        let contiguous = self
            .gpus
            .iter()
            .zip(0..)
            .all(|(gpu, place)| gpu.index == place);
        // Where one place is unknown the GPUs stand in the driver's order, which may be another
        // than the bus's.
        let known = || self.gpus.iter().filter_map(|gpu| gpu.pci_bus_id);
        let in_order = known().count() == self.gpus.len() || known().is_sorted();
        let is_recorded_unusable = |recorded: &Judgement| recorded.state == State::Unavailable;
        let counts = |gpu: &Gpu| {
            let recorded = gpu.recorded.as_ref().is_some_and(is_recorded_unusable);
            gpu.mig.is_none() && !hidden_from_cuda(gpu) && !recorded
        };
        contiguous && in_order && self.gpus.iter().all(counts)
    }
}

/// The devices that an id names: an index, a UUID or a unique start of one, a PCI bus id, long or
/// short; where it is none of them, a part of the names of GPUs. `list` is where the id was given.
///
/// # Errors
/// [`Error::UnknownDevice`] where it names none, [`Error::AmbiguousDevice`] where more than one.
pub(crate) fn resolve(id: &str, list: IdList, snapshot: &Snapshot) -> Result<Vec<DeviceId>> {
    let found: Vec<Vec<DeviceId>> = if let Ok(index) = id.parse::<u32>() {
        matching_gpus(snapshot, |gpu| gpu.index == index)
    } else if let Some(wanted) = PciBusId::parse(id) {
        matching_gpus(snapshot, |gpu| gpu.pci_bus_id == Some(wanted))
    } else {
        by_uuid(id, snapshot)
    };
    if found.is_empty() {
        let named = by_name(id, snapshot);
        if !named.is_empty() {
            let labels = named.iter().map(|id| snapshot.device(*id).label());
            let labels: Vec<String> = labels.collect();
            tracing::info!(
                "'{id}' is taken for a part of a name: {}",
                labels.join(", ")
            );
            return Ok(named);
        }
    }
    let id = id.to_owned();
    match <[Vec<DeviceId>; 1]>::try_from(found) {
        Ok([devices]) => Ok(devices),
        Err(none) if none.is_empty() => {
            let num_gpus = snapshot.gpus.len();
            Err(Error::UnknownDevice { id, list, num_gpus })
        }
        Err(several) => {
            let matches = several.len();
            Err(Error::AmbiguousDevice { id, list, matches })
        }
    }
}

fn matching_gpus(snapshot: &Snapshot, wanted: impl Fn(&Gpu) -> bool) -> Vec<Vec<DeviceId>> {
    let positions = (0..snapshot.gpus.len()).filter(|&gpu| wanted(&snapshot.gpus[gpu]));
    positions.map(|gpu| ids_of(snapshot, gpu)).collect()
}

fn ids_of(snapshot: &Snapshot, gpu: usize) -> Vec<DeviceId> {
    snapshot.devices_of(gpu).map(Device::id).collect()
}

/// Whether it takes the names of GPUs to know what `id` means.
pub(crate) fn may_be_name(id: &str) -> bool {
    let is_start_of_uuid = ["GPU-", "MIG-"].iter().any(|start| {
        let length = start.len().min(id.len());
        id.get(..length)
            .is_some_and(|id| id.eq_ignore_ascii_case(&start[..length]))
    });
    id.parse::<u32>().is_err() && PciBusId::parse(id).is_none() && !is_start_of_uuid
}

/// The devices whose names hold this text, in whatever case.
fn by_name(text: &str, snapshot: &Snapshot) -> Vec<DeviceId> {
    if text.is_empty() || !may_be_name(text) {
        return Vec::new();
    }
    let text = text.to_ascii_lowercase();
    let holds = |name: &Option<String>| {
        let name = name.as_ref().map(|name| name.to_ascii_lowercase());
        name.is_some_and(|name| name.contains(&text))
    };
    let is_named =
        |device: &Device| holds(&device.gpu.name) || device.mig.is_some_and(|mig| holds(&mig.name));
    snapshot
        .devices()
        .filter(is_named)
        .map(Device::id)
        .collect()
}

/// UUIDs that are `id` or start with it; an exact one rules out longer ones.
fn by_uuid(id: &str, snapshot: &Snapshot) -> Vec<Vec<DeviceId>> {
    if id.is_empty() {
        return Vec::new();
    }
    let matching = |matches: &dyn Fn(&str) -> bool| {
        let mut found = matching_gpus(snapshot, |gpu| gpu.uuid.as_deref().is_some_and(matches));
        let is_named = |device: &Device| {
            let legacy = || device.legacy_mig_name().is_some_and(|name| name == id);
            device.mig.is_some() && (device.uuid().is_some_and(matches) || legacy())
        };
        let parts = snapshot.devices().filter(is_named);
        found.extend(parts.map(|device| vec![device.id]));
        found
    };
    let exact = matching(&|uuid| uuid.eq_ignore_ascii_case(id));
    if !exact.is_empty() {
        return exact;
    }
    let starts = |uuid: &str| {
        uuid.get(..id.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(id))
    };
    matching(&starts)
}

/// What a value of `CUDA_VISIBLE_DEVICES` allows, as CUDA reads it: entries count up to the first
/// that is invalid; empty, `-1` and Slurm's `NoDevFiles` allow nothing, and so does a device that
/// is named twice. Indices count the GPUs that CUDA can use; what follows their digits is passed
/// over.
pub(crate) fn parse_visible_devices(value: &str, snapshot: &Snapshot) -> Vec<DeviceId> {
    let usable: Vec<usize> = (0..snapshot.gpus.len())
        .filter(|&gpu| !hidden_from_cuda(&snapshot.gpus[gpu]))
        .collect();
    let mut allowed = Vec::new();
    for entry in value.split(',').map(str::trim) {
        let found = match ordinal(entry) {
            Some(ordinal) => usable.get(ordinal).map(|&gpu| ids_of(snapshot, gpu)),
            None => <[Vec<DeviceId>; 1]>::try_from(by_uuid(entry, snapshot))
                .ok()
                .map(|[devices]| devices),
        };
        let Some(found) = found else { break };
        if found.iter().any(|device| allowed.contains(device)) {
            return Vec::new();
        }
        allowed.extend(found);
    }
    allowed.sort_unstable();
    allowed
}

/// The number that an entry of `CUDA_VISIBLE_DEVICES` begins with.
fn ordinal(entry: &str) -> Option<usize> {
    let digits = entry.find(|char: char| !char.is_ascii_digit());
    entry[..digits.unwrap_or(entry.len())].parse().ok()
}

/// Whether a value of `CUDA_VISIBLE_DEVICES` has an index.
pub(crate) fn has_ordinal(value: &str) -> bool {
    value
        .split(',')
        .any(|entry| ordinal(entry.trim()).is_some())
}

/// Whether all GPUs are of one model, which CUDA takes to be equally fast.
pub(crate) fn are_alike(snapshot: &Snapshot) -> bool {
    match &snapshot.gpus[..] {
        [] | [_] => true,
        [first, others @ ..] => {
            first.name.is_some() && others.iter().all(|gpu| gpu.name == first.name)
        }
    }
}

/// Whether CUDA does not count the GPU, so that those after it have other ordinals than indices.
fn hidden_from_cuda(gpu: &Gpu) -> bool {
    gpu.unusable.is_some() && gpu.compute_mode != Fact::Value(ComputeMode::Prohibited)
}

/// What to name devices by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum IdForm {
    /// Their indices, unless one could mean another GPU to CUDA.
    #[default]
    Index,
    /// Their UUIDs.
    Uuid,
}

/// The ids of `chosen` for `CUDA_VISIBLE_DEVICES`.
///
/// # Errors
/// [`Error::UnusableUuid`] where a UUID is needed and unknown, or holds other characters than UUIDs
/// do: shells evaluate what is printed.
pub(crate) fn for_cuda(
    chosen: &[DeviceId],
    form: IdForm,
    snapshot: &Snapshot,
) -> Result<Vec<String>> {
    let by_uuid = form == IdForm::Uuid || !snapshot.indices_are_ordinals();
    let mut sorted = chosen.to_vec();
    sorted.sort_unstable();
    let id = |device: Device| match (by_uuid, device.uuid()) {
        (false, _) => Ok(device.gpu.index.to_string()),
        (true, Some(uuid)) if is_shell_safe(uuid) => Ok(uuid.to_owned()),
        (true, unusable) => Err(Error::UnusableUuid {
            device: device.label(),
            index: device.gpu.index,
            uuid: unusable.map(str::to_owned),
            recorded: snapshot.source == Source::File,
        }),
    };
    sorted
        .into_iter()
        .map(|at| id(snapshot.device(at)))
        .collect()
}

/// Whether the text has only the characters of UUIDs; the slash is in MIG names of drivers before
/// R470.
fn is_shell_safe(uuid: &str) -> bool {
    let is_safe = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'/');
    !uuid.is_empty() && uuid.bytes().all(is_safe)
}

#[cfg(test)]
mod tests;
