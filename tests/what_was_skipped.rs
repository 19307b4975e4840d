//! The sum of what was skipped, at the end of `cargo test`: cargo runs test files in the order of
//! their names, and this one's comes last.
#![cfg(feature = "cli")]

mod common;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Write;
use std::path::Path;

#[test]
fn the_skipped_tests_are_summed_up() {
    let mut tests_by_lack: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in common::take_skipped() {
        let (test, lack) = line.split_once(": ").expect("as skip() writes it");
        let tests = tests_by_lack.entry(lack.to_owned()).or_default();
        if !tests.iter().any(|known| known == test) {
            tests.push(test.to_owned());
        }
    }
    let mut tests: Vec<_> = tests_by_lack.values().flatten().collect();
    tests.sort_unstable();
    tests.dedup();
    let mut sum = match tests.len() {
        0 => "skipped in this run: nothing\n".to_owned(),
        count => format!("skipped in this run, in whole or in part: {count} tests\n"),
    };
    for (lack, tests) in &tests_by_lack {
        writeln!(sum, "  {lack} ({})", tests.len()).expect("text");
    }
    // Past the harness, which keeps the output of tests that pass.
    std::io::stderr()
        .write_all(sum.as_bytes())
        .expect("stderr is open");
}

#[test]
fn this_file_comes_last() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let last = fs::read_dir(tests)
        .expect("the directory of this file")
        .map(|entry| entry.expect("it can be read").file_name())
        .filter(|name| {
            Path::new(name)
                .extension()
                .is_some_and(|extension| extension == "rs")
        })
        .max();
    assert_eq!(last.expect("at least this one"), "what_was_skipped.rs");
}
