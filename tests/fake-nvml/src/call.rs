//! One call of an NVML function: it is logged, answered late where the machine says so, and never
//! panics into C.

use std::collections::HashMap;
use std::ffi::{OsStr, c_void};
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use crate::config::{ByName, Ending, Machine, Mischief};
use crate::ffi::{Code, NOT_SUPPORTED, SUCCESS, UNINITIALIZED, UNKNOWN};

/// How often this process has done something to a GPU, by its index.
pub struct Counter(Mutex<Option<HashMap<usize, usize>>>);

impl Counter {
    pub const fn new() -> Self {
        Self(Mutex::new(None))
    }

    /// How often it was done before.
    pub fn next(&self, index: usize) -> usize {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.get_or_insert_default().entry(index).or_default();
        *count += 1;
        *count - 1
    }
}

/// The GPUs that this process has initialized.
static GPUS: Counter = Counter::new();
/// How often NVML was initialized and not yet shut down.
static INITIALIZED: AtomicUsize = AtomicUsize::new(0);
/// Whether NVML_MPS_DEVICE_ENUMERATION was 1 when NVML was first initialized: see
/// [`MPS_FUNCTIONS`].
static SHOWS_MPS: AtomicBool = AtomicBool::new(false);

/// The functions that answer while NVML shows the devices of an MPS session (NVIDIA's documentation
/// of NVML 13.5). Every other one answers NOT_SUPPORTED.
const MPS_FUNCTIONS: [&str; 22] = [
    "nvmlInit",
    "nvmlInit_v2",
    "nvmlInitWithFlags",
    "nvmlShutdown",
    "nvmlSystemGetNVMLVersion",
    "nvmlDeviceGetCount_v2",
    "nvmlDeviceGetHandleByIndex_v2",
    "nvmlDeviceGetIndex",
    "nvmlDeviceGetHandleByUUID",
    "nvmlDeviceGetUUID",
    "nvmlDeviceGetHandleByPciBusId_v2",
    "nvmlDeviceGetName",
    "nvmlDeviceGetCudaComputeCapability",
    "nvmlDeviceGetPciInfo",
    "nvmlDeviceGetPciInfo_v2",
    "nvmlDeviceGetPciInfo_v3",
    "nvmlDeviceGetNumaNodeId",
    "nvmlDeviceGetCpuAffinity",
    "nvmlDeviceGetMemoryInfo",
    "nvmlDeviceGetMemoryInfo_v2",
    "nvmlDeviceGetP2PStatus",
    "nvmlDeviceGetAccountingMode",
];

pub struct Call {
    pub name: &'static str,
    pub machine: Arc<Machine>,
    pub directory: &'static Path,
}

impl Call {
    /// Runs the body of an NVML function and turns its end into a return code.
    pub fn answer(name: &'static str, body: impl FnOnce(&Call) -> Result<(), Code>) -> Code {
        let answer = catch_unwind(AssertUnwindSafe(|| {
            let call = Call::begin(name)?;
            body(&call)
        }));
        match answer {
            Ok(Ok(())) => SUCCESS,
            Ok(Err(code)) => code,
            Err(_) => UNKNOWN,
        }
    }

    fn begin(name: &'static str) -> Result<Self, Code> {
        let directory = directory();
        log(directory, "calls", name);
        let call = Self {
            name,
            machine: machine(directory)?,
            directory,
        };
        if !name.starts_with("nvmlInit") && INITIALIZED.load(Ordering::SeqCst) == 0 {
            return Err(UNINITIALIZED);
        }
        if SHOWS_MPS.load(Ordering::SeqCst) && !MPS_FUNCTIONS.contains(&name) {
            return Err(NOT_SUPPORTED);
        }
        call.suffer(&call.machine.errors, Some(&call.machine.delays_ms), &[name])?;
        Ok(call)
    }

    /// Waits and fails as the tables say for the first of the names that they know.
    pub fn suffer(
        &self,
        errors: &ByName<u32>,
        delays: Option<&ByName<u64>>,
        names: &[&str],
    ) -> Result<(), Code> {
        if let Some(ms) = delays.and_then(|delays| names.iter().find_map(|&name| delays.get(name)))
        {
            thread::sleep(Duration::from_millis(*ms));
        }
        match names.iter().find_map(|&name| errors.get(name)) {
            Some(&code) if code != SUCCESS => Err(code),
            _ => Ok(()),
        }
    }

