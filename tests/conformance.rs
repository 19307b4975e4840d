//! The protocol of docs/claims.md, as programs keep it: each one that takes part against each
//! other one, and the bytes of the table against autocvd. The Python and the C are those of the
//! page. `AUTOCVD_CONFORMANCE=./my-tool cargo test --test conformance` adds another program, run
//! as `./my-tool LOCKFILE`: it claims the device and prints a line, or fails at once.
#![cfg(feature = "cli")]

mod common;

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Machine, Running, run, start, wait_until};
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};

/// The first GPU of a fake machine, and its lock file.
const UUID: &str = "GPU-00000000-0000-0000-0000-000000000000";
const GIB: u64 = 1 << 30;
const LOCK_FILE: &str = "GPU-00000000-0000-0000-0000-000000000000.lock";

/// What the programs of autocvd's forms run: it tells that the GPU is held.
const HELD: &str = "#!/bin/sh\necho held\nexec sleep 600\n";

/// What turns the Python of the page into a program.
const PYTHON_MAIN: &str = "
import sys
held = claim(sys.argv[1])
print('held', flush=True)
time.sleep(600)
";

/// The same for the C.
const C_MAIN: &str = r#"
int main(int count, char **words)
{
    if (count != 2 || claim(words[1]) < 0)
        return 4;
    if (write(1, "held\n", 5) != 5)
        return 1;
    sleep(600);
    return 0;
}
"#;

/// The block of docs/claims.md in this language.
fn snippet(language: &str) -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/claims.md");
    let page = fs::read_to_string(page).expect("a page of the repository");
    let fence = format!("```{language}\n");
    let block = page
        .split_once(&fence)
        .and_then(|(_, rest)| rest.split_once("```"));
    block.expect("the page has one").0.to_owned()
}

/// How a program takes part.
enum Participant {
    /// A form of autocvd, as a script of bash.
    Form(&'static str, &'static str),
    /// A program that is given the lock file.
    Other(&'static str, PathBuf),
}

impl Participant {
    fn name(&self) -> &'static str {
        match self {
            Self::Form(name, _) | Self::Other(name, _) => name,
        }
    }

    /// Claims the machine's first GPU, prints a line, and holds it; or fails at once.
    fn claim(&self, machine: &Machine) -> Running {
        start(&mut match self {
            Self::Form(_, script) => {
                let mut shell = machine.shell("bash", script);
                shell.env("AUTOCVD_ONLY", UUID);
                shell
            }
            Self::Other(_, program) => {
                let mut other = machine.command(program.to_str().expect("a plain path"));
                other.arg(machine.claims().join(LOCK_FILE));
                other
            }
        })
    }

    /// Whether it gets the GPU, and holds it then.
    fn try_claim(&self, machine: &Machine) -> Option<Running> {
        let mut running = self.claim(machine);
        wait_until(&format!("{} has answered", self.name()), || {
            running.stdout().contains("held\n") || !running.is_running()
        });
        if running.stdout().contains("held\n") {
            return Some(running);
        }
        let refused = running.finish();
        assert_ne!(refused.code, Some(0), "{}: {refused:#?}", self.name());
        None
    }

    /// Gets the GPU once it is free.
    fn claim_in_time(&self, machine: &Machine) -> Running {
        let mut held = None;
        wait_until(&format!("{} has it", self.name()), || {
            held = self.try_claim(machine);
            held.is_some()
        });
        held.expect("it was waited for")
    }
}

/// Whoever takes part on this machine. The programs are put into its directory.
fn participants(machine: &Machine) -> Vec<Participant> {
    machine.install("held", HELD);
    let mut all = vec![
        Participant::Form("COMMAND", "exec autocvd -q -t 0 -- held"),
        Participant::Form("prefix", "eval $(autocvd -q -t 0) held; exit $?"),
        Participant::Form("shell", "eval \"$(autocvd -q -t 0 -s)\" && held; exit $?"),
        Participant::Form("ids", "autocvd -q -t 0 -o --hold 600s >&2 && held; exit $?"),
    ];
    if common::has("python3") {
        let text = format!("#!/usr/bin/env python3\n{}{PYTHON_MAIN}", snippet("python"));
        machine.install("claim-python", &text);
        let program = machine.path().join("bin/claim-python");
        all.push(Participant::Other("Python", program));
    }
    if common::has("cc") {
        let source = machine.path().join("claim.c");
        fs::write(&source, snippet("c") + C_MAIN).expect("our own directory");
        let program = machine.path().join("bin/claim-c");
        let mut compiler = Command::new("cc");
        compiler.args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-o"]);
        let built = run(compiler.arg(&program).arg(source));
        assert_eq!(built.code, Some(0), "{built:#?}");
        all.push(Participant::Other("C", program));
    }
    if let Some(program) = std::env::var_os("AUTOCVD_CONFORMANCE") {
        let program = fs::canonicalize(program).expect("the program of AUTOCVD_CONFORMANCE");
        all.push(Participant::Other("AUTOCVD_CONFORMANCE", program));
    }
    all
}

