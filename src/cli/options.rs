//! What is asked for, merged: the command line first, then the variables, then the defaults.

use super::advice::Origins;
use super::args::{self, Format, MainArgs, Options, ProbeArg, StatusArgs};
use super::failure::Failure;
use super::variables::{PREFIX, Variables};
use autocvd::text::{parse_duration, parse_size};
use autocvd::{ClaimPolicy, OutputForm, ProbeChoice, Request};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The default of `--hold`.
const HOLD: Duration = Duration::from_secs(60);

/// The main job.
#[derive(Debug)]
pub(super) struct Launch {
    pub(super) request: Request,
    pub(super) output: Output,
    pub(super) verbosity: Verbosity,
    pub(super) origins: Origins,
    // What messages need of the request.
    pub(super) least_used: bool,
    pub(super) timeout: Option<Duration>,
    pub(super) min_free_memory: Option<u64>,
    pub(super) share: Option<u64>,
    /// The ids to choose among or to leave out.
    pub(super) ids: Vec<String>,
}

/// What becomes of the choice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Output {
    /// Assignments in front of a command.
    Prefix(Syntax),
    /// Assignments for the shell itself.
    Export(Syntax),
    Ids,
    Json,
    /// Arguments of `docker run`.
    Docker,
    /// Arguments of `podman run`.
    Cdi,
    /// The program to become.
    Command {
        words: Vec<OsString>,
        cores: Cores,
    },
}

/// The syntax of assignments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Syntax {
    /// sh, bash, dash, ksh, zsh, busybox.
    Posix,
    /// fish 3.1 and later.
    Fish,
    /// csh, tcsh.
    Csh,
}

/// The CPU cores that COMMAND runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cores {
    /// Those of this process.
    Unchanged,
    /// Those of them that are near the GPUs.
    NearGpus,
}

/// How much is written to standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Verbosity {
    /// Errors alone.
    Quiet,
    /// Errors, warnings, and what is waited for.
    Normal,
    /// Also what was chosen and why.
    Verbose,
    Debug,
    Trace,
}

