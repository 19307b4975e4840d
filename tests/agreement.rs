//! Each odd kind of machine, as NVML tells it and as nvidia-smi prints it there: both get the same
//! decision. Each row names where its facts come from.
#![cfg(feature = "cli")]

mod common;

use common::{Machine, Outcome, run};
use serde_json::{Value, json};
use std::fs;
use std::process::Command;

const MIB: u64 = 1 << 20;
const NOT_SUPPORTED: u32 = 3;

/// Where the program runs.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Host,
    /// In a PID namespace of its own.
    Container,
    /// Where there is /dev/dxg, by which WSL2 reaches the GPU.
    Wsl,
    /// On the host, whose NUMA node 1 has no CPUs, as that of a GPU's memory on Grace Hopper.
    NodeWithoutCpus,
}

/// What nvidia-smi prints: a fixture, with some of its text replaced.
struct Printed {
    fixture: &'static str,
    edits: Vec<(&'static str, &'static str)>,
}

/// A kind of machine, what is asked of it, and what comes of it.
struct Kind {
    name: &'static str,
    place: Place,
    nvml: Value,
    /// What nvidia-smi prints there, where it has a form for it.
    smi: Option<Printed>,
    args: &'static [&'static str],
    /// Standard output with `-o`, or the exit code.
    expected: Result<&'static str, i32>,
    /// Part of what `-v` or the failure tells.
    tells: &'static str,
}

fn kind(
    name: &'static str,
    nvml: Value,
    smi: Option<Printed>,
    expected: Result<&'static str, i32>,
) -> Kind {
    Kind {
        name,
        place: Place::Host,
        nvml: json!({ "gpus": [nvml] }),
        smi,
        args: &[],
        expected,
        tells: "",
    }
}

fn prints(fixture: &'static str, edits: &[(&'static str, &'static str)]) -> Option<Printed> {
    Some(Printed {
        fixture,
        edits: edits.to_vec(),
    })
}

/// The command in that place; `None` where the place cannot be made here.
fn at(place: Place, machine: &Machine, command: &Command) -> Option<Command> {
    let prepare = match place {
        Place::Host => "",
        Place::Container => "mount -t proc proc /proc &&",
        Place::Wsl => {
            r#"for node in null zero full random urandom tty; do
                   : >"$ROOT/dev/$node" && mount --bind /dev/$node "$ROOT/dev/$node" || exit 70
               done
               ln -sfn /proc/self/fd "$ROOT/dev/fd" && : >"$ROOT/dev/dxg" &&
               mount --rbind "$ROOT/dev" /dev &&"#
        }
        Place::NodeWithoutCpus => r#"mount --bind "$ROOT/node" /sys/devices/system/node &&"#,
    };
    let root = machine.path().join("root");
    fs::create_dir_all(root.join("dev")).expect("our own directory");
    for (node, cpus) in [("node0", "0-7\n"), ("node1", "\n")] {
        fs::create_dir_all(root.join("node").join(node)).expect("our own directory");
        fs::write(root.join("node").join(node).join("cpulist"), cpus).expect("our own directory");
    }
    let wrapped = |command: &Command| {
        let mut inside = machine.command("unshare");
        inside.arg("--mount");
        if place == Place::Container {
            inside.args(["--pid", "--fork"]);
        }
        inside.args(["sh", "-c", &format!("{prepare} exec \"$@\""), "sh"]);
        inside.arg(command.get_program()).args(command.get_args());
        inside.env_clear().envs(
            command
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        );
        inside.env("ROOT", &root);
        inside
    };
    if place == Place::Host {
        let mut same = machine.command("env");
        same.arg(command.get_program()).args(command.get_args());
        same.env_clear().envs(
            command
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        );
        return Some(same);
    }
    if run(&mut wrapped(&machine.command("true"))).code != Some(0) {
        common::skip("namespaces may not be made here (it takes root)");
        return None;
    }
    Some(wrapped(command))
}

