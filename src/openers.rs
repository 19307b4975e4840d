//! Who has a GPU open whose memory no process on the driver's list explains: a process that the
//! driver no longer lists, or does not list to this user. The kernel tells it by /proc/PID/fd: of
//! all processes to root, of their own ones to others.

use crate::gpu::{Fact, Process, ProcessKind, Snapshot, Source};
use crate::ids::DeviceId;
use crate::policy::OPENERS_AGAIN;
use crate::proc;
use std::collections::HashMap;
use std::path::Path;
use std::time::Instant;

/// What each process has open that computes by CUDA, and nothing that only asks the driver.
const UVM: &str = "/dev/nvidia-uvm";

/// Programs that have GPUs open without computing on them, by the names that the kernel keeps.
const ONLY_ASK: [&str; 5] = [
    "autocvd",
    "dcgm-exporter",
    "nv-hostengine",
    "nvidia-persiste",
    "nvidia-smi",
];

/// The processes that have GPUs open, as of the last search.
#[derive(Default)]
pub(crate) struct Openers {
    /// By the minor numbers of the GPUs.
    known: HashMap<u32, Vec<u32>>,
    searched: Option<Instant>,
}

impl Openers {
    /// Adds to each GPU that is held by nobody whom the driver lists those who have it open.
    pub(crate) fn attach(&mut self, snapshot: &mut Snapshot) {
        if snapshot.source == Source::File {
            return;
        }
        let held: Vec<(usize, u32)> = (0..snapshot.gpus.len())
            .filter_map(|gpu| Some((gpu, snapshot.gpus[gpu].minor_number?)))
            .filter(|(gpu, _)| {
                let whole = DeviceId {
                    gpu: *gpu,
                    mig: None,
                };
                snapshot.device(whole).is_held_unseen()
            })
            .collect();
        let still_open = |minor: &u32| {
            let known = self.known.get(minor);
            known.is_some_and(|pids| pids.iter().all(|pid| proc::exists(*pid)))
        };
        let is_recent = |at: Instant| at.elapsed() < OPENERS_AGAIN;
        if !held.iter().all(|(_, minor)| still_open(minor)) && !self.searched.is_some_and(is_recent)
        {
            let minors: Vec<u32> = held.iter().map(|(_, minor)| *minor).collect();
            self.known = search(&minors);
            self.searched = Some(Instant::now());
        }
        for (gpu, minor) in held {
            let pids = self.known.get(&minor).into_iter().flatten();
            let Fact::Value(listed) = &mut snapshot.gpus[gpu].processes else {
                continue;
            };
            for pid in pids.filter(|pid| proc::exists(**pid)) {
                if !listed.iter().any(|process| process.pid == *pid) {
                    listed.push(unlisted(*pid));
                }
            }
        }
    }
}

fn unlisted(pid: u32) -> Process {
    Process {
        pid,
        kind: ProcessKind::Unlisted,
        user: None,
        command: None,
        used_memory: None,
        started: None,
        ignored: false,
        in_share: false,
    }
}

/// Who has the GPUs of these minor numbers open: those that compute by CUDA, else whoever is not
/// known to only ask.
fn search(minors: &[u32]) -> HashMap<u32, Vec<u32>> {
    let mut found: HashMap<u32, Vec<Opener>> = HashMap::new();
    let own = std::process::id();
    for pid in proc::all().into_iter().filter(|pid| *pid != own) {
        let open = open_files(pid);
        let computes = open.iter().any(|path| path == Path::new(UVM));
        for minor in minors {
            let device = format!("/dev/nvidia{minor}");
            if open.iter().any(|path| path == Path::new(&device)) {
                let openers = found.entry(*minor).or_default();
                openers.push(Opener { pid, computes });
            }
        }
    }
    let mut chosen: HashMap<u32, Vec<u32>> = minors.iter().map(|m| (*m, Vec::new())).collect();
    for (minor, openers) in found {
        let some_compute = openers.iter().any(|opener| opener.computes);
        let suspects = openers.iter().filter(|opener| match some_compute {
            true => opener.computes,
            false => !only_asks(opener.pid),
        });
        chosen.insert(minor, suspects.map(|opener| opener.pid).collect());
    }
    chosen
}

struct Opener {
    pid: u32,
    computes: bool,
}

/// The paths of NVIDIA's device files among what a process has open; none where that is not to be
/// seen.
fn open_files(pid: u32) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd"));
    let entries = entries.into_iter().flatten().flatten();
    let targets = entries.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    let is_device = |path: &std::path::PathBuf| {
        let text = path.as_os_str().as_encoded_bytes();
        text.starts_with(b"/dev/nvidia")
    };
    targets.filter(is_device).collect()
}

fn only_asks(pid: u32) -> bool {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    ONLY_ASK.contains(&name.trim_end())
}
