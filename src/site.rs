//! `/etc/autocvd.conf`: what the administrator of a machine sets for all its users.

use crate::error::IdList;
use crate::gpu::{Fact, Process, ProcessView, Snapshot, Source};
use crate::probe::Probe;
use crate::{ids, proc};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Where it is. No variable names another file: it counts for every user.
pub(crate) const PATH: &str = "/etc/autocvd.conf";

/// How much of it is read, in bytes.
const MAX_BYTES: u64 = 64 << 10;

/// What `/etc/autocvd.conf` says. It is added to what a user sets, and never replaced by it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct SiteConfig {
    /// The GPUs that no launch is given, by the ids of
    /// [`Request::exclude`](crate::Request::exclude).
    pub exclude: Vec<String>,
    /// The programs whose processes make no GPU busy, by their paths.
    pub ignore: Vec<PathBuf>,
    /// How many GPUs one user may hold by claims.
    pub max_per_user: Option<usize>,
    /// The directory of claims.
    pub claim_dir: Option<PathBuf>,
    /// What is wrong with the file, one line each; the rest of it counts.
    pub warnings: Vec<String>,
}

impl SiteConfig {
    /// Reads the file of this machine; where there is none, nothing is set.
    pub(crate) fn read() -> Self {
        // One call where it is absent, as almost everywhere.
        let file = match File::open(PATH) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Self::default(),
            Err(error) => return Self::ignored(&error.to_string()),
        };
        let Ok(meta) = file.metadata() else {
            return Self::ignored("its owner cannot be read");
        };
        if !meta.is_file() {
            return Self::ignored("it is no regular file");
        }
        if meta.uid() != 0 || meta.mode() & 0o022 != 0 {
            return Self::ignored(
                "others than root may write it; 'chown root' and 'chmod 644' mend that",
            );
        }
        let mut bytes = Vec::new();
        match file.take(MAX_BYTES).read_to_end(&mut bytes) {
            Ok(_) => Self::parse(&String::from_utf8_lossy(&bytes)),
            Err(error) => Self::ignored(&error.to_string()),
        }
    }

    fn ignored(why: &str) -> Self {
        Self {
            warnings: vec![format!("{PATH} is ignored: {why}")],
            ..Self::default()
        }
    }

    /// Reads lines `NAME VALUE` or `NAME = VALUE`; `#` begins a comment.
    pub(crate) fn parse(text: &str) -> Self {
        let mut config = Self::default();
        for (line, number) in text.lines().zip(1..) {
            let setting = line.split('#').next().unwrap_or_default().trim();
            if setting.is_empty() {
                continue;
            }
            if let Err(why) = config.set(setting) {
                config.warnings.push(format!(
                    "{PATH}, line {number}: '{setting}' is ignored: {why}"
                ));
            }
        }
        config
    }

    fn set(&mut self, setting: &str) -> Result<(), String> {
        let is_separator = |c: char| c == '=' || c.is_whitespace();
        let (name, value) = setting.split_once(is_separator).unwrap_or((setting, ""));
        let value = value.trim_start();
        let value = value.strip_prefix('=').unwrap_or(value).trim();
        match name {
            "exclude" | "ignore" | "max_per_user" | "claim_dir" if value.is_empty() => {
                return Err(format!("give a value: {name} VALUE"));
            }
            "exclude" => {
                let ids = value.split(|c: char| c == ',' || c.is_whitespace());
                let ids = ids.filter(|id| !id.is_empty()).map(str::to_owned);
                self.exclude.extend(ids);
            }
            "ignore" => self.ignore.push(absolute(value)?),
            "max_per_user" => {
                let count = value.parse().ok().filter(|count| *count > 0);
                let count = count.ok_or("give a whole number from 1 on")?;
                once(&mut self.max_per_user, count)?;
            }
            "claim_dir" => once(&mut self.claim_dir, absolute(value)?)?,
            _ => return Err("use exclude, ignore, max_per_user or claim_dir".to_owned()),
        }
        Ok(())
    }

    /// Marks the devices of `exclude` as reserved. Returns a warning for each id that names none
    /// here: one file may serve many machines.
    pub(crate) fn reserve(&self, snapshot: &mut Snapshot, probe: &mut dyn Probe) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.exclude.is_empty() || snapshot.source == Source::File {
            return warnings;
        }
        if self.exclude.iter().any(|id| ids::may_be_name(id)) {
            let gpus = snapshot.gpus.iter_mut();
            gpus.for_each(|gpu| probe.read_name(gpu));
        }
        for id in &self.exclude {
            match ids::resolve(id, IdList::Exclude, snapshot) {
                Ok(devices) => devices
                    .into_iter()
                    .for_each(|device| snapshot.reserve(device)),
                Err(error) => warnings.push(format!("{PATH}: exclude: {error}")),
            }
        }
        warnings
    }

    /// Marks the processes of a GPU whose programs are ignored.
    pub(crate) fn mark_ignored(&self, snapshot: &mut Snapshot, gpu: usize) {
        // A container is told pids that may mean other processes there.
        let pids_are_known =
            snapshot.source != Source::File && snapshot.process_view == ProcessView::Host;
        if self.ignore.is_empty() || !pids_are_known {
            return;
        }
        let gpu = &mut snapshot.gpus[gpu];
        let parts = gpu.mig.iter_mut().flat_map(|mig| &mut mig.devices);
        let lists = parts.map(|part| &mut part.processes);
        for process in lists
            .chain([&mut gpu.processes])
            .filter_map(Fact::value_mut)
            .flatten()
        {
            process.ignored = self.ignore.iter().any(|program| runs(process, program));
        }
    }
}

