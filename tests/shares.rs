//! Shares: several launches on one GPU, each with a part of its memory, and never more than there
//! is.
#![cfg(feature = "cli")]

mod common;

use std::fs;

use common::{
    AUTOCVD, Machine, Outcome, Running, is_free, look, run, start, try_once, unless_starved,
    wait_until,
};
use serde_json::{Value, json};

const GIB: u64 = 1 << 30;

/// `hold GIB SECONDS`: allocates so much memory on its GPU, says what it was given, and becomes
/// `sleep`.
const HOLD: &str = r#"#!/bin/sh
for id in $(echo "$CUDA_VISIBLE_DEVICES" | tr , ' '); do
    mkdir -p "$FAKE_NVML/procs/$id"
    echo "C $(($1 << 30))" >"$FAKE_NVML/procs/$id/$$.new" || exit 65
    mv "$FAKE_NVML/procs/$id/$$.new" "$FAKE_NVML/procs/$id/$$" || exit 65
done
echo "$CUDA_VISIBLE_DEVICES ${AUTOCVD_MEMORY-whole}"
exec sleep "$2" >/dev/null 2>&1
"#;

/// GPUs of 40 GiB.
fn machine(gpus: usize) -> Machine {
    let gpu = json!({ "memory": { "total": 40 * GIB, "reserved": 0 } });
    let machine = Machine::described(json!({ "gpus": vec![gpu; gpus] }));
    machine.install("hold", HOLD);
    machine
}

/// A share of so many GiB whose program holds so many; it runs.
fn share(machine: &Machine, options: &[&str], gib: u64, held: u64) -> Running {
    let size = format!("{gib}GiB");
    let running = start(
        machine
            .autocvd()
            .args(["-q", "--share", "-m", &size])
            .args(options)
            .args(["--", "hold", &held.to_string(), "600"]),
    );
    wait_until("it runs, and is told of", || {
        running.stdout().ends_with('\n') && common::tells_of(&machine.claims(), running.pid())
    });
    running
}

/// The GPU and the memory that it was given.
fn given(running: &Running) -> String {
    running.stdout().trim().to_owned()
}

/// One look: a share of so many GiB.
fn look_for(machine: &Machine, gib: u64, options: &[&str]) -> Outcome {
    let size = format!("{gib}GiB");
    let mut command = machine.autocvd();
    try_once(
        command
            .args(["--share", "-m", &size, "-t", "0"])
            .args(options),
    )
}

fn status(machine: &Machine) -> Value {
    let json = run(machine.autocvd().args(["status", "--json"])).success();
    serde_json::from_str(&json).expect("JSON")
}

#[test]
fn two_shares_of_15_gib_go_on_a_gpu_of_40_and_a_third_does_not() {
    for held in [0, 15] {
        let machine = machine(1);
        let first = share(&machine, &[], 15, held);
        assert_eq!(given(&first), format!("0 {}", 15 * GIB));
        let second = share(&machine, &[], 15, held);
        assert_eq!(given(&second), format!("0 {}", 15 * GIB));
        let third = look_for(&machine, 15, &[]);
        third.tells("a smaller share");
        assert_eq!(third.code, Some(4), "{third:#?}");
        third.tells("shared, only 10.0 GiB of it left");
        assert_eq!(look_for(&machine, 10, &[]).success(), "0\n");
        // Whole GPUs are for those who are alone on them.
        let whole = run(machine.autocvd().args(["-t", "0", "--", "true"]));
        assert_eq!(whole.code, Some(4));
        whole.tells("shared by pid");
        drop((first, second));
        wait_until("it is free", || is_free(&machine));
    }
}

#[test]
fn least_used_shares_do_not_wait_and_never_overlap() {
    let machine = machine(1);
    let jobs: Vec<Running> = (0..4)
        .map(|_| {
            let line = [
                "-q", "-l", "--share", "-m", "15GiB", "--", "hold", "15", "600",
            ];
            start(machine.autocvd().args(line))
        })
        .collect();
    let (mut running, mut refused) = (Vec::new(), 0);
    for mut job in jobs {
        wait_until("it runs or has ended", || {
            job.stdout().ends_with('\n') || !job.is_running()
        });
        match job.is_running() {
            true => running.push(job),
            false => {
                refused += 1;
                let outcome = job.finish();
                assert_eq!(outcome.code, Some(4), "{outcome:#?}");
                outcome.tells("try again later");
            }
        }
    }
    assert_eq!((running.len(), refused), (2, 2));
}

