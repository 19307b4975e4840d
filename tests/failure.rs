//! Failure never runs the program: what is printed, told and returned when there is no GPU to give.
#![cfg(feature = "cli")]

mod common;

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Machine, Outcome, run, start, wait_until};
use rustix::process::Signal;
use serde_json::{Value, json};

/// What a shell evaluates when there is nothing to give.
fn guard(code: i32) -> String {
    format!("sh -c 'exit {code}' autocvd\n")
}

/// The same with `-s`: what the script runs next sees no GPU either.
fn export_guard(code: i32) -> String {
    format!("export CUDA_VISIBLE_DEVICES=-1 ; {}", guard(code))
}

/// Asserts that a failure is told in one line, which is not a panic's.
#[track_caller]
fn assert_told(outcome: &Outcome, code: i32, says: &str) {
    assert_eq!(outcome.status(), Some(code), "{outcome:#?}");
    assert_eq!(outcome.stderr.lines().count(), 1, "{outcome:#?}");
    assert!(outcome.stderr.starts_with("autocvd: "), "{outcome:#?}");
    assert!(
        outcome.stderr.ends_with('\n') && outcome.stderr.contains(says),
        "no '{says}' in {outcome:#?}"
    );
    for word in ["panicked", "internal error", "RUST_BACKTRACE", "Usage:"] {
        assert!(!outcome.stderr.contains(word), "{outcome:#?}");
    }
}

/// A failure in all the forms in which it can be met: `command` makes the program with its options.
#[track_caller]
fn assert_fails(command: &dyn Fn() -> Command, code: i32, says: &str) {
    for (form, stdout) in [
        (&[][..], guard(code)),
        (&["-s"], export_guard(code)),
        (
            &["-s", "--format", "fish"],
            format!("set -gx CUDA_VISIBLE_DEVICES -1 ; {}", guard(code)),
        ),
        (
            &["-s", "--format", "csh"],
            format!("setenv CUDA_VISIBLE_DEVICES -1 ; {}", guard(code)),
        ),
        (&["--shell", "csh"], guard(code)),
        (&["--format", "docker"], "--autocvd-found-no-gpu\n".into()),
        (&["--format=cdi"], "--autocvd-found-no-gpu\n".into()),
        (&["-o"], String::new()),
        (&["--json"], String::new()),
        (&["--", "touch", "ran"], String::new()),
    ] {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut command = command();
        let outcome = run(command.args(form).current_dir(directory.path()));
        assert_told(&outcome, code, says);
        assert_eq!(outcome.stdout, stdout, "{form:?}: {outcome:#?}");
        assert!(
            !directory.path().join("ran").exists(),
            "{form:?}: {outcome:#?}"
        );
    }
}

/// The names of claims and of positions in the queue. A claim that ends takes a moment.
fn left_behind(machine: &Machine) -> Vec<String> {
    let names = |directory: &str| -> Vec<String> {
        let entries = fs::read_dir(machine.claims().join(directory));
        let entries = entries.into_iter().flatten().flatten();
        entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect()
    };
    // Asked of the kernel: a driver that hangs would let `status` hang too.
    common::wait_until_unclaimed(machine);
    names("queue")
}

#[test]
fn a_wrong_option_or_value_is_quoted_and_runs_nothing() {
    let machine = Machine::gpus(2);
    for (words, says) in [
        (&["-n", "0"][..], "'0'"),
        (&["-n", "x"], "'x'"),
        (&["-n", "-1"], "'-1'"),
        (&["-n", "1.5"], "'1.5'"),
        (&["-n", "99999999999999999999"], "'99999999999999999999'"),
        (&["-n", ""], "num-gpus"),
        (&["-t", "-1"], "'-1'"),
        (&["-t", "soon"], "'soon'"),
        (&["-t", "nan"], "'nan'"),
        (&["-t", "1e999"], "'1e999'"),
        (&["-i", "soon"], "'soon'"),
        (&["-i", "0"], "'0'"),
        (&["-i", "-3"], "'-3'"),
        (&["--hold", "-1"], "'-1'"),
        (&["-m", "10XB"], "'10XB'"),
        (&["-m", "40"], "give the unit too: 40GiB or 40MiB"),
        (&["-t", "5M"], "M could be minutes or months"),
        (&["-n", "2", "train.py"], "autocvd -n 2 -- train.py …"),
        (&["--watch"], "'autocvd status --watch'"),
        (&["--timout", "1"], "did you mean '--timeout'? See"),
        (&["--dry-run"], "--no-claim"),
        (&["--gpu-ids", "0"], "--only ID…"),
        (&["--priority=1"], "no priorities"),
        (&["--max-utilization", "5"], "whatever its utilization"),
        (&["-m", "-1"], "'-1'"),
        (&["-x", "99"], "'99'"),
        (&["-x", "GPU-"], "'GPU-'"),
        (&["-x", "0,,1"], "''"),
        (&["-x", ""], "''"),
        (&["-x", "no\x07ne"], "names no GPU"),
        (&["--only", "nonsense"], "'nonsense'"),
        (&["--shell", "tcl"], "'tcl'"),
        (&["--probe", "guess"], "'guess'"),
        (&["--nonsense"], "'--nonsense'"),
        (&["-z"], "'-z'"),
        (&["--num-gpu", "1"], "'--num-gpu'"),
        (&["--uuid=1"], "'1'"),
        (&["stray"], "'stray'"),
        (&["train.py", "-n", "2"], "'train.py'"),
        (&["--from", "/"], "'/'"),
        (&["--from", "/nonexistent/file"], "'/nonexistent/file'"),
    ] {
        let command = || {
            let mut command = machine.autocvd();
            command.args(words);
            command
        };
        assert_fails(&command, 2, says);
    }
    // An option without its value has to stand last.
    for words in ["--only", "-x", "-n", "-t", "--from", "--shell"] {
        let outcome = run(machine.autocvd().arg(words));
        assert_told(&outcome, 2, "a value is required");
        assert_eq!(outcome.stdout, guard(2), "{words}");
    }
    assert_told(&run(machine.autocvd().arg("--bind")), 2, "--bind");
    let outcome = run(machine.autocvd().args(["-x", "0", "sh", "train.sh"]));
    assert_told(&outcome, 2, "put '--' in front of it: -- sh …");
    assert_eq!(left_behind(&machine), [""; 0]);
}

