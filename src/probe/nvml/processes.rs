//! NVML's process lists and first memory call, by raw calls.
//!
//! nvml-wrapper asks each list twice, for its length first: that doubles the driver calls, and some
//! libraries answer the question for the length with success and zero, so that a busy GPU looks
//! idle. Here one call with a roomy buffer does.

use crate::gpu::{Fact, Memory, Process, ProcessKind};
use crate::policy::DESKTOP_PROGRAM_MEMORY;
use nvml_wrapper::error::{NvmlError, nvml_sym, nvml_try};
use nvml_wrapper::{Device, Nvml as Library};
use nvml_wrapper_sys::bindings::{
    NvmlLib, nvmlDevice_t, nvmlMemory_t, nvmlProcessInfo_v1_t, nvmlProcessInfo_v2_t, nvmlReturn_t,
};
use std::os::raw::c_uint;

/// Enough for most GPUs at the first call; the list grows where the driver says so.
const ROOM: usize = 64;
/// nvml.h: NVML_ERROR_INSUFFICIENT_SIZE.
const INSUFFICIENT_SIZE: nvmlReturn_t = 7;
/// nvml.h: NVML_VALUE_NOT_AVAILABLE, as an unsigned long long.
const NOT_AVAILABLE: u64 = u64::MAX;
/// nvml.h: what stands for 'no instance' in a process's instance ids.
const NO_INSTANCE: u32 = u32::MAX;

/// The lists that NVML keeps for each GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum List {
    Compute,
    Graphics,
    Mps,
}

/// One entry of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ProcessEntry {
    process: Process,
    instance: (Option<u32>, Option<u32>),
}

/// How this driver's lists are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lists {
    /// The `_v3` functions use the struct of `_v2`, except in drivers 535.43 to 535.86, which put
    /// another field into it without another name.
    trust_v3: bool,
}

type Call<T> = unsafe extern "C" fn(nvmlDevice_t, *mut c_uint, *mut T) -> nvmlReturn_t;
type Symbol<'a, T> = Result<&'a Call<T>, NvmlError>;

impl Lists {
    pub(super) fn of(library: &Library) -> Self {
        let version = library.sys_driver_version().unwrap_or_default();
        Self {
            trust_v3: !has_other_v3(&version),
        }
    }

    /// Reads a list by the newest call that the library has.
    pub(super) fn read(self, device: &Device, list: List) -> Result<Vec<ProcessEntry>, NvmlError> {
        let library = device.nvml().lib();
        for call in [
            v3(library, list).ok().filter(|_| self.trust_v3),
            v2(library, list).ok(),
        ]
        .into_iter()
        .flatten()
        {
            match fetch(device, *call, |info: &nvmlProcessInfo_v2_t| {
                entry_v2(info, list)
            }) {
                // The library has it, and the driver behind it is older.
                Err(NvmlError::FunctionNotFound) => {}
                answer => return answer,
            }
        }
        fetch(
            device,
            *v1(library, list)?,
            |info: &nvmlProcessInfo_v1_t| entry(info.pid, info.usedGpuMemory, (None, None), list),
        )
    }
}

/// Whether the driver is one of those that changed the struct of the `_v3` lists.
fn has_other_v3(version: &str) -> bool {
    let mut numbers = version.split('.').map(|part| part.parse::<u32>().ok());
    let (major, minor) = (numbers.next().flatten(), numbers.next().flatten());
    major == Some(535) && minor.is_some_and(|minor| (43..=86).contains(&minor))
}

fn v3(library: &NvmlLib, list: List) -> Symbol<'_, nvmlProcessInfo_v2_t> {
    nvml_sym(match list {
        List::Compute => library.nvmlDeviceGetComputeRunningProcesses_v3.as_ref(),
        List::Graphics => library.nvmlDeviceGetGraphicsRunningProcesses_v3.as_ref(),
        List::Mps => library.nvmlDeviceGetMPSComputeRunningProcesses_v3.as_ref(),
    })
}

fn v2(library: &NvmlLib, list: List) -> Symbol<'_, nvmlProcessInfo_v2_t> {
    nvml_sym(match list {
        List::Compute => library.nvmlDeviceGetComputeRunningProcesses_v2.as_ref(),
        List::Graphics => library.nvmlDeviceGetGraphicsRunningProcesses_v2.as_ref(),
        List::Mps => library.nvmlDeviceGetMPSComputeRunningProcesses_v2.as_ref(),
    })
}

fn v1(library: &NvmlLib, list: List) -> Symbol<'_, nvmlProcessInfo_v1_t> {
    nvml_sym(match list {
        List::Compute => library.nvmlDeviceGetComputeRunningProcesses.as_ref(),
        List::Graphics => library.nvmlDeviceGetGraphicsRunningProcesses.as_ref(),
        List::Mps => library.nvmlDeviceGetMPSComputeRunningProcesses.as_ref(),
    })
}

