//! What NVML tells of a GPU's place in the machine: the GPUs it is joined to, the CPU cores near
//! it.

use crate::gpu::{Link, TopologyLevel};
use crate::pci::PciBusId;
use nvml_wrapper::Device;
use nvml_wrapper::enum_wrappers::device::{
    P2pCapabilitiesIndex, P2pStatus, TopologyLevel as NvmlTopologyLevel,
};

/// nvml.h: NVML_NVLINK_MAX_LINKS, as of 13.5.
const MAX_NVLINKS: u32 = 36;
/// Words of an affinity mask: 64 of 64 bits hold 4,096 cores.
const MASK_WORDS: usize = 64;

/// A GPU whose links are asked for.
pub(super) struct Linked<'a> {
    pub(super) index: u32,
    pub(super) device: &'a Device<'static>,
    pub(super) bus_id: Option<PciBusId>,
}

/// What a GPU's NVLinks lead to.
struct Reach {
    /// The GPUs, each as often as a link leads to it.
    gpus: Vec<PciBusId>,
    /// Whether they lead to switches, which join all that lead to them.
    switch: bool,
}

/// How the given GPUs are joined, for each pair once. `all` are the places of all GPUs: a link that
/// leads elsewhere leads to a switch.
pub(super) fn between(devices: &[Linked], all: &[PciBusId]) -> Vec<Link> {
    let reach: Vec<Reach> = devices
        .iter()
        .map(|linked| reach(linked.device, all))
        .collect();
    let mut links = Vec::new();
    for high in 0..devices.len() {
        for low in 0..high {
            let (a, b) = (&devices[low], &devices[high]);
            let leads_to_b = |place: &&PciBusId| Some(**place) == b.bus_id;
            let direct = reach[low].gpus.iter().filter(leads_to_b).count() as u32;
            let switched = || {
                let p2p = || a.device.p2p_status(b.device, P2pCapabilitiesIndex::NvLink);
                let both = reach[low].switch && reach[high].switch;
                both && matches!(p2p(), Ok(P2pStatus::Ok))
            };
            links.push(Link {
                gpus: (a.index, b.index),
                nvlinks: if direct > 0 {
                    direct
                } else {
                    switched().into()
                },
                ancestor: ancestor(a.device, b.device),
            });
        }
    }
    links
}

/// What its active NVLinks lead to. Where the first leads to a switch, all do.
fn reach(device: &Device, all: &[PciBusId]) -> Reach {
    let mut reach = Reach {
        gpus: Vec::new(),
        switch: false,
    };
    for link in (0..MAX_NVLINKS).map(|link| device.link_wrapper_for(link)) {
        // Link numbers beyond the last one are invalid, and GPUs without NVLink have none.
        let Ok(is_active) = link.is_active() else {
            break;
        };
        let remote = is_active.then(|| link.remote_pci_info().ok()).flatten();
        match remote.and_then(|pci| PciBusId::parse(&pci.bus_id)) {
            Some(place) if all.contains(&place) => reach.gpus.push(place),
            Some(_) => {
                reach.switch = true;
                break;
            }
            None => {}
        }
    }
    reach
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
