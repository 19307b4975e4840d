//! The program: arguments in; assignments, another program, or an exit code out.

mod advice;
mod args;
mod exec;
mod exit;
mod explain;
mod man;
mod progress;
mod run;
mod shell;
mod signals;
mod status;
mod terminal;
mod variables;

pub(crate) use run::run;
