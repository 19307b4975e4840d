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

    fn nvlinks(&self, one: usize, other: usize) -> u32 {
        self.pairs[one * self.width + other].0
    }

    /// The number of NVLinks of the slowest link in the best ring through a set: what a collective
    /// operation of its GPUs goes at. `floor`: what is not better need not be known.
    fn ring(&self, set: &[usize], floor: u32) -> u32 {
        let strongest = |member: &usize| {
            let others = set.iter().filter(|other| *other != member);
            let mut links: Vec<u32> = others.map(|other| self.nvlinks(*member, *other)).collect();
            links.sort_unstable_by(|a, b| b.cmp(a));
            // A ring of two has one link, a longer one two at each member.
            links.get(usize::from(set.len() > 2)).copied().unwrap_or(0)
        };
        let most = set.iter().map(strongest).min().unwrap_or(0);
        let pairs = set
            .iter()
            .flat_map(|a| set.iter().map(|b| self.nvlinks(*a, *b)));
        let mut limits: Vec<u32> = pairs.filter(|nvlinks| *nvlinks < most).collect();
        limits.push(most);
        limits.sort_unstable_by(|a, b| b.cmp(a));
        limits.dedup();
        let mut possible = limits.into_iter().take_while(|limit| *limit > floor);
        possible
            .find(|limit| self.has_ring(set, *limit))
            .unwrap_or(floor)
    }

    /// Whether a ring through the set has at least so many NVLinks everywhere.
    fn has_ring(&self, set: &[usize], limit: u32) -> bool {
        fn extend(
            scores: &Scores,
            path: &mut Vec<usize>,
            left: &mut Vec<usize>,
            limit: u32,
        ) -> bool {
            let last = path[path.len() - 1];
            if left.is_empty() {
                return scores.nvlinks(last, path[0]) >= limit;
            }
            for at in 0..left.len() {
                if scores.nvlinks(last, left[at]) >= limit {
                    path.push(left.swap_remove(at));
                    let found = extend(scores, path, left, limit);
                    let next = path.pop().expect("pushed above");
                    left.push(next);
                    let end = left.len() - 1;
                    left.swap(at, end);
                    if found {
                        return true;
                    }
                }
            }
            false
        }
        let mut left = set[1..].to_vec();
        extend(self, &mut vec![set[0]], &mut left, limit)
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

/// The best connected `count` of `free` (ascending, at least `count` of them), the higher indices
/// among equals; in ascending order.
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

/// Of the sets that were weighed, the best one; the first among equals.
#[derive(Default)]
struct Best {
    found: Option<(u32, Score, Vec<usize>)>,
}

impl Best {
    fn offer(&mut self, scores: &Scores, set: &[usize], score: Score) {
        let known = self.found.as_ref().map(|(ring, score, _)| (*ring, *score));
        let is_better = |ring: u32| known.is_none_or(|known| (ring, score) > known);
        // Where it scores less otherwise, only a better ring counts.
        let floor = match known {
            Some((ring, best)) if score <= best => ring,
            Some((ring, _)) => ring.saturating_sub(1),
            None => 0,
        };
        let ring = scores.ring(set, floor);
        let below = known.is_some_and(|(best, _)| ring < best);
        if is_better(ring) && !below {
            self.found = Some((ring, score, set.to_vec()));
        }
    }

    fn places(self) -> Vec<usize> {
        self.found.map(|(_, _, set)| set).unwrap_or_default()
    }
}

/// Weighs every set, those with the higher members first, so that the first of equals is the right
/// one.
fn exact(scores: &Scores, count: usize) -> Vec<usize> {
    fn descend(
        scores: &Scores,
        count: usize,
        below: usize,
        set: &mut Vec<usize>,
        score: Score,
        best: &mut Best,
    ) {
        let missing = count - set.len();
        if missing == 0 {
            return best.offer(scores, set, score);
        }
        for new in (missing - 1..below).rev() {
            let gain = scores.gain(set, new);
            set.push(new);
            descend(scores, count, new, set, add(score, gain), best);
            set.pop();
        }
    }
    let mut best = Best::default();
    let mut set = Vec::with_capacity(count);
    descend(scores, count, scores.width, &mut set, (0, 0), &mut best);
    best.places()
}

/// Grows a set from each GPU by what joins it best, and keeps the best of them.
fn greedy(scores: &Scores, count: usize) -> Vec<usize> {
    let mut best = Best::default();
    for seed in (0..scores.width).rev() {
        let (mut set, mut score) = (vec![seed], (0, 0));
        while set.len() < count {
            let others = (0..scores.width).filter(|place| !set.contains(place));
            let gains = others.map(|place| (scores.gain(&set, place), place));
            let Some((gain, new)) = gains.max() else {
                break;
            };
            set.push(new);
            score = add(score, gain);
        }
        best.offer(scores, &set, score);
    }
    best.places()
}
