//! Decisions on random machines are what docs/contract.md says: an independent judge in Python,
//! which knows the contract and not the code, decides each of them too. A long run: `python3
//! tests/judge/judge.py --help`.
#![cfg(feature = "cli")]

mod common;

use std::process::Command;

#[test]
fn an_independent_judge_decides_random_machines_alike() {
    let judge = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/judge/judge.py");
    if !Command::new("python3")
        .arg("--version")
        .output()
        .is_ok_and(|out| out.status.success())
    {
        return common::skip("needs python3");
    }
    let machine = common::Machine::gpus(1);
    let judged = Command::new("python3")
        .arg(judge)
        .args([
            "--program",
            common::AUTOCVD,
            "--cases",
            "400",
            "--seed",
            "suite",
            "--nvml",
        ])
        .arg(machine.nvml_library())
        .output()
        .expect("python3 runs");
    let told = String::from_utf8_lossy(&judged.stdout);
    assert!(
        told.contains("400 cases, 0 disagreements"),
        "{told}{}",
        String::from_utf8_lossy(&judged.stderr)
    );
}
