//! What is wrong with a command line, and what to write instead: all in one line.

use super::args::{self, MainArgs, SubcommandArgs};
use super::failure::Failure;
use super::words::{nearest, one_of};
use autocvd::program::printable;
use clap::CommandFactory;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use std::ffi::OsString;

/// Options of similar programs, and what autocvd has instead.
const ELSEWHERE: [(&str, &str); 12] = [
    (
        "--dry-run",
        "'autocvd -o --no-claim -t 0' shows the choice and claims nothing",
    ),
    (
        "--gpu-ids",
        "--only ID… chooses among GPUs, --exclude ID… leaves some out",
    ),
    (
        "--gpu",
        "--only ID… chooses among GPUs, --num-gpus N says how many",
    ),
    (
        "--gpus",
        "--num-gpus N says how many, --only ID… which ones to choose among",
    ),
    ("--device", "--only ID… chooses among GPUs"),
    ("--devices", "--only ID… chooses among GPUs"),
    (
        "--priority",
        "there are no priorities: the longest-waiting request is served first",
    ),
    (
        "--max-utilization",
        "a GPU on which a process computes is busy, whatever its utilization",
    ),
    (
        "--max-memory",
        "--min-free-memory SIZE asks for free memory",
    ),
    ("--memory", "--min-free-memory SIZE asks for free memory"),
    (
        "--wait",
        "autocvd waits unless --timeout or --least-used says otherwise",
    ),
    (
        "--watch",
        "'autocvd status --watch' shows the machine again and again",
    ),
];

/// The failure that stands for clap's error.
pub(super) fn error(error: &clap::Error, arguments: &[OsString]) -> Failure {
    let first = arguments.get(1).and_then(|first| first.to_str());
    let subcommand = first.filter(|first| args::is_subcommand(first.as_bytes()));
    let wrong = context(error, ContextKind::InvalidArg);
    let advice = match (error.kind(), wrong) {
        (ErrorKind::UnknownArgument, Some(wrong)) => unknown_argument(wrong, arguments, subcommand),
        (ErrorKind::InvalidSubcommand, _) => unknown_word(first.unwrap_or_default()),
        _ => message(error),
    };
    let help = subcommand
        .filter(|name| *name != "help")
        .map_or_else(String::new, |name| format!("{name} "));
    let see = if advice.ends_with('?') {
        " See"
    } else {
        "; see"
    };
    Failure::usage(format!("{advice}{see} 'autocvd {help}--help'"))
}

fn context(error: &clap::Error, kind: ContextKind) -> Option<&str> {
    match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text),
        _ => None,
    }
}

/// A word that is neither an option nor the value of one.
fn unknown_argument(wrong: &str, arguments: &[OsString], subcommand: Option<&str>) -> String {
    let wrong_printable = printable(wrong.as_bytes());
    if let Some(name) = subcommand {
        let hint = match (name, wrong.parse::<f64>()) {
            ("status", Ok(_)) if arguments.iter().any(|word| word == "--watch") => {
                format!("write --watch={wrong}")
            }
            _ => return unexpected(&wrong_printable, near_option(wrong, Some(name))),
        };
        return format!("unexpected argument '{wrong_printable}': {hint}");
    }
    let option = wrong.split('=').next().unwrap_or(wrong);
    if let Some((_, instead)) = ELSEWHERE.iter().find(|(name, _)| *name == option) {
        return format!("unexpected argument '{wrong_printable}': {instead}");
    }
    if wrong.starts_with('-') {
        return unexpected(&wrong_printable, near_option(option, None));
    }
    let before = arguments.iter().skip(1).take_while(|word| *word != wrong);
    let before: Vec<_> = before.map(|word| word.to_string_lossy()).collect();
    command_hint(&wrong_printable, &before.join(" "))
}

fn unexpected(word: &str, near: Option<String>) -> String {
    let near = near
        .map(|near| format!("; did you mean '{near}'?"))
        .unwrap_or_default();
    format!("unexpected argument '{word}'{near}")
}

/// A first word that is neither an option nor a subcommand.
fn unknown_word(word: &str) -> String {
    let printable = printable(word.as_bytes());
    match nearest(word, args::SUBCOMMANDS) {
        Some(near) => format!("unrecognized subcommand '{printable}'; did you mean '{near}'?"),
        None => command_hint(&printable, ""),
    }
}

/// The advice for a COMMAND without its `--`; `before` are the options in front of it.
pub(super) fn command_hint(word: &str, before: &str) -> String {
    let space = if before.is_empty() { "" } else { " " };
    format!("unexpected argument '{word}'; to run a command: autocvd {before}{space}-- {word} …")
}

/// The option that a misspelt one is likely to mean.
fn near_option(word: &str, subcommand: Option<&str>) -> Option<String> {
    let word = word.split('=').next()?.strip_prefix("--")?;
    let longs = |command: &clap::Command| -> Vec<String> {
        let options = command.get_arguments();
        options
            .flat_map(|arg| arg.get_long_and_visible_aliases().unwrap_or_default())
            .map(str::to_owned)
            .collect()
    };
    let names = match subcommand {
        Some(name) => longs(SubcommandArgs::command().find_subcommand(name)?),
        None => longs(&MainArgs::command()),
    };
    let names = names.iter().map(String::as_str).chain(["help", "version"]);
    nearest(word, names).map(|near| format!("--{near}"))
}

/// clap's message without its usage and with what was written made printable.
fn message(error: &clap::Error) -> String {
    if let (ErrorKind::InvalidValue, Some(option)) =
        (error.kind(), context(error, ContextKind::InvalidArg))
    {
        let valid = match error.get(ContextKind::ValidValue) {
            Some(ContextValue::Strings(names)) if !names.is_empty() => {
                format!(": give {}", one_of(names))
            }
            _ => String::new(),
        };
        let value = context(error, ContextKind::InvalidValue).unwrap_or_default();
        if value.is_empty() {
            return format!("a value is required for '{option}'{valid}");
        }
        let value = printable(value.as_bytes());
        return format!("invalid value '{value}' for '{option}'{valid}");
    }
    let quoted = error.context().filter_map(|(_, value)| match value {
        ContextValue::String(text) if text.contains(char::is_control) => Some(text),
        _ => None,
    });
    let text = quoted.fold(error.render().to_string(), |message, text| {
        message.replace(
            &format!("'{text}'"),
            &format!("'{}'", printable(text.as_bytes())),
        )
    });
    one_line(&text)
}

/// clap's message without its usage.
fn one_line(message: &str) -> String {
    let mut parts = Vec::new();
    for line in message
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
    {
        if line.starts_with("Usage:") || line.starts_with("For more information") {
            break;
        }
        // clap's tip to pass it after '--' would make a command of it.
        if line.starts_with("tip:") {
            continue;
        }
        parts.push(line.trim_start_matches("error: "));
    }
    parts.join("; ").replace(":;", ":")
}
