//! The manual page, in roff's man macros. What the definitions of the options say comes from them.

use super::args::{MainArgs, SubcommandArgs};
use super::help::{self, explained, names};
use super::{exit_code, variables};
use clap::{Arg, CommandFactory};

const SYNOPSIS: [&str; 7] = [
    "eval $(autocvd [OPTIONS]) COMMAND",
    "eval \"$(autocvd -s [OPTIONS])\"",
    "autocvd [OPTIONS] -- COMMAND [ARG...]",
    "autocvd status [OPTIONS]",
    "autocvd release",
    "autocvd completions SHELL",
    "autocvd man",
];

const DESCRIPTION: [&str; 4] = [
    "autocvd finds GPUs on which no process computes, or waits for them, and sets \
     CUDA_DEVICE_ORDER and CUDA_VISIBLE_DEVICES so that a program uses these alone. Among free \
     GPUs the higher index goes first; of several, those that are best connected go together.",
    "Without COMMAND it prints assignments for the shell to evaluate: in front of a command, or \
     with -s for the shell itself. With '-- COMMAND' it becomes COMMAND, with the variables set.",
    "It claims the GPUs that it gives away, so that no two launches get the same one: until \
     COMMAND ends; with -s until the shell ends; otherwise for the shell that asked and the \
     program that it starts next (see --hold).",
    "'autocvd status' shows which GPUs are free, who is on the others, since when, and why one is \
     not given away.",
];

const WHAT_IS_FREE: [&str; 4] = [
    "A GPU is free if its state could be read, it is healthy, its compute mode is not PROHIBITED, \
     no claim is on it and no process computes on it. A process that only draws (type G in \
     nvidia-smi: Xorg, a compositor) does not keep a GPU from being free.",
    "Where no process is listed but more memory is used than an idle GPU needs, a process that \
     cannot be seen holds it, and it is busy. In a container, and wherever the list of processes \
     proves nothing, memory and utilization decide.",
    "A value that cannot be read is unknown, never zero, and a GPU whose state depends on it is \
     not given away.",
    "A GPU with MIG enabled is given as its MIG devices, by UUID, one to a process.",
];

const FILES: [(&str, &str); 3] = [
    (
        "/etc/autocvd.conf",
        "What the administrator sets for all users: exclude, ignore, max_per_user, claim_dir.",
    ),
    (
        "/run/autocvd, /tmp/autocvd",
        "The directory of claims: the first one where it exists.",
    ),
    (
        "/dev/nvidia*, /proc/driver/nvidia",
        "The devices, and what the driver says of them.",
    ),
];

/// When this was last written.
const DATE: &str = "2026-11-24";

/// The manual page.
pub(super) fn page() -> String {
    let (main, subcommands) = (MainArgs::command(), SubcommandArgs::command());
    let mut page = String::new();
    let version = env!("CARGO_PKG_VERSION");
    let title = format!(".TH autocvd 1 {DATE} \"autocvd {version}\" \"User Commands\"");
    macro_lines(&mut page, &title);
    // Neither names nor options are broken at the end of a line.
    macro_lines(&mut page, ".nh\n.ad l");
    section(&mut page, "NAME");
    macro_lines(
        &mut page,
        "autocvd \\- find free NVIDIA GPUs, or wait for them, and set CUDA_VISIBLE_DEVICES",
    );
    section(&mut page, "SYNOPSIS");
    macro_lines(&mut page, ".nf");
    for form in SYNOPSIS {
        macro_lines(&mut page, &format!("\\fB{}\\fR", escape(form)));
    }
    macro_lines(&mut page, ".fi");
    section(&mut page, "DESCRIPTION");
    for text in DESCRIPTION {
        paragraph(&mut page, text);
    }
    section(&mut page, "WHAT COUNTS AS FREE");
    for text in WHAT_IS_FREE {
        paragraph(&mut page, text);
    }
    section(&mut page, "OPTIONS");
    options(&mut page, main.get_arguments());
    entry(&mut page, "-h, --help", "Print help (-h: in short)");
    entry(&mut page, "-V, --version", "Print the version");
    section(&mut page, "VALUES");
    for (name, text) in help::FORMATS {
        entry(&mut page, name, &capitalized(text));
    }
    section(&mut page, "SUBCOMMANDS");
    for subcommand in subcommands.get_subcommands() {
        let about = subcommand
            .get_about()
            .map(ToString::to_string)
            .unwrap_or_default();
        let values: String = subcommand.get_positionals().map(|_| " SHELL").collect();
        entry(
            &mut page,
            &format!("autocvd {}{values}", subcommand.get_name()),
            &about,
        );
        let mut own = String::new();
        options(&mut own, subcommand.get_opts());
        if !values.is_empty() {
            entry(&mut own, "SHELL", "bash, zsh, fish, elvish or powershell");
        }
        if !own.is_empty() {
            macro_lines(&mut page, &format!(".RS\n{own}.RE"));
        }
    }
    section(&mut page, "ENVIRONMENT");
    let text = "Every option can be set by its variable; the command line wins. An empty variable \
                counts as not set. A switch is set by 1, true, yes or on.";
    paragraph(&mut page, text);
    for name in variables::OPTIONS {
        let option = name.to_lowercase().replace('_', "-");
        let text = match name {
            "WATCH" | "SHORT" => format!("As --{option} of status."),
            "SHELL" => "The old name of AUTOCVD_FORMAT.".to_owned(),
            _ => format!("As --{option}."),
        };
        entry(&mut page, &format!("{}{name}", variables::PREFIX), &text);
    }
    for (variable, text) in help::VARIABLES {
        entry(&mut page, variable, &capitalized(text));
    }
    section(&mut page, "FILES");
    for (file, text) in FILES {
        entry(&mut page, file, text);
    }
    section(&mut page, "EXIT STATUS");
    for (code, text) in exit_code::TABLE {
        entry(&mut page, code, &capitalized(text));
    }
    paragraph(&mut page, help::ON_FAILURE);
    section(&mut page, "EXAMPLES");
    for (line, text) in help::EXAMPLES {
        entry(&mut page, line, &capitalized(text));
    }
    section(&mut page, "SEE ALSO");
    paragraph(&mut page, "nvidia-smi(1), flock(1), timeout(1)");
    page
}

/// An entry for each option.
fn options<'a>(page: &mut String, options: impl Iterator<Item = &'a Arg>) {
    for option in options.filter(|option| !option.is_positional()) {
        entry(page, &names(option), &explained(option));
    }
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
        let (main, subcommands) = (MainArgs::command(), SubcommandArgs::command());
        for arg in main.get_arguments() {
            if let Some(long) = arg.get_long() {
                assert!(page.contains(&escape(&format!("--{long}"))), "--{long}");
            }
        }
        for name in help::names_of_variables() {
            assert!(page.contains(&name), "{name}");
        }
        for subcommand in subcommands.get_subcommands() {
            let name = subcommand.get_name();
            assert!(page.contains(&format!("autocvd {name}")), "{name}");
        }
    }
}
