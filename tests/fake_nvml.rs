//! What the other tests take for granted of the fake NVML library, seen through the real
//! nvml-wrapper.
#![cfg(feature = "cli")]

mod common;

use std::fs;
use std::time::{Duration, Instant};

use common::{Job, Machine, run, start, wait_until};
use nvml_wrapper::enum_wrappers::device::{ComputeMode, TopologyLevel};
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};
use serde_json::json;

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

fn load(machine: &Machine) -> Nvml {
    try_load(machine).expect("a healthy machine")
}

fn try_load(machine: &Machine) -> Result<Nvml, NvmlError> {
    Nvml::builder()
        .lib_path(machine.private_library().as_os_str())
        .init()
}

fn gpu(nvml: &Nvml, index: u32) -> Device<'_> {
    nvml.device_by_index(index).expect("a healthy GPU")
}

fn pids(device: &Device) -> Vec<u32> {
    device
        .running_compute_processes()
        .expect("a list")
        .iter()
        .map(|process| process.pid)
        .collect()
}

#[test]
fn a_machine_of_which_nothing_is_said_has_idle_gpus() {
    let machine = Machine::gpus(2);
    let nvml = load(&machine);
    assert_eq!(nvml.sys_driver_version().expect("known"), "580.82.07");
    assert_eq!(nvml.device_count().expect("known"), 2);
    let gpu = gpu(&nvml, 1);
    assert_eq!(gpu.index().expect("known"), 1);
    assert_eq!(gpu.minor_number().expect("known"), 1);
    assert_eq!(
        gpu.uuid().expect("known"),
        "GPU-10000000-0000-0000-0000-000000000001"
    );
    assert_eq!(gpu.name().expect("known"), "NVIDIA A100-SXM4-80GB");
    let pci = gpu.pci_info().expect("known");
    assert_eq!((pci.bus_id.as_str(), pci.bus), ("00000000:02:00.0", 2));
    let memory = gpu.memory_info().expect("known");
    assert_eq!(
        (memory.total, memory.used, memory.reserved),
        (80 * GIB, 0, 512 * MIB)
    );
    assert_eq!(memory.free, memory.total - memory.reserved);
    assert_eq!(gpu.utilization_rates().expect("known").gpu, 0);
    assert_eq!(gpu.compute_mode().expect("known"), ComputeMode::Default);
    assert!(!gpu.mig_mode().map(|mode| mode.current != 0).expect("known"));
    assert!(gpu.running_compute_processes().expect("a list").is_empty());
    assert!(matches!(gpu.numa_node_id(), Err(NvmlError::NotSupported)));
    assert!(matches!(gpu.fan_speed(0), Err(NvmlError::NotSupported)));
    assert_eq!(
        nvml.device_by_uuid(gpu.uuid().expect("known"))
            .expect("found")
            .index()
            .expect("known"),
        1
    );
    assert_eq!(
        nvml.device_by_pci_bus_id("0000:02:00.0")
            .expect("found")
            .index()
            .expect("known"),
        1
    );
    assert!(matches!(
        nvml.device_by_index(2),
        Err(NvmlError::InvalidArg)
    ));
    assert!(matches!(
        nvml.device_by_uuid("GPU-none"),
        Err(NvmlError::NotFound)
    ));
}

#[test]
fn what_machine_json_says_is_seen_at_the_next_call() {
    let machine = Machine::gpus(1);
    let nvml = load(&machine);
    let gpu = gpu(&nvml, 0);
    machine
        .set("/gpus/0/memory/used", json!(3 * GIB))
        .set("/gpus/0/compute_mode", json!("PROHIBITED"));
    assert_eq!(gpu.memory_info().expect("known").used, 3 * GIB);
    assert_eq!(gpu.compute_mode().expect("known"), ComputeMode::Prohibited);
    machine
        .set("/gpus/0/utilization", json!(null))
        .set("/gpus/0/cpu_affinity", json!([0, 1, 65]));
    assert!(matches!(
        gpu.utilization_rates(),
        Err(NvmlError::NotSupported)
    ));
    assert_eq!(gpu.cpu_affinity(2).expect("known"), [0b11, 0b10]);
}

