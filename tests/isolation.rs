//! Claims count across what separates processes from each other: users that /proc hides, PID
//! namespaces, boot ids, containers that a daemon starts; and nothing that another user puts there
//! reaches a terminal.
#![cfg(feature = "cli")]

mod common;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use common::{
    Machine, Running, Terminal, has_mount_namespaces, has_namespaces, in_namespace, is_free, look,
    run, start, wait_until,
};

/// A program that tells which GPUs it was given, and stays.
const TOLD: &str = "#!/bin/sh\necho \"$CUDA_VISIBLE_DEVICES\"\nexec sleep 600\n";

fn machine(gpus: usize) -> Machine {
    let machine = Machine::gpus(gpus);
    machine.install("told", TOLD);
    machine
}

/// Scripts that hold a GPU in each form and tell which one.
const FORMS: [&str; 4] = [
    "autocvd -q -- told; :",
    "eval $(autocvd -q) told; :",
    "eval \"$(autocvd -q -s)\"; told; :",
    "autocvd -q -o --hold 60s; sleep 600; :",
];

/// The script in a mount namespace in which `prepare`, run as root, has changed something; `sh`
/// runs both.
fn prepared(machine: &Machine, prepare: &str, script: &str) -> Command {
    let mut command = machine.command("unshare");
    let script = format!("{prepare} || exit 99; {script}");
    command.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
    command
}

#[track_caller]
fn has_its_gpu(running: &mut Running, what: &str) -> String {
    wait_until("it has a GPU", || {
        running.stdout().contains('\n') || !running.is_running()
    });
    let told = running.stdout();
    assert!(told.ends_with('\n'), "{what}: {}", running.stderr());
    told
}

#[test]
fn users_whose_processes_are_hidden_from_each_other_never_share_a_gpu() {
    let machine = machine(2);
    if !has_mount_namespaces(&machine) {
        return;
    }
    machine.private_library();
    common::copy_program(common::program(), &machine.path().join("program"));
    for (name, mode) in [("", 0o755), ("program", 0o755), ("procs", 0o777)] {
        let mode = PermissionsExt::from_mode(mode);
        fs::set_permissions(machine.path().join(name), mode).expect("our own");
    }
    for name in ["calls", "initializations"] {
        let mode = PermissionsExt::from_mode(0o666);
        fs::set_permissions(machine.path().join(name), mode).expect("our own");
    }
    fs::remove_file(machine.path().join("bin/autocvd")).expect("our own");
    symlink("../program", machine.path().join("bin/autocvd")).expect("our own");
    let hide = "mount -t proc -o hidepid=2 proc /proc";
    if run(&mut prepared(&machine, hide, ":")).code != Some(0) {
        return common::skip("/proc may not be mounted with hidepid here");
    }
    let as_user = |uid: u32, script: &str| {
        let user = format!("exec setpriv --reuid={uid} --regid={uid} --clear-groups sh -c '");
        prepared(
            &machine,
            hide,
            &format!("{user}{}'", script.replace('\'', "'\\''")),
        )
    };
    fs::create_dir(machine.claims()).expect("our own directory");
    fs::set_permissions(machine.claims(), PermissionsExt::from_mode(0o1777)).expect("our own");
    for script in FORMS {
        let mut one = start(&mut as_user(1, script));
        assert_eq!(has_its_gpu(&mut one, script), "1\n", "{script}");
        let mut other = start(&mut as_user(65534, script));
        assert_eq!(has_its_gpu(&mut other, script), "0\n", "{script}");
        let third = run(&mut as_user(2, "autocvd -t 0 -- true"));
        assert_eq!(third.code, Some(4), "{script}: {third:#?}");
        assert!(third.stderr.contains("claimed"), "{script}: {third:#?}");
        drop((one, other));
        // Printed ids are claimed for their hold, whatever becomes of the shell.
        if script.contains("-o") {
            break;
        }
        wait_until("both are free", || {
            run(&mut as_user(2, "autocvd -q -t 0 -n 2 -- true")).code == Some(0)
        });
        common::wait_until_unclaimed(&machine);
    }
}

