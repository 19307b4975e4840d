//! `cargo bench`: what the program costs, in one table. It needs no GPU, only a C compiler, and
//! takes less than five minutes. `AUTOCVD_BENCH_RESULTS=FILE` also writes the table to a file, as
//! JSON.
//!
//! Whole programs run on a library whose calls cost next to nothing (native/free_nvml.c): what is
//! measured is their own work. gpu_check.py measures what a real driver adds.

mod contention;
mod latency;
mod others;
mod report;
mod scale;
mod setup;
mod timing;

use report::Report;
use setup::Bench;

fn main() -> std::io::Result<()> {
    let bench = Bench::set_up()?;
    let mut report = Report::new();
    latency::measure(&bench, &mut report)?;
    contention::measure(&bench, &mut report)?;
    scale::measure(&bench, &mut report)?;
    report.write()
}
