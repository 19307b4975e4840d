//! The decision on every kind of machine, a row a machine, through the real binary: by NVML, and by
//! what nvidia-smi prints there. Each row names where its facts come from.
#![cfg(feature = "cli")]

mod common;

use common::{Machine, run, wait_until};
use serde_json::{Value, json};
use std::process::Command;

const MIB: u64 = 1 << 20;

/// A machine, what is asked of it, and what comes of it.
struct Row {
    /// The kind of machine, and where its facts come from.
    name: &'static str,
    machine: Value,
    /// Functions that the library does not have.
    without: &'static [&'static str],
    args: &'static [&'static str],
    /// Standard output with `-o`, or the exit code.
    expected: Result<&'static str, i32>,
    /// Part of what `-v` or the failure tells.
    tells: &'static str,
}

fn row(
    name: &'static str,
    machine: Value,
    args: &'static [&'static str],
    expected: Result<&'static str, i32>,
    tells: &'static str,
) -> Row {
    Row {
        name,
        machine,
        without: &[],
        args,
        expected,
        tells,
    }
}

fn check(row: &Row, wrap: impl Fn(Command) -> Command) {
    let machine = Machine::described(row.machine.clone());
    if !row.without.is_empty() {
        machine.without(row.without);
    }
    let mut command = machine.autocvd();
    command
        .args(["-o", "-v", "-t", "0", "--probe", "nvml"])
        .args(row.args);
    let outcome = run(&mut wrap(command));
    let (code, stdout) = match row.expected {
        Ok(ids) => (0, format!("{ids}\n")),
        Err(code) => (code, String::new()),
    };
    assert_eq!(
        (outcome.code, &outcome.stdout),
        (Some(code), &stdout),
        "{}: {outcome:?}",
        row.name
    );
    assert!(
        outcome.stderr.contains(row.tells),
        "{}: no '{}' in {}",
        row.name,
        row.tells,
        outcome.stderr
    );
}

/// One GPU with one process on it.
fn used_by(kind: &str) -> Value {
    json!({"processes": [{"pid": 1, "type": kind, "memory": 300 * MIB}]})
}

const U1: &str = "GPU-10000000-0000-0000-0000-000000000001";

