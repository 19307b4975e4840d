//! The command line, for clap.

use autocvd::ProbeChoice;
use autocvd::text::{parse_duration, parse_size};
use clap::{ArgAction, Args as _, CommandFactory, Parser, Subcommand as _, ValueEnum, ValueHint};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// Lines to run, and what they do.
pub(super) const EXAMPLES: [(&str, &str); 6] = [
    (
        "eval $(autocvd) python train.py",
        "run on a free GPU, or wait for one",
    ),
    (
        "eval $(autocvd -n 2 -t 1h) ./job",
        "on two GPUs, giving up after an hour",
    ),
    (
        "autocvd -n 4 -- ./job \"an argument\"",
        "become ./job, with four GPUs claimed until it ends",
    ),
    (". <(autocvd -s)", "set the variables in this shell"),
    (
        "autocvd status --watch",
        "who is on which GPU, every second",
    ),
    (
        ". <(autocvd completions bash)",
        "complete its options in this shell",
    ),
];

const AFTER_HELP: &str = "\
Every option can be set by a variable: AUTOCVD_NUM_GPUS, AUTOCVD_TIMEOUT, …; the command line wins.

Exit codes: 0 done, 1 unexpected error, 2 wrong option or value, 3 can never be met here,
4 timeout passed, 5 no NVIDIA GPU can be read, 126/127 COMMAND cannot be run/is not found,
128+N ended by signal N. On failure the output runs nothing: 'eval $(autocvd) prog' starts no prog.";

/// What stands below the options.
fn after_help() -> String {
    let examples: String = EXAMPLES
        .iter()
        .map(|(line, text)| format!("  {line:<37}  {text}\n"))
        .collect();
    format!("Examples:\n{examples}\n{AFTER_HELP}")
}

/// Find free NVIDIA GPUs, or wait for them, and set CUDA_VISIBLE_DEVICES
#[derive(Debug, Parser)]
#[command(
    name = "autocvd",
    version,
    override_usage = "autocvd [OPTIONS]                     print the assignments, for the shell to eval\n       \
                      autocvd [OPTIONS] -- COMMAND [ARG]…   become COMMAND, with the GPUs set and claimed\n       \
                      autocvd status | completions | man    see 'autocvd help SUBCOMMAND'",
    after_help = after_help(),
    max_term_width = 110,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
pub(super) struct Args {
    #[command(subcommand)]
    pub(super) subcommand: Option<Sub>,
    #[command(flatten)]
    pub(super) main: Main,
}

/// The main job's part of the command line. Alone it is half the work to parse.
#[derive(Debug, Default, PartialEq, Parser)]
#[command(name = "autocvd", version, args_override_self = true)]
pub(super) struct Main {
    #[command(flatten)]
    pub(super) options: Options,
    /// Become COMMAND instead of printing: its GPUs stay claimed until it ends
    #[arg(last = true, value_name = "COMMAND", value_hint = ValueHint::CommandWithArguments)]
    pub(super) command: Vec<OsString>,
}

impl Main {
    /// What a line without options asks for, where no variable sets one either: `autocvd` and `autocvd -- COMMAND…`.
    pub(super) fn without_options(arguments: &[OsString]) -> Option<Self> {
        match arguments {
            [_] => Some(Self::default()),
            [_, dashes, command @ ..] if dashes == "--" && !command.is_empty() => Some(Self {
                command: command.to_vec(),
                ..Self::default()
            }),
            _ => None,
        }
    }
}

/// The part that is not the main job.
#[derive(Debug, Parser)]
#[command(name = "autocvd", args_override_self = true)]
pub(super) struct Subcommand {
    #[command(subcommand)]
    pub(super) sub: Sub,
}

#[derive(Debug, clap::Subcommand)]
pub(super) enum Sub {
    /// Show which GPUs are free, and who is on the others
    Status(StatusArgs),
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    Man,
}

#[derive(Debug, clap::Args)]
pub(super) struct StatusArgs {
    /// Print JSON, with --watch one document a line
    #[arg(long, env = "AUTOCVD_JSON", hide_env = true, value_parser = boolean)]
    pub(super) json: bool,
    /// Show again every DUR, 1 s if none is given
    #[arg(long, value_name = "DUR", env = "AUTOCVD_WATCH", hide_env = true, num_args = 0..=1, require_equals = true, default_missing_value = "1", value_parser = positive_duration)]
    pub(super) watch: Option<Duration>,
    /// Read the machine's state from FILE (what 'status --json' prints), not from the driver
    #[arg(long, value_name = "FILE", env = "AUTOCVD_FROM", hide_env = true, value_hint = ValueHint::FilePath)]
    pub(super) from: Option<PathBuf>,
    /// Where to read the machine's state [default: auto: NVML, else nvidia-smi]
    #[arg(long, value_name = "WHERE", env = "AUTOCVD_PROBE", hide_env = true)]
    pub(super) probe: Option<Where>,
}

