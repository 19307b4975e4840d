//! The command line as it is written, for clap. Variables and defaults are added in `options`.

use super::words::one_of;
use autocvd::text::{parse_duration, parse_size};
use clap::{ArgAction, Parser, ValueEnum};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// The short options that take no value.
pub(super) const SHORT_SWITCHES: &[u8] = b"lseoqvhV";

/// The main job's part of the command line. Alone it takes half the time to parse.
#[derive(Debug, Default, PartialEq, Parser)]
#[command(
    name = "autocvd",
    args_override_self = true,
    disable_help_flag = true,
    disable_version_flag = true
)]
pub(super) struct MainArgs {
    #[command(flatten)]
    pub(super) options: Options,
    #[arg(last = true, value_name = "COMMAND")]
    pub(super) command: Vec<OsString>,
}

impl MainArgs {
    /// What a line without options asks for: `autocvd` and `autocvd -- COMMAND…`. clap would take
    /// a tenth of the time that everything else takes.
    pub(super) fn without_options(arguments: &[OsString]) -> Option<Self> {
        match arguments {
            [] | [_] => Some(Self::default()),
            [_, dashes, command @ ..] if dashes == "--" && !command.is_empty() => Some(Self {
                command: command.to_vec(),
                ..Self::default()
            }),
            _ => None,
        }
    }
}

/// The options of the main job; `None`, `false` and empty where they are not written.
#[derive(Debug, Default, PartialEq, clap::Args)]
pub(super) struct Options {
    /// How many GPUs [default: 1]
    #[arg(
        short,
        long,
        value_name = "N",
        help_heading = "Which GPUs",
        allow_negative_numbers = true,
        value_parser = count
    )]
    pub(super) num_gpus: Option<usize>,
    /// Leave these GPUs out: indices, UUIDs or unique starts of them, PCI bus ids
    #[arg(
        short = 'x',
        long,
        value_name = "ID",
        help_heading = "Which GPUs",
        num_args = 1..,
        value_delimiter = ',',
        value_parser = id
    )]
    pub(super) exclude: Vec<String>,
    /// Choose among these GPUs alone
    #[arg(
        long,
        value_name = "ID",
        help_heading = "Which GPUs",
        num_args = 1..,
        value_delimiter = ',',
        value_parser = id
    )]
    pub(super) only: Option<Vec<String>>,
    /// Only GPUs with this much free memory (10GiB, 500MiB; 10G is 10^10 bytes)
    #[arg(
        short,
        long,
        value_name = "SIZE",
        help_heading = "Which GPUs",
        allow_negative_numbers = true,
        value_parser = parse_size
    )]
    pub(super) min_free_memory: Option<u64>,
    /// With -m SIZE: take a share of SIZE of a GPU instead of the whole GPU
    #[arg(long, help_heading = "Which GPUs")]
    pub(super) share: bool,
    /// Count a GPU as free whose idle processes together hold at most this much memory
    #[arg(
        long,
        value_name = "SIZE",
        help_heading = "Which GPUs",
        allow_negative_numbers = true,
        value_parser = parse_size
    )]
    pub(super) tolerate: Option<u64>,
    /// Choose among the GPUs that the present CUDA_VISIBLE_DEVICES allows
    #[arg(long, help_heading = "Which GPUs")]
    pub(super) inherit: bool,
    /// Never wait: take the N usable GPUs with the most free memory
    #[arg(short, long, help_heading = "Waiting")]
    pub(super) least_used: bool,
    /// Give up after DUR (90, 500ms, '2m 30s'); 0 looks once [default: never]
    #[arg(
        short,
        long,
        value_name = "DUR",
        help_heading = "Waiting",
        allow_negative_numbers = true,
        value_parser = parse_duration
    )]
    pub(super) timeout: Option<Duration>,
    /// Re-check at least this often while waiting [default: 30s]
    #[arg(
        short,
        long,
        value_name = "DUR",
        help_heading = "Waiting",
        allow_negative_numbers = true,
        value_parser = positive_duration
    )]
    pub(super) interval: Option<Duration>,
    /// Print 'export …', for eval "$(autocvd -s)"
    #[arg(
        short,
        long,
        visible_short_alias = 'e',
        visible_alias = "export",
        help_heading = "Output"
    )]
    pub(super) source: bool,
    /// Print the comma-separated ids alone
    #[arg(short = 'o', long, help_heading = "Output")]
    pub(super) id_only: bool,
    /// Print the choice as one JSON object
    #[arg(long, help_heading = "Output")]
    pub(super) json: bool,
    /// The syntax to print: posix, fish, csh, docker or cdi [default: posix]
    #[arg(long, value_name = "FORMAT", alias = "shell", help_heading = "Output")]
    pub(super) format: Option<Format>,
    /// Print UUIDs, not indices
    #[arg(long, help_heading = "Output")]
    pub(super) uuid: bool,
    /// With COMMAND: pin it to the CPU cores near its GPUs
    #[arg(long, help_heading = "Output")]
    pub(super) bind: bool,
    /// Nothing on stderr but errors and what is not claimed
    #[arg(short, long, help_heading = "Output")]
    pub(super) quiet: bool,
    /// Explain what is done and why (-vv for more)
    #[arg(short, long, action = ArgAction::Count, help_heading = "Output")]
    pub(super) verbose: u8,
    /// With printed output: reserve the GPUs this long until their use is seen [default: 60s]
    #[arg(
        long,
        value_name = "DUR",
        help_heading = "Claims",
        allow_negative_numbers = true,
        value_parser = parse_duration
    )]
    pub(super) hold: Option<Duration>,
    /// Ignore existing claims and make none
    #[arg(long, help_heading = "Claims")]
    pub(super) no_claim: bool,
    /// Where to read the machine's state: auto, nvml or nvidia-smi [default: auto]
    #[arg(long, value_name = "PROBE", help_heading = "Source")]
    pub(super) probe: Option<ProbeArg>,
    /// Read the machine's state from FILE (what 'status --json' prints; - is stdin)
    #[arg(long, value_name = "FILE", help_heading = "Source")]
    pub(super) from: Option<PathBuf>,
}

