//! A terminal with a program on it, and fingers on its keys.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::thread;

use super::wait_until;

/// A program on a pseudo-terminal of its own. Dropped, its session is killed.
pub struct Terminal {
    child: Child,
    keyboard: File,
    shown: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    /// Starts a program as the leader of a session on a new terminal of this size.
    pub fn start(command: &mut Command, rows: u16, columns: u16) -> Self {
        let (keyboard, screen) = open(rows, columns);
        let duplicate = || screen.try_clone().expect("an open terminal");
        command
            .stdin(duplicate())
            .stdout(duplicate())
            .stderr(duplicate());
        // SAFETY: async-signal-safe calls in a process that has one thread.
        unsafe {
            command.pre_exec(|| {
                libc::setsid();
                libc::ioctl(0, libc::TIOCSCTTY, 0);
                Ok(())
            });
        }
        let child = command.spawn().expect("it runs");
        drop(screen);
        let shown = Arc::new(Mutex::new(Vec::new()));
        let (mut reader, sink) = (
            keyboard.try_clone().expect("an open terminal"),
            shown.clone(),
        );
        // It ends with the last program on the terminal.
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut bytes) {
                sink.lock()
                    .expect("no panic elsewhere")
                    .extend_from_slice(&bytes[..count]);
            }
        });
        Self {
            child,
            keyboard,
            shown,
        }
    }

    /// All that was shown so far.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().expect("no panic elsewhere")).into_owned()
    }

    /// Waits until a text has been shown so many times.
    #[track_caller]
    pub fn wait_for(&self, text: &str, times: usize) {
        wait_until(
            &format!("{text:?} is shown {times} times in {:?}", self.text()),
            || self.text().matches(text).count() >= times,
        );
    }

    pub fn press(&mut self, keys: &str) {
        self.keyboard
            .write_all(keys.as_bytes())
            .expect("the terminal is there");
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether the program has not ended yet.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("our own child").is_none()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn open(rows: u16, columns: u16) -> (File, File) {
    let (mut ours, mut theirs) = (0, 0);
    let size = libc::winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the pointers are to values that live through the call; name and settings may be null.
    let done = unsafe {
        libc::openpty(
            &mut ours,
            &mut theirs,
            std::ptr::null_mut(),
            std::ptr::null(),
            &size,
        )
    };
    assert_eq!(done, 0, "a pseudo-terminal");
    // SAFETY: the call has just opened them, and nothing else owns them.
    let own = |descriptor| unsafe {
        libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC);
        File::from(OwnedFd::from_raw_fd(descriptor))
    };
    (own(ours), own(theirs))
}
