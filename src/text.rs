//! Times, sizes and pictures as people write and read them: the same in the program and in Python.

use crate::acquire::Waiting;
use crate::gpu::State;
use crate::select;
use std::time::{Duration, UNIX_EPOCH};

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

/// What is waited for, how many are free and who is on the rest: one line.
pub fn waiting(waiting: &Waiting) -> String {
    let all = waiting.allowed.len();
    let gpus = if waiting.num_gpus == 1 { "a GPU".to_owned() } else { format!("{} GPUs", waiting.num_gpus) };
    let mut line = format!("autocvd: waiting for {gpus}; {} of {all} free", waiting.free.len());
    if waiting.behind > 0 {
        line += &format!(", {} waiting before", waiting.behind);
    }
    for unit in waiting.allowed.iter().rev() {
        let verdict = select::judge(*unit, waiting.snapshot);
        let Some(reason) = verdict.reason().filter(|_| verdict.state() != State::Free) else { continue };
        let since = select::since(*unit, waiting.snapshot).map(|time| format!(" since {}", clock(time)));
        let since = since.unwrap_or_default();
        line += &format!("; {} {reason}{since}", unit.label(waiting.snapshot));
    }
    line
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
