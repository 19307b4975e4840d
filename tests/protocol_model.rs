//! The protocol of claims as a model, all of whose runs are explored: shells that ask with `-s` for
//! the only GPU and run two programs, their launches, judges, the queue, a cleaner that removes the
//! lock file, and crashes of launches, judges and shells at every step. Two programs whose judges
//! live never run at the same time, and no run ends with a launch that sleeps or with a lock that
//! is held. Each rule that is taken away breaks it.

use std::collections::HashSet;

/// How many shells there are at most.
const SHELLS: usize = 3;
/// How often the lock file is removed at most.
const REMOVALS: u8 = 2;

/// What of the protocol holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rules {
    /// As it is.
    All,
    /// A launch ends without a judge: who looks decides by whether a program runs.
    ViewersDecide,
    /// The lock goes with the launch that took it.
    NoJudge,
    /// A lock on a removed file is as good as any.
    NoNameCheck,
    /// A launch locks a new file before the judge of the removed one can.
    NoSettling,
    /// A launch looks first, and takes its place in the queue then, without another look.
    LooksBeforeQueue,
    /// A judge calls those who wait, and unlocks then.
    CallsBeforeUnlock,
}

/// A lock file: they are numbered in the order in which they are made.
type File = u8;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Launch {
    Begins,
    /// It is in the queue and is going to look.
    Looks,
    Opened(File),
    /// It holds the lock itself.
    Locked(File),
    /// It does, and the file still has its name.
    Checked(File),
    /// Its judge holds the lock; nothing is printed yet.
    Kept,
    /// It has found the lock taken, and is about to sleep.
    Refused,
    /// It waits to be called.
    Sleeps,
    Printed,
    Crashed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Judge {
    None,
    Holds(File),
    /// It has unlocked and has called nobody yet, or the other way round.
    Half(File),
    Ended,
    Killed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Shell {
    lives: bool,
    runs: bool,
    programs: u8,
    launch: Launch,
    /// Whether its launch has been called since it looked.
    called: bool,
    judge: Judge,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct State {
    /// The file that has the name now.
    file: File,
    /// Who has locked each file.
    locks: [Option<u8>; REMOVALS as usize + 1],
    shells: [Shell; SHELLS],
}

impl State {
    fn first(shells: usize) -> Self {
        let shell = |number| Shell {
            lives: number < shells,
            runs: false,
            programs: 2,
            launch: if number < shells {
                Launch::Begins
            } else {
                Launch::Crashed
            },
            called: false,
            judge: Judge::None,
        };
        Self {
            file: 0,
            locks: [None; REMOVALS as usize + 1],
            shells: std::array::from_fn(shell),
        }
    }

    fn with(mut self, shell: usize, change: impl FnOnce(&mut Shell)) -> Self {
        change(&mut self.shells[shell]);
        self
    }

    fn launch(self, shell: usize, launch: Launch) -> Self {
        self.with(shell, |shell| shell.launch = launch)
    }

    fn judge(self, shell: usize, judge: Judge) -> Self {
        self.with(shell, |shell| shell.judge = judge)
    }

    fn unlocked(mut self, file: File) -> Self {
        self.locks[usize::from(file)] = None;
        self
    }

    fn locked(mut self, file: File, by: usize) -> Self {
        self.locks[usize::from(file)] = Some(by as u8);
        self
    }

    /// Who sleeps is woken, and who is about to sleep does not.
    fn called(mut self) -> Self {
        for shell in &mut self.shells {
            let is_queued = !matches!(
                shell.launch,
                Launch::Begins | Launch::Printed | Launch::Crashed
            );
            shell.called |= is_queued;
        }
        self
    }

    /// Whether a removed file is locked that its judge has not exchanged for the new one yet.
    fn unsettled(&self) -> bool {
        self.locks[..usize::from(self.file)]
            .iter()
            .any(Option::is_some)
    }

    fn is_free(&self, file: File, rules: Rules) -> bool {
        match self.locks[usize::from(file)] {
            None => true,
            // The lease of a shell that has run a program, and runs none.
            Some(other) if rules == Rules::ViewersDecide => {
                let other = self.shells[usize::from(other)];
                !other.runs && other.launch == Launch::Printed && other.programs < 2
            }
            Some(_) => false,
        }
    }

    /// What a shell, its launch and its judge do next, if nobody crashes.
    fn steps(self, one: usize, rules: Rules, next: &mut Vec<Self>) {
        let shell = self.shells[one];
        match shell.launch {
            Launch::Begins => next.push(self.launch(one, Launch::Looks)),
            Launch::Looks => {
                let looks = self.launch(one, Launch::Opened(self.file));
                next.push(looks.with(one, |shell| shell.called = false));
            }
            Launch::Opened(file) => {
                if self.is_free(file, rules) {
                    if file < self.file || rules == Rules::NoSettling || !self.unsettled() {
                        next.push(self.locked(file, one).launch(one, Launch::Locked(file)));
                    }
                } else {
                    next.push(self.launch(one, Launch::Refused));
                }
            }
            Launch::Refused => {
                let sleeps = self.launch(one, Launch::Sleeps);
                next.push(match rules {
                    // Who has called meanwhile has not found it in the queue.
                    Rules::LooksBeforeQueue => sleeps.with(one, |shell| shell.called = false),
                    _ => sleeps,
                });
            }
            Launch::Locked(file) if file == self.file || rules == Rules::NoNameCheck => {
                next.push(self.launch(one, Launch::Checked(file)));
            }
            Launch::Locked(file) => {
                next.push(self.unlocked(file).called().launch(one, Launch::Looks));
            }
            Launch::Checked(file) => next.push(match rules {
                Rules::NoJudge => self.unlocked(file).called().launch(one, Launch::Printed),
                _ => self
                    .judge(one, Judge::Holds(file))
                    .launch(one, Launch::Kept),
            }),
            Launch::Kept => next.push(self.launch(one, Launch::Printed)),
            Launch::Sleeps if shell.called => next.push(self.launch(one, Launch::Looks)),
            Launch::Sleeps => {}
            Launch::Printed if shell.lives && shell.runs => {
                next.push(self.with(one, |shell| shell.runs = false));
            }
            Launch::Printed if shell.lives && shell.programs > 0 => {
                next.push(self.with(one, |shell| {
                    shell.programs -= 1;
                    shell.runs = true;
                }));
            }
            // A program that has outlived its shell ends too.
            Launch::Printed if shell.runs => next.push(self.with(one, |shell| shell.runs = false)),
            Launch::Printed | Launch::Crashed if shell.lives => {
                next.push(self.with(one, |shell| shell.lives = false));
            }
            Launch::Printed | Launch::Crashed => {}
        }
        match shell.judge {
            Judge::Holds(file) if !shell.lives && !shell.runs => next.push(match rules {
                Rules::CallsBeforeUnlock => self.called().judge(one, Judge::Half(file)),
                _ => self.unlocked(file).judge(one, Judge::Half(file)),
            }),
            Judge::Holds(file)
                if file < self.file && self.locks[usize::from(self.file)].is_none() =>
            {
                let moved = self.unlocked(file).locked(self.file, one);
                next.push(moved.judge(one, Judge::Holds(self.file)));
            }
            Judge::Half(file) => next.push(match rules {
                Rules::CallsBeforeUnlock => self.unlocked(file).judge(one, Judge::Ended),
                _ => self.called().judge(one, Judge::Ended),
            }),
            Judge::Holds(_) | Judge::None | Judge::Ended | Judge::Killed => {}
        }
    }

    /// What is killed next, and the cleaner. The kernel drops the locks of what is killed, and
    /// tells those who wait for it.
    fn crashes(self, one: usize, next: &mut Vec<Self>) {
        let shell = self.shells[one];
        match shell.launch {
            Launch::Locked(file) | Launch::Checked(file) => {
                next.push(self.unlocked(file).called().launch(one, Launch::Crashed));
            }
            Launch::Printed | Launch::Crashed => {}
            _ => next.push(self.launch(one, Launch::Crashed)),
        }
        match shell.judge {
            Judge::Holds(file) => {
                next.push(self.unlocked(file).called().judge(one, Judge::Killed));
            }
            Judge::Half(file) => {
                let killed = self.called().judge(one, Judge::Killed);
                // It may be another one's by now.
                let is_its = self.locks[usize::from(file)] == Some(one as u8);
                next.push(if is_its {
                    killed.unlocked(file)
                } else {
                    killed
                });
            }
            _ => {}
        }
        if shell.lives && shell.launch == Launch::Printed {
            next.push(self.with(one, |shell| shell.lives = false));
        }
    }

    /// What may not be.
    fn fault(&self, is_last: bool) -> Option<&'static str> {
        // Who kills a judge ends its claim.
        let counts = |shell: &&Shell| shell.runs && shell.judge != Judge::Killed;
        if self.shells.iter().filter(counts).count() > 1 {
            return Some("two programs run");
        }
        let sleeps = |shell: &Shell| shell.launch == Launch::Sleeps;
        if is_last && self.shells.iter().any(sleeps) {
            return Some("a launch sleeps for ever");
        }
        (is_last && self.locks.iter().any(Option::is_some)).then_some("a lock is left")
    }
}

/// Explores all states; how many there are, or what is wrong with one.
fn explore(shells: usize, removals: u8, rules: Rules) -> Result<usize, &'static str> {
    let first = State::first(shells);
    let mut seen = HashSet::from([first]);
    let mut open = vec![first];
    while let Some(state) = open.pop() {
        let mut next = Vec::new();
        (0..SHELLS).for_each(|one| state.steps(one, rules, &mut next));
        if let Some(fault) = state.fault(next.is_empty()) {
            return Err(fault);
        }
        (0..SHELLS).for_each(|one| state.crashes(one, &mut next));
        if state.file < removals {
            next.push(State {
                file: state.file + 1,
                ..state
            });
        }
        for state in next {
            if seen.insert(state) {
                open.push(state);
            }
        }
    }
    Ok(seen.len())
}

#[test]
fn no_run_of_the_protocol_shares_a_gpu_or_sleeps_for_ever() {
    for (shells, removals) in [(2, 2), (3, 0)] {
        let states = explore(shells, removals, Rules::All).expect("no state may be wrong");
        println!("{shells} shells, {removals} removals: {states} states");
        assert!(states > 1000, "{states} states");
    }
}

#[test]
#[ignore = "takes a minute: cargo test --release --test protocol_model -- --ignored --nocapture"]
fn no_run_of_three_shells_and_two_removals_does() {
    let states = explore(SHELLS, REMOVALS, Rules::All).expect("no state may be wrong");
    println!("{states} states");
}

#[test]
fn without_any_one_of_its_rules_the_protocol_breaks() {
    for (rules, fault) in [
        (Rules::ViewersDecide, "two programs run"),
        (Rules::NoJudge, "two programs run"),
        (Rules::NoNameCheck, "two programs run"),
        (Rules::NoSettling, "two programs run"),
        (Rules::LooksBeforeQueue, "a launch sleeps for ever"),
        (Rules::CallsBeforeUnlock, "a launch sleeps for ever"),
    ] {
        assert_eq!(explore(2, 2, rules), Err(fault), "{rules:?}");
    }
}
