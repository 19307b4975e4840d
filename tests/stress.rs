//! Many launches at once, some of them killed: no two live jobs on one GPU, and none that never
//! runs.
#![cfg(feature = "cli")]

mod common;

use std::collections::HashMap;
use std::fs;
use std::time::{Duration, Instant};

use common::{Machine, Outcome, Running, run, start, try_once};

/// `job NUMBER DELAY SECONDS`: shows up on its GPU only after a while. Each GPU has a lock that the
/// kernel takes back when the process that holds it ends; to find it held is to share the GPU with
/// a live job.
const JOB: &str = r#"#!/bin/bash
gpu=$CUDA_VISIBLE_DEVICES
exec 9>>"$FAKE_NVML/locks/$gpu"
flock -n 9 || {
    echo "job $1 on GPU $gpu, held by $(<"$FAKE_NVML/locks/$gpu.by")" >>"$FAKE_NVML/collisions"
    exit 70
}
echo "$1 (pid $$)" >"$FAKE_NVML/locks/$gpu.by"
sleep "$2" 9>&-
[ -d "$FAKE_NVML/procs/$gpu" ] || mkdir -p "$FAKE_NVML/procs/$gpu"
: >"$FAKE_NVML/procs/$gpu/$$"
echo "$1" >>"$FAKE_NVML/ran"
exec sleep "$3"
"#;

