use super::{ListedMigDevice, NOT_APPLICABLE, bare, bytes, parse, parse_list, percent};
use crate::gpu::{
    ComputeMode, Fact, Gpu, Health, Memory, Mig, Process, ProcessKind, Snapshot, Source,
    Utilization,
};
use crate::pci::PciBusId;
use proptest::prelude::*;
use proptest::sample::Index;

macro_rules! fixture {
    ($name:literal) => {
        include_bytes!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/fixtures/smi/",
            $name
        ))
        .as_slice()
    };
}

const ALL: [(&str, &[u8]); 15] = [
    ("418", fixture!("418.xml")),
    ("470", fixture!("470.xml")),
    ("515", fixture!("515.xml")),
    ("535", fixture!("535.xml")),
    ("550", fixture!("550.xml")),
    ("580", fixture!("580.xml")),
    ("590", fixture!("590.xml")),
    ("mig", fixture!("mig.xml")),
    ("mig-460-container", fixture!("mig-460-container.xml")),
    ("permissions", fixture!("permissions.xml")),
    ("lost", fixture!("lost.xml")),
    ("inforom", fixture!("inforom.xml")),
    ("empty", fixture!("empty.xml")),
    ("wsl", fixture!("wsl.xml")),
    ("raw-names", fixture!("raw-names.xml")),
];

fn read(xml: &[u8]) -> Snapshot {
    parse(xml).expect("a whole document")
}

/// A fixture with one text replaced by another.
fn edited(xml: &[u8], from: &str, to: &str) -> Vec<u8> {
    let text = std::str::from_utf8(xml).expect("UTF-8");
    assert!(text.contains(from), "there is no {from}");
    text.replacen(from, to, 1).into_bytes()
}

fn process(pid: u32, kind: ProcessKind, command: &str, mib: u64) -> Process {
    Process {
        pid,
        kind,
        user: None,
        command: Some(command.into()),
        used_memory: Some(mib << 20),
        started: None,
        ignored: false,
        in_share: false,
    }
}

fn memory(total: u64, used: u64, free: u64) -> Memory {
    Memory {
        total: Fact::Value(total << 20),
        used: Fact::Value(used << 20),
        free: Fact::Value(free << 20),
    }
}

fn without_utilization() -> Utilization {
    Utilization {
        gpu: Fact::NotApplicable,
        memory: Fact::NotApplicable,
    }
}

#[test]
fn everything_that_is_known_of_a_gpu_is_read() {
    let snapshot = read(fixture!("418.xml"));
    assert_eq!(
        (snapshot.source, snapshot.links.len()),
        (Source::NvidiaSmi, 0)
    );
    assert_eq!(snapshot.driver_version.as_deref(), Some("418.43"));
    let expected = Gpu {
        index: 0,
        uuid: Some("GPU-aaaaaaaa-1111-2222-3333-444455556666".into()),
        pci_bus_id: PciBusId::parse("00000000:17:00.0"),
        name: Some("Tesla V100-PCIE-16GB".into()),
        memory: memory(16130, 1031, 15099),
        utilization: Utilization {
            gpu: Fact::Value(97),
            memory: Fact::Value(30),
        },
        compute_mode: Fact::Value(ComputeMode::Default),
        processes: Fact::Value(vec![process(4021, ProcessKind::Compute, "python", 1021)]),
        minor_number: Some(0),
        ..Gpu::default()
    };
    assert_eq!(snapshot.gpus[0], expected);
    assert_eq!(snapshot.gpus[1].processes, Fact::Value(vec![]));
    assert_eq!(snapshot.gpus[1].index, 1);
}

#[test]
fn every_generation_of_the_driver_is_read() {
    for (name, xml) in ALL {
        let snapshot = parse(xml).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(snapshot.driver_version.is_some(), "{name}");
        for gpu in &snapshot.gpus {
            let missing = [
                gpu.uuid.is_none(),
                gpu.pci_bus_id.is_none(),
                gpu.name.is_none(),
            ];
            assert_eq!(missing, [false; 3], "{name}");
        }
    }
}