fn by_nvml(kind: &Kind) -> Option<Outcome> {
    let machine = Machine::described(kind.nvml.clone());
    let mut command = machine.autocvd();
    command
        .args(["-o", "-v", "-t", "0", "--probe", "nvml"])
        .args(kind.args);
    Some(run(&mut at(kind.place, &machine, &command)?))
}

fn by_nvidia_smi(kind: &Kind, printed: &Printed) -> Option<Outcome> {
    let machine = Machine::gpus(1);
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/smi");
    let mut text =
        fs::read_to_string(format!("{directory}/{}", printed.fixture)).expect("a fixture");
    for (from, to) in &printed.edits {
        assert!(
            text.contains(from),
            "{}: there is no {from} in {}",
            kind.name,
            printed.fixture
        );
        text = text.replacen(from, to, 1);
    }
    let file = machine.path().join("printed.xml");
    fs::write(&file, text).expect("our own directory");
    let file = file.display();
    let script =
        format!("#!/bin/sh\ncase $1 in -L) cat '{directory}/list.txt';; *) cat '{file}';; esac\n");
    machine.install("nvidia-smi", &script);
    let mut command = machine.autocvd();
    command
        .args(["-o", "-v", "-t", "0", "--probe", "nvidia-smi"])
        .args(kind.args);
    Some(run(&mut at(kind.place, &machine, &command)?))
}

fn check(kind: &Kind) {
    let outcomes = [
        ("NVML", by_nvml(kind)),
        (
            "nvidia-smi",
            kind.smi
                .as_ref()
                .and_then(|printed| by_nvidia_smi(kind, printed)),
        ),
    ];
    for (source, outcome) in outcomes {
        let Some(outcome) = outcome else { continue };
        let (code, stdout) = match kind.expected {
            Ok(ids) => (0, format!("{ids}\n")),
            Err(code) => (code, String::new()),
        };
        let name = kind.name;
        assert_eq!(
            (outcome.code, &outcome.stdout),
            (Some(code), &stdout),
            "{name}, {source}: {outcome:?}"
        );
        assert!(
            outcome.stderr.contains(kind.tells),
            "{name}, {source}: no '{}' in {}",
            kind.tells,
            outcome.stderr
        );
    }
}

/// A list of processes that the library does not support.
fn without_lists() -> Value {
    let names = ["Compute", "Graphics", "MPSCompute"].into_iter();
    let versions = |name| {
        ["", "_v2", "_v3"].map(|version| format!("nvmlDeviceGet{name}RunningProcesses{version}"))
    };
    names
        .flat_map(versions)
        .map(|name| (name, json!(NOT_SUPPORTED)))
        .collect()
}

#[test]
fn unified_memory_is_no_evidence_and_the_list_decides() {
    // The driver's answers and nvidia-smi's words: Syllo/nvtop#466, XuehaiPan/nvitop#208,
    // llama-swap#782.
    let spark = |processes: Value| {
        json!({
            "memory": null,
            "addressing_mode": "ats",
            "processes": processes,
        })
    };
    let desktop = json!([{"pid": 2, "type": "G", "memory": 18 * MIB}]);
    let python = json!([
        {"pid": 2, "type": "G", "memory": 18 * MIB},
        {"pid": 3, "type": "C", "memory": 20_434 * MIB},
    ]);
    check(&kind(
        "DGX Spark, a desktop",
        spark(desktop.clone()),
        prints("spark.xml", &[]),
        Ok("0"),
    ));
    let busy = kind(
        "DGX Spark, a job",
        spark(python),
        prints("spark-busy.xml", &[]),
        Err(4),
    );
    check(&Kind {
        tells: "used by pid",
        ..busy
    });
    let large = kind(
        "DGX Spark, more than it has",
        spark(json!([])),
        prints("spark.xml", &[]),
        Err(3),
    );
    check(&Kind {
        args: &["-m", "99TiB"],
        ..large
    });
    let small = kind(
        "DGX Spark, free memory is the machine's",
        spark(json!([])),
        prints("spark.xml", &[]),
        Ok("0"),
    );
    check(&Kind {
        args: &["-m", "1MiB"],
        ..small
    });
    let least = kind(
        "DGX Spark, -l",
        spark(desktop),
        prints("spark.xml", &[]),
        Ok("0"),
    );
    check(&Kind {
        args: &["-l"],
        ..least
    });
}

