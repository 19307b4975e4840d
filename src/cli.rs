//! The program: arguments in; assignments, another program, or an exit code out.

mod advice;
mod args;
mod completions;
mod doctor;
mod exec;
mod exit_code;
mod failure;
mod format;
mod guard;
mod help;
mod man;
mod mps_view;
mod options;
mod progress;
mod report;
mod run;
mod signals;
mod standard_output;
mod status;
mod terminal;
mod usage;
mod variables;
mod words;

pub(crate) use run::run;