#[test]
fn the_fullest_gpu_that_has_room_goes_first() {
    let machine = machine(3);
    let first = share(&machine, &[], 10, 0);
    assert_eq!(given(&first), format!("2 {}", 10 * GIB));
    let second = share(&machine, &["--only", "0"], 25, 25);
    assert_eq!(look_for(&machine, 5, &[]).success(), "0\n");
    assert_eq!(look_for(&machine, 20, &[]).success(), "2\n");
    assert_eq!(look_for(&machine, 35, &[]).success(), "1\n");
    assert_eq!(look_for(&machine, 5, &["-n", "2"]).success(), "0,2\n");
    // The whole one is that which is free.
    assert_eq!(look(&machine).stdout, "1\n");
    drop((first, second));
}

#[test]
fn a_stranger_or_a_whole_launch_keeps_shares_away() {
    let machine = machine(2);
    let waiter = || {
        let mut launch = machine.autocvd();
        launch
            .args(["-q", "-i", "600s", "--share", "-m", "1GiB"])
            .args(["--", "printenv", "CUDA_VISIBLE_DEVICES"]);
        launch
    };
    let mut stranger = machine.job_that("1", &format!("C {GIB}"));
    let whole = common::hold(machine.autocvd().arg("-q"));
    let refused = look_for(&machine, 1, &[]);
    assert_eq!(refused.code, Some(4), "{refused:#?}");
    let waiting = start(&mut waiter());
    stranger.kill();
    assert_eq!(waiting.finish().success(), "1\n");
    // A stranger beside a share.
    let shared = share(&machine, &[], 5, 0);
    let mut beside = machine.job_that("1", &format!("C {GIB}"));
    let refused = look_for(&machine, 1, &[]);
    assert_eq!(refused.code, Some(4), "{refused:#?}");
    refused.tells("of no share");
    assert_eq!(
        look_for(&machine, 1, &["--tolerate", "2GiB"]).success(),
        "1\n"
    );
    let waiting = start(&mut waiter());
    beside.kill();
    assert_eq!(waiting.finish().success(), "1\n");
    drop((whole, shared));
}

#[test]
fn a_share_that_holds_more_than_it_asked_for_is_told_of() {
    let machine = machine(1);
    let greedy = share(&machine, &[], 10, 30);
    let next = look_for(&machine, 5, &[]);
    next.tells("holds 30.0 GiB, more than its share of 10.0 GiB");
    assert_eq!(next.stdout, "0\n");
    assert_eq!(look_for(&machine, 11, &[]).code, Some(4));
    let status = run(machine.autocvd().arg("status")).success();
    let words = status.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(
        words.contains("more than its share of 10.0 GiB"),
        "{status}"
    );
    drop(greedy);
}

#[test]
fn status_shows_shares_and_what_is_left() {
    let machine = machine(2);
    let running = share(&machine, &[], 15, 12);
    let shown = status(&machine);
    let gpu = &shown["gpus"][1];
    assert_eq!(gpu["state"], "shared");
    assert_eq!(gpu["shareable"], 25 * GIB);
    let claim = &gpu["claims"][0];
    assert_eq!(
        (&claim["kind"], &claim["memory"]),
        (&json!("share"), &json!(15 * GIB))
    );
    assert_eq!(claim["used_memory"], 12 * GIB);
    assert_eq!(claim["pid"], running.pid());
    assert_eq!(gpu["processes"][0]["in_share"], true);
    let short = run(machine.autocvd().args(["status", "--short"])).success();
    assert_eq!(short, "1/2 free, 25.0 GiB left of 1 shared\n");
    let table = run(machine.autocvd().arg("status")).success();
    assert!(
        table.contains("shared") && table.contains("25.0 GiB left"),
        "{table}"
    );
    // What was recorded is decided alike.
    let recording = machine.path().join("now.json");
    fs::write(&recording, shown.to_string()).expect("our own directory");
    let from = |line: &[&str]| {
        let mut command = machine.autocvd();
        command.args(["-q", "-o", "--from"]).arg(&recording);
        run(command.args(line))
    };
    assert_eq!(from(&["--share", "-m", "25GiB"]).success(), "1\n");
    assert_eq!(from(&["--share", "-m", "26GiB"]).success(), "0\n");
    assert_eq!(from(&[]).success(), "0\n");
    assert_eq!(from(&["-n", "2"]).code, Some(4));
    assert_eq!(from(&["--share", "-m", "41GiB"]).code, Some(3));
    assert_eq!(
        from(&["--no-claim", "-n", "2"]).code,
        Some(4),
        "one computes"
    );
}

