//! Failure never runs the program, in each shell, in each form, whatever goes wrong, whatever the
//! surroundings. The number of cases is printed.
#![cfg(feature = "cli")]

mod common;

use std::fs;
use std::io::Write;
use std::process::Command;

use common::{Machine, run};
use serde_json::json;

/// How a shell says things. `OPTIONS` stands for the program's options.
struct Shell {
    name: &'static str,
    /// Runs what follows on the GPUs that are found.
    prefixes: &'static [&'static str],
    /// Sets the variables in the shell itself; `prog` then runs on the next line.
    exports: &'static [&'static str],
    /// Sets a variable for all that follows.
    set: fn(&str, &str) -> String,
}

fn posix(name: &str, value: &str) -> String {
    format!("export {name}={value}\n")
}

const PREFIXES: &[&str] = &[
    "eval $(autocvd OPTIONS) prog",
    "eval \"$(autocvd OPTIONS)\" prog",
    "eval \"$(autocvd OPTIONS) prog\"",
    "(eval $(autocvd OPTIONS) prog)",
    "eval $(autocvd OPTIONS) prog & wait",
    "f() { eval $(autocvd OPTIONS) \"$@\"; }; f prog",
];
const EXPORTS: &[&str] = &[
    "eval \"$(autocvd -s OPTIONS)\"",
    "eval $(autocvd -s OPTIONS)",
];
/// Of the shells that read a process's output as a file.
const EXPORTS_AND_SOURCED: &[&str] = &[EXPORTS[0], EXPORTS[1], ". <(autocvd -s OPTIONS)"];

const SHELLS: [Shell; 8] = [
    Shell {
        name: "bash",
        prefixes: PREFIXES,
        exports: EXPORTS_AND_SOURCED,
        set: posix,
    },
    Shell {
        name: "zsh",
        prefixes: PREFIXES,
        exports: EXPORTS_AND_SOURCED,
        set: posix,
    },
    Shell {
        name: "dash",
        prefixes: PREFIXES,
        exports: EXPORTS,
        set: posix,
    },
    Shell {
        name: "ksh",
        prefixes: PREFIXES,
        exports: EXPORTS,
        set: posix,
    },
    Shell {
        name: "mksh",
        prefixes: PREFIXES,
        exports: EXPORTS,
        set: posix,
    },
    Shell {
        name: "busybox",
        prefixes: PREFIXES,
        exports: EXPORTS,
        set: posix,
    },
    Shell {
        name: "fish",
        prefixes: &[
            "eval (autocvd OPTIONS) prog",
            "eval (autocvd --format fish OPTIONS) prog",
            "begin; eval (autocvd OPTIONS) prog; end",
        ],
        exports: &[
            "autocvd -s --format fish OPTIONS | source",
            "eval (autocvd -s --format fish OPTIONS)",
            "autocvd -s OPTIONS | source",
        ],
        set: |name, value| format!("set -gx {name} {value}\n"),
    },
    Shell {
        name: "tcsh",
        prefixes: &[
            "eval `autocvd --format csh OPTIONS` prog",
            "eval `autocvd --format tcsh OPTIONS` prog",
        ],
        exports: &["eval `autocvd -s --format csh OPTIONS`"],
        set: |name, value| format!("setenv {name} {value}\n"),
    },
];

