//! The directory of claims: made for everybody, and never trusted for what others put into it.
//!
//! Everything inside is reached through an open descriptor, one name at a time and never through a
//! symbolic link, so that whoever moves or replaces the directory moves nobody's files.

use rustix::fs::{Access, AtFlags, CWD, FileType, Mode, OFlags, RawDir, RenameFlags, Stat};
use rustix::io::Errno;
use std::fmt::Write as _;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Where the package has made a directory of claims that nobody but root can empty.
const SYSTEM: &str = "/run/autocvd";
/// Where there is none.
const FALLBACK: &str = "/tmp/autocvd";

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
const LOCK_FILE: OFlags = OFlags::RDWR
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::CLOEXEC)
    .union(OFlags::NOCTTY);
/// How often another user may be found in the midst of opening to all what it has just made.
const PAUSES: [Duration; 2] = [Duration::from_millis(2), Duration::from_millis(20)];
/// How long a new lock file is left to a judge that held a lock on the one before it.
const SETTLING: Duration = Duration::from_millis(20);

/// The directory of claims where none is named: /run/autocvd if it is root's, sticky and
/// everybody's, else /tmp/autocvd.
pub(crate) fn default_path() -> PathBuf {
    let trusted = rustix::fs::lstat(SYSTEM).is_ok_and(|stat| {
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        is_directory && stat.st_uid == 0 && stat.st_mode & 0o1777 == 0o1777
    });
    PathBuf::from(if trusted { SYSTEM } else { FALLBACK })
}

/// The directory, open.
#[derive(Debug, Clone)]
pub(crate) struct Directory {
    path: PathBuf,
    descriptor: Arc<OwnedFd>,
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

    /// Opens the directory if it is there.
    pub(super) fn find(path: &Path) -> io::Result<Self> {
        let descriptor = rustix::fs::openat(CWD, path, DIRECTORY, Mode::empty())?;
        Ok(Self {
            path: path.to_owned(),
            descriptor: Arc::new(descriptor),
        })
    }

    /// Opens or creates directory `name` relative to `at`; `path` is its full path.
    fn open_in(at: impl AsFd, name: &Path, path: &Path) -> io::Result<Self> {
        let descriptor = patiently(|| {
            let descriptor = make_directory(&at, name)?;
            let access = Access::WRITE_OK | Access::EXEC_OK;
            rustix::fs::accessat(&descriptor, ".", access, AtFlags::EACCESS)?;
            Ok(descriptor)
        });
        let descriptor = descriptor.map_err(|error| {
            let link = path.symlink_metadata().is_ok_and(|meta| meta.is_symlink());
            let why = if link {
                "it is a symbolic link".to_owned()
            } else {
                error.to_string()
            };
            io::Error::new(error.kind(), why)
        })?;
        Ok(Self {
            path: path.to_owned(),
            descriptor: Arc::new(descriptor),
        })
    }

    /// Makes the directory safe if this process may, and says what is wrong with it otherwise.
    pub(crate) fn secure(&self) -> Option<String> {
        let stat = rustix::fs::fstat(&self.descriptor).ok()?;
        let user = rustix::process::geteuid();
        let writable = stat.st_mode & 0o022 != 0;
        let sticky = stat.st_mode & 0o1000 != 0;
        let ours = stat.st_uid == 0 || stat.st_uid == user.as_raw();
        if ours && (sticky || !writable) {
            return None;
        }
        let may_repair = user.is_root() || stat.st_uid == user.as_raw();
        if may_repair && self.repair(&stat).is_ok() {
            return None;
        }
        let remedy = "have root run autocvd once, or make /run/autocvd (mode 1777)";
        Some(if ours {
            format!("every user can remove the claims of others: it is not sticky; {remedy}")
        } else {
            let owner = crate::proc::user_name(stat.st_uid);
            format!("its owner {owner} can remove the claims of others; {remedy}")
        })
    }

    /// The same for the directory `name` in this one, if it is there.
    pub(super) fn secure_inner(&self, name: &str) {
        let is_safe = |stat: Stat| stat.st_uid == 0 && stat.st_mode & 0o1000 != 0;
        if !self.stat(name).is_none_or(is_safe) {
            if let Ok(inner) = self.inner(name) {
                inner.secure();
            }
        }
    }

