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

/// The engine has refused the option that is printed after a failure.
fn assert_refused(outcome: &Outcome) {
    assert_eq!(outcome.code, Some(125), "{outcome:#?}");
    let refusal = "unknown flag: --autocvd-found-no-gpu";
    outcome.tells(refusal);
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
    assert_refused(&outcome);
}

#[test]
fn podman_takes_the_devices_that_are_printed_and_refuses_a_failure() {
    if !has("podman") {
        return;
    }
    let machine = Machine::gpus(3);
    let root = machine.path().join("podman");
    // Storage of its own, of a kind that leaves nothing mounted.
    let podman = format!(
        "podman --root {0}/root --runroot {0}/run --storage-driver vfs",
        root.display()
    );
    let line = format!("{podman} create --pull never $(autocvd --format cdi -n 2) localhost/none");
    let outcome = engine(&machine, &line);
    assert_ne!(outcome.code, Some(0), "{outcome:#?}");
    for word in ["unknown", "invalid", "parse"] {
        assert!(!outcome.stderr.contains(word), "{outcome:#?}");
    }
    let line = format!("{podman} create --pull never $(autocvd --format cdi -n 9) localhost/none");
    let outcome = engine(&machine, &line);
    assert_refused(&outcome);
}

/// Device nodes under the names that nvidia-ctk gives the GPUs.
const CDI: &str = r#"cdiVersion: "0.5.0"
kind: nvidia.com/gpu
devices:
- {name: "0", containerEdits: {deviceNodes: [{path: /dev/fake-gpu0, hostPath: /dev/null}]}}
- {name: "1", containerEdits: {deviceNodes: [{path: /dev/fake-gpu1, hostPath: /dev/null}]}}
- {name: "2", containerEdits: {deviceNodes: [{path: /dev/fake-gpu2, hostPath: /dev/null}]}}
"#;

#[test]
fn a_container_of_podman_has_the_devices_that_are_printed_and_no_others() {
    if !has("podman") || !common::has_mount_namespaces(&Machine::gpus(1)) {
        return;
    }
    let machine = Machine::gpus(3);
    let etc = machine.path().join("etc");
    std::fs::create_dir_all(&etc).expect("our own directory");
    // /etc is another one there, and crun does not run beside a hybrid cgroup tree.
    let around = r#"cp -a /etc/. "$ETC" 2>/dev/null
        mkdir -p "$ETC/cdi" && printf %s "$CDI" >"$ETC/cdi/nvidia.yaml"
        mount --bind "$ETC" /etc || exit 1
        umount /sys/fs/cgroup/unified 2>/dev/null
        in_container() {
            timeout 50 podman --root "$HOME/root" --runroot "$HOME/run" --storage-driver vfs \
                run --rm \
                --network none --cgroups disabled --security-opt seccomp=unconfined \
                --ulimit nofile=1024:1024 --ulimit nproc=1024:1024 "$@"
        }"#;
    let inside = |line: &str| {
        let mut unshare = machine.command("unshare");
        let script = format!("{around}\n{line}");
        unshare.args(["--mount", "sh", "-c", &script]);
        run(unshare.env("ETC", &etc).env("CDI", CDI))
    };
    let plain = inside("in_container --rootfs /:O true");
    if plain.code != Some(0) {
        return common::skip(&format!("podman runs no containers here: {}", plain.stderr));
    }
    let listed = "--rootfs /:O sh -c 'cd /dev && ls -d fake-gpu*'";
    let outcome = inside(&format!(
        "in_container $(autocvd --format cdi -n 2) {listed}"
    ));
    assert_eq!(outcome.success(), "fake-gpu1\nfake-gpu2\n");
}
