//! The pure functions: choosing, and reading what nvidia-smi prints.

use crate::report::{Measure, Report};
use crate::timing::call;
use autocvd::gpu::{
    ComputeMode, Gpu, Link, Memory, ProcessView, Snapshot, Source, TopologyLevel, Utilization,
};
use autocvd::select::{Constraints, select};
use autocvd::{PciBusId, probe};

pub(crate) fn measure(report: &mut Report) {
    report.section("Choosing among idle GPUs (library)");
    for gpus in [8, 16, 64] {
        let snapshot = machine(gpus);
        for num_gpus in [1, 4] {
            let constraints = Constraints {
                num_gpus,
                least_used: false,
                min_free_memory: None,
                devices: snapshot.device_ids(),
            };
            report.row(
                &format!("{num_gpus} of {gpus}"),
                Measure::Time(call(|| select(&snapshot, &constraints))),
            );
        }
    }
    report.section("Parsing (library)");
    for (name, xml) in [
        (
            "nvidia-smi -q -x of 1 GPU, driver 535",
            &include_bytes!("../tests/fixtures/smi/535.xml")[..],
        ),
        (
            "nvidia-smi -q -x with MIG devices, driver 510",
            &include_bytes!("../tests/fixtures/smi/mig.xml")[..],
        ),
    ] {
        let remark = format!("{} bytes", xml.len());
        report.row_with(
            name,
            Measure::Time(call(|| probe::smi::parse(xml))),
            &remark,
        );
    }
    let json = probe::file::to_json(&machine(8));
    let remark = format!("{} bytes", json.len());
    report.row_with(
        "status --json of 8 GPUs",
        Measure::Time(call(|| probe::file::parse(&json))),
        &remark,
    );
}

/// Idle GPUs, in groups of four that are connected best.
fn machine(gpus: u32) -> Snapshot {
    let gpu = |index| Gpu {
        index,
        uuid: Some(format!("GPU-{index:08x}-0000-0000-0000-000000000000")),
        pci_bus_id: PciBusId::parse(&format!("00000000:{:02X}:00.0", index + 1)),
        memory: Memory {
            total: Some(80 << 30),
            used: Some(0),
            free: Some(80 << 30),
        },
        utilization: Utilization {
            gpu: Some(0),
            memory: Some(0),
        },
        compute_mode: Some(ComputeMode::Default),
        processes: Some(Vec::new()),
        ..Gpu::default()
    };
    let pairs = (0..gpus).flat_map(|one| (one + 1..gpus).map(move |other| (one, other)));
    let link = |pair: (u32, u32)| {
        let near = pair.0 / 4 == pair.1 / 4;
        let ancestor = if near {
            TopologyLevel::Single
        } else {
            TopologyLevel::System
        };
        Link {
            gpus: pair,
            nvlinks: if near { 4 } else { 0 },
            ancestor: Some(ancestor),
        }
    };
    Snapshot {
        source: Source::Nvml,
        driver_version: None,
        process_view: ProcessView::Host,
        gpus: (0..gpus).map(gpu).collect(),
        links: pairs.map(link).collect(),
    }
}
