//! Waiting: it sleeps, wakes when a GPU may have become free, and the longest-waiting request goes
//! first.
#![cfg(feature = "cli")]

mod common;

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use common::{
    Job, Machine, Running, asleep, has_namespaces, in_namespace, is_free, run, start, switches,
    unless_starved, wait_until,
};
use rustix::process::Signal;
use serde_json::{Value, json};

/// A launch that waits: it is in the queue, and sleeps. Nothing but what it waits for is to wake
/// it.
fn waiter(machine: &Machine, options: &[&str], command: &[&str]) -> Running {
    let mut launch = machine.autocvd();
    launch
        .env("AUTOCVD_INTERVAL", "30s")
        .arg("-q")
        .args(options)
        .arg("--")
        .args(command);
    let waiter = start(&mut launch);
    settled(machine, waiter.pid());
    waiter
}

/// Waits until a launch has its place in the queue and sleeps.
fn settled(machine: &Machine, pid: u32) {
    wait_until("it has a place in the queue", || has_place(machine, pid));
    asleep(pid);
}

fn has_place(machine: &Machine, pid: u32) -> bool {
    let Ok(places) = fs::read_dir(machine.claims().join("queue")) else {
        return false;
    };
    let mut names = places
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.any(|name| !name.starts_with('.') && name.ends_with(&format!("-{pid}")))
}

/// The CPU time of a process in clock ticks.
fn cpu_ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let fields: Vec<&str> = stat
        .rsplit_once(") ")
        .expect("well formed")
        .1
        .split(' ')
        .collect();
    fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime")
}

/// Takes a process off a GPU while it lives on.
fn destroy_context(machine: &Machine, device: u32, job: &Job) {
    fs::remove_file(machine.path().join(format!("procs/{device}/{}", job.pid())))
        .expect("it was registered");
}

fn runs(waiter: &Running, program: &str) -> bool {
    fs::read_to_string(format!("/proc/{}/comm", waiter.pid()))
        .is_ok_and(|comm| comm.trim() == program)
}

#[test]
fn a_newcomer_that_lets_a_waiter_pass_sleeps_on() {
    unless_starved(|| a_newcomer_lets_a_waiter_pass(&Machine::gpus(1)));
}

fn a_newcomer_lets_a_waiter_pass(machine: &Machine) -> Result<(), String> {
    let job = machine.job(0);
    let first = waiter(machine, &[], &["sleep", "600"]);
    // Nothing wakes the first one but the newcomer that finds the GPU free.
    destroy_context(machine, 0, &job);
    let newcomer = start(machine.autocvd().args(["-q", "--", "sleep", "600"]));
    wait_until("one of them runs", || {
        runs(&first, "sleep") || runs(&newcomer, "sleep")
    });
    if runs(&newcomer, "sleep") {
        return Err("the newcomer passed the waiter".to_owned());
    }
    settled(machine, newcomer.pid());
    thread::sleep(Duration::from_millis(600));
    asleep(newcomer.pid());
    machine.forget_calls();
    let (before, ticks) = (switches(newcomer.pid()), cpu_ticks(newcomer.pid()));
    thread::sleep(Duration::from_secs(1));
    assert_eq!(machine.calls(), [] as [&str; 0]);
    assert_eq!(switches(newcomer.pid()), before);
    assert!(cpu_ticks(newcomer.pid()) - ticks <= 1);
    Ok(())
}

#[test]
fn a_dead_process_that_the_driver_still_lists_costs_a_few_looks_not_a_core() {
    let machine = Machine::gpus(1);
    let job = machine.job_that(0, "C 1000 2500");
    let waiting = waiter(&machine, &[], &["true"]);
    machine.forget_calls();
    // It stays a zombie: this process does not wait for it.
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(job.pid() as i32).expect("a pid"),
        Signal::KILL,
    )
    .expect("our own child");
    let dead = Instant::now();
    waiting.finish().success();
    assert!(
        dead.elapsed() >= Duration::from_millis(2400),
        "{:?}",
        dead.elapsed()
    );
    assert!(
        dead.elapsed() < Duration::from_secs(15),
        "the looks after an exit go on for seconds"
    );
    let looks = machine
        .calls()
        .iter()
        .filter(|call| call.contains("GetComputeRunningProcesses"))
        .count();
    assert!(looks <= 20, "{looks} looks");
}

/// Much less than the interval of 30 s, and more than a loaded machine takes.
const SOON: Duration = Duration::from_secs(20);

#[track_caller]
fn ends_soon(waiter: Running) {
    let began = Instant::now();
    waiter.finish().success();
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
}

/// A GPU with a process on it that never ends.
fn occupied() -> Machine {
    let machine = Machine::gpus(1);
    machine.set("/gpus/0/processes", json!([{"pid": 4_200_000}]));
    machine
}