/// One call, repeated with more room while the driver asks for it.
fn fetch<T>(
    device: &Device,
    call: Call<T>,
    entry: impl Fn(&T) -> ProcessEntry,
) -> Result<Vec<ProcessEntry>, NvmlError> {
    let mut buffer: Vec<T> = Vec::with_capacity(ROOM);
    loop {
        let mut count = buffer.capacity() as c_uint;
        // SAFETY: the handle is valid, since NVML is never shut down; `count` tells how many
        // entries the buffer has room for, and NVML writes no more than that.
        let code = unsafe { call(device.handle(), &mut count, buffer.as_mut_ptr()) };
        if code == INSUFFICIENT_SIZE {
            // Processes may start between two calls, hence the slack; a count that does not grow
            // would go round for ever.
            let wanted = (count as usize).max(buffer.capacity() * 2);
            if wanted > 1 << 20 {
                return Err(NvmlError::InsufficientSize(Some(wanted)));
            }
            buffer.reserve_exact(wanted + 16);
            continue;
        }
        nvml_try(code)?;
        let count = (count as usize).min(buffer.capacity());
        // SAFETY: NVML succeeded and has written `count` entries, which fit. They are plain
        // numbers.
        unsafe { buffer.set_len(count) };
        return Ok(buffer.iter().map(entry).collect());
    }
}

fn entry_v2(info: &nvmlProcessInfo_v2_t, list: List) -> ProcessEntry {
    let id = |id: u32| (id != NO_INSTANCE).then_some(id);
    entry(
        info.pid,
        info.usedGpuMemory,
        (id(info.gpuInstanceId), id(info.computeInstanceId)),
        list,
    )
}

fn entry(pid: u32, used: u64, instance: (Option<u32>, Option<u32>), list: List) -> ProcessEntry {
    let kind = match list {
        List::Compute => ProcessKind::Compute,
        List::Graphics => ProcessKind::Graphics,
        List::Mps => ProcessKind::MpsCompute,
    };
    let used_memory = (used != NOT_AVAILABLE).then_some(used);
    ProcessEntry {
        process: Process {
            pid,
            kind,
            user: None,
            command: None,
            used_memory,
            started: None,
            ignored: false,
            in_share: false,
        },
        instance,
    }
}

/// Whether a list of computing processes names one that is more than a desktop's program.
pub(super) fn settles(compute: &[ProcessEntry]) -> bool {
    let large = |entry: &ProcessEntry| {
        entry
            .process
            .used_memory
            .is_none_or(|held| held > DESKTOP_PROGRAM_MEMORY)
    };
    compute.iter().any(large)
}

/// Whether a process of the list computes.
pub(super) fn names_one_that_computes(listed: &[ProcessEntry]) -> bool {
    let listed = into_processes(listed.to_vec());
    listed
        .iter()
        .any(|process| process.computes_beside(&listed))
}

/// Each process once, with what it is called when it is on several lists. A list that cannot be
/// read is made up for by another that names a computing process, and only by that; the graphics
/// processes are not needed.
pub(super) fn merge(
    compute: Fact<Vec<ProcessEntry>>,
    mps: Fact<Vec<ProcessEntry>>,
    graphics: Fact<Vec<ProcessEntry>>,
) -> Fact<Vec<ProcessEntry>> {
    let is_named = !compute.items().is_empty() || !mps.items().is_empty();
    match (&compute, &mps) {
        (Fact::Value(_), Fact::Value(_)) => {}
        _ if is_named => {}
        (Fact::NotApplicable, Fact::Value(_)) => return Fact::NotApplicable,
        _ => return Fact::Unknown,
    }
    let mut all = compute.value().unwrap_or_default();
    for other in [mps, graphics]
        .into_iter()
        .flat_map(|list| list.value().unwrap_or_default())
    {
        // A process may hold several MIG devices' lists apart; on one list it stands once an
        // instance.
        let same = |known: &&mut ProcessEntry| {
            known.process.pid == other.process.pid && known.instance == other.instance
        };
        match all.iter_mut().find(same) {
            Some(known) => {
                known.process.kind = match (known.process.kind, other.process.kind) {
                    (ProcessKind::Compute, ProcessKind::Graphics) => ProcessKind::ComputeGraphics,
                    (ProcessKind::Compute, ProcessKind::MpsCompute) => ProcessKind::MpsCompute,
                    (kind, _) => kind,
                };
                known.process.used_memory =
                    known.process.used_memory.max(other.process.used_memory);
            }
            None => all.push(other),
        }
    }
    Fact::Value(all)
}

/// Without what only the driver cares for.
pub(super) fn into_processes(listed: Vec<ProcessEntry>) -> Vec<Process> {
    listed.into_iter().map(|listed| listed.process).collect()
}