#[test]
fn a_process_is_on_the_gpu_until_it_dies() {
    let machine = Machine::gpus(2);
    let nvml = load(&machine);
    let gpu = gpu(&nvml, 0);
    let free = gpu.memory_info().expect("known").free;
    let mut job = machine.job(0);
    let other = machine.job_that("GPU-10000000-0000-0000-0000-000000000001", "C+G 1000");
    assert_eq!(pids(&gpu), [job.pid()]);
    assert_eq!(gpu.memory_info().expect("known").used, 500 * MIB);
    assert_eq!(gpu.memory_info().expect("known").free, free - 500 * MIB);
    job.kill();
    assert!(pids(&gpu).is_empty());
    assert_eq!(gpu.memory_info().expect("known").used, 0);
    let neighbour = nvml.device_by_index(1).expect("a healthy GPU");
    let graphics = neighbour.running_graphics_processes().expect("a list");
    assert_eq!(pids(&neighbour), [other.pid()]);
    assert_eq!(graphics[0].used_gpu_memory, UsedGpuMemory::Used(1000));
}

#[test]
fn a_dead_process_lingers_as_long_as_it_is_told() {
    let machine = Machine::gpus(1);
    let nvml = load(&machine);
    let gpu = gpu(&nvml, 0);
    let mut job = machine.job_that(0, "C 1000 300");
    job.kill();
    let dead = Instant::now();
    assert_eq!(pids(&gpu), [job.pid()]);
    wait_until("the process is gone", || pids(&gpu).is_empty());
    assert!(
        dead.elapsed() >= Duration::from_millis(290),
        "{:?}",
        dead.elapsed()
    );
}

#[test]
fn processes_are_in_the_lists_of_their_types() {
    let machine = Machine::gpus(1);
    machine.set(
        "/gpus/0/processes",
        json!([
            {"pid": 1, "memory": null},
            {"pid": 2, "type": "G"},
            {"pid": 3, "type": "C+G", "memory": 7},
            {"pid": 4, "type": "M+C"},
        ]),
    );
    let nvml = load(&machine);
    let gpu = gpu(&nvml, 0);
    assert_eq!(pids(&gpu), [1, 3, 4]);
    let compute = gpu.running_compute_processes().expect("a list");
    assert_eq!(compute[0].used_gpu_memory, UsedGpuMemory::Unavailable);
    assert_eq!(compute[1].used_gpu_memory, UsedGpuMemory::Used(7));
    assert_eq!(compute[0].gpu_instance_id, None);
    let pids = |list: Vec<nvml_wrapper::struct_wrappers::device::ProcessInfo>| -> Vec<u32> {
        list.iter().map(|process| process.pid).collect()
    };
    assert_eq!(
        pids(gpu.running_graphics_processes().expect("a list")),
        [2, 3]
    );
    assert_eq!(
        pids(gpu.mps_running_compute_processes().expect("a list")),
        [4]
    );
    assert_eq!(
        pids(gpu.running_compute_processes_v2().expect("a list")),
        [1, 3, 4]
    );
    assert_eq!(gpu.memory_info().expect("known").used, 1000 * MIB + 7);
}

/// What is in a word that holds a pid and four bytes of padding, which may be anything.
fn without_padding(word: u64) -> u64 {
    if [11, 12].contains(&(word as u32)) {
        u64::from(word as u32)
    } else {
        word
    }
}

#[test]
fn the_layouts_of_process_lists_are_those_of_their_drivers() {
    let machine = Machine::gpus(1);
    machine.set(
        "/gpus/0/processes",
        json!([{"pid": 11, "memory": 1, "gi": 1, "ci": 2}, {"pid": 12, "memory": 2}]),
    );
    let nvml = load(&machine);
    let gpu = gpu(&nvml, 0);
    // SAFETY: the buffers have room for what their counts say, in words of the struct's alignment.
    let raw = |room: u32| unsafe {
        let mut words = [0u64; 16];
        let lib = nvml.lib();
        let mut count = room;
        let code = lib.nvmlDeviceGetComputeRunningProcesses_v3(
            gpu.handle(),
            &mut count,
            words.as_mut_ptr().cast(),
        );
        (code, count, words.map(without_padding))
    };
    let (code, count, words) = raw(2);
    assert_eq!((code, count), (0, 2));
    assert_eq!(words[..7], [11, 1, 1 | 2 << 32, 12, 2, u64::MAX, 0]);
    let (code, count, words) = raw(1);
    assert_eq!((code, count, words[0]), (7, 2, 0));
    machine.set("/process_info_layout", json!("535.43"));
    assert_eq!(
        raw(2).2[..9],
        [11, 1, 1 | 2 << 32, 0, 12, 2, u64::MAX, 0, 0]
    );
    // SAFETY: two processes of the first layout are four words.
    unsafe {
        let mut words = [0u64; 5];
        let mut count = 2;
        let lib = nvml.lib();
        lib.nvmlDeviceGetComputeRunningProcesses(
            gpu.handle(),
            &mut count,
            words.as_mut_ptr().cast(),
        );
        assert_eq!(words.map(without_padding), [11, 1, 12, 2, 0]);
    }
}

