//! Leases: what `eval $(autocvd) prog` claims, and for how long.
#![cfg(feature = "cli")]

mod common;

use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use common::{
    Machine, Running, has_namespaces, in_namespace, is_free, look, run, start, wait_until,
};
use rustix::process::Signal;

/// A shell that runs a script on the machine, once it has written its first line. `pause` blocks
/// the shell itself: no process is started that could pass for the program.
fn shell_that_asked(machine: &Machine, shell: &str, script: &str) -> Running {
    let fifo = machine.path().join("fifo");
    if !fifo.exists() {
        assert!(
            Command::new("mkfifo")
                .arg(&fifo)
                .status()
                .expect("it is everywhere")
                .success()
        );
    }
    install_told(machine);
    let script = format!("pause() {{ read -r _ <>\"$FAKE_NVML/fifo\"; }}; {script}");
    let running = start(&mut machine.shell(shell, &script));
    wait_until("the shell has its answer", || {
        running.stdout().contains('\n')
    });
    running
}

/// A program that tells which GPUs it was given, and becomes another one.
fn install_told(machine: &Machine) {
    machine.install(
        "told",
        "#!/bin/sh\necho \"$CUDA_VISIBLE_DEVICES\"\nexec \"$@\"\n",
    );
}

/// A launch that waits and is woken by nothing but the end of claims.
fn waiter(machine: &Machine) -> Running {
    start(machine.autocvd().args(["-q", "-i", "600s", "--", "true"]))
}

#[test]
fn a_lease_lasts_for_its_hold_where_nothing_is_started() {
    let machine = Machine::gpus(1);
    let shell = shell_that_asked(
        &machine,
        "bash",
        "eval $(autocvd -q --hold 6s); echo; pause",
    );
    assert!(!is_free(&machine));
    let asked = Instant::now();
    waiter(&machine).finish().success();
    assert!(
        asked.elapsed() > Duration::from_secs(2),
        "not before: {:?}",
        asked.elapsed()
    );
    drop(shell);
}

#[test]
fn a_lease_lasts_as_long_as_the_program() {
    for shell in common::installed(["bash", "dash", "zsh"]) {
        let machine = Machine::gpus(1);
        // Longer than its hold, in which a loaded machine starts the program.
        let script = "eval $(autocvd -q --hold 3s) told sleep 600; pause";
        let mut running = shell_that_asked(&machine, shell, script);
        thread::sleep(Duration::from_millis(3300));
        assert!(!is_free(&machine), "{shell}");
        let waiting = waiter(&machine);
        assert!(running.is_running());
        thread::sleep(Duration::from_millis(200));
        let program = children(running.pid())[0];
        rustix::process::kill_process(
            rustix::process::Pid::from_raw(program as i32).expect("a pid"),
            Signal::KILL,
        )
        .expect("it runs");
        // The shell lives on.
        waiting.finish().success();
    }
}

fn command_line(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default()
}

fn comm(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default()
}

fn children(pid: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("it runs");
    list.split_whitespace()
        .map(|pid| pid.parse().expect("a pid"))
        .collect()
}

#[test]
fn a_lease_ends_with_the_program_though_the_shell_goes_on_to_other_things() {
    let machine = Machine::gpus(1);
    let script = "eval $(autocvd -q --hold 60s) occupy 1; sleep 600";
    let shell = shell_that_asked(&machine, "bash", script);
    let asked = Instant::now();
    waiter(&machine).finish().success();
    assert!(
        asked.elapsed() < Duration::from_secs(20),
        "{:?}",
        asked.elapsed()
    );
    drop(shell);
}

#[test]
fn a_waiter_that_came_before_the_program_started_sees_its_end() {
    let machine = Machine::gpus(1);
    let script = "set -- $(autocvd -q --hold 60s); echo; read -r _ <\"$FAKE_NVML/go\"; \
                  eval \"$@\" occupy 2; pause";
    assert!(
        Command::new("mkfifo")
            .arg(machine.path().join("go"))
            .status()
            .expect("it is everywhere")
            .success()
    );
    let shell = shell_that_asked(&machine, "bash", script);
    let waiting = waiter(&machine);
    thread::sleep(Duration::from_millis(500));
    fs::write(machine.path().join("go"), "\n").expect("the shell reads it");
    let started = Instant::now();
    waiting.finish().success();
    assert!(
        started.elapsed() > Duration::from_millis(1500),
        "{:?}",
        started.elapsed()
    );
    assert!(
        started.elapsed() < Duration::from_secs(20),
        "{:?}",
        started.elapsed()
    );
    drop(shell);
}

