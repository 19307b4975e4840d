//! What /proc tells of processes. Everything here may be hidden (hidepid, another PID namespace) or
//! stale (a pid is used again), hence the Options and the start times.

use rustix::fs::{CWD, Mode, OFlags};
use std::fs;
use std::io::Read;
use std::mem::MaybeUninit;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What no kernel gives out in a second, under the one lock that its table of pids has.
const MAX_PIDS_PER_SECOND: u64 = 1_000_000;
/// Once all pids were given out, they begin after these again.
const RESERVED_PIDS: u32 = 300;
/// So few pids are tried one by one.
const FEW_PIDS: u32 = 64;

/// One life of one pid: a later process with the same pid has another start time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ProcessId {
    /// The pid in this process's namespace.
    pub pid: u32,
    /// Field 22 of /proc/PID/stat: clock ticks since boot.
    pub start: u64,
}

impl ProcessId {
    /// The process that has this pid now.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        Stat::read(pid).map(|stat| stat.id)
    }

    /// This process; `None` where /proc is that of another PID namespace, in which its pid is
    /// another's.
    pub(crate) fn own() -> Option<Self> {
        shows_this_namespace()
            .then(|| Self::of(std::process::id()))
            .flatten()
    }

    /// Whether it still runs. A zombie does not, unless it is a leader whose other threads do.
    pub(crate) fn is_alive(self) -> bool {
        Stat::read(self.pid).is_some_and(|stat| stat.id == self && stat.runs())
    }
}

/// `PID:START`.
impl std::fmt::Display for ProcessId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.pid, self.start)
    }
}

impl std::str::FromStr for ProcessId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (pid, start) = text.split_once(':').ok_or(())?;
        Ok(Self {
            pid: pid.parse().map_err(drop)?,
            start: start.parse().map_err(drop)?,
        })
    }
}

/// The fields of /proc/PID/stat that matter here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stat {
    /// The pid and its start time.
    pub id: ProcessId,
    /// The name of the program file, cut to 15 bytes.
    pub comm: String,
    /// `R`, `S`, `D`, `T` (stopped), `t` (traced), `Z`, …
    pub state: char,
    /// The parent's pid.
    pub parent: u32,
    /// Where its environment lies: another place after each exec, and the same in a fork. 0 where
    /// that is hidden, for threads of the kernel, and in the midst of an exec.
    pub image: u64,
    threads: u32,
}

impl Stat {
    /// Reads the entry of `pid`; `None` where there is none, or where it is hidden.
    pub(crate) fn read(pid: u32) -> Option<Self> {
        Self::parse(&read_start(&format!("/proc/{pid}/stat"), 1024)?)
    }

    fn parse(text: &[u8]) -> Option<Self> {
        // The name stands in parentheses and may hold spaces, parentheses and any other bytes
        // itself.
        let end = text.iter().rposition(|byte| *byte == b')')?;
        let before = String::from_utf8_lossy(&text[..end]);
        let (pid, comm) = before.split_once(" (")?;
        let mut fields = std::str::from_utf8(&text[end + 1..])
            .ok()?
            .strip_prefix(' ')?
            .split(' ');
        let state = fields.next()?.chars().next()?;
        let parent = fields.next()?.parse().ok()?;
        let threads = fields.nth(15)?.parse().ok()?;
        let start = fields.nth(1)?.parse().ok()?;
        let image = fields.nth(27).and_then(|field| field.trim().parse().ok());
        let id = ProcessId {
            pid: pid.parse().ok()?,
            start,
        };
        Some(Self {
            id,
            comm: comm.to_owned(),
            state,
            parent,
            image: image.unwrap_or(0),
            threads,
        })
    }

    /// Whether the process has not ended.
    pub(crate) fn runs(&self) -> bool {
        !matches!(self.state, 'Z' | 'X' | 'x') || self.threads > 1
    }