/// The part that is not the main job.
#[derive(Debug, Parser)]
#[command(
    name = "autocvd",
    args_override_self = true,
    disable_help_flag = true,
    disable_help_subcommand = true,
    disable_version_flag = true
)]
pub(super) struct SubcommandArgs {
    #[command(subcommand)]
    pub(super) subcommand: Subcommand,
}

#[derive(Debug, clap::Subcommand)]
pub(super) enum Subcommand {
    /// Show which GPUs are free, and who is on the others
    #[command(disable_help_flag = true)]
    Status(StatusArgs),
    /// Show what is found here, and what to do about what is not well
    #[command(disable_help_flag = true)]
    Doctor,
    /// End the claims that this shell holds
    #[command(disable_help_flag = true)]
    Release,
    /// Print completions for a shell
    #[command(disable_help_flag = true)]
    Completions {
        /// The shell
        #[arg(value_name = "SHELL")]
        shell: Shell,
    },
    /// Print the manual page
    #[command(disable_help_flag = true)]
    Man,
}

/// The words that begin a line that is not the main job's.
pub(super) const SUBCOMMANDS: [&str; 6] =
    ["status", "doctor", "release", "completions", "man", "help"];

/// Whether a first word names a subcommand.
pub(super) fn is_subcommand(word: &[u8]) -> bool {
    SUBCOMMANDS.iter().any(|name| name.as_bytes() == word)
}

#[derive(Debug, Default, clap::Args)]
pub(super) struct StatusArgs {
    /// Print JSON, with --watch one document a line
    #[arg(long)]
    pub(super) json: bool,
    /// Print one line, for prompts and status bars: 2/8 free
    #[arg(long, conflicts_with = "json")]
    pub(super) short: bool,
    /// Show again every DUR, 1 s if none is given
    #[arg(
        long,
        value_name = "DUR",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "1",
        value_parser = positive_duration
    )]
    pub(super) watch: Option<Duration>,
    /// Read the machine's state from FILE (what 'status --json' prints; - is stdin)
    #[arg(long, value_name = "FILE")]
    pub(super) from: Option<PathBuf>,
    /// Where to read the machine's state: auto, nvml or nvidia-smi [default: auto]
    #[arg(long, value_name = "PROBE")]
    pub(super) probe: Option<ProbeArg>,
}

/// The syntaxes that can be printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    #[default]
    #[value(aliases = ["sh", "bash", "zsh", "ksh", "mksh", "dash", "ash", "busybox"])]
    Posix,
    Fish,
    #[value(alias = "tcsh")]
    Csh,
    /// `docker run --gpus`
    Docker,
    /// `--device nvidia.com/gpu=…`, for podman and for docker with CDI
    Cdi,
}

impl Format {
    pub(super) fn parse(word: &[u8]) -> Option<Self> {
        Self::from_str(std::str::from_utf8(word).ok()?, false).ok()
    }
}

/// The shells that completions can be printed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Shell {
    Bash,
    Zsh,
    Fish,
    Elvish,
    #[value(name = "powershell")]
    Power,
    /// The ids that the scripts offer: a GPU a line, with its name and state.
    #[value(hide = true)]
    Ids,
}

/// Where the machine's state can be read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum ProbeArg {
    Auto,
    Nvml,
    NvidiaSmi,
}

// Each parser says what to give instead. Its caller quotes the wrong value.

pub(super) fn count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("ask for 1 or more".into()),
        Ok(count) => Ok(count),
        Err(_) => Err("give a whole number from 1 on".into()),
    }
}

pub(super) fn positive_duration(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        Duration::ZERO => Err("give more than 0".into()),
        duration => Ok(duration),
    }
}

