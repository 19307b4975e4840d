//! Times, sizes and pictures as people write and read them: the same in the program and in Python.

use crate::amount::rfc3339;
pub use crate::amount::{bytes, duration};
use crate::columns::{truncate, width};
use crate::gpu::State;
use crate::ids::Device;
use crate::observer::WaitStatus;
use crate::proc::printable;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Reads a duration: a bare number of seconds, or what `humantime` reads (`500ms`, `2m 30s`).
///
/// # Errors
/// What to give instead; the value itself is left to the caller to quote.
///
/// ```
/// use autocvd::text::parse_duration;
/// use std::time::Duration;
///
/// assert_eq!(parse_duration("2m 30s"), Ok(Duration::from_secs(150)));
/// assert!(parse_duration("soon").is_err());
/// ```
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
///
/// ```
/// use autocvd::text::parse_size;
///
/// assert_eq!(parse_size("40GiB"), Ok(40 << 30));
/// assert!(parse_size("40").is_err_and(|advice| advice.contains("40GiB")));
/// ```
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
    /// What is asked for; empty where nothing has been seen yet.
    wanted: String,
    waiters_ahead: usize,
    /// How many there are, of how many.
    free: String,
    blocked: Vec<BlockedDevice>,
}

/// A device that is not to be had now.
#[derive(Debug, Clone, PartialEq, Eq)]
struct BlockedDevice {
    label: String,
    /// Who has it, or in a word why it is not to be had.
    holder: String,
    reason: String,
    /// Unix time in seconds.
    since: Option<u64>,
}

/// Of more devices, only their holders are told of.
const MAX_DETAILS: usize = 4;
/// The least that is shown of a device where there is little room, in columns.
const LEAST: usize = 32;

impl WaitSummary {
    /// What a waiter sees.
    pub fn of(status: &WaitStatus) -> Self {
        let all = status.candidates.len();
        let wanted = match (status.num_gpus, status.share.map(bytes)) {
            (1, None) => "a GPU".to_owned(),
            (n, None) => format!("{n} GPUs"),
            (1, Some(size)) => format!("a share of {size}"),
            (n, Some(size)) => format!("{n} shares of {size}"),
        };
        let free = status.free.len();
        let are_free = match status.share {
            None => "free",
            Some(_) => "with room",
        };
        let blocked = status.candidates.iter().rev().filter_map(|id| {
            let device = status.snapshot.device(*id);
            let verdict = device.verdict();
            let kept = status.kept_reason.filter(|_| status.kept.contains(id));
            let shortfall = status
                .share
                .map(|bytes| device.share_shortfall(bytes, status.tolerate));
            let (holder, reason) = match verdict.state() {
                State::Free | State::Shared if kept.is_some() => {
                    ("kept".to_owned(), kept?.to_owned())
                }
                State::Free | State::Shared if shortfall.is_some() => {
                    ("too full".to_owned(), shortfall??)
                }
                State::Free => match device.memory_shortfall(status.min_free_memory) {
                    Some(shortfall) => ("too small".to_owned(), shortfall),
                    None => ("unclaimable".to_owned(), device.why_unclaimable()?),
                },
                State::Claimed => ("claimed".to_owned(), verdict.reason()?.to_owned()),
                State::Shared => ("shared".to_owned(), verdict.reason()?.to_owned()),
                State::Unavailable => ("unusable".to_owned(), verdict.reason()?.to_owned()),
                State::Busy => (user_on(device), verdict.reason()?.to_owned()),
            };
            Some(BlockedDevice {
                label: device.label(),
                holder,
                reason,
                since: device.taken_since(),
            })
        });
        Self {
            wanted,
            waiters_ahead: status.waiters_ahead,
            free: format!("{free} of {all} {are_free}"),
            blocked: blocked.collect(),
        }
    }

    /// Others have left the queue, and so many are ahead now.
    pub fn set_waiters_ahead(&mut self, waiters_ahead: usize) {
        self.waiters_ahead = waiters_ahead;
    }

    fn head(&self) -> String {
        let Self { wanted, free, .. } = self;
        if wanted.is_empty() {
            return String::new();
        }
        let place = match self.waiters_ahead {
            0 => String::new(),
            ahead => format!("; {} in line", ordinal(ahead + 1)),
        };
        format!("autocvd: waiting for {wanted}{place}; {free}")
    }

    /// The summary as a log line: of a few devices who is on each since when, with times as
    /// [`rfc3339`] writes them; of more the number of each user's.
    pub fn line(&self) -> String {
        if self.blocked.len() > MAX_DETAILS {
            return self.head() + &self.holders();
        }
        self.head()
            + &self
                .details(|since| Some(format!(" since {}", rfc3339(since))))
                .concat()
    }

