//! Amounts as people read them.

use std::time::Duration;

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

#[cfg(test)]
mod tests {
    use super::*;

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