#[test]
fn every_form_says_how_much_memory_there_is() {
    let machine = machine(1);
    let memory = format!("AUTOCVD_MEMORY={}", 5 * GIB);
    let printed = |line: &[&str]| {
        let mut command = machine.autocvd();
        command.args(["-q", "--share", "-m", "5GiB", "--no-claim"]);
        run(command.args(line)).success()
    };
    let ids = "CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=0";
    assert_eq!(printed(&[]), format!("{ids} {memory}\n"));
    assert_eq!(printed(&["-s"]), format!("export {ids} {memory}\n"));
    assert_eq!(printed(&["-o"]), "0\n");
    assert_eq!(
        printed(&["--format", "docker"]),
        format!("--gpus \"device=0\" --env {memory}\n")
    );
    assert_eq!(
        printed(&["--format", "cdi"]),
        format!("--device nvidia.com/gpu=0 --env {memory}\n")
    );
    let csh = printed(&["-s", "--format", "csh"]);
    assert!(
        csh.contains(&format!("setenv AUTOCVD_MEMORY {} ;", 5 * GIB)),
        "{csh}"
    );
    let json: Value = serde_json::from_str(&printed(&["--json"])).expect("JSON");
    assert_eq!(json["env"]["AUTOCVD_MEMORY"], (5 * GIB).to_string());
    // What a share was of means nothing on a whole GPU.
    let mut whole = machine.autocvd();
    whole
        .args(["-q", "--no-claim", "-s"])
        .env("AUTOCVD_MEMORY", "5");
    assert_eq!(
        run(&mut whole).success(),
        format!("export {ids} AUTOCVD_MEMORY=\n")
    );
    let script = "eval \"$(autocvd -q -s --share -m 1GiB)\"; eval \"$(autocvd -q -s)\"; \
                  printenv AUTOCVD_MEMORY";
    assert_eq!(run(&mut machine.shell("bash", script)).success(), "\n");
}

#[test]
fn a_share_needs_its_size() {
    let machine = machine(1);
    let refused = run(machine.autocvd().args(["-o", "--share"]));
    assert_eq!(refused.code, Some(2), "{refused:#?}");
    refused.tells("--share -m 15GiB");
    let refused = run(machine.autocvd().arg("-o").env("AUTOCVD_SHARE", "1"));
    assert_eq!(refused.code, Some(2), "{refused:#?}");
    refused.tells("AUTOCVD_SHARE");
    let refused = run(machine.autocvd().args(["-o", "--share", "-m", "0GiB"]));
    assert_eq!(refused.code, Some(2), "{refused:#?}");
    let by_variable = run(machine.autocvd().args(["-q", "-o", "--no-claim"]).envs([
        ("AUTOCVD_SHARE", "yes"),
        ("AUTOCVD_MIN_FREE_MEMORY", "5GiB"),
    ]));
    assert_eq!(by_variable.success(), "0\n");
}

#[test]
fn jobs_of_one_shell_have_shares_of_their_own_that_end_with_each() {
    let machine = machine(1);
    let job = |gib, seconds| {
        format!("eval \"$(autocvd -q --share -m {gib}GiB) hold {gib} {seconds} &\"; sleep 0.3; ")
    };
    let script = job(15, 1) + &job(15, 600) + "wait";
    let shell = start(&mut machine.shell("bash", &script));
    wait_until("both run", || shell.stdout().lines().count() == 2);
    wait_until("the first has ended, and its share with it", || {
        look_for(&machine, 25, &[]).code == Some(0)
    });
    assert_eq!(look_for(&machine, 26, &[]).code, Some(4));
    drop(shell);
    wait_until("it is free", || is_free(&machine));
}

