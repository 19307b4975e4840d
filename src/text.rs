//! Times, sizes and pictures as people write and read them: the same in the program and in Python.

use crate::acquire::Waiting;
use crate::gpu::State;
use crate::select;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Reads a duration: a bare number of seconds, or what `humantime` reads (`500ms`, `2m 30s`).
///
/// # Errors
/// What to give instead; the value itself is left to the caller to quote.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || "give seconds, or a time such as 500ms, 90s, '2m 30s'".to_owned();
    match text.parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).map_err(|_| wrong()),
        Err(_) => humantime::parse_duration(text).map_err(|_| wrong()),
    }
}

/// Reads a size in bytes: `10GiB`, `500MiB`; `10G` is 10^10.
///
/// # Errors
/// What to give instead; the value itself is left to the caller to quote.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let parsed = text.parse::<bytesize::ByteSize>();
    parsed.map(|size| size.as_u64()).map_err(|_| "give a size such as 10GiB, 10G or 500MiB".into())
}

/// What is waited for, how many are free and who is on the rest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Picture {
    head: String,
    taken: Vec<Taken>,
}

/// A unit that is not to be had now.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Taken {
    label: String,
    reason: String,
    /// Unix time in seconds.
    since: Option<u64>,
}

/// The least that is shown of a unit where there is little room, in characters.
const LEAST: usize = 32;

impl Picture {
    /// What a waiter sees.
    pub fn of(waiting: &Waiting) -> Self {
        let all = waiting.allowed.len();
        let gpus = if waiting.num_gpus == 1 { "a GPU".to_owned() } else { format!("{} GPUs", waiting.num_gpus) };
        let mut head = format!("autocvd: waiting for {gpus}; {} of {all} free", waiting.free.len());
        if waiting.behind > 0 {
            head += &format!(", {} waiting before", waiting.behind);
        }
        let snapshot = waiting.snapshot;
        let taken = waiting.allowed.iter().rev().filter_map(|unit| {
            let verdict = select::judge(*unit, snapshot);
            let reason = match verdict.state() {
                State::Free => select::too_little(*unit, snapshot, waiting.min_free_memory)?,
                _ => verdict.reason()?.to_owned(),
            };
            Some(Taken { label: unit.label(snapshot), reason, since: select::since(*unit, snapshot) })
        });
        Self { head, taken: taken.collect() }
    }

    /// All of it, with times as [`clock`] writes them.
    pub fn line(&self) -> String {
        let taken = self.taken.iter().map(|Taken { label, reason, since }| {
            let since = since.map(|time| format!(" since {}", clock(time))).unwrap_or_default();
            format!("; {label} {reason}{since}")
        });
        self.head.clone() + &taken.collect::<String>()
    }

    /// What fits into so many columns of a terminal: first what changes, then who is on the rest, and for how long.
    pub fn line_within(&self, left: Option<Duration>, columns: usize) -> String {
        let mut line = self.head.clone();
        if let Some(left) = left {
            // A countdown has no fractions, as far as it has seconds.
            let left = if left.as_secs() > 0 { Duration::from_secs(left.as_secs()) } else { left };
            line += &format!("; gives up in {}", duration(left));
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
        let taken = self.taken.iter().map(|Taken { label, reason, since }| {
            let age = since.map(|since| now.saturating_sub(since)).filter(|seconds| *seconds > 0);
            let age = age.map(|seconds| format!(" for {}", duration(Duration::from_secs(seconds))));
            format!("; {label}{}: {reason}", age.unwrap_or_default())
        });
        let taken: Vec<String> = taken.collect();
        let room = columns.saturating_sub(line.chars().count()) / taken.len().max(1);
        let fits = taken.iter().map(|text| text.chars().count()).sum::<usize>() <= room * taken.len();
        for text in taken {
            line += &if fits { text } else { cut(&text, room.max(LEAST)) };
        }
        cut(&line, columns)
    }
}

/// At most so many characters, the last one an ellipsis where some are missing.
fn cut(text: &str, limit: usize) -> String {
    match text.char_indices().nth(limit) {
        Some(_) => text.chars().take(limit.saturating_sub(1)).chain(['…']).collect(),
        None => text.to_owned(),
    }
}

/// A Unix time in seconds, as RFC 3339 writes it.
pub fn clock(time: u64) -> impl std::fmt::Display {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(time))
}

/// A duration in its two largest units.
pub fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 => format!("{} ms", duration.as_millis()),
        // Half a second more is worth telling of a few, but not in a countdown's whole seconds.
        1..10 if duration.subsec_millis() >= 100 => format!("{:.1} s", duration.as_secs_f64()),
        1..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86400 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86400, seconds / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_seconds_or_what_humantime_reads() {
        let ms = |text: &str| parse_duration(text).map(|duration| duration.as_millis()).ok();
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
        ] {
            assert_eq!(ms(text), expected, "{text}");
        }
    }

    #[test]
    fn sizes_have_decimal_and_binary_units() {
        for (text, expected) in [
            ("10GiB", Some(10 << 30)),
            ("10G", Some(10_000_000_000)),
            ("500MiB", Some(500 << 20)),
            ("1.5GiB", Some(3 << 29)),
            ("12345", Some(12345)),
            ("10XB", None),
            ("-1", None),
            ("", None),
        ] {
            assert_eq!(parse_size(text).ok(), expected, "{text}");
        }
    }
}
