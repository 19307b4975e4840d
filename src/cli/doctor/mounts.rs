//! What is mounted where, as this process sees it.

use std::path::{Path, PathBuf};

/// One line of /proc/self/mountinfo (proc_pid_mountinfo(5)).
#[derive(Debug, PartialEq)]
pub(super) struct Mount {
    /// Which directory of the filesystem is mounted.
    pub(super) root: String,
    pub(super) place: PathBuf,
    pub(super) filesystem: String,
    /// The options of the mount and of the filesystem.
    pub(super) options: Vec<String>,
}

/// All mounts; empty where they cannot be read.
pub(super) fn all() -> Vec<Mount> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    text.lines().filter_map(parse).collect()
}

fn parse(line: &str) -> Option<Mount> {
    let (mount, filesystem) = line.split_once(" - ")?;
    let mut mount = mount.split(' ').skip(3);
    let (root, place, own) = (mount.next()?, mount.next()?, mount.next()?);
    let mut filesystem = filesystem.split(' ');
    let name = filesystem.next()?;
    let of_filesystem = filesystem.nth(1).unwrap_or_default();
    Some(Mount {
        root: root.to_owned(),
        place: PathBuf::from(place.replace("\\040", " ")),
        filesystem: name.to_owned(),
        options: own
            .split(',')
            .chain(of_filesystem.split(','))
            .map(str::to_owned)
            .collect(),
    })
}

/// The mount that a path is on: of those above it the deepest one, and of several at one place the
/// last.
pub(super) fn of<'a>(path: &Path, mounts: &'a [Mount]) -> Option<&'a Mount> {
    let above = mounts.iter().filter(|mount| path.starts_with(&mount.place));
    above.max_by_key(|mount| mount.place.components().count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deepest_mount_counts() {
        let lines = "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
                     23 22 0:5 / /proc rw,nosuid shared:2 - proc proc rw,hidepid=invisible\n\
                     24 22 8:1 /tmp/systemd-private-1-x.service-y/tmp /tmp rw - ext4 /dev/sda1 rw";
        let mounts: Vec<Mount> = lines.lines().filter_map(parse).collect();
        let on = |path: &str| of(Path::new(path), &mounts).expect("one is above");
        assert_eq!(on("/var/x").filesystem, "ext4");
        assert!(on("/tmp/autocvd").root.contains("systemd-private"));
        assert!(
            on("/proc")
                .options
                .contains(&"hidepid=invisible".to_owned())
        );
        assert_eq!(parse("no mount"), None);
    }
}