#[test]
fn each_kind_of_machine_gets_the_right_decision_or_a_safe_refusal() {
    if !common::has_host_pids() {
        return;
    }
    let free = json!({});
    let mig = |devices: Value| json!({"mig": {"enabled": true, "devices": devices}});
    let a_mig = json!({"uuid": "MIG-aaaaaaaa-0000-0000-0000-000000000001", "gi": 7, "ci": 0});
    let b_mig = json!({"uuid": "MIG-bbbbbbbb-0000-0000-0000-000000000002", "gi": 9, "ci": 0});
    let rows = [
        row(
            "a process of each kind that computes, and Xorg (nvidia-smi's types)",
            json!({"gpus": [used_by("G"), used_by("C"), used_by("C+G"), used_by("M+C")]}),
            &[],
            Ok("0"),
            "used by pid 1",
        ),
        row(
            "memory that no process explains (a process that dies slowly: nvidia-smi shows none)",
            json!({"gpus": [free, {"memory": {"used": 1500 * MIB, "total": 8192 * MIB}}]}),
            &[],
            Ok("0"),
            "held by no visible process",
        ),
        row(
            "1 GiB of a small GPU is within what a driver may hold",
            json!({"gpus": [{"memory": {"used": 1024 * MIB, "total": 8192 * MIB}}]}),
            &[],
            Ok("0"),
            "chose GPU 0",
        ),
        row(
            "5 % of a large GPU is within it too",
            json!({"gpus": [{"memory": {"used": 4000 * MIB, "total": 81920 * MIB}}]}),
            &[],
            Ok("0"),
            "chose GPU 0",
        ),
        row(
            "Grace Hopper: GPU memory is a NUMA node whose pages stay after exit \
             (nvmlDeviceGetNumaNodeId)",
            json!({"gpus": [{
                "memory": {"used": 40_000 * MIB, "total": 98_304 * MIB},
                "numa_node": 1,
            }]}),
            &[],
            Ok("0"),
            "chose GPU 0",
        ),
        row(
            "used memory that cannot be read is unknown, not zero",
            json!({"gpus": [{
                "errors": {"nvmlDeviceGetMemoryInfo_v2": 999, "nvmlDeviceGetMemoryInfo": 999},
            }]}),
            &[],
            Err(4),
            "its used memory cannot be read",
        ),
        row(
            "-l takes what is unknown last",
            json!({"gpus": [
                used_by("C"),
                {"errors": {"nvmlDeviceGetMemoryInfo_v2": 999, "nvmlDeviceGetMemoryInfo": 999}},
            ]}),
            &["-l"],
            Ok("0"),
            "chose GPU 0",
        ),
        row(
            "WSL2: process lists are NOT_SUPPORTED (nvml.h); idle",
            json!({"gpus": [{
                "memory": {"used": 200 * MIB},
                "errors": {"nvmlDeviceGetComputeRunningProcesses_v3": 3},
            }]}),
            &[],
            Ok("0"),
            "chose GPU 0",
        ),
        row(
            "WSL2: a desktop's use cannot be told from somebody's",
            json!({"gpus": [{
                "memory": {"used": 300 * MIB},
                "errors": {"nvmlDeviceGetComputeRunningProcesses_v3": 3},
            }]}),
            &[],
            Err(4),
            "the process list cannot be read",
        ),
        row(
            "WSL2: little memory, but it computes",
            json!({"gpus": [{
                "utilization": {"gpu": 60, "memory": 1},
                "memory": {"used": 65 * MIB},
                "errors": {"nvmlDeviceGetComputeRunningProcesses_v3": 3},
            }]}),
            &[],
            Err(4),
            "60 % utilization",
        ),
        row(
            "a lost GPU: the handle answers GPU_IS_LOST (15); the others serve, by UUID",
            json!({"gpus": [free, free, {"errors": {"handle": 15}}]}),
            &[],
            Ok(U1),
            "GPU is lost",
        ),
        row(
            "a GPU that is lost after its handle was had (nvidia-smi still prints an empty list \
             for it)",
            json!({"gpus": [
                free,
                {"errors": {"nvmlDeviceGetMemoryInfo_v2": 15, "nvmlDeviceGetMemoryInfo": 15}},
            ]}),
            &[],
            Ok("GPU-00000000-0000-0000-0000-000000000000"),
            "GPU is lost",
        ),
        row(
            "a GPU in need of a reset: RESET_REQUIRED (16)",
            json!({"gpus": [free, free, {"errors": {"handle": 16}}]}),
            &[],
            Ok(U1),
            "needs a reset",
        ),
        row(
            "a cgroup that forbids a GPU: counted, but NO_PERMISSION (4)",
            json!({"gpus": [{"errors": {"handle": 4}}, free]}),
            &[],
            Ok(U1),
            "no permission",
        ),
        row(
            "a code that nvml-wrapper does not know (28, GPU_NOT_FOUND)",
            json!({"gpus": [{"errors": {"handle": 28}}, free]}),
            &[],
            Ok(U1),
            "GPU not found",
        ),
        row(
            "a code that nobody knows",
            json!({"gpus": [{"errors": {"handle": 77}}, free]}),
            &[],
            Ok(U1),
            "NVML error 77",
        ),
        row(
            "more than are left when one is lost can never be had",
            json!({"gpus": [free, {"errors": {"handle": 15}}]}),
            &["-n", "2"],
            Err(3),
            "GPU is lost",
        ),
        row(
            "an only GPU that is lost later than its handle is got",
            json!({"gpus": [{
                "errors": {"nvmlDeviceGetMemoryInfo": 15, "nvmlDeviceGetMemoryInfo_v2": 15},
            }]}),
            &[],
            Err(5),
            "can read none of the GPUs; GPU 0: GPU is lost",
        ),
        row(
            "places on the bus that are seen not to be in order",
            json!({"gpus": [
                {"pci_bus_id": "00000000:41:00.0"},
                {"pci_bus_id": null},
                {"pci_bus_id": "00000000:21:00.0"},
            ]}),
            &[],
            Ok("GPU-20000000-0000-0000-0000-000000000002"),
            "chose GPU 2",
        ),
        row(
            "a driver that is older than its library, which has lists that it does not know",
            json!({"gpus": [
                free,
                {
                    "errors": {"nvmlDeviceGetComputeRunningProcesses_v3": 13},
                    "processes": [{"pid": 1, "memory": MIB}],
                },
            ]}),
            &[],
            Ok("0"),
            "used by pid 1",
        ),
        row(
            "all GPUs lost: none can be read",
            json!({"gpus": [{"errors": {"handle": 15}}, {"errors": {"handle": 15}}]}),
            &[],
            Err(5),
            "can read none of the GPUs",
        ),
        row(
            "PROHIBITED is never chosen, and shifts no numbers",
            json!({"gpus": [free, {"compute_mode": "PROHIBITED"}]}),
            &[],
            Ok("0"),
            "PROHIBITED",
        ),
        row(
            "nothing but PROHIBITED",
            json!({"gpus": [{"compute_mode": "PROHIBITED"}]}),
            &["-l"],
            Err(3),
            "PROHIBITED",
        ),
        row(
            "EXCLUSIVE_PROCESS is about CUDA's contexts: graphics leave it free",
            json!({"gpus": [
                free,
                {
                    "compute_mode": "EXCLUSIVE_PROCESS",
                    "processes": [{"pid": 1, "type": "G", "memory": MIB}],
                },
            ]}),
            &[],
            Ok("1"),
            "chose GPU 1",
        ),
        row(
            "EXCLUSIVE_PROCESS without one is free",
            json!({"gpus": [free, {"compute_mode": "EXCLUSIVE_PROCESS"}]}),
            &[],
            Ok("1"),
            "chose GPU 1",
        ),
        row(
            "a compute mode that cannot be read is unknown",
            json!({"gpus": [free, {"errors": {"nvmlDeviceGetComputeMode": 999}}]}),
            &[],
            Ok("0"),
            "compute mode cannot be read",
        ),
        row(
            "MIG: its devices are the units, the parent is never given",
            json!({"gpus": [mig(json!([a_mig, b_mig]))]}),
            &[],
            Ok("MIG-bbbbbbbb-0000-0000-0000-000000000002"),
            "chose GPU 0 MIG 1",
        ),
        row(
            "MIG: a busy device leaves the other (holes in the numbering answer NOT_FOUND)",
            json!({"gpus": [mig(json!([
                null,
                a_mig,
                {
                    "uuid": "MIG-bbbbbbbb-0000-0000-0000-000000000002",
                    "gi": 9,
                    "ci": 0,
                    "processes": [{"pid": 1, "type": "C", "memory": MIB, "gi": 9, "ci": 0}],
                },
            ]))]}),
            &[],
            Ok("MIG-aaaaaaaa-0000-0000-0000-000000000001"),
            "used by pid 1",
        ),
        row(
            "MIG: a process can use one device",
            json!({"gpus": [mig(json!([a_mig, b_mig]))]}),
            &["-n", "2"],
            Err(3),
            "one MIG device alone",
        ),
        row(
            "a MIG device that answers an error is skipped with its reason",
            json!({"gpus": [mig(json!([a_mig, {"errors": {"handle": 15}}]))]}),
            &[],
            Ok("MIG-aaaaaaaa-0000-0000-0000-000000000001"),
            "passed over GPU 0 MIG 1: GPU is lost",
        ),
        row(
            "MIG enabled without devices",
            json!({"gpus": [mig(json!([]))]}),
            &[],
            Err(3),
            "has no MIG devices",
        ),
        row(
            "MIG beside whole GPUs: UUIDs, for MIG shifts the ordinals",
            json!({"gpus": [mig(json!([a_mig])), free]}),
            &[],
            Ok(U1),
            "chose GPU 1",
        ),
        row(
            "MIG beside whole GPUs: two whole ones",
            json!({"gpus": [free, free, mig(json!([a_mig]))]}),
            &["-n", "2"],
            Ok("GPU-00000000-0000-0000-0000-000000000000,GPU-10000000-0000-0000-0000-000000000001"),
            "chose GPU 0, GPU 1",
        ),
        row(
            "whether MIG is on cannot be read (an error other than NOT_SUPPORTED)",
            json!({"gpus": [free, {"errors": {"nvmlDeviceGetMigMode": 999}}]}),
            &[],
            Ok("GPU-00000000-0000-0000-0000-000000000000"),
            "whether MIG is enabled",
        ),
        row(
            "NVML's numbers need not follow the bus: CUDA's do",
            json!({"gpus": [
                {
                    "pci_bus_id": "00000000:41:00.0",
                    "processes": [{"pid": 1, "type": "C", "memory": MIB}],
                },
                {"pci_bus_id": "00000000:01:00.0"},
            ]}),
            &[],
            Ok("0"),
            "passed over GPU 1: used by pid 1",
        ),
    ];
    for row in &rows {
        check(row, |command| command);
    }
}

