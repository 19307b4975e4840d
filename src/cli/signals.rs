//! Signals, and a driver that does not answer.
//!
//! # Design
//! A call into the driver can hang, so nothing here waits for the main line of the program: the
//! handlers write what has to be written and end the process, with system calls alone. What they
//! need is made ready beforehand. A signal that was ignored when the program started stays
//! ignored, as after `nohup`; only the signals of crashes and of the timer are always handled.

use super::exit_code::ExitCode;
use super::guard::{self, Guard};
use super::standard_output;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

/// Whether an unfinished line on the terminal must be erased before another one is written.
static LINE_OPEN: AtomicBool = AtomicBool::new(false);
/// Whether nothing but errors may be written to standard error.
static QUIET: AtomicBool = AtomicBool::new(false);
/// Whether a signal that ends the program is reported.
static REPORT_SIGNAL: AtomicBool = AtomicBool::new(true);
/// Whether the end of the process is in order.
static EXIT_EXPECTED: AtomicBool = AtomicBool::new(false);
/// Signals that this program ignores and COMMAND shall not, one a bit.
static IGNORED_HERE: AtomicU64 = AtomicU64::new(0);
/// Signals that were ignored when the program started, and that it handles all the same.
static IGNORED_BEFORE: AtomicU64 = AtomicU64::new(0);
/// Signals that were blocked when the program started, and that it has unblocked.
static BLOCKED_BEFORE: AtomicU64 = AtomicU64::new(0);
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

/// From now on the end by a signal is not reported: nothing was to be started.
pub(super) fn end_silently() {
    REPORT_SIGNAL.store(false, Ordering::Relaxed);
}

pub(super) fn be_quiet() {
    QUIET.store(true, Ordering::Relaxed);
}

/// Says whether an unfinished line stands on the terminal.
pub(super) fn set_line_open(open: bool) {
    LINE_OPEN.store(open, Ordering::Relaxed);
}

/// The terminal's settings before the program changed them.
static TERMINAL: AtomicPtr<libc::termios> = AtomicPtr::new(std::ptr::null_mut());

/// From now on every end of the program, and every stop, gives standard input's terminal back as it
/// is now.
pub(super) fn restore_terminal_at_end() {
    // SAFETY: a zeroed termios is a valid one, and it is written to before it is used.
    unsafe {
        let mut now: libc::termios = std::mem::zeroed();
        if libc::tcgetattr(0, &mut now) == 0 {
            TERMINAL.store(Box::into_raw(Box::new(now)), Ordering::Release);
        }
    }
    set_action(libc::SIGTSTP, on_stop as *const () as usize);
}

/// Does so. Async-signal-safe.
pub(super) fn restore_terminal() {
    // SAFETY: the settings are leaked, so they live as long as the process.
    unsafe {
        if let Some(before) = TERMINAL.load(Ordering::Acquire).as_ref() {
            libc::tcsetattr(0, libc::TCSANOW, before);
        }
    }
}

extern "C" fn on_stop(_: i32) {
    restore_terminal();
    clear_line();
    // SAFETY: raise may be called in a handler; nothing can handle this signal.
    unsafe { libc::raise(libc::SIGSTOP) };
}

/// Erases such a line.
pub(super) fn clear_line() {
    if LINE_OPEN.swap(false, Ordering::Relaxed) {
        write(2, b"\r\x1b[K");
    }
}

/// Signals that another process sends to end this one, or the kernel because of a limit.
const ENDING: [i32; 13] = [
    libc::SIGINT,
    libc::SIGTERM,
    libc::SIGHUP,
    libc::SIGPIPE,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGXCPU,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGIO,
    libc::SIGPWR,
    libc::SIGSTKFLT,
];
/// Signals of a crash, such as one inside the driver's library.
const CRASHES: [i32; 7] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGILL,
    libc::SIGFPE,
    libc::SIGABRT,
    libc::SIGSYS,
    libc::SIGTRAP,
];
/// Signals that stop a process: with ^Z, or because it is in the background of its terminal.
const STOPPING: [i32; 3] = [libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];

/// Room for the handlers where a crash has used up the stack.
const STACK_BYTES: usize = 16 << 10;
static mut STACK: [u8; STACK_BYTES] = [0; STACK_BYTES];

