//! What this process has locked.
//!
//! A POSIX lock ends when its process closes any descriptor of the file. So a file that this process has
//! locked is never opened again; what it says is remembered here.

use super::directory::HIGH_DESCRIPTOR;
use crate::fork_local::ForkLocal;
use rustix::fs::{AtFlags, Stat, fstat, statat};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

/// Their paths, and what they say. A forked child has none of the locks.
static FILES: ForkLocal<Vec<(PathBuf, String)>> = ForkLocal::new();

/// To be called once the file is locked, and before it has its name.
pub(super) fn remember(path: &Path, text: &str) {
    FILES.lock().push((path.to_owned(), text.to_owned()));
}

/// To be called once the file is gone, and before it is closed.
pub(super) fn forget(path: &Path) {
    FILES.lock().retain(|(own, _)| own != path);
}

/// What the claim says that this process made before it became this program (exec): its file is read by the
/// descriptor that came along.
pub(super) fn inherited(directory: impl AsFd, name: &str) -> Option<String> {
    let pid = name.split_once('-')?.0;
    if pid.parse() != Ok(std::process::id()) {
        return None;
    }
    let identity = |stat: Stat| (stat.st_dev, stat.st_ino);
    let wanted = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)
        .map(identity)
        .ok()?;
    let mut descriptors = (HIGH_DESCRIPTOR..4096)
        .chain(0..HIGH_DESCRIPTOR)
        .map(|number| {
            // SAFETY: nothing is closed; a number that is no descriptor only makes the call fail.
            unsafe { BorrowedFd::borrow_raw(number) }
        });
    let file = descriptors.find(|file| fstat(file).map(identity) == Ok(wanted))?;
    let mut text = vec![0; 64 << 10];
    // By position: the place in the file is shared with children.
    let length = rustix::io::pread(file, &mut text, 0).ok()?;
    text.truncate(length);
    String::from_utf8(text).ok()
}

/// What the file says, if it is one of those.
pub(super) fn text(path: &Path) -> Option<String> {
    FILES
        .lock()
        .iter()
        .find(|(own, _)| own == path)
        .map(|(_, text)| text.clone())
}
