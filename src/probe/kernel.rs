//! What the kernel tells of GPUs, and of the machine's memory. Of NVIDIA's driver it lists all
//! GPUs, without initializing any of them: what they are called is to be had here even where one is
//! lost or forbidden.

use crate::gpu::{Fact, Memory};
use crate::pci::PciBusId;
use std::path::Path;

/// Whether a NUMA node has CPUs; one that the kernel does not tell of has none.
pub(super) fn node_has_cpus(node: u32) -> bool {
    let cpus = std::fs::read_to_string(format!("/sys/devices/system/node/node{node}/cpulist"));
    cpus.is_ok_and(|cpus| !cpus.trim().is_empty())
}

/// Whether the machine has a NUMA node without CPUs, as GPU memory makes; true where none can be
/// listed.
pub(super) fn has_node_without_cpus() -> bool {
    let Ok(entries) = std::fs::read_dir("/sys/devices/system/node") else {
        return true;
    };
    let numbers = entries.flatten().filter_map(|entry| {
        entry
            .file_name()
            .to_str()?
            .strip_prefix("node")?
            .parse::<u32>()
            .ok()
    });
    numbers.into_iter().any(|node| !node_has_cpus(node))
}

/// The memory of a GPU that shares the machine's with the CPUs: nothing tells what of it is the
/// GPU's.
pub(super) fn shared_memory() -> Memory {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let bytes = |name: &str| {
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let kib = value.and_then(|value| value.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        Fact::from(kib.and_then(|kib| kib.checked_mul(1 << 10)))
    };
    Memory {
        total: bytes("MemTotal"),
        used: Fact::NotApplicable,
        free: bytes("MemAvailable"),
    }
}

/// Whether this is WSL2, which reaches GPUs by a device of its own.
pub(super) fn is_wsl() -> bool {
    Path::new("/dev/dxg").exists()
}

/// One directory a GPU, named by its place on the bus; see `nv-procfs.c` in NVIDIA's open kernel
/// modules.
const LISTED: &str = "/proc/driver/nvidia/gpus";

/// A GPU as the kernel driver lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ListedGpu {
    pub(crate) bus_id: PciBusId,
    /// Unknown to older drivers until the GPU has been initialized once.
    pub(crate) uuid: Option<String>,
}

/// Whether the driver has initialized a GPU: only then it has interrupts.
pub(super) fn is_initialized(bus_id: PciBusId) -> bool {
    let long = bus_id.to_string().to_lowercase();
    // The kernel writes a domain of four digits, and of eight only where it needs them.
    let place = long.strip_prefix("0000").unwrap_or(&long);
    let interrupts = std::fs::read_dir(format!("/sys/bus/pci/devices/{place}/msi_irqs"));
    interrupts.is_ok_and(|mut interrupts| interrupts.next().is_some())
}

/// The number in the name of a GPU's device file.
pub(super) fn minor_number(bus_id: PciBusId) -> Option<u32> {
    // The kernel writes a domain of four digits, and of eight only where it needs them.
    let long = bus_id.to_string().to_lowercase();
    let place = long.strip_prefix("0000").unwrap_or(&long);
    let information = std::fs::read_to_string(format!("{LISTED}/{place}/information")).ok()?;
    let line = information
        .lines()
        .find_map(|line| line.strip_prefix("Device Minor:"));
    line?.trim().parse().ok()
}

/// The GPUs in PCI bus order; empty where nothing is listed. Those that the driver was told to
/// leave alone (`NVreg_ExcludedGpus`) are left out, as NVML leaves them out.
pub(crate) fn gpus() -> Vec<ListedGpu> {
    read(Path::new(LISTED))
}

fn read(directory: &Path) -> Vec<ListedGpu> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut gpus: Vec<ListedGpu> = entries
        .filter_map(|entry| {
            let bus_id = PciBusId::parse(entry.file_name().to_str()?)?;
            let information = std::fs::read_to_string(entry.path().join("information"));
            parse(bus_id, &information.unwrap_or_default())
        })
        .collect();
    gpus.sort_by_key(|gpu| gpu.bus_id);
    gpus
}

/// Reads a GPU's file `information`; `None` where the driver leaves it alone.
fn parse(bus_id: PciBusId, information: &str) -> Option<ListedGpu> {
    let value = |name: &str| {
        let line = information
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map(str::trim)
    };
    let is_excluded = value("GPU Excluded") == Some("Yes");
    let uuid = value("GPU UUID").filter(|uuid| uuid.starts_with("GPU-") && !uuid.contains('?'));
    (!is_excluded).then(|| ListedGpu {
        bus_id,
        uuid: uuid.map(str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &str = "Model: \t\t NVIDIA A100-SXM4-80GB\nIRQ:   \t\t 123\n\
        GPU UUID: \t GPU-e29ba442-ff89-748b-e522-cc6a29f2c63b\nBus Location: \t 0000:07:00.0\n\
        GPU Excluded:\t No\n";

    #[test]
    fn a_gpu_that_was_initialized_once_has_its_uuid() {
        let bus_id = PciBusId::parse("0000:07:00.0").expect("a bus id");
        let uuid = Some("GPU-e29ba442-ff89-748b-e522-cc6a29f2c63b".to_owned());
        assert_eq!(parse(bus_id, KNOWN), Some(ListedGpu { bus_id, uuid }));
        let cold = KNOWN.replace(
            "e29ba442-ff89-748b-e522-cc6a29f2c63b",
            "????????-????-????-????-????????????",
        );
        assert_eq!(parse(bus_id, &cold), Some(ListedGpu { bus_id, uuid: None }));
        assert_eq!(parse(bus_id, ""), Some(ListedGpu { bus_id, uuid: None }));
        assert_eq!(parse(bus_id, &KNOWN.replace("No", "Yes")), None);
    }

    #[test]
    fn they_stand_in_the_order_of_the_bus() {
        let directory = tempfile::tempdir().expect("a directory");
        for name in ["0000:81:00.0", "0000:07:00.0", "000f:01:00.0", "nonsense"] {
            std::fs::create_dir(directory.path().join(name)).expect("our own directory");
        }
        let found: Vec<_> = read(directory.path())
            .into_iter()
            .map(|gpu| gpu.bus_id)
            .collect();
        let expected = ["0000:07:00.0", "0000:81:00.0", "000f:01:00.0"].map(PciBusId::parse);
        assert_eq!(found.into_iter().map(Some).collect::<Vec<_>>(), expected);
        assert!(read(&directory.path().join("none")).is_empty());
    }
}
