//! Pieces of the screen: text that fits, bars, amounts, colours.

use autocvd::State;
use autocvd::program::{printable, truncate, width};

/// What stands for a value that could not be read.
pub(super) const UNKNOWN: &str = "?";
/// What stands for what this machine does not have.
pub(super) const NOT_APPLICABLE: &str = "–";

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

/// A bar in two parts: what is used and what is not.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Bar {
    pub(super) used: String,
    pub(super) rest: String,
}

/// A share of a whole, from 0 to 1, in so many columns. A hundredth or more shows, and nothing
/// short of all fills it.
pub(super) fn bar(share: Option<f64>, columns: usize, style: Style) -> Bar {
    let rest = |columns| if style.unicode { "·" } else { "." }.repeat(columns);
    let share = share.filter(|share| share.is_finite() && *share >= 0.01);
    let Some(share) = share.filter(|_| columns > 0) else {
        return Bar {
            used: String::new(),
            rest: rest(columns),
        };
    };
    let (steps, full) = if style.unicode { (8, "█") } else { (1, "#") };
    let all = columns * steps;
    let filled = (share.min(1.0) * all as f64).round() as usize;
    let filled = if share >= 0.995 {
        all
    } else {
        filled.clamp(1, all - 1)
    };
    let (whole, eighths) = (filled / steps, filled % steps);
    let part = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"][eighths];
    Bar {
        used: full.repeat(whole) + part,
        rest: rest(columns - whole - usize::from(eighths > 0)),
    }
}

/// Bytes in GiB, without the unit.
pub(super) fn gib(bytes: Option<u64>) -> String {
    bytes.map_or_else(
        || UNKNOWN.to_owned(),
        |bytes| format!("{:.1}", bytes as f64 / f64::from(1 << 30)),
    )
}

/// Numbers with their runs joined: `0-3 6`.
pub(super) fn ranges(numbers: &[u32]) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for &number in numbers {
        match runs.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(number) => *last = number,
            _ => runs.push((number, number)),
        }
    }
    let run = |(first, last): &(u32, u32)| match last - first {
        0 => first.to_string(),
        1 => format!("{first} {last}"),
        _ => format!("{first}-{last}"),
    };
    runs.iter().map(run).collect::<Vec<_>>().join(" ")
}

/// What the terminal can show.
#[derive(Debug, Clone, Copy)]
pub(super) struct Style {
    pub(super) color: bool,
    /// Whether it shows characters beyond ASCII.
    pub(super) unicode: bool,
}

/// How a piece of text looks, by ECMA-48's SGR codes. None of them is unreadable on a white, a
/// black or a Solarized terminal: bright black is invisible on the last one, yellow on the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    Plain,
    Strong,
    Faint,
    Of(State),
}

impl Style {
    pub(super) fn paint(self, look: Look, text: &str) -> String {
        let code = match look {
            Look::Plain => "",
            Look::Strong => "1",
            Look::Faint => "2",
            Look::Of(State::Free) => "32",
            Look::Of(State::Busy) => "31",
            Look::Of(State::Claimed | State::Shared) => "35",
            Look::Of(_) => "2",
        };
        match self.color && !code.is_empty() && !text.trim().is_empty() {
            true => format!("\x1b[{code}m{text}\x1b[0m"),
            false => text.to_owned(),
        }
    }

    /// The text in ASCII, where the terminal shows nothing else.
    pub(super) fn spell(self, text: &str) -> String {
        if self.unicode || text.is_ascii() {
            return text.to_owned();
        }
        let mut ascii = String::with_capacity(text.len());
        for c in text.chars() {
            match c {
                '…' => ascii.push('~'),
                '×' => ascii.push('x'),
                '·' => ascii.push('-'),
                c if c.is_ascii() => ascii.push(c),
                // As wide as it was.
                c => ascii.push_str(&"?".repeat(width(c.encode_utf8(&mut [0; 4])))),
            }
        }
        ascii
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNICODE: Style = Style {
        color: false,
        unicode: true,
    };
    const ASCII: Style = Style {
        color: false,
        unicode: false,
    };

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
    fn a_bar_is_empty_or_full_only_where_that_is_so() {
        for (share, unicode, ascii) in [
            (Some(0.0), "····", "...."),
            (Some(0.001), "····", "...."),
            (Some(0.02), "▏···", "#..."),
            (Some(0.5), "██··", "##.."),
            (Some(0.6), "██▍·", "##.."),
            (Some(0.99), "███▉", "###."),
            (Some(1.0), "████", "####"),
            (Some(7.0), "████", "####"),
            (Some(f64::NAN), "····", "...."),
            (None, "····", "...."),
        ] {
            let whole = |style| {
                let bar = bar(share, 4, style);
                bar.used + &bar.rest
            };
            assert_eq!(whole(UNICODE), unicode, "{share:?}");
            assert_eq!(whole(ASCII), ascii, "{share:?}");
        }
        assert_eq!(bar(Some(0.5), 0, UNICODE).used, "");
    }

    #[test]
    fn what_is_empty_or_unknown_is_shown_as_such() {
        assert_eq!(known(Some("\n")), "?");
        assert_eq!(known(None), "?");
    }

    #[test]
    fn runs_of_numbers_are_joined() {
        for (numbers, text) in [
            (&[][..], ""),
            (&[3], "3"),
            (&[0, 1], "0 1"),
            (&[0, 1, 2, 3, 6], "0-3 6"),
            (&[u32::MAX], "4294967295"),
        ] {
            assert_eq!(ranges(numbers), text);
        }
    }

    #[test]
    fn ascii_is_as_wide() {
        let text = "訓練 8 × H100 · größe…";
        let ascii = ASCII.spell(text);
        assert!(ascii.is_ascii());
        assert_eq!(ascii.len(), width(text));
    }
}