/// Those on one MIG device. An entry without ids counts: it may be there.
pub(super) fn of_instance(
    mut listed: Vec<ProcessEntry>,
    (gi, ci): (Option<u32>, Option<u32>),
) -> Vec<ProcessEntry> {
    let matches =
        |one: Option<u32>, other: Option<u32>| one.is_none() || other.is_none() || one == other;
    listed.retain(|listed| matches(listed.instance.0, gi) && matches(listed.instance.1, ci));
    listed
}

/// The ids of a MIG device's GPU instance and compute instance.
pub(super) fn instance_ids(device: &Device) -> (Option<u32>, Option<u32>) {
    let library = device.nvml().lib();
    let ask = |symbol: Result<
        &unsafe extern "C" fn(nvmlDevice_t, *mut c_uint) -> nvmlReturn_t,
        NvmlError,
    >| {
        let mut id = 0;
        // SAFETY: the handle is valid, since NVML is never shut down, and `id` outlives the call.
        nvml_try(unsafe { symbol.ok()?(device.handle(), &mut id) }).ok()?;
        Some(id)
    };
    (
        ask(nvml_sym(library.nvmlDeviceGetGpuInstanceId.as_ref())),
        ask(nvml_sym(library.nvmlDeviceGetComputeInstanceId.as_ref())),
    )
}

/// nvmlDeviceGetMemoryInfo, for drivers before R510; its 'used' includes what the driver reserves.
pub(super) fn memory_v1(device: &Device) -> Result<Memory, NvmlError> {
    let call = nvml_sym(device.nvml().lib().nvmlDeviceGetMemoryInfo.as_ref())?;
    let mut info = nvmlMemory_t {
        total: 0,
        free: 0,
        used: 0,
    };
    // SAFETY: the handle is valid, since NVML is never shut down, and `info` outlives the call.
    nvml_try(unsafe { call(device.handle(), &mut info) })?;
    Ok(Memory {
        total: Fact::Value(info.total),
        used: Fact::Value(info.used),
        free: Fact::Value(info.free),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_drivers_that_changed_the_struct_are_asked_by_the_older_call() {
        for (version, other) in [
            ("535.43.02", true),
            ("535.54.03", true),
            ("535.86.10", true),
            ("535.98", false),
            ("535.104.05", false),
            ("530.30.02", false),
            ("550.54.14", false),
            ("", false),
        ] {
            assert_eq!(has_other_v3(version), other, "{version}");
        }
    }

    #[test]
    fn a_process_on_several_lists_is_one_process() {
        let on = |pid, list| entry(pid, 100, (None, None), list);
        let merged = merge(
            Fact::Value(vec![
                on(1, List::Compute),
                on(2, List::Compute),
                on(3, List::Compute),
            ]),
            Fact::Value(vec![on(2, List::Mps)]),
            Fact::Value(vec![on(3, List::Graphics), on(4, List::Graphics)]),
        );
        let kinds: Vec<_> = into_processes(merged.value().expect("a list"))
            .into_iter()
            .map(|process| (process.pid, process.kind))
            .collect();
        use ProcessKind::*;
        assert_eq!(
            kinds,
            [
                (1, Compute),
                (2, MpsCompute),
                (3, ComputeGraphics),
                (4, Graphics)
            ]
        );
    }

    #[test]
    fn a_list_that_fails_is_made_up_for_by_one_that_names_a_computing_process() {
        let named = || Fact::Value(vec![entry(1, 100, (None, None), List::Compute)]);
        let (none, failed) = (|| Fact::Value(Vec::new()), || Fact::Unknown);
        assert_eq!(merge(named(), failed(), failed()).items().len(), 1);
        assert_eq!(merge(failed(), named(), failed()).items().len(), 1);
        assert_eq!(merge(none(), none(), failed()), Fact::Value(Vec::new()));
        assert_eq!(merge(none(), failed(), none()), Fact::Unknown);
        assert_eq!(merge(failed(), none(), named()), Fact::Unknown);
        assert_eq!(
            merge(Fact::NotApplicable, none(), none()),
            Fact::NotApplicable
        );
        assert_eq!(merge(Fact::NotApplicable, failed(), none()), Fact::Unknown);
    }

    #[test]
    fn a_mig_device_has_the_processes_of_its_own_instance_and_those_that_may_be_on_it() {
        let on = |pid, gi| entry(pid, 0, (gi, gi.map(|_| 0)), List::Compute);
        let all = vec![on(1, Some(7)), on(2, Some(9)), on(3, None)];
        let pids: Vec<u32> = into_processes(of_instance(all, (Some(7), Some(0))))
            .iter()
            .map(|process| process.pid)
            .collect();
        assert_eq!(pids, [1, 3]);
    }
}
