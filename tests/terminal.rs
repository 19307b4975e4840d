//! Keys on real terminals: what ^C, ^Z and ^\ do to a wait in the shells, and the keys of
//! `status --watch`.
#![cfg(feature = "cli")]

mod common;

use std::process::Command;
use std::time::{Duration, Instant};

use common::{Machine, Terminal, has};
use serde_json::json;

/// All GPUs are used for ever.
fn occupied() -> Machine {
    let machine = Machine::gpus(1);
    machine.set("/gpus/0/processes", json!([{"pid": 1}]));
    machine.install("prog", "#!/bin/sh\necho ran >>\"$FAKE_NVML/ran\"\n");
    machine
}

/// An interactive shell, and its way to run prog on what is found.
const SHELLS: [(&str, &[&str], &str); 6] = [
    (
        "bash",
        &["--norc", "--noprofile", "-i"],
        "eval $(autocvd) prog",
    ),
    ("zsh", &["-f", "-i"], "eval $(autocvd) prog"),
    ("fish", &["--no-config", "-i"], "eval (autocvd) prog"),
    ("mksh", &["-i"], "eval $(autocvd) prog"),
    ("ksh", &["-i"], "eval $(autocvd) prog"),
    ("dash", &["-i"], "eval $(autocvd) prog"),
];

fn shell(machine: &Machine, name: &str, arguments: &[&str]) -> Command {
    let mut command = machine.command(name);
    command
        .args(arguments)
        .env("TERM", "dumb")
        .env("PS1", "ready ")
        .env("ENV", "/dev/null");
    command.current_dir(machine.path());
    command
}

/// Types a line once the shell reads, and waits until its output is shown.
fn check_alive(terminal: &mut Terminal, round: usize) {
    // The shell's echo of the line has the quotes; its output does not.
    let line = format!("echo al''ive{round}\r");
    let alive = format!("alive{round}");
    let mut pressed: Option<Instant> = None;
    common::wait_until("the shell is alive", || {
        // One that is still busy with an interrupt throws away what is typed.
        if pressed.is_none_or(|pressed| pressed.elapsed() > Duration::from_secs(5)) {
            terminal.press(&line);
            pressed = Some(Instant::now());
        }
        terminal.text().contains(&alive)
    });
}

/// A shell that is alive, and now waits for what this line asks for.
fn waiting(machine: &Machine, name: &str, arguments: &[&str], line: &str) -> Terminal {
    let mut terminal = Terminal::start(&mut shell(machine, name, arguments), 24, 200);
    check_alive(&mut terminal, 1);
    terminal.press(&format!("{line}\r"));
    terminal.wait_for("waiting for a GPU", 1);
    terminal
}

#[test]
fn keys_that_end_or_stop_a_wait_run_nothing_and_leave_the_shell_alive() {
    for (name, arguments, line) in SHELLS {
        if !has(name) {
            continue;
        }
        for (keys, key) in [("\x03", "^C"), ("\x1c\x03", "^\\"), ("\x1a\x03", "^Z")] {
            // ksh93 gets SIGQUIT too, and takes what it has read so far, nothing, for the output.
            if (name, key) == ("ksh", "^\\") {
                continue;
            }
            let machine = occupied();
            let mut terminal = waiting(&machine, name, arguments, line);
            for key in keys.chars() {
                terminal.press(&key.to_string());
                std::thread::sleep(std::time::Duration::from_millis(200));
            }
            check_alive(&mut terminal, 2);
            let ran = machine.path().join("ran").exists();
            assert!(!ran, "{name} {key}: {:?}", terminal.text());
        }
    }
}

#[test]
fn a_shell_in_another_shell_is_not_stopped_by_the_key_that_stops() {
    if !has("bash") || !has("fish") {
        return;
    }
    let machine = occupied();
    let mut bash = shell(&machine, "bash", &["--norc", "--noprofile", "-i"]);
    let mut terminal = Terminal::start(&mut bash, 24, 200);
    check_alive(&mut terminal, 1);
    terminal.press("fish --no-config -i\r");
    check_alive(&mut terminal, 2);
    terminal.press("eval (autocvd) prog\r");
    terminal.wait_for("waiting for a GPU", 1);
    terminal.press("\x1a");
    std::thread::sleep(std::time::Duration::from_millis(300));
    terminal.press("\x03");
    check_alive(&mut terminal, 3);
    assert!(
        !machine.path().join("ran").exists(),
        "{:?}",
        terminal.text()
    );
}