#[derive(Debug, Default, PartialEq, clap::Args)]
pub(super) struct Options {
    // The defaults stand in the help's text: clap would parse its own at every start.
    /// How many GPUs [default: 1]
    #[arg(short, long, value_name = "N", env = "AUTOCVD_NUM_GPUS", allow_negative_numbers = true, value_parser = count)]
    pub(super) num_gpus: Option<usize>,
    /// Never wait: take the N usable GPUs with the most free memory
    #[arg(short, long, env = "AUTOCVD_LEAST_USED", value_parser = boolean)]
    pub(super) least_used: bool,
    /// Give up after DUR (90, 500ms, '2m 30s'); 0 looks once [default: never]
    #[arg(short, long, value_name = "DUR", env = "AUTOCVD_TIMEOUT", allow_negative_numbers = true, value_parser = parse_duration)]
    pub(super) timeout: Option<Duration>,
    /// Look again at least this often while waiting [default: 30s]
    #[arg(short, long, value_name = "DUR", env = "AUTOCVD_INTERVAL", allow_negative_numbers = true, value_parser = positive_duration)]
    pub(super) interval: Option<Duration>,
    /// Print 'export …', for '. <(autocvd -s)'
    #[arg(short, long, visible_short_alias = 'e', visible_alias = "export", env = "AUTOCVD_SOURCE", value_parser = boolean)]
    pub(super) source: bool,
    /// Print the comma-separated ids alone
    #[arg(short = 'o', long, env = "AUTOCVD_ID_ONLY", value_parser = boolean)]
    pub(super) id_only: bool,
    /// Nothing on stderr but errors
    #[arg(short, long, env = "AUTOCVD_QUIET", value_parser = boolean)]
    pub(super) quiet: bool,
    /// Tell what it does and why; twice for more
    #[arg(short, long, env = "AUTOCVD_VERBOSE", action = ArgAction::Count, value_parser = verbosity)]
    pub(super) verbose: u8,
    /// Leave these GPUs out: indices, UUIDs or unique starts of them, PCI bus ids
    #[arg(short = 'x', long, value_name = "ID", env = "AUTOCVD_EXCLUDE", num_args = 1.., value_delimiter = ',', value_parser = id)]
    pub(super) exclude: Vec<String>,
    /// Choose among these GPUs alone
    #[arg(long, value_name = "ID", env = "AUTOCVD_ONLY", num_args = 1.., value_delimiter = ',', value_parser = id)]
    pub(super) only: Option<Vec<String>>,
    /// Only GPUs with this much free memory (10GiB, 500MiB; 10G is 10^10 bytes)
    #[arg(short, long, value_name = "SIZE", env = "AUTOCVD_MIN_FREE_MEMORY", allow_negative_numbers = true, value_parser = parse_size)]
    pub(super) min_free_memory: Option<u64>,
    /// Choose among the GPUs that the present CUDA_VISIBLE_DEVICES allows
    #[arg(long, env = "AUTOCVD_INHERIT", value_parser = boolean)]
    pub(super) inherit: bool,
    /// Print UUIDs, not indices
    #[arg(long, env = "AUTOCVD_UUID", value_parser = boolean)]
    pub(super) uuid: bool,
    /// Print the choice as one JSON object
    #[arg(long, env = "AUTOCVD_JSON", value_parser = boolean)]
    pub(super) json: bool,
    /// The syntax to print [default: posix]
    #[arg(long, value_name = "SHELL", env = "AUTOCVD_SHELL")]
    pub(super) shell: Option<Syntax>,
    /// How long a printed choice stays claimed for the shell that asked, before its program is seen [default: 60s]
    #[arg(long, value_name = "DUR", env = "AUTOCVD_HOLD", allow_negative_numbers = true, value_parser = parse_duration)]
    pub(super) hold: Option<Duration>,
    /// Neither heed nor make claims
    #[arg(long, env = "AUTOCVD_NO_CLAIM", value_parser = boolean)]
    pub(super) no_claim: bool,
    /// Where to read the machine's state [default: auto: NVML, else nvidia-smi]
    #[arg(long, value_name = "WHERE", env = "AUTOCVD_PROBE")]
    pub(super) probe: Option<Where>,
    /// Pin COMMAND to the CPU cores near its GPUs
    #[arg(long, env = "AUTOCVD_BIND", value_parser = boolean)]
    pub(super) bind: bool,
    /// Read the machine's state from FILE (what 'status --json' prints), not from the driver
    #[arg(long, value_name = "FILE", env = "AUTOCVD_FROM", value_hint = ValueHint::FilePath)]
    pub(super) from: Option<PathBuf>,
}

/// The syntaxes that can be printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Syntax {
    // sh, bash, dash, ksh, zsh, busybox
    Posix,
    // fish 3.1 and later
    Fish,
    // csh, tcsh
    Csh,
}

