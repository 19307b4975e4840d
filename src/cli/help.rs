//! The help: `-h` on one small screen, `--help` with everything.

use super::args::{self, MainArgs, SubcommandArgs};
use super::failure::Failure;
use super::words::{nearest, wrap};
use super::{exit_code, standard_output, terminal, variables};
use autocvd::program::width;
use clap::{Arg, Command, CommandFactory};
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

/// Lines to run, and what they do.
pub(super) const EXAMPLES: [(&str, &str); 7] = [
    (
        "eval $(autocvd) python train.py",
        "run on a free GPU, or wait for one",
    ),
    (
        "eval $(autocvd -n 2 -t 1h) ./job",
        "on two GPUs, giving up after an hour",
    ),
    (
        "autocvd -n 4 -- ./job",
        "become ./job, with four GPUs claimed until it ends",
    ),
    ("eval \"$(autocvd -s)\"", "set the variables in this shell"),
    (
        "docker run $(autocvd --format docker) IMAGE",
        "give a container a free GPU",
    ),
    (
        "autocvd status --watch",
        "who is on which GPU, every second",
    ),
    (
        ". <(autocvd completions bash)",
        "complete its options in this shell",
    ),
];

/// Variables beside those that stand for options.
pub(super) const VARIABLES: [(&str, &str); 8] = [
    (
        "AUTOCVD_NVML_LIB",
        "the NVML library to load instead of libnvidia-ml.so.1",
    ),
    (
        "AUTOCVD_CLAIM_DIR",
        "the directory of claims, the same for all who are to see each other's",
    ),
    (
        "AUTOCVD_PATIENCE",
        "how long a request waits before GPUs are kept for it until it has enough [default: 5m]",
    ),
    (
        "CUDA_VISIBLE_DEVICES",
        "read with --inherit, and in a batch job (Slurm, PBS, LSF): only its GPUs are chosen among",
    ),
    (
        "AUTOCVD_INSIDE",
        "set for COMMAND: tells an autocvd inside it what to choose among",
    ),
    (
        "AUTOCVD_MEMORY",
        "set with --share: how many bytes of each GPU the program may use",
    ),
    (
        "NO_COLOR",
        "where set, nothing is coloured; CLICOLOR_FORCE=1 colours everything",
    ),
    (
        "COLUMNS",
        "how wide the output is where it does not go to a terminal [default: 80]",
    ),
];

/// The formats of values.
pub(super) const FORMATS: [(&str, &str); 3] = [
    (
        "DUR",
        "seconds (90, 1.5) or numbers with units: 500ms, 90s, '2m 30s', 1h",
    ),
    (
        "SIZE",
        "a number with its unit: 10GiB, 500MiB; 10G and 10GB are 10^10 bytes",
    ),
    (
        "ID",
        "an index (0), a UUID or a unique start of one (GPU-5f2c), a PCI bus id (3b:00.0)",
    ),
];

/// What a failure never does.
pub(super) const ON_FAILURE: &str = "On every failure the printed forms start no program. What no \
     program can guard against is one that is not found or is killed (kill -9): a line \
     'export CUDA_VISIBLE_DEVICES=' in the profile or the image makes that see no GPU.";

/// The manual's first lines, and the help's.
const USAGE: [(&str, &str); 7] = [
    (
        "eval $(autocvd [OPTIONS]) COMMAND",
        "run COMMAND on free GPUs",
    ),
    (
        "autocvd [OPTIONS] -- COMMAND [ARG]…",
        "become COMMAND, with GPUs claimed",
    ),
    (
        "eval \"$(autocvd -s [OPTIONS])\"",
        "set the variables in this shell",
    ),
    (
        "autocvd status [--watch]",
        "show all GPUs and who is on them",
    ),
    ("autocvd doctor", "what is found, and what to do"),
    ("autocvd release", "end this shell's claims"),
    (
        "autocvd completions SHELL | man",
        "print completions, or the manual",
    ),
];