#[test]
fn inside_a_share_launches_have_that_share_among_themselves() {
    let machine = machine(2);
    let script = "autocvd -q --share -m 8GiB -- hold 8 600 >/dev/null & \
                  until [ $(ls $FAKE_NVML/procs/1 | grep -vc new) = 2 ]; do sleep 0.05; done; \
                  autocvd -q -t 0 -- printenv AUTOCVD_MEMORY; echo $?; \
                  autocvd -q --share -m 13GiB -t 0 -- true; echo $?; \
                  autocvd -q --share -m 12GiB -t 0 -- printenv AUTOCVD_MEMORY; \
                  autocvd -q -m 21GiB -- true; echo $?; \
                  kill $!; wait; autocvd -q -- printenv CUDA_VISIBLE_DEVICES AUTOCVD_MEMORY";
    let beside = share(&machine, &[], 20, 20);
    assert_eq!(given(&beside), format!("1 {}", 20 * GIB));
    let outer = start(
        machine
            .autocvd()
            .args(["-q", "--share", "-m", "20GiB", "--", "bash", "-c", script]),
    );
    let told = outer.finish().success();
    let lines: Vec<&str> = told.lines().collect();
    let bytes = |gib: u64| (gib * GIB).to_string();
    assert_eq!(lines, ["4", "4", &*bytes(12), "3", "1", &bytes(20)]);
    drop(beside);
}

#[test]
fn what_a_command_leaves_behind_belongs_to_its_share() {
    let machine = machine(1);
    let script = "setsid hold 5 600 & \
                  until ls $FAKE_NVML/procs/0 2>/dev/null | grep -qv new; do sleep 0.05; done";
    let line = ["-q", "--share", "-m", "5GiB", "--", "bash", "-c", script];
    let told = run(machine.autocvd().args(line)).success();
    let _ = told;
    assert_eq!(look_for(&machine, 35, &[]).success(), "0\n");
    assert_eq!(look_for(&machine, 36, &[]).code, Some(4));
    let shown = status(&machine);
    let orphan = shown["gpus"][0]["processes"][0]["pid"]
        .as_i64()
        .expect("a pid");
    let orphan = rustix::process::Pid::from_raw(orphan as i32).expect("a pid");
    rustix::process::kill_process(orphan, rustix::process::Signal::KILL).expect("it runs");
    wait_until("it is free", || is_free(&machine));
}

#[test]
fn shares_count_across_pid_namespaces() {
    let machine = machine(1);
    if !common::has_namespaces(&machine) {
        return;
    }
    let line = [
        AUTOCVD,
        "-q",
        "--share",
        "-m",
        "10GiB",
        "--",
        "sh",
        "-c",
        "echo; sleep 600",
    ];
    let inside = start(&mut common::in_namespace(&machine, &line));
    wait_until("the COMMAND inside runs", || inside.stdout() == "\n");
    assert_eq!(look_for(&machine, 30, &[]).success(), "0\n");
    assert_eq!(look_for(&machine, 31, &[]).code, Some(4));
    assert!(!is_free(&machine));
    // What it holds is seen, but not whose it is: as much as its share may be its own.
    let mut seen = machine.job_that("0", &format!("C {}", 10 * GIB));
    assert_eq!(look_for(&machine, 20, &[]).success(), "0\n");
    assert_eq!(look_for(&machine, 21, &[]).code, Some(4));
    seen.kill();
    let mut stranger = machine.job_that("0", &format!("C {}", 11 * GIB));
    assert_eq!(look_for(&machine, 1, &[]).code, Some(4));
    stranger.kill();
    drop(inside);
    wait_until("its claim has ended", || is_free(&machine));
}

#[test]
fn mig_devices_are_shared_as_gpus_are() {
    let machine = Machine::described(json!({ "gpus": [
        { "mig": { "enabled": true, "devices": [{}, {}] } }
    ] }));
    machine.install("hold", HOLD);
    let uuid = |running: &Running| given(running).split(' ').next().map(str::to_owned);
    let first = share(&machine, &[], 4, 4);
    let second = share(&machine, &[], 4, 4);
    assert_eq!(uuid(&first), uuid(&second));
    let third = share(&machine, &[], 4, 4);
    assert_ne!(uuid(&first), uuid(&third));
    let both = look_for(&machine, 1, &["-n", "2"]);
    assert_eq!(both.code, Some(3), "{both:#?}");
    drop((first, second, third));
}

