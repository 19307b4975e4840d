//! Launches with a fault at one of their system calls: killed or stopped there, or the call fails.
//! Two other shells launch jobs on the same GPU meanwhile, and the jobs look for each other. A
//! launch holds the GPU alone, or says that it is not claimed, or runs nothing; nothing hangs, and
//! no lock is left behind. The faults are chosen by a seed that is printed; more of them, and
//! others: `AUTOCVD_FAULTS=10000 AUTOCVD_FAULTS_SEED=1 cargo test --test faults -- --nocapture`.
#![cfg(feature = "cli")]

mod common;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use common::{Machine, Running, is_free, run, start, wait_until};
use rustix::process::{Pid, Signal};

/// `alone WHO SECONDS`: a program that notes what it was given, and whom it meets on its GPU. It
/// does not run where it was given none.
const ALONE: &str = r#"#!/bin/bash
gpu=${CUDA_VISIBLE_DEVICES-}
echo "[$gpu]" >>"$FAKE_NVML/ran-$1"
[ "$gpu" = 0 ] || exit 64
exec 9>>"$FAKE_NVML/held"
flock -n 9 || echo "$1" >>"$FAKE_NVML/overlaps"
exec sleep "$2"
"#;

/// How a shell asks; `@` is the program with the fault.
const FORMS: [(&str, &str); 4] = [
    ("command", "exec @ -- alone it 0.03"),
    ("prefix", "eval $(@ --hold 20s) alone it 0.03; exit $?"),
    (
        "shell",
        "eval \"$(@ -s --hold 20s)\" && alone it 0.01 && alone it 0.02; exit $?",
    ),
    (
        "ids",
        "id=$(@ -o --hold 20s) && CUDA_VISIBLE_DEVICES=$id alone it 0.03; \
         code=$?; autocvd release; exit $code",
    ),
];

/// What the others do meanwhile.
const OTHER: &str = "for i in 1 2 3; do
eval $(autocvd -q -i 2s -t 50) alone other 0.01 || exit 9
autocvd -q -i 2s -t 50 -- alone other 0.01 || exit 9
done";

/// How the calls of a claim may fail. Those before the program's own first one are the loader's,
/// which nothing can guard, and do not fail.
const ERRORS: [(&str, &[&str]); 30] = [
    ("openat", &["EMFILE", "EACCES", "ENOENT", "EINTR"]),
    ("fcntl", &["ENOLCK", "EINVAL"]),
    ("mkdirat", &["ENOSPC", "EROFS"]),
    ("fchmod", &["EPERM"]),
    ("faccessat2", &["EACCES"]),
    ("newfstatat", &["EIO", "ENOENT"]),
    ("fstat", &["EIO"]),
    ("read", &["EIO", "EINTR"]),
    ("symlinkat", &["ENOSPC", "EIO"]),
    ("readlink", &["EACCES"]),
    ("readlinkat", &["EIO"]),
    ("unlinkat", &["EIO"]),
    ("getdents64", &["EIO"]),
    ("flock", &["ENOLCK"]),
    ("socket", &["EMFILE"]),
    ("bind", &["EADDRINUSE"]),
    ("listen", &["EADDRINUSE"]),
    ("accept4", &["EMFILE"]),
    ("connect", &["ECONNREFUSED"]),
    ("sendto", &["EAGAIN"]),
    ("sendmsg", &["EPIPE", "ETOOMANYREFS"]),
    ("recvfrom", &["ECONNRESET"]),
    ("recvmsg", &["EMFILE", "ECONNRESET"]),
    ("clone", &["EAGAIN"]),
    ("getrandom", &["ENOSYS"]),
    ("inotify_init1", &["EMFILE"]),
    ("inotify_add_watch", &["ENOSPC"]),
    ("pidfd_open", &["ENOSYS", "EMFILE"]),
    ("setsid", &["EPERM"]),
    ("ppoll", &["EINTR"]),
];

/// Numbers that look like chance and are the same each time (SplitMix64).
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % limit as u64) as usize
    }

    fn of<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len())]
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Kill,
    Stop,
    Error(&'static str),
}