#[test]
fn a_host_and_a_container_with_a_boot_id_of_its_own_never_share_a_gpu() {
    let machine = machine(1);
    if !has_mount_namespaces(&machine) || !has_namespaces(&machine) {
        return;
    }
    let id = machine.path().join("boot_id");
    fs::write(&id, "00000000-1111-2222-3333-444444444444\n").expect("our own directory");
    let other_boot = format!(
        "mount --bind {} /proc/sys/kernel/random/boot_id",
        id.display()
    );
    let in_container = |script: &str| {
        let mut inside = in_namespace(&machine, &["sh", "-c"]);
        inside.arg(format!("{other_boot} || exit 99; {script}"));
        inside
    };
    let on_host = |script: &str| machine.shell("sh", script);
    let refused = "autocvd -q -t 0 -- true; [ $? = 4 ]";
    for script in &FORMS[..3] {
        let mut inside = start(&mut in_container(script));
        has_its_gpu(&mut inside, script);
        run(&mut on_host(refused)).success();
        drop(inside);
        wait_until("it is free", || is_free(&machine));
        let mut outside = start(&mut on_host(script));
        has_its_gpu(&mut outside, script);
        run(&mut in_container(refused)).success();
        drop(outside);
        wait_until("it is free", || is_free(&machine));
    }
}

#[test]
fn waiters_in_a_container_with_one_gpu_delay_no_launch_on_another_one() {
    let machine = machine(2);
    if !has_namespaces(&machine) {
        return;
    }
    let mut command = machine.autocvd();
    let mut holder = start(command.args(["-q", "--only", "0", "--", "told"]));
    has_its_gpu(&mut holder, "the holder");
    let waiters = "for i in $(seq 32); do autocvd -q -i 600s --only 0 -- true & done; wait";
    let waiting = start(&mut in_namespace(&machine, &["sh", "-c", waiters]));
    let queue = machine.claims().join("queue");
    wait_until("all wait", || {
        let sockets = fs::read_dir(&queue).map(|entries| {
            let names = entries.flatten().map(|entry| entry.file_name());
            names
                .filter(|name| name.to_string_lossy().ends_with(".socket"))
                .count()
        });
        sockets.is_ok_and(|count| count >= 32)
    });
    for _ in 0..10 {
        assert_eq!(look(&machine).success(), "1\n");
    }
    drop(waiting);
}

#[test]
fn ids_given_to_a_program_that_a_daemon_starts_stay_claimed_for_their_hold() {
    let machine = machine(1);
    // As `docker run -d`: what is asked for runs elsewhere, and the client has ended.
    let fifo = machine.path().join("daemon");
    let made = Command::new("mkfifo").arg(&fifo).status();
    assert!(made.expect("it is everywhere").success());
    machine.install(
        "client",
        "#!/bin/sh\n[ -n \"$2\" ] || exit 9\necho \"$@\" >\"$FAKE_NVML/daemon\"\n",
    );
    let daemon = "while read -r _ gpu <\"$FAKE_NVML/daemon\"; do \
                  env -i FAKE_NVML=$FAKE_NVML PATH=$PATH CUDA_VISIBLE_DEVICES=$gpu told & done";
    let daemon = start(&mut machine.shell("sh", daemon));
    let script = "client --gpus $(autocvd -q -o --hold 60s); autocvd -q -t 0 -o; echo $?";
    let second = run(&mut machine.shell("bash", script)).success();
    assert_eq!(second, "4\n");
    wait_until("the daemon has started it", || daemon.stdout() == "0\n");
    // The shell has ended, and still.
    assert_eq!(look(&machine).code, Some(4));
}