#[test]
fn one_interrupt_ends_a_loop() {
    for (name, arguments, line) in [
        (
            "bash",
            &["--norc", "--noprofile", "-i"][..],
            "for i in 1 2 3; do autocvd -- prog; done",
        ),
        (
            "zsh",
            &["-f", "-i"],
            "for i in 1 2 3; do autocvd -- prog; done",
        ),
        ("mksh", &["-i"], "for i in 1 2 3; do autocvd -- prog; done"),
    ] {
        if !has(name) {
            continue;
        }
        let machine = occupied();
        let mut terminal = waiting(&machine, name, arguments, line);
        terminal.press("\x03");
        check_alive(&mut terminal, 2);
        let waits = terminal.text().matches("interrupted (SIGINT)").count();
        assert_eq!(waits, 1, "{name}: {:?}", terminal.text());
    }
    // So it is in a script, where the shell decides by how its child ended.
    if has("bash") {
        let machine = occupied();
        let script = "for i in 1 2 3; do autocvd -- prog; done; echo at the end";
        let mut terminal = Terminal::start(&mut machine.shell("bash", script), 24, 200);
        terminal.wait_for("waiting for a GPU", 1);
        terminal.press("\x03");
        common::wait_until("the script ends", || !terminal.is_running());
        assert!(
            !terminal.text().contains("at the end"),
            "{:?}",
            terminal.text()
        );
    }
}

#[test]
fn a_person_sees_the_reason_and_nothing_that_is_meant_for_a_shell() {
    let machine = Machine::gpus(1);
    for arguments in [&["-n", "2"][..], &["-s", "-n", "2"]] {
        let mut terminal = Terminal::start(machine.autocvd().args(arguments), 24, 200);
        common::wait_until("it ends", || !terminal.is_running());
        terminal.wait_for("2 GPUs asked for", 1);
        assert!(!terminal.text().contains("sh -c"), "{:?}", terminal.text());
    }
}

#[test]
fn watching_ends_with_q_and_gives_the_terminal_back() {
    let machine = Machine::gpus(2);
    let script = "autocvd status --watch=60; echo code $?; stty -a";
    let mut terminal = Terminal::start(machine.shell("dash", script).env("TERM", "xterm"), 24, 100);
    terminal.wait_for("2 of 2 free", 1);
    terminal.press("q");
    terminal.wait_for("code 0", 1);
    terminal.wait_for("echo ", 1);
    let text = terminal.text();
    assert!(
        text.contains(" icanon") && text.contains(" echo "),
        "{text}"
    );
    // A signal gives it back too.
    let script = "trap : QUIT; autocvd status --watch=60; stty -a";
    let mut terminal = Terminal::start(machine.shell("dash", script).env("TERM", "xterm"), 24, 100);
    terminal.wait_for("2 of 2 free", 1);
    terminal.press("\x1c");
    terminal.wait_for(" icanon", 1);
    assert!(terminal.text().contains(" echo "), "{:?}", terminal.text());
}

#[test]
fn a_low_window_shows_a_row_a_gpu_and_scrolls() {
    let machine = Machine::gpus(16);
    let _jobs = [machine.job(3), machine.job(3)];
    // High enough for a row a GPU, not for two rows of one.
    let mut watch = machine.autocvd();
    watch.args(["status", "--watch=60"]).env("TERM", "xterm");
    let terminal = Terminal::start(&mut watch, 22, 100);
    terminal.wait_for("USERS", 1);
    assert!(terminal.text().contains("(+1)"), "{:?}", terminal.text());
    // Too low for all.
    let mut terminal = Terminal::start(&mut watch, 12, 100);
    terminal.wait_for("rows 1 to 7 of 16", 1);
    terminal.press("\x1b[B");
    terminal.wait_for("rows 2 to 8 of 16", 1);
    terminal.press("\x1b[6~");
    terminal.wait_for("rows 8 to 14 of 16", 1);
    terminal.press("k");
    terminal.wait_for("rows 7 to 13 of 16", 1);
    terminal.press("q");
    common::wait_until("it ends", || !terminal.is_running());
}
