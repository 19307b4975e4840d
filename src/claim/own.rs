//! What this process has locked.
//!
//! A POSIX lock ends when its process closes any descriptor of the file. So a file that this process has
//! locked is never opened again; what it says is remembered here.

use crate::per_process::PerProcess;
use std::path::{Path, PathBuf};

/// Their paths, and what they say. A forked child has none of the locks.
static FILES: PerProcess<Vec<(PathBuf, String)>> = PerProcess::new();

/// To be called once the file is locked, and before it has its name.
pub(super) fn remember(path: &Path, text: &str) {
    FILES.lock().push((path.to_owned(), text.to_owned()));
}

/// To be called once the file is gone, and before it is closed.
pub(super) fn forget(path: &Path) {
    FILES.lock().retain(|(own, _)| own != path);
}

/// What the file says, if it is one of those.
pub(super) fn text(path: &Path) -> Option<String> {
    FILES.lock().iter().find(|(own, _)| own == path).map(|(_, text)| text.clone())
}