/// What can go wrong.
#[derive(Clone, Copy, Debug)]
enum Failure {
    WrongOption,
    WrongValue,
    Impossible,
    Timeout,
    NoDriver,
    /// The driver's library ends the process so.
    Library(&'static str),
    /// The driver's library plays with standard output, and then crashes.
    Stdout(&'static str),
    /// A signal comes while it waits.
    Signal(&'static str),
}

const FAILURES: [Failure; 14] = [
    Failure::WrongOption,
    Failure::WrongValue,
    Failure::Impossible,
    Failure::Timeout,
    Failure::NoDriver,
    Failure::Library("crash"),
    Failure::Library("abort"),
    Failure::Library("exit"),
    Failure::Stdout("close"),
    Failure::Stdout("redirect"),
    Failure::Signal("TERM"),
    Failure::Signal("HUP"),
    Failure::Signal("USR1"),
    Failure::Signal("40"),
];

impl Failure {
    /// The machine on which it happens, with an autocvd on PATH to which it happens.
    fn machine(self) -> Machine {
        let machine = Machine::gpus(2);
        machine.install("nvidia-smi", "#!/bin/sh\nexit 9\n");
        match self {
            Self::WrongOption | Self::WrongValue | Self::Impossible => {}
            Self::Timeout | Self::Signal(_) => {
                for gpu in 0..2 {
                    machine.set(&format!("/gpus/{gpu}/processes"), json!([{"pid": 1}]));
                }
            }
            Self::NoDriver => drop(machine.set("/init/code", json!(9))),
            Self::Library(ending) => drop(machine.set("/init/ends", json!(ending))),
            Self::Stdout(mischief) => {
                machine.set("/init", json!({"stdout": mischief, "ends": "crash"}));
            }
        }
        machine.install(
            "prog",
            "#!/bin/sh\necho \"[${CUDA_VISIBLE_DEVICES-unset}]\" >>\"$FAKE_NVML/ran\"\n",
        );
        machine
    }

    fn options(self) -> &'static str {
        match self {
            Self::WrongOption => "--nonsense",
            Self::WrongValue => "-n x",
            Self::Impossible => "-n 3",
            Self::Timeout => "-t 0",
            _ => "",
        }
    }
}

/// What surrounds the line.
const SURROUNDINGS: [(&str, &[(&str, &str)]); 7] = [
    ("nothing", &[]),
    ("an earlier choice", &[("CUDA_VISIBLE_DEVICES", "1")]),
    ("JSON by variable", &[("AUTOCVD_JSON", "1")]),
    ("ids by variable", &[("AUTOCVD_ID_ONLY", "1")]),
    ("another shell by variable", &[("AUTOCVD_SHELL", "fish")]),
    (
        "quiet, and a misspelt variable",
        &[("AUTOCVD_QUIET", "1"), ("AUTOCVD_TIMOUT", "5")],
    ),
    ("source by variable", &[("AUTOCVD_SOURCE", "1")]),
];

fn script(machine: &Machine, shell: &Shell, failure: Failure, text: &str) -> Command {
    let text = text.replace("OPTIONS", failure.options());
    let text = match failure {
        // The signal comes once it has said what it waits for.
        Failure::Signal(signal) => {
            let name = format!("autocvd-{signal}");
            machine.install(
                &name,
                &format!(
                    "#!/bin/sh\n\
                     said=$FAKE_NVML/said.$$\n\
                     (until grep -q 'waiting for' \"$said\" 2>/dev/null; do sleep 0.01; done; \
                      kill -{signal} $$) >/dev/null 2>&1 &\n\
                     exec env AUTOCVD_QUIET= autocvd \"$@\" 2>\"$said\"\n"
                ),
            );
            text.replace("autocvd ", &format!("{name} "))
        }
        _ => text,
    };
    let mut command = machine.shell(shell.name, &text);
    command.current_dir(machine.path());
    command
}

/// Tries all cases of a shell; returns their number.
fn cases_of(shell: &Shell) -> usize {
    let mut cases = 0;
    for failure in FAILURES {
        let machine = failure.machine();
        let ran = machine.path().join("ran");
        for (surroundings, variables) in SURROUNDINGS {
            let set: String = variables
                .iter()
                .map(|(name, value)| (shell.set)(name, value))
                .collect();
            for form in shell.prefixes {
                // fish and csh are asked for in their own syntax, which a variable must not change.
                let outcome = run(&mut script(
                    &machine,
                    shell,
                    failure,
                    &format!("{set}{form}"),
                ));
                let ran = fs::read_to_string(&ran).unwrap_or_default();
                assert_eq!(
                    ran, "",
                    "{}: {form} after {failure:?} with {surroundings} ran the program: \
                     {outcome:#?}",
                    shell.name
                );
                cases += 1;
            }
            for form in shell.exports {
                let text = format!("{set}{form}\nprog\n");
                let outcome = run(&mut script(&machine, shell, failure, &text));
                let saw = fs::read_to_string(&ran).unwrap_or_default();
                let _ = fs::remove_file(&ran);
                assert!(
                    saw.is_empty() || saw == "[-1]\n",
                    "{}: after {form}, {failure:?} and {surroundings} the next line saw {saw}: \
                     {outcome:#?}",
                    shell.name
                );
                cases += 1;
            }
        }
    }
    cases
}

macro_rules! in_each_shell {
    ($($test:ident: $at:expr),* $(,)?) => {$(
        #[test]
        fn $test() {
            let shell = &SHELLS[$at];
            if !common::has(shell.name) {
                return;
            }
            let cases = cases_of(shell);
            let _ = writeln!(std::io::stderr(), "matrix: {}: {cases} cases", shell.name);
        }
    )*};
}

in_each_shell! {
    bash_runs_nothing_after_a_failure: 0,
    zsh_runs_nothing_after_a_failure: 1,
    dash_runs_nothing_after_a_failure: 2,
    ksh_runs_nothing_after_a_failure: 3,
    mksh_runs_nothing_after_a_failure: 4,
    busybox_runs_nothing_after_a_failure: 5,
    fish_runs_nothing_after_a_failure: 6,
    tcsh_runs_nothing_after_a_failure: 7,
}
