//! What is known of a machine's GPUs: plain data. Every metric is an `Option`: `None` means that it
//! could not be read, and what is unknown is never taken for zero.

#[cfg(feature = "serde")]
pub(crate) mod json;

use crate::pci::PciBusId;
#[cfg(feature = "serde")]
use serde::{Deserialize, Serialize};

/// Where a [`Snapshot`] was read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub enum Source {
    /// NVIDIA's management library, libnvidia-ml.
    #[cfg_attr(feature = "serde", serde(rename = "nvml"))]
    Nvml,
    /// The output of `nvidia-smi -q -x`.
    #[cfg_attr(feature = "serde", serde(rename = "nvidia-smi"))]
    NvidiaSmi,
    /// A file in the form of `autocvd status --json`.
    #[cfg_attr(feature = "serde", serde(rename = "file"))]
    File,
}

/// Which processes the driver's lists can name (`process_view` in JSON).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(
    feature = "serde",
    derive(Serialize, Deserialize),
    serde(rename_all = "snake_case")
)]
pub enum ProcessView {
    /// All of them: this process lives in the host's PID namespace.
    #[default]
    Host,
    /// Perhaps only those of a container's PID namespace: an empty list proves nothing.
    Container,
}

/// The state of all GPUs of a machine at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// Where this was read from.
    pub source: Source,
    /// The version of the kernel driver, such as `580.82.07`.
    pub driver_version: Option<String>,
    /// Whether the process lists can be complete.
    pub process_view: ProcessView,
    /// The GPUs in PCI bus order, those that cannot be used included.
    pub gpus: Vec<Gpu>,
    /// How pairs of GPUs are connected; empty where nobody asked or nothing is known.
    pub links: Vec<Link>,
    /// When and where it was read, where that is known.
    pub recording: Option<Box<Recording>>,
}

/// When, where and by what a [`Snapshot`] was read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Recording {
    /// Unix time in seconds.
    pub time: Option<u64>,
    /// The name of the machine.
    pub host: Option<String>,
    /// The kernel's id of this boot: pids and times mean something within it.
    pub boot_id: Option<String>,
    /// The version of autocvd.
    pub version: Option<String>,
}

/// One physical GPU.
#[derive(Debug, Clone, PartialEq, Default)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct Gpu {
    /// The place in PCI bus order, from 0: what nvidia-smi calls the GPU's id.
    pub index: u32,
    /// `GPU-` and 36 hexadecimal digits and dashes.
    #[cfg_attr(feature = "serde", serde(default))]
    pub uuid: Option<String>,
    /// Its place on the PCI bus.
    #[cfg_attr(feature = "serde", serde(default, with = "json::pci_bus_id"))]
    pub pci_bus_id: Option<PciBusId>,
    /// The product name, such as `NVIDIA A100-SXM4-80GB`.
    #[cfg_attr(feature = "serde", serde(default))]
    pub name: Option<String>,
    /// Device memory.
    #[cfg_attr(feature = "serde", serde(default))]
    pub memory: Memory,
    /// How busy the GPU was over the driver's last sample period.
    #[cfg_attr(feature = "serde", serde(default))]
    pub utilization: Utilization,
    /// Who may create contexts on it.
    #[cfg_attr(feature = "serde", serde(default, with = "json::compute_mode"))]
    pub compute_mode: Option<ComputeMode>,
    /// The MIG devices it is divided into, where MIG is enabled.
    #[cfg_attr(feature = "serde", serde(default, deserialize_with = "json::mig"))]
    pub mig: Option<Mig>,
    /// The processes that have a context on it; `None` where the list cannot be read.
    #[cfg_attr(feature = "serde", serde(default))]
    pub processes: Option<Vec<Process>>,
    /// Whether its memory is a NUMA node of the host (Grace Hopper), where pages stay allocated after
    /// the process that used them has ended.
    #[cfg_attr(feature = "serde", serde(default))]
    pub memory_is_numa_node: bool,
    /// The launches that have taken it.
    #[cfg_attr(feature = "serde", serde(default))]
    pub claims: Vec<ClaimInfo>,
    /// Why it cannot be used at all, where the probe says so: lost, in need of a reset, not permitted.
    #[cfg_attr(feature = "serde", serde(skip))]
    pub unusable: Option<String>,
    /// What was judged when the machine was recorded, where it comes from a file.
    #[cfg_attr(feature = "serde", serde(skip))]
    pub recorded: Option<Judgement>,
    /// What [`Snapshot::judge`] made of all this.
    #[cfg_attr(feature = "serde", serde(default))]
    pub state: Option<State>,
    /// Why it is in that state, where there is something to say.
    #[cfg_attr(feature = "serde", serde(default))]
    pub reason: Option<String>,
}