/// `-h`: at most 20 lines of at most 80 columns.
const SHORT: [(&str, &str); 10] = [
    ("-n, --num-gpus N", "how many GPUs [default: 1]"),
    (
        "-l, --least-used",
        "never wait: take those with the most free memory",
    ),
    (
        "-t, --timeout DUR",
        "give up after DUR (90, 2m, 1h) [default: never]",
    ),
    ("-x, --exclude ID…", "leave these GPUs out"),
    ("    --only ID…", "choose among these GPUs alone"),
    (
        "-m, --min-free-memory SIZE",
        "only GPUs with this much free memory (10GiB)",
    ),
    ("-s, --source", "print 'export …'"),
    ("-o, --id-only", "print the ids alone"),
    (
        "-q, --quiet",
        "write nothing to stderr but errors and what is not claimed",
    ),
    ("-v, --verbose", "explain what is done and why"),
];

/// No help is wider: longer lines are hard to read.
const MAX_WIDTH: usize = 100;
const MIN_WIDTH: usize = 40;
/// The column of the explanations.
const TEXT_COLUMN: usize = 31;

/// The text that the command line asks for: help or version.
///
/// # Errors
/// Help for a subcommand that does not exist.
pub(super) fn asked_for(arguments: &[OsString]) -> Result<Option<String>, Failure> {
    let words: Vec<&[u8]> = arguments
        .iter()
        .skip(1)
        .map(|word| word.as_bytes())
        .collect();
    let name = match words.as_slice() {
        [b"help"] => return Ok(Some(long())),
        [b"help", name, ..] => Some(*name),
        [name, rest @ ..] if args::is_subcommand(name) => {
            let is_asked = rest.iter().any(|word| matches!(*word, b"-h" | b"--help"));
            if !is_asked {
                return Ok(None);
            }
            Some(*name)
        }
        _ => None,
    };
    if let Some(name) = name {
        let name = String::from_utf8_lossy(name);
        return match SubcommandArgs::command().find_subcommand(&*name) {
            Some(command) => Ok(Some(of_subcommand(command))),
            None => {
                let near = nearest(&name, args::SUBCOMMANDS);
                let near = near
                    .map(|near| format!("; did you mean '{near}'?"))
                    .unwrap_or_default();
                Err(Failure::usage(format!(
                    "there is no subcommand '{name}'{near}; see 'autocvd --help'"
                )))
            }
        };
    }
    for word in words.into_iter().take_while(|word| *word != b"--") {
        let letters = word
            .strip_prefix(b"-")
            .filter(|letters| !letters.starts_with(b"-"));
        let switches: Vec<&u8> = letters
            .unwrap_or_default()
            .iter()
            .take_while(|letter| args::SHORT_SWITCHES.contains(letter))
            .collect();
        if word == b"--help" {
            return Ok(Some(long()));
        }
        if switches.contains(&&b'h') {
            return Ok(Some(short()));
        }
        if word == b"--version" || switches.contains(&&b'V') {
            return Ok(Some(format!("autocvd {}", env!("CARGO_PKG_VERSION"))));
        }
    }
    Ok(None)
}

fn title() -> String {
    format!(
        "autocvd {}: find free NVIDIA GPUs, or wait for them",
        env!("CARGO_PKG_VERSION")
    )
}

fn short() -> String {
    let mut page = Page::for_output();
    page.line(&title());
    page.line("");
    page.usage(&USAGE[..4]);
    page.line("");
    page.entries(
        TEXT_COLUMN,
        &SHORT.map(|(names, text)| (names.to_owned(), text.to_owned())),
    );
    page.line("");
    page.line("More: autocvd --help, autocvd man. If anything fails, COMMAND is not started.");
    page.finish()
}

