//! The `AUTOCVD_…` variables, read once.

use super::args::{self, Format};
use super::failure::Failure;
use super::words::nearest;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

/// What all names of variables begin with.
pub(super) const PREFIX: &str = "AUTOCVD_";

/// The variables that set options, without their prefix.
pub(super) const OPTIONS: [&str; 27] = [
    "NUM_GPUS",
    "LEAST_USED",
    "TIMEOUT",
    "INTERVAL",
    "PATIENCE",
    "SOURCE",
    "EXPORT",
    "ID_ONLY",
    "QUIET",
    "VERBOSE",
    "EXCLUDE",
    "ONLY",
    "MIN_FREE_MEMORY",
    "SHARE",
    "TOLERATE",
    "INHERIT",
    "UUID",
    "JSON",
    "FORMAT",
    "SHELL",
    "HOLD",
    "NO_CLAIM",
    "PROBE",
    "BIND",
    "FROM",
    "WATCH",
    "SHORT",
];

/// What a program is told of its share, without the prefix.
pub(super) const MEMORY: &str = "MEMORY";

/// The others.
pub(super) const OTHERS: [&str; 4] = ["NVML_LIB", "CLAIM_DIR", "INSIDE", MEMORY];

/// The variables that are set and not empty, by their names without the prefix. An empty variable
/// counts as not set: `docker run -e AUTOCVD_TIMEOUT=` is how one leaves it out.
#[derive(Debug, Default)]
pub(super) struct Variables {
    set: Vec<(OsString, OsString)>,
}

impl Variables {
    /// Reads those of this process.
    pub(super) fn read() -> Self {
        let own = |(name, value): (OsString, OsString)| {
            let name = name.as_bytes().strip_prefix(PREFIX.as_bytes())?;
            (!value.is_empty()).then(|| (OsStr::from_bytes(name).to_owned(), value))
        };
        Self {
            set: std::env::vars_os().filter_map(own).collect(),
        }
    }

    #[cfg(test)]
    pub(super) fn from_pairs(pairs: &[(&str, &str)]) -> Self {
        Self {
            set: pairs
                .iter()
                .map(|(name, value)| (name.into(), value.into()))
                .collect(),
        }
    }

    /// The value of a variable, named without its prefix.
    pub(super) fn get(&self, name: &str) -> Option<&OsStr> {
        self.set
            .iter()
            .find(|(set, _)| set == name)
            .map(|(_, value)| &**value)
    }

    /// Whether one of them may set an option.
    pub(super) fn may_set_options(&self) -> bool {
        self.set
            .iter()
            .any(|(name, _)| OTHERS.iter().all(|other| name != other))
    }

    /// Whether a switch is on, or has a value that is neither yes nor no.
    pub(super) fn may_be_true(&self, name: &str) -> bool {
        self.get(name)
            .is_some_and(|value| value.to_str().map(args::boolean) != Some(Ok(false)))
    }

    /// The value of a variable, parsed.
    ///
    /// # Errors
    /// What is wrong with the value, and in which variable it is.
    pub(super) fn parse<T>(
        &self,
        name: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<T>, Failure> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        let parsed = value
            .to_str()
            .map_or_else(|| Err("give UTF-8 text".to_owned()), parse);
        parsed.map(Some).map_err(|advice| {
            let value = value.to_string_lossy();
            Failure::usage(format!(
                "invalid value '{value}' in {PREFIX}{name}: {advice}"
            ))
        })
    }

    /// The syntax to print that a variable asks for. An image or a profile sets it for every
    /// shell that will run there. fish reads the posix form, other shells do not read fish's.
    pub(super) fn format(&self) -> Option<Format> {
        let value = self.get("FORMAT").or_else(|| self.get("SHELL"))?;
        match Format::parse(value.as_bytes())? {
            Format::Fish => Some(Format::Posix),
            format => Some(format),
        }
    }

    /// A warning for each variable that looks like one of autocvd's and is none.
    pub(super) fn warnings(&self) -> Vec<String> {
        let known = || OPTIONS.iter().chain(&OTHERS);
        let unknown = self
            .set
            .iter()
            .filter(|(name, _)| known().all(|known| name != known));
        let warning = |(name, _): &(OsString, OsString)| {
            let name = name.to_string_lossy();
            match nearest(&name, known().copied()) {
                Some(near) => format!("{PREFIX}{name} has no effect; did you mean {PREFIX}{near}?"),
                None => {
                    format!("{PREFIX}{name} has no effect; 'autocvd --help' names the variables")
                }
            }
        };
        unknown.map(warning).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_option_has_its_variable() {
        use clap::CommandFactory;
        let main = args::MainArgs::command();
        let status = args::SubcommandArgs::command();
        let status = status.find_subcommand("status").expect("there is one");
        for argument in main.get_arguments().chain(status.get_arguments()) {
            let Some(long) = argument.get_long() else {
                continue;
            };
            let name = long.replace('-', "_").to_uppercase();
            assert!(OPTIONS.contains(&&*name), "{name}");
        }
    }

    #[test]
    fn a_variable_that_is_none_of_the_known_ones_gets_a_warning() {
        let warnings = |name: &str| Variables::from_pairs(&[(name, "1")]).warnings();
        assert_eq!(warnings("TIMEOUT"), [""; 0]);
        assert_eq!(
            warnings("TIMOUT"),
            ["AUTOCVD_TIMOUT has no effect; did you mean AUTOCVD_TIMEOUT?"]
        );
        assert!(
            warnings("COLOUR")[0].starts_with("AUTOCVD_COLOUR has no effect; 'autocvd --help'")
        );
    }
}
