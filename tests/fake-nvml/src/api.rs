//! The functions that have something to say. The rest is in [`crate::stubs`].

#![allow(non_snake_case, reason = "NVML's own names")]

use std::ffi::{c_char, c_int, c_uint, c_ulong};

use crate::call::Call;
use crate::config::{Gpu, Process};
use crate::devices::{Device, Peer, gpu_handle, mig_device, mig_handle};
use crate::ffi::{
    ARGUMENT_VERSION_MISMATCH, AddressingMode, Code, FieldValue, Handle, INSUFFICIENT_SIZE,
    INVALID_ARGUMENT, In, Memory, MemoryV2, NO_INSTANCE, NOT_FOUND, NOT_SUPPORTED, Out, PciInfo,
    PciInfoV3, ProcessOf535, ProcessV1, ProcessV2, SUCCESS, Utilization, VALUE_NOT_AVAILABLE,
    chars, version,
};

/// NVML_NVLINK_MAX_LINKS.
const MAX_LINKS: usize = 18;

/// Defines exported functions; their first parameter is the [`Call`], which C does not see.
macro_rules! nvml {
    ($(fn $name:ident($call:ident $(, $arg:ident: $type:ty)* $(,)?) $body:block)*) => {$(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name($($arg: $type),*) -> Code {
            Call::answer(stringify!($name), |$call: &Call| $body)
        }
    )*};
}

nvml! {
    fn nvmlInit(call) { call.initialize() }
    fn nvmlInit_v2(call) { call.initialize() }
    fn nvmlInitWithFlags(call, _flags: c_uint) { call.initialize() }
    fn nvmlShutdown(call) { call.shut_down() }

    fn nvmlSystemGetDriverVersion(call, version: Out<c_char>, length: c_uint) {
        version.set_string(supported(call.machine.driver_version.as_deref())?, length)
    }
    fn nvmlSystemGetNVMLVersion(call, version: Out<c_char>, length: c_uint) {
        let driver = supported(call.machine.driver_version.as_deref())?;
        version.set_string(&format!("13.{driver}"), length)
    }
    fn nvmlSystemGetCudaDriverVersion(_call, version: Out<c_int>) { version.set(13000) }
    fn nvmlSystemGetCudaDriverVersion_v2(_call, version: Out<c_int>) { version.set(13000) }

    fn nvmlDeviceGetCount_v2(call, count: Out<c_uint>) {
        count.set(call.machine.gpus.len() as c_uint)
    }
    fn nvmlDeviceGetHandleByIndex_v2(call, index: c_uint, device: Out<Handle>) {
        device.set(call.open(index as usize)?)
    }
    fn nvmlDeviceGetHandleByUUID(call, uuid: In, device: Out<Handle>) {
        let uuid = uuid.get()?;
        device.set(match uuid.starts_with("MIG-") {
            true => call.find_mig(uuid)?,
            false => call.find(|gpu| gpu.uuid.as_deref() == Some(uuid))?,
        })
    }
    fn nvmlDeviceGetHandleByPciBusId_v2(call, id: In, device: Out<Handle>) {
        let wanted = pci_address(id.get()?).ok_or(INVALID_ARGUMENT)?;
        let place = |gpu: &Gpu| gpu.pci_bus_id.as_deref().and_then(pci_address);
        device.set(call.find(|gpu| place(gpu) == Some(wanted))?)
    }

    fn nvmlDeviceGetIndex(call, device: Handle, index: Out<c_uint>) {
        let device = call.device(device)?;
        index.set(device.mig.map_or(device.index, |(number, _)| number) as c_uint)
    }
    fn nvmlDeviceGetName(call, device: Handle, name: Out<c_char>, length: c_uint) {
        let device = call.device(device)?;
        let known = match device.mig {
            Some((_, mig)) => &mig.name,
            None => &device.gpu.name,
        };
        name.set_string(supported(known.as_deref())?, length)
    }
    fn nvmlDeviceGetUUID(call, device: Handle, uuid: Out<c_char>, length: c_uint) {
        let device = call.device(device)?;
        let known = match device.mig {
            Some((_, mig)) => &mig.uuid,
            None => &device.gpu.uuid,
        };
        uuid.set_string(supported(known.as_deref())?, length)
    }
    fn nvmlDeviceGetMinorNumber(call, device: Handle, minor: Out<c_uint>) {
        minor.set(supported(call.gpu(device)?.gpu.minor)?)
    }
    fn nvmlDeviceGetPciInfo(call, device: Handle, pci: Out<PciInfo>) {
        pci.set(pci_info(supported(call.gpu(device)?.gpu.pci_bus_id.as_deref())?)?.common)
    }
    fn nvmlDeviceGetPciInfo_v2(call, device: Handle, pci: Out<PciInfo>) {
        pci.set(pci_info(supported(call.gpu(device)?.gpu.pci_bus_id.as_deref())?)?.common)
    }
    fn nvmlDeviceGetPciInfo_v3(call, device: Handle, pci: Out<PciInfoV3>) {
        pci.set(pci_info(supported(call.gpu(device)?.gpu.pci_bus_id.as_deref())?)?)
    }
    fn nvmlDeviceGetPersistenceMode(call, device: Handle, mode: Out<c_uint>) {
        mode.set(supported(call.gpu(device)?.gpu.persistence_mode)?.into())
    }
    fn nvmlDeviceGetDisplayActive(call, device: Handle, active: Out<c_uint>) {
        active.set(supported(call.gpu(device)?.gpu.display_active)?.into())
    }
    fn nvmlDeviceGetDisplayMode(call, device: Handle, connected: Out<c_uint>) {
        connected.set(supported(call.gpu(device)?.gpu.display_active)?.into())
    }

    // The first version counts the driver's reserve as used.
    fn nvmlDeviceGetMemoryInfo(call, device: Handle, memory: Out<Memory>) {
        let known = call.device(device)?.memory()?;
        let used = known.used + known.reserved;
        memory.set(Memory { total: known.total, free: known.free, used })
    }
    fn nvmlDeviceGetMemoryInfo_v2(call, device: Handle, memory: Out<MemoryV2>) {
        let known = call.device(device)?.memory()?;
        let version = expect_version(&memory, version::<MemoryV2>(2))?;
        let (total, reserved, free, used) = (known.total, known.reserved, known.free, known.used);
        memory.set(MemoryV2 { version, total, reserved, free, used })
    }
    fn nvmlDeviceGetUtilizationRates(call, device: Handle, utilization: Out<Utilization>) {
        let known = call.device(device)?.utilization()?;
        utilization.set(Utilization { gpu: known.gpu, memory: known.memory })
    }
    fn nvmlDeviceGetComputeMode(call, device: Handle, mode: Out<c_uint>) {
        let device = call.device(device)?;
        let known = match device.mig {
            Some((_, mig)) => &mig.compute_mode,
            None => &device.gpu.compute_mode,
        };
        let modes = ["DEFAULT", "EXCLUSIVE_THREAD", "PROHIBITED", "EXCLUSIVE_PROCESS"];
        mode.set(number_of(supported(known.as_deref())?, &modes)?)
    }
}

