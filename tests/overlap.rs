//! Two launches never run on one GPU at the same time, whatever a shell does with what it was
//! given.
#![cfg(feature = "cli")]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Machine, Running, is_free, look, run, start, unless_starved, wait_until};
use rustix::process::Signal;

/// `alone SECONDS`: a program that tells when another one is on its GPU: each GPU has a lock that
/// ends with the process that holds it. It shows up at the driver for nobody.
const ALONE: &str = r#"#!/bin/bash
exec 9>>"$FAKE_NVML/locks/$CUDA_VISIBLE_DEVICES"
flock -n 9 || { echo "GPU $CUDA_VISIBLE_DEVICES" >>"$FAKE_NVML/overlaps"; exit 70; }
echo "$CUDA_VISIBLE_DEVICES" >>"$FAKE_NVML/ran"
exec sleep "$1"
"#;

fn machine(gpus: usize) -> Machine {
    let machine = Machine::gpus(gpus);
    machine.install("alone", ALONE);
    fs::create_dir(machine.path().join("locks")).expect("our own directory");
    let fifo = machine.path().join("fifo");
    let made = Command::new("mkfifo").arg(fifo).status();
    assert!(made.expect("it is everywhere").success());
    machine
}

fn overlaps(machine: &Machine) -> String {
    fs::read_to_string(machine.path().join("overlaps")).unwrap_or_default()
}

/// How many programs have run or run.
fn runs(machine: &Machine) -> usize {
    let ran = fs::read_to_string(machine.path().join("ran")).unwrap_or_default();
    ran.lines().count()
}

/// A launch that takes the GPU as soon as it is to be had.
fn waiter(machine: &Machine) -> Running {
    start(
        machine
            .autocvd()
            .args(["-q", "-i", "600s", "--", "alone", "0.4"]),
    )
}

/// The same of another user, who may not see what environment a program has, where this process may
/// become one.
fn other_users_waiter(machine: &Machine) -> Running {
    if !rustix::process::geteuid().is_root() {
        return waiter(machine);
    }
    machine.private_library();
    let program = machine.path().join("program");
    common::copy_program(common::program(), &program);
    for name in ["", "program", "libfake_nvml.so", "bin", "procs"] {
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(machine.path().join(name), mode).expect("our own");
    }
    for name in ["calls", "initializations"] {
        let mode = fs::Permissions::from_mode(0o666);
        fs::set_permissions(machine.path().join(name), mode).expect("our own");
    }
    let mut user = machine.command("setpriv");
    user.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    user.arg(program).args(["-q", "-i", "600s", "--", "true"]);
    start(user.current_dir("/"))
}

#[test]
fn a_shell_with_several_programs_keeps_its_gpu_between_them() {
    for script in [
        ". <(autocvd -q -s); alone 0.2; alone 0.2",
        "eval \"$(autocvd -q -s)\"; alone 0.2; alone 0.2",
        "eval $(autocvd -q -s); alone 0.2; nap 0.005; alone 0.2; nap 0.3; alone 0.2",
        "eval \"$(autocvd -q -s)\"; for i in 1 2 3; do alone 0.1; nap 0.02; done",
        "f() { alone 0.2; alone 0.2; }; eval $(autocvd -q) f",
        "f() { alone 0.2; nap 0.05; alone 0.2; }; eval $(autocvd -q) f",
        "export CUDA_VISIBLE_DEVICES=$(autocvd -q -o --hold 8s); alone 0.2; alone 0.2",
        "autocvd -q -- bash -c 'setsid alone 0.4 &'",
        "autocvd -q -- bash -c 'alone 0.2; alone 0.2'",
        "f() { alone 0.2; alone 0.2; }; eval \"$(autocvd -q) f &\"; wait",
    ] {
        // Between two programs of a function the GPU is kept for a moment alone.
        unless_starved(|| {
            let machine = machine(1);
            let nap = "nap() { read -r -t \"$1\" _ <>\"$FAKE_NVML/fifo\" || :; }";
            let shell = start(&mut machine.shell("bash", &format!("{nap}; {script}; :")));
            wait_until("the first program runs", || runs(&machine) > 0);
            let waiting = waiter(&machine);
            let ended = [shell.finish().code, waiting.finish().code];
            match (ended, overlaps(&machine).as_str()) {
                ([Some(0), Some(0)], "") => Ok(()),
                (ended, overlaps) => Err(format!("{script}: {ended:?} {overlaps}")),
            }
        });
    }
}