fn absolute(path: &str) -> Result<PathBuf, String> {
    match Path::new(path).is_absolute() {
        true => Ok(Path::new(path).components().collect()),
        false => Err("give an absolute path".to_owned()),
    }
}

fn once<T>(slot: &mut Option<T>, value: T) -> Result<(), String> {
    match slot.replace(value) {
        None => Ok(()),
        Some(first) => {
            *slot = Some(first);
            Err("it is set in an earlier line".to_owned())
        }
    }
}

/// Whether the process runs the program at this path.
fn runs(process: &Process, program: &Path) -> bool {
    if let Some(executable) = proc::executable(process.pid) {
        return executable == program;
    }
    // Another user's: its first word is what it says of itself.
    let command = proc::command(process.pid);
    let word = command.as_deref().and_then(|line| line.split(' ').next());
    word.is_some_and(|word| match word.contains('/') {
        true => Path::new(word) == program,
        false => program.file_name().is_some_and(|name| name == word),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_and_add_up() {
        let config = SiteConfig::parse(
            "# reserved\nexclude 0, 1\n\nexclude = GPU-12  # a comment\n\
             ignore /usr/bin/nvidia-cuda-mps-server\nmax_per_user=2\nclaim_dir /run/autocvd/\n",
        );
        let expected = SiteConfig {
            exclude: vec!["0".into(), "1".into(), "GPU-12".into()],
            ignore: vec!["/usr/bin/nvidia-cuda-mps-server".into()],
            max_per_user: Some(2),
            claim_dir: Some("/run/autocvd".into()),
            warnings: Vec::new(),
        };
        assert_eq!(config, expected);
    }

    #[test]
    fn a_wrong_line_is_quoted_with_its_number_and_the_rest_counts() {
        let config =
            SiteConfig::parse("exclud 0\nmax_per_user none\nignore mps\nexclude\nexclude 3\n");
        assert_eq!(config.exclude, ["3"]);
        assert_eq!(config.max_per_user, None);
        for (warning, quoted) in config.warnings.iter().zip([
            "line 1: 'exclud 0'",
            "line 2: 'max_per_user none'",
            "line 3: 'ignore mps'",
            "line 4: 'exclude'",
        ]) {
            assert!(warning.contains(quoted), "{warning}");
        }
        assert_eq!(config.warnings.len(), 4);
    }
}