#[test]
fn in_a_container_utilization_decides_on_unified_memory() {
    let spark = |utilization: u32| {
        json!({
            "memory": null,
            "utilization": {"gpu": utilization, "memory": 0},
        })
    };
    let idle = kind(
        "DGX Spark in a container, idle",
        spark(5),
        prints("spark.xml", &[]),
        Ok("0"),
    );
    check(&Kind {
        place: Place::Container,
        ..idle
    });
    let works = prints("spark.xml", &[("<gpu_util>0 %", "<gpu_util>60 %")]);
    let busy = kind(
        "DGX Spark in a container, at work",
        spark(60),
        works,
        Err(4),
    );
    check(&Kind {
        place: Place::Container,
        tells: "60 % utilization",
        ..busy
    });
}

#[test]
fn what_this_machine_never_tells_is_told_at_once_with_the_way_out() {
    // Jetson: compute mode, memory and utilization are not supported.
    let orin =
        json!({"name": "Orin (nvgpu)", "memory": null, "utilization": null, "compute_mode": null});
    check(&kind(
        "Jetson Orin",
        orin.clone(),
        prints("orin.xml", &[]),
        Ok("0"),
    ));
    let hidden = kind(
        "Jetson Orin in a container",
        orin.clone(),
        prints("orin.xml", &[]),
        Err(3),
    );
    check(&Kind {
        place: Place::Container,
        tells: "-l",
        ..hidden
    });
    let mut silent = orin;
    silent["errors"] = without_lists();
    let unlisted = prints("orin.xml", &[("<processes>\n", "<processes>N/A\n")]);
    let silent = kind(
        "a GPU of which nothing can be told",
        silent,
        unlisted,
        Err(3),
    );
    check(&Kind {
        tells: "-l",
        ..silent
    });
}

#[test]
fn on_wsl_the_desktop_may_hold_memory() {
    // XuehaiPan/nvitop#49, dask/dask#5342: 444 MiB to 2.9 GiB while nothing computes.
    let errors = without_lists();
    let desktop = |used: u64, total: u64| {
        json!({
            "memory": {"used": used * MIB, "total": total * MIB},
            "utilization": {"gpu": 3, "memory": 1},
            "errors": errors,
        })
    };
    // The fixture has three GPUs; one of them makes the same machine.
    let one = |used: &'static str| {
        vec![
            ("<attached_gpus>3", "<attached_gpus>1"),
            ("<used>5120 MiB", used),
            ("<gpu_util>ERR!", "<gpu_util>3 %"),
        ]
    };
    for (name, used, printed, expected) in [
        ("a quarter of its memory", 3070, "<used>3070 MiB", Ok("0")),
        (
            "more than a quarter of its memory",
            3071,
            "<used>3071 MiB",
            Err(4),
        ),
    ] {
        let smi = Some(Printed {
            fixture: "wsl-one.xml",
            edits: one(printed)[1..].to_vec(),
        });
        check(&Kind {
            place: Place::Wsl,
            tells: "in WSL2",
            ..kind(name, desktop(used, 12_282), smi, expected)
        });
    }
    let busy = json!({
        "utilization": {"gpu": 60, "memory": 1},
        "memory": {"used": 200 * MIB},
        "errors": errors,
    });
    let smi = Some(Printed {
        fixture: "wsl-one.xml",
        edits: vec![
            ("<used>5120 MiB", "<used>200 MiB"),
            ("<gpu_util>ERR!", "<gpu_util>60 %"),
        ],
    });
    check(&Kind {
        place: Place::Wsl,
        tells: "60 % utilization",
        ..kind("it computes", busy, smi, Err(4))
    });
}

