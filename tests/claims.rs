//! Claims: two launches never get the same GPU, and nothing that ended keeps one.
#![cfg(feature = "cli")]

mod common;

use std::fs;
use std::time::{Duration, Instant};

use common::{
    AUTOCVD, Machine, Running, has_namespaces, in_namespace, is_free, look, run, start, wait_until,
};
use rustix::process::Signal;

/// A COMMAND that runs under autocvd, once it does.
fn command_running(machine: &Machine, options: &[&str], command: &[&str]) -> Running {
    let running = start(machine.autocvd().args(options).arg("--").args(command));
    let line = command.join(" ");
    wait_until("the COMMAND runs", || command_line(running.pid()) == line);
    running
}

fn command_line(pid: u32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line)
        .trim_end_matches('\0')
        .replace('\0', " ")
}

#[test]
fn a_claim_made_in_another_namespace_wakes_who_waits_for_it() {
    let machine = Machine::gpus(1);
    if !has_namespaces(&machine) {
        return;
    }
    // What it leaves behind carries nothing of the claim.
    let command = "env -i sleep 600 & echo; read line";
    let script = format!("autocvd -q -- sh -c '{command}'; sleep 600");
    let mut inside = in_namespace(&machine, &["sh", "-c", &script]);
    let (input, output) = common::pipe();
    let inside = start(inside.stdin(input));
    wait_until("the COMMAND runs", || inside.stdout() == "\n");
    let waiting = start(
        machine
            .autocvd()
            .args(["-i", "1h", "-t", "60", "--", "true"]),
    );
    wait_until("it waits", || {
        waiting.stderr().contains("waiting for a GPU")
    });
    let ended = Instant::now();
    drop(output);
    assert_eq!(waiting.finish().code, Some(0));
    assert!(
        ended.elapsed() < Duration::from_secs(50),
        "not at the deadline, when it looks for the last time"
    );
}

#[test]
fn a_command_holds_its_gpu_until_it_ends() {
    let machine = Machine::gpus(1);
    let command = command_running(&machine, &[], &["sleep", "600"]);
    let refused = look(&machine);
    assert_eq!(refused.code, Some(4), "{refused:#?}");
    assert!(
        refused.stderr.contains("sleep 600"),
        "the holder is named: {refused:#?}"
    );
    command.signal(Signal::KILL);
    let ended = command.finish();
    assert_eq!(ended.signal, Some(9));
    wait_until("it is free", || look(&machine).stdout == "0\n");
    let normal = run(machine.autocvd().args(["--", "true"]));
    assert_eq!(normal.code, Some(0));
    wait_until("it is free", || is_free(&machine));
}

#[test]
fn claims_count_across_pid_namespaces_both_ways() {
    let machine = Machine::gpus(2);
    if !has_namespaces(&machine) {
        return;
    }
    let outside = command_running(&machine, &["--only", "1"], &["sleep", "600"]);
    let own = [
        AUTOCVD,
        "-q",
        "-t",
        "0",
        "--",
        "printenv",
        "CUDA_VISIBLE_DEVICES",
    ];
    assert_eq!(run(&mut in_namespace(&machine, &own)).success(), "0\n");
    let inside = start(&mut in_namespace(
        &machine,
        &[AUTOCVD, "-q", "--", "sh", "-c", "echo; sleep 600"],
    ));
    wait_until("the COMMAND inside runs", || inside.stdout() == "\n");
    assert_eq!(look(&machine).code, Some(4));
    assert_eq!(
        run(&mut in_namespace(&machine, &own)).code,
        Some(4),
        "nor in a third namespace"
    );
    drop(inside);
    wait_until("its claim has ended", || look(&machine).stdout == "0\n");
    drop(outside);
    wait_until("the one outside has ended", || {
        look(&machine).stdout == "1\n"
    });
    wait_until("the look at it has ended too", || {
        run(&mut in_namespace(&machine, &own)).stdout == "1\n"
    });
}

#[test]
fn a_command_that_asks_for_itself_keeps_its_claim_for_other_namespaces() {
    let machine = Machine::gpus(2);
    if !has_namespaces(&machine) {
        return;
    }
    // By exec they are one process, which must not open and close what it has locked.
    let nested = [
        AUTOCVD,
        "-q",
        "-n",
        "2",
        "--",
        AUTOCVD,
        "-q",
        "--",
        "sh",
        "-c",
        "echo; sleep 600",
    ];
    let inside = start(&mut in_namespace(&machine, &nested));
    wait_until("the COMMAND inside runs", || inside.stdout() == "\n");
    assert_eq!(look(&machine).code, Some(4));
    let nested = [
        AUTOCVD,
        "-q",
        "-n",
        "2",
        "--",
        AUTOCVD,
        "status",
        "--watch=600",
    ];
    drop(inside);
    wait_until("it has ended", || is_free(&machine));
    let inside = start(&mut in_namespace(&machine, &nested));
    wait_until("it shows the machine", || {
        inside.stdout().contains("0 of 2 free")
    });
    assert_eq!(look(&machine).code, Some(4));
}

