//! The machine's state through NVML, NVIDIA's management library, loaded at run time by nvml-wrapper.
//!
//! # Design
//! The library is initialized once a process, handles are kept, and nothing is ever shut down: a process
//! that ends soon pays nothing for that, and on large machines a shutdown costs as much as all the rest.

mod explain;
mod links;
mod processes;

use super::{Detail, Probe, none_can_be_read, process_view, sort_by_pci};
use crate::Result;
use crate::fork_local::ForkLocal;
use crate::gpu::{
    ComputeMode, Gpu, Link, Memory, Mig, MigDevice, ProcessView, Snapshot, Source, Utilization,
};
use crate::pci::PciBusId;
use crate::policy::memory_needs_explaining;
use nvml_wrapper::enum_wrappers::device::ComputeMode as NvmlComputeMode;
use nvml_wrapper::error::NvmlError;
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

/// One of the GPUs that NVML counts.
struct DeviceSlot {
    /// NVML's own index.
    number: u32,
    /// `None` where NVML gives no handle.
    device: Option<Device<'static>>,
    /// Whether NVML gave its handle again when the present look began.
    answers: bool,
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
    pub(crate) fn open(named: Option<OsString>) -> std::result::Result<Self, String> {
        let nvml = Self::open_to_show(named)?;
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
        let library = load(named)?;
        let count = library
            .device_count()
            .map_err(|e| format!("NVML cannot count the GPUs: {}", explain::error(&e)))?;
        if count == 0 {
            return Err("NVML finds no GPU; check that the machine has one and that this process may see it \
                        (in a container: start it with its GPUs, such as --gpus all)"
                .into());
        }
        let mut slots: Vec<DeviceSlot> = (0..count)
            .map(|index| DeviceSlot::new(library, index))
            .collect();
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

    /// Notes which of the GPUs have gone since their handles were got, which have come back, and which do not answer
    /// now and may do so later.
    fn ask_for_handles_again(&mut self) {
        for slot in &mut self.slots {
            let answer = self.nvml.device_by_index(slot.number);
            slot.answers = answer.is_ok();
            match answer {
                Ok(device) if slot.known.unusable.is_some() => slot.identify(device),
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!("NVML: GPU {}: {}", slot.known.index, explain::error(&error));
                    if matches!(
                        error,
                        NvmlError::GpuLost | NvmlError::ResetRequired | NvmlError::NoPermission
                    ) {
                        slot.unavailable(explain::error(&error));
                    }
                }
            }
        }
    }
}

/// The library that this process has initialized. NVML keeps one state a process, whoever loads it.
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
    // It is large, with all its functions' addresses: from here on only its own address moves.
    let init = |path: &OsStr| {
        let library = Library::builder().lib_path(path).init()?;
        Ok::<&'static Library, NvmlError>(Box::leak(Box::new(library)))
    };
    if let Some(path) = named {
        return init(&path).map_err(|e| explain::init(&e, Some(&path)));
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
    result.map_err(|e| explain::init(&e, None))
}

/// Whether the driver says, or its library's age says, that there is no such thing to ask about.
fn is_absent(error: &NvmlError) -> bool {
    matches!(
        error,
        NvmlError::NotSupported | NvmlError::FunctionNotFound | NvmlError::FailedToLoadSymbol(_)
    )
}

impl DeviceSlot {
    fn new(library: &'static Library, index: u32) -> Self {
        let mut slot = Self {
            number: index,
            device: None,
            answers: true,
            known: Gpu {
                index,
                ..Gpu::default()
            },
            mig: Vec::new(),
        };
        match library.device_by_index(index) {
            Ok(device) => slot.identify(device),
            Err(error) => slot.unavailable(explain::error(&error)),
        }
        slot
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
                    explain::error(&error)
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
                    let unusable = Some(explain::error(&error));
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
                gpu.compute_mode = slot
                    .mig
                    .iter()
                    .flatten()
                    .next()
                    .and_then(|part| reader.note(compute_mode(part)));
                for (part, into) in slot.mig.iter().zip(&mut mig.devices) {
                    if let Some(part) = part {
                        reader.read_mig(part, into);
                    }
                }
                if detail.shows_people() {
                    gpu.memory = reader.memory(device);
                    gpu.processes = reader.all_processes(device).map(processes::plain);
                }
            }
            None => reader.read_gpu(device, gpu),
        }
        if detail.shows_people() {
            gpu.name = device.name().ok();
        }
        // As of this look: a GPU that was reset answers again.
        if let Some(reason) = reader.lost {
            gpu.unusable = Some(reason);
        }
    }

    fn links(&mut self, indices: &[u32]) -> Vec<Link> {
        let devices = indices.iter().filter_map(|index| {
            let slot = self.slots.get(*index as usize)?;
            Some((*index, slot.device.as_ref()?))
        });
        links::between(&devices.collect::<Vec<_>>())
    }

    fn cpu_affinity(&mut self, index: u32) -> Vec<usize> {
        let device = self
            .slots
            .get(index as usize)
            .and_then(|slot| slot.device.as_ref());
        device.map(links::cpu_affinity).unwrap_or_default()
    }
}

