use super::verdict::*;
use super::*;
use crate::gpu::{
    ClaimInfo, Gpu, Judgement, Link, Mig, MigDevice, Process, ProcessKind, ProcessView, Source,
    TopologyLevel, Utilization,
};
use crate::policy::{GIB, IDLE_MEMORY, LESS_THAN_A_CONTEXT, MIB};
use proptest::prelude::*;

const TOTAL: u64 = 80 * GIB;

fn process(kind: ProcessKind, used_memory: Option<u64>) -> Process {
    Process {
        pid: 4242,
        kind,
        user: None,
        command: None,
        used_memory,
        started: None,
        ignored: false,
        in_share: false,
    }
}

fn claim() -> ClaimInfo {
    ClaimInfo {
        pid: Some(7),
        user: Some("audio".into()),
        command: Some("python train.py".into()),
        since: None,
        kind: None,
        until: None,
        version: None,
        memory: None,
        used_memory: None,
        share_holder: None,
    }
}

/// An idle GPU, all of whose state could be read.
fn idle(index: u32) -> Gpu {
    Gpu {
        index,
        uuid: Some(format!("GPU-{index}0000000-0000-0000-0000-000000000000")),
        memory: Memory {
            total: Fact::Value(TOTAL),
            used: Fact::Value(0),
            free: Fact::Value(TOTAL),
        },
        utilization: Utilization {
            gpu: Fact::Value(0),
            memory: Fact::Value(0),
        },
        compute_mode: Fact::Value(ComputeMode::Default),
        processes: Fact::Value(Vec::new()),
        ..Gpu::default()
    }
}

fn busy(index: u32) -> Gpu {
    Gpu {
        processes: Fact::Value(vec![process(ProcessKind::Compute, Some(GIB))]),
        ..idle(index)
    }
}

/// A GPU with so much free memory, in GiB.
fn with_free(gpu: Gpu, gib: u64) -> Gpu {
    let memory = Memory {
        total: Fact::Value(TOTAL),
        used: Fact::Value(TOTAL - gib * GIB),
        free: Fact::Value(gib * GIB),
    };
    Gpu { memory, ..gpu }
}

fn mig_device(index: u32) -> MigDevice {
    MigDevice {
        index,
        uuid: Some(format!("MIG-{index}0000000-0000-0000-0000-000000000000")),
        memory: Memory {
            total: Fact::Value(10 * GIB),
            used: Fact::Value(0),
            free: Fact::Value(10 * GIB),
        },
        processes: Fact::Value(Vec::new()),
        ..MigDevice::default()
    }
}

fn divided(index: u32, devices: Vec<MigDevice>) -> Gpu {
    Gpu {
        mig: Some(Mig { devices }),
        ..idle(index)
    }
}

fn machine(gpus: Vec<Gpu>) -> Snapshot {
    Snapshot {
        recording: None,
        waiting: Vec::new(),
        source: Source::Nvml,
        driver_version: None,
        process_view: ProcessView::Host,
        gpus,
        links: Vec::new(),
    }
}

fn constraints(num_gpus: usize, snapshot: &Snapshot) -> Constraints {
    Constraints {
        num_gpus,
        least_used: false,
        tolerate: None,
        share: None,
        min_free_memory: None,
        devices: snapshot.device_ids(),
    }
}

fn least(num_gpus: usize, snapshot: &Snapshot) -> Constraints {
    Constraints {
        least_used: true,
        tolerate: None,
        ..constraints(num_gpus, snapshot)
    }
}