    pub fn initialize(&self) -> Result<(), Code> {
        thread::sleep(Duration::from_millis(self.machine.init.delay_ms));
        // SAFETY: these change descriptor 1 alone, and whoever owns it is to be tested.
        match self.machine.init.stdout {
            Some(Mischief::Print) => unsafe {
                let text = b"printed by the library\n";
                libc::write(1, text.as_ptr().cast(), text.len());
            },
            Some(Mischief::Close) => unsafe {
                libc::close(1);
            },
            Some(Mischief::Redirect) => unsafe {
                let null = libc::open(c"/dev/null".as_ptr(), libc::O_WRONLY);
                libc::dup2(null, 1);
                libc::close(null);
            },
            None => {}
        }
        match self.machine.init.ends {
            // SAFETY: none: to read from there ends the process, which is what is asked for.
            Some(Ending::Crash) => {
                _ = unsafe { std::ptr::dangling::<u8>().wrapping_add(8).read_volatile() }
            }
            Some(Ending::Abort) => std::process::abort(),
            Some(Ending::Exit) => std::process::exit(0),
            None => {}
        }
        if self.machine.init.code != SUCCESS {
            return Err(self.machine.init.code);
        }
        if INITIALIZED.fetch_add(1, Ordering::SeqCst) == 0 {
            let variable = std::env::var_os("NVML_MPS_DEVICE_ENUMERATION");
            SHOWS_MPS.store(variable.is_some_and(|value| value == "1"), Ordering::SeqCst);
        }
        Ok(())
    }

    /// What a driver does when a process first asks for a GPU.
    pub fn initialize_gpu(&self, index: usize, takes_ms: u64) {
        if GPUS.next(index) == 0 {
            log(self.directory, "initializations", &index.to_string());
            thread::sleep(Duration::from_millis(takes_ms));
        }
    }

    pub fn shut_down(&self) -> Result<(), Code> {
        INITIALIZED
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |count| {
                count.checked_sub(1)
            })
            .map(|_| ())
            .map_err(|_| UNINITIALIZED)
    }
}

/// The directory of the files that tell what to say.
fn directory() -> &'static Path {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    DIRECTORY.get_or_init(|| match std::env::var_os("FAKE_NVML") {
        Some(directory) => directory.into(),
        None => library().parent().map(Path::to_owned).unwrap_or_default(),
    })
}

/// Where this library was loaded from. One process can load several copies, each with a directory
/// of its own.
fn library() -> PathBuf {
    // SAFETY: all-zero is a valid Dl_info, and dladdr fills it from an address within this library;
    // the name it gives lasts as long as the library is loaded.
    unsafe {
        let mut info: libc::Dl_info = std::mem::zeroed();
        let here: fn() -> PathBuf = library;
        if libc::dladdr(here as *const c_void, &mut info) == 0 || info.dli_fname.is_null() {
            return PathBuf::new();
        }
        OsStr::from_bytes(std::ffi::CStr::from_ptr(info.dli_fname).to_bytes()).into()
    }
}

/// Adds a line to a file, if it exists.
fn log(directory: &Path, file: &str, line: &str) {
    // One write to a file opened for appending: lines of several processes never mix.
    if let Ok(mut file) = fs::OpenOptions::new()
        .append(true)
        .open(directory.join(file))
    {
        let _ = file.write_all(format!("{line}\n").as_bytes());
    }
}

/// What tells one version of machine.json from another.
type Stamp = (u64, u64, i64, i64);

/// The machine as machine.json describes it now.
fn machine(directory: &Path) -> Result<Arc<Machine>, Code> {
    static READ: Mutex<Option<(Stamp, Arc<Machine>)>> = Mutex::new(None);
    let path = directory.join("machine.json");
    let mut read = READ.lock().unwrap_or_else(PoisonError::into_inner);
    let parsed = (|| {
        let metadata = fs::metadata(&path).map_err(|error| error.to_string())?;
        let stamp = (
            metadata.ino(),
            metadata.size(),
            metadata.mtime(),
            metadata.mtime_nsec(),
        );
        match &*read {
            Some((known, machine)) if *known == stamp => Ok(machine.clone()),
            _ => {
                let text = fs::read_to_string(&path).map_err(|error| error.to_string())?;
                let machine = Arc::new(Machine::parse(&text).map_err(|error| error.to_string())?);
                *read = Some((stamp, machine.clone()));
                Ok(machine)
            }
        }
    })();
    parsed.map_err(|error: String| {
        // To the author of a test, who is to see at once that the machine, not the program, is
        // wrong.
        eprintln!("fake-nvml: {}: {error}", path.display());
        UNKNOWN
    })
}
