//! The directory of claims: shared by users who need not trust each other, and never a reason for a
//! job not to run.
#![cfg(feature = "cli")]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use common::{Machine, Outcome, Running, look, run, start, try_once, wait_until};

/// A COMMAND that runs under autocvd, once it does.
fn holder(mut command: Command) -> Running {
    let running = start(command.args(["sleep", "600"]));
    running.becomes("sleep");
    assert_eq!(running.stderr(), "");
    running
}

// Users.

/// A machine that every user may see, with the program and the library in it; `None`, and a line
/// that says so, where this process cannot become other users.
fn shared_machine(gpus: usize) -> Option<Machine> {
    if !rustix::process::geteuid().is_root() {
        common::skip("it takes root to be several users");
        return None;
    }
    let machine = Machine::gpus(gpus);
    machine.private_library();
    // Another process writes it: one that another test starts meanwhile would inherit the
    // descriptor, and a program that somebody may write cannot be run.
    let copied = Command::new("cp")
        .arg(common::program())
        .arg(machine.path().join("autocvd"))
        .status();
    assert!(copied.expect("cp runs").success());
    for (name, mode) in [
        ("", 0o755),
        ("autocvd", 0o755),
        ("procs", 0o777),
        ("calls", 0o666),
    ] {
        fs::set_permissions(machine.path().join(name), PermissionsExt::from_mode(mode))
            .expect("our own");
    }
    Some(machine)
}

/// The program as a user.
fn as_user(machine: &Machine, uid: u32, command: &[&str]) -> Command {
    let mut user = machine.command("setpriv");
    user.args([
        &format!("--reuid={uid}"),
        &format!("--regid={uid}"),
        "--clear-groups",
    ])
    .args(command);
    // Its own claims directory, beside what only root may write to.
    user.env("AUTOCVD_CLAIM_DIR", shared(machine))
        .current_dir("/");
    user
}

/// A directory in a place where everybody may make one, as in /tmp.
fn shared(machine: &Machine) -> PathBuf {
    let parent = machine.path().join("everybodys");
    if !parent.exists() {
        fs::create_dir(&parent).expect("our own directory");
        fs::set_permissions(&parent, PermissionsExt::from_mode(0o1777)).expect("our own directory");
    }
    parent.join("autocvd")
}

const NOBODY: u32 = 65534;
const DAEMON: u32 = 1;

fn user_takes(machine: &Machine, uid: u32) -> Outcome {
    let program = machine.path().join("autocvd");
    let program = program.to_str().expect("a plain path");
    try_once(&mut as_user(machine, uid, &[program, "-t", "0"]))
}

/// A launch of a user with these arguments, which tells what it has got.
fn user_looks(machine: &Machine, uid: u32, arguments: &[&str]) -> Outcome {
    let program = machine.path().join("autocvd");
    let program = program.to_str().expect("a plain path");
    let command = [&[program][..], arguments].concat();
    try_once(&mut as_user(machine, uid, &command))
}

fn user_holds(machine: &Machine, uid: u32) -> Running {
    let program = machine.path().join("autocvd");
    holder(as_user(
        machine,
        uid,
        &[program.to_str().expect("a plain path"), "-q", "--"],
    ))
}

#[test]
fn users_heed_each_others_claims_whoever_made_the_directory() {
    for first in [0, NOBODY] {
        let Some(machine) = shared_machine(3) else {
            return;
        };
        let one = user_holds(&machine, first);
        assert_eq!(
            fs::metadata(shared(&machine))
                .expect("it is there")
                .permissions()
                .mode()
                & 0o7777,
            0o1777
        );
        let other = user_holds(&machine, if first == 0 { NOBODY } else { 0 });
        let third = user_takes(&machine, DAEMON);
        assert_eq!((third.stdout.as_str(), third.stderr.as_str()), ("0\n", ""));
        drop(one);
        // A judge of another user ends it.
        wait_until("the first one's is free", || {
            user_takes(&machine, DAEMON).stdout == "2\n"
        });
        drop(other);
    }
}

/// The same command where /proc hides the processes of other users.
fn with_hidepid(machine: &Machine, command: &Command) -> Command {
    let script = r#"mount -t proc -o hidepid=2 proc /proc && exec "$@""#;
    let mut inside = machine.command("unshare");
    inside
        .args(["--mount", "sh", "-c", script, "sh"])
        .arg(command.get_program())
        .args(command.get_args())
        .env("AUTOCVD_CLAIM_DIR", shared(machine))
        .current_dir("/");
    inside
}