#[test]
fn process_types_are_told_apart() {
    use ProcessKind::{Compute, ComputeGraphics, Graphics, MpsCompute};
    let kinds = |xml: &[u8]| -> Vec<_> {
        let gpus = read(xml).gpus;
        gpus.iter()
            .flat_map(|gpu| gpu.processes.items().iter().map(|process| process.kind))
            .collect()
    };
    assert_eq!(kinds(fixture!("470.xml")), [Graphics, Graphics]);
    assert_eq!(kinds(fixture!("535.xml")), [Graphics, ComputeGraphics]);
    assert_eq!(
        kinds(fixture!("550.xml")),
        [Compute, MpsCompute, MpsCompute]
    );
    // O, another one to come, or none at all.
    for kind in ["<type>O</type>", "<type>Q+Z</type>", "<type>N/A</type>", ""] {
        assert_eq!(
            kinds(&edited(fixture!("590.xml"), "<type>C</type>", kind)),
            [Compute],
            "{kind}"
        );
    }
}

#[test]
fn processes_that_have_ended_are_not_counted() {
    let processes = read(fixture!("515.xml")).gpus.remove(0).processes;
    assert_eq!(
        processes
            .items()
            .iter()
            .map(|process| process.pid)
            .collect::<Vec<_>>(),
        [675, 5762]
    );
}

#[test]
fn compute_modes_are_read() {
    let modes = |xml: &[u8]| {
        read(xml)
            .gpus
            .iter()
            .map(|gpu| gpu.compute_mode.value())
            .collect::<Vec<_>>()
    };
    let exclusive = Some(ComputeMode::ExclusiveProcess);
    assert_eq!(
        modes(fixture!("550.xml")),
        [exclusive, Some(ComputeMode::Prohibited)]
    );
    let xml = edited(
        fixture!("550.xml"),
        "Exclusive_Process",
        "Exclusive Process",
    );
    assert_eq!(modes(&xml)[0], exclusive);
    assert_eq!(modes(&edited(&xml, "Exclusive Process", "[N/A]"))[0], None);
}

#[test]
fn memory_on_a_numa_node_is_known_by_its_addressing_mode() {
    assert!(
        read(fixture!("580.xml"))
            .gpus
            .iter()
            .all(|gpu| gpu.memory_is_numa_node)
    );
    assert!(
        read(fixture!("590.xml"))
            .gpus
            .iter()
            .all(|gpu| !gpu.memory_is_numa_node),
        "HMM"
    );
}

#[test]
fn a_gpu_is_not_mistaken_for_its_mig_devices() {
    let gpus = read(fixture!("mig.xml")).gpus;
    assert_eq!(gpus[0].memory, memory(40960, 3043, 37310));
    assert_eq!(gpus[0].utilization, without_utilization());
    let busy = vec![process(31337, ProcessKind::Compute, "python", 3005)];
    assert_eq!(gpus[0].processes.items(), busy);
    let devices = &gpus[0].mig.as_ref().expect("MIG").devices;
    let ids = |d: &crate::gpu::MigDevice| (d.index, d.gpu_instance_id, d.compute_instance_id);
    assert_eq!(
        devices.iter().map(ids).collect::<Vec<_>>(),
        [(0, Some(1), Some(0)), (1, Some(2), Some(0))]
    );
    assert_eq!(devices[0].memory, memory(19968, 3024, 16943));
    assert_eq!(
        (&devices[0].processes, &devices[1].processes),
        (&Fact::Value(busy), &Fact::Value(vec![]))
    );
    assert_eq!(devices[0].uuid, None, "no version tells");
    assert_eq!(
        (&gpus[1].mig, &gpus[1].processes),
        (&None, &Fact::Value(vec![]))
    );
}