/// Defines the three versions of a process list.
macro_rules! process_lists {
    ($($listed:ident: $first:ident $second:ident $third:ident)*) => {$(nvml! {
        fn $first(call, device: Handle, count: Out<c_uint>, infos: Out<ProcessV1>) {
            list(call, device, $listed, count, infos, v1)
        }
        fn $second(call, device: Handle, count: Out<c_uint>, infos: Out<ProcessV2>) {
            list(call, device, $listed, count, infos, v2)
        }
        fn $third(call, device: Handle, count: Out<c_uint>, infos: Out<ProcessV2>) {
            list_v3(call, device, $listed, count, infos)
        }
    })*};
}

process_lists! {
    computes:
        nvmlDeviceGetComputeRunningProcesses
        nvmlDeviceGetComputeRunningProcesses_v2
        nvmlDeviceGetComputeRunningProcesses_v3
    draws:
        nvmlDeviceGetGraphicsRunningProcesses
        nvmlDeviceGetGraphicsRunningProcesses_v2
        nvmlDeviceGetGraphicsRunningProcesses_v3
    computes_by_mps:
        nvmlDeviceGetMPSComputeRunningProcesses
        nvmlDeviceGetMPSComputeRunningProcesses_v2
        nvmlDeviceGetMPSComputeRunningProcesses_v3
}

