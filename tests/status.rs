//! What `autocvd status` shows and prints, and that a recorded machine leads to the same choice.
#![cfg(feature = "cli")]

mod common;

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use common::{Machine, Outcome, Running, run, start, wait_until};
use rustix::process::Signal;
use serde_json::{Value, json};

const GIB: u64 = 1 << 30;

fn in_repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn status(machine: &Machine, args: &[&str]) -> String {
    run(machine.autocvd().arg("status").args(args)).success()
}

fn status_json(machine: &Machine) -> Value {
    serde_json::from_str(&status(machine, &["--json"])).expect("JSON")
}

/// Fails unless `value` is what the schema says.
#[track_caller]
fn assert_valid(schema: &str, value: &Value) {
    let path = in_repository(&format!("schema/{schema}.schema.json"));
    let schema: Value =
        serde_json::from_str(&fs::read_to_string(path).expect("a schema")).expect("JSON");
    let validator = jsonschema::draft202012::new(&schema).expect("a valid schema");
    let errors: Vec<String> = validator
        .iter_errors(value)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect();
    assert!(errors.is_empty(), "{errors:#?}\n{value:#}");
}

fn examples() -> Vec<PathBuf> {
    let entries = fs::read_dir(in_repository("examples"))
        .expect("a directory")
        .map(|entry| entry.expect("readable").path());
    let mut files: Vec<PathBuf> = entries
        .filter(|path| path.extension().is_some_and(|end| end == "json"))
        .collect();
    files.sort();
    assert!(files.len() >= 5, "{files:?}");
    files
}

/// Claims a GPU for as long as the answer lives.
fn claim(machine: &Machine, args: &[&str]) -> Running {
    common::hold(machine.autocvd().args(args))
}

/// A machine of which everything is said that the form knows.
fn varied() -> Machine {
    Machine::described(json!({
        "gpus": [
            {
                "processes": [{"pid": 4_200_001, "type": "G", "memory": 100 << 20}],
                "display_active": true,
            },
            {},
            {},
            {"errors": {"handle": 15}},
            {
                "mig": {"enabled": true, "devices": [{}, null, {"name": null, "memory": null}]},
                "utilization": null,
            },
            {
                "name": null,
                "utilization": null,
                "numa_node": 1,
                "compute_mode": "EXCLUSIVE_PROCESS",
            },
            {"memory": null, "errors": {"nvmlDeviceGetComputeRunningProcesses": 4}},
        ],
        "links": [
            {"gpus": [0, 1], "nvlinks": 4, "ancestor": "single"},
            {"gpus": [1, 2], "ancestor": "node"},
        ],
    }))
}

#[test]
fn what_is_printed_as_json_is_what_the_schema_says() {
    let machine = varied();
    let _job = machine.job_that(1, "C+G 1000000000");
    let _part = machine.job("4.0");
    let _claim = claim(&machine, &["--only", "2"]);
    let status = status_json(&machine);
    assert_valid("status", &status);
    let states: Vec<_> = status["gpus"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|gpu| gpu["state"].clone())
        .collect();
    assert_eq!(
        states,
        [
            "free",
            "busy",
            "claimed",
            "unavailable",
            "busy",
            "free",
            "free"
        ],
        "{status:#}"
    );
    let job = &status["gpus"][1]["processes"][0];
    assert_eq!(
        (&job["type"], &job["command"], &job["used_memory"]),
        (&json!("C+G"), &json!("sleep 600"), &json!(1_000_000_000))
    );
    let age = SystemTime::UNIX_EPOCH
        .elapsed()
        .expect("after 1970")
        .as_secs()
        - job["started"].as_u64().expect("a time");
    assert!(job["user"].is_string() && age < 600, "{job}");
    let claim = &status["gpus"][2]["claims"][0];
    assert_eq!(claim["command"], "sleep 600");
    assert_eq!(claim["kind"], "command");
    assert!(
        claim["since"].is_u64() && claim["user"] == job["user"],
        "{claim}"
    );
    let parts = status["gpus"][4]["mig"]["devices"]
        .as_array()
        .expect("a list");
    let states: Vec<_> = parts
        .iter()
        .map(|part| (&part["index"], &part["state"]))
        .collect();
    assert_eq!(
        states,
        [(&json!(0), &json!("busy")), (&json!(2), &json!("busy"))],
        "{status:#}"
    );
}