#[test]
fn a_wrong_value_of_a_variable_is_quoted_and_runs_nothing() {
    let machine = Machine::gpus(2);
    for (name, value) in [
        ("AUTOCVD_NUM_GPUS", "0"),
        ("AUTOCVD_TIMEOUT", "soon"),
        ("AUTOCVD_EXCLUDE", "99"),
        ("AUTOCVD_LEAST_USED", "maybe"),
        ("AUTOCVD_PROBE", "guess"),
        ("AUTOCVD_FROM", "/nonexistent"),
    ] {
        let command = || {
            let mut command = machine.autocvd();
            command.env(name, value);
            command
        };
        assert_fails(&command, 2, &format!("'{value}'"));
    }
}

#[test]
fn an_error_names_the_variable_that_a_value_came_from() {
    let machine = Machine::gpus(2);
    for (name, value, words, code, says) in [
        (
            "AUTOCVD_TIMEOUT",
            "soon",
            &[][..],
            2,
            "'soon' in AUTOCVD_TIMEOUT: give seconds",
        ),
        (
            "AUTOCVD_MIN_FREE_MEMORY",
            "40",
            &[],
            2,
            "'40' in AUTOCVD_MIN_FREE_MEMORY",
        ),
        (
            "AUTOCVD_FORMAT",
            "tcl",
            &[],
            2,
            "'tcl' in AUTOCVD_FORMAT: give posix, fish, csh, docker or cdi",
        ),
        (
            "AUTOCVD_EXCLUDE",
            "99",
            &[],
            2,
            "AUTOCVD_EXCLUDE: '99' names no GPU",
        ),
        (
            "AUTOCVD_ONLY",
            "0",
            &["-n", "2"],
            3,
            "allow more with AUTOCVD_ONLY",
        ),
        (
            "AUTOCVD_MIN_FREE_MEMORY",
            "900GiB",
            &[],
            3,
            "ask for less with AUTOCVD_MIN_FREE_MEMORY",
        ),
        (
            "AUTOCVD_FROM",
            "/nonexistent",
            &[],
            2,
            "AUTOCVD_FROM '/nonexistent'",
        ),
    ] {
        let outcome = run(machine.autocvd().args(words).env(name, value));
        assert_told(&outcome, code, says);
    }
}

#[test]
fn a_misspelt_variable_gets_a_warning() {
    let machine = Machine::gpus(1);
    let outcome = run(machine
        .autocvd()
        .args(["--no-claim", "-o"])
        .env("AUTOCVD_TIMOUT", "5"));
    assert_eq!(
        outcome.stderr,
        "autocvd: warning: AUTOCVD_TIMOUT has no effect; did you mean AUTOCVD_TIMEOUT?\n"
    );
    assert_eq!(outcome.success(), "0\n");
    let quiet = run(machine
        .autocvd()
        .args(["--no-claim", "-qo"])
        .env("AUTOCVD_TIMOUT", "5"));
    assert_eq!(quiet.stderr, "");
}

#[test]
fn what_can_never_be_met_is_told_at_once() {
    let machine = Machine::gpus(2);
    let _job = machine.job(0);
    for words in [
        &["-n", "3"][..],
        &["-x", "0,1"],
        &["--only", "0", "-x", "0"],
        &["-m", "81GiB"],
        &["-n", "18446744073709551615"],
    ] {
        let command = || {
            let mut command = machine.autocvd();
            command.args(words);
            command
        };
        assert_fails(&command, 3, "asked for");
    }
    assert_eq!(left_behind(&machine), [""; 0]);
}

/// A recorded machine with so many GPUs of which nothing is known.
fn with_gpus(count: usize) -> String {
    let gpus: Vec<Value> = (0..count).map(|index| json!({"index": index})).collect();
    json!({"schema": 1, "source": "nvml", "gpus": gpus}).to_string()
}

#[test]
fn a_timeout_is_told_with_who_is_on_the_gpus() {
    let machine = Machine::gpus(1);
    let job = machine.job(0);
    let command = || {
        let mut command = machine.autocvd();
        command.args(["-t", "0"]);
        command
    };
    assert_fails(&command, 4, &format!("GPU 0: used by pid {}", job.pid()));
    let outcome = run(machine.autocvd().args(["-q", "-t", "50ms"]));
    assert_told(&outcome, 4, "50 ms");
    assert_eq!(left_behind(&machine), [""; 0]);
}

