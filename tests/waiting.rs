//! Waiting: it sleeps, wakes when a GPU may have become free, and the longest-waiting request goes first.
#![cfg(feature = "cli")]

mod common;

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use common::{Job, Machine, Running, start, wait_until};
use rustix::process::Signal;

/// A launch that waits: it is in the queue, and sleeps. Nothing but what it waits for is to wake it.
fn waiter(machine: &Machine, options: &[&str], command: &[&str]) -> Running {
    let waiter = start(machine.autocvd().args(["-q", "-i", "30s"]).args(options).arg("--").args(command));
    settled(machine, waiter.pid());
    waiter
}

/// Waits until a launch has its place in the queue and sleeps.
fn settled(machine: &Machine, pid: u32) {
    wait_until("it has a place in the queue", || has_place(machine, pid));
    asleep(pid);
}

fn has_place(machine: &Machine, pid: u32) -> bool {
    let Ok(places) = fs::read_dir(machine.claims().join("queue")) else { return false };
    let mut names = places.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.any(|name| !name.starts_with('.') && name.ends_with(&format!("-{pid}")))
}

/// Waits until a process sleeps and does not stir.
fn asleep(pid: u32) {
    wait_until("it sleeps", || {
        let before = switches(pid);
        thread::sleep(Duration::from_millis(150));
        before == switches(pid)
    });
}

/// How often a process went to sleep by itself.
fn switches(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")?.trim().parse().ok())
}

/// The CPU time of a process in clock ticks.
fn cpu_ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let fields: Vec<&str> = stat.rsplit_once(") ").expect("well formed").1.split(' ').collect();
    fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime")
}

/// Takes a process off a GPU while it lives on.
fn destroy_context(machine: &Machine, device: u32, job: &Job) {
    fs::remove_file(machine.path().join(format!("procs/{device}/{}", job.pid()))).expect("it was registered");
}

fn runs(waiter: &Running, program: &str) -> bool {
    fs::read_to_string(format!("/proc/{}/comm", waiter.pid())).is_ok_and(|comm| comm.trim() == program)
}

#[test]
fn a_newcomer_that_lets_a_waiter_pass_sleeps_on() {
    let machine = Machine::gpus(1);
    let job = machine.job(0);
    let first = waiter(&machine, &[], &["sleep", "60"]);
    // Nothing wakes the first one but the newcomer that finds the GPU free.
    destroy_context(&machine, 0, &job);
    let newcomer = waiter(&machine, &[], &["true"]);
    assert!(runs(&first, "sleep"));
    thread::sleep(Duration::from_millis(600));
    machine.forget_calls();
    let (before, ticks) = (switches(newcomer.pid()), cpu_ticks(newcomer.pid()));
    thread::sleep(Duration::from_secs(1));
    assert_eq!(machine.calls(), [] as [&str; 0]);
    assert_eq!(switches(newcomer.pid()), before);
    assert!(cpu_ticks(newcomer.pid()) - ticks <= 1);
}

#[test]
fn a_dead_process_that_the_driver_still_lists_costs_a_few_looks_not_a_core() {
    let machine = Machine::gpus(1);
    let job = machine.job_that(0, "C 1000 2500");
    let waiting = waiter(&machine, &[], &["true"]);
    machine.forget_calls();
    // It stays a zombie: this process does not wait for it.
    rustix::process::kill_process(rustix::process::Pid::from_raw(job.pid() as i32).expect("a pid"), Signal::KILL)
        .expect("our own child");
    let dead = Instant::now();
    waiting.finish().success();
    assert!(dead.elapsed() >= Duration::from_millis(2400), "{:?}", dead.elapsed());
    assert!(dead.elapsed() < Duration::from_secs(15), "the looks after an exit go on for seconds");
    let looks = machine.calls().iter().filter(|call| call.contains("RunningProcesses")).count();
    assert!(looks <= 20, "{looks} looks");
}
