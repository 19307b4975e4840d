//! Completions in the real shells, and the manual page in the real readers.
#![cfg(feature = "cli")]

mod common;

use std::fs;
use std::time::{Duration, Instant};

use common::{Machine, has, run};

fn page(machine: &Machine) -> String {
    run(machine.autocvd().arg("man")).success()
}

#[test]
fn bash_completes_options_subcommands_and_values() {
    let machine = Machine::gpus(1);
    if !has("bash") {
        return;
    }
    let script = r#"
        set -eu
        . <(autocvd completions bash)
        complete -p autocvd >/dev/null
        try() {
            COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
            _autocvd autocvd "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
            echo "${COMPREPLY[*]}"
        }
        try autocvd --exc
        try autocvd stat
        try autocvd --shell f
        try autocvd status --js
        try autocvd completions po
    "#;
    let outcome = run(&mut machine.shell("bash", script));
    assert_eq!(outcome.stderr, "");
    assert_eq!(
        outcome.success(),
        "--exclude\nstatus\nfish\n--json\npowershell\n"
    );
}

#[test]
fn zsh_completes_options_and_subcommands() {
    let machine = Machine::gpus(1);
    if !has("zsh") {
        return;
    }
    // Its completion works only in the line editor, hence on a terminal. Ctrl-X tells what stands
    // there.
    let script = r#"
        set -eu
        zmodload zsh/zpty
        zpty line zsh -f -i
        zpty -w line 'tell() { print -r -- "<$BUFFER>"; zle kill-whole-line }'
        zpty -w line 'zle -N tell; bindkey "^X" tell'
        zpty -w line 'autoload -U compinit; compinit -u -D'
        zpty -w line 'source <(autocvd completions zsh); echo loaded $?.'
        zpty -r -m line answer '*loaded 0.*'
        try() {
            zpty -w -n line "$1"$'\t\x18'
            zpty -r -m line answer "*<$2>*"
        }
        try 'autocvd --exc' 'autocvd --exclude='
        try 'autocvd stat' 'autocvd status '
        try 'autocvd status --js' 'autocvd status --json '
        try 'autocvd --shell=f' 'autocvd --shell=fish '
        try 'autocvd completions pow' 'autocvd completions powershell '
        zpty -d line
        echo completed
    "#;
    assert_eq!(
        run(machine.shell("zsh", script).env("TERM", "xterm")).success(),
        "completed\n"
    );
}

#[test]
fn fish_completes_options_and_subcommands() {
    let machine = Machine::gpus(1);
    if !has("fish") {
        return;
    }
    let script = "
        autocvd completions fish | source; or exit 1
        for line in 'autocvd --exc' 'autocvd stat' 'autocvd --shell=f' 'autocvd status --js'
            complete -C $line | cut -f 1
        end";
    let outcome = run(machine.shell("fish", script).env("TERM", "xterm"));
    assert_eq!(outcome.stderr, "");
    assert_eq!(
        outcome.success(),
        "--exclude\nstatus\n--shell=fish\n--json\n"
    );
}

#[test]
fn the_other_shells_get_completions_too() {
    let machine = Machine::gpus(1);
    for shell in ["elvish", "powershell"] {
        let outcome = run(machine.autocvd().args(["completions", shell]));
        assert!(
            outcome.stdout.contains("--exclude") && outcome.stderr.is_empty(),
            "{shell}: {outcome:?}"
        );
        outcome.success();
    }
}

#[test]
fn neither_completions_nor_the_manual_need_a_gpu() {
    let machine = Machine::gpus(1);
    machine.set("/init/code", serde_json::json!(9));
    run(machine.autocvd().args(["completions", "bash"])).success();
    page(&machine);
    assert!(machine.calls().is_empty());
}

#[test]
fn a_shell_that_is_not_known_is_a_wrong_value() {
    let machine = Machine::gpus(1);
    for args in [&["completions", "nosuchshell"][..], &["completions"]] {
        let outcome = run(machine.autocvd().args(args));
        assert_eq!(
            (outcome.code, outcome.stdout.as_str()),
            (Some(2), ""),
            "{outcome:?}"
        );
        assert_eq!(outcome.stderr.lines().count(), 1, "{outcome:?}");
    }
}

#[test]
fn the_manual_page_is_read_without_a_warning() {
    let machine = Machine::gpus(1);
    let file = machine.path().join("autocvd.1");
    fs::write(&file, page(&machine)).expect("our own directory");
    let readers = [
        ("groff", "groff -man -ww -Tascii -P-cbou autocvd.1"),
        ("man", "man --warnings=w -l autocvd.1"),
        ("mandoc", "mandoc -T lint -W warning autocvd.1"),
    ];
    for (program, line) in readers {
        if has(program) {
            let mut reader = machine.shell("sh", line);
            let outcome = run(reader
                .current_dir(machine.path())
                .env("MANWIDTH", "80")
                .env("LC_ALL", "C.UTF-8"));
            assert_eq!(outcome.stderr, "", "{line}");
            let text = outcome.success();
            assert!(
                program == "mandoc" || text.contains("ENVIRONMENT"),
                "{text}"
            );
        }
    }
}

