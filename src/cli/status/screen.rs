//! The screen: a row a GPU, and under it who is on it.

use super::cells::{self, bar, gib, known, left, right, wrap};
use autocvd::text::printable;
use autocvd::text::{bytes as amount, duration};
use autocvd::text::{rfc3339, truncate, width};
use autocvd::{ClaimInfo, Gpu, Memory, MigDevice, Process, ProcessView, Snapshot, Source, State};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// No terminal is taken to be narrower.
pub(super) const MIN_WIDTH: usize = 40;
/// The space between columns.
const GAP: &str = "  ";
/// The widths of the bars of memory and utilization: the first that leave room for the longest name.
const BARS: [(usize, usize); 5] = [(24, 12), (16, 8), (12, 6), (8, 5), (6, 4)];
/// Names shorter than this are worth more than bars.
const MIN_NAME: usize = 14;
/// The longest name of a user that is not truncate.
const MAX_USER: usize = 12;

/// How to show a machine.
pub(super) struct View {
    /// In columns; at least [`MIN_WIDTH`].
    pub(super) width: usize,
    pub(super) color: bool,
    /// `None` for a recorded machine.
    pub(super) live: Option<Live>,
}

/// What is known of a machine besides its state when it is looked at now.
pub(super) struct Live {
    pub(super) host: String,
    pub(super) now: SystemTime,
}

/// The screen's lines, none longer than the view is wide.
pub(super) fn lines(snapshot: &Snapshot, view: &View) -> Vec<String> {
    let rows: Vec<Row> = snapshot
        .gpus
        .iter()
        .flat_map(|gpu| rows(gpu, view))
        .collect();
    let columns = Columns::of(&rows, view.width);
    let mut lines = vec![
        header(snapshot, view),
        summary(snapshot),
        String::new(),
        columns.titles(),
    ];
    for row in &rows {
        lines.push(columns.row(row, view.color));
        lines.extend(columns.details(row, view.width));
    }
    lines
        .into_iter()
        .map(|line| {
            if line.contains('\x1b') {
                line
            } else {
                truncate(line.trim_end(), view.width)
            }
        })
        .collect()
}

fn header(snapshot: &Snapshot, view: &View) -> String {
    let source = match snapshot.source {
        Source::Nvml => ", read through NVML",
        Source::NvidiaSmi => ", read through nvidia-smi",
        Source::File => "",
    };
    let driver = known(snapshot.driver_version.as_deref());
    match &view.live {
        Some(Live { host, now }) => {
            let now = humantime::format_rfc3339_seconds(*now);
            format!(
                "{}: driver {driver}{source}, {now}",
                printable(host.as_bytes())
            )
        }
        None => format!("recorded: driver {driver}{source}"),
    }
}

pub(super) fn summary(snapshot: &Snapshot) -> String {
    let free = snapshot
        .devices()
        .filter(|device| device.state() == Some(State::Free))
        .count();
    let view = match snapshot.process_view {
        ProcessView::Host => "",
        ProcessView::Container => " (in a container: processes outside it are not listed)",
    };
    format!("{free} of {} free{view}", snapshot.devices().count())
}

/// A GPU or a MIG device, in words.
struct Row {
    /// Empty for a MIG device.
    index: String,
    name: String,
    memory: String,
    memory_share: Option<f64>,
    /// `None` for a MIG device: there is no such thing.
    utilization: Option<String>,
    utilization_share: Option<f64>,
    state: Option<State>,
    /// Why it is in that state, where the occupants do not tell.
    reason: Option<String>,
    occupants: Vec<Occupant>,
}

/// A process or a claim, in words.
struct Occupant {
    user: String,
    pid: String,
    kind: &'static str,
    command: String,
    /// Empty for a claim.
    memory: String,
    time: String,
}

fn rows(gpu: &Gpu, view: &View) -> Vec<Row> {
    let parts = gpu
        .mig
        .as_ref()
        .map(|mig| &mig.devices[..])
        .unwrap_or_default();
    let on_parts: Vec<u32> = parts
        .iter()
        .flat_map(|part| part.processes.iter().flatten())
        .map(|p| p.pid)
        .collect();
    let own = |process: &&Process| !on_parts.contains(&process.pid);
    let processes: Option<Vec<&Process>> = gpu
        .processes
        .as_ref()
        .map(|processes| processes.iter().filter(own).collect());
    // A GPU that is divided may have no list of its own.
    let processes = if parts.is_empty() {
        processes
    } else {
        Some(processes.unwrap_or_default())
    };
    let name = known(gpu.name.as_deref());
    let whole = Row {
        index: gpu.index.to_string(),
        // All of them are NVIDIA's.
        name: name.strip_prefix("NVIDIA ").unwrap_or(&name).to_owned(),
        memory: memory(gpu.memory),
        memory_share: share(gpu.memory),
        utilization: Some(
            gpu.utilization
                .gpu
                .map_or(cells::UNKNOWN.into(), |percent| format!("{percent} %")),
        ),
        utilization_share: gpu
            .utilization
            .gpu
            .map(|percent| f64::from(percent) / 100.0),
        state: gpu.state,
        reason: reason(
            gpu.state,
            gpu.reason.as_deref(),
            processes.as_deref(),
            &gpu.claims,
        ),
        occupants: occupants(processes.as_deref(), &gpu.claims, view),
    };
    std::iter::once(whole)
        .chain(parts.iter().map(|part| part_row(part, view)))
        .collect()
}

