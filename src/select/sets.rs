//! The best connected set of GPUs.

use crate::gpu::{Snapshot, TopologyLevel};
use crate::ids::DeviceId;

/// Up to this many GPUs every set is weighed: 16 GPUs have at most 12,870 sets of one size.
const EXACT: usize = 16;

/// How well GPUs are joined, the greater the better: NVLinks, then nearness of the PCIe ancestors.
type Score = (u32, u32);

struct Scores {
    width: usize,
    pairs: Vec<Score>,
}

impl Scores {
    fn new(snapshot: &Snapshot, free: &[DeviceId]) -> Self {
        let width = free.len();
        let mut pairs = vec![(0, 0); width * width];
        let place = |index: u32| {
            free.iter()
                .position(|device| snapshot.gpus[device.gpu].index == index)
        };
        for link in &snapshot.links {
            if let (Some(a), Some(b)) = (place(link.gpus.0), place(link.gpus.1)) {
                let nearness = link.ancestor.map_or(0, |ancestor| 6 - level(ancestor));
                pairs[a * width + b] = (link.nvlinks, nearness);
                pairs[b * width + a] = (link.nvlinks, nearness);
            }
        }
        Self { width, pairs }
    }

    /// What `new` adds to a set.
    fn gain(&self, set: &[usize], new: usize) -> Score {
        let joined = set
            .iter()
            .map(|member| self.pairs[member * self.width + new]);
        joined.fold((0, 0), add)
    }

    fn all_alike(&self) -> bool {
        let mut pairs =
            (0..self.width).flat_map(|a| (0..a).map(move |b| self.pairs[a * self.width + b]));
        let first = pairs.next();
        pairs.all(|pair| Some(pair) == first)
    }
}

fn add(a: Score, b: Score) -> Score {
    (a.0 + b.0, a.1 + b.1)
}

fn level(ancestor: TopologyLevel) -> u32 {
    ancestor as u32
}

/// The best connected `count` of `free` (ascending, at least `count` of them), the higher indices among
/// equals; in ascending order.
pub(super) fn best(snapshot: &Snapshot, free: &[DeviceId], count: usize) -> Vec<DeviceId> {
    let highest = || free[free.len() - count..].to_vec();
    if count == 1 || count == free.len() || snapshot.links.is_empty() {
        return highest();
    }
    let scores = Scores::new(snapshot, free);
    if scores.all_alike() {
        return highest();
    }
    let mut places = if free.len() <= EXACT {
        exact(&scores, count)
    } else {
        greedy(&scores, count)
    };
    places.sort_unstable();
    places.into_iter().map(|place| free[place]).collect()
}

/// Weighs every set, those with the higher members first, so that the first of equals is the right one.
fn exact(scores: &Scores, count: usize) -> Vec<usize> {
    fn descend(
        scores: &Scores,
        count: usize,
        below: usize,
        set: &mut Vec<usize>,
        score: Score,
        best: &mut Option<(Score, Vec<usize>)>,
    ) {
        let missing = count - set.len();
        if missing == 0 {
            if best.as_ref().is_none_or(|(found, _)| score > *found) {
                *best = Some((score, set.clone()));
            }
            return;
        }
        for new in (missing - 1..below).rev() {
            let gain = scores.gain(set, new);
            set.push(new);
            descend(scores, count, new, set, add(score, gain), best);
            set.pop();
        }
    }
    let mut best = None;
    descend(
        scores,
        count,
        scores.width,
        &mut Vec::with_capacity(count),
        (0, 0),
        &mut best,
    );
    best.map(|(_, set)| set).unwrap_or_default()
}

/// Grows a set from each GPU by what joins it best, and keeps the best of them.
fn greedy(scores: &Scores, count: usize) -> Vec<usize> {
    let mut best: Option<(Score, Vec<usize>)> = None;
    for seed in (0..scores.width).rev() {
        let (mut set, mut score) = (vec![seed], (0, 0));
        while set.len() < count {
            let others = (0..scores.width).filter(|place| !set.contains(place));
            let Some((gain, new)) = others.map(|place| (scores.gain(&set, place), place)).max()
            else {
                break;
            };
            set.push(new);
            score = add(score, gain);
        }
        if best.as_ref().is_none_or(|(found, _)| score > *found) {
            best = Some((score, set));
        }
    }
    best.map(|(_, set)| set).unwrap_or_default()
}
