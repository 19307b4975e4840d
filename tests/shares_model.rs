//! The locks of whole devices, of shares and of nested claims as a model, all of whose runs are
//! explored, with a crash at every step: launches that lock as `src/claim.rs` does, step by step,
//! where the kernel makes each single lock and look one step and drops what a dead process had
//! device after device. Two claims never have the same memory unless one is inside the other, a
//! nested claim has nothing that the one around it has not, shares together have no more than there
//! is for them, and what is refused or dead holds nothing. Each rule that is taken away breaks it.
//!
//! `tests/protocol_model.rs` is the same of judges, the queue and cleaners, on one whole device.

use std::collections::HashSet;

const LAUNCHES: usize = 4;
const DEVICES: usize = 2;
/// Nesting levels at most: the outermost one is 0.
const LEVELS: usize = 3;
/// The memory of a device, a bit each.
const GRANULES: usize = 3;
const ALL_GRANULES: u8 = (1 << GRANULES) - 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rules {
    /// As they are.
    All,
    /// Who claims a whole device does not look for what is nested there and has outlived its outer
    /// claim.
    NoNestedLook,
    /// It looks for that, and locks then.
    NestedLookFirst,
    /// A nested launch does not look whether the claim around it still lasts.
    NoParentLook,
    /// It does so before it locks.
    ParentLookFirst,
    /// It looks for that on the first of the outer claim's devices.
    ParentOnFirstDevice,
    /// A share is not compared with what others have locked meanwhile.
    NoSecondRead,
    /// A whole device is the lock of its first byte.
    WholeIsOneByte,
}

/// What a launch asks for.
#[derive(Debug, Clone, Copy)]
enum Wish {
    /// All of these devices, a bit each.
    Whole(u8),
    /// So many granules of the first device.
    Share(u32),
}

/// A launch, and the one that it is started inside of.
#[derive(Debug, Clone, Copy)]
struct Launch {
    parent: Option<usize>,
    wish: Wish,
}

