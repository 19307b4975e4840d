//! The queue: large requests do not starve, and a GPU that is handed over wakes those whom it
//! concerns.
#![cfg(feature = "cli")]

mod common;

use std::fs;
use std::process::Command;
use std::thread;
use std::time::Duration;

use common::{
    Job, Machine, Running, asleep, run, start, switches, try_once, unless_starved, wait_until,
};
use rustix::process::Signal;
use serde_json::{Value, json};

/// A launch that waits: it is in the queue, and sleeps.
fn waiter(machine: &Machine, options: &[&str], command: &[&str]) -> Running {
    queued(machine, &mut machine.autocvd(), options, command)
}

/// As [`waiter`], and GPUs are kept for it from now on.
fn gatherer(machine: &Machine, options: &[&str], command: &[&str]) -> Running {
    let mut launch = machine.autocvd();
    launch.env("AUTOCVD_PATIENCE", "0");
    queued(machine, &mut launch, options, command)
}

fn queued(machine: &Machine, launch: &mut Command, options: &[&str], command: &[&str]) -> Running {
    launch
        .env("AUTOCVD_INTERVAL", "10min")
        .arg("-q")
        .args(options)
        .arg("--")
        .args(command);
    let waiter = start(launch);
    wait_until("it has a place in the queue", || {
        position(machine, waiter.pid()).is_some()
    });
    asleep(waiter.pid());
    waiter
}

/// The name of the position of a process in the queue.
fn position(machine: &Machine, pid: u32) -> Option<String> {
    let names = fs::read_dir(machine.claims().join("queue")).ok()?.flatten();
    let mut names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.find(|name| name.ends_with(&format!("-{pid}")))
}

fn runs(waiter: &Running, program: &str) -> bool {
    fs::read_to_string(format!("/proc/{}/comm", waiter.pid()))
        .is_ok_and(|comm| comm.trim() == program)
}

fn status_json(machine: &Machine) -> Value {
    let printed = run(machine.autocvd().args(["status", "--json"])).success();
    serde_json::from_str(&printed).expect("JSON")
}

/// What a launch gets that looks once.
fn once(machine: &Machine, options: &[&str]) -> common::Outcome {
    try_once(machine.autocvd().args(["-t", "0"]).args(options))
}

/// A COMMAND that holds this GPU until it is dropped.
fn holder(machine: &Machine, gpu: &str) -> Running {
    common::hold(machine.autocvd().args(["-q", "--only", gpu]))
}

// Patience.

#[test]
fn a_launch_that_looks_once_takes_what_is_free_though_others_wait_for_it() {
    let gets_it = |_| {
        let machine = Machine::gpus(1);
        let job = machine.job(0);
        let _first = waiter(&machine, &[], &["sleep", "600"]);
        // The context ends and its process lives on: nothing tells the one that waits.
        let context = machine.path().join(format!("procs/0/{}", job.pid()));
        fs::remove_file(context).expect("it was registered");
        once(&machine, &["-q"]).code == Some(0)
    };
    // On a machine with much to do the first one may look once more by itself.
    assert!((0..8).any(gets_it));
}

#[test]
fn a_large_request_runs_beside_streams_of_small_ones_once_it_has_lost_patience() {
    let machine = Machine::gpus(4);
    // It cannot run before it has lost patience, whatever the streams leave free for a moment.
    let mut other = machine.job(0);
    machine.install(
        "job",
        "#!/bin/sh\nread up rest </proc/uptime; echo $up $2 >>\"$FAKE_NVML/started\"; \
         exec sleep 0.$1\n",
    );
    let stream = |length: &str| {
        let script =
            format!("while [ ! -e \"$FAKE_NVML/over\" ]; do autocvd -q -- job {length}; done");
        start(&mut machine.shell("sh", &script))
    };
    let streams: Vec<Running> = ["30", "37", "44"].map(stream).into();
    let started = || fs::read_to_string(machine.path().join("started")).unwrap_or_default();
    wait_until("the streams run", || started().lines().count() > 6);
    let mut large = machine.autocvd();
    large.env("AUTOCVD_PATIENCE", "1");
    let large = start(large.args(["-q", "-n", "4", "--", "job", "01", "large"]));
    wait_until("it waits", || position(&machine, large.pid()).is_some());
    let name = position(&machine, large.pid()).expect("just seen");
    let nanoseconds: f64 = name
        .split('-')
        .next()
        .and_then(|time| time.parse().ok())
        .expect("a time");
    // /proc/uptime counts the time since boot in hundredths.
    let lost_patience = nanoseconds / 1e9 + 1.0;
    thread::sleep(Duration::from_secs(3));
    other.kill();
    large.finish().success();
    let started = started();
    fs::write(machine.path().join("over"), "").expect("our own directory");
    drop(streams);
    let before = started.lines().take_while(|line| !line.ends_with("large"));
    let time = |line: &str| line.trim().parse::<f64>().expect("a time");
    let passed = before.filter(|line| time(line) > lost_patience).count();
    // One of each stream may have been chosen for before.
    assert!(
        passed <= 3,
        "{passed} jobs began in the meantime: {started}"
    );
}

