//! machine.json. A member that is absent takes the default of a healthy, idle A100; one that is
//! null is a metric that the GPU does not support.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// What a process holds where nothing is said.
pub const PROCESS_MEMORY: u64 = 500 * MIB;

/// By the name of an NVML function.
pub type ByName<T> = HashMap<String, T>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    #[serde(default = "driver_version")]
    pub driver_version: Option<String>,
    #[serde(default)]
    pub init: Init,
    #[serde(default)]
    pub gpus: Vec<Gpu>,
    #[serde(default)]
    pub links: Vec<Link>,
    /// Codes that functions answer, whatever the GPU.
    #[serde(default)]
    pub errors: ByName<u32>,
    /// How long functions take, whatever the GPU.
    #[serde(default)]
    pub delays_ms: ByName<u64>,
    /// `535.43`: the `_v3` process lists hold the longer struct of drivers 535.43 to 535.86.
    #[serde(default)]
    pub process_info_layout: Option<String>,
    /// Process lists answer SUCCESS, not INSUFFICIENT_SIZE, to a null buffer.
    #[serde(default)]
    pub null_count_success: bool,
    /// As drivers from 535.113 do: only processes that the caller's /proc shows are listed, though
    /// the memory of the others counts.
    #[serde(default)]
    pub list_pid_namespace: bool,
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub struct Init {
    pub code: u32,
    pub delay_ms: u64,
    /// To end the process instead of answering.
    pub ends: Option<Ending>,
    /// What it does with the process's standard output first.
    pub stdout: Option<Mischief>,
}

/// What a library can do with its process's standard output.
#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
pub enum Mischief {
    /// Writes to it.
    Print,
    Close,
    /// Lets it lead to `/dev/null`.
    Redirect,
}

/// How a library can end its process.
#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
pub enum Ending {
    Crash,
    Abort,
    Exit,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gpu {
    pub uuid: Option<String>,
    pub pci_bus_id: Option<String>,
    pub name: Option<String>,
    pub minor: Option<u32>,
    pub memory: Option<Memory>,
    /// One reading, or several: a process gets one after the other, and the last again and again.
    pub utilization: Option<Utilizations>,
    pub compute_mode: Option<String>,
    pub mig: Option<Mig>,
    pub processes: Vec<Process>,
    /// NVML's number of the recovery action (field 230).
    pub recovery_action: Option<u32>,
    /// Row remapping: what nvmlDeviceGetRemappedRows and fields 142 to 145 say of failures.
    pub remap_failed: Option<bool>,
    /// `none`, `hmm` or `ats`; by default `ats` where there is a `numa_node`.
    pub addressing_mode: Option<String>,
    /// How long it takes in each process to initialize it, which its first handle does: without
    /// persistence mode a driver needs seconds.
    #[serde(default)]
    pub init_ms: u64,
    pub persistence_mode: Option<bool>,
    pub display_active: Option<bool>,
    /// The host's NUMA node that its memory is; absent = it is none.
    #[serde(default)]
    pub numa_node: Option<u32>,
    /// Absent = not supported.
    #[serde(default)]
    pub cpu_affinity: Option<Vec<usize>>,
    /// NUMA nodes of the host; absent = not supported.
    #[serde(default)]
    pub memory_affinity: Option<Vec<usize>>,
    /// NVLinks that lead to an NVSwitch; they come after those that lead to GPUs.
    #[serde(default)]
    pub nvswitch_links: u32,
    /// Codes by function; `handle` stands for every way to get its handle, `*` for every function.
    #[serde(default)]
    pub errors: ByName<u32>,
    /// Milliseconds by function, named as in `errors`.
    #[serde(default)]
    pub delays_ms: ByName<u64>,
}

/// In bytes. `used` defaults to what `processes` hold, `free` to what is left.
#[derive(Deserialize, Clone, Copy)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    pub total: u64,
    pub reserved: u64,
    pub used: u64,
    pub free: u64,
}

/// What a process is told at each of its readings.
#[derive(Deserialize)]
#[serde(untagged)]
pub enum Utilizations {
    Always(Utilization),
    InTurn(Vec<Utilization>),
}