#[test]
fn a_process_that_may_be_on_any_mig_device_leaves_all_their_lists_unknown() {
    let lists = |xml: &[u8]| -> Vec<_> {
        let mig = read(xml).gpus.swap_remove(0).mig.expect("MIG");
        mig.devices
            .into_iter()
            .map(|device| device.processes.value().map(|list| list.len()))
            .collect()
    };
    let row = "<gpu_instance_id>1</gpu_instance_id>\n\t\t\t\t\
        <compute_instance_id>0</compute_instance_id>\n\t\t\t\t<pid>";
    let with = |gi, ci| {
        let ids = format!(
            "<gpu_instance_id>{gi}</gpu_instance_id>\
             <compute_instance_id>{ci}</compute_instance_id><pid>"
        );
        lists(&edited(fixture!("mig.xml"), row, &ids))
    };
    assert_eq!(with("2", "0"), [Some(0), Some(1)]);
    assert_eq!(with("N/A", "N/A"), [None, None]);
    assert_eq!(with("1", "N/A"), [None, Some(0)]);
    assert_eq!(
        with("7", "0"),
        [None, None],
        "on a device that is not there"
    );
}

#[test]
fn a_mig_gpu_that_may_not_be_asked_is_unknown_but_its_device_is_read() {
    let gpu = read(fixture!("mig-460-container.xml")).gpus.remove(0);
    assert_eq!(
        (gpu.memory, gpu.processes, gpu.unusable),
        (Memory::default(), Fact::Unknown, None)
    );
    let device = &gpu.mig.expect("MIG").devices[0];
    assert_eq!(
        (device.memory, &device.processes),
        (memory(4864, 3, 4861), &Fact::Unknown)
    );
}

#[test]
fn mig_without_devices_is_still_mig() {
    let xml = edited(
        fixture!("590.xml"),
        "<current_mig>N/A",
        "<current_mig>Enabled",
    );
    assert_eq!(read(&xml).gpus[0].mig, Some(Mig::default()));
}

#[test]
fn mig_devices_without_numbers_are_counted() {
    let xml = edited(fixture!("mig.xml"), "<index>1</index>", "<index>0</index>");
    let devices = read(&xml).gpus.swap_remove(0).mig.expect("MIG").devices;
    assert_eq!(
        devices
            .iter()
            .map(|device| device.index)
            .collect::<Vec<_>>(),
        [0, 1]
    );
}

#[test]
fn what_may_not_be_read_is_unknown_never_zero() {
    let gpus = read(fixture!("permissions.xml")).gpus;
    assert_eq!(
        (&gpus[0].processes, gpus[0].utilization),
        (&Fact::Unknown, without_utilization())
    );
    assert_eq!(gpus[1].utilization, Utilization::default());
    assert_eq!(
        gpus[1].unusable, None,
        "an error in one metric does not make it unusable"
    );
    let unnamed = |pid| Process {
        pid,
        kind: ProcessKind::Compute,
        user: None,
        command: None,
        used_memory: None,
        started: None,
        ignored: false,
        in_share: false,
    };
    assert_eq!(
        gpus[1].processes,
        Fact::Value(vec![unnamed(8125), unnamed(8126)])
    );
}

#[test]
fn every_token_for_an_absent_value_is_no_value() {
    let tokens = [
        "N/A",
        "[N/A]",
        "[Not Supported]",
        "[Unknown Error]",
        "[Insufficient Permissions]",
        "Insufficient Permissions",
        "ERR!",
        "Requested functionality has been deprecated",
        "",
        " ",
        "Something else",
        "-1 MiB",
        "99999999999999999999 MiB",
        "65720",
    ];
    for token in tokens {
        let applies_not = NOT_APPLICABLE.contains(&bare(token));
        let xml = edited(
            fixture!("590.xml"),
            "<used>65720 MiB</used>",
            &format!("<used>{token}</used>"),
        );
        let used = read(&xml).gpus[0].memory.used;
        assert_eq!(used.value(), None, "{token:?}");
        assert_eq!(used.is_not_applicable(), applies_not, "{token:?}");
        let xml = edited(
            fixture!("590.xml"),
            "<used_memory>65710 MiB<",
            &format!("<used_memory>{token}<"),
        );
        assert_eq!(
            read(&xml).gpus[0].processes.items()[0].used_memory,
            None,
            "{token:?}"
        );
        let xml = edited(
            fixture!("590.xml"),
            "<gpu_util>0 %<",
            &format!("<gpu_util>{token}<"),
        );
        let utilization = read(&xml).gpus[0].utilization.gpu;
        assert_eq!(utilization.value(), None, "{token:?}");
        assert_eq!(utilization.is_not_applicable(), applies_not, "{token:?}");
        if token.parse::<u32>().is_err() {
            let xml = edited(
                fixture!("590.xml"),
                "<pid>116860<",
                &format!("<pid>{token}<"),
            );
            assert_eq!(read(&xml).gpus[0].processes, Fact::Unknown, "{token:?}");
        }
    }
}

