//! The command line: what each option and variable makes of the output.
#![cfg(feature = "cli")]

mod common;

use std::fs;

use common::{Machine, Outcome, run, start, wait_until};
use serde_json::{Value, json};

const ORDER: &str = "CUDA_DEVICE_ORDER=PCI_BUS_ID";
const GIB: u64 = 1 << 30;

fn uuid(index: u32) -> String {
    format!("GPU-{index}0000000-0000-0000-0000-{index:012}")
}

/// Runs the program with these words, its claims left out.
fn autocvd(machine: &Machine, words: &str) -> Outcome {
    run(machine
        .autocvd()
        .args(["--no-claim"])
        .args(words.split_whitespace()))
}

/// The same with variables instead.
fn with_variables(machine: &Machine, variables: &[(&str, &str)], words: &str) -> Outcome {
    run(machine
        .autocvd()
        .arg("--no-claim")
        .args(words.split_whitespace())
        .envs(variables.iter().copied()))
}

/// Four GPUs: 0 has the most free memory of those that are used, 1 and 2 are free, 3 is used.
fn mixed() -> Machine {
    let machine = Machine::gpus(4);
    machine
        .set("/gpus/0/processes", json!([{"pid": 1, "memory": 10 * GIB}]))
        .set("/gpus/2/memory", json!({"total": 40 * GIB}))
        .set("/gpus/3/processes", json!([{"pid": 1, "memory": 60 * GIB}]));
    machine
}

#[test]
fn verbose_tells_what_was_left_out_from_what_was_not_needed() {
    let machine = Machine::gpus(3);
    let outcome = run(machine.autocvd().args(["-v", "-o", "-x", "0"]));
    assert_eq!(
        (outcome.code, outcome.stdout.as_str()),
        (Some(0), "2\n"),
        "{outcome:#?}"
    );
    for line in [
        "passed over GPU 0: not to be chosen (--exclude",
        "passed over GPU 1: free, but not needed",
    ] {
        assert!(outcome.stderr.contains(line), "no '{line}' in {outcome:#?}");
    }
    // What cannot be told is not worth a job.
    let full = std::fs::File::create("/dev/full").expect("Linux has it");
    let mut deaf = machine.autocvd();
    deaf.args(["-v", "--", "true"]).stderr(full);
    assert_eq!(deaf.status().expect("it runs").code(), Some(0));
}