#[test]
fn the_machine_is_shown_with_the_claims_around() {
    let machine = Machine::gpus(2);
    for command in [
        &["autocvd", "status"][..],
        &["sh", "-c", "autocvd status; :"],
    ] {
        let shown = run(machine.autocvd().args(["-q", "--"]).args(command)).success();
        assert!(
            shown.contains("1 of 2 free") && shown.contains("claimed"),
            "{shown}"
        );
    }
}

#[test]
fn a_namespace_that_shows_the_pids_of_another_one_claims_all_the_same() {
    let machine = Machine::gpus(1);
    if !has_namespaces(&machine) {
        return;
    }
    // Without a /proc of its own: what it finds there under its own pid is another process.
    let within = |command: &[&str]| {
        let mut inside = machine.command("unshare");
        inside
            .args(["--pid", "--fork", "--kill-child"])
            .args(command);
        inside
    };
    let inside = start(&mut within(&[
        AUTOCVD,
        "-q",
        "--",
        "sh",
        "-c",
        "echo; sleep 600",
    ]));
    wait_until("the COMMAND inside runs", || inside.stdout() == "\n");
    let own = [AUTOCVD, "-q", "-t", "0", "--", "true"];
    assert_eq!(look(&machine).code, Some(4));
    assert_eq!(run(&mut within(&own)).code, Some(4));
    drop(inside);
    wait_until("its claim has ended for all", || {
        is_free(&machine) && run(&mut within(&own)).code == Some(0)
    });
    let outside = command_running(&machine, &[], &["sleep", "600"]);
    assert_eq!(run(&mut within(&own)).code, Some(4));
    drop(outside);
}

#[test]
fn what_a_command_leaves_behind_keeps_the_claim_as_long_as_it_carries_the_choice() {
    for (left, keeps) in [
        ("setsid sleep 601 &", true),
        ("(sleep 601 &)", true),
        // It ends once that has become sleep: a fork that is seen before still carries the choice.
        (
            "env -u AUTOCVD_INSIDE sleep 601 & until grep -qx sleep /proc/$!/comm; do :; done",
            false,
        ),
    ] {
        let machine = Machine::gpus(1);
        let script = format!("exec >/dev/null 2>&1; {left}\n:");
        run(machine.autocvd().args(["--", "sh", "-c", &script])).success();
        let mut survivors = Vec::new();
        wait_until("what is left behind has begun", || {
            survivors = processes("sleep 601", &machine);
            !survivors.is_empty()
        });
        match keeps {
            true => assert!(!is_free(&machine), "{left}"),
            false => wait_until("the claim has ended", || is_free(&machine)),
        }
        if has_namespaces(&machine) {
            let own = [AUTOCVD, "-q", "-t", "0", "--", "true"];
            let inside = || run(&mut in_namespace(&machine, &own)).code;
            match keeps {
                true => assert_eq!(inside(), Some(4), "{left}"),
                false => wait_until("the claim has ended", || inside() == Some(0)),
            }
        }
        let waiting = start(machine.autocvd().args(["-q", "-i", "600s", "--", "true"]));
        for pid in survivors {
            let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
            rustix::process::kill_process(pid, Signal::KILL).expect("it runs");
        }
        waiting.finish().success();
    }
}

/// The processes with this command line that belong to the machine.
fn processes(line: &str, machine: &Machine) -> Vec<i32> {
    let all = fs::read_dir("/proc").expect("it is there").flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let mark = machine.path().to_string_lossy().into_owned();
    let is_ours = |pid: &u32| {
        let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        command_line(*pid) == line && String::from_utf8_lossy(&environ).contains(&mark)
    };
    pids.filter(is_ours).map(|pid| pid as i32).collect()
}

#[test]
fn a_command_that_closes_its_descriptors_keeps_its_gpu() {
    if !common::has("python3") {
        return;
    }
    let machine = Machine::gpus(1);
    let script = "import os, time; os.closerange(3, 4096); print(flush=True); time.sleep(60)";
    let command = start(machine.autocvd().args(["--", "python3", "-c", script]));
    wait_until("they are closed", || command.stdout() == "\n");
    assert!(!is_free(&machine));
    if has_namespaces(&machine) {
        // Nothing tells that namespace of the claim, but it must not take it from those who know.
        run(&mut in_namespace(
            &machine,
            &[AUTOCVD, "-q", "-t", "0", "--", "true"],
        ));
        assert!(!is_free(&machine));
    }
    drop(command);
    wait_until("it is free", || is_free(&machine));
}

