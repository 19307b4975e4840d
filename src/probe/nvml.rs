//! The machine's state through NVML, NVIDIA's management library, loaded at run time by
//! nvml-wrapper.
//!
//! # Design
//! The library is initialized once a process, handles are kept, and nothing is ever shut down: a
//! process that ends soon pays nothing for that, and on large machines a shutdown costs as much as
//! all the rest.

mod error_text;
mod links;
mod processes;

use super::kernel::ListedGpu;
use super::{Detail, Narrow, Probe, kernel, none_can_be_read, process_view, sort_by_pci};
use crate::Result;
use crate::fork_local::ForkLocal;
use crate::gpu::{
    ComputeMode, Fact, Gpu, Health, Link, Memory, Mig, MigDevice, ProcessView, RecoveryAction,
    Snapshot, Source, Utilization,
};
use crate::pci::PciBusId;
use crate::policy::memory_needs_explaining;
use nvml_wrapper::enum_wrappers::device::ComputeMode as NvmlComputeMode;
use nvml_wrapper::enums::device::SampleValue;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::structs::device::FieldId;
use nvml_wrapper::{Device, Nvml as Library};
use processes::{List, Lists, ProcessEntry};
use std::ffi::{OsStr, OsString};

/// Where the library lives when the loader does not find it by its name: WSL2, NixOS, GKE and other
/// containers, Debian.
const LIBRARY: &str = "libnvidia-ml.so.1";
const DIRECTORIES: [&str; 5] = [
    "/usr/lib/wsl/lib",
    "/run/opengl-driver/lib",
    "/usr/local/nvidia/lib64",
    "/usr/lib/x86_64-linux-gnu/nvidia/current",
    "/usr/lib/aarch64-linux-gnu/nvidia/current",
];

/// With this variable NVML enumerates the devices of an MPS session, and has no process lists. A
/// library cannot take it out of the environment, which other threads may be reading.
pub(super) const MPS_VIEW: &str = "NVML_MPS_DEVICE_ENUMERATION";

/// NVML, initialized.
pub(crate) struct Nvml {
    nvml: &'static Library,
    lists: Lists,
    slots: Vec<DeviceSlot>,
    /// Whether a look has begun: the handles are as old as that.
    begun: bool,
    /// Whether a machine none of whose GPUs can be read is an error.
    needs_a_gpu: bool,
}

/// How NVML is asked for a GPU.
enum Address {
    /// By its own index, which initializes all GPUs up to it.
    Number(u32),
    /// By its place on the bus, which initializes it alone.
    Place(PciBusId),
}

impl Address {
    fn handle(&self, library: &'static Library) -> std::result::Result<Device<'static>, NvmlError> {
        match self {
            Self::Number(number) => library.device_by_index(*number),
            Self::Place(place) => library.device_by_pci_bus_id(place.to_string()),
        }
    }
}

/// One of the GPUs that NVML counts.
struct DeviceSlot {
    address: Address,
    /// `None` where NVML gives no handle.
    device: Option<Device<'static>>,
    /// Whether NVML gave its handle again when the present look began.
    answers: bool,
    /// Whether NVML was never asked for it, so that the driver need not initialize it.
    is_cold: bool,
    /// What does not change while it answers: its identity, and why it cannot be used if it cannot.
    known: Gpu,
    /// Its MIG devices, in the order of `known.mig`; `None` where NVML gives no handle.
    mig: Vec<Option<Device<'static>>>,
}

impl Nvml {
    /// Loads and initializes the library: `named`, or else the usual one, wherever it lives.
    ///
    /// # Errors
    /// One line that says why not, and what helps.
    pub(crate) fn open(
        named: Option<OsString>,
        narrow: Narrow,
    ) -> std::result::Result<Self, String> {
        let nvml = Self::with(named, narrow)?;
        match none_can_be_read(Source::Nvml, nvml.slots.iter().map(|slot| &slot.known)) {
            Some(why) => Err(why),
            None => Ok(Self {
                needs_a_gpu: true,
                ..nvml
            }),
        }
    }