/// What libnvidia-ml of those drivers does not have (nvml.h's history; go-nvml and pynvml carry the
/// same table).
const BEFORE_R510: &[&str] = &[
    "nvmlDeviceGetComputeRunningProcesses_v3",
    "nvmlDeviceGetGraphicsRunningProcesses_v3",
    "nvmlDeviceGetMPSComputeRunningProcesses_v3",
    "nvmlDeviceGetMemoryInfo_v2",
];
const BEFORE_R470: &[&str] = &[
    "nvmlDeviceGetComputeRunningProcesses_v3",
    "nvmlDeviceGetGraphicsRunningProcesses_v3",
    "nvmlDeviceGetMPSComputeRunningProcesses_v3",
    "nvmlDeviceGetComputeRunningProcesses_v2",
    "nvmlDeviceGetGraphicsRunningProcesses_v2",
    "nvmlDeviceGetMPSComputeRunningProcesses_v2",
    "nvmlDeviceGetMPSComputeRunningProcesses",
    "nvmlDeviceGetMemoryInfo_v2",
    "nvmlDeviceGetMigMode",
    "nvmlDeviceGetNumaNodeId",
    "nvmlDeviceGetP2PStatus",
];

#[test]
fn old_drivers_with_fewer_functions_and_other_structs_are_read_alike() {
    if !common::has_host_pids() {
        return;
    }
    let machine = |driver: &str| {
        json!({"driver_version": driver, "gpus": [{}, {"processes": [
            {"pid": 1, "type": "C", "memory": 100 * MIB},
            {"pid": 2, "type": "C", "memory": 100 * MIB},
            {"pid": 3, "type": "C", "memory": 100 * MIB},
        ]}]})
    };
    let mut other_struct = machine("535.54.03");
    other_struct["process_info_layout"] = json!("535.43");
    for (name, machine, without) in [
        (
            "470: _v2 lists, memory v1",
            machine("470.223.02"),
            BEFORE_R510,
        ),
        (
            "418: unversioned lists, no MIG",
            machine("418.226.00"),
            BEFORE_R470,
        ),
        (
            "535.43 to 535.86: another struct behind the _v3 names",
            other_struct,
            &[],
        ),
        ("535.98 on: the usual struct", machine("535.98"), &[]),
    ] {
        let row = Row {
            name,
            machine,
            without,
            args: &[],
            expected: Ok("0"),
            tells: "and 2 more",
        };
        let row = Row {
            tells: if without == BEFORE_R470 {
                "used by pid 1"
            } else {
                row.tells
            },
            ..row
        };
        check(&row, |command| command);
    }
}

