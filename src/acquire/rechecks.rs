//! When to read a GPU again that nothing tells of: one that is still held after the exit of the
//! process that held it (teardown), and one whose processes are hidden.

use crate::policy::{IMMINENT, RECHECK_GROWTH, RECHECKS_MS};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// The GPUs that are to be read again, by their positions in the snapshot.
pub(super) struct Rechecks {
    /// A pause as long as this is the interval's.
    limit: Duration,
    gpus: HashMap<usize, Recheck>,
}

struct Recheck {
    since: Instant,
    pace: Pace,
    /// How many of its times have passed.
    step: u32,
}

/// How often a GPU is read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// Often at first, ever more rarely later: it will be free soon.
    Slowing,
    /// Each time this has passed.
    Every(Duration),
}

impl Rechecks {
    pub(super) fn new(limit: Duration) -> Self {
        let gpus = HashMap::new();
        Self { limit, gpus }
    }

    /// Reads a GPU again at this pace; one that is being read again at it already goes on.
    pub(super) fn start(&mut self, gpu: usize, pace: Pace) {
        if self.gpus.get(&gpu).is_some_and(|known| known.pace == pace) {
            return;
        }
        let since = Instant::now();
        let step = 0;
        self.gpus.insert(gpu, Recheck { since, pace, step });
    }

    /// Something tells of this GPU.
    pub(super) fn stop(&mut self, gpu: usize) {
        self.gpus.remove(&gpu);
    }

    /// Others look for this request.
    pub(super) fn stop_all(&mut self) {
        self.gpus.clear();
    }

    /// When the next GPU is to be read again.
    pub(super) fn next(&self) -> Option<Instant> {
        self.gpus
            .values()
            .filter_map(|recheck| recheck.next(self.limit))
            .min()
    }

    /// Whether a GPU is to be read again so soon that the present state is worth no words: the
    /// driver may not have noticed an exit yet.
    pub(super) fn is_imminent(&self) -> bool {
        self.next()
            .is_some_and(|next| next <= Instant::now() + IMMINENT)
    }

    /// The GPUs that are to be read now.
    pub(super) fn take_due(&mut self) -> Vec<usize> {
        let now = Instant::now();
        let mut due = Vec::new();
        for (gpu, recheck) in &mut self.gpus {
            let before = recheck.step;
            while recheck.next(self.limit).is_some_and(|next| next <= now) {
                recheck.step += 1;
            }
            if recheck.step > before {
                due.push(*gpu);
            }
        }
        due
    }
}

impl Recheck {
    /// `None` once the interval is as good.
    fn next(&self, limit: Duration) -> Option<Instant> {
        let (after, pause) = match self.pace {
            Pace::Every(pause) => (pause.saturating_mul(self.step + 1), pause),
            Pace::Slowing => slowing(self.step),
        };
        if pause >= limit {
            return None;
        }
        self.since.checked_add(after)
    }
}

/// The time of a step since the beginning, and the pause before it.
fn slowing(step: u32) -> (Duration, Duration) {
    let at = |step: u32| -> Duration {
        let last = RECHECKS_MS.len() as u32 - 1;
        let listed = Duration::from_millis(RECHECKS_MS[step.min(last) as usize]);
        listed.saturating_mul(RECHECK_GROWTH.saturating_pow(step.saturating_sub(last)))
    };
    let before = step.checked_sub(1).map_or(Duration::ZERO, at);
    (at(step), at(step).saturating_sub(before))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_until_the_interval_is_as_good() {
        let mut rechecks = Rechecks::new(Duration::from_secs(30));
        rechecks.start(0, Pace::Slowing);
        let mut pauses = Vec::new();
        while let Some(next) = rechecks.next() {
            let recheck = rechecks.gpus.get_mut(&0).expect("it was started");
            pauses.push(next - recheck.since);
            recheck.step += 1;
        }
        assert!(pauses.is_sorted() && pauses.len() > RECHECKS_MS.len());
        let last = pauses.last().expect("there are some");
        assert!(
            (Duration::from_secs(20)..Duration::from_secs(60)).contains(last),
            "{last:?}"
        );
    }

    #[test]
    fn a_gpu_is_due_once_a_step_and_starting_again_changes_nothing() {
        let mut rechecks = Rechecks::new(Duration::from_secs(30));
        rechecks.start(3, Pace::Slowing);
        let past = Instant::now().checked_sub(Duration::from_millis(7));
        rechecks.gpus.get_mut(&3).expect("it was started").since = past.expect("booted before");
        assert_eq!(rechecks.take_due(), [3]);
        let next = rechecks.next();
        rechecks.start(3, Pace::Slowing);
        assert_eq!(rechecks.next(), next);
        rechecks.stop(3);
        assert_eq!(rechecks.next(), None);
    }

    #[test]
    fn a_steady_pace_is_left_to_a_shorter_interval() {
        let mut rechecks = Rechecks::new(Duration::from_secs(2));
        rechecks.start(0, Pace::Every(Duration::from_secs(5)));
        assert_eq!(rechecks.next(), None);
    }
}