#[test]
fn memory_that_is_a_numa_node_without_cpus_proves_nothing() {
    let grace = |node: u32| {
        json!({
            "memory": {"total": 98_304 * MIB, "used": 40_000 * MIB},
            "numa_node": node,
        })
    };
    let printed = || {
        prints(
            "590.xml",
            &[
                ("<addressing_mode>HMM", "<addressing_mode>ATS"),
                ("<type>C<", "<type>G<"),
                ("<used_memory>65710 MiB", "<used_memory>10 MiB"),
            ],
        )
    };
    let free = kind("Grace Hopper", grace(1), printed(), Ok("0"));
    check(&Kind {
        place: Place::NodeWithoutCpus,
        ..free
    });
    let superchip = kind("GB200", grace(1), prints("580.xml", &[]), Ok("0"));
    check(&Kind {
        place: Place::NodeWithoutCpus,
        ..superchip
    });
    // CDMM (GB200 under Kubernetes): addresses are translated, but the memory is no node
    // (vllm-project/vllm#39361).
    let held = kind(
        "a node with CPUs is the host's",
        grace(0),
        printed(),
        Err(4),
    );
    check(&Kind {
        tells: "held by no visible process",
        ..held
    });
    let part = json!({
        "uuid": "MIG-aaaaaaaa-0000-0000-0000-000000000001",
        "memory": {"total": 20_000 * MIB, "used": 9_000 * MIB},
    });
    let mig = json!({"numa_node": 1, "mig": {"enabled": true, "devices": [part]}});
    let mig = kind(
        "MIG on Grace Hopper",
        mig,
        None,
        Ok("MIG-aaaaaaaa-0000-0000-0000-000000000001"),
    );
    check(&Kind {
        place: Place::NodeWithoutCpus,
        ..mig
    });
}

#[test]
fn utilization_without_memory_is_no_computing() {
    // Blackwell's latch: lium-io#1140, NVIDIA/open-gpu-kernel-modules#1138.
    let stuck = |used: u64| {
        json!({
            "memory": {"used": used * MIB},
            "utilization": {"gpu": 100, "memory": 0},
        })
    };
    for (used, printed, expected) in [(64, "<used>64 MiB", Ok("0")), (65, "<used>65 MiB", Err(4))] {
        let edits = [
            ("<used>0 MiB", printed),
            ("<gpu_util>0 %", "<gpu_util>100 %"),
        ];
        let latch = kind(
            "100 % utilization, and no context",
            stuck(used),
            prints("615.xml", &edits),
            expected,
        );
        check(&Kind {
            place: Place::Container,
            ..latch
        });
    }
}

#[test]
fn desktop_programs_on_vulkan_do_not_compute() {
    // Real recordings of drivers 595.84 and 595.99.
    let gpu = |processes: Value| json!({"memory": {"used": 760 * MIB}, "processes": processes});
    let shell = json!({"pid": 1911, "type": "G", "memory": 412 * MIB});
    let browser = json!({"pid": 2204, "type": "C+G", "memory": 183 * MIB});
    let large = json!({"pid": 2204, "type": "C+G", "memory": 513 * MIB});
    let unknown = json!({"pid": 2204, "type": "C+G", "memory": null});
    let desktop = "vulkan-desktop.xml";
    check(&kind(
        "a browser",
        gpu(json!([shell, browser])),
        prints(desktop, &[]),
        Ok("0"),
    ));
    for (name, nvml, edit) in [
        ("a large one", json!([shell, large]), ("183 MiB", "513 MiB")),
        (
            "one whose memory is unknown",
            json!([shell, unknown]),
            ("183 MiB", "N/A"),
        ),
        (
            "one without a desktop",
            json!([browser]),
            ("<type>G<", "<type>C+G<"),
        ),
    ] {
        check(&Kind {
            tells: "used by pid",
            ..kind(name, gpu(nvml), prints(desktop, &[edit]), Err(4))
        });
    }
}