#[test]
fn a_list_longer_than_the_first_buffer_is_read_whole() {
    let processes: Vec<Value> = (1..=1000)
        .map(|pid| json!({"pid": pid, "type": "C", "memory": 1024}))
        .collect();
    let row = row(
        "1,000 processes",
        json!({"gpus": [{}, {"processes": processes}]}),
        &[],
        Ok("0"),
        "and 999 more",
    );
    check(&row, |command| command);
}

#[test]
fn libraries_that_answer_the_question_for_the_length_with_success_do_not_hide_processes() {
    let machine = json!({"null_count_success": true, "gpus": [{}, used_by("C")]});
    check(
        &row("a busy GPU", machine, &[], Ok("0"), "used by pid 1"),
        |command| command,
    );
}

/// The same command in a PID namespace of its own, as in a container; `None` where that is not
/// permitted.
fn in_a_container() -> Option<impl Fn(Command) -> Command> {
    let permitted = Command::new("unshare")
        .args(["--pid", "--fork", "--mount-proc", "true"])
        .output();
    if !permitted.is_ok_and(|output| output.status.success()) {
        common::skip("PID namespaces may not be made here (it takes root)");
        return None;
    }
    Some(|command: Command| {
        let mut wrapped = Command::new("unshare");
        wrapped
            .args(["--pid", "--fork", "--mount-proc"])
            .arg(command.get_program())
            .args(command.get_args());
        wrapped.env_clear().envs(
            command
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        );
        wrapped
    })
}

