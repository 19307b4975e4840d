//! Whether another share of a device can be given: a pure function of what is known of it.

use super::verdict::{Evidence, Verdict, describe_claim, describe_process};
use crate::amount::bytes as amount;
use crate::gpu::{ClaimInfo, ComputeMode, Fact, Process};
use crate::ids::{Device, DeviceId};
use crate::policy::IDLE_UTILIZATION;
use std::cmp::Reverse;

impl ClaimInfo {
    /// Whether it is on a share of the device.
    pub fn is_share(&self) -> bool {
        self.kind.as_deref() == Some("share") && self.memory.is_some()
    }

    /// How much of the share its processes have not allocated, in bytes: all of it where nothing is
    /// told of them.
    fn unused(&self) -> u64 {
        let memory = self.memory.unwrap_or(0);
        memory.saturating_sub(self.used_memory.unwrap_or(0))
    }

    /// What is to be said of a share whose processes hold more than it.
    fn excess(&self) -> Option<String> {
        let (memory, used) = (self.memory?, self.used_memory?);
        (self.is_share() && used > memory).then(|| {
            format!(
                "{} holds {}, more than its share of {}",
                describe_claim(self),
                amount(used),
                amount(memory)
            )
        })
    }
}

impl<'a> Device<'a> {
    /// How many bytes another share of it can be.
    ///
    /// # Errors
    /// Why there can be none.
    pub fn shareable(self) -> Result<u64, String> {
        let verdict = self.verdict();
        match (&verdict, self.memory().free) {
            (Verdict::Free, Fact::Value(free)) => Ok(free),
            (Verdict::Free | Verdict::Shared(_), Fact::NotApplicable | Fact::Unknown) => {
                Err("only an unknown amount free".to_owned())
            }
            (Verdict::Shared(_), Fact::Value(free)) => self.rest(free),
            _ => Err(verdict.reason().unwrap_or("not free").to_owned()),
        }
    }

    /// What is left of a device that has shares, of which so many bytes are free.
    fn rest(self, free: u64) -> Result<u64, String> {
        let mode = self.gpu().compute_mode;
        if matches!(mode, Fact::Value(mode) if mode.is_exclusive()) {
            return Err("its compute mode allows a single process".to_owned());
        }
        let shares = self.claims().iter();
        let hidden: u64 = shares
            .clone()
            .filter(|share| share.used_memory.is_none())
            .filter_map(|share| share.memory)
            .fold(0, u64::saturating_add);
        let mut strangers = self.strangers();
        if let Some(first) = strangers.next() {
            let held: Option<u64> = self.strangers().map(|process| process.used_memory).sum();
            // They may be those of shares whose holders are out of sight.
            if held.is_none_or(|held| held > hidden) {
                return Err(format!("used by {}, of no share", describe_process(first)));
            }
        }
        let unused = shares.map(ClaimInfo::unused).fold(0, u64::saturating_add);
        match Evidence::of(self).judge_beside_shares(unused) {
            Verdict::Free => Ok(free.saturating_sub(unused)),
            verdict => Err(verdict.reason().unwrap_or("not free").to_owned()),
        }
    }