#[test]
fn a_lease_ends_with_the_shell_that_started_nothing() {
    let machine = Machine::gpus(1);
    let shell = shell_that_asked(&machine, "bash", "eval $(autocvd -q); echo; pause");
    assert!(!is_free(&machine));
    let waiting = waiter(&machine);
    thread::sleep(Duration::from_millis(300));
    shell.signal(Signal::KILL);
    shell.finish();
    waiting.finish().success();
    // The same script again and again.
    for _ in 0..5 {
        run(&mut machine.shell("bash", "eval $(autocvd -q -t 20) true; exit $?")).success();
    }
}

#[test]
fn a_program_that_outlives_its_shell_keeps_its_gpu() {
    let machine = Machine::gpus(1);
    let pid = run(&mut machine.shell(
        "bash",
        "eval $(autocvd -q) nohup sleep 600 >/dev/null 2>&1 & echo $!",
    ))
    .success();
    // Some shells keep a fork of theirs between the job and its program.
    let job: u32 = pid.trim().parse().expect("a pid");
    let mut program = None;
    wait_until("nohup has become sleep", || {
        let mut both = std::iter::once(job).chain(children(job));
        program = both.find(|pid| comm(*pid) == "sleep\n");
        program.is_some()
    });
    let program = program.expect("just seen");
    assert!(!is_free(&machine));
    let mut waiting = waiter(&machine);
    thread::sleep(Duration::from_millis(500));
    assert!(!is_free(&machine) && waiting.is_running());
    let program = rustix::process::Pid::from_raw(program as i32).expect("not 0");
    rustix::process::kill_process(program, Signal::KILL).expect("it runs");
    waiting.finish().success();
}

#[test]
fn a_shell_that_becomes_the_program_keeps_its_gpu() {
    let machine = Machine::gpus(1);
    let shell = shell_that_asked(
        &machine,
        "bash",
        "eval $(autocvd -q --hold 5s) exec told sleep 600",
    );
    // Longer than its hold, in which a loaded machine becomes the program.
    thread::sleep(Duration::from_millis(5300));
    assert!(!is_free(&machine));
    drop(shell);
    wait_until("its claim has ended", || is_free(&machine));
}

#[test]
fn a_loop_of_short_jobs_on_one_gpu_never_waits_for_its_own_lease() {
    for shell in common::installed(["bash", "dash", "zsh", "ksh", "mksh", "busybox"]) {
        let machine = Machine::gpus(1);
        let list = "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20";
        let script = format!(
            "for i in {list}; do eval $(autocvd -q -t 20) true || exit 9; done; autocvd -q -o -t 20"
        );
        assert_eq!(
            run(&mut machine.shell(shell, &script)).success(),
            "0\n",
            "{shell}"
        );
    }
    let machine = Machine::gpus(1);
    let fish = "for i in (seq 10); eval (autocvd -q -t 20) true; or exit 9; end";
    if common::has("fish") {
        run(&mut machine.shell("fish", fish)).success();
    }
    let tcsh = "foreach i (1 2 3 4 5 6 7 8 9 10)\neval `autocvd -q -t 20 --shell csh` true \
                || exit 9\nend\n";
    fs::write(machine.path().join("loop"), tcsh).expect("our own directory");
    if common::has("tcsh") {
        run(machine.command("tcsh").arg(machine.path().join("loop"))).success();
    }
    for source in [
        "eval $(autocvd -q) true; autocvd -q -t 20 -- true",
        ". <(autocvd -q -s -t 20); true",
        "eval \"$(autocvd -q -s -t 20)\"; sleep 0.02",
    ] {
        let script = format!("for i in 1 2 3 4 5 6 7 8 9 10; do {source} || exit 9; done");
        run(&mut machine.shell("bash", &script)).success();
    }
}

#[test]
fn the_end_of_a_lease_because_its_shell_asks_again_wakes_who_waits_for_it() {
    let machine = Machine::gpus(2);
    let _job = machine.job(0);
    // In vain, so that no new claim wakes them.
    let script =
        "eval $(autocvd -q --only 1 --hold 600s); echo; pause; autocvd -q -n 2 -t 0 -- true; pause";
    let shell = shell_that_asked(&machine, "bash", script);
    let waiting = start(
        machine
            .autocvd()
            .args(["-i", "600s", "--only", "1", "--", "true"]),
    );
    wait_until("it waits", || {
        waiting.stderr().contains("waiting for a GPU")
    });
    fs::write(machine.path().join("fifo"), "\n").expect("the shell reads it");
    waiting.finish().success();
    drop(shell);
}

