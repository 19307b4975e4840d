//! The course of the program.

use super::args::{Args, Main, Options, Sub, Subcommand, Syntax, probe_choice};
use super::exit::{self, Failure};
use super::progress::Progress;
use super::{args, exec, explain, man, shell, signals, status, variables};
use autocvd::Detail;
use autocvd::Environment;
use autocvd::text;
use autocvd::{Acquisition, ClaimPolicy, OutputForm, Request, acquire};
use clap::{CommandFactory, FromArgMatches, error::ErrorKind as ClapErrorKind};
use std::ffi::OsString;
use std::io::Write;
use std::time::Duration;

/// The default of `--hold`.
const HOLD: Duration = Duration::from_secs(60);

/// Runs the program and returns its exit code.
pub(crate) fn run(arguments: Vec<OsString>) -> i32 {
    exit::fill_standard_descriptors();
    let by_variable = variables::settle(&arguments);
    signals::guard_output(exit::output_is_evaluated(&arguments));
    exit::catch_panics();
    signals::install();
    // Most lines leave nothing to parse, and clap would take a tenth of the time that all the rest takes.
    let plain = if by_variable {
        None
    } else {
        Main::without_options(&arguments)
    };
    let asked = plain.map_or_else(|| parse(&arguments), |main| Ok(Some(Asked::Main(main))));
    let done = asked.and_then(|asked| match asked {
        Some(Asked::Main(Main { command, .. }))
            if command.is_empty() && arguments.last().is_some_and(|last| last == "--") =>
        {
            Err(Failure::new(
                exit::WRONG_VALUE,
                "there is no COMMAND behind '--'; give one, or leave '--' out",
            ))
        }
        Some(Asked::Main(Main { options, command })) => choose(&options, &command),
        Some(Asked::Sub(sub)) => {
            signals::guard_output(false);
            tell(sub)
        }
        None => Ok(()),
    });
    signals::expect_exit();
    match done {
        Ok(()) => 0,
        Err(failure) => exit::fail(&failure),
    }
}

/// What is asked for; `None` where help or the version was, and has been printed.
///
/// Each half of the command line is parsed without the other: that takes half the time, and a wrong
/// variable of an option does not keep `status` from showing the machine.
fn parse(arguments: &[OsString]) -> Result<Option<Asked>, Failure> {
    let parsed = match arguments.get(1).map(|first| first.as_encoded_bytes()) {
        None | Some([b'-', ..]) => try_parse::<Main>(Main::command(), arguments).map(Asked::Main),
        Some(b"help") => {
            try_parse::<Args>(args::command(), arguments).map(|args| Asked::Main(args.main))
        }
        Some(_) => try_parse::<Subcommand>(Subcommand::command(), arguments)
            .map(|parsed| Asked::Sub(parsed.sub)),
    };
    let error = match parsed {
        Ok(asked) => return Ok(Some(asked)),
        Err(error) => error,
    };
    match error.kind() {
        // The main job's help is the whole program's.
        ClapErrorKind::DisplayHelp
            if arguments
                .get(1)
                .is_some_and(|first| first.as_encoded_bytes().starts_with(b"-")) =>
        {
            print(&args::command().render_help().to_string()).map(|()| None)
        }
        ClapErrorKind::DisplayHelp | ClapErrorKind::DisplayVersion => {
            print(&error.render().to_string()).map(|()| None)
        }
        _ => Err(Failure::new(
            exit::WRONG_VALUE,
            what_is_wrong(&error, arguments),
        )),
    }
}

/// What is wrong with the command line, what to do about it, and whose help says more: all in one line.
fn what_is_wrong(error: &clap::Error, arguments: &[OsString]) -> String {
    let first = arguments.get(1).and_then(|first| first.to_str());
    let sub = first.filter(|first| Subcommand::command().find_subcommand(first).is_some());
    let variable = variable_at_fault(error).map(|name| format!(" (from {name})"));
    let command = bare_command(error).filter(|_| sub.is_none() && first != Some("help"));
    let command = command.map(|word| format!("; to run a command: autocvd -- {word} …"));
    let addition = variable.or(command).unwrap_or_default();
    let help = sub.map_or_else(String::new, |sub| format!("{sub} "));
    format!(
        "{}{addition}; see 'autocvd {help}--help'",
        one_line(&message(error))
    )
}