/// The indices of a choice.
#[track_caller]
fn chosen(snapshot: &Snapshot, constraints: &Constraints) -> Vec<u32> {
    match select(snapshot, constraints) {
        Selection::Chosen(devices) => devices
            .iter()
            .map(|device| snapshot.gpus[device.gpu].index)
            .collect(),
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn impossible_text(snapshot: &Snapshot, constraints: &Constraints) -> String {
    match select(snapshot, constraints) {
        Selection::Impossible(shortage) => shortage.to_string(),
        other => panic!("{other:?}"),
    }
}

fn verdict(gpu: Gpu, view: ProcessView) -> Verdict {
    let snapshot = Snapshot {
        process_view: view,
        ..machine(vec![Gpu { index: 0, ..gpu }])
    };
    snapshot.devices().next().expect("one").verdict()
}

/// What a verdict is, without its words.
fn kind(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Free => "free",
        Verdict::Busy(_) => "busy",
        Verdict::SeemsBusy(_) => "seems busy",
        Verdict::Unknown(_) => "unknown",
        Verdict::Unknowable(_) => "unknowable",
        Verdict::Claimed(_) => "claimed",
        Verdict::Shared(_) => "shared",
        Verdict::Unavailable(_) => "unavailable",
    }
}

#[test]
fn the_highest_free_gpus_win_and_come_in_ascending_order() {
    // For every subset of three GPUs that is free, and every number asked for.
    for free in 0..8u32 {
        let gpus = (0..3)
            .map(|index| {
                if free >> index & 1 == 1 {
                    idle(index)
                } else {
                    busy(index)
                }
            })
            .collect();
        let snapshot = machine(gpus);
        let indices: Vec<u32> = (0..3).filter(|index| free >> index & 1 == 1).collect();
        for num_gpus in 1..=3 {
            let selection = select(&snapshot, &constraints(num_gpus, &snapshot));
            if indices.len() < num_gpus {
                let Selection::NotNow { free } = selection else {
                    panic!("{free:03b} {num_gpus}: {selection:?}")
                };
                assert_eq!(
                    free.iter()
                        .map(|device| device.gpu as u32)
                        .collect::<Vec<_>>(),
                    indices
                );
            } else {
                let expected = &indices[indices.len() - num_gpus..];
                assert_eq!(
                    chosen(&snapshot, &constraints(num_gpus, &snapshot)),
                    expected,
                    "{free:03b} {num_gpus}"
                );
            }
        }
    }
}

#[test]
fn least_used_takes_the_most_free_memory_and_then_the_higher_index() {
    for (free, num_gpus, expected) in [
        ([10, 10, 10], 1, &[2][..]),
        ([10, 10, 10], 2, &[1, 2]),
        ([30, 10, 20], 1, &[0]),
        ([30, 10, 20], 2, &[0, 2]),
        ([20, 20, 10], 1, &[1]),
        ([10, 30, 10], 2, &[1, 2]),
        ([0, 0, 0], 3, &[0, 1, 2]),
    ] {
        let gpus = (0..3)
            .zip(free)
            .map(|(index, gib)| with_free(busy(index), gib))
            .collect();
        let snapshot = machine(gpus);
        assert_eq!(
            chosen(&snapshot, &least(num_gpus, &snapshot)),
            expected,
            "{free:?} {num_gpus}"
        );
    }
}

#[test]
fn least_used_takes_claimed_unknown_and_occupied_exclusive_gpus_last() {
    let claimed = |index| Gpu {
        claims: vec![claim()],
        ..with_free(idle(index), 70)
    };
    let exclusive = |index, mode| Gpu {
        compute_mode: Fact::Value(mode),
        ..with_free(busy(index), 70)
    };
    let unread = |index| Gpu {
        memory: Memory::default(),
        ..idle(index)
    };
    let no_mode = |index| Gpu {
        compute_mode: Fact::Unknown,
        ..with_free(idle(index), 70)
    };
    for (what, gpu) in [
        ("claimed", claimed(1)),
        ("exclusive", exclusive(1, ComputeMode::ExclusiveProcess)),
        (
            "exclusive thread",
            exclusive(1, ComputeMode::ExclusiveThread),
        ),
        ("unknown memory", unread(1)),
        ("unknown mode", no_mode(1)),
    ] {
        let snapshot = machine(vec![with_free(busy(0), 1), gpu]);
        assert_eq!(chosen(&snapshot, &least(1, &snapshot)), [0], "{what}");
        assert_eq!(chosen(&snapshot, &least(2, &snapshot)), [0, 1], "{what}");
    }
    // A free exclusive one is as good as any other.
    let free = Gpu {
        compute_mode: Fact::Value(ComputeMode::ExclusiveProcess),
        ..idle(1)
    };
    let snapshot = machine(vec![with_free(busy(0), 1), free]);
    assert_eq!(chosen(&snapshot, &least(1, &snapshot)), [1]);
    // Of the last resorts, the one that another process has for itself comes last of all.
    let snapshot = machine(vec![
        claimed(0),
        exclusive(1, ComputeMode::ExclusiveProcess),
        unread(2),
    ]);
    assert_eq!(chosen(&snapshot, &least(1, &snapshot)), [2]);
    assert_eq!(chosen(&snapshot, &least(2, &snapshot)), [0, 2]);
}

#[test]
fn least_used_never_takes_what_cannot_be_used() {
    let prohibited = Gpu {
        compute_mode: Fact::Value(ComputeMode::Prohibited),
        ..idle(1)
    };
    let lost = Gpu {
        unusable: Some("GPU is lost".into()),
        ..idle(2)
    };
    let snapshot = machine(vec![with_free(busy(0), 1), prohibited, lost]);
    assert_eq!(chosen(&snapshot, &least(1, &snapshot)), [0]);
    let text = impossible_text(&snapshot, &least(2, &snapshot));
    assert!(
        text.contains("PROHIBITED") && text.contains("GPU is lost"),
        "{text}"
    );
}

#[test]
fn a_request_beyond_what_may_be_used_is_impossible_and_says_how_many_there_are() {
    let snapshot = machine(vec![idle(0), busy(1), idle(2)]);
    let only = |gpus: &[usize]| {
        gpus.iter()
            .map(|&gpu| DeviceId { gpu, mig: None })
            .collect::<Vec<_>>()
    };
    for (num_gpus, devices, expected) in [
        (4, only(&[0, 1, 2]), "4 GPUs asked for, this machine has 3"),
        (
            3,
            only(&[0, 1]),
            "3 GPUs asked for, 2 of this machine's 3 GPUs may be used",
        ),
        (
            1,
            only(&[]),
            "1 GPU asked for, 0 of this machine's 3 GPUs may be used",
        ),
        (usize::MAX, only(&[0, 1, 2]), "this machine has 3"),
    ] {
        let text = impossible_text(
            &snapshot,
            &Constraints {
                devices,
                ..constraints(num_gpus, &snapshot)
            },
        );
        assert!(text.contains(expected), "{text}");
    }
    // What is merely busy can be waited for.
    assert!(matches!(
        select(&snapshot, &constraints(3, &snapshot)),
        Selection::NotNow { .. }
    ));
    assert!(matches!(
        select(&machine(vec![]), &constraints(1, &machine(vec![]))),
        Selection::Impossible(_)
    ));
}

#[test]
fn only_gpus_with_the_memory_asked_for_are_chosen() {
    let unread = Gpu {
        memory: Memory {
            free: Fact::Unknown,
            ..idle(2).memory
        },
        ..idle(2)
    };
    // Graphics processes explain what is used.
    let graphics = |index, gib| Gpu {
        processes: Fact::Value(vec![process(
            ProcessKind::Graphics,
            Some(TOTAL - gib * GIB),
        )]),
        ..with_free(idle(index), gib)
    };
    let snapshot = machine(vec![graphics(0, 60), graphics(1, 40), unread]);
    let with = |min_free_memory, constraints: Constraints| Constraints {
        min_free_memory: Some(min_free_memory),
        ..constraints
    };
    for (wanted, expected) in [(40 * GIB, 1), (40 * GIB + 1, 0), (60 * GIB, 0), (1, 1)] {
        assert_eq!(
            chosen(&snapshot, &with(wanted, constraints(1, &snapshot))),
            [expected],
            "{wanted}"
        );
        assert_eq!(
            chosen(&snapshot, &with(wanted, least(1, &snapshot))),
            [0],
            "{wanted}"
        );
    }
    // It may be given back, as long as the GPU has it at all.
    assert!(matches!(
        select(&snapshot, &with(TOTAL, constraints(1, &snapshot))),
        Selection::NotNow { .. }
    ));
    assert!(matches!(
        select(&snapshot, &with(TOTAL, least(1, &snapshot))),
        Selection::NotNow { .. }
    ));
    let text = impossible_text(&snapshot, &with(TOTAL + GIB, constraints(1, &snapshot)));
    assert!(
        text.contains("81.0 GiB of free memory asked for, the largest has 80.0 GiB in all"),
        "{text}"
    );
    let reserved = |index| Gpu {
        memory: Memory {
            free: Fact::Value(TOTAL - GIB),
            ..idle(index).memory
        },
        ..idle(index)
    };
    let snapshot = machine(vec![reserved(0)]);
    assert_eq!(
        chosen(&snapshot, &with(TOTAL - GIB, constraints(1, &snapshot))),
        [0]
    );
    let text = impossible_text(&snapshot, &with(TOTAL, constraints(1, &snapshot)));
    assert!(
        text.contains("80.0 GiB of free memory asked for, the largest can have 79.0 GiB"),
        "{text}"
    );
}

#[test]
fn a_mig_device_is_given_alone_and_never_its_whole_gpu() {
    let snapshot = machine(vec![
        idle(0),
        divided(1, vec![mig_device(0), mig_device(1)]),
    ]);
    let Selection::Chosen(devices) = select(&snapshot, &constraints(1, &snapshot)) else {
        panic!("one is free")
    };
    assert_eq!(
        devices,
        [DeviceId {
            gpu: 1,
            mig: Some(1)
        }]
    );
    let text = impossible_text(&snapshot, &constraints(2, &snapshot));
    assert!(
        text.contains("a process can use one MIG device alone (1 GPU without MIG)"),
        "{text}"
    );
    // Two whole GPUs beside it are enough for two.
    let snapshot = machine(vec![idle(0), divided(1, vec![mig_device(0)]), idle(2)]);
    assert_eq!(chosen(&snapshot, &constraints(2, &snapshot)), [0, 2]);
    // Without MIG devices there is nothing on it that could be used.
    let snapshot = machine(vec![divided(0, vec![])]);
    assert!(impossible_text(&snapshot, &constraints(1, &snapshot)).contains("mig -cgi"));
}

#[test]
fn mig_devices_are_judged_by_what_is_on_them_alone() {
    let used = MigDevice {
        processes: Fact::Value(vec![process(ProcessKind::Compute, Some(GIB))]),
        ..mig_device(0)
    };
    let claimed = MigDevice {
        claims: vec![claim()],
        ..mig_device(1)
    };
    let unlisted = MigDevice {
        processes: Fact::Unknown,
        ..mig_device(2)
    };
    let held = MigDevice {
        processes: Fact::Unknown,
        memory: Memory {
            used: Fact::Value(IDLE_MEMORY + 1),
            ..mig_device(3).memory
        },
        ..mig_device(3)
    };
    // The parent's compute mode and utilization are not known where MIG is enabled.
    let parent = Gpu {
        compute_mode: Fact::Unknown,
        utilization: Utilization::default(),
        memory: Memory::default(),
        processes: Fact::Unknown,
        ..divided(0, vec![used, claimed, unlisted, held, mig_device(4)])
    };
    let snapshot = machine(vec![parent]);
    let verdicts: Vec<Verdict> = snapshot
        .device_ids()
        .into_iter()
        .map(|device| snapshot.device(device).verdict())
        .collect();
    assert_eq!(
        verdicts.iter().map(kind).collect::<Vec<_>>(),
        ["busy", "claimed", "free", "busy", "free"]
    );
}

#[test]
fn a_gpu_is_free_as_the_table_of_evidence_says() {
    use ProcessKind::{Compute, ComputeGraphics, Graphics, MpsCompute};
    use ProcessView::{Container, Host};
    let listed = |processes: Vec<Process>| Gpu {
        processes: Fact::Value(processes),
        ..idle(0)
    };
    let used = |gpu: Gpu, used| Gpu {
        memory: Memory {
            used: Fact::Value(used),
            ..gpu.memory
        },
        ..gpu
    };
    let of_total = |gpu: Gpu, total, used| Gpu {
        memory: Memory {
            total: Fact::Value(total),
            used: Fact::Value(used),
            free: total.checked_sub(used).into(),
        },
        ..gpu
    };
    let utilized = |gpu: Gpu, percent| Gpu {
        utilization: Utilization {
            gpu: Fact::Value(percent),
            memory: Fact::Unknown,
        },
        ..gpu
    };
    let unlisted = || Gpu {
        processes: Fact::Unknown,
        ..idle(0)
    };
    let numa = |gpu: Gpu| Gpu {
        memory_is_numa_node: true,
        ..gpu
    };
    let unmeasured = |gpu: Gpu| Gpu {
        memory: Memory::default(),
        ..gpu
    };
    let mode = |gpu: Gpu, mode| Gpu {
        compute_mode: mode,
        ..gpu
    };
    let xorg = || listed(vec![process(Graphics, Some(2 * GIB))]);
    for (what, gpu, view, expected) in [
        ("nothing on it", idle(0), Host, "free"),
        ("nothing on it, in a container", idle(0), Container, "free"),
        // Who computes.
        ("C", listed(vec![process(Compute, Some(GIB))]), Host, "busy"),
        (
            "C of unknown memory",
            listed(vec![process(Compute, None)]),
            Host,
            "busy",
        ),
        ("M+C", listed(vec![process(MpsCompute, None)]), Host, "busy"),
        (
            "C+G",
            listed(vec![process(ComputeGraphics, None)]),
            Host,
            "busy",
        ),
        (
            "C, in a container",
            listed(vec![process(Compute, Some(0))]),
            Container,
            "busy",
        ),
        (
            "G and C",
            listed(vec![process(Graphics, None), process(Compute, None)]),
            Host,
            "busy",
        ),
        (
            "C where memory is a NUMA node",
            numa(listed(vec![process(Compute, None)])),
            Host,
            "busy",
        ),
        // Only graphics.
        ("G", used(xorg(), 2 * GIB), Host, "free"),
        (
            "G of unknown memory",
            used(listed(vec![process(Graphics, None)]), 8 * GIB),
            Host,
            "free",
        ),
        (
            "G of unknown memory, and much more",
            used(listed(vec![process(Graphics, None)]), 8 * GIB + 1),
            Host,
            "busy",
        ),
        (
            "G, exclusive",
            mode(
                used(xorg(), 2 * GIB),
                Fact::Value(ComputeMode::ExclusiveProcess),
            ),
            Host,
            "free",
        ),
        (
            "G, in a container",
            used(xorg(), 2 * GIB + IDLE_MEMORY),
            Container,
            "free",
        ),
        (
            "G, in a container, more used",
            used(xorg(), 2 * GIB + IDLE_MEMORY + 1),
            Container,
            "busy",
        ),
        (
            "G and memory that is not its",
            used(xorg(), 2 * GIB + TOTAL / 20 + 1),
            Host,
            "busy",
        ),
        (
            "G and memory that may be anybody's",
            used(xorg(), 2 * GIB + TOTAL / 20),
            Host,
            "free",
        ),
        (
            "G that holds more than is used",
            used(xorg(), GIB),
            Host,
            "free",
        ),
        // Memory that no process explains, on the host: 5 % of a large GPU, 1 GiB of a small one.
        ("5 % of 80 GiB", used(idle(0), 4 * GIB), Host, "free"),
        ("a byte more", used(idle(0), 4 * GIB + 1), Host, "busy"),
        (
            "1 GiB of 8 GiB",
            of_total(idle(0), 8 * GIB, GIB),
            Host,
            "free",
        ),
        (
            "a byte more",
            of_total(idle(0), 8 * GIB, GIB + 1),
            Host,
            "busy",
        ),
        (
            "1 GiB of 20 GiB",
            of_total(idle(0), 20 * GIB, GIB),
            Host,
            "free",
        ),
        (
            "a byte more",
            of_total(idle(0), 20 * GIB, GIB + 1),
            Host,
            "busy",
        ),
        (
            "a NUMA node's memory",
            numa(used(idle(0), 40 * GIB)),
            Host,
            "free",
        ),
        (
            "a full NUMA node and utilization",
            numa(utilized(used(idle(0), 40 * GIB), 100)),
            Host,
            "free",
        ),
        // Utilization is no evidence where the list is complete.
        (
            "utilization without a process",
            utilized(idle(0), 100),
            Host,
            "free",
        ),
        // The list proves nothing: 256 MiB and 5 % are what an idle GPU may show.
        (
            "256 MiB, in a container",
            used(idle(0), 256 * MIB),
            Container,
            "free",
        ),
        (
            "a byte more, in a container",
            used(idle(0), 256 * MIB + 1),
            Container,
            "busy",
        ),
        (
            "5 %, in a container",
            utilized(used(idle(0), LESS_THAN_A_CONTEXT + 1), 5),
            Container,
            "free",
        ),
        (
            "6 %, in a container",
            utilized(used(idle(0), LESS_THAN_A_CONTEXT + 1), 6),
            Container,
            "seems busy",
        ),
        (
            "100 %, and no context, in a container",
            utilized(used(idle(0), LESS_THAN_A_CONTEXT), 100),
            Container,
            "free",
        ),
        (
            "256 MiB and no list",
            used(unlisted(), 256 * MIB),
            Host,
            "free",
        ),
        (
            "a byte more and no list",
            used(unlisted(), 256 * MIB + 1),
            Host,
            "busy",
        ),
        (
            "5 % and no list",
            utilized(used(unlisted(), LESS_THAN_A_CONTEXT + 1), 5),
            Host,
            "free",
        ),
        (
            "6 % and no list",
            utilized(used(unlisted(), LESS_THAN_A_CONTEXT + 1), 6),
            Host,
            "seems busy",
        ),
        (
            "unknown utilization, in a container",
            Gpu {
                utilization: Utilization::default(),
                ..idle(0)
            },
            Container,
            "free",
        ),
        // Unknown is never zero.
        ("unknown memory", unmeasured(idle(0)), Host, "unknown"),
        (
            "unknown memory, in a container",
            unmeasured(idle(0)),
            Container,
            "unknown",
        ),
        (
            "unknown memory and no list",
            unmeasured(unlisted()),
            Host,
            "unknown",
        ),
        (
            "unknown memory of a NUMA node",
            numa(unmeasured(idle(0))),
            Host,
            "free",
        ),
        (
            "unknown compute mode",
            mode(idle(0), Fact::Unknown),
            Host,
            "unknown",
        ),
        (
            "unknown compute mode, and used",
            mode(busy(0), Fact::Unknown),
            Host,
            "busy",
        ),
        // Who may compute.
        (
            "PROHIBITED",
            mode(idle(0), Fact::Value(ComputeMode::Prohibited)),
            Host,
            "unavailable",
        ),
        (
            "PROHIBITED, and used",
            mode(busy(0), Fact::Value(ComputeMode::Prohibited)),
            Host,
            "unavailable",
        ),
        (
            "EXCLUSIVE_PROCESS",
            mode(idle(0), Fact::Value(ComputeMode::ExclusiveProcess)),
            Host,
            "free",
        ),
        (
            "EXCLUSIVE_PROCESS, and used",
            mode(busy(0), Fact::Value(ComputeMode::ExclusiveProcess)),
            Host,
            "busy",
        ),
        (
            "EXCLUSIVE_THREAD",
            mode(idle(0), Fact::Value(ComputeMode::ExclusiveThread)),
            Host,
            "free",
        ),
        // Claims.
        (
            "claimed",
            Gpu {
                claims: vec![claim()],
                ..idle(0)
            },
            Host,
            "claimed",
        ),
        (
            "claimed and used",
            Gpu {
                claims: vec![claim()],
                ..busy(0)
            },
            Host,
            "claimed",
        ),
    ] {
        let verdict = verdict(gpu, view);
        assert_eq!(kind(&verdict), expected, "{what}: {verdict:?}");
    }
}

#[test]
fn a_recorded_state_makes_a_gpu_less_free_than_the_facts_and_never_freer() {
    let recorded = |state, gpu: Gpu| Gpu {
        recorded: Some(Judgement {
            state,
            reason: Some("as recorded".into()),
        }),
        ..gpu
    };
    for (state, gpu, expected) in [
        (State::Free, idle(0), "free"),
        (State::Free, busy(0), "busy"),
        (
            State::Free,
            Gpu {
                claims: vec![claim()],
                ..idle(0)
            },
            "claimed",
        ),
        (State::Busy, idle(0), "busy"),
        (State::Claimed, idle(0), "claimed"),
        (State::Claimed, busy(0), "claimed"),
    ] {
        let seen = verdict(recorded(state, gpu), ProcessView::Host);
        assert_eq!(kind(&seen), expected, "{state:?}");
    }
    let seen = verdict(recorded(State::Busy, idle(0)), ProcessView::Host);
    assert_eq!(seen, Verdict::Busy("as recorded".into()));
}

#[test]
fn a_verdict_says_who_uses_the_gpu() {
    let named = Process {
        user: Some("nlp".into()),
        command: Some("python train.py".into()),
        ..process(ProcessKind::Compute, None)
    };
    let gpu = Gpu {
        processes: Fact::Value(vec![named, process(ProcessKind::Compute, None)]),
        ..idle(0)
    };
    assert_eq!(
        verdict(gpu, ProcessView::Host).reason(),
        Some("used by pid 4242 (nlp: python train.py) and 1 more")
    );
    let gpu = Gpu {
        claims: vec![claim()],
        ..idle(0)
    };
    assert_eq!(
        verdict(gpu, ProcessView::Host).reason(),
        Some("claimed by pid 7 (audio: python train.py)")
    );
    let held = Gpu {
        memory: Memory {
            used: Fact::Value(6 * GIB),
            ..idle(0).memory
        },
        ..idle(0)
    };
    assert_eq!(
        verdict(held, ProcessView::Host).reason(),
        Some("6.0 GiB held by no visible process")
    );
}

#[test]
fn judging_a_machine_writes_each_state_down() {
    let lost = Gpu {
        unusable: Some("GPU is lost".into()),
        ..Gpu {
            index: 3,
            ..Gpu::default()
        }
    };
    let part = MigDevice {
        claims: vec![claim()],
        ..mig_device(0)
    };
    let mut snapshot = machine(vec![
        idle(0),
        busy(1),
        divided(2, vec![part, mig_device(1)]),
        lost,
    ]);
    snapshot.judge();
    let states: Vec<_> = snapshot
        .gpus
        .iter()
        .map(|gpu| gpu.state.expect("judged"))
        .collect();
    assert_eq!(
        states,
        [State::Free, State::Busy, State::Free, State::Unavailable]
    );
    assert_eq!(
        snapshot.gpus[2].reason.as_deref(),
        Some("1 of 2 MIG devices free")
    );
    let devices = &snapshot.gpus[2].mig.as_ref().expect("enabled").devices;
    assert_eq!(devices[0].state, Some(State::Claimed));
    assert_eq!(devices[1].state, Some(State::Free));
    // Judged again, it is judged alike.
    let before = snapshot.clone();
    snapshot.judge();
    assert_eq!(
        snapshot
            .gpus
            .iter()
            .map(|gpu| gpu.state)
            .collect::<Vec<_>>(),
        before.gpus.iter().map(|gpu| gpu.state).collect::<Vec<_>>()
    );
}

/// So many idle GPUs, and how they are joined.
fn joined(count: u32, links: Vec<Link>) -> Snapshot {
    Snapshot {
        links,
        ..machine((0..count).map(idle).collect())
    }
}

fn nvlink(a: u32, b: u32, nvlinks: u32) -> Link {
    Link {
        gpus: (a.min(b), a.max(b)),
        nvlinks,
        ancestor: Some(TopologyLevel::System),
    }
}

fn pcie(a: u32, b: u32, ancestor: TopologyLevel) -> Link {
    Link {
        gpus: (a, b),
        nvlinks: 0,
        ancestor: Some(ancestor),
    }
}

/// Eight GPUs in two boards of four; each is joined to three on its board and to its twin on the
/// other.
fn hybrid_cube_mesh() -> Snapshot {
    let double = [
        (0, 3),
        (0, 4),
        (1, 2),
        (1, 5),
        (2, 3),
        (4, 7),
        (5, 6),
        (6, 7),
    ];
    let single = [
        (0, 1),
        (0, 2),
        (1, 3),
        (2, 6),
        (3, 7),
        (4, 5),
        (4, 6),
        (5, 7),
    ];
    let mut links = Vec::new();
    for a in 0..8 {
        for b in a + 1..8 {
            let nvlinks = if double.contains(&(a, b)) {
                2
            } else {
                u32::from(single.contains(&(a, b)))
            };
            let ancestor = match (a / 2 == b / 2, a / 4 == b / 4) {
                (true, _) => TopologyLevel::Single,
                (_, true) => TopologyLevel::Node,
                _ => TopologyLevel::System,
            };
            links.push(Link {
                gpus: (a, b),
                nvlinks,
                ancestor: Some(ancestor),
            });
        }
    }
    joined(8, links)
}

#[test]
fn the_best_connected_set_goes_first_and_the_higher_indices_among_equals() {
    use TopologyLevel::{Hostbridge, Internal, Multiple, Node, Single, System};
    // GPUs 0 and 1 are nearer to each other than to GPU 2.
    let nearer = |near, far| joined(3, vec![pcie(0, 1, near), pcie(0, 2, far), pcie(1, 2, far)]);
    for (what, snapshot, num_gpus, expected) in [
        ("nothing known", joined(4, vec![]), 2, &[2, 3][..]),
        ("an NVLink", joined(4, vec![nvlink(0, 1, 1)]), 2, &[0, 1]),
        (
            "an NVLink beats a PCIe switch",
            joined(4, vec![nvlink(0, 1, 1), pcie(2, 3, Internal)]),
            2,
            &[0, 1],
        ),
        (
            "more NVLinks beat fewer",
            joined(4, vec![nvlink(0, 1, 4), nvlink(2, 3, 2)]),
            2,
            &[0, 1],
        ),
        (
            "equal NVLinks",
            joined(4, vec![nvlink(0, 1, 2), nvlink(2, 3, 2)]),
            2,
            &[2, 3],
        ),
        (
            "equal NVLinks, a nearer ancestor",
            joined(
                4,
                vec![
                    Link {
                        ancestor: Some(Single),
                        ..nvlink(0, 1, 2)
                    },
                    nvlink(2, 3, 2),
                ],
            ),
            2,
            &[0, 1],
        ),
        (
            "internal before single",
            nearer(Internal, Single),
            2,
            &[0, 1],
        ),
        (
            "single before multiple",
            nearer(Single, Multiple),
            2,
            &[0, 1],
        ),
        (
            "multiple before host bridge",
            nearer(Multiple, Hostbridge),
            2,
            &[0, 1],
        ),
        (
            "host bridge before node",
            nearer(Hostbridge, Node),
            2,
            &[0, 1],
        ),
        ("node before system", nearer(Node, System), 2, &[0, 1]),
        ("all alike", nearer(Node, Node), 2, &[1, 2]),
        ("one alone", joined(4, vec![nvlink(0, 1, 1)]), 1, &[3]),
        (
            "all of them",
            joined(4, vec![nvlink(0, 1, 1)]),
            4,
            &[0, 1, 2, 3],
        ),
        (
            "a third one beside a pair",
            joined(4, vec![nvlink(0, 1, 1)]),
            3,
            &[0, 1, 3],
        ),
        // Of the pairs with two links the highest, a whole board of four before any mixture.
        ("two of a cube mesh", hybrid_cube_mesh(), 2, &[6, 7]),
        ("four of a cube mesh", hybrid_cube_mesh(), 4, &[4, 5, 6, 7]),
    ] {
        assert_eq!(
            chosen(&snapshot, &constraints(num_gpus, &snapshot)),
            expected,
            "{what}"
        );
    }
}

#[test]
fn what_is_busy_is_no_part_of_a_connected_set() {
    let mut snapshot = hybrid_cube_mesh();
    for index in [6, 7, 5] {
        snapshot.gpus[index] = busy(index as u32);
    }
    // Left are 0 to 4; of the pairs with two links, (2, 3) has a nearer ancestor than (0, 4).
    assert_eq!(chosen(&snapshot, &constraints(2, &snapshot)), [2, 3]);
    assert_eq!(chosen(&snapshot, &constraints(4, &snapshot)), [0, 1, 2, 3]);
}

#[test]
fn on_more_gpus_than_all_sets_of_which_are_weighed_the_same_set_goes_first() {
    // The cube mesh behind twelve GPUs that nothing joins.
    let mesh = hybrid_cube_mesh();
    let links = mesh.links.iter().map(|link| Link {
        gpus: (link.gpus.0 + 12, link.gpus.1 + 12),
        ..*link
    });
    let large = joined(20, links.collect());
    // Of five and seven, several sets are good, and a set that is grown need not be the best of
    // them.
    for num_gpus in [2, 3, 4, 6, 8] {
        let exact: Vec<u32> = chosen(&mesh, &constraints(num_gpus, &mesh))
            .iter()
            .map(|index| index + 12)
            .collect();
        assert_eq!(
            chosen(&large, &constraints(num_gpus, &large)),
            exact,
            "{num_gpus}"
        );
    }
    let pairs = joined(
        32,
        (0..16)
            .map(|pair| nvlink(2 * pair, 2 * pair + 1, 2))
            .collect(),
    );
    assert_eq!(chosen(&pairs, &constraints(2, &pairs)), [30, 31]);
    assert_eq!(chosen(&pairs, &constraints(4, &pairs)), [28, 29, 30, 31]);
}

#[test]
fn links_are_asked_for_only_where_there_is_a_choice_between_sets() {
    let snapshot = machine(vec![idle(0), idle(1), idle(2), busy(3)]);
    for (num_gpus, matter) in [(1, false), (2, true), (3, false), (4, false)] {
        assert_eq!(
            links_matter(&snapshot, &constraints(num_gpus, &snapshot)),
            matter,
            "{num_gpus}"
        );
    }
    assert!(!links_matter(&snapshot, &least(2, &snapshot)));
}

fn any_link(count: u32) -> impl Strategy<Value = Vec<Link>> {
    let pairs: Vec<(u32, u32)> = (0..count)
        .flat_map(|a| (a + 1..count).map(move |b| (a, b)))
        .collect();
    let ancestors = [
        TopologyLevel::Internal,
        TopologyLevel::Single,
        TopologyLevel::Hostbridge,
        TopologyLevel::System,
    ];
    let one = (0..3u32, 0..ancestors.len()).prop_map(move |(nvlinks, at)| (nvlinks, ancestors[at]));
    proptest::collection::vec(one, pairs.len()).prop_map(move |found| {
        let links = pairs.iter().zip(found);
        links
            .map(|(&gpus, (nvlinks, ancestor))| Link {
                gpus,
                nvlinks,
                ancestor: Some(ancestor),
            })
            .collect()
    })
}

/// A GPU in any state, such as no sane driver would report.
fn any_gpu() -> impl Strategy<Value = Gpu> {
    use ProcessKind::{Compute, ComputeGraphics, Graphics, MpsCompute};
    let memory = || {
        proptest::option::of(prop_oneof![
            Just(0),
            Just(256 * MIB),
            Just(4 * GIB),
            Just(TOTAL)
        ])
    };
    let modes = [
        ComputeMode::Default,
        ComputeMode::ExclusiveProcess,
        ComputeMode::Prohibited,
    ];
    let kinds = [Compute, Graphics, ComputeGraphics, MpsCompute];
    let processes =
        proptest::collection::vec((0..kinds.len(), memory()), 0..2).prop_map(move |found| {
            found
                .into_iter()
                .map(|(at, used)| process(kinds[at], used))
                .collect::<Vec<_>>()
        });
    let states = [State::Free, State::Busy, State::Claimed, State::Unavailable];
    (
        (memory(), memory(), memory()),
        proptest::option::of(0..100u32),
        proptest::option::of((0..modes.len()).prop_map(move |at| modes[at])),
        proptest::option::weighted(0.9, processes),
        proptest::option::weighted(0.1, Just(claim())),
        proptest::option::weighted(0.2, (0..states.len()).prop_map(move |at| states[at])),
        proptest::option::weighted(0.1, 0..3u32),
    )
        .prop_map(
            |((total, used, free), percent, compute_mode, processes, claim, state, parts)| Gpu {
                memory: Memory {
                    total: total.into(),
                    used: used.into(),
                    free: free.into(),
                },
                utilization: Utilization {
                    gpu: percent.into(),
                    memory: Fact::Unknown,
                },
                compute_mode: compute_mode.into(),
                processes: processes.into(),
                claims: claim.into_iter().collect(),
                state,
                mig: parts.map(|parts| Mig {
                    devices: (0..parts).map(mig_device).collect(),
                }),
                ..idle(0)
            },
        )
}

fn any_machine() -> impl Strategy<Value = Snapshot> {
    let healthy = (0..2u8).prop_map(|taken| if taken == 1 { busy(0) } else { idle(0) });
    let gpu = prop_oneof![healthy, any_gpu()];
    (1..7usize).prop_flat_map(move |count| {
        (
            proptest::collection::vec(gpu.clone(), count),
            any_link(count as u32),
            any::<bool>(),
        )
            .prop_map(|(gpus, links, contained)| {
                let gpus = (0..).zip(gpus).map(|(index, gpu)| Gpu {
                    index,
                    uuid: idle(index).uuid,
                    ..gpu
                });
                let process_view = if contained {
                    ProcessView::Container
                } else {
                    ProcessView::Host
                };
                Snapshot {
                    links,
                    process_view,
                    ..machine(gpus.collect())
                }
            })
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 512,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn what_is_chosen_is_free_allowed_and_as_many_as_asked_for(
        snapshot in any_machine(),
        num_gpus in 1..5usize,
        least_used in any::<bool>(),
        min_free_memory in proptest::option::weighted(0.3, 1..TOTAL),
        left_out in any::<u8>(),
    ) {
        let is_in = |device: &DeviceId| left_out >> device.gpu & 3 != 3;
        let devices: Vec<DeviceId> = snapshot.device_ids().into_iter().filter(is_in).collect();
        let constraints = Constraints {
            num_gpus,
            least_used,
            min_free_memory,
            tolerate: None,
            share: None,
            devices,
        };
        let free = |device: &DeviceId| snapshot.device(*device).verdict() == Verdict::Free;
        match select(&snapshot, &constraints) {
            Selection::Chosen(devices) => {
                prop_assert_eq!(devices.len(), num_gpus);
                prop_assert!(devices.windows(2).all(|pair| pair[0] < pair[1]), "{:?}", devices);
                for device in devices {
                    prop_assert!(constraints.devices.contains(&device));
                    prop_assert!(num_gpus == 1 || device.mig.is_none());
                    let verdict = snapshot.device(device).verdict();
                    let is_usable = kind(&verdict) != "unavailable";
                    prop_assert!(
                        verdict == Verdict::Free || least_used && is_usable,
                        "{:?}",
                        verdict
                    );
                    if let Some(wanted) = min_free_memory {
                        let free = snapshot.device(device).memory().free.value();
                        prop_assert!(free.is_some_and(|free| free >= wanted));
                    }
                }
            }
            Selection::NotNow { free: found } => {
                prop_assert!(found.len() < num_gpus);
                prop_assert!(least_used || found.iter().all(free));
            }
            Selection::Impossible(shortage) => prop_assert!(shortage.usable < num_gpus),
        }
    }

    #[test]
    fn no_other_set_is_better_connected_than_the_chosen_one(
        (count, links) in (2..7u32).prop_flat_map(|count| (Just(count), any_link(count))),
        num_gpus in 2..4usize,
    ) {
        let snapshot = joined(count, links);
        prop_assume!(num_gpus <= count as usize);
        let score = |set: &[u32]| {
            let both = |link: &&Link| set.contains(&link.gpus.0) && set.contains(&link.gpus.1);
            let inside = snapshot.links.iter().filter(both);
            // Up to three, all links are part of the ring.
            let pairs = set.iter().flat_map(|a| set.iter().map(move |b| (*a, *b)));
            let ring = pairs.filter(|(a, b)| a < b);
            let nvlinks = |pair: (u32, u32)| {
                snapshot.links.iter().find(|link| link.gpus == pair).map_or(0, |link| link.nvlinks)
            };
            let slowest = ring.map(nvlinks).min().unwrap_or(0);
            inside.fold((slowest, 0, 0), |sum, link| {
                let nearness = 6 - link.ancestor.map_or(6, |ancestor| ancestor as u32);
                (sum.0, sum.1 + link.nvlinks, sum.2 + nearness)
            })
        };
        let found = chosen(&snapshot, &constraints(num_gpus, &snapshot));
        let sets = (0u32..1 << count).filter(|set| set.count_ones() as usize == num_gpus);
        for set in sets {
            let mut set: Vec<u32> = (0..count).filter(|index| set >> index & 1 == 1).collect();
            prop_assert!(score(&set) <= score(&found), "{:?} is better than {:?}", set, found);
            if score(&set) == score(&found) {
                let mut found = found.clone();
                set.reverse();
                found.reverse();
                prop_assert!(set <= found, "{:?} is as good as {:?}, and higher", set, found);
            }
        }
    }
}

/// The NVLinks of a DGX-1V: two between some, one between others, and none between most of the two
/// boards.
#[test]
fn no_set_of_a_cube_mesh_misses_an_nvlink_in_its_ring_where_another_has_it() {
    let mesh = hybrid_cube_mesh();
    let nvlinks = |a: u32, b: u32| {
        let pair = (a.min(b), a.max(b));
        mesh.links
            .iter()
            .find(|link| link.gpus == pair)
            .map_or(0, |link| link.nvlinks)
    };
    // Of four, the rings are three.
    let ring = |set: &[u32]| {
        let orders = [[0, 1, 2, 3], [0, 1, 3, 2], [0, 2, 1, 3]];
        let slowest = |order: &[usize; 4]| {
            (0..4)
                .map(|at| nvlinks(set[order[at]], set[order[(at + 1) % 4]]))
                .min()
                .unwrap_or(0)
        };
        orders.iter().map(slowest).max().unwrap_or(0)
    };
    let sets_of_four = |free: u32| {
        let all = (0u32..256).filter(move |set| set.count_ones() == 4 && set & !free == 0);
        all.map(|set| {
            (0..8)
                .filter(|gpu| set >> gpu & 1 == 1)
                .collect::<Vec<u32>>()
        })
    };
    for free in (0u32..256).filter(|free| free.count_ones() >= 4) {
        let mut snapshot = mesh.clone();
        for gpu in (0..8).filter(|gpu| free >> gpu & 1 == 0) {
            snapshot.gpus[gpu as usize] = busy(gpu);
        }
        let found = chosen(&snapshot, &constraints(4, &snapshot));
        let best = sets_of_four(free).map(|set| ring(&set)).max();
        assert_eq!(Some(ring(&found)), best, "{free:08b}");
    }
}

#[test]
fn one_that_cannot_be_claimed_is_given_where_too_few_others_could_ever_do() {
    let unclaimable = |gpu: Gpu| Gpu {
        unclaimable: Some("why".into()),
        ..gpu
    };
    let chosen = |gpus: Vec<Gpu>, num_gpus, least_used| -> Vec<usize> {
        let snapshot = machine(gpus);
        let wanted = Constraints {
            least_used,
            ..constraints(num_gpus, &snapshot)
        };
        match select(&snapshot, &wanted) {
            Selection::Chosen(ids) => ids.iter().map(|id| id.gpu).collect(),
            _ => Vec::new(),
        }
    };
    let gpus = |first: Gpu| vec![first, unclaimable(idle(1)), unclaimable(idle(2))];
    assert_eq!(chosen(gpus(idle(0)), 1, false), [0]);
    assert_eq!(
        chosen(gpus(busy(0)), 1, false),
        [] as [usize; 0],
        "it waits"
    );
    assert_eq!(chosen(gpus(idle(0)), 2, false), [0, 2]);
    assert_eq!(chosen(gpus(busy(0)), 2, false), [1, 2]);
    let lost = Gpu {
        unusable: Some("lost".into()),
        ..idle(0)
    };
    assert_eq!(chosen(gpus(lost), 1, false), [2]);
    let suspect = Gpu {
        suspect_until: Some(1),
        ..idle(0)
    };
    assert_eq!(chosen(gpus(suspect), 1, false), [0]);
    // The least used may be another's, as one may be that is claimed.
    assert_eq!(chosen(gpus(with_free(idle(0), 1)), 1, true), [0]);
    let claimed = Gpu {
        claims: vec![claim()],
        ..with_free(idle(0), 1)
    };
    assert_eq!(chosen(gpus(claimed), 1, true), [2]);
}
