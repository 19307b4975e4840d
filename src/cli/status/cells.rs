//! Pieces of the screen: text that fits, bars, amounts.

use autocvd::text::printable;
use autocvd::text::{truncate, width};

/// What stands for a value that could not be read.
pub(super) const UNKNOWN: &str = "?";

/// [`printable`] text, or [`UNKNOWN`].
pub(super) fn known(text: Option<&str>) -> String {
    text.map(|text| printable(text.as_bytes()))
        .filter(|text| !text.is_empty())
        .unwrap_or_else(|| UNKNOWN.to_owned())
}

/// The text in exactly so many columns, at their left.
pub(super) fn left(text: &str, columns: usize) -> String {
    let text = truncate(text, columns);
    let space = " ".repeat(columns.saturating_sub(width(&text)));
    text + &space
}

/// The text in exactly so many columns, at their right.
pub(super) fn right(text: &str, columns: usize) -> String {
    let text = truncate(text, columns);
    " ".repeat(columns.saturating_sub(width(&text))) + &text
}

/// The text in lines of at most `columns`, broken at spaces; a longer word is cut.
pub(super) fn wrap(text: &str, columns: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if width(line) + 1 + width(word) <= columns => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(truncate(word, columns)),
        }
    }
    lines
}

/// A share of a whole, from 0 to 1, in so many columns. Anything above nothing shows, and nothing short
/// of all fills it.
pub(super) fn bar(share: Option<f64>, columns: usize) -> String {
    let Some(share) = share.filter(|share| share.is_finite()) else {
        return "·".repeat(columns);
    };
    let share = share.clamp(0.0, 1.0);
    let full = (share * columns as f64).round() as usize;
    let full = match columns {
        0 => 0,
        _ if share >= 0.995 => columns,
        // Less than one percent is what an idle GPU's driver holds.
        _ if share < 0.01 => full.min(columns - 1),
        _ => full.clamp(1, columns.max(2) - 1),
    };
    "█".repeat(full) + &"░".repeat(columns - full)
}

/// Bytes in GiB, without the device.
pub(super) fn gib(bytes: Option<u64>) -> String {
    bytes.map_or_else(
        || UNKNOWN.to_owned(),
        |bytes| format!("{:.1}", bytes as f64 / f64::from(1 << 30)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_takes_the_columns_it_is_given() {
        for (text, columns, expected) in [
            ("python", 8, "python  "),
            ("python", 6, "python"),
            ("python", 5, "pyth…"),
            ("python", 1, "…"),
            ("python", 0, ""),
            ("訓練", 4, "訓練"),
            ("訓練する", 4, "訓… "),
            ("", 2, "  "),
        ] {
            assert_eq!(left(text, columns), expected, "{text} in {columns}");
            assert_eq!(width(&right(text, columns)), columns, "{text} in {columns}");
        }
        assert_eq!(right("7", 3), "  7");
    }

    #[test]
    fn long_reasons_break_at_spaces() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("incomprehensible", 5), ["inco…"]);
        assert!(wrap("", 5).is_empty());
    }

    #[test]
    fn a_bar_is_empty_or_full_only_where_that_is_so() {
        for (share, expected) in [
            (Some(0.0), "░░░░"),
            (Some(0.001), "░░░░"),
            (Some(0.02), "█░░░"),
            (Some(0.5), "██░░"),
            (Some(0.98), "███░"),
            (Some(1.0), "████"),
            (Some(7.0), "████"),
            (Some(f64::NAN), "····"),
            (None, "····"),
        ] {
            assert_eq!(bar(share, 4), expected, "{share:?}");
        }
        assert_eq!(bar(Some(0.5), 0), "");
    }

    #[test]
    fn what_is_empty_or_unknown_is_shown_as_such() {
        assert_eq!(known(Some("\n")), "?");
        assert_eq!(known(None), "?");
    }
}
