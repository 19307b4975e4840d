//! `autocvd doctor`: what is found, and what to do about what is not well.
#![cfg(feature = "cli")]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::json;

use common::{Machine, Outcome, run};

fn doctor(machine: &Machine) -> Outcome {
    run(machine.autocvd().arg("doctor"))
}

/// The line of a subject.
fn line<'a>(outcome: &'a Outcome, subject: &str) -> &'a str {
    let lines = outcome.stdout.lines();
    let mut of_it =
        lines.filter(|line| line.get(2..).is_some_and(|rest| rest.starts_with(subject)));
    of_it
        .next()
        .unwrap_or_else(|| panic!("no {subject}: {outcome:#?}"))
}

#[test]
fn a_machine_on_which_all_is_well_is_told_with_code_0() {
    let machine = Machine::gpus(2);
    let outcome = doctor(&machine);
    assert_eq!(outcome.code, Some(0), "{outcome:#?}");
    assert_eq!(outcome.stderr, "");
    for (subject, told) in [
        ("driver", "read in"),
        ("NVML", "libfake_nvml.so"),
        ("GPUs", "2 of 2 free"),
        ("claim directory", "mode 1777"),
        ("claims", "none"),
        ("batch job", "none"),
        ("CUDA_VISIBLE_DEVICES", "not set"),
    ] {
        assert!(line(&outcome, subject).contains(told), "{outcome:#?}");
    }
    // It calls as each launch does, and a launch's claim is shown.
    let _holder = common::hold(machine.autocvd().arg("-q"));
    let outcome = doctor(&machine);
    assert!(
        line(&outcome, "claims").contains("GPU 1 by pid"),
        "{outcome:#?}"
    );
    let version = concat!("autocvd ", env!("CARGO_PKG_VERSION"));
    assert!(line(&outcome, "claims").contains(version), "{outcome:#?}");
}

#[test]
fn each_thing_that_is_not_well_is_marked_with_what_to_do() {
    let machine = Machine::gpus(2);
    fs::create_dir(machine.claims()).expect("our own directory");
    fs::set_permissions(machine.claims(), PermissionsExt::from_mode(0o700)).expect("our own");
    machine.set("/gpus/1", json!({ "compute_mode": "PROHIBITED" }));
    let outcome = doctor(&machine);
    assert_eq!(outcome.code, Some(1), "{outcome:#?}");
    assert!(
        line(&outcome, "claim directory").starts_with('!'),
        "{outcome:#?}"
    );
    assert!(line(&outcome, "GPUs").starts_with("! GPUs"), "{outcome:#?}");
    assert!(outcome.stdout.contains("-> 'chmod 1777 "), "{outcome:#?}");
    outcome.tells("not all is well");
}

#[test]
fn without_a_driver_the_rest_is_told_with_code_5() {
    let machine = Machine::gpus(1);
    machine.install("nvidia-smi", "#!/bin/sh\nexit 9\n");
    let mut command = machine.autocvd();
    command
        .arg("doctor")
        .env("AUTOCVD_NVML_LIB", "/nowhere/libnvidia-ml.so");
    let outcome = run(&mut command);
    assert_eq!(outcome.code, Some(5), "{outcome:#?}");
    assert!(line(&outcome, "driver").starts_with('!'), "{outcome:#?}");
    assert!(
        line(&outcome, "claim directory").contains("claims"),
        "{outcome:#?}"
    );
}

#[test]
fn a_machine_that_can_give_no_gpu_is_not_well() {
    let machine = Machine::gpus(2);
    // A cgroup forbids both.
    for gpu in 0..2 {
        machine.set(&format!("/gpus/{gpu}/errors"), json!({ "handle": 4 }));
    }
    let outcome = doctor(&machine);
    assert_eq!(outcome.code, Some(5), "{outcome:#?}");
    assert!(line(&outcome, "GPUs").contains("no permission"));
    assert!(
        outcome.stdout.contains("-> none can be given until"),
        "{outcome:#?}"
    );
    // A Jetson of which nothing tells whether it is in use.
    let functions = [
        "nvmlDeviceGetMemoryInfo",
        "nvmlDeviceGetMemoryInfo_v2",
        "nvmlDeviceGetUtilizationRates",
        "nvmlDeviceGetComputeRunningProcesses_v3",
    ];
    let errors = functions.map(|name| (name.to_owned(), json!(3)));
    let errors = serde_json::Map::from_iter(errors);
    let machine = Machine::described(json!({ "gpus": [{ "errors": errors }] }));
    let outcome = doctor(&machine);
    assert_eq!(outcome.code, Some(1), "{outcome:#?}");
    assert!(
        line(&outcome, "GPUs").contains("can never be told here"),
        "{outcome:#?}"
    );
    assert!(
        outcome
            .stdout
            .contains("-> a launch takes such a GPU with '-l'")
    );
}
