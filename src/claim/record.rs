//! What a claim's file says: lines of `name=value`. What is not understood is no claim.

use super::lease::Lease;
use super::{Claim, End};
use crate::proc::{self, ProcessId};
use std::fs::File;
use std::io::Read;

/// The first line. A later form will have another one and not be misread.
const HEADER: &str = "autocvd claim 1";
/// No claim is as long: a command line is cut at 4 KiB, and 64 UUIDs are 3 KiB.
const MAX_BYTES: u64 = 64 << 10;

/// A claim as it is written down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) kind: Kind,
    pub(super) devices: Vec<String>,
    /// The process, or for a lease the shell.
    pub(super) holder: ProcessId,
    /// The PID namespace that the pids belong to.
    pub(super) namespace: Option<u64>,
    pub(super) boot: String,
    pub(super) parent: Option<String>,
    pub(super) command: String,
    /// Unix time in seconds.
    pub(super) since: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Process,
    Lease(Lease),
}

impl Record {
    pub(super) fn read(file: &File) -> Option<Self> {
        let mut bytes = Vec::with_capacity(4096);
        file.take(MAX_BYTES).read_to_end(&mut bytes).ok()?;
        Self::parse(std::str::from_utf8(&bytes).ok()?)
    }

    /// The claim that it stands for.
    pub(super) fn into_claim(self, name: &str, uid: u32, end: End) -> Claim {
        let Self {
            devices,
            holder,
            command,
            since,
            parent,
            ..
        } = self;
        Claim {
            name: name.to_owned(),
            devices,
            pid: holder.pid,
            uid,
            command,
            since,
            parent,
            end,
            held_by_ancestor: false,
        }
    }

    pub(super) fn to_text(&self) -> String {
        let mut text = format!("{HEADER}\n");
        let mut line = |name: &str, value: &str| {
            text.push_str(name);
            text.push('=');
            text.push_str(value);
            text.push('\n');
        };
        line("units", &self.devices.join(","));
        line("process", &write_process(self.holder));
        if let Some(namespace) = self.namespace {
            line("namespace", &namespace.to_string());
        }
        line("boot", &self.boot);
        if let Some(parent) = &self.parent {
            line("parent", parent);
        }
        line("since", &self.since.to_string());
        line("command", &proc::printable(self.command.as_bytes()));
        if let Kind::Lease(lease) = &self.kind {
            lease.write(&mut line);
        }
        line("end", "");
        text
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        let body = text
            .strip_prefix(HEADER)?
            .strip_prefix('\n')?
            .strip_suffix("end=\n")?;
        let fields = Fields(
            body.lines()
                .filter_map(|line| line.split_once('='))
                .collect(),
        );
        let devices: Vec<String> = fields.get("units")?.split(',').map(str::to_owned).collect();
        let lease = fields.get("until").is_some();
        Some(Self {
            kind: if lease {
                Kind::Lease(Lease::parse(&fields)?)
            } else {
                Kind::Process
            },
            devices,
            holder: read_process(fields.get("process")?)?,
            namespace: fields
                .get("namespace")
                .and_then(|number| number.parse().ok()),
            boot: fields.get("boot")?.to_owned(),
            parent: fields.get("parent").map(str::to_owned),
            command: fields.get("command")?.to_owned(),
            since: fields.get("since")?.parse().ok()?,
        })
    }
}

/// The lines of a record.
pub(super) struct Fields<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Fields<'a> {
    pub(super) fn get(&self, name: &str) -> Option<&'a str> {
        self.0
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, value)| *value)
    }
}

/// `PID:START`.
pub(super) fn write_process(process: ProcessId) -> String {
    format!("{}:{}", process.pid, process.start)
}

pub(super) fn read_process(text: &str) -> Option<ProcessId> {
    let (pid, start) = text.split_once(':')?;
    Some(ProcessId {
        pid: pid.parse().ok()?,
        start: start.parse().ok()?,
    })
}

/// Comma-separated values; an empty text is none.
pub(super) fn read_list<T>(text: &str, one: impl Fn(&str) -> Option<T>) -> Option<Vec<T>> {
    text.split(',')
        .filter(|part| !part.is_empty())
        .map(one)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::lease::{Form, Lease};
    use super::*;
    use proptest::prelude::*;

    fn record(kind: Kind) -> Record {
        Record {
            kind,
            devices: vec!["GPU-1".into(), "GPU-2".into()],
            holder: ProcessId {
                pid: 42,
                start: 4711,
            },
            namespace: Some(4026531836),
            boot: "b00t".into(),
            parent: Some("1-2".into()),
            command: "python train.py --name a=b".into(),
            since: 1_700_000_000,
        }
    }

    fn lease(program: Option<Vec<ProcessId>>) -> Lease {
        Lease {
            until: std::time::Duration::from_millis(123_456),
            made: 12_000,
            requester_pid: Some(6),
            before: vec![7, 8],
            shell: "bash -l".into(),
            form: Form::Exported("1,2".into()),
            program,
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let ids = vec![
            ProcessId { pid: 9, start: 10 },
            ProcessId { pid: 11, start: 12 },
        ];
        for kind in [
            Kind::Process,
            Kind::Lease(lease(None)),
            Kind::Lease(lease(Some(ids))),
        ] {
            let record = record(kind);
            assert_eq!(Record::parse(&record.to_text()), Some(record));
        }
    }

    #[test]
    fn a_record_that_is_cut_is_none() {
        let text = record(Kind::Lease(lease(None))).to_text();
        for end in 0..text.len() {
            assert_eq!(Record::parse(&text[..end]), None, "{}", &text[..end]);
        }
    }

    #[test]
    fn a_command_with_line_breaks_adds_no_line() {
        let forged = Record {
            command: "a\nuntil=5\nb".into(),
            ..record(Kind::Process)
        };
        assert_eq!(
            Record::parse(&forged.to_text()).map(|record| record.kind),
            Some(Kind::Process)
        );
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC*", lines in prop::collection::vec("[a-z]{1,9}=[0-9:,-]{0,20}\n", 0..12)) {
            let _ = Record::parse(&text);
            let _ = Record::parse(&format!("{HEADER}\n{}end=\n", lines.concat()));
        }
    }
}
