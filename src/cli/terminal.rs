//! What the environment says of the terminal.

use std::env;

/// `COLUMNS`: how wide the output is to be where it is not a terminal.
pub(super) fn columns() -> Option<usize> {
    let columns = env::var("COLUMNS").ok()?.parse().ok();
    columns.filter(|columns| *columns > 0)
}

/// Whether the output is coloured: on a terminal that has colours, unless `NO_COLOR`
/// (<https://no-color.org>) is set, and elsewhere where `CLICOLOR_FORCE` asks for it
/// (<https://bixense.com/clicolors/>).
pub(super) fn has_color(is_terminal: bool) -> bool {
    let is_set = |name: &str| env::var_os(name).is_some_and(|value| !value.is_empty());
    let is_forced =
        env::var_os("CLICOLOR_FORCE").is_some_and(|value| !value.is_empty() && value != "0");
    let is_plain = env::var_os("TERM").is_some_and(|term| term == "dumb");
    !is_set("NO_COLOR") && (is_forced || (is_terminal && !is_plain))
}

/// Whether the locale's characters are UTF-8. Where no locale is set at all, they are taken to be.
pub(super) fn has_unicode() -> bool {
    let first = ["LC_ALL", "LC_CTYPE", "LANG"]
        .into_iter()
        .filter_map(env::var_os);
    let locale = first
        .map(|value| value.to_string_lossy().to_lowercase())
        .find(|value| !value.is_empty());
    locale.is_none_or(|locale| locale.contains("utf-8") || locale.contains("utf8"))
}
