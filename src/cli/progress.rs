//! What is told on standard error while waiting.

use super::options::Verbosity;
use super::{signals, standard_output, terminal};
use autocvd::text::WaitSummary;
use autocvd::text::duration;
use autocvd::{Observer, WaitStatus};
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// The longest line on a terminal of unknown width.
const WIDTH: usize = 80;

/// Tells of a wait: one line in place on a terminal, else a line when the picture changes.
pub(super) struct Progress {
    quiet: bool,
    terminal: bool,
    picture: WaitSummary,
    deadline: Option<Instant>,
    told: String,
    timeout: Option<Duration>,
}

impl Progress {
    pub(super) fn new(verbosity: Verbosity, timeout: Option<Duration>) -> Self {
        let quiet = verbosity == Verbosity::Quiet;
        if let Some(timeout) = timeout {
            let limit = if timeout.is_zero() { ONE_LOOK } else { timeout };
            signals::set_timeout_text(format!(
                "autocvd: the NVIDIA driver did not answer in time ({}); see dmesg, or wait longer \
                 (--timeout)\n",
                duration(limit)
            ));
        }
        let terminal = !quiet && std::io::stderr().is_terminal();
        Self {
            quiet,
            terminal,
            picture: WaitSummary::default(),
            deadline: None,
            told: String::new(),
            timeout,
        }
    }

    /// Leaves the terminal's line to what comes next.
    pub(super) fn finish(&self) {
        signals::clear_line();
    }

    fn tell(&mut self) {
        let line = match self.terminal {
            true => {
                let left = self
                    .deadline
                    .map(|deadline| deadline.saturating_duration_since(Instant::now()));
                // The last column stays empty: some terminals begin a new line after it.
                self.picture.line_within(left, columns() - 1)
            }
            // Elsewhere the time left is no change of the picture.
            false => self.picture.line(),
        };
        if line == self.told {
            return;
        }
        let text = if self.terminal {
            signals::set_line_open(true);
            format!("\r\x1b[K{line}")
        } else {
            let limit = self.timeout.filter(|_| self.told.is_empty());
            let limit = limit.map(|limit| format!("; gives up after {}", duration(limit)));
            format!("{line}{}\n", limit.unwrap_or_default())
        };
        // In one write, so that other programs' lines do not come in between.
        let _ = std::io::stderr().write_all(text.as_bytes());
        self.told = line;
    }
}

/// How wide the terminal is. Some say 0: serial lines, and those whose size was never set.
fn columns() -> usize {
    let size =
        rustix::termios::tcgetwinsize(std::io::stderr()).map_or(0, |size| usize::from(size.ws_col));
    if size > 0 {
        size.max(20)
    } else {
        terminal::columns().unwrap_or(WIDTH).max(20)
    }
}

impl Observer for Progress {
    fn warn(&mut self, text: &str) {
        if !self.quiet {
            self.unclaimed(text);
        }
    }

    fn unclaimed(&mut self, text: &str) {
        signals::clear_line();
        let _ = writeln!(std::io::stderr(), "autocvd: warning: {text}");
    }

    fn waiting(&mut self, waiting: &WaitStatus) {
        if self.quiet {
            return;
        }
        self.deadline = waiting.deadline;
        self.picture = WaitSummary::of(waiting);
        self.tell();
    }

    fn wants_detail(&self) -> bool {
        !self.quiet
    }

    fn follows_place(&self) -> bool {
        self.terminal
    }

    fn place_changed(&mut self, waiters_ahead: usize) {
        self.picture.set_waiters_ahead(waiters_ahead);
        self.tell();
    }

    fn tick_every(&self) -> Option<Duration> {
        // The time left is shown on a terminal only.
        (self.terminal && self.deadline.is_some()).then_some(Duration::from_secs(1))
    }

    fn tick(&mut self) -> autocvd::Result<()> {
        if self.terminal {
            self.tell();
        }
        Ok(())
    }

    fn probe_finished(&mut self) {
        signals::driver_answered();
        standard_output::reopen();
    }

    fn probe_started(&mut self, deadline: Option<Instant>) {
        let limit = match (self.timeout, deadline) {
            // 'Look once' must let a slow driver answer: without persistence mode a GPU takes
            // seconds.
            (Some(Duration::ZERO), _) => Some(ONE_LOOK),
            (Some(_), Some(deadline)) => {
                let left = deadline.saturating_duration_since(Instant::now());
                Some(left.max(LAST_LOOK))
            }
            _ => None,
        };
        signals::watch_driver(limit);
    }
}

/// How long the look at the deadline may take: a driver that answers within this time is not a
/// silent one.
const LAST_LOOK: Duration = Duration::from_secs(1);
/// How long a single look may take.
const ONE_LOOK: Duration = Duration::from_secs(30);