#[test]
fn what_is_unknown_is_null_and_not_zero() {
    let machine = varied();
    let status = status_json(&machine);
    let nothing = json!({"total": null, "used": null, "free": null});
    // It shares the machine's memory, and nothing tells what of it is the GPU's.
    assert_eq!(status["gpus"][6]["memory"]["used"], Value::Null);
    assert!(status["gpus"][6]["memory"]["total"].is_u64(), "{status:#}");
    let absent = status["gpus"][6]["not_applicable"]
        .as_array()
        .expect("a list");
    assert!(absent.contains(&json!("memory.used")), "{status:#}");
    assert_eq!(status["gpus"][3]["not_applicable"], json!([]));
    assert_eq!(status["gpus"][3]["memory"], nothing);
    assert_eq!(status["gpus"][3]["processes"], Value::Null);
    assert_eq!(
        status["gpus"][5]["utilization"],
        json!({"gpu": null, "memory": null})
    );
    assert_eq!(status["gpus"][5]["name"], Value::Null);
}

#[test]
fn a_choice_printed_as_json_is_what_the_schema_says() {
    let machine = varied();
    for args in [
        &["--only", "1"][..],
        &["--only", "0,1,2", "-n", "2"],
        &["--only", "5"],
        &["--only", "4"],
    ] {
        let found = run(machine
            .autocvd()
            .args(["--json", "-l", "--hold", "0"])
            .args(args))
        .success();
        assert_valid("choice", &serde_json::from_str(&found).expect("JSON"));
    }
}

#[test]
fn the_examples_are_what_the_schema_says_and_are_printed_back() {
    let machine = Machine::gpus(1);
    for example in examples() {
        let text = fs::read_to_string(&example).expect("a file");
        assert_valid("status", &serde_json::from_str(&text).expect("JSON"));
        let printed = status(
            &machine,
            &["--json", "--from", example.to_str().expect("UTF-8")],
        );
        assert_eq!(
            printed.replacen("\"file\"", "\"nvml\"", 1),
            text,
            "{example:?}"
        );
    }
}

#[test]
fn the_examples_lead_to_the_choices_that_the_manual_explains() {
    let machine = Machine::gpus(1);
    for (example, args, code, stdout) in [
        // A lost GPU makes indices mean other GPUs to CUDA: UUIDs.
        (
            "shared-server",
            "-o",
            0,
            "GPU-f02d1c15-ea6a-24a9-5371-6fd0937bc9cf\n",
        ),
        ("shared-server", "-o -n 3 -t 0", 4, ""),
        ("shared-server", "-o -n 8", 3, ""),
        // Xorg and a compositor are no reason to wait, but the GPU without them goes first.
        ("desktop", "-o", 0, "1\n"),
        ("desktop", "-o -n 2", 0, "0,1\n"),
        ("mig", "-o", 0, "GPU-66c3976f-b4d6-8b32-2487-28a5bd3f9378\n"),
        ("mig", "-o -x 1", 0, "MIG-"),
        ("mig", "-o -n 2", 3, ""),
        ("container", "-o", 0, "1\n"),
        ("container", "-o -n 2 -t 0", 4, ""),
        ("grace-hopper", "-o", 0, "0\n"),
    ] {
        let file = in_repository(&format!("examples/{example}.json"));
        let outcome = run(machine
            .autocvd()
            .arg("--from")
            .arg(file)
            .args(args.split(' ')));
        assert_eq!(outcome.code, Some(code), "{example} {args}: {outcome:?}");
        match stdout {
            "MIG-" => assert!(
                outcome.stdout.starts_with(stdout),
                "{example} {args}: {outcome:?}"
            ),
            _ => assert_eq!(outcome.stdout, stdout, "{example} {args}: {outcome:?}"),
        }
    }
}