// What wakes it.

#[test]
fn the_exit_of_a_process_wakes_it() {
    let machine = Machine::gpus(1);
    let mut job = machine.job(0);
    let waiting = waiter(&machine, &[], &["true"]);
    job.kill();
    ends_soon(waiting);
}

#[test]
fn the_end_of_a_claim_wakes_it_however_it_ends() {
    let machine = Machine::gpus(1);
    for signal in [Signal::TERM, Signal::KILL] {
        let holder = common::hold(machine.autocvd().arg("-q"));
        let waiting = waiter(&machine, &[], &["true"]);
        holder.signal(signal);
        ends_soon(waiting);
    }
}

#[test]
fn a_context_that_ends_without_its_process_is_seen_at_the_interval() {
    let machine = Machine::gpus(1);
    let job = machine.job(0);
    let mut patient = waiter(&machine, &["-i", "10min"], &["true"]);
    let eager = waiter(&machine, &["-i", "2s"], &["true"]);
    destroy_context(&machine, 0, &job);
    thread::sleep(Duration::from_millis(200));
    assert!(patient.is_running(), "the interval is kept");
    // The eager one lets the other one pass, and is woken by its end.
    ends_soon(eager);
    ends_soon(patient);
}

#[test]
fn a_process_that_ends_between_the_look_and_the_sleep_is_not_missed() {
    let machine = Machine::gpus(1);
    for round in 0..40 {
        let mut job = machine.job(0);
        let waiting = start(machine.autocvd().args(["-q", "-i", "600s", "--", "true"]));
        thread::sleep(Duration::from_micros(round * 500));
        job.kill();
        ends_soon(waiting);
    }
}

#[test]
fn a_gpu_that_is_lost_meanwhile_makes_uuids_of_indices() {
    for errors in [
        json!({}),
        json!({"handle": 15}),
        json!({"handle": 4}),
        json!({"handle": 999}),
        json!({"nvmlDeviceGetMemoryInfo": 15, "nvmlDeviceGetMemoryInfo_v2": 15}),
    ] {
        let machine = Machine::gpus(3);
        for gpu in 0..3 {
            machine.set(
                &format!("/gpus/{gpu}/processes"),
                json!([{"pid": 4_200_000}]),
            );
        }
        let waiting = waiter(
            &machine,
            &["-x", "0", "-i", "200ms"],
            &["printenv", "CUDA_VISIBLE_DEVICES"],
        );
        machine
            .set("/gpus/0/errors", errors.clone())
            .set("/gpus/2/processes", json!([]));
        let id = if errors == json!({}) {
            "2\n"
        } else {
            "GPU-20000000-0000-0000-0000-000000000002\n"
        };
        assert_eq!(waiting.finish().success(), id, "{errors}");
    }
}

#[test]
fn a_gpu_that_does_not_answer_for_a_while_ends_no_wait() {
    for (gpus, options) in [(1, &[][..]), (2, &["--only", "0"]), (2, &["-n", "2"])] {
        let machine = Machine::gpus(gpus);
        machine.set("/gpus/0/processes", json!([{"pid": 4_200_000}]));
        let options = [
            &["-i", "100ms"][..],
            options,
            &["--", "printenv", "CUDA_VISIBLE_DEVICES"],
        ]
        .concat();
        let waiting = start(machine.autocvd().args(options));
        wait_until("it waits", || waiting.stderr().contains("waiting for"));
        machine.set("/gpus/0/errors", json!({"handle": 999}));
        wait_until("it tells of it", || {
            waiting.stderr().contains("cannot be read")
        });
        machine
            .set("/gpus/0/errors", json!({}))
            .set("/gpus/0/processes", json!([]));
        assert!(waiting.finish().success().starts_with('0'));
    }
}

#[test]
fn a_driver_that_fails_while_it_waits_is_told_of_and_may_answer_later() {
    let machine = Machine::gpus(1);
    machine.set("/gpus/0/processes", json!([{"pid": 4_200_000}]));
    let waiting = start(machine.autocvd().args(["-i", "100ms", "--", "true"]));
    wait_until("it waits", || waiting.stderr().contains("waiting for"));
    machine.set("/gpus/0/errors", json!({"handle": 4}));
    wait_until("it tells of it", || {
        waiting.stderr().contains("can read none of the GPUs")
    });
    machine
        .set("/gpus/0/errors", json!({}))
        .set("/gpus/0/processes", json!([]));
    waiting.finish().success();
}

/// The calls by which a look begins, one for each look.
fn looks_begun(machine: &Machine) -> usize {
    machine
        .calls()
        .iter()
        .filter(|call| call.contains("GetHandleByIndex"))
        .count()
}

