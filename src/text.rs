//! Times, sizes and pictures as people write and read them: the same in the program and in Python.

pub use crate::amount::{bytes, duration};
use crate::gpu::State;
use crate::observer::WaitStatus;
pub use crate::proc::{is_unprintable, printable};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Reads a duration: a bare number of seconds, or what `humantime` reads (`500ms`, `2m 30s`).
///
/// # Errors
/// What to give instead; the value itself is left to the caller to quote.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || "give seconds, or a time such as 500ms, 90s, '2m 30s'".to_owned();
    // humantime reads M as months.
    if text
        .split(|c: char| !c.is_alphabetic())
        .any(|unit| unit == "M")
    {
        return Err("M could be minutes or months; write m for minutes".to_owned());
    }
    match text.parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).map_err(|_| wrong()),
        Err(_) => humantime::parse_duration(text).map_err(|_| wrong()),
    }
}

/// Reads a size: `10GiB`, `500MiB`; `10G` is 10^10 bytes. A number must have its unit, for 40 could
/// be bytes or GiB.
///
/// # Errors
/// What to give instead; the value itself is left to the caller to quote.
pub fn parse_size(text: &str) -> Result<u64, String> {
    if let Ok(number) = text.trim().parse::<f64>() {
        if number > 0.0 {
            return Err(format!("give the unit too: {number}GiB or {number}MiB"));
        }
    }
    let parsed = text.parse::<bytesize::ByteSize>();
    parsed
        .map(|size| size.as_u64())
        .map_err(|_| "give a size such as 10GiB, 10G or 500MiB".into())
}

/// What is waited for, how many are free and who is on the rest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WaitSummary {
    head: String,
    blocked: Vec<BlockedDevice>,
}

/// A device that is not to be had now.
#[derive(Debug, Clone, PartialEq, Eq)]
struct BlockedDevice {
    label: String,
    reason: String,
    /// Unix time in seconds.
    since: Option<u64>,
}

/// The least that is shown of a device where there is little room, in columns.
const LEAST: usize = 32;

impl WaitSummary {
    /// What a waiter sees.
    pub fn of(status: &WaitStatus) -> Self {
        let all = status.candidates.len();
        let gpus = match status.num_gpus {
            1 => "a GPU".to_owned(),
            n => format!("{n} GPUs"),
        };
        let free = status.free.len();
        let mut head = format!("autocvd: waiting for {gpus}; {free} of {all} free");
        if status.waiters_ahead > 0 {
            head += &format!(", {} waiting before", status.waiters_ahead);
        }
        let blocked = status.candidates.iter().rev().filter_map(|id| {
            let device = status.snapshot.device(*id);
            let verdict = device.verdict();
            let reason = match verdict.state() {
                State::Free => device.memory_shortfall(status.min_free_memory)?,
                _ => verdict.reason()?.to_owned(),
            };
            Some(BlockedDevice {
                label: device.label(),
                reason,
                since: device.taken_since(),
            })
        });
        Self {
            head,
            blocked: blocked.collect(),
        }
    }

    /// All of it, with times as [`rfc3339`] writes them.
    pub fn line(&self) -> String {
        let blocked = self.blocked.iter().map(
            |BlockedDevice {
                 label,
                 reason,
                 since,
             }| {
                let since = since
                    .map(|time| format!(" since {}", rfc3339(time)))
                    .unwrap_or_default();
                format!("; {label} {reason}{since}")
            },
        );
        self.head.clone() + &blocked.collect::<String>()
    }