#[test]
fn background_jobs_that_take_their_time_to_start_keep_their_gpus() {
    // A fork that has not yet become the program, as it is on a machine with much to do.
    let job = "slow() { read -r -t 0.4 _ <>\"$FAKE_NVML/fifo\"; exec alone 0.5; }";
    for (shell, job) in [
        ("bash", job),
        ("zsh", "slow() { sleep 0.4; exec alone 0.5; }"),
    ] {
        if !common::has(shell) {
            continue;
        }
        let machine = machine(2);
        let script =
            format!("{job}; for i in 1 2 3 4; do eval \"$(autocvd -q -t 50) slow &\"; done; wait");
        run(&mut machine.shell(shell, &script)).success();
        assert_eq!(overlaps(&machine), "", "{shell}");
        assert_eq!(runs(&machine), 4, "{shell}");
    }
}

#[test]
fn ids_that_are_printed_twice_are_of_two_gpus() {
    let machine = machine(2);
    let script =
        "a=$(autocvd -q -o -t 0); b=$(autocvd -q -o -t 0); echo $a $b; autocvd -q -o -t 0; echo $?";
    let told = run(&mut machine.shell("bash", script)).success();
    assert_eq!(told, "1 0\n4\n");
}

#[test]
fn a_gpu_is_nobodys_soon_after_the_last_program_of_the_choice_whatever_the_shell_does() {
    for script in [
        "eval $(autocvd -q) alone 0.2; sleep 600",
        "eval $(autocvd -q) alone 0.2 && sleep 600",
        "eval $(autocvd -q) sh -c 'alone 0.2; exit 1'; exec sleep 600",
        "eval $(autocvd -q) alone 0.2; env CUDA_VISIBLE_DEVICES=7 sleep 600",
    ] {
        let machine = machine(1);
        let shell = start(&mut machine.shell("bash", script));
        wait_until("the program runs", || runs(&machine) > 0);
        let began = Instant::now();
        other_users_waiter(&machine).finish().success();
        // Far less than the hold, and than what the shell goes on to.
        assert!(began.elapsed() < Duration::from_secs(30), "{script}");
        drop(shell);
    }
}

#[test]
fn claims_end_when_the_shell_releases_them() {
    for ask in [
        "eval \"$(autocvd -q -s)\"",
        "eval $(autocvd -q)",
        "autocvd -q -o >/dev/null",
    ] {
        let machine = machine(1);
        let check = "bash -c 'autocvd -q -t 0 -- true; echo $?'";
        let script =
            format!("{ask}; unset CUDA_VISIBLE_DEVICES; {check}; autocvd release; {check}");
        let told = run(&mut machine.shell("bash", &script)).success();
        assert_eq!(told, "4\n0\n", "{ask}");
    }
    let machine = machine(1);
    run(machine.autocvd().arg("release")).success();
}

#[test]
fn exported_variables_are_kept_on_a_new_request_only_while_programs_with_them_run() {
    let ask = "eval \"$(autocvd -q -s -t 0)\"; echo $CUDA_VISIBLE_DEVICES";
    let script = format!("{ask}; {ask}; alone 600 & sleep 0.3; {ask}; kill $!; wait; {ask}");
    // A launch waits for its judge for a third of a second.
    unless_starved(|| {
        let told = run(&mut machine(2).shell("bash", &script)).success();
        match told == "1\n1\n0\n1\n" {
            true => Ok(()),
            false => Err(told),
        }
    });
}

#[test]
fn a_claim_is_shown_with_who_holds_it_and_ends_with_its_judge() {
    let machine = machine(1);
    let shell = start(&mut machine.shell("bash", "eval $(autocvd -q) alone 60; :"));
    wait_until("the program runs", || runs(&machine) > 0);
    let claims = || {
        let json = run(machine.autocvd().args(["status", "--json"])).success();
        let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        json["gpus"][0]["claims"]
            .as_array()
            .expect("an array")
            .clone()
    };
    wait_until("it is told", || {
        claims().iter().any(|claim| claim["kind"] == "lease")
    });
    let claim = claims().remove(0);
    assert_eq!(claim["pid"], shell.pid());
    assert!(
        claim["command"]
            .as_str()
            .is_some_and(|command| command.contains("alone")),
        "{claim}"
    );
    let title = format!("autocvd: GPU 0 for bash {}", shell.pid());
    let is_judge = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).trim_end_matches(['\0', ' ']) == title
    };
    let mut judges: Vec<i32> = Vec::new();
    // It tells who holds the claim first, and takes its name then.
    wait_until("the judge has its name", || {
        let all = fs::read_dir("/proc").expect("it is there").flatten();
        let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        judges = pids.filter(is_judge).collect();
        !judges.is_empty()
    });
    assert_eq!(judges.len(), 1);
    let judge = rustix::process::Pid::from_raw(judges[0]).expect("a pid");
    assert!(!is_free(&machine));
    let waiting = start(machine.autocvd().args(["-q", "-i", "600s", "--", "true"]));
    rustix::process::kill_process(judge, Signal::KILL).expect("it runs");
    waiting.finish().success();
    wait_until("it is free", || is_free(&machine));
}

