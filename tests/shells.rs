//! The real shells: what is printed does what it is meant to in each of them, and COMMAND is
//! started as `nice` would start it.
#![cfg(feature = "cli")]

mod common;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use common::{Machine, Outcome, has, run, start, unless_starved, wait_until, wait_until_unclaimed};

/// How a shell says things. `OPTIONS` stands for the program's options.
struct Shell {
    name: &'static str,
    /// Runs what follows on the GPUs that are found.
    prefix: &'static str,
    /// Sets the variables in the shell itself, in each way there is.
    sourced: &'static [&'static str],
    /// Two jobs in the background, whose output is in `a` and `b`.
    background: &'static str,
    /// One job after another.
    repeat: &'static str,
}

const POSIX: Shell = Shell {
    name: "dash",
    prefix: "eval $(autocvd OPTIONS)",
    sourced: &[
        "eval \"$(autocvd -s OPTIONS)\"",
        "eval $(autocvd -e OPTIONS)",
    ],
    background: "eval $(autocvd) occupy 20 >a & eval $(autocvd) occupy 20 >b & wait",
    repeat: "for i in 1 2 3; do eval $(autocvd) show; done",
};

/// With process substitution.
const LARGE: Shell = Shell {
    sourced: &["eval \"$(autocvd -s OPTIONS)\"", ". <(autocvd -s OPTIONS)"],
    ..POSIX
};

const SHELLS: [Shell; 8] = [
    Shell {
        name: "bash",
        ..LARGE
    },
    POSIX,
    Shell {
        name: "zsh",
        ..LARGE
    },
    Shell {
        name: "ksh",
        ..LARGE
    },
    Shell {
        name: "mksh",
        ..POSIX
    },
    Shell {
        name: "busybox",
        ..POSIX
    },
    Shell {
        name: "fish",
        prefix: "eval (autocvd OPTIONS)",
        sourced: &[
            "autocvd -s --shell fish OPTIONS | source",
            "eval (autocvd -s --shell fish OPTIONS)",
        ],
        background: "eval (autocvd) occupy 20 '>a &'; eval (autocvd) occupy 20 '>b &'; wait",
        repeat: "for i in 1 2 3; eval (autocvd) show; end",
    },
    Shell {
        name: "tcsh",
        prefix: "eval `autocvd --shell csh OPTIONS`",
        sourced: &["eval `autocvd -s --shell csh OPTIONS`"],
        background: "eval `autocvd --shell csh` occupy 20 >a &\n\
                     eval `autocvd --shell csh` occupy 20 >b &\nwait",
        repeat: "eval `autocvd --shell csh` show; eval `autocvd --shell csh` show; \
                 eval `autocvd --shell csh` show",
    },
];

fn shells() -> impl Iterator<Item = &'static Shell> {
    SHELLS.iter().filter(|shell| has(shell.name))
}

/// A machine with a program that shows what it is given.
fn machine(gpus: usize) -> Machine {
    let machine = Machine::gpus(gpus);
    machine.install(
        "show",
        "#!/bin/sh\necho \"${CUDA_DEVICE_ORDER-unset} ${CUDA_VISIBLE_DEVICES-unset}\"\n",
    );
    machine
}

fn script(machine: &Machine, shell: &Shell, text: &str, options: &str) -> Command {
    let mut command = machine.shell(shell.name, &text.replace("OPTIONS", options));
    command.current_dir(machine.path());
    command
}

#[test]
fn a_prefix_sets_the_gpus_of_one_program_alone() {
    let machine = machine(3);
    for shell in shells() {
        let text = format!("{} show; show", shell.prefix);
        let shown = run(&mut script(&machine, shell, &text, "-n 2")).success();
        assert_eq!(shown, "PCI_BUS_ID 1,2\nunset unset\n", "{}", shell.name);
        wait_until_unclaimed(&machine);
    }
}

#[test]
fn a_sourced_choice_sets_the_gpus_of_all_that_follows() {
    let machine = machine(3);
    for shell in shells() {
        for form in shell.sourced {
            let text = format!("{form}\nshow; show");
            let shown = run(&mut script(&machine, shell, &text, "-n 2")).success();
            assert_eq!(
                shown, "PCI_BUS_ID 1,2\nPCI_BUS_ID 1,2\n",
                "{}: {form}",
                shell.name
            );
            wait_until_unclaimed(&machine);
        }
    }
}

