use super::*;
use crate::gpu::{Mig, ProcessView, Source};

fn gpu(index: u32) -> Gpu {
    Gpu {
        index,
        uuid: Some(format!(
            "GPU-{index}a0b0c0d-0000-0000-0000-00000000000{index}"
        )),
        pci_bus_id: PciBusId::parse(&format!("0000000{}:{:02X}:00.0", index / 2, 0x3a + index)),
        compute_mode: Fact::Value(ComputeMode::Default),
        ..Gpu::default()
    }
}

fn mig_device(index: u32, start: &str) -> MigDevice {
    MigDevice {
        index,
        gpu_instance_id: Some(7 + index),
        compute_instance_id: Some(0),
        uuid: Some(format!("MIG-{start}-0000-0000-0000-000000000000")),
        ..MigDevice::default()
    }
}

fn machine(gpus: Vec<Gpu>) -> Snapshot {
    let (source, process_view) = (Source::Nvml, ProcessView::Host);
    Snapshot {
        recording: None,
        waiting: Vec::new(),
        source,
        driver_version: None,
        process_view,
        gpus,
        links: Vec::new(),
    }
}

/// Two whole GPUs, and between them one that is divided in two.
fn divided() -> Snapshot {
    let mig = Mig {
        devices: vec![mig_device(0, "11111111"), mig_device(2, "11222222")],
    };
    machine(vec![
        gpu(0),
        Gpu {
            mig: Some(mig),
            ..gpu(1)
        },
        gpu(2),
    ])
}

fn lost(gpu: Gpu) -> Gpu {
    Gpu {
        unusable: Some("GPU is lost".into()),
        ..gpu
    }
}

const fn whole(gpu: usize) -> DeviceId {
    DeviceId { gpu, mig: None }
}

const fn part(gpu: usize, mig: usize) -> DeviceId {
    DeviceId {
        gpu,
        mig: Some(mig),
    }
}

#[test]
fn an_id_is_an_index_a_unique_start_of_a_uuid_or_a_pci_bus_id() {
    let snapshot = machine((0..4).map(gpu).collect());
    for (id, expected) in [
        ("0", 0),
        ("3", 3),
        ("GPU-1a0b0c0d-0000-0000-0000-000000000001", 1),
        ("GPU-1", 1),
        ("gpu-2A0B", 2),
        ("00000000:3A:00.0", 0),
        ("00000000:3b:00.0", 1),
        ("0000:3b:00.0", 1),
        ("3b:00.0", 1),
        ("3B:00", 1),
        ("0001:3c:00.0", 2),
        ("1:3C:00", 2),
    ] {
        assert_eq!(
            resolve(id, IdList::Only, &snapshot).ok(),
            Some(vec![whole(expected)]),
            "{id}"
        );
    }
}

#[test]
fn an_id_that_names_no_gpu_or_several_is_a_wrong_value_and_quoted() {
    let snapshot = machine((0..4).map(gpu).collect());
    for (id, expected) in [
        (
            "4",
            "'4' names no GPU here; give an index from 0 to 3, a UUID or a PCI bus id",
        ),
        (
            "99999999999999999999",
            "'99999999999999999999' names no GPU here",
        ),
        ("-1", "'-1' names no GPU here"),
        ("", "'' names no GPU here"),
        ("GPU-9", "'GPU-9' names no GPU here"),
        (
            "GPU-",
            "'GPU-' is ambiguous: 4 UUIDs start with it; use a longer prefix",
        ),
        ("G", "'G' is ambiguous: 4 UUIDs"),
        ("3c:00.0", "'3c:00.0' names no GPU here"),
        ("3b:00.1", "'3b:00.1' names no GPU here"),
        ("0:0:3b:00.0", "names no GPU here"),
        (
            "GPU-1a0b0c0d-0000-0000-0000-0000000000011",
            "names no GPU here",
        ),
        ("größer", "'größer' names no GPU here"),
    ] {
        let error = resolve(id, IdList::Only, &snapshot).expect_err(id);
        assert!(error.is_wrong_value(), "{id}");
        assert!(error.to_string().contains(expected), "{error}");
    }
    let nothing = resolve("0", IdList::Only, &machine(vec![])).expect_err("no GPU");
    assert_eq!(nothing.to_string(), "'0' names no GPU here; there are none");
    let alone = resolve("1", IdList::Only, &machine(vec![gpu(0)])).expect_err("one GPU");
    assert_eq!(
        alone.to_string(),
        "'1' names no GPU here; there is only GPU 0"
    );
}