/// `part NUMBER SECONDS`: says in a file of its GPU that it runs there, and then looks who else
/// does: what all hold together is no more than the GPU has, and a whole-GPU job is alone. The
/// kernel drops its lock on its file when it ends, so that the files of dead jobs do not count. It
/// allocates what it was promised.
const PART: &str = r#"#!/bin/bash
gpu=$CUDA_VISIBLE_DEVICES
mine="$FAKE_NVML/jobs/$gpu/$1"
gib=$((${AUTOCVD_MEMORY:-$((40 << 30))} >> 30))
exec 8>>"$FAKE_NVML/jobs/$gpu.door"
flock 8
exec 9>>"$mine"
flock -n 9 || exit 71
echo "$gib ${AUTOCVD_MEMORY:+share}" >"$mine"
sum=0 others=0
for file in "$FAKE_NVML/jobs/$gpu"/*; do
    flock -n "$file" true && continue
    read -r held kind <"$file"
    sum=$((sum + held)) others=$((others + 1))
    [ "$kind" = share ] || whole=1
done
[ "$sum" -le 40 ] || echo "job $1: $sum GiB on GPU $gpu" >>"$FAKE_NVML/collisions"
[ -z "${whole-}" ] || [ "$others" -eq 1 ] ||
    echo "job $1: $others jobs beside a whole one on GPU $gpu" >>"$FAKE_NVML/collisions"
echo "$others" >>"$FAKE_NVML/company"
exec 8>&-
mkdir -p "$FAKE_NVML/procs/$gpu"
if [ -n "${AUTOCVD_MEMORY-}" ]; then
    echo "C $AUTOCVD_MEMORY" >"$FAKE_NVML/procs/$gpu/$$"
else
    : >"$FAKE_NVML/procs/$gpu/$$"
fi
echo "$1" >>"$FAKE_NVML/ran"
exec sleep "$2"
"#;

/// Numbers that look like chance and are the same each time (SplitMix64).
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}

/// How the launches went.
#[derive(Debug, Default)]
struct Figures {
    exec: usize,
    eval: usize,
    killed: usize,
    ran: usize,
    seconds: f64,
    /// The share of the time that each GPU had a job, in percent.
    busy: u64,
}

/// Jobs by their numbers.
#[derive(Default)]
struct Jobs {
    /// Those that run, each with the moment at which it is killed, if it is.
    live: HashMap<usize, (Running, Option<Instant>)>,
    killed: Vec<usize>,
}

impl Jobs {
    /// Kills those whose moment has come. Of those that have ended, all others were successful.
    fn tend(&mut self, machine: &Machine) {
        let mut ended = Vec::new();
        for (number, (running, end)) in &mut self.live {
            if !running.is_running() {
                ended.push(*number);
            } else if end.is_some_and(|end| end <= Instant::now()) {
                let pid = rustix::process::Pid::from_raw(running.pid() as i32).expect("a pid");
                // All of it at once: the shell, autocvd, the job.
                let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
                *end = None;
                self.killed.push(*number);
            }
        }
        for number in ended {
            let (running, _) = self.live.remove(&number).expect("it was live");
            let outcome = running.finish();
            if !self.killed.contains(&number) {
                let told = collisions(machine);
                assert_eq!(outcome.code, Some(0), "job {number}: {outcome:#?}\n{told}");
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }

    /// All of `count` jobs ran but those that were killed. Returns how many ran.
    fn assert_all_others_ran(&self, machine: &Machine, count: usize) -> usize {
        let ran = fs::read_to_string(machine.path().join("ran")).expect("some did");
        for number in (0..count).filter(|number| !self.killed.contains(number)) {
            let has_run = ran.lines().any(|line| line == number.to_string());
            assert!(has_run, "job {number} has not run");
        }
        ran.lines().count()
    }
}

/// Launches `each` jobs by exec and as many by eval on 8 GPUs, up to `at_once` at a time, that take
/// up to `delay_ms` to show up. One in eight is killed at some moment.
fn stress(each: usize, at_once: usize, delay_ms: u64, seed: u64) -> Figures {
    const RUN_MS: u64 = 50;
    let machine = Machine::gpus(8);
    machine.install("job", JOB);
    fs::create_dir(machine.path().join("locks")).expect("our own directory");
    let mut chance = Chance(seed);
    let mut figures = Figures::default();
    let mut jobs = Jobs::default();
    let (mut next, mut worked_ms) = (0, 0);
    let began = Instant::now();
    while next < 2 * each || !jobs.live.is_empty() {
        while next < 2 * each && jobs.live.len() < at_once {
            let delay = chance.below(delay_ms + 1);
            worked_ms += delay + RUN_MS;
            let job = format!(
                "job {next} {:.3} {:.3}",
                delay as f64 / 1000.0,
                RUN_MS as f64 / 1000.0
            );
            // As many of both, in no order.
            let exec = figures.eval == each || (figures.exec < each && chance.below(2) == 0);
            let running = if exec {
                figures.exec += 1;
                start(
                    machine
                        .autocvd()
                        .args(["-q", "-t", "300", "--"])
                        .args(job.split(' ')),
                )
            } else {
                figures.eval += 1;
                start(
                    &mut machine
                        .shell("bash", &format!("eval $(autocvd -q -t 300) {job}; exit $?")),
                )
            };
            let end = (chance.below(8) == 0)
                .then(|| Instant::now() + Duration::from_millis(chance.below(delay_ms * 2)));
            jobs.live.insert(next, (running, end));
            next += 1;
        }
        jobs.tend(&machine);
    }
    figures.seconds = began.elapsed().as_secs_f64();
    figures.killed = jobs.killed.len();
    assert_eq!(collisions(&machine), "", "two live jobs on one GPU");
    figures.ran = jobs.assert_all_others_ran(&machine, 2 * each);
    figures.busy = worked_ms * 100 / (8 * began.elapsed().as_millis() as u64);
    nothing_blocks(&machine);
    figures
}

fn collisions(machine: &Machine) -> String {
    fs::read_to_string(machine.path().join("collisions")).unwrap_or_default()
}

/// All GPUs can be had at once.
fn nothing_blocks(machine: &Machine) {
    let all: Outcome = try_once(machine.autocvd().args(["-q", "-t", "60", "-n", "8"]));
    assert_eq!(all.code, Some(0), "{all:#?}");
    try_once(machine.autocvd().args(["-q", "-t", "0", "-n", "8"])).success();
}

/// Launches so many jobs on 4 GPUs of 40 GiB, up to `at_once` at a time: shares of 1 to 30 GiB,
/// each seventh a whole GPU, half of them by exec and half by eval. One in eight is killed at some
/// moment.
fn stress_shares(count: usize, at_once: usize, run_ms: u64, seed: u64) -> (usize, usize, f64) {
    let gpu = serde_json::json!({ "memory": { "total": 40_u64 << 30, "reserved": 0 } });
    let machine = Machine::described(serde_json::json!({ "gpus": vec![gpu; 4] }));
    machine.install("part", PART);
    for gpu in 0..4 {
        fs::create_dir_all(machine.path().join(format!("jobs/{gpu}"))).expect("our own directory");
    }
    let mut chance = Chance(seed);
    let mut jobs = Jobs::default();
    let mut next = 0;
    let began = Instant::now();
    while next < count || !jobs.live.is_empty() {
        while next < count && jobs.live.len() < at_once {
            let size = format!("{}GiB", chance.below(30) + 1);
            let share = ["--share", "-m", &size];
            let options = if chance.below(7) == 0 {
                &[][..]
            } else {
                &share[..]
            };
            let job = format!(
                "part {next} {:.3}",
                (chance.below(run_ms) + 20) as f64 / 1000.0
            );
            let running = if chance.below(2) == 0 {
                let mut command = machine.autocvd();
                command.args(["-q", "-t", "300"]).args(options).arg("--");
                start(command.args(job.split(' ')))
            } else {
                let options = options.join(" ");
                let script = format!("eval $(autocvd -q -t 300 {options}) {job}; exit $?");
                start(&mut machine.shell("bash", &script))
            };
            let end = (chance.below(8) == 0)
                .then(|| Instant::now() + Duration::from_millis(chance.below(run_ms * 2)));
            jobs.live.insert(next, (running, end));
            next += 1;
        }
        jobs.tend(&machine);
    }
    assert_eq!(collisions(&machine), "", "more than there is");
    jobs.assert_all_others_ran(&machine, count);
    let company = fs::read_to_string(machine.path().join("company")).expect("some did");
    let most = company.lines().filter_map(|line| line.parse().ok()).max();
    let all = run(machine
        .autocvd()
        .args(["-q", "-t", "60", "-n", "4", "--", "true"]));
    assert_eq!(all.code, Some(0), "{all:#?}");
    (
        jobs.killed.len(),
        most.unwrap_or(0),
        began.elapsed().as_secs_f64(),
    )
}

#[test]
fn shares_of_a_gpu_are_never_more_than_it_has() {
    let (killed, most, seconds) = stress_shares(60, 16, 150, 3);
    eprintln!("{killed} killed, up to {most} at once on one GPU, {seconds:.1} s");
    assert!(most > 1, "nothing was shared");
}

#[test]
#[ignore = "takes a minute: cargo test --release --test stress -- --ignored --nocapture of_shares"]
fn hundreds_of_shares() {
    let (killed, most, seconds) = stress_shares(300, 32, 500, 4);
    println!(
        "300 launches of shares and whole GPUs on 4 GPUs of 40 GiB, up to 32 at once, {killed} \
         killed: up to {most} at once on one GPU, never more than it has, no whole one with a \
         neighbour, all others ran in {seconds:.1} s"
    );
}

#[test]
fn no_two_live_jobs_get_the_same_gpu() {
    let figures = stress(30, 16, 300, 1);
    eprintln!("{figures:?}");
}

#[test]
#[ignore = "takes minutes: cargo test --release --test stress -- --ignored --nocapture"]
fn hundreds_of_launches() {
    let figures = stress(300, 64, 2000, 2);
    println!(
        "{} exec and {} eval launches on 8 GPUs, up to 64 at once, {} killed: {} ran in {:.1} s, \
         no two at once on one GPU; the GPUs had a job for {} % of the time",
        figures.exec, figures.eval, figures.killed, figures.ran, figures.seconds, figures.busy
    );
}
