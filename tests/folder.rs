//! The directory of claims: shared by users who need not trust each other, and never a reason for a job not to run.
#![cfg(feature = "cli")]

mod common;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use common::{AUTOCVD, Machine, Outcome, Running, run, start, wait_until};

fn look(machine: &Machine) -> Outcome {
    run(machine
        .autocvd()
        .args(["-q", "-t", "0", "--", "printenv", "CUDA_VISIBLE_DEVICES"]))
}

/// A COMMAND that runs under autocvd, once it does.
fn holder(mut command: Command) -> Running {
    let running = start(command.args(["sh", "-c", "echo; exec sleep 60"]));
    wait_until("the COMMAND runs", || running.stdout() == "\n");
    running
}

fn claim_files(machine: &Machine) -> Vec<PathBuf> {
    let entries = fs::read_dir(machine.claims())
        .expect("the directory is there")
        .flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| path.is_file())
        .collect()
}

// Users.

/// A machine that every user may see, with the program and the library in it; `None`, and a line that says
/// so, where this process cannot become other users.
fn shared_machine(gpus: usize) -> Option<Machine> {
    if !rustix::process::geteuid().is_root() {
        common::skip("it takes root to be several users");
        return None;
    }
    let machine = Machine::gpus(gpus);
    machine.private_library();
    fs::copy(AUTOCVD, machine.path().join("autocvd")).expect("our own directory");
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
    run(&mut as_user(
        machine,
        uid,
        &[program, "-t", "0", "--", "printenv", "CUDA_VISIBLE_DEVICES"],
    ))
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
fn users_heed_each_others_claims_whoever_made_the_folder() {
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
        assert_eq!(user_takes(&machine, DAEMON).success(), "2\n");
        drop(other);
    }
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
fn protected_files_in_sticky_folders_are_no_obstacle() {
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
fn a_place_where_no_folder_can_be_made_costs_a_warning_not_the_job() {
    let machine = Machine::gpus(1);
    let mut command = machine.autocvd();
    command.env("AUTOCVD_CLAIM_DIR", "/proc/none/autocvd");
    let outcome = run(command.args(["--", "printenv", "CUDA_VISIBLE_DEVICES"]));
    assert_eq!(
        (outcome.code, outcome.stdout.as_str()),
        (Some(0), "0\n"),
        "{outcome:#?}"
    );
    assert!(outcome.stderr.contains("warning"), "{outcome:#?}");
}

#[test]
fn a_folder_that_may_not_be_written_costs_a_warning_not_the_job() {
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
    assert!(
        taken.stderr.contains("cannot be used for claims"),
        "{taken:#?}"
    );
}

#[test]
fn a_full_disk_costs_a_warning_not_the_job() {
    let machine = Machine::gpus(1);
    fs::create_dir(machine.claims()).expect("our own directory");
    let mounted = run(machine
        .command("mount")
        .args(["-t", "tmpfs", "-o", "size=4k,mode=1777", "tmpfs"])
        .arg(machine.claims()));
    if mounted.code != Some(0) {
        common::skip("nothing may be mounted here");
        return;
    }
    let filled = fs::write(machine.claims().join("filler"), vec![0; 1 << 20]);
    let outcome = run(machine
        .autocvd()
        .args(["--", "printenv", "CUDA_VISIBLE_DEVICES"]));
    let job = machine.job(0);
    let waiting = run(machine.autocvd().args(["-t", "300ms", "--", "true"]));
    drop(job);
    let left = claim_files(&machine).len();
    run(machine.command("umount").arg("-l").arg(machine.claims()));
    assert!(filled.is_err());
    assert_eq!(
        (outcome.code, outcome.stdout.as_str()),
        (Some(0), "0\n"),
        "{outcome:#?}"
    );
    assert!(outcome.stderr.contains("warning"), "{outcome:#?}");
    assert_eq!(waiting.code, Some(4), "{waiting:#?}");
    assert_eq!(left, 1, "nothing but what fills it");
}

// What others put there.

#[test]
fn nothing_that_lies_in_the_folder_blocks_or_hangs() {
    let machine = Machine::gpus(1);
    let holding = holder({
        let mut command = machine.autocvd();
        command.args(["-q", "--"]);
        command
    });
    let model = fs::read_to_string(&claim_files(&machine)[0]).expect("its claim");
    drop(holding);
    let process = model
        .lines()
        .find(|line| line.starts_with("process="))
        .expect("it says which")
        .to_owned();
    let boot = model
        .lines()
        .find(|line| line.starts_with("boot="))
        .expect("it says when")
        .to_owned();
    assert_eq!(look(&machine).success(), "0\n");
    let own = format!("process={}:1", std::process::id());
    let stat = fs::read_to_string("/proc/self/stat").expect("it runs");
    let start = stat
        .rsplit_once(") ")
        .and_then(|(_, fields)| fields.split(' ').nth(19))
        .expect("field 22");
    let alive = format!("process={}:{start}", std::process::id());
    let queue = machine.claims().join("queue");
    fs::create_dir(&queue).expect("our own directory");
    let ended = [
        model.clone(),
        // This process lives, but started at another time.
        model.replace(&process, &own),
        // This process, in another life of the machine.
        model
            .replace(&process, &alive)
            .replace(&boot, "boot=00000000-0000-0000-0000-000000000000"),
        model.replace(&process, "process=4194304:1"),
        model.replace(&process, "process=99999999999999999999:1"),
        model.replace(&process, "process=0:0"),
        model[..model.len() / 2].to_owned(),
        String::new(),
        "autocvd claim 2\nunits=all\nend=\n".into(),
        "\u{0}".repeat(1 << 20),
    ];
    // Above the pids of living processes.
    for (number, text) in ended.iter().enumerate() {
        fs::write(machine.claims().join(format!("50000{number}-1")), text)
            .expect("our own directory");
        fs::write(queue.join(format!("0000000000000000000{number}-1")), text)
            .expect("our own directory");
    }
    let huge = fs::File::create(machine.claims().join("500010-1")).expect("our own directory");
    huge.set_len(1 << 40).expect("a sparse file");
    fs::write(machine.claims().join("500011-1"), [0xff, 0xfe, 0x80]).expect("our own directory");
    for directory in [machine.claims(), queue.clone()] {
        let path = |name: &str| directory.join(name);
        assert!(
            Command::new("mkfifo")
                .arg(path("1-1"))
                .status()
                .expect("it is everywhere")
                .success()
        );
        fs::create_dir(path("1-2")).expect("our own directory");
        symlink("/nonexistent", path("1-3")).expect("our own directory");
        symlink("/dev/zero", path("1-4")).expect("our own directory");
        symlink(&directory, path("1-5")).expect("our own directory");
        let _ = Command::new("mknod")
            .arg(path("1-6"))
            .args(["c", "1", "5"])
            .status();
        let _socket =
            std::os::unix::net::UnixListener::bind(path("1-7")).expect("our own directory");
        fs::write(path("1-8"), &model).expect("our own directory");
        fs::set_permissions(path("1-8"), PermissionsExt::from_mode(0o000)).expect("our own");
        fs::write(path(".new-1-9"), "").expect("our own directory");
    }
    // Places in the queue of a living process that never acts, and of absurd wishes.
    let own = fs::read_to_string("/proc/self/stat").expect("it runs");
    let start = own.rsplit(' ').nth(30).expect("field 22").to_owned();
    let namespace = model
        .lines()
        .find(|line| line.starts_with("namespace="))
        .expect("it says where")
        .to_owned();
    for (number, constraints) in ["0", "1", "18446744073709551615", "-1"].iter().enumerate() {
        let text = format!(
            "autocvd waits 1\nnum_gpus={constraints}\nprocess={}:{start}\n{namespace}\nparent=\nend=\n",
            std::process::id()
        );
        fs::write(queue.join(format!("0000000000000000009{number}-1")), text)
            .expect("our own directory");
    }
    let began = Instant::now();
    let had =
        run(machine
            .autocvd()
            .args(["-q", "-t", "20", "--", "printenv", "CUDA_VISIBLE_DEVICES"]));
    assert_eq!(had.success(), "0\n");
    assert!(
        began.elapsed() < Duration::from_secs(19),
        "{:?}",
        began.elapsed()
    );
    let leased = run(machine.autocvd().args(["-q", "-t", "20", "-o"]));
    assert_eq!(leased.success(), "0\n");
}

#[test]
fn a_cleaner_that_removes_everything_breaks_nothing() {
    let machine = Machine::gpus(3);
    machine.install(
        "told",
        "#!/bin/sh\necho $CUDA_VISIBLE_DEVICES\nexec sleep 60\n",
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
    fs::remove_dir_all(machine.claims()).expect("our own directory");
    let second = holder({
        let mut command = machine.autocvd();
        command.args(["-q", "--only", "2", "--"]);
        command
    });
    assert_eq!(
        claim_files(&machine).len(),
        1,
        "the directory is there again"
    );
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

#[test]
fn a_slash_behind_the_folder_does_not_follow_a_link() {
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
fn a_folder_that_is_moved_or_removed_while_the_driver_answers_is_made_anew_for_everybody() {
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
            "#!/bin/sh\necho $CUDA_VISIBLE_DEVICES\nexec sleep 60\n",
        );
        run(machine.autocvd().args(["--", "true"])).success();
        let job = arguments.contains(&"-t").then(|| machine.job(0));
        machine.set("/delays_ms", json!({ list: 300 }));
        let before = asked(&machine);
        let first = start(machine.autocvd().args(arguments).args(["--", "told"]));
        wait_until("it asks", || asked(&machine) > before);
        match remove {
            true => fs::remove_dir_all(machine.claims()).expect("our own directory"),
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
    for _ in 0..5 {
        let jobs: Vec<Running> = (0..8)
            .map(|_| start(machine.autocvd().args(["-t", "30", "--", "true"])))
            .collect();
        for job in jobs {
            job.finish().success();
        }
    }
    drop(cleaner);
    assert_eq!(look(&machine).success(), "3\n");
}