/// The two things that can be asked for.
enum Asked {
    Main(Main),
    Sub(Sub),
}

/// The word that is neither an option nor a subcommand, nor like one: a COMMAND whose '--' was forgotten.
fn bare_command(error: &clap::Error) -> Option<&str> {
    use clap::error::{ContextKind, ContextValue};
    let word = error
        .get(ContextKind::InvalidSubcommand)
        .or_else(|| error.get(ContextKind::InvalidArg));
    match (
        error.kind(),
        word,
        error.get(ContextKind::SuggestedSubcommand),
    ) {
        (
            ClapErrorKind::InvalidSubcommand | ClapErrorKind::UnknownArgument,
            Some(ContextValue::String(word)),
            None,
        ) => Some(&**word).filter(|word| !word.starts_with('-')),
        _ => None,
    }
}

/// The variable that the wrong value came from, where it did not come from the command line.
fn variable_at_fault(error: &clap::Error) -> Option<String> {
    use clap::error::{ContextKind, ContextValue};
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        _ => None,
    };
    let (option, value) = (
        text(ContextKind::InvalidArg)?,
        text(ContextKind::InvalidValue)?,
    );
    let name = option
        .split_whitespace()
        .next()?
        .trim_matches(['-', '.'])
        .replace('-', "_")
        .to_uppercase();
    let variable = format!("AUTOCVD_{name}");
    let given = std::env::args_os().any(|arg| arg.to_string_lossy().contains(&value));
    (!given && std::env::var(&variable).is_ok_and(|set| set.contains(&value))).then_some(variable)
}

fn try_parse<T: FromArgMatches>(
    mut command: clap::Command,
    arguments: &[OsString],
) -> Result<T, clap::Error> {
    let parsed = command.try_get_matches_from_mut(arguments);
    // The process does not live long enough for freeing to pay.
    std::mem::forget(command);
    parsed.and_then(|mut matches| T::from_arg_matches_mut(&mut matches))
}

/// clap's message. What was written is quoted in it, and may hold line breaks.
fn message(error: &clap::Error) -> String {
    use clap::error::ContextValue;
    let quoted = error.context().filter_map(|(_, value)| match value {
        ContextValue::String(text) if text.contains(char::is_control) => Some(text),
        _ => None,
    });
    quoted.fold(error.render().to_string(), |message, text| {
        message.replace(
            &format!("'{text}'"),
            &format!("'{}'", text::printable(text.as_bytes())),
        )
    })
}

/// clap's message without its usage: what is wrong, and its tip if it has one.
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
        // clap's advice to pass it behind '--' would make a command of it.
        if line.contains("as a value, use") {
            continue;
        }
        parts.push(
            line.trim_start_matches("error: ")
                .trim_start_matches("tip: "),
        );
    }
    parts.join("; ").replace(":;", ":")
}

/// What there is besides the main job.
fn tell(sub: Sub) -> Result<(), Failure> {
    match sub {
        Sub::Status(args) => status::run(&args),
        Sub::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(
                shell,
                &mut args::command_to_complete(),
                "autocvd",
                &mut text,
            );
            print(&String::from_utf8_lossy(&text))
        }
        Sub::Man => print(&man::page()),
    }
}

/// The main job.
fn choose(options: &Options, command: &[OsString]) -> Result<(), Failure> {
    signals::guard_output(command.is_empty() && !options.id_only && !options.json);
    if options.bind && command.is_empty() {
        let text = "--bind pins a COMMAND, and there is none; give one behind '--'";
        return Err(Failure::new(exit::WRONG_VALUE, text));
    }
    if let Some(program) = command.first() {
        exec::check(program)?;
    }
    if options.quiet {
        signals::be_quiet();
    }
    explain::start(options.verbose, options.quiet);
    let environment = Environment::read();
    let request = request(options, command);
    let mut progress = Progress::new(options.quiet, options.timeout);
    let found = acquire(&request, &environment, &mut progress);
    progress.finish();
    let found = found?;
    if options.verbose > 0 {
        explain::choice(&found, options);
    }
    if command.is_empty() {
        print_choice(options, found)
    } else {
        start(options, command, found)
    }
}