#[test]
fn a_program_that_rewrites_its_title_keeps_its_gpu() {
    if !common::has("perl") {
        return;
    }
    let machine = Machine::gpus(1);
    // The title goes over what the environment was.
    machine.install(
        "titled",
        "#!/bin/sh\nexec perl -e '$0 = \"workerx\" . \" lr=0.1\" x $ARGV[0]; sleep 600' \"$@\"\n",
    );
    for script in [
        "eval \"$(autocvd -q -s)\"; exec titled 2000",
        "eval $(autocvd -q --hold 2s) titled 12; pause",
    ] {
        let shell = shell_that_asked(&machine, "bash", &format!("echo; {script}"));
        let titled = |pid: u32| {
            fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(b"workerx"))
        };
        wait_until("it has its title", || {
            titled(shell.pid()) || children(shell.pid()).into_iter().any(titled)
        });
        assert!(!is_free(&machine), "{script}");
        drop(shell);
        wait_until("it is free", || is_free(&machine));
    }
}

#[test]
fn a_lease_that_is_over_does_not_come_back() {
    let machine = Machine::gpus(1);
    let script = "eval $(autocvd -q --hold 1s) true; sleep 2; env -i sleep 30 & sleep 0.3; \
                  bash -c 'autocvd -q -o -t 1; exit $?'";
    assert_eq!(run(&mut machine.shell("bash", script)).success(), "0\n");
}

#[test]
fn exported_variables_are_the_shells_until_it_ends() {
    for (shell, ask) in [
        ("bash", ". <(autocvd -q -s --hold 500ms)"),
        ("bash", "eval \"$(autocvd -q -s --hold 500ms)\""),
        ("dash", "eval \"$(autocvd -q -s --hold 500ms)\""),
        ("zsh", "eval \"$(autocvd -q -s --hold 500ms)\""),
        ("mksh", "eval \"$(autocvd -q -s --hold 500ms)\""),
    ] {
        if !common::has(shell) {
            continue;
        }
        let machine = Machine::gpus(2);
        let shell = shell_that_asked(&machine, shell, &format!("{ask}; sleep 0.1; echo; pause"));
        thread::sleep(Duration::from_millis(900));
        assert_eq!(look(&machine).success(), "0\n", "{ask}");
        drop(shell);
        wait_until("its claim has ended", || look(&machine).stdout == "1\n");
    }
}

#[test]
fn background_jobs_of_one_shell_get_a_gpu_each() {
    let job = "eval $(autocvd -q) told meet 4 &";
    for shell in common::installed(["bash", "dash", "zsh", "ksh"]) {
        let machine = Machine::gpus(4);
        install_told(&machine);
        let script = format!("{job} {job} {job} {job} wait");
        let told = run(&mut machine.shell(shell, &script)).success();
        let mut ids: Vec<&str> = told.lines().collect();
        ids.sort_unstable();
        assert_eq!(ids, ["0", "1", "2", "3"], "{shell}");
    }
}

#[test]
fn requests_that_one_process_makes_at_the_same_time_get_different_gpus() {
    let machine = Machine::gpus(4);
    // It asks the second time when the first one has answered, but before it has taken note of
    // that.
    let script = "import os, subprocess, time
ask = lambda: subprocess.Popen(['autocvd', '-q', '-o'], stdout=subprocess.PIPE, text=True)
first = ask(); time.sleep(0.5); all = [first] + [ask() for _ in range(3)]
for p in all: os.waitid(os.P_PID, p.pid, os.WEXITED | os.WNOWAIT)
print(*sorted(p.communicate()[0].strip() for p in all))";
    if common::has("python3") {
        assert_eq!(
            run(machine.command("python3").args(["-c", script])).success(),
            "0 1 2 3\n"
        );
    }
    let machine = Machine::gpus(4);
    machine.set("/init/delay_ms", 1000.into());
    let told = run(&mut machine.shell(
        "sh",
        "printf '%s\\n' -q -q -q -q | xargs -P 4 -n 1 autocvd -o",
    ))
    .success();
    let mut ids: Vec<&str> = told.lines().collect();
    ids.sort_unstable();
    assert_eq!(ids, ["0", "1", "2", "3"]);
    let xargs = "printf '%s\\n' a b c d | xargs -P 4 -n 1 sh -c 'autocvd -q -o; meet 4'";
    for _ in 0..3 {
        let machine = Machine::gpus(4);
        let told = run(&mut machine.shell("sh", xargs)).success();
        let mut ids: Vec<&str> = told.lines().collect();
        ids.sort_unstable();
        assert_eq!(ids, ["0", "1", "2", "3"]);
    }
}

