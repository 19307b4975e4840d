//! The programs in examples/ are what a user of the library would write: they run.

mod common;

use common::{Machine, run, skip, start, wait_until};
use std::io::Write;
use std::process::Stdio;

/// A program of examples/, which `cargo test` builds; `cargo test --test examples` alone does not.
fn example(name: &str) -> Option<String> {
    let test = std::env::current_exe().expect("a process knows its program");
    let directory = test
        .parent()
        .and_then(|deps| deps.parent())
        .expect("target/PROFILE/deps");
    let program = directory.join("examples").join(name);
    if !program.exists() {
        skip("the examples are not built ('cargo build --examples' builds them)");
        return None;
    }
    Some(program.to_string_lossy().into_owned())
}

#[test]
fn a_status_line_is_kept_by_another_thread() {
    let machine = Machine::gpus(2);
    let Some(program) = example("status_screen") else {
        return;
    };
    let recorded = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/shared-server.json");
    let mut command = machine.command(&program);
    let told = run(command.args([recorded, "2"])).success();
    let lines: Vec<&str> = told.lines().collect();
    assert_eq!(lines.len(), 2, "{told}");
    assert!(
        lines[0].contains("GPU 4 free") && lines[0].contains("GPU 0 busy"),
        "{told}"
    );
    let mut live = machine.command(&program);
    assert_eq!(run(&mut live).success(), "GPU 0 free | GPU 1 free\n");
}

#[test]
fn a_service_finds_gpus_and_drops_the_requests_of_clients_that_go() {
    let machine = Machine::gpus(1);
    let Some(program) = example("service") else {
        return;
    };
    let mut command = machine.command(&program);
    let mut service = start(command.stdin(Stdio::piped()));
    let mut input = service.take_stdin();
    let mut say = |line: &str| {
        input
            .write_all(line.as_bytes())
            .and_then(|()| input.flush())
            .expect("it reads");
    };
    say("get a 1\n");
    wait_until("a has the GPU", || {
        service.stdout().contains("a: CUDA_VISIBLE_DEVICES=0\n")
    });
    say("get b 1\n");
    say("get c 1\n");
    say("cancel b\n");
    wait_until("b is cancelled", || {
        service.stdout().contains("b: cancelled\n")
    });
    say("cancel a\n");
    wait_until("c has it now", || {
        service.stdout().contains("c: CUDA_VISIBLE_DEVICES=0\n")
    });
    drop(input);
    let told = service.finish().success();
    assert!(told.ends_with("c: released\n"), "{told}");
}

#[test]
fn a_scheduler_hands_each_claim_to_its_command() {
    let machine = Machine::gpus(2);
    let Some(program) = example("scheduler") else {
        return;
    };
    let mut command = machine.command(&program);
    let mut scheduler = start(command.stdin(Stdio::piped()));
    let mut input = scheduler.take_stdin();
    let release = machine.path().join("release");
    let wait = format!("until [ -e '{}' ]; do sleep 0.05; done", release.display());
    let line = format!("echo has $CUDA_VISIBLE_DEVICES; {wait}\n");
    input
        .write_all(line.repeat(2).as_bytes())
        .expect("it reads");
    wait_until("both run", || scheduler.stdout().lines().count() == 2);
    let mut given: Vec<String> = scheduler.stdout().lines().map(str::to_owned).collect();
    given.sort_unstable();
    assert_eq!(given, ["has 0", "has 1"]);
    // A command may speak before its claim has been handed to it.
    let holders = || {
        let json = run(machine.autocvd().args(["status", "--json"])).success();
        let status: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        let pid = |gpu: usize| status["gpus"][gpu]["claims"][0]["pid"].as_u64();
        [pid(0), pid(1)]
    };
    wait_until("both claims are handed over", || {
        let scheduler = u64::from(scheduler.pid());
        let is_handed = |pid: &Option<u64>| pid.is_some_and(|pid| pid != scheduler);
        holders().iter().all(is_handed)
    });
    // Its commands run on, and keep what they were given.
    scheduler.signal(rustix::process::Signal::KILL);
    drop(input);
    scheduler.wait_for_end();
    let taken = run(machine.autocvd().args(["-q", "-o", "-t", "0"]));
    assert_eq!(taken.code, Some(4), "{taken:#?}");
    std::fs::write(&release, "").expect("our own directory");
    wait_until("both are free", || {
        run(machine
            .autocvd()
            .args(["-q", "-t", "0", "-n", "2", "--", "true"]))
        .code
            == Some(0)
    });
}
