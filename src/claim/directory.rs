//! The directory of claims: made for everybody, and never trusted for what others put into it.

use super::own;
use crate::proc;
use rustix::fs::{Access, AtFlags, CWD, FlockOperation, Mode, OFlags, RawDir};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Where the queue of waiters lives, inside the directory.
const QUEUE: &str = "queue";
/// Files that are being written; a name that is not a claim's.
pub(crate) const UNFINISHED: &str = ".new-";
/// Descriptors from here on are left alone by programs and scripts that number theirs.
pub(super) const HIGH_DESCRIPTOR: i32 = 200;
/// A writer that has not finished its file in this time was killed between two system calls.
const ABANDONED_AFTER: Duration = Duration::from_secs(60);

/// The directory, open. Not to be shared: a listing moves the descriptor's place in it.
pub(crate) struct Directory {
    path: PathBuf,
    directory: Arc<OwnedFd>,
}

impl Directory {
    /// Opens the directory, making it, sticky and world-writable, if it is not there.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let opened = Self::open_in(CWD, path, path);
        match (&opened, path.parent()) {
            (Err(error), Some(parent)) if error.kind() == io::ErrorKind::NotFound => {
                std::fs::create_dir_all(parent)?;
                Self::open_in(CWD, path, path)
            }
            _ => opened,
        }
    }

    /// Opens, or makes, the directory that `name` is in the directory `at`, and that is called `path` from elsewhere.
    fn open_in(at: impl AsFd, name: &Path, path: &Path) -> io::Result<Self> {
        for pause in [2, 20] {
            match Self::try_open(&at, name, path) {
                // Another user may be about to open to all what it has just made.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    std::thread::sleep(Duration::from_millis(pause));
                }
                answer => return answer,
            }
        }
        Self::try_open(at, name, path)
    }

    fn try_open(at: impl AsFd, name: &Path, path: &Path) -> io::Result<Self> {
        let directory = make_directory(at, name).map_err(|error| {
            let link = path.symlink_metadata().is_ok_and(|meta| meta.is_symlink());
            let why = if link {
                "it is a symbolic link".to_owned()
            } else {
                error.to_string()
            };
            io::Error::new(error.kind(), why)
        })?;
        rustix::fs::accessat(
            &directory,
            ".",
            Access::WRITE_OK | Access::EXEC_OK,
            AtFlags::EACCESS,
        )?;
        Ok(Self {
            path: path.to_owned(),
            directory: Arc::new(directory),
        })
    }

    /// Whether the path still leads here: a cleaner may have removed the directory, or somebody moved it.
    pub(super) fn is_current(&self) -> bool {
        let identity = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
        let named = rustix::fs::lstat(&self.path).map(identity);
        named.is_ok() && named == rustix::fs::fstat(&self.directory).map(identity)
    }

    /// Follows the path again if it leads elsewhere by now.
    pub(super) fn refresh(&mut self) -> io::Result<()> {
        if !self.is_current() {
            *self = Self::open(&self.path)?;
        }
        Ok(())
    }

    /// The directory of the queue, if anybody has waited yet.
    pub(super) fn queue(&self) -> io::Result<Self> {
        let directory = rustix::fs::openat(&self.directory, QUEUE, DIRECTORY_FLAGS, Mode::empty())?;
        Ok(Self {
            path: self.path.join(QUEUE),
            directory: Arc::new(directory),
        })
    }

    /// The directory of the queue, made if it is not there.
    pub(super) fn make_queue(&self) -> io::Result<Self> {
        Self::open_in(&self.directory, Path::new(QUEUE), &self.path.join(QUEUE))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the directory's own lock; `None` where somebody else has it.
    pub(super) fn try_lock(&self) -> io::Result<Option<Lock>> {
        match rustix::fs::flock(&self.directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Lock(self.directory.clone()))),
            Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The names of all claims.
    pub(super) fn claims(&self) -> Vec<String> {
        let mut names = self.names();
        names.retain(|name| match name.strip_prefix(UNFINISHED) {
            Some(_) => {
                self.remove_if_abandoned(name);
                false
            }
            None => is_claim_name(name),
        });
        names
    }

    /// The names of all files but those that are not in UTF-8, which are not ours.
    pub(super) fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        if rustix::fs::seek(&self.directory, rustix::fs::SeekFrom::Start(0)).is_err() {
            return names;
        }
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut entries = RawDir::new(&self.directory, &mut buffer);
        while let Some(Ok(entry)) = entries.next() {
            names.extend(
                entry
                    .file_name()
                    .to_str()
                    .ok()
                    .filter(|name| !matches!(*name, "." | ".."))
                    .map(str::to_owned),
            );
        }
        names
    }

    /// What this process's own claim says, which must not be opened: it may have been made before an exec.
    pub(super) fn own_text(&self, name: &str) -> Option<String> {
        own::text(&self.path.join(name)).or_else(|| own::inherited(&self.directory, name))
    }

    /// Opens a file for reading, unless it is a trap: a link, a FIFO, a device.
    pub(super) fn open_file(&self, name: &str) -> Option<File> {
        proc::open_regular(&self.directory, name)
    }

    pub(super) fn new_name(&self) -> String {
        format!("{}-{}", std::process::id(), proc::since_boot().as_nanos())
    }

    /// Makes the unfinished file of `name`, which all may read; returns the path it will have.
    pub(super) fn create(&self, name: &str) -> io::Result<(PathBuf, File)> {
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let readable = Mode::from_raw_mode(0o644);
        let file = rustix::fs::openat(
            &self.directory,
            format!("{UNFINISHED}{name}"),
            flags,
            readable,
        )?;
        // The umask took its share.
        rustix::fs::fchmod(&file, readable)?;
        Ok((self.path.join(name), File::from(file)))
    }

    /// Gives the file its name, by which it counts.
    pub(super) fn publish(&self, name: &str) -> io::Result<()> {
        self.rename(name, name)
    }

    fn rename(&self, unfinished: &str, name: &str) -> io::Result<()> {
        let unfinished = format!("{UNFINISHED}{unfinished}");
        Ok(rustix::fs::renameat(
            &self.directory,
            unfinished,
            &self.directory,
            name,
        )?)
    }

    /// Removes the unfinished file of `name`.
    pub(super) fn discard(&self, name: &str) {
        self.remove(&format!("{UNFINISHED}{name}"));
    }

    /// Removes a file.
    pub(super) fn remove(&self, name: &str) {
        let _ = rustix::fs::unlinkat(&self.directory, name, AtFlags::empty());
    }

    /// Removes a file if it is this user's.
    pub(super) fn remove_own(&self, name: &str, owner: u32) {
        let user = rustix::process::geteuid();
        if user.as_raw() == owner || user.is_root() {
            self.remove(name);
        }
    }

    /// Replaces the text of a file if it is this user's.
    pub(super) fn replace_own(&self, name: &str, text: &str) -> io::Result<()> {
        let owner = rustix::fs::statat(&self.directory, name, AtFlags::SYMLINK_NOFOLLOW)?.st_uid;
        if owner != rustix::process::geteuid().as_raw() {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let draft = format!("{name}-{}", std::process::id());
        let (_, mut file) = self.create(&draft)?;
        io::Write::write_all(&mut file, text.as_bytes())?;
        self.rename(&draft, name)
    }

    fn remove_if_abandoned(&self, name: &str) {
        let Ok(stat) = rustix::fs::statat(&self.directory, name, AtFlags::SYMLINK_NOFOLLOW) else {
            return;
        };
        let written = UNIX_EPOCH + Duration::from_secs(stat.st_mtime.unsigned_abs());
        if SystemTime::now()
            .duration_since(written)
            .is_ok_and(|age| age > ABANDONED_AFTER)
        {
            self.remove(name);
        }
    }
}