nvml! {
    fn nvmlDeviceGetMigMode(call, device: Handle, current: Out<c_uint>, pending: Out<c_uint>) {
        let enabled = supported(call.gpu(device)?.gpu.mig.as_ref())?.enabled.into();
        current.set(enabled)?;
        pending.set(enabled)
    }
    fn nvmlDeviceGetMaxMigDeviceCount(call, device: Handle, count: Out<c_uint>) {
        let mig = call.gpu(device)?.gpu.mig.as_ref();
        count.set(mig.filter(|mig| mig.enabled).map_or(0, |mig| mig.max))
    }
    fn nvmlDeviceGetMigDeviceHandleByIndex(call, device: Handle, index: c_uint, mig: Out<Handle>) {
        let device = call.gpu(device)?;
        let max = supported(device.gpu.mig.as_ref())?.max;
        if index >= max {
            return Err(INVALID_ARGUMENT);
        }
        let device_of_index = mig_device(device.gpu, index as usize).ok_or(NOT_FOUND)?;
        call.suffer(&device_of_index.errors, None, &["handle", "*"])?;
        mig.set(mig_handle(device.index, index as usize))
    }
    fn nvmlDeviceIsMigDeviceHandle(call, device: Handle, is_mig: Out<c_uint>) {
        is_mig.set(call.device(device)?.mig.is_some().into())
    }
    fn nvmlDeviceGetDeviceHandleFromMigDeviceHandle(call, mig: Handle, device: Out<Handle>) {
        let found = call.device(mig)?;
        found.mig.ok_or(INVALID_ARGUMENT)?;
        device.set(gpu_handle(found.index))
    }
    fn nvmlDeviceGetGpuInstanceId(call, mig: Handle, id: Out<c_uint>) {
        id.set(call.device(mig)?.mig.ok_or(NOT_SUPPORTED)?.1.gi)
    }
    fn nvmlDeviceGetComputeInstanceId(call, mig: Handle, id: Out<c_uint>) {
        id.set(call.device(mig)?.mig.ok_or(NOT_SUPPORTED)?.1.ci)
    }

    fn nvmlDeviceGetTopologyCommonAncestor(call, one: Handle, other: Handle, level: Out<c_uint>) {
        let pair = (call.gpu(one)?.index, call.gpu(other)?.index);
        let ancestor = match link(call, pair) {
            _ if pair.0 == pair.1 => "internal",
            Some(link) => supported(link.ancestor.as_deref())?,
            None => "system",
        };
        // nvmlGpuTopologyLevel_t goes up in tens.
        let levels = ["internal", "single", "multiple", "hostbridge", "node", "system"];
        level.set(10 * number_of(ancestor, &levels)?)
    }
    // The status is 0 for OK, 5 for NOT_SUPPORTED; index 2 asks about NVLink, and PCIe can do the
    // others.
    fn nvmlDeviceGetP2PStatus(
        call,
        one: Handle,
        other: Handle,
        capability: c_uint,
        status: Out<c_uint>,
    ) {
        let (one, other) = (call.gpu(one)?, call.gpu(other)?);
        let (peers, reach) = (one.peers(), other.peers());
        let direct = peers.contains(&Peer::Gpu(other.index));
        let switched = peers.contains(&Peer::Switch) && reach.contains(&Peer::Switch);
        status.set(if capability != 2 || direct || switched { 0 } else { 5 })
    }
    fn nvmlDeviceGetNvLinkState(call, device: Handle, link: c_uint, active: Out<c_uint>) {
        active.set(peer(&call.gpu(device)?, link)?.is_some().into())
    }
    fn nvmlDeviceGetNvLinkRemotePciInfo_v2(
        call,
        device: Handle,
        link: c_uint,
        pci: Out<PciInfoV3>,
    ) {
        pci.set(pci_info(match peer(&call.gpu(device)?, link)? {
            Some(Peer::Gpu(index)) => {
                let gpu = call.machine.gpus.get(index);
                supported(gpu.and_then(|gpu| gpu.pci_bus_id.as_deref()))?
            }
            Some(Peer::Switch) => "00000000:F0:00.0",
            None => return Err(NOT_SUPPORTED),
        })?)
    }
    // nvmlIntNvLinkDeviceType_t: 0 is a GPU, 2 a switch.
    fn nvmlDeviceGetNvLinkRemoteDeviceType(call, device: Handle, link: c_uint, kind: Out<c_uint>) {
        kind.set(match peer(&call.gpu(device)?, link)? {
            Some(Peer::Gpu(_)) => 0,
            Some(Peer::Switch) => 2,
            None => return Err(NOT_SUPPORTED),
        })
    }

    fn nvmlDeviceGetCpuAffinity(call, device: Handle, words: c_uint, set: Out<c_ulong>) {
        bits(call.gpu(device)?.gpu.cpu_affinity.as_deref(), words, set)
    }
    fn nvmlDeviceGetCpuAffinityWithinScope(
        call,
        device: Handle,
        words: c_uint,
        set: Out<c_ulong>,
        _scope: c_uint,
    ) {
        bits(call.gpu(device)?.gpu.cpu_affinity.as_deref(), words, set)
    }
    fn nvmlDeviceGetMemoryAffinity(
        call,
        device: Handle,
        words: c_uint,
        set: Out<c_ulong>,
        _scope: c_uint,
    ) {
        bits(call.gpu(device)?.gpu.memory_affinity.as_deref(), words, set)
    }
    // Each field has a return code of its own.
    fn nvmlDeviceGetFieldValues(call, device: Handle, count: c_int, values: Out<FieldValue>) {
        let device = call.device(device)?;
        for index in 0..usize::try_from(count).map_err(|_| INVALID_ARGUMENT)? {
            let asked = values.get_at(index)?;
            let (code, value) = match field(&device, asked.id) {
                Ok(value) => (SUCCESS, value),
                Err(code) => (code, 0),
            };
            values.set_at(index, FieldValue { value_type: 1, code, value: value.into(), ..asked })?;
        }
        Ok(())
    }
    fn nvmlDeviceGetRemappedRows(
        call,
        device: Handle,
        correctable: Out<c_uint>,
        uncorrectable: Out<c_uint>,
        pending: Out<c_uint>,
        failed: Out<c_uint>,
    ) {
        let remap_failed = supported(call.gpu(device)?.gpu.remap_failed)?;
        correctable.set(0)?;
        uncorrectable.set(0)?;
        pending.set(0)?;
        failed.set(remap_failed.into())
    }
    fn nvmlDeviceGetNumaNodeId(call, device: Handle, node: Out<c_uint>) {
        node.set(supported(call.gpu(device)?.gpu.numa_node)?)
    }
    fn nvmlDeviceGetAddressingMode(call, device: Handle, mode: Out<AddressingMode>) {
        let known = call.gpu(device)?.gpu.addressing_mode.as_deref();
        let value = number_of(supported(known)?, &["none", "hmm", "ats"])?;
        let version = expect_version(&mode, version::<AddressingMode>(1))?;
        mode.set(AddressingMode { version, value })
    }
}