    /// The same for a screen, which also shows a machine none of whose GPUs can be read.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(crate) fn open_to_show(named: Option<OsString>) -> std::result::Result<Self, String> {
        Self::with(named, None)
    }

    fn with(named: Option<OsString>, narrow: Narrow) -> std::result::Result<Self, String> {
        let library = load(named)?;
        let count = library
            .device_count()
            .map_err(|e| format!("NVML cannot count the GPUs: {}", error_text::error(&e)))?;
        if count == 0 {
            return Err(
                "NVML finds no GPU; check that the machine has one and that this process \
                 may see it (in a container: start it with its GPUs, such as --gpus all)"
                    .into(),
            );
        }
        let all = || (0..count).map(|index| DeviceSlot::new(library, Address::Number(index)));
        let mut slots = match narrow.and_then(|narrow| narrowed(library, count, narrow)) {
            Some(slots) => slots,
            None => all().collect(),
        };
        name_the_silent(&mut slots);
        sort_by_pci(&mut slots, |slot| slot.known.pci_bus_id);
        for (index, slot) in (0..).zip(&mut slots) {
            slot.known.index = index;
        }
        Ok(Self {
            nvml: library,
            lists: Lists::of(library),
            slots,
            begun: false,
            needs_a_gpu: false,
        })
    }

    /// Notes which of the GPUs have gone since their handles were got, which have come back, and
    /// which do not answer now and may do so later.
    fn ask_for_handles_again(&mut self) {
        for slot in self.slots.iter_mut().filter(|slot| !slot.is_cold) {
            let answer = slot.address.handle(self.nvml);
            slot.answers = answer.is_ok();
            match answer {
                Ok(device) if slot.known.unusable.is_some() => slot.identify(device),
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(
                        "NVML: GPU {}: {}",
                        slot.known.index,
                        error_text::error(&error)
                    );
                    if matches!(
                        error,
                        NvmlError::GpuLost | NvmlError::ResetRequired | NvmlError::NoPermission
                    ) {
                        slot.unavailable(error_text::error(&error));
                    }
                }
            }
        }
    }
}

/// The GPUs that the kernel driver lists, of which only those are initialized that are wanted;
/// `None` where it lists others than NVML counts, or where all are wanted.
fn narrowed(
    library: &'static Library,
    count: u32,
    narrow: &dyn Fn(&Snapshot) -> Option<Vec<usize>>,
) -> Option<Vec<DeviceSlot>> {
    let listed = kernel::gpus();
    if listed.len() != count as usize {
        return None;
    }
    let named = |(gpu, index): (&ListedGpu, u32)| Gpu {
        index,
        uuid: gpu.uuid.clone(),
        pci_bus_id: Some(gpu.bus_id),
        ..Gpu::default()
    };
    let names = Snapshot {
        source: Source::Nvml,
        driver_version: None,
        process_view: ProcessView::default(),
        gpus: listed.iter().zip(0..).map(named).collect(),
        links: Vec::new(),
        recording: None,
        waiting: Vec::new(),
    };
    let wanted = narrow(&names).filter(|wanted| wanted.len() < listed.len())?;
    let mut slots = Vec::new();
    for (at, known) in names.gpus.into_iter().enumerate() {
        let place = Address::Place(known.pci_bus_id?);
        let mut slot = match wanted.contains(&at) {
            true => DeviceSlot::new(library, place),
            false => DeviceSlot::cold(place),
        };
        if slot.device.is_none() {
            (slot.known.uuid, slot.known.pci_bus_id) = (known.uuid, known.pci_bus_id);
        }
        slots.push(slot);
    }
    Some(slots)
}