/// Which launches there are, and of how many granules all shares together may be.
struct Machine {
    launches: Vec<Launch>,
    /// How many nesting levels there are.
    levels: usize,
    limit: u32,
    rules: Rules,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Phase {
    NotBegun,
    /// A whole device: it is about to lock this one of its devices.
    Locks(usize),
    /// It looks for what is nested there.
    LooksInside(usize),
    /// A share: it is about to ask for this cell, the deepest level and the last granule first.
    Reads(usize),
    /// It locks its runs, from this granule on.
    LocksRun(usize),
    /// It asks again.
    ReadsAgain(usize),
    /// It looks for the claim around it on this device.
    LooksAround(usize),
    Holds,
    /// Refused or dead: the kernel drops its locks, device after device.
    Ends,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Process {
    phase: Phase,
    has_held: bool,
    locks: [[u8; LEVELS]; DEVICES],
    /// The devices on which its token is locked, a bit each.
    token: u8,
    /// The granules that it has found locked by others.
    seen: u8,
    /// The granules that it has chosen.
    share: u8,
}

type State = [Process; LAUNCHES];

const FIRST: Process = Process {
    phase: Phase::NotBegun,
    has_held: false,
    locks: [[0; LEVELS]; DEVICES],
    token: 0,
    seen: 0,
    share: 0,
};

/// The first so many granules of `left`.
fn first(left: u8, count: u32) -> Option<u8> {
    let mut taken = 0;
    for granule in 0..GRANULES {
        let bit = 1 << granule;
        if left & bit != 0 && u8::count_ones(taken) < count {
            taken |= bit;
        }
    }
    (taken.count_ones() == count).then_some(taken)
}

/// The granules from this one on that are next to each other in `share`, beginning with the first
/// of them that is in it.
fn run_from(share: u8, granule: usize) -> Option<(usize, u8)> {
    let start = (granule..GRANULES).find(|granule| share & (1 << granule) != 0)?;
    let end = (start..GRANULES).find(|granule| share & (1 << granule) == 0);
    let end = end.unwrap_or(GRANULES);
    Some((end, (start..end).map(|granule| 1 << granule).sum()))
}

fn with(mut state: State, one: usize, change: impl FnOnce(&mut Process)) -> State {
    change(&mut state[one]);
    state[one].has_held |= state[one].phase == Phase::Holds;
    state
}

/// The kernel has dropped what a process had locked of these devices.
fn unlocked(state: State, one: usize, devices: u8) -> State {
    with(state, one, |process| {
        for device in (0..DEVICES).filter(|device| devices & (1 << device) != 0) {
            process.locks[device] = [0; LEVELS];
        }
        process.token &= !devices;
    })
}

impl Machine {
    fn new(launches: &[(Option<usize>, Wish)], limit: u32, rules: Rules) -> Self {
        let launch = |(parent, wish): &(Option<usize>, Wish)| Launch {
            parent: *parent,
            wish: *wish,
        };
        let mut machine = Self {
            launches: launches.iter().map(launch).collect(),
            levels: 1,
            limit,
            rules,
        };
        let levels = (0..launches.len()).map(|one| machine.level(one) + 1);
        machine.levels = levels.max().expect("there are launches");
        machine
    }

    fn level(&self, one: usize) -> usize {
        self.ancestors(one).count()
    }

    fn ancestors(&self, one: usize) -> impl Iterator<Item = usize> + '_ {
        let parent = |one: &usize| self.launches[*one].parent;
        std::iter::successors(parent(&one), parent)
    }

    fn others<'a>(&self, state: &'a State, one: usize) -> impl Iterator<Item = &'a Process> {
        let all = state.iter().enumerate();
        all.filter(move |(other, _)| *other != one)
            .map(|(_, process)| process)
    }

    /// What others have locked of a device in a level.
    fn locked(&self, state: &State, one: usize, device: usize, level: usize) -> u8 {
        let others = self.others(state, one);
        others.fold(0, |all, other| all | other.locks[device][level])
    }

    /// The granules of the first device that the launch may choose among, how many it wants, and
    /// of how many all shares there may be; `None` where it asks for whole devices.
    fn share(&self, state: &State, one: usize) -> Option<(u8, u32, u32)> {
        let Launch { parent, wish } = self.launches[one];
        let around = parent.filter(|parent| self.share(state, *parent).is_some());
        let around = around.map(|parent| state[parent].share);
        match (wish, around) {
            (Wish::Whole(_), None) => None,
            (Wish::Whole(_), Some(around)) => Some((around, around.count_ones(), 8)),
            (Wish::Share(count), Some(around)) => Some((around, count.min(around.count_ones()), 8)),
            (Wish::Share(count), None) => Some((ALL_GRANULES, count, self.limit)),
        }
    }

    /// The devices, of those from this one on, that a launch claims.
    fn next_device(&self, one: usize, from: usize) -> Option<usize> {
        let devices = match self.launches[one].wish {
            Wish::Whole(devices) => devices,
            Wish::Share(_) => 1,
        };
        (from..DEVICES).find(|device| devices & (1 << device) != 0)
    }

    /// What of a device a claim that lasts has.
    fn held(&self, state: &State, one: usize, device: usize) -> u8 {
        match (self.share(state, one), self.launches[one].wish) {
            _ if state[one].phase != Phase::Holds => 0,
            (Some(_), _) if device == 0 => state[one].share,
            (Some(_), _) | (None, Wish::Share(_)) => 0,
            (None, Wish::Whole(devices)) if devices & (1 << device) != 0 => ALL_GRANULES,
            (None, Wish::Whole(_)) => 0,
        }
    }

    /// Whether the claim around the launch lasts, as far as a device tells.
    fn is_parent_alive(&self, state: &State, one: usize, device: usize) -> bool {
        let parent = self.launches[one].parent;
        parent.is_none_or(|parent| state[parent].token & (1 << device) != 0)
    }

    /// Where a launch goes on that has what it wants of a device.
    fn after_device(&self, one: usize, device: usize) -> Phase {
        match self.next_device(one, device + 1) {
            Some(next) => Phase::Locks(next),
            None if self.rules == Rules::ParentOnFirstDevice => Phase::LooksAround(0),
            None => Phase::Holds,
        }
    }

    /// The phase that looks for the claim around the launch, or the one after it.
    fn around(&self, one: usize, device: usize) -> Phase {
        match (self.launches[one].parent, self.rules) {
            (None, _)
            | (_, Rules::NoParentLook | Rules::ParentLookFirst | Rules::ParentOnFirstDevice) => {
                self.after_device(one, device)
            }
            (Some(_), _) => Phase::LooksAround(device),
        }
    }

    /// What a launch does next, if it does not die.
    fn step(&self, state: &State, one: usize) -> Option<State> {
        let process = state[one];
        let level = self.level(one);
        let go = |phase| with(*state, one, |process| process.phase = phase);
        Some(match process.phase {
            Phase::NotBegun => {
                let parent = self.launches[one].parent;
                let first = self.next_device(one, 0)?;
                let looks_now = self.rules == Rules::ParentLookFirst;
                if parent.is_some_and(|parent| !state[parent].has_held) {
                    return None;
                }
                match self.share(state, one) {
                    _ if looks_now && !self.is_parent_alive(state, one, first) => go(Phase::Ends),
                    Some(_) => go(Phase::Reads(0)),
                    None if self.rules == Rules::NestedLookFirst => go(Phase::LooksInside(first)),
                    None => go(Phase::Locks(first)),
                }
            }
            Phase::Locks(device) => {
                let wanted = match self.rules {
                    Rules::WholeIsOneByte => 1,
                    _ => ALL_GRANULES,
                };
                if self.locked(state, one, device, level) & wanted != 0 {
                    return Some(go(Phase::Ends));
                }
                let next = match self.rules {
                    Rules::NoNestedLook | Rules::NestedLookFirst => self.around(one, device),
                    _ => Phase::LooksInside(device),
                };
                with(*state, one, |process| {
                    process.locks[device][level] = wanted;
                    process.token |= 1 << device;
                    process.phase = next;
                })
            }
            Phase::LooksInside(device) => {
                let mut inner = level + 1..self.levels;
                let is_free = inner.all(|inner| self.locked(state, one, device, inner) == 0);
                match is_free {
                    false => go(Phase::Ends),
                    true if self.rules == Rules::NestedLookFirst => go(Phase::Locks(device)),
                    true => go(self.around(one, device)),
                }
            }
            Phase::Reads(cell) | Phase::ReadsAgain(cell) => {
                let granule = 1 << (GRANULES - 1 - cell % GRANULES);
                let inner = self.levels - 1 - cell / GRANULES;
                let found = self.locked(state, one, 0, inner) & granule;
                let is_last = cell + 1 == (self.levels - level) * GRANULES;
                let read = with(*state, one, |process| {
                    process.seen |= found;
                    process.phase = match process.phase {
                        Phase::Reads(_) => Phase::Reads(cell + 1),
                        _ => Phase::ReadsAgain(cell + 1),
                    };
                });
                match process.phase {
                    _ if !is_last => read,
                    Phase::Reads(_) => self.choose(&read, one)?,
                    _ => self.compare(&read, one)?,
                }
            }
            Phase::LocksRun(from) => match run_from(process.share, from) {
                Some((_, run)) if self.locked(state, one, 0, level) & run != 0 => {
                    // Others were faster: once more.
                    with(*state, one, |process| {
                        process.locks[0][level] = 0;
                        process.phase = Phase::Reads(0);
                    })
                }
                Some((end, run)) => with(*state, one, |process| {
                    process.locks[0][level] |= run;
                    process.phase = Phase::LocksRun(end);
                }),
                None if self.rules == Rules::NoSecondRead => go(self.around(one, 0)),
                None => go(Phase::ReadsAgain(0)),
            },
            Phase::LooksAround(device) => match self.is_parent_alive(state, one, device) {
                false => go(Phase::Ends),
                true if self.rules == Rules::ParentOnFirstDevice => go(Phase::Holds),
                true => go(self.after_device(one, device)),
            },
            Phase::Holds | Phase::Ends => return None,
        })
    }

    /// The share that a launch is about to lock, by what it has read.
    fn choose(&self, state: &State, one: usize) -> Option<State> {
        let (region, count, _) = self.share(state, one)?;
        let share = first(region & !state[one].seen, count);
        Some(with(*state, one, |process| {
            process.seen = 0;
            process.phase = Phase::Ends;
            if let Some(share) = share {
                process.share = share;
                process.token |= 1;
                process.phase = Phase::LocksRun(0);
            }
        }))
    }

    /// Whether a launch may keep the share that it has locked, by what it has read since.
    fn compare(&self, state: &State, one: usize) -> Option<State> {
        let (region, count, limit) = self.share(state, one)?;
        let Process { seen, share, .. } = state[one];
        let all = (seen & region).count_ones() + count;
        let fits = seen & share == 0 && all <= limit.max(count);
        let next = if fits {
            self.around(one, 0)
        } else {
            Phase::Ends
        };
        Some(with(*state, one, |process| {
            process.seen = 0;
            process.phase = next;
        }))
    }

    /// What the end of a launch or a claim brings: the kernel closes its files one by one.
    fn ends(&self, state: &State, one: usize, next: &mut Vec<State>) {
        let process = state[one];
        let has = |device: &usize| {
            process.token & (1 << device) != 0 || process.locks[*device] != [0; LEVELS]
        };
        let left = (0..DEVICES).filter(has).count();
        if !matches!(process.phase, Phase::NotBegun | Phase::Ends) {
            let ended = with(*state, one, |process| {
                process.phase = Phase::Ends;
                process.seen = 0;
            });
            match left {
                0 | 1 => next.push(unlocked(ended, one, 0b11)),
                _ => next.push(ended),
            }
        } else if process.phase == Phase::Ends {
            let devices = (0..DEVICES).filter(has);
            next.extend(devices.map(|device| unlocked(*state, one, 1 << device)));
        }
    }

    /// What may not be.
    fn fault(&self, state: &State, is_last: bool) -> Option<&'static str> {
        let count = self.launches.len();
        for device in 0..DEVICES {
            let held = |one| self.held(state, one, device);
            for one in 0..count {
                for other in (0..count).filter(|other| *other != one) {
                    let is_inside = self.ancestors(one).any(|around| around == other);
                    let is_around = self.ancestors(other).any(|around| around == one);
                    if !is_inside && !is_around && held(one) & held(other) != 0 {
                        return Some("two claims have the same memory");
                    }
                    let lasts = state[other].phase == Phase::Holds;
                    if is_inside && lasts && held(one) & !held(other) != 0 {
                        return Some("a nested claim has more than the one around it");
                    }
                }
            }
        }
        let shares = (0..count).filter(|one| self.share(state, *one).is_some());
        let shares = shares.fold(0, |all, one| all | self.held(state, one, 0));
        if shares.count_ones() > self.limit {
            return Some("the shares are more than there is");
        }
        let is_locked = |process: &Process| process.token != 0;
        (is_last && state.iter().any(is_locked)).then_some("a lock is left")
    }

    /// Explores all states; how many there are, or what is wrong with one. Which claims were made
    /// at all is told too, a bit each.
    fn explore(&self) -> Result<(usize, u32), &'static str> {
        let first = [FIRST; LAUNCHES];
        let mut seen = HashSet::from([first]);
        let mut open = vec![first];
        let mut made = 0;
        while let Some(state) = open.pop() {
            let mut next = Vec::new();
            for one in 0..self.launches.len() {
                next.extend(self.step(&state, one));
                self.ends(&state, one, &mut next);
                made |= u32::from(state[one].has_held) << one;
            }
            if let Some(fault) = self.fault(&state, next.is_empty()) {
                return Err(fault);
            }
            for state in next {
                if seen.insert(state) {
                    open.push(state);
                }
            }
        }
        Ok((seen.len(), made))
    }
}

