//! What standard output carries when autocvd fails: words that start no program.
//!
//! # Design
//! Whether a shell evaluates the output must be known before anything can fail, and so before the
//! command line is parsed. [`Guard::of`] reads the raw words once and decides for the whole run.

use super::args::{self, Format};
use super::variables::Variables;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicU8, Ordering};

/// What a failure writes to standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Guard {
    /// Nothing: no shell evaluates the output.
    Silent,
    /// A command that ends in the exit code and ignores the words that follow it.
    Prefix,
    /// The same, after a choice of no GPU for the lines that follow in the script.
    Export,
    ExportFish,
    ExportCsh,
    /// An option that docker and podman do not know.
    Container,
}

/// The guard of this run.
static CURRENT: AtomicU8 = AtomicU8::new(Guard::Prefix as u8);

/// Room for the longest guard.
pub(super) const MAX_LENGTH: usize = 96;

impl Guard {
    const ALL: [Self; 6] = [
        Self::Silent,
        Self::Prefix,
        Self::Export,
        Self::ExportFish,
        Self::ExportCsh,
        Self::Container,
    ];

    /// Makes this the guard of the run.
    pub(super) fn set(self) {
        CURRENT.store(self as u8, Ordering::Relaxed);
    }

    pub(super) fn current() -> Self {
        Self::ALL[usize::from(CURRENT.load(Ordering::Relaxed)) % Self::ALL.len()]
    }

    /// Whether a shell evaluates the output.
    pub(super) fn is_evaluated(self) -> bool {
        !matches!(self, Self::Silent | Self::Container)
    }

    /// The text before and after the exit code; without an "after", the code is not part of it.
    fn parts(self) -> (&'static str, Option<&'static str>) {
        const END: Option<&str> = Some("' autocvd\n");
        match self {
            Self::Silent => ("", None),
            Self::Prefix => ("sh -c 'exit ", END),
            Self::Export => ("export CUDA_VISIBLE_DEVICES=-1 ; sh -c 'exit ", END),
            Self::ExportFish => ("set -gx CUDA_VISIBLE_DEVICES -1 ; sh -c 'exit ", END),
            Self::ExportCsh => ("setenv CUDA_VISIBLE_DEVICES -1 ; sh -c 'exit ", END),
            Self::Container => ("--autocvd-found-no-gpu\n", None),
        }
    }

    /// Writes the text for an exit code from 0 to 255 into `buffer` and returns its length.
    /// Allocates nothing: signal handlers call it.
    pub(super) fn text(self, code: i32, buffer: &mut [u8; MAX_LENGTH]) -> usize {
        let mut length = 0;
        let mut push = |bytes: &[u8]| {
            for byte in bytes.iter().take(MAX_LENGTH - length) {
                buffer[length] = *byte;
                length += 1;
            }
        };
        let (before, after) = self.parts();
        push(before.as_bytes());
        if let Some(after) = after {
            let digits =
                [code / 100 % 10, code / 10 % 10, code % 10].map(|digit| b'0' + digit as u8);
            let start = digits.iter().position(|digit| *digit != b'0').unwrap_or(2);
            push(&digits[start..]);
            push(after.as_bytes());
        }
        length
    }

    /// The guard that the words of a command line ask for. In doubt it is one that a shell
    /// evaluates. Only a written option silences it: a variable is set far from the line that
    /// evaluates the output.
    pub(super) fn of(arguments: &[OsString], variables: &Variables) -> Self {
        let mut words = arguments
            .iter()
            .skip(1)
            .map(|word| word.as_bytes())
            .peekable();
        if words.peek().is_some_and(|first| args::is_subcommand(first)) {
            return Self::Silent;
        }
        let mut source_is_written = false;
        let exported = variables.may_be_true("SOURCE") || variables.may_be_true("EXPORT");
        let mut written = None;
        while let Some(word) = words.next() {
            match word {
                b"--id-only" | b"--json" => return Self::Silent,
                b"--" => {
                    if words.next().is_some() {
                        return Self::Silent;
                    }
                }
                b"--source" | b"--export" => source_is_written = true,
                b"--format" | b"--shell" => {
                    written = words
                        .peek()
                        .and_then(|value| Format::parse(value))
                        .or(written);
                }
                _ if has_switch(word, b"o") => return Self::Silent,
                _ if has_switch(word, b"se") => source_is_written = true,
                _ => {
                    let value = word.strip_prefix(b"--format=");
                    let value = value.or_else(|| word.strip_prefix(b"--shell="));
                    written = value.and_then(Format::parse).or(written);
                }
            }
        }
        let format = written.or_else(|| match variables.format() {
            // A shell evaluates what it asks for by a written -s.
            Some(Format::Docker | Format::Cdi) if source_is_written => None,
            format => format,
        });
        match (format.unwrap_or_default(), exported || source_is_written) {
            (Format::Docker | Format::Cdi, _) => Self::Container,
            (_, false) => Self::Prefix,
            (Format::Posix, true) => Self::Export,
            (Format::Fish, true) => Self::ExportFish,
            (Format::Csh, true) => Self::ExportCsh,
        }
    }
}

