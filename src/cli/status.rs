//! `autocvd status`.

use super::args::{StatusArgs, probe_choice};
use super::exit::{self, Failure};
use crate::acquire;
use crate::environment::Environment;
use crate::probe::file;

/// Shows the machine.
pub(super) fn run(args: &StatusArgs) -> Result<(), Failure> {
    let choice = probe_choice(args.probe, args.from.as_ref());
    let snapshot = acquire::status(&choice, &Environment::read(), &mut acquire::Unobserved)?;
    let text = file::to_json(&snapshot);
    exit::write_stdout(&format!("{text}\n")).map_err(|e| Failure::new(exit::UNEXPECTED, e.to_string()))
}
