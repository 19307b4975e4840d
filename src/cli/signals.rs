//! Signals, and a driver that does not answer.
//!
//! # Design
//! A call into the driver can hang, so nothing here waits for the main line of the program: the handlers
//! themselves write what has to be written, with system calls alone, and end the process. What they need
//! is made ready beforehand. A signal that was ignored when the program started stays ignored, as after
//! `nohup`.

use super::exit;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicPtr, Ordering};
use std::time::Duration;

/// Whether a failure prints what runs nothing.
static GUARD: AtomicBool = AtomicBool::new(true);
/// Whether a line on the terminal is to be ended before another one is written.
static LINE_OPEN: AtomicBool = AtomicBool::new(false);
/// Whether nothing but errors may be written to standard error.
static QUIET: AtomicBool = AtomicBool::new(false);
/// Whether a signal that ends the program says so.
static TELLS_END: AtomicBool = AtomicBool::new(true);
/// Whether the end of the process is in order.
static EXITS: AtomicBool = AtomicBool::new(false);
/// Whether the driver is being asked.
static ASKED: AtomicBool = AtomicBool::new(false);
/// The time that is left, in milliseconds, after the driver's silence was told of; negative is for ever.
static LEFT: AtomicI64 = AtomicI64::new(-1);
/// What to say if the driver does not answer in time.
static TIMEOUT_TEXT: AtomicPtr<String> = AtomicPtr::new(std::ptr::null_mut());

/// How long the driver may take before a line says so.
const SILENCE: Duration = Duration::from_secs(5);
/// The text that goes with it.
const SILENCE_TEXT: &str = "autocvd: the NVIDIA driver has not answered for 5 s; still waiting for it (see dmesg; Ctrl-C ends this)\n";

/// Says whether failures are to print what runs nothing.
pub(super) fn guard_output(guard: bool) {
    GUARD.store(guard, Ordering::Relaxed);
}

pub(super) fn guards_output() -> bool {
    GUARD.load(Ordering::Relaxed)
}

/// From now on the end by a signal goes without saying: nothing was to be started.
pub(super) fn end_silently() {
    TELLS_END.store(false, Ordering::Relaxed);
}

pub(super) fn be_quiet() {
    QUIET.store(true, Ordering::Relaxed);
}

/// Says whether a line without its end stands on the terminal.
pub(super) fn set_line_open(open: bool) {
    LINE_OPEN.store(open, Ordering::Relaxed);
}

/// Ends such a line.
pub(super) fn clear_line() {
    if LINE_OPEN.swap(false, Ordering::Relaxed) {
        write(2, b"\r\x1b[K");
    }
}