#[test]
fn nothing_publishes_a_command_line_that_proc_hides() {
    const SECRET: &str = "--wandb-key=0123456789";
    let Some(machine) = shared_machine(2) else {
        return;
    };
    if !common::has_mount_namespaces(&machine) {
        return;
    }
    let program = machine.path().join("autocvd");
    let program = program.to_str().expect("a plain path");
    // A COMMAND and a shell with a claim, and a launch that waits; the umask is a careful user's.
    let script = r#"umask 077
        "$1" -q -- sh -c ': >"$2"; sleep 600; true' sh "$2" "$3" &
        until [ -e "$3" ]; do sleep 0.05; done
        eval "$("$1" -q -s)"
        until "$1" status --short | grep -q "^0/2"; do sleep 0.01; done
        "$1" -- sh -c true sh "$2" &
        wait"#;
    let runs = shared(&machine).with_file_name("runs");
    let runs = runs.to_str().expect("a plain path");
    let command = ["sh", "-c", script, "sh", program, SECRET, runs];
    let _user = start(&mut as_user(&machine, NOBODY, &command));

    // What lies in the directory: names, links and contents.
    let list = r#"find "$AUTOCVD_CLAIM_DIR" -printf '%p %l\n'
        find "$AUTOCVD_CLAIM_DIR" -type f -exec cat {} +
        true"#;
    let listed = || run(&mut as_user(&machine, 0, &["sh", "-c", list])).success();
    wait_until("the COMMAND runs", || Path::new(runs).exists());
    let of_command = listed();
    assert!(!of_command.contains(SECRET), "{of_command}");

    let status = as_user(&machine, DAEMON, &[program, "status", "--json"]);
    let waits = |text: &str| text.matches(r#""state":"claimed""#).count() == 2;
    let mut seen = String::new();
    wait_until("both GPUs are claimed and a launch waits", || {
        seen = run(&mut with_hidepid(&machine, &status)).success();
        let queue = fs::read_dir(shared(&machine).join("queue"));
        waits(&seen.replace(' ', "")) && queue.is_ok_and(|entries| entries.count() > 0)
    });
    // The control: without hidepid the reader is told by /proc.
    let mut open = as_user(&machine, DAEMON, &[program, "status", "--json"]);
    let told = run(&mut open).success();
    assert!(told.contains(SECRET), "{told}");

    assert!(!seen.contains(SECRET), "{seen}");
    for what in [
        &["status"][..],
        &["doctor"],
        &["-t", "0"],
        &["-vv", "-t", "0"],
    ] {
        let command = as_user(&machine, DAEMON, &[&[program], what].concat());
        let outcome = run(&mut with_hidepid(&machine, &command));
        assert!(!outcome.stdout.contains(SECRET), "{}", outcome.stdout);
        assert!(!outcome.stderr.contains(SECRET), "{}", outcome.stderr);
    }
    let listed = listed();
    assert!(listed.contains("holders/"), "{listed}");
    assert!(!listed.contains(SECRET), "{listed}");
}

#[test]
fn a_user_cannot_remove_anothers_claim() {
    let Some(machine) = shared_machine(1) else {
        return;
    };
    let _holder = user_holds(&machine, 0);
    let directory = shared(&machine);
    let script = format!(
        "rm -f {0}/* {0}/.new*; rmdir {0}; mv {0} {0}.away",
        directory.display()
    );
    run(&mut as_user(&machine, NOBODY, &["sh", "-c", &script]));
    assert_eq!(user_takes(&machine, NOBODY).code, Some(4));
}

#[test]
fn a_umask_of_077_keeps_nobody_out() {
    let Some(machine) = shared_machine(2) else {
        return;
    };
    let program = machine.path().join("autocvd");
    let script = format!("umask 077; exec {} -q -- \"$@\"", program.display());
    let _holder = holder(as_user(&machine, 0, &["sh", "-c", &script, "sh"]));
    let taken = user_takes(&machine, NOBODY);
    assert_eq!((taken.stdout.as_str(), taken.stderr.as_str()), ("0\n", ""));
}

/// A kernel setting, as it was when this is dropped.
struct Setting(&'static str, String);

impl Setting {
    fn change(path: &'static str, value: &str) -> Option<Self> {
        let before = fs::read_to_string(path).ok()?;
        fs::write(path, value).ok()?;
        Some(Self(path, before))
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        let _ = fs::write(self.0, &self.1);
    }
}

#[test]
fn protected_files_in_sticky_directories_are_no_obstacle() {
    let Some(machine) = shared_machine(3) else {
        return;
    };
    let Some(_protected) = Setting::change("/proc/sys/fs/protected_regular", "2") else {
        common::skip("fs.protected_regular may not be set here");
        return;
    };
    let _nobody = user_holds(&machine, NOBODY);
    let _root = user_holds(&machine, 0);
    let taken = user_takes(&machine, DAEMON);
    assert_eq!((taken.stdout.as_str(), taken.stderr.as_str()), ("0\n", ""));
}

// Directories that are no use.

/// Runs a job, which must run, and returns what was said of it.
#[track_caller]
fn warned(machine: &Machine) -> String {
    let outcome = run(machine
        .autocvd()
        .args(["--", "printenv", "CUDA_VISIBLE_DEVICES"]));
    assert_eq!(
        (outcome.code, outcome.stdout.as_str()),
        (Some(0), "0\n"),
        "{outcome:#?}"
    );
    let lease = run(machine.autocvd().arg("-o"));
    assert_eq!(
        (lease.code, lease.stdout.as_str()),
        (Some(0), "0\n"),
        "{lease:#?}"
    );
    assert_eq!(outcome.stderr.lines().count(), 1, "{outcome:#?}");
    outcome.stderr
}

#[test]
fn a_symbolic_link_is_refused_and_the_job_runs() {
    let machine = Machine::gpus(1);
    let target = machine.path().join("target");
    fs::create_dir(&target).expect("our own directory");
    symlink(&target, machine.claims()).expect("our own directory");
    let said = warned(&machine);
    assert!(
        said.contains("symbolic link") && said.contains("AUTOCVD_CLAIM_DIR"),
        "{said}"
    );
    assert_eq!(fs::read_dir(&target).expect("our own directory").count(), 0);
}

#[test]
fn a_file_in_its_place_costs_a_warning_not_the_job() {
    let machine = Machine::gpus(1);
    fs::write(machine.claims(), "").expect("our own directory");
    warned(&machine);
}

#[test]
fn a_place_where_no_directory_can_be_made_costs_a_warning_not_the_job() {
    let machine = Machine::gpus(1);
    let mut command = machine.autocvd();
    command.env("AUTOCVD_CLAIM_DIR", "/proc/none/autocvd");
    let outcome = run(command.args(["--", "printenv", "CUDA_VISIBLE_DEVICES"]));
    assert_eq!(
        (outcome.code, outcome.stdout.as_str()),
        (Some(0), "0\n"),
        "{outcome:#?}"
    );
    outcome.tells("warning");
}

#[test]
fn a_directory_that_may_not_be_written_costs_a_warning_not_the_job() {
    let Some(machine) = shared_machine(1) else {
        return;
    };
    let directory = shared(&machine);
    fs::create_dir(&directory).expect("our own directory");
    let taken = user_takes(&machine, NOBODY);
    assert_eq!(
        (taken.code, taken.stdout.as_str()),
        (Some(0), "0\n"),
        "{taken:#?}"
    );
    taken.tells("cannot be used for claims");
}

#[test]
fn a_full_disk_and_a_limit_of_0_bytes_a_file_cost_no_claim() {
    let machine = Machine::gpus(1);
    fs::create_dir(machine.claims()).expect("our own directory");
    let mounted = run(machine
        .command("mount")
        .args(["-t", "tmpfs", "-o", "size=4k,mode=1777", "tmpfs"])
        .arg(machine.claims()));
    if mounted.code == Some(0) {
        let filled = fs::write(machine.claims().join("filler"), vec![0; 1 << 20]);
        let held = only_one_gets_it(&machine);
        run(machine.command("umount").arg("-l").arg(machine.claims()));
        assert!(filled.is_err());
        assert_eq!(held, "");
    } else {
        common::skip("nothing may be mounted here");
    }
    let machine = Machine::gpus(1);
    let script = "ulimit -f 0; eval \"$(autocvd -q -s)\"; sleep 600; :";
    let shell = start(&mut machine.shell("sh", script));
    wait_until("it is claimed", || look(&machine).code == Some(4));
    drop(shell);
    wait_until("it has ended", || look(&machine).code == Some(0));
}

/// Holds a GPU that no other launch gets, and for which one waits; returns what was said of it.
fn only_one_gets_it(machine: &Machine) -> String {
    let script = "exec autocvd -- sh -c 'sleep 600 & echo $! >&2; wait'";
    let mut held = start(&mut machine.shell("bash", script));
    wait_until("the COMMAND runs", || {
        held.stderr().contains('\n') || !held.is_running()
    });
    assert_eq!(look(machine).code, Some(4));
    let waiting = start(machine.autocvd().args(["-q", "-i", "600s", "--", "true"]));
    wait_until("it waits", || {
        fs::read_dir(machine.claims().join("queue")).is_ok_and(|entries| entries.count() > 1)
    });
    let said = held.stderr();
    let said: Vec<&str> = said
        .lines()
        .filter(|line| line.parse::<u32>().is_err())
        .collect();
    let said = said.join("\n");
    drop(held);
    waiting.finish().success();
    said
}

#[test]
fn a_read_only_file_system_costs_a_warning_not_the_job() {
    let machine = Machine::gpus(1);
    fs::create_dir(machine.claims()).expect("our own directory");
    let mounted = run(machine
        .command("mount")
        .args(["-t", "tmpfs", "-o", "ro", "tmpfs"])
        .arg(machine.claims()));
    if mounted.code != Some(0) {
        common::skip("nothing may be mounted here");
        return;
    }
    let outcome = run(machine
        .autocvd()
        .args(["--", "printenv", "CUDA_VISIBLE_DEVICES"]));
    run(machine.command("umount").arg("-l").arg(machine.claims()));
    assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(0), "0\n"));
    outcome.tells("cannot be used for claims");
}