    /// Whether it is a fork of `parent` that has not become another program.
    pub(crate) fn is_fork_of(&self, parent: &Self) -> bool {
        self.image != 0 && self.image == parent.image
    }

    /// Whether it has been stopped by a signal or a debugger.
    pub(crate) fn is_stopped(&self) -> bool {
        matches!(self.state, 'T' | 't')
    }
}

/// The status of a zombie as wait(2) has it, which its parent has not asked for yet; `None` where
/// there is no such process, or where it is hidden.
pub(crate) fn status_of_zombie(id: ProcessId) -> Option<i32> {
    let text = read_start(&format!("/proc/{}/stat", id.pid), 1024)?;
    let stat = Stat::parse(&text)?;
    // Of another user's the kernel says 0.
    let is_own = owner(id.pid) == Some(rustix::process::geteuid().as_raw());
    if stat.id != id || stat.runs() || !is_own {
        return None;
    }
    let end = text.iter().rposition(|byte| *byte == b')')?;
    let fields = std::str::from_utf8(&text[end + 1..]).ok()?;
    // Field 52; the first one after the name is field 3.
    fields.split_whitespace().nth(52 - 3)?.parse().ok()
}

/// The first bytes of a file that the kernel makes up on reading, and gives in one piece.
fn read_start(path: &str, limit: usize) -> Option<Vec<u8>> {
    let file = open(path)?;
    let mut bytes = Vec::with_capacity(limit);
    read_some(&file, rustix::buffer::spare_capacity(&mut bytes))?;
    Some(bytes)
}

fn open(path: &str) -> Option<std::os::fd::OwnedFd> {
    rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()
}

fn read_some<B: rustix::buffer::Buffer<u8>>(
    file: impl std::os::fd::AsFd,
    buffer: B,
) -> Option<B::Output> {
    rustix::io::read(file, buffer).ok()
}

/// The program file that a process runs; `None` where that is hidden, as other users' are.
pub(crate) fn executable(pid: u32) -> Option<std::path::PathBuf> {
    let path = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    // A program that was upgraded goes on running.
    let text = path.to_str()?;
    Some(text.strip_suffix(" (deleted)").unwrap_or(text).into())
}

/// The command line, words joined by spaces, without control characters; `None` where it is hidden
/// or the process has none.
pub(crate) fn command(pid: u32) -> Option<String> {
    let bytes = read_start(&format!("/proc/{pid}/cmdline"), 4096)?;
    let line = printable(&bytes);
    (!line.is_empty()).then_some(line)
}

/// The command line of a launch that waits: of `autocvd … -- COMMAND` what it is to become. `None`
/// where it is hidden.
pub(crate) fn launched_command(pid: u32) -> Option<String> {
    let bytes = read_start(&format!("/proc/{pid}/cmdline"), 4096)?;
    let program = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    let launched = bytes.windows(4).position(|window| window == b"\0--\0");
    let line = match launched {
        Some(at) if program.ends_with(b"autocvd") => printable(&bytes[at + 4..]),
        _ => printable(&bytes),
    };
    (!line.is_empty()).then_some(line)
}

/// Whether a terminal would heed a character rather than show it: control characters, and those
/// that turn the direction of text or have no width.
pub fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
        || matches!(c, '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// Bytes as one line that can be shown on a terminal.
pub fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let line: String = text
        .chars()
        .map(|c| if is_unprintable(c) { ' ' } else { c })
        .collect();
    line.trim().to_owned()
}

/// The user's name, or the number where it has none here.
pub(crate) fn user(pid: u32) -> Option<String> {
    let status = rustix::fs::stat(format!("/proc/{pid}")).ok()?;
    Some(user_name(status.st_uid))
}

/// The user id of a process.
pub(crate) fn owner(pid: u32) -> Option<u32> {
    rustix::fs::stat(format!("/proc/{pid}"))
        .ok()
        .map(|stat| stat.st_uid)
}

