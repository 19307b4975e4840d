//! A sick GPU is always the free one: launches take it last for a while after COMMANDs have failed
//! on it.
#![cfg(feature = "cli")]

mod common;

use std::fs;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use common::{Machine, run};
use serde_json::Value;

/// A job that fails on GPU 1, and says where it ran.
const JOB: &str = r#"#!/bin/sh
echo "$CUDA_VISIBLE_DEVICES"
[ "$CUDA_VISIBLE_DEVICES" != 1 ]
"#;

/// Two GPUs, and `job` on PATH. GPU 1 goes first.
fn machine() -> Machine {
    let machine = Machine::gpus(2);
    machine.install("job", JOB);
    machine
}

/// Runs a program on a GPU and returns where it ran.
fn launch(machine: &Machine, command: &[&str]) -> String {
    let words = [&["-q", "-t", "20", "--"], command].concat();
    let ran = run(machine.autocvd().args(words)).stdout;
    common::wait_until_unclaimed(machine);
    ran
}

/// The lock file of GPU 1.
fn lock_file(machine: &Machine) -> PathBuf {
    let name = "GPU-10000000-0000-0000-0000-000000000001.lock";
    machine.claims().join(name)
}

fn unix_time() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.expect("after 1970").as_secs()
}

/// Whether the kernel tells how a process has ended that is no child (Linux 6.15); says so where
/// not.
fn tells_exits() -> bool {
    let release = rustix::system::uname();
    let release = release.release().to_string_lossy();
    let mut numbers = release.split(['.', '-']).map(str::parse::<u32>);
    let version = (numbers.next(), numbers.next());
    let new = matches!(version, (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= (6, 15));
    if !new {
        common::skip("the kernel tells no exit codes by pidfds (it takes Linux 6.15)");
    }
    new
}

#[test]
fn a_sweep_loses_two_jobs_to_a_sick_gpu_and_no_more() {
    if !tells_exits() {
        return;
    }
    let machine = machine();
    let script = "for i in $(seq 20); do autocvd -q -- job; done; true";
    let ran = run(&mut machine.shell("bash", script)).success();
    // A judge that has not let go of a GPU yet sends the next job to the other one.
    let lost = ran.lines().filter(|gpu| *gpu == "1").count();
    assert_eq!((ran.lines().count(), lost), (20, 2), "{ran}");
    // Others know it too.
    common::wait_until("the last job has let go", || {
        let short = run(machine.autocvd().args(["status", "--short"]));
        short.stdout.starts_with("2/2 free")
    });
    assert_eq!(launch(&machine, &["job"]), "0\n");
}

#[test]
fn the_reason_is_shown_and_a_recording_decides_alike() {
    let machine = machine();
    fs::create_dir(machine.claims()).expect("our own directory");
    fs::write(lock_file(&machine), format!("2 {}\n", unix_time())).expect("our own file");
    let recorded = run(machine.autocvd().args(["status", "--json"])).success();
    let status: Value = serde_json::from_str(&recorded).expect("JSON");
    assert_eq!(status["gpus"][1]["state"], "free", "{status:#}");
    let until = status["gpus"][1]["suspect_until"].as_u64().expect("a time");
    assert!(until.abs_diff(unix_time() + 600) < 60, "{until}");
    assert!(status["gpus"][0].get("suspect_until").is_none());
    let table = run(machine.autocvd().arg("status").env("COLUMNS", "160")).success();
    for shown in [table, status["gpus"][1]["reason"].to_string()] {
        assert!(
            shown.contains("comes last: 2 commands in a row failed"),
            "{shown}"
        );
    }
    let verbose = run(machine
        .autocvd()
        .args(["-v", "-o", "--from", "-"])
        .stdin(file(&machine, &recorded)));
    assert_eq!(verbose.stdout, "0\n", "{verbose:#?}");
    // What is noted with the claims is ignored with them.
    for from in [&[][..], &["--from", "-"]] {
        let mut unclaimed = machine.autocvd();
        unclaimed.args(["-o", "--no-claim"]).args(from);
        let unclaimed = run(unclaimed.stdin(file(&machine, &recorded)));
        assert_eq!(unclaimed.success(), "1\n");
    }
    verbose.tells("passed over GPU 1: free, comes last");
    // It is given all the same where there is no other.
    for args in [&["-n", "2"][..], &["--only", "1"]] {
        let job = ["--", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES; exit 127"];
        let given = run(machine.autocvd().arg("-v").args(args).args(job));
        assert!(given.stdout.contains('1'), "{given:#?}");
        given.tells("there was no other");
    }
    let least_used = run(machine.autocvd().args(["-o", "-l", "--hold", "0"]));
    assert_eq!(least_used.success(), "0\n");
}

/// The judge that holds the claim of a COMMAND `sleep` on GPU 0.
fn judge_of(holder: &common::Running) -> rustix::process::Pid {
    let title = format!("autocvd: GPU 0 for sleep {}", holder.pid());
    let find = || {
        let pids = fs::read_dir("/proc").expect("it is there").flatten();
        let mut pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        pids.find(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.starts_with(title.as_bytes())
        })
    };
    common::wait_until("its judge has a name", || find().is_some());
    let pid = find().expect("it runs until the COMMAND has ended");
    rustix::process::Pid::from_raw(pid).expect("a pid")
}

#[test]
fn a_gpu_that_comes_last_is_given_only_where_no_claim_is_about_to_end() {
    let machine = machine();
    fs::create_dir(machine.claims()).expect("our own directory");
    fs::write(lock_file(&machine), format!("2 {}\n", unix_time())).expect("our own file");
    let holder = common::hold(machine.autocvd().arg("-q"));
    let judge = judge_of(&holder);
    // The COMMAND has ended, and its claim lasts.
    rustix::process::kill_process(judge, rustix::process::Signal::STOP).expect("it runs");
    drop(holder);
    machine.forget_calls();
    let outcome =
        run(machine
            .autocvd()
            .args(["-t", "0", "--", "printenv", "CUDA_VISIBLE_DEVICES"]));
    assert_eq!(outcome.stdout, "1\n", "{outcome:#?}");
    let is_look = |call: &&String| call.starts_with("nvmlDeviceGetComputeRunningProcesses");
    let looks = machine.calls().iter().filter(is_look).count();
    assert!(looks > 20, "it looks again for 50 ms: {looks}");
    assert!(
        outcome
            .stderr
            .starts_with("autocvd: warning: GPU 1 comes last: 2 commands in a row failed")
            && outcome.stderr.ends_with("the others are in use\n"),
        "{outcome:#?}"
    );
    rustix::process::kill_process(judge, rustix::process::Signal::CONT).expect("it runs");
    common::wait_until("the claim has ended", || {
        launch(&machine, &["job"]) == "0\n"
    });
    // Where there is nothing else to choose, nothing is to be said of it.
    let alone = run(machine.autocvd().args(["--only", "1", "--", "true"]));
    assert!(!alone.stderr.contains("comes last"), "{alone:#?}");
}

fn file(machine: &Machine, text: &str) -> fs::File {
    let path = machine.path().join("recorded.json");
    fs::write(&path, text).expect("our own file");
    fs::File::open(path).expect("our own file")
}

#[test]
fn one_that_works_in_between_and_what_a_user_ends_are_no_signs_of_a_sick_gpu() {
    if !tells_exits() {
        return;
    }
    let machine = machine();
    let failures = || fs::read_to_string(lock_file(&machine)).expect("it was made");
    assert_eq!(launch(&machine, &["job"]), "1\n");
    common::wait_until("that is noted", || failures().starts_with("1 "));
    assert_eq!(
        launch(&machine, &["printenv", "CUDA_VISIBLE_DEVICES"]),
        "1\n"
    );
    common::wait_until("that is noted", || failures().is_empty());
    for _ in 0..3 {
        let job = common::hold(machine.autocvd().arg("-q"));
        job.signal(rustix::process::Signal::INT);
        job.finish();
        common::wait_until_unclaimed(&machine);
        launch(&machine, &["sh", "-c", "exit 143"]);
        launch(&machine, &["sh", "-c", "exit 127"]);
    }
    assert_eq!(launch(&machine, &["job"]), "1\n");
    common::wait_until("that is noted", || failures().starts_with("1 "));
    assert_eq!(launch(&machine, &["job"]), "1\n");
    common::wait_until("that is noted", || failures().starts_with("2 "));
    assert_eq!(launch(&machine, &["job"]), "0\n");
}

#[test]
fn what_is_old_or_no_record_changes_nothing() {
    let machine = machine();
    fs::create_dir(machine.claims()).expect("our own directory");
    let now = unix_time();
    for text in [
        format!("2 {}\n", now - 601),
        format!("2 {}\n", now + 1000),
        format!("1 {now}\n"),
        "\0".repeat(1 << 20),
        "9".repeat(100_000),
        "2 -1\n".to_owned(),
    ] {
        fs::write(lock_file(&machine), &text).expect("our own file");
        let outcome = run(machine.autocvd().args(["-o", "-t0", "--hold", "0"]));
        assert_eq!(outcome.success(), "1\n", "{:.20}", text);
        common::wait_until_unclaimed(&machine);
    }
}