/// The machines, each with what its launches ask for and the limit of its shares.
fn machines(rules: Rules) -> Vec<(&'static str, Machine)> {
    let machine = |launches: &[_], limit| Machine::new(launches, limit, rules);
    let whole = Wish::Whole(1);
    let share = Wish::Share;
    vec![
        (
            "shares of more than there is",
            machine(&[(None, share(1)), (None, share(2)), (None, share(1))], 3),
        ),
        (
            "shares, and a whole device",
            machine(&[(None, share(1)), (None, share(2)), (None, whole)], 3),
        ),
        (
            "shares of a device whose memory is partly in use",
            machine(&[(None, share(1)), (None, share(1)), (None, share(1))], 2),
        ),
        (
            "siblings inside a whole device, and one outside",
            machine(
                &[
                    (None, whole),
                    (Some(0), whole),
                    (Some(0), share(2)),
                    (None, whole),
                ],
                3,
            ),
        ),
        (
            "three levels, and a sibling of the middle one",
            machine(
                &[
                    (None, whole),
                    (Some(0), whole),
                    (Some(1), whole),
                    (Some(0), whole),
                ],
                3,
            ),
        ),
        (
            "three levels, and one outside",
            machine(
                &[
                    (None, whole),
                    (Some(0), whole),
                    (Some(1), whole),
                    (None, whole),
                ],
                3,
            ),
        ),
        (
            "a share, two inside it, and a share outside",
            machine(
                &[
                    (None, share(2)),
                    (Some(0), share(1)),
                    (Some(0), whole),
                    (None, share(2)),
                ],
                3,
            ),
        ),
        (
            "a share, one inside it, and a whole device outside",
            machine(&[(None, share(2)), (Some(0), whole), (None, whole)], 3),
        ),
        (
            "two devices, one of them inside, and one outside",
            machine(
                &[
                    (None, Wish::Whole(3)),
                    (Some(0), Wish::Whole(2)),
                    (None, Wish::Whole(2)),
                ],
                3,
            ),
        ),
    ]
}