/// A function of bash that waits for the judge of the shell and sets `judge` to its pid.
const FIND_JUDGE: &str = r#"find_judge() {
    until judge=$(grep -lsaz "for bash $$\$" /proc/[0-9]*/cmdline); do :; done
    judge=${judge#/proc/} judge=${judge%/cmdline}
}
"#;

#[test]
fn a_stopped_judge_holds_up_nobody_and_keeps_what_it_holds() {
    let machine = machine(2);
    let script = "eval $(autocvd -q) true; find_judge; kill -STOP $judge; \
                  eval $(autocvd -q -t 0) printenv CUDA_VISIBLE_DEVICES; \
                  kill -CONT $judge";
    let script = format!("{FIND_JUDGE}{script}");
    let began = Instant::now();
    assert_eq!(run(&mut machine.shell("bash", &script)).success(), "0\n");
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "{:?}",
        began.elapsed()
    );
    wait_until("both have ended", || look(&machine).stdout == "1\n");
}

#[test]
fn a_judge_sleeps_while_more_launches_of_its_shell_wait_than_it_may_have_descriptors() {
    let machine = machine(1);
    let script = r#"ulimit -n 40
        x=$(autocvd -q -o --hold 600s)
        for i in $(seq 60); do autocvd -q -i 600s -- true & done
        until [ $(ls "$AUTOCVD_CLAIM_DIR/queue" 2>/dev/null | wc -l) -ge 120 ]; do sleep 0.1; done
        find_judge
        ticks() { cut -d' ' -f14,15 "/proc/$judge/stat" | tr ' ' +; }
        before=$(($(ticks))); sleep 2; after=$(($(ticks)))
        autocvd release; wait
        echo $((after - before))"#;
    let script = format!("{FIND_JUDGE}{script}");
    let ticks = run(&mut machine.shell("bash", &script)).success();
    // A spin takes two hundred.
    let ticks: u32 = ticks.trim().parse().expect("a number");
    assert!(ticks < 50, "{ticks} ticks");
}

#[test]
fn a_judge_without_descriptors_to_spare_takes_no_claim_that_it_would_lose() {
    let machine = machine(4);
    let script = r#"ulimit -n 48
        for i in $(seq 30); do autocvd -q -l -t 0 --only 0 -- sleep 600 & done
        has_begun() { grep -qsx sleep /proc/$1/comm; }
        for job in $(jobs -p); do until has_begun $job; do sleep 0.1; done; done
        for i in 1 2 3; do autocvd -o -t 0 --hold 600s; done
        kill $(jobs -p); autocvd release; wait"#;
    let chosen = run(&mut machine.shell("bash", script)).success();
    assert_eq!(chosen, "3\n2\n1\n");
}

#[test]
fn a_command_substitution_does_not_wait_for_the_judge() {
    let machine = machine(1);
    let script =
        "x=$(autocvd -q -o --hold 600s); echo \"$x\"; autocvd -q -o --hold 600s -t 0 | cat";
    let began = Instant::now();
    assert_eq!(run(&mut machine.shell("bash", script)).success(), "0\n");
    assert!(began.elapsed() < Duration::from_secs(60));
}

#[test]
fn a_thousand_launches_under_a_pid_1_that_does_not_reap_leave_a_zombie_or_two() {
    let machine = machine(1);
    if !common::has_namespaces(&machine) || !common::has("python3") {
        return;
    }
    // Far fewer here: the number of zombies does not grow with them.
    let script = "import subprocess, os
loop = 'for i in $(seq 60); do eval $(autocvd -q -t 50) true; autocvd -q -t 50 -- true; done'
subprocess.run(['bash', '-c', loop], check=True)
stats = [open(f'/proc/{p}/stat').read() for p in os.listdir('/proc') if p.isdigit()]
print(sum(') Z ' in stat for stat in stats))";
    let mut inside = common::in_namespace(&machine, &["python3", "-c", script]);
    let zombies: u32 = run(&mut inside).success().trim().parse().expect("a number");
    assert!(zombies <= 3, "{zombies} zombies");
}