/// Gives the GPUs that NVML gives no handle of the names by which the kernel driver lists them,
/// where it lists the same machine.
fn name_the_silent(slots: &mut [DeviceSlot]) {
    if slots.iter().all(|slot| slot.device.is_some()) {
        return;
    }
    let listed = kernel::gpus();
    if listed.len() != slots.len() {
        return;
    }
    let names = |slot: &DeviceSlot, gpu: &ListedGpu| slot.known.pci_bus_id == Some(gpu.bus_id);
    let mut left = listed.clone();
    left.retain(|gpu| !slots.iter().any(|slot| names(slot, gpu)));
    let silent = slots.iter().filter(|slot| slot.device.is_none()).count();
    if slots.iter().any(|slot| slot.is_cold) {
        return;
    }
    // NVML's numbers follow the bus, as far as those tell that have a handle.
    let in_order = slots
        .iter()
        .zip(&listed)
        .all(|(slot, gpu)| slot.device.is_none() || names(slot, gpu));
    if left.len() != silent || !(in_order || silent == 1) {
        return;
    }
    let silent = slots.iter_mut().filter(|slot| slot.device.is_none());
    for (slot, gpu) in silent.zip(left) {
        (slot.known.pci_bus_id, slot.known.uuid) = (Some(gpu.bus_id), gpu.uuid);
    }
}

/// The library that this process has initialized. NVML keeps one state for each process.
static LOADED: ForkLocal<Option<(OsString, &'static Library)>> = ForkLocal::new();

fn load(named: Option<OsString>) -> std::result::Result<&'static Library, String> {
    let mut loaded = LOADED.lock();
    let wanted = named.clone().unwrap_or_else(|| LIBRARY.into());
    match &*loaded {
        Some((name, library)) if *name == wanted => return Ok(library),
        _ => {}
    }
    let library = initialize(named)?;
    *loaded = Some((wanted, library));
    Ok(library)
}

fn initialize(named: Option<OsString>) -> std::result::Result<&'static Library, String> {
    if std::env::var_os(MPS_VIEW).is_some_and(|value| !value.is_empty() && value != "0") {
        return Err(format!(
            "{MPS_VIEW} is set, so that NVML would show the devices of an MPS session in the place \
             of the GPUs; unset it for this process"
        ));
    }
    // It is large, with all its functions' addresses: from here on only its own address moves.
    let init = |path: &OsStr| {
        let library = Library::builder().lib_path(path).init()?;
        Ok::<&'static Library, NvmlError>(Box::leak(Box::new(library)))
    };
    if let Some(path) = named {
        return init(&path).map_err(|e| error_text::init(&e, Some(&path)));
    }
    let mut result = init(LIBRARY.as_ref());
    for directory in DIRECTORIES {
        if !matches!(result, Err(NvmlError::LibloadingError(_))) {
            break;
        }
        let path = std::path::Path::new(directory).join(LIBRARY);
        if path.exists() {
            result = init(path.as_os_str());
        }
    }
    result.map_err(|e| error_text::init(&e, None))
}

/// Whether the driver says, or its library's age says, that there is no such thing to ask about.
fn is_absent(error: &NvmlError) -> bool {
    matches!(
        error,
        NvmlError::NotSupported | NvmlError::FunctionNotFound | NvmlError::FailedToLoadSymbol(_)
    )
}

impl DeviceSlot {
    fn new(library: &'static Library, address: Address) -> Self {
        let mut slot = Self::cold(address);
        slot.open(library);
        slot
    }

    /// One that NVML is not asked for yet.
    fn cold(address: Address) -> Self {
        Self {
            address,
            device: None,
            answers: false,
            is_cold: true,
            known: Gpu::default(),
            mig: Vec::new(),
        }
    }

    fn open(&mut self, library: &'static Library) {
        (self.answers, self.is_cold) = (true, false);
        match self.address.handle(library) {
            Ok(device) => self.identify(device),
            Err(error) => self.unavailable(error_text::error(&error)),
        }
    }