#[test]
fn a_list_is_unknown_unless_all_of_it_is_understood() {
    let list = |from: &str, to: &str| {
        read(&edited(fixture!("590.xml"), from, to))
            .gpus
            .remove(0)
            .processes
            .value()
    };
    assert_eq!(list("<pid>116860</pid>", ""), None, "no pid");
    assert_eq!(
        list("<pid>116860</pid>", "<pid>0</pid>"),
        None,
        "no process has that pid"
    );
    assert_eq!(
        list("<pid>116860</pid>", "<pid>1</pid><pid>2</pid>"),
        None,
        "two pids"
    );
    assert_eq!(
        list("<processes>", "<processes>N/A"),
        None,
        "text beside it"
    );
    assert_eq!(
        list("<processes>", "<processes><what/>"),
        None,
        "an unknown element in it"
    );
    assert_eq!(
        list("<processes>", "<processes/><processes>"),
        None,
        "two lists"
    );
    assert_eq!(
        list("<process_info>", "<process_info>?"),
        None,
        "text beside the values"
    );
    let other = edited(fixture!("590.xml"), "<process_info>", "<other_info>");
    let other = edited(&other, "</process_info>", "</other_info>");
    assert_eq!(
        read(&other).gpus[0].processes.as_ref().value(),
        None,
        "a process by another name"
    );
    let start = "<processes>\n\t\t\t<process_info>";
    assert_eq!(
        list(start, "<no/><processes>\n\t\t\t<process_info>").map(|list| list.len()),
        Some(1)
    );
    let idle = fixture!("inforom.xml");
    let list = |to: &str| {
        read(&edited(idle, "<processes>\n\t\t</processes>", to))
            .gpus
            .remove(0)
            .processes
            .value()
    };
    assert_eq!(list("<processes></processes>"), Some(vec![]));
    assert_eq!(list("<processes/>"), Some(vec![]));
    for text in [
        "N/A",
        "None",
        "[Not Supported]",
        "Insufficient Permissions",
        "[Insufficient Permissions]",
    ] {
        assert_eq!(
            list(&format!("<processes>{text}</processes>")),
            None,
            "{text}"
        );
    }
    assert_eq!(list(""), None, "no list at all");
}

#[test]
fn a_lost_gpu_is_unavailable_and_the_others_serve() {
    let gpus = read(fixture!("lost.xml")).gpus;
    let unusable: Vec<_> = gpus.iter().map(|gpu| gpu.unusable.is_some()).collect();
    assert_eq!(unusable, [false, true, false]);
    assert_eq!(
        gpus.iter().map(|gpu| gpu.index).collect::<Vec<_>>(),
        [0, 1, 2]
    );
    // nvidia-smi prints an empty list for it.
    assert_eq!(gpus[1].processes, Fact::Unknown);
    assert_eq!(gpus[1].memory, Memory::default());
    let reason = gpus[1].unusable.as_deref().expect("a reason");
    assert!(
        reason.contains("lost") && reason.contains("reboot"),
        "{reason}"
    );
}