    /// What fits into so many columns of a terminal: first what changes, then who is on the rest,
    /// and for how long.
    pub fn line_within(&self, left: Option<Duration>, columns: usize) -> String {
        let left = left.map(|left| {
            // A countdown has no fractions, as far as it has seconds.
            let whole = Duration::from_secs(left.as_secs());
            let left = if whole.is_zero() { left } else { whole };
            format!("; gives up in {}", duration(left))
        });
        let left = left.unwrap_or_default();
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |now| now.as_secs());
        let details = self.details(|since| {
            let age = now.checked_sub(since).filter(|seconds| *seconds > 0)?;
            Some(format!(" for {}", duration(Duration::from_secs(age))))
        });
        let head = self.head();
        let room = columns.saturating_sub(width(&head) + width(&left));
        let fits = details.iter().map(|text| width(text)).sum::<usize>() <= room;
        let line = if fits {
            format!("{head}{left}{}", details.concat())
        } else if details.len() > 2 {
            format!("{head}{}{left}", self.holders())
        } else {
            let room = (room / details.len()).max(LEAST);
            let short = details.iter().map(|text| truncate(text, room));
            format!("{head}{left}{}", short.collect::<String>())
        };
        truncate(&line, columns)
    }

    /// `; GPU 1 for 3 min: used by pid 7 (alice: python train.py)` for each device.
    fn details(&self, time: impl Fn(u64) -> Option<String>) -> Vec<String> {
        let detail = |device: &BlockedDevice| {
            let BlockedDevice {
                label,
                reason,
                since,
                ..
            } = device;
            let time = since.and_then(&time).unwrap_or_default();
            format!("; {label}{time}: {reason}")
        };
        self.blocked.iter().map(detail).collect()
    }

    /// ` (alice 8, bob 5, claimed 3)`: how many devices each has, the most first.
    fn holders(&self) -> String {
        let mut counts: Vec<(&str, usize)> = Vec::new();
        for device in &self.blocked {
            match counts
                .iter_mut()
                .find(|(holder, _)| *holder == device.holder)
            {
                Some((_, count)) => *count += 1,
                None => counts.push((&device.holder, 1)),
            }
        }
        counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let counts = counts
            .iter()
            .map(|(holder, count)| format!("{holder} {count}"));
        format!(" ({})", counts.collect::<Vec<_>>().join(", "))
    }
}

/// The user of the first process that computes on a device.
fn user_on(device: Device) -> String {
    let processes = device.processes().value().unwrap_or_default().iter();
    let mut computing = processes.filter(|process| process.kind.computes());
    match computing.next() {
        Some(process) => match &process.user {
            Some(user) => printable(user.as_bytes()),
            None => "unknown user".to_owned(),
        },
        None => "hidden".to_owned(),
    }
}

/// `1st`, `2nd`, `3rd`, `4th`, `11th`.
fn ordinal(number: usize) -> String {
    let ending = match (number % 10, number % 100) {
        (1, tens) if tens != 11 => "st",
        (2, tens) if tens != 12 => "nd",
        (3, tens) if tens != 13 => "rd",
        _ => "th",
    };
    format!("{number}{ending}")
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
    fn a_picture_takes_no_more_columns_than_there_are() {
        let taken = BlockedDevice {
            label: "GPU 1".into(),
            holder: "訓練".into(),
            reason: "used by pid 7 (訓練: 訓練する訓練する訓練する)".into(),
            since: None,
        };
        let picture = WaitSummary {
            wanted: "a GPU".into(),
            waiters_ahead: 0,
            free: "0 of 2 free".into(),
            blocked: vec![taken.clone(), taken],
        };
        for columns in 20..160 {
            let line = picture.line_within(Some(Duration::from_secs(90)), columns);
            assert!(width(&line) <= columns, "{columns}: {line}");
        }
        assert!(picture.line_within(None, 1000).ends_with("訓練する)"));
    }

    #[test]
    fn many_devices_are_told_of_by_their_holders() {
        let blocked = |holder: &str| BlockedDevice {
            label: "GPU".into(),
            holder: holder.into(),
            reason: "used by pid 7".into(),
            since: Some(0),
        };
        let holders = [["alice"; 8].as_slice(), &["bob"; 5], &["claimed"; 3]].concat();
        let summary = WaitSummary {
            wanted: "a GPU".into(),
            waiters_ahead: 2,
            free: "0 of 16 free".into(),
            blocked: holders.into_iter().map(blocked).collect(),
        };
        let expected = "autocvd: waiting for a GPU; 3rd in line; 0 of 16 free \
                        (alice 8, bob 5, claimed 3)";
        assert_eq!(summary.line(), expected);
        let left = Some(Duration::from_secs(59 * 60));
        assert_eq!(
            summary.line_within(left, 120),
            format!("{expected}; gives up in 59 min 0 s")
        );
    }

    #[test]
    fn places_have_their_endings() {
        let all = [1, 2, 3, 4, 11, 12, 13, 21, 102, 113].map(ordinal);
        let expected = [
            "1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "102nd", "113th",
        ];
        assert_eq!(all, expected);
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
