//! What this process has locked.
//!
//! A POSIX lock ends when its process closes any descriptor of the file. So a file that this process has
//! locked is never opened again; what it says is remembered here.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

struct Own {
    /// A forked child has a copy of this list, but not the locks.
    pid: u32,
    path: PathBuf,
    text: String,
}

static FILES: Mutex<Vec<Own>> = Mutex::new(Vec::new());

fn files() -> MutexGuard<'static, Vec<Own>> {
    FILES.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// To be called once the file is locked, and before it has its name.
pub(super) fn remember(path: &Path, text: &str) {
    let pid = std::process::id();
    let mut files = files();
    files.retain(|own| own.pid == pid);
    files.push(Own { pid, path: path.to_owned(), text: text.to_owned() });
}

/// To be called once the file is gone, and before it is closed.
pub(super) fn forget(path: &Path) {
    files().retain(|own| own.path != path);
}

/// What the file says, if it is one of those.
pub(super) fn text(path: &Path) -> Option<String> {
    let pid = std::process::id();
    files().iter().find(|own| own.pid == pid && own.path == path).map(|own| own.text.clone())
}