/// Files that hold no machine's state, by what is said of them.
fn bad_recordings(whole: &str) -> Vec<(String, &'static str)> {
    let machine: Value = serde_json::from_str(whole).expect("JSON");
    let with = |pointer: &str, value: Value| {
        let mut machine = machine.clone();
        *machine.pointer_mut(pointer).expect("it is there") = value;
        machine.to_string()
    };
    let mut bad: Vec<(String, &'static str)> = vec![
        (String::new(), "empty"),
        (" \n".into(), "empty"),
        ("null".into(), ""),
        ("[]".into(), ""),
        ("{}".into(), ""),
        ("42".into(), ""),
        ("not JSON".into(), ""),
        ("\u{0}\u{0}".into(), ""),
        (format!("{whole}{whole}"), ""),
        ("[".repeat(100_000), ""),
        ("{\"gpus\":".repeat(100_000), ""),
        ("{".repeat(250_001), "more than 250000 objects"),
        (with_gpus(513), "more than 512 GPUs and MIG devices"),
        (with("/schema", json!(2)), "schema 2"),
        (with("/schema", json!("1")), ""),
        (with("/source", json!("guess")), ""),
        (with("/gpus", json!({})), ""),
        (with("/gpus", json!([null])), ""),
        (
            with("/gpus", json!([{"index": 0}, {"index": 0}])),
            "two GPUs have index 0",
        ),
        (with("/gpus/0/index", json!(-1)), ""),
        (with("/gpus/0/index", json!(1u64 << 40)), ""),
        (with("/gpus/0/uuid", json!(7)), ""),
        (with("/gpus/0/memory", json!(7)), ""),
        (with("/gpus/0/memory/used", json!("0 MiB")), ""),
        (with("/gpus/0/memory/used", json!(-1)), ""),
        (with("/gpus/0/memory/used", json!(1.5)), ""),
        (
            with("/gpus/0/compute_mode", json!("SOMETIMES")),
            "'SOMETIMES'",
        ),
        (with("/gpus/0/state", json!("tired")), ""),
        (
            with("/gpus/0/processes", json!([{"pid": 1, "type": "X"}])),
            "",
        ),
        (with("/gpus/0/processes", json!([{"type": "C"}])), ""),
        (
            whole.replacen("\"total\": 85899345920", "\"total\": 1e400", 1),
            "",
        ),
        (
            whole.replacen(
                "\"total\": 85899345920",
                "\"total\": 99999999999999999999",
                1,
            ),
            "",
        ),
    ];
    // Wherever the writing of it was cut off.
    let end = whole.trim_end().len();
    let cuts = (0..40)
        .map(|part| end * part / 40)
        .filter(|at| whole.is_char_boundary(*at));
    bad.extend(
        cuts.chain([1, end - 1])
            .map(|at| (whole[..at].to_owned(), "")),
    );
    bad
}

#[test]
fn a_file_that_holds_no_machine_is_a_wrong_value() {
    let machine = Machine::gpus(2);
    let whole = run(machine.autocvd().args(["status", "--json"])).success();
    let file = machine.path().join("recorded.json");
    for (text, says) in bad_recordings(&whole) {
        assert_ne!(text, whole);
        fs::write(&file, &text).expect("our own directory");
        let outcome = run(machine.autocvd().arg("--from").arg(&file));
        let start: String = text.chars().take(60).collect();
        assert_eq!(outcome.stdout, guard(2), "{start}");
        assert_told(&outcome, 2, says);
        outcome.tells("recorded.json");
    }
    // In the other forms too.
    fs::write(&file, &whole[..whole.len() / 2]).expect("our own directory");
    let command = || {
        let mut command = machine.autocvd();
        command.arg("--from").arg(&file);
        command
    };
    assert_fails(&command, 2, "recorded.json");
    fs::write(&file, b"\xff\xfe{}").expect("our own directory");
    assert_fails(&command, 2, "recorded.json");
    assert_told(
        &run(machine
            .autocvd()
            .args(["status", "--json", "--from"])
            .arg(&file)),
        2,
        "recorded.json",
    );
}

#[test]
fn a_wrong_value_with_line_breaks_is_told_in_one_line() {
    let machine = Machine::gpus(1);
    let outcome = run(machine.autocvd().args(["-n", "1\nFor more information x"]));
    assert_told(
        &outcome,
        2,
        "invalid value '1 For more information x' for '--num-gpus <N>': give a whole number",
    );
    let outcome = run(machine.autocvd().args(["-n", "\n"]));
    assert_told(
        &outcome,
        2,
        "invalid value '' for '--num-gpus <N>': give a whole number from 1 on; \
         see 'autocvd --help'",
    );
}

#[test]
fn what_is_wrong_with_a_subcommand_is_told_by_its_own_help() {
    let machine = Machine::gpus(1);
    for (words, help, hint) in [
        (
            &["status", "--watch", "2"][..],
            "autocvd status --help",
            false,
        ),
        (&["status", "extra"], "autocvd status --help", false),
        (&["status", "--watch=0"], "autocvd status --help", false),
        (
            &["completions", "nosuch"],
            "autocvd completions --help",
            false,
        ),
        (&["help", "nosuch"], "autocvd --help", false),
        (&["nosuch"], "autocvd --help", true),
    ] {
        let outcome = run(machine.autocvd().args(words));
        assert_told(&outcome, 2, &format!("; see '{help}'\n"));
        assert_eq!(
            outcome
                .stderr
                .contains("to run a command: autocvd -- nosuch"),
            hint,
            "{outcome:#?}"
        );
    }
}

#[test]
fn what_cannot_be_warned_of_keeps_nothing_from_being_shown() {
    let machine = Machine::gpus(1);
    let file = machine.path().join("file");
    fs::write(&file, "").expect("our own directory");
    let mut status = machine.autocvd();
    status.env("AUTOCVD_CLAIM_DIR", &file).arg("status");
    status.stderr(
        File::options()
            .write(true)
            .open("/dev/full")
            .expect("/dev/full is everywhere"),
    );
    let output = status.output().expect("it runs");
    assert!(
        output.status.success() && !output.stdout.is_empty(),
        "{output:?}"
    );
}

#[test]
fn a_fifo_that_nobody_writes_to_does_not_hang() {
    let machine = Machine::gpus(1);
    let fifo = machine.path().join("fifo");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0)
        .expect("our own directory");
    assert_told(&run(machine.autocvd().arg("--from").arg(&fifo)), 2, "empty");
}

