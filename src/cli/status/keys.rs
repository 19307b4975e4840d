//! The keys of `status --watch`.

use super::super::signals;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetpgrp, tcsetattr};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// What a person wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    Quit,
    Up,
    Down,
    PageUp,
    PageDown,
}

/// The terminal that keys come from; dropped or ended by a signal, it is as it was before.
pub(super) struct Keys {
    before: Option<Termios>,
}

impl Keys {
    /// Has the terminal give each key at once, where standard input is one.
    pub(super) fn open() -> Self {
        let stdin = std::io::stdin();
        let before = stdin
            .is_terminal()
            .then(|| tcgetattr(&stdin).ok())
            .flatten();
        if before.is_some() {
            signals::restore_terminal_at_end();
        }
        let keys = Self { before };
        keys.apply();
        keys
    }

    /// Sets the mode, again after the program was stopped and goes on.
    fn apply(&self) {
        let Some(before) = &self.before else { return };
        let stdin = std::io::stdin();
        // A terminal whose foreground is another program is that program's.
        if tcgetpgrp(&stdin).ok() != Some(rustix::process::getpgrp()) {
            return;
        }
        let mut mode = before.clone();
        mode.local_modes -= LocalModes::ICANON | LocalModes::ECHO;
        let _ = tcsetattr(&stdin, OptionalActions::Now, &mode);
    }

    /// Waits for a key until `end`.
    pub(super) fn wait(&mut self, end: Instant) -> Option<Key> {
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if self.before.is_none() {
                std::thread::sleep(left);
                return None;
            }
            self.apply();
            let stdin = std::io::stdin();
            let mut descriptors = [PollFd::new(&stdin, PollFlags::IN)];
            match poll(&mut descriptors, timespec(left).as_ref()) {
                Ok(0) => return None,
                Ok(_) => {
                    let mut bytes = [0; 16];
                    let count = rustix::io::read(&stdin, &mut bytes).unwrap_or(0);
                    if count == 0 {
                        // The terminal has gone.
                        self.before = None;
                    }
                    if let Some(key) = key(&bytes[..count]) {
                        return Some(key);
                    }
                }
                // A signal, such as the one that lets the program go on.
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => self.before = None,
            }
        }
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        signals::restore_terminal();
    }
}

/// A time beyond the kernel's range is for ever.
fn timespec(duration: Duration) -> Option<Timespec> {
    Timespec::try_from(duration).ok()
}

fn key(bytes: &[u8]) -> Option<Key> {
    match bytes {
        b"q" | b"Q" => Some(Key::Quit),
        b"k" | b"\x1b[A" | b"\x1bOA" => Some(Key::Up),
        b"j" | b"\x1b[B" | b"\x1bOB" => Some(Key::Down),
        b"\x1b[5~" => Some(Key::PageUp),
        b" " | b"\x1b[6~" => Some(Key::PageDown),
        _ => None,
    }
}
