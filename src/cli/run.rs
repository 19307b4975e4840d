//! The course of the program.

use super::args::{MainArgs, Subcommand, SubcommandArgs};
use super::exit_code::ExitCode;
use super::failure::Failure;
use super::guard::{self, Guard};
use super::options::{Cores, Launch, Output, Status, Verbosity};
use super::progress::Progress;
use super::standard_output::print;
use super::variables::{MEMORY, Variables};
use super::{
    completions, doctor, exec, format, help, man, mps_view, report, signals, standard_output,
    status, usage,
};
use autocvd::{Acquisition, Environment, acquire};
use clap::{CommandFactory, FromArgMatches};
use std::ffi::OsString;
use std::io::Write;

/// Runs the program and returns its exit code.
pub(crate) fn run(arguments: Vec<OsString>) -> i32 {
    standard_output::fill_standard_descriptors();
    standard_output::make_private();
    mps_view::hide();
    let variables = Variables::read();
    let guard = match standard_output::is_terminal() {
        // A person reads it.
        true => Guard::Silent,
        false => Guard::of(&arguments, &variables),
    };
    guard.set();
    catch_panics();
    signals::install(guard);
    let done = parse(&arguments, &variables).and_then(|asked| match asked {
        Asked::Help(help) => print(&help),
        Asked::Launch(written) => launch(written, &variables),
        Asked::Subcommand(subcommand) => run_subcommand(subcommand, &variables),
    });
    signals::expect_exit();
    match done {
        Ok(()) => ExitCode::Success.number(),
        Err(failure) => fail(&failure),
    }
}

/// What is asked for.
enum Asked {
    /// A text, such as the help.
    Help(String),
    Launch(MainArgs),
    Subcommand(Subcommand),
}

/// Reads the command line. Each half of it is parsed without the other, which takes half the time.
fn parse(arguments: &[OsString], variables: &Variables) -> Result<Asked, Failure> {
    if let (false, Some(plain)) = (
        variables.may_set_options(),
        MainArgs::without_options(arguments),
    ) {
        return Ok(Asked::Launch(plain));
    }
    if let Some(help) = help::asked_for(arguments)? {
        return Ok(Asked::Help(help));
    }
    let words = arguments.iter().map(OsString::as_os_str);
    let parsed = match arguments.get(1).map(|first| first.as_encoded_bytes()) {
        None | Some([b'-', ..]) => {
            parse_with::<MainArgs>(MainArgs::command(), words).map(Asked::Launch)
        }
        Some(_) => parse_with::<SubcommandArgs>(SubcommandArgs::command(), words)
            .map(|parsed| Asked::Subcommand(parsed.subcommand)),
    };
    let asked = parsed.map_err(|error| usage::error(&error, arguments))?;
    match &asked {
        Asked::Launch(written)
            if written.command.is_empty() && arguments.last().is_some_and(|last| last == "--") =>
        {
            Err(Failure::usage(
                "no COMMAND after '--'; add one or drop the '--'",
            ))
        }
        _ => Ok(asked),
    }
}

fn parse_with<'a, T: FromArgMatches>(
    mut command: clap::Command,
    arguments: impl Iterator<Item = &'a std::ffi::OsStr>,
) -> Result<T, clap::Error> {
    let parsed = command.try_get_matches_from_mut(arguments);
    // The process does not live long enough for freeing to pay.
    std::mem::forget(command);
    parsed.and_then(|mut matches| T::from_arg_matches_mut(&mut matches))
}

fn run_subcommand(subcommand: Subcommand, variables: &Variables) -> Result<(), Failure> {
    match subcommand {
        Subcommand::Status(args) => status::run(Status::merge_env(args, variables)?),
        Subcommand::Doctor => doctor::run(),
        Subcommand::Completions { shell } => print(&completions::script(shell)),
        Subcommand::Release => Environment::read()
            .release_shell_claims()
            .map(drop)
            .map_err(|error| {
                Failure::new(
                    ExitCode::Unexpected,
                    format!("the directory of claims cannot be used: {error}"),
                )
            }),
        Subcommand::Man => print(&man::page()),
    }
}

/// The main job.
fn launch(written: MainArgs, variables: &Variables) -> Result<(), Failure> {
    let launch = Launch::merge_env(written, variables)?;
    if let Output::Command { words, .. } = &launch.output {
        words
            .first()
            .map_or(Ok(()), |program| exec::check(program))?;
    }
    if launch.verbosity == Verbosity::Quiet {
        signals::be_quiet();
    } else {
        variables.warnings().iter().for_each(|text| warn(text));
    }
    report::start(launch.verbosity);
    let environment = Environment::read();
    let mut progress = Progress::new(launch.verbosity, launch.timeout);
    let found = acquire(&launch.request, &environment, &mut progress);
    progress.finish();
    let found = found.map_err(|error| report::failure(&error, &launch))?;
    if launch.verbosity > Verbosity::Normal {
        report::choice(&found, &launch);
    }
    // That of a share around this launch means nothing on a whole GPU.
    let stale = found.memory.is_none() && variables.get(MEMORY).is_some();
    let stale = stale.then(|| (format::MEMORY, String::new()));
    let variables: Vec<_> = found.variables().into_iter().chain(stale).collect();
    let text = match launch.output {
        Output::Command { words, cores } => {
            return start(&words, cores, launch.verbosity, variables, found);
        }
        Output::Prefix(syntax) => format::prefix(syntax, &variables),
        Output::Export(syntax) => format::export(syntax, &variables),
        Output::Ids => found.ids.join(","),
        Output::Json => report::json(&found),
        Output::Docker => format::docker(&found.ids, found.memory),
        Output::Cdi => format::cdi(&found.ids, found.memory),
    };
    print_choice(&text, found)
}

