//! Claims: two launches never get the same GPU, and nothing that ended keeps one.
#![cfg(feature = "cli")]

mod common;

use std::fs;
use std::process::Command;

use common::{AUTOCVD, Machine, Outcome, Running, run, start, wait_until};
use rustix::process::Signal;

/// One look at the machine, by a shell of its own: which GPU is to be had now.
fn look(machine: &Machine) -> Outcome {
    run(machine.autocvd().args(["-q", "-t", "0", "--", "printenv", "CUDA_VISIBLE_DEVICES"]))
}

fn is_free(machine: &Machine) -> bool {
    look(machine).code == Some(0)
}

/// A COMMAND that runs under autocvd, once it does.
fn command_running(machine: &Machine, options: &[&str], command: &[&str]) -> Running {
    let running = start(machine.autocvd().args(options).arg("--").args(command));
    let line = command.join(" ");
    wait_until("the COMMAND runs", || command_line(running.pid()) == line);
    running
}

fn command_line(pid: u32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).trim_end_matches('\0').replace('\0', " ")
}

/// A program in a PID namespace of its own, with a /proc of its own; it ends with whoever starts it.
fn in_namespace(machine: &Machine, command: &[&str]) -> Command {
    let mut inside = machine.command("unshare");
    inside.args(["--pid", "--fork", "--kill-child", "--mount-proc"]).args(command);
    inside
}

/// Whether PID namespaces may be made here; says so where they may not.
fn has_namespaces(machine: &Machine) -> bool {
    let may = run(&mut in_namespace(machine, &["true"])).code == Some(0);
    if !may {
        eprintln!("skipped: PID namespaces may not be made here (it takes root)");
    }
    may
}

#[test]
fn a_command_holds_its_gpu_until_it_ends() {
    let machine = Machine::gpus(1);
    let command = command_running(&machine, &[], &["sleep", "60"]);
    let refused = look(&machine);
    assert_eq!(refused.code, Some(4), "{refused:#?}");
    assert!(refused.stderr.contains("sleep 60"), "the holder is named: {refused:#?}");
    command.signal(Signal::KILL);
    let ended = command.finish();
    assert_eq!(ended.signal, Some(9));
    assert_eq!(look(&machine).success(), "0\n");
    let normal = run(machine.autocvd().args(["--", "true"]));
    assert_eq!(normal.code, Some(0));
    assert!(is_free(&machine));
}

#[test]
fn claims_count_across_pid_namespaces_both_ways() {
    let machine = Machine::gpus(2);
    if !has_namespaces(&machine) {
        return;
    }
    let outside = command_running(&machine, &["--only", "1"], &["sleep", "60"]);
    let own = [AUTOCVD, "-q", "-t", "0", "--", "printenv", "CUDA_VISIBLE_DEVICES"];
    assert_eq!(run(&mut in_namespace(&machine, &own)).success(), "0\n");
    let inside = start(&mut in_namespace(&machine, &[AUTOCVD, "-q", "--", "sh", "-c", "echo; sleep 60"]));
    wait_until("the COMMAND inside runs", || inside.stdout() == "\n");
    assert_eq!(look(&machine).code, Some(4));
    assert_eq!(run(&mut in_namespace(&machine, &own)).code, Some(4), "nor in a third namespace");
    drop(inside);
    wait_until("its claim has ended", || look(&machine).stdout == "0\n");
    drop(outside);
    assert_eq!(look(&machine).success(), "1\n");
    assert_eq!(run(&mut in_namespace(&machine, &own)).success(), "1\n");
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
        inside.args(["--pid", "--fork", "--kill-child"]).args(command);
        inside
    };
    let inside = start(&mut within(&[AUTOCVD, "-q", "--", "sh", "-c", "echo; sleep 60"]));
    wait_until("the COMMAND inside runs", || inside.stdout() == "\n");
    let own = [AUTOCVD, "-q", "-t", "0", "--", "true"];
    assert_eq!(look(&machine).code, Some(4));
    assert_eq!(run(&mut within(&own)).code, Some(4));
    drop(inside);
    wait_until("its claim has ended for all", || is_free(&machine) && run(&mut within(&own)).code == Some(0));
    let outside = command_running(&machine, &[], &["sleep", "60"]);
    assert_eq!(run(&mut within(&own)).code, Some(4));
    drop(outside);
}

#[test]
fn a_child_that_the_command_leaves_behind_does_not_keep_the_claim() {
    let machine = Machine::gpus(1);
    let script = "sleep 8 >/dev/null 2>&1 & echo $!";
    let child: u32 = run(machine.autocvd().args(["--", "sh", "-c", script])).success().trim().parse().expect("a pid");
    assert!(!command_line(child).is_empty(), "it lives");
    assert!(is_free(&machine));
    if has_namespaces(&machine) {
        let own = [AUTOCVD, "-q", "-t", "0", "--", "true"];
        assert_eq!(run(&mut in_namespace(&machine, &own)).code, Some(0));
    }
}

#[test]
fn a_command_that_closes_its_descriptors_keeps_its_gpu() {
    let machine = Machine::gpus(1);
    let script = "import os, time; os.closerange(3, 4096); print(flush=True); time.sleep(60)";
    let command = start(machine.autocvd().args(["--", "python3", "-c", script]));
    wait_until("they are closed", || command.stdout() == "\n");
    assert!(!is_free(&machine));
    if has_namespaces(&machine) {
        // Nothing tells that namespace of the claim, but it must not take it from those who know.
        run(&mut in_namespace(&machine, &[AUTOCVD, "-q", "-t", "0", "--", "true"]));
        assert!(!is_free(&machine));
    }
    drop(command);
    assert!(is_free(&machine));
}

#[test]
fn a_command_may_become_another_one_and_another_one() {
    let machine = Machine::gpus(1);
    let command = start(machine.autocvd().args(["--", "sh", "-c", "exec sh -c 'exec sleep 61'"]));
    wait_until("it has become sleep", || command_line(command.pid()) == "sleep 61");
    assert!(!is_free(&machine));
    drop(command);
    assert!(is_free(&machine));
}

#[test]
fn a_command_that_cannot_be_run_leaves_no_claim() {
    let machine = Machine::gpus(1);
    machine.install("broken", "#!/nonexistent/interpreter");
    assert_eq!(run(machine.autocvd().args(["--", "broken"])).code, Some(127));
    assert_eq!(claim_files(&machine), [] as [String; 0]);
}

/// The files of claims.
fn claim_files(machine: &Machine) -> Vec<String> {
    let entries = fs::read_dir(machine.claims()).expect("the folder is there").flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name != "queue").collect()
}
