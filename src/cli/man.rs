//! The manual page, in roff's man macros. What the definitions of the options tell comes from them.

use super::args;
use clap::{Arg, Command};
use std::fmt::Write;

/// How it is called, and what that does.
const FORMS: [(&str, &str); 3] = [
    (
        "autocvd [OPTIONS]",
        "Prints assignments, for the shell to evaluate: eval $(autocvd) COMMAND.",
    ),
    (
        "autocvd [OPTIONS] -- COMMAND [ARG...]",
        "Becomes COMMAND, with the GPUs set in its environment and claimed until it ends.",
    ),
    (
        "autocvd status [--json] [--watch[=DUR]] [--probe WHERE] [--from FILE]",
        "Shows which GPUs are free, who is on the others, since when, and why one is not given away.",
    ),
];

const DESCRIPTION: [&str; 3] = [
    "autocvd finds GPUs on which nobody computes, or waits for them, and sets CUDA_DEVICE_ORDER and \
     CUDA_VISIBLE_DEVICES so that a program uses these alone. Among free GPUs the higher index goes first; of \
     several, those that are best connected go together.",
    "What it gives away it claims, so that no two launches get the same GPU: until COMMAND ends, or, where it \
     only prints, for the shell that asked (see --hold) and the program that this shell starts next.",
    "A GPU is free when its state could be read, its compute mode is not PROHIBITED, no live claim is on it and \
     nobody computes on it. Graphics processes alone do not keep it from being free.",
];

/// Variables beside those that stand for options.
const VARIABLES: [(&str, &str); 6] = [
    (
        "AUTOCVD_NVML_LIB",
        "The NVML library to load, instead of libnvidia-ml.so.1.",
    ),
    (
        "AUTOCVD_CLAIM_DIR",
        "The directory of claims; the same for all who are to heed each other. Default: /tmp/autocvd.",
    ),
    (
        "CUDA_VISIBLE_DEVICES",
        "Read with --inherit, and in a batch job (Slurm, PBS, LSF): only the GPUs that it names are chosen among.",
    ),
    (
        "AUTOCVD_INSIDE",
        "Set for COMMAND: tells an autocvd inside it what to choose among.",
    ),
    ("NO_COLOR", "Where set, the status screen has no colours."),
    (
        "COLUMNS",
        "How wide the status screen is where it does not go to a terminal. Default: 80.",
    ),
];

const EXIT_STATUS: [(&str, &str); 9] = [
    ("0", "Done."),
    ("1", "An unexpected error."),
    ("2", "A wrong option or value."),
    (
        "3",
        "The request can never be met here: more GPUs than there are or than it may use.",
    ),
    ("4", "The timeout passed."),
    ("5", "No NVIDIA GPU can be read: no driver, no device."),
    ("126", "COMMAND cannot be run."),
    ("127", "COMMAND is not found."),
    ("128+N", "Ended by signal N."),
];

/// What stands behind the table of exit codes.
const ON_FAILURE: &str = "On every failure the forms that a shell evaluates print what runs nothing and ends in \
                          that code: eval $(autocvd) COMMAND then does not start COMMAND.";

/// When this was last written.
const DATE: &str = "2026-11-22";

/// The manual page.
pub(super) fn page() -> String {
    let command = args::command();
    let mut page = String::new();
    let version = command.get_version().unwrap_or_default();
    let about = command
        .get_about()
        .map(ToString::to_string)
        .unwrap_or_default();
    macro_lines(
        &mut page,
        &format!(
            ".TH autocvd 1 {DATE} \"autocvd {}\" \"User Commands\"",
            escape(version)
        ),
    );
    section(&mut page, "NAME");
    macro_lines(&mut page, &format!("autocvd \\- {}", escape(&about)));
    section(&mut page, "SYNOPSIS");
    macro_lines(&mut page, ".nf");
    for (form, _) in FORMS {
        macro_lines(&mut page, &format!("\\fB{}\\fR", escape(form)));
    }
    for sub in command
        .get_subcommands()
        .filter(|sub| sub.get_name() != "status")
    {
        macro_lines(
            &mut page,
            &format!("\\fBautocvd {}\\fR", escape(&called(sub))),
        );
    }
    macro_lines(&mut page, ".fi");
    section(&mut page, "DESCRIPTION");
    for text in DESCRIPTION {
        paragraph(&mut page, text);
    }
    for (form, text) in FORMS {
        entry(&mut page, form, text);
    }
    section(&mut page, "OPTIONS");
    options(&mut page, &command);
    entry(&mut page, "-h, --help", "Print help");
    entry(&mut page, "-V, --version", "Print version");
    section(&mut page, "SUBCOMMANDS");
    for sub in command.get_subcommands() {
        let about = sub.get_about().map(ToString::to_string).unwrap_or_default();
        entry(&mut page, &format!("autocvd {}", called(sub)), &about);
        let mut own = String::new();
        options(&mut own, sub);
        if !own.is_empty() {
            macro_lines(&mut page, &format!(".RS\n{own}.RE"));
        }
    }
    section(&mut page, "ENVIRONMENT");
    paragraph(
        &mut page,
        "Every option can be set by its variable; the command line wins. An empty one counts as not set.",
    );
    for arg in command.get_arguments() {
        if let (Some(variable), Some(long)) = (arg.get_env(), arg.get_long()) {
            entry(
                &mut page,
                &variable.to_string_lossy(),
                &format!("As --{long}."),
            );
        }
    }
    for sub in command.get_subcommands() {
        let of_main = |arg: &&Arg| {
            command
                .get_arguments()
                .any(|main| main.get_env() == arg.get_env())
        };
        for arg in sub.get_arguments().filter(|arg| !of_main(arg)) {
            if let (Some(variable), Some(long)) = (arg.get_env(), arg.get_long()) {
                entry(
                    &mut page,
                    &variable.to_string_lossy(),
                    &format!("As --{long} of {}.", sub.get_name()),
                );
            }
        }
    }
    for (variable, text) in VARIABLES {
        entry(&mut page, variable, text);
    }
    section(&mut page, "EXIT STATUS");
    for (code, text) in EXIT_STATUS {
        entry(&mut page, code, text);
    }
    paragraph(&mut page, ON_FAILURE);
    section(&mut page, "EXAMPLES");
    for (line, text) in args::EXAMPLES {
        entry(&mut page, line, &capitalized(text));
    }
    section(&mut page, "SEE ALSO");
    paragraph(&mut page, "nvidia-smi(1), flock(1), timeout(1)");
    page
}

