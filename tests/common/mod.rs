//! A machine to test on: fake GPUs that the real program sees through the real nvml-wrapper,
//! directories of its own, and the means to run programs there.

// Each file in tests/ compiles this module anew, as its own, and uses another part of it.
#![allow(dead_code, unreachable_pub, unused_imports)]

use std::ffi::OsString;
use std::fmt::Display;
use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

mod skip;
mod terminal;

pub use skip::{has, has_host_pids, installed, skip, take_skipped};
pub use terminal::Terminal;

/// The program under test.
pub const AUTOCVD: &str = env!("CARGO_BIN_EXE_autocvd");

/// The same, or another build of it that `AUTOCVD_TEST_PROGRAM` names: an older one is to fail the
/// tests that were written for what it got wrong.
pub fn program() -> String {
    std::env::var("AUTOCVD_TEST_PROGRAM").unwrap_or_else(|_| AUTOCVD.to_owned())
}

/// A program that computes on the GPUs it is given: it registers itself there and becomes `sleep`.
/// It first prints what it was given; given nothing, where a real program would take every GPU, it
/// fails with 64.
const OCCUPY: &str = r#"#!/bin/sh
# occupy SECONDS [DELAY]
[ -n "${2-}" ] && sleep "$2"
if [ -z "${CUDA_VISIBLE_DEVICES-}" ]; then
    echo "occupy: CUDA_VISIBLE_DEVICES is unset or empty" >&2
    exit 64
fi
for id in $(echo "$CUDA_VISIBLE_DEVICES" | tr , ' '); do
    mkdir -p "$FAKE_NVML/procs/$id" && : >"$FAKE_NVML/procs/$id/$$" || exit 65
done
echo "$CUDA_VISIBLE_DEVICES"
exec sleep "$1" >/dev/null 2>&1
"#;

/// What a program runs that is to hold its GPU until others hold theirs too: they come one after
/// another, on a loaded machine with seconds in between.
const MEET: &str = r#"#!/bin/sh
# meet COUNT: ends once COUNT of these have come
mkdir -p "$FAKE_NVML/met" && : >"$FAKE_NVML/met/$$" || exit 65
until [ "$(ls "$FAKE_NVML/met" | wc -l)" -ge "$1" ]; do sleep 0.05; done
"#;

/// Fake GPUs and a directory with all that belongs to them: `machine.json`, `procs/` and `calls`
/// for the library, `bin/` in front of PATH, `claims/`, `home/`, `tmp/`.
pub struct Machine {
    directory: TempDir,
    /// What machine.json holds.
    description: Mutex<Value>,
    nvml: Mutex<PathBuf>,
}

impl Machine {
    /// So many idle GPUs of 80 GiB.
    pub fn gpus(count: usize) -> Self {
        Self::described(json!({ "gpus": vec![json!({}); count] }))
    }

    /// The machine that a machine.json describes.
    pub fn described(description: Value) -> Self {
        let directory = tempfile::Builder::new()
            .prefix("autocvd-test-")
            .tempdir()
            .expect("a temporary directory");
        let path = |name: &str| directory.path().join(name);
        for name in ["procs", "bin", "home", "tmp"] {
            fs::create_dir(path(name)).expect("a new directory");
        }
        for name in ["calls", "initializations"] {
            File::create(path(name)).expect("a new file");
        }
        symlink(program(), path("bin/autocvd")).expect("a new link");
        let machine = Self {
            directory,
            description: Mutex::new(description),
            nvml: Mutex::new(fake_nvml()),
        };
        machine.install("occupy", OCCUPY).install("meet", MEET);
        machine.save(&machine.description.lock().expect("no panic elsewhere"));
        machine
    }

    /// Sets a member of machine.json by its JSON pointer, and creates what is missing on the way.
    /// Programs that run see it at their next call.
    pub fn set(&self, pointer: &str, value: Value) -> &Self {
        let mut description = self.description.lock().expect("no panic elsewhere");
        *member(&mut description, pointer) = value;
        self.save(&description);
        self
    }