#[derive(Deserialize, Clone, Copy)]
#[serde(deny_unknown_fields)]
pub struct Utilization {
    pub gpu: u32,
    pub memory: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mig {
    pub enabled: bool,
    /// The most MIG devices it can have.
    pub max: u32,
    /// By index; null is a hole.
    pub devices: Vec<Option<MigDevice>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MigDevice {
    pub uuid: Option<String>,
    pub name: Option<String>,
    pub gi: u32,
    pub ci: u32,
    pub memory: Option<Memory>,
    pub compute_mode: Option<String>,
    pub processes: Vec<Process>,
    /// As [`Gpu::errors`]; those of the GPU do not apply, but for `*`.
    #[serde(default)]
    pub errors: ByName<u32>,
}

#[derive(Deserialize, Clone)]
#[serde(deny_unknown_fields)]
pub struct Process {
    pub pid: u32,
    /// `C`, `G`, `C+G`, `M` or `M+C`.
    #[serde(rename = "type", default = "compute")]
    pub kind: String,
    /// Null where the driver cannot tell.
    #[serde(default = "process_memory")]
    pub memory: Option<u64>,
    #[serde(default)]
    pub gi: Option<u32>,
    #[serde(default)]
    pub ci: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// The indices of two GPUs.
    pub gpus: (usize, usize),
    #[serde(default)]
    pub nvlinks: u32,
    /// `internal`, `single`, `multiple`, `hostbridge`, `node` or `system`.
    #[serde(default = "system")]
    pub ancestor: Option<String>,
}

fn driver_version() -> Option<String> {
    Some("580.82.07".to_owned())
}

fn compute() -> String {
    "C".to_owned()
}

fn process_memory() -> Option<u64> {
    Some(PROCESS_MEMORY)
}

fn system() -> Option<String> {
    Some("system".to_owned())
}

impl Machine {
    pub fn parse(text: &str) -> serde_json::Result<Self> {
        let mut machine: Value = serde_json::from_str(text)?;
        if let Some(gpus) = machine.get_mut("gpus").and_then(Value::as_array_mut) {
            for (index, gpu) in gpus.iter_mut().enumerate() {
                complete_gpu(gpu, index);
            }
        }
        serde_json::from_value(machine)
    }
}

fn complete_gpu(gpu: &mut Value, index: usize) {
    let used = memory_of_processes(gpu);
    // The index begins the UUID, so that `GPU-3` is a unique start.
    let first = format!("{:0<8}", format!("{index:x}"));
    let defaults = json!({
        "uuid": format!("GPU-{first}-0000-0000-0000-{index:012x}"),
        "pci_bus_id": format!("00000000:{:02X}:00.0", index + 1),
        "name": "NVIDIA A100-SXM4-80GB",
        "minor": index,
        "memory": {"total": 80 * GIB, "reserved": 512 * MIB, "used": used},
        "utilization": {"gpu": 0, "memory": 0},
        "compute_mode": "DEFAULT",
        "mig": {"enabled": false, "max": 7, "devices": []},
        "processes": [],
        "recovery_action": 0,
        "remap_failed": false,
        "addressing_mode": if gpu["numa_node"].is_null() { "none" } else { "ats" },
        "persistence_mode": true,
        "display_active": false,
    });
    complete(gpu, defaults);
    complete_free(gpu);
    let name = gpu["name"].as_str().unwrap_or("NVIDIA").to_owned();
    if let Some(devices) = gpu
        .pointer_mut("/mig/devices")
        .and_then(Value::as_array_mut)
    {
        for (number, device) in devices.iter_mut().enumerate() {
            if device.is_null() {
                continue;
            }
            let first = format!("{:0<8}", format!("{index:x}{number:x}"));
            let used = memory_of_processes(device);
            let defaults = json!({
                "uuid": format!("MIG-{first}-0000-0000-0000-{index:08x}{number:04x}"),
                "name": format!("{name} MIG 1g.10gb"),
                "gi": 7 + number,
                "ci": 0,
                "memory": {"total": 9728 * MIB, "reserved": 0, "used": used},
                "compute_mode": "DEFAULT",
                "processes": [],
            });
            complete(device, defaults);
            complete_free(device);
        }
    }
}

/// Adds what is missing; what is given, null included, stays.
fn complete(given: &mut Value, defaults: Value) {
    if let (Value::Object(given), Value::Object(defaults)) = (given, defaults) {
        for (key, default) in defaults {
            match given.get_mut(&key) {
                Some(value) => complete(value, default),
                None => {
                    given.insert(key, default);
                }
            }
        }
    }
}

fn complete_free(device: &mut Value) {
    let memory = &mut device["memory"];
    if memory.is_object() {
        let bytes = |key: &str| memory[key].as_u64().unwrap_or(0);
        let free = bytes("total")
            .saturating_sub(bytes("reserved"))
            .saturating_sub(bytes("used"));
        complete(memory, json!({"free": free}));
    }
}

/// What the processes hold that machine.json names, those on MIG devices included.
fn memory_of_processes(device: &Value) -> u64 {
    let listed = |key: &str| {
        device
            .pointer(key)
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
    };
    let own: u64 = listed("/processes")
        .map(|process| {
            process
                .get("memory")
                .map_or(PROCESS_MEMORY, |memory| memory.as_u64().unwrap_or(0))
        })
        .sum();
    own + listed("/mig/devices").map(memory_of_processes).sum::<u64>()
}