    /// Asks what does not change while the GPU answers.
    fn identify(&mut self, device: Device<'static>) {
        (self.known.unusable, self.known.mig) = (None, None);
        self.mig.clear();
        self.known.uuid = device.uuid().ok().filter(|uuid| !uuid.is_empty());
        let pci = device.pci_info().ok();
        self.known.pci_bus_id = pci.and_then(|pci| PciBusId::parse(&pci.bus_id));
        self.find_mig(&device);
        self.device = Some(device);
    }

    fn unavailable(&mut self, reason: String) {
        self.known.unusable = Some(reason);
    }

    fn find_mig(&mut self, device: &Device<'static>) {
        match device.mig_mode() {
            Ok(mode) if mode.current == 0 => return,
            Ok(_) => {}
            Err(error) if is_absent(&error) => return,
            Err(error) => {
                return self.unavailable(format!(
                    "whether MIG is enabled cannot be read: {}",
                    error_text::error(&error)
                ));
            }
        }
        let mut found = Mig::default();
        // The count is a maximum: numbers that no device has answer NOT_FOUND.
        for index in 0..device.mig_device_count().unwrap_or(0) {
            let part = match device.mig_device_by_index(index) {
                Ok(part) => part,
                Err(NvmlError::NotFound | NvmlError::InvalidArg) => continue,
                Err(error) => {
                    let unusable = Some(error_text::error(&error));
                    found.devices.push(MigDevice {
                        index,
                        unusable,
                        ..MigDevice::default()
                    });
                    self.mig.push(None);
                    continue;
                }
            };
            let (gpu_instance_id, compute_instance_id) = processes::instance_ids(&part);
            let uuid = part.uuid().ok();
            found.devices.push(MigDevice {
                index,
                gpu_instance_id,
                compute_instance_id,
                uuid,
                ..MigDevice::default()
            });
            self.mig.push(Some(part));
        }
        self.known.mig = Some(found);
    }
}

impl Probe for Nvml {
    fn begin(&mut self, detail: Detail) -> Result<Snapshot> {
        if std::mem::replace(&mut self.begun, true) {
            self.ask_for_handles_again();
        }
        let snapshot = Snapshot {
            recording: None,
            waiting: Vec::new(),
            source: Source::Nvml,
            driver_version: detail
                .shows_people()
                .then(|| self.nvml.sys_driver_version().ok())
                .flatten(),
            process_view: process_view(),
            gpus: self.slots.iter().map(|slot| slot.known.clone()).collect(),
            links: Vec::new(),
        };
        match self.needs_a_gpu {
            true => super::with_a_readable_gpu(snapshot),
            false => Ok(snapshot),
        }
    }

    fn read(&mut self, gpu: &mut Gpu, view: ProcessView, detail: Detail) {
        let Some(slot) = self.slots.get_mut(gpu.index as usize) else {
            return;
        };
        let Some(device) = &slot.device else { return };
        if gpu.unusable.is_some() || !slot.answers {
            return;
        }
        let mut reader = Reader {
            lists: &self.lists,
            view,
            detail,
            lost: None,
        };
        match &mut gpu.mig {
            Some(mig) => {
                if let Some(part) = slot.mig.iter().flatten().next() {
                    gpu.compute_mode = reader.record(compute_mode(part));
                }
                for (part, into) in slot.mig.iter().zip(&mut mig.devices) {
                    if let Some(part) = part {
                        reader.read_mig(part, into);
                    }
                }
                let held = |part: &MigDevice| memory_needs_explaining(part.memory.used);
                if detail.shows_people() || mig.devices.iter().any(held) {
                    gpu.memory_is_numa_node = memory_is_numa_node(device);
                }
                if detail.shows_people() {
                    let lost = reader.lost.clone();
                    gpu.memory = reader.memory(device);
                    gpu.processes = reader.all_processes(device).map(processes::into_processes);
                    reader.lost = lost;
                    gpu.utilization = Utilization {
                        gpu: Fact::NotApplicable,
                        memory: Fact::NotApplicable,
                    };
                }
            }
            None => reader.read_gpu(device, gpu),
        }
        if detail.shows_people() {
            gpu.name = device.name().ok();
            let lost = reader.lost.clone();
            let health = reader.health(device);
            // One that is lost by now says so when it is asked before it is given.
            gpu.health = (reader.lost == lost).then_some(health);
            reader.lost = lost;
        }
        // As of this look: a GPU that was reset answers again.
        if let Some(reason) = reader.lost {
            gpu.unusable = Some(reason);
        }
    }