#[test]
fn a_lease_made_in_another_namespace_counts_and_wakes_who_waits_for_it() {
    let machine = Machine::gpus(1);
    if !has_namespaces(&machine) {
        return;
    }
    install_told(&machine);
    let script = "eval $(autocvd -q --hold 2s) told sleep 8; sleep 600";
    let inside = start(&mut in_namespace(&machine, &["bash", "-c", script]));
    wait_until("it has asked", || inside.stdout() == "0\n");
    assert!(!is_free(&machine));
    let asked = Instant::now();
    waiter(&machine).finish().success();
    assert!(
        asked.elapsed() > Duration::from_secs(3),
        "{:?}",
        asked.elapsed()
    );
}

#[test]
fn times_beyond_the_clock_are_for_ever() {
    let machine = Machine::gpus(1);
    let script = "eval $(autocvd -q --hold 18446744073709551615s); echo; pause";
    let shell = shell_that_asked(&machine, "bash", script);
    assert!(!is_free(&machine));
    let mut waiting =
        start(
            machine
                .autocvd()
                .args(["-q", "-i", "18446744073709551615s", "--", "true"]),
        );
    thread::sleep(Duration::from_millis(300));
    assert!(
        waiting.is_running(),
        "{waiting:?}",
        waiting = waiting.stderr()
    );
    drop(shell);
    waiting.finish().success();
}

#[test]
fn a_program_keeps_its_gpu_while_it_becomes_one_program_after_another() {
    let machine = Machine::gpus(1);
    machine.install(
        "chain",
        "#!/bin/sh\n[ $1 = 0 ] && exec sleep 600\n\
         [ $1 = 1000 ] && until [ -e \"$FAKE_NVML/go\" ]; do sleep 0.01; done\n\
         exec chain $(($1 - 1))\n",
    );
    let go = machine.path().join("go");
    for script in [
        "eval $(autocvd -q) exec chain 1000",
        "eval $(autocvd -q) chain 1000; pause",
    ] {
        let shell = shell_that_asked(&machine, "bash", &format!("echo; {script}"));
        let sleeps = |pid: u32| command_line(pid) == "sleep\x00600\x00";
        wait_until("its claim is told of", || {
            common::tells_of(&machine.claims(), shell.pid())
        });
        let mut looks = 0;
        while !sleeps(shell.pid()) && !children(shell.pid()).into_iter().any(sleeps) {
            assert!(!is_free(&machine), "after {looks} looks: {script}");
            looks += 1;
            // It goes on while it is looked at.
            if looks == 2 {
                fs::write(&go, "").expect("our own directory");
            }
        }
        assert!(looks > 3, "{looks} looks");
        fs::remove_file(&go).expect("our own directory");
        drop(shell);
        wait_until("it is free", || is_free(&machine));
    }
}

#[test]
fn a_program_of_a_lease_chooses_among_what_the_lease_holds() {
    // A judge takes a moment to let go of what has ended.
    let nested = "autocvd -q -t 20 -- printenv CUDA_VISIBLE_DEVICES; \
                  autocvd -q -n 2 -t 0 -- true; echo $?; \
                  eval $(autocvd -q -t 20) printenv CUDA_VISIBLE_DEVICES";
    for outer in [
        "eval $(autocvd -q) inner; :",
        "eval $(autocvd -q) exec inner",
        "eval $(autocvd -q) sh -c 'inner; :'; :",
        "eval \"$(autocvd -q -s)\"; inner; :",
        ". <(autocvd -q -s); sh -c 'inner; :'",
    ] {
        let machine = Machine::gpus(3);
        machine.install("inner", &format!("#!/bin/bash\n{nested}\n"));
        let told = run(&mut machine.shell("bash", outer)).success();
        assert_eq!(told, "2\n3\n2\n", "{outer}");
    }
    // The shell itself is not a program of its lease.
    let machine = Machine::gpus(2);
    let script = "eval \"$(autocvd -q -s)\"; autocvd -q -t 0 -- printenv CUDA_VISIBLE_DEVICES";
    assert_eq!(run(&mut machine.shell("bash", script)).success(), "0\n");
}

#[test]
fn a_launch_of_a_command_does_not_wait_for_its_own_shells_idle_lease() {
    let machine = Machine::gpus(1);
    // It would last for 600 s.
    let script = "eval $(autocvd -q --hold 600s) true; autocvd -q -t 90 -- echo ran; \
                  autocvd -q -t 90 -- echo again";
    let told = run(&mut machine.shell("bash", script)).success();
    assert_eq!(told, "ran\nagain\n");
}
