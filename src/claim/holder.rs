//! Who holds a claim, for people to read and for waiters to watch. No decision rests on it: a claim
//! without such a record counts like any other.
//!
//! The record is a symbolic link `holders/TOKEN` that leads nowhere. It is shown only while the
//! kernel says that the token's byte is locked, as its owner's, and no command line stands in it:
//! who may know that asks /proc.

use super::ancestry::{self, Token};
use super::directory::Directory;
use super::share::Holding;
use crate::proc::ProcessId;
use std::fmt;
use std::io;

pub(super) const DIRECTORY: &str = "holders";
/// Old records that one look clears away at most.
const SWEEP_LIMIT: usize = 256;

/// What a claim is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClaimKind {
    /// A program that autocvd became, or a process that claims for itself.
    Command,
    /// What a shell does with a printed choice.
    Lease,
    /// A shell whose variables were set.
    Shell,
}

impl ClaimKind {
    /// The word for it in JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Command => "command",
            Self::Lease => "lease",
            Self::Shell => "shell",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Command, Self::Lease, Self::Shell]
            .into_iter()
            .find(|kind| kind.name() == text)
    }
}

/// What is published of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Holder {
    pub(super) kind: ClaimKind,
    /// The process that it is for: COMMAND, or the shell.
    pub(super) process: Option<ProcessId>,
    /// The process that holds the lock.
    pub(super) keeper: u32,
    /// The PID namespace of both.
    pub(super) namespace: Option<u64>,
    /// Unix time in seconds.
    pub(super) since: u64,
    /// Unix time in seconds.
    pub(super) until: Option<u64>,
    /// How many claims it is inside of.
    pub(super) level: u32,
    /// The keys of its devices.
    pub(super) devices: Vec<String>,
    /// What it has of them.
    pub(super) holding: Holding,
    /// The version of autocvd that made it.
    pub(super) version: Option<String>,
}

impl Holder {
    /// The version of this program.
    pub(super) fn own_version() -> Option<String> {
        Some(env!("CARGO_PKG_VERSION").to_owned())
    }

    pub(super) fn publish(&self, directory: &Directory, token: Token) -> io::Result<()> {
        directory
            .make_inner(DIRECTORY)?
            .publish(&token.to_string(), &self.to_string())
    }

    /// The record of a claim, and the user whose it is.
    pub(super) fn of(directory: &Directory, token: Token) -> Option<(u32, Self)> {
        let (uid, text) = directory
            .inner(DIRECTORY)
            .ok()?
            .published(&token.to_string())?;
        Some((uid, Self::parse(&text)?))
    }

    /// What it has of these of its devices, in their order.
    fn holding_of(&self, devices: &[String]) -> Holding {
        let place = |key: &String| self.devices.iter().position(|device| device == key);
        let places = devices.iter().filter_map(place);
        let shares: Option<Vec<_>> = places
            .map(|place| self.holding.share(place).cloned())
            .collect();
        shares.map_or(Holding::Whole, Holding::Shares)
    }

    fn is_alive(&self, directory: &Directory, token: Token) -> bool {
        let first = self.devices.first();
        first.is_some_and(|key| ancestry::is_held(directory, key, token))
    }