/// What `autocvd status` shows, and how.
#[derive(Debug)]
pub(super) struct Status {
    pub(super) form: StatusForm,
    /// The time between two screens; `None` shows one.
    pub(super) watch: Option<Duration>,
    pub(super) probe: ProbeChoice,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StatusForm {
    Screen,
    Short,
    Json,
}

impl Launch {
    /// # Errors
    /// A variable's value is wrong, or two options contradict each other.
    pub(super) fn merge_env(written: MainArgs, variables: &Variables) -> Result<Self, Failure> {
        let MainArgs { options, command } = written;
        let verbosity = verbosity(&options, variables)?;
        let output = output(&options, command, variables)?;
        let values = Values { variables };
        let num_gpus = values.get(options.num_gpus, "NUM_GPUS", args::count)?;
        let timeout = values.get(options.timeout, "TIMEOUT", parse_duration)?;
        let interval = values.get(options.interval, "INTERVAL", args::positive_duration)?;
        let patience = variables.parse("PATIENCE", parse_duration)?;
        let hold = values.get(options.hold, "HOLD", parse_duration)?;
        let (min_free_memory, memory_from) = values.pick(
            options.min_free_memory,
            "--min-free-memory",
            "AUTOCVD_MIN_FREE_MEMORY",
            parse_size,
        )?;
        let share = values.share(options.share, min_free_memory, memory_from)?;
        let tolerate = values.get(options.tolerate, "TOLERATE", parse_size)?;
        let excluded = Some(options.exclude).filter(|ids| !ids.is_empty());
        let (exclude, exclude_from) =
            values.pick(excluded, "--exclude", "AUTOCVD_EXCLUDE", args::ids)?;
        let (only, only_from) = values.pick(options.only, "--only", "AUTOCVD_ONLY", args::ids)?;
        let no_claim = values.switch(options.no_claim, "NO_CLAIM")?;
        let (probe, from) = probe(options.probe, options.from, variables)?;
        let claim = match no_claim {
            true => ClaimPolicy::No,
            false => claim(&output, hold.unwrap_or(HOLD)),
        };
        let exclude = words(&exclude.unwrap_or_default());
        let only = only.as_deref().map(words);
        let least_used = values.switch(options.least_used, "LEAST_USED")?;
        let mut request = Request::new()
            .num_gpus(num_gpus.unwrap_or(1))
            .exclude(exclude.iter().cloned())
            .claim(claim)
            .probe(probe);
        if least_used {
            request = request.least_used();
        }
        if let Some(timeout) = timeout {
            request = request.timeout(timeout);
        }
        if let Some(interval) = interval {
            request = request.interval(interval);
        }
        if let Some(patience) = patience {
            request = request.patience(patience);
        }
        if let Some(only) = &only {
            request = request.only(only.iter().cloned());
        }
        match (share, min_free_memory) {
            (Some(bytes), _) => request = request.share(bytes),
            (None, Some(bytes)) => request = request.min_free_memory(bytes),
            (None, None) => {}
        }
        if let Some(bytes) = tolerate {
            request = request.tolerate(bytes);
        }
        if values.switch(options.inherit, "INHERIT")? {
            request = request.inherit();
        }
        if values.switch(options.uuid, "UUID")? {
            request = request.by_uuid();
        }
        if output == Output::Json || verbosity > Verbosity::Normal {
            request = request.with_details();
        }
        if matches!(
            output,
            Output::Command {
                cores: Cores::NearGpus,
                ..
            }
        ) {
            request = request.with_cpu_affinity();
        }
        let ids = exclude
            .into_iter()
            .chain(only.into_iter().flatten())
            .collect();
        let origins = Origins {
            exclude: exclude_from,
            only: only_from,
            min_free_memory: memory_from,
            from,
        };
        Ok(Self {
            request,
            output,
            verbosity,
            origins,
            least_used,
            timeout,
            min_free_memory,
            share,
            ids,
        })
    }
}

impl Status {
    /// # Errors
    /// A variable's value is wrong.
    pub(super) fn merge_env(written: StatusArgs, variables: &Variables) -> Result<Self, Failure> {
        let values = Values { variables };
        let form = if written.json {
            StatusForm::Json
        } else if written.short {
            StatusForm::Short
        } else if values.switch(false, "JSON")? {
            StatusForm::Json
        } else if values.switch(false, "SHORT")? {
            StatusForm::Short
        } else {
            StatusForm::Screen
        };
        let watch = values.get(written.watch, "WATCH", args::positive_duration)?;
        let (probe, _) = probe(written.probe, written.from, variables)?;
        Ok(Self { form, watch, probe })
    }
}

/// Takes values from where they count.
struct Values<'a> {
    variables: &'a Variables,
}