    /// The processes that compute on it and belong to none of its shares.
    pub(crate) fn strangers(self) -> impl Iterator<Item = &'a Process> + Clone {
        self.computing().filter(|process| !process.in_share)
    }

    /// How many bytes another share of it can be, and what there is to say of its shares beyond who
    /// holds them.
    pub(super) fn describe_shares(self) -> (Option<u64>, Option<String>) {
        let (rest, told) = match self.shareable() {
            Ok(rest) => (rest, format!("; {} left", amount(rest))),
            Err(why) => (0, format!("; {why}")),
        };
        let overdrawn = self.overdrawn().map(|text| format!("; {text}"));
        (Some(rest), Some(told + &overdrawn.unwrap_or_default()))
    }

    /// What is to be said of those of its shares whose processes hold more than they asked for.
    pub fn overdrawn(self) -> Option<String> {
        let told: Vec<String> = self.claims().iter().filter_map(ClaimInfo::excess).collect();
        (!told.is_empty()).then(|| told.join("; "))
    }

    /// Why a share of so many bytes cannot be given, where idle processes may hold `tolerate`
    /// bytes.
    pub(crate) fn share_shortfall(self, bytes: u64, tolerate: Option<u64>) -> Option<String> {
        match (self.share_room(tolerate), self.verdict()) {
            (Ok(room), _) if room >= bytes => None,
            (Ok(room), Verdict::Shared(_)) => {
                Some(format!("shared, only {} of it left", amount(room)))
            }
            (Ok(room), _) => Some(format!("only {} free", amount(room))),
            (Err(why), Verdict::Shared(_)) => Some(format!("shared, and {why}")),
            (Err(why), _) => Some(why),
        }
    }

    /// The same as [`shareable`](Self::shareable) where idle processes may hold so much.
    fn share_room(self, tolerate: Option<u64>) -> Result<u64, String> {
        let room = self.shareable();
        let is_tolerable = |most| match self.verdict() {
            Verdict::Shared(_) => self.are_strangers_tolerable(most),
            _ => self.is_tolerable(most),
        };
        match (room, self.memory().free) {
            (Err(_), Fact::Value(free)) if tolerate.is_some_and(is_tolerable) => {
                let unused = self.claims().iter().map(ClaimInfo::unused);
                Ok(free.saturating_sub(unused.fold(0, u64::saturating_add)))
            }
            (room, _) => room,
        }
    }

    fn are_strangers_tolerable(self, most: u64) -> bool {
        let exclusive = self.gpu().compute_mode.value();
        let held: Option<u64> = self.strangers().map(|process| process.used_memory).sum();
        let unused = self.claims().iter().map(ClaimInfo::unused);
        let unused = unused.fold(0, u64::saturating_add);
        !exclusive.is_some_and(ComputeMode::is_exclusive)
            && held.is_some_and(|held| held <= most)
            && matches!(self.utilization(), Fact::Value(percent) if percent <= IDLE_UTILIZATION)
            && Evidence::of(self).judge_beside_shares(unused) == Verdict::Free
    }
}