/// The name of a user id, or the number where it has none.
pub(crate) fn user_name(uid: u32) -> String {
    match uzers::get_user_by_uid(uid) {
        Some(user) => user.name().to_string_lossy().into_owned(),
        None => uid.to_string(),
    }
}

/// What can be told of a variable of another process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Environ {
    /// The process was started with this value.
    Set,
    /// It was started without it, or with another value.
    NotSet,
    /// The environment is empty: the process is in the midst of an exec, for a moment.
    Execing,
    /// It cannot be read: another user's process, or one that has written over it.
    Unreadable,
}

/// The environment that a process was started with; what can be told of any variable where it
/// cannot be read.
fn environ(pid: u32) -> Result<Vec<u8>, Environ> {
    match read_environ(pid) {
        // In the midst of an exec, or without any variables: then the kernel knows where they would
        // be.
        Some(empty) if empty.is_empty() => {
            let is_whole = Stat::read(pid).is_some_and(|stat| stat.image != 0);
            match is_whole.then(|| read_environ(pid)).flatten() {
                Some(environment) => Ok(environment),
                None => Err(Environ::Execing),
            }
        }
        Some(environment) => Ok(environment),
        None => Err(Environ::Unreadable),
    }
}

fn read_environ(pid: u32) -> Option<Vec<u8>> {
    // Almost always in one call: between two, an exec would take the rest away.
    let mut environment = Vec::with_capacity(64 << 10);
    let mut file = fs::File::open(format!("/proc/{pid}/environ")).ok()?;
    file.read_to_end(&mut environment).ok()?;
    Some(environment)
}

/// Whether these bytes stand in the environment that the process was started with.
pub(crate) fn environ_holds(pid: u32, bytes: &[u8]) -> Environ {
    match environ(pid) {
        Ok(environment)
            if environment
                .windows(bytes.len())
                .any(|window| window == bytes) =>
        {
            Environ::Set
        }
        Ok(_) => Environ::NotSet,
        Err(unknown) => unknown,
    }
}

/// Whether the process was started with this variable set to this value.
pub(crate) fn variable(pid: u32, name: &str, value: &str) -> Environ {
    let environment = match environ(pid) {
        Ok(environment) => environment,
        Err(unknown) => return unknown,
    };
    let wanted = format!("{name}={value}");
    let whole = environment.strip_suffix(b"\0").unwrap_or(&environment);
    let mut entries = whole.split(|byte| *byte == 0);
    if entries.clone().any(|entry| entry == wanted.as_bytes()) {
        return Environ::Set;
    }
    // A program that rewrites its title (setproctitle, perl's $0) does so over its variables.
    let is_variable = |entry: &[u8]| {
        let name = entry.split(|byte| *byte == b'=').next().unwrap_or_default();
        !name.is_empty() && name.len() < entry.len() && !name.contains(&b' ')
    };
    if entries.all(is_variable) {
        Environ::NotSet
    } else {
        Environ::Unreadable
    }
}

/// The children of `pid`, of all its threads.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    children_by_thread(pid).unwrap_or_else(|| children_by_scan(pid))
}

/// Kernels with CONFIG_PROC_CHILDREN list them.
fn children_by_thread(pid: u32) -> Option<Vec<u32>> {
    let tasks = format!("/proc/{pid}/task");
    let mut found = Vec::new();
    // The kernel counts the threads among the directory's links; the only one has the process's own
    // number.
    if rustix::fs::stat(&*tasks).ok()?.st_nlink == 2 + 1 {
        add_children(&format!("{tasks}/{pid}/children"), &mut found)?;
        return Some(found);
    }
    for thread in fs::read_dir(tasks).ok()? {
        add_children(thread.ok()?.path().join("children").to_str()?, &mut found)?;
    }
    Some(found)
}