/// Memory in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct Memory {
    /// All the memory there is.
    #[cfg_attr(feature = "serde", serde(default))]
    pub total: Option<u64>,
    /// What is allocated, without the driver's own reserve where the driver tells them apart.
    #[cfg_attr(feature = "serde", serde(default))]
    pub used: Option<u64>,
    /// What the driver calls free.
    #[cfg_attr(feature = "serde", serde(default))]
    pub free: Option<u64>,
}

/// Utilization in percent (nvmlDeviceGetUtilizationRates).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct Utilization {
    /// The share of time in which a kernel ran.
    #[cfg_attr(feature = "serde", serde(default))]
    pub gpu: Option<u32>,
    /// The share of time in which memory was read or written.
    #[cfg_attr(feature = "serde", serde(default))]
    pub memory: Option<u32>,
}

/// NVML's nvmlComputeMode_t.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ComputeMode {
    /// Any number of contexts.
    Default,
    /// One context, of one thread (deprecated by CUDA 8; treated as exclusive).
    ExclusiveThread,
    /// No context may be created.
    Prohibited,
    /// One process may have contexts.
    ExclusiveProcess,
}

impl ComputeMode {
    /// Whether a GPU in this mode is taken by the first context on it.
    pub fn is_exclusive(self) -> bool {
        matches!(self, Self::ExclusiveProcess | Self::ExclusiveThread)
    }

    /// NVML's name without its prefix: `EXCLUSIVE_PROCESS`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Default => "DEFAULT",
            Self::ExclusiveThread => "EXCLUSIVE_THREAD",
            Self::Prohibited => "PROHIBITED",
            Self::ExclusiveProcess => "EXCLUSIVE_PROCESS",
        }
    }

    /// The mode of that name, in NVML's or nvidia-smi's spelling (`Exclusive_Process`).
    pub fn from_name(name: &str) -> Option<Self> {
        [
            Self::Default,
            Self::ExclusiveThread,
            Self::Prohibited,
            Self::ExclusiveProcess,
        ]
        .into_iter()
        .find(|mode| mode.name().eq_ignore_ascii_case(name))
    }
}

/// What a MIG-enabled GPU is divided into.
#[derive(Debug, Clone, PartialEq, Default)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct Mig {
    /// The MIG devices that exist; may be empty.
    #[cfg_attr(feature = "serde", serde(default))]
    pub devices: Vec<MigDevice>,
}

/// One MIG device: the device that a process can use of a MIG-enabled GPU.
#[derive(Debug, Clone, PartialEq, Default)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct MigDevice {
    /// The MIG device's number on its GPU.
    pub index: u32,
    /// NVML's GPU instance id.
    #[cfg_attr(feature = "serde", serde(default))]
    pub gpu_instance_id: Option<u32>,
    /// NVML's compute instance id.
    #[cfg_attr(feature = "serde", serde(default))]
    pub compute_instance_id: Option<u32>,
    /// `MIG-` and 36 hexadecimal digits and dashes: the only way to name it to CUDA.
    #[cfg_attr(feature = "serde", serde(default))]
    pub uuid: Option<String>,
    /// Such as `NVIDIA A100-SXM4-80GB MIG 1g.10gb`.
    #[cfg_attr(feature = "serde", serde(default))]
    pub name: Option<String>,
    /// Its share of the GPU's memory.
    #[cfg_attr(feature = "serde", serde(default))]
    pub memory: Memory,
    /// The processes on it; `None` where the list cannot be read.
    #[cfg_attr(feature = "serde", serde(default))]
    pub processes: Option<Vec<Process>>,
    /// The launches that have taken it.
    #[cfg_attr(feature = "serde", serde(default))]
    pub claims: Vec<ClaimInfo>,
    /// As [`Gpu::unusable`].
    #[cfg_attr(feature = "serde", serde(skip))]
    pub unusable: Option<String>,
    /// As [`Gpu::recorded`].
    #[cfg_attr(feature = "serde", serde(skip))]
    pub recorded: Option<Judgement>,
    /// As [`Gpu::state`].
    #[cfg_attr(feature = "serde", serde(default))]
    pub state: Option<State>,
    /// As [`Gpu::reason`].
    #[cfg_attr(feature = "serde", serde(default))]
    pub reason: Option<String>,
}