/// The directory's lock; dropped, it is free, whoever else has the descriptor by a fork.
pub(crate) struct Lock(Arc<OwnedFd>);

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = rustix::fs::flock(&self.0, FlockOperation::Unlock);
    }
}

/// Moves a file's descriptor out of the way of those that programs and shell scripts number themselves.
pub(super) fn out_of_the_way(file: File) -> File {
    rustix::io::fcntl_dupfd_cloexec(&file, HIGH_DESCRIPTOR).map_or(file, File::from)
}

/// `PID-NANOSECONDS`.
fn is_claim_name(name: &str) -> bool {
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    name.split_once('-')
        .is_some_and(|(pid, time)| digits(pid) && digits(time))
}

const DIRECTORY_FLAGS: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Opens a directory, making it for everybody if it is not there.
fn make_directory(at: impl AsFd, path: &Path) -> io::Result<OwnedFd> {
    match rustix::fs::openat(&at, path, DIRECTORY_FLAGS, Mode::empty()) {
        Err(Errno::NOENT) => {}
        answer => return Ok(answer?),
    }
    let everybody = Mode::from_raw_mode(0o1777);
    let made = rustix::fs::mkdirat(&at, path, everybody);
    let directory = rustix::fs::openat(&at, path, DIRECTORY_FLAGS, Mode::empty())?;
    if made.is_ok() {
        // The umask took its share.
        rustix::fs::fchmod(&directory, everybody)?;
    }
    Ok(directory)
}

/// Locks a file for this process alone until it ends or closes the file.
pub(super) fn lock(file: &File) -> io::Result<()> {
    Ok(rustix::fs::fcntl_lock(
        file,
        FlockOperation::NonBlockingLockExclusive,
    )?)
}

/// Whether another process, of whatever namespace, has locked the file.
pub(super) fn is_locked(file: &File) -> bool {
    use rustix::process::{Flock, FlockOffsetType, FlockType, fcntl_getlk};
    let whole = Flock {
        start: 0,
        length: 0,
        pid: None,
        typ: FlockType::WriteLock,
        offset_type: FlockOffsetType::Set,
    };
    matches!(fcntl_getlk(file, &whole), Ok(Some(_)))
}
