//! A share: a part of a device's memory that a claim has.
//!
//! A device's memory is counted in granules of a mebibyte, and each granule is a byte of a nesting
//! level in its lock file. So the kernel keeps the sum of all shares within what there is, however
//! many launches lock at the same time. Which granules a share has says nothing about where its
//! program's memory lies: they need not be next to each other.

use std::fmt;
use std::str::FromStr;

/// How many bytes of memory one byte of a lock file stands for.
const GRANULE: u64 = 1 << 20;
/// The bits that number a granule of a device.
pub(super) const GRANULE_BITS: u32 = 40;

/// Granules, as runs from the first one to the one past the last: in ascending order, and none
/// touches the next.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Share(Vec<(u64, u64)>);

impl Share {
    /// All granules of a device that has so much memory, in bytes.
    pub(super) fn of_device(bytes: u64) -> Self {
        Self::from_runs([(0, bytes / GRANULE)])
    }

    /// What these runs cover together.
    pub(super) fn from_runs(runs: impl IntoIterator<Item = (u64, u64)>) -> Self {
        let mut runs: Vec<(u64, u64)> = runs
            .into_iter()
            .filter(|(start, end)| start < end)
            .collect();
        runs.sort_unstable();
        let mut joined: Vec<(u64, u64)> = Vec::with_capacity(runs.len());
        for (start, end) in runs {
            match joined.last_mut() {
                Some((_, last)) if start <= *last => *last = end.max(*last),
                _ => joined.push((start, end)),
            }
        }
        Self(joined)
    }

    pub(super) fn runs(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.0.iter().copied()
    }

    /// How much memory it stands for, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        let granules: u64 = self.runs().map(|(start, end)| end - start).sum();
        granules.saturating_mul(GRANULE)
    }

    /// The part of it that is not in `other`.
    pub(super) fn without(&self, other: &Self) -> Self {
        let mut left = Vec::new();
        for (mut start, end) in self.runs() {
            for (taken, free) in other.runs() {
                if taken < end && free > start {
                    left.push((start, taken.max(start)));
                    start = free.min(end);
                }
            }
            left.push((start, end));
        }
        Self::from_runs(left)
    }

    /// The part of it that is also in `other`.
    pub(super) fn within(&self, other: &Self) -> Self {
        self.without(&self.without(other))
    }

    pub(super) fn and(&self, other: &Self) -> Self {
        Self::from_runs(self.runs().chain(other.runs()))
    }

    pub(super) fn is_within(&self, other: &Self) -> bool {
        self.without(other).0.is_empty()
    }

    /// The first granules of it that make up so many bytes, rounded up; `None` where it has fewer.
    pub(super) fn first(&self, bytes: u64) -> Option<Self> {
        let mut wanted = bytes.div_ceil(GRANULE);
        let mut taken = Vec::new();
        for (start, end) in self.runs() {
            let length = wanted.min(end - start);
            taken.push((start, start + length));
            wanted -= length;
        }
        (wanted == 0).then(|| Self::from_runs(taken))
    }
}

/// `0-15360+20480-20992`.
impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, (start, end)) in self.runs().enumerate() {
            let separator = if place > 0 { "+" } else { "" };
            write!(f, "{separator}{start}-{end}")?;
        }
        Ok(())
    }
}

impl FromStr for Share {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let run = |text: &str| {
            let (start, end) = text.split_once('-').ok_or(())?;
            let run: (u64, u64) = (start.parse().map_err(drop)?, end.parse().map_err(drop)?);
            if run.0 < run.1 && run.1 <= 1 << GRANULE_BITS {
                Ok(run)
            } else {
                Err(())
            }
        };
        let runs = text.split('+').map(run).collect::<Result<Vec<_>, ()>>()?;
        Ok(Self::from_runs(runs))
    }
}