#[test]
fn a_gpu_that_the_driver_wants_to_recover_is_not_given() {
    // nvml.h: NVML_GPU_RECOVERY_ACTION_*; NVIDIA/k8s-device-plugin#243 and #267 tell what such a
    // GPU does.
    for (action, printed, expected, tells) in [
        (0, "None", Ok("0"), ""),
        (1, "Reset", Err(3), "reset"),
        (2, "Reboot", Err(3), "reboot"),
        (3, "Drain P2P", Ok("0"), ""),
        (4, "Drain and Reset", Err(3), "reset"),
        (6, "Bus Reset", Err(3), "reset"),
        (7, "System Reboot", Err(3), "reboot"),
    ] {
        let edits = [(
            "<gpu_recovery_action>None",
            &*format!("<gpu_recovery_action>{printed}").leak(),
        )];
        let name = &*format!("recovery action {printed}").leak();
        let gpu = json!({ "recovery_action": action });
        check(&Kind {
            tells,
            ..kind(name, gpu, prints("615.xml", &edits), expected)
        });
    }
    let remap = json!({"remap_failed": true});
    let printed = prints(
        "615.xml",
        &[(
            "\t\t<retired_pages>",
            "\t\t<remapped_rows>\n\t\t\t<remapped_row_failure>Yes</remapped_row_failure>\n\
             \t\t</remapped_rows>\n\t\t<retired_pages>",
        )],
    );
    check(&Kind {
        tells: "remap",
        ..kind("a row remap that failed", remap, printed, Err(3))
    });
    let old = json!({"recovery_action": null, "remap_failed": null});
    check(
        &kind(
            "a driver that knows nothing of either",
            old,
            prints(
                "418.xml",
                &[
                    ("<attached_gpus>2", "<attached_gpus>2"),
                    ("<used>1031 MiB", "<used>0 MiB"),
                    ("<type>C<", "<type>G<"),
                ],
            ),
            Ok("0"),
        )
        .only("0"),
    );
}

impl Kind {
    fn only(mut self, _: &str) -> Self {
        self.args = &["--only", "0"];
        self
    }
}

#[test]
fn documents_of_drivers_from_610_on_are_read() {
    check(&kind(
        "comments, and the version by both names",
        json!({}),
        prints("615.xml", &[]),
        Ok("0"),
    ));
    check(&kind(
        "the version by its new name",
        json!({}),
        prints("cuda-14.xml", &[]),
        Ok("0"),
    ));
    // Where the driver model cannot be read, the list may be WDDM's.
    let errors = without_lists();
    let nvml = json!({"memory": {"used": 300 * MIB}, "errors": errors});
    let unreadable = prints(
        "615.xml",
        &[
            ("<current_dm>N/A", "<current_dm>Unknown Error"),
            ("<used>0 MiB", "<used>300 MiB"),
        ],
    );
    check(&Kind {
        tells: "list cannot be read",
        ..kind(
            "a driver model that cannot be read",
            nvml,
            unreadable,
            Err(4),
        )
    });
}

#[test]
fn a_graphics_process_of_unknown_memory_explains_four_gib() {
    let gpu = |used: u64| {
        json!({
            "memory": {"used": used * MIB, "total": 97_887 * MIB},
            "processes": [{"pid": 1, "type": "G", "memory": null}],
        })
    };
    let printed = |used| {
        prints(
            "590.xml",
            &[
                ("<type>C<", "<type>G<"),
                ("65710 MiB", "N/A"),
                ("<used>65720 MiB", used),
            ],
        )
    };
    // What one explains, and 5 % of the memory.
    check(&kind(
        "within it",
        gpu(8_990),
        printed("<used>8990 MiB"),
        Ok("0"),
    ));
    let held = kind(
        "60 GiB are held by another",
        gpu(61_440),
        printed("<used>61440 MiB"),
        Err(4),
    );
    check(&Kind {
        tells: "held by no visible process",
        ..held
    });
}