    /// Writes machine.json in one step: nobody sees half of it.
    fn save(&self, description: &Value) {
        let new = self.path().join("machine.json.new");
        fs::write(&new, description.to_string()).expect("our own directory");
        fs::rename(new, self.path().join("machine.json")).expect("our own directory");
    }

    /// Takes functions out of the library, as in older drivers. It concerns programs started later.
    pub fn without(&self, functions: &[&str]) -> &Self {
        let mut library = self.nvml.lock().expect("no panic elsewhere");
        let mut image = fs::read(&*library).expect("a library that can be read");
        for function in functions {
            // The dynamic linker finds symbols by a hash of the name it looks for, and then
            // compares: to change one letter of the name hides it. All names that match may change,
            // debug symbols too.
            let name = format!("\0{function}\0").into_bytes();
            let at: Vec<usize> = image
                .windows(name.len())
                .enumerate()
                .filter(|(_, w)| *w == name)
                .map(|(at, _)| at)
                .collect();
            assert!(
                !at.is_empty(),
                "the fake library has no function {function}"
            );
            at.into_iter().for_each(|at| image[at + 1] = b'X');
        }
        *library = self.path().join("libfake_nvml.so");
        // A new file: one that a program has loaded must not change under it.
        let new = library.with_extension("so.new");
        fs::write(&new, image).expect("our own directory");
        fs::rename(new, &*library).expect("our own directory");
        self
    }

    /// A copy of the library for this process to load: it obeys this machine, whatever others are
    /// loaded.
    pub fn private_library(&self) -> PathBuf {
        self.without(&[]).nvml_library()
    }

    /// The library that programs are to load.
    pub fn nvml_library(&self) -> PathBuf {
        self.nvml.lock().expect("no panic elsewhere").clone()
    }

    /// The directory of all that belongs to this machine.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The directory of claims; it exists once the program has made it.
    pub fn claims(&self) -> PathBuf {
        self.path().join("claims")
    }

    /// The NVML functions called since the machine was made or [`Self::forget_calls`].
    pub fn calls(&self) -> Vec<String> {
        let calls = fs::read_to_string(self.path().join("calls")).expect("our own file");
        calls.lines().map(str::to_owned).collect()
    }

    /// Empties the list of calls.
    pub fn forget_calls(&self) {
        for name in ["calls", "initializations"] {
            File::create(self.path().join(name)).expect("our own file");
        }
    }

    /// The program on this machine.
    pub fn autocvd(&self) -> Command {
        self.command(&program())
    }

    /// A shell that runs a script on this machine; `autocvd`, `occupy` and `meet` are on PATH.
    pub fn shell(&self, shell: &str, script: &str) -> Command {
        let mut command = self.command(shell);
        // busybox names its shell by an argument, and zsh and tcsh read start-up files only from
        // HOME.
        if shell == "busybox" {
            command.arg("sh");
        }
        command.arg("-c").arg(script);
        command
    }