/// Where the machine's state can be read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Where {
    // NVML, else nvidia-smi.
    Auto,
    // NVML alone.
    Nvml,
    // nvidia-smi alone.
    NvidiaSmi,
}

/// Where to read the machine's state: a file goes before all else.
pub(super) fn probe_choice(probe: Option<Where>, from: Option<&PathBuf>) -> ProbeChoice {
    match (from, probe) {
        (Some(file), _) => ProbeChoice::File(file.clone()),
        (None, None | Some(Where::Auto)) => ProbeChoice::Auto,
        (None, Some(Where::Nvml)) => ProbeChoice::Nvml,
        (None, Some(Where::NvidiaSmi)) => ProbeChoice::NvidiaSmi,
    }
}

/// The command as clap knows it: for help, completions and the manual page.
pub(super) fn command() -> clap::Command {
    // The variables' names follow from the options'; listing each doubles the help.
    Args::command().mut_args(|arg| arg.hide_env(true))
}

/// The command as the generators of completions are to know it: with COMMAND as an argument, what they
/// write for zsh completes neither COMMAND nor the arguments of subcommands.
pub(super) fn command_to_complete() -> clap::Command {
    Sub::augment_subcommands(Options::augment_args(clap::Command::new("autocvd")))
        .version(env!("CARGO_PKG_VERSION"))
        .args_conflicts_with_subcommands(true)
}

// Each says what to give instead; clap puts the wrong value and the option in front.

fn count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("ask for 1 or more".into()),
        Ok(count) => Ok(count),
        Err(_) => Err("give a whole number from 1 on".into()),
    }
}

fn positive_duration(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        Duration::ZERO => Err("give more than 0".into()),
        duration => Ok(duration),
    }
}

/// Only a variable can say it.
pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match &*text.to_ascii_lowercase() {
        "y" | "yes" | "t" | "true" | "on" | "1" => Ok(true),
        "n" | "no" | "f" | "false" | "off" | "0" => Ok(false),
        _ => Err("give true or false".into()),
    }
}

/// The variable may say how often, or only whether.
fn verbosity(text: &str) -> Result<u8, String> {
    let number = text.parse().or_else(|_| boolean(text).map(u8::from));
    // More than there is to tell is no mistake.
    number
        .map(|number: u8| number.min(3))
        .map_err(|_| "give a number from 0 to 3".into())
}

fn id(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("give an index, a UUID or a PCI bus id".into()),
        id => Ok(id.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definitions_are_consistent() {
        command().debug_assert();
    }

    #[test]
    fn an_interval_is_never_zero() {
        assert!(positive_duration("0").is_err());
        assert_eq!(positive_duration("0.5"), Ok(Duration::from_millis(500)));
    }

    #[test]
    fn of_an_option_given_twice_the_last_one_counts() {
        let main = Main::try_parse_from(["autocvd", "-n", "1", "-n", "2", "-x", "0", "-x", "1"])
            .expect("a right line");
        assert_eq!(
            (main.options.num_gpus, main.options.exclude),
            (Some(2), vec!["0".into(), "1".into()])
        );
        assert_eq!(
            Main::try_parse_from(["autocvd", "-vv", "-v"])
                .expect("a right line")
                .options
                .verbose,
            3
        );
    }

    #[test]
    fn a_line_without_options_is_what_clap_makes_of_it() {
        for words in [
            &[][..],
            &["--", "prog"],
            &["--", "prog", "-n", "2", "--", "-x"],
            &["--", ""],
            &["--", "--"],
        ] {
            let line: Vec<OsString> = std::iter::once(&"autocvd")
                .chain(words)
                .map(Into::into)
                .collect();
            let parsed = Main::try_parse_from(&line).expect("a right line");
            assert_eq!(Main::without_options(&line), Some(parsed), "{words:?}");
        }
        for words in [
            &["--"][..],
            &["-o"],
            &["status"],
            &["-n", "2", "--", "prog"],
            &["prog", "--"],
        ] {
            let line: Vec<OsString> = std::iter::once(&"autocvd")
                .chain(words)
                .map(Into::into)
                .collect();
            assert_eq!(Main::without_options(&line), None, "{words:?}");
        }
    }

    #[test]
    fn ids_are_given_in_every_way_the_manual_shows() {
        for line in [
            &["-x", "0", "2"][..],
            &["-x", "0,2"],
            &["-x", "0", "-x", "2"],
            &["-x0", "-x2"],
        ] {
            let args = Args::try_parse_from([&["autocvd"], line].concat()).expect("a right line");
            assert_eq!(args.main.options.exclude, ["0", "2"], "{line:?}");
        }
        let args = Args::try_parse_from(["autocvd", "-x", "0", "2", "--", "prog", "-x"])
            .expect("a right line");
        let Main { options, command } = args.main;
        assert_eq!(
            (options.exclude, command),
            (
                vec!["0".into(), "2".into()],
                vec!["prog".into(), "-x".into()]
            )
        );
    }
}