#[test]
fn younger_requests_pass_it_with_what_it_cannot_use() {
    let machine = Machine::gpus(3);
    let mut job = machine.job(0);
    let large = gatherer(&machine, &["-n", "2", "--only", "0,1"], &["sleep", "600"]);
    assert_eq!(once(&machine, &["-q"]).success(), "2\n");
    let kept = once(&machine, &["--only", "1"]);
    assert_eq!(kept.code, Some(4), "{kept:?}");
    assert!(
        kept.stderr.contains("GPU 1: kept for ") && kept.stderr.contains("needs 2 GPUs"),
        "{kept:?}"
    );
    // What cannot be had is no reason to wait for it: a younger waiter is told.
    let younger = start(
        machine
            .autocvd()
            .args(["--only", "1", "--", "sleep", "600"]),
    );
    wait_until("it waits", || younger.stderr().contains("waiting"));
    assert!(
        younger
            .stderr()
            .contains("2nd in line; 0 of 1 free; GPU 1: kept for"),
        "{}",
        younger.stderr()
    );
    job.kill();
    wait_until("it has both", || runs(&large, "sleep"));
    // It has what was kept, and the younger one waits for it.
    asleep(younger.pid());
    drop(large);
    wait_until("the younger one runs", || runs(&younger, "sleep"));
}

#[test]
fn the_end_of_the_one_that_gathers_wakes_those_from_whom_it_kept() {
    for signal in [Signal::KILL, Signal::TERM] {
        let machine = Machine::gpus(2);
        let _job = machine.job(0);
        let large = gatherer(&machine, &["-n", "2"], &["true"]);
        let younger = waiter(&machine, &[], &["sleep", "600"]);
        large.signal(signal);
        wait_until("the younger one runs", || runs(&younger, "sleep"));
    }
}

#[test]
fn a_stopped_or_dead_one_gathers_nothing() {
    let machine = Machine::gpus(2);
    let _job = machine.job(0);
    let large = gatherer(&machine, &["-n", "2"], &["true"]);
    assert_eq!(once(&machine, &["-q"]).code, Some(4));
    large.stop();
    assert_eq!(once(&machine, &["-q"]).success(), "1\n");
    large.signal(Signal::CONT);
    assert_eq!(once(&machine, &["-q"]).code, Some(4));
    large.signal(Signal::KILL);
    wait_until("nothing is kept", || {
        once(&machine, &["-q"]).code == Some(0)
    });
}

#[test]
fn one_request_gathers_at_a_time_and_none_that_can_never_be_met_or_is_at_its_limit() {
    let machine = Machine::gpus(3);
    let mut job = machine.job(0);
    let first = gatherer(&machine, &["-n", "2", "--only", "0,1"], &["sleep", "600"]);
    let second = gatherer(&machine, &["-n", "3"], &["sleep", "600"]);
    // What the first one cannot use is not kept for the second one.
    assert_eq!(once(&machine, &["-q"]).success(), "2\n");
    job.kill();
    wait_until("the first one runs", || runs(&first, "sleep"));
    // Now the second one gathers.
    assert_eq!(once(&machine, &["-q"]).code, Some(4));
    let name = position(&machine, second.pid()).expect("it waits");
    let path = machine.claims().join("queue").join(&name);
    let text = fs::read_link(&path)
        .expect("a link")
        .to_string_lossy()
        .into_owned();
    for other in [
        text.replace("num_gpus=3", "num_gpus=4"),
        format!("max_per_user=4 {text}"),
    ] {
        fs::remove_file(&path).expect("our own");
        std::os::unix::fs::symlink(&other, &path).expect("our own directory");
        assert_eq!(once(&machine, &["-q"]).success(), "2\n", "{other}");
    }
}

