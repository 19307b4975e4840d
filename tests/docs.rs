//! The documentation is true: its links lead somewhere, its shell blocks run, and what it shows is
//! what the program prints.
//!
//! A block marked `console` holds commands behind `$ ` and what they print; `…` stands for
//! anything. A block marked `sh`, `fish` or `csh` runs as a script on a fake machine of eight idle
//! GPUs, where stand-ins take the place of the programs that it starts. `sh not-run` is only read
//! by the shell.

mod common;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use common::{Machine, run};

/// What the guides start besides autocvd. Each stand-in succeeds and does nothing.
const STAND_INS: [&str; 24] = [
    "accelerate",
    "apptainer",
    "apt",
    "bsub",
    "cargo",
    "docker",
    "fuser",
    "jupyter",
    "make",
    "nextflow",
    "nvidia-ctk",
    "nvidia-smi",
    "pip",
    "podman",
    "pytest",
    "python",
    "qsub",
    "sbatch",
    "snakemake",
    "srun",
    "sudo",
    "systemctl",
    "torchrun",
    "vim",
];

/// One fenced block of a document.
struct Block {
    /// Its file and the line of its fence.
    place: String,
    /// The words behind the fence.
    info: Vec<String>,
    text: String,
}

impl Block {
    fn language(&self) -> &str {
        self.info.first().map_or("", String::as_str)
    }

    fn is(&self, mark: &str) -> bool {
        self.info.iter().any(|word| word == mark)
    }
}

/// README.md, CONTRIBUTING.md, CHANGELOG.md and docs/*.md.
fn documents() -> Vec<PathBuf> {
    let root = root();
    let markdown = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "md");
    let mut found = Vec::new();
    for directory in [root.to_path_buf(), root.join("docs")] {
        let entries = fs::read_dir(&directory).expect("a directory of the repository");
        found.extend(
            entries
                .map(|entry| entry.expect("an entry").path())
                .filter(markdown),
        );
    }
    found.sort();
    found
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(document: &Path) -> String {
    let text = fs::read_to_string(document);
    text.unwrap_or_else(|error| panic!("{}: {error}", document.display()))
}

fn name(document: &Path) -> String {
    document
        .strip_prefix(root())
        .expect("a path of the repository")
        .display()
        .to_string()
}

fn blocks(document: &Path) -> Vec<Block> {
    let mut found: Vec<Block> = Vec::new();
    let mut open = false;
    for (index, line) in read(document).lines().enumerate() {
        if let Some(info) = line.trim_start().strip_prefix("```") {
            if !open {
                found.push(Block {
                    place: format!("{}:{}", name(document), index + 1),
                    info: info.split_whitespace().map(str::to_owned).collect(),
                    text: String::new(),
                });
            }
            open = !open;
        } else if open {
            let block = found.last_mut().expect("it was just opened");
            block.text.push_str(line);
            block.text.push('\n');
        }
    }
    assert!(!open, "{}: a block without an end", name(document));
    found
}

/// The lines of a document outside its blocks.
fn lines(document: &Path) -> Vec<String> {
    let mut open = false;
    let mut outside = Vec::new();
    for line in read(document).lines() {
        if line.trim_start().starts_with("```") {
            open = !open;
        } else if !open {
            outside.push(line.to_owned());
        }
    }
    outside
}

/// The `code` in the lines of a document.
fn code_words(document: &Path) -> Vec<String> {
    let lines = lines(document);
    lines
        .iter()
        .flat_map(|line| line.split('`').skip(1).step_by(2))
        .map(str::to_owned)
        .collect()
}

/// The lines of a document without `code`.
fn prose(document: &Path) -> String {
    let lines = lines(document);
    let parts = lines
        .iter()
        .flat_map(|line| line.split('`').step_by(2).chain(["\n"]));
    parts.collect()
}

/// The targets of `[text](target)` and `![text](target)`.
fn links(document: &Path) -> Vec<String> {
    let prose = prose(document);
    let after = prose.split("](").skip(1);
    after
        .filter_map(|rest| rest.split_once(')'))
        .map(|(target, _)| target.to_owned())
        .collect()
}

/// The anchors of a document's headings, as GitHub makes them.
fn anchors(document: &Path) -> BTreeSet<String> {
    let mut open = false;
    let mut anchors = BTreeSet::new();
    for line in read(document).lines() {
        if line.starts_with("```") {
            open = !open;
        }
        let title = line.trim_start_matches('#');
        if !open && line.starts_with('#') && title.starts_with(' ') {
            let kept = title.trim().to_lowercase();
            let kept = kept
                .chars()
                .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
            anchors.insert(kept.map(|c| if c == ' ' { '-' } else { c }).collect());
        }
    }
    anchors
}

