//! Many launches at once, and waiting.

use crate::report::{Measure, Report};
use crate::setup::Bench;
use crate::timing::median;
use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

const REPEATS: usize = 15;

pub(crate) fn measure(bench: &Bench, report: &mut Report) -> io::Result<()> {
    report.section("Launches at once (64 idle GPUs): all have chosen, claimed and ended");
    for launches in [1_u32, 8, 64] {
        let mut times = Vec::new();
        for _ in 0..REPEATS {
            bench.forget_claims();
            times.push(together(bench, launches)?);
        }
        let time = median(times);
        let remark = format!(
            "{:.2} ms each",
            time.as_secs_f64() * 1e3 / f64::from(launches)
        );
        report.row_with(
            &format!("{launches} × autocvd -- true"),
            Measure::Time(time),
            &remark,
        );
    }

    report.section("Waiting");
    looks(bench, report)?;
    bench.forget_claims();
    let mut times = Vec::new();
    for _ in 0..REPEATS {
        times.push(after_exit(bench)?);
    }
    let name = "from the exit of the process on a GPU to the answer";
    report.row_with(
        name,
        Measure::Time(median(times)),
        "(promised: at most 50 ms)",
    );
    Ok(())
}

fn together(bench: &Bench, launches: u32) -> io::Result<Duration> {
    let start = Instant::now();
    let started = (0..launches).map(|_| {
        let mut command = bench.autocvd(&["-q", "-t", "60", "--", "/bin/true"]);
        command
            .env("FREE_NVML_GPUS", "64")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
    });
    for mut child in started.collect::<io::Result<Vec<Child>>>()? {
        let status = child.wait()?;
        if !status.success() {
            return Err(io::Error::other(format!(
                "a launch among {launches} ended with {status}"
            )));
        }
    }
    Ok(start.elapsed())
}

/// How fast a waiter can look, and what a look costs it.
fn looks(bench: &Bench, report: &mut Report) -> io::Result<()> {
    const SECONDS: f64 = 2.0;
    let counter = bench.path("looks");
    fs::write(&counter, [0; 8])?;
    let mut command = bench.autocvd(&["-q", "-t", "2", "-i", "1ms"]);
    command
        .env("FREE_NVML_PROCESSES", "1")
        .env("FREE_NVML_LOOKS", &counter);
    let (_, microseconds) = bench.usage(&command)?;
    let mut count = [0; 8];
    fs::File::open(&counter)?.read_exact(&mut count)?;
    let count = u64::from_ne_bytes(count) as f64;
    let cpu = Duration::from_secs_f64(microseconds / 1e6 / count.max(1.0));
    report.row(
        "looks of a waiter with -i 1ms (8 busy GPUs)",
        Measure::PerSecond(count / SECONDS),
    );
    report.row("processor time of one such look", Measure::Time(cpu));
    Ok(())
}

/// A process on the only GPU ends: how long until the waiter answers?
fn after_exit(bench: &Bench) -> io::Result<Duration> {
    let file = bench.path("held");
    fs::write(&file, "")?;
    let script = r#"exec 9<>"$0"; flock 9; echo $$ >"$0"; exec sleep 1000 </dev/null >/dev/null"#;
    let mut job = bench
        .command("/bin/sh")
        .arg("-c")
        .arg(script)
        .arg(&file)
        .spawn()?;
    until(|| fs::read_to_string(&file).is_ok_and(|text| text.ends_with('\n')))?;
    let mut waiter = bench.autocvd(&["--no-claim"]);
    let waiter = Waiter::start(
        waiter
            .env("FREE_NVML_GPUS", "1")
            .env("FREE_NVML_HELD", &file),
    )?;
    let start = Instant::now();
    job.kill()?;
    // It is to be gone, as with a shell that waits for it.
    job.wait()?;
    waiter.answer(start)
}

/// An autocvd that waits.
pub(crate) struct Waiter {
    child: Child,
    stdout: ChildStdout,
}

impl Waiter {
    /// Returns once it waits: it tells so on stderr.
    pub(crate) fn start(command: &mut Command) -> io::Result<Self> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let stderr = stderr.expect("it is piped");
        let mut line = String::new();
        BufReader::new(stderr).read_line(&mut line)?;
        if !line.contains("waiting") {
            let _ = child.kill();
            return Err(io::Error::other(format!(
                "it does not wait, but says {line:?}"
            )));
        }
        // The line comes just before it sleeps.
        std::thread::sleep(Duration::from_millis(2));
        Ok(Self {
            child,
            stdout: stdout.expect("it is piped"),
        })
    }

    /// The time from `start` to its answer.
    pub(crate) fn answer(mut self, start: Instant) -> io::Result<Duration> {
        let read = self.stdout.read(&mut [0; 256])?;
        let time = start.elapsed();
        let status = self.child.wait()?;
        if read == 0 || !status.success() {
            return Err(io::Error::other(format!("the waiter ended with {status}")));
        }
        Ok(time)
    }

    pub(crate) fn end(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn until(mut condition: impl FnMut() -> bool) -> io::Result<()> {
    let end = Instant::now() + Duration::from_secs(20);
    while !condition() {
        if Instant::now() > end {
            return Err(io::Error::other("waited 20 s in vain"));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}