#[test]
fn what_makes_a_gpu_unusable_says_what_helps() {
    let state = |xml: &[u8], from: &str, to: &str| {
        let gpu = read(&edited(xml, from, to)).gpus.remove(0);
        assert!(
            gpu.unusable.is_none() || gpu.processes.is_unknown(),
            "what it runs is unknown"
        );
        gpu.unusable.unwrap_or_default()
    };
    let new = fixture!("590.xml");
    for (action, expected) in [
        ("Reset", "--gpu-reset"),
        ("Reboot", "reboot"),
        ("Drain and Reset", "--gpu-reset"),
        ("Something new", "nvidia-smi -q"),
        ("Drain P2P", ""),
        ("N/A", ""),
    ] {
        let action = format!("<gpu_recovery_action>{action}<");
        let gpu = read(&edited(new, "<gpu_recovery_action>None<", &action))
            .gpus
            .remove(0);
        let fault = gpu.health.and_then(Health::fault).unwrap_or_default();
        assert!(
            fault.contains(expected) && fault.is_empty() == expected.is_empty(),
            "{fault}"
        );
        assert_eq!(gpu.state, None, "what it runs is told");
    }
    assert!(
        state(
            fixture!("535.xml"),
            "<reset_required>No<",
            "<reset_required>Yes<"
        )
        .contains("--gpu-reset")
    );
    assert!(
        state(new, "<gpu_temp>36 C<", "<gpu_temp>[GPU requires reset]<").contains("--gpu-reset")
    );
    assert!(state(new, "<gpu_temp>36 C<", "<gpu_temp>[GPU is lost]<").contains("lost"));
    let total = "<total>97887 MiB<";
    assert_eq!(state(new, total, "<total>[Unknown Error]<"), "");
    let uuid = "<uuid>GPU-77777777-1111-2222-3333-444455556666<";
    assert!(state(new, uuid, "<uuid>Unknown Error<").contains("Unknown Error"));
    assert!(state(new, uuid, "<uuid>[Insufficient Permissions]<").contains("not permitted"));
    // What a process calls itself proves nothing.
    assert_eq!(state(new, "/opt/llama/bin/llama-server", "GPU is lost"), "");
    assert_eq!(
        state(new, "<gpu_temp>36 C<", "<gpu_temp>ERR!<"),
        "",
        "a sensor"
    );
}

#[test]
fn a_lost_gpu_takes_its_mig_devices_with_it() {
    let gpu = read(&edited(
        fixture!("mig.xml"),
        "<gpu_temp>36 C<",
        "<gpu_temp>GPU is lost<",
    ))
    .gpus
    .remove(0);
    for device in gpu.mig.expect("MIG").devices {
        assert_eq!(
            (device.unusable.is_some(), device.processes),
            (true, Fact::Unknown)
        );
    }
}

#[test]
fn under_wsl_only_a_computing_process_makes_a_list_known() {
    assert_eq!(
        read(fixture!("wsl.xml"))
            .gpus
            .iter()
            .filter(|gpu| gpu.processes.as_ref().value().is_some())
            .count(),
        0
    );
    let gpus = read(&edited(fixture!("wsl.xml"), "<type>G<", "<type>C<")).gpus;
    assert_eq!(
        gpus.iter()
            .filter(|gpu| gpu.processes.as_ref().value().is_some())
            .count(),
        1
    );
}

#[test]
fn a_warning_around_the_document_is_passed_over() {
    assert_eq!(read(fixture!("inforom.xml")).gpus.len(), 1);
    let before = [
        b"WARNING: infoROM is corrupted at gpu 0000:00:1E.0\n",
        fixture!("inforom.xml"),
    ]
    .concat();
    assert_eq!(read(&before).gpus.len(), 1);
}

#[test]
fn a_machine_without_gpus_is_empty() {
    assert_eq!(read(fixture!("empty.xml")).gpus, []);
}

#[test]
fn a_gpu_that_is_counted_but_not_described_is_an_error() {
    for count in ["1", "3", "0", "N/A", "", "-2"] {
        let xml = edited(
            fixture!("418.xml"),
            "<attached_gpus>2<",
            &format!("<attached_gpus>{count}<"),
        );
        assert!(parse(&xml).is_err(), "{count:?}");
    }
    let error = parse(&edited(
        fixture!("418.xml"),
        "<attached_gpus>2<",
        "<attached_gpus>3<",
    ));
    assert!(
        error.is_err_and(
            |error| error.contains("3 GPUs but describes 2") && error.contains("reboot")
        )
    );
}