    /// Any program, in a clean environment on this machine, with nothing on stdin.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        with_default_signals(&mut command)
            .env_clear()
            .env("PATH", self.search_path())
            .env("HOME", self.path().join("home"))
            .env("TMPDIR", self.path().join("tmp"))
            .env("AUTOCVD_NVML_LIB", self.nvml_library())
            .env("AUTOCVD_CLAIM_DIR", self.claims())
            .env("FAKE_NVML", self.path())
            .stdin(Stdio::null());
        command
    }

    fn search_path(&self) -> OsString {
        let inherited =
            std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
        let directories = std::iter::once(self.path().join("bin")).chain(
            std::env::split_paths(&inherited).filter(|directory| fs::read_dir(directory).is_ok()),
        );
        std::env::join_paths(directories).expect("directories from a PATH")
    }

    /// Lists GPUs, each by its PCI bus id and UUID, as the kernel driver does in
    /// /proc/driver/nvidia/gpus; see [`in_mount_namespace`].
    pub fn list_in_proc(&self, gpus: &[(&str, &str)]) -> &Self {
        let directory = self.path().join("proc-driver/nvidia/gpus");
        fs::create_dir_all(&directory).expect("our own directory");
        for (bus_id, uuid) in gpus {
            // The kernel's form of a bus id has a domain of four digits.
            let place = bus_id.strip_prefix("0000").unwrap_or(bus_id).to_lowercase();
            fs::create_dir_all(directory.join(&place)).expect("our own directory");
            let text = format!(
                "Model: \t\t NVIDIA A100-SXM4-80GB\nIRQ:   \t\t 123\nGPU UUID: \t {uuid}\n\
                 Video BIOS: \t 92.00.45.00.03\nBus Type: \t PCIe\nDMA Size: \t 47 bits\n\
                 DMA Mask: \t 0x7fffffffffff\nBus Location: \t {place}\nDevice Minor: \t 0\n\
                 GPU Firmware: \t 580.82.07\nGPU Excluded:\t No\n"
            );
            fs::write(directory.join(&place).join("information"), text).expect("our own directory");
        }
        self
    }

    /// The indices of the GPUs that processes have initialized, since [`Self::forget_calls`].
    pub fn initializations(&self) -> Vec<usize> {
        let lines = fs::read_to_string(self.path().join("initializations")).expect("our own file");
        lines
            .lines()
            .map(|line| line.parse().expect("an index"))
            .collect()
    }

    /// Puts a program into the directory in front of PATH, such as an nvidia-smi.
    pub fn install(&self, name: &str, script: &str) -> &Self {
        let path = self.path().join("bin").join(name);
        fs::write(&path, script).expect("our own directory");
        fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("our own file");
        can_be_run(&path);
        self
    }

    /// A process that computes on a device: a GPU's index, `<gpu>.<mig>` or a UUID.
    pub fn job(&self, device: impl Display) -> Job {
        self.job_that(device, "")
    }

    /// A process on a device that is registered as `TYPE BYTES LINGER_MS`, each word optional.
    pub fn job_that(&self, device: impl Display, registration: &str) -> Job {
        let job = Job::unregistered();
        self.register(device, job.pid(), registration);
        job
    }

    /// Puts a process on a device for as long as it lives.
    pub fn register(&self, device: impl Display, pid: u32, registration: &str) {
        let directory = self.path().join("procs").join(device.to_string());
        fs::create_dir_all(&directory).expect("our own directory");
        let new = directory.join(format!("{pid}.new"));
        fs::write(&new, registration).expect("our own directory");
        fs::rename(new, directory.join(pid.to_string())).expect("our own directory");
    }
}

/// Waits until nobody has this new file open for writing: a program that another test starts has a
/// copy of our descriptor until it is that program, and till then the file cannot be run (ETXTBSY).
pub fn can_be_run(path: &Path) {
    use std::os::fd::AsRawFd;
    let file = File::open(path).expect("our own file");
    let lease = |kind: libc::c_int| {
        // SAFETY: the descriptor is open, and the call takes no pointer.
        let leased = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) };
        if leased == 0 {
            None
        } else {
            std::io::Error::last_os_error().raw_os_error()
        }
    };
    // The kernel gives a lease for reading on what nobody writes. A file system may have none.
    wait_until("nobody writes it", || {
        lease(libc::F_RDLCK) != Some(libc::EAGAIN)
    });
    lease(libc::F_UNLCK);
}

/// Copies a program to where others run it.
pub fn copy_program(from: impl AsRef<Path>, to: &Path) {
    fs::copy(from, to).expect("our own directory");
    can_be_run(to);
}