#[test]
fn ids_alone_go_where_the_script_puts_them() {
    let machine = machine(3);
    for shell in shells() {
        let text = match shell.name {
            "fish" => "set ids (autocvd -o --hold 0 -n 2); echo ids=$ids",
            "tcsh" => "set ids = `autocvd -o --hold 0 -n 2`; echo ids=$ids",
            _ => "ids=$(autocvd -o --hold 0 -n 2); echo ids=$ids",
        };
        assert_eq!(
            run(&mut script(&machine, shell, text, "")).success(),
            "ids=1,2\n",
            "{}",
            shell.name
        );
        wait_until_unclaimed(&machine);
    }
}

#[test]
fn a_failure_runs_nothing_and_ends_in_its_code() {
    let machine = machine(1);
    let job = machine.job(0);
    let ran = machine.path().join("ran");
    for shell in shells() {
        for (options, code) in [("-n 0", 2), ("-n 2", 3), ("-t 0", 4)] {
            let prefixed = [
                format!("{} touch ran", shell.prefix),
                shell.prefix.to_owned(),
            ];
            let sourced = shell.sourced.iter().flat_map(|form| match shell.name {
                "fish" => [format!("{form}; and touch ran"), (*form).to_owned()],
                _ => [format!("{form} && touch ran"), (*form).to_owned()],
            });
            for text in prefixed.into_iter().chain(sourced) {
                let outcome = run(&mut script(&machine, shell, &text, options));
                assert_eq!(
                    outcome.code,
                    Some(code),
                    "{}: {text} {options}: {outcome:#?}",
                    shell.name
                );
                assert!(!ran.exists(), "{}: {text} {options}", shell.name);
                assert_eq!(
                    outcome.stderr.lines().count(),
                    1,
                    "{}: {text} {options}: {outcome:#?}",
                    shell.name
                );
            }
        }
    }
    drop(job);
}

#[test]
fn two_jobs_in_the_background_get_different_gpus() {
    for shell in shells() {
        let machine = machine(2);
        let _jobs = start(&mut script(&machine, shell, shell.background, ""));
        let given = |name: &str| fs::read_to_string(machine.path().join(name)).unwrap_or_default();
        wait_until(&format!("both run ({})", shell.name), || {
            given("a").ends_with('\n') && given("b").ends_with('\n')
        });
        let mut given = [given("a"), given("b")];
        given.sort_unstable();
        assert_eq!(given, ["0\n", "1\n"], "{}", shell.name);
    }
}

#[test]
fn a_loop_of_short_jobs_on_one_gpu_never_waits_for_its_own_lease() {
    for shell in shells() {
        unless_starved(|| {
            let machine = machine(1);
            let outcome = run(&mut script(&machine, shell, shell.repeat, ""));
            let has_run = outcome.code == Some(0) && outcome.stdout == "PCI_BUS_ID 0\n".repeat(3);
            match has_run && outcome.stderr.is_empty() {
                true => Ok(()),
                false => Err(format!("{} waited: {outcome:#?}", shell.name)),
            }
        });
    }
}

#[test]
fn a_lease_of_a_shell_that_has_ended_holds_up_nobody() {
    for shell in shells() {
        unless_starved(|| {
            let machine = machine(1);
            let text = format!("{} show", shell.prefix);
            let runs = || run(&mut script(&machine, shell, &text, ""));
            let outcomes = [runs(), runs()];
            let is_well = |outcome: &Outcome| outcome.code == Some(0) && outcome.stderr.is_empty();
            match outcomes.iter().all(is_well) {
                true => Ok(()),
                false => Err(format!("{}: {outcomes:#?}", shell.name)),
            }
        });
    }
}

