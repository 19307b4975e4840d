//! `/etc/autocvd.conf`: what the administrator sets counts for every user.
#![cfg(feature = "cli")]

mod common;

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use common::{Machine, Outcome, run, start, wait_until};

/// The machine with this /etc/autocvd.conf, for programs in mount namespaces of their own. `None`
/// where those may not be made.
fn configured(machine: &Machine, config: &str) -> Option<()> {
    let etc = machine.path().join("etc");
    fs::create_dir_all(&etc).expect("our own directory");
    for name in ["passwd", "group", "nsswitch.conf", "ld.so.cache"] {
        // Not every system has each.
        let _ = fs::copy(Path::new("/etc").join(name), etc.join(name));
    }
    let file = etc.join("autocvd.conf");
    fs::write(&file, config).expect("our own file");
    fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).expect("our own file");
    let may = run(&mut inside(machine, &machine.command("true"))).code == Some(0);
    if !may {
        common::skip("mount namespaces may not be made here (it takes root)");
    }
    may.then_some(())
}

/// The command where /etc is the machine's.
fn inside(machine: &Machine, command: &Command) -> Command {
    let mut inside = machine.command("unshare");
    let script = r#"mount --bind "$1" /etc && shift && exec "$@""#;
    inside
        .args(["--mount", "sh", "-c", script, "sh"])
        .arg(machine.path().join("etc"));
    inside.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        value.map(|value| inside.env(name, value));
    }
    inside
}

fn autocvd(machine: &Machine, args: &[&str]) -> Outcome {
    run(inside(machine, machine.autocvd().args(args)).current_dir("/"))
}

fn status(machine: &Machine) -> Value {
    let text = autocvd(machine, &["status", "--json"]).success();
    serde_json::from_str(&text).expect("JSON")
}

#[test]
fn excluded_gpus_are_given_to_nobody_and_users_exclude_more() {
    let machine = Machine::gpus(3);
    if configured(&machine, "exclude 2\n").is_none() {
        return;
    }
    let look = |args: &[&str]| autocvd(&machine, &[&["-o", "-t0"], args].concat());
    assert_eq!(look(&[]).success(), "1\n");
    assert_eq!(look(&["-x", "1"]).success(), "0\n");
    assert_eq!(look(&["-l", "--no-claim"]).success(), "1\n");
    let outcome = look(&["--only", "2"]);
    assert_eq!(outcome.code, Some(3), "{outcome:#?}");
    outcome.tells("GPU 2: reserved in /etc/autocvd.conf");
    // A recording decides alike, and elsewhere: there without the file.
    let recorded = status(&machine);
    assert_eq!(recorded["gpus"][2]["state"], "unavailable");
    let file = machine.path().join("recorded.json");
    fs::write(&file, recorded.to_string()).expect("our own file");
    let file = file.to_str().expect("a plain path");
    assert_eq!(
        run(machine.autocvd().args(["-o", "--no-claim", "--from", file])).success(),
        "1\n"
    );
}

#[test]
fn an_ignored_program_makes_no_gpu_busy() {
    let machine = Machine::gpus(1);
    let sleep = fs::canonicalize("/usr/bin/sleep").expect("coreutils");
    let config = format!("ignore {}\n", sleep.display());
    if !common::has_host_pids() || configured(&machine, &config).is_none() {
        return;
    }
    let server = machine.job_that(0, "C 3000000000");
    assert_eq!(run(machine.autocvd().args(["-o", "-t0"])).code, Some(4));
    assert_eq!(
        autocvd(&machine, &["-o", "-t0", "--no-claim"]).success(),
        "0\n"
    );
    let recorded = status(&machine);
    assert_eq!(recorded["gpus"][0]["state"], "free", "{recorded:#}");
    assert_eq!(recorded["gpus"][0]["processes"][0]["pid"], server.pid());
    // A client beside it computes, in whichever list it stands.
    let mut client = Command::new("tail")
        .args(["-f", "/dev/null"])
        .spawn()
        .expect("coreutils");
    machine.register(0, client.id(), "M+C 3000000000");
    let outcome = autocvd(&machine, &["-o", "-t0", "--no-claim"]);
    client.kill().expect("our own child");
    client.wait().expect("our own child");
    assert_eq!(outcome.code, Some(4), "{outcome:#?}");
    outcome.tells(&client.id().to_string());
}