#[test]
fn the_least_used_takes_what_is_kept_rather_than_what_is_claimed() {
    let machine = Machine::gpus(3);
    let _job = machine.job(0);
    let _holder = holder(&machine, "2");
    let _large = gatherer(&machine, &["-n", "3"], &["true"]);
    let least =
        |options: &[&str]| try_once(machine.autocvd().args(["-q", "-l"]).args(options)).success();
    // A GPU in use goes first, then what is kept, then what is claimed.
    assert_eq!(least(&[]), "0\n");
    assert_eq!(least(&["-n", "2"]), "0,1\n");
    assert_eq!(least(&["--only", "1,2"]), "1\n");
    assert_eq!(least(&["-n", "3"]), "0,1,2\n");
}

#[test]
fn status_shows_what_is_kept_for_whom_and_a_recorded_machine_decides_alike() {
    let machine = Machine::gpus(2);
    let _job = machine.job(0);
    let large = gatherer(&machine, &["-n", "2"], &["sleep", "600"]);
    let status = status_json(&machine);
    let kept = &status["waiting"][0]["kept"];
    assert_eq!(kept, &json!([status["gpus"][1]["uuid"]]), "{status:#}");
    let gpu = &status["gpus"][1];
    assert_eq!(gpu["state"], "free");
    assert!(
        gpu["reason"]
            .as_str()
            .is_some_and(|text| text.starts_with("kept for ")),
        "{gpu}"
    );
    let screen = run(machine.autocvd().arg("status").env("COLUMNS", "120")).success();
    assert!(
        screen.contains("0 of 2 free") && screen.contains("kept for "),
        "{screen}"
    );
    assert_eq!(
        run(machine.autocvd().args(["status", "--short"])).success(),
        "0/2 free\n"
    );
    let file = machine.path().join("status.json");
    fs::write(&file, status.to_string()).expect("our own directory");
    let file = file.to_str().expect("UTF-8");
    let recorded = |options: &[&str]| {
        run(machine
            .autocvd()
            .args(["-t", "0", "-o", "--from", file])
            .args(options))
    };
    let live = once(&machine, &[]);
    assert_eq!(
        (recorded(&[]).code, recorded(&[]).stderr),
        (live.code, live.stderr)
    );
    assert_eq!(recorded(&["--no-claim"]).success(), "1\n");
    drop(large);
}

#[test]
fn a_wrong_patience_is_a_wrong_value() {
    let machine = Machine::gpus(1);
    let outcome = run(machine
        .autocvd()
        .env("AUTOCVD_PATIENCE", "soon")
        .args(["--", "true"]));
    assert_eq!(outcome.code, Some(2), "{outcome:?}");
    outcome.tells("'soon' in AUTOCVD_PATIENCE");
}

#[test]
fn what_is_tolerated_by_one_who_came_first_is_left_to_it() {
    let machine = Machine::gpus(2);
    // It holds little and does not compute: free for the one, busy for the others.
    let _idle = machine.job_that(0, "C 1000000");
    let _job = machine.job(1);
    let _large = gatherer(&machine, &["-n", "2", "--tolerate", "100MiB"], &["true"]);
    let kept = once(&machine, &["--tolerate", "100MiB"]);
    assert_eq!(kept.code, Some(4), "{kept:?}");
}

// A hand-over.

#[test]
fn a_handover_does_not_wake_those_far_behind() {
    let machine = Machine::gpus(2);
    let (mut job, _other) = (machine.job(0), machine.job(1));
    let waiters: Vec<Running> = (0..8)
        .map(|_| waiter(&machine, &[], &["sleep", "600"]))
        .collect();
    let behind: Vec<Option<u64>> = waiters[5..]
        .iter()
        .map(|waiter| switches(waiter.pid()))
        .collect();
    job.kill();
    wait_until("the first one runs", || runs(&waiters[0], "sleep"));
    asleep(waiters[1].pid());
    asleep(waiters[3].pid());
    let after: Vec<Option<u64>> = waiters[5..]
        .iter()
        .map(|waiter| switches(waiter.pid()))
        .collect();
    assert_eq!(after, behind);
    // And one in the middle that leaves is no gap.
    waiters[5].signal(Signal::KILL);
    drop(waiters);
}

