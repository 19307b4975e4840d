//! The variables that set options, brought into line with the command line, which wins, before both are parsed.

use std::ffi::OsString;

/// The variables of autocvd that stand for no option.
const NO_OPTIONS: [&str; 3] = ["AUTOCVD_NVML_LIB", "AUTOCVD_CLAIM_DIR", "AUTOCVD_INSIDE"];
/// Options that exclude each other: one that is written makes the others' variables void.
const OUTPUT: [&str; 4] = [
    "AUTOCVD_SOURCE",
    "AUTOCVD_EXPORT",
    "AUTOCVD_ID_ONLY",
    "AUTOCVD_JSON",
];
const TELLING: [&str; 2] = ["AUTOCVD_QUIET", "AUTOCVD_VERBOSE"];

/// Removes the variables that do not count: empty ones, for `-e AUTOCVD_TIMEOUT=` is how container images leave
/// one out, and those that the command line outweighs. Returns whether any other may set an option.
pub(super) fn settle(arguments: &[OsString]) -> bool {
    let mut found = false;
    for (name, value) in std::env::vars_os() {
        if !name.as_encoded_bytes().starts_with(b"AUTOCVD_") {
            continue;
        }
        match value.is_empty() {
            true => remove(&name),
            false => found |= NO_OPTIONS.iter().all(|other| name != *other),
        }
    }
    let mut words = arguments.iter().skip(1).map(|word| word.as_encoded_bytes());
    let options: Vec<&[u8]> = words.by_ref().take_while(|word| *word != b"--").collect();
    let written = |long: &[&str], short: &[u8]| {
        options
            .iter()
            .any(|word| long.iter().any(|name| name.as_bytes() == *word) || has_switch(word, short))
    };
    if written(&["--source", "--export", "--id-only", "--json"], b"seo") {
        OUTPUT.iter().for_each(remove);
    }
    if written(&["--quiet", "--verbose"], b"qv") {
        TELLING.iter().for_each(remove);
    }
    if options
        .iter()
        .any(|word| *word == b"--probe" || word.starts_with(b"--probe="))
    {
        // A file would go before it.
        remove("AUTOCVD_FROM");
    }
    if words.next().is_none() {
        // Only a COMMAND can be bound.
        remove("AUTOCVD_BIND");
    }
    if let (None, Some(export)) = (
        std::env::var_os("AUTOCVD_SOURCE"),
        std::env::var_os("AUTOCVD_EXPORT"),
    ) {
        // SAFETY: the program has one thread.
        unsafe { std::env::set_var("AUTOCVD_SOURCE", export) };
    }
    found
}

fn remove(name: impl AsRef<std::ffi::OsStr>) {
    // SAFETY: the program has one thread.
    unsafe { std::env::remove_var(name) };
}

/// Whether one of the short options is in a word such as `-qo`; those behind one that takes a value are its value.
pub(super) fn has_switch(word: &[u8], short: &[u8]) -> bool {
    let Some((b'-', letters)) = word.split_first() else {
        return false;
    };
    letters
        .iter()
        .take_while(|letter| b"lseoqv".contains(letter))
        .any(|letter| short.contains(letter))
}

#[cfg(test)]
mod tests {
    use super::has_switch;

    #[test]
    fn a_switch_is_found_among_others_but_not_in_a_value() {
        for (word, found) in [
            ("-o", true),
            ("-qo", true),
            ("-on", true),
            ("-xo", false),
            ("-no", false),
            ("--o", false),
            ("o", false),
        ] {
            assert_eq!(has_switch(word.as_bytes(), b"o"), found, "{word}");
        }
    }
}