#[test]
fn a_count_query_can_answer_success() {
    let machine = Machine::gpus(1);
    let nvml = load(&machine);
    let gpu = gpu(&nvml, 0);
    let job = machine.job(0);
    assert_eq!(pids(&gpu), [job.pid()]);
    machine.set("/null_count_success", json!(true));
    assert!(
        pids(&gpu).is_empty(),
        "nvml-wrapper takes SUCCESS for an empty list"
    );
}

#[test]
fn errors_are_told_for_the_function_and_gpu_they_are_set_for() {
    let machine = Machine::gpus(4);
    machine
        .set("/gpus/1/errors/handle", json!(4))
        .set("/gpus/2/errors/nvmlDeviceGetMemoryInfo_v2", json!(15))
        .set("/gpus/3/errors/*", json!(16))
        .set("/errors/nvmlDeviceGetComputeMode", json!(3));
    let nvml = load(&machine);
    assert_eq!(nvml.device_count().expect("known"), 4);
    assert!(gpu(&nvml, 0).memory_info().is_ok());
    assert!(matches!(
        gpu(&nvml, 0).compute_mode(),
        Err(NvmlError::NotSupported)
    ));
    assert!(matches!(
        nvml.device_by_index(1),
        Err(NvmlError::NoPermission)
    ));
    assert!(matches!(
        gpu(&nvml, 2).memory_info(),
        Err(NvmlError::GpuLost)
    ));
    assert!(gpu(&nvml, 2).utilization_rates().is_ok());
    assert!(matches!(
        nvml.device_by_index(3),
        Err(NvmlError::ResetRequired)
    ));
    machine.set("/gpus/1/errors", json!({}));
    assert!(nvml.device_by_index(1).is_ok());
}

#[test]
fn init_fails_and_takes_its_time_as_told() {
    let machine = Machine::gpus(1);
    machine.set("/init", json!({"code": 18, "delay_ms": 60}));
    let started = Instant::now();
    assert!(matches!(
        try_load(&machine),
        Err(NvmlError::LibRmVersionMismatch)
    ));
    assert!(started.elapsed() >= Duration::from_millis(60));
    machine
        .set("/init", json!({}))
        .set("/gpus/0/delays_ms/nvmlDeviceGetUtilizationRates", json!(60));
    let nvml = load(&machine);
    let started = Instant::now();
    assert!(gpu(&nvml, 0).utilization_rates().is_ok());
    assert!(started.elapsed() >= Duration::from_millis(60));
}

#[test]
fn a_function_can_be_missing() {
    let machine = Machine::gpus(1);
    machine.without(&[
        "nvmlDeviceGetComputeRunningProcesses_v3",
        "nvmlDeviceGetMemoryInfo_v2",
    ]);
    let nvml = load(&machine);
    let gpu = gpu(&nvml, 0);
    assert!(matches!(
        gpu.running_compute_processes(),
        Err(NvmlError::FailedToLoadSymbol(_))
    ));
    assert!(matches!(
        gpu.memory_info(),
        Err(NvmlError::FailedToLoadSymbol(_))
    ));
    assert!(
        gpu.running_compute_processes_v2()
            .expect("still there")
            .is_empty()
    );
    assert!(gpu.running_graphics_processes().is_ok());
}

