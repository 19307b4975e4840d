use super::*;

const GIB: u64 = 1 << 30;
const GPU: &str = "GPU-0";

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    fn store(&self) -> ClaimStore {
        ClaimStore::open(&self.0.path().join("claims")).expect("our own")
    }

    fn inside(&self, around: &ClaimGuard) -> ClaimStore {
        let mut store = self.store();
        store.ancestry = around.inside();
        store
    }
}

fn claim(store: &mut ClaimStore, extent: Extent) -> Option<ClaimGuard> {
    let target = Target {
        key: GPU.to_owned(),
        extent,
    };
    let claimed = store
        .try_claim(&[target], &ClaimFor::Process)
        .expect("a directory that can be used")?;
    assert_eq!(claimed.unclaimed, []);
    claimed.guard
}

/// A share of a device of 40 GiB.
fn share(gib: u64) -> Extent {
    Extent::Share {
        bytes: gib * GIB,
        memory: 40 * GIB,
        limit: 40 * GIB,
    }
}

fn shares(store: &mut ClaimStore) -> Vec<u64> {
    let claims = store.active(GPU).into_iter();
    let bytes = |claim: Claim| claim.share.map_or(0, |share| share.bytes() / GIB);
    let mut all: Vec<u64> = claims.map(bytes).collect();
    all.sort_unstable();
    all
}

#[test]
fn shares_are_of_no_more_than_there_is_and_need_not_be_in_one_piece() {
    let place = Place::new();
    let mut store = place.store();
    let first = claim(&mut store, share(15)).expect("it is free");
    let second = claim(&mut store, share(10)).expect("it fits");
    let third = claim(&mut store, share(15)).expect("it fits");
    assert!(claim(&mut store, share(1)).is_none());
    assert_eq!(shares(&mut place.store()), [10, 15, 15]);
    drop(first);
    drop(third);
    let around = claim(&mut store, share(30)).expect("on both sides of the second");
    assert_eq!(around.memory(), Some(30 * GIB));
    assert_eq!(shares(&mut store), [10, 30]);
    drop(second);
    assert_eq!(shares(&mut store), [30]);
}

#[test]
fn a_whole_device_and_a_share_of_it_exclude_each_other() {
    let place = Place::new();
    let mut store = place.store();
    let whole = claim(&mut store, Extent::Whole).expect("it is free");
    assert!(claim(&mut store, share(1)).is_none());
    assert_eq!(whole.memory(), None);
    drop(whole);
    let part = claim(&mut store, share(1)).expect("it is free");
    assert!(claim(&mut store, Extent::Whole).is_none());
    let guest = claim(&mut store, Extent::Guest).expect("it asks nobody");
    assert!(claim(&mut store, share(1)).is_none(), "beside a guest");
    drop(guest);
    drop(part);
    let _whole = claim(&mut store, Extent::Whole).expect("it is free");
}

#[test]
fn of_two_shares_that_fit_alone_the_later_one_steps_back() {
    let place = Place::new();
    let mut store = place.store();
    let limited = |gib: u64| Extent::Share {
        bytes: gib * GIB,
        memory: 40 * GIB,
        // Something else holds 5 GiB.
        limit: 35 * GIB,
    };
    let _one = claim(&mut store, limited(18)).expect("it is free");
    assert!(claim(&mut store, limited(18)).is_none());
    let _other = claim(&mut store, limited(17)).expect("it fits");
}

#[test]
fn a_share_that_nobody_tells_of_counts_and_nobody_else_can_lock_it() {
    let place = Place::new();
    let mut store = place.store();
    let part = claim(&mut store, share(15)).expect("it is free");
    let holders = place.0.path().join("claims/holders");
    std::fs::remove_dir_all(holders).expect("our own");
    let mut viewer = place.store();
    let claims = viewer.active(GPU);
    assert_eq!(claims.len(), 1);
    assert_eq!((claims[0].pid, claims[0].kind), (None, None));
    assert_eq!(shares(&mut viewer), [15]);
    assert!(claim(&mut viewer, share(26)).is_none());
    drop(part);
}

#[test]
fn inside_a_share_launches_have_that_share_among_themselves() {
    let place = Place::new();
    let mut store = place.store();
    let around = claim(&mut store, share(20)).expect("it is free");
    let beside = claim(&mut store, share(20)).expect("it fits");
    let mut inside = place.inside(&around);
    let mut elsewhere = place.inside(&beside);
    assert_eq!(inside.ancestor_share(GPU), Some(20 * GIB));
    let one = claim(&mut inside, share(12)).expect("a part of it");
    assert_eq!(shares(&mut inside), [12]);
    assert!(claim(&mut inside, share(9)).is_none());
    assert!(
        claim(&mut inside, Extent::Whole).is_none(),
        "beside another one"
    );
    assert_eq!(shares(&mut elsewhere), [] as [u64; 0]);
    let all = claim(&mut elsewhere, Extent::Whole).expect("all of the other share");
    assert_eq!(all.memory(), Some(20 * GIB));
    assert!(claim(&mut elsewhere, share(1)).is_none());
    // From outside, what is inside a share is part of it.
    assert_eq!(shares(&mut store), [20, 20]);
    drop(beside);
    assert_eq!(
        shares(&mut store),
        [20, 20],
        "what was inside has outlived it"
    );
    drop(all);
    let _third = claim(&mut store, share(20)).expect("it is free again");
    drop(one);
    let _nested = claim(&mut inside, Extent::Whole).expect("it is free again");
}

#[test]
fn many_threads_that_claim_shares_never_have_more_than_there_is() {
    let place = Place::new();
    let used = std::sync::atomic::AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let (place, used) = (&place, &used);
            scope.spawn(move || {
                let mut store = place.store();
                for round in 0..100 {
                    let gib = (thread * 7 + round * 5) % 23 + 1;
                    let Some(guard) = claim(&mut store, share(gib)) else {
                        continue;
                    };
                    let order = std::sync::atomic::Ordering::SeqCst;
                    let all = used.fetch_add(gib, order) + gib;
                    assert!(all <= 40, "{all} GiB");
                    used.fetch_sub(gib, order);
                    drop(guard);
                }
            });
        }
    });
}

#[test]
fn a_launch_without_a_claim_is_inside_no_claim_that_has_ended() {
    let place = Place::new();
    let mut store = place.store();
    let around = claim(&mut store, Extent::Whole).expect("it is free");
    let mut inside = place.store();
    inside.ancestry = around.inside().with(Ancestor {
        token: None,
        devices: vec![GPU.to_owned()],
        holding: Holding::Whole,
    });
    drop(around);
    // It has been told of it: now it is seen to have ended.
    assert!(claim(&mut inside, Extent::Whole).is_none());
    let guard = claim(&mut inside, Extent::Whole).expect("it is free");
    assert_eq!(guard.inside().level(), 1);
}
