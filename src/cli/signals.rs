//! Signals, and a driver that does not answer.
//!
//! # Design
//! A call into the driver can hang, so nothing here waits for the main line of the program: the
//! handlers write what has to be written and end the process, with system calls alone. What they
//! need is made ready beforehand. A signal that was ignored when the program started stays
//! ignored, as after `nohup`; only the signals of crashes and of the timer are always handled.

mod driver;
mod terminal;

pub(super) use driver::{driver_answered, set_timeout_text, watch_driver};
pub(super) use terminal::{restore_terminal, restore_terminal_at_end};

use super::exit_code::ExitCode;
use super::guard::{self, Guard};
use super::standard_output;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

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
    if set_action(libc::SIGALRM, driver::on_alarm as *const () as usize) == libc::SIG_IGN {
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
        autocvd::program::remove_files();
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
    autocvd::program::remove_files();
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
            // The reader is gone: there is nothing to say.
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
    autocvd::program::remove_files();
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