#[test]
fn a_recorded_machine_leads_to_the_same_decision_as_the_live_one() {
    if !common::has_host_pids() {
        return;
    }
    let with = |gpus: Value| json!({ "gpus": gpus });
    let ring = |pairs: &[(u32, u32)]| -> Vec<Value> {
        pairs
            .iter()
            .map(|pair| json!({"gpus": [pair.0, pair.1], "nvlinks": 4, "ancestor": "node"}))
            .collect()
    };
    let machines = [
        with(json!([{}, {}, {}, {}])),
        json!({"gpus": [{}, {}, {}, {}, {}], "links": ring(&[(0, 1), (2, 3)])}),
        with(json!([{}, {"errors": {"handle": 15}}, {}, {"errors": {"handle": 4}}])),
        with(json!([
            {"mig": {"enabled": true, "devices": [{}, {}]}},
            {},
            {"mig": {"enabled": true}},
        ])),
        with(json!([{"mig": {"enabled": true, "devices": [{"compute_mode": "PROHIBITED"}, {}]}}])),
        with(json!([
            {"compute_mode": "PROHIBITED"},
            {"compute_mode": "EXCLUSIVE_PROCESS"},
            {"compute_mode": null},
        ])),
        with(json!([
            {"memory": {"used": 3 * GIB}},
            {"memory": {"used": 30 * GIB}},
            {"memory": null},
            {"processes": [{"pid": 4_200_000, "memory": null}]},
        ])),
        with(json!([
            {"numa_node": 1, "memory": {"used": 30 * GIB}},
            {"memory": {"used": 60 * GIB}},
            {"uuid": null},
        ])),
        json!({
            "gpus": [
                {"memory": {"used": GIB}},
                {},
                {"utilization": {"gpu": 50, "memory": 0}},
            ],
            "driver_version": null,
            "errors": {
                "nvmlDeviceGetComputeRunningProcesses": 4,
                "nvmlDeviceGetComputeRunningProcesses_v2": 4,
                "nvmlDeviceGetComputeRunningProcesses_v3": 4,
            },
        }),
    ];
    let lines = [
        "",
        "-s",
        "-o",
        "--json",
        "--uuid",
        "-n 2",
        "-n 3",
        "-n 9",
        "-l",
        "-l -n 2",
        "-x 0",
        "-x 7",
        "--only 0,2",
        "--only 0",
        "-m 50GiB",
        "-m 50GiB -l",
        "-m 500GiB",
        "-x GPU-1",
        "--no-claim",
    ];
    for (number, description) in machines.into_iter().enumerate() {
        let machine = Machine::described(description);
        let _job = machine.job(0);
        let _claim = (number < 3).then(|| claim(&machine, &["--only", "2", "-l"]));
        let recording = machine.path().join("recorded.json");
        fs::write(&recording, status(&machine, &["--json"])).expect("our own directory");
        let before = common::claimed_files(&machine);
        for line in lines {
            let decide = |from: &str| -> Outcome {
                // Nothing stays claimed, so that each decision is about the machine that was
                // recorded: neither for a time, nor for what another test starts, which a shell of
                // its own knows nothing of.
                run(&mut machine.shell(
                    "sh",
                    &format!(
                        "autocvd -t 0 --hold 0 {line} {from}; code=$?; autocvd release; exit $code"
                    ),
                ))
            };
            let live = without_amounts(decide(""));
            wait_until("what was decided is claimed no more", || {
                common::claimed_files(&machine) == before
            });
            let recorded = without_amounts(decide(&format!("--from {}", recording.display())));
            if live.code == Some(1) {
                // What a driver fails to tell is unexpected; a file without it is a wrong value.
                assert_eq!(
                    (recorded.code, recorded.stderr),
                    (Some(2), live.stderr),
                    "machine {number}: autocvd {line}"
                );
                continue;
            }
            assert_eq!(recorded, live, "machine {number}: autocvd {line}");
        }
    }
}