#[test]
fn no_run_gives_memory_to_two_claims_that_are_not_inside_each_other() {
    for (name, machine) in machines(Rules::All) {
        let (states, made) = machine
            .explore()
            .unwrap_or_else(|fault| panic!("{name}: {fault}"));
        println!("{name}: {states} states");
        let all = (1 << machine.launches.len()) - 1;
        assert_eq!(made, all, "{name}: not every launch gets anything");
    }
}

#[test]
#[ignore = "takes half a minute: cargo test --release --test shares_model -- --ignored --nocapture"]
fn no_run_of_more_launches_does() {
    let (whole, share) = (Wish::Whole(1), Wish::Share);
    for launches in [
        [
            (None, share(1)),
            (None, share(2)),
            (None, share(1)),
            (None, whole),
        ],
        [
            (None, share(2)),
            (Some(0), share(1)),
            (Some(0), share(1)),
            (None, share(1)),
        ],
        [
            (None, share(3)),
            (Some(0), share(2)),
            (Some(1), share(1)),
            (Some(1), whole),
        ],
    ] {
        let machine = Machine::new(&launches, 3, Rules::All);
        let found = machine.explore();
        println!("{launches:?}: {found:?}");
        assert!(found.is_ok());
    }
}

#[test]
fn without_any_one_of_its_rules_it_does() {
    const SAME: &str = "two claims have the same memory";
    for (rules, fault) in [
        (Rules::NoNestedLook, SAME),
        (Rules::NestedLookFirst, SAME),
        (Rules::NoParentLook, SAME),
        (Rules::ParentLookFirst, SAME),
        (Rules::ParentOnFirstDevice, SAME),
        (Rules::NoSecondRead, "the shares are more than there is"),
        (Rules::NoSecondRead, SAME),
        (Rules::WholeIsOneByte, SAME),
    ] {
        let machines = machines(rules);
        let mut found = machines.iter().map(|(_, machine)| machine.explore());
        assert!(found.any(|found| found == Err(fault)), "{rules:?}");
    }
}