#[test]
fn indices_follow_the_pci_bus() {
    let xml = edited(
        fixture!("418.xml"),
        "<pci_bus_id>00000000:17:00.0<",
        "<pci_bus_id>00010000:17:00.0<",
    );
    let gpus = read(&xml).gpus;
    assert_eq!(
        gpus[0].pci_bus_id.map(|id| id.to_string()).as_deref(),
        Some("00000000:65:00.0")
    );
    assert_eq!(
        gpus[1].pci_bus_id.map(|id| id.to_string()).as_deref(),
        Some("00010000:17:00.0")
    );
    assert_eq!((gpus[0].index, gpus[1].index), (0, 1));
    // Without it the attribute serves; without either, the order of the document.
    let xml = edited(&xml, "<pci_bus_id>00010000:17:00.0<", "<pci_bus_id>N/A<");
    assert_eq!(
        read(&xml).gpus[0]
            .pci_bus_id
            .map(|id| id.to_string())
            .as_deref(),
        Some("00000000:17:00.0")
    );
    let xml = edited(
        &edited(&xml, " id=\"00000000:17:00.0\"", ""),
        "00000000:65:00.0",
        "00000000:01:00.0",
    );
    let gpus = read(&xml).gpus;
    assert_eq!(
        (
            gpus[0].pci_bus_id.map(|id| id.to_string()).as_deref(),
            gpus[0].name.as_deref()
        ),
        (None, Some("Tesla V100-PCIE-16GB"))
    );
}

#[test]
fn names_that_are_not_xml_are_read() {
    let processes = read(fixture!("raw-names.xml")).gpus.remove(0).processes;
    let names: Vec<_> = processes
        .items()
        .iter()
        .map(|process| (process.pid, process.command.as_deref()))
        .collect();
    let expected = [
        (101, Some("\u{FFFD}\u{FFFD}\u{1}\u{FFFD}")),
        (102, Some("sh -c a && b < c > d; echo \"&\"")),
        (103, Some("<script>alert(1)</script>")),
        (104, Some("two\nlines")),
        (105, None),
    ];
    assert_eq!(names, expected);
}

#[test]
fn a_name_that_imitates_the_document_cannot_free_the_gpu() {
    let names = [
        "</process_name>",
        "<!--",
        "<![CDATA[",
        "<?",
        "</process_name></process_info></processes><processes>",
        "</process_name></process_info></processes></gpu></nvidia_smi_log>",
        "</process_name><used_memory>0</used_memory></process_info></processes>\
         <processes><process_info><process_name>",
        "</process_name></process_info></processes><x><y><process_name>",
        "&nothing;",
        "&",
        "<process_info>",
    ];
    for name in names {
        let xml = edited(fixture!("590.xml"), "/opt/llama/bin/llama-server", name);
        if let Ok(snapshot) = parse(&xml) {
            let list = snapshot.gpus[0].processes.as_ref().value();
            assert!(
                list.is_none_or(|list| list.iter().any(|process| process.pid == 116_860)),
                "{name}"
            );
        }
    }
}

#[test]
fn what_nvidia_smi_does_not_write_is_refused() {
    for (from, to) in [
        ("<processes>", "<processes><!-- -->"),
        ("<pci>", "<pci><![CDATA[x]]>"),
        ("<pci>", "<pci><?x?>"),
        (
            "</nvidia_smi_log>",
            "</nvidia_smi_log><nvidia_smi_log></nvidia_smi_log>",
        ),
        ("<pci>", "<pci>&lol;"),
        ("<nvidia_smi_log>", "<nvidia_smi_logs>"),
        ("</gpu>", ""),
        ("</gpu>", "</GPU>"),
        ("<processes>", "<processes/>/processes><processes>"),
        ("<driver_version>", "driver_version><driver_version>"),
    ] {
        assert!(
            parse(&edited(fixture!("590.xml"), from, to)).is_err(),
            "{from} to {to}"
        );
    }
    for text in [
        "",
        "No devices were found\n",
        "<html></html>",
        "<nvidia_smi_log/>",
        "\u{FEFF}",
    ] {
        assert!(parse(text.as_bytes()).is_err(), "{text:?}");
    }
    let deep = format!("<nvidia_smi_log>{}", "<a>".repeat(1_000_000));
    assert!(parse(deep.as_bytes()).is_err());
}