/// Unified memory is the machine's own: what is free of it changes from one moment to the next.
fn without_amounts(outcome: Outcome) -> Outcome {
    let words = outcome
        .stderr
        .split(' ')
        .map(|word| match word.parse::<f64>() {
            Ok(_) if word.contains('.') => "…",
            _ => word,
        });
    let stderr = words.collect::<Vec<_>>().join(" ");
    Outcome { stderr, ..outcome }
}

/// Compares with `tests/snapshots/NAME.txt`; with UPDATE_SNAPSHOTS set, writes it.
#[track_caller]
fn assert_snapshot(name: &str, screen: &str) {
    let path = in_repository(&format!("tests/snapshots/{name}.txt"));
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        fs::create_dir_all(path.parent().expect("a directory")).expect("our own directory");
        fs::write(&path, screen).expect("our own directory");
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        screen == expected,
        "{name} is not as it was; UPDATE_SNAPSHOTS=1 accepts it\n\
         --- was\n{expected}--- is\n{screen}"
    );
}

/// The screen of a recorded machine.
fn screen(file: &Path, columns: &str) -> String {
    let machine = Machine::gpus(1);
    let outcome = run(machine
        .autocvd()
        .args(["status", "--from"])
        .arg(file)
        .env("COLUMNS", columns));
    let screen = outcome.success();
    let columns: usize = columns.parse().unwrap_or(80);
    let longest = screen
        .lines()
        .map(|line| line.chars().count())
        .max()
        .unwrap_or(0);
    // One of the machines has names that take two columns a character: they leave fewer, never
    // more.
    assert!(longest <= columns, "{longest} columns:\n{screen}");
    screen
}

#[test]
fn the_screen_of_each_example_fits() {
    for example in examples() {
        let name = example
            .file_stem()
            .expect("a name")
            .to_str()
            .expect("UTF-8")
            .to_owned();
        for columns in ["40", "60", "80", "120", "200"] {
            let screen = screen(&example, columns);
            if columns != "40" {
                assert_snapshot(&format!("{name}-{columns}"), &screen);
            }
        }
    }
}

/// Writes what `status --json` would print of these GPUs.
fn record(directory: &Path, gpus: Value) -> PathBuf {
    let file = directory.join("machine.json");
    let all = json!({
        "schema": 1,
        "source": "nvml",
        "driver_version": "580.82.07",
        "process_view": "host",
        "gpus": gpus,
        "links": [],
    });
    fs::write(&file, all.to_string()).expect("our own directory");
    file
}

fn idle(index: usize) -> Value {
    json!({
        "index": index,
        "uuid": format!("GPU-{index:08}-0000-0000-0000-000000000000"),
        "pci_bus_id": format!("00000000:{index:02X}:00.0"),
        "name": "NVIDIA A100-SXM4-40GB",
        "memory": {"total": 40 * GIB, "used": 0, "free": 40 * GIB},
        "utilization": {"gpu": 0, "memory": 0},
        "compute_mode": "DEFAULT",
        "mig": null,
        "processes": [],
    })
}

#[test]
fn sixteen_gpus_stay_readable() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut gpus: Vec<Value> = (0..16).map(idle).collect();
    gpus[11]["processes"] = json!([{
        "pid": 31,
        "type": "C",
        "user": "audio",
        "command": "./a",
        "used_memory": GIB,
        "started": 1_772_524_800,
    }]);
    let screen = screen(&record(directory.path(), json!(gpus)), "80");
    assert_snapshot("sixteen-gpus-80", &screen);
    assert_eq!(screen.lines().count(), 3 + 16 + 2);
}