#[test]
fn huge_numbers_are_numbers() {
    let machine = Machine::gpus(1);
    let mut job = machine.job(0);
    let mut waiting = start(machine.autocvd().args([
        "--no-claim",
        "-i",
        "10000000000000000000",
        "-t",
        "10000000000000000000",
    ]));
    wait_until("it waits", || {
        waiting.stderr().contains("waiting for a GPU")
    });
    assert!(waiting.is_running());
    job.kill();
    assert!(
        waiting
            .finish()
            .success()
            .ends_with("CUDA_VISIBLE_DEVICES=0\n")
    );
    // A hold without end holds.
    let holder =
        start(&mut machine.shell("sh", "autocvd -o --hold 10000000000000000000; sleep 600; :"));
    wait_until("it holds", || holder.stdout() == "0\n");
    let held = run(machine.autocvd().args(["-o", "-t", "0"]));
    assert!(
        held.code == Some(4) && held.stderr.contains("claimed by"),
        "{held:#?}"
    );
    let file = machine.path().join("recorded.json");
    let huge = json!({"total": u64::MAX, "used": u64::MAX, "free": u64::MAX});
    let process =
        json!({"pid": u32::MAX, "type": "G", "used_memory": u64::MAX, "started": u64::MAX});
    let gpu = json!({
        "index": 0,
        "compute_mode": "DEFAULT",
        "memory": huge,
        "processes": [process, process],
    });
    fs::write(
        &file,
        json!({"schema": 1, "source": "file", "gpus": [gpu]}).to_string(),
    )
    .expect("our own directory");
    for words in [
        &["-o"][..],
        &["-o", "-l"],
        &["-o", "-v"],
        &["-o", "-t", "0"],
    ] {
        assert_eq!(
            run(machine.autocvd().arg("--from").arg(&file).args(words)).success(),
            "0\n"
        );
    }
    let shown = run(machine.autocvd().args(["status", "--from"]).arg(&file)).success();
    assert!(shown.contains("9999-12-31"), "{shown}");
    let watching = start(
        machine
            .autocvd()
            .args(["status", "--watch=10000000000000000000"]),
    );
    wait_until("it shows the machine", || watching.stdout().contains("GPU"));
    watching.signal(Signal::TERM);
    assert_eq!(watching.finish().status(), Some(143));
}

#[test]
fn nothing_that_a_recorded_machine_holds_is_given_to_the_shell_to_run() {
    let machine = Machine::gpus(1);
    let file = machine.path().join("recorded.json");
    let ran = machine.path().join("ran");
    for uuid in [
        "GPU-$(touch ran)",
        "GPU-`touch ran`",
        "GPU-0;touch ran",
        "GPU-'",
        "GPU-\"",
        "GPU-0\ntouch ran\n",
        "GPU-0 touch ran",
        "-",
    ] {
        let memory = json!({"total": 1 << 30, "used": 0, "free": 1 << 30});
        let gpu = json!({
            "index": 1,
            "uuid": uuid,
            "compute_mode": "DEFAULT",
            "memory": memory,
            "processes": [],
        });
        let text = json!({"schema": 1, "source": "file", "gpus": [gpu]}).to_string();
        fs::write(&file, text).expect("our own directory");
        // The only GPU has index 1: its index cannot be what CUDA calls it.
        for words in [&[][..], &["--uuid"], &["-s"], &["-o"], &["-v"]] {
            let outcome = run(machine.autocvd().arg("--from").arg(&file).args(words));
            if uuid == "-" {
                continue;
            }
            assert_eq!(outcome.code, Some(2), "{uuid:?} {words:?}: {outcome:#?}");
            assert!(
                outcome.stdout.is_empty() || outcome.stdout.ends_with(&guard(2)),
                "{outcome:#?}"
            );
        }
        let script = "eval $(autocvd --from recorded.json) true; \
                      eval \"$(autocvd -s --from recorded.json)\"";
        run(machine.shell("bash", script).current_dir(machine.path()));
        assert!(!ran.exists(), "{uuid:?}");
    }
}

#[test]
fn what_a_recorded_machine_says_of_processes_stays_one_line() {
    let machine = Machine::gpus(1);
    let file = machine.path().join("recorded.json");
    let process = json!({"pid": 1, "type": "C", "user": "a\nb", "command": "x\ny\u{1b}[2J\rz"});
    let gpu = json!({"index": 0, "compute_mode": "DEFAULT", "processes": [process]});
    fs::write(
        &file,
        json!({"schema": 1, "source": "file", "gpus": [gpu]}).to_string(),
    )
    .expect("our own directory");
    let outcome = run(machine.autocvd().arg("--from").arg(&file));
    assert_told(&outcome, 4, "used by pid 1");
    assert!(
        !outcome.stderr.contains('\u{1b}') && !outcome.stderr.contains('\r'),
        "{outcome:#?}"
    );
}

/// A machine without nvidia-smi, whatever the one that runs the tests has.
fn without_nvidia_smi(machine: &Machine) -> Command {
    let mut command = machine.autocvd();
    command.env("PATH", machine.path().join("bin"));
    machine.install("touch", "#!/bin/sh\n:>\"$1\"\n");
    command
}