#[test]
fn a_document_type_with_entities_is_not_read() {
    let dtd = "<!DOCTYPE nvidia_smi_log [<!ENTITY x SYSTEM \"file:///etc/passwd\">]>";
    let plain = "<!DOCTYPE nvidia_smi_log SYSTEM \"nvsmi_device_v13.dtd\">";
    assert!(parse(&edited(fixture!("590.xml"), plain, dtd)).is_ok());
    let xml = edited(
        &edited(fixture!("590.xml"), plain, dtd),
        "<serial>N/A",
        "<serial>&x;",
    );
    assert!(parse(&xml).is_err());
}

#[test]
fn a_document_cut_off_anywhere_is_an_error() {
    for (name, xml) in ALL {
        let end = xml
            .windows(17)
            .rposition(|window| window == b"</nvidia_smi_log>")
            .expect("an end")
            + 16;
        // Every byte of the short ones; of the others every seventh, and all of the last two
        // hundred.
        let step = if xml.len() < 3500 { 1 } else { 7 };
        for at in (0..=end).step_by(step).chain(end.saturating_sub(200)..=end) {
            assert!(parse(&xml[..at]).is_err(), "{name} cut at {at}");
        }
    }
}

#[test]
fn values_are_read_with_their_units() {
    assert_eq!(bytes("40960 MiB"), Some(40960 << 20));
    assert_eq!(bytes("512 KiB"), Some(512 << 10));
    assert_eq!(bytes("2 GiB"), Some(2 << 30));
    assert_eq!(bytes("12 B"), Some(12));
    assert_eq!(bytes("14 MB"), Some(14 << 20));
    for text in [
        "",
        "12",
        "MiB",
        "1.5 GiB",
        "-1 MiB",
        "12 W",
        "18446744073709551615 KiB",
        "N/A",
    ] {
        assert_eq!(bytes(text), None, "{text}");
    }
    assert_eq!(
        (percent("35 %"), percent("100%"), percent("0 %")),
        (Some(35), Some(100), Some(0))
    );
    for text in ["", "%", "101 %", "-1 %", "35", "N/A"] {
        assert_eq!(percent(text), None, "{text}");
    }
}

#[test]
fn mig_devices_are_listed_with_their_uuids() {
    let device = |gpu: &str, index, uuid: &str, profile: &str| ListedMigDevice {
        gpu_uuid: gpu.into(),
        index,
        uuid: uuid.into(),
        profile: profile.into(),
    };
    let gpu = "GPU-88888888-1111-2222-3333-444455556666";
    let expected = [
        device(
            gpu,
            0,
            "MIG-feb88891-0321-5fef-9c87-d4af3b542500",
            "3g.20gb",
        ),
        device(
            gpu,
            1,
            "MIG-a25704ba-3a06-5299-a795-fd7cf4d13900",
            "3g.20gb",
        ),
    ];
    assert_eq!(parse_list(fixture!("list.txt")), expected);
    let gpu = "GPU-eeeeeeee-1111-2222-3333-444455556666";
    assert_eq!(
        parse_list(fixture!("list-460.txt")),
        [device(gpu, 0, &format!("MIG-{gpu}/10/0"), "1g.5gb")]
    );
    for text in [
        "",
        "No devices were found",
        "  MIG 1g.5gb Device 0: (UUID: MIG-x)",
        "GPU 0: x\n MIG a Device b: c",
    ] {
        assert_eq!(parse_list(text.as_bytes()), [], "{text}");
    }
    // A GPU without a UUID must not lend its devices to the one before.
    let text = "GPU 0: A (UUID: GPU-a)\nGPU 1: B (UUID: Unknown Error)\n  \
        MIG 1g Device 0: (UUID: MIG-b)\n";
    assert_eq!(parse_list(text.as_bytes()), []);
}

/// How many GPUs and MIG devices are told to run nothing.
fn idle(snapshot: &Snapshot) -> usize {
    let gpus = snapshot.gpus.iter();
    let lists = gpus.flat_map(|gpu| {
        let devices = gpu
            .mig
            .iter()
            .flat_map(|mig| &mig.devices)
            .map(|device| &device.processes);
        devices.chain([&gpu.processes])
    });
    lists
        .filter(|list| list.as_ref().value().is_some_and(Vec::is_empty))
        .count()
}