/// What `autocvd status` tells of the first GPU.
fn told(machine: &Machine) -> Value {
    let text = run(machine.autocvd().args(["status", "--json"])).success();
    let status: Value = serde_json::from_str(&text).expect("JSON");
    status["gpus"][0].clone()
}

/// The judge of a shell that holds the first GPU.
fn judge(shell: u32) -> Pid {
    let title = format!("autocvd: GPU 0 for bash {shell}");
    let mut found = None;
    wait_until("the judge has its name", || {
        let pids = fs::read_dir("/proc").expect("it is there").flatten();
        let mut pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let is_its = |pid: &i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline"));
            line.is_ok_and(|line| line.starts_with(title.as_bytes()))
        };
        found = pids.find(is_its).and_then(Pid::from_raw);
        found.is_some()
    });
    found.expect("it was waited for")
}

/// Ends the whole of a participant as `kill -9` does.
fn kill(participant: &Participant, held: Running) {
    // Ids are claimed for their hold, whatever the shell does: that claim ends with its judge.
    let judge = (participant.name() == "ids").then(|| judge(held.pid()));
    let group = Pid::from_raw(held.pid() as i32).expect("a pid");
    rustix::process::kill_process_group(group, Signal::KILL).expect("it holds");
    assert_eq!(held.finish().signal, Some(Signal::KILL.as_raw()));
    if let Some(judge) = judge {
        rustix::process::kill_process(judge, Signal::KILL).expect("it holds");
    }
}

#[test]
fn each_participant_refuses_while_another_one_holds_and_gets_what_was_killed() {
    let machine = Machine::gpus(1);
    let participants = participants(&machine);
    let others = |one: &Participant| {
        let names = participants.iter().map(Participant::name);
        let place = names.clone().position(|name| name == one.name());
        // Each other one comes next after each.
        participants
            .iter()
            .cycle()
            .skip(place.expect("one of them"))
            .take(participants.len())
    };
    for holder in &participants {
        for next in others(holder) {
            let name = format!("{}, {}", holder.name(), next.name());
            let held = holder.claim_in_time(&machine);
            assert!(next.try_claim(&machine).is_none(), "{name}: both hold it");
            assert_eq!(told(&machine)["state"], "claimed", "{name}");
            kill(holder, held);
            kill(next, next.claim_in_time(&machine));
        }
    }
    wait_until("it is free", || told(&machine)["state"] == "free");
}

#[test]
fn a_participant_makes_the_lock_file_that_is_missing_for_everybody() {
    use std::os::unix::fs::PermissionsExt;
    let machine = Machine::gpus(1);
    for participant in participants(&machine) {
        let _ = fs::remove_dir_all(machine.claims());
        fs::create_dir(machine.claims()).expect("our own directory");
        let mut shell = Command::new("sh");
        let held = match &participant {
            Participant::Other(_, program) => {
                let script = "umask 077; exec \"$@\"";
                shell.args(["-c", script, "sh"]).arg(program);
                start(shell.arg(machine.claims().join(LOCK_FILE)))
            }
            Participant::Form(_, script) => {
                let script = format!("umask 077; {script}");
                start(&mut machine.shell("bash", &script))
            }
        };
        wait_until("it is held", || held.stdout().contains("held\n"));
        let lock_file = fs::metadata(machine.claims().join(LOCK_FILE)).expect("it is there");
        let mode = lock_file.permissions().mode() & 0o7777;
        assert_eq!(mode, 0o666, "{}", participant.name());
        kill(&participant, held);
        wait_until("it is free", || told(&machine)["state"] == "free");
    }
}