    /// What fits into so many columns of a terminal: first what changes, then who is on the rest, and for how long.
    pub fn line_within(&self, left: Option<Duration>, columns: usize) -> String {
        let mut line = self.head.clone();
        if let Some(left) = left {
            // A countdown has no fractions, as far as it has seconds.
            let left = if left.as_secs() > 0 {
                Duration::from_secs(left.as_secs())
            } else {
                left
            };
            line += &format!("; gives up in {}", duration(left));
        }
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |now| now.as_secs());
        let blocked = self.blocked.iter().map(
            |BlockedDevice {
                 label,
                 reason,
                 since,
             }| {
                let age = since
                    .map(|since| now.saturating_sub(since))
                    .filter(|seconds| *seconds > 0);
                let age =
                    age.map(|seconds| format!(" for {}", duration(Duration::from_secs(seconds))));
                format!("; {label}{}: {reason}", age.unwrap_or_default())
            },
        );
        let blocked: Vec<String> = blocked.collect();
        let room = columns.saturating_sub(width(&line)) / blocked.len().max(1);
        let fits = blocked.iter().map(|text| width(text)).sum::<usize>() <= room * blocked.len();
        for text in blocked {
            line += &if fits {
                text
            } else {
                truncate(&text, room.max(LEAST))
            };
        }
        truncate(&line, columns)
    }
}

/// How many columns of a terminal a text takes.
pub fn width(text: &str) -> usize {
    text.width()
}

/// The text, cut to `columns` where it is longer, the last one an ellipsis.
pub fn truncate(text: &str, columns: usize) -> String {
    if text.width() <= columns {
        return text.to_owned();
    }
    let mut left = columns.saturating_sub(1);
    let fits = |c: &char| {
        let width = c.width().unwrap_or(0);
        let fits = width <= left;
        left = left.saturating_sub(width);
        fits
    };
    let mut short: String = text.chars().take_while(fits).collect();
    if columns > 0 {
        short.push('…');
    }
    short
}

/// 9999-12-31T23:59:59Z: later times, which nobody has seen, have no form in RFC 3339.
const LAST_SECOND: u64 = 253_402_300_799;

/// A Unix time in seconds, as RFC 3339 writes it.
pub fn rfc3339(time: u64) -> impl std::fmt::Display {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(time.min(LAST_SECOND)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_seconds_or_what_humantime_reads() {
        let ms = |text: &str| {
            parse_duration(text)
                .map(|duration| duration.as_millis())
                .ok()
        };
        for (text, expected) in [
            ("90", Some(90_000)),
            ("0", Some(0)),
            ("1.5", Some(1500)),
            ("500ms", Some(500)),
            ("2m 30s", Some(150_000)),
            ("1h", Some(3_600_000)),
            ("-1", None),
            ("soon", None),
            ("", None),
            ("inf", None),
            ("nan", None),
            ("1e300", None),
            ("5 parsecs", None),
            ("5M", None),
            ("5months", Some(13_150_080_000)),
        ] {
            assert_eq!(ms(text), expected, "{text}");
        }
    }

    #[test]
    fn every_time_has_a_form() {
        assert_eq!(rfc3339(1_700_000_000).to_string(), "2023-11-14T22:13:20Z");
        assert_eq!(rfc3339(u64::MAX).to_string(), "9999-12-31T23:59:59Z");
    }

    #[test]
    fn a_picture_takes_no_more_columns_than_there_are() {
        let taken = BlockedDevice {
            label: "GPU 1".into(),
            reason: "used by pid 7 (訓練: 訓練する訓練する訓練する)".into(),
            since: None,
        };
        let picture = WaitSummary {
            head: "autocvd: waiting for a GPU; 0 of 2 free".into(),
            blocked: vec![taken.clone(), taken],
        };
        for columns in 20..160 {
            let line = picture.line_within(Some(Duration::from_secs(90)), columns);
            assert!(width(&line) <= columns, "{columns}: {line}");
        }
        assert!(picture.line_within(None, 1000).ends_with("訓練する)"));
    }

    #[test]
    fn sizes_have_decimal_and_binary_units() {
        for (text, expected) in [
            ("10GiB", Some(10 << 30)),
            ("10G", Some(10_000_000_000)),
            ("500MiB", Some(500 << 20)),
            ("1.5GiB", Some(3 << 29)),
            ("12345B", Some(12345)),
            ("0", Some(0)),
            ("40", None),
            ("10XB", None),
            ("-1", None),
            ("", None),
        ] {
            assert_eq!(parse_size(text).ok(), expected, "{text}");
        }
    }
}
