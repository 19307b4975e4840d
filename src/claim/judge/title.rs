//! How this process is called in the list of processes.

use std::mem::MaybeUninit;

/// The name by which launches know a judge.
pub(crate) const NAME: &std::ffi::CStr = c"autocvd-judge";

/// Writes a title over the arguments and the environment of this process, which must not be read
/// any more. So it no longer carries what its claims are known by.
pub(super) fn set(title: &str) {
    let _ = rustix::thread::set_name(NAME);
    let Some((start, end)) = memory() else { return };
    let length = end - start;
    // SAFETY: the kernel says that the arguments and variables of this process lie there, on its
    // stack, which is mapped as long as it lives; nothing else of this process reads them.
    let area = unsafe { std::slice::from_raw_parts_mut(start as *mut MaybeUninit<u8>, length) };
    let text = title.as_bytes();
    // The last byte stays 0.
    let bytes = text.iter().take(length.saturating_sub(1)).copied();
    let padding = std::iter::repeat(0);
    for (place, byte) in area.iter_mut().zip(bytes.chain(padding)) {
        place.write(byte);
    }
}

/// From where to where the arguments and the environment lie.
fn memory() -> Option<(usize, usize)> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    // The first of these is field 3.
    let arguments = fields.nth(48 - 3)?.parse().ok()?;
    let end = fields.nth(51 - 49)?.trim().parse().ok()?;
    (0 < arguments && arguments < end).then_some((arguments, end))
}
