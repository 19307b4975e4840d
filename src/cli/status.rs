//! `autocvd status`: the machine on one screen, or as JSON, once or again and again.

mod cells;
mod screen;

use super::failure::Failure;
use super::options::{Status, StatusForm};
use super::{signals, standard_output, terminal};
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
pub(super) fn run(asked: Status) -> Result<(), Failure> {
    signals::end_silently();
    let environment = Environment::read();
    let redraws =
        asked.watch.is_some() && asked.form == StatusForm::Screen && standard_output::is_terminal();
    let mut sink = WarningSink {
        warnings: redraws.then(Vec::new),
    };
    let mut machine = StatusReader::open(&asked.probe, &environment, &mut sink)?;
    let snapshot = machine.look(&mut sink)?;
    let Some(every) = asked.watch else {
        return print(&match asked.form {
            StatusForm::Json => printable_json(&snapshot.to_json()),
            StatusForm::Short => screen::summary(&snapshot),
            StatusForm::Screen => screen::lines(&snapshot, &view(&machine)).join("\n"),
        });
    };
    let mut watched = Watched {
        asked,
        environment,
        machine,
        sink,
        redraws,
    };
    watched.show(&snapshot, true)?;
    loop {
        watched.step(every)?;
    }
}

/// The GPUs for the shells' completions, one a line: index, tab, name and state.
///
/// # Errors
/// The machine cannot be read.
pub(super) fn ids(probe: &ProbeChoice) -> Result<String, Failure> {
    signals::end_silently();
    let mut sink = WarningSink {
        warnings: Some(Vec::new()),
    };
    let mut machine = StatusReader::open(probe, &Environment::read(), &mut sink)?;
    let snapshot = machine.look(&mut sink)?;
    let line = |gpu: &autocvd::Gpu| {
        let name = cells::known(gpu.name.as_deref());
        let name = name.strip_prefix("NVIDIA ").unwrap_or(&name);
        format!("{}\t{name}, {}", gpu.index, screen::word(gpu.state))
    };
    Ok(snapshot
        .gpus
        .iter()
        .map(line)
        .collect::<Vec<_>>()
        .join("\n"))
}

/// A machine that is shown again and again.
struct Watched {
    asked: Status,
    environment: Environment,
    machine: StatusReader,
    sink: WarningSink,
    redraws: bool,
}

impl Watched {
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
                self.sink.warn(&error.to_string());
                Ok(())
            }
        }
    }

    fn look(&mut self) -> autocvd::Result<Snapshot> {
        if !self.machine.is_live() {
            // A file may have been written anew.
            self.machine =
                StatusReader::open(&self.asked.probe, &self.environment, &mut self.sink)?;
        }
        self.machine.look(&mut self.sink)
    }

    fn show(&mut self, snapshot: &Snapshot, first: bool) -> Result<(), Failure> {
        match self.asked.form {
            // One document a line, which readers of a stream take one by one.
            StatusForm::Json => return print(&printable_json(&snapshot.to_json_line())),
            StatusForm::Short => return print(&screen::summary(snapshot)),
            StatusForm::Screen => {}
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
            .sink
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
        standard_output::write(&format!("\x1b[H{}\x1b[K\n\x1b[J", lines.join("\x1b[K\n")))
            .map_err(Failure::cannot_write)?;
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
    let is_terminal = standard_output::is_terminal();
    let size = rustix::termios::tcgetwinsize(standard_output::descriptor());
    let columns = size.map_or(0, |size| usize::from(size.ws_col));
    let width = match is_terminal && columns > 0 {
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
        color: terminal::has_color(is_terminal),
        live,
    }
}

fn height() -> usize {
    match rustix::termios::tcgetwinsize(standard_output::descriptor()) {
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
    standard_output::write(&format!("{text}\n")).map_err(Failure::cannot_write)
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