/// Makes everything that ends a process end this one in order: signals, a crash, and a library
/// that calls exit.
pub(super) fn install(guard: Guard) {
    let stack = libc::stack_t {
        ss_sp: (&raw mut STACK).cast(),
        ss_flags: 0,
        ss_size: STACK_BYTES,
    };
    // SAFETY: the kernel alone uses the memory, which lives as long as the process, and
    // `unexpected_exit` may be called at exit.
    unsafe {
        libc::sigaltstack(&stack, std::ptr::null_mut());
        libc::atexit(unexpected_exit);
    }
    for signal in ENDING
        .into_iter()
        .chain(libc::SIGRTMIN()..=libc::SIGRTMAX())
    {
        if set_action(signal, on_signal as *const () as usize) == libc::SIG_IGN {
            set_action(signal, libc::SIG_IGN);
        }
    }
    for signal in CRASHES {
        if set_action(signal, on_crash as *const () as usize) == libc::SIG_IGN {
            IGNORED_BEFORE.fetch_or(bit(signal), Ordering::Relaxed);
        }
    }
    if set_action(libc::SIGALRM, on_alarm as *const () as usize) == libc::SIG_IGN {
        IGNORED_BEFORE.fetch_or(bit(libc::SIGALRM), Ordering::Relaxed);
    }
    unblock();
    // A file that may not grow (`ulimit -f 0`) costs the claim, not the job.
    ignore_here(libc::SIGXFSZ);
    if guard.is_evaluated() {
        // A shell whose command substitution stops hangs, or takes the empty output for the answer.
        STOPPING.into_iter().for_each(ignore_here);
    }
}

fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// Signals in a mask, as their numbers.
fn signals_in(mask: u64) -> impl Iterator<Item = i32> {
    (1..=64).filter(move |signal| mask & bit(*signal) != 0)
}

/// Ignores a signal until [`restore`].
fn ignore_here(signal: i32) {
    if set_action(signal, libc::SIG_IGN) != libc::SIG_IGN {
        IGNORED_HERE.fetch_or(bit(signal), Ordering::Relaxed);
    }
}

/// Lets the signals of crashes and of the timer through, whatever the parent process blocked.
fn unblock() {
    // SAFETY: the sets are made before they are used, and the calls change this thread's mask
    // alone.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in CRASHES.into_iter().chain([libc::SIGALRM]) {
            libc::sigaddset(&mut set, signal);
        }
        libc::sigprocmask(libc::SIG_UNBLOCK, &set, &mut before);
        for signal in CRASHES.into_iter().chain([libc::SIGALRM]) {
            if libc::sigismember(&before, signal) == 1 {
                BLOCKED_BEFORE.fetch_or(bit(signal), Ordering::Relaxed);
            }
        }
    }
}

/// Makes signals be to this process what they were when it started, apart from those whose
/// handlers exec resets by itself. Async-signal-safe.
pub(super) fn restore() {
    for signal in signals_in(IGNORED_HERE.load(Ordering::Relaxed)) {
        set_action(signal, libc::SIG_DFL);
    }
    for signal in signals_in(IGNORED_BEFORE.load(Ordering::Relaxed)) {
        set_action(signal, libc::SIG_IGN);
    }
    let blocked = BLOCKED_BEFORE.load(Ordering::Relaxed);
    if blocked != 0 {
        // SAFETY: the set is made before it is used.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            for signal in signals_in(blocked) {
                libc::sigaddset(&mut set, signal);
            }
            libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        }
    }
}

/// Whether [`restore`] has anything to do.
pub(super) fn must_be_restored() -> bool {
    [&IGNORED_HERE, &IGNORED_BEFORE, &BLOCKED_BEFORE]
        .iter()
        .any(|mask| mask.load(Ordering::Relaxed) != 0)
}

/// From now on the process may exit.
pub(super) fn expect_exit() {
    EXIT_EXPECTED.store(true, Ordering::Relaxed);
}

extern "C" fn unexpected_exit() {
    if !EXIT_EXPECTED.load(Ordering::Relaxed) {
        autocvd::remove_files();
        clear_line();
        write(
            2,
            b"autocvd: the NVIDIA driver's library ended this process; see dmesg, and try --probe \
              nvidia-smi\n",
        );
        exit_guarded(ExitCode::Unexpected.number());
    }
}

/// Whether the signal was ignored when the program started, and so still is.
pub(super) fn is_ignored(signal: i32) -> bool {
    // SAFETY: a zeroed sigaction is a valid one, and null asks only what is set.
    unsafe {
        let mut now: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &mut now);
        now.sa_sigaction == libc::SIG_IGN
    }
}