impl Values<'_> {
    /// A value that is written, or else that of the variable.
    fn get<T>(
        &self,
        written: Option<T>,
        variable: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<T>, Failure> {
        match written {
            Some(_) => Ok(written),
            None => self.variables.parse(variable, parse),
        }
    }

    /// The same, with the name that it came by.
    fn pick<T>(
        &self,
        written: Option<T>,
        option: &'static str,
        variable: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<(Option<T>, &'static str), Failure> {
        let is_written = written.is_some();
        let name = variable.strip_prefix(PREFIX).unwrap_or(variable);
        let value = self.get(written, name, parse)?;
        let is_variables = value.is_some() && !is_written;
        Ok((value, if is_variables { variable } else { option }))
    }

    /// The size of the share that is asked for, which is that of the memory to be free.
    fn share(
        &self,
        written: bool,
        size: Option<u64>,
        size_from: &str,
    ) -> Result<Option<u64>, Failure> {
        if !self.switch(written, "SHARE")? {
            return Ok(None);
        }
        let origin = if written { "--share" } else { "AUTOCVD_SHARE" };
        match size {
            Some(0) => Err(Failure::usage(format!(
                "invalid value '0' for {size_from}: a share is of more than 0 bytes"
            ))),
            Some(bytes) => Ok(Some(bytes)),
            None => Err(Failure::usage(format!(
                "{origin} takes a share of so much memory: say how much, as in --share -m 15GiB"
            ))),
        }
    }

    fn switch(&self, written: bool, name: &str) -> Result<bool, Failure> {
        if written {
            return Ok(true);
        }
        Ok(self.variables.parse(name, args::boolean)?.unwrap_or(false))
    }
}

fn verbosity(options: &Options, variables: &Variables) -> Result<Verbosity, Failure> {
    let (quiet, verbose) = if options.quiet || options.verbose > 0 {
        (options.quiet, options.verbose)
    } else {
        let quiet = variables.parse("QUIET", args::boolean)?.unwrap_or(false);
        (
            quiet,
            variables.parse("VERBOSE", args::verbosity)?.unwrap_or(0),
        )
    };
    Ok(match verbose {
        _ if quiet => Verbosity::Quiet,
        0 => Verbosity::Normal,
        1 => Verbosity::Verbose,
        2 => Verbosity::Debug,
        _ => Verbosity::Trace,
    })
}

/// What is written about the output makes all variables about it void.
fn output(
    options: &Options,
    command: Vec<OsString>,
    variables: &Variables,
) -> Result<Output, Failure> {
    let values = Values { variables };
    if !command.is_empty() {
        let cores = match values.switch(options.bind, "BIND")? {
            true => Cores::NearGpus,
            false => Cores::Unchanged,
        };
        return Ok(Output::Command {
            words: command,
            cores,
        });
    }
    if options.bind {
        return Err(Failure::usage(
            "--bind pins a COMMAND: autocvd --bind -- COMMAND",
        ));
    }
    if options.json {
        return Ok(Output::Json);
    }
    if options.id_only {
        return Ok(Output::Ids);
    }
    let written = options.format;
    if options.source && matches!(written, Some(Format::Docker | Format::Cdi)) {
        let text = "--source prints a shell's assignments and --format the arguments of a \
                    container engine; leave one of them out";
        return Err(Failure::usage(text));
    }
    let container = |format| match format {
        Format::Docker => Some(Output::Docker),
        Format::Cdi => Some(Output::Cdi),
        Format::Posix | Format::Fish | Format::Csh => None,
    };
    if let Some(output) = written.and_then(container) {
        return Ok(output);
    }
    let by_variable = || {
        variables.parse("FORMAT", args::value_of::<Format>)?;
        variables.parse("SHELL", args::value_of::<Format>)?;
        Ok::<_, Failure>(variables.format())
    };
    let format = match written {
        Some(format) => Some(format),
        None => by_variable()?,
    };
    let syntax = match format {
        Some(Format::Fish) => Syntax::Fish,
        Some(Format::Csh) => Syntax::Csh,
        _ => Syntax::Posix,
    };
    if options.source {
        return Ok(Output::Export(syntax));
    }
    let (json, ids) = (
        values.switch(false, "JSON")?,
        values.switch(false, "ID_ONLY")?,
    );
    let exported = values.switch(false, "SOURCE")? || values.switch(false, "EXPORT")?;
    Ok(match format.and_then(container) {
        _ if json => Output::Json,
        _ if ids => Output::Ids,
        Some(output) => output,
        None if exported => Output::Export(syntax),
        None => Output::Prefix(syntax),
    })
}

/// For whom the GPUs are claimed.
fn claim(output: &Output, hold: Duration) -> ClaimPolicy {
    let form = match output {
        Output::Command { words, .. } => {
            let name = words.first().and_then(|word| Path::new(word).file_name());
            return ClaimPolicy::Command {
                program: name.unwrap_or_default().to_string_lossy().into_owned(),
            };
        }
        Output::Prefix(_) => OutputForm::Prefix,
        Output::Export(_) => OutputForm::Export,
        Output::Ids | Output::Json | Output::Docker | Output::Cdi => OutputForm::Ids,
    };
    ClaimPolicy::Shell { hold, form }
}

/// Where to read the machine's state. A file goes before all else, but a written `--probe` goes
/// before the variable that names a file.
fn probe(
    probe: Option<ProbeArg>,
    from: Option<PathBuf>,
    variables: &Variables,
) -> Result<(ProbeChoice, &'static str), Failure> {
    if let Some(file) = from {
        return Ok((ProbeChoice::File(standard_input(file)), "--from"));
    }
    if let (None, Some(file)) = (probe, variables.get("FROM")) {
        return Ok((
            ProbeChoice::File(standard_input(file.into())),
            "AUTOCVD_FROM",
        ));
    }
    let probe = match probe {
        Some(probe) => Some(probe),
        None => variables.parse("PROBE", args::value_of::<ProbeArg>)?,
    };
    let choice = match probe {
        None | Some(ProbeArg::Auto) => ProbeChoice::Auto,
        Some(ProbeArg::Nvml) => ProbeChoice::Nvml,
        Some(ProbeArg::NvidiaSmi) => ProbeChoice::NvidiaSmi,
    };
    Ok((choice, "--probe"))
}

/// `-` names standard input, as in other programs.
fn standard_input(file: PathBuf) -> PathBuf {
    if file == Path::new("-") {
        "/dev/stdin".into()
    } else {
        file
    }
}

/// Ids may also be separated by spaces, as in a variable.
fn words(ids: &[String]) -> Vec<String> {
    ids.iter()
        .flat_map(|ids| ids.split_whitespace())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::guard::Guard;
    use super::*;
    use clap::Parser;

    const LINES: [&str; 14] = [
        "",
        "-s",
        "-o",
        "--json",
        "-so",
        "-qs",
        "--format fish",
        "-s --format fish",
        "-s --format csh",
        "--format docker",
        "--format=cdi",
        "-o --format docker",
        "-- prog",
        "-s -- prog",
    ];

    fn merge_env(line: &str, pairs: &[(&str, &str)]) -> Launch {
        let words = std::iter::once("autocvd").chain(line.split_whitespace());
        let written = MainArgs::try_parse_from(words).expect("a right line");
        Launch::merge_env(written, &Variables::from_pairs(pairs)).expect("right values")
    }

    #[test]
    fn the_guard_fits_the_output_whatever_the_variables_say() {
        let variables: [&[(&str, &str)]; 7] = [
            &[],
            &[("JSON", "1")],
            &[("ID_ONLY", "1")],
            &[("SOURCE", "1")],
            &[("SHELL", "fish")],
            &[("SHELL", "csh"), ("EXPORT", "yes")],
            &[("FORMAT", "docker")],
        ];
        for line in LINES {
            for pairs in variables {
                let words = std::iter::once("autocvd").chain(line.split_whitespace());
                let words: Vec<OsString> = words.map(Into::into).collect();
                let guard = Guard::of(&words, &Variables::from_pairs(pairs));
                let is_written = Guard::of(&words, &Variables::default()) == Guard::Silent;
                let expected = match merge_env(line, pairs).output {
                    Output::Command { .. } => Guard::Silent,
                    Output::Ids | Output::Json if !is_written => {
                        assert_ne!(guard, Guard::Silent, "{line} {pairs:?}");
                        continue;
                    }
                    Output::Ids | Output::Json => Guard::Silent,
                    Output::Docker | Output::Cdi => Guard::Container,
                    Output::Prefix(_) => Guard::Prefix,
                    Output::Export(Syntax::Posix) => Guard::Export,
                    Output::Export(Syntax::Fish) => Guard::ExportFish,
                    Output::Export(Syntax::Csh) => Guard::ExportCsh,
                };
                assert_eq!(guard, expected, "{line} {pairs:?}");
            }
        }
    }

    #[test]
    fn fish_as_a_variable_is_read_by_every_shell() {
        assert_eq!(
            merge_env("-s", &[("SHELL", "fish")]).output,
            Output::Export(Syntax::Posix)
        );
        assert_eq!(
            merge_env("-s --shell fish", &[]).output,
            Output::Export(Syntax::Fish)
        );
    }

    #[test]
    fn each_value_may_come_by_a_variable_and_a_written_one_wins() {
        use clap::CommandFactory;
        let values = [
            ("num-gpus", "2", "3"),
            ("timeout", "5s", "6s"),
            ("interval", "5s", "6s"),
            ("exclude", "1", "2"),
            ("only", "1", "2"),
            ("min-free-memory", "1GiB", "2GiB"),
            ("tolerate", "1GiB", "2GiB"),
            ("format", "csh", "docker"),
            ("hold", "5s", "6s"),
            ("probe", "nvml", "nvidia-smi"),
            ("from", "a.json", "b.json"),
        ];
        let shown = |line: &str, pairs: &[(&str, &str)]| format!("{:?}", merge_env(line, pairs));
        let command = MainArgs::command();
        let options = command.get_arguments().filter(|argument| {
            argument.get_long().is_some() && argument.get_action().takes_values()
        });
        for option in options {
            let long = option.get_long().expect("those alone are left");
            let row = values.iter().find(|(name, ..)| *name == long);
            let (_, written, other) = row.unwrap_or_else(|| panic!("--{long} has no row"));
            let variable = long.replace('-', "_").to_uppercase();
            let line = format!("--{long} {written}");
            let pair = [(&*variable, *other)];
            assert_ne!(
                shown("", &pair),
                shown("", &[]),
                "AUTOCVD_{variable} says nothing"
            );
            assert_eq!(
                shown(&line, &pair),
                shown(&line, &[]),
                "{line} does not win"
            );
        }
    }

    #[test]
    fn a_value_keeps_the_name_that_it_came_by() {
        let launch = merge_env(
            "-x 1 2",
            &[("ONLY", "1, 3"), ("EXCLUDE", "0"), ("FROM", "-")],
        );
        assert_eq!(launch.ids, ["1", "2", "1", "3"]);
        assert_eq!(launch.origins.exclude, "--exclude");
        assert_eq!(launch.origins.only, "AUTOCVD_ONLY");
        assert_eq!(launch.origins.from, "AUTOCVD_FROM");
    }

    proptest::proptest! {
        #[test]
        fn no_words_break_the_reading_of_a_line(
            words in proptest::collection::vec(proptest::collection::vec(1..=u8::MAX, 0..12), 0..6),
        ) {
            use std::os::unix::ffi::OsStringExt;
            let words = words.into_iter().map(OsString::from_vec);
            let words: Vec<OsString> = std::iter::once("autocvd".into()).chain(words).collect();
            let _ = Guard::of(&words, &Variables::default());
            let parsed = MainArgs::try_parse_from(&words).ok();
            let plain = MainArgs::without_options(&words);
            proptest::prop_assert!(plain.is_none() || parsed.is_some(), "{words:?}");
            let _ = parsed.map(|written| Launch::merge_env(written, &Variables::default()).is_ok());
        }

        #[test]
        fn the_guard_fits_the_output_of_every_line(
            words in proptest::collection::vec(
                proptest::sample::select(&[
                    "-s", "-e", "-o", "-q", "-v", "-l", "-so", "-qs", "--json", "--id-only",
                    "--export", "--format", "--format=csh", "--shell", "fish", "tcsh", "docker",
                    "cdi", "-x", "0", "-xo", "-n", "-n2", "-no", "--only", "--from", "-",
                    "--bind", "--uuid", "--",
                    "prog", "status", "-x=1", "--watch", "-t", "1s", "",
                ][..]),
                0..7,
            ),
        ) {
            let words = std::iter::once("autocvd").chain(words).map(Into::into);
            let words: Vec<OsString> = words.collect();
            let guard = Guard::of(&words, &Variables::default());
            let parsed = MainArgs::try_parse_from(&words).ok();
            let merge = |written| Launch::merge_env(written, &Variables::default()).ok();
            let merged = parsed.and_then(merge);
            // A line that is wrong may be guarded in any way; one that is right as its output
            // needs.
            if let Some(launch) = merged {
                let fits = match (launch.output, guard) {
                    (Output::Command { .. } | Output::Ids | Output::Json, guard) => {
                        guard == Guard::Silent
                    }
                    (Output::Docker | Output::Cdi, guard) => guard == Guard::Container,
                    (Output::Prefix(_), guard) => guard == Guard::Prefix,
                    (Output::Export(Syntax::Posix), guard) => guard == Guard::Export,
                    (Output::Export(Syntax::Fish), guard) => guard == Guard::ExportFish,
                    (Output::Export(Syntax::Csh), guard) => guard == Guard::ExportCsh,
                };
                proptest::prop_assert!(fits, "{words:?}: {guard:?}");
            }
        }
    }
}
