//! What is known of a machine's GPUs: plain data. Every metric is a [`Fact`]: its value, or that
//! this machine has no such thing, or that it could not be read. What is unknown is never taken for
//! zero.

pub(crate) use crate::fact::Fact;
pub(crate) mod json;
mod waiting;

pub use waiting::WaitingRequest;

use crate::pci::PciBusId;
use crate::proc::ProcessId;
use serde::{Deserialize, Serialize};

/// Where a [`Snapshot`] was read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// NVIDIA's management library, libnvidia-ml.
    #[serde(rename = "nvml")]
    Nvml,
    /// The output of `nvidia-smi -q -x`.
    #[serde(rename = "nvidia-smi")]
    NvidiaSmi,
    /// A file in the form of `autocvd status --json`.
    #[serde(rename = "file")]
    File,
}

/// Which processes the driver's lists can name (`process_view` in JSON).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProcessView {
    /// All of them: this process lives in the host's PID namespace.
    #[default]
    Host,
    /// Perhaps only those of a container's PID namespace: an empty list proves nothing.
    Container,
    /// Of none, as a rule: WSL2, where programs of Windows use the GPU too.
    Wsl,
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
    /// How pairs of GPUs are connected; empty where they were not asked for or are unknown.
    pub links: Vec<Link>,
    /// The requests that wait, the longest-waiting first.
    pub waiting: Vec<WaitingRequest>,
    /// When and where it was read, where that is known.
    pub(crate) recording: Option<Box<Recording>>,
}

impl Snapshot {
    /// When it was read, where that is known: Unix time in seconds.
    pub fn read_at(&self) -> Option<u64> {
        self.recording.as_ref()?.time
    }

    /// The name of the machine that it was read on, where that is known.
    pub fn host(&self) -> Option<&str> {
        self.recording.as_ref()?.host.as_deref()
    }

    /// Whether the pids that the driver lists are those of this process's namespace. Before 535.113
    /// a container is told the host's, which mean other processes there, or none.
    pub(crate) fn pids_are_known(&self) -> bool {
        let version = self.driver_version.as_deref();
        let major = version.and_then(|version| version.split('.').next()?.parse::<u32>().ok());
        self.process_view == ProcessView::Host || major.is_some_and(|major| major > 535)
    }
}

/// When, where and by what a [`Snapshot`] was read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Recording {
    /// Unix time in seconds.
    pub(crate) time: Option<u64>,
    /// The name of the machine.
    pub(crate) host: Option<String>,
    /// The kernel's id of this boot: pids and times mean something within it.
    pub(crate) boot_id: Option<String>,
    /// The version of autocvd.
    pub(crate) version: Option<String>,
}

/// Why a device that the administrator has excluded cannot be used.
pub(crate) const RESERVED: &str = "reserved in /etc/autocvd.conf";