/// Adds the pids that the file names. Between two pieces a child that ends may hide the next one:
/// few pieces it is.
fn add_children(path: &str, found: &mut Vec<u32>) -> Option<()> {
    let file = open(path)?;
    let mut buffer = [MaybeUninit::uninit(); 16 << 10];
    let mut pid = 0;
    loop {
        let (bytes, _) = read_some(&file, &mut buffer[..])?;
        if bytes.is_empty() {
            return Some(());
        }
        for byte in bytes {
            match byte {
                b'0'..=b'9' => pid = pid * 10 + u32::from(*byte - b'0'),
                _ => found.push(std::mem::take(&mut pid)),
            }
        }
    }
}

/// All processes that /proc shows.
pub(crate) fn all() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .collect()
}

/// The pid that this PID namespace gave out last, to a process or to a thread.
pub(crate) fn last_pid() -> Option<u32> {
    let text = read_start("/proc/loadavg", 128)?;
    let last = text.trim_ascii_end().rsplit(|byte| *byte == b' ').next()?;
    std::str::from_utf8(last).ok()?.parse().ok()
}

/// All processes that can have started after `first`; `None` where pids may have come round to that
/// of `first` since.
pub(crate) fn later_than(first: ProcessId) -> Option<Vec<u32>> {
    let last = last_pid()?;
    let text = read_start("/proc/sys/kernel/pid_max", 32)?;
    let max: u32 = std::str::from_utf8(text.trim_ascii()).ok()?.parse().ok()?;
    // Both times are rounded down.
    let age = ticks(since_boot()).checked_sub(first.start)? + 1;
    let room = u64::from(max.checked_sub(RESERVED_PIDS)?);
    if age.checked_mul(MAX_PIDS_PER_SECOND / ticks(Duration::from_secs(1)))? >= room {
        return None;
    }
    if (first.pid..first.pid.saturating_add(FEW_PIDS)).contains(&last) {
        return Some((first.pid + 1..=last).collect());
    }
    let is_later = |pid: &u32| match first.pid <= last {
        true => first.pid < *pid && *pid <= last,
        false => first.pid < *pid || *pid <= last,
    };
    Some(all().into_iter().filter(is_later).collect())
}

/// A time since boot in the clock ticks of /proc.
pub(crate) fn ticks(time: Duration) -> u64 {
    let ticks = time.as_millis() * u128::from(rustix::param::clock_ticks_per_second()) / 1000;
    u64::try_from(ticks).unwrap_or(u64::MAX)
}

fn children_by_scan(parent: u32) -> Vec<u32> {
    all()
        .into_iter()
        .filter(|pid| Stat::read(*pid).is_some_and(|stat| stat.parent == parent))
        .collect()
}

/// Whether /proc is there and its pids are those of this process's namespace.
pub(crate) fn shows_this_namespace() -> bool {
    let shown = fs::read_link("/proc/self").ok();
    shown.and_then(|pid| pid.to_str()?.parse().ok()) == Some(std::process::id())
}

/// Which PID namespace this process lives in, as its inode; `None` without a /proc of that
/// namespace.
pub(crate) fn pid_namespace() -> Option<u64> {
    if !shows_this_namespace() {
        return None;
    }
    // The link says `pid:[INODE]`; to follow it would take the kernel longer.
    let link = fs::read_link("/proc/self/ns/pid").ok()?;
    link.to_str()?
        .strip_prefix("pid:[")?
        .strip_suffix(']')?
        .parse()
        .ok()
}

/// Names this boot of the machine.
pub(crate) fn boot_id() -> String {
    let id = read_start("/proc/sys/kernel/random/boot_id", 64).unwrap_or_default();
    printable(&id)
}

/// Whether there is a process with this pid in this namespace, hidden or not.
pub(crate) fn exists(pid: u32) -> bool {
    let Some(pid) = i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw)
    else {
        return false;
    };
    rustix::process::test_kill_process(pid) != Err(rustix::io::Errno::SRCH)
}

/// The time since boot, suspension included.
pub(crate) fn since_boot() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