#[test]
fn long_names_and_strange_ones_keep_their_place() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut gpus: Vec<Value> = (0..3).map(idle).collect();
    gpus[0]["name"] = json!("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition");
    gpus[0]["processes"] = json!([
        {
            "pid": 4_194_303,
            "type": "C",
            "user": "a-user-with-a-very-long-name",
            "command": "python ".repeat(40),
            "used_memory": 30 * GIB,
            "started": 0,
        },
        {
            "pid": 7,
            "type": "M+C",
            "user": "訓練",
            "command": "訓練する --名前 訓練",
            "used_memory": null,
            "started": null,
        },
    ]);
    gpus[1]["name"] = json!("\u{1b}[31mred\u{9b}0m\u{202e}\n");
    gpus[1]["claims"] = json!([{
        "pid": null,
        "user": null,
        "command": "\u{1b}]0;title\u{7}",
        "since": 1_772_524_800,
    }]);
    gpus[2]["state"] = json!("unavailable");
    gpus[2]["reason"] = json!("\u{1b}[2Jlost ".repeat(30));
    let file = record(directory.path(), json!(gpus));
    for columns in ["80", "120"] {
        let screen = screen(&file, columns);
        assert!(
            !screen.chars().any(|c| c.is_control() && c != '\n'),
            "{screen:?}"
        );
        assert_snapshot(&format!("long-names-{columns}"), &screen);
    }
    let json = status(
        &Machine::gpus(1),
        &["--json", "--from", file.to_str().expect("UTF-8")],
    );
    assert!(
        !json.chars().any(|c| c.is_control() && c != '\n'),
        "{json:?}"
    );
}

#[test]
fn what_is_unknown_shows_as_a_question_mark() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut unlisted = idle(1);
    unlisted["processes"] = Value::Null;
    let mut half = idle(2);
    half["memory"]["used"] = Value::Null;
    half["processes"] = json!([{"pid": 9, "type": "C"}]);
    let screen = screen(
        &record(directory.path(), json!([{"index": 0}, unlisted, half])),
        "80",
    );
    assert_snapshot("unknown-80", &screen);
    assert!(
        !screen.contains("0.0/?") && screen.contains("?/40.0"),
        "{screen}"
    );
}

#[test]
fn the_screen_says_who_is_on_a_gpu_and_for_how_long() {
    let machine = Machine::gpus(3);
    let _job = machine.job_that(0, "C 2147483648");
    let _claim = claim(&machine, &["--only", "2"]);
    let screen = status(&machine, &[]);
    let line = |words: &[&str]| {
        screen
            .lines()
            .find(|line| words.iter().all(|word| line.contains(word)))
    };
    assert!(screen.contains("1 of 3 free: 1"), "{screen}");
    assert!(
        screen.contains("3 × A100-SXM4-80GB · driver 580.82.07"),
        "{screen}"
    );
    let of_job = line(&["busy", "sleep 600", " 2.0/"]).expect(&screen);
    assert!(of_job.contains(" s "), "{screen}");
    assert!(line(&["claimed", "sleep 600"]).is_some(), "{screen}");
    assert!(screen.contains("USERS  "), "{screen}");
    assert!(!screen.contains('\x1b'), "{screen:?}");
}

#[test]
fn a_launch_that_has_become_its_program_is_shown_once() {
    let machine = Machine::gpus(2);
    let holder = start(
        machine
            .shell("sh", "exec autocvd --only 1 -- occupy 600")
            .arg(""),
    );
    wait_until("it computes, and is told of", || {
        let process = machine.path().join(format!("procs/1/{}", holder.pid()));
        process.exists() && common::tells_of(&machine.claims(), holder.pid())
    });
    let screen = status(&machine, &[]);
    let lines: Vec<&str> = screen
        .lines()
        .filter(|line| line.contains("sleep 600") || line.contains("occupy 600"))
        .collect();
    assert_eq!(lines.len(), 1, "{screen}");
    assert!(lines[0].contains("claimed"), "{screen}");
}

