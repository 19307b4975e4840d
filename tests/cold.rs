//! Machines without persistence mode, where it takes seconds to initialize a GPU: only those are
//! initialized that a request can have.
#![cfg(feature = "cli")]

mod common;

use common::{Machine, Outcome, has_mount_namespaces, in_mount_namespace, run};
use serde_json::json;

const PLACES: [&str; 4] = [
    "00000000:01:00.0",
    "00000000:02:00.0",
    "00000000:03:00.0",
    "00000000:04:00.0",
];

fn uuid(gpu: usize) -> String {
    format!("GPU-{gpu}0000000-0000-0000-0000-00000000000{gpu}")
}

/// Four GPUs that the kernel driver lists.
fn listed() -> Machine {
    let machine = Machine::gpus(4);
    let uuids: Vec<String> = (0..4).map(uuid).collect();
    let gpus: Vec<(&str, &str)> = PLACES
        .into_iter()
        .zip(uuids.iter().map(String::as_str))
        .collect();
    machine.list_in_proc(&gpus);
    machine
}

fn asked(machine: &Machine, args: &[&str]) -> Outcome {
    machine.forget_calls();
    let mut command = machine.autocvd();
    command.args(["-o", "-t", "0", "--no-claim"]).args(args);
    run(&mut in_mount_namespace(machine, &command))
}

#[test]
fn only_the_gpus_that_a_request_can_have_are_initialized() {
    let machine = listed();
    if !has_mount_namespaces(&machine) {
        return;
    }
    for (args, initialized, chosen) in [
        (&["--only", "2"][..], &[2][..], 2),
        (&["--only", "GPU-1"], &[1], 1),
        (&["--only", "0000:02:00.0", "0000:01:00.0"], &[0, 1], 1),
        (&["-x", "3"], &[0, 1, 2], 2),
        (&["-x", "GPU-3", "GPU-0"], &[1, 2], 2),
    ] {
        let outcome = asked(&machine, args);
        // Of the others nothing is known, and one of them may be lost.
        assert_eq!(
            (outcome.code, outcome.stdout),
            (Some(0), uuid(chosen) + "\n"),
            "{args:?}"
        );
        assert_eq!(machine.initializations(), initialized, "{args:?}");
    }
    let outcome = asked(&machine, &[]);
    assert_eq!(
        (outcome.code, outcome.stdout.as_str()),
        (Some(0), "3\n"),
        "all, in one look"
    );
    machine.set("/gpus/2/errors/handle", json!(15));
    let outcome = asked(&machine, &["--only", "2"]);
    assert_eq!(outcome.code, Some(3), "{outcome:?}");
    outcome.tells("GPU is lost");
}

#[test]
fn only_the_gpus_that_the_environment_allows_are_initialized() {
    let machine = listed();
    if !has_mount_namespaces(&machine) {
        return;
    }
    for (args, batch_job, visible, initialized, chosen) in [
        (&["--inherit"][..], "", uuid(1), &[1][..], 1),
        (&["--inherit"], "", "0,2".into(), &[0, 2], 2),
        (&["--inherit", "-x", "2"], "", "0,2".into(), &[0], 0),
        (&[], "7", uuid(1), &[1], 1),
        (&[], "", uuid(1), &[0, 1, 2, 3], 3),
    ] {
        machine.forget_calls();
        let mut command = machine.autocvd();
        command
            .args(["-o", "-t", "0", "--no-claim", "--uuid"])
            .args(args)
            .env("SLURM_JOB_ID", batch_job)
            .env("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
            .env("CUDA_VISIBLE_DEVICES", &visible);
        let outcome = run(&mut in_mount_namespace(&machine, &command));
        assert_eq!(outcome.success(), uuid(chosen) + "\n", "{args:?} {visible}");
        assert_eq!(machine.initializations(), initialized, "{args:?} {visible}");
    }
}

#[test]
fn what_cannot_be_told_by_names_alone_initializes_all() {
    let machine = listed();
    if !has_mount_namespaces(&machine) {
        return;
    }
    let part = json!({"uuid": "MIG-aaaaaaaa-0000-0000-0000-000000000001"});
    machine.set("/gpus/1/mig", json!({"enabled": true, "devices": [part]}));
    let outcome = asked(&machine, &["--only", "MIG-aaaa"]);
    let mig = "MIG-aaaaaaaa-0000-0000-0000-000000000001\n";
    assert_eq!(
        (outcome.code, outcome.stdout.as_str()),
        (Some(0), mig),
        "{outcome:?}"
    );
    assert_eq!(machine.initializations().len(), 4);
    // The kernel lists another machine's GPUs.
    machine.list_in_proc(&[("00000000:81:00.0", "GPU-8")]);
    assert_eq!(asked(&machine, &["--only", "2"]).code, Some(0));
    assert!(machine.initializations().len() >= 4);
}

#[test]
fn a_waiter_leaves_the_other_gpus_cold() {
    let machine = listed();
    if !has_mount_namespaces(&machine) {
        return;
    }
    let mut job = machine.job(2);
    machine.forget_calls();
    let mut command = machine.autocvd();
    command.args(["-o", "-t", "50", "--only", "2"]);
    let waiter = common::start(&mut in_mount_namespace(&machine, &command));
    common::wait_until("it waits", || waiter.stderr().contains("waiting"));
    job.kill();
    let outcome = waiter.finish();
    assert_eq!((outcome.code, outcome.stdout), (Some(0), uuid(2) + "\n"));
    assert_eq!(machine.initializations(), [2]);
}

#[test]
fn gpus_that_have_interrupts_are_initialized_and_make_indices_sure() {
    let machine = listed();
    if !has_mount_namespaces(&machine) {
        return;
    }
    for place in PLACES {
        let place = place.trim_start_matches("0000").to_lowercase();
        let directory = machine.path().join(format!("pci/0000{place}/msi_irqs/77"));
        std::fs::create_dir_all(directory).expect("our own directory");
    }
    let script = format!(
        "mount --bind '{}' /sys/bus/pci/devices && exec autocvd -o --only 2",
        machine.path().join("pci").display()
    );
    let outcome = run(&mut in_mount_namespace(
        &machine,
        &machine.shell("sh", &script),
    ));
    assert_eq!(
        (outcome.code, outcome.stdout.as_str()),
        (Some(0), "2\n"),
        "{outcome:?}"
    );
}