#[test]
fn several_gpus_at_once_reach_as_many_waiters() {
    unless_starved(|| {
        let machine = Machine::gpus(6);
        let mut jobs: Vec<Job> = (0..6).map(|gpu| machine.job(gpu)).collect();
        let waiters: Vec<Running> = (0..8)
            .map(|_| waiter(&machine, &[], &["sleep", "600"]))
            .collect();
        jobs.iter_mut().for_each(Job::kill);
        let run = || {
            let runs = waiters.iter().map(|waiter| runs(waiter, "sleep"));
            runs.collect::<Vec<bool>>()
        };
        wait_until("six run", || {
            run().into_iter().filter(|runs| *runs).count() == 6
        });
        match run()[..6].iter().all(|runs| *runs) {
            true => Ok(()),
            false => Err(format!("these run: {:?}", run())),
        }
    });
}

#[test]
fn the_waiters_that_watch_may_die_or_stop_and_the_next_one_runs() {
    for signal in [Signal::KILL, Signal::STOP] {
        let machine = Machine::gpus(1);
        let holder = holder(&machine, "0");
        let waiters: Vec<Running> = (0..5)
            .map(|_| waiter(&machine, &[], &["sleep", "600"]))
            .collect();
        // All are stopped when the GPU is handed over: some of them alone may be just then.
        let end = |waiter: &Running| match signal {
            Signal::STOP => waiter.stop(),
            signal => waiter.signal(signal),
        };
        waiters[..4].iter().for_each(end);
        drop(holder);
        wait_until("the last one runs", || runs(&waiters[4], "sleep"));
    }
}

#[test]
fn none_is_missed_while_others_die_and_stop_at_any_moment() {
    let machine = Machine::gpus(2);
    let mut job = machine.job(0);
    let holder = holder(&machine, "1");
    machine.install(
        "note",
        "#!/bin/sh\necho $1 >>\"$FAKE_NVML/ran\"; exec sleep 0.02\n",
    );
    let mut waiters: Vec<Running> = (0..24)
        .map(|number: u32| waiter(&machine, &[], &["note", &number.to_string()]))
        .collect();
    let ran = || fs::read_to_string(machine.path().join("ran")).unwrap_or_default();
    let did_run = |number: usize| ran().lines().any(|line| line == number.to_string());
    job.kill();
    drop(holder);
    // Every third is killed and every third is stopped, some moments apart, while the others run.
    for (number, waiter) in waiters.iter_mut().enumerate().rev() {
        let signal = match number % 3 {
            0 => Signal::KILL,
            1 => Signal::STOP,
            _ => continue,
        };
        if waiter.is_running() {
            waiter.signal(signal);
        }
        thread::sleep(Duration::from_millis(number as u64 * 7 % 23));
    }
    wait_until("those that were left alone have run", || {
        (2..24).step_by(3).all(did_run)
    });
    for waiter in &mut waiters {
        if waiter.is_running() {
            waiter.signal(Signal::CONT);
        }
    }
    wait_until("those that were stopped have run", || {
        (1..24).step_by(3).all(did_run)
    });
}

#[test]
fn on_a_terminal_the_place_is_right_though_nothing_else_wakes_the_waiter() {
    if !common::has("script") {
        return;
    }
    shows_its_place(&Machine::gpus(1), &[]);
    // The kernel tells of no departure where this user watches as many directories as it may.
    let script = "echo 0 >/proc/sys/user/max_inotify_instances && exec \"$@\"";
    let unwatched = [
        "unshare",
        "--user",
        "--map-root-user",
        "sh",
        "-c",
        script,
        "sh",
    ];
    let machine = Machine::gpus(1);
    let mut try_it = machine.command(unwatched[0]);
    match run(try_it.args(&unwatched[1..]).arg("true")).code {
        Some(0) => shows_its_place(&machine, &unwatched),
        _ => common::skip("user namespaces with limits of their own may not be made here"),
    }
}

fn shows_its_place(machine: &Machine, before: &[&str]) {
    let _job = machine.job(0);
    let ahead: Vec<Running> = (0..5).map(|_| waiter(machine, &[], &["true"])).collect();
    let command = "stty cols 200; exec autocvd -o -i 10min";
    let words = [before, &["script", "-qefc", command, "/dev/null"]].concat();
    let last = start(machine.command(words[0]).args(&words[1..]));
    wait_until("it tells its place", || {
        last.stdout().contains("6th in line")
    });
    machine.forget_calls();
    for (ahead, place) in ahead.iter().zip(["5th in line", "4th in line"]) {
        ahead.signal(Signal::TERM);
        wait_until(place, || last.stdout().contains(place));
    }
    assert_eq!(machine.calls(), [] as [&str; 0]);
}
