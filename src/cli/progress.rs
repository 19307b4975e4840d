//! What is told on standard error while waiting.

use super::signals;
use crate::acquire::{Observer, Waiting};
use crate::gpu::State;
use crate::select;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// The longest line on a terminal of unknown width.
const WIDTH: usize = 80;

/// Tells of a wait: one line in place on a terminal, else a line when the picture changes.
pub(super) struct Progress {
    quiet: bool,
    terminal: bool,
    picture: String,
    deadline: Option<Instant>,
    told: String,
    timeout: Option<Duration>,
}

impl Progress {
    pub(super) fn new(quiet: bool, timeout: Option<Duration>) -> Self {
        let terminal = !quiet && std::io::stderr().is_terminal();
        Self { quiet, terminal, picture: String::new(), deadline: None, told: String::new(), timeout }
    }

    /// Leaves the terminal's line to what comes next.
    pub(super) fn finish(&self) {
        signals::clear_line();
    }

    fn tell(&mut self) {
        let left = self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let line = match left {
            // Elsewhere than on a terminal the time left is no change of the picture.
            Some(left) if self.terminal => format!("{}; gives up in {}", self.picture, duration(left)),
            _ => self.picture.clone(),
        };
        if line == self.told {
            return;
        }
        let mut stderr = std::io::stderr().lock();
        if self.terminal {
            let width = rustix::termios::tcgetwinsize(&stderr).map_or(WIDTH, |size| usize::from(size.ws_col).max(20));
            let shown: String = match line.char_indices().nth(width - 1) {
                Some((end, _)) => format!("{}…", line[..end].chars().take(width - 2).collect::<String>()),
                None => line.clone(),
            };
            let _ = write!(stderr, "\r\x1b[K{shown}");
            signals::set_line_open(true);
        } else {
            let limit = self.timeout.map(|limit| format!("; gives up after {}", duration(limit))).unwrap_or_default();
            let _ = writeln!(stderr, "{line}{}", if self.told.is_empty() { limit } else { String::new() });
        }
        let _ = stderr.flush();
        self.told = line;
    }
}

impl Observer for Progress {
    fn warn(&mut self, text: &str) {
        if !self.quiet {
            signals::clear_line();
            let _ = writeln!(std::io::stderr(), "autocvd: warning: {text}");
        }
    }

    fn waiting(&mut self, waiting: &Waiting) {
        if self.quiet {
            return;
        }
        self.deadline = waiting.deadline;
        self.picture = picture(waiting);
        self.tell();
    }

    fn wants_detail(&self) -> bool {
        !self.quiet
    }

    fn tick_every(&self) -> Option<Duration> {
        // The time left is shown on a terminal only.
        (self.terminal && self.deadline.is_some()).then_some(Duration::from_secs(1))
    }

    fn tick(&mut self) -> crate::Result<()> {
        if self.terminal {
            self.tell();
        }
        Ok(())
    }

    fn looking(&mut self, looking: bool, deadline: Option<Instant>) {
        if !looking {
            return signals::driver_answered();
        }
        let limit = match (self.timeout, deadline) {
            // 'Look once' must let a slow driver answer: without persistence mode a GPU takes seconds.
            (Some(Duration::ZERO), _) => Some(ONE_LOOK),
            (Some(_), Some(deadline)) => Some(deadline.saturating_duration_since(Instant::now())),
            _ => None,
        };
        signals::watch_driver(limit.map(|limit| {
            let text = format!(
                "autocvd: the NVIDIA driver did not answer in time ({}); see dmesg, or wait longer (--timeout)\n",
                duration(self.timeout.filter(|timeout| !timeout.is_zero()).unwrap_or(limit))
            );
            (limit, text)
        }));
    }
}

/// How long a single look may take.
const ONE_LOOK: Duration = Duration::from_secs(30);

/// How many are free and who is on the rest.
fn picture(waiting: &Waiting) -> String {
    let all = waiting.allowed.len();
    let gpus = if waiting.num_gpus == 1 { "a GPU".to_owned() } else { format!("{} GPUs", waiting.num_gpus) };
    let mut line = format!("autocvd: waiting for {gpus}; {} of {all} free", waiting.free.len());
    if waiting.behind > 0 {
        line += &format!(", {} waiting before", waiting.behind);
    }
    for unit in waiting.allowed.iter().rev() {
        let verdict = select::judge(*unit, waiting.snapshot);
        let Some(reason) = verdict.reason().filter(|_| verdict.state() != State::Free) else { continue };
        let since = select::since(*unit, waiting.snapshot).map(|time| format!(" since {}", clock(time)));
        let since = since.unwrap_or_default();
        line += &format!("; {} {reason}{since}", unit.label(waiting.snapshot));
    }
    line
}

/// A Unix time in seconds, as RFC 3339 writes it.
pub(super) fn clock(time: u64) -> impl std::fmt::Display {
    humantime::format_rfc3339_seconds(std::time::UNIX_EPOCH + Duration::from_secs(time))
}

/// A duration in its two largest units.
pub(super) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 => format!("{} ms", duration.as_millis()),
        1..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86400 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86400, seconds / 3600 % 24),
    }
}
