//! Whole programs, from start to end, beside the least that a program could do.

use crate::others;
use crate::report::{Measure, Report};
use crate::setup::{AUTOCVD, Bench};
use crate::timing::{Subject, race};
use std::io;
use std::path::Path;
use std::time::Duration;

const ROUNDS: usize = 240;
const REAL_NVIDIA_SMI: &str = "/usr/bin/nvidia-smi";

pub(crate) fn measure(bench: &Bench, report: &mut Report) -> io::Result<()> {
    let mut subjects = vec![
        Subject::new(
            "floor: a C program with the fewest NVML calls",
            bench.command(bench.native("floor")),
        ),
        Subject::new("autocvd", bench.autocvd(&[])),
        Subject::new("autocvd --no-claim", bench.autocvd(&["--no-claim"])),
        Subject::new("autocvd -o -n 4", bench.autocvd(&["-o", "-n", "4"])),
        Subject::new("true", bench.command("/bin/true")),
        Subject::new("autocvd -- true", bench.autocvd(&["--", "/bin/true"])),
        Subject::new("stand-in nvidia-smi -q -x (sh and cat)", {
            let mut command = bench.command(bench.path("bin/nvidia-smi"));
            command.args(["-q", "-x"]);
            command
        })
        .one_in(2),
        Subject::new(
            "autocvd on the stand-in nvidia-smi",
            bench.autocvd(&["-l", "--probe", "nvidia-smi"]),
        )
        .one_in(2),
    ];
    let mut skipped = Vec::new();
    if Path::new(REAL_NVIDIA_SMI).exists() {
        let name = "nvidia-smi -q -x";
        let mut command = std::process::Command::new(REAL_NVIDIA_SMI);
        command.args(["-q", "-x"]);
        subjects.push(Subject::new(name, command).one_in(20));
    } else {
        skipped.push((
            "nvidia-smi -q -x".to_owned(),
            "there is none on this machine".to_owned(),
        ));
    }
    for other in others::all(bench) {
        match other {
            Ok(subject) => subjects.push(subject.one_in(8)),
            Err(reason) => skipped.push(reason),
        }
    }
    let times = race(&mut subjects, ROUNDS, || bench.forget_claims())?;
    report.section("One launch (8 idle GPUs)");
    let ratio = |time: Duration, to: Duration| time.as_secs_f64() / to.as_secs_f64();
    for (subject, time) in subjects.iter().zip(&times) {
        let remark = match (ratio(*time, times[0]), ratio(*time, times[1])) {
            (to_floor, _) if to_floor < 10.0 => format!("{to_floor:.2} × floor"),
            (_, to_autocvd) => format!("{to_autocvd:.0} × autocvd"),
        };
        report.row_with(&subject.name, Measure::Time(*time), &remark);
    }
    for (name, why) in &skipped {
        report.skipped(name, why);
    }

    report.section("Size");
    bench.forget_claims();
    let (floor, _) = bench.usage(&bench.command(bench.native("floor")))?;
    let (own, _) = bench.usage(&bench.autocvd(&[]))?;
    report.row("peak memory of the floor", Measure::Kib(floor));
    let remark = format!(
        "floor + {:.2} MiB (goal: at most 4)",
        (own - floor) / 1024.0
    );
    report.row_with("peak memory of autocvd", Measure::Kib(own), &remark);
    report.row_with(
        "the program's file",
        Measure::Bytes(std::fs::metadata(AUTOCVD)?.len()),
        "(goal: below 1.5)",
    );
    Ok(())
}
