//! What is on this machine: NVML, else nvidia-smi, or a file.
//!
//! A look begins with [`Probe::begin`], which tells what GPUs there are; [`Probe::read`] then adds
//! what is happening on one of them. A request that is met by the first GPU asks no more of the
//! driver.

pub(crate) mod file;
mod kernel;
pub(crate) mod nvml;
pub(crate) mod smi;

use crate::gpu::{Gpu, Link, ProcessView, Snapshot, Source};
use crate::pci::PciBusId;
use crate::{Error, Result};
use std::ffi::OsString;
use std::path::PathBuf;

/// Where to read the machine's state.
///
/// ```
/// use autocvd::{ProbeChoice, Request};
///
/// // What `autocvd status --json > machine.json` has recorded, here or on another machine.
/// let request = Request::new().probe(ProbeChoice::File("machine.json".into()));
/// # let _ = request;
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ProbeChoice {
    /// NVML, else nvidia-smi.
    #[default]
    Auto,
    /// NVML alone.
    Nvml,
    /// nvidia-smi alone.
    NvidiaSmi,
    /// A file in the form of `autocvd status --json`.
    File(PathBuf),
}

/// What to read of each GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Detail {
    /// What a decision needs.
    #[default]
    Decision,
    /// Also names, utilization, the driver's version and complete process lists: what is shown to
    /// people.
    Everything,
}

impl Detail {
    /// Whether what is read is to be shown to people.
    pub(crate) fn shows_people(self) -> bool {
        self == Self::Everything
    }
}

/// A way to read the machine's state.
pub(crate) trait Probe: Send {
    /// Begins a new look: which GPUs there are, and which cannot be used at all.
    ///
    /// # Errors
    /// [`Error::NoGpu`] where no GPU can be read.
    fn begin(&mut self, detail: Detail) -> Result<Snapshot>;

    /// Adds what is happening on `gpu`, one of those that [`begin`](Self::begin) told of.
    fn read(&mut self, gpu: &mut Gpu, view: ProcessView, detail: Detail);

    /// Asks the driver one question that touches the GPU, unless that was done: a lost one may have
    /// a handle.
    fn touch(&mut self, _gpu: &mut Gpu, _view: ProcessView) {}

    /// Adds the GPU's name.
    fn read_name(&mut self, _gpu: &mut Gpu) {}

    /// Adds what the driver says of the GPU's health.
    fn read_health(&mut self, _gpu: &mut Gpu) {}

    /// The version of the kernel driver, where that is known.
    fn driver_version(&mut self) -> Option<String> {
        None
    }

    /// How the GPUs with these indices are connected to each other.
    fn links(&mut self, indices: &[u32]) -> Vec<Link>;

    /// The CPU cores near the GPU with this index; empty where unknown.
    fn cpu_affinity(&mut self, index: u32) -> Vec<usize>;

    /// Whether the driver keeps the GPU with this index initialized while no process uses it;
    /// `None` where that is unknown.
    fn persistence_mode(&mut self, _index: u32) -> Option<bool> {
        None
    }

    /// Whether another look can have another answer.
    fn is_live(&self) -> bool {
        true
    }
}

/// Which GPUs a request can do with, by their positions, given what they are called: the others
/// need not be initialized. `None` is all of them.
pub(crate) type Narrow<'a> = Option<&'a dyn Fn(&Snapshot) -> Option<Vec<usize>>>;

/// Opens what `choice` names; `library` is the NVML library to load instead of the usual ones.
///
/// # Errors
/// [`Error::NoGpu`] where neither NVML nor nvidia-smi can be had, with the reason of each;
/// [`Error::UnreadableFile`] where a file does not hold a machine's state.
pub(crate) fn open(
    choice: &ProbeChoice,
    library: Option<OsString>,
    narrow: Narrow,
) -> Result<Box<dyn Probe>> {
    match choice {
        ProbeChoice::Nvml => Ok(Box::new(
            nvml::Nvml::open(library, narrow).map_err(Error::no_gpu)?,
        )),
        ProbeChoice::NvidiaSmi => Ok(Box::new(smi::NvidiaSmi::open().map_err(Error::no_gpu)?)),
        ProbeChoice::Auto => match nvml::Nvml::open(library, narrow) {
            Ok(nvml) => {
                tracing::debug!("reading the GPUs through NVML");
                Ok(Box::new(nvml))
            }
            Err(why) => {
                tracing::info!("{why}; trying nvidia-smi");
                let smi = smi::NvidiaSmi::open()
                    .map_err(|also| Error::no_gpu(format!("{why}; and {also}")))?;
                tracing::info!("reading the GPUs through nvidia-smi");
                Ok(Box::new(smi))
            }
        },
        ProbeChoice::File(path) => Ok(Box::new(file::FileProbe(file::read(path)?))),
    }
}

/// The same for showing the machine: where no GPU can be read, NVML may still say why not of each.
pub(crate) fn open_to_show(
    choice: &ProbeChoice,
    library: Option<OsString>,
) -> Result<Box<dyn Probe>> {
    let error = match open(choice, library.clone(), None) {
        Ok(probe) => return Ok(probe),
        Err(error) => error,
    };
    match choice {
        ProbeChoice::Auto | ProbeChoice::Nvml => match nvml::Nvml::open_to_show(library) {
            Ok(nvml) => Ok(Box::new(nvml)),
            Err(_) => Err(error),
        },
        _ => Err(error),
    }
}

/// The host's first PID namespace has this fixed inode (PROC_PID_INIT_INO in Linux's proc_ns.h).
const HOST_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

/// Whether process lists can be complete here: only in the host's PID namespace, and not in WSL2. A
/// namespace that cannot be read counts as a container's.
pub(crate) fn process_view() -> ProcessView {
    match crate::proc::pid_namespace() {
        _ if kernel::is_wsl() => ProcessView::Wsl,
        Some(HOST_PID_NAMESPACE) => ProcessView::Host,
        _ => ProcessView::Container,
    }
}

/// Why not one of the GPUs of a live machine can be read, if that is so.
pub(crate) fn none_can_be_read<'a>(
    source: Source,
    gpus: impl IntoIterator<Item = &'a Gpu>,
) -> Option<String> {
    let source = match source {
        Source::Nvml => "NVML",
        Source::NvidiaSmi => "nvidia-smi",
        Source::File => return None,
    };
    let mut gpus = gpus.into_iter();
    let unreadable = |gpu: &&Gpu| gpu.unusable.is_some();
    let first = gpus.next().filter(unreadable)?;
    gpus.all(|gpu| unreadable(&gpu)).then(|| {
        let reason = first.unusable.as_deref().unwrap_or("unknown reason");
        format!("{source} can read none of the GPUs; GPU 0: {reason}")
    })
}

/// The snapshot, unless none of its GPUs can be read at all.
fn with_a_readable_gpu(snapshot: Snapshot) -> Result<Snapshot> {
    match none_can_be_read(snapshot.source, &snapshot.gpus) {
        Some(why) => Err(Error::no_gpu(why)),
        None => Ok(snapshot),
    }
}

/// Sorts by PCI bus id, as CUDA counts; where one is unknown, the order in which they were read
/// stays.
pub(crate) fn sort_by_pci<T>(items: &mut [T], bus_id: impl Fn(&T) -> Option<PciBusId>) {
    let places: Option<Vec<PciBusId>> = items.iter().map(&bus_id).collect();
    if places.is_some_and(|places| !places.is_sorted()) {
        items.sort_by_key(bus_id);
    }
}