#[test]
fn in_a_container_an_empty_list_proves_nothing() {
    let Some(wrap) = in_a_container() else { return };
    for row in [
        row(
            "next to nothing held and nothing running",
            json!({"gpus": [{"memory": {"used": 256 * MIB}}]}),
            &[],
            Ok("0"),
            "chose",
        ),
        row(
            "utilization unknown, next to nothing held",
            json!({"gpus": [{"utilization": null}]}),
            &[],
            Ok("0"),
            "chose",
        ),
        row(
            "the host's processes hold memory that the list does not explain",
            json!({"gpus": [{}, {"memory": {"used": 257 * MIB}}]}),
            &[],
            Ok("0"),
            "in a container",
        ),
        row(
            "it computes",
            json!({"gpus": [
                {},
                {"utilization": {"gpu": 6, "memory": 0}, "memory": {"used": 65 * MIB}},
            ]}),
            &[],
            Ok("0"),
            "6 % utilization",
        ),
        row(
            "used memory unknown",
            json!({"gpus": [{
                "errors": {"nvmlDeviceGetMemoryInfo_v2": 999, "nvmlDeviceGetMemoryInfo": 999},
            }]}),
            &[],
            Err(4),
            "unknown",
        ),
        row(
            "a listed process is busy as ever",
            json!({"gpus": [{}, used_by("C")]}),
            &[],
            Ok("0"),
            "used by pid 1",
        ),
        row(
            "drivers from 535.113 on leave the host's processes out of the list",
            json!({
                "list_pid_namespace": true,
                "gpus": [
                    {},
                    {"processes": [{"pid": 4_200_000, "type": "C", "memory": 2000 * MIB}]},
                ],
            }),
            &[],
            Ok("0"),
            "in a container",
        ),
    ] {
        check(&row, &wrap);
    }
}

/// Runs on a machine without NVML whose nvidia-smi prints a fixture and ends with `code`.
fn with_nvidia_smi(fixture: &str, code: i32, args: &[&str]) -> common::Outcome {
    let machine = Machine::gpus(1);
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/smi");
    let script = format!(
        "#!/bin/sh\ncase $1 in -L) cat '{directory}/list.txt';; *) cat '{directory}/{fixture}';; \
         esac\nexit {code}\n"
    );
    machine.install("nvidia-smi", &script);
    let mut command = machine.autocvd();
    command
        .env("AUTOCVD_NVML_LIB", "/nonexistent/libnvidia-ml.so.1")
        .args(["-o", "-v", "-t", "0"])
        .args(args);
    run(&mut command)
}

