//! When to ask a driver again that has failed.

use crate::policy::FIRST_RETRY;
use std::time::{Duration, Instant};

/// Pauses that double from one attempt to the next.
pub(super) struct Backoff {
    /// The longest pause.
    limit: Duration,
    next: Option<Retry>,
}

#[derive(Clone, Copy)]
struct Retry {
    at: Instant,
    /// How long the driver is left alone before that.
    pause: Duration,
}

impl Backoff {
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, next: None }
    }

    /// Whether nothing has failed since the last [`reset`](Self::reset).
    pub(super) fn is_fresh(&self) -> bool {
        self.next.is_none()
    }

    /// All that was needed could be read.
    pub(super) fn reset(&mut self) {
        self.next = None;
    }

    /// Whether the time of the next attempt has come.
    pub(super) fn is_due(&self) -> bool {
        self.next.is_some_and(|retry| retry.at <= Instant::now())
    }

    /// The time of the next attempt. An attempt that was made before that time, for another reason,
    /// does not move it.
    pub(super) fn next(&mut self) -> Instant {
        let now = Instant::now();
        match self.next {
            Some(retry) if retry.at > now => retry.at,
            past => {
                let pause = past.map_or(FIRST_RETRY, |retry| retry.pause.saturating_mul(2));
                let pause = pause.min(self.limit);
                // A limit beyond the clock's range is not reached by doubling in any lifetime.
                let at = now.checked_add(pause).unwrap_or(now + FIRST_RETRY);
                self.next = Some(Retry { at, pause });
                at
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_limit_and_an_early_look_changes_nothing() {
        let mut backoff = Backoff::new(Duration::from_secs(3));
        assert!(backoff.is_fresh());
        let first = backoff.next();
        assert_eq!(backoff.next(), first);
        for expected in [2, 3, 3] {
            let retry = backoff.next.as_mut().expect("it has failed");
            retry.at = Instant::now();
            let pause = backoff.next() - Instant::now();
            let expected = Duration::from_secs(expected);
            assert!(pause <= expected && pause > expected / 2, "{pause:?}");
        }
        backoff.reset();
        assert!(backoff.is_fresh());
    }
}