/// Unix time in seconds at which a process started.
pub(crate) fn started(id: ProcessId) -> Option<u64> {
    let ticks = rustix::param::clock_ticks_per_second();
    let age = since_boot().checked_sub(Duration::from_millis(id.start * 1000 / ticks))?;
    let start = SystemTime::now().checked_sub(age)?;
    start
        .duration_since(UNIX_EPOCH)
        .ok()
        .map(|time| time.as_secs())
}

/// The pipe that this process's standard output is; `None` where it is none.
pub(crate) fn pipe_to_stdout() -> Option<Pipe> {
    Pipe::from_stat(&rustix::fs::fstat(std::io::stdout()).ok()?)
}

/// A pipe by its identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pipe {
    device: u64,
    inode: u64,
}

impl Pipe {
    /// Whether it also is the standard output of `pid`.
    pub(crate) fn is_stdout_of(self, pid: u32) -> bool {
        let stat = rustix::fs::stat(format!("/proc/{pid}/fd/1"));
        stat.is_ok_and(|stat| Self::from_stat(&stat) == Some(self))
    }

    fn from_stat(stat: &rustix::fs::Stat) -> Option<Self> {
        let is_pipe =
            rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Fifo;
        is_pipe.then_some(Self {
            device: stat.st_dev,
            inode: stat.st_ino,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_and_parentheses_does_not_shift_the_fields() {
        let line = "42 (a) (b c) T 7 42 7 34816 42 4194304 1 2 3 4 5 6 7 8 20 0 3 0 98765 1000 20";
        let stat = Stat::parse(line.as_bytes()).expect("well formed");
        assert_eq!(
            stat.id,
            ProcessId {
                pid: 42,
                start: 98765
            }
        );
        assert_eq!(
            (stat.comm.as_str(), stat.state, stat.parent, stat.threads),
            ("a) (b c", 'T', 7, 3)
        );
        assert!(stat.is_stopped() && stat.runs());
    }

    #[test]
    fn what_is_not_a_stat_line_is_none() {
        for text in [
            "",
            "42",
            "42 (x",
            "42 (x) S",
            "42 (x) S x 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1",
        ] {
            assert_eq!(Stat::parse(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn this_process_lives_and_is_its_parents_child() {
        let own = Stat::read(std::process::id()).expect("/proc shows this process");
        assert!(own.id.is_alive() && own.runs() && !own.is_stopped());
        assert!(exists(own.parent));
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .expect("after 1970")
            .as_secs();
        assert!((now - started(own.id).expect("started before now")) < 3600);
    }

    #[test]
    fn a_child_is_listed_until_it_has_ended_and_a_zombie_is_not_alive() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .expect("sleep runs");
        let id = ProcessId::of(child.id()).expect("it runs");
        assert!(children(std::process::id()).contains(&id.pid));
        assert!(children_by_scan(std::process::id()).contains(&id.pid));
        child.kill().expect("it can be killed");
        while Stat::read(id.pid).is_some_and(|stat| stat.runs()) {
            std::thread::yield_now();
        }
        assert!(!id.is_alive(), "a zombie has ended");
        child.wait().expect("it is ours");
        assert!(!exists(id.pid) || ProcessId::of(id.pid) != Some(id));
    }

    #[test]
    fn a_variable_of_a_process_is_compared_whole() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .env("SOME_IDS", "1,2")
            .spawn()
            .expect("runs");
        while command(child.id()).as_deref() != Some("sleep 60") {
            std::thread::yield_now();
        }
        assert_eq!(variable(child.id(), "SOME_IDS", "1,2"), Environ::Set);
        assert_eq!(variable(child.id(), "SOME_IDS", "1"), Environ::NotSet);
        child.kill().expect("it can be killed");
        child.wait().expect("it is ours");
    }

    #[test]
    fn what_is_shown_is_one_line() {
        assert_eq!(printable(b"python\0a\nb\x1b[31m\0"), "python a b [31m");
        assert_eq!(
            printable("\u{1b}[2Jrm\u{9b}1m\n\u{202e}x\u{7f}".as_bytes()),
            "[2Jrm 1m  x"
        );
    }
}