#[test]
fn a_command_may_become_another_one_and_another_one() {
    let machine = Machine::gpus(1);
    let command = start(
        machine
            .autocvd()
            .args(["--", "sh", "-c", "exec sh -c 'exec sleep 610'"]),
    );
    wait_until("it has become sleep", || {
        command_line(command.pid()) == "sleep 610"
    });
    assert!(!is_free(&machine));
    drop(command);
    wait_until("it is free", || is_free(&machine));
}

#[test]
fn a_command_that_cannot_be_run_leaves_no_claim() {
    let machine = Machine::gpus(1);
    machine.install("broken", "#!/nonexistent/interpreter");
    assert_eq!(
        run(machine.autocvd().args(["--", "broken"])).code,
        Some(127)
    );
    wait_until("it is free", || is_free(&machine));
}

// Options.

#[test]
fn least_used_passes_over_claimed_gpus_and_takes_them_rather_than_fail() {
    let machine = Machine::gpus(3);
    let _first = command_running(&machine, &["--only", "2"], &["sleep", "600"]);
    let _second = command_running(&machine, &["--only", "1"], &["sleep", "600"]);
    let least = |n: &str| common::try_once(machine.autocvd().args(["-q", "-l", "-n", n])).success();
    // GPU 0 is the one with the least free memory, but nobody has claimed it.
    let _job = machine.job_that(0, "C 50000000000");
    assert_eq!(least("1"), "0\n");
    assert_eq!(least("3"), "0,1,2\n");
    let _third = command_running(&machine, &["-l"], &["sleep", "600"]);
    assert_eq!(least("1"), "2\n");
}

#[test]
fn without_claims_none_are_heeded_or_made() {
    let machine = Machine::gpus(1);
    let _holder = command_running(&machine, &[], &["sleep", "600"]);
    let free =
        run(machine
            .autocvd()
            .args(["-q", "--no-claim", "--", "printenv", "CUDA_VISIBLE_DEVICES"]));
    assert_eq!(free.success(), "0\n");
    let other = Machine::gpus(1);
    let _job = command_running(&other, &["--no-claim"], &["sleep", "600"]);
    assert!(!other.claims().exists());
    assert!(is_free(&other));
}

// Nesting.

#[test]
fn a_nested_autocvd_chooses_among_the_gpus_around_it() {
    let machine = Machine::gpus(8);
    let print = "-- printenv CUDA_VISIBLE_DEVICES";
    let nested = format!(
        "printenv CUDA_VISIBLE_DEVICES; autocvd -q -t 0 {print}; autocvd -q -n 4 -t 90 {print}; \
         autocvd -q -n 5 {print}; echo $?"
    );
    let told = run(machine
        .autocvd()
        .args(["-q", "-n", "4", "--", "sh", "-c", &nested]))
    .success();
    let lines: Vec<&str> = told.lines().collect();
    let around: Vec<&str> = lines[0].split(',').collect();
    assert!(around.contains(&lines[1]), "{told}");
    assert_eq!(lines[2], lines[0], "a claim ends with its COMMAND: {told}");
    assert_eq!(lines[3], "3", "five of four can never be had: {told}");
}

#[test]
fn nested_claims_are_among_siblings_and_outsiders_heed_both() {
    let machine = Machine::gpus(4);
    machine.install("worker", LOCKING_JOB);
    fs::create_dir(machine.path().join("locks")).expect("our own directory");
    // Eight of them on two GPUs: they wait for each other.
    let nested = "for i in 1 2 3 4 5 6 7 8; do autocvd -q -i 60s -- worker 0 0.1 & done; wait; \
                  echo; exec sleep 600";
    let outer = start(
        machine
            .autocvd()
            .args(["-q", "-n", "2", "--", "sh", "-c", nested]),
    );
    let outside = machine.path().join("locks");
    wait_until("the nested ones have run", || {
        outer
            .stdout()
            .lines()
            .filter(|line| line.is_empty())
            .count()
            == 1
    });
    let told = outer.stdout();
    let mut used: Vec<&str> = told.lines().filter(|line| !line.is_empty()).collect();
    assert_eq!(used.len(), 8, "{told}");
    used.sort_unstable();
    used.dedup();
    assert_eq!(used.len(), 2, "{told}");
    assert!(
        !outside.join("collision").exists(),
        "two at once on one GPU"
    );
    // The others are had by outsiders, and no more.
    let all = run(machine.autocvd().args(["-q", "-n", "2", "-o", "-t", "0"])).success();
    assert!(
        !all.trim().split(',').any(|id| used.contains(&id)),
        "{all} {told}"
    );
    assert_eq!(
        run(machine
            .autocvd()
            .args(["-q", "-n", "3", "-t", "0", "--", "true"]))
        .code,
        Some(4)
    );
}

