//! The terminal that keys are read from: whatever ends or stops the program gives it back.

use super::{clear_line, set_action};
use std::sync::atomic::{AtomicPtr, Ordering};

/// The terminal's settings before the program changed them.
static TERMINAL: AtomicPtr<libc::termios> = AtomicPtr::new(std::ptr::null_mut());

/// From now on every end of the program, and every stop, gives standard input's terminal back as it
/// is now.
pub(in crate::cli) fn restore_terminal_at_end() {
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
pub(in crate::cli) fn restore_terminal() {
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
