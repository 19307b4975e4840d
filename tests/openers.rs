//! Memory that no process on the driver's list explains: who has the device file of the GPU open is
//! named, and waited for.

mod common;

use common::{Machine, Running, run, skip, start, wait_until};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

/// A machine with one GPU, of this minor number, that holds memory of nobody whom the driver lists;
/// `None`, and a line that says so, where the test cannot be had here. All tests see each other's
/// processes, so that each has a number of its own, which no GPU of this machine has.
fn held_by_nobody(minor: u32) -> Option<Machine> {
    let held = json!({"minor": minor, "memory": {"used": 9000 * MIB}});
    let machine = Machine::described(json!({"gpus": [held]}));
    if !common::has_host_pids() {
        return None;
    }
    std::fs::create_dir(machine.path().join("dev")).expect("our own directory");
    if run(&mut with_devices(&machine, "true")).code != Some(0) {
        skip("a /dev of its own cannot be mounted here (it takes root)");
        return None;
    }
    Some(machine)
}

/// A script that has device files of NVIDIA's driver, which are plain files.
fn with_devices(machine: &Machine, script: &str) -> std::process::Command {
    let make = r#"mount -t tmpfs none "$FAKE_NVML/dev" && cd "$FAKE_NVML/dev" &&
        cp -a /dev/null /dev/zero /dev/urandom . &&
        touch nvidia4001 nvidia4002 nvidia4003 nvidia-uvm &&
        mount --bind . /dev && cd / && eval "$0""#;
    let mut command = machine.command("unshare");
    command.args(["--mount", "sh", "-c", make, script]);
    command
}

/// A program that has such files open, once it is that.
fn opener(machine: &Machine, script: &str, program: &str) -> Running {
    let opener = start(&mut with_devices(machine, script));
    opener.becomes(program);
    opener
}

fn gpu(machine: &Machine) -> Value {
    let shown = run(machine.autocvd().args(["status", "--json"])).success();
    let status: Value = serde_json::from_str(&shown).expect("JSON");
    status["gpus"][0].clone()
}

fn reason(machine: &Machine) -> String {
    gpu(machine)["reason"].as_str().unwrap_or_default().into()
}

#[test]
fn who_has_the_gpu_open_is_named_by_all_that_tells_of_it() {
    let Some(machine) = held_by_nobody(4001) else {
        return;
    };
    assert_eq!(reason(&machine), "8.8 GiB held by no visible process");
    let job = opener(&machine, "exec sleep 600 </dev/nvidia4001", "sleep");
    let told = format!(
        "8.8 GiB held by pid {} (root: sleep 600), which the driver does not list",
        job.pid()
    );
    let shown = gpu(&machine);
    assert_eq!(shown["reason"], told);
    assert_eq!(shown["state"], "busy");
    let process = &shown["processes"][0];
    assert_eq!(process["pid"], job.pid());
    assert_eq!(process["type"], Value::Null);
    assert_eq!(process["command"], "sleep 600");
    let once = run(machine.autocvd().args(["-o", "-t", "0"]));
    assert_eq!(once.code, Some(4), "{once:#?}");
    assert!(once.stderr.contains(&told), "{once:#?}");
    // A recording says the same.
    let recorded = machine.path().join("recorded.json");
    let status = run(machine.autocvd().args(["status", "--json"])).success();
    std::fs::write(&recorded, status).expect("our own directory");
    let args = ["-o", "-t", "0", "--from"];
    let from = run(machine.autocvd().args(args).arg(&recorded));
    assert_eq!((from.code, from.stderr), (once.code, once.stderr));
}

#[test]
fn those_that_compute_by_cuda_are_meant_and_those_that_only_ask_are_not() {
    let Some(machine) = held_by_nobody(4002) else {
        return;
    };
    let sleep = std::fs::read("/bin/sleep").expect("a program");
    for name in ["nvidia-smi", "nv-hostengine"] {
        machine.install(name, "");
        std::fs::write(machine.path().join("bin").join(name), &sleep).expect("our own directory");
    }
    let _monitor = opener(
        &machine,
        "exec nvidia-smi 600 </dev/nvidia4002",
        "nvidia-smi",
    );
    let _engine = opener(
        &machine,
        "exec nv-hostengine 600 </dev/nvidia4002",
        "nv-hostengine",
    );
    assert_eq!(reason(&machine), "8.8 GiB held by no visible process");
    let _viewer = opener(&machine, "exec sleep 601 </dev/nvidia4002", "sleep");
    assert!(reason(&machine).contains("sleep 601"));
    let script = "exec sleep 602 </dev/nvidia4002 3</dev/nvidia-uvm";
    let _job = opener(&machine, script, "sleep");
    let told = reason(&machine);
    assert!(
        told.contains("sleep 602") && !told.contains("more"),
        "{told}"
    );
    let _elsewhere = opener(&machine, "exec sleep 603 </dev/nvidia-uvm", "sleep");
    assert_eq!(reason(&machine), told);
}

#[test]
fn its_exit_is_waited_for() {
    let Some(machine) = held_by_nobody(4003) else {
        return;
    };
    let job = opener(&machine, "exec sleep 600 </dev/nvidia4003", "sleep");
    let waiter = start(machine.autocvd().args(["-o", "-i", "10min"]));
    let watches = || {
        let descriptors = std::fs::read_dir(format!("/proc/{}/fdinfo", waiter.pid()));
        let told = descriptors.into_iter().flatten().flatten();
        let mut told = told.filter_map(|entry| std::fs::read_to_string(entry.path()).ok());
        told.any(|text| {
            text.lines()
                .any(|line| line == format!("Pid:\t{}", job.pid()))
        })
    };
    wait_until("it watches who has the GPU open", watches);
    machine.set("/gpus/0/memory/used", json!(0));
    drop(job);
    assert_eq!(waiter.finish().success(), "0\n");
}
