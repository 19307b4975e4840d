//! Standard output, which carries only what the shell is to read.
//!
//! # Design
//! A driver's library is loaded into this process, and some print, close or redirect descriptor 1.
//! Therefore the program keeps a descriptor of its own for standard output, and descriptor 1 is
//! standard error until COMMAND takes over.

use super::failure::Failure;
use rustix::fs::{Mode, OFlags};
use rustix::io::DupFlags;
use std::io::IsTerminal;
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

/// The descriptor to write to.
static DESCRIPTOR: AtomicI32 = AtomicI32::new(1);
/// Whether standard output was closed when the program started.
static WAS_CLOSED: AtomicBool = AtomicBool::new(false);
/// The private descriptor is above those that scripts use (`exec 3>…`).
const LOWEST: i32 = 10;

/// The number of the descriptor to write to, for system calls in a signal handler.
pub(super) fn raw() -> i32 {
    DESCRIPTOR.load(Ordering::Relaxed)
}

/// The descriptor to write to.
pub(super) fn descriptor() -> BorrowedFd<'static> {
    // SAFETY: the program itself never closes it.
    unsafe { BorrowedFd::borrow_raw(raw()) }
}

pub(super) fn is_terminal() -> bool {
    descriptor().is_terminal()
}

/// Opens `/dev/null` in the place of each closed standard descriptor. Otherwise a file that is
/// opened later, perhaps by the driver, would receive what is written there. COMMAND finds them
/// closed again.
pub(super) fn fill_standard_descriptors() {
    // SAFETY: nothing here closes them.
    let is_open = |fd| rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(fd) }).is_ok();
    if (0..=2).all(is_open) {
        return;
    }
    WAS_CLOSED.store(!is_open(1), Ordering::Relaxed);
    // Read-only: a write to a closed standard output must fail.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    while let Ok(lowest_free) = rustix::fs::open("/dev/null", flags, Mode::empty()) {
        if lowest_free.as_raw_fd() > 2 {
            break;
        }
        let _ = lowest_free.into_raw_fd();
    }
}

/// Moves standard output to a private descriptor and makes descriptor 1 standard error.
/// Where no descriptor is left, everything stays as it is.
pub(super) fn make_private() {
    if let Ok(own) = rustix::io::fcntl_dupfd_cloexec(std::io::stdout(), LOWEST) {
        DESCRIPTOR.store(own.into_raw_fd(), Ordering::Relaxed);
        let _ = rustix::stdio::dup2_stdout(std::io::stderr());
    }
}

/// Opens descriptor 1 again where the driver's library has closed it: a file of a claim must not
/// get that number, which COMMAND will use.
pub(super) fn reopen() {
    // SAFETY: a closed descriptor is what this asks for.
    if raw() != 1 && rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(1) }).is_err() {
        let _ = rustix::stdio::dup2_stdout(std::io::stderr());
    }
}

/// Undoes [`make_private`] for the program that this process is about to become.
pub(super) fn give_back() {
    if raw() == 1 {
        return;
    }
    if WAS_CLOSED.load(Ordering::Relaxed) {
        // SAFETY: descriptor 1 is given up here, and the handle that would close it again is not
        // dropped.
        let mut first = std::mem::ManuallyDrop::new(unsafe {
            <std::os::fd::OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(1)
        });
        let _ = rustix::io::dup3(descriptor(), &mut first, DupFlags::CLOEXEC);
    } else {
        let _ = rustix::stdio::dup2_stdout(descriptor());
    }
}

/// Writes a line to standard output.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    write(&format!("{text}\n")).map_err(Failure::cannot_write)
}

/// Writes all of `text` at once. The standard library would take a closed descriptor for success.
///
/// # Errors
/// The system's error, such as a full disk or a pipe without a reader.
pub(super) fn write(text: &str) -> std::io::Result<()> {
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        match rustix::io::write(descriptor(), rest) {
            Ok(written) => rest = &rest[written..],
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