#[test]
fn a_user_holds_no_more_gpus_than_the_limit() {
    let machine = Machine::gpus(3);
    if configured(&machine, "max_per_user 2\n").is_none() {
        return;
    }
    let outcome = autocvd(&machine, &["-n", "3", "-o"]);
    assert_eq!(outcome.code, Some(3), "{outcome:#?}");
    outcome.tells("max_per_user");
    let two = ["-q", "-n", "2"];
    let holder = common::hold(&mut inside(&machine, machine.autocvd().args(two)));
    let outcome = autocvd(&machine, &["-o", "-t0"]);
    assert_eq!(outcome.code, Some(4), "{outcome:#?}");
    outcome.tells("this user: holds 2 of at most 2");
    outcome.tells("no more GPUs may be had now");
    // What was not looked at is not unknown, and -l is refused as well.
    assert!(!outcome.stderr.contains("unknown"), "{outcome:#?}");
    assert!(!outcome.stderr.contains("-l"), "{outcome:#?}");
    let job = ["-n", "1", "--", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES"];
    let waiter = start(&mut inside(&machine, machine.autocvd().args(job)));
    wait_until("it says what it waits for", || {
        waiter.stderr().contains("this user holds 2 of at most 2")
    });
    assert_eq!(waiter.stdout(), "");
    drop(holder);
    // They are let go of one after the other.
    let given = waiter.finish().success();
    assert!(["1\n", "2\n"].contains(&&*given), "{given}");
}

#[test]
fn launches_of_the_same_instant_do_not_pass_the_limit_together() {
    let machine = Machine::gpus(6);
    if configured(&machine, "max_per_user 2\n").is_none() {
        return;
    }
    // All have looked at the claims before one of them claims.
    let slow = json!({"nvmlDeviceGetComputeRunningProcesses_v3": 300});
    machine.set("/delays_ms", slow);
    let release = machine.path().join("release");
    let wait = format!("until [ -e '{}' ]; do sleep 0.05; done", release.display());
    let job = format!("echo $CUDA_VISIBLE_DEVICES; {wait}");
    let launch = |gpu: &str| {
        let words = ["-q", "-t", "0", "--only", gpu, "--", "sh", "-c", &job];
        start(&mut inside(&machine, machine.autocvd().args(words)))
    };
    let mut left: Vec<_> = ["0", "1", "2", "3", "4", "5"].map(launch).into();
    wait_until("two run, and the others have given up", || {
        left.retain_mut(|launch| !launch.stdout().is_empty() || launch.is_running());
        left.len() <= 2 || left.iter().filter(|one| !one.stdout().is_empty()).count() > 2
    });
    fs::write(&release, "").expect("our own directory");
    let mut given: Vec<String> = left
        .into_iter()
        .map(|launch| launch.finish().success())
        .collect();
    given.sort();
    assert_eq!(given.len(), 2, "{given:?}");
    assert_ne!(given[0], given[1]);
}

#[test]
fn the_directory_of_claims_is_the_administrators() {
    let machine = Machine::gpus(1);
    let directory = machine.path().join("agreed");
    let config = format!("claim_dir = {}\n", directory.display());
    if configured(&machine, &config).is_none() {
        return;
    }
    let outcome = autocvd(&machine, &["--", "true"]);
    assert_eq!(outcome.code, Some(0), "{outcome:#?}");
    assert!(
        outcome.stderr.contains("AUTOCVD_CLAIM_DIR=") && outcome.stderr.contains("has no effect"),
        "{outcome:#?}"
    );
    assert!(directory.is_dir() && !machine.claims().exists());
}

#[test]
fn a_wrong_line_or_an_untrusted_file_costs_a_warning_and_no_job() {
    let machine = Machine::gpus(2);
    if configured(&machine, "exclud 1\nexclude 7\nexclude 1\n").is_none() {
        return;
    }
    let outcome = autocvd(&machine, &["-o", "-t0", "--no-claim"]);
    assert_eq!(outcome.stdout, "0\n", "{outcome:#?}");
    for told in ["line 1: 'exclud 1' is ignored", "'7' names no GPU here"] {
        outcome.tells(told);
    }
    assert_eq!(outcome.stderr.lines().count(), 2, "{outcome:#?}");
    let quiet = autocvd(&machine, &["-q", "-o", "-t0", "--no-claim"]);
    assert_eq!(quiet.stderr, "");
    let file = machine.path().join("etc/autocvd.conf");
    const NOBODY: u32 = 65534;
    for (owner, mode) in [(0, 0o664), (0, 0o646), (NOBODY, 0o644), (NOBODY, 0o444)] {
        chown(&file, Some(owner), Some(0)).expect("root may");
        fs::set_permissions(&file, PermissionsExt::from_mode(mode)).expect("our own file");
        let outcome = autocvd(&machine, &["-o", "-t0", "--no-claim"]);
        assert_eq!(outcome.stdout, "1\n", "{owner} {mode:o}: {outcome:#?}");
        let told = "/etc/autocvd.conf is ignored: others than root may write it";
        assert!(
            outcome.stderr.contains(told),
            "{owner} {mode:o}: {outcome:#?}"
        );
    }
}

#[test]
fn least_used_says_when_it_gives_away_a_claimed_gpu() {
    let machine = Machine::gpus(1);
    let _holder = common::hold(machine.autocvd().arg("-q"));
    let outcome = run(machine.autocvd().args(["-l", "-o"]));
    assert_eq!(outcome.stdout, "0\n");
    assert_eq!(outcome.stderr.lines().count(), 1, "{outcome:#?}");
    outcome.tells("GPU 0 is shared: it is claimed by pid");
    let quiet = run(machine.autocvd().args(["-l", "-o", "-q"]));
    assert_eq!(quiet.stderr, "");
}

#[test]
fn least_used_says_when_it_cannot_tell_whether_a_gpu_is_in_use() {
    let machine = Machine::gpus(1);
    for function in ["nvmlDeviceGetMemoryInfo", "nvmlDeviceGetMemoryInfo_v2"] {
        machine.set(&format!("/errors/{function}"), json!(999));
    }
    let outcome = run(machine.autocvd().args(["-l", "-o"]));
    assert_eq!(outcome.stdout, "0\n");
    outcome.tells("GPU 0 is given, though its used memory cannot be read");
}

#[test]
fn where_memory_is_asked_for_the_smallest_gpu_that_is_enough_goes_first() {
    const GIB: u64 = 1 << 30;
    let memory =
        |gib: u64| json!({ "memory": { "total": gib * GIB, "used": 0, "free": gib * GIB } });
    let machine = Machine::described(json!({ "gpus": [
        memory(24), memory(80), memory(24), memory(80), memory(40),
    ] }));
    let choice = |args: &[&str]| run(machine.autocvd().args(["-o", "--no-claim"]).args(args));
    for (args, expected) in [
        (&[][..], "4\n"),
        (&["-m", "16GiB"], "2\n"),
        (&["-m", "30GiB"], "4\n"),
        (&["-m", "60GiB"], "3\n"),
        (&["-m", "16GiB", "-n", "3"], "0,2,4\n"),
    ] {
        assert_eq!(choice(args).success(), expected, "{args:?}");
    }
}

#[test]
fn what_is_idle_and_small_is_tolerated_after_what_is_free() {
    if !common::has_host_pids() {
        return;
    }
    let machine = Machine::described(json!({ "gpus": [
        { "utilization": { "gpu": 0, "memory": 0 } },
        { "utilization": { "gpu": 0, "memory": 0 } },
        { "utilization": { "gpu": 90, "memory": 0 } },
    ] }));
    let _monitor = machine.job_that(1, "C 300000000");
    let _training = machine.job_that(2, "C 300000000");
    let look = |args: &[&str]| {
        run(machine
            .autocvd()
            .args(["-o", "-t0", "--no-claim"])
            .args(args))
    };
    assert_eq!(look(&["--tolerate", "500MiB"]).success(), "0\n");
    assert_eq!(
        look(&["--tolerate", "500MiB", "-n", "2"]).success(),
        "0,1\n"
    );
    assert_eq!(look(&["--tolerate", "100MiB", "-n", "2"]).code, Some(4));
    assert_eq!(look(&["--tolerate", "500MiB", "-n", "3"]).code, Some(4));
    assert_eq!(look(&["-n", "2"]).code, Some(4));
    let verbose = look(&["-v", "--tolerate", "500MiB", "-n", "2"]);
    verbose.tells("tolerated on GPU 1: used by pid");
    // A recording decides alike.
    let recorded = run(machine.autocvd().args(["status", "--json"])).success();
    let file = machine.path().join("recorded.json");
    fs::write(&file, recorded).expect("our own file");
    let file = file.to_str().expect("a plain path");
    let args = ["--from", file, "--tolerate", "500MiB", "-n", "2"];
    assert_eq!(look(&args).success(), "0,1\n");
    // A claim is no process.
    let _holder = common::hold(machine.autocvd().args(["-q", "--only", "0"]));
    let args = ["-o", "-t0", "--tolerate", "500MiB", "-n", "2"];
    assert_eq!(run(machine.autocvd().args(args)).code, Some(4));
}

#[test]
fn a_part_of_a_name_stands_for_all_gpus_with_it_and_an_id_wins() {
    let name = |name: &str| json!({ "name": name });
    let machine = Machine::described(json!({ "gpus": [
        name("NVIDIA A100-SXM4-80GB"), name("NVIDIA L40"), name("NVIDIA A100-SXM4-80GB"),
        name("Tesla T4"),
    ] }));
    let look = |args: &[&str]| {
        run(machine
            .autocvd()
            .args(["-o", "-t0", "--no-claim"])
            .args(args))
    };
    assert_eq!(look(&["--only", "a100"]).success(), "2\n");
    assert_eq!(look(&["--only", "A100", "-n", "2"]).success(), "0,2\n");
    assert_eq!(look(&["-x", "A100", "T4"]).success(), "1\n");
    // An index, though names hold it.
    assert_eq!(look(&["--only", "0"]).success(), "0\n");
    assert_eq!(look(&["--only", "H100"]).code, Some(2));
    assert_eq!(look(&["--only", "GPU"]).code, Some(2));
    let verbose = look(&["-v", "--only", "A100"]);
    verbose.tells("'A100' is taken for a part of a name: GPU 0, GPU 2");
    if configured(&machine, "exclude A100, Tesla\n").is_some() {
        assert_eq!(autocvd(&machine, &["-o", "--no-claim"]).success(), "1\n");
        let states = status(&machine);
        assert_eq!(states["gpus"][3]["state"], "unavailable", "{states:#}");
    }
}
