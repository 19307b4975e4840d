use super::{ListedMigDevice, Output, find, name_mig_devices, parse, parse_list, probe_with, read};
use crate::gpu::Snapshot;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/smi");

fn fixture(name: &str) -> Vec<u8> {
    fs::read(Path::new(FIXTURES).join(name)).expect("a fixture")
}

fn output(code: Option<i32>, stdout: &[u8], stderr: &str) -> Output {
    Output {
        code,
        stdout: stdout.to_vec(),
        stderr: stderr.into(),
    }
}

/// A stand-in for nvidia-smi in `directory`.
fn program(directory: &Path, script: &str) -> PathBuf {
    let path = directory.join("nvidia-smi");
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("made executable");
    path
}

/// As [`probe_with`], again while another test's child still holds the fresh script open for
/// writing (ETXTBSY).
fn probe(program: &Path, time_limit: Duration) -> Result<Snapshot, String> {
    loop {
        match probe_with(program.as_os_str(), time_limit) {
            Err(error) if error.contains("Text file busy") => std::thread::yield_now(),
            result => return result,
        }
    }
}

fn uuids(snapshot: &Snapshot) -> Vec<Option<&str>> {
    let devices = snapshot
        .gpus
        .iter()
        .flat_map(|gpu| &gpu.mig)
        .flat_map(|mig| &mig.devices);
    devices.map(|device| device.uuid.as_deref()).collect()
}

#[test]
fn a_whole_document_is_used_whatever_the_exit_code() {
    for code in [Some(0), Some(14), Some(15), Some(255), None] {
        let snapshot = read(&output(
            code,
            &fixture("418.xml"),
            "WARNING: infoROM is corrupted",
        ));
        assert_eq!(
            snapshot.map(|snapshot| snapshot.gpus.len()),
            Ok(2),
            "{code:?}"
        );
    }
}

#[test]
fn a_document_without_gpus_is_believed_only_of_a_success() {
    let empty = fixture("empty.xml");
    assert_eq!(
        read(&output(Some(0), &empty, "")).map(|snapshot| snapshot.gpus.len()),
        Ok(0)
    );
    let error = read(&output(Some(9), &empty, "")).expect_err("it failed");
    assert!(error.contains("modprobe nvidia"), "{error}");
}

#[test]
fn a_broken_document_says_what_is_wrong_with_it() {
    let whole = fixture("418.xml");
    let error = read(&output(Some(0), &whole[..2000], "")).expect_err("cut off");
    assert!(
        error.contains("ends in the middle") && error.contains("nvidia-smi -q -x"),
        "{error}"
    );
    let error = read(&output(Some(15), &whole[..2000], "")).expect_err("cut off");
    assert!(
        error.contains("exit code 15") && error.contains("Xid"),
        "{error}"
    );
}

#[test]
fn messages_are_understood_on_either_stream() {
    for code in [Some(0), Some(6)] {
        let error = read(&output(code, b"No devices were found\n", "")).expect_err("no document");
        assert!(error.contains("lspci"), "{error}");
        let error = read(&output(code, b"", "No devices were found\n")).expect_err("no document");
        assert!(error.contains("lspci"), "{error}");
    }
}

#[test]
fn mig_devices_get_their_uuids_and_names_from_the_list() {
    let mut snapshot = parse(&fixture("mig.xml")).expect("a document");
    name_mig_devices(&mut snapshot, || parse_list(&fixture("list.txt")));
    let expected = [
        "MIG-feb88891-0321-5fef-9c87-d4af3b542500",
        "MIG-a25704ba-3a06-5299-a795-fd7cf4d13900",
    ];
    assert_eq!(uuids(&snapshot), expected.map(Some));
    let device = &snapshot.gpus[0].mig.as_ref().expect("MIG").devices[1];
    assert_eq!(
        device.name.as_deref(),
        Some("NVIDIA A100-SXM4-40GB MIG 3g.20gb")
    );
}

#[test]
fn a_mig_device_that_is_not_listed_has_a_name_only_before_driver_470() {
    let mut snapshot = parse(&fixture("mig-460-container.xml")).expect("a document");
    name_mig_devices(&mut snapshot, Vec::new);
    assert_eq!(
        uuids(&snapshot),
        [Some("MIG-GPU-eeeeeeee-1111-2222-3333-444455556666/10/0")]
    );
    let mut snapshot = parse(&fixture("mig.xml")).expect("a document");
    name_mig_devices(&mut snapshot, Vec::new);
    assert_eq!(uuids(&snapshot), [None, None]);
}

#[test]
fn the_list_is_not_asked_for_without_need() {
    let unexpected = || -> Vec<ListedMigDevice> { panic!("asked") };
    name_mig_devices(
        &mut parse(&fixture("590.xml")).expect("a document"),
        unexpected,
    );
    let mut snapshot = parse(&fixture("mig.xml")).expect("a document");
    name_mig_devices(&mut snapshot, || parse_list(&fixture("list.txt")));
    name_mig_devices(&mut snapshot, unexpected);
}

#[test]
fn a_probe_asks_once_and_for_mig_twice() {
    let directory = tempfile::tempdir().expect("a directory");
    let script = format!(
        "echo \"$*\" >> \"$0.log\"; [ \"$1\" = -L ] && exec cat '{FIXTURES}/list.txt'; \
         cat '{FIXTURES}'/"
    );
    for (name, calls) in [("590.xml", "-q -x\n"), ("mig.xml", "-q -x\n-L\n")] {
        let smi = program(directory.path(), &format!("{script}{name}"));
        let snapshot = probe(&smi, Duration::from_secs(60)).expect("read");
        assert!(uuids(&snapshot).iter().all(Option::is_some));
        let log = smi.with_extension("log");
        assert_eq!(fs::read_to_string(&log).expect("a log"), calls);
        fs::remove_file(log).expect("removed");
    }
}

#[test]
fn a_probe_that_hangs_names_the_limit() {
    let directory = tempfile::tempdir().expect("a directory");
    let smi = program(directory.path(), "sleep 30");
    let error = probe(&smi, Duration::from_millis(200)).expect_err("hangs");
    assert!(error.contains("200ms"), "{error}");
}

#[test]
fn a_list_that_hangs_costs_the_uuids_alone() {
    let directory = tempfile::tempdir().expect("a directory");
    let smi = program(
        directory.path(),
        &format!("[ \"$1\" = -L ] && exec sleep 30; cat '{FIXTURES}/mig.xml'"),
    );
    let snapshot = probe(&smi, Duration::from_secs(3)).expect("read");
    assert_eq!(uuids(&snapshot), [None, None]);
}

#[test]
fn the_program_is_found_on_path() {
    let directory = tempfile::tempdir().expect("a directory");
    let (first, second) = (directory.path().join("a"), directory.path().join("b"));
    for directory in [&first, &second] {
        fs::create_dir(directory).expect("a directory");
    }
    let smi = program(&second, "");
    // A directory and a file that cannot be run are passed over.
    fs::create_dir(first.join("nvidia-smi")).expect("a directory");
    let path = std::env::join_paths([Path::new("relative"), &first, &second]).expect("a PATH");
    assert_eq!(find(Some(&path)), Some(smi.clone()));
    fs::set_permissions(&smi, fs::Permissions::from_mode(0o644)).expect("made unusable");
    assert_ne!(find(Some(&path)), Some(smi));
    assert_eq!(find(None), find(Some(OsStr::new(""))));
}