/// Lets a program be interrupted though these tests run in the background of a shell that has no
/// job control: it ignores SIGINT and SIGQUIT for them, and they for what they start.
pub fn with_default_signals(command: &mut Command) -> &mut Command {
    let restore = || {
        for signal in [libc::SIGINT, libc::SIGQUIT] {
            // SAFETY: no handler is installed.
            if unsafe { libc::signal(signal, libc::SIG_DFL) } == libc::SIG_ERR {
                return Err(std::io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: it makes system calls alone between fork and exec.
    unsafe { command.pre_exec(restore) }
}

/// Whether a process holds a lock on a part of this file.
pub fn is_locked(path: &Path) -> bool {
    // One that a cleaner has just removed is locked by nobody.
    File::open(path).is_ok_and(|file| has_lock(&file, 0, 0))
}

/// Whether a process holds a lock on a byte of these, up to the last one that can be where `length`
/// is 0.
fn has_lock(file: &File, start: u64, length: u64) -> bool {
    use std::os::fd::AsRawFd;
    let mut lock = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start as libc::off_t,
        l_len: length as libc::off_t,
        l_pid: 0,
    };
    // SAFETY: the descriptor is open, and `lock` outlives the call.
    let asked = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &mut lock) };
    asked == 0 && lock.l_type != libc::F_UNLCK as libc::c_short
}

/// The place that a JSON pointer names; what is missing comes to be, as an array where the name is
/// a number.
fn member<'a>(value: &'a mut Value, pointer: &str) -> &'a mut Value {
    assert!(
        pointer.is_empty() || pointer.starts_with('/'),
        "not a JSON pointer: {pointer}"
    );
    pointer
        .split('/')
        .skip(1)
        .fold(value, |value, name| match name.parse::<usize>() {
            Ok(index) if !value.is_object() => {
                if !value.is_array() {
                    *value = json!([]);
                }
                let elements = value.as_array_mut().expect("just made one");
                while elements.len() <= index {
                    elements.push(json!({}));
                }
                &mut elements[index]
            }
            _ => {
                if !value.is_object() {
                    *value = json!({});
                }
                value
                    .as_object_mut()
                    .expect("just made one")
                    .entry(name)
                    .or_insert(Value::Null)
            }
        })
}

/// The library with NVML's interface. As a dev-dependency it is built with the tests, into the same
/// directory.
fn fake_nvml() -> PathBuf {
    let test = std::env::current_exe().expect("a process knows its program");
    let library = test.with_file_name("libfake_nvml.so");
    assert!(
        library.exists(),
        "{} does not exist: cargo has put fake-nvml elsewhere",
        library.display()
    );
    library
}

/// A process that does nothing. It ends when this is dropped.
pub struct Job(Child);

impl Job {
    /// A process on no GPU.
    pub fn unregistered() -> Self {
        // It ends on its own some day, should the test be killed.
        let mut command = Command::new("sleep");
        command
            .arg("600")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let job = Self(command.spawn().expect("sleep is everywhere"));
        // Between two steps of its exec it has no command line.
        has_become(job.pid(), "sleep");
        job
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Ends it, and returns once it is gone.
    pub fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.kill();
    }
}

/// How a program ended, and what it wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// `None` where a signal ended it.
    pub code: Option<i32>,
    pub signal: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    /// What a shell calls its exit status: 128 and the signal where one ended it.
    pub fn status(&self) -> Option<i32> {
        self.code.or(self.signal.map(|signal| 128 + signal))
    }

    /// It has said so on stderr.
    #[track_caller]
    pub fn tells(&self, words: &str) {
        assert!(
            self.stderr.contains(words),
            "{words:?} is not told: {self:#?}"
        );
    }

    /// stdout of a program that must have succeeded.
    #[track_caller]
    pub fn success(self) -> String {
        assert_eq!(self.code, Some(0), "{self:#?}");
        self.stdout
    }
}

/// How long a program may run before it counts as hanging, and how long anything may take: much
/// longer than on a machine with a hundred things to do, and less than the 600 s of holders.
const PATIENCE: Duration = Duration::from_secs(180);

/// Runs a program to its end. What it started in the background may live on.
#[track_caller]
pub fn run(command: &mut Command) -> Outcome {
    start(command).finish()
}