/// Whether one of the short options is in a word such as `-qo`. The letters after one that takes
/// a value are its value.
fn has_switch(word: &[u8], short: &[u8]) -> bool {
    let Some((b'-', letters)) = word.split_first() else {
        return false;
    };
    letters
        .iter()
        .take_while(|letter| args::SHORT_SWITCHES.contains(letter))
        .any(|letter| short.contains(letter))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(line: &str, variables: &[(&str, &str)]) -> Guard {
        let words = std::iter::once("autocvd").chain(line.split_whitespace());
        Guard::of(
            &words.map(Into::into).collect::<Vec<_>>(),
            &Variables::from_pairs(variables),
        )
    }

    #[test]
    fn only_output_that_a_shell_evaluates_is_guarded() {
        use Guard::{Container, Export, ExportCsh, ExportFish, Prefix, Silent};
        for (line, expected) in [
            ("", Prefix),
            ("-n 0", Prefix),
            ("-s --nonsense", Export),
            ("--export", Export),
            ("-qs", Export),
            ("-s --format fish", ExportFish),
            ("-s --shell=csh", ExportCsh),
            ("-s --shell zsh", Export),
            ("--format docker", Container),
            ("--format=cdi -n x", Container),
            ("--format docker --format posix", Prefix),
            ("--format nonsense", Prefix),
            ("--only status", Prefix),
            ("-xo", Prefix),
            ("-x foo", Prefix),
            ("-o -n 0", Silent),
            ("-qo -n 0", Silent),
            ("-vlo", Silent),
            ("-on 0", Silent),
            ("-no", Prefix),
            ("-n 0 --", Prefix),
            ("-o -n 0 --", Silent),
            ("--id-only", Silent),
            ("-t soon --json", Silent),
            ("-n 99 -- prog", Silent),
            ("status --nonsense", Silent),
            ("completions nosuchshell", Silent),
        ] {
            assert_eq!(guard(line, &[]), expected, "{line}");
        }
    }

    #[test]
    fn a_variable_never_silences_the_guard() {
        for (name, value, expected) in [
            ("JSON", "1", Guard::Prefix),
            ("ID_ONLY", "yes", Guard::Prefix),
            ("SOURCE", "1", Guard::Export),
            ("SOURCE", "0", Guard::Prefix),
            ("EXPORT", "perhaps", Guard::Export),
            ("FORMAT", "docker", Guard::Container),
            ("SHELL", "fish", Guard::Prefix),
        ] {
            assert_eq!(guard("", &[(name, value)]), expected, "{name}={value}");
        }
        // fish reads the posix form too, and the variable may reach another shell.
        assert_eq!(guard("-s", &[("SHELL", "fish")]), Guard::Export);
    }

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

    #[test]
    fn a_text_holds_its_exit_code() {
        for guard in Guard::ALL {
            let mut buffer = [0; MAX_LENGTH];
            let length = guard.text(143, &mut buffer);
            let text = std::str::from_utf8(&buffer[..length]).expect("plain text");
            assert_eq!(text.contains("exit 143'"), guard.is_evaluated(), "{text}");
            assert!(text.is_empty() || text.ends_with('\n'), "{text}");
        }
        let mut buffer = [0; MAX_LENGTH];
        let length = Guard::Prefix.text(2, &mut buffer);
        assert_eq!(&buffer[..length], b"sh -c 'exit 2' autocvd\n");
    }
}