#[test]
fn a_relative_directory_is_a_wrong_value() {
    let machine = Machine::gpus(1);
    for arguments in [&["-o"][..], &["status"], &["--", "true"]] {
        let mut command = machine.autocvd();
        let outcome = run(command.args(arguments).env("AUTOCVD_CLAIM_DIR", "claims"));
        assert_eq!(outcome.code, Some(2), "{outcome:#?}");
        outcome.tells("AUTOCVD_CLAIM_DIR='claims'");
    }
}

#[test]
fn root_repairs_what_is_inside_the_directory_too() {
    use std::os::unix::fs::MetadataExt;
    let Some(machine) = shared_machine(1) else {
        return;
    };
    let inside = ["holders", "queue"].map(|name| shared(&machine).join(name));
    let owners = || {
        inside.each_ref().map(|path| {
            let meta = fs::metadata(path).expect("it has been made");
            (meta.uid(), meta.mode() & 0o7777)
        })
    };
    // The first user makes one to claim, and the other one to wait.
    let held = user_holds(&machine, NOBODY);
    let waited = user_looks(&machine, NOBODY, &["-q", "-t", "0.1"]);
    assert_eq!(waited.code, Some(4), "{waited:#?}");
    wait_until("both are there", || inside.iter().all(|path| path.exists()));
    assert_eq!(owners(), [(NOBODY, 0o1777); 2]);
    drop(held);
    fs::set_permissions(&inside[1], PermissionsExt::from_mode(0o777)).expect("root may");

    let status = as_user(&machine, 0, &[&common::program(), "status"]).output();
    assert!(status.expect("it runs").status.success());
    assert_eq!(owners(), [(0, 0o1777); 2]);
    // All others still claim and wait there.
    let held = start(&mut user_runs(&machine, DAEMON, &["-q", "-t", "30"]));
    wait_until("it runs", || held.stdout() == "0\n");
    let waited = user_looks(&machine, NOBODY, &["-t", "0.1"]);
    assert_eq!(waited.code, Some(4), "{waited:#?}");
    assert!(!waited.stderr.contains("warning"), "{waited:#?}");
}