#[test]
fn without_a_library_each_source_is_told_of_in_one_line() {
    let machine = Machine::gpus(1);
    let text = machine.path().join("text.so");
    fs::write(&text, "no library").expect("our own directory");
    let libc = [
        "/lib/x86_64-linux-gnu/libm.so.6",
        "/lib64/libm.so.6",
        "/usr/lib/libm.so.6",
        "/lib/aarch64-linux-gnu/libm.so.6",
    ];
    let other = libc.iter().map(Path::new).find(|path| path.exists());
    let missing = Path::new("/nonexistent/libnvidia-ml.so.1");
    for library in [
        Some(text.as_path()),
        Some(missing),
        Some(machine.path()),
        other,
    ]
    .into_iter()
    .flatten()
    {
        let command = || {
            let mut command = without_nvidia_smi(&machine);
            command.env("AUTOCVD_NVML_LIB", library);
            command
        };
        assert_fails(&command, 5, &library.to_string_lossy());
        let outcome = run(command().args(["--probe", "nvml"]));
        assert_told(&outcome, 5, "AUTOCVD_NVML_LIB");
        let outcome = run(command().args(["status", "--json"]));
        assert_told(&outcome, 5, "nvidia-smi");
        assert_eq!(outcome.stdout, "");
    }
    assert_eq!(left_behind(&machine), [""; 0]);
}

#[test]
fn without_a_driver_it_says_to_install_one() {
    if Path::new("/proc/driver/nvidia").exists() {
        common::skip("this machine has a driver");
        return;
    }
    let machine = Machine::gpus(1);
    let command = || {
        let mut command = without_nvidia_smi(&machine);
        command.env_remove("AUTOCVD_NVML_LIB");
        command
    };
    assert_fails(&command, 5, "install the NVIDIA driver");
}

#[test]
fn a_driver_that_cannot_be_initialized_is_told_of_with_what_helps() {
    let machine = Machine::gpus(1);
    for (code, says) in [
        (9, "modprobe nvidia"),
        (15, "reboot"),
        (18, "version mismatch"),
        (27, "NOT_READY"),
        (999, "restart the container"),
        (4, "no permission"),
        (12345, "12345"),
    ] {
        machine.set("/init/code", json!(code));
        assert_fails(&|| without_nvidia_smi(&machine), 5, says);
    }
    machine.set("/init/code", json!(0)).set("/gpus", json!([]));
    assert_fails(&|| without_nvidia_smi(&machine), 5, "finds no GPU");
    machine.set("/gpus", json!([{"errors": {"handle": 4}}]));
    let outcome = run(&mut without_nvidia_smi(&machine));
    assert_eq!((outcome.code, outcome.stdout), (Some(5), guard(5)));
    assert!(
        outcome.stderr.contains("no permission"),
        "{}",
        outcome.stderr
    );
}

/// How scripts start a program on what was found, `OPTIONS` being the program's. All of them start
/// it only on success.
const FORMS: [(&str, &str); 7] = [
    ("sh", "eval $(autocvd OPTIONS) touch ran"),
    ("sh", "eval $(autocvd OPTIONS)"),
    ("sh", "eval \"$(autocvd -s OPTIONS)\" && touch ran"),
    ("bash", "eval $(autocvd OPTIONS) touch ran"),
    ("bash", "eval $(autocvd OPTIONS)"),
    ("bash", ". <(autocvd -s OPTIONS) && touch ran"),
    ("bash", "eval \"$(autocvd -s OPTIONS)\" && touch ran"),
];

#[test]
fn a_shell_that_evaluates_a_failure_runs_nothing_and_ends_in_its_code() {
    let busy = Machine::gpus(1);
    let _job = busy.job(0);
    let broken = Machine::gpus(1);
    broken
        .set("/init/code", json!(18))
        .install("nvidia-smi", "#!/bin/sh\nexit 18\n");
    let text = busy.path().join("text");
    fs::write(&text, "no machine").expect("our own directory");
    let from = format!("--from {}", text.display());
    for (machine, options, code) in [
        (&busy, "-n 0", 2),
        (&busy, "-n 0 --", 2),
        (&busy, "--nonsense", 2),
        (&busy, "stray", 2),
        (&busy, "-x", 2),
        (&busy, "-x 99", 2),
        (&busy, from.as_str(), 2),
        (&busy, "-n 2", 3),
        (&busy, "-t 0", 4),
        (&broken, "", 5),
    ] {
        for (shell, form) in FORMS {
            let ran = machine.path().join("ran");
            let outcome = run(machine
                .shell(shell, &form.replace("OPTIONS", options))
                .current_dir(machine.path()));
            assert_eq!(
                outcome.code,
                Some(code),
                "{shell}: {form} {options}: {outcome:#?}"
            );
            assert!(!ran.exists(), "{shell}: {form} {options}: {outcome:#?}");
            assert!(
                outcome.stderr.starts_with("autocvd: "),
                "{shell}: {form} {options}: {outcome:#?}"
            );
        }
    }
}

const SIGNALS: [(Signal, i32, &str); 6] = [
    (Signal::INT, 130, "SIGINT"),
    (Signal::TERM, 143, "SIGTERM"),
    (Signal::HUP, 129, "SIGHUP"),
    (Signal::QUIT, 131, "SIGQUIT"),
    (Signal::USR1, 138, "SIGUSR1"),
    (Signal::XCPU, 152, "SIGXCPU"),
];
/// What a crash sends, and what ends a process without a word.
const OTHERS: [(Signal, i32, &str); 6] = [
    (Signal::SEGV, 139, ""),
    (Signal::ABORT, 134, ""),
    (Signal::BUS, 135, ""),
    (Signal::ALARM, 142, ""),
    (Signal::USR2, 140, ""),
    (Signal::PROF, 155, ""),
];