/// A switch as a variable sets it.
pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match &*text.to_ascii_lowercase() {
        "y" | "yes" | "t" | "true" | "on" | "1" => Ok(true),
        "n" | "no" | "f" | "false" | "off" | "0" => Ok(false),
        _ => Err("give true or false".into()),
    }
}

/// A variable may say how often `-v` is given, or only whether.
pub(super) fn verbosity(text: &str) -> Result<u8, String> {
    let number = text.parse().or_else(|_| boolean(text).map(u8::from));
    number.map_err(|_| "give a number from 0 to 3".into())
}

fn id(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("give an index, a UUID or a PCI bus id".into()),
        id => Ok(id.to_owned()),
    }
}

/// A list of ids as a variable holds it: separated by commas, spaces or both.
pub(super) fn ids(text: &str) -> Result<Vec<String>, String> {
    text.split(',').map(id).collect()
}

/// One of the values of an enum.
pub(super) fn value_of<T: ValueEnum>(text: &str) -> Result<T, String> {
    T::from_str(text, false).map_err(|_| {
        let values = T::value_variants()
            .iter()
            .filter_map(ValueEnum::to_possible_value);
        let names: Vec<String> = values.map(|value| value.get_name().to_owned()).collect();
        format!("give {}", one_of(&names))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definitions_are_consistent() {
        MainArgs::command().debug_assert();
        SubcommandArgs::command().debug_assert();
        let commands = SubcommandArgs::command();
        let names = commands
            .get_subcommands()
            .map(clap::Command::get_name)
            .chain(["help"]);
        assert!(names.eq(SUBCOMMANDS));
    }

    #[test]
    fn the_switches_are_those_that_take_no_value() {
        let command = MainArgs::command();
        let switches = command
            .get_arguments()
            .filter(|arg| !arg.get_action().takes_values());
        let mut letters: Vec<char> = switches
            .flat_map(|arg| arg.get_short_and_visible_aliases().unwrap_or_default())
            .collect();
        letters.extend(['h', 'V']);
        letters.sort_unstable();
        let mut known: Vec<char> = SHORT_SWITCHES
            .iter()
            .map(|letter| char::from(*letter))
            .collect();
        known.sort_unstable();
        assert_eq!(letters, known);
    }

    #[test]
    fn an_interval_is_never_zero() {
        assert!(positive_duration("0").is_err());
        assert_eq!(positive_duration("0.5"), Ok(Duration::from_millis(500)));
    }

    #[test]
    fn of_an_option_given_twice_the_last_one_counts() {
        let line = ["autocvd", "-n", "1", "-n", "2", "-x", "0", "-x", "1"];
        let main = MainArgs::try_parse_from(line).expect("a right line");
        assert_eq!(main.options.num_gpus, Some(2));
        assert_eq!(main.options.exclude, ["0", "1"]);
        let main = MainArgs::try_parse_from(["autocvd", "-vv", "-v"]).expect("a right line");
        assert_eq!(main.options.verbose, 3);
    }

    #[test]
    fn a_line_without_options_is_what_clap_makes_of_it() {
        let line = |words: &[&str]| -> Vec<OsString> {
            std::iter::once(&"autocvd")
                .chain(words)
                .map(Into::into)
                .collect()
        };
        for words in [
            &[][..],
            &["--", "prog"],
            &["--", "prog", "-n", "2", "--", "-x"],
            &["--", ""],
            &["--", "--"],
        ] {
            let parsed = MainArgs::try_parse_from(line(words)).expect("a right line");
            assert_eq!(
                MainArgs::without_options(&line(words)),
                Some(parsed),
                "{words:?}"
            );
        }
        for words in [
            &["--"][..],
            &["-o"],
            &["status"],
            &["-n", "2", "--", "prog"],
            &["prog", "--"],
        ] {
            assert_eq!(MainArgs::without_options(&line(words)), None, "{words:?}");
        }
    }

    #[test]
    fn ids_are_given_in_every_way_the_manual_shows() {
        let options = |line: &[&str]| {
            MainArgs::try_parse_from([&["autocvd"], line].concat()).expect("a right line")
        };
        for line in [
            &["-x", "0", "2"][..],
            &["-x", "0,2"],
            &["-x", "0", "-x", "2"],
            &["-x0", "-x2"],
        ] {
            assert_eq!(options(line).options.exclude, ["0", "2"], "{line:?}");
        }
        let MainArgs { options, command } = options(&["-x", "0", "2", "--", "prog", "-x"]);
        assert_eq!(options.exclude, ["0", "2"]);
        assert_eq!(command, ["prog", "-x"]);
    }

    #[test]
    fn shells_are_known_by_their_names() {
        for (name, format) in [
            ("bash", Some(Format::Posix)),
            ("dash", Some(Format::Posix)),
            ("tcsh", Some(Format::Csh)),
            ("cdi", Some(Format::Cdi)),
            ("tcl", None),
        ] {
            assert_eq!(Format::parse(name.as_bytes()), format, "{name}");
        }
    }
}