#[test]
fn a_whole_uuid_is_found_though_another_one_begins_with_it() {
    let longer = Gpu {
        uuid: Some("GPU-1a0b0c0d-0000-0000-0000-000000000001-2".into()),
        ..gpu(0)
    };
    let snapshot = machine(vec![longer, gpu(1)]);
    assert_eq!(
        resolve(
            "GPU-1a0b0c0d-0000-0000-0000-000000000001",
            IdList::Only,
            &snapshot
        )
        .ok(),
        Some(vec![whole(1)])
    );
}

#[test]
fn a_divided_gpu_stands_for_its_mig_devices_and_each_of_them_for_itself() {
    let snapshot = divided();
    for (id, expected) in [
        ("0", &[whole(0)][..]),
        ("1", &[part(1, 0), part(1, 1)]),
        ("GPU-1", &[part(1, 0), part(1, 1)]),
        ("3B:00.0", &[part(1, 0), part(1, 1)]),
        ("MIG-11111111-0000-0000-0000-000000000000", &[part(1, 0)]),
        ("MIG-112", &[part(1, 1)]),
        ("mig-111", &[part(1, 0)]),
        (
            "MIG-GPU-1a0b0c0d-0000-0000-0000-000000000001/9/0",
            &[part(1, 1)],
        ),
    ] {
        assert_eq!(
            resolve(id, IdList::Only, &snapshot).ok().as_deref(),
            Some(expected),
            "{id}"
        );
    }
    let several = resolve("MIG-11", IdList::Only, &snapshot).expect_err("two of them");
    assert!(
        several
            .to_string()
            .contains("'MIG-11' is ambiguous: 2 UUIDs start with it"),
        "{several}"
    );
}

#[test]
fn cuda_visible_devices_allows_what_cuda_would_read_in_it() {
    let snapshot = machine((0..4).map(gpu).collect());
    for (value, expected) in [
        ("0", &[0][..]),
        ("2,1", &[1, 2]),
        (" 1 , 3 ", &[1, 3]),
        // A device that is named twice makes CUDA see none.
        ("1,1", &[]),
        ("0,GPU-0", &[]),
        ("1,9,1", &[1]),
        // CUDA reads the digits and passes over what follows.
        ("1gpu,2ampere", &[1, 2]),
        ("0,GPU-2", &[0, 2]),
        ("GPU-3a0b0c0d-0000-0000-0000-000000000003,0", &[0, 3]),
        // Entries count up to the first invalid one.
        ("1,9,2", &[1]),
        ("1,-1,2", &[1]),
        ("1,,2", &[1]),
        ("1,GPU-,2", &[1]),
        ("1,x,2", &[1]),
        // None.
        ("", &[]),
        ("-1", &[]),
        ("NoDevFiles", &[]),
        ("9,0", &[]),
        ("x", &[]),
    ] {
        let expected: Vec<DeviceId> = expected.iter().copied().map(whole).collect();
        assert_eq!(
            parse_visible_devices(value, &snapshot),
            expected,
            "'{value}'"
        );
    }
}

#[test]
fn cuda_visible_devices_counts_the_gpus_that_cuda_counts() {
    let snapshot = machine(vec![gpu(0), lost(gpu(1)), gpu(2), gpu(3)]);
    assert_eq!(
        parse_visible_devices("0,1", &snapshot),
        [whole(0), whole(2)]
    );
    assert_eq!(parse_visible_devices("3", &snapshot), []);
    // CUDA does count a GPU on which it may not compute.
    let prohibited = Gpu {
        compute_mode: Fact::Value(ComputeMode::Prohibited),
        ..lost(gpu(1))
    };
    let snapshot = machine(vec![gpu(0), prohibited, gpu(2)]);
    assert_eq!(parse_visible_devices("2", &snapshot), [whole(2)]);
}

#[test]
fn cuda_visible_devices_may_name_mig_devices() {
    let snapshot = divided();
    assert_eq!(parse_visible_devices("MIG-112", &snapshot), [part(1, 1)]);
    assert_eq!(
        parse_visible_devices(
            "MIG-GPU-1a0b0c0d-0000-0000-0000-000000000001/7/0",
            &snapshot
        ),
        [part(1, 0)]
    );
    assert_eq!(
        parse_visible_devices("GPU-1", &snapshot),
        [part(1, 0), part(1, 1)]
    );
}