fn part_row(part: &MigDevice, view: &View) -> Row {
    let processes: Option<Vec<&Process>> = part
        .processes
        .as_ref()
        .map(|processes| processes.iter().collect());
    let name = known(part.name.as_deref());
    // The GPU's own name stands above; what follows it is the profile.
    let profile = name
        .rsplit_once("MIG ")
        .map_or(&*name, |(_, profile)| profile);
    Row {
        index: String::new(),
        name: format!("{GAP}MIG {} {profile}", part.index),
        memory: memory(part.memory),
        memory_share: share(part.memory),
        utilization: None,
        utilization_share: None,
        state: part.state,
        reason: reason(
            part.state,
            part.reason.as_deref(),
            processes.as_deref(),
            &part.claims,
        ),
        occupants: occupants(processes.as_deref(), &part.claims, view),
    }
}

fn memory(memory: Memory) -> String {
    match (memory.used, memory.total) {
        (None, None) => cells::UNKNOWN.into(),
        (used, total) => format!("{}/{} GiB", gib(used), gib(total)),
    }
}

fn share(memory: Memory) -> Option<f64> {
    Some(memory.used? as f64 / memory.total.filter(|total| *total > 0)? as f64)
}

/// The reason, where the lines of the occupants do not tell it.
fn reason(
    state: Option<State>,
    reason: Option<&str>,
    processes: Option<&[&Process]>,
    claims: &[ClaimInfo],
) -> Option<String> {
    let told = match state {
        Some(State::Claimed) => !claims.is_empty(),
        Some(State::Busy) => processes
            .unwrap_or_default()
            .iter()
            .any(|process| process.kind.computes()),
        _ => false,
    };
    let unlisted = processes.is_none() && state == Some(State::Free);
    let reason = reason
        .filter(|_| !told)
        .map(|text| printable(text.as_bytes()));
    reason.or_else(|| {
        unlisted.then(|| "the process list cannot be read; judged by memory and utilization".into())
    })
}

fn occupants(processes: Option<&[&Process]>, claims: &[ClaimInfo], view: &View) -> Vec<Occupant> {
    let processes = processes.unwrap_or_default();
    // A launch that has become its program is one line, not two.
    let seen = |claim: &&ClaimInfo| {
        !processes
            .iter()
            .any(|p| Some(p.pid) == claim.pid && p.user == claim.user)
    };
    let claims = claims.iter().filter(seen).map(|claim| Occupant {
        user: known(claim.user.as_deref()),
        pid: claim
            .pid
            .map_or(cells::UNKNOWN.into(), |pid| pid.to_string()),
        kind: "claim",
        command: known(claim.command.as_deref()),
        memory: String::new(),
        time: time(claim.since, view),
    });
    let processes = processes.iter().map(|process| Occupant {
        user: known(process.user.as_deref()),
        pid: process.pid.to_string(),
        kind: process.kind.name(),
        command: known(process.command.as_deref()),
        memory: process.used_memory.map_or(cells::UNKNOWN.into(), amount),
        time: time(process.started, view),
    });
    claims.chain(processes).collect()
}

/// For how long, as of now; of a recorded machine, since when.
fn time(since: Option<u64>, view: &View) -> String {
    let Some(since) = since else {
        return cells::UNKNOWN.into();
    };
    match &view.live {
        Some(live) => {
            let now = live
                .now
                .duration_since(UNIX_EPOCH)
                .map_or(0, |now| now.as_secs());
            duration(Duration::from_secs(now.saturating_sub(since).max(1)))
        }
        // Minutes say enough of what is past: 2026-03-03 07:59Z.
        None => match rfc3339(since).to_string().get(..16) {
            Some(minute) => format!("{}Z", minute.replace('T', " ")),
            None => cells::UNKNOWN.into(),
        },
    }
}

/// How wide everything is.
struct Columns {
    index: usize,
    name: usize,
    memory_bar: usize,
    memory: usize,
    utilization_bar: usize,
    state: usize,
    user: usize,
    pid: usize,
    kind: usize,
    command: usize,
    occupant_memory: usize,
    time: usize,
}

/// `100 %`.
const UTILIZATION: usize = 5;