#[test]
fn an_exclusive_gpu_has_one_share_at_most() {
    let gpu = json!({ "memory": { "total": 40 * GIB }, "compute_mode": "EXCLUSIVE_PROCESS" });
    let machine = Machine::described(json!({ "gpus": [gpu] }));
    machine.install("hold", HOLD);
    let running = share(&machine, &[], 5, 5);
    let refused = look_for(&machine, 5, &[]);
    assert_eq!(refused.code, Some(4), "{refused:#?}");
    refused.tells("a single process");
    drop(running);
}

#[test]
fn shares_and_whole_gpus_are_given_in_the_order_in_which_they_were_asked_for() {
    unless_starved(|| shares_and_whole_gpus_take_turns(&machine(1)));
}

fn shares_and_whole_gpus_take_turns(machine: &Machine) -> Result<(), String> {
    let first = common::hold(machine.autocvd().arg("-q"));
    let waiter = |name: &str, options: &[&str], wanted: &str| {
        let script = format!("echo {name} >>$FAKE_NVML/order; sleep 0.1");
        let mut command = machine.autocvd();
        command.args(["-i", "600s"]).args(options);
        let waiting = start(command.args(["--", "sh", "-c", &script]));
        let line = format!("autocvd: waiting for {wanted}");
        wait_until("it waits", || waiting.stderr().starts_with(&line));
        waiting
    };
    // None of them fits beside another one.
    let large = ["--share", "-m", "25GiB"];
    let waiting = [
        waiter("1", &large, "a share of 25.0 GiB; 0 of 1 with room"),
        waiter("2", &[], "a GPU; 2nd in line; 0 of 1 free"),
        waiter("3", &large, "a share of 25.0 GiB; 3rd in line"),
        waiter("4", &["--share", "-m", "40GiB"], "a share of 40.0 GiB"),
        waiter("5", &[], "a GPU"),
        waiter("6", &large, "a share of 25.0 GiB"),
    ];
    drop(first);
    for one in waiting {
        one.finish().success();
    }
    let order = fs::read_to_string(machine.path().join("order")).expect("all ran");
    match order == "1\n2\n3\n4\n5\n6\n" {
        true => Ok(()),
        false => Err(order),
    }
}

#[test]
fn a_free_gpu_is_left_to_an_earlier_request_for_a_whole_one() {
    let machine = machine(2);
    // The one that waits wants both, and one is shared.
    let shared = share(&machine, &[], 5, 0);
    let line = [
        "-i",
        "600s",
        "-n",
        "2",
        "--",
        "sh",
        "-c",
        "echo whole; sleep 600",
    ];
    let whole = start(machine.autocvd().args(line));
    wait_until("it waits", || whole.stderr().contains("waiting for 2 GPUs"));
    // A request that cannot yet be met holds up no other.
    assert_eq!(look_for(&machine, 1, &[]).success(), "1\n");
    drop(shared);
    wait_until("it runs", || whole.stdout() == "whole\n");
    assert_eq!(look_for(&machine, 1, &[]).code, Some(4));
}

#[test]
fn a_request_that_has_lost_patience_gets_no_new_neighbours_on_what_it_needs() {
    for options in [&[][..], &["--share", "-m", "38GiB"]] {
        let machine = machine(1);
        let first = share(&machine, &[], 5, 5);
        let second = share(&machine, &[], 5, 5);
        let mut command = machine.autocvd();
        command
            .env("AUTOCVD_PATIENCE", "0")
            .args(["-i", "600s"])
            .args(options);
        let large = start(command.args(["--", "sh", "-c", "echo large; sleep 600"]));
        wait_until("it waits", || large.stderr().contains("waiting for a"));
        let refused = look_for(&machine, 1, &[]);
        assert_eq!(refused.code, Some(4), "{refused:#?}");
        refused.tells("kept for");
        let shown = status(&machine);
        let reason = shown["gpus"][0]["reason"].as_str().expect("a text");
        assert!(
            reason.contains("shared by") && reason.contains("kept for"),
            "{reason}"
        );
        drop(first);
        assert_eq!(look_for(&machine, 1, &[]).code, Some(4));
        drop(second);
        wait_until("it runs", || large.stdout() == "large\n");
    }
}