/// One physical GPU.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Gpu {
    /// The place in PCI bus order, from 0: what nvidia-smi calls the GPU's id.
    pub index: u32,
    /// `GPU-` and 36 hexadecimal digits and dashes.
    pub uuid: Option<String>,
    /// Its place on the PCI bus.
    #[serde(default, with = "json::pci_bus_id")]
    pub pci_bus_id: Option<PciBusId>,
    /// The product name, such as `NVIDIA A100-SXM4-80GB`.
    pub name: Option<String>,
    /// Device memory.
    #[serde(default)]
    pub memory: Memory,
    /// How busy the GPU was over the driver's last sample period.
    #[serde(default)]
    pub utilization: Utilization,
    /// Who may create contexts on it.
    #[serde(default, with = "json::compute_mode")]
    pub compute_mode: Fact<ComputeMode>,
    /// The MIG devices it is divided into, where MIG is enabled.
    #[serde(default, deserialize_with = "json::mig")]
    pub mig: Option<Mig>,
    /// The processes that have a context on it.
    pub processes: Fact<Vec<Process>>,
    /// Whether its memory is a NUMA node of the host that has no CPUs (Grace Hopper), where pages
    /// stay allocated after the process that used them has ended.
    #[serde(default)]
    pub memory_is_numa_node: bool,
    /// Whether the driver wants it to be recovered from an error; `None` where it was not asked.
    pub health: Option<Health>,
    /// The launches that have taken it.
    #[serde(default)]
    pub claims: Vec<ClaimInfo>,
    /// Until when launches take it last, in Unix seconds: COMMANDs have failed on it one after
    /// another, soon after their start.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "json::time"
    )]
    pub suspect_until: Option<u64>,
    /// Why no launch can claim it, so that it is given last: something else lies where its lock
    /// file belongs, or that may not be opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unclaimable: Option<String>,
    /// Whether the administrator keeps it from everybody: `exclude` in /etc/autocvd.conf.
    #[serde(default, skip_serializing_if = "json::is_false")]
    pub reserved: bool,
    /// Why it cannot be used at all, where the probe says so: lost, in need of a reset, not
    /// permitted.
    #[serde(skip)]
    pub unusable: Option<String>,
    /// The number in the name of its device file, `/dev/nvidia0`, where somebody asked.
    #[serde(skip)]
    pub(crate) minor_number: Option<u32>,
    /// What was judged when the machine was recorded, where it comes from a file.
    #[serde(skip)]
    pub(crate) recorded: Option<Judgement>,
    /// What [`Snapshot::judge`] made of all this.
    pub state: Option<State>,
    /// Why it is in that state, where there is something to say.
    pub reason: Option<String>,
    /// How many bytes another share of it can be; `None` where it is not shared.
    #[serde(skip_deserializing, skip_serializing_if = "Option::is_none")]
    pub shareable: Option<u64>,
}

impl Gpu {
    /// Whether it has answered a question that touches the device itself: one that is lost may
    /// still have a handle, a name and a MIG mode.
    pub(crate) fn has_answered(&self) -> bool {
        let Memory { total, used, free } = self.memory;
        let silent = total.is_unknown() && used.is_unknown() && free.is_unknown();
        self.mig.is_some()
            || !silent
            || !self.compute_mode.is_unknown()
            || !self.processes.is_unknown()
    }
}

/// Memory in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Memory {
    /// All the memory there is; where it is the machine's (DGX Spark, Jetson), the machine's.
    pub total: Fact<u64>,
    /// What is allocated, without the driver's own reserve where the driver tells them apart. It
    /// does not apply to memory that the GPU shares with the CPUs: nothing tells what of it is the
    /// GPU's.
    pub used: Fact<u64>,
    /// What the driver calls free; where the memory is the machine's, what is available there.
    pub free: Fact<u64>,
}

/// Utilization in percent (nvmlDeviceGetUtilizationRates).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Utilization {
    /// The share of time in which a kernel ran.
    pub gpu: Fact<u32>,
    /// The share of time in which memory was read or written.
    pub memory: Fact<u32>,
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
    pub(crate) fn from_name(name: &str) -> Option<Self> {
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

/// What the driver says of a GPU's health.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Health {
    /// What has to be done before it works again; `None` where that is unknown, as to drivers
    /// before R570.
    pub recovery_action: Option<RecoveryAction>,
    /// Whether a row of its memory could not be replaced by a spare one.
    pub remap_failed: Option<bool>,
}

/// NVML's nvmlDeviceGpuRecoveryAction_t, with the numbers that R590 and later added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum RecoveryAction {
    /// It is well.
    None,
    /// It needs a reset.
    GpuReset,
    /// The machine needs a reboot.
    NodeReboot,
    /// Its connections to other GPUs are to be drained; it computes on its own.
    #[serde(rename = "DRAIN_P2P")]
    DrainP2p,
    /// It is to be drained of work and reset.
    DrainAndReset,
    /// The IMEX service of its NVLink domain needs attention; it computes.
    Imex,
    /// Its bus needs a reset.
    BusReset,
    /// The machine needs a reboot.
    SystemReboot,
    /// An action that later drivers know.
    #[serde(other)]
    Other,
}