#[test]
fn each_option_makes_exactly_this_output() {
    let machine = mixed();
    let ids = |ids: &str| format!("{ORDER} CUDA_VISIBLE_DEVICES={ids}\n");
    let export = |ids: &str| format!("export {}", self::ids(ids));
    for (words, expected) in [
        ("", ids("2")),
        ("-n 2", ids("1,2")),
        ("--num-gpus 2", ids("1,2")),
        ("-n2", ids("1,2")),
        ("-l", ids("1")),
        ("--least-used -n 3", ids("0,1,2")),
        ("-l -n 4", ids("0,1,2,3")),
        ("-t 0", ids("2")),
        ("--timeout 1h", ids("2")),
        ("--timeout 500ms", ids("2")),
        ("-i 1", ids("2")),
        ("--interval 2m", ids("2")),
        ("-s", export("2")),
        ("--source", export("2")),
        ("-e", export("2")),
        ("--export", export("2")),
        ("-s -n 2", export("1,2")),
        ("-o", "2\n".into()),
        ("--id-only -n 2", "1,2\n".into()),
        ("-so", "2\n".into()),
        ("-o --shell csh", "2\n".into()),
        ("-x 2", ids("1")),
        ("--exclude 2", ids("1")),
        ("-x 0 2", ids("1")),
        ("-x 0,2", ids("1")),
        ("-x 0 -x 2", ids("1")),
        ("-x0,2", ids("1")),
        ("-x 0 2 -o", "1\n".into()),
        ("-x=2", ids("1")),
        ("-x GPU-2", ids("1")),
        ("-x 03:00.0", ids("1")),
        ("-x 00000000:03:00.0,0000:01:00.0", ids("1")),
        ("--only 1", ids("1")),
        ("--only 0 1", ids("1")),
        ("--only 1,2 -n 2", ids("1,2")),
        ("--only GPU-1,2", ids("2")),
        ("--only 1,2 -x 2", ids("1")),
        ("-m 50GiB", ids("1")),
        ("-m 39GiB", ids("2")),
        ("--min-free-memory 50G", ids("1")),
        ("-m 500MiB", ids("2")),
        ("--uuid", ids(&uuid(2))),
        ("--uuid -n 2", ids(&format!("{},{}", uuid(1), uuid(2)))),
        ("--uuid -o", format!("{}\n", uuid(2))),
        ("--shell posix", ids("2")),
        ("--shell posix -s", export("2")),
        ("--shell fish", ids("2")),
        (
            "--shell fish -s",
            "set -gx CUDA_DEVICE_ORDER PCI_BUS_ID ; set -gx CUDA_VISIBLE_DEVICES 2 ;\n".into(),
        ),
        ("--shell csh", format!("env {}", ids("2"))),
        (
            "--shell csh -s -n 2",
            "setenv CUDA_DEVICE_ORDER PCI_BUS_ID ; setenv CUDA_VISIBLE_DEVICES 1,2 ;\n".into(),
        ),
        ("--hold 5", ids("2")),
        ("--hold 1m", ids("2")),
        ("--probe auto", ids("2")),
        ("--probe nvml", ids("2")),
        ("--inherit", ids("2")),
    ] {
        let outcome = autocvd(&machine, words);
        assert_eq!(
            (outcome.code, outcome.stdout.as_str()),
            (Some(0), expected.as_str()),
            "{words}: {outcome:#?}"
        );
        assert_eq!(outcome.stderr, "", "{words}");
    }
}

fn ids(ids: &str) -> String {
    format!("{ORDER} CUDA_VISIBLE_DEVICES={ids}\n")
}

