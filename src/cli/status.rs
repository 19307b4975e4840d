//! `autocvd status`: the machine on one screen, or as JSON, once or again and again.

mod cells;
mod screen;

use super::args::{StatusArgs, probe_choice};
use super::exit::{self, Failure};
use super::{signals, terminal};
use autocvd::Environment;
use autocvd::Observer;
use autocvd::ProbeChoice;
use autocvd::Snapshot;
use autocvd::StatusReader;
use autocvd::text;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant, SystemTime};

/// The width where neither a terminal nor COLUMNS tells one.
const WIDTH: usize = 80;
/// A window's height where the terminal does not tell it.
const HEIGHT: usize = 24;

/// Shows the machine.
pub(super) fn run(args: &StatusArgs) -> Result<(), Failure> {
    signals::end_silently();
    let environment = Environment::read();
    let choice = probe_choice(args.probe, args.from.as_ref());
    let redraws = args.watch.is_some() && !args.json && std::io::stdout().is_terminal();
    let mut witness = WarningSink {
        warnings: redraws.then(Vec::new),
    };
    let mut machine = StatusReader::open(&choice, &environment, &mut witness)?;
    let snapshot = machine.look(&mut witness)?;
    match args.watch {
        None if args.json => print(&printable_json(&snapshot.to_json())),
        None => print(&screen::lines(&snapshot, &view(&machine)).join("\n")),
        Some(every) => {
            let mut watched = Watched {
                args,
                choice,
                environment,
                machine,
                witness,
                redraws,
            };
            watched.show(&snapshot, true)?;
            loop {
                watched.step(every)?;
            }
        }
    }
}

/// A machine that is shown again and again.
struct Watched<'a> {
    args: &'a StatusArgs,
    choice: ProbeChoice,
    environment: Environment,
    machine: StatusReader,
    witness: WarningSink,
    redraws: bool,
}

impl Watched<'_> {
    fn step(&mut self, every: Duration) -> Result<(), Failure> {
        std::thread::sleep(every);
        match self.look() {
            Ok(snapshot) => self.show(&snapshot, false),
            // What does not answer now may answer later.
            Err(error) if self.redraws => self.draw(
                &error
                    .to_string()
                    .lines()
                    .map(str::to_owned)
                    .collect::<Vec<_>>(),
            ),
            Err(error) => {
                self.witness.warn(&error.to_string());
                Ok(())
            }
        }
    }

    fn look(&mut self) -> autocvd::Result<Snapshot> {
        if !self.machine.is_live() {
            // A file may have been written anew.
            self.machine = StatusReader::open(&self.choice, &self.environment, &mut self.witness)?;
        }
        self.machine.look(&mut self.witness)
    }

    fn show(&mut self, snapshot: &Snapshot, first: bool) -> Result<(), Failure> {
        if self.args.json {
            // One document a line, which readers of a stream take one by one.
            return print(&printable_json(&snapshot.to_json_line()));
        }
        let view = view(&self.machine);
        if self.redraws {
            if first {
                // What stands on the terminal goes up and out of sight, but is not lost.
                print(&"\n".repeat(height().saturating_sub(1)))?;
            }
            // A full line and clearing behind it would eat the line's last character.
            let view = screen::View {
                width: view.width - 1,
                ..view
            };
            return self.draw(&screen::lines(snapshot, &view));
        }
        let separator = if first { "" } else { "\n" };
        print(&format!(
            "{separator}{}",
            screen::lines(snapshot, &view).join("\n")
        ))
    }

    /// Draws over what was drawn before, in one write, so that nothing flickers.
    fn draw(&self, lines: &[String]) -> Result<(), Failure> {
        let warnings = self
            .witness
            .warnings
            .iter()
            .flatten()
            .map(|text| format!("warning: {text}"));
        let mut lines: Vec<String> = lines.iter().cloned().chain(warnings).collect();
        // The last row is the cursor's.
        let rows = height().saturating_sub(1).max(2);
        if lines.len() > rows {
            let hidden = lines.len() - (rows - 1);
            lines.truncate(rows - 1);
            lines.push(format!("… {hidden} more lines; a higher window shows them"));
        }
        exit::write_stdout(&format!("\x1b[H{}\x1b[K\n\x1b[J", lines.join("\x1b[K\n")))
            .map_err(cannot_write)?;
        // Ctrl-C leaves '^C' where the shell's prompt will be.
        signals::set_line_open(std::io::stderr().is_terminal());
        Ok(())
    }
}

/// Who is told what is not as it should be: standard error, or the screen that would wipe it off there.
struct WarningSink {
    warnings: Option<Vec<String>>,
}

impl Observer for WarningSink {
    fn warn(&mut self, text: &str) {
        let text = text::printable(text.as_bytes());
        match &mut self.warnings {
            Some(warnings) => warnings.push(text),
            // That it cannot be told keeps nothing from being shown.
            None => drop(writeln!(std::io::stderr(), "autocvd: warning: {text}")),
        }
    }

    fn probe_started(&mut self, _: Option<Instant>) {
        signals::watch_driver(None);
    }

    fn probe_finished(&mut self) {
        signals::driver_answered();
    }
}

/// How to show what `machine` tells, on what standard output is.
fn view(machine: &StatusReader) -> screen::View {
    let stdout = std::io::stdout();
    let terminal = stdout.is_terminal();
    let columns = rustix::termios::tcgetwinsize(&stdout).map_or(0, |size| usize::from(size.ws_col));
    let width = match terminal && columns > 0 {
        true => columns,
        false => terminal::columns().unwrap_or(WIDTH),
    };
    let live = machine.is_live().then(|| screen::Live {
        host: rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned(),
        now: SystemTime::now(),
    });
    screen::View {
        width: width.max(screen::MIN_WIDTH),
        color: terminal && terminal::allows_color(),
        live,
    }
}

fn height() -> usize {
    match rustix::termios::tcgetwinsize(std::io::stdout()) {
        Ok(size) if size.ws_row > 0 => size.ws_row.into(),
        _ => HEIGHT,
    }
}

/// JSON writes control characters below U+0020 as escapes of its own accord; terminals heed others too.
fn printable_json(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '\n' => text.push(c),
            _ if text::is_unprintable(c) => text += &format!("\\u{:04x}", u32::from(c)),
            _ => text.push(c),
        }
    }
    text
}

fn print(text: &str) -> Result<(), Failure> {
    exit::write_stdout(&format!("{text}\n")).map_err(cannot_write)
}

fn cannot_write(error: std::io::Error) -> Failure {
    Failure::new(
        exit::UNEXPECTED,
        format!("cannot write to standard output: {error}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_keeps_its_meaning_and_loses_what_terminals_heed() {
        let written = serde_json::json!({ "name": "a\u{9b}31m\u{7f}\u{202e}é\u{1b}\n" });
        let json = printable_json(&serde_json::to_string_pretty(&written).expect("a plain value"));
        assert_eq!(
            json,
            "{\n  \"name\": \"a\\u009b31m\\u007f\\u202eé\\u001b\\n\"\n}"
        );
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&json).expect("still JSON"),
            written
        );
    }
}