#[test]
fn a_fork_that_has_not_become_its_program_yet_keeps_the_gpu_in_every_shell() {
    for shell in common::installed(["bash", "dash", "ksh", "mksh", "zsh", "busybox"]) {
        let machine = Machine::gpus(1);
        machine.install(
            "meeting",
            "#!/bin/sh\necho run >>\"$FAKE_NVML/ran\"\nexec sleep 1\n",
        );
        // The child is there, and its exec takes a while.
        let slow = || {
            let mut command = machine.command("strace");
            command.args(["-f", "-qq", "-o", "/dev/null", "-P"]);
            command.arg(machine.path().join("bin/meeting"));
            command.args(["-e", "inject=execve:delay_enter=1500000"]);
            command
        };
        if !common::has("strace") {
            return;
        }
        if run(slow().arg("true")).code != Some(0) {
            return common::skip("needs strace, which may trace");
        }
        let script = "for i in 1 2; do eval \"$(autocvd -q -t 50) meeting &\"; done; wait";
        let mut command = slow();
        command.arg(shell);
        if shell == "busybox" {
            command.arg("sh");
        }
        command.args(["-c", script]);
        let began = std::time::Instant::now();
        run(&mut command).success();
        let ran = fs::read_to_string(machine.path().join("ran")).expect("they ran");
        assert_eq!(ran, "run\nrun\n", "{shell}");
        // One after another: each takes two seconds and a half.
        assert!(began.elapsed().as_secs_f64() > 4.5, "{shell}");
    }
}

/// What a terminal would act upon.
fn has_escapes(text: &str) -> bool {
    text.contains("\x1b]")
        || text.contains("\x1b[31")
        || text.contains('\u{9b}')
        || text.contains('\x07')
}

#[test]
fn what_others_call_their_programs_reaches_no_terminal() {
    let machine = machine(1);
    let name = "\x1b]0;title\x07\x1b[31mred\u{9b}1m";
    machine.install(name, TOLD);
    let mut command = machine.autocvd();
    let mut job = start(command.args(["-q", "--", name]));
    has_its_gpu(&mut job, "the job");
    for arguments in [
        &["-t", "0", "-o"][..],
        &["-v", "-v", "-t", "0", "-o"],
        &["-l", "-o"],
        &["status"],
        &["status", "--short"],
        &["doctor"],
        &["-t", "1", "-o"],
    ] {
        let told = run(machine.autocvd().args(arguments));
        let text = format!("{}{}", told.stdout, told.stderr);
        assert!(!has_escapes(&text), "{arguments:?}: {text:?}");
    }
    let json = run(machine.autocvd().args(["status", "--json"])).success();
    assert!(!json.contains(['\x1b', '\x07']), "{json:?}");
    // On a terminal it waits with a line of its own.
    let mut waiting = machine.autocvd();
    waiting.args(["-t", "2", "-o"]);
    let mut terminal = Terminal::start(&mut waiting, 24, 200);
    wait_until("it has ended", || !terminal.is_running());
    // What it wrote last may still be on its way.
    terminal.wait_for("timed out", 1);
    let seen = terminal.text();
    assert!(seen.contains("GPU") && !has_escapes(&seen), "{seen:?}");
}

#[test]
fn what_another_user_writes_about_a_claim_reaches_no_terminal() {
    let machine = machine(1);
    let holder = common::Job::unregistered();
    let (process, namespace) = common::process_words(holder.pid());
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("it is everywhere");
    // A claim was once a file that others believed.
    let text = format!(
        "autocvd claim 1\nunits=GPU-00000000-0000-0000-0000-000000000000\n{process}\n\
         {namespace}\nboot={}\nsince=1764000000\n\
         command=\x1b]0;title\x07\x1b[31mred\u{9b}1m\nend=\n",
        boot.trim()
    );
    fs::create_dir_all(machine.claims()).expect("our own directory");
    let file = machine.claims().join(format!("{}-1", holder.pid()));
    fs::write(file, text).expect("our own directory");
    for arguments in [
        &["-t", "0.5", "-o"][..],
        &["status"],
        &["-l", "-o"],
        &["-v", "-v", "-t", "0", "-o"],
    ] {
        let told = run(machine.autocvd().args(arguments));
        let text = format!("{}{}", told.stdout, told.stderr);
        assert!(!has_escapes(&text), "{arguments:?}: {text:?}");
    }
}