fn long() -> String {
    let mut page = Page::for_output();
    page.line(&title());
    page.line("");
    page.usage(&USAGE);
    let command = MainArgs::command();
    for heading in ["Which GPUs", "Waiting", "Output", "Claims", "Source"] {
        page.heading(heading);
        let options = command
            .get_arguments()
            .filter(|arg| arg.get_help_heading() == Some(heading));
        let mut entries: Vec<(String, String)> = options
            .map(|arg| (aligned_names(arg), explained(arg)))
            .collect();
        if heading == "Output" {
            entries.push((
                "-h, --help".to_owned(),
                "Print help (-h: in short)".to_owned(),
            ));
            entries.push(("-V, --version".to_owned(), "Print the version".to_owned()));
        }
        page.entries(TEXT_COLUMN, &entries);
    }
    page.heading("Values");
    page.pairs(&FORMATS);
    page.heading("Variables");
    page.paragraph("Every option can be set by its variable; the command line wins:");
    page.paragraph(&names_of_variables().join(" "));
    page.pairs(&VARIABLES);
    page.heading("Exit codes");
    page.pairs(&exit_code::TABLE);
    page.paragraph(ON_FAILURE);
    page.heading("Examples");
    page.pairs(&EXAMPLES);
    page.finish()
}

/// The variables that set options.
pub(super) fn names_of_variables() -> Vec<String> {
    variables::OPTIONS
        .iter()
        .filter(|name| !matches!(**name, "SHELL" | "WATCH" | "SHORT" | "PATIENCE"))
        .map(|name| format!("{}{name}", variables::PREFIX))
        .collect()
}

fn of_subcommand(command: &Command) -> String {
    let mut page = Page::for_output();
    let about = command
        .get_about()
        .map(ToString::to_string)
        .unwrap_or_default();
    let values = command
        .get_positionals()
        .map(|_| " SHELL")
        .collect::<String>();
    let options = if command.get_opts().next().is_some() {
        " [OPTIONS]"
    } else {
        ""
    };
    page.line(&about);
    page.line("");
    page.usage(&[(
        &format!("autocvd {}{values}{options}", command.get_name()),
        "",
    )]);
    page.line("");
    let entry = |arg: &Arg| match arg.is_positional() {
        true => (
            "SHELL".to_owned(),
            "bash, zsh, fish, elvish or powershell".to_owned(),
        ),
        false => (aligned_names(arg), explained(arg)),
    };
    let mut entries: Vec<(String, String)> = command.get_arguments().map(entry).collect();
    entries.push(("-h, --help".to_owned(), "Print help".to_owned()));
    page.entries(TEXT_COLUMN, &entries);
    page.finish()
}

/// `-t, --timeout DUR`; a long name alone stands where the others do.
fn aligned_names(arg: &Arg) -> String {
    let names = names(arg);
    if names.starts_with("--") {
        format!("    {names}")
    } else {
        names
    }
}

/// `-t, --timeout DUR`.
pub(super) fn names(arg: &Arg) -> String {
    let short = arg.get_short_and_visible_aliases().unwrap_or_default();
    let long = arg.get_long_and_visible_aliases().unwrap_or_default();
    let short = short.into_iter().map(|short| format!("-{short}"));
    let long = long.into_iter().map(|long| format!("--{long}"));
    let names = short.chain(long).collect::<Vec<_>>().join(", ");
    if !arg.get_action().takes_values() {
        return names;
    }
    let Some(value) = arg.get_value_names() else {
        return names;
    };
    let value = value.join(" ");
    match arg.get_num_args() {
        Some(count) if count.min_values() == 0 => format!("{names}[={value}]"),
        Some(count) if count.max_values() > 1 => format!("{names} {value}…"),
        _ => format!("{names} {value}"),
    }
}

pub(super) fn explained(arg: &Arg) -> String {
    arg.get_help().map(ToString::to_string).unwrap_or_default()
}

/// A help text under construction.
struct Page {
    text: String,
    width: usize,
    bold: bool,
}