#[test]
fn every_option_has_its_variable_and_the_command_line_wins() {
    let machine = mixed();
    let recorded = machine.path().join("recorded.json");
    let status = run(machine.autocvd().args(["status", "--json"])).success();
    fs::write(&recorded, status).expect("our own directory");
    let recorded = recorded.to_str().expect("a plain path");
    let export = format!("export {}", ids("2"));
    let csh = format!("env {}", ids("2"));
    for (name, value, alone, words, overruled) in [
        ("AUTOCVD_NUM_GPUS", "2", ids("1,2"), "-n 1", ids("2")),
        ("AUTOCVD_LEAST_USED", "1", ids("1"), "-o", "1\n".into()),
        ("AUTOCVD_TIMEOUT", "0", ids("2"), "-t 1", ids("2")),
        ("AUTOCVD_INTERVAL", "5", ids("2"), "-i 1", ids("2")),
        ("AUTOCVD_SOURCE", "1", export, "-o", "2\n".into()),
        ("AUTOCVD_ID_ONLY", "1", "2\n".into(), "-n 2", "1,2\n".into()),
        ("AUTOCVD_QUIET", "1", ids("2"), "-o", "2\n".into()),
        ("AUTOCVD_EXCLUDE", "2", ids("1"), "-x 1", ids("2")),
        ("AUTOCVD_EXCLUDE", "0,2", ids("1"), "-x 0", ids("2")),
        ("AUTOCVD_ONLY", "1", ids("1"), "--only 2", ids("2")),
        (
            "AUTOCVD_MIN_FREE_MEMORY",
            "50GiB",
            ids("1"),
            "-m 1GiB",
            ids("2"),
        ),
        ("AUTOCVD_INHERIT", "1", ids("2"), "-o", "2\n".into()),
        (
            "AUTOCVD_UUID",
            "1",
            ids(&uuid(2)),
            "-o",
            format!("{}\n", uuid(2)),
        ),
        ("AUTOCVD_SHELL", "csh", csh, "--shell posix", ids("2")),
        ("AUTOCVD_HOLD", "5", ids("2"), "--hold 1", ids("2")),
        ("AUTOCVD_NO_CLAIM", "1", ids("2"), "-o", "2\n".into()),
        ("AUTOCVD_PROBE", "nvml", ids("2"), "--probe auto", ids("2")),
        ("AUTOCVD_FROM", recorded, ids("2"), "-o", "2\n".into()),
        (
            "AUTOCVD_FROM",
            recorded,
            ids("2"),
            "--probe nvml -x 2",
            ids("1"),
        ),
    ] {
        let outcome = with_variables(&machine, &[(name, value)], "");
        assert_eq!(
            (outcome.code, &outcome.stdout),
            (Some(0), &alone),
            "{name}={value}: {outcome:#?}"
        );
        let outcome = with_variables(&machine, &[(name, value)], words);
        assert_eq!(
            (outcome.code, &outcome.stdout),
            (Some(0), &overruled),
            "{name}={value} {words}: {outcome:#?}"
        );
        // What the variable says is read: a wrong value is told.
        let wrong = with_variables(&machine, &[(name, "\u{1}wrong")], "");
        // The command line of these tests has --no-claim.
        let expected = if name == "AUTOCVD_NO_CLAIM" { 0 } else { 2 };
        assert_eq!(wrong.code, Some(expected), "{name}: {wrong:#?}");
    }
    // A wrong value does no harm where the command line has a right one.
    for words in ["--probe=nvml", "--probe nvml"] {
        assert_eq!(
            with_variables(&machine, &[("AUTOCVD_FROM", "/nonexistent")], words).success(),
            ids("2")
        );
    }
    assert_eq!(
        with_variables(&machine, &[("AUTOCVD_NUM_GPUS", "x")], "-n 2").success(),
        ids("1,2")
    );
    let json = with_variables(&machine, &[("AUTOCVD_JSON", "1")], "").success();
    assert!(json.starts_with('{'), "{json}");
    let told = with_variables(&machine, &[("AUTOCVD_VERBOSE", "1")], "");
    assert!(
        told.stderr.contains("chose GPU 2") && told.stdout == ids("2"),
        "{told:#?}"
    );
    // Only a COMMAND can be bound, which an image's variable cannot know of.
    assert_eq!(
        with_variables(&machine, &[("AUTOCVD_BIND", "1")], "").success(),
        ids("2")
    );
}

#[test]
fn printed_ids_are_claimed_for_a_minute_or_as_long_as_hold_says() {
    for (options, hold) in [(&[][..], 60), (&["--hold", "2m"], 120)] {
        let machine = Machine::gpus(1);
        run(machine.autocvd().arg("-o").args(options)).success();
        let claim = || -> Value {
            let status = run(machine.autocvd().args(["status", "--json"])).success();
            let status: Value = serde_json::from_str(&status).expect("one JSON value");
            status["gpus"][0]["claims"][0].clone()
        };
        // It is told of shortly after it was made.
        wait_until("its end is told", || claim()["until"].is_u64());
        let claim = claim();
        let seconds = |name: &str| claim[name].as_u64().expect("Unix time");
        let lasts = seconds("until") - seconds("since");
        assert!((hold - 8..=hold).contains(&lasts), "{lasts} s of {hold}");
    }
}

#[test]
fn an_empty_variable_counts_as_not_set() {
    let machine = mixed();
    let names = "NUM_GPUS LEAST_USED TIMEOUT INTERVAL SOURCE ID_ONLY QUIET VERBOSE EXCLUDE ONLY \
                 MIN_FREE_MEMORY INHERIT UUID JSON SHELL HOLD NO_CLAIM PROBE BIND FROM";
    let mut command = machine.autocvd();
    command.arg("--no-claim").envs(
        names
            .split_whitespace()
            .map(|name| (format!("AUTOCVD_{name}"), "")),
    );
    assert_eq!(run(&mut command).success(), ids("2"));
}