#[test]
fn arguments_arrive_unchanged() {
    let machine = Machine::gpus(1);
    let arguments: Vec<&OsStr> = [
        &b"a b"[..],
        b"",
        b"'single' \"double\"",
        b"$HOME `id` $(id)",
        b"a;b&c|d>e<f",
        b"new\nline\ttab\n",
        b"* ? [a-z] ~ {x,y}",
        b"back\\slash",
        b"-n",
        b"--",
        b"--help",
        b"\xff\xfe not text",
        "größe".as_bytes(),
        b"#!",
    ]
    .map(OsStr::from_bytes)
    .to_vec();
    let output = machine
        .autocvd()
        .args(["--", "printf", "%s\\0"])
        .args(&arguments)
        .output()
        .expect("it runs");
    let arrived: Vec<&[u8]> = output.stdout.split(|byte| *byte == 0).collect();
    let expected: Vec<&[u8]> = arguments
        .iter()
        .map(|argument| argument.as_bytes())
        .chain([&b""[..]])
        .collect();
    assert_eq!(
        arrived,
        expected,
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for shell in shells() {
        let text = "autocvd -- printf '[%s]' 'a b' '' '$HOME;*' \"it's\" -x --";
        assert_eq!(
            run(&mut script(&machine, shell, text, "")).success(),
            "[a b][][$HOME;*][it's][-x][--]",
            "{}",
            shell.name
        );
    }
}

#[test]
fn the_exit_code_and_the_signal_are_those_of_the_command() {
    let machine = Machine::gpus(1);
    for code in [0, 1, 2, 4, 77, 126, 127, 255] {
        let outcome = run(machine
            .autocvd()
            .args(["--", "sh", "-c", &format!("exit {code}")]));
        assert_eq!(
            (
                outcome.code,
                outcome.stdout.as_str(),
                outcome.stderr.as_str()
            ),
            (Some(code), "", "")
        );
        // The judge takes a moment, and the next one would tell that it waits for it.
        wait_until_unclaimed(&machine);
    }
    for signal in [2, 9, 13, 14, 15] {
        let outcome =
            run(machine
                .autocvd()
                .args(["--", "sh", "-c", &format!("kill -{signal} $$")]));
        assert_eq!((outcome.code, outcome.signal), (None, Some(signal)));
    }
    // Every shell sees it so.
    for shell in shells() {
        let outcome = run(&mut script(
            &machine,
            shell,
            "autocvd -- sh -c 'exit 77'",
            "",
        ));
        assert_eq!(outcome.code, Some(77), "{}", shell.name);
    }
}

#[test]
fn input_and_output_are_the_commands_own() {
    let machine = Machine::gpus(1);
    let mut command = machine.autocvd();
    command.args(["--", "sh", "-c", "tr a-z A-Z; echo problem >&2"]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it runs");
    child
        .stdin
        .take()
        .expect("a pipe")
        .write_all(b"some input\n")
        .expect("it is read");
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(
        (&*output.stdout, &*output.stderr),
        (&b"SOME INPUT\n"[..], &b"problem\n"[..])
    );
}

#[test]
fn the_command_has_the_variables_and_else_the_environment_as_it_was() {
    let machine = Machine::gpus(3);
    let odd = OsStr::from_bytes(b"\xff\n");
    let given = |program: &mut Command| {
        let output = program
            .env("ODD", odd)
            .env("CUDA_VISIBLE_DEVICES", "7")
            .env("AUTOCVD_NUM_GPUS", "2")
            .output();
        let mut variables: Vec<OsString> = output
            .expect("it runs")
            .stdout
            .split(|byte| *byte == 0)
            .map(|entry| OsStr::from_bytes(entry).into())
            .collect();
        variables.sort_unstable();
        variables
    };
    let before = given(machine.command("env").arg("-0"));
    let inside = given(machine.autocvd().args(["--", "env", "-0"]));
    let added: Vec<&OsString> = inside
        .iter()
        .filter(|entry| !before.contains(entry))
        .collect();
    assert!(
        added[0].as_bytes().starts_with(b"AUTOCVD_INSIDE="),
        "{added:?}"
    );
    assert_eq!(
        added[1..],
        ["CUDA_DEVICE_ORDER=PCI_BUS_ID", "CUDA_VISIBLE_DEVICES=1,2"]
    );
    let lost: Vec<&OsString> = before
        .iter()
        .filter(|entry| !inside.contains(entry))
        .collect();
    assert_eq!(lost, ["CUDA_VISIBLE_DEVICES=7"]);
}

#[test]
fn the_command_is_the_process_that_was_started() {
    let machine = Machine::gpus(1);
    let script = "echo $$; exec autocvd -- sh -c 'echo $$; echo $PPID'; echo never";
    let mut shell = machine.shell("sh", script);
    let outcome = run(&mut shell).success();
    let lines: Vec<&str> = outcome.lines().collect();
    assert_eq!(
        (lines[0], lines[2]),
        (lines[1], std::process::id().to_string().as_str()),
        "{lines:?}"
    );
    assert_eq!(lines.len(), 3);
}

/// What /proc says of the signals of a program that is started so.
fn signals_of(command: &mut Command, blocked_and_ignored: bool) -> Vec<(String, u64)> {
    if blocked_and_ignored {
        // SAFETY: async-signal-safe calls on values of their own, in a process that has one thread.
        unsafe {
            command.pre_exec(|| {
                let mut set: libc::sigset_t = std::mem::zeroed();
                libc::sigemptyset(&mut set);
                // The program unblocks the last two for itself.
                for signal in [libc::SIGUSR1, libc::SIGALRM, libc::SIGSEGV] {
                    libc::sigaddset(&mut set, signal);
                }
                libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
                for signal in [libc::SIGPIPE, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT] {
                    libc::signal(signal, libc::SIG_IGN);
                }
                Ok(())
            });
        }
    }
    let listed = run(command.args(["-E", "^Sig(Blk|Ign|Cgt|Pnd)", "/proc/self/status"])).success();
    let line = |line: &str| {
        let (name, mask) = line.split_once(":\t").expect("a name and a mask");
        // The C library sees to signals 32 and 33 itself.
        (
            name.to_owned(),
            u64::from_str_radix(mask, 16).expect("hexadecimal") & 0x7fff_ffff,
        )
    };
    listed.lines().map(line).collect()
}

#[test]
fn signals_are_to_the_command_as_they_were_to_the_program() {
    let machine = Machine::gpus(1);
    for blocked_and_ignored in [false, true] {
        let directly = signals_of(&mut machine.command("grep"), blocked_and_ignored);
        let through = signals_of(machine.autocvd().args(["--", "grep"]), blocked_and_ignored);
        assert_eq!(through, directly, "{blocked_and_ignored}");
    }
}

#[test]
fn the_command_finds_no_descriptors_but_its_own() {
    let machine = Machine::gpus(1);
    let low = |command: &mut Command| {
        let listed = run(command.args(["-c", "ls /proc/self/fd"])).success();
        let low: Vec<u32> = listed
            .lines()
            .filter_map(|line| line.parse().ok())
            .filter(|number| *number < 10)
            .collect();
        low
    };
    assert_eq!(
        low(machine.autocvd().args(["--", "sh"])),
        low(&mut machine.command("sh"))
    );
    // Nor does a wait leave any.
    let mut job = machine.job(0);
    let waiting = start(
        machine
            .autocvd()
            .args(["--", "sh", "-c", "ls /proc/self/fd"]),
    );
    wait_until("it waits", || {
        waiting.stderr().contains("waiting for a GPU")
    });
    job.kill();
    let listed = waiting.finish().success();
    let after: Vec<u32> = listed
        .lines()
        .filter_map(|line| line.parse().ok())
        .filter(|number| *number < 10)
        .collect();
    assert_eq!(after, low(&mut machine.command("sh")));
}

#[test]
fn no_alarm_is_left_for_the_command() {
    if !has("perl") {
        return;
    }
    let machine = Machine::gpus(1);
    let left = run(machine
        .autocvd()
        .args(["-t", "100", "--", "perl", "-e", "print alarm(0)"]))
    .success();
    assert_eq!(left, "0");
}

#[test]
fn a_script_without_an_interpreter_line_runs_as_from_a_shell() {
    let machine = Machine::gpus(1);
    machine.install("plain", "echo plain $CUDA_VISIBLE_DEVICES $1\n");
    assert_eq!(
        run(machine.autocvd().args(["--", "plain", "argument"])).success(),
        "plain 0 argument\n"
    );
    // By a relative path too.
    let mut command = machine.autocvd();
    command
        .args(["--", "bin/plain"])
        .current_dir(machine.path());
    assert_eq!(run(&mut command).success(), "plain 0\n");
}