#[test]
fn mig_devices_may_have_holes_and_processes() {
    let machine = Machine::gpus(2);
    machine.set(
        "/gpus/1/mig",
        json!({"enabled": true, "devices": [{}, null, {"gi": 9}]}),
    );
    let nvml = load(&machine);
    let gpu = gpu(&nvml, 1);
    assert_eq!(gpu.mig_device_count().expect("known"), 7);
    assert!(matches!(
        gpu.mig_device_by_index(1),
        Err(NvmlError::NotFound)
    ));
    assert!(matches!(
        gpu.mig_device_by_index(6),
        Err(NvmlError::NotFound)
    ));
    assert!(matches!(
        gpu.mig_device_by_index(7),
        Err(NvmlError::InvalidArg)
    ));
    assert!(matches!(
        gpu.utilization_rates(),
        Err(NvmlError::NotSupported)
    ));
    let job = machine.job("1.2");
    let idle = gpu.mig_device_by_index(0).expect("exists");
    let busy = gpu.mig_device_by_index(2).expect("exists");
    assert!(pids(&idle).is_empty());
    assert_eq!(pids(&busy), [job.pid()]);
    assert_eq!(busy.memory_info().expect("known").used, 500 * MIB);
    assert_eq!(gpu.memory_info().expect("known").used, 500 * MIB);
    assert_eq!(
        gpu.running_compute_processes().expect("a list")[0].gpu_instance_id,
        Some(9)
    );
    assert_eq!(
        busy.uuid().expect("known"),
        "MIG-12000000-0000-0000-0000-000000010002"
    );
    assert_eq!(
        busy.mig_parent_device()
            .expect("known")
            .index()
            .expect("known"),
        1
    );
    let found = nvml
        .device_by_uuid(busy.uuid().expect("known"))
        .expect("found");
    assert_eq!(pids(&found), [job.pid()]);
}

#[test]
fn links_join_the_gpus_they_are_between() {
    let machine = Machine::gpus(3);
    machine.set(
        "/links",
        json!([{"gpus": [0, 1], "nvlinks": 4, "ancestor": "single"}]),
    );
    let nvml = load(&machine);
    let gpus = [0, 1, 2].map(|index| gpu(&nvml, index));
    let ancestor = |one: usize, other| {
        gpus[one]
            .topology_common_ancestor(gpu(&nvml, other))
            .expect("known")
    };
    assert_eq!(ancestor(1, 0), TopologyLevel::Single);
    assert_eq!(ancestor(0, 2), TopologyLevel::System);
    assert!(gpus[1].link_wrapper_for(3).is_active().expect("a link"));
    assert!(!gpus[1].link_wrapper_for(4).is_active().expect("a link"));
    assert_eq!(
        gpus[1]
            .link_wrapper_for(3)
            .remote_pci_info()
            .expect("known")
            .bus_id,
        "00000000:01:00.0"
    );
    assert!(gpus[2].link_wrapper_for(0).is_active().is_err());
}

#[test]
fn every_call_of_every_thread_is_logged() {
    let machine = Machine::gpus(1);
    let nvml = load(&machine);
    assert_eq!(machine.calls()[0], "nvmlInit_v2");
    machine.forget_calls();
    let _ = gpu(&nvml, 0).fan_speed(0);
    assert_eq!(
        machine.calls(),
        ["nvmlDeviceGetHandleByIndex_v2", "nvmlDeviceGetFanSpeed_v2"]
    );
    machine.forget_calls();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope
                .spawn(|| (0..50).for_each(|_| assert_eq!(nvml.device_count().expect("known"), 1)));
        }
    });
    assert_eq!(machine.calls(), vec!["nvmlDeviceGetCount_v2"; 400]);
}

#[test]
fn occupy_takes_the_gpus_it_is_given() {
    let machine = Machine::gpus(2);
    let nvml = load(&machine);
    let mut occupant = start(
        machine
            .command("occupy")
            .arg("600")
            .env("CUDA_VISIBLE_DEVICES", "1"),
    );
    wait_until("the GPU is occupied", || {
        pids(&gpu(&nvml, 1)) == [occupant.pid()]
    });
    assert!(pids(&gpu(&nvml, 0)).is_empty());
    assert!(occupant.is_running());
    wait_until("it has said so", || occupant.stdout() == "1\n");
    drop(occupant);
    assert!(pids(&gpu(&nvml, 1)).is_empty());
    assert_eq!(run(&mut machine.shell("sh", "occupy 600")).code, Some(64));
}