#[test]
fn links_between_the_documents_lead_somewhere() {
    let mut broken = String::new();
    for document in documents() {
        for link in links(&document) {
            if link.starts_with("https://") {
                continue;
            }
            let (path, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = match path {
                "" => document.clone(),
                path => document
                    .parent()
                    .expect("a file is in a directory")
                    .join(path),
            };
            let leads = target.exists() && (anchor.is_empty() || anchors(&target).contains(anchor));
            if !leads {
                writeln!(broken, "{}: {link}", name(&document)).expect("a string");
            }
        }
    }
    assert!(broken.is_empty(), "links that lead nowhere:\n{broken}");
}

#[test]
fn every_guide_can_be_reached_from_the_readme() {
    let mut seen = BTreeSet::from([root().join("README.md")]);
    let mut next: Vec<PathBuf> = seen.iter().cloned().collect();
    while let Some(document) = next.pop() {
        for link in links(&document) {
            let path = link.split('#').next().unwrap_or_default();
            let target = document
                .parent()
                .expect("a file is in a directory")
                .join(path);
            let Ok(target) = target.canonicalize() else {
                continue;
            };
            let is_document = target
                .extension()
                .is_some_and(|extension| extension == "md");
            if is_document && seen.insert(target.clone()) {
                next.push(target);
            }
        }
    }
    let lost: Vec<_> = documents()
        .into_iter()
        .filter(|path| !seen.contains(path))
        .collect();
    assert!(lost.is_empty(), "no link leads to {lost:?}");
}

/// Where the documents say that something lives.
const DIRECTORIES: [&str; 9] = [
    ".ci/",
    "benches/",
    "docs/",
    "examples/",
    "packaging/",
    "python/",
    "schema/",
    "src/",
    "tests/",
];

#[test]
fn the_documents_name_files_that_exist() {
    let mut missing = String::new();
    for document in documents() {
        for name_of_file in code_words(&document) {
            let is_path = DIRECTORIES
                .iter()
                .any(|directory| name_of_file.starts_with(directory))
                && !name_of_file.contains([' ', '*', '…', '<']);
            if is_path && !root().join(&name_of_file).exists() {
                writeln!(missing, "{}: {name_of_file}", name(&document)).expect("a string");
            }
        }
    }
    assert!(missing.is_empty(), "no such files:\n{missing}");
}

/// `autocvd` at PyPI is another project's package.
#[test]
fn no_text_sends_a_user_to_another_projects_package() {
    for document in documents() {
        for block in blocks(&document) {
            let sends = block.text.contains("pip install autocvd");
            assert!(
                !sends,
                "{}: `pip install autocvd` gets another package",
                block.place
            );
        }
    }
}

/// The project has published nothing yet: no address is known to be its own.
#[test]
fn no_file_names_an_address_of_the_project() {
    let schemas = ["schema/choice.schema.json", "schema/status.schema.json"];
    let files = ["Cargo.toml", "pyproject.toml", "python/Cargo.toml"]
        .into_iter()
        .chain(schemas);
    let named = files.map(|file| root().join(file)).chain(documents());
    let naming: Vec<_> = named
        .filter(|file| read(file).contains("/autocvd/autocvd"))
        .collect();
    assert!(
        naming.is_empty(),
        "addresses of a repository that is not the project's: {naming:?}"
    );
}

#[test]
fn the_shell_blocks_of_the_documents_run() {
    let mut failures = String::new();
    let mut only_read = 0;
    for document in documents() {
        for block in blocks(&document) {
            let shell = match block.language() {
                "sh" => "bash",
                "fish" => "fish",
                "csh" => "tcsh",
                _ => continue,
            };
            if !common::has(shell) {
                continue;
            }
            let machine = machine();
            let mut script = match block.is("not-run") {
                true => {
                    only_read += 1;
                    let mut read = machine.command(shell);
                    read.args(["-n", "-c", &block.text]);
                    read
                }
                false => machine.shell(shell, &script_of(&block)),
            };
            let outcome = run(script.current_dir(machine.path()));
            if outcome.code != Some(0) {
                writeln!(failures, "{}\n{}{outcome:#?}\n", block.place, block.text).expect("text");
            }
        }
    }
    assert!(failures.is_empty(), "blocks that fail:\n{failures}");
    assert!(
        only_read <= 8,
        "{only_read} blocks are marked not-run: run what can be run"
    );
}

/// The options in a text, by their long names.
fn options(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
    let long = words.filter(|word| word.len() > 2 && word.starts_with("--"));
    long.map(str::to_owned).collect()
}

#[test]
fn the_page_of_options_has_each_option_that_help_has_and_no_other() {
    let machine = machine();
    let help = run(machine.autocvd().arg("--help")).success();
    let defined = help
        .lines()
        .map(str::trim_start)
        .filter(|line| line.starts_with('-'));
    let defined = defined.flat_map(|line| options(line.split("  ").next().unwrap_or_default()));
    let mut defined: BTreeSet<_> = defined.collect();
    for everywhere in ["--help", "--version"] {
        defined.remove(everywhere);
    }
    let page = read(&root().join("docs/options.md"));
    let rows = page.lines().filter(|line| line.starts_with("| `-"));
    let listed = rows.flat_map(|row| options(row.split('|').nth(1).unwrap_or_default()));
    let listed: BTreeSet<_> = listed.collect();
    assert_eq!(listed, defined, "docs/options.md beside `autocvd --help`");
}

/// The line for the profile, as README.md has it.
#[test]
fn with_the_line_for_the_profile_a_shell_in_which_autocvd_cannot_run_shows_no_gpu() {
    let readme = read(&root().join("README.md"));
    let line = readme
        .lines()
        .find(|line| line.contains("${CUDA_VISIBLE_DEVICES-}"));
    let line = line.expect("README.md has the line");
    for shell in ["bash", "dash", "zsh", "ksh", "mksh", "busybox"] {
        if !common::has(shell) {
            continue;
        }
        let machine = machine();
        let shown = |script: &str| run(&mut machine.shell(shell, &format!("{line}\n{script}")));
        let show = r#"sh -c 'echo "[$CUDA_VISIBLE_DEVICES]"'"#;
        // Not on PATH, and ended before it could print.
        for missing in ["not-on-path", "killed"] {
            let script = format!("killed() {{ sh -c 'kill -9 $$'; }}\neval $({missing}) sh show\n");
            let script = format!("cd \"$HOME\"; cat >show <<'END'\n{show}\nEND\n{script}");
            let outcome = shown(&script);
            assert_eq!(outcome.stdout, "[]\n", "{shell}, {missing}: {outcome:?}");
        }
        // Alone on a line: the variables are exported already.
        let outcome = shown(&format!("eval $(autocvd)\n{show}"));
        assert_eq!(outcome.stdout, "[7]\n", "{shell}: {outcome:?}");
    }
}

#[test]
fn what_the_documents_show_is_what_the_program_prints() {
    let mut differences = String::new();
    for document in documents() {
        for block in blocks(&document)
            .iter()
            .filter(|block| block.language() == "console")
        {
            let machine = machine();
            for (command, expected) in sessions(&block.text) {
                let script = format!("cd work || exit\n{{ {command}\n}} 2>&1");
                let mut shell = machine.shell("bash", &script);
                let outcome = run(shell.current_dir(machine.path()).env("COLUMNS", "80"));
                if !matches(&expected, &outcome.stdout) {
                    let place = &block.place;
                    writeln!(differences, "{place}: $ {command}\n{}", outcome.stdout)
                        .expect("a string");
                }
            }
        }
    }
    assert!(
        differences.is_empty(),
        "these print something else:\n{differences}"
    );
}

/// A block as a script that ends at the first command that fails, where the shell can.
fn script_of(block: &Block) -> String {
    let stop = if block.language() == "sh" {
        "set -e\n"
    } else {
        ""
    };
    format!("cd work || exit 1\n{stop}{}", block.text)
}

/// Eight idle GPUs, stand-ins for other programs, and a directory `work` with what a user would
/// have.
fn machine() -> Machine {
    let machine = Machine::gpus(8);
    for program in STAND_INS {
        machine.install(program, "#!/bin/sh\nexit 0\n");
    }
    let work = machine.path().join("work");
    fs::create_dir(&work).expect("a new directory");
    for shared in ["benches", "docs", "examples", "schema"] {
        symlink(root().join(shared), work.join(shared)).expect("a new link");
    }
    symlink(machine.path().join("bin/python"), work.join("job")).expect("a new link");
    fs::write(work.join("train.py"), "").expect("a new file");
    machine
}

/// The commands of a console block, each with the lines below it.
fn sessions(text: &str) -> Vec<(String, Vec<String>)> {
    let mut sessions: Vec<(String, Vec<String>)> = Vec::new();
    for line in text.lines() {
        if let Some(command) = line.strip_prefix("$ ") {
            sessions.push((command.to_owned(), Vec::new()));
        } else {
            let (_, expected) = sessions.last_mut().expect("a block starts with a command");
            expected.push(line.to_owned());
        }
    }
    sessions
}

/// Whether lines are as expected, where a line `…` is any number of lines.
fn matches(expected: &[String], printed: &str) -> bool {
    fn all(expected: &[String], printed: &[&str]) -> bool {
        match (expected, printed) {
            ([], printed) => printed.is_empty(),
            ([any, rest @ ..], printed) if any == "…" => {
                (0..=printed.len()).any(|skipped| all(rest, &printed[skipped..]))
            }
            ([first, rest @ ..], [line, lines @ ..]) => first == line && all(rest, lines),
            _ => false,
        }
    }
    all(
        expected,
        &printed.lines().map(str::trim_end).collect::<Vec<_>>(),
    )
}