/// Starts a program and collects what it writes.
#[track_caller]
pub fn start(command: &mut Command) -> Running {
    // Files, as a pipe would end only with the last of those who inherited it.
    let stdout = tempfile::tempfile().expect("a temporary file");
    let stderr = tempfile::tempfile().expect("a temporary file");
    let own = |file: &File| file.try_clone().expect("an open file");
    let child = command
        .stdout(own(&stdout))
        .stderr(own(&stderr))
        .process_group(0)
        .spawn();
    let name = format!("{command:?}");
    let child = child.unwrap_or_else(|error| panic!("{name}: {error}"));
    Running {
        child,
        stdout,
        stderr,
        name,
    }
}

/// A program that was started by [`start`], in a process group of its own. Dropped, it is killed
/// with its group.
pub struct Running {
    child: Child,
    stdout: File,
    stderr: File,
    name: String,
}

impl Running {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to stdout so far.
    pub fn stdout(&self) -> String {
        written(&self.stdout)
    }

    /// What it has written to stderr so far.
    pub fn stderr(&self) -> String {
        written(&self.stderr)
    }

    /// What it reads, where that was asked to be piped.
    pub fn take_stdin(&mut self) -> std::process::ChildStdin {
        self.child.stdin.take().expect("it was asked to be piped")
    }

    /// Waits until it has become this program, by exec, and is known by its name.
    #[track_caller]
    pub fn becomes(&self, program: &str) {
        has_become(self.pid(), program);
    }

    /// Waits for its end, and leaves alone what it has started.
    pub fn wait_for_end(&mut self) {
        self.child.wait().expect("our own child");
    }

    /// Whether it has not ended yet.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("our own child").is_none()
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(pid(&self.child), signal).expect("our own child");
    }

    /// Stops it, and returns once it is stopped.
    #[track_caller]
    pub fn stop(&self) {
        self.signal(rustix::process::Signal::STOP);
        wait_until("it is stopped", || state(self.pid()) == Some('T'));
    }

    /// Waits for its end. A program that hangs is killed, and fails the test with what it wrote.
    #[track_caller]
    pub fn finish(mut self) -> Outcome {
        let end = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("our own child") {
                break status;
            }
            if Instant::now() > end {
                let (stdout, stderr) = (self.stdout(), self.stderr());
                panic!(
                    "{} hangs\n--- stdout\n{stdout}\n--- stderr\n{stderr}",
                    self.name
                );
            }
            thread::sleep(Duration::from_millis(1));
        };
        Outcome {
            code: status.code(),
            signal: status.signal(),
            stdout: self.stdout(),
            stderr: self.stderr(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Once it has been waited for, its number may be another's.
        if let Ok(None) = self.child.try_wait() {
            let _ = rustix::process::kill_process_group(
                pid(&self.child),
                rustix::process::Signal::KILL,
            );
            let _ = self.child.wait();
        }
    }
}

fn pid(child: &Child) -> rustix::process::Pid {
    rustix::process::Pid::from_child(child)
}

fn written(file: &File) -> String {
    use std::os::unix::fs::FileExt;
    let length = file.metadata().expect("an open file").len() as usize;
    let mut bytes = vec![0; length];
    // By position: the program's writes must not move.
    file.read_exact_at(&mut bytes, 0)
        .expect("as long as it was");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A pipe whose ends no other program inherits: what reads, and what writes.
pub fn pipe() -> (File, File) {
    let ends = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("a pipe");
    (ends.0.into(), ends.1.into())
}

/// Waits until a process has become this program, by exec, and is known by its name.
#[track_caller]
pub fn has_become(pid: u32, program: &str) {
    let arguments = format!("/proc/{pid}/cmdline");
    wait_until(&format!("it is {program}"), || {
        let arguments = fs::read(&arguments).unwrap_or_default();
        arguments.split(|byte| *byte == 0).next() == Some(program.as_bytes())
    });
}

/// Waits until a process sleeps and does not stir: one that has something to do and gets no core
/// does not sleep.
#[track_caller]
pub fn asleep(pid: u32) {
    wait_until("it sleeps", || {
        let before = switches(pid);
        let slept = state(pid) == Some('S');
        thread::sleep(Duration::from_millis(150));
        slept && state(pid) == Some('S') && before == switches(pid)
    });
}

/// The state of a process as ps shows it: S for one that waits, T for one that is stopped.
fn state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // It follows the command, which may itself hold parentheses.
    stat.rsplit_once(") ")?.1.chars().next()
}