/// The fixtures in which every list is known from its element alone. Elsewhere a list is unknown
/// because of what stands in its place or in another element (the driver model, a lost GPU), whose
/// damage is another matter.
fn told_by_the_list() -> impl Strategy<Value = &'static [u8]> {
    let fixtures = ALL
        .iter()
        .filter(|(name, _)| !["wsl", "lost", "permissions", "mig-460-container"].contains(name))
        .map(|(_, xml)| *xml);
    proptest::sample::select(fixtures.collect::<Vec<_>>())
}

/// Shorter than any `process_info` of the fixtures, so that no damage of this length takes one out
/// whole.
const SHORTER_THAN_A_PROCESS: usize = 100;

fn around(xml: &[u8], at: usize) -> String {
    String::from_utf8_lossy(&xml[at.saturating_sub(200)..(at + 200).min(xml.len())]).into_owned()
}

/// What damages: arbitrary bytes, and those that mean something.
fn debris() -> impl Strategy<Value = Vec<u8>> {
    let tags = [
        "<",
        ">",
        "/",
        "&",
        "<!--",
        "-->",
        "<![CDATA[",
        "]]>",
        "<?",
        "?>",
        "<x>",
        "</x>",
        "<x/>",
        "\"",
        "\0",
        "\u{FFFD}",
        "<processes>",
        "</processes>",
        "<processes/>",
        "<process_info>",
        "</process_info>",
        "<process_name>",
        "</process_name>",
        "<gpu>",
        "</gpu>",
        "</nvidia_smi_log>",
        "<pid>",
        "</pid>",
        "&lt;",
        "&#0;",
        "N/A",
        "1",
    ];
    let tags = proptest::collection::vec(proptest::sample::select(tags.to_vec()), 0..3);
    prop_oneof![
        tags.prop_map(|tags| tags.concat().into_bytes()),
        proptest::collection::vec(any::<u8>(), 0..40),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(2000)
    })]

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = parse(&bytes);
        let _ = parse(&[b"<nvidia_smi_log>", bytes.as_slice()].concat());
        let _ = parse_list(&bytes);
        let _ = parse_list(&[b"GPU 0: (UUID: GPU-a)\nMIG 1g", bytes.as_slice()].concat());
    }

    /// Any one range of fewer bytes than a `process_info` has, replaced by anything: the result is
    /// an error, or no more GPUs and MIG devices run nothing than before. (Larger damage can cut
    /// out a whole, well-formed `process_info`, which nobody can tell from a process that is not
    /// there.)
    #[test]
    fn small_damage_never_empties_a_list(
        xml in told_by_the_list(),
        at in any::<Index>(),
        length in 0..SHORTER_THAN_A_PROCESS,
        debris in debris(),
    ) {
        let at = at.index(xml.len());
        let end = (at + length).min(xml.len());
        let damaged = [&xml[..at], &debris, &xml[end..]].concat();
        if let Ok(snapshot) = parse(&damaged) {
            prop_assert!(idle(&snapshot) <= idle(&read(xml)), "at {at}: {}", around(&damaged, at));
            prop_assert_eq!(snapshot.gpus.len(), read(xml).gpus.len());
        }
    }

    /// Any one range cut out, however long: if more run nothing than before, then a `process_info`
    /// was cut out whole.
    #[test]
    fn only_a_whole_process_can_be_cut_out_unnoticed(
        xml in told_by_the_list(),
        from in any::<Index>(),
        to in any::<Index>(),
    ) {
        let (from, to) = (from.index(xml.len()), to.index(xml.len()));
        let (from, to) = (from.min(to), from.max(to));
        let damaged = [&xml[..from], &xml[to..]].concat();
        if parse(&damaged).is_ok_and(|snapshot| idle(&snapshot) > idle(&read(xml))) {
            let cut = String::from_utf8_lossy(&xml[from..to]);
            let tags = cut.matches("process_info>").count();
            prop_assert!(tags >= 2, "at {from}: {}", around(&damaged, from));
        }
    }
}
