//! Every threshold and every time constant of a decision and of a wait, in one table.
//!
//! # At most 50 ms from a process's exit to the answer
//! A process's exit wakes a waiter at once. The driver may list the process for some more
//! milliseconds, so the GPU is read again after each of [`RECHECKS_MS`]. A waiter behind others
//! gives them a head start of at most [`MAX_WAKEUP_JITTER`], which leaves 47 ms for the driver
//! calls and for the claim.

use crate::fact::Fact;
use std::time::Duration;

/// One mebibyte, in bytes.
pub(crate) const MIB: u64 = 1 << 20;
/// One gibibyte, in bytes.
pub(crate) const GIB: u64 = 1 << 30;

// What counts as free.

/// Where the process list is complete: memory that no process explains belongs to a process that is
/// hidden or about to end where it is more than this, and more than [`UNEXPLAINED_PERCENT`] of all.
pub(crate) const UNEXPLAINED_MEMORY: u64 = GIB;
/// See [`UNEXPLAINED_MEMORY`]: in percent of the GPU's memory.
pub(crate) const UNEXPLAINED_PERCENT: u128 = 5;
/// Where the process list proves nothing: how much memory an idle GPU may hold.
pub(crate) const IDLE_MEMORY: u64 = 256 * MIB;
/// Where the process list proves nothing: how busy an idle GPU may seem, in percent.
pub(crate) const IDLE_UTILIZATION: u32 = 5;

/// A CUDA context alone takes more than this: where less is used there is none, however busy the
/// GPU seems.
pub(crate) const LESS_THAN_A_CONTEXT: u64 = 64 * MIB;
/// How much memory the desktop of Windows may hold beside a free GPU in WSL2: this, or
/// [`WINDOWS_DESKTOP_PERCENT`] of all.
pub(crate) const WINDOWS_DESKTOP_MEMORY: u64 = GIB;
/// See [`WINDOWS_DESKTOP_MEMORY`]: in percent of the GPU's memory.
pub(crate) const WINDOWS_DESKTOP_PERCENT: u128 = 25;
/// How much memory a graphics process may hold of which the driver does not tell.
pub(crate) const GRAPHICS_MEMORY: u64 = 4 * GIB;
/// How much memory a program of a desktop may hold that the driver lists as computing because it
/// draws by Vulkan.
pub(crate) const DESKTOP_PROGRAM_MEMORY: u64 = 512 * MIB;
/// Where utilization alone keeps a GPU from being free, it is read again after this: it is an
/// average over up to a second, and false while the driver initializes the GPU.
pub(crate) const UTILIZATION_AGAIN: Duration = Duration::from_secs(1);

/// Who has a GPU open that no listed process explains is searched for at most this often: it takes a
/// look at all processes.
pub(crate) const OPENERS_AGAIN: Duration = Duration::from_secs(1);

/// Whether the verdict on a GPU needs to know what its graphics processes hold: its used memory, in
/// bytes, is beyond what an idle GPU holds.
pub(crate) fn memory_needs_explaining(used: Fact<u64>) -> bool {
    match used {
        Fact::Value(used) => used > IDLE_MEMORY,
        Fact::NotApplicable => false,
        Fact::Unknown => true,
    }
}

// The order.

/// A COMMAND that fails within this time of its start tells of its GPU, not of its work.
pub(crate) const EARLY_FAILURE: Duration = Duration::from_secs(10);
/// How many COMMANDs in a row have to fail so on a GPU before it is given last.
pub(crate) const SUSPICIOUS_FAILURES: u32 = 2;
/// For how long a GPU is given last after the last of these failures.
pub(crate) const SUSPICION: Duration = Duration::from_secs(600);

/// For how long a launch believes what an earlier one was told of the links between GPUs: as they
/// were while the machine booted, they may be incomplete.
pub(crate) const LINKS_LAST: Duration = Duration::from_secs(3600);

// Waiting.