/// The bytes of one nesting level, and those behind all levels.
const LEVEL: u64 = 1 << 40;
const GUESTS: u64 = 1 << 60;
const TOKENS: u64 = 1 << 62;

/// Asks the kernel with this command about so many bytes; what it answers.
fn lock(file: &File, command: i32, kind: i32, start: u64, length: u64) -> Option<libc::flock> {
    let mut lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start as libc::off_t,
        l_len: length as libc::off_t,
        l_pid: 0,
    };
    // SAFETY: the descriptor is open, and `lock` outlives the call.
    let asked = unsafe { libc::fcntl(file.as_raw_fd(), command, &mut lock) };
    (asked == 0).then_some(lock)
}

fn open(machine: &Machine) -> File {
    let mut options = fs::OpenOptions::new();
    let file = options.read(true).write(true);
    file.open(machine.claims().join(LOCK_FILE))
        .expect("a file that all may write to")
}

/// Another program's lock on these bytes, until it is dropped.
fn locked(machine: &Machine, kind: i32, start: u64, length: u64) -> File {
    let file = open(machine);
    assert!(lock(&file, libc::F_OFD_SETLK, kind, start, length).is_some());
    file
}

/// Whether a lock of another program stands against this kind of lock on this byte.
fn is_locked(machine: &Machine, kind: i32, byte: u64) -> bool {
    let found = lock(&open(machine), libc::F_OFD_GETLK, kind, byte, 1).expect("locks");
    found.l_type != libc::F_UNLCK as libc::c_short
}

fn exclusively(machine: &Machine, byte: u64) -> bool {
    // A shared lock does not stand against another one.
    is_locked(machine, libc::F_RDLCK, byte)
}

#[test]
fn autocvd_understands_the_bytes_of_the_table() {
    let gpu = json!({ "memory": { "total": 40 * GIB, "reserved": 0 } });
    let machine = Machine::described(json!({ "gpus": [gpu] }));
    let check = |what: &str, options: &str, may: bool| {
        let mut launch = machine.autocvd();
        // One that may have it waits for the judge of what ran before.
        launch.args(["-q", "-t", if may { "50" } else { "0" }]);
        launch.args(options.split_whitespace());
        let code = run(launch.args(["--", "true"])).code;
        assert_eq!(code, Some(if may { 0 } else { 4 }), "{what}: {options}");
    };
    check("nothing", "", true);
    let mebibytes = |count: u64| (libc::F_WRLCK, 0, count);
    // What another program has locked, and which requests it leaves room for.
    for (what, (kind, start, length), [whole, all, most, little]) in [
        ("nothing", (libc::F_UNLCK, 0, 1), [true; 4]),
        ("the file", (libc::F_WRLCK, 0, 0), [false; 4]),
        ("the outermost level", (libc::F_WRLCK, 0, LEVEL), [false; 4]),
        ("one inside it", (libc::F_WRLCK, LEVEL, LEVEL), [false; 4]),
        (
            "one far inside it",
            (libc::F_WRLCK, 900 * LEVEL, LEVEL),
            [false; 4],
        ),
        ("10 GiB", mebibytes(10 << 10), [false, false, true, true]),
        ("30 GiB", mebibytes(30 << 10), [false, false, false, true]),
        ("40 GiB", mebibytes(40 << 10), [false; 4]),
        (
            "30 GiB inside",
            (libc::F_WRLCK, LEVEL, 30 << 10),
            [false, false, false, true],
        ),
        ("the byte of guests", (libc::F_RDLCK, GUESTS, 1), [false; 4]),
        ("a token", (libc::F_WRLCK, TOKENS + 7, 1), [true; 4]),
        (
            "who waits for one",
            (libc::F_RDLCK, TOKENS + 7, 1),
            [true; 4],
        ),
    ] {
        let held = locked(&machine, kind, start, length);
        check(what, "", whole);
        check(what, "--share -m 40GiB", all);
        check(what, "--share -m 25GiB", most);
        check(what, "--share -m 5GiB", little);
        drop(held);
        // The judge of what ran has let go of it.
        wait_until("it is free", || told(&machine)["state"] == "free");
    }
}