#[test]
fn a_directory_that_is_exchanged_for_a_link_again_and_again_moves_nobodys_files() {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    use std::sync::atomic::{AtomicBool, Ordering};
    let machine = machine(1);
    let _job = machine.job(0);
    let target = machine.path().join("target");
    let link = machine.path().join("link");
    for name in ["queue", "holders"] {
        fs::create_dir_all(target.join(name)).expect("our own directory");
    }
    fs::create_dir(machine.claims()).expect("our own directory");
    symlink(&target, &link).expect("our own directory");
    let changed = || {
        ["", "queue", "holders"].map(|name| {
            let meta = fs::metadata(target.join(name)).expect("our own directory");
            meta.modified().expect("all file systems here have it")
        })
    };
    let before = changed();
    let ends = AtomicBool::new(false);
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ends.load(Ordering::Relaxed) {
                let exchange = RenameFlags::EXCHANGE;
                renameat_with(CWD, machine.claims(), CWD, &link, exchange).expect("both are there");
            }
        });
        let launch = || start(machine.autocvd().args(["-q", "-t", "0.1", "-o"]));
        let launches: Vec<Running> = (0..24).map(|_| launch()).collect();
        let end = |mut one: Running| {
            one.wait_for_end();
            one.finish()
        };
        let outcomes = launches.into_iter().map(end).collect();
        ends.store(true, Ordering::Relaxed);
        outcomes
    });
    for outcome in outcomes {
        assert_eq!(outcome.code, Some(4), "{outcome:#?}");
    }
    // Nothing has been made there, were it for a moment.
    assert_eq!(changed(), before);
}

#[test]
fn a_directory_that_becomes_a_link_meanwhile_moves_nobodys_files() {
    let machine = machine(1);
    let target = machine.path().join("target");
    fs::create_dir(&target).expect("our own directory");
    let job = machine.job(0);
    let mut command = machine.autocvd();
    let waiting = start(command.args(["-i", "1s", "--", "told"]));
    let queue = machine.claims().join("queue");
    wait_until("it waits", || {
        fs::read_dir(&queue).is_ok_and(|entries| entries.count() > 1)
    });
    fs::rename(machine.claims(), machine.path().join("away")).expect("our own directory");
    symlink(&target, machine.claims()).expect("our own directory");
    drop(job);
    wait_until("it has the GPU", || waiting.stdout() == "0\n");
    run(machine.autocvd().args(["-q", "-o"])).success();
    assert_eq!(names(&target), [] as [String; 0]);
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("it is there");
    let names = entries.flatten().map(|entry| entry.file_name());
    names
        .map(|name| name.to_string_lossy().into_owned())
        .collect()
}

#[test]
fn a_directory_that_somebody_has_locked_costs_no_launch_any_time() {
    if !common::has("flock") {
        return;
    }
    let machine = machine(1);
    run(machine.autocvd().args(["-q", "--", "true"])).success();
    let script = "exec flock -x \"$AUTOCVD_CLAIM_DIR\" -c 'echo; exec sleep 600'";
    let locker = start(&mut machine.shell("sh", script));
    wait_until("it is locked", || locker.stdout() == "\n");
    // Not one that waits for it could ever end.
    let script = "eval $(autocvd -q -t 90) true && eval \"$(autocvd -q -s -t 90)\" && \
                  autocvd release && \
                  autocvd -q -t 90 -- told >\"$FAKE_NVML/told\" & \
                  until [ -s \"$FAKE_NVML/told\" ]; do sleep 0.05; done; \
                  autocvd -q -t 0 -- true; [ $? = 4 ]";
    run(&mut machine.shell("bash", script)).success();
    assert!(!is_free(&machine));
}