#[test]
fn nvidia_smi_serves_where_nvml_cannot_be_loaded() {
    if !common::has_host_pids() {
        return;
    }
    for (fixture, code, args, expected, tells) in [
        ("418.xml", 0, &[][..], Ok("1"), "used by pid"),
        ("470.xml", 0, &[], Ok("0"), "chose GPU 0"),
        ("515.xml", 0, &[], Err(4), "used by pid"),
        ("535.xml", 0, &[], Ok("1"), "chose GPU 1"),
        ("550.xml", 0, &[], Err(4), "PROHIBITED"),
        ("590.xml", 0, &[], Err(4), "used by pid"),
        ("535.xml", 14, &[], Ok("1"), "chose GPU 1"),
        (
            "lost.xml",
            15,
            &[],
            Ok("GPU-33333333-1111-2222-3333-444455556666"),
            "lost",
        ),
        (
            "permissions.xml",
            0,
            &[],
            Err(4),
            "the process list cannot be read",
        ),
        ("wsl.xml", 0, &[], Err(4), "the process list cannot be read"),
        ("mig.xml", 0, &["-n", "2"], Err(3), "one MIG device alone"),
        ("empty.xml", 6, &[], Err(5), "nvidia-smi"),
    ] {
        let outcome = with_nvidia_smi(fixture, code, args);
        let (exit, stdout) = match expected {
            Ok(ids) => (0, format!("{ids}\n")),
            Err(exit) => (exit, String::new()),
        };
        assert_eq!(
            (outcome.code, &outcome.stdout),
            (Some(exit), &stdout),
            "{fixture}: {outcome:?}"
        );
        assert!(
            outcome.stderr.contains(tells),
            "{fixture}: no '{tells}' in {}",
            outcome.stderr
        );
        assert!(
            outcome.stderr.contains("/nonexistent/libnvidia-ml.so.1"),
            "{fixture}: why not NVML: {}",
            outcome.stderr
        );
    }
}

#[test]
fn nvidia_smi_serves_where_nvml_can_read_none_of_the_gpus() {
    let machine = Machine::described(json!({"gpus": [{"errors": {"handle": 999}}]}));
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/smi/535.xml");
    machine.install("nvidia-smi", &format!("#!/bin/sh\ncat '{fixture}'\n"));
    let outcome = run(machine.autocvd().args(["-o", "-v", "-t", "0"]));
    assert_eq!(
        (outcome.code, outcome.stdout.as_str()),
        (Some(0), "1\n"),
        "{outcome:?}"
    );
    outcome.tells("NVML can read none of the GPUs");
    machine.install("nvidia-smi", "#!/bin/sh\nexit 255\n");
    let outcome = run(machine.autocvd().args(["-o", "-t", "0"]));
    assert_eq!(
        (outcome.code, outcome.stderr.lines().count()),
        (Some(5), 1),
        "{outcome:?}"
    );
    outcome.tells("NVML can read none of the GPUs");
}

#[test]
fn a_nvidia_smi_that_hangs_ends_with_the_program_that_asked_it() {
    let machine = Machine::gpus(1);
    machine.set("/init/code", json!(9));
    machine.install(
        "nvidia-smi",
        "#!/bin/sh\necho $$ >\"$FAKE_NVML/asked\"\nexec sleep 600\n",
    );
    assert_eq!(run(machine.autocvd().args(["-o", "-t", "4"])).code, Some(4));
    let pid = std::fs::read_to_string(machine.path().join("asked")).expect("it was asked");
    let stat = format!("/proc/{}/stat", pid.trim());
    // A zombie that its new parent has not reaped yet is dead too.
    wait_until("it has ended", || {
        std::fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z "))
    });
}

#[test]
fn a_mig_device_known_from_nvidia_smi_is_given_by_its_uuid() {
    let outcome = with_nvidia_smi("mig.xml", 0, &["--only", "0"]);
    assert!(outcome.stdout.starts_with("MIG-"), "{outcome:?}");
}

#[test]
fn when_both_fail_each_says_why_and_what_helps() {
    let machine = Machine::gpus(1);
    machine.set("/init/code", json!(18));
    machine.install(
        "nvidia-smi",
        "#!/bin/sh\necho 'Failed to initialize NVML: Driver/library version mismatch'\nexit 18\n",
    );
    let outcome = run(&mut machine.autocvd());
    assert_eq!(
        (outcome.code, outcome.stdout.as_str()),
        (Some(5), "sh -c 'exit 5' autocvd\n"),
        "{outcome:?}"
    );
    assert!(
        outcome.stderr.starts_with("autocvd: ") && outcome.stderr.lines().count() == 1,
        "{outcome:?}"
    );
    for source in outcome.stderr.split("; and nvidia-smi") {
        assert!(
            source.contains("mismatch") && source.contains("reboot"),
            "{source}"
        );
    }
}