#[test]
fn a_signal_ends_a_wait_at_once_and_nothing_is_left_behind() {
    for (signal, code, name) in SIGNALS {
        let machine = Machine::gpus(1);
        let _job = machine.job(0);
        for (words, stdout) in [
            (&[][..], guard(code)),
            (&["-s"], export_guard(code)),
            (&["-o"], String::new()),
            (&["--", "true"], String::new()),
        ] {
            let waiting = start(machine.autocvd().args(words));
            wait_until("it waits", || {
                waiting.stderr().contains("waiting for a GPU")
            });
            waiting.signal(signal);
            let outcome = waiting.finish();
            assert_eq!(
                (outcome.status(), &outcome.stdout),
                (Some(code), &stdout),
                "{words:?}: {outcome:#?}"
            );
            assert!(
                outcome
                    .stderr
                    .lines()
                    .last()
                    .is_some_and(|line| line.contains(name)),
                "{outcome:#?}"
            );
            assert_eq!(left_behind(&machine), [""; 0]);
        }
    }
}

#[test]
fn it_dies_of_the_signal_that_ends_it() {
    let machine = Machine::gpus(1);
    let _job = machine.job(0);
    for (signal, number) in [(Signal::INT, 2), (Signal::TERM, 15), (Signal::HUP, 1)] {
        let waiting = start(&mut machine.autocvd());
        wait_until("it waits", || {
            waiting.stderr().contains("waiting for a GPU")
        });
        waiting.signal(signal);
        assert_eq!(waiting.finish().signal, Some(number));
    }
}

#[test]
fn what_the_drivers_library_does_with_standard_output_concerns_nobody_else() {
    let machine = Machine::gpus(1);
    let choice = "CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=0\n";
    for mischief in ["print", "close", "redirect"] {
        machine.set("/init", json!({"stdout": mischief}));
        let outcome = run(machine.autocvd().arg("--no-claim"));
        assert_eq!(outcome.stdout, choice, "{mischief}: {outcome:#?}");
        let printed = outcome.stderr.contains("printed by the library");
        assert_eq!(printed, mischief == "print", "{outcome:#?}");
        let outcome = run(machine
            .autocvd()
            .args(["--no-claim", "--", "echo", "output"]));
        assert_eq!(outcome.stdout, "output\n", "{mischief}: {outcome:#?}");
        // The claim lasts as long as COMMAND, whatever number its file got.
        let holder = start(
            machine
                .autocvd()
                .args(["--", "sh", "-c", "echo on; sleep 600"]),
        );
        wait_until("it runs", || holder.stdout() == "on\n");
        assert_eq!(common::look(&machine).code, Some(4), "{mischief}");
        drop(holder);
        let outcome = run(machine.autocvd().args(["-n", "2"]));
        assert_eq!(outcome.stdout, guard(3), "{mischief}: {outcome:#?}");
        machine.set("/init/ends", json!("crash"));
        let outcome = run(&mut machine.autocvd());
        assert_eq!(outcome.stdout, guard(139), "{mischief}: {outcome:#?}");
    }
}

#[test]
fn real_time_signals_guard_too() {
    let machine = Machine::gpus(1);
    let _job = machine.job(0);
    for signal in [libc::SIGRTMIN(), libc::SIGRTMIN() + 7, libc::SIGRTMAX()] {
        let waiting = start(&mut machine.autocvd());
        wait_until("it waits", || {
            waiting.stderr().contains("waiting for a GPU")
        });
        // SAFETY: the process is a child that has not been waited for.
        unsafe { libc::kill(waiting.pid() as i32, signal) };
        let outcome = waiting.finish();
        assert_eq!(outcome.status(), Some(128 + signal), "{outcome:#?}");
        assert_eq!(outcome.stdout, guard(128 + signal));
    }
}

/// Has the program start with these signals blocked or ignored.
fn with_signals(command: &mut Command, signals: &'static [i32], blocked: bool) {
    // SAFETY: async-signal-safe calls on values of their own, in a process that has one thread.
    unsafe {
        command.pre_exec(move || {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            for signal in signals {
                match blocked {
                    true => drop(libc::sigaddset(&mut set, *signal)),
                    false => drop(libc::signal(*signal, libc::SIG_IGN)),
                }
            }
            libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
            Ok(())
        });
    }
}

#[test]
fn a_crash_is_guarded_whatever_the_parent_blocked_or_ignored() {
    let machine = Machine::gpus(1);
    for (ending, signal) in [("crash", libc::SIGSEGV), ("abort", libc::SIGABRT)] {
        machine.set("/init/ends", json!(ending));
        for blocked in [true, false] {
            let mut command = machine.autocvd();
            with_signals(&mut command, &[libc::SIGSEGV, libc::SIGABRT], blocked);
            let outcome = run(&mut command);
            assert_eq!(outcome.stdout, guard(128 + signal), "{outcome:#?}");
            assert_eq!(outcome.signal, Some(signal), "{outcome:#?}");
        }
    }
}

#[test]
fn the_timeout_holds_whatever_the_parent_did_with_the_timers_signal() {
    let machine = Machine::gpus(1);
    machine.set("/init/delay_ms", json!(60_000));
    for blocked in [true, false] {
        let mut command = machine.autocvd();
        with_signals(command.args(["-t", "300ms"]), &[libc::SIGALRM], blocked);
        let outcome = run(&mut command);
        assert_told(&outcome, 4, "did not answer in time (300 ms)");
        assert_eq!(outcome.stdout, guard(4));
    }
}

#[test]
fn a_variable_does_not_switch_the_guard_off() {
    let machine = Machine::gpus(1);
    for (name, value, stdout) in [
        ("AUTOCVD_JSON", "1", guard(3)),
        ("AUTOCVD_ID_ONLY", "1", guard(3)),
        ("AUTOCVD_SOURCE", "1", export_guard(3)),
        ("AUTOCVD_SHELL", "fish", guard(3)),
        ("AUTOCVD_FORMAT", "cdi", "--autocvd-found-no-gpu\n".into()),
    ] {
        let outcome = run(machine.autocvd().args(["-n", "2"]).env(name, value));
        assert_eq!(outcome.stdout, stdout, "{name}={value}: {outcome:#?}");
        assert_eq!(outcome.code, Some(3));
    }
}

