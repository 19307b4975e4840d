//! What is printed for docker and podman, read by their own parsers of arguments.
#![cfg(feature = "cli")]

mod common;

use common::{Machine, Outcome, has, run};

/// Runs a line that starts a container of an image that does not exist: the engine gets as far as
/// its arguments are right.
fn engine(machine: &Machine, line: &str) -> Outcome {
    let mut shell = machine.shell("dash", line);
    // Neither a daemon nor a registry is asked.
    shell.env("DOCKER_HOST", "unix:///nonexistent/docker.sock");
    run(&mut shell)
}

#[test]
fn docker_takes_the_gpus_that_are_printed_and_refuses_a_failure() {
    if !has("docker") {
        return;
    }
    for options in ["", "-n 2", "--uuid -n 3"] {
        // What is printed for an engine is claimed for a while: each line has a machine of its own.
        let machine = Machine::gpus(3);
        let line = format!("docker run $(autocvd --format docker {options}) localhost/none");
        let outcome = engine(&machine, &line);
        assert!(outcome.stderr.contains("daemon"), "{line}: {outcome:#?}");
        assert!(
            !outcome.stderr.contains("invalid argument"),
            "{line}: {outcome:#?}"
        );
    }
    let outcome = engine(
        &Machine::gpus(3),
        "docker run $(autocvd --format docker -n 9) localhost/none",
    );
    assert_eq!(outcome.code, Some(125), "{outcome:#?}");
    assert!(
        outcome
            .stderr
            .contains("unknown flag: --autocvd-found-no-gpu"),
        "{outcome:#?}"
    );
}

#[test]
fn podman_takes_the_devices_that_are_printed_and_refuses_a_failure() {
    if !has("podman") {
        return;
    }
    let machine = Machine::gpus(3);
    let root = machine.path().join("podman");
    let podman = format!("podman --root {0}/root --runroot {0}/run", root.display());
    let line = format!("{podman} create --pull never $(autocvd --format cdi -n 2) localhost/none");
    let outcome = engine(&machine, &line);
    assert_ne!(outcome.code, Some(0), "{outcome:#?}");
    for word in ["unknown", "invalid", "parse"] {
        assert!(!outcome.stderr.contains(word), "{outcome:#?}");
    }
    let line = format!("{podman} create --pull never $(autocvd --format cdi -n 9) localhost/none");
    let outcome = engine(&machine, &line);
    assert_eq!(outcome.code, Some(125), "{outcome:#?}");
    assert!(
        outcome
            .stderr
            .contains("unknown flag: --autocvd-found-no-gpu"),
        "{outcome:#?}"
    );
}