#[test]
fn the_probe_that_is_forced_is_the_one_that_is_asked() {
    let machine = Machine::gpus(2);
    machine.install("nvidia-smi", "#!/bin/sh\ntouch \"$HOME/asked\"\nexit 9\n");
    let mut nvml = machine.autocvd();
    assert_eq!(run(nvml.args(["-o", "--probe", "nvml"])).success(), "1\n");
    assert_eq!(
        run(machine.autocvd().arg("-o")).code,
        Some(0),
        "NVML goes first"
    );
    machine.set("/init/code", json!(9));
    let outcome = run(machine
        .autocvd()
        .args(["-o", "--probe", "nvml", "--no-claim"]));
    assert_eq!(outcome.code, Some(5), "{outcome:?}");
    assert_eq!(
        outcome.stderr.lines().count(),
        1,
        "nvidia-smi was not asked: {outcome:?}"
    );
    let outcome = run(machine.autocvd().args(["-o", "--probe", "nvidia-smi"]));
    assert_eq!(outcome.code, Some(5), "{outcome:?}");
    outcome.tells("modprobe nvidia");
}

/// Two GPUs, and a small process on the one that goes first: without its list it would not be
/// noticed.
fn with_an_mps_view(machine: &Machine, mut command: Command) -> common::Outcome {
    let _job = machine.job_that(1, "C 100000000");
    run(command.env("NVML_MPS_DEVICE_ENUMERATION", "1"))
}

#[test]
fn nvml_is_asked_for_gpus_where_the_environment_asks_it_for_mps_devices() {
    let machine = Machine::gpus(2);
    let mut command = machine.autocvd();
    let script = "echo $CUDA_VISIBLE_DEVICES $NVML_MPS_DEVICE_ENUMERATION";
    command.args(["-t", "0", "--no-claim", "--", "sh", "-c", script]);
    // COMMAND finds the variable as it was.
    let outcome = with_an_mps_view(&machine, command);
    assert_eq!(outcome.success(), "0 1\n");
    let mut command = machine.autocvd();
    command.args(["status", "--json"]);
    let status = with_an_mps_view(&machine, command).success();
    let status: Value = serde_json::from_str(&status).expect("JSON");
    assert_eq!(status["gpus"][1]["state"], "busy", "{status:#}");
    assert_eq!(status["source"], "nvml");
}

#[test]
fn nvidia_smi_is_not_shown_the_variable_that_asks_for_mps_devices() {
    let machine = Machine::gpus(1);
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/smi/535.xml");
    machine.install(
        "nvidia-smi",
        &format!("#!/bin/sh\n[ -z \"$NVML_MPS_DEVICE_ENUMERATION\" ] && cat '{fixture}'\n"),
    );
    let mut command = machine.autocvd();
    command.args(["-o", "-t", "0", "--probe", "nvidia-smi"]);
    assert_eq!(with_an_mps_view(&machine, command).success(), "1\n");
}

#[test]
fn what_is_printed_does_not_depend_on_whether_somebody_looks_on() {
    if !common::has_host_pids() {
        return;
    }
    // What is asked only to be shown says that the GPU is lost.
    for function in [
        "nvmlDeviceGetUtilizationRates",
        "nvmlDeviceGetGraphicsRunningProcesses",
        "nvmlDeviceGetGraphicsRunningProcesses_v2",
        "nvmlDeviceGetGraphicsRunningProcesses_v3",
    ] {
        let machine = Machine::described(json!({"gpus": [{}, {}], "errors": {function: 15}}));
        let args = ["-o", "-t", "0", "--no-claim"];
        let plain = run(machine.autocvd().args(args));
        let watched = run(machine.autocvd().args(args).arg("-v"));
        assert_eq!(plain.code, Some(0), "{function}: {plain:#?}");
        assert_eq!(
            (plain.code, &plain.stdout),
            (watched.code, &watched.stdout),
            "{function}: {watched:#?}"
        );
    }
}