    /// The claim that the first possible one of these processes, which are this user's, has on just
    /// these devices.
    pub(super) fn find(
        directory: &Directory,
        namespace: Option<u64>,
        processes: &[ProcessId],
        devices: &[String],
    ) -> Option<(ProcessId, Token, Holding)> {
        let holders = directory.inner(DIRECTORY).ok()?;
        let user = rustix::process::geteuid().as_raw();
        let names = holders.names().into_iter().take(SWEEP_LIMIT);
        let found = names.filter_map(|name| {
            let (uid, text) = holders.published(&name)?;
            let (holder, token) = (Self::parse(&text)?, name.parse().ok()?);
            let place = processes
                .iter()
                .position(|id| Some(*id) == holder.process)?;
            let same = holder.devices.len() == devices.len()
                && devices.iter().all(|key| holder.devices.contains(key));
            let is_ours =
                uid == user && holder.namespace == namespace && holder.kind == ClaimKind::Command;
            let counts = same && is_ours && holder.is_alive(directory, token);
            // The record names them in an order of its own.
            let holding = counts.then(|| holder.holding_of(devices))?;
            Some((place, token, holding))
        });
        let (place, token, holding) = found.min_by_key(|(place, ..)| *place)?;
        Some((processes[place], token, holding))
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| {
            text.split(' ')
                .find_map(|field| field.strip_prefix(name)?.strip_prefix('='))
        };
        let number = |name| field(name).and_then(|text| text.parse::<u64>().ok());
        let devices: Vec<String> = field("devices")?.split(',').map(str::to_owned).collect();
        Some(Self {
            kind: field("kind").and_then(ClaimKind::parse)?,
            process: field("process").and_then(|text| text.parse().ok()),
            keeper: number("keeper")?.try_into().ok()?,
            namespace: number("namespace"),
            since: number("since")?,
            until: number("until"),
            version: field("version")
                .filter(|text| text.bytes().all(is_of_a_version))
                .map(str::to_owned),
            level: number("level")
                .and_then(|level| level.try_into().ok())
                .unwrap_or(0),
            holding: Holding::parse(field("shares").unwrap_or_default(), devices.len())?,
            devices,
        })
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kind,
            keeper,
            since,
            devices,
            ..
        } = self;
        write!(
            f,
            "kind={} keeper={keeper} since={since} devices={}",
            kind.name(),
            devices.join(",")
        )?;
        if self.level > 0 {
            write!(f, " level={}", self.level)?;
        }
        if let Holding::Shares(_) = self.holding {
            write!(f, " shares={}", self.holding)?;
        }
        if let Some(process) = self.process {
            write!(f, " process={process}")?;
        }
        if let Some(namespace) = self.namespace {
            write!(f, " namespace={namespace}")?;
        }
        if let Some(until) = self.until {
            write!(f, " until={until}")?;
        }
        match &self.version {
            Some(version) => write!(f, " version={version}"),
            None => Ok(()),
        }
    }
}

/// Any user may publish anything, and this is shown on terminals.
fn is_of_a_version(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b".+-".contains(&byte)
}

pub(super) fn withdraw(directory: &Directory, token: Token) {
    if let Ok(holders) = directory.inner(DIRECTORY) {
        holders.remove(&token.to_string());
    }
}

/// Clears away records of claims that have ended, which their holders left behind.
pub(super) fn sweep(directory: &Directory) {
    let Ok(holders) = directory.inner(DIRECTORY) else {
        return;
    };
    for name in holders.names().into_iter().take(SWEEP_LIMIT) {
        let Some((uid, text)) = holders.published(&name) else {
            continue;
        };
        let record = Holder::parse(&text).zip(name.parse().ok());
        let ended = |(holder, token): (Holder, Token)| !holder.is_alive(directory, token);
        if record.is_some_and(ended) {
            holders.remove_own(&name, uid);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_published_is_read_back_and_unknown_words_are_passed_over() {
        let full = Holder {
            kind: ClaimKind::Shell,
            process: Some(ProcessId { pid: 1, start: 2 }),
            keeper: 3,
            namespace: Some(4),
            since: 5,
            until: Some(6),
            level: 1,
            devices: vec!["GPU-1".into(), "GPU-2".into()],
            holding: Holding::parse("0-5,7-9+11-12", 2).expect("two shares"),
            version: Holder::own_version(),
        };
        let bare = Holder {
            process: None,
            namespace: None,
            until: None,
            version: None,
            level: 0,
            holding: Holding::Whole,
            ..full.clone()
        };
        for holder in [full, bare] {
            assert_eq!(Holder::parse(&format!("new=1 {holder} x")), Some(holder));
        }
        assert_eq!(Holder::parse("kind=lease"), None);
        let escape = "kind=lease keeper=1 since=2 devices=GPU-1 version=\u{1b}[2J";
        let holder = Holder::parse(escape).expect("a record");
        assert_eq!(holder.version, None);
    }
}