/// At which call of a process what happens.
#[derive(Debug, Clone)]
struct Fault {
    form: usize,
    call: String,
    number: usize,
    kind: Kind,
}

impl Fault {
    fn option(&self) -> String {
        let what = match &self.kind {
            Kind::Kill => "signal=SIGKILL".to_owned(),
            Kind::Stop => "signal=SIGSTOP".to_owned(),
            Kind::Error(error) => format!("error={error}"),
        };
        let Self { call, number, .. } = self;
        format!("-e trace={call} -e inject={call}:{what}:when={number}")
    }
}

fn machine() -> Machine {
    let machine = Machine::gpus(1);
    machine.install("alone", ALONE);
    machine
}

fn text(machine: &Machine, name: &str) -> String {
    fs::read_to_string(machine.path().join(name)).unwrap_or_default()
}

/// A shell that asks through strace with these options. The tracer is a process beside the launch,
/// which stays the shell's child, and lets go of what becomes another program.
fn traced(machine: &Machine, form: usize, options: &str) -> Running {
    let trace = machine.path().join("trace");
    let program = format!(
        "strace -D -f -qq -b execve -o {} {options} autocvd -i 2s -t 50",
        trace.display()
    );
    start(&mut machine.shell("bash", &FORMS[form].1.replace('@', &program)))
}

fn others(machine: &Machine) -> [Running; 2] {
    [(); 2].map(|()| start(&mut machine.shell("bash", OTHER)))
}

/// The calls of a launch and its judge: which one, and the how manieth of its kind in its process.
/// Those of the loader are none.
fn calls(form: usize) -> Vec<(String, usize)> {
    let machine = machine();
    let others = others(&machine);
    traced(&machine, form, "").finish().success();
    for other in others {
        other.finish().success();
    }
    wait_until("it is free", || is_free(&machine));
    let trace = text(&machine, "trace");
    let mut numbers: HashMap<(&str, &str), usize> = HashMap::new();
    let mut calls = Vec::new();
    let mut has_begun = false;
    for line in trace.lines() {
        let Some((pid, rest)) = line.split_once(' ') else {
            continue;
        };
        let Some((call, _)) = rest.trim_start().split_once('(') else {
            continue;
        };
        if !call.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            continue;
        }
        let number = numbers.entry((pid, call)).or_default();
        *number += 1;
        // The program's own: it sets its guard before anything else.
        has_begun |= call == "rt_sigaction";
        if has_begun {
            calls.push((call.to_owned(), *number));
        }
    }
    assert!(calls.len() > 100, "{trace}");
    calls
}

/// Lets go on what is stopped, ten times a second while it lives: whatever waits meanwhile may wait
/// for a stopped judge.
struct Continuing {
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Continuing {
    fn start(machine: &Machine) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let (trace, ends) = (machine.path().join("trace"), Arc::clone(&is_over));
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(200));
            while !ends.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(100));
                continue_stopped(&trace);
            }
        });
        let thread = Some(thread);
        Self { is_over, thread }
    }
}