/// Reads one GPU, and notices when it turns out to be lost meanwhile.
struct Reader<'a> {
    lists: &'a Lists,
    view: ProcessView,
    detail: Detail,
    /// Why the GPU cannot be used any more.
    lost: Option<String>,
}

impl Reader<'_> {
    /// A metric, unknown where it cannot be read.
    fn note<T>(&mut self, answer: std::result::Result<T, NvmlError>) -> Option<T> {
        let error = match answer {
            Ok(value) => return Some(value),
            Err(error) => error,
        };
        if matches!(error, NvmlError::GpuLost | NvmlError::ResetRequired) {
            self.lost = Some(explain::error(&error));
        } else if !is_absent(&error) {
            tracing::debug!("NVML: {}", explain::error(&error));
        }
        None
    }

    fn read_gpu(&mut self, device: &Device, gpu: &mut Gpu) {
        gpu.compute_mode = self.note(compute_mode(device));
        gpu.memory = self.memory(device);
        let listed = match self.detail.shows_people() {
            true => self.all_processes(device),
            false => self.deciding_processes(device, gpu.memory),
        };
        gpu.processes = listed.map(processes::plain);
        // Memory explains nothing where its pages outlive their process; only then is it worth asking.
        if self.detail.shows_people() || memory_needs_explaining(gpu.memory.used) {
            gpu.memory_is_numa_node = device.numa_node_id().is_ok();
        }
        if self.detail.shows_people()
            || self.view == ProcessView::Container
            || gpu.processes.is_none()
        {
            let rates = self.note(device.utilization_rates());
            gpu.utilization = Utilization {
                gpu: rates.as_ref().map(|r| r.gpu),
                memory: rates.as_ref().map(|r| r.memory),
            };
        }
    }

    fn read_mig(&mut self, device: &Device, part: &mut MigDevice) {
        part.memory = self.memory(device);
        let instance = (part.gpu_instance_id, part.compute_instance_id);
        // Some drivers list the whole GPU's processes for each of its MIG devices.
        let listed = self.all_processes(device);
        part.processes = listed.map(|all| processes::plain(processes::of_instance(all, instance)));
        if self.detail.shows_people() {
            part.name = device.name().ok();
        }
    }

    /// What the driver tells apart from R510 on; before, 'used' holds the driver's own reserve too.
    fn memory(&mut self, device: &Device) -> Memory {
        match device.memory_info() {
            Ok(info) => Memory {
                total: Some(info.total),
                used: Some(info.used),
                free: Some(info.free),
            },
            Err(error @ (NvmlError::GpuLost | NvmlError::ResetRequired)) => {
                self.note::<()>(Err(error));
                Memory::default()
            }
            Err(_) => self.note(processes::memory_v1(device)).unwrap_or_default(),
        }
    }

    /// As many lists as it takes to tell whether somebody computes: one that names somebody settles it.
    fn deciding_processes(&mut self, device: &Device, memory: Memory) -> Option<Vec<ProcessEntry>> {
        let mut listed = self.list(device, List::Compute)?;
        if listed.is_empty() {
            listed = self.list_or_absent(device, List::Mps)?;
        }
        if listed.is_empty() && memory_needs_explaining(memory.used) {
            listed = self.list(device, List::Graphics).unwrap_or_default();
        }
        Some(listed)
    }

    /// All processes on the GPU, each once.
    fn all_processes(&mut self, device: &Device) -> Option<Vec<ProcessEntry>> {
        let compute = self.list(device, List::Compute)?;
        let mps = self.list_or_absent(device, List::Mps)?;
        let graphics = self.list(device, List::Graphics).unwrap_or_default();
        Some(processes::merge(compute, mps, graphics))
    }

    fn list(&mut self, device: &Device, list: List) -> Option<Vec<ProcessEntry>> {
        self.note(self.lists.read(device, list))
    }

    /// Old drivers have no list of MPS clients, and name them among the computing processes.
    fn list_or_absent(&mut self, device: &Device, list: List) -> Option<Vec<ProcessEntry>> {
        match self.lists.read(device, list) {
            Err(error) if is_absent(&error) => Some(Vec::new()),
            answer => self.note(answer),
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