#[test]
fn a_directory_that_others_can_empty_is_told_of_and_repaired_by_root() {
    let Some(machine) = shared_machine(1) else {
        return;
    };
    let said = |uid: u32| {
        // The claim before it is another user's, whose judge takes a moment.
        let mut taken = user_takes(&machine, uid);
        wait_until("the GPU is free", || {
            let free = taken.code == Some(0);
            taken = if free {
                taken.clone()
            } else {
                user_takes(&machine, uid)
            };
            free
        });
        taken.stderr
    };
    assert_eq!(said(NOBODY), "");
    assert!(
        said(DAEMON).contains("nobody can remove"),
        "{}",
        said(DAEMON)
    );
    assert_eq!(said(0), "");
    assert_eq!(said(DAEMON), "");
    fs::set_permissions(shared(&machine), PermissionsExt::from_mode(0o777)).expect("root may");
    assert!(said(DAEMON).contains("not sticky"), "{}", said(DAEMON));
    assert_eq!(said(0), "");
    assert_eq!(said(DAEMON), "");
}

// What others put there.

/// The lock file of the machine's first GPU.
const LOCK_FILE: &str = "GPU-00000000-0000-0000-0000-000000000000.lock";

/// Makes something at a path that is no file to lock.
type Make = fn(&Path);

const ODD: [Make; 6] = [
    |path| fs::create_dir(path).expect("our own directory"),
    |path| fs::create_dir_all(path.join("inner")).expect("our own directory"),
    |path| symlink("/etc/passwd", path).expect("our own directory"),
    |path| symlink("/nonexistent", path).expect("our own directory"),
    |path| {
        let made = Command::new("mkfifo").arg(path).status();
        assert!(made.expect("it is everywhere").success());
    },
    |path| drop(std::os::unix::net::UnixListener::bind(path).expect("our own directory")),
];

#[test]
fn nothing_that_lies_in_the_directory_blocks_or_hangs() {
    for make in ODD {
        let machine = Machine::gpus(1);
        for directory in ["", "queue", "holders"] {
            let directory = machine.claims().join(directory);
            fs::create_dir_all(&directory).expect("our own directory");
            for name in [
                "1-1",
                "00000000000000000001-1",
                "00000000000000000001-1.socket",
            ] {
                make(&directory.join(name));
            }
        }
        let lock_file = machine.claims().join(LOCK_FILE);
        make(&lock_file);
        // Whoever may do that puts a lock file there.
        let held = holder({
            let mut command = machine.autocvd();
            command.args(["-t", "20", "--"]);
            command
        });
        assert!(fs::symlink_metadata(&lock_file).is_ok_and(|meta| meta.is_file()));
        assert_eq!(look(&machine).code, Some(4));
        drop(held);
        run(machine.autocvd().args(["-q", "-t", "20", "-o"])).success();
        run(machine.autocvd().arg("status")).success();
    }
}

/// The same lock file of the machine's second GPU.
const SECOND_LOCK_FILE: &str = "GPU-10000000-0000-0000-0000-000000000001.lock";

/// A machine of two GPUs, of which other users cannot claim the second: that is what root has put
/// in the place of its lock file.
fn with_unclaimable_gpu(make: Make) -> Option<Machine> {
    let machine = shared_machine(2)?;
    let directory = shared(&machine);
    fs::create_dir(&directory).expect("our own directory");
    fs::set_permissions(&directory, PermissionsExt::from_mode(0o1777)).expect("our own directory");
    make(&directory.join(SECOND_LOCK_FILE));
    Some(machine)
}

/// A launch of a user, whose job tells what it has got.
fn user_runs(machine: &Machine, uid: u32, arguments: &[&str]) -> Command {
    let program = machine.path().join("autocvd");
    let mut command = as_user(machine, uid, &[program.to_str().expect("a plain path")]);
    command.args(arguments).args(["--", "sh", "-c"]);
    command.arg("echo $CUDA_VISIBLE_DEVICES; exec sleep 600");
    command
}

fn unreadable_file(path: &Path) {
    fs::write(path, "").expect("our own directory");
    fs::set_permissions(path, PermissionsExt::from_mode(0o000)).expect("our own file");
}