impl Page {
    /// A page for what standard output is.
    fn for_output() -> Self {
        let is_terminal = standard_output::is_terminal();
        let size = rustix::termios::tcgetwinsize(standard_output::descriptor());
        let columns = size.map_or(0, |size| usize::from(size.ws_col));
        let columns = match is_terminal && columns > 0 {
            true => columns,
            false => terminal::columns().unwrap_or(80),
        };
        Self {
            text: String::new(),
            width: columns.clamp(MIN_WIDTH, MAX_WIDTH),
            bold: terminal::has_color(is_terminal),
        }
    }

    fn finish(self) -> String {
        self.text.trim_end().to_owned()
    }

    fn line(&mut self, text: &str) {
        self.text.push_str(text);
        self.text.push('\n');
    }

    fn strong(&self, text: &str) -> String {
        if self.bold {
            format!("\x1b[1m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    fn heading(&mut self, text: &str) {
        let heading = self.strong(&format!("{text}:"));
        self.line(&format!("\n{heading}"));
    }

    fn usage(&mut self, forms: &[(&str, &str)]) {
        let column = forms.iter().map(|(form, _)| width(form)).max().unwrap_or(0);
        for (at, (form, text)) in forms.iter().enumerate() {
            let start = if at == 0 {
                format!("{} ", self.strong("Usage:"))
            } else {
                " ".repeat(7)
            };
            let room = self.width.saturating_sub(7 + column + 2);
            let space = " ".repeat(column - width(form));
            if width(text) <= room {
                self.line(format!("{start}{form}{space}  {text}").trim_end());
            } else {
                self.line(&format!("{start}{form}"));
                self.line(&format!("{}{text}", " ".repeat(9)));
            }
        }
    }

    /// The same, in a table of its own width.
    fn pairs(&mut self, pairs: &[(&str, &str)]) {
        let longest = pairs.iter().map(|(name, _)| width(name)).max().unwrap_or(0);
        let owned = pairs
            .iter()
            .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
        self.entries(longest + 4, &owned.collect::<Vec<_>>());
    }

    /// Names at the left, explanations beside them from `column` on, or below where there is no
    /// room.
    fn entries(&mut self, column: usize, entries: &[(String, String)]) {
        let column = if self.width < column + 28 { 6 } else { column };
        for (name, text) in entries {
            let lines = wrap(text, self.width - column);
            let mut lines = lines.iter();
            let start = format!("  {}", self.strong(name));
            let used = 2 + width(name);
            if used + 2 <= column {
                let first = lines.next().map_or("", String::as_str);
                let line = format!("{start}{}{first}", " ".repeat(column - used));
                self.line(line.trim_end());
            } else {
                self.line(&start);
            }
            for line in lines {
                self.line(&format!("{}{line}", " ".repeat(column)));
            }
        }
    }

    fn paragraph(&mut self, text: &str) {
        for line in wrap(text, self.width - 2) {
            self.line(&format!("  {line}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_short_help_is_one_small_screen() {
        let help = short();
        assert!(help.lines().count() <= 20, "{help}");
        assert!(help.lines().all(|line| width(line) <= 80), "{help}");
    }

    #[test]
    fn help_is_asked_for_in_front_of_the_dashes_alone() {
        let asked = |line: &str| {
            let words = std::iter::once("autocvd").chain(line.split_whitespace());
            asked_for(&words.map(Into::into).collect::<Vec<OsString>>()).expect("no wrong name")
        };
        for line in [
            "--help",
            "-n 2 --help",
            "-h",
            "-qh",
            "help",
            "help status",
            "status -h",
            "-V",
        ] {
            assert!(asked(line).is_some(), "{line}");
        }
        for line in ["", "-xh", "-- prog --help", "status", "-n 2"] {
            assert_eq!(asked(line), None, "{line}");
        }
    }
}
