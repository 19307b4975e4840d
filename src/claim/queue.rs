//! The queue: of the requests that a freed GPU satisfies, the longest-waiting one gets it.
//!
//! # Design
//! Each waiter has a file that says since when it waits and for what; its name sorts by age. Whoever finds
//! enough free GPUs for itself reads the files of those who came before, and leaves alone what they would
//! take, and calls them ([`bell`]). One that has ended or
//! is stopped does not count, and one that does not take what it could is passed over after a while.

use super::directory::{self, Directory};
use super::record::{read_process, write_process};
use super::{bell, cleanup, own};
use crate::proc::{self, ProcessId};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

const HEADER: &str = "autocvd waits 1";
const MAX_BYTES: u64 = 64 << 10;

/// What a waiter would take.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Wants {
    /// How many GPUs.
    pub num_gpus: usize,
    /// How much free memory each needs, in bytes.
    pub min_free_memory: Option<u64>,
    /// The keys of the GPUs it may have; `None` is all.
    pub devices: Option<Vec<String>>,
}

/// Somebody who waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Waiter {
    /// The name of its file.
    pub name: String,
    /// What it would take.
    pub wants: Wants,
}

/// A place in the queue; dropped, it is given up.
pub(crate) struct Ticket {
    name: String,
    path: PathBuf,
    directory: Directory,
    /// Its lock tells processes of other PID namespaces that this one lives.
    _file: File,
    bell: Option<OwnedFd>,
}

impl Ticket {
    pub(super) fn take(
        directory: &Directory,
        namespace: Option<u64>,
        parent: Option<&str>,
        enqueued_at: Duration,
        wants: &Wants,
    ) -> io::Result<Self> {
        let directory = directory.make_queue()?;
        let name = name(enqueued_at);
        let (path, file) = directory.create(&name)?;
        let mut file = directory::out_of_the_way(file);
        cleanup::TICKET.set(&path);
        directory::lock(&file)?;
        let text = write(ProcessId::own(), namespace, parent, wants);
        own::remember(&path, &text);
        file.write_all(text.as_bytes())?;
        directory.publish(&name)?;
        let place = bell::path(&directory, &name);
        cleanup::BELL.set(&place);
        let bell = bell::hang(&place);
        Ok(Self {
            name,
            path,
            directory,
            _file: file,
            bell,
        })
    }

    /// What becomes readable when somebody calls this waiter to look again.
    pub(crate) fn bell(&self) -> Option<OwnedFd> {
        self.bell.as_ref()?.try_clone().ok()
    }

    /// How many files are before this one in the queue, those of ended waiters included.
    pub(crate) fn position(&self) -> usize {
        places(&self.directory)
            .iter()
            .filter(|name| **name < self.name)
            .count()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
        let _ = std::fs::remove_file(bell::path(&self.directory, &self.name));
        own::forget(&self.path);
        cleanup::TICKET.clear();
        cleanup::BELL.clear();
    }
}

/// The names of all places.
fn places(directory: &Directory) -> Vec<String> {
    let mut names = directory.names();
    names.retain(|name| !name.starts_with('.'));
    names
}

/// Calls all who wait, where something has ended that no process's exit tells of.
pub(super) fn call_all(directory: &Directory) {
    if let Ok(directory) = directory.queue() {
        places(&directory)
            .iter()
            .for_each(|name| bell::ring(&bell::path(&directory, name)));
    }
}

/// Sorts by age.
fn name(enqueued_at: Duration) -> String {
    format!("{:020}-{}", enqueued_at.as_nanos(), std::process::id())
}

fn write(
    own: Option<ProcessId>,
    namespace: Option<u64>,
    parent: Option<&str>,
    wants: &Wants,
) -> String {
    let mut text = format!("{HEADER}\nnum_gpus={}\n", wants.num_gpus);
    if let (Some(own), Some(namespace)) = (own, namespace) {
        text += &format!("process={}\nnamespace={namespace}\n", write_process(own));
    }
    if let Some(bytes) = wants.min_free_memory {
        text += &format!("min_free_memory={bytes}\n");
    }
    if let Some(devices) = &wants.devices {
        text += &format!("units={}\n", devices.join(","));
    }
    text + &format!("parent={}\nend=\n", parent.unwrap_or_default())
}

/// Those of the same parent who came before `came`, can act, and hold their place.
pub(super) fn before(
    directory: &Directory,
    enqueued_at: Duration,
    namespace: Option<u64>,
    parent: Option<&str>,
) -> Vec<Waiter> {
    let Ok(directory) = directory.queue() else {
        return Vec::new();
    };
    let own = name(enqueued_at);
    let mut names = places(&directory);
    names.retain(|name| *name < own);
    names.sort_unstable();
    names
        .into_iter()
        .filter_map(|name| waiter(&directory, name, namespace, parent.unwrap_or_default()))
        .collect()
}

fn waiter(
    directory: &Directory,
    name: String,
    namespace: Option<u64>,
    parent: &str,
) -> Option<Waiter> {
    let path = directory.path().join(&name);
    let text = own::text(&path).or_else(|| read_of_another(directory, &name, namespace))?;
    let field = |wanted: &str| field(&text, wanted);
    if field("parent") != Some(parent) {
        return None;
    }
    let wants = Wants {
        num_gpus: field("num_gpus")?.parse().ok()?,
        min_free_memory: field("min_free_memory").and_then(|bytes| bytes.parse().ok()),
        devices: field("units").map(|devices| devices.split(',').map(str::to_owned).collect()),
    };
    bell::ring(&bell::path(directory, &name));
    Some(Waiter { name, wants })
}

/// What another process's file says, if that process can act.
fn read_of_another(directory: &Directory, name: &str, namespace: Option<u64>) -> Option<String> {
    let file = directory.open_file(name)?;
    let mut bytes = Vec::new();
    (&file).take(MAX_BYTES).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let body = text.strip_prefix(HEADER)?.strip_suffix("end=\n")?;
    let same_namespace = namespace.is_some()
        && field(body, "namespace").and_then(|number| number.parse().ok()) == namespace;
    let process = field(body, "process")
        .and_then(read_process)
        .filter(|_| same_namespace);
    let stat =
        process.and_then(|process| proc::Stat::read(process.pid).filter(|stat| stat.id == process));
    let (ended, can_act) = match (process, stat) {
        (_, Some(stat)) => (!stat.runs(), !stat.is_stopped()),
        (Some(process), None) if !proc::exists(process.pid) => (true, false),
        _ => {
            let locked = directory::is_locked(&file);
            (!locked, locked)
        }
    };
    if ended {
        let owner = rustix::fs::fstat(&file).ok()?.st_uid;
        directory.remove_own(name, owner);
        if let Ok(stat) = rustix::fs::lstat(bell::path(directory, name)) {
            directory.remove_own(&bell::file_name(name), stat.st_uid);
        }
    }
    can_act.then_some(text)
}

fn field<'a>(text: &'a str, wanted: &str) -> Option<&'a str> {
    text.lines()
        .find_map(|line| line.strip_prefix(wanted)?.strip_prefix('='))
}