#[test]
fn a_gpu_that_cannot_be_claimed_is_not_given_while_another_one_can_serve() {
    for make in ODD.into_iter().chain([unreadable_file as Make]) {
        let Some(machine) = with_unclaimable_gpu(make) else {
            return;
        };
        let launch = || start(&mut user_runs(&machine, NOBODY, &["-q", "-t", "0"]));
        let mut launches: Vec<Running> = (0..3).map(|_| launch()).collect();
        let mut running = 0;
        let mut given = String::new();
        wait_until("all but the one that got a GPU have ended", || {
            let is_running = launches.iter_mut().map(Running::is_running);
            running = is_running.filter(|is_running| *is_running).count();
            given = launches.iter().map(Running::stdout).collect();
            running <= 1 && (running == 0 || !given.is_empty())
        });
        assert_eq!((running, given.as_str()), (1, "0\n"));
        for launch in launches.into_iter().map(|one| one.stderr()) {
            assert!(!launch.contains("not claimed"), "{launch}");
        }
    }
}

#[test]
fn a_gpu_that_cannot_be_claimed_is_given_with_a_warning_where_no_other_one_could_be() {
    let Some(machine) = with_unclaimable_gpu(ODD[4]) else {
        return;
    };
    let program = machine.path().join("autocvd");
    let program = program.to_str().expect("a plain path");
    let status = run(&mut as_user(
        &machine,
        NOBODY,
        &[program, "status", "--json"],
    ))
    .success();
    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    let why = status["gpus"][1]["unclaimable"].as_str().expect("a reason");
    assert!(why.contains(SECOND_LOCK_FILE), "{why}");
    let reason = status["gpus"][1]["reason"].as_str().expect("a reason");
    assert!(
        reason.starts_with("comes last: it cannot be claimed"),
        "{reason}"
    );
    assert_eq!(status["gpus"][0].get("unclaimable"), None);
    let advice = run(&mut as_user(&machine, NOBODY, &[program, "doctor"])).stdout;
    assert!(advice.contains("GPU 1 cannot be claimed: "), "{advice}");

    // The only one that is asked for, and one of two: -q does not hide it.
    for (wanted, given, code) in [
        (&["--only", "1"][..], "1\n", Some(0)),
        (&["-n", "2"], "0,1\n", Some(4)),
    ] {
        let arguments = [&["-q", "-t", "30"], wanted].concat();
        let mut held = start(&mut user_runs(&machine, NOBODY, &arguments));
        wait_until("it runs", || {
            !held.stdout().is_empty() || !held.is_running()
        });
        assert_eq!(held.stdout(), given);
        let said = held.stderr();
        assert!(said.contains("warning: not claimed: GPU 1 ("), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        // The other one is claimed where it is given.
        let other = user_looks(&machine, DAEMON, &["-t", "0", "--only", "0"]);
        assert_eq!(other.code, code, "{other:#?}");
    }
    let nested = [program, "-q", "-t", "30", "-n", "2", "--"];
    let nested = [&nested[..], &nested, &["printenv", "CUDA_VISIBLE_DEVICES"]].concat();
    let nested = run(&mut as_user(&machine, NOBODY, &nested));
    assert_eq!(nested.stdout, "0,1\n", "{nested:#?}");

    // Root puts a lock file there.
    let mended = user_looks(&machine, 0, &["-t", "30", "--only", "1"]);
    assert_eq!(
        (mended.stdout.as_str(), mended.stderr.as_str()),
        ("1\n", "")
    );
    let held = start(&mut user_runs(
        &machine,
        NOBODY,
        &["-t", "30", "--only", "1"],
    ));
    wait_until("it runs", || held.stdout() == "1\n");
    assert_eq!(held.stderr(), "");
    let refused = user_looks(&machine, DAEMON, &["-t", "0", "--only", "1"]);
    assert_eq!(refused.code, Some(4), "{refused:#?}");
}

#[test]
fn a_launch_with_fewer_descriptors_than_gpus_claims_as_many_as_it_can() {
    let machine = Machine::gpus(24);
    // What the test has inherited is closed, as it would count.
    let script = "for fd in /proc/$$/fd/*; do fd=${fd##*/}
            [ $fd -gt 2 ] && eval \"exec $fd<&-\"
        done
        ulimit -n $1; exec autocvd -q -n 24 -- sh -c 'echo; exec sleep 600'";
    for (limit, is_enough) in [("40", true), ("16", false)] {
        let mut command = machine.shell("bash", script);
        let mut held = start(command.args(["bash", limit]));
        wait_until("it runs", || held.stdout() == "\n" || !held.is_running());
        let said = held.stderr();
        assert_eq!(held.stdout(), "\n", "{said}");
        assert_eq!(
            said.contains("warning: not claimed: GPU "),
            !is_enough,
            "{said}"
        );
        let refused = run(machine
            .autocvd()
            .args(["-t", "0", "--only", "0", "--", "true"]));
        assert_eq!(refused.code, Some(4), "{refused:#?}");
        if is_enough {
            assert_eq!(look(&machine).code, Some(4));
        }
    }
}

#[test]
fn one_file_in_the_queue_keeps_nothing_from_a_launch_that_looks_once() {
    let machine = Machine::gpus(1);
    // A process that lives and never acts, as the owner of the oldest position: in a file, which
    // was once the form of a position, and in a link.
    let waiter = common::Job::unregistered();
    let (process, namespace) = common::process_words(waiter.pid());
    let queue = machine.claims().join("queue");
    fs::create_dir_all(&queue).expect("our own directory");
    let wants = ["num_gpus=1".to_owned(), process, namespace];
    let file = format!("autocvd waits 1\n{}\nparent=\nend=\n", wants.join("\n"));
    fs::write(queue.join("00000000000000000001-1"), file).expect("our own directory");
    let hash = "GPU-00000000-0000-0000-0000-000000000000"
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| {
            (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
        });
    let since = fs::read_to_string("/proc/uptime").expect("it is everywhere");
    let since: f64 = since
        .split(' ')
        .next()
        .and_then(|time| time.parse().ok())
        .expect("a time");
    let name = format!("{:020}-{}", (since * 1e9) as u64, waiter.pid());
    symlink(
        format!("{} devices={hash:x}", wants.join(" ")),
        queue.join(name),
    )
    .expect("our own");

    assert_eq!(look(&machine).success(), "0\n");
}

#[test]
fn thousands_of_hostile_positions_cost_a_moment_and_keep_nothing_from_any_launch() {
    let Some(machine) = shared_machine(1) else {
        return;
    };
    assert_eq!(user_takes(&machine, 0).code, Some(0));
    // Positions of a process that lives and never acts, older than all others.
    let script = r#"import os, socket, sys, time
stat = open('/proc/self/stat').read().rsplit(') ', 1)[1].split()
me = f"{os.getpid()}:{stat[19]}"
namespace = os.readlink('/proc/self/ns/pid')[5:-1]
os.setuid(int(sys.argv[2]))
os.makedirs(sys.argv[1] + '/queue', mode=0o1777, exist_ok=True)
os.chdir(sys.argv[1] + '/queue')
key = 0x811c9dc5
for byte in b'GPU-00000000-0000-0000-0000-000000000000':
    key = ((key ^ byte) * 0x01000193) & 0xffffffff
since = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
kept = []
for number in range(5000):
    name = f'{since + number:020}-{os.getpid()}'
    os.symlink(f'num_gpus=1 process={me} namespace={namespace} devices={key:x}', name)
    if number < 200:
        kept.append(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        kept[-1].bind(name + '.socket')
print(flush=True)
time.sleep(60)"#;
    let directory = shared(&machine);
    let directory = directory.to_str().expect("a plain path");
    let mut hostile = machine.command("python3");
    let mut hostile = start(hostile.args(["-c", script, directory, &NOBODY.to_string()]));
    wait_until("they are there", || {
        hostile.stdout() == "\n" || !hostile.is_running()
    });
    assert!(hostile.is_running(), "{}", hostile.stderr());
    let program = machine.path().join("autocvd");
    let program = program.to_str().expect("a plain path");
    for arguments in [&["-q", "-t", "0"][..], &["-q", "-t", "50"]] {
        let began = Instant::now();
        let mut user = as_user(&machine, DAEMON, &[program]);
        let had = run(user.args(arguments).args(["--", "true"]));
        assert_eq!(had.code, Some(0), "{had:#?}");
        assert!(
            began.elapsed() < Duration::from_secs(40),
            "{:?}",
            began.elapsed()
        );
    }
}

#[test]
fn a_lock_of_another_program_counts_and_wakes_who_waits_for_it() {
    if !common::has("python3") {
        return;
    }
    let machine = Machine::gpus(2);
    run(machine.autocvd().args(["-n", "2", "--", "true"])).success();
    // Ten lines are enough to be part of it.
    let script = "import fcntl, os, sys, time
file = open(os.environ['AUTOCVD_CLAIM_DIR'] + '/' + sys.argv[1], 'r+')
fcntl.lockf(file, fcntl.LOCK_EX | int(sys.argv[2]))
print(flush=True)
time.sleep(60)";
    let lock = |flags: &str| {
        let arguments = ["-c", script, LOCK_FILE, flags];
        start(machine.command("python3").args(arguments))
    };
    let other = lock("0");
    wait_until("it is locked", || other.stdout() == "\n");
    let refused = run(machine
        .autocvd()
        .args(["-t", "0", "--only", "0", "--", "true"]));
    assert_eq!(refused.code, Some(4));
    assert!(
        refused.stderr.contains(&format!("pid {}", other.pid())),
        "{refused:#?}"
    );
    // The least used one is given though it cannot be claimed a second time.
    let least_used = [
        "-l",
        "--only",
        "0",
        "--",
        "printenv",
        "CUDA_VISIBLE_DEVICES",
    ];
    let least_used = run(machine.autocvd().args(least_used));
    assert_eq!(least_used.stdout, "0\n", "{least_used:#?}");
    least_used.tells("another program has locked it");
    let waiting = start(
        machine
            .autocvd()
            .args(["-q", "-i", "600s", "-n", "2", "--", "true"]),
    );
    wait_until("it waits", || {
        fs::read_dir(machine.claims().join("queue")).is_ok_and(|entries| entries.count() > 1)
    });
    drop(other);
    waiting.finish().success();
    // It sees the claims too.
    let _holder = holder({
        let mut command = machine.autocvd();
        command.args(["-q", "--only", "0", "--"]);
        command
    });
    let not_blocking = "4";
    assert!(
        lock(not_blocking)
            .finish()
            .stderr
            .contains("BlockingIOError")
    );
}

#[test]
fn a_neighbour_that_calls_without_end_keeps_nobody_past_the_timeout() {
    if !common::has("python3") {
        return;
    }
    let machine = Machine::gpus(1);
    let _job = machine.job(0);
    let script = "import os, socket, time
os.chdir(os.environ['AUTOCVD_CLAIM_DIR'] + '/queue')
caller = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
caller.setblocking(False)
print(flush=True)
while True:
    for name in os.listdir('.'):
        try: caller.sendto(b'x', name)
        except OSError: pass";
    fs::create_dir_all(machine.claims().join("queue")).expect("our own directory");
    let caller = start(machine.command("python3").args(["-c", script]));
    wait_until("it calls", || caller.stdout() == "\n");
    let began = Instant::now();
    let waited = run(machine.autocvd().args(["-q", "-t", "2", "--", "true"]));
    assert_eq!(waited.code, Some(4));
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "{:?}",
        began.elapsed()
    );
}

#[test]
fn a_socket_of_a_launch_that_was_killed_before_it_had_a_position_does_not_stay() {
    let machine = Machine::gpus(1);
    let queue = machine.claims().join("queue");
    fs::create_dir_all(&queue).expect("our own directory");
    let left = |name: &str| {
        let path = queue.join(name);
        drop(std::os::unix::net::UnixListener::bind(&path).expect("our own directory"));
        path
    };
    let old = left("00000000000000000001-1.socket");
    let new = left("00000000000000000002-1.socket");
    let touched = Command::new("touch")
        .args(["-d", "-1 hour"])
        .arg(&old)
        .status();
    assert!(touched.expect("it is everywhere").success());
    let _job = machine.job(0);
    run(machine.autocvd().args(["-q", "-t", "0.2", "-o"]));
    assert!(!old.exists() && new.exists());
}

#[test]
fn a_cleaner_that_removes_everything_breaks_nothing() {
    let machine = Machine::gpus(3);
    machine.install(
        "told",
        "#!/bin/sh\necho $CUDA_VISIBLE_DEVICES\nexec sleep 600\n",
    );
    let first = holder({
        let mut command = machine.autocvd();
        command.args(["-q", "--only", "0", "--"]);
        command
    });
    let mut job = machine.job(1);
    let waiting = start(
        machine
            .autocvd()
            .args(["-q", "-i", "1s", "--only", "1", "--", "told"]),
    );
    let queue = machine.claims().join("queue");
    wait_until("it waits", || {
        fs::read_dir(&queue).is_ok_and(|entries| entries.count() > 0)
    });
    // A judge may make a file anew meanwhile.
    wait_until("it is removed", || {
        fs::remove_dir_all(machine.claims()).is_ok()
    });
    let second = holder({
        let mut command = machine.autocvd();
        command.args(["-q", "--only", "2", "--"]);
        command
    });
    job.kill();
    wait_until("the waiter has it", || waiting.stdout() == "1\n");
    assert_eq!(
        run(machine
            .autocvd()
            .args(["-q", "-t", "0", "--only", "1", "2", "--", "true"]))
        .code,
        Some(4)
    );
    drop((first, second));
}

/// A program that tells when it runs.
const TOLD: &str = "#!/bin/sh\necho\nexec sleep 600\n";

/// A job in each form whose judge holds its claim, once it runs.
fn jobs_of_judges() -> [(&'static str, &'static str); 3] {
    [
        ("prefix", "eval $(autocvd -q) told; :"),
        ("shell", "eval \"$(autocvd -q -s)\"; told; :"),
        ("command", "autocvd -q -- told; :"),
    ]
}

#[test]
fn a_lock_file_that_is_removed_during_a_job_is_locked_anew() {
    let remove: [fn(&Machine); 3] = [
        |machine| fs::remove_file(machine.claims().join(LOCK_FILE)).expect("it is there"),
        |machine| {
            // Files are made anew while it is emptied.
            wait_until("it is removed", || {
                fs::remove_dir_all(machine.claims()).is_ok()
            });
        },
        |machine| {
            let away = machine.path().join("away");
            fs::rename(machine.claims(), away).expect("it is there");
        },
    ];
    for (form, script) in jobs_of_judges() {
        for (way, remove) in remove.into_iter().enumerate() {
            let machine = Machine::gpus(1);
            machine.install("told", TOLD);
            let lock_file = machine.claims().join(LOCK_FILE);
            let job = start(&mut machine.shell("bash", script));
            wait_until("the job runs", || job.stdout() == "\n");
            wait_until("it is told who holds it", || {
                let records = fs::read_dir(machine.claims().join("holders"));
                records.is_ok_and(|records| records.count() > 0)
            });
            for round in 0..3 {
                if round < 1 || way < 2 {
                    remove(&machine);
                    wait_until("it is there again", || lock_file.exists());
                }
                let refused = look(&machine);
                assert_eq!(refused.code, Some(4), "{form} {way} {round}: {refused:#?}");
            }
            drop(job);
            wait_until("it is free", || look(&machine).code == Some(0));
        }
    }
}

#[test]
fn a_shell_finds_its_judge_again_where_the_directory_is_made_anew() {
    let machine = Machine::gpus(1);
    // The judge is found by the new directory before it locks its file there.
    let script = format!(
        "eval $(autocvd -q --hold 600s) true; rm -r \"$AUTOCVD_CLAIM_DIR\"; \
         until [ -e \"$AUTOCVD_CLAIM_DIR/{LOCK_FILE}\" ]; do sleep 0.05; done; \
         eval $(autocvd -q -t 90) true"
    );
    run(&mut machine.shell("bash", &script)).success();
}

#[test]
fn systemd_tmpfiles_leaves_the_directory_alone_while_there_are_claims() {
    if !common::has("systemd-tmpfiles") {
        return;
    }
    let machine = Machine::gpus(1);
    machine.install("told", TOLD);
    let configuration = machine.path().join("claims.conf");
    // The rule is the parent's, as that of /tmp is.
    let directory = shared(&machine);
    let parent = directory.parent().expect("it has one").display();
    fs::write(&configuration, format!("d {parent} - - - 0\n")).expect("our own directory");
    let clean = || {
        let mut cleaner = machine.command("systemd-tmpfiles");
        run(cleaner.arg("--clean").arg(&configuration))
    };
    let names = || {
        let entries = fs::read_dir(&directory);
        entries.map_or(0, Iterator::count)
    };
    let look_there = || {
        let mut command = machine.autocvd();
        command.env("AUTOCVD_CLAIM_DIR", &directory);
        run(command.args(["-q", "-t", "0", "--", "true"])).code
    };
    // Without claims it is cleaned.
    fs::create_dir(&directory).expect("our own directory");
    fs::write(directory.join(LOCK_FILE), "").expect("our own directory");
    clean();
    assert_eq!(names(), 0);
    for (form, script) in jobs_of_judges() {
        let mut shell = machine.shell("bash", script);
        let job = start(shell.env("AUTOCVD_CLAIM_DIR", &directory));
        wait_until("the job runs", || job.stdout() == "\n");
        wait_until("the directory is kept", || {
            // Looked for without a lock of ours, which the judge would meet.
            let inode = fs::metadata(&directory).expect("it is there").ino();
            let mark = format!(":{inode} 0 EOF");
            let locks = fs::read_to_string("/proc/locks").expect("it is everywhere");
            locks
                .lines()
                .any(|lock| lock.contains("FLOCK") && lock.ends_with(&mark))
        });
        let before = names();
        let cleaned = clean();
        assert!(
            names() == before && directory.join(LOCK_FILE).exists(),
            "{form}: {cleaned:#?}"
        );
        assert_eq!(look_there(), Some(4), "{form}");
        drop(job);
        wait_until("it is free", || look_there() == Some(0));
    }
}

#[test]
fn a_slash_behind_the_directory_does_not_follow_a_link() {
    for end in ["", "/", "//", "/."] {
        let machine = Machine::gpus(1);
        let real = machine.path().join("real");
        fs::create_dir(&real).expect("our own directory");
        symlink(&real, machine.claims()).expect("our own directory");
        let named = format!("{}{end}", machine.claims().display());
        let outcome = run(machine.autocvd().arg("-o").env("AUTOCVD_CLAIM_DIR", named));
        assert!(
            outcome.stderr.contains("it is a symbolic link"),
            "{end}: {outcome:#?}"
        );
        assert_eq!(
            fs::read_dir(&real).expect("it is there").count(),
            0,
            "{end}"
        );
    }
}

#[test]
fn a_directory_that_is_moved_or_removed_while_the_driver_answers_is_made_anew_for_everybody() {
    let list = "nvmlDeviceGetComputeRunningProcesses_v3";
    let asked = |machine: &Machine| machine.calls().iter().filter(|call| *call == list).count();
    for (remove, arguments) in [
        (false, &["-q"][..]),
        (true, &["-q"]),
        (true, &["-q", "-t", "20", "-i", "1s"]),
    ] {
        let machine = Machine::gpus(1);
        machine.install(
            "told",
            "#!/bin/sh\necho $CUDA_VISIBLE_DEVICES\nexec sleep 600\n",
        );
        run(machine.autocvd().args(["--", "true"])).success();
        let job = arguments.contains(&"-t").then(|| machine.job(0));
        machine.set("/delays_ms", json!({ list: 2000 }));
        let before = asked(&machine);
        let first = start(machine.autocvd().args(arguments).args(["--", "told"]));
        wait_until("it asks", || asked(&machine) > before);
        match remove {
            // A judge may make a file anew meanwhile.
            true => wait_until("it is removed", || {
                fs::remove_dir_all(machine.claims()).is_ok()
            }),
            false => fs::rename(machine.claims(), machine.path().join("moved"))
                .expect("our own directory"),
        }
        machine.set("/delays_ms", json!({}));
        if let Some(mut job) = job {
            wait_until("it waits", || machine.claims().join("queue").exists());
            job.kill();
        }
        wait_until("it has the GPU", || first.stdout() == "0\n");
        assert_eq!(
            run(machine.autocvd().args(["-q", "-t", "0", "--", "true"])).code,
            Some(4),
            "{remove} {arguments:?}"
        );
        let mode = fs::metadata(machine.claims())
            .expect("it is there again")
            .permissions()
            .mode();
        assert_eq!(mode & 0o7777, 0o1777, "{remove} {arguments:?}");
    }
}

#[test]
fn a_cleaner_at_work_all_the_time_costs_no_job() {
    let machine = Machine::gpus(4);
    let cleaner =
        start(&mut machine.shell("sh", "while :; do rm -rf \"$AUTOCVD_CLAIM_DIR\"; done"));
    // A launch waits until a new lock file is 20 ms old, which few are here: it says so, and runs.
    for _ in 0..4 {
        let jobs: Vec<Running> = (0..4)
            .map(|_| start(machine.autocvd().args(["-t", "50", "--", "true"])))
            .collect();
        for job in jobs {
            job.finish().success();
        }
    }
    drop(cleaner);
    wait_until("the jobs' claims have ended", || {
        look(&machine).stdout == "3\n"
    });
}