/// The text of a return code; never null, needs no initialization and is not logged.
#[unsafe(no_mangle)]
extern "C" fn nvmlErrorString(code: Code) -> *const c_char {
    let text = match code {
        0 => c"Success",
        1 => c"Uninitialized",
        2 => c"Invalid Argument",
        3 => c"Not Supported",
        4 => c"Insufficient Permissions",
        5 => c"Already Initialized",
        6 => c"Not Found",
        7 => c"Insufficient Size",
        8 => c"Insufficient External Power",
        9 => c"Driver Not Loaded",
        10 => c"Timeout",
        11 => c"Interrupt Request Issue",
        12 => c"NVML Shared Library Not Found",
        13 => c"Function Not Found",
        14 => c"Corrupted infoROM",
        15 => c"GPU is lost",
        16 => c"GPU requires reset",
        17 => c"GPU access blocked by the operating system",
        18 => c"Driver/library version mismatch",
        19 => c"In use by another client",
        20 => c"Insufficient Memory",
        25 => c"Argument Version Mismatch",
        27 => c"Not Ready",
        28 => c"GPU Not Found",
        _ => c"Unknown Error",
    };
    text.as_ptr()
}

fn supported<T>(metric: Option<T>) -> Result<T, Code> {
    metric.ok_or(NOT_SUPPORTED)
}

/// The value of one of nvml.h's NVML_FI_DEV_ fields.
fn field(device: &Device<'_>, id: c_uint) -> Result<c_uint, Code> {
    match id {
        // REMAPPED_COR, REMAPPED_UNC, REMAPPED_PENDING
        142..=144 => supported(device.gpu.remap_failed).map(|_| 0),
        // REMAPPED_FAILURE
        145 => supported(device.gpu.remap_failed).map(c_uint::from),
        // GET_GPU_RECOVERY_ACTION
        230 => supported(device.gpu.recovery_action),
        _ => Err(NOT_SUPPORTED),
    }
}

fn number_of(name: &str, names: &[&str]) -> Result<c_uint, Code> {
    names
        .iter()
        .position(|&known| known == name)
        .map(|number| number as c_uint)
        .ok_or(INVALID_ARGUMENT)
}

/// The version that begins a struct, if it is the one supported.
fn expect_version<T>(argument: &Out<T>, expected: c_uint) -> Result<c_uint, Code> {
    let given = argument.cast::<c_uint>().get()?;
    if given == expected {
        Ok(given)
    } else {
        Err(ARGUMENT_VERSION_MISMATCH)
    }
}

/// Domain, bus and device of a PCI id, in its long or its short form.
fn pci_address(id: &str) -> Option<(c_uint, c_uint, c_uint)> {
    let number = |text| c_uint::from_str_radix(text, 16).ok();
    let parts: Vec<&str> = id.split(':').collect();
    let (domain, bus, device) = match parts[..] {
        [domain, bus, device] => (number(domain)?, bus, device),
        [bus, device] => (0, bus, device),
        _ => return None,
    };
    Some((domain, number(bus)?, number(device.split('.').next()?)?))
}

