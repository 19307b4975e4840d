//! How the costs grow with the machine and with the number of waiters.

use crate::contention::{Waiter, until};
use crate::report::{Measure, Report};
use crate::setup::Bench;
use crate::timing::{Subject, median, race};
use std::fs;
use std::io;
use std::time::Instant;

const ROUNDS: usize = 60;

pub(crate) fn measure(bench: &Bench, report: &mut Report) -> io::Result<()> {
    let on = |gpus: usize, processes: usize, arguments: &[&str]| {
        let mut command = bench.autocvd(arguments);
        command
            .env("FREE_NVML_GPUS", gpus.to_string())
            .env("FREE_NVML_PROCESSES", processes.to_string());
        command
    };
    report.section("Growth with the number of GPUs");
    let mut subjects = Vec::new();
    for gpus in [1, 2, 4, 8, 16, 32, 64] {
        subjects.push(Subject::new(
            format!("autocvd, {gpus} idle GPUs"),
            on(gpus, 0, &[]),
        ));
    }
    rows(bench, report, &mut subjects)?;

    report.section("Growth with the processes on each of 8 GPUs: all are looked at, none is free");
    let mut subjects = Vec::new();
    for processes in [1, 10, 100, 1000] {
        let name = format!("autocvd -t 0, {processes} processes a GPU");
        subjects.push(Subject::new(name, on(8, processes, &["-t", "0"])).ends_in(4));
    }
    rows(bench, report, &mut subjects)?;

    report.section(
        "Growth with the number of waiters: from the end of a claim to the answer of the first",
    );
    for waiters in [1, 4, 16, 64, 256] {
        let mut times = Vec::new();
        for _ in 0..if waiters > 64 { 3 } else { 7 } {
            bench.forget_claims();
            times.push(wake(bench, waiters)?);
        }
        report.row(
            &format!("{waiters} waiting for one GPU"),
            Measure::Time(median(times)),
        );
    }
    Ok(())
}

fn rows(bench: &Bench, report: &mut Report, subjects: &mut [Subject]) -> io::Result<()> {
    let times = race(subjects, ROUNDS, || bench.forget_claims())?;
    for (subject, time) in subjects.iter().zip(&times) {
        let ratio = time.as_secs_f64() / times[0].as_secs_f64();
        report.row_with(
            &subject.name,
            Measure::Time(*time),
            &format!("{ratio:.2} × the first"),
        );
    }
    Ok(())
}

/// A claim on the only GPU ends while so many wait for it: how long until the first has it?
fn wake(bench: &Bench, waiters: usize) -> io::Result<std::time::Duration> {
    let file = bench.path("claimed");
    let _ = fs::remove_file(&file);
    let mut holder = bench.autocvd(&["-q", "--", "/bin/sh", "-c", r#": >"$0"; exec sleep 1000"#]);
    let mut holder = holder.arg(&file).env("FREE_NVML_GPUS", "1").spawn()?;
    until(|| file.exists())?;
    let mut waiting = Vec::new();
    for _ in 0..waiters {
        // What the first prints stays claimed, so that the others wait on.
        waiting.push(Waiter::start(
            bench.autocvd(&["-o"]).env("FREE_NVML_GPUS", "1"),
        )?);
    }
    let start = Instant::now();
    holder.kill()?;
    holder.wait()?;
    let time = waiting.remove(0).answer(start);
    waiting.into_iter().for_each(Waiter::end);
    time
}