#[test]
fn a_driver_that_fails_while_it_waits_is_asked_ever_more_rarely_and_told_of_once() {
    for code in [15, 4, 16] {
        let machine = Machine::gpus(1);
        let mut job = machine.job(0);
        let waiting = start(machine.autocvd().args(["--", "true"]));
        settled(&machine, waiting.pid());
        machine.set("/gpus/0/errors", json!({"handle": code}));
        // What it watches ends too: looks after an exit must not go on for ever.
        job.kill();
        wait_until("it tells of it", || {
            waiting.stderr().contains("can read none of the GPUs")
        });
        machine.forget_calls();
        thread::sleep(Duration::from_secs(5));
        let looks = looks_begun(&machine);
        assert!(looks <= 16, "{looks} looks in 5 s after error {code}");
        let told = waiting.stderr().matches("warning").count();
        assert_eq!(told, 1, "{}", waiting.stderr());
        machine.set("/gpus/0/errors", json!({}));
        waiting.finish().success();
    }
}

#[test]
fn a_driver_call_that_fails_at_a_wake_leaves_no_free_gpu_asleep() {
    for errors in [
        json!({"handle": 999}),
        json!({"nvmlDeviceGetComputeMode": 999}),
    ] {
        let machine = Machine::gpus(1);
        let mut job = machine.job(0);
        let waiting = waiter(&machine, &["-i", "10min"], &["true"]);
        machine.set("/gpus/0/errors", errors);
        job.kill();
        // Longer than the looks that follow an exit.
        thread::sleep(Duration::from_millis(3500));
        machine.set("/gpus/0/errors", json!({}));
        ends_soon(waiting);
    }
}

#[test]
fn the_deadline_counts_whatever_the_driver_answers() {
    for errors in [
        json!({"handle": 15}),
        json!({"nvmlDeviceGetMemoryInfo_v2": 15}),
    ] {
        let machine = Machine::gpus(2);
        let mut job = machine.job(0);
        let waiting = start(machine.autocvd().args(["-q", "--only", "0", "-t", "8s"]));
        settled(&machine, waiting.pid());
        machine.set("/gpus/0/errors", errors);
        job.kill();
        let ended = waiting.finish();
        assert_eq!(ended.code, Some(4), "{ended:#?}");
        assert_eq!(ended.stdout, "sh -c 'exit 4' autocvd\n");
        assert!(
            ended
                .stderr
                .lines()
                .last()
                .is_some_and(|line| line.contains("8 s")),
            "{ended:#?}"
        );
    }
}

#[test]
fn a_gpu_that_was_lost_and_comes_back_is_given() {
    let memory = json!({"nvmlDeviceGetMemoryInfo": 15, "nvmlDeviceGetMemoryInfo_v2": 15});
    for errors in [json!({"handle": 15}), json!({"handle": 16}), memory] {
        // Lost while it waits, and lost already when the wait begins.
        for lost_at_start in [false, true] {
            let machine = Machine::gpus(2);
            let (_first, mut second) = (machine.job(0), machine.job(1));
            if lost_at_start {
                machine.set("/gpus/1/errors", errors.clone());
            }
            let waiting = waiter(
                &machine,
                &["-i", "1s"],
                &["printenv", "CUDA_VISIBLE_DEVICES"],
            );
            machine.set("/gpus/1/errors", errors.clone());
            second.kill();
            thread::sleep(Duration::from_millis(1500));
            machine.set("/gpus/1/errors", json!({}));
            let given = waiting.finish().success();
            assert!(
                ["1\n", "GPU-10000000-0000-0000-0000-000000000001\n"].contains(&&*given),
                "{given}: {errors}"
            );
        }
    }
}

#[test]
fn an_nvidia_smi_that_fails_while_it_waits_is_run_ever_more_rarely() {
    let machine = Machine::gpus(1);
    let xml = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/smi/590.xml");
    let busy = fs::read_to_string(xml).expect("a fixture");
    fs::write(machine.path().join("busy.xml"), busy).expect("our own directory");
    machine.install(
        "nvidia-smi",
        "#!/bin/sh\necho run >>\"$FAKE_NVML/runs\"\n\
         [ -e \"$FAKE_NVML/fails\" ] && { echo 'GPU is lost'; exit 15; }\n\
         cat \"$FAKE_NVML/busy.xml\"\n",
    );
    let runs =
        || fs::read_to_string(machine.path().join("runs")).map_or(0, |runs| runs.lines().count());
    let options = [
        "--probe",
        "nvidia-smi",
        "--only",
        "0",
        "-t",
        "8s",
        "--",
        "true",
    ];
    let waiting = start(machine.autocvd().args(options));
    settled(&machine, waiting.pid());
    fs::write(machine.path().join("fails"), "").expect("our own directory");
    // Its place in the queue is called, as by somebody whose claim ends.
    let before = runs();
    let ended = waiting.finish();
    assert_eq!(ended.code, Some(4), "{ended:#?}");
    assert!(runs() - before <= 24, "{} runs", runs() - before);
}

