//! What the environment says of the terminal.

use std::env;

/// `COLUMNS`: how wide the output is to be where it is not a terminal.
pub(super) fn columns() -> Option<usize> {
    env::var("COLUMNS")
        .ok()?
        .parse()
        .ok()
        .filter(|columns| *columns > 0)
}

/// Whether a terminal may be written to in colours: neither `NO_COLOR` (<https://no-color.org>) nor a
/// terminal that has none.
pub(super) fn allows_color() -> bool {
    env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && env::var_os("TERM").is_none_or(|term| term != "dumb")
}
