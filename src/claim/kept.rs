//! Texts that a user's launches keep for the next ones, in the directory of claims. Others can
//! write there too, so only a file is read that this user or root owns and nobody else can write
//! to.

use super::directory::Directory;
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use std::fs::File;
use std::io::{self, Read, Write};
use std::time::{Duration, SystemTime};

/// How much of a text is read, in bytes: 16 GPUs have links of 10 KB.
const MAX_BYTES: u64 = 256 << 10;

impl Directory {
    /// This user's text, or else root's, unless it is older than `age`.
    pub(super) fn kept_text(&self, name: &str, age: Duration) -> Option<String> {
        let user = rustix::process::geteuid().as_raw();
        let own = self.text_of(name, user, age);
        own.or_else(|| (user != 0).then(|| self.text_of(name, 0, age))?)
    }

    fn text_of(&self, name: &str, owner: u32, age: Duration) -> Option<String> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let name = format!("{name}-{owner}");
        let file = rustix::fs::openat(self.descriptor(), name, flags, Mode::empty()).ok()?;
        let stat = rustix::fs::fstat(&file).ok()?;
        let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        if !is_file || stat.st_uid != owner || stat.st_mode & 0o022 != 0 {
            return None;
        }
        let file = File::from(file);
        let written = file.metadata().ok()?.modified().ok()?;
        SystemTime::now()
            .duration_since(written)
            .ok()
            .filter(|passed| *passed < age)?;
        let mut text = String::new();
        file.take(MAX_BYTES).read_to_string(&mut text).ok()?;
        Some(text)
    }

    /// Keeps this user's text in one step: nobody reads half of it.
    pub(super) fn keep_text(&self, name: &str, text: &str) -> io::Result<()> {
        let user = rustix::process::geteuid().as_raw();
        let new = format!("{name}-{user}.{}", std::process::id());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o644);
        let file = rustix::fs::openat(self.descriptor(), &new, flags, mode)?;
        let at = self.descriptor();
        let kept = File::from(file).write_all(text.as_bytes()).and_then(|()| {
            Ok(rustix::fs::renameat(
                at,
                &new,
                at,
                format!("{name}-{user}"),
            )?)
        });
        if kept.is_err() {
            let _ = rustix::fs::unlinkat(at, &new, AtFlags::empty());
        }
        kept
    }
}