/// A machine that other users can use too; says so where there are none.
fn shared_machine() -> Option<Machine> {
    if !rustix::process::geteuid().is_root() {
        common::skip("it takes root to be several users");
        return None;
    }
    let machine = machine(1);
    machine.private_library();
    common::copy_program(AUTOCVD, &machine.path().join("autocvd"));
    fs::create_dir(machine.path().join("procs/0")).expect("our own directory");
    for (name, mode) in [
        ("", 0o777),
        ("procs/0", 0o777),
        ("autocvd", 0o755),
        ("procs", 0o777),
        ("calls", 0o666),
    ] {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        fs::set_permissions(machine.path().join(name), mode).expect("our own");
    }
    Some(machine)
}

/// The program as another user, with these words in front of it.
fn as_nobody(machine: &Machine, before: &[&str], line: &[&str]) -> std::process::Command {
    let mut words: Vec<&str> = before.to_vec();
    words.extend([
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
    ]);
    let mut command = machine.command(words[0]);
    command
        .args(&words[1..])
        .arg(machine.path().join("autocvd"));
    command.args(line).current_dir("/");
    command
}

#[test]
fn users_share_a_gpu() {
    let Some(machine) = shared_machine() else {
        return;
    };
    let own = share(&machine, &[], 15, 15);
    let line = ["-q", "--share", "-m", "15GiB", "--", "hold", "15", "600"];
    let other = start(&mut as_nobody(&machine, &[], &line));
    wait_until("it runs", || other.stdout().ends_with('\n'));
    assert_eq!(look_for(&machine, 10, &[]).success(), "0\n");
    let line = ["-o", "--share", "-m", "11GiB", "-t", "0"];
    assert_eq!(run(&mut as_nobody(&machine, &[], &line)).code, Some(4));
    drop((own, other));
}

#[test]
fn where_proc_hides_other_users_their_shares_are_kept_in_full() {
    let Some(machine) = shared_machine() else {
        return;
    };
    if !common::has_mount_namespaces(&machine) {
        return;
    }
    let own = share(&machine, &[], 10, 8);
    // A mount of its own: a remount would hide processes on the whole machine, and for ever.
    let script = "mount -t proc -o hidepid=2 proc /proc && exec \"$@\"";
    let before = ["unshare", "--mount", "sh", "-c", script, "sh"];
    let look = |size: &str| {
        let line = ["-o", "--share", "-m", size, "-t", "0", "--hold", "0"];
        run(&mut as_nobody(&machine, &before, &line))
    };
    let fits = look("20GiB");
    if fits.stderr.contains("mount") {
        common::skip("/proc cannot be mounted with hidepid here");
        return;
    }
    assert_eq!(fits.stdout, "0\n", "{fits:#?}");
    wait_until("its claim has ended", || {
        look_for(&machine, 30, &[]).code == Some(0)
    });
    assert_eq!(look("31GiB").code, Some(4));
    drop(own);
}

#[test]
fn a_lease_inside_a_share_is_of_that_share() {
    let machine = machine(1);
    let beside = share(&machine, &[], 20, 20);
    let script = "eval \"$(autocvd -q --share -m 4GiB) hold 4 1 &\"; \
                  eval \"$(autocvd -q -s --share -m 6GiB -t 0)\"; echo $AUTOCVD_MEMORY; \
                  autocvd -q --share -m 7GiB -t 0 -- true; echo $?; wait";
    let line = ["-q", "--share", "-m", "12GiB", "--", "bash", "-c", script];
    let told = run(machine.autocvd().args(line)).success();
    let mut lines: Vec<&str> = told.lines().collect();
    lines.sort_unstable();
    let held = format!("0 {}", 4 * GIB);
    let own = (6 * GIB).to_string();
    assert_eq!(lines, [&*held, "4", &*own]);
    drop(beside);
}