    fn repair(&self, stat: &Stat) -> io::Result<()> {
        if rustix::process::geteuid().is_root() {
            let root = rustix::fs::Uid::ROOT;
            rustix::fs::fchown(&self.descriptor, Some(root), None)?;
        }
        let mode = Mode::from_raw_mode(stat.st_mode & 0o777 | 0o1000);
        Ok(rustix::fs::fchmod(&self.descriptor, mode)?)
    }

    /// Whether the path still leads here: a cleaner may have removed the directory.
    pub(super) fn is_current(&self) -> bool {
        let named = rustix::fs::lstat(&self.path).map(identity);
        named.is_ok() && named == rustix::fs::fstat(&self.descriptor).map(identity)
    }

    /// Follows the path again if it leads elsewhere by now.
    pub(super) fn refresh(&mut self) -> io::Result<()> {
        if !self.is_current() {
            *self = Self::open(&self.path)?;
        }
        Ok(())
    }

    /// The directory to which the path leads by now, made if there is none, but not those around
    /// it.
    pub(super) fn successor(&self) -> io::Result<Self> {
        Self::open_in(CWD, &self.path, &self.path)
    }

    /// What no other directory of this machine has as long as this one is open.
    pub(super) fn id(&self) -> Option<String> {
        let (device, inode) = rustix::fs::fstat(&self.descriptor).map(identity).ok()?;
        Some(format!("{device:x}.{inode:x}"))
    }

    pub(super) fn descriptor(&self) -> &OwnedFd {
        &self.descriptor
    }

    /// The directory `name` in this one, if it is there.
    pub(super) fn inner(&self, name: &str) -> io::Result<Self> {
        let descriptor = rustix::fs::openat(&self.descriptor, name, DIRECTORY, Mode::empty())?;
        Ok(Self {
            path: self.path.join(name),
            descriptor: Arc::new(descriptor),
        })
    }

    /// The directory `name` in this one, made if it is not there.
    pub(super) fn make_inner(&self, name: &str) -> io::Result<Self> {
        Self::open_in(&self.descriptor, Path::new(name), &self.path.join(name))
    }

    /// The lock file of a device, if it is there. What lies in its place and is no file is moved
    /// away where this process may do that.
    pub(super) fn find_lock_file(&self, key: &str) -> io::Result<OwnedFd> {
        let name = file_name(key);
        match self.open_lock_file(&name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound && self.move_away(&name) => {
                Err(io::ErrorKind::NotFound.into())
            }
            found => found,
        }
    }

    fn open_lock_file(&self, name: &str) -> io::Result<OwnedFd> {
        let opened = rustix::fs::openat(&self.descriptor, name, LOCK_FILE, Mode::empty());
        let is_file = match &opened {
            Ok(file) => rustix::fs::fstat(file).is_ok_and(is_regular),
            // Its name may be taken by what cannot be opened.
            Err(_) => self.stat(name).is_none_or(is_regular),
        };
        match is_file {
            true => Ok(opened?),
            false => Err(io::Error::other("it is no regular file")),
        }
    }

    /// Moves away what has this name and is no regular file; whether it has. Another launch may put
    /// a lock file there meanwhile, which gets its name back.
    fn move_away(&self, name: &str) -> bool {
        if self.stat(name).is_none_or(is_regular) {
            return false;
        }
        let mut number = [0; 8];
        let flags = rustix::rand::GetRandomFlags::NONBLOCK;
        if rustix::rand::getrandom(&mut number, flags).is_err() {
            return false;
        }
        // Nobody else has taken that name.
        let aside = format!(".{name}.{:016x}", u64::from_ne_bytes(number));
        let at = self.descriptor();
        let rename = |from: &str, to: &str| {
            rustix::fs::renameat_with(at, from, at, to, RenameFlags::NOREPLACE).is_ok()
        };
        if !rename(name, &aside) {
            return false;
        }
        if self.stat(&aside).is_some_and(is_regular) && rename(&aside, name) {
            return true;
        }
        self.remove(&aside);
        // A directory that is not empty stays.
        let _ = rustix::fs::unlinkat(at, &aside, AtFlags::REMOVEDIR);
        true
    }

    /// Why a device cannot be claimed whose lock file cannot be had.
    pub(super) fn why_unclaimable(&self, key: &str, error: &io::Error) -> String {
        format!("'{}': {error}", self.path.join(file_name(key)).display())
    }