/// Sets a handler, or what stands for one, and returns the one before it.
pub(super) fn set_action(signal: i32, handler: usize) -> usize {
    // SAFETY: a zeroed sigaction is a valid one. The handlers are async-signal-safe: they make
    // system calls and read atomics.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        let mut before: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler;
        // The driver's own system calls go on after the line that says how long they take.
        action.sa_flags = libc::SA_RESTART | libc::SA_ONSTACK;
        // One at a time: the frames of several would not fit onto their stack.
        libc::sigfillset(&mut action.sa_mask);
        libc::sigaction(signal, &action, &mut before);
        before.sa_sigaction
    }
}

extern "C" fn on_signal(signal: i32) {
    autocvd::remove_files();
    restore_terminal();
    clear_line();
    if REPORT_SIGNAL.load(Ordering::Relaxed) {
        let name: &[u8] = match signal {
            libc::SIGINT => b"interrupted (SIGINT)",
            libc::SIGTERM => b"terminated (SIGTERM)",
            libc::SIGHUP => b"hung up (SIGHUP)",
            libc::SIGQUIT => b"ended (SIGQUIT)",
            libc::SIGUSR1 => b"ended (SIGUSR1)",
            libc::SIGUSR2 => b"ended (SIGUSR2)",
            libc::SIGALRM => b"ended (SIGALRM)",
            libc::SIGXCPU => b"its CPU time is used up (SIGXCPU)",
            // Whoever closed the pipe does not want to read about it.
            libc::SIGPIPE => b"",
            _ => b"ended by a signal",
        };
        if !name.is_empty() {
            [b"autocvd: ", name, b"; nothing was started\n"]
                .iter()
                .for_each(|part| write(2, part));
        }
    }
    match signal {
        // A shell's loop ends on Ctrl-C only if the program that it waits for dies of it.
        libc::SIGINT | libc::SIGTERM | libc::SIGHUP | libc::SIGPIPE => {
            write_guard(128 + signal);
            die_of(signal)
        }
        // Others may leave a core file, and nothing has crashed.
        _ => exit_guarded(128 + signal),
    }
}

extern "C" fn on_crash(signal: i32) {
    autocvd::remove_files();
    restore_terminal();
    clear_line();
    write(
        2,
        b"autocvd: crashed, perhaps in the NVIDIA driver's library; see dmesg, and try --probe \
          nvidia-smi\n",
    );
    write_guard(128 + signal);
    die_of(signal)
}

/// Ends the process by the signal itself, as its caller expects. PID 1 of a container does not die
/// of a signal, and exits instead.
fn die_of(signal: i32) -> ! {
    // SAFETY: these may be called in a handler, and the set is made before it is used.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
        let mut only: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut only);
        libc::sigaddset(&mut only, signal);
        libc::sigprocmask(libc::SIG_UNBLOCK, &only, std::ptr::null_mut());
    }
    exit_now(128 + signal)
}

/// Writes the guard and ends the process.
fn exit_guarded(code: i32) -> ! {
    write_guard(code);
    exit_now(code)
}

fn write_guard(code: i32) {
    let mut buffer = [0; guard::MAX_LENGTH];
    let length = Guard::current().text(code, &mut buffer);
    write(standard_output::raw(), &buffer[..length]);
}

/// Ends the process without running anything more of it.
pub(super) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit may be called at any time.
    unsafe { libc::_exit(code) }
}

fn write(descriptor: i32, bytes: &[u8]) {
    if !bytes.is_empty() {
        // SAFETY: the pointer and length are those of a live slice. There is nothing to be done
        // about a failure.
        unsafe { libc::write(descriptor, bytes.as_ptr().cast(), bytes.len()) };
    }
}

/// Sets the text that is written if the driver does not answer within its limit, for the rest of
/// the run.
pub(super) fn set_timeout_text(text: String) {
    let before = TIMEOUT_TEXT.swap(Box::into_raw(Box::new(text)), Ordering::AcqRel);
    debug_assert!(
        before.is_null(),
        "a handler may read the text that would be dropped"
    );
}

/// From now on the driver is asked; `limit` is how long it may take.
pub(super) fn watch_driver(limit: Option<Duration>) {
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
pub(super) fn driver_answered() {
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
extern "C" fn on_alarm(signal: i32) {
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
        autocvd::remove_files();
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