/// A program that tells inside of what it runs.
const INSIDE: &str = "#!/bin/sh\necho \"$AUTOCVD_INSIDE\"\nexec sleep 600\n";

/// The tokens of the claims around a program, by what its environment tells: `TOKEN:KEY;TOKEN:KEY`.
fn tokens(inside: &str) -> Vec<u64> {
    let tokens = inside
        .trim()
        .split(';')
        .filter_map(|one| one.split(':').next());
    tokens
        .map(|token| u64::from_str_radix(token, 16).expect("a token"))
        .collect()
}

#[test]
fn autocvd_locks_the_bytes_of_the_table() {
    let gpu = json!({ "memory": { "total": 40 * GIB, "reserved": 0 } });
    let machine = Machine::described(json!({ "gpus": [gpu] }));
    machine.install("inside", INSIDE);
    let holds = |words: &str| {
        let running = start(machine.autocvd().args(words.split(' ')));
        wait_until("it runs", || running.stdout().ends_with('\n'));
        let tokens = tokens(&running.stdout());
        for token in &tokens {
            assert!(exclusively(&machine, TOKENS + token), "{words}");
        }
        assert!(!exclusively(&machine, TOKENS + (tokens[0] ^ 1)), "{words}");
        (running, tokens.len())
    };
    let levels = || {
        // The first byte of each, the last one, and one between.
        let level = |level: u64| {
            let bytes = [0, LEVEL / 3, LEVEL - 1].map(|byte| level * LEVEL + byte);
            bytes.map(|byte| exclusively(&machine, byte))
        };
        [level(0), level(1), level(2)]
    };
    let free = || {
        wait_until("it is free", || told(&machine)["state"] == "free");
        assert_eq!(levels(), [[false; 3]; 3]);
    };
    let (whole, none) = ([true; 3], [false; 3]);

    let (running, depth) = holds("-q -- inside");
    assert_eq!((depth, levels()), (1, [whole, none, none]));
    assert!(!is_locked(&machine, libc::F_WRLCK, GUESTS));
    // Who takes it all the same shares a byte with those who do.
    let guest = start(machine.autocvd().args(["-q", "-l", "--", "inside"]));
    wait_until("it runs", || guest.stdout().ends_with('\n'));
    assert!(is_locked(&machine, libc::F_WRLCK, GUESTS) && !exclusively(&machine, GUESTS));
    drop((guest, running));
    free();

    let (running, depth) = holds("-q -- autocvd -q -- inside");
    assert_eq!((depth, levels()), (2, [whole, whole, none]));
    drop(running);
    free();

    let (running, depth) = holds("-q --share -m 10GiB -- inside");
    let granules = |level: u64| {
        let all = (0..50 << 10).step_by(64);
        all.filter(|granule| exclusively(&machine, level * LEVEL + granule))
            .count() as u64
            * 64
    };
    let gibibytes = || [granules(0) >> 10, granules(1) >> 10];
    assert_eq!((depth, gibibytes()), (1, [10, 0]));
    drop(running);
    free();

    let (running, depth) = holds("-q --share -m 10GiB -- autocvd -q --share -m 4GiB -- inside");
    assert_eq!((depth, gibibytes()), (2, [10, 4]));
    drop(running);
    free();
}

#[test]
fn a_launch_is_not_inside_of_a_claim_that_has_let_go_of_its_device() {
    const NEXT: &str = "GPU-10000000-0000-0000-0000-000000000001";
    let machine = Machine::gpus(2);
    machine.install("held", HELD);
    run(machine.autocvd().args(["-q", "-n", "2", "--", "true"])).success();
    // A claim on both, whose process has just been killed: the kernel has dropped the second one.
    let dying = locked(&machine, libc::F_WRLCK, TOKENS + 7, 1);
    let next = start(machine.autocvd().args(["-q", "--only", "1", "--", "held"]));
    wait_until("the next one runs there", || next.stdout() == "held\n");
    let mut nested = machine.autocvd();
    nested.env("AUTOCVD_INSIDE", format!("{:016x}:{UUID},{NEXT}", 7));
    let nested = run(nested.args(["-q", "-t", "0", "--", "printenv", "CUDA_VISIBLE_DEVICES"]));
    assert_ne!(nested.stdout, "1\n", "{nested:#?}");
    drop((dying, next));
}
