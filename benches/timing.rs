//! Medians of interleaved runs: what slows the machine down for a while slows all rows alike.

use std::io;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A program to be timed, from its start to its end.
pub(crate) struct Subject {
    pub(crate) name: String,
    pub(crate) command: Command,
    /// It runs in one of so many rounds: what is slow runs seldom.
    pub(crate) one_in: usize,
    /// The exit code it must have.
    pub(crate) code: i32,
}

impl Subject {
    pub(crate) fn new(name: impl Into<String>, mut command: Command) -> Self {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Self {
            name: name.into(),
            command,
            one_in: 1,
            code: 0,
        }
    }

    pub(crate) fn one_in(self, one_in: usize) -> Self {
        Self { one_in, ..self }
    }

    pub(crate) fn ends_in(self, code: i32) -> Self {
        Self { code, ..self }
    }
}

/// The median time of each subject; `before` is called before each run, untimed.
pub(crate) fn race(
    subjects: &mut [Subject],
    rounds: usize,
    mut before: impl FnMut(),
) -> io::Result<Vec<Duration>> {
    let mut times = vec![Vec::new(); subjects.len()];
    for round in 0..rounds {
        for (subject, times) in subjects.iter_mut().zip(&mut times) {
            if round % subject.one_in != 0 {
                continue;
            }
            before();
            let start = Instant::now();
            let status = subject.command.status()?;
            times.push(start.elapsed());
            if status.code() != Some(subject.code) {
                let what = format!(
                    "{}: ended with {status}: {:?}",
                    subject.name, subject.command
                );
                return Err(io::Error::other(what));
            }
        }
    }
    Ok(times.into_iter().map(median).collect())
}

pub(crate) fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}
