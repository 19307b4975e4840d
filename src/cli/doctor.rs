//! `autocvd doctor`: what is found here, and what to do about what is not well.

mod checks;
mod mounts;

use super::exit_code::ExitCode;
use super::failure::Failure;
use super::signals;
use super::standard_output::print;
use autocvd::{Environment, Error, Observer, ProbeChoice, Snapshot, StatusReader};
use std::fmt::Write as _;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// How long the driver may take before it counts as hanging.
const LIMIT: Duration = Duration::from_secs(30);

/// One thing that was looked at.
struct Finding {
    subject: &'static str,
    text: String,
    /// What to do, where it is not well.
    advice: Option<String>,
}

impl Finding {
    fn well(subject: &'static str, text: impl Into<String>) -> Self {
        Self {
            subject,
            text: text.into(),
            advice: None,
        }
    }

    fn unwell(subject: &'static str, text: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            subject,
            text: text.into(),
            advice: Some(advice.into()),
        }
    }
}

/// What the driver answered.
enum Answer {
    Machine(Box<Machine>),
    Nothing(Error),
    /// It did not within [`LIMIT`].
    Hangs,
}

/// The machine as it was read.
struct Machine {
    snapshot: Snapshot,
    took: Duration,
    /// By the indices of the GPUs that tell it.
    persistence: Vec<(u32, bool)>,
    warnings: Vec<String>,
}

impl Machine {
    /// Whether the driver can read none of its GPUs.
    fn cannot_be_read(&self) -> bool {
        self.snapshot.gpus.iter().all(|gpu| gpu.unusable.is_some())
    }
}

/// Looks at everything that a launch rests on, and prints it.
///
/// # Errors
/// Something is not well; what it is has been printed.
pub(super) fn run() -> Result<(), Failure> {
    signals::end_silently();
    let environment = Environment::read();
    let answer = ask_driver(&environment);
    let findings = checks::all(&environment, &answer);
    print(&report(&findings))?;
    let unwell = findings.iter().filter(|finding| finding.advice.is_some());
    let code = match (&answer, unwell.count()) {
        (Answer::Machine(_), 0) => return Ok(()),
        (Answer::Machine(machine), _) if machine.cannot_be_read() => ExitCode::NoGpu,
        (Answer::Machine(_), _) => ExitCode::Unexpected,
        (Answer::Nothing(_) | Answer::Hangs, _) => ExitCode::NoGpu,
    };
    Err(Failure::new(
        code,
        "not all is well: each line marked '!' says what to do",
    ))
}

fn report(findings: &[Finding]) -> String {
    let host = rustix::system::uname();
    let mut text = format!(
        "autocvd {} on {} {} ({})\n",
        env!("CARGO_PKG_VERSION"),
        host.sysname().to_string_lossy(),
        host.release().to_string_lossy(),
        host.machine().to_string_lossy()
    );
    for finding in findings {
        let mark = if finding.advice.is_some() { '!' } else { ' ' };
        let shown = autocvd::program::printable(finding.text.as_bytes());
        // A String takes all that is written to it.
        let _ = write!(text, "\n{mark} {:<21} {shown}", finding.subject);
        if let Some(advice) = &finding.advice {
            let _ = write!(text, "\n  {:<21} -> {advice}", "");
        }
    }
    text
}

/// Reads the machine on a thread that a hanging driver keeps: the process ends all the same.
fn ask_driver(environment: &Environment) -> Answer {
    let (sender, receiver) = mpsc::channel();
    // They are among the findings.
    let quiet = environment.clone().without_warnings();
    let look = move || {
        let mut warnings = Warnings(Vec::new());
        let started = Instant::now();
        let read =
            StatusReader::open(&ProbeChoice::Auto, &quiet, &mut warnings).and_then(|reader| {
                let mut reader = reader.without_links();
                let snapshot = reader.look(&mut warnings)?;
                Ok((snapshot, started.elapsed(), reader.persistence_mode()))
            });
        let answer = match read {
            Ok((snapshot, took, persistence)) => Answer::Machine(Box::new(Machine {
                snapshot,
                took,
                persistence,
                warnings: warnings.0,
            })),
            Err(error) => Answer::Nothing(error),
        };
        // The receiver is gone where it came too late.
        let _ = sender.send(answer);
    };
    let started = std::thread::Builder::new().spawn(look);
    started
        .ok()
        .and_then(|_| receiver.recv_timeout(LIMIT).ok())
        .unwrap_or(Answer::Hangs)
}

struct Warnings(Vec<String>);

impl Observer for Warnings {
    fn warn(&mut self, text: &str) {
        self.0.push(text.to_owned());
    }
}