    fn touch(&mut self, gpu: &mut Gpu, view: ProcessView) {
        let library = self.nvml;
        let slot = self.slots.get_mut(gpu.index as usize);
        if let Some(slot) = slot.filter(|slot| slot.is_cold) {
            // One that is not initialized takes seconds to be, only to be printed by its index.
            if !slot.known.pci_bus_id.is_some_and(kernel::is_initialized) {
                return;
            }
            let index = slot.known.index;
            slot.open(library);
            slot.known.index = index;
            (gpu.uuid, gpu.mig, gpu.unusable) = (
                slot.known.uuid.clone(),
                slot.known.mig.clone(),
                slot.known.unusable.clone(),
            );
        }
        self.ask(gpu, |reader, device, gpu| {
            gpu.memory = reader.gpu_memory(device)
        });
        if !gpu.has_answered() {
            self.read(gpu, view, Detail::default());
        }
    }

    fn read_name(&mut self, gpu: &mut Gpu) {
        self.ask(gpu, |_, device, gpu| gpu.name = device.name().ok());
    }

    fn read_health(&mut self, gpu: &mut Gpu) {
        self.ask(gpu, |reader, device, gpu| {
            gpu.health = Some(reader.health(device))
        });
    }

    fn driver_version(&mut self) -> Option<String> {
        self.nvml.sys_driver_version().ok()
    }

    fn links(&mut self, indices: &[u32]) -> Vec<Link> {
        let devices = indices.iter().filter_map(|index| {
            let slot = self.slots.get(*index as usize)?;
            Some(links::Linked {
                index: *index,
                device: slot.device.as_ref()?,
                bus_id: slot.known.pci_bus_id,
            })
        });
        let all = self.slots.iter().filter_map(|slot| slot.known.pci_bus_id);
        links::between(&devices.collect::<Vec<_>>(), &all.collect::<Vec<_>>())
    }

    fn cpu_affinity(&mut self, index: u32) -> Vec<usize> {
        let device = self
            .slots
            .get(index as usize)
            .and_then(|slot| slot.device.as_ref());
        device.map(links::cpu_affinity).unwrap_or_default()
    }

    fn persistence_mode(&mut self, index: u32) -> Option<bool> {
        let slot = self.slots.get(index as usize)?;
        slot.device.as_ref()?.is_in_persistent_mode().ok()
    }
}

impl Nvml {
    /// Asks the driver something about a GPU that it gives a handle of.
    fn ask(&self, gpu: &mut Gpu, question: impl FnOnce(&mut Reader, &Device, &mut Gpu)) {
        let slot = self.slots.get(gpu.index as usize);
        let Some(slot) = slot.filter(|slot| slot.answers) else {
            return;
        };
        let Some(device) = &slot.device else { return };
        if gpu.unusable.is_some() {
            return;
        }
        let mut reader = Reader {
            lists: &self.lists,
            view: ProcessView::default(),
            detail: Detail::default(),
            lost: None,
        };
        question(&mut reader, device, gpu);
        if let Some(reason) = reader.lost {
            gpu.unusable = Some(reason);
        }
    }
}

/// Whether a GPU's memory is a NUMA node of the host that has no CPUs.
fn memory_is_numa_node(device: &Device) -> bool {
    device
        .numa_node_id()
        .is_ok_and(|node| !kernel::node_has_cpus(node))
}

/// NVML's NVML_FI_DEV_GET_GPU_RECOVERY_ACTION and NVML_FI_DEV_REMAPPED_FAILURE.
const HEALTH_FIELDS: [FieldId; 2] = [FieldId(230), FieldId(145)];

