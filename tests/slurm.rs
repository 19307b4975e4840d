//! Inside a real Slurm: only what was granted is chosen from.
#![cfg(feature = "cli")]

mod common;

use common::{Machine, run, wait_until};
use std::collections::HashSet;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A cluster of this one machine, with four GPUs as generic resources; it ends with the test.
struct Cluster {
    directory: PathBuf,
    daemons: Vec<Child>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for daemon in self.daemons.iter_mut().rev() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

/// What the test lacks here, if anything.
fn lacks() -> Option<&'static str> {
    let found = |program: &str| {
        ["/usr/sbin", "/usr/bin"]
            .iter()
            .any(|directory| Path::new(directory).join(program).exists())
    };
    match ["slurmctld", "slurmd", "munged", "srun"]
        .iter()
        .all(|program| found(program))
    {
        false => Some("slurm-wlm and munge"),
        true if !rustix::process::geteuid().is_root() => {
            Some("root, who may make device files and run slurmd")
        }
        true => None,
    }
}

/// Two ports that nobody has.
fn ports() -> [u16; 2] {
    let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("a port on loopback"));
    listeners.map(|listener| listener.local_addr().expect("it is bound").port())
}

impl Cluster {
    /// # Errors
    /// What the machine lacks for it.
    fn start(directory: PathBuf) -> Result<Self, String> {
        for part in ["state", "spool", "dev", "munge"] {
            fs::create_dir_all(directory.join(part)).expect("a directory of the test's own");
        }
        for gpu in 0..4 {
            let path = directory.join(format!("dev/nvidia{gpu}"));
            // The numbers of /dev/null: Slurm wants device files and never opens them here.
            let made = Command::new("mknod")
                .arg(path)
                .args(["c", "1", "3"])
                .status();
            if !made.is_ok_and(|status| status.success()) {
                return Err("needs the right to make device files".to_owned());
            }
        }
        let host = Command::new("hostname")
            .arg("-s")
            .output()
            .expect("hostname runs");
        let host = String::from_utf8(host.stdout)
            .expect("a name")
            .trim()
            .to_owned();
        let at = directory.display();
        let [controller, daemon] = ports();
        let config = format!(
            "ClusterName=test\nSlurmctldHost={host}(127.0.0.1)\nSlurmUser=root\nSlurmdUser=root\n\
             SlurmctldPort={controller}\nSlurmdPort={daemon}\nAuthType=auth/munge\n\
             AuthInfo=socket={at}/munge/socket\n\
             CredType=cred/munge\nStateSaveLocation={at}/state\nSlurmdSpoolDir={at}/spool\n\
             SlurmctldPidFile={at}/slurmctld.pid\nSlurmdPidFile={at}/slurmd.pid\n\
             SlurmctldLogFile={at}/slurmctld.log\nSlurmdLogFile={at}/slurmd.log\n\
             ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\nSelectType=select/cons_tres\n\
             GresTypes=gpu\n\
             ReturnToService=2\nMpiDefault=none\n\
             NodeName={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory=100 Gres=gpu:4 State=UNKNOWN\n\
             SlurmdParameters=config_overrides\n\
             PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP\n"
        );
        fs::write(directory.join("slurm.conf"), config).expect("the directory is ours");
        fs::write(
            directory.join("gres.conf"),
            format!("Name=gpu File={at}/dev/nvidia[0-3]\n"),
        )
        .expect("the directory is ours");
        fs::write(directory.join("munge/key"), [7; 128]).expect("the directory is ours");
        Command::new("chmod")
            .arg("600")
            .arg(directory.join("munge/key"))
            .status()
            .expect("chmod runs");
        let mut cluster = Self {
            directory: directory.clone(),
            daemons: Vec::new(),
        };
        let munge = [
            "key-file=key",
            "socket=socket",
            "pid-file=pid",
            "log-file=log",
            "seed-file=seed",
        ]
        .map(|option| {
            let (name, file) = option.split_once('=').expect("as written above");
            format!("--{name}={at}/munge/{file}")
        });
        cluster.run(
            "/usr/sbin/munged",
            &[
                &["--force".to_owned(), "--foreground".to_owned()],
                &munge[..],
            ]
            .concat(),
        );
        wait_until("munged listens", || directory.join("munge/socket").exists());
        let config = format!("{at}/slurm.conf");
        cluster.run(
            "/usr/sbin/slurmctld",
            &["-D".into(), "-f".into(), config.clone()],
        );
        cluster.run("/usr/sbin/slurmd", &["-D".into(), "-f".into(), config]);
        let mut ended = None;
        wait_until("the node is idle", || {
            ended = cluster.why_ended();
            ended.is_some() || cluster.output("sinfo", &["-h", "-o", "%t"]).trim() == "idle"
        });
        if let Some(why) = ended {
            return Err(why);
        }
        Ok(cluster)
    }