#[test]
fn status_in_one_line_is_for_prompts() {
    let machine = Machine::gpus(3);
    let _job = machine.job(0);
    assert_eq!(status(&machine, &["--short"]), "2/3 free\n");
    let outcome = run(machine.autocvd().args(["status", "--short", "--json"]));
    assert_eq!(outcome.code, Some(2), "{outcome:?}");
}

#[test]
fn a_machine_whose_gpus_are_all_lost_is_shown() {
    let machine = Machine::described(
        json!({"gpus": [{"errors": {"handle": 15}}, {"errors": {"handle": 15}}]}),
    );
    machine.install("nvidia-smi", "#!/bin/sh\nexit 9\n");
    let screen = status(&machine, &[]);
    assert!(screen.contains("0 of 2 free"), "{screen}");
    assert_eq!(screen.matches(" lost ").count(), 2, "{screen}");
}

#[test]
fn where_the_locale_is_not_utf8_the_screen_is_ascii() {
    let machine = Machine::gpus(1);
    for example in examples() {
        let example = example.to_str().expect("UTF-8");
        let mut command = machine.autocvd();
        command
            .args(["status", "--from", example])
            .env("LC_ALL", "C");
        let screen = run(&mut command).success();
        assert!(screen.is_ascii(), "{screen}");
    }
}