/// What a claim has of its devices.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum Holding {
    /// All of each.
    #[default]
    Whole,
    /// A share of each, in the order of the devices.
    Shares(Vec<Share>),
}

impl Holding {
    /// The share of the device at this place; `None` where it is the whole device.
    pub(crate) fn share(&self, place: usize) -> Option<&Share> {
        match self {
            Self::Whole => None,
            Self::Shares(shares) => shares.get(place),
        }
    }

    /// How much memory it has of each device at least, in bytes; `None` where it has all.
    pub(crate) fn memory(&self) -> Option<u64> {
        match self {
            Self::Whole => None,
            Self::Shares(shares) => shares.iter().map(Share::bytes).min(),
        }
    }

    /// Reads it back, of so many devices.
    pub(super) fn parse(text: &str, devices: usize) -> Option<Self> {
        if text.is_empty() {
            return Some(Self::Whole);
        }
        let shares: Vec<Share> = text
            .split(',')
            .map(str::parse)
            .collect::<Result<_, _>>()
            .ok()?;
        (shares.len() == devices).then_some(Self::Shares(shares))
    }
}

/// The shares, separated by commas; nothing for whole devices.
impl fmt::Display for Holding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Shares(shares) = self else {
            return Ok(());
        };
        for (place, share) in shares.iter().enumerate() {
            let separator = if place > 0 { "," } else { "" };
            write!(f, "{separator}{share}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn share(runs: &[(u64, u64)]) -> Share {
        Share::from_runs(runs.iter().copied())
    }

    #[test]
    fn a_share_is_made_of_what_is_left_between_others() {
        let device = Share::of_device(40 << 30);
        let others = share(&[(10, 20), (30, 40_000)]);
        let left = device.without(&others);
        assert_eq!(left, share(&[(0, 10), (20, 30), (40_000, 40_960)]));
        assert_eq!(left.first(15 * GRANULE), Some(share(&[(0, 10), (20, 25)])));
        assert_eq!(left.first(GRANULE - 1), Some(share(&[(0, 1)])));
        assert_eq!(left.first(left.bytes()), Some(left.clone()));
        assert_eq!(left.first(left.bytes() + 1), None);
    }

    #[test]
    fn what_is_written_is_read_back() {
        let one = share(&[(0, 10), (20, 25)]);
        assert_eq!(one.to_string(), "0-10+20-25");
        assert_eq!(one.to_string().parse(), Ok(one.clone()));
        let both = Holding::Shares(vec![one, share(&[(7, 8)])]);
        assert_eq!(Holding::parse(&both.to_string(), 2), Some(both.clone()));
        assert_eq!(Holding::parse(&both.to_string(), 1), None);
        assert_eq!(Holding::parse("", 3), Some(Holding::Whole));
        for wrong in ["-", "5-5", "6-5", "0-9999999999999", "a-b", "1-2+", "1-2-3"] {
            assert_eq!(wrong.parse::<Share>(), Err(()), "{wrong}");
        }
    }

    fn any_share() -> impl Strategy<Value = Share> {
        proptest::collection::vec((0_u64..40, 0_u64..40), 0..6).prop_map(Share::from_runs)
    }

    proptest! {
        #[test]
        fn sets_of_granules_obey_the_laws_of_sets(one in any_share(), other in any_share()) {
            let set = |share: &Share| -> std::collections::BTreeSet<u64> {
                share.runs().flat_map(|(start, end)| start..end).collect()
            };
            let (first, second) = (set(&one), set(&other));
            let difference: std::collections::BTreeSet<u64> = &first - &second;
            prop_assert_eq!(set(&one.without(&other)), difference);
            prop_assert_eq!(set(&one.within(&other)), &first & &second);
            prop_assert_eq!(set(&one.and(&other)), &first | &second);
            prop_assert_eq!(one.is_within(&other), first.is_subset(&second));
            prop_assert_eq!(one.bytes(), first.len() as u64 * GRANULE);
        }
    }
}
