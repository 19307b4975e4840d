//! `autocvd status`: the machine on one screen, or as JSON, once or again and again.

mod cells;
mod keys;
mod screen;

use keys::{Key, Keys};
use screen::{Rows, Screen, View};

use super::failure::Failure;
use super::options::{Status, StatusForm};
use super::standard_output::print;
use super::{signals, standard_output, terminal};
use autocvd::Environment;
use autocvd::Observer;
use autocvd::ProbeChoice;
use autocvd::Snapshot;
use autocvd::StatusReader;
use autocvd::program;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

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
    if asked.form != StatusForm::Json {
        machine = machine.without_links();
    }
    let snapshot = machine.look(&mut sink)?;
    let Some(every) = asked.watch else {
        return print(&text(
            asked.form,
            &snapshot,
            machine.is_live(),
            Layout::Pretty,
        ));
    };
    let mut watched = Watched {
        asked,
        environment,
        machine,
        sink,
    };
    match redraws {
        true => watched.draw_again_and_again(every, snapshot),
        false => watched.print_again_and_again(every, &snapshot),
    }
}

/// How JSON is laid out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Layout {
    Pretty,
    /// One document a line, which readers of a stream take one by one.
    Line,
}

fn text(form: StatusForm, snapshot: &Snapshot, is_live: bool, layout: Layout) -> String {
    match (form, layout) {
        (StatusForm::Json, Layout::Pretty) => printable_json(&snapshot.to_json()),
        (StatusForm::Json, Layout::Line) => printable_json(&snapshot.to_json_line()),
        (StatusForm::Short, _) => screen::short(snapshot),
        (StatusForm::Screen, _) => Screen::of(snapshot, &view(snapshot, is_live))
            .lines()
            .join("\n"),
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
    let machine = StatusReader::open(probe, &Environment::read(), &mut sink)?;
    let snapshot = machine.without_links().look(&mut sink)?;
    let line = |gpu: &autocvd::Gpu| {
        let name = cells::known(gpu.name.as_deref());
        let name = name.strip_prefix("NVIDIA ").unwrap_or(&name);
        let state = screen::word(gpu.state, gpu.reason.as_deref());
        format!("{}\t{name}, {state}", gpu.index)
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
}

impl Watched {
    fn print_again_and_again(&mut self, every: Duration, first: &Snapshot) -> Result<(), Failure> {
        let form = self.asked.form;
        let is_live = self.machine.is_live();
        print(&text(form, first, is_live, Layout::Line))?;
        loop {
            std::thread::sleep(every);
            match self.look() {
                Ok(snapshot) => {
                    let separator = if form == StatusForm::Screen { "\n" } else { "" };
                    let text = text(form, &snapshot, is_live, Layout::Line);
                    print(&format!("{separator}{text}"))?;
                }
                // What does not answer now may answer later.
                Err(error) => self.sink.warn(&error.to_string()),
            }
        }
    }

    /// Draws in place until q is pressed.
    fn draw_again_and_again(&mut self, every: Duration, first: Snapshot) -> Result<(), Failure> {
        // What stands on the terminal goes up and out of sight, but is not lost.
        print(&"\n".repeat(height().saturating_sub(1)))?;
        let mut keys = Keys::open();
        let mut last = Ok(first);
        let mut scrolled = 0;
        loop {
            self.draw(&last, &mut scrolled)?;
            let end = Instant::now().checked_add(every);
            // An interval beyond the clock's range is for ever.
            let end = end.unwrap_or_else(|| Instant::now() + Duration::from_secs(u32::MAX.into()));
            let page = height().saturating_sub(6).max(1);
            loop {
                match keys.wait(end) {
                    Some(Key::Quit) => return Ok(()),
                    Some(Key::Up) => scrolled = scrolled.saturating_sub(1),
                    Some(Key::Down) => scrolled += 1,
                    Some(Key::PageUp) => scrolled = scrolled.saturating_sub(page),
                    Some(Key::PageDown) => scrolled += page,
                    None => break,
                }
                self.draw(&last, &mut scrolled)?;
            }
            last = self.look();
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

    /// Draws over what was drawn before, in one write, so that nothing flickers.
    fn draw(&self, last: &autocvd::Result<Snapshot>, scrolled: &mut usize) -> Result<(), Failure> {
        // The last row is the cursor's.
        let rows = height().saturating_sub(1).max(2);
        let mut lines: Vec<String> = match last {
            Ok(snapshot) => self.fitting(snapshot, rows, scrolled),
            // What does not answer now may answer later.
            Err(error) => error.to_string().lines().map(str::to_owned).collect(),
        };
        let warnings = self.sink.warnings.iter().flatten();
        lines.extend(warnings.map(|text| format!("warning: {text}")));
        lines.truncate(rows);
        standard_output::write(&format!("\x1b[H{}\x1b[K\n\x1b[J", lines.join("\x1b[K\n")))
            .map_err(Failure::cannot_write)?;
        // Ctrl-C leaves '^C' where the shell's prompt will be.
        signals::set_line_open(std::io::stderr().is_terminal());
        Ok(())
    }

    /// The screen in at most so many lines: with a line a GPU where it is too long, and then with
    /// those rows that it was scrolled to.
    fn fitting(&self, snapshot: &Snapshot, lines: usize, scrolled: &mut usize) -> Vec<String> {
        let view = view(snapshot, self.machine.is_live());
        // A full line and clearing after it would eat the line's last character.
        let view = View {
            width: view.width - 1,
            ..view
        };
        let full = Screen::of(snapshot, &view).lines();
        if full.len() <= lines {
            *scrolled = 0;
            return full;
        }
        let Screen { head, rows, foot } = Screen::of(
            snapshot,
            &View {
                rows: Rows::One,
                ..view
            },
        );
        if head.len() + rows.len() + foot.len() <= lines {
            *scrolled = 0;
            return [head, rows, foot].concat();
        }
        let room = lines.saturating_sub(head.len() + 1).max(1);
        *scrolled = (*scrolled).min(rows.len().saturating_sub(room));
        let last = (*scrolled + room).min(rows.len());
        let hint = format!(
            "rows {} to {last} of {}; arrows scroll, q quits",
            *scrolled + 1,
            rows.len()
        );
        [head, rows[*scrolled..last].to_vec(), vec![hint]].concat()
    }
}

/// Who is told what is not as it should be: standard error, or the screen that would wipe it off
/// there.
struct WarningSink {
    warnings: Option<Vec<String>>,
}

impl Observer for WarningSink {
    fn warn(&mut self, text: &str) {
        let text = program::printable(text.as_bytes());
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

/// How to show a snapshot on what standard output is.
fn view(snapshot: &Snapshot, is_live: bool) -> View {
    let is_terminal = standard_output::is_terminal();
    let size = rustix::termios::tcgetwinsize(standard_output::descriptor());
    let columns = size.map_or(0, |size| usize::from(size.ws_col));
    let width = match is_terminal && columns > 0 {
        true => columns,
        false => terminal::columns().unwrap_or(WIDTH),
    };
    let now = snapshot.read_at();
    View {
        width: width.max(screen::MIN_WIDTH),
        style: cells::Style {
            color: terminal::has_color(is_terminal),
            unicode: terminal::has_unicode(),
        },
        rows: Rows::Full,
        now,
        clock: now.map_or_else(String::new, |now| match is_live {
            true => local_time(now),
            // 2026-03-03 07:59Z.
            false => {
                program::rfc3339(now)
                    .to_string()
                    .replace('T', " ")
                    .chars()
                    .take(16)
                    .collect::<String>()
                    + "Z"
            }
        }),
        host: snapshot.host().map(str::to_owned),
    }
}

/// The time of day here: `12:33:21`.
fn local_time(unix: u64) -> String {
    let time = libc::time_t::try_from(unix).unwrap_or(0);
    // SAFETY: a zeroed tm is a valid one, and both pointers are to values that live through the
    // call.
    let now = unsafe {
        let mut now: libc::tm = std::mem::zeroed();
        libc::localtime_r(&time, &mut now);
        now
    };
    format!("{:02}:{:02}:{:02}", now.tm_hour, now.tm_min, now.tm_sec)
}

fn height() -> usize {
    match rustix::termios::tcgetwinsize(standard_output::descriptor()) {
        Ok(size) if size.ws_row > 0 => size.ws_row.into(),
        _ => HEIGHT,
    }
}

/// JSON writes control characters below U+0020 as escapes of its own accord; terminals heed others
/// too.
fn printable_json(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '\n' => text.push(c),
            _ if program::is_unprintable(c) => text += &format!("\\u{:04x}", u32::from(c)),
            _ => text.push(c),
        }
    }
    text
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