fn print_choice(text: &str, mut found: Acquisition) -> Result<(), Failure> {
    let label = found.label();
    if let Some(claim) = &mut found.claim {
        warn_unclaimed(claim.persist(&label));
    }
    print(text).inspect_err(|_| {
        if let Some(claim) = &mut found.claim {
            claim.release();
        }
    })
}

/// The job runs all the same where its claim cannot live on without this process.
fn warn_unclaimed(kept: std::io::Result<()>) {
    if let Err(error) = kept {
        warn(&format!(
            "the GPUs are not claimed any more: {error}; other launches may pick the same ones"
        ));
    }
}

fn start(
    command: &[OsString],
    cores: Cores,
    verbosity: Verbosity,
    mut variables: Vec<(&'static str, String)>,
    mut found: Acquisition,
) -> Result<(), Failure> {
    let bound = match cores {
        Cores::NearGpus => exec::bind(&found.cpu_affinity),
        Cores::Unchanged => Ok(()),
    };
    if let Some(why) = bound.err().filter(|_| verbosity > Verbosity::Quiet) {
        warn(&format!("--bind: {why}; the command runs unbound"));
    }
    let label = found.label();
    if let Some(claim) = &mut found.claim {
        let kept = claim.persist(&label);
        warn_unclaimed(kept.or_else(|_| claim.keep_across_exec()));
    }
    variables.push(found.inside());
    let failure = exec::become_command(command, &variables);
    if let Some(claim) = &mut found.claim {
        claim.release();
    }
    Err(failure)
}

/// Writes a warning to standard error. One that cannot be written costs nothing else.
pub(super) fn warn(text: &str) {
    let text = autocvd::program::printable(text.as_bytes());
    let _ = std::io::stderr().write_all(format!("autocvd: warning: {text}\n").as_bytes());
}

/// Reports `failure` and returns its exit code.
fn fail(failure: &Failure) -> i32 {
    signals::clear_line();
    // What is quoted, such as a value or another user's command line, may hold control characters.
    let text = format!(
        "autocvd: {}\n",
        autocvd::program::printable(failure.message.as_bytes())
    );
    let _ = std::io::stderr().write_all(text.as_bytes());
    let code = failure.code.number();
    let mut buffer = [0; guard::MAX_LENGTH];
    let length = Guard::current().text(code, &mut buffer);
    let _ = standard_output::write(&String::from_utf8_lossy(&buffer[..length]));
    code
}

/// Makes a panic end like every other failure: in words, with a code, and starting nothing.
fn catch_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location();
        let place = place
            .map(|place| format!(" at {}:{}", place.file(), place.line()))
            .unwrap_or_default();
        let payload = panic.payload();
        let cause = payload.downcast_ref::<String>().map(String::as_str);
        let cause = cause.or_else(|| payload.downcast_ref::<&str>().copied());
        let cause = cause.unwrap_or("no message").replace('\n', " ");
        let message = format!(
            "internal error{place}: {cause}; please report it with the command that you ran"
        );
        autocvd::program::remove_files();
        signals::exit_now(fail(&Failure::new(ExitCode::Unexpected, message)));
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_runs_nothing_and_is_told_in_one_line() {
        const INNER: &str = "AUTOCVD_TEST_PANICS";
        if std::env::var_os(INNER).is_some() {
            Guard::Prefix.set();
            catch_panics();
            panic!("one line\nand another");
        }
        // A process of its own, for a panic ends it.
        let program = std::env::current_exe().expect("a process knows its program");
        let name = "cli::run::tests::a_panic_runs_nothing_and_is_told_in_one_line";
        let mut test = std::process::Command::new(program);
        test.args(["--exact", name, "--nocapture"]).env(INNER, "1");
        let output = test.output().expect("it runs");
        let stdout = String::from_utf8_lossy(&output.stdout);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stdout}{stderr}");
        assert!(stdout.ends_with("sh -c 'exit 1' autocvd\n"), "{stdout}");
        assert!(
            stderr.starts_with("autocvd: internal error at src/cli/run.rs:"),
            "{stderr}"
        );
        assert!(
            stderr.contains(": one line and another; please report it"),
            "{stderr}"
        );
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
}
