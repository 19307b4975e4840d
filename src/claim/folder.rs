//! The folder of claims: made for everybody, and never trusted for what others put into it.

use crate::proc;
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Where the queue of waiters lives, inside the folder.
const QUEUE: &str = "queue";
/// Files that are being written; a name that is not a claim's.
pub(crate) const UNFINISHED: &str = ".new-";
/// Descriptors from here on are left alone by programs and scripts that number theirs.
const HIGH_DESCRIPTOR: i32 = 200;

pub(crate) struct Folder {
    path: PathBuf,
}

impl Folder {
    /// Opens the folder, making it, sticky and world-writable, if it is not there.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        for pause in [2, 20] {
            match Self::try_open(path) {
                // Another user may be about to open to all what it has just made.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    std::thread::sleep(Duration::from_millis(pause));
                }
                answer => return answer,
            }
        }
        Self::try_open(path)
    }

    fn try_open(path: &Path) -> io::Result<Self> {
        let directory = open_directory(path).map_err(|error| {
            let link = path.symlink_metadata().is_ok_and(|meta| meta.is_symlink());
            let why = if link { "it is a symbolic link".to_owned() } else { error.to_string() };
            io::Error::new(error.kind(), why)
        })?;
        rustix::fs::accessat(
            &directory,
            ".",
            rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK,
            AtFlags::EACCESS,
        )?;
        Ok(Self { path: path.to_owned() })
    }

    /// The folder of the queue.
    pub(super) fn queue(&self) -> io::Result<Self> {
        Self::open(&self.path.join(QUEUE))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The folder by a descriptor of its own, as `flock` wants it; after a cleaner has removed it, the new one.
    pub(super) fn reopen(&self) -> io::Result<File> {
        open_directory(&self.path).map(File::from)
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

    /// The names of all files but hidden ones that are not ours.
    pub(super) fn names(&self) -> Vec<String> {
        // By path, so that a folder that was removed and made again is the new one.
        let Ok(entries) = std::fs::read_dir(&self.path) else { return Vec::new() };
        entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }

    /// Opens a file for reading, unless it is a trap: a link, a FIFO, a device.
    pub(super) fn open_file(&self, name: &str) -> Option<File> {
        proc::open_plain(rustix::fs::CWD, self.path.join(name).to_str()?)
    }

    pub(super) fn new_name(&self) -> String {
        format!("{}-{}", std::process::id(), proc::since_boot().as_nanos())
    }

    /// Makes the unfinished file of `name`, which all may read; returns the path it will have. The
    /// descriptor is a high one.
    pub(super) fn create(&self, name: &str) -> io::Result<(PathBuf, File)> {
        let unfinished = self.path.join(format!("{UNFINISHED}{name}"));
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(CWD, &unfinished, flags, Mode::from_raw_mode(0o644)) {
            // A cleaner has removed the folder since it was opened.
            Err(rustix::io::Errno::NOENT) => {
                open_directory(&self.path)?;
                rustix::fs::openat(CWD, &unfinished, flags, Mode::from_raw_mode(0o644))?
            }
            answer => answer?,
        };
        rustix::fs::fchmod(&file, Mode::from_raw_mode(0o644))?;
        let file = rustix::io::fcntl_dupfd_cloexec(&file, HIGH_DESCRIPTOR).unwrap_or(file);
        Ok((self.path.join(name), File::from(file)))
    }

    /// Gives the file its name, by which it counts.
    pub(super) fn publish(&self, name: &str) -> io::Result<()> {
        std::fs::rename(self.path.join(format!("{UNFINISHED}{name}")), self.path.join(name))
    }

    /// Removes the unfinished file of `name`.
    pub(super) fn discard(&self, name: &str) {
        let _ = std::fs::remove_file(self.path.join(format!("{UNFINISHED}{name}")));
    }

    /// Removes a file if it is this user's.
    pub(super) fn remove_own(&self, name: &str, owner: u32) {
        let user = rustix::process::geteuid();
        if user.as_raw() == owner || user.is_root() {
            let _ = std::fs::remove_file(self.path.join(name));
        }
    }

    /// Replaces the text of a file if it is this user's.
    pub(super) fn replace_own(&self, name: &str, text: &str) -> io::Result<()> {
        let owner = std::fs::symlink_metadata(self.path.join(name))?;
        if std::os::unix::fs::MetadataExt::uid(&owner) != rustix::process::geteuid().as_raw() {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let draft = format!("{name}-{}", std::process::id());
        let (_, mut file) = self.create(&draft)?;
        io::Write::write_all(&mut file, text.as_bytes())?;
        std::fs::rename(self.path.join(format!("{UNFINISHED}{draft}")), self.path.join(name))
    }

    /// A writer was killed between two system calls.
    fn remove_if_abandoned(&self, name: &str) {
        let path = self.path.join(name);
        let age =
            path.symlink_metadata().and_then(|meta| meta.modified()).map(|time| SystemTime::now().duration_since(time));
        if matches!(age, Ok(Ok(age)) if age > Duration::from_secs(60)) {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// `PID-NANOSECONDS`.
fn is_claim_name(name: &str) -> bool {
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    name.split_once('-').is_some_and(|(pid, time)| digits(pid) && digits(time))
}

fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(CWD, path, flags, Mode::empty()) {
        Err(rustix::io::Errno::NOENT) => {}
        answer => return Ok(answer?),
    }
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent)?;
    }
    let everybody = Mode::from_raw_mode(0o1777);
    let made = rustix::fs::mkdirat(CWD, path, everybody);
    let directory = rustix::fs::openat(CWD, path, flags, Mode::empty())?;
    if made.is_ok() {
        // The umask took its share.
        rustix::fs::fchmod(directory.as_fd(), everybody)?;
    }
    Ok(directory)
}

/// Locks a file for this process alone until it ends or closes the file.
pub(super) fn lock(file: &File) -> io::Result<()> {
    Ok(rustix::fs::fcntl_lock(file, rustix::fs::FlockOperation::NonBlockingLockExclusive)?)
}

/// Whether another process, of whatever namespace, has locked the file.
pub(super) fn is_locked(file: &File) -> bool {
    use rustix::process::{Flock, FlockOffsetType, FlockType, fcntl_getlk};
    let whole = Flock { start: 0, length: 0, pid: None, typ: FlockType::WriteLock, offset_type: FlockOffsetType::Set };
    matches!(fcntl_getlk(file, &whole), Ok(Some(_)))
}
