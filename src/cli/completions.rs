//! Completions for the shells.
//!
//! The scripts for bash, zsh and fish are written by hand: generated ones complete neither COMMAND
//! nor the ids of GPUs. A test holds them against the definitions of the options.

use super::args::{Options, Shell, Subcommand};
use super::variables::Variables;
use super::{options, status};
use clap::{Args as _, Subcommand as _};

/// What `autocvd completions SHELL` prints.
pub(super) fn script(shell: Shell) -> String {
    match shell {
        Shell::Bash => include_str!("completions/autocvd.bash").to_owned(),
        Shell::Zsh => include_str!("completions/autocvd.zsh").to_owned(),
        Shell::Fish => include_str!("completions/autocvd.fish").to_owned(),
        Shell::Elvish => generated(clap_complete::Shell::Elvish),
        Shell::Power => generated(clap_complete::Shell::PowerShell),
        Shell::Ids => ids(),
    }
}

fn generated(shell: clap_complete::Shell) -> String {
    let command = Options::augment_args(clap::Command::new("autocvd"));
    let mut command = Subcommand::augment_subcommands(command).version(env!("CARGO_PKG_VERSION"));
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut command, "autocvd", &mut text);
    String::from_utf8_lossy(&text).into_owned()
}

/// Nothing where the machine cannot be read: a completion has no place for errors.
fn ids() -> String {
    let merged = options::Status::merge_env(Default::default(), &Variables::default());
    let lines = merged
        .ok()
        .and_then(|merged| status::ids(&merged.probe).ok());
    lines.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::args::{MainArgs, SubcommandArgs};
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn each_script_offers_each_option_and_subcommand() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = script(shell);
            let commands = SubcommandArgs::command();
            for command in commands.get_subcommands() {
                assert!(
                    script.contains(command.get_name()),
                    "{shell:?}: {}",
                    command.get_name()
                );
            }
            let main = MainArgs::command();
            let all = commands
                .get_subcommands()
                .flat_map(clap::Command::get_arguments);
            for argument in main.get_arguments().chain(all) {
                let Some(long) = argument.get_long() else {
                    continue;
                };
                let name = if shell == Shell::Fish {
                    format!("-l {long}")
                } else {
                    format!("--{long}")
                };
                assert!(script.contains(&name), "{shell:?}: --{long}");
            }
        }
    }
}
