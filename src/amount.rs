//! Amounts as people read them.

use std::time::{Duration, UNIX_EPOCH};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Bytes in GiB, or in MiB where they are less.
///
/// ```
/// assert_eq!(autocvd::text::bytes(40 << 30), "40.0 GiB");
/// ```
pub fn bytes(bytes: u64) -> String {
    match bytes {
        _ if bytes >= GIB => format!("{:.1} GiB", bytes as f64 / GIB as f64),
        _ => format!("{} MiB", bytes / MIB),
    }
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

/// 9999-12-31T23:59:59Z: later times have no form in RFC 3339.
const LAST_SECOND: u64 = 253_402_300_799;

/// A Unix time in seconds, as RFC 3339 writes it.
pub fn rfc3339(time: u64) -> impl std::fmt::Display {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(time.min(LAST_SECOND)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_has_a_form() {
        assert_eq!(rfc3339(1_700_000_000).to_string(), "2023-11-14T22:13:20Z");
        assert_eq!(rfc3339(u64::MAX).to_string(), "9999-12-31T23:59:59Z");
    }

    #[test]
    fn durations_are_told_in_two_units_at_most() {
        for (ms, expected) in [
            (0, "0 ms"),
            (999, "999 ms"),
            (1_000, "1 s"),
            (1_500, "1.5 s"),
            (59_999, "59 s"),
            (90_000, "1 min 30 s"),
            (3_660_000, "1 h 1 min"),
            (90_000_000, "1 d 1 h"),
        ] {
            assert_eq!(duration(Duration::from_millis(ms)), expected);
        }
    }

    #[test]
    fn bytes_are_told_in_gib_from_one_on() {
        assert_eq!(
            [bytes(0), bytes(GIB - 1), bytes(GIB), bytes(3 * GIB / 2)],
            ["0 MiB", "1023 MiB", "1.0 GiB", "1.5 GiB"]
        );
    }
}