/// How often a process went to sleep by itself.
pub fn switches(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| {
        line.strip_prefix("voluntary_ctxt_switches:")?
            .trim()
            .parse()
            .ok()
    })
}

/// A COMMAND that keeps the GPUs that it was given until it is dropped: `sleep 600`, once it is
/// that and its judge has told of its claim.
#[track_caller]
pub fn hold(autocvd: &mut Command) -> Running {
    let holder = start(autocvd.args(["--", "sleep", "600"]));
    holder.becomes("sleep");
    let claims = claim_directory_of(autocvd);
    wait_until("its claim is told of", || tells_of(&claims, holder.pid()));
    holder
}

/// Whether a record in this directory of claims tells of a claim for this process.
pub fn tells_of(claims: &Path, pid: u32) -> bool {
    let records = fs::read_dir(claims.join("holders")).into_iter().flatten();
    let texts = records
        .flatten()
        .filter_map(|record| fs::read_link(record.path()).ok());
    let word = format!(" process={pid}:");
    texts
        .into_iter()
        .any(|text| text.to_string_lossy().contains(&word))
}

/// Tries what the program promises where each process gets a core within its grace periods of a
/// quarter of a second. A failure counts at once where this process itself was not kept from its
/// core meanwhile, else only when it comes again and again.
#[track_caller]
pub fn unless_starved(mut attempt: impl FnMut() -> Result<(), String>) {
    const ATTEMPTS: u32 = 8;
    for number in 1..=ATTEMPTS {
        let (result, longest) = while_measuring_stalls(&mut attempt);
        let Err(why) = result else { return };
        assert!(
            number < ATTEMPTS && longest >= STARVED,
            "{why} (attempt {number}; {longest:?})"
        );
    }
}

/// A process that waits so long for a core shares it with many.
const STARVED: Duration = Duration::from_millis(15);

/// How late a thread that sleeps for a millisecond wakes at most while `attempt` is made.
fn while_measuring_stalls<T>(attempt: impl FnOnce() -> T) -> (T, Duration) {
    /// Ends the thread in a panic too.
    struct Over<'a>(&'a AtomicBool);
    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let over = AtomicBool::new(false);
    let pause = Duration::from_millis(1);
    thread::scope(|scope| {
        let measures = scope.spawn(|| {
            let mut longest = Duration::ZERO;
            while !over.load(Ordering::Relaxed) {
                let began = Instant::now();
                thread::sleep(pause);
                longest = longest.max(began.elapsed() - pause);
            }
            longest
        });
        let result = {
            let _over = Over(&over);
            attempt()
        };
        (result, measures.join().expect("it only sleeps"))
    })
}

/// The words by which records name a process of this PID namespace: `process=PID:START` and
/// `namespace=NUMBER`.
pub fn process_words(pid: u32) -> (String, String) {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it lives");
    let (_, fields) = stat.rsplit_once(") ").expect("the form of this file");
    let start = fields.split(' ').nth(19).expect("its start time");
    let namespace = fs::read_link("/proc/self/ns/pid").expect("a PID namespace");
    let namespace = namespace.to_str().expect("a number");
    let namespace = namespace.trim_matches(|c: char| !c.is_ascii_digit());
    (
        format!("process={pid}:{start}"),
        format!("namespace={namespace}"),
    )
}

/// Waits until something is so, for at most [`PATIENCE`].
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(
            Instant::now() < end,
            "waited {PATIENCE:?} in vain until {what}"
        );
        thread::sleep(Duration::from_millis(2));
    }
}

/// One look at the machine: which GPU is to be had now.
#[track_caller]
pub fn look(machine: &Machine) -> Outcome {
    try_once(machine.autocvd().args(["-q", "-t", "0"]))
}