impl Drop for Continuing {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn continue_stopped(trace: &Path) {
    let trace = fs::read_to_string(trace).unwrap_or_default();
    let pids = trace.lines().filter_map(|line| line.split(' ').next());
    for pid in pids.filter_map(|pid| pid.parse().ok()) {
        let name = fs::read_to_string(format!("/proc/{pid}/comm"));
        if name.is_ok_and(|name| name.starts_with("autocvd")) {
            let pid = Pid::from_raw(pid).expect("a pid");
            let _ = rustix::process::kill_process(pid, Signal::CONT);
        }
    }
}

/// Plays one fault; what came of it.
fn play(fault: &Fault) -> &'static str {
    let name = format!("{} {fault:?}", FORMS[fault.form].0);
    let machine = machine();
    let mut others = others(&machine);
    let mut it = traced(&machine, fault.form, &fault.option());
    let _continuing = (fault.kind == Kind::Stop).then(|| Continuing::start(&machine));
    let wait = |what: &str, condition: &mut dyn FnMut() -> bool| {
        wait_until(&format!("{name}: {what}"), condition);
    };
    wait("it has ended", &mut || !it.is_running());
    let it = it.finish();
    for other in &mut others {
        wait("the others have ended", &mut || !other.is_running());
    }
    for other in others {
        let other = other.finish();
        assert_eq!(other.code, Some(0), "{name}: {other:#?}\n{it:#?}");
    }
    // A judge too may have been stopped.
    wait("its GPU is free", &mut || is_free(&machine));
    let (ran, overlaps) = (text(&machine, "ran-it"), text(&machine, "overlaps"));
    let was_killed = fault.kind == Kind::Kill;
    let is_unclaimed = it.stderr.contains("may pick the same");
    // With the judge its claim ends.
    let may_overlap = is_unclaimed || was_killed && ran.contains("[0]");
    assert!(
        overlaps.is_empty() || may_overlap,
        "{name}: {overlaps} {it:#?}"
    );
    let has_run = ran.lines().filter(|line| *line == "[0]").count();
    // A killed launch prints nothing, and no program can guard that.
    let is_guarded = ran.lines().all(|line| line == "[0]") || was_killed;
    assert!(is_guarded, "{name}: {ran} {it:#?}");
    assert!(has_run > 0 || it.code != Some(0), "{name}: {it:#?}");
    match (
        has_run,
        text(&machine, "trace").contains("INJECTED") || was_killed,
    ) {
        (_, false) if fault.kind != Kind::Stop => "not reached",
        (0, _) => "refused",
        (_, _) if is_unclaimed => "not claimed, and told of",
        (_, _) => "ran alone",
    }
}

#[test]
fn a_fault_at_any_system_call_costs_neither_exclusion_nor_a_lock_that_stays() {
    if !common::has("strace") {
        return;
    }
    let machine = machine();
    let probe = "strace -D -f -qq -b execve -o /dev/null -e inject=getppid:error=EIO true";
    if run(&mut machine.shell("sh", probe)).code != Some(0) {
        return common::skip("needs strace, which may trace");
    }
    let number = |name| -> Option<u64> { std::env::var(name).ok()?.parse().ok() };
    let count = number("AUTOCVD_FAULTS").unwrap_or(24);
    let seed = number("AUTOCVD_FAULTS_SEED").unwrap_or(7);
    eprintln!("{count} faults of seed {seed}");
    let calls: Vec<_> = (0..FORMS.len()).map(calls).collect();
    let mut chance = Chance(seed);
    let choose = |_| {
        let form = chance.below(FORMS.len());
        let kind = chance.below(4);
        let can_fail: Vec<&(String, usize)> = calls[form]
            .iter()
            .filter(|(call, _)| kind < 2 || ERRORS.iter().any(|(name, _)| name == call))
            .collect();
        let (call, number) = (*chance.of(&can_fail)).clone();
        let errors = ERRORS.iter().find(|(name, _)| *name == call);
        let kind = match (kind, errors) {
            (0, _) => Kind::Kill,
            (2.., Some((_, errors))) => Kind::Error(chance.of::<&str>(errors)),
            _ => Kind::Stop,
        };
        Fault {
            form,
            call,
            number,
            kind,
        }
    };
    let faults: Vec<Fault> = (0..count).map(choose).collect();
    let next = AtomicU64::new(0);
    let outcomes = Mutex::new(BTreeMap::<(&str, &str), u64>::new());
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while let Some(fault) = faults.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                    let outcome = play(fault);
                    let kind = match fault.kind {
                        Kind::Kill => "killed",
                        Kind::Stop => "stopped",
                        Kind::Error(_) => "failed",
                    };
                    let mut outcomes = outcomes.lock().expect("no panic elsewhere");
                    *outcomes.entry((kind, outcome)).or_default() += 1;
                }
            });
        }
    });
    let outcomes = outcomes.into_inner().expect("no panic elsewhere");
    eprintln!("{outcomes:#?}");
}