/// Signals that somebody sends to end the program, or that end it because of a limit.
const ENDING: [i32; 14] = [
    libc::SIGINT,
    libc::SIGTERM,
    libc::SIGHUP,
    libc::SIGPIPE,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGXCPU,
    libc::SIGXFSZ,
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

/// Room for the handlers where a crash has used up the stack.
const STACK_BYTES: usize = 16 << 10;
static mut STACK: [u8; STACK_BYTES] = [0; STACK_BYTES];

/// Makes everything that ends a process end this one in order: signals, a crash, and a library that calls exit.
pub(super) fn install() {
    let stack = libc::stack_t {
        ss_sp: (&raw mut STACK).cast(),
        ss_flags: 0,
        ss_size: STACK_BYTES,
    };
    // SAFETY: the kernel alone uses the memory, which lives as long as the process, and `unexpected_exit` may be
    // called at exit.
    unsafe {
        libc::sigaltstack(&stack, std::ptr::null_mut());
        libc::atexit(unexpected_exit);
    }
    for signal in ENDING {
        handle(signal, end);
    }
    handle(libc::SIGALRM, alarm);
    for signal in CRASHES {
        handle(signal, crash);
    }
}

/// From now on the process may exit.
pub(super) fn expect_exit() {
    EXITS.store(true, Ordering::Relaxed);
}

extern "C" fn unexpected_exit() {
    if !EXITS.load(Ordering::Relaxed) {
        autocvd::remove_files();
        clear_line();
        write(2, b"autocvd: the NVIDIA driver's library ended this process; see dmesg, and try --probe nvidia-smi\n");
        leave(exit::UNEXPECTED);
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

pub(super) fn ignore(signal: i32) -> std::io::Result<()> {
    // SAFETY: no handler is installed.
    match unsafe { libc::signal(signal, libc::SIG_IGN) } {
        libc::SIG_ERR => Err(std::io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn handle(signal: i32, handler: extern "C" fn(i32)) {
    if is_ignored(signal) {
        return;
    }
    // SAFETY: a zeroed sigaction is a valid one. The handlers are async-signal-safe: they make system calls and
    // read atomics.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        // The driver's own system calls go on after the line that says how long they take.
        action.sa_flags = libc::SA_RESTART | libc::SA_ONSTACK;
        // One at a time: the frames of several would not fit onto the stack that they have.
        libc::sigfillset(&mut action.sa_mask);
        libc::sigaction(signal, &action, std::ptr::null_mut());
    }
}

extern "C" fn end(signal: i32) {
    autocvd::remove_files();
    clear_line();
    if TELLS_END.load(Ordering::Relaxed) {
        let name: &[u8] = match signal {
            libc::SIGINT => b"interrupted (SIGINT)",
            libc::SIGTERM => b"terminated (SIGTERM)",
            libc::SIGHUP => b"hung up (SIGHUP)",
            libc::SIGQUIT => b"ended (SIGQUIT)",
            libc::SIGUSR1 => b"ended (SIGUSR1)",
            libc::SIGUSR2 => b"ended (SIGUSR2)",
            libc::SIGALRM => b"ended (SIGALRM)",
            libc::SIGXCPU => b"its CPU time is used up (SIGXCPU)",
            // Whoever closed the pipe does not want to hear of it.
            libc::SIGPIPE => b"",
            _ => b"ended by a signal",
        };
        if !name.is_empty() {
            [b"autocvd: ", name, b"; nothing was started\n"]
                .iter()
                .for_each(|part| write(2, part));
        }
    }
    leave(128 + signal);
}

extern "C" fn crash(signal: i32) {
    autocvd::remove_files();
    clear_line();
    write(2, b"autocvd: crashed, perhaps in the NVIDIA driver's library; see dmesg, and try --probe nvidia-smi\n");
    write_guard(128 + signal);
    // SAFETY: these may be called in a handler, and the set is made before it is used. What crashed ends by its
    // signal, with a core file where those are kept; PID 1 of a container does not, and so leaves by itself.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
        let mut only: libc::sigset_t = std::mem::zeroed();
        libc::sigaddset(&mut only, signal);
        libc::sigprocmask(libc::SIG_UNBLOCK, &only, std::ptr::null_mut());
    }
    exit_now(128 + signal)
}

/// Writes what runs nothing, where that is due, and ends the process.
fn leave(code: i32) -> ! {
    write_guard(code);
    exit_now(code)
}

fn write_guard(code: i32) {
    if guards_output() {
        let digits = [
            b'0' + (code / 100 % 10) as u8,
            b'0' + (code / 10 % 10) as u8,
            b'0' + (code % 10) as u8,
        ];
        let start = digits.iter().position(|digit| *digit != b'0').unwrap_or(2);
        write(1, b"sh -c 'exit ");
        write(1, &digits[start..]);
        write(1, b"' autocvd\n");
    }
}

/// Ends the process without running anything more of it.
pub(super) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit may be called at any time.
    unsafe { libc::_exit(code) }
}

fn write(descriptor: i32, bytes: &[u8]) {
    // SAFETY: the pointer and length are those of a live slice. A failure has nobody left to be told.
    unsafe { libc::write(descriptor, bytes.as_ptr().cast(), bytes.len()) };
}

/// From now on the driver is asked; `limit` is how long it may take, and `text` what to say then.
pub(super) fn watch_driver(limit: Option<(Duration, String)>) {
    let (first, left) = match limit {
        Some((limit, text)) => {
            TIMEOUT_TEXT.store(Box::into_raw(Box::new(text)), Ordering::Release);
            let limit = limit.max(Duration::from_millis(1));
            (
                limit.min(SILENCE),
                i64::try_from(limit.saturating_sub(SILENCE).as_millis()).unwrap_or(i64::MAX),
            )
        }
        None => (SILENCE, -1),
    };
    LEFT.store(left, Ordering::Release);
    ASKED.store(true, Ordering::Release);
    set_timer(first);
}

/// The driver has answered.
pub(super) fn driver_answered() {
    set_timer(Duration::ZERO);
    ASKED.store(false, Ordering::Release);
}

fn set_timer(after: Duration) {
    let value = libc::timeval {
        tv_sec: libc::time_t::try_from(after.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_usec: libc::suseconds_t::from(after.subsec_micros() as i32),
    };
    let timer = libc::itimerval {
        it_interval: libc::timeval {
            tv_sec: 0,
            tv_usec: 0,
        },
        it_value: value,
    };
    // SAFETY: `timer` is a valid timer, and the old one is not asked for.
    unsafe { libc::setitimer(libc::ITIMER_REAL, &timer, std::ptr::null_mut()) };
}

/// The driver has been silent for too long, or else somebody else sent the signal.
extern "C" fn alarm(signal: i32) {
    if !ASKED.load(Ordering::Acquire) {
        return end(signal);
    }
    let left = LEFT.swap(0, Ordering::AcqRel);
    if left == 0 {
        autocvd::remove_files();
        clear_line();
        let text = TIMEOUT_TEXT.load(Ordering::Acquire);
        // SAFETY: the string was leaked, so it lives as long as the process.
        if let Some(text) = unsafe { text.as_ref() } {
            write(2, text.as_bytes());
        }
        leave(exit::TIMED_OUT);
    }
    if !QUIET.load(Ordering::Relaxed) {
        write(2, SILENCE_TEXT.as_bytes());
    }
    if left > 0 {
        set_timer(Duration::from_millis(left.unsigned_abs()));
    } else {
        LEFT.store(-1, Ordering::Release);
    }
}
