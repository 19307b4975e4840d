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
    (is_registered(pid, path) || lingers(path, linger)).then_some(Process {
        pid,
        kind,
        memory: Some(memory),
        gi: None,
        ci: None,
    })
}

/// Whether the process lives that has registered itself by this file. One that has started later
/// has got the number of a dead one.
fn is_registered(pid: u32, path: &Path) -> bool {
    let registered = fs::metadata(path).and_then(|metadata| metadata.modified());
    is_alive(pid)
        && registered.is_ok_and(|registered| {
            started(pid).is_none_or(|started| started < registered + CLOCK_SLACK)
        })
}

/// What two clocks may differ by that are read one after the other, and less than it takes for a
/// pid to come again.
const CLOCK_SLACK: Duration = Duration::from_secs(1);

/// When a process started; `None` where that is not shown.
fn started(pid: u32) -> Option<SystemTime> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields = stat.rsplit_once(") ")?.1;
    // The 22nd field of all, in hundredths of a second since boot.
    let ticks: u64 = fields.split(' ').nth(19)?.parse().ok()?;
    let uptime = fs::read_to_string("/proc/uptime").ok()?;
    let uptime: f64 = uptime.split(' ').next()?.parse().ok()?;
    let age = uptime - ticks as f64 / 100.0;
    SystemTime::now().checked_sub(Duration::try_from_secs_f64(age.max(0.0)).ok()?)
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