/// A process with a context on a GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct Process {
    /// Its id in the namespace that the driver reports in.
    pub pid: u32,
    /// What kind of context it has.
    #[cfg_attr(feature = "serde", serde(rename = "type"))]
    pub kind: ProcessKind,
    /// The name of its user.
    #[cfg_attr(feature = "serde", serde(default))]
    pub user: Option<String>,
    /// Its command line.
    #[cfg_attr(feature = "serde", serde(default))]
    pub command: Option<String>,
    /// The GPU memory it holds, in bytes.
    #[cfg_attr(feature = "serde", serde(default))]
    pub used_memory: Option<u64>,
    /// When it started: Unix time in seconds.
    #[cfg_attr(feature = "serde", serde(default, deserialize_with = "json::time"))]
    pub started: Option<u64>,
}

/// The process types of nvidia-smi.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub enum ProcessKind {
    /// A compute context.
    #[cfg_attr(feature = "serde", serde(rename = "C"))]
    Compute,
    /// A graphics context only: Xorg, a compositor.
    #[cfg_attr(feature = "serde", serde(rename = "G"))]
    Graphics,
    /// Both.
    #[cfg_attr(feature = "serde", serde(rename = "C+G"))]
    ComputeGraphics,
    /// A compute context through the MPS server.
    #[cfg_attr(feature = "serde", serde(rename = "M+C", alias = "M", alias = "C+M"))]
    MpsCompute,
}

impl ProcessKind {
    /// nvidia-smi's name: `M+C`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Compute => "C",
            Self::Graphics => "G",
            Self::ComputeGraphics => "C+G",
            Self::MpsCompute => "M+C",
        }
    }

    /// Whether the process computes on the GPU; only a pure graphics process does not.
    pub fn computes(self) -> bool {
        self != Self::Graphics
    }
}

/// A claim as it is told to people.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct ClaimInfo {
    /// The process that holds it, or the shell whose lease it is, in its own PID namespace.
    #[cfg_attr(feature = "serde", serde(default))]
    pub pid: Option<u32>,
    /// The name of its user, or the number where it has none.
    #[cfg_attr(feature = "serde", serde(default))]
    pub user: Option<String>,
    /// Its command line.
    #[cfg_attr(feature = "serde", serde(default))]
    pub command: Option<String>,
    /// When it was made: Unix time in seconds.
    #[cfg_attr(feature = "serde", serde(default, deserialize_with = "json::time"))]
    pub since: Option<u64>,
}

/// What can be done with a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(Serialize, Deserialize),
    serde(rename_all = "lowercase")
)]
pub enum State {
    /// Nobody uses it.
    Free,
    /// Somebody computes on it, or it is unknown whether somebody does.
    Busy,
    /// Another launch has taken it.
    Claimed,
    /// It cannot be used: lost, in need of a reset, not permitted, prohibited.
    Unavailable,
}

/// A state, and why a device was in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    /// What could be done with the device.
    pub state: State,
    /// Why, where there is something to say.
    pub reason: Option<String>,
}

/// How two GPUs are connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct Link {
    /// The indices of the two GPUs, the lower first.
    pub gpus: (u32, u32),
    /// How many NVLinks join them directly, or 1 where they only reach each other through NVSwitch.
    #[cfg_attr(feature = "serde", serde(default))]
    pub nvlinks: u32,
    /// Their nearest common PCIe ancestor.
    #[cfg_attr(feature = "serde", serde(default))]
    pub ancestor: Option<TopologyLevel>,
}

/// NVML's nvmlGpuTopologyLevel_t: the nearer, the smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(
    feature = "serde",
    derive(Serialize, Deserialize),
    serde(rename_all = "lowercase")
)]
pub enum TopologyLevel {
    /// The same board.
    Internal,
    /// A single PCIe switch.
    Single,
    /// Several PCIe switches.
    Multiple,
    /// The same host bridge.
    Hostbridge,
    /// The same NUMA node.
    Node,
    /// Only the interconnect between sockets.
    System,
}
