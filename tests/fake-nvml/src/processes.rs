//! Who is on a device: the processes that machine.json names, and those that have registered
//! themselves by a file `procs/<device>/<pid>` which holds `TYPE BYTES LINGER_MS`, each word
//! optional.
//!
//! A registered process is listed while it lives, and for LINGER_MS after it was first seen dead,
//! as a driver may take a while to tear a context down. That moment is the age of a file
//! `<pid>.dead`, so that all programs that load this library see it end at the same time.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::config::{PROCESS_MEMORY, Process};

/// The processes registered under one of a device's names.
pub fn registered(directory: &Path, names: &[String]) -> Vec<Process> {
    let mut processes: Vec<Process> = names
        .iter()
        .filter_map(|name| fs::read_dir(directory.join("procs").join(name)).ok())
        .flatten()
        .filter_map(|entry| process(&entry.ok()?.path()))
        .collect();
    processes.sort_by_key(|process| process.pid);
    processes.dedup_by_key(|process| process.pid);
    processes
}

fn process(path: &Path) -> Option<Process> {
    let pid: u32 = path.file_name()?.to_str()?.parse().ok()?;
    let content = fs::read_to_string(path).ok()?;
    let mut words = content.split_whitespace();
    let kind = words.next().unwrap_or("C").to_owned();
    let memory = words
        .next()
        .and_then(|word| word.parse().ok())
        .unwrap_or(PROCESS_MEMORY);
    let linger = words
        .next()
        .and_then(|word| word.parse().ok())
        .map_or(Duration::ZERO, Duration::from_millis);
    (is_alive(pid) || lingers(path, linger)).then_some(Process {
        pid,
        kind,
        memory: Some(memory),
        gi: None,
        ci: None,
    })
}

fn lingers(path: &Path, linger: Duration) -> bool {
    if linger.is_zero() {
        return false;
    }
    let seen_dead = path.with_extension("dead");
    // Fails for all but the first to see it dead, whose time counts.
    let _ = fs::File::create_new(&seen_dead);
    let since = fs::metadata(&seen_dead).and_then(|metadata| metadata.modified());
    since.is_ok_and(|since| SystemTime::now().duration_since(since).unwrap_or_default() < linger)
}

/// Whether this process's /proc shows it, and not as a zombie: that has no context any more.
pub fn is_alive(pid: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    // The state follows the command, which may itself hold parentheses.
    let state = stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.chars().next());
    !matches!(state, None | Some('Z' | 'X'))
}