#[test]
fn the_deadline_ends_it_and_says_who_holds_what() {
    let machine = Machine::gpus(2);
    let job = machine.job(0);
    let _holder = common::hold(machine.autocvd().arg("-q"));
    let began = Instant::now();
    let late = run(machine.autocvd().args(["-q", "-t", "1500ms"]));
    assert!(began.elapsed() >= Duration::from_millis(1450));
    assert_eq!(
        (late.code, late.stdout.as_str()),
        (Some(4), "sh -c 'exit 4' autocvd\n")
    );
    assert_eq!(late.stderr.lines().count(), 1, "{late:#?}");
    for said in [
        "1.5 s",
        "GPU 0",
        "GPU 1",
        &job.pid().to_string(),
        "sleep 600",
        "--timeout",
    ] {
        assert!(late.stderr.contains(said), "{said}: {late:#?}");
    }
    // The place in the queue is given up.
    assert!(
        !has_place(&machine, 0)
            && fs::read_dir(machine.claims().join("queue"))
                .expect("it is there")
                .count()
                == 0
    );
}

/// The looks at the process lists, each of a GPU.
fn lists_read(machine: &Machine) -> usize {
    let calls = machine.calls();
    calls
        .iter()
        .filter(|call| call.contains("ComputeRunningProcesses"))
        .count()
}

#[test]
fn exits_that_cannot_free_a_gpu_wake_nobody() {
    let machine = Machine::gpus(1);
    let mut oldest = machine.job(0);
    // It started in an earlier clock tick than the others.
    thread::sleep(Duration::from_millis(50));
    let mut others: Vec<Job> = (0..40).map(|_| machine.job(0)).collect();
    let waiting = waiter(&machine, &[], &["true"]);
    machine.forget_calls();
    let before = switches(waiting.pid());
    others.iter_mut().for_each(Job::kill);
    thread::sleep(Duration::from_secs(1));
    assert_eq!(machine.calls(), [] as [&str; 0]);
    assert_eq!(switches(waiting.pid()), before);
    oldest.kill();
    ends_soon(waiting);
}

#[test]
fn after_an_exit_that_may_free_a_gpu_only_that_gpu_is_read() {
    let machine = Machine::gpus(4);
    let mut jobs: Vec<Job> = (0..4).map(|gpu| machine.job(gpu)).collect();
    // It started in a later clock tick than the first one there, which is the one that is watched.
    thread::sleep(Duration::from_millis(50));
    let mut second = machine.job(2);
    let waiting = waiter(&machine, &[], &["printenv", "CUDA_VISIBLE_DEVICES"]);
    machine.forget_calls();
    jobs[2].kill();
    wait_until("it has read the GPU", || lists_read(&machine) > 0);
    asleep(waiting.pid());
    assert_eq!(lists_read(&machine), 1, "{:?}", machine.calls());
    machine.forget_calls();
    second.kill();
    assert_eq!(waiting.finish().success(), "2\n");
    assert!(lists_read(&machine) <= 3, "{:?}", machine.calls());
}

#[test]
fn a_teardown_of_many_seconds_leaves_no_free_gpu_asleep() {
    let machine = Machine::gpus(1);
    let mut job = machine.job_that(0, "C 1000 5000");
    let waiting = waiter(&machine, &["-i", "10min"], &["true"]);
    machine.forget_calls();
    job.kill();
    ends_soon(waiting);
    assert!(lists_read(&machine) <= 16, "{} looks", lists_read(&machine));
}

#[test]
fn memory_that_an_exit_leaves_behind_for_a_while_is_looked_at_again() {
    let machine = Machine::gpus(1);
    let gib: u64 = 1 << 30;
    let held = json!({"total": 80 * gib, "reserved": 0, "used": 20 * gib, "free": 60 * gib});
    let mut job = machine.job(0);
    let waiting = waiter(&machine, &["-i", "10min"], &["true"]);
    // Held by no process that is listed: an orphan in another container.
    machine.set("/gpus/0/memory", held);
    job.kill();
    thread::sleep(Duration::from_secs(4));
    let idle = json!({"total": 80 * gib, "reserved": 0, "used": 0, "free": 80 * gib});
    machine.set("/gpus/0/memory", idle);
    ends_soon(waiting);
}

#[test]
fn of_more_processes_than_there_are_descriptors_for_the_last_exit_is_noticed() {
    let machine = Machine::gpus(1);
    let mut jobs: Vec<Job> = (0..300).map(|_| machine.job(0)).collect();
    let waiting = waiter(&machine, &["-i", "10min"], &["true"]);
    jobs.iter_mut().for_each(Job::kill);
    ends_soon(waiting);
}