/// The actions by their numbers.
const RECOVERY_ACTIONS: [RecoveryAction; 8] = [
    RecoveryAction::None,
    RecoveryAction::GpuReset,
    RecoveryAction::NodeReboot,
    RecoveryAction::DrainP2p,
    RecoveryAction::DrainAndReset,
    RecoveryAction::Imex,
    RecoveryAction::BusReset,
    RecoveryAction::SystemReboot,
];

impl RecoveryAction {
    /// The action that NVML's number stands for.
    pub(crate) fn from_number(number: u32) -> Self {
        let known = RECOVERY_ACTIONS.get(number as usize);
        known.copied().unwrap_or(Self::Other)
    }

    /// The action of nvidia-smi's name, such as `Drain and Reset`.
    pub(crate) fn from_smi_name(name: &str) -> Self {
        let name = name.to_ascii_lowercase().replace([' ', '_'], "");
        match name.as_str() {
            "none" => Self::None,
            "reset" | "gpureset" => Self::GpuReset,
            "reboot" | "nodereboot" => Self::NodeReboot,
            "drainp2p" => Self::DrainP2p,
            "drainandreset" => Self::DrainAndReset,
            "imex" => Self::Imex,
            "busreset" => Self::BusReset,
            "systemreboot" => Self::SystemReboot,
            _ => Self::Other,
        }
    }

    /// What a person has to do before programs can use the GPU, if so.
    pub(crate) fn remedy(self) -> Option<&'static str> {
        match self {
            Self::None | Self::DrainP2p | Self::Imex => None,
            Self::GpuReset | Self::BusReset | Self::DrainAndReset => Some(
                "the driver wants it to be reset: end what runs on it, then run 'nvidia-smi \
                 --gpu-reset -i ID' as root, or reboot",
            ),
            Self::NodeReboot | Self::SystemReboot => {
                Some("the driver wants a reboot of the machine to recover it from an error")
            }
            Self::Other => Some(
                "the driver wants it to be recovered from an error; 'nvidia-smi -q' says what to \
                 do",
            ),
        }
    }
}

impl Health {
    /// Why programs cannot use the GPU, and what helps, if so.
    pub fn fault(self) -> Option<&'static str> {
        let remedy = self.recovery_action.and_then(RecoveryAction::remedy);
        let remap = "a row remap failed: its memory has errors that no spare row replaces; have it \
                     replaced";
        remedy.or_else(|| (self.remap_failed == Some(true)).then_some(remap))
    }
}

/// What a MIG-enabled GPU is divided into.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Mig {
    /// The MIG devices that exist; may be empty.
    #[serde(default)]
    pub devices: Vec<MigDevice>,
}

/// One MIG device: the device that a process can use of a MIG-enabled GPU.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct MigDevice {
    /// The MIG device's number on its GPU.
    pub index: u32,
    /// NVML's GPU instance id.
    pub gpu_instance_id: Option<u32>,
    /// NVML's compute instance id.
    pub compute_instance_id: Option<u32>,
    /// `MIG-` and 36 hexadecimal digits and dashes: the only way to name it to CUDA.
    pub uuid: Option<String>,
    /// Such as `NVIDIA A100-SXM4-80GB MIG 1g.10gb`.
    pub name: Option<String>,
    /// Its share of the GPU's memory.
    #[serde(default)]
    pub memory: Memory,
    /// The processes on it.
    pub processes: Fact<Vec<Process>>,
    /// The launches that have taken it.
    #[serde(default)]
    pub claims: Vec<ClaimInfo>,
    /// As [`Gpu::suspect_until`].
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "json::time"
    )]
    pub suspect_until: Option<u64>,
    /// As [`Gpu::unclaimable`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unclaimable: Option<String>,
    /// As [`Gpu::reserved`].
    #[serde(default, skip_serializing_if = "json::is_false")]
    pub reserved: bool,
    /// As [`Gpu::unusable`].
    #[serde(skip)]
    pub unusable: Option<String>,
    /// As [`Gpu::recorded`].
    #[serde(skip)]
    pub(crate) recorded: Option<Judgement>,
    /// As [`Gpu::state`].
    pub state: Option<State>,
    /// As [`Gpu::reason`].
    pub reason: Option<String>,
    /// As [`Gpu::shareable`].
    #[serde(skip_deserializing, skip_serializing_if = "Option::is_none")]
    pub shareable: Option<u64>,
}