impl Columns {
    fn of(rows: &[Row], all: usize) -> Self {
        let widest = |texts: &mut dyn Iterator<Item = &str>, title: &str| {
            texts.map(width).max().unwrap_or(0).max(width(title))
        };
        let occupants = || rows.iter().flat_map(|row| &row.occupants);
        let mut columns = Self {
            index: widest(&mut rows.iter().map(|row| &*row.index), "GPU"),
            name: widest(&mut rows.iter().map(|row| &*row.name), "NAME"),
            memory_bar: 0,
            memory: widest(&mut rows.iter().map(|row| &*row.memory), "MEMORY"),
            utilization_bar: 0,
            state: widest(&mut rows.iter().map(|row| word(row.state)), "STATE"),
            user: widest(&mut occupants().map(|occupant| &*occupant.user), "").min(MAX_USER),
            pid: widest(&mut occupants().map(|occupant| &*occupant.pid), ""),
            kind: widest(&mut occupants().map(|occupant| occupant.kind), ""),
            command: widest(&mut occupants().map(|occupant| &*occupant.command), ""),
            occupant_memory: widest(&mut occupants().map(|occupant| &*occupant.memory), ""),
            time: widest(&mut occupants().map(|occupant| &*occupant.time), ""),
        };
        let fixed = columns.index + columns.memory + UTILIZATION + columns.state + 4 * GAP.len();
        // A bar and the space behind it.
        let name_beside = |(memory, utilization): (usize, usize)| {
            all.checked_sub(fixed + memory + utilization + 2)
        };
        let roomy = BARS
            .into_iter()
            .find(|bars| name_beside(*bars).is_some_and(|name| name >= columns.name));
        let tight = || {
            BARS.last()
                .copied()
                .filter(|bars| name_beside(*bars).is_some_and(|name| name >= MIN_NAME))
        };
        match roomy.or_else(tight) {
            Some(bars) => {
                columns.name = columns.name.min(name_beside(bars).unwrap_or(0));
                (columns.memory_bar, columns.utilization_bar) = bars;
            }
            None => columns.name = columns.name.min(all.saturating_sub(fixed)),
        }
        columns
    }

    fn titles(&self) -> String {
        let memory = self.memory_bar + usize::from(self.memory_bar > 0) + self.memory;
        let utilization =
            self.utilization_bar + usize::from(self.utilization_bar > 0) + UTILIZATION;
        let (gpu, name) = (right("GPU", self.index), left("NAME", self.name));
        [
            gpu,
            name,
            left("MEMORY", memory),
            left("UTIL", utilization),
            "STATE".into(),
        ]
        .join(GAP)
    }

    fn row(&self, row: &Row, color: bool) -> String {
        let with_bar = |share: Option<f64>, columns: usize, text: &str, width: usize| match columns
        {
            0 => right(text, width),
            _ => format!("{} {}", bar(share, columns), right(text, width)),
        };
        let memory = with_bar(row.memory_share, self.memory_bar, &row.memory, self.memory);
        let utilization = match &row.utilization {
            Some(text) => with_bar(
                row.utilization_share,
                self.utilization_bar,
                text,
                UTILIZATION,
            ),
            None => " "
                .repeat(self.utilization_bar + usize::from(self.utilization_bar > 0) + UTILIZATION),
        };
        let state = match (color, color_of(row.state)) {
            (true, Some(code)) => format!("\x1b[{code}m{}\x1b[0m", word(row.state)),
            _ => word(row.state).to_owned(),
        };
        let (index, name) = (right(&row.index, self.index), left(&row.name, self.name));
        [index, name, memory, utilization, state].join(GAP)
    }

    /// The lines under a row.
    fn details(&self, row: &Row, all: usize) -> Vec<String> {
        // Under the name, and deeper under a MIG device.
        let level = if row.index.is_empty() { 2 } else { 1 };
        let indent = " ".repeat(self.index) + &GAP.repeat(level);
        let room = all.saturating_sub(width(&indent));
        let mut lines: Vec<String> = Vec::new();
        if let Some(reason) = &row.reason {
            lines.extend(
                wrap(reason, room)
                    .iter()
                    .map(|line| format!("{indent}{line}")),
            );
        }
        let fixed = [
            self.user,
            self.pid,
            self.kind,
            self.occupant_memory,
            self.time,
        ];
        let command = room.saturating_sub(fixed.iter().sum::<usize>() + fixed.len() * GAP.len());
        let command = command.max(8).min(self.command);
        for occupant in &row.occupants {
            let line = [
                left(&occupant.user, self.user),
                right(&occupant.pid, self.pid),
                left(occupant.kind, self.kind),
                left(&occupant.command, command),
                right(&occupant.memory, self.occupant_memory),
                right(&occupant.time, self.time),
            ];
            lines.push(format!("{indent}{}", line.join(GAP)));
        }
        lines
    }
}

pub(super) fn word(state: Option<State>) -> &'static str {
    match state {
        Some(State::Free) => "free",
        Some(State::Busy) => "busy",
        Some(State::Claimed) => "claimed",
        Some(State::Unavailable) => "unavailable",
        None => cells::UNKNOWN,
    }
}

/// The code of its colour (ECMA-48's SGR).
fn color_of(state: Option<State>) -> Option<u8> {
    match state? {
        State::Free => Some(32),
        State::Busy => Some(31),
        State::Claimed => Some(33),
        State::Unavailable => Some(90),
    }
}