#[test]
fn a_process_that_may_write_no_files_gets_and_claims_its_gpu() {
    let machine = Machine::gpus(1);
    let script = "ulimit -f 0; autocvd -- printenv CUDA_VISIBLE_DEVICES";
    let mut shell = machine.shell("dash", script);
    // Its own output goes to pipes: it may not write to files.
    let output = shell.stdout(Stdio::piped()).stderr(Stdio::piped()).output();
    let output = output.expect("it runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "0\n", "{stderr}");
    assert_eq!(stderr, "");
}

#[test]
fn a_signal_ends_a_call_of_a_driver_that_hangs() {
    let machine = Machine::gpus(1);
    for (function, pointer) in [
        ("nvmlInit_v2", "/init/delay_ms"),
        (
            "nvmlDeviceGetMemoryInfo_v2",
            "/delays_ms/nvmlDeviceGetMemoryInfo_v2",
        ),
    ] {
        machine.set(pointer, json!(60_000));
        for (signal, code, name) in SIGNALS {
            machine.forget_calls();
            let hanging = start(&mut machine.autocvd());
            wait_until("the driver hangs", || {
                machine.calls().iter().any(|call| call == function)
            });
            let signalled = Instant::now();
            hanging.signal(signal);
            let outcome = hanging.finish();
            assert!(signalled.elapsed() < Duration::from_secs(30));
            assert_told(&outcome, code, name);
            assert_eq!(outcome.stdout, guard(code));
            assert_eq!(left_behind(&machine), [""; 0]);
        }
        machine.set(pointer, json!(0));
    }
}

#[test]
fn many_signals_at_once_are_as_good_as_one() {
    let machine = Machine::gpus(1);
    let _job = machine.job(0);
    let waiting = start(&mut machine.autocvd());
    wait_until("it waits", || {
        waiting.stderr().contains("waiting for a GPU")
    });
    waiting.signal(Signal::STOP);
    for (signal, ..) in SIGNALS
        .into_iter()
        .chain([(Signal::USR2, 0, ""), (Signal::ALARM, 0, "")])
    {
        waiting.signal(signal);
    }
    waiting.signal(Signal::CONT);
    let outcome = waiting.finish();
    let code = outcome.status().expect("it has ended");
    assert_eq!(outcome.stdout, guard(code), "{outcome:#?}");
    assert_eq!(left_behind(&machine), [""; 0]);
}

#[test]
fn a_library_that_ends_the_process_starts_nothing() {
    let machine = Machine::gpus(1);
    let ran = machine.path().join("ran");
    for (ending, code) in [("crash", 139), ("abort", 134), ("exit", 1)] {
        machine.set("/init/ends", json!(ending));
        for form in [
            "eval $(autocvd) touch ran",
            ". <(autocvd -s) && touch ran",
            "autocvd -- touch ran",
        ] {
            let outcome = run(machine
                .shell("bash", &format!("{form}; exit"))
                .current_dir(machine.path()));
            assert_eq!(outcome.code, Some(code), "{ending} {form}: {outcome:#?}");
            assert!(
                outcome.stderr.contains("the NVIDIA driver's library"),
                "{ending} {form}: {outcome:#?}"
            );
            assert!(!ran.exists(), "{ending} {form}: {outcome:#?}");
        }
    }
}

#[test]
fn a_shell_whose_wait_is_interrupted_runs_nothing() {
    for (signal, code, _) in SIGNALS.into_iter().chain(OTHERS) {
        let machine = Machine::gpus(1);
        let _job = machine.job(0);
        let script = "echo $$ >shell; eval $(sh -c 'echo $$ >asking; exec autocvd') touch ran";
        let waiting = start(machine.shell("sh", script).current_dir(machine.path()));
        wait_until("it waits", || {
            waiting.stderr().contains("waiting for a GPU")
        });
        let requester = fs::read_to_string(machine.path().join("asking")).expect("written before");
        let requester = rustix::process::Pid::from_raw(requester.trim().parse().expect("a pid"))
            .expect("not 0");
        rustix::process::kill_process(requester, signal).expect("our own process");
        let outcome = waiting.finish();
        assert_eq!(outcome.code, Some(code), "{outcome:#?}");
        assert!(!machine.path().join("ran").exists(), "{outcome:#?}");
    }
}

#[test]
fn a_signal_that_was_ignored_stays_ignored() {
    let machine = Machine::gpus(1);
    let mut job = machine.job(0);
    let waiting = start(&mut machine.shell("sh", "trap '' INT HUP; exec autocvd -o"));
    wait_until("it waits", || {
        waiting.stderr().contains("waiting for a GPU")
    });
    waiting.signal(Signal::INT);
    waiting.signal(Signal::HUP);
    job.kill();
    assert_eq!(waiting.finish().success(), "0\n");
}

#[test]
fn output_that_cannot_be_written_is_a_failure_and_leaves_no_claim() {
    let machine = Machine::gpus(1);
    let full = || {
        Stdio::from(
            File::options()
                .write(true)
                .open("/dev/full")
                .expect("/dev/full is everywhere"),
        )
    };
    for words in [&[][..], &["-s"], &["-o"], &["--json"]] {
        let mut command = machine.autocvd();
        let output = command
            .args(words)
            .stdout(full())
            .stderr(Stdio::piped())
            .output()
            .expect("it runs");
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{words:?}: {told}");
        assert!(
            told.starts_with("autocvd: cannot write to standard output: ")
                && told.lines().count() == 1,
            "{told}"
        );
        assert_eq!(left_behind(&machine), [""; 0]);

        // Closed; and nothing that is opened later may take its place.
        let script = format!("autocvd {} >&-", words.join(" "));
        let outcome = run(&mut machine.shell("sh", &script));
        assert_told(&outcome, 1, "cannot write to standard output");
        assert_eq!(left_behind(&machine), [""; 0]);

        let script = format!("autocvd {} <&- >&- 2>&-", words.join(" "));
        assert_eq!(run(&mut machine.shell("sh", &script)).code, Some(1));
        assert_eq!(left_behind(&machine), [""; 0]);

        // A pipe that nobody reads.
        let (reader, writer) = common::pipe();
        drop(reader);
        let status = machine
            .autocvd()
            .args(words)
            .stdout(writer)
            .status()
            .expect("it runs");
        assert_ne!(status.code(), Some(0), "{words:?}");
        assert_eq!(left_behind(&machine), [""; 0]);
    }
}

#[test]
fn a_closed_standard_error_gets_into_no_file() {
    let machine = Machine::gpus(1);
    let _job = machine.job(0);
    let outcome = run(&mut machine.shell("sh", "autocvd -vv -t 50ms 2>&-"));
    assert_eq!((outcome.code, outcome.stdout), (Some(4), guard(4)));
    // And what the program becomes finds its descriptors as they were.
    let script = "autocvd -l -- sh -c 'for n in 0 1 2; do test -e /proc/self/fd/$n && exit 9; \
                  done; exit 7' <&- >&- 2>&-";
    assert_eq!(run(&mut machine.shell("sh", script)).code, Some(7));
}

#[test]
fn a_driver_that_hangs_does_not_outlast_the_timeout() {
    let machine = Machine::gpus(1);
    machine.set("/init/delay_ms", json!(60_000));
    let began = Instant::now();
    let command = || {
        let mut command = machine.autocvd();
        command.args(["-t", "300ms"]);
        command
    };
    assert_fails(&command, 4, "did not answer in time (300 ms)");
    assert!(
        began.elapsed() < Duration::from_secs(30),
        "{:?}",
        began.elapsed()
    );
    // A call that hangs only while it waits.
    machine.set("/init/delay_ms", json!(0));
    let _job = machine.job(0);
    let waiting = start(machine.autocvd().args(["-t", "2", "-i", "100ms"]));
    wait_until("it waits", || {
        waiting.stderr().contains("waiting for a GPU")
    });
    machine.set("/delays_ms/nvmlDeviceGetMemoryInfo_v2", json!(60_000));
    let outcome = waiting.finish();
    assert_eq!(
        (outcome.code, outcome.stdout),
        (Some(4), guard(4)),
        "{}",
        outcome.stderr
    );
    assert_eq!(left_behind(&machine), [""; 0]);
}

#[test]
fn a_driver_that_is_silent_for_long_is_told_of() {
    let machine = Machine::gpus(1);
    machine.set("/init/delay_ms", json!(5_500));
    let quiet = start(machine.autocvd().args(["-q", "--no-claim"]));
    let outcome = run(machine.autocvd().arg("--no-claim"));
    assert!(
        outcome
            .stderr
            .starts_with("autocvd: the NVIDIA driver has not answered for 5 s"),
        "{outcome:#?}"
    );
    assert_eq!(outcome.stderr.lines().count(), 1);
    assert_eq!(
        outcome.success(),
        "CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=0\n"
    );
    let quiet = quiet.finish();
    assert_eq!((quiet.code, quiet.stderr.as_str()), (Some(0), ""));
}

#[test]
fn a_single_look_lets_a_slow_driver_answer() {
    let machine = Machine::gpus(1);
    machine.set("/init/delay_ms", json!(2_000));
    let outcome = run(machine.autocvd().args(["-t", "0", "-o"]));
    assert_eq!(
        (
            outcome.code,
            outcome.stdout.as_str(),
            outcome.stderr.as_str()
        ),
        (Some(0), "0\n", "")
    );
}

#[test]
fn a_command_that_cannot_be_run_is_told_before_anything_is_asked() {
    let machine = Machine::gpus(1);
    let file = machine.path().join("data");
    fs::write(&file, "data").expect("our own directory");
    let directory = machine.path().to_str().expect("plain").to_owned();
    let file = file.to_str().expect("plain").to_owned();
    for (program, code) in [
        ("no-such-program", 127),
        ("/no/such/program", 127),
        ("", 127),
        (directory.as_str(), 126),
        (file.as_str(), 126),
    ] {
        let outcome = run(machine.autocvd().args(["--", program]));
        assert_told(&outcome, code, &format!("'{program}'"));
        assert_eq!(outcome.stdout, "");
    }
    assert!(machine.calls().is_empty());
    // One that turns out to be none only in the end.
    machine.install("broken", "#!/no/such/interpreter\n");
    let outcome = run(machine.autocvd().args(["--", "broken"]));
    assert_told(&outcome, 127, "'broken'");
    assert_eq!(left_behind(&machine), [""; 0]);
}

#[test]
fn a_command_line_that_is_not_text_is_a_wrong_value() {
    use std::os::unix::ffi::OsStrExt;
    let machine = Machine::gpus(1);
    let odd = std::ffi::OsStr::from_bytes(b"-n\xff");
    let outcome = run(machine.autocvd().arg(odd));
    assert_eq!((outcome.code, outcome.stdout), (Some(2), guard(2)));
    // argv may be empty altogether.
    let mut command = machine.autocvd();
    command.arg0("");
    assert_eq!(run(&mut command).code, Some(0));
}