    /// Why one of the daemons has ended, if one has: the errors in its log, such as slurmd's where
    /// no cgroup is mounted.
    fn why_ended(&mut self) -> Option<String> {
        let logs = ["munge/log", "slurmctld.log", "slurmd.log"];
        let mut daemons = self.daemons.iter_mut();
        let ended = daemons.position(|daemon| !matches!(daemon.try_wait(), Ok(None)))?;
        let log = self.directory.join(logs[ended]);
        let log = fs::read_to_string(log).unwrap_or_default();
        let errors = log.lines().filter_map(|line| line.split_once("error: "));
        let errors: Vec<_> = errors.map(|(_, error)| error).collect();
        Some(format!("Slurm does not start here: {}", errors.join("; ")))
    }

    fn run(&mut self, program: &str, args: &[String]) {
        let mut command = Command::new(program);
        command
            .args(args)
            .env("SLURM_CONF", self.directory.join("slurm.conf"));
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.daemons.push(child.expect("the daemon starts"));
    }

    fn output(&self, program: &str, args: &[&str]) -> String {
        let output = Command::new(program)
            .args(args)
            .env("SLURM_CONF", self.directory.join("slurm.conf"))
            .output();
        String::from_utf8_lossy(&output.expect("the program runs").stdout).into_owned()
    }

    /// A script as a job, on `machine`.
    fn srun(&self, machine: &Machine, args: &[&str], script: &str) -> String {
        let mut command = machine.command("srun");
        command
            .args(args)
            .args(["bash", "-c", script])
            .env("SLURM_CONF", self.directory.join("slurm.conf"));
        run(&mut command).success()
    }
}

#[test]
fn in_an_allocation_only_what_slurm_granted_is_chosen() {
    if let Some(what) = lacks() {
        common::skip(&format!("needs {what}"));
        return;
    }
    let machine = Machine::gpus(4);
    let cluster = match Cluster::start(machine.path().join("slurm")) {
        Ok(cluster) => cluster,
        Err(lack) => return common::skip(&lack),
    };
    let chosen = cluster.srun(
        &machine,
        &["--gres=gpu:2"],
        "echo $CUDA_VISIBLE_DEVICES; autocvd -n 2 -- printenv CUDA_VISIBLE_DEVICES",
    );
    let lines: Vec<&str> = chosen.lines().collect();
    assert_eq!(lines.len(), 2, "{chosen}");
    assert_eq!(lines[0], lines[1], "both of the two that were granted");

    let refused = cluster.srun(
        &machine,
        &["--gres=gpu:1"],
        "autocvd -n 2 -o 2> /dev/null; echo $?",
    );
    assert_eq!(refused, "3\n", "two are more than the one that was granted");

    // Tasks of one step share its GPUs, and each gets its own.
    let script = "autocvd -- sh -c 'echo $CUDA_VISIBLE_DEVICES; meet 3'";
    let tasks = cluster.srun(&machine, &["--gres=gpu:3", "--ntasks=3"], script);
    let distinct: HashSet<&str> = tasks.lines().collect();
    assert_eq!((tasks.lines().count(), distinct.len()), (3, 3), "{tasks}");

    // Several steps in one allocation; three have met before.
    let steps = format!(
        "for step in 1 2; do srun --overlap --exact -n1 --gres=gpu:2 {} -- \
         sh -c 'echo $CUDA_VISIBLE_DEVICES; meet 5' & done; wait",
        common::AUTOCVD
    );
    let mut salloc = machine.command("salloc");
    salloc.args([
        "--quiet",
        "--gres=gpu:2",
        "--ntasks=2",
        "bash",
        "-c",
        &steps,
    ]);
    salloc.env("SLURM_CONF", cluster.directory.join("slurm.conf"));
    let steps = run(&mut salloc).success();
    let distinct: HashSet<&str> = steps.lines().collect();
    assert_eq!((steps.lines().count(), distinct.len()), (2, 2), "{steps}");
    assert!(
        distinct.iter().all(|id| ["0", "1"].contains(id)),
        "only the granted ones: {steps}"
    );
}