/// The default of how often a waiter looks at the GPUs though nothing woke it.
pub(crate) const INTERVAL: Duration = Duration::from_secs(30);
/// After a process's exit, the GPU is read at once and again after each of these, in milliseconds:
/// the driver's list may lag behind, and to tear down a large context can take seconds.
pub(crate) const RECHECKS_MS: [u64; 11] = [1, 5, 10, 20, 35, 48, 100, 200, 400, 1000, 3000];
/// After the last of [`RECHECKS_MS`] the pauses double, up to the interval.
pub(crate) const RECHECK_GROWTH: u32 = 2;
/// How often a GPU is read on which the processes are hidden (in a container): no exit tells that
/// it has become free.
pub(crate) const HIDDEN_POLL_INTERVAL: Duration = Duration::from_secs(5);
/// How often a process is asked for where the kernel gives no descriptor of it.
pub(crate) const EXIT_POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Of how many processes on a GPU the oldest one is looked for.
pub(crate) const OLDEST_OF: usize = 64;
/// A recheck that is due within this time follows on the look that is being made.
pub(crate) const IMMINENT: Duration = Duration::from_millis(30);
/// How long a driver is left alone that has failed while a launch waits; each further failure
/// doubles it, up to the interval.
pub(crate) const FIRST_RETRY: Duration = Duration::from_secs(1);
/// How often, and how soon again, a first look is taken at claims that are about to end, or that
/// have just begun and are not told of yet.
pub(crate) const SETTLING_LOOKS: u32 = 25;
/// See [`SETTLING_LOOKS`].
pub(crate) const SETTLING_PAUSE: Duration = Duration::from_millis(2);
/// Where the GPUs of a user are limited: how long a launch waits for the others of its user that
/// count and claim, and for the claims whose owner is not published yet.
pub(crate) const TURN_PATIENCE: Duration = Duration::from_secs(1);
/// How soon it looks again meanwhile.
pub(crate) const TURN_PAUSE: Duration = Duration::from_millis(5);
/// How long an earlier waiter may leave a free GPU unclaimed before it is passed over.
pub(crate) const HANDOFF_GRACE: Duration = Duration::from_millis(250);
/// How long a request waits before it gathers, unless it says otherwise: GPUs that it can use are
/// kept for it from then on, until it has enough.
pub(crate) const PATIENCE: Duration = Duration::from_secs(300);
/// How long the request that gathers may leave enough GPUs unclaimed before it is passed over.
pub(crate) const GATHERER_GRACE: Duration = Duration::from_secs(5);
/// How often a request from which GPUs are kept looks whether they still are: nothing tells of a
/// process that is stopped.
pub(crate) const GATHERER_POLL_INTERVAL: Duration = Duration::from_secs(5);
/// How often at most a waiter counts anew those ahead of it, to show its place.
pub(crate) const PLACE_PERIOD: Duration = Duration::from_secs(1);
/// How many waiters that would take the same devices watch for them; those behind these sleep until
/// one of them leaves. More than one, for one may be stopped or killed just when a device becomes
/// free.
pub(crate) const LOOKOUTS: usize = 3;
/// The longest head start that a waiter gives to those before it in the queue.
#[cfg(test)]
const MAX_WAKEUP_JITTER: Duration = Duration::from_millis(3);

/// Delays a wake-up by 1 ms for each earlier waiter that would take the same devices, so that they
/// look first.
pub(crate) fn wakeup_jitter(ahead: usize) -> Duration {
    Duration::from_millis(ahead.min(LOOKOUTS) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_many_waiters_still_answers_within_50_ms() {
        assert_eq!(wakeup_jitter(0), Duration::ZERO);
        assert_eq!(wakeup_jitter(usize::MAX), MAX_WAKEUP_JITTER);
        assert!(MAX_WAKEUP_JITTER + Duration::from_millis(10) <= Duration::from_millis(50));
    }

    #[test]
    fn the_times_are_those_that_the_documentation_names() {
        let named = [
            (INTERVAL, 30),
            (PATIENCE, 5 * 60),
            (SUSPICION, 10 * 60),
            (EARLY_FAILURE, 10),
            (LINKS_LAST, 60 * 60),
            (UTILIZATION_AGAIN, 1),
            (FIRST_RETRY, 1),
        ];
        for (time, seconds) in named {
            assert_eq!(time, Duration::from_secs(seconds));
        }
        assert_eq!(SUSPICIOUS_FAILURES, 2);
    }

    #[test]
    fn a_gpu_is_read_again_within_50_ms_of_an_exit() {
        let within = RECHECKS_MS.iter().filter(|after| **after < 50).count();
        assert!(within >= 5 && RECHECKS_MS.is_sorted());
    }
}
