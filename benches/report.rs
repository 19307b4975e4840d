//! The table, for people and as JSON.

use serde_json::{Value, json};
use std::io;
use std::process::Command;
use std::time::Duration;

/// One value.
#[derive(Clone, Copy)]
pub(crate) enum Measure {
    Time(Duration),
    PerSecond(f64),
    Kib(f64),
    Bytes(u64),
}

impl Measure {
    fn text(self) -> String {
        match self {
            Self::Time(time) if time < Duration::from_micros(1) => {
                format!("{} ns", time.as_nanos())
            }
            Self::Time(time) if time < Duration::from_millis(1) => {
                format!("{:.1} µs", time.as_secs_f64() * 1e6)
            }
            Self::Time(time) => format!("{:.2} ms", time.as_secs_f64() * 1e3),
            Self::PerSecond(rate) => format!("{rate:.0} /s"),
            Self::Kib(kib) => format!("{:.2} MiB", kib / 1024.0),
            Self::Bytes(bytes) => format!("{:.3} MB", bytes as f64 / 1e6),
        }
    }

    fn json(self) -> (&'static str, Value) {
        match self {
            Self::Time(time) => ("microseconds", json!(time.as_nanos() as f64 / 1e3)),
            Self::PerSecond(rate) => ("per_second", json!(rate.round())),
            Self::Kib(kib) => ("kib", json!(kib)),
            Self::Bytes(bytes) => ("bytes", json!(bytes)),
        }
    }
}

pub(crate) struct Report {
    section: String,
    rows: Vec<Value>,
}

impl Report {
    pub(crate) fn new() -> Self {
        Self {
            section: String::new(),
            rows: Vec::new(),
        }
    }

    pub(crate) fn section(&mut self, title: &str) {
        self.section = title.to_owned();
        println!("\n{title}");
    }

    pub(crate) fn row(&mut self, name: &str, measure: Measure) {
        self.row_with(name, measure, "");
    }

    /// A row with a remark, such as its ratio to another.
    pub(crate) fn row_with(&mut self, name: &str, measure: Measure, remark: &str) {
        println!("  {name:<58} {:>11}  {remark}", measure.text());
        let (device, value) = measure.json();
        self.rows
            .push(json!({"section": self.section, "name": name, device: value, "remark": remark}));
    }

    pub(crate) fn skipped(&mut self, name: &str, why: &str) {
        println!("  {name:<58}     skipped  {why}");
        self.rows
            .push(json!({"section": self.section, "name": name, "skipped": why}));
    }

    /// Writes the file that the environment names.
    pub(crate) fn write(&self) -> io::Result<()> {
        let Some(path) = std::env::var_os("AUTOCVD_BENCH_RESULTS") else {
            return Ok(());
        };
        let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpus
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let document = json!({
            "command": "cargo bench",
            "date": output("date", "+%F"),
            "commit": output("git", "describe --always --dirty"),
            "machine": {
                "cpu": model.map(|(_, model)| model),
                "cores": std::thread::available_parallelism().map_or(0, usize::from),
                "kernel": output("uname", "-sr"),
                "load": load.split(' ').next(),
            },
            "rows": self.rows,
        });
        std::fs::write(path, format!("{document:#}\n"))
    }
}

fn output(program: &str, arguments: &str) -> Option<String> {
    let output = Command::new(program)
        .args(arguments.split(' '))
        .output()
        .ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
