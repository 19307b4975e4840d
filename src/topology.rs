//! How the GPUs are joined, kept from one launch to the next: it takes dozens of driver calls to
//! ask, and changes with the machine or the driver alone.
//!
//! A text in the directory of claims, which is believed of this user and of root alone. Its first
//! line names the boot and the driver. Each other line has a pair: two UUIDs, the number of
//! NVLinks, and the number of the common ancestor or `-`.

use crate::claim::ClaimStore;
use crate::gpu::{Gpu, Link, Snapshot, TopologyLevel};
use crate::policy::LINKS_LAST;
use crate::probe::Probe;
use crate::proc;
use std::collections::HashSet;
use std::fmt::Write as _;

/// The kept text, without the user's number.
const NAME: &str = "links";
/// The levels by their numbers.
const LEVELS: [TopologyLevel; 6] = [
    TopologyLevel::Internal,
    TopologyLevel::Single,
    TopologyLevel::Multiple,
    TopologyLevel::Hostbridge,
    TopologyLevel::Node,
    TopologyLevel::System,
];

/// What is kept of these GPUs, by their positions; `None` where of one of them nothing is.
pub(crate) fn kept(
    claims: &ClaimStore,
    probe: &mut dyn Probe,
    snapshot: &Snapshot,
    gpus: &[usize],
) -> Option<Vec<Link>> {
    let text = claims.kept_text(NAME, LINKS_LAST)?;
    parse(&text, &header(probe)?, snapshot, gpus)
}

/// Asks the driver how all GPUs are joined, and keeps it for the next launches.
pub(crate) fn ask(
    claims: Option<&ClaimStore>,
    probe: &mut dyn Probe,
    snapshot: &Snapshot,
) -> Vec<Link> {
    let all: Vec<u32> = snapshot.gpus.iter().map(|gpu| gpu.index).collect();
    let links = probe.links(&all);
    let claims = claims.filter(|_| !links.is_empty());
    if let Some((claims, header)) = claims.and_then(|claims| Some((claims, header(probe)?))) {
        claims.keep_text(NAME, &to_text(&header, snapshot, &links));
    }
    links
}

/// What links are kept for: this boot with this driver.
fn header(probe: &mut dyn Probe) -> Option<String> {
    let driver = probe.driver_version()?;
    let boot = proc::boot_id();
    (!boot.is_empty()).then(|| format!("{boot} {driver}"))
}

fn to_text(header: &str, snapshot: &Snapshot, links: &[Link]) -> String {
    let uuid = |index: u32| {
        let gpu = snapshot.gpus.iter().find(|gpu| gpu.index == index);
        gpu.and_then(|gpu| gpu.uuid.as_deref())
    };
    let mut text = format!("{header}\n");
    for link in links {
        let (Some(one), Some(other)) = (uuid(link.gpus.0), uuid(link.gpus.1)) else {
            continue;
        };
        let ancestor = link
            .ancestor
            .and_then(|level| LEVELS.iter().position(|known| *known == level))
            .map_or_else(|| "-".to_owned(), |number| number.to_string());
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{one} {other} {} {ancestor}", link.nvlinks);
    }
    text
}

/// The links of this machine that the text tells of; `None` where it is about another boot, or
/// tells nothing of one of the GPUs that are `needed`.
fn parse(text: &str, header: &str, snapshot: &Snapshot, needed: &[usize]) -> Option<Vec<Link>> {
    let mut lines = text.lines();
    if lines.next()? != header {
        return None;
    }
    let known = |uuid: &str| {
        let is_it = |gpu: &&Gpu| gpu.uuid.as_deref() == Some(uuid);
        snapshot.gpus.iter().find(is_it).map(|gpu| gpu.index)
    };
    let mut links = Vec::new();
    let mut told = HashSet::new();
    for line in lines {
        let mut words = line.split(' ');
        let (one, other) = (words.next()?, words.next()?);
        let nvlinks = words.next()?.parse().ok()?;
        let ancestor = match words.next()? {
            "-" => None,
            number => Some(*LEVELS.get(number.parse::<usize>().ok()?)?),
        };
        let (Some(one), Some(other)) = (known(one), known(other)) else {
            continue;
        };
        told.extend([one, other]);
        links.push(Link {
            gpus: (one.min(other), one.max(other)),
            nvlinks,
            ancestor,
        });
    }
    let is_told = |gpu: &usize| told.contains(&snapshot.gpus[*gpu].index);
    needed.iter().all(is_told).then_some(links)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::{ProcessView, Source};

    fn machine(uuids: &[&str]) -> Snapshot {
        let gpu = |(index, uuid): (u32, &&str)| Gpu {
            index,
            uuid: Some((*uuid).to_owned()),
            ..Gpu::default()
        };
        Snapshot {
            source: Source::Nvml,
            driver_version: None,
            process_view: ProcessView::Host,
            gpus: (0..).zip(uuids).map(gpu).collect(),
            links: Vec::new(),
            waiting: Vec::new(),
            recording: None,
        }
    }

    #[test]
    fn what_is_kept_is_read_back_for_the_same_boot_and_known_gpus() {
        let link = |one, other, nvlinks, ancestor| Link {
            gpus: (one, other),
            nvlinks,
            ancestor,
        };
        let links = [
            link(0, 1, 4, Some(TopologyLevel::Node)),
            link(0, 2, 0, None),
            link(1, 2, 0, Some(TopologyLevel::System)),
        ];
        let before = machine(&["GPU-a", "GPU-b", "GPU-c"]);
        let text = to_text("boot 580", &before, &links);
        assert_eq!(
            parse(&text, "boot 580", &before, &[0, 1, 2]).as_deref(),
            Some(&links[..])
        );
        assert_eq!(parse(&text, "boot 590", &before, &[0]), None);
        // One GPU has gone, and so the others are counted anew.
        let now = machine(&["GPU-b", "GPU-c"]);
        let left = [link(0, 1, 0, Some(TopologyLevel::System))];
        assert_eq!(
            parse(&text, "boot 580", &now, &[0, 1]).as_deref(),
            Some(&left[..])
        );
        // Of a new one nothing is kept.
        let now = machine(&["GPU-a", "GPU-b", "GPU-d"]);
        assert_eq!(parse(&text, "boot 580", &now, &[0, 2]), None);
    }

    #[test]
    fn what_cannot_be_read_is_nothing() {
        let machine = machine(&["GPU-a", "GPU-b"]);
        for line in [
            "",
            "GPU-a",
            "GPU-a GPU-b",
            "GPU-a GPU-b -1 0",
            "GPU-a GPU-b 1 6",
            "GPU-a GPU-b 1 x",
        ] {
            let text = format!("boot 580\n{line}\n");
            assert_eq!(parse(&text, "boot 580", &machine, &[0]), None, "{line}");
        }
        assert_eq!(parse("", "boot 580", &machine, &[]), None);
    }
}
