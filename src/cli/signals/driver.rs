//! A driver that does not answer: a timer that ends the process, or says what is waited for.
//!
//! # Design
//! The call that hangs is on the main line of the program, so the timer's signal does what is left
//! to do.

use super::{IGNORED_BEFORE, QUIET, bit, clear_line, exit_guarded, on_signal, write};
use crate::cli::exit_code::ExitCode;
use std::sync::atomic::{AtomicPtr, AtomicU8, Ordering};
use std::time::Duration;

/// What the next SIGALRM means: a [`Timer`].
static TIMER: AtomicU8 = AtomicU8::new(Timer::Off as u8);
/// What to say if the driver does not answer in time.
static TIMEOUT_TEXT: AtomicPtr<String> = AtomicPtr::new(std::ptr::null_mut());

/// What the timer's next signal means.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Timer {
    /// Nothing: another process sent it.
    Off,
    /// The driver has been silent for a while.
    Silence,
    /// The same, and the time limit comes after it.
    SilenceThenLimit,
    /// The time limit has come.
    Limit,
}

/// How long the driver may take before a line says so.
const SILENCE: Duration = Duration::from_secs(5);
const SILENCE_TEXT: &[u8] = b"autocvd: the NVIDIA driver has not answered for 5 s; still waiting \
                              for it (see dmesg; Ctrl-C ends this)\n";

/// Sets the text that is written if the driver does not answer within its limit, for the rest of
/// the run.
pub(in crate::cli) fn set_timeout_text(text: String) {
    let before = TIMEOUT_TEXT.swap(Box::into_raw(Box::new(text)), Ordering::AcqRel);
    debug_assert!(
        before.is_null(),
        "a handler may read the text that would be dropped"
    );
}

/// From now on the driver is asked; `limit` is how long it may take.
pub(in crate::cli) fn watch_driver(limit: Option<Duration>) {
    let (meaning, first, then) = match limit {
        None => (Timer::Silence, SILENCE, Duration::ZERO),
        Some(limit) if limit <= SILENCE => (
            Timer::Limit,
            limit.max(Duration::from_millis(1)),
            Duration::ZERO,
        ),
        Some(limit) => (Timer::SilenceThenLimit, SILENCE, limit - SILENCE),
    };
    TIMER.store(meaning as u8, Ordering::Release);
    set_timer(first, then);
}

/// The driver has answered.
pub(in crate::cli) fn driver_answered() {
    set_timer(Duration::ZERO, Duration::ZERO);
    TIMER.store(Timer::Off as u8, Ordering::Release);
}

/// Sets the timer to go off after `first`, and then every `then`, if that is not zero.
fn set_timer(first: Duration, then: Duration) {
    let time = |duration: Duration| libc::timeval {
        tv_sec: libc::time_t::try_from(duration.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_usec: libc::suseconds_t::from(duration.subsec_micros() as i32),
    };
    let timer = libc::itimerval {
        it_interval: time(then),
        it_value: time(first),
    };
    // SAFETY: `timer` is a valid timer, and null does not ask for the old one.
    unsafe { libc::setitimer(libc::ITIMER_REAL, &timer, std::ptr::null_mut()) };
}

/// The driver has been silent for too long, unless another process sent the signal.
pub(super) extern "C" fn on_alarm(signal: i32) {
    let is = |timer: Timer| TIMER.load(Ordering::Acquire) == timer as u8;
    if is(Timer::Silence) || is(Timer::SilenceThenLimit) {
        let next = if is(Timer::Silence) {
            Timer::Off
        } else {
            Timer::Limit
        };
        TIMER.store(next as u8, Ordering::Release);
        if !QUIET.load(Ordering::Relaxed) {
            write(2, SILENCE_TEXT);
        }
    } else if is(Timer::Limit) {
        autocvd::program::remove_files();
        clear_line();
        // SAFETY: the string is leaked, so it lives as long as the process.
        if let Some(text) = unsafe { TIMEOUT_TEXT.load(Ordering::Acquire).as_ref() } {
            write(2, text.as_bytes());
        }
        exit_guarded(ExitCode::TimedOut.number());
    } else if IGNORED_BEFORE.load(Ordering::Relaxed) & bit(signal) == 0 {
        on_signal(signal);
    }
}