#[test]
fn ids_are_indices_where_these_are_cudas_ordinals_and_uuids_elsewhere() {
    let uuid = |index: u32| gpu(index).uuid.expect("known");
    let plain = machine((0..3).map(gpu).collect());
    let prohibited = Gpu {
        compute_mode: Fact::Value(ComputeMode::Prohibited),
        ..lost(gpu(0))
    };
    let gap = machine(vec![gpu(0), gpu(2)]);
    let bus_only = Gpu {
        uuid: None,
        ..gpu(0)
    };
    for (what, snapshot, chosen, form, expected) in [
        (
            "all healthy",
            &plain,
            &[whole(1)][..],
            IdForm::Index,
            vec!["1".to_owned()],
        ),
        (
            "ascending",
            &plain,
            &[whole(2), whole(0)],
            IdForm::Index,
            vec!["0".into(), "2".into()],
        ),
        (
            "UUIDs asked for",
            &plain,
            &[whole(0), whole(2)],
            IdForm::Uuid,
            vec![uuid(0), uuid(2)],
        ),
        (
            "a lost one before",
            &machine(vec![lost(gpu(0)), gpu(1)]),
            &[whole(1)],
            IdForm::Index,
            vec![uuid(1)],
        ),
        (
            "a lost one behind",
            &machine(vec![gpu(0), lost(gpu(1))]),
            &[whole(0)],
            IdForm::Index,
            vec![uuid(0)],
        ),
        (
            "one that is not permitted",
            &machine(vec![
                lost(Gpu {
                    uuid: None,
                    ..gpu(0)
                }),
                gpu(1),
            ]),
            &[whole(1)],
            IdForm::Index,
            vec![uuid(1)],
        ),
        (
            "a prohibited one, which CUDA counts",
            &machine(vec![prohibited, gpu(1)]),
            &[whole(1)],
            IdForm::Index,
            vec!["1".into()],
        ),
        (
            "a gap in the indices",
            &gap,
            &[whole(1)],
            IdForm::Index,
            vec![uuid(2)],
        ),
        (
            "a whole one beside MIG",
            &divided(),
            &[whole(2)],
            IdForm::Index,
            vec![uuid(2)],
        ),
        (
            "MIG",
            &divided(),
            &[part(1, 1)],
            IdForm::Index,
            vec!["MIG-11222222-0000-0000-0000-000000000000".into()],
        ),
        (
            "an unknown UUID that is not needed",
            &machine(vec![bus_only]),
            &[whole(0)],
            IdForm::Index,
            vec!["0".into()],
        ),
    ] {
        assert_eq!(
            for_cuda(chosen, form, snapshot).ok(),
            Some(expected),
            "{what}"
        );
    }
}

#[test]
fn an_unknown_uuid_is_not_replaced_by_an_index_that_may_mean_another_gpu() {
    let snapshot = machine(vec![
        Gpu {
            uuid: None,
            ..gpu(0)
        },
        gpu(1),
    ]);
    let error = for_cuda(&[whole(0)], IdForm::Uuid, &snapshot).expect_err("unknown");
    assert!(
        error
            .to_string()
            .contains("the UUID of GPU 0 cannot be read"),
        "{error}"
    );
}

#[test]
fn an_id_holds_nothing_that_a_shell_would_read_otherwise() {
    for uuid in [
        "GPU-$(touch x)",
        "GPU-`touch x`",
        "GPU-'",
        "GPU-\"",
        "GPU-1 2",
        "GPU-1;2",
        "GPU-1\n2",
        "GPU-*",
        "GPU-1,2",
        "GPÜ",
        "",
    ] {
        for source in [Source::File, Source::Nvml] {
            let odd = Gpu {
                uuid: Some(uuid.into()),
                ..gpu(0)
            };
            let snapshot = Snapshot {
                source,
                ..machine(vec![odd])
            };
            let error = for_cuda(&[whole(0)], IdForm::Uuid, &snapshot).expect_err(uuid);

            assert_eq!(error.is_wrong_value(), source == Source::File, "{uuid}");
            assert!(!error.to_string().contains('\n'), "{error}");
            assert_eq!(
                for_cuda(&[whole(0)], IdForm::Index, &snapshot).ok(),
                Some(vec!["0".to_owned()])
            );
        }
    }
    let named = |uuid: &str| {
        machine(vec![Gpu {
            uuid: Some(uuid.into()),
            ..gpu(0)
        }])
    };
    for uuid in [
        "GPU-1a0b0c0d-0000-0000-0000-000000000001",
        "MIG-GPU-1a0b0c0d-0000-0000-0000-000000000001/9/0",
    ] {
        assert_eq!(
            for_cuda(&[whole(0)], IdForm::Uuid, &named(uuid)).ok(),
            Some(vec![uuid.to_owned()])
        );
    }
}