/// A subcommand with its arguments: `completions SHELL`.
fn called(sub: &Command) -> String {
    let arguments = sub
        .get_positionals()
        .map(|arg| format!(" {}", arg.get_id().as_str().to_uppercase()));
    format!("{}{}", sub.get_name(), arguments.collect::<String>())
}

/// A command's options, and what there is to choose from for its arguments.
fn options(page: &mut String, command: &Command) {
    for arg in command.get_arguments().filter(|arg| !arg.is_hide_set()) {
        if !arg.is_positional() {
            entry(page, &names(arg), &explained(arg));
        } else if !arg.get_possible_values().is_empty() {
            entry(page, &arg.get_id().as_str().to_uppercase(), &explained(arg));
        }
    }
}

/// `-t, --timeout DUR`.
fn names(arg: &Arg) -> String {
    let short = arg
        .get_short_and_visible_aliases()
        .unwrap_or_default()
        .into_iter()
        .map(|short| format!("-{short}"));
    let long = arg
        .get_long_and_visible_aliases()
        .unwrap_or_default()
        .into_iter()
        .map(|long| format!("--{long}"));
    let names = short.chain(long).collect::<Vec<_>>().join(", ");
    let Some(value) = arg
        .get_value_names()
        .filter(|_| arg.get_action().takes_values())
    else {
        return names;
    };
    let value = value.join(" ");
    match arg.get_num_args() {
        Some(count) if count.min_values() == 0 => format!("{names}[={value}]"),
        Some(count) if count.max_values() > 1 => format!("{names} {value}..."),
        _ => format!("{names} {value}"),
    }
}

fn explained(arg: &Arg) -> String {
    let mut text = arg.get_help().map(ToString::to_string).unwrap_or_default();
    if arg.get_action().takes_values() {
        let values = arg.get_possible_values();
        if !values.is_empty() {
            let values: Vec<&str> = values.iter().map(|value| value.get_name()).collect();
            let _ = write!(text, " ({})", values.join(", "));
        }
    }
    text
}

fn section(page: &mut String, title: &str) {
    macro_lines(page, &format!(".SH {title}"));
}

fn paragraph(page: &mut String, text: &str) {
    let begins = page
        .lines()
        .next_back()
        .is_some_and(|last| last.starts_with(".SH"));
    macro_lines(
        page,
        &format!("{}{}", if begins { "" } else { ".PP\n" }, line(text)),
    );
}

fn entry(page: &mut String, term: &str, text: &str) {
    macro_lines(
        page,
        &format!(".TP\n\\fB{}\\fR\n{}", escape(term), line(text)),
    );
}

fn macro_lines(page: &mut String, lines: &str) {
    page.push_str(lines);
    page.push('\n');
}

fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    chars
        .next()
        .map(|first| first.to_uppercase().chain(chars).chain(['.']).collect())
        .unwrap_or_default()
}

/// Text that is a line of its own, on which a dot or an apostrophe in front would be a request.
fn line(text: &str) -> String {
    format!("\\&{}", escape(text))
}

/// Text that roff prints as it stands: ASCII quotes and dashes, for they are to be copied.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => escaped.push_str("\\e"),
            '-' => escaped.push_str("\\-"),
            '\'' => escaped.push_str("\\(aq"),
            '^' => escaped.push_str("\\(ha"),
            '~' => escaped.push_str("\\(ti"),
            '`' => escaped.push_str("\\(ga"),
            '…' => escaped.push_str("..."),
            _ => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_options_and_variables_are_told_of() {
        let page = page();
        assert!(page.is_ascii(), "plain roff reads no UTF-8");
        for arg in args::command().get_arguments() {
            if let Some(long) = arg.get_long() {
                assert!(page.contains(&escape(&format!("--{long}"))), "--{long}");
            }
            if let Some(variable) = arg.get_env() {
                assert!(page.contains(&*variable.to_string_lossy()), "{variable:?}");
            }
        }
        for sub in args::command().get_subcommands() {
            assert!(
                page.contains(&format!("autocvd {}", sub.get_name())),
                "{}",
                sub.get_name()
            );
        }
    }
}