/// A process with a context on a GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its id in the namespace that the driver reports in.
    pub pid: u32,
    /// What kind of context it has.
    #[serde(rename = "type", with = "json::process_kind")]
    pub kind: ProcessKind,
    /// The name of its user.
    pub user: Option<String>,
    /// Its command line.
    pub command: Option<String>,
    /// The GPU memory it holds, in bytes.
    pub used_memory: Option<u64>,
    /// When it started: Unix time in seconds.
    #[serde(default, deserialize_with = "json::time")]
    pub started: Option<u64>,
    /// Whether its program makes no GPU busy: `ignore` in /etc/autocvd.conf.
    #[serde(default, skip_serializing_if = "json::is_false")]
    pub ignored: bool,
    /// Whether it belongs to one of the shares that the device's claims are on.
    #[serde(default, skip_serializing_if = "json::is_false")]
    pub in_share: bool,
}

impl Process {
    /// Whether it is known by what it has open, not by the driver's list.
    pub(crate) fn is_unlisted(&self) -> bool {
        self.kind == ProcessKind::Unlisted
    }
}

/// The process types of nvidia-smi.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProcessKind {
    /// A compute context.
    Compute,
    /// A graphics context only: Xorg, a compositor.
    Graphics,
    /// Both.
    ComputeGraphics,
    /// A compute context through the MPS server.
    MpsCompute,
    /// None that the driver lists (null in JSON): it has the device file of the GPU open, whose
    /// memory no listed process explains.
    Unlisted,
}

impl ProcessKind {
    /// nvidia-smi's name: `M+C`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Compute => "C",
            Self::Graphics => "G",
            Self::ComputeGraphics => "C+G",
            Self::MpsCompute => "M+C",
            Self::Unlisted => "?",
        }
    }

    /// Whether the process computes on the GPU; only a pure graphics process does not.
    pub fn computes(self) -> bool {
        self != Self::Graphics
    }
}

/// A claim as it is told to people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimInfo {
    /// What it is for: `command`, `lease`, `shell` or `share`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The process that it is for, or the shell whose lease it is.
    pub pid: Option<u32>,
    /// The name of its user, or the number where it has none.
    pub user: Option<String>,
    /// Its command line.
    pub command: Option<String>,
    /// When it was made: Unix time in seconds.
    #[serde(default, deserialize_with = "json::time")]
    pub since: Option<u64>,
    /// When it ends unless a process is seen: Unix time in seconds.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "json::time"
    )]
    pub until: Option<u64>,
    /// The version of autocvd that made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// How many bytes a share is of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// How many bytes the processes of a share hold; `None` where its holder is out of sight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub used_memory: Option<u64>,
    /// Whose the share is.
    #[serde(skip)]
    pub(crate) share_holder: Option<ShareHolder>,
}

/// What a share is for, and by what its processes are known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ShareHolder {
    /// The process, where it is one of this process's PID namespace.
    pub process: Option<ProcessId>,
    /// What stands in the environment of its processes.
    pub token: Option<String>,
}

/// What can be done with a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// No process uses it.
    Free,
    /// A process computes on it, or it is unknown whether one does.
    Busy,
    /// Another launch has taken it.
    Claimed,
    /// Other launches have taken shares of it.
    Shared,
    /// It cannot be used: lost, in need of a reset, not permitted, prohibited.
    Unavailable,
}

/// A state, and why a device was in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Judgement {
    /// What could be done with the device.
    pub state: State,
    /// Why, where there is something to say.
    pub reason: Option<String>,
}

/// How two GPUs are connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// The indices of the two GPUs, the lower first.
    pub gpus: (u32, u32),
    /// How many NVLinks join them directly, or 1 where they only reach each other through NVSwitch.
    #[serde(default)]
    pub nvlinks: u32,
    /// Their nearest common PCIe ancestor.
    pub ancestor: Option<TopologyLevel>,
}

/// NVML's nvmlGpuTopologyLevel_t: the nearer, the smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
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