#[test]
fn one_list_that_names_a_computing_process_settles_it() {
    let errors = json!({
        "nvmlDeviceGetMPSComputeRunningProcesses": 999,
        "nvmlDeviceGetMPSComputeRunningProcesses_v2": 999,
        "nvmlDeviceGetMPSComputeRunningProcesses_v3": 999
    });
    let gpu = json!({"processes": [{"pid": 1, "type": "C", "memory": MIB}], "errors": errors});
    for args in [&[][..], &["--json"]] {
        let machine = Machine::described(json!({"gpus": [gpu]}));
        let outcome = run(machine.autocvd().args(["-t", "0"]).args(args));
        assert_eq!(outcome.code, Some(4), "{args:?}: {outcome:?}");
        assert!(
            outcome.stderr.contains("used by pid 1"),
            "{args:?}: {outcome:?}"
        );
        let status = run(machine.autocvd().args(["status", "--json"])).success();
        let status: Value = serde_json::from_str(&status).expect("JSON");
        assert_eq!(
            status.pointer("/gpus/0/state"),
            Some(&json!("busy")),
            "{status}"
        );
    }
}

#[test]
fn a_lost_gpu_keeps_its_names_at_the_moment_they_are_needed() {
    let [first, lost, last] =
        [0, 1, 2].map(|gpu| format!("GPU-{gpu}0000000-0000-0000-0000-00000000000{gpu}"));
    let machine = Machine::described(json!({"gpus": [{}, {"errors": {"handle": 15}}, {}]}));
    if !common::has_mount_namespaces(&machine) {
        return;
    }
    machine.list_in_proc(&[
        ("00000000:01:00.0", &first),
        ("00000000:02:00.0", &lost),
        ("00000000:03:00.0", &last),
    ]);
    let asked = |args: &[&str]| {
        let mut command = machine.autocvd();
        command.args(["-o", "-t", "0", "--no-claim"]).args(args);
        run(&mut common::in_mount_namespace(&machine, &command))
    };
    for excluded in [&lost[..], "GPU-1", "0000:02:00.0", "1"] {
        let outcome = asked(&["-x", excluded]);
        assert_eq!(
            (outcome.code, outcome.stdout),
            (Some(0), format!("{last}\n")),
            "{excluded}"
        );
    }
    let only = asked(&["--only", &lost]);
    assert_eq!(only.code, Some(3), "{only:?}");
    only.tells("GPU 1: GPU is lost");
    let mut status = machine.autocvd();
    status.args(["status", "--json"]);
    let status = run(&mut common::in_mount_namespace(&machine, &status)).success();
    let status: Value = serde_json::from_str(&status).expect("JSON");
    assert_eq!(
        status.pointer("/gpus/1/uuid"),
        Some(&json!(lost)),
        "{status}"
    );
    assert_eq!(
        status.pointer("/gpus/1/pci_bus_id"),
        Some(&json!("00000000:02:00.0")),
        "{status}"
    );
    // What is listed of another machine names none of these.
    machine.list_in_proc(&[("00000000:41:00.0", "GPU-4")]);
    let outcome = asked(&["--only", "GPU-4"]);
    assert_eq!(outcome.code, Some(2), "{outcome:?}");
}

#[test]
fn what_is_printed_does_not_depend_on_what_is_told() {
    // The handle of a lost GPU, its names and its MIG mode may still answer.
    let lost = json!({"errors": {"nvmlDeviceGetMemoryInfo": 15, "nvmlDeviceGetMemoryInfo_v2": 15}});
    let machine = Machine::described(json!({"gpus": [lost, {}, {}]}));
    for args in [&["-o"][..], &["-o", "-v"], &["-o", "-vv"], &["-o", "-l"]] {
        let outcome = run(machine.autocvd().args(["-t", "0", "--no-claim"]).args(args));
        let uuid = "GPU-20000000-0000-0000-0000-000000000002\n";
        assert_eq!(
            (outcome.code, outcome.stdout.as_str()),
            (Some(0), uuid),
            "{args:?}"
        );
    }
}