/// Reads one GPU, and notices when it turns out to be lost meanwhile.
struct Reader<'a> {
    lists: &'a Lists,
    view: ProcessView,
    detail: Detail,
    /// Why the GPU cannot be used any more.
    lost: Option<String>,
}

impl Reader<'_> {
    /// What the answer to a question about a metric says of it.
    fn record<T>(&mut self, answer: std::result::Result<T, NvmlError>) -> Fact<T> {
        let error = match answer {
            Ok(value) => return Fact::Value(value),
            Err(error) if is_absent(&error) => return Fact::NotApplicable,
            Err(error) => error,
        };
        if matches!(error, NvmlError::GpuLost | NvmlError::ResetRequired) {
            self.lost = Some(error_text::error(&error));
        } else {
            tracing::debug!("NVML: {}", error_text::error(&error));
        }
        Fact::Unknown
    }

    /// What the driver says of its health: one call. What cannot be read of it is held against no
    /// GPU.
    fn health(&mut self, device: &Device) -> Health {
        let answers = self.record(device.field_values_for(&HEALTH_FIELDS));
        let mut numbers = answers.value().into_iter().flatten().map(|sample| {
            match self.record(sample.and_then(|sample| sample.value)) {
                Fact::Value(SampleValue::U32(number)) => Some(number),
                _ => None,
            }
        });
        let (action, remap) = (numbers.next().flatten(), numbers.next().flatten());
        Health {
            recovery_action: action.map(RecoveryAction::from_number),
            remap_failed: remap.map(|failed| failed != 0),
        }
    }

    fn read_gpu(&mut self, device: &Device, gpu: &mut Gpu) {
        gpu.compute_mode = self.record(compute_mode(device));
        gpu.memory = self.gpu_memory(device);
        let listed = self.processes(device, gpu.memory);
        gpu.processes = listed.map(processes::into_processes);
        // Memory explains nothing where its pages outlive their process; only then is it worth
        // asking.
        if self.detail.shows_people() || memory_needs_explaining(gpu.memory.used) {
            gpu.memory_is_numa_node = memory_is_numa_node(device);
        }
        let list_decides =
            self.view == ProcessView::Host && matches!(gpu.processes, Fact::Value(_));
        let rates = match list_decides {
            true => self.beyond(|reader| reader.record(device.utilization_rates())),
            false => self.record(device.utilization_rates()),
        };
        gpu.utilization = Utilization {
            gpu: rates.as_ref().map(|rates| rates.gpu),
            memory: rates.as_ref().map(|rates| rates.memory),
        };
        let is_held_unseen = list_decides && memory_needs_explaining(gpu.memory.used);
        if is_held_unseen
            && !gpu
                .processes
                .items()
                .iter()
                .any(|process| process.kind.computes())
        {
            let told = device.minor_number().ok();
            gpu.minor_number = told.or_else(|| kernel::minor_number(gpu.pci_bus_id?));
        }
    }

    /// Asks what only people are to see, if they are to. It never makes a GPU unusable: else the
    /// choice would depend on whether somebody looks on.
    fn beyond<T>(&mut self, question: impl FnOnce(&mut Self) -> Fact<T>) -> Fact<T> {
        if !self.detail.shows_people() {
            return Fact::Unknown;
        }
        let lost = self.lost.clone();
        let answer = question(self);
        self.lost = lost;
        answer
    }

    fn read_mig(&mut self, device: &Device, part: &mut MigDevice) {
        part.memory = self.memory(device);
        // A share of the GPU's memory is no share of the machine's.
        if part.memory.used.is_not_applicable() {
            part.memory = Memory::default();
        }
        let instance = (part.gpu_instance_id, part.compute_instance_id);
        // Some drivers list the whole GPU's processes for each of its MIG devices.
        let listed = self.all_processes(device);
        part.processes =
            listed.map(|all| processes::into_processes(processes::of_instance(all, instance)));
        if self.detail.shows_people() {
            part.name = device.name().ok();
        }
    }

    /// A GPU's memory, or the machine's where the two share it.
    fn gpu_memory(&mut self, device: &Device) -> Memory {
        let memory = self.memory(device);
        if memory.used.is_not_applicable() {
            kernel::shared_memory()
        } else {
            memory
        }
    }

    /// What the driver tells apart from R510 on; before, 'used' holds the driver's own reserve too.
    fn memory(&mut self, device: &Device) -> Memory {
        match device.memory_info() {
            Ok(info) => Memory {
                total: Fact::Value(info.total),
                used: Fact::Value(info.used),
                free: Fact::Value(info.free),
            },
            Err(error @ (NvmlError::GpuLost | NvmlError::ResetRequired)) => {
                self.record::<()>(Err(error));
                Memory::default()
            }
            Err(_) => match self.record(processes::memory_v1(device)) {
                Fact::Value(memory) => memory,
                Fact::NotApplicable => Memory {
                    total: Fact::NotApplicable,
                    used: Fact::NotApplicable,
                    free: Fact::NotApplicable,
                },
                Fact::Unknown => Memory::default(),
            },
        }
    }

    /// As many lists as it takes to tell whether a process computes: one that names one settles it.
    /// People see the others too.
    fn processes(&mut self, device: &Device, memory: Memory) -> Fact<Vec<ProcessEntry>> {
        let compute = self.list(device, List::Compute);
        let mps_beside = |reader: &mut Self| reader.list_or_absent(device, List::Mps);
        let graphics_beside = |reader: &mut Self| reader.list(device, List::Graphics);
        if processes::settles(compute.items()) {
            let mps = self.beyond(mps_beside);
            return processes::merge(compute, mps, self.beyond(graphics_beside));
        }
        let mut graphics = Fact::Unknown;
        let mut graphics_asked = false;
        if !compute.items().is_empty() {
            // A desktop's program may be on the list of computing ones.
            graphics = self.list(device, List::Graphics);
            graphics_asked = true;
            let none = Fact::Value(Vec::new());
            let merged = processes::merge(compute.clone(), none, graphics.clone());
            if processes::names_one_that_computes(merged.items()) {
                return processes::merge(compute, self.beyond(mps_beside), graphics);
            }
        }
        let mps = self.list_or_absent(device, List::Mps);
        if !graphics_asked {
            let is_needed = mps.items().is_empty() && memory_needs_explaining(memory.used);
            graphics = match is_needed {
                true => self.list(device, List::Graphics),
                false => self.beyond(graphics_beside),
            };
        }
        processes::merge(compute, mps, graphics)
    }

    /// All processes on the GPU, each once.
    fn all_processes(&mut self, device: &Device) -> Fact<Vec<ProcessEntry>> {
        let compute = self.list(device, List::Compute);
        let mps = self.list_or_absent(device, List::Mps);
        let graphics = self.list(device, List::Graphics);
        processes::merge(compute, mps, graphics)
    }

    fn list(&mut self, device: &Device, list: List) -> Fact<Vec<ProcessEntry>> {
        self.record(self.lists.read(device, list))
    }

    /// Old drivers have no list of MPS clients, and name them among the computing processes.
    fn list_or_absent(&mut self, device: &Device, list: List) -> Fact<Vec<ProcessEntry>> {
        match self.list(device, list) {
            Fact::NotApplicable => Fact::Value(Vec::new()),
            answer => answer,
        }
    }
}

fn compute_mode(device: &Device) -> std::result::Result<ComputeMode, NvmlError> {
    device.compute_mode().map(|mode| match mode {
        NvmlComputeMode::Default => ComputeMode::Default,
        NvmlComputeMode::ExclusiveThread => ComputeMode::ExclusiveThread,
        NvmlComputeMode::Prohibited => ComputeMode::Prohibited,
        NvmlComputeMode::ExclusiveProcess => ComputeMode::ExclusiveProcess,
    })
}