    /// The lock file of a device, made for everybody if it is not there.
    pub(super) fn lock_file(&self, key: &str) -> io::Result<OwnedFd> {
        patiently(|| match self.find_lock_file(key) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => match self.make_lock_file(key)
            {
                // Another launch was faster.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    self.find_lock_file(key)
                }
                made => made,
            },
            found => found,
        })
    }

    /// This user's own file, made if it is not there: no other user can lock it.
    pub(super) fn user_file(&self) -> io::Result<OwnedFd> {
        let user = rustix::process::geteuid().as_raw();
        let flags = LOCK_FILE | OFlags::CREATE;
        let own = Mode::from_raw_mode(0o600);
        let file = rustix::fs::openat(&self.descriptor, format!("user-{user}"), flags, own)?;
        let stat = rustix::fs::fstat(&file)?;
        let is_own = stat.st_uid == user && stat.st_mode & 0o077 == 0;
        match is_own && is_regular(stat) {
            true => Ok(file),
            false => Err(io::Error::other("it is another user's")),
        }
    }

    fn make_lock_file(&self, key: &str) -> io::Result<OwnedFd> {
        let everybody = Mode::from_raw_mode(0o666);
        let flags = LOCK_FILE | OFlags::CREATE | OFlags::EXCL;
        let file = rustix::fs::openat(&self.descriptor, file_name(key), flags, everybody)?;
        // The umask took its share.
        rustix::fs::fchmod(&file, everybody)?;
        Ok(file)
    }

    /// Waits until a lock file is not new any more: it may have been made because a cleaner removed
    /// the one before it, whose judge is about to lock this one.
    pub(super) fn settle(&self, file: &OwnedFd) {
        let made = rustix::fs::fstat(file).ok().and_then(|stat| {
            let seconds = u64::try_from(stat.st_ctime).ok()?;
            let nanoseconds = u32::try_from(stat.st_ctime_nsec).ok()?;
            SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, nanoseconds))
        });
        let age = made.and_then(|made| made.elapsed().ok());
        if let Some(left) = age.and_then(|age| SETTLING.checked_sub(age)) {
            std::thread::sleep(left);
        }
    }

    /// Tells cleaners that honour locks, as systemd-tmpfiles does, to leave the directory alone as
    /// long as this process and those that it forks have it open.
    pub(super) fn keep_from_cleaners(&self) {
        let shared = rustix::fs::FlockOperation::NonBlockingLockShared;
        let _ = rustix::fs::flock(&self.descriptor, shared);
    }

    /// Lets cleaners have the directory again.
    pub(super) fn leave_to_cleaners(&self) {
        let _ = rustix::fs::flock(&self.descriptor, rustix::fs::FlockOperation::Unlock);
    }

    /// Whether the name of the device's lock file still leads to this open file.
    pub(super) fn names_file(&self, key: &str, file: &OwnedFd) -> bool {
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        let named = rustix::fs::statat(&self.descriptor, file_name(key), flags).map(identity);
        named.is_ok() && named == rustix::fs::fstat(file).map(identity)
    }

    /// The names of all files but those that are not in UTF-8, which are not ours.
    pub(super) fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        // Its own descriptor, for a listing moves the position in it.
        let flags = DIRECTORY;
        let Ok(listing) = rustix::fs::openat(&self.descriptor, ".", flags, Mode::empty()) else {
            return names;
        };
        let mut buffer = [MaybeUninit::uninit(); 8192];
        let mut entries = RawDir::new(&listing, &mut buffer);
        while let Some(Ok(entry)) = entries.next() {
            let name = entry.file_name().to_str().ok();
            names.extend(
                name.filter(|name| !name.starts_with('.'))
                    .map(str::to_owned),
            );
        }
        names
    }

    /// Publishes a text under a name that is not taken: a symbolic link that leads nowhere. It
    /// takes no file of any size, so that neither a full disk nor `ulimit -f` keeps it from being
    /// written; it appears whole, and to read it cannot block.
    pub(super) fn publish(&self, name: &str, text: &str) -> io::Result<()> {
        Ok(rustix::fs::symlinkat(text, &self.descriptor, name)?)
    }

    /// A published text and the user who published it.
    pub(super) fn published(&self, name: &str) -> Option<(u32, String)> {
        let stat = self.stat(name)?;
        let text = rustix::fs::readlinkat(&self.descriptor, name, Vec::new()).ok()?;
        Some((stat.st_uid, text.into_string().ok()?))
    }

    pub(super) fn stat(&self, name: &str) -> Option<Stat> {
        rustix::fs::statat(&self.descriptor, name, AtFlags::SYMLINK_NOFOLLOW).ok()
    }

    /// Removes a file.
    pub(super) fn remove(&self, name: &str) {
        let _ = rustix::fs::unlinkat(&self.descriptor, name, AtFlags::empty());
    }

    /// Removes a file of `owner` if that is this user, or this is root.
    pub(super) fn remove_own(&self, name: &str, owner: u32) {
        let user = rustix::process::geteuid();
        if user.as_raw() == owner || user.is_root() {
            self.remove(name);
        }
    }
}