#[test]
fn programs_run_in_a_clean_environment() {
    let machine = Machine::gpus(1);
    // PWD, SHLVL and _ are some shells' own.
    let script = "env | cut -d= -f1 | grep -vx 'PWD\\|SHLVL\\|_' | sort | tr '\\n' ' '
        command -v autocvd; echo problem >&2; exit 3";
    let outcome = run(&mut machine.shell("sh", script));
    assert_eq!(
        (outcome.code, outcome.stderr.as_str()),
        (Some(3), "problem\n")
    );
    let (names, program) = outcome.stdout.rsplit_once(' ').expect("both");
    assert_eq!(
        names,
        "AUTOCVD_CLAIM_DIR AUTOCVD_NVML_LIB FAKE_NVML HOME PATH TMPDIR"
    );
    assert_eq!(
        fs::canonicalize(program.trim()).expect("a link"),
        fs::canonicalize(common::AUTOCVD).expect("built")
    );
    assert_eq!(
        run(&mut machine.shell("bash", "kill -9 $$")).signal,
        Some(9)
    );
}

#[test]
fn a_process_of_another_namespace_is_hidden_but_its_memory_is_not() {
    let machine = Machine::gpus(1);
    let visible = Job::unregistered();
    let mut gone = Job::unregistered();
    gone.kill();
    machine.set("/list_pid_namespace", json!(true)).set(
        "/gpus/0/processes",
        json!([{"pid": visible.pid()}, {"pid": gone.pid()}]),
    );
    let nvml = load(&machine);
    assert_eq!(pids(&gpu(&nvml, 0)), [visible.pid()]);
    assert_eq!(gpu(&nvml, 0).memory_info().expect("known").used, 1000 * MIB);
}

#[test]
fn health_is_told_by_field_values_each_with_a_code_of_its_own() {
    use nvml_wrapper::structs::device::FieldId;
    let machine = Machine::gpus(1);
    machine
        .set("/gpus/0/recovery_action", json!(2))
        .set("/gpus/0/remap_failed", json!(null));
    let nvml = load(&machine);
    let values = |device: &Device| {
        let samples = device
            .field_values_for(&[FieldId(230), FieldId(145)])
            .expect("one call");
        samples
            .into_iter()
            .map(|sample| format!("{:?}", sample.expect("known types").value))
            .collect::<Vec<_>>()
    };
    assert_eq!(values(&gpu(&nvml, 0)), ["Ok(U32(2))", "Err(NotSupported)"]);
    machine.set("/gpus/0/remap_failed", json!(true));
    assert_eq!(values(&gpu(&nvml, 0))[1], "Ok(U32(1))");
}

#[test]
fn readings_of_utilization_can_come_in_turn() {
    let machine = Machine::gpus(1);
    machine.set(
        "/gpus/0/utilization",
        json!([{"gpu": 100, "memory": 0}, {"gpu": 3, "memory": 0}]),
    );
    let nvml = load(&machine);
    let reading = || gpu(&nvml, 0).utilization_rates().expect("known").gpu;
    assert_eq!([reading(), reading(), reading()], [100, 3, 3]);
}

#[test]
fn a_gpu_takes_its_time_at_the_first_handle_alone() {
    let machine = Machine::gpus(2);
    machine.set("/gpus/1/init_ms", json!(60));
    let nvml = load(&machine);
    let started = Instant::now();
    assert!(nvml.device_by_pci_bus_id("00000000:02:00.0").is_ok());
    assert!(started.elapsed() >= Duration::from_millis(60));
    gpu(&nvml, 1);
    gpu(&nvml, 0);
    assert_eq!(machine.initializations(), [1, 0]);
}

#[test]
fn programs_can_see_what_the_kernel_driver_lists() {
    let machine = Machine::gpus(1);
    if !common::has_mount_namespaces(&machine) {
        return;
    }
    machine.list_in_proc(&[("00000000:3B:00.0", "GPU-1")]);
    let script = "cat /proc/driver/nvidia/gpus/0000:3b:00.0/information";
    let seen = run(&mut common::in_mount_namespace(
        &machine,
        &machine.shell("sh", script),
    ))
    .success();
    assert!(seen.contains("GPU UUID: \t GPU-1\n"), "{seen}");
}