/// A launch whose COMMAND prints which GPUs it was given, and nothing else. Its claim has ended
/// when this returns: the next look does not meet it.
#[track_caller]
pub fn try_once(autocvd: &mut Command) -> Outcome {
    let script = r#"echo "$CUDA_VISIBLE_DEVICES"; echo "$AUTOCVD_INSIDE""#;
    let mut outcome = run(autocvd.args(["--", "sh", "-c", script]));
    let mut lines = outcome.stdout.lines();
    if let (Some(given), Some(inside)) = (lines.next(), lines.next()) {
        let innermost = inside.rsplit(';').next().unwrap_or_default();
        let token = innermost.split(':').next().unwrap_or_default();
        // Where nothing could be claimed it has none.
        if let Ok(token) = u64::from_str_radix(token, 16) {
            let claims = claim_directory_of(autocvd);
            wait_until("its claim has ended", || !is_claimed(&claims, token));
        }
        outcome.stdout = format!("{given}\n");
    }
    outcome
}

/// Whether there is a claim of this token in a directory of claims.
fn is_claimed(claims: &Path, token: u64) -> bool {
    // The byte that stands for the claim; see docs/claims.md.
    let byte = (1 << 62) + token;
    let length = 1;
    let files = lock_files(claims).into_iter();
    files
        .filter_map(|path| File::open(path).ok())
        .any(|file| has_lock(&file, byte, length))
}

fn lock_files(claims: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(claims).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    let is_lock = |path: &PathBuf| path.extension().is_some_and(|end| end == "lock");
    paths
        .filter(|path| is_lock(path) && path.is_file())
        .collect()
}

/// The directory of claims that a program is to use.
fn claim_directory_of(command: &Command) -> PathBuf {
    let mut set = command.get_envs();
    let directory = set.find(|(name, _)| *name == "AUTOCVD_CLAIM_DIR");
    directory
        .and_then(|(_, value)| value)
        .expect("Machine::command sets it")
        .into()
}

/// The lock files of a machine on which there are claims.
pub fn claimed_files(machine: &Machine) -> Vec<PathBuf> {
    let mut files = lock_files(&machine.claims());
    files.retain(|path| is_locked(path));
    files.sort_unstable();
    files
}

/// Waits until there is no claim on a machine.
#[track_caller]
pub fn wait_until_unclaimed(machine: &Machine) {
    wait_until("all claims have ended", || {
        claimed_files(machine).is_empty()
    });
}

/// Whether a GPU is to be had now.
pub fn is_free(machine: &Machine) -> bool {
    look(machine).code == Some(0)
}

/// A program in a PID namespace of its own, with a /proc of its own; it ends with whoever starts
/// it.
pub fn in_namespace(machine: &Machine, command: &[&str]) -> Command {
    let mut inside = machine.command("unshare");
    inside
        .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
        .args(command);
    inside
}

/// The same command where /proc/driver/nvidia/gpus is what [`Machine::list_in_proc`] wrote: in a
/// mount namespace of its own.
pub fn in_mount_namespace(machine: &Machine, command: &Command) -> Command {
    let mut inside = machine.command("unshare");
    let script = r#"mount --bind "$1" /proc/driver && shift && exec "$@""#;
    inside
        .args(["--mount", "sh", "-c", script, "sh"])
        .arg(machine.path().join("proc-driver"));
    inside.arg(command.get_program()).args(command.get_args());
    inside.env_clear().envs(
        command
            .get_envs()
            .filter_map(|(name, value)| Some((name, value?))),
    );
    inside
}

/// Whether mount namespaces may be made here; says so where they may not.
pub fn has_mount_namespaces(machine: &Machine) -> bool {
    machine.list_in_proc(&[]);
    let may = run(&mut in_mount_namespace(machine, &machine.command("true"))).code == Some(0);
    if !may {
        skip("mount namespaces may not be made here (it takes root)");
    }
    may
}

/// Whether PID namespaces may be made here; says so where they may not.
pub fn has_namespaces(machine: &Machine) -> bool {
    let may = run(&mut in_namespace(machine, &["true"])).code == Some(0);
    if !may {
        skip("PID namespaces may not be made here (it takes root)");
    }
    may
}