#[test]
fn a_switchs_variable_is_a_boolean() {
    let machine = mixed();
    for (value, expected) in [
        ("1", Some(true)),
        ("true", Some(true)),
        ("TRUE", Some(true)),
        ("yes", Some(true)),
        ("on", Some(true)),
        ("0", Some(false)),
        ("false", Some(false)),
        ("no", Some(false)),
        ("off", Some(false)),
        ("maybe", None),
    ] {
        let outcome = with_variables(&machine, &[("AUTOCVD_ID_ONLY", value)], "");
        match expected {
            Some(true) => assert_eq!(outcome.success(), "2\n", "{value}"),
            Some(false) => assert_eq!(outcome.success(), ids("2"), "{value}"),
            None => assert!(
                outcome.code == Some(2) && outcome.stderr.contains("'maybe'"),
                "{outcome:#?}"
            ),
        }
        // How much is told is counted, and may still be a boolean.
        let told = with_variables(&machine, &[("AUTOCVD_VERBOSE", value)], "");
        match expected {
            Some(loud) => assert_eq!(
                (told.code, !told.stderr.is_empty()),
                (Some(0), loud),
                "{value}: {told:#?}"
            ),
            None => assert_eq!(told.code, Some(2), "{told:#?}"),
        }
    }
}

#[test]
fn variables_of_the_main_form_do_not_disturb_the_subcommands() {
    let machine = mixed();
    let variables = [
        ("AUTOCVD_NUM_GPUS", "2"),
        ("AUTOCVD_TIMEOUT", "5"),
        ("AUTOCVD_JSON", "1"),
        ("AUTOCVD_EXCLUDE", "9"),
    ];
    for words in [
        &["status", "--json"][..],
        &["completions", "bash"],
        &["man"],
    ] {
        let outcome = run(machine.autocvd().args(words).envs(variables));
        assert!(
            outcome.code == Some(0) && outcome.stdout.len() > 100,
            "{words:?}: {outcome:#?}"
        );
    }
}