#[test]
fn colour_can_be_forced_and_forbidden() {
    let machine = Machine::gpus(1);
    let colored = |variables: &[(&str, &str)]| {
        let mut command = machine.autocvd();
        command.arg("status").envs(variables.iter().copied());
        run(&mut command).success().contains("\x1b[32mfree")
    };
    assert!(colored(&[("CLICOLOR_FORCE", "1")]));
    assert!(!colored(&[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")]));
    assert!(!colored(&[]));
}

#[test]
fn a_directory_of_claims_that_cannot_be_used_is_told_on_stderr_alone() {
    let machine = Machine::gpus(1);
    fs::write(machine.claims(), "no directory").expect("our own directory");
    let outcome = run(machine.autocvd().arg("status"));
    assert!(
        outcome.stderr.starts_with("autocvd: warning: "),
        "{outcome:?}"
    );
    assert!(
        outcome.code == Some(0) && outcome.stdout.contains("1 of 1 free"),
        "{outcome:?}"
    );
}

#[test]
fn without_a_gpu_it_ends_in_5_and_shows_nothing() {
    let machine = Machine::gpus(1);
    machine
        .set("/init/code", json!(9))
        .install("nvidia-smi", "#!/bin/sh\nexit 9\n");
    for args in [&[][..], &["--json"], &["--watch"]] {
        let outcome = run(machine.autocvd().arg("status").args(args));
        assert_eq!(
            (outcome.code, outcome.stdout.as_str()),
            (Some(5), ""),
            "{outcome:?}"
        );
    }
}

#[test]
fn watching_looks_again_with_nvml_initialized_once_and_ends_by_a_signal() {
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let machine = Machine::gpus(2);
        let watching = start(machine.autocvd().args(["status", "--watch=0.02"]));
        wait_until("the first screen is there", || {
            watching.stdout().contains("2 of 2 free")
        });
        let _job = machine.job(1);
        wait_until("the job is seen", || {
            watching.stdout().contains("1 of 2 free")
        });
        watching.signal(signal);
        let outcome = watching.finish();
        assert_eq!(
            (outcome.status(), outcome.stderr.as_str()),
            (Some(code), ""),
            "{outcome:?}"
        );
        assert!(
            outcome.stdout.contains("\n\n") && !outcome.stdout.contains('\x1b'),
            "{outcome:?}"
        );
        let inits = machine
            .calls()
            .iter()
            .filter(|call| call.contains("nvmlInit"))
            .count();
        assert_eq!(inits, 1);
    }
}

#[test]
fn watching_as_json_prints_a_document_a_line() {
    let machine = varied();
    let watching = start(machine.autocvd().args(["status", "--json", "--watch=0.02"]));
    wait_until("there are two", || watching.stdout().lines().count() > 2);
    for line in watching.stdout().lines().take(2) {
        assert_valid("status", &serde_json::from_str(line).expect("JSON"));
    }
}

#[test]
fn watching_a_file_shows_what_was_written_last() {
    let machine = Machine::gpus(1);
    let file = record(machine.path(), json!([idle(0)]));
    let recorded = file.with_file_name("recorded.json");
    fs::rename(&file, &recorded).expect("our own directory");
    let watching = start(
        machine
            .autocvd()
            .args(["status", "--watch=0.02", "--from"])
            .arg(&recorded),
    );
    wait_until("the first is shown", || {
        watching.stdout().contains("1 of 1 free")
    });
    fs::rename(record(machine.path(), json!([idle(0), idle(1)])), &recorded)
        .expect("our own directory");
    wait_until("the second is shown", || {
        watching.stdout().contains("2 of 2 free")
    });
}

/// Starts a command line on a terminal of its own, and returns what types there. `None` without
/// script(1).
fn on_a_terminal(
    machine: &Machine,
    line: &str,
    environment: &[(&str, &str)],
) -> Option<(Running, File)> {
    if !common::has("script") {
        return None;
    }
    let (input, keys) = common::pipe();
    let mut script = machine.command("script");
    script
        .args(["-qefc", line, "/dev/null"])
        .stdin(input)
        .env("TERM", "xterm")
        .envs(environment.iter().copied());
    Some((start(&mut script), keys))
}

#[test]
fn a_terminal_gets_colours_unless_it_is_not_to() {
    let machine = Machine::gpus(2);
    let _job = machine.job(0);
    for (environment, colors) in [
        (&[][..], true),
        (&[("NO_COLOR", "1")], false),
        (&[("TERM", "dumb")], false),
    ] {
        let Some((shown, _keys)) = on_a_terminal(&machine, "autocvd status", environment) else {
            return;
        };
        let outcome = shown.finish();
        assert_eq!(
            outcome.stdout.contains("\x1b[32mfree\x1b[0m"),
            colors,
            "{outcome:?}"
        );
        assert_eq!(
            outcome.stdout.contains("\x1b[31mbusy\x1b[0m"),
            colors,
            "{outcome:?}"
        );
    }
}

#[test]
fn on_a_terminal_watching_draws_in_place_and_leaves_it_in_order() {
    let machine = Machine::gpus(2);
    let Some((watching, mut keys)) = on_a_terminal(&machine, "autocvd status --watch=0.1", &[])
    else {
        return;
    };
    wait_until("it has drawn thrice", || {
        watching.stdout().matches("\x1b[H").count() > 2
    });
    keys.write_all(b"\x03").expect("the terminal is there");
    let outcome = watching.finish();
    assert_eq!(outcome.status(), Some(130), "{outcome:?}");
    assert!(outcome.stdout.ends_with("\r\x1b[K"), "{outcome:?}");
    // Neither a hidden cursor nor another screen, which would have to be undone.
    assert!(!outcome.stdout.contains("\x1b[?"), "{outcome:?}");
}

#[test]
fn a_program_of_the_desktop_does_not_hide_why_its_gpu_is_busy() {
    if !common::has_host_pids() {
        return;
    }
    let process = |pid: u32, kind: &str| json!({"pid": pid, "type": kind, "memory": 100 << 20});
    let processes = [process(4_200_001, "G"), process(4_200_002, "C+G")];
    let machine = Machine::described(json!({"gpus": [
        {"processes": processes, "memory": {"used": 30 * GIB}},
    ]}));
    let shown = run(machine.autocvd().arg("status").env("COLUMNS", "160")).success();
    assert!(shown.contains("held by no visible process"), "{shown}");
}