fn request(options: &Options, command: &[OsString]) -> Request {
    let claim = if options.no_claim {
        ClaimPolicy::No
    } else if !command.is_empty() {
        let words: Vec<_> = command.iter().map(|word| word.to_string_lossy()).collect();
        ClaimPolicy::Process {
            command: words.join(" "),
        }
    } else {
        let form = match (options.id_only || options.json, options.source) {
            (true, _) => OutputForm::Ids,
            (false, true) => OutputForm::Export,
            (false, false) => OutputForm::Prefix,
        };
        ClaimPolicy::Shell {
            hold: options.hold.unwrap_or(HOLD),
            form,
        }
    };
    let mut request = Request::new()
        .num_gpus(options.num_gpus.unwrap_or(1))
        .exclude(words(&options.exclude))
        .claim(claim)
        .probe(probe_choice(options.probe, options.from.as_ref()));
    if options.least_used {
        request = request.least_used();
    }
    if let Some(timeout) = options.timeout {
        request = request.timeout(timeout);
    }
    if let Some(interval) = options.interval {
        request = request.interval(interval);
    }
    if let Some(only) = &options.only {
        request = request.only(words(only));
    }
    if let Some(bytes) = options.min_free_memory {
        request = request.min_free_memory(bytes);
    }
    if options.inherit {
        request = request.inherit();
    }
    if options.uuid {
        request = request.by_uuid();
    }
    if options.json || options.verbose > 0 {
        request = request.detail(Detail::Everything);
    }
    if options.bind {
        request = request.with_cpu_affinity();
    }
    request
}

/// Ids may also be separated by spaces, as in a variable.
fn words(ids: &[String]) -> Vec<String> {
    ids.iter()
        .flat_map(|ids| ids.split_whitespace())
        .map(str::to_owned)
        .collect()
}

fn print_choice(options: &Options, mut found: Acquisition) -> Result<(), Failure> {
    let text = if options.json {
        explain::json(&found)
    } else if options.id_only {
        found.ids.join(",")
    } else {
        shell::assignments(
            options.shell.unwrap_or(Syntax::Posix),
            options.source,
            &found.variables(),
        )
    };
    match exit::write_stdout(&format!("{text}\n")) {
        Ok(()) => {
            if let Some(claim) = found.claim.take() {
                claim.persist();
            }
            Ok(())
        }
        Err(error) => {
            if let Some(claim) = &mut found.claim {
                claim.release();
            }
            Err(Failure::new(
                exit::UNEXPECTED,
                format!("cannot write to standard output: {error}"),
            ))
        }
    }
}

fn start(options: &Options, command: &[OsString], mut found: Acquisition) -> Result<(), Failure> {
    let bound = if options.bind {
        exec::bind(&found.cpu_affinity)
    } else {
        Ok(())
    };
    if let Some(why) = bound.err().filter(|_| !options.quiet) {
        let _ = writeln!(
            std::io::stderr(),
            "autocvd: warning: --bind: {why}; the command runs unbound"
        );
    }
    if let Some(claim) = &found.claim {
        let kept = claim.keep_across_exec();
        kept.map_err(|e| {
            Failure::new(
                exit::UNEXPECTED,
                format!("the claim cannot be passed on: {e}"),
            )
        })?;
    }
    let [order, ids] = found.variables();
    let failure = exec::become_command(command, &[order, ids, found.inside()]);
    if let Some(claim) = &mut found.claim {
        claim.release();
    }
    Err(failure)
}

fn print(text: &str) -> Result<(), Failure> {
    exit::write_stdout(text).map_err(|e| {
        Failure::new(
            exit::UNEXPECTED,
            format!("cannot write to standard output: {e}"),
        )
    })
}