#[test]
fn the_health_of_what_is_given_alone_is_asked_for_in_one_call() {
    let machine = Machine::gpus(4);
    machine.forget_calls();
    assert_eq!(
        run(machine.autocvd().args(["-o", "-n", "2"])).success(),
        "2,3\n"
    );
    let asked = || {
        machine
            .calls()
            .iter()
            .filter(|call| *call == "nvmlDeviceGetFieldValues")
            .count()
    };
    assert_eq!(asked(), 2);
    // One that wants to be reset is passed over, and waiting would not change it.
    machine.set("/gpus/3/recovery_action", json!(1));
    assert_eq!(
        run(machine.autocvd().args(["-o", "--no-claim"])).success(),
        "2\n"
    );
    let status = run(machine.autocvd().args(["status", "--json"])).success();
    let status: Value = serde_json::from_str(&status).expect("JSON");
    assert_eq!(
        status.pointer("/gpus/3/state"),
        Some(&json!("unavailable")),
        "{status}"
    );
    assert_eq!(
        status.pointer("/gpus/3/health/recovery_action"),
        Some(&json!("GPU_RESET")),
        "{status}"
    );
}

#[test]
fn a_falsely_high_first_reading_is_made_again_after_a_second() {
    let machine = Machine::described(json!({"gpus": [{
        "memory": {"used": 200 * MIB},
        "utilization": [
            {"gpu": 100, "memory": 0},
            {"gpu": 100, "memory": 0},
            {"gpu": 0, "memory": 0},
        ],
    }]}));
    let mut command = machine.autocvd();
    // Nothing else would look again within the time that a test may take.
    command.args(["-o", "-i", "1h", "-t", "50"]);
    let Some(mut command) = at(Place::Container, &machine, &command) else {
        return;
    };
    let outcome = run(&mut command);
    assert_eq!(
        (outcome.code, outcome.stdout.as_str()),
        (Some(0), "0\n"),
        "{outcome:?}"
    );
}

#[test]
fn inherited_indices_count_as_cuda_counts_them() {
    let machine = Machine::described(json!({"gpus": [{"name": "NVIDIA T4"}, {}, {}]}));
    let asked = |visible: &str, order: Option<&str>| {
        let mut command = machine.autocvd();
        command.args(["-o", "-t", "0", "--no-claim", "--inherit"]);
        command.env("CUDA_VISIBLE_DEVICES", visible);
        command.envs(order.map(|order| ("CUDA_DEVICE_ORDER", order)));
        run(&mut command)
    };
    assert_eq!(asked("0", Some("PCI_BUS_ID")).success(), "0\n");
    // Which one is the fastest is CUDA's to say.
    for order in [None, Some("FASTEST_FIRST")] {
        let outcome = asked("0", order);
        assert_eq!(outcome.code, Some(2), "{outcome:?}");
        outcome.tells("CUDA_DEVICE_ORDER=PCI_BUS_ID");
        assert_eq!(asked("GPU-1", order).success(), "1\n");
    }
    machine.set("/gpus/0/name", json!("NVIDIA A100-SXM4-80GB"));
    assert_eq!(
        asked("0", None).success(),
        "0\n",
        "equal ones stand by their places on the bus"
    );
    let twice = asked("0,0", None);
    assert_eq!(twice.code, Some(3), "{twice:?}");
}

#[test]
fn an_excluded_name_that_may_be_a_lost_gpus_is_a_warning() {
    let machine = Machine::described(json!({"gpus": [{}, {"errors": {"handle": 15}}]}));
    let outcome = run(machine
        .autocvd()
        .args(["-o", "-t", "0", "--no-claim", "-x", "GPU-ffff"]));
    let uuid = "GPU-00000000-0000-0000-0000-000000000000\n";
    assert_eq!(
        (outcome.code, outcome.stdout.as_str()),
        (Some(0), uuid),
        "{outcome:?}"
    );
    outcome.tells("GPU-ffff");
    machine.set("/gpus/1/errors", json!({}));
    let outcome = run(machine
        .autocvd()
        .args(["-o", "-t", "0", "--no-claim", "-x", "GPU-ffff"]));
    assert_eq!(outcome.code, Some(2), "{outcome:?}");
}