#[test]
fn the_manual_page_has_what_a_manual_page_has() {
    let machine = Machine::gpus(1);
    let page = page(&machine);
    let sections: Vec<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix(".SH "))
        .collect();
    let expected = [
        "NAME",
        "SYNOPSIS",
        "DESCRIPTION",
        "WHAT COUNTS AS FREE",
        "OPTIONS",
        "VALUES",
        "SUBCOMMANDS",
        "ENVIRONMENT",
        "FILES",
        "EXIT STATUS",
        "EXAMPLES",
        "SEE ALSO",
    ];
    assert_eq!(sections, expected);
    for text in [
        "AUTOCVD_NUM_GPUS",
        "AUTOCVD_NVML_LIB",
        "AUTOCVD_CLAIM_DIR",
        "autocvd status",
        "128+N",
        "eval $(autocvd",
    ] {
        assert!(page.contains(text), "{text}");
    }
}

/// A machine with a program whose name no other has.
fn machine_with_a_program() -> Machine {
    let machine = Machine::gpus(2);
    machine.install("zyprogram", "#!/bin/sh\n");
    let _ = fs::write(machine.path().join("zyfile"), "");
    machine
}

/// Types keys into a shell at its prompt and waits until the line is completed so.
fn complete(terminal: &mut common::Terminal, keys: &str, expected: &str) {
    let before = terminal.text().len();
    terminal.press(&format!("{keys}\t"));
    let end = Instant::now() + Duration::from_secs(20);
    while !terminal.text()[before..].contains(expected) {
        let shown = &terminal.text()[before..];
        assert!(
            Instant::now() < end,
            "no {expected:?} after {keys:?} in {shown:?}"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    // The line is dropped.
    terminal.press("\x15");
}

#[test]
fn bash_completes_command_and_ids_by_keys() {
    if !has("bash") {
        return;
    }
    let machine = machine_with_a_program();
    let mut bash = machine.command("bash");
    bash.args(["--norc", "--noprofile", "-i"])
        .env("TERM", "dumb")
        .env("PS1", "ready ");
    bash.env("INPUTRC", "/dev/null").current_dir(machine.path());
    let mut terminal = common::Terminal::start(&mut bash, 24, 120);
    terminal.press(". <(autocvd completions bash); echo load''ed\r");
    terminal.wait_for("loaded", 1);
    complete(&mut terminal, "autocvd -- zypro", "autocvd -- zyprogram ");
    complete(&mut terminal, "autocvd -n 2 -- zypro", "-- zyprogram ");
    complete(
        &mut terminal,
        "autocvd -- zyprogram zyf",
        "zyprogram zyfile ",
    );
    complete(&mut terminal, "autocvd --from zyf", "--from zyfile ");
    complete(&mut terminal, "autocvd --form", "--format ");
    complete(&mut terminal, "autocvd --format doc", "--format docker ");
    complete(&mut terminal, "autocvd -x 0,", "-x 0,1 ");
    complete(&mut terminal, "autocvd -x \t", "1  (A100-SXM4-80GB, free)");
}

#[test]
fn zsh_completes_command_and_ids_by_keys() {
    if !has("zsh") {
        return;
    }
    let machine = machine_with_a_program();
    let mut zsh = machine.command("zsh");
    zsh.args(["-f", "-i"])
        .env("TERM", "dumb")
        .env("PS1", "ready ")
        .current_dir(machine.path());
    let mut terminal = common::Terminal::start(&mut zsh, 24, 120);
    terminal.press(
        "autoload -U compinit; compinit -u -D; source <(autocvd completions zsh); echo load''ed\r",
    );
    terminal.wait_for("loaded", 1);
    // The rest of a word is written behind what was typed.
    for (keys, rest) in [
        ("autocvd -- zypro", "gram"),
        ("autocvd -n 2 -- zypro", "gram"),
        ("autocvd -- zyprogram zyf", "ile"),
        ("autocvd --from=zyf", "ile"),
        ("autocvd --format=doc", "ker"),
    ] {
        complete(&mut terminal, keys, rest);
    }
    complete(&mut terminal, "autocvd -x \t", "A100-SXM4-80GB, free");
}

#[test]
fn fish_completes_command_and_ids() {
    if !has("fish") {
        return;
    }
    let machine = machine_with_a_program();
    let script = "
        autocvd completions fish | source; or exit 1
        for line in 'autocvd -- zypro' 'autocvd -n 2 -- zypro' 'autocvd -- zyprogram zyf' \
                'autocvd --from zyf' 'autocvd --probe n' 'autocvd --format d' 'autocvd -x 1' \
                'autocvd --only 0,' 'autocvd -x 0 '
            complete -C $line | string match -v -- '-*' | string join ' '
        end";
    let mut fish = machine.shell("fish", script);
    let outcome = run(fish.env("TERM", "xterm").current_dir(machine.path()));
    let lines: Vec<String> = outcome
        .stdout
        .lines()
        .map(|line| line.replace('\t', "|"))
        .collect();
    let text = lines.join("\n");
    let expected = [
        "zyprogram",
        "zyprogram",
        "zyfile",
        "zyfile",
        "nvidia-smi",
        "docker",
        "1|A100-SXM4-80GB, free",
        "0,1|A100-SXM4-80GB, free",
        "0|A100-SXM4-80GB, free",
    ];
    for (line, expected) in lines.iter().zip(expected) {
        assert!(line.contains(expected), "no {expected} in {line}:\n{text}");
    }
    assert_eq!(lines.len(), expected.len(), "{text}{}", outcome.stderr);
    // Where an option's values are known, files are none of them.
    assert!(!lines[4].contains("zyfile"), "{text}");
}
