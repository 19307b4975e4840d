//! What NVML tells of a GPU's place in the machine: the GPUs it is joined to, the CPU cores near it.

use crate::gpu::{Link, TopologyLevel};
use crate::pci::PciBusId;
use nvml_wrapper::Device;
use nvml_wrapper::enum_wrappers::device::{
    P2pCapabilitiesIndex, P2pStatus, TopologyLevel as NvmlTopologyLevel,
};

/// nvml.h: NVML_NVLINK_MAX_LINKS.
const MAX_NVLINKS: u32 = 18;
/// Words of an affinity mask: 64 of 64 bits hold 4,096 cores.
const MASK_WORDS: usize = 64;

/// How the given GPUs are joined, for each pair once.
pub(super) fn between(devices: &[(u32, &Device<'static>)]) -> Vec<Link> {
    let remote: Vec<Vec<PciBusId>> = devices
        .iter()
        .map(|(_, device)| direct_neighbours(device))
        .collect();
    let own: Vec<Option<PciBusId>> = devices.iter().map(|(_, device)| bus_id(device)).collect();
    let mut links = Vec::new();
    for high in 0..devices.len() {
        for low in 0..high {
            let (a, b) = (devices[low].1, devices[high].1);
            let direct = remote[low]
                .iter()
                .filter(|&&neighbour| Some(neighbour) == own[high])
                .count() as u32;
            let switched = || {
                matches!(
                    a.p2p_status(b, P2pCapabilitiesIndex::NvLink),
                    Ok(P2pStatus::Ok)
                ) as u32
            };
            links.push(Link {
                gpus: (devices[low].0, devices[high].0),
                nvlinks: if direct > 0 { direct } else { switched() },
                ancestor: ancestor(a, b),
            });
        }
    }
    links
}

fn bus_id(device: &Device) -> Option<PciBusId> {
    device
        .pci_info()
        .ok()
        .and_then(|pci| PciBusId::parse(&pci.bus_id))
}

/// What its active NVLinks lead to: GPUs, or NVSwitches.
fn direct_neighbours(device: &Device) -> Vec<PciBusId> {
    let links = (0..MAX_NVLINKS).map(|link| device.link_wrapper_for(link));
    // Link numbers beyond the last one are invalid, and GPUs without NVLink have none.
    let active = links.map_while(|link| link.is_active().ok().map(|active| (link, active)));
    active
        .filter(|(_, active)| *active)
        .filter_map(|(link, _)| PciBusId::parse(&link.remote_pci_info().ok()?.bus_id))
        .collect()
}

fn ancestor(a: &Device, b: &Device<'static>) -> Option<TopologyLevel> {
    // SAFETY: `b`'s own handle and library; nvml-wrapper takes a Device by value and has no Clone.
    let b = unsafe { Device::new(b.handle(), b.nvml()) };
    Some(match a.topology_common_ancestor(b).ok()? {
        NvmlTopologyLevel::Internal => TopologyLevel::Internal,
        NvmlTopologyLevel::Single => TopologyLevel::Single,
        NvmlTopologyLevel::Multiple => TopologyLevel::Multiple,
        NvmlTopologyLevel::HostBridge => TopologyLevel::Hostbridge,
        NvmlTopologyLevel::Node => TopologyLevel::Node,
        NvmlTopologyLevel::System => TopologyLevel::System,
    })
}

/// The CPU cores that NVML calls ideal for the GPU.
pub(super) fn cpu_affinity(device: &Device<'static>) -> Vec<usize> {
    let Ok(mask) = device.cpu_affinity(MASK_WORDS) else {
        return Vec::new();
    };
    let bits = mask.len() * u64::BITS as usize;
    (0..bits)
        .filter(|core| mask[core / 64] >> (core % 64) & 1 == 1)
        .collect()
}