/// Makes the kernel refuse this process and what it becomes every pidfd, as some sandboxes do.
fn without_pidfds(command: &mut Command) -> &mut Command {
    const LOAD_NUMBER: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const IS_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const ANSWER: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, jf, k| libc::sock_filter { code, jt: 0, jf, k };
    let mut filter = [
        step(LOAD_NUMBER, 0, 0),
        step(IS_EQUAL, 1, libc::SYS_pidfd_open as u32),
        step(ANSWER, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        step(ANSWER, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let refuse = move || {
        let len = filter.len() as u16;
        let program = libc::sock_fprog {
            len,
            filter: filter.as_mut_ptr(),
        };
        // SAFETY: the filter outlives the calls, which are system calls alone.
        let set = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program) == 0
        };
        match set {
            true => Ok(()),
            false => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: it makes system calls alone between fork and exec.
    unsafe { command.pre_exec(refuse) }
}

#[test]
fn where_the_kernel_gives_no_pidfd_an_exit_is_noticed_within_a_second_or_two() {
    let machine = Machine::gpus(1);
    let mut job = machine.job(0);
    let mut launch = machine.autocvd();
    launch.args(["-q", "-i", "10min", "--", "true"]);
    let waiting = start(without_pidfds(&mut launch));
    wait_until("it has a place in the queue", || {
        has_place(&machine, waiting.pid())
    });
    thread::sleep(Duration::from_millis(300));
    job.kill();
    // The process is reaped, or it would exist as a zombie.
    drop(job);
    ends_soon(waiting);
}

#[test]
fn a_gpu_whose_processes_are_hidden_is_looked_at_every_few_seconds() {
    let machine = Machine::gpus(1);
    if !has_namespaces(&machine) {
        return;
    }
    let gib: u64 = 1 << 30;
    let memory = |used: u64| {
        json!({
            "total": 80 * gib,
            "reserved": 0,
            "used": used,
            "free": 80 * gib - used,
        })
    };
    machine.set("/gpus/0/memory", memory(20 * gib));
    let inside = [
        "autocvd",
        "-i",
        "10min",
        "--",
        "printenv",
        "CUDA_VISIBLE_DEVICES",
    ];
    let waiting = start(&mut in_namespace(&machine, &inside));
    wait_until("it waits", || waiting.stderr().contains("waiting for"));
    machine.set("/gpus/0/memory", memory(0));
    ends_soon(waiting);
}

// The order.

#[test]
fn waiters_run_in_the_order_in_which_they_came() {
    unless_starved(|| {
        let machine = Machine::gpus(1);
        let mut job = machine.job(0);
        machine.install("note", "#!/bin/sh\necho $1 >>\"$FAKE_NVML/order\"\n");
        let waiters: Vec<Running> = (0..20)
            .map(|number: u32| {
                let options = ["-q", "-i", "30s", "--", "note", &number.to_string()];
                let waiting = start(machine.autocvd().args(options));
                wait_until("it has a place in the queue", || {
                    has_place(&machine, waiting.pid())
                });
                waiting
            })
            .collect();
        waiters.iter().for_each(|waiting| asleep(waiting.pid()));
        job.kill();
        waiters.into_iter().for_each(ends_soon);
        let order = fs::read_to_string(machine.path().join("order")).expect("they ran");
        let expected: String = (0..20).map(|number| format!("{number}\n")).collect();
        match order == expected {
            true => Ok(()),
            false => Err(order),
        }
    });
}

#[test]
fn a_request_that_cannot_be_met_holds_up_no_other() {
    let machine = Machine::gpus(2);
    let (_first, mut second) = (machine.job(0), machine.job(1));
    let mut two = waiter(&machine, &["-n", "2"], &["true"]);
    let one = waiter(&machine, &[], &["true"]);
    second.kill();
    ends_soon(one);
    // The judge of the one takes a moment, and then one that looks once gets it too.
    wait_until("it is free", || is_free(&machine));
    assert!(two.is_running());
}

#[test]
fn a_newcomer_does_not_overtake_a_waiter_that_sleeps() {
    let machine = Machine::gpus(1);
    let job = machine.job(0);
    let waiting = waiter(&machine, &["-i", "600s"], &["sleep", "600"]);
    destroy_context(&machine, 0, &job);
    let newcomer = start(machine.autocvd().args(["-q", "-t", "60", "--", "true"]));
    wait_until("the waiter was called", || runs(&waiting, "sleep"));
    drop(newcomer);
}

#[test]
fn a_stopped_or_dead_waiter_holds_up_nobody() {
    for signal in [Signal::STOP, Signal::KILL] {
        let machine = Machine::gpus(1);
        let mut job = machine.job(0);
        let first = waiter(&machine, &[], &["sleep", "600"]);
        let second = waiter(&machine, &[], &["true"]);
        first.signal(signal);
        job.kill();
        ends_soon(second);
        if signal == Signal::STOP {
            first.signal(Signal::CONT);
            wait_until("it takes what it came for", || runs(&first, "sleep"));
        }
    }
}

#[test]
fn a_lock_that_is_never_let_go_holds_up_nobody_for_long() {
    if !common::has("python3") {
        return;
    }
    let machine = Machine::gpus(1);
    run(machine.autocvd().args(["--", "true"])).success();
    // As somebody would hold it who was stopped between looking and claiming.
    let script = "import fcntl, os, time
fcntl.flock(os.open(os.environ['AUTOCVD_CLAIM_DIR'], os.O_RDONLY), fcntl.LOCK_EX)
print(flush=True); time.sleep(60)";
    let lock = start(machine.command("python3").args(["-c", script]));
    wait_until("it is locked", || lock.stdout() == "\n");
    ends_soon(start(machine.autocvd().args(["-q", "--", "true"])));
    let mut job = machine.job(0);
    let waiting = waiter(&machine, &[], &["true"]);
    job.kill();
    ends_soon(waiting);
}

// The queue, seen.

fn status_json(machine: &Machine) -> Value {
    let printed = run(machine.autocvd().args(["status", "--json"])).success();
    serde_json::from_str(&printed).expect("JSON")
}

#[test]
fn status_shows_who_waits_for_what_and_in_which_place() {
    let machine = occupied();
    let first = waiter(&machine, &[], &["sleep", "600"]);
    let script = "autocvd -q -- true & eval $(autocvd -q -m 40GiB) true; wait";
    let _shell = start(&mut machine.shell("bash", script));
    wait_until("both wait", || {
        status_json(&machine)["waiting"].as_array().map(Vec::len) == Some(3)
    });
    let status = status_json(&machine);
    let waiting = status["waiting"].as_array().expect("a list");
    assert_eq!(waiting[0]["pid"], first.pid());
    assert_eq!(waiting[0]["command"], "sleep 600");
    let places: Vec<&Value> = waiting.iter().map(|request| &request["place"]).collect();
    assert_eq!(places, [1, 2, 3]);
    let age = SystemTime::UNIX_EPOCH
        .elapsed()
        .expect("after 1970")
        .as_secs();
    for request in waiting {
        let since = request["since"].as_u64().expect("a time");
        assert!(age.abs_diff(since) < 600, "{request}");
        assert_eq!(
            (&request["num_gpus"], &request["share"]),
            (&json!(1), &json!(false))
        );
        assert!(request["user"].is_string(), "{request}");
    }
    // The one of the eval is shown by the shell that asked.
    let lease = waiting
        .iter()
        .find(|request| request["min_free_memory"] == 40_u64 << 30);
    let lease = lease.expect("it waits")["command"]
        .as_str()
        .expect("it is seen");
    assert!(lease.starts_with("bash -c autocvd"), "{lease}");
    let screen = run(machine
        .autocvd()
        .arg("status")
        .env("COLUMNS", "120")
        .env("LANG", "C.UTF-8"));
    let screen = screen.success();
    for part in ["WAITING  1. ", "2. ", "3. ", "1 GPU ≥40.0 GiB", "sleep 600"] {
        assert!(screen.contains(part), "{part}: {screen}");
    }
    // What is printed is read back.
    let file = machine.path().join("status.json");
    fs::write(&file, status.to_string()).expect("our own directory");
    let again = run(machine
        .autocvd()
        .args(["status", "--json", "--from"])
        .arg(&file))
    .success();
    let again: Value = serde_json::from_str(&again).expect("JSON");
    assert_eq!(again["waiting"], status["waiting"]);
}

#[test]
fn the_place_in_line_is_told_though_nothing_is_free_and_counts_siblings_alone() {
    let machine = Machine::gpus(2);
    let _job = machine.job(0);
    let script = "autocvd -q -- sh -c 'echo >\"$FAKE_NVML/held\"; exec sleep 600' & \
                  until [ -e \"$FAKE_NVML/held\" ]; do sleep 0.05; done; \
                  autocvd -q -- true & \
                  until autocvd status --json | grep -q '\"place\"'; do sleep 0.05; done; \
                  exec autocvd -- true";
    let outer = start(machine.autocvd().args(["-q", "--", "sh", "-c", script]));
    wait_until("two wait inside it", || outer.stderr().contains("waiting"));
    assert!(
        outer.stderr().contains("2nd in line; 0 of 1 free"),
        "{}",
        outer.stderr()
    );
    let _first = waiter(&machine, &[], &["true"]);
    let _second = waiter(&machine, &[], &["true"]);
    let third = start(machine.autocvd().args(["--", "true"]));
    wait_until("it says what it waits for", || {
        third.stderr().contains("waiting")
    });
    assert!(
        third.stderr().contains("3rd in line; 0 of 2 free"),
        "{}",
        third.stderr()
    );
    let waiting = status_json(&machine)["waiting"].clone();
    let places = waiting.as_array().expect("a list").iter();
    let places: Vec<&Value> = places.map(|request| &request["place"]).collect();
    assert_eq!(places, [1, 2, 1, 2, 3], "{waiting}");
}

#[test]
fn what_others_write_into_the_queue_neither_blocks_nor_reaches_a_terminal() {
    let machine = occupied();
    let real = waiter(&machine, &[], &["sleep", "600"]);
    let queue = machine.claims().join("queue");
    let own = fs::read_link(
        fs::read_dir(&queue)
            .expect("it is there")
            .flatten()
            .map(|entry| entry.path())
            .find(|path| {
                path.to_string_lossy()
                    .ends_with(&format!("-{}", real.pid()))
            })
            .expect("its position"),
    );
    let own = own.expect("a link").to_string_lossy().into_owned();
    let publish = |name: &str, text: &str| {
        std::os::unix::fs::symlink(text, queue.join(name)).expect("our own directory");
    };
    publish("00000000000000000001-\u{1b}[2J", &own);
    publish(
        "00000000000000000002-2",
        &own.replace("num_gpus=1", "num_gpus=18446744073709551615"),
    );
    publish(
        "00000000000000000003-3",
        &own.replace("num_gpus=1", "num_gpus=0"),
    );
    publish(
        "00000000000000000004-4",
        "\u{1b}]0;x\u{7} devices=,,,, num_gpus=\u{1b}[31m",
    );
    publish("x", &own);
    publish("99999999999999999999999999999999-5", &own);
    publish("\u{202e}", &"devices=".repeat(400));
    fs::create_dir(queue.join("00000000000000000005-5")).expect("our own directory");
    fs::write(queue.join("00000000000000000006-6"), "num_gpus=1").expect("our own directory");
    rustix::fs::mkfifoat(
        rustix::fs::CWD,
        queue.join("00000000000000000007-7"),
        rustix::fs::Mode::RWXU,
    )
    .expect("our own directory");
    // A shell of another process is not believed to be a shell of this user's if it is not.
    publish(
        &format!("{:020}-8", u64::MAX / 2),
        &own.replace(" devices", " shell=1:1 devices"),
    );
    let printed = run(machine.autocvd().args(["status", "--json"])).success();
    assert!(
        !printed.contains(['\u{1b}', '\u{7}', '\u{202e}']),
        "{printed:?}"
    );
    let status: Value = serde_json::from_str(&printed).expect("JSON");
    let first = &status["waiting"][0];
    assert_eq!(
        (&first["command"], &first["num_gpus"]),
        (&json!("sleep 600"), &json!(1))
    );
    let screen = run(machine.autocvd().arg("status")).success();
    assert!(
        !screen.contains(['\u{1b}', '\u{7}', '\u{202e}']),
        "{screen:?}"
    );
    let newcomer = start(machine.autocvd().args(["--", "true"]));
    wait_until("it waits", || newcomer.stderr().contains("waiting"));
}

// What it says.

#[test]
fn elsewhere_than_on_a_terminal_it_tells_of_changes_alone() {
    if !common::has_host_pids() {
        return;
    }
    let machine = Machine::gpus(2);
    let (mut first, second) = (machine.job(0), machine.job(1));
    let waiting = start(
        machine
            .autocvd()
            .args(["-i", "200ms", "-n", "2", "-t", "100", "--", "true"]),
    );
    wait_until("it says what it waits for", || {
        waiting.stderr().lines().count() == 1
    });
    thread::sleep(Duration::from_secs(1));
    let said = waiting.stderr();
    assert_eq!(said.lines().count(), 1, "{said}");
    for part in [
        "2 GPUs",
        "0 of 2 free",
        "sleep 600",
        "since 2",
        &second.pid().to_string(),
        "1 min 40 s",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    first.kill();
    wait_until("it tells of the change", || {
        waiting.stderr().lines().count() == 2
    });
    let said = waiting.stderr();
    assert!(
        said.lines().last().expect("two").contains("1 of 2 free"),
        "{said}"
    );
    drop(second);
    assert_eq!(waiting.finish().stderr, said);
}

#[test]
fn quiet_is_quiet() {
    let machine = Machine::gpus(1);
    let mut job = machine.job(0);
    let waiting = waiter(&machine, &[], &["true"]);
    job.kill();
    let outcome = waiting.finish();
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""));
}

#[test]
fn on_a_terminal_one_line_in_place_tells_the_time_left() {
    if !common::has("script") {
        return;
    }
    let machine = occupied();
    let command = "stty cols 200; exec autocvd -t 5 -o";
    let outcome = run(machine
        .command("script")
        .args(["-qec", command, "/dev/null"]));
    assert_eq!(outcome.code, Some(4), "{outcome:#?}");
    let lines: Vec<&str> = outcome.stdout.split("\r\x1b[K").collect();
    assert!(
        lines[1].contains("waiting for a GPU; 0 of 1 free") && lines[1].contains("4200000"),
        "{outcome:#?}"
    );
    assert!(
        lines
            .iter()
            .filter(|line| line.contains("gives up in"))
            .count()
            >= 2,
        "{outcome:#?}"
    );
    assert!(
        lines[1..lines.len() - 1]
            .iter()
            .all(|line| !line.contains('\n')),
        "{outcome:#?}"
    );
    // The line is gone when the reason comes.
    assert!(
        lines
            .last()
            .is_some_and(|line| line.starts_with("autocvd: timed out after 5 s: no GPU is free")),
        "{outcome:#?}"
    );
}

#[test]
fn a_narrow_terminal_and_one_of_unknown_size_are_told_what_matters_first() {
    if !common::has_host_pids() {
        return;
    }
    if !common::has("script") {
        return;
    }
    for columns in [80, 0] {
        let machine = Machine::gpus(2);
        let (_first, _second) = (machine.job(0), machine.job(1));
        thread::sleep(Duration::from_millis(1100));
        let command = format!("stty cols {columns}; exec autocvd -t 90 -o");
        let waiting = start(
            machine
                .command("script")
                .args(["-qefc", &command, "/dev/null"])
                .env_remove("COLUMNS"),
        );
        wait_until("the line was drawn", || {
            waiting.stdout().matches("\r\x1b[K").count() > 1
        });
        let drawn = waiting.stdout();
        let line = drawn.split("\r\x1b[K").nth(1).expect("a line");
        for part in ["0 of 2 free", "gives up in 1 min ", "GPU 1 for "] {
            assert!(line.contains(part), "{columns}: no {part} in {drawn:?}");
        }
        assert!(line.chars().count() < 80, "{columns}: {drawn:?}");
    }
}

// Signals.

#[test]
fn signals_end_it_at_once_also_as_pid_1() {
    let machine = occupied();
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130), (Signal::HUP, 129)] {
        let waiting = waiter(&machine, &[], &["true"]);
        waiting.signal(signal);
        let ended = waiting.finish();
        assert_eq!(
            (ended.status(), ended.stderr.lines().count()),
            (Some(code), 1),
            "{ended:#?}"
        );
    }
    assert_eq!(
        fs::read_dir(machine.claims().join("queue"))
            .expect("it is there")
            .count(),
        0
    );
    for options in [
        &["--pid", "--fork", "--mount-proc"][..],
        &["--pid", "--fork"],
    ] {
        let program = ["autocvd", "-q", "--", "true"];
        let container = start(machine.command("unshare").args(options).args(program));
        let child = || {
            let list =
                fs::read_to_string(format!("/proc/{0}/task/{0}/children", container.pid())).ok()?;
            let pid: u32 = list.trim().parse().ok()?;
            (fs::read_to_string(format!("/proc/{pid}/comm")).ok()? == "autocvd\n").then_some(pid)
        };
        let mut container_runs = true;
        wait_until("it runs as PID 1", || {
            container_runs = container.stderr().is_empty();
            child().is_some() || !container_runs
        });
        if !container_runs {
            common::skip("PID namespaces may not be made here (it takes root)");
            return;
        }
        let pid = child().expect("just seen");
        asleep(pid);
        rustix::process::kill_process(
            rustix::process::Pid::from_raw(pid as i32).expect("a pid"),
            Signal::TERM,
        )
        .expect("it runs");
        assert_eq!(container.finish().code, Some(143));
    }
}

// What it costs.

#[test]
fn while_nothing_changes_it_does_nothing() {
    let machine = Machine::gpus(2);
    let _job = machine.job(0);
    let _holder = common::hold(machine.autocvd().args(["-q", "--only", "1"]));
    let waiting = waiter(&machine, &[], &["true"]);
    machine.forget_calls();
    let (before, ticks) = (switches(waiting.pid()), cpu_ticks(waiting.pid()));
    thread::sleep(Duration::from_secs(3));
    assert_eq!(machine.calls(), [] as [&str; 0]);
    assert_eq!(switches(waiting.pid()), before);
    assert!(cpu_ticks(waiting.pid()) - ticks <= 1);
}