/// Those of the devices that have room for a share of so many bytes, where idle processes may hold
/// `tolerate` bytes. The fullest goes first, so that whole devices stay free; one with processes
/// that are tolerated goes last, and a suspect or an unclaimable one after all others.
pub(super) fn with_room(devices: &[Device], bytes: u64, tolerate: Option<u64>) -> Vec<DeviceId> {
    let mut fitting: Vec<_> = devices
        .iter()
        .filter_map(|device| {
            let room = device.share_room(tolerate).ok()?;
            let is_tolerated = device.shareable().is_err();
            let is_unshared = device.claims().is_empty();
            let is_unclaimable = device.unclaimable().is_some();
            let is_suspect = device.is_suspect();
            let last = (is_unclaimable, is_suspect, is_tolerated, is_unshared);
            (room >= bytes).then_some((last, room, Reverse(device.id())))
        })
        .collect();
    fitting.sort_unstable();
    fitting.into_iter().map(|(.., Reverse(id))| id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::{Gpu, Memory, ProcessKind, ProcessView, Snapshot, Source};
    use crate::policy::GIB;
    use proptest::prelude::*;

    fn share(gib: u64, used: Option<u64>) -> ClaimInfo {
        ClaimInfo {
            kind: Some("share".into()),
            pid: Some(7),
            user: None,
            command: None,
            since: None,
            until: None,
            version: None,
            memory: Some(gib * GIB),
            used_memory: used.map(|gib| gib * GIB),
            share_holder: None,
        }
    }

    fn process(gib: u64, in_share: bool) -> Process {
        Process {
            pid: 42,
            kind: ProcessKind::Compute,
            user: None,
            command: None,
            used_memory: Some(gib * GIB),
            started: None,
            ignored: false,
            in_share,
        }
    }

    /// What is left of a GPU of 40 GiB, in GiB, where nothing else holds memory, or where so much
    /// is held by processes that are not listed.
    fn rest(
        view: ProcessView,
        claims: Vec<ClaimInfo>,
        processes: Vec<Process>,
        unlisted: u64,
    ) -> Result<u64, String> {
        let listed: u64 = processes
            .iter()
            .filter_map(|process| process.used_memory)
            .sum();
        let used = listed + unlisted * GIB;
        let gpu = Gpu {
            uuid: Some("GPU-1".into()),
            memory: Memory {
                total: Fact::Value(40 * GIB),
                used: Fact::Value(used),
                free: Fact::Value((40 * GIB).saturating_sub(used)),
            },
            compute_mode: Fact::Value(ComputeMode::Default),
            processes: Fact::Value(processes),
            claims,
            ..Gpu::default()
        };
        let snapshot = Snapshot {
            source: Source::Nvml,
            driver_version: None,
            process_view: view,
            gpus: vec![gpu],
            links: Vec::new(),
            waiting: Vec::new(),
            recording: None,
        };
        let device = snapshot.devices().next().expect("one");
        device.shareable().map(|bytes| bytes / GIB)
    }

    #[test]
    fn what_a_share_has_not_allocated_yet_is_kept_for_it() {
        let host = ProcessView::Host;
        let claims = || vec![share(15, Some(5)), share(10, Some(0))];
        assert_eq!(rest(host, claims(), vec![process(5, true)], 0), Ok(15));
        assert_eq!(
            rest(host, vec![share(15, Some(20))], vec![process(20, true)], 0),
            Ok(20)
        );
        assert_eq!(rest(host, vec![share(40, Some(0))], Vec::new(), 0), Ok(0));
    }

    #[test]
    fn a_process_of_no_share_or_memory_of_nobody_keeps_shares_away() {
        let host = ProcessView::Host;
        let claims = || vec![share(10, Some(0))];
        let why = rest(host, claims(), vec![process(1, false)], 0).expect_err("a stranger");
        assert!(
            why.starts_with("used by pid 42") && why.ends_with("of no share"),
            "{why}"
        );
        let why = rest(host, claims(), Vec::new(), 3).expect_err("a hidden one");
        assert!(why.contains("held by no visible process"), "{why}");
    }

    #[test]
    fn where_a_holder_is_out_of_sight_memory_decides_and_all_of_its_share_is_kept() {
        for view in [ProcessView::Host, ProcessView::Container] {
            let claims = || vec![share(10, None)];
            assert_eq!(rest(view, claims(), vec![process(8, false)], 0), Ok(22));
            assert!(rest(view, claims(), vec![process(11, false)], 0).is_err());
        }
        // In a container processes of another one are not even listed.
        let container = ProcessView::Container;
        let claims = || vec![share(10, None), share(5, Some(0))];
        assert_eq!(rest(container, claims(), Vec::new(), 14), Ok(11));
        assert!(rest(container, claims(), Vec::new(), 16).is_err());
    }

    #[test]
    fn a_share_that_holds_more_than_it_is_of_is_named() {
        assert_eq!(share(10, Some(10)).excess(), None);
        let told = share(10, Some(11)).excess().expect("it holds more");
        assert_eq!(
            told,
            "pid 7 holds 11.0 GiB, more than its share of 10.0 GiB"
        );
        assert_eq!(share(10, None).excess(), None);
    }

    proptest! {
        #[test]
        fn what_is_left_is_never_more_than_all_shares_can_still_have(
            shares in proptest::collection::vec((1_u64..20, proptest::option::of(0_u64..20)), 1..5),
            unlisted in 0_u64..20,
            is_host in any::<bool>(),
        ) {
            let view = if is_host { ProcessView::Host } else { ProcessView::Container };
            let claims = shares.iter().map(|(gib, used)| share(*gib, *used));
            let claims: Vec<ClaimInfo> = claims.collect();
            let held: u64 = shares.iter().filter_map(|(_, used)| *used).sum();
            let processes = shares.iter().filter_map(|(_, used)| Some(process((*used)?, true)));
            let Ok(left) = rest(view, claims, processes.collect(), unlisted) else { return Ok(()) };
            let unused = |(gib, used): &(u64, Option<u64>)| gib.saturating_sub(used.unwrap_or(0));
            let promised: u64 = shares.iter().map(unused).sum();
            prop_assert!(left == 0 || left + promised + held + unlisted <= 40);
        }
    }
}