/// Tries once more, and once more after that, what another user may be about to allow.
fn patiently<T>(mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for pause in PAUSES {
        match attempt() {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                std::thread::sleep(pause);
            }
            answer => return answer,
        }
    }
    attempt()
}

fn is_regular(stat: Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}

fn identity(stat: Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

/// Opens a directory, making it for everybody if it is not there.
fn make_directory(at: impl AsFd, path: &Path) -> io::Result<OwnedFd> {
    match rustix::fs::openat(&at, path, DIRECTORY, Mode::empty()) {
        Err(Errno::NOENT) => {}
        answer => return Ok(answer?),
    }
    let everybody = Mode::from_raw_mode(0o1777);
    let made = rustix::fs::mkdirat(&at, path, everybody);
    let directory = rustix::fs::openat(&at, path, DIRECTORY, Mode::empty())?;
    if made.is_ok() {
        // The umask took its share.
        rustix::fs::fchmod(&directory, everybody)?;
    }
    Ok(directory)
}

/// The name of a device's lock file. UUIDs and bus ids stand in it as they are.
fn file_name(key: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b':' | b'.');
    let mut name = String::with_capacity(key.len() + 5);
    for byte in key.bytes() {
        if is_plain(byte) && !(name.is_empty() && byte == b'.') {
            name.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(name, "_{byte:02x}");
        }
    }
    name.truncate(200);
    name + ".lock"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_key_leads_out_of_the_directory_and_no_two_share_a_file() {
        assert_eq!(file_name("GPU-0a-b"), "GPU-0a-b.lock");
        assert_eq!(file_name("00000000:3B:00.0"), "00000000:3B:00.0.lock");
        assert_eq!(file_name("../../x"), "_2e._2f.._2fx.lock");
        assert_ne!(file_name("a/b"), file_name("a_2fb"));
    }

    #[test]
    fn a_removed_lock_file_is_made_anew_and_told_from_the_old_one() {
        let place = tempfile::tempdir().expect("a directory");
        let directory = Directory::open(&place.path().join("claims")).expect("our own");
        let file = directory.lock_file("GPU-1").expect("it can be made");
        assert!(directory.names_file("GPU-1", &file));
        directory.remove("GPU-1.lock");
        assert!(!directory.names_file("GPU-1", &file));
        let fresh = directory.lock_file("GPU-1").expect("it can be made");
        assert!(directory.names_file("GPU-1", &fresh) && !directory.names_file("GPU-1", &file));
    }

    #[test]
    fn a_new_lock_file_is_left_alone_for_a_moment_and_an_old_one_is_not() {
        let folder = tempfile::tempdir().expect("a directory");
        let directory = Directory::open(&folder.path().join("claims")).expect("our own");
        let file = directory.lock_file("GPU-1").expect("it can be made");
        let age = || {
            let changed = rustix::fs::fstat(&file).expect("an open file");
            let since = Duration::new(changed.st_ctime as u64, changed.st_ctime_nsec as u32);
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            now.expect("after 1970") - since
        };
        directory.settle(&file);
        assert!(age() >= SETTLING);
        std::thread::sleep(SETTLING);
        let waited = (0..100).map(|_| {
            let began = std::time::Instant::now();
            directory.settle(&file);
            began.elapsed()
        });
        assert!(waited.min().expect("some") < SETTLING);
    }
}