/// `worker DELAY SECONDS`: a program that shows up on its GPU only after a while, and tells when it
/// is not alone there: each GPU has a lock that ends with the process that holds it.
const LOCKING_JOB: &str = r#"#!/bin/sh
gpu=$CUDA_VISIBLE_DEVICES
exec 9>>"$FAKE_NVML/locks/$gpu"
flock -n 9 || { echo "GPU $gpu" >>"$FAKE_NVML/locks/collision"; exit 70; }
sleep "$1" 9>&-
mkdir -p "$FAKE_NVML/procs/$gpu" && : >"$FAKE_NVML/procs/$gpu/$$"
echo "$gpu"
exec sleep "$2"
"#;

#[test]
fn nesting_may_go_deeper() {
    let machine = Machine::gpus(8);
    let innermost = "echo $CUDA_VISIBLE_DEVICES; autocvd -q -n 2 -t 0 -- true; \
                     autocvd -q -n 3 -t 0 -- true; echo $?";
    machine.install("innermost", &format!("#!/bin/sh\n{innermost}\n"));
    let inner = "echo $CUDA_VISIBLE_DEVICES; autocvd -q -n 2 -t 0 -- innermost";
    let told = run(machine
        .autocvd()
        .args(["-q", "-n", "4", "--", "sh", "-c", inner]))
    .success();
    let lines: Vec<&str> = told.lines().collect();
    assert!(
        lines[1]
            .split(',')
            .all(|id| lines[0].split(',').any(|around| around == id)),
        "{told}"
    );
    assert_eq!((lines[1].split(',').count(), lines[2]), (2, "3"), "{told}");
}

#[test]
fn what_outlives_an_inner_launch_is_still_inside_it_and_the_outer_one_keeps_the_rest() {
    let machine = Machine::gpus(8);
    let print = "-- printenv CUDA_VISIBLE_DEVICES";
    let survivor = format!(
        "until [ -e \"$FAKE_NVML/go\" ]; do sleep 0.05; done; \
         autocvd -q -t 0 {print}; autocvd -q -n 2 -t 0 {print}; echo $?"
    );
    machine.install("survivor", &format!("#!/bin/sh\n{survivor}\nmeet 2\n"));
    let outer = format!(
        "autocvd -q -t 0 -- sh -c 'printenv CUDA_VISIBLE_DEVICES; survivor &'; \
         autocvd -q -n 3 -t 0 {print}; autocvd -q -n 4 -t 0 {print}; echo $?; \
         : >\"$FAKE_NVML/go\"; meet 2; wait"
    );
    let told = run(machine
        .autocvd()
        .args(["-q", "-n", "4", "--", "sh", "-c", &outer]))
    .success();
    let lines: Vec<&str> = told.lines().collect();
    let inner = lines[0];
    assert!(
        lines[1].split(',').count() == 3 && !lines[1].contains(inner),
        "{told}"
    );
    assert_eq!(lines[2..], ["4", inner, "3"], "{told}");
}

#[test]
fn ancestors_that_are_not_here_are_ignored() {
    let machine = Machine::gpus(2);
    let _holder = command_running(&machine, &["--only", "1"], &["sleep", "600"]);
    let device = "GPU-00000000-0000-0000-0000-000000000000";
    for inside in [
        format!("0000000000000001:{device}"),
        format!("0000000000000001:{device};0000000000000002:GPU-elsewhere"),
        ":GPU-elsewhere".into(),
        "0000000000000001:GPU-elsewhere".into(),
        "nonsense".into(),
        "::::".into(),
        "/:,".into(),
        "../../etc/passwd:x".into(),
    ] {
        // By a shell of its own: what other tests start is none of its business.
        let among = |n: &str, timeout: &str| {
            let script = format!("autocvd -q -o --hold 0 -t {timeout} -n {n}; exit $?");
            run(machine.shell("sh", &script).env("AUTOCVD_INSIDE", &inside))
        };
        // The judge of the last one takes a moment.
        assert_eq!(among("1", "90").success(), "0\n", "{inside}");
        assert_eq!(
            among("2", "0").code,
            Some(4),
            "the claim on GPU 1 is heeded: {inside}"
        );
    }
}