fn pci_info(id: &str) -> Result<PciInfoV3, Code> {
    let (domain, bus, device) = pci_address(id).ok_or(INVALID_ARGUMENT)?;
    let common = PciInfo {
        bus_id_legacy: chars(&format!("{domain:04X}:{bus:02X}:{device:02X}.0")),
        domain,
        bus,
        device,
        pci_device_id: 0x20b2_10de,
        pci_subsystem_id: 0x1463_10de,
    };
    Ok(PciInfoV3 {
        common,
        bus_id: chars(id),
    })
}

fn link(call: &Call, (one, other): (usize, usize)) -> Option<&crate::config::Link> {
    call.machine
        .links
        .iter()
        .find(|link| link.gpus == (one, other) || link.gpus == (other, one))
}

/// What a link leads to, if it is up; a GPU without any does not support the question.
fn peer(device: &Device<'_>, link: c_uint) -> Result<Option<Peer>, Code> {
    let peers = device.peers();
    match link as usize {
        _ if peers.is_empty() => Err(NOT_SUPPORTED),
        MAX_LINKS.. => Err(INVALID_ARGUMENT),
        link => Ok(peers.get(link).copied()),
    }
}

/// Writes a set of numbers as the bits of so many words; what does not fit is left out.
fn bits(numbers: Option<&[usize]>, words: c_uint, set: Out<c_ulong>) -> Result<(), Code> {
    let numbers = supported(numbers)?;
    if words == 0 {
        return Err(INVALID_ARGUMENT);
    }
    let width = c_ulong::BITS as usize;
    for word in 0..words as usize {
        let inside = numbers.iter().filter(|&&number| number / width == word);
        set.set_at(
            word,
            inside.fold(0, |bits, number| bits | 1 << (number % width)),
        )?;
    }
    Ok(())
}

// nvidia-smi's manual: `C+G` and `M+C` are processes with both kinds of context, so they are taken
// to be in both lists; an MPS client is `M+C`. A bare `M` is in the MPS list alone.
fn computes(kind: &str) -> bool {
    matches!(kind, "C" | "C+G" | "M+C")
}

fn draws(kind: &str) -> bool {
    matches!(kind, "G" | "C+G")
}

fn computes_by_mps(kind: &str) -> bool {
    matches!(kind, "M" | "M+C")
}

/// Writes the processes of some kinds, by the protocol of all process lists: `count` tells how many
/// fit and is told how many there are, and too few are INSUFFICIENT_SIZE.
fn list<T>(
    call: &Call,
    device: Handle,
    wanted: fn(&str) -> bool,
    count: Out<c_uint>,
    infos: Out<T>,
    lay_out: fn(&Process) -> T,
) -> Result<(), Code> {
    let mut processes = call.device(device)?.processes();
    processes.retain(|process| wanted(&process.kind));
    let room = count.get()? as usize;
    count.set(processes.len() as c_uint)?;
    if infos.is_null() && call.machine.null_count_success {
        return Ok(());
    }
    if processes.len() > room {
        return Err(INSUFFICIENT_SIZE);
    }
    for (index, process) in processes.iter().enumerate() {
        infos.set_at(index, lay_out(process))?;
    }
    Ok(())
}

fn list_v3(
    call: &Call,
    device: Handle,
    wanted: fn(&str) -> bool,
    count: Out<c_uint>,
    infos: Out<ProcessV2>,
) -> Result<(), Code> {
    match call.machine.process_info_layout.as_deref() {
        Some("535.43") => list(call, device, wanted, count, infos.cast(), |process| {
            ProcessOf535 {
                common: v2(process),
                used_gpu_cc_protected_memory: 0,
            }
        }),
        _ => list(call, device, wanted, count, infos, v2),
    }
}

fn v1(process: &Process) -> ProcessV1 {
    ProcessV1 {
        pid: process.pid,
        used_gpu_memory: process.memory.unwrap_or(VALUE_NOT_AVAILABLE),
    }
}

fn v2(process: &Process) -> ProcessV2 {
    ProcessV2 {
        pid: process.pid,
        used_gpu_memory: process.memory.unwrap_or(VALUE_NOT_AVAILABLE),
        gpu_instance_id: process.gi.unwrap_or(NO_INSTANCE),
        compute_instance_id: process.ci.unwrap_or(NO_INSTANCE),
    }
}