#[test]
fn the_choice_as_json_names_each_gpu_and_the_variables() {
    let machine = mixed();
    let outcome = autocvd(&machine, "--json -n 2");
    let json: Value = serde_json::from_str(&outcome.success()).expect("one JSON value");
    let gpu = |index: u32| {
        let pci = format!("00000000:0{}:00.0", index + 1);
        json!({
            "index": index,
            "uuid": uuid(index),
            "pci_bus_id": pci,
            "name": "NVIDIA A100-SXM4-80GB",
        })
    };
    let env = json!({"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "1,2"});
    assert_eq!(json, json!({"gpus": [gpu(1), gpu(2)], "env": env}));
    let json: Value = serde_json::from_str(&autocvd(&machine, "--json --uuid").success())
        .expect("one JSON value");
    assert_eq!(json["env"]["CUDA_VISIBLE_DEVICES"], uuid(2));
}

#[test]
fn where_indices_are_not_cudas_ordinals_uuids_are_printed() {
    // The UUID of each GPU begins with its place in the driver's count, as does the fake one's.
    let machine = Machine::gpus(3);
    machine.set("/gpus/0/errors/handle", json!(4));
    assert_eq!(
        autocvd(&machine, "-n 2").success(),
        ids(&format!("{},{}", uuid(1), uuid(2)))
    );
    machine.set("/gpus/0/errors", json!({"handle": 15}));
    assert_eq!(autocvd(&machine, "-o").success(), format!("{}\n", uuid(2)));
    let divided = Machine::gpus(2);
    divided.set(
        "/gpus/1/mig",
        json!({"enabled": true, "devices": [{}, null, {}]}),
    );
    assert_eq!(
        autocvd(&divided, "-o").success(),
        "MIG-12000000-0000-0000-0000-000000010002\n"
    );
    assert_eq!(
        autocvd(&divided, "-o -x 1").success(),
        format!("{}\n", uuid(0))
    );
    let two = autocvd(&divided, "-n 2");
    assert!(
        two.code == Some(3) && two.stderr.contains("ask for 1"),
        "{two:#?}"
    );
}

#[test]
fn the_present_choice_is_kept_to_with_inherit_and_in_a_batch_job() {
    let machine = Machine::gpus(4);
    let batch = ("SLURM_JOB_ID", "1");
    for (variables, words, code, expected) in [
        (&[("CUDA_VISIBLE_DEVICES", "0,1")][..], "-o", 0, "3\n"),
        (&[("CUDA_VISIBLE_DEVICES", "0,1")], "-o --inherit", 0, "1\n"),
        (
            &[("CUDA_VISIBLE_DEVICES", "0,1"), ("AUTOCVD_INHERIT", "yes")],
            "-o",
            0,
            "1\n",
        ),
        (&[("CUDA_VISIBLE_DEVICES", "0,1"), batch], "-o", 0, "1\n"),
        (
            &[("CUDA_VISIBLE_DEVICES", "GPU-2,0"), batch],
            "-o -n 2",
            0,
            "0,2\n",
        ),
        (
            &[("CUDA_VISIBLE_DEVICES", "0,1")],
            "-o --inherit -x 1",
            0,
            "0\n",
        ),
        (
            &[("CUDA_VISIBLE_DEVICES", "0,1")],
            "-o --inherit -n 3",
            3,
            "",
        ),
        (
            &[("CUDA_VISIBLE_DEVICES", "NoDevFiles"), batch],
            "-o",
            3,
            "",
        ),
        (&[("CUDA_VISIBLE_DEVICES", "")], "-o --inherit", 3, ""),
        (&[("CUDA_VISIBLE_DEVICES", "")], "-o", 0, "3\n"),
        (&[batch], "-o", 0, "3\n"),
        (
            &[("CUDA_VISIBLE_DEVICES", "0,1"), ("PBS_JOBID", "1")],
            "-o",
            0,
            "1\n",
        ),
        (
            &[("CUDA_VISIBLE_DEVICES", "0,1"), ("LSB_JOBID", "1")],
            "-o",
            0,
            "1\n",
        ),
    ] {
        let outcome = with_variables(&machine, variables, words);
        assert_eq!(
            (outcome.code, outcome.stdout.as_str()),
            (Some(code), expected),
            "{variables:?} {words}: {outcome:#?}"
        );
    }
}

#[test]
fn help_and_version_are_printed_on_stdout() {
    let machine = Machine::gpus(1);
    for (words, expected) in [
        ("--help", "--num-gpus"),
        ("-h", "--num-gpus"),
        ("--version", "autocvd 1."),
        ("-V", "autocvd 1."),
        ("help", "--num-gpus"),
        ("help status", "--watch"),
        ("status --help", "--watch"),
    ] {
        let outcome = run(machine.autocvd().args(words.split(' ')));
        assert_eq!(
            (outcome.code, outcome.stderr.as_str()),
            (Some(0), ""),
            "{words}: {outcome:#?}"
        );
        assert!(outcome.stdout.contains(expected), "{words}: {outcome:#?}");
    }
    assert!(machine.calls().is_empty(), "none of them asks the driver");
}

#[test]
fn help_names_every_option() {
    let help = run(Machine::gpus(0).autocvd().arg("--help")).success();
    for option in
        "--num-gpus --least-used --timeout --interval --source --export --id-only --quiet \
         --verbose --exclude --only --min-free-memory --inherit --uuid --json --format --hold \
         --no-claim --probe --bind --from"
            .split_whitespace()
    {
        assert!(help.contains(option), "{option}");
    }
}

#[test]
fn verbose_explains_on_stderr_and_changes_nothing_on_stdout() {
    let machine = mixed();
    let plain = autocvd(&machine, "").success();
    let mut lengths = vec![0];
    for words in ["-v", "-vv", "-vvv"] {
        let outcome = autocvd(&machine, words);
        for fact in ["chose GPU 2", "GPU 3: used by pid 1"] {
            assert!(outcome.stderr.contains(fact), "{words}: {outcome:#?}");
        }
        lengths.push(outcome.stderr.len());
        assert_eq!(outcome.success(), plain, "{words}");
    }
    assert!(
        lengths.windows(2).all(|pair| pair[0] <= pair[1]) && lengths[1] < lengths[3],
        "{lengths:?}"
    );
}

#[test]
fn quiet_leaves_only_errors_on_stderr() {
    let machine = Machine::gpus(1);
    let mut job = machine.job(0);
    let mut waiting = start(machine.autocvd().arg("-q"));
    let loud = start(machine.autocvd().args(["--no-claim", "-o"]));
    common::wait_until("the other one tells of its wait", || {
        loud.stderr().contains("waiting for a GPU")
    });
    assert!(waiting.is_running());
    job.kill();
    let outcome = waiting.finish();
    assert_eq!(
        (
            outcome.code,
            outcome.stderr.as_str(),
            outcome.stdout.as_str()
        ),
        (Some(0), "", ids("0").as_str())
    );
    assert_eq!(loud.finish().success(), "0\n");
    let error = autocvd(&machine, "-q -n 2");
    assert!(
        error.code == Some(3) && error.stderr.starts_with("autocvd: 2 GPUs asked for"),
        "{error:#?}"
    );
    // Verbose and quiet: quiet wins.
    assert_eq!(autocvd(&machine, "-qv").stderr, "");
}

#[test]
fn what_status_prints_from_reads_back() {
    let machine = mixed();
    machine.set("/gpus/1/compute_mode", json!("PROHIBITED"));
    let recorded = machine.path().join("recorded.json");
    let text = run(machine.autocvd().args(["status", "--json"])).success();
    fs::write(&recorded, &text).expect("our own directory");
    let from = |words: &[&str]| run(machine.autocvd().arg("--from").arg(&recorded).args(words));
    machine.forget_calls();
    assert_eq!(from(&[]).success(), ids("2"));
    assert_eq!(from(&["-l", "-n", "3", "-o"]).success(), "0,2,3\n");
    let busy = from(&["-n", "2"]);
    assert_eq!(
        busy.code,
        Some(4),
        "a recorded machine never changes: {busy:#?}"
    );
    assert_eq!(from(&["-n", "4"]).code, Some(3));
    assert!(machine.calls().is_empty(), "the driver is not asked");
    assert!(
        !machine.claims().join("queue").exists()
            || fs::read_dir(machine.claims()).is_ok_and(|all| all.count() == 1)
    );
    let again = run(machine
        .autocvd()
        .args(["status", "--json", "--from"])
        .arg(&recorded))
    .success();
    let (mut first, mut second): (Value, Value) = (
        serde_json::from_str(&text).expect("JSON"),
        serde_json::from_str(&again).expect("JSON"),
    );
    (first["source"], second["source"]) = (Value::Null, Value::Null);
    assert_eq!(first, second);
}

#[test]
fn a_recorded_machine_may_come_through_a_pipe() {
    let machine = mixed();
    let script = "autocvd -o --from <(sleep 0.1; autocvd status --json); \
                  autocvd status --json | autocvd -o --from -";
    assert_eq!(run(&mut machine.shell("bash", script)).success(), "2\n2\n");
}

#[test]
fn the_command_line_wins_over_the_variables_of_other_forms() {
    let machine = Machine::gpus(1);
    for (variable, args, expected) in [
        (
            "AUTOCVD_ID_ONLY",
            &["-s"][..],
            "export CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=0\n",
        ),
        ("AUTOCVD_JSON", &["-o"], "0\n"),
        ("AUTOCVD_JSON", &["-qo"], "0\n"),
        ("AUTOCVD_SOURCE", &["-o"], "0\n"),
        (
            "AUTOCVD_EXPORT",
            &[],
            "export CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=0\n",
        ),
        ("AUTOCVD_BIND", &["-o"], "0\n"),
    ] {
        let outcome = run(machine
            .autocvd()
            .env(variable, "1")
            .arg("--no-claim")
            .args(args));
        assert_eq!(
            (outcome.code, outcome.stdout.as_str()),
            (Some(0), expected),
            "{variable} {args:?}: {outcome:?}"
        );
    }
    let outcome = run(machine
        .autocvd()
        .env("AUTOCVD_QUIET", "1")
        .args(["-v", "-o", "--no-claim"]));
    outcome.tells("chose GPU 0");
    let outcome = run(machine
        .autocvd()
        .env("AUTOCVD_ID_ONLY", "1")
        .args(["-s", "--nonsense"]));
    assert_eq!(
        outcome.stdout, "export CUDA_VISIBLE_DEVICES=-1 ; sh -c 'exit 2' autocvd\n",
        "{outcome:?}"
    );
    let outcome = run(machine.autocvd().env("AUTOCVD_UUID", "maybe"));
    assert!(
        outcome.stderr.contains("'maybe'") && outcome.stderr.contains("true or false"),
        "{outcome:?}"
    );
}

#[test]
fn options_may_be_repeated_but_a_command_must_follow_the_dashes() {
    let machine = Machine::gpus(3);
    let outcome = run(machine.autocvd().args([
        "-q", "-q", "-o", "-o", "--source", "--export", "-n", "1", "-n", "2",
    ]));
    assert_eq!(outcome.stdout, "1,2\n", "{outcome:?}");
    let outcome = run(machine.autocvd().arg("--"));
    assert_eq!(
        (outcome.code, outcome.stdout.as_str()),
        (Some(2), "sh -c 'exit 2' autocvd\n"),
        "{outcome:?}"
    );
}

#[test]
fn help_fits_the_width_that_there_is() {
    let machine = Machine::gpus(1);
    for columns in ["60", "80", "200"] {
        let widest: usize = columns.parse().expect("a number");
        for words in [
            "-h",
            "--help",
            "help status",
            "status --help",
            "completions -h",
        ] {
            let mut command = machine.autocvd();
            command.args(words.split(' ')).env("COLUMNS", columns);
            let help = run(&mut command).success();
            // Longer lines than 100 columns are hard to read. An example is a line to copy.
            let is_text = |line: &&str| !line.contains("$(autocvd");
            let lines: Vec<usize> = help
                .lines()
                .filter(is_text)
                .map(|line| line.chars().count())
                .collect();
            let longest = lines.into_iter().max().unwrap_or(0);
            let limit = if widest == 60 && words == "-h" {
                80
            } else {
                widest.min(100)
            };
            assert!(longest <= limit, "{words} at {columns}: {longest}\n{help}");
        }
    }
}

#[test]
fn the_short_help_is_one_small_screen_and_the_long_one_has_headings() {
    let machine = Machine::gpus(1);
    let short = run(machine.autocvd().arg("-h")).success();
    assert!(short.lines().count() <= 20, "{short}");
    let long = run(machine.autocvd().arg("--help")).success();
    for heading in [
        "Which GPUs:",
        "Waiting:",
        "Output:",
        "Claims:",
        "Source:",
        "Values:",
        "Variables:",
        "Exit codes:",
        "Examples:",
    ] {
        assert!(
            long.contains(&format!("\n{heading}\n")),
            "{heading}\n{long}"
        );
    }
    for variable in [
        "AUTOCVD_NUM_GPUS",
        "AUTOCVD_FORMAT",
        "AUTOCVD_CLAIM_DIR",
        "NO_COLOR",
    ] {
        assert!(long.contains(variable), "{variable}\n{long}");
    }
    for code in ["  0 ", "  5 ", "  126 ", "  127 ", "  128+N "] {
        let lines = long.lines().filter(|line| line.starts_with(code)).count();
        assert_eq!(lines, 1, "{code:?}\n{long}");
    }
}

#[test]
fn help_is_bold_on_a_terminal_alone() {
    let machine = Machine::gpus(1);
    for (variables, bold) in [(&[][..], true), (&[("NO_COLOR", "1")], false)] {
        let mut command = machine.autocvd();
        command
            .arg("--help")
            .env("TERM", "xterm")
            .envs(variables.iter().copied());
        let mut terminal = common::Terminal::start(&mut command, 24, 80);
        common::wait_until("it ends", || !terminal.is_running());
        terminal.wait_for("Examples", 1);
        assert_eq!(terminal.text().contains("\x1b[1m"), bold, "{variables:?}");
    }
}
