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

// COMMANDs.

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
