//! The screen: a row a GPU, with who is on it.

mod waiting;

use super::cells::{self, Look, Style, bar, gib, known, left, ranges, right};
use crate::cli::words::wrap;
use autocvd::program::{printable, rfc3339, truncate, width};
use autocvd::text::{bytes, duration};
use autocvd::{ClaimInfo, Device, DeviceId, Fact, Process, ProcessView, Snapshot, State};
use std::collections::BTreeMap;
use std::time::Duration;

/// No terminal is taken to be narrower.
pub(super) const MIN_WIDTH: usize = 40;
/// The space between columns.
const GAP: usize = 2;
/// The widths of the bars of memory and utilization: the first that leave room for commands.
const BARS: [(usize, usize); 4] = [(16, 5), (12, 5), (8, 5), (8, 0)];
/// What a command needs beside bars.
const MIN_COMMAND: usize = 20;
/// The longest name of a user, or of a GPU, that is not cut.
const MAX_USER: usize = 12;
const MAX_NAME: usize = 22;
/// `100 %`.
const UTILIZATION: usize = 5;

/// How to show a machine.
pub(super) struct View {
    /// In columns; at least [`MIN_WIDTH`].
    pub(super) width: usize,
    pub(super) style: Style,
    pub(super) rows: Rows,
    /// The time of the snapshot, in Unix seconds, where it is known.
    pub(super) now: Option<u64>,
    /// The time as people read it.
    pub(super) clock: String,
    /// The name of the machine, where it is known.
    pub(super) host: Option<String>,
}

/// How many lines a GPU may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rows {
    /// As many as it has occupants.
    Full,
    /// One: the window is low.
    One,
}

/// A screen in its three parts. No line is longer than the view is wide.
pub(super) struct Screen {
    /// What stands above the table, with its titles.
    pub(super) head: Vec<String>,
    pub(super) rows: Vec<String>,
    pub(super) foot: Vec<String>,
}

impl Screen {
    pub(super) fn of(snapshot: &Snapshot, view: &View) -> Self {
        let rows: Vec<Row> = rows(snapshot, view);
        let columns = Columns::of(&rows, view);
        let mut head = headline(snapshot, view);
        head.push(String::new());
        head.push(view.style.paint(Look::Faint, columns.titles().trim_end()));
        let lines = rows
            .iter()
            .flat_map(|row| columns.lines(row, view))
            .collect();
        let mut foot = waiting::lines(&snapshot.waiting, view);
        if let Some(users) = users(snapshot) {
            let column = if foot.is_empty() {
                5
            } else {
                waiting::TITLE.len()
            };
            if foot.is_empty() {
                foot.push(String::new());
            }
            let text = truncate(&users, view.width.saturating_sub(column + GAP));
            let title = view.style.paint(Look::Faint, &left("USERS", column));
            foot.push(format!("{title}  {text}"));
        }
        let spelled =
            |lines: Vec<String>| lines.iter().map(|line| view.style.spell(line)).collect();
        Self {
            head: spelled(head),
            rows: spelled(lines),
            foot: spelled(foot),
        }
    }

    pub(super) fn lines(self) -> Vec<String> {
        [self.head, self.rows, self.foot].concat()
    }
}

/// `2/8 free`, for prompts and status bars.
pub(super) fn short(snapshot: &Snapshot) -> String {
    let (free, all) = free_of_all(snapshot);
    format!("{free}/{all} free{}", of_shared(snapshot))
}

/// How much is left for further shares of the GPUs that are shared, if there are any.
fn of_shared(snapshot: &Snapshot) -> String {
    let is_shared = |device: &Device| device.state() == Some(State::Shared);
    let rests: Vec<u64> = snapshot
        .devices()
        .filter(is_shared)
        .map(|device| device.shareable().unwrap_or(0))
        .collect();
    match rests.len() {
        0 => String::new(),
        count => format!(
            ", {} left of {count} shared",
            bytes(rests.iter().fold(0, |sum, rest| sum.saturating_add(*rest)))
        ),
    }
}

fn free_of_all(snapshot: &Snapshot) -> (usize, usize) {
    let all = snapshot.devices().count();
    (snapshot.devices().filter(is_to_be_had).count(), all)
}

/// Whether a launch gets it now.
fn is_to_be_had(device: &Device) -> bool {
    device.state() == Some(State::Free) && !device.is_kept()
}

/// Where it is and how many are free, and what the machine is: in one line where it fits.
fn headline(snapshot: &Snapshot, view: &View) -> Vec<String> {
    let (free, all) = free_of_all(snapshot);
    let mut free_gpus: Vec<u32> = snapshot
        .devices()
        .filter(is_to_be_had)
        .map(|device| device.gpu().index)
        .collect();
    free_gpus.dedup();
    let host = view
        .host
        .as_deref()
        .map_or("recorded".into(), |host| printable(host.as_bytes()));
    let list = if free_gpus.is_empty() {
        String::new()
    } else {
        format!(": {}", ranges(&free_gpus))
    };
    let list = list + &of_shared(snapshot);
    let summary = format!("{free} of {all} free");
    let mut models: BTreeMap<String, usize> = BTreeMap::new();
    for gpu in &snapshot.gpus {
        *models.entry(model(gpu.name.as_deref())).or_default() += 1;
    }
    // One that tells nothing, such as a lost one, is taken to be as the others are.
    if models.len() == 2 {
        let unknown = models.remove(cells::UNKNOWN).unwrap_or(0);
        models
            .values_mut()
            .take(1)
            .for_each(|count| *count += unknown);
    }
    let models: Vec<String> = models
        .iter()
        .map(|(model, count)| format!("{count} × {model}"))
        .collect();
    let mut about = vec![models.join(", ")];
    if let Some(driver) = &snapshot.driver_version {
        about.push(format!("driver {}", printable(driver.as_bytes())));
    }
    if snapshot.process_view == ProcessView::Container {
        about.push("in a container".to_owned());
    }
    if snapshot.process_view == ProcessView::Wsl {
        about.push("in WSL2".to_owned());
    }
    if !view.clock.is_empty() {
        about.push(view.clock.clone());
    }
    let about: Vec<String> = about.into_iter().filter(|text| !text.is_empty()).collect();
    let about = about.join(" · ");
    let style = view.style;
    let first = width(&host) + GAP + width(&summary) + width(&list);
    if first > view.width {
        let line = format!("{host}  {summary}{list}");
        return vec![truncate(&line, view.width), truncate(&about, view.width)];
    }
    let summary = style.paint(
        if free > 0 {
            Look::Of(State::Free)
        } else {
            Look::Strong
        },
        &summary,
    );
    let line = format!("{}  {summary}{list}", style.paint(Look::Strong, &host));
    match first + 3 + width(&about) <= view.width {
        true => vec![format!("{line}   {}", style.paint(Look::Faint, &about))],
        false => vec![
            line,
            style.paint(Look::Faint, &truncate(&about, view.width)),
        ],
    }
}

/// All of them are NVIDIA's.
fn model(name: Option<&str>) -> String {
    let name = known(name);
    name.strip_prefix("NVIDIA ").unwrap_or(&name).to_owned()
}

/// How many GPUs each user computes on or has claimed, the most first.
fn users(snapshot: &Snapshot) -> Option<String> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for device in snapshot.devices() {
        let users = device.computing().map(|process| process.user.as_deref());
        let users = users.chain(device.claims().iter().map(|claim| claim.user.as_deref()));
        let mut users: Vec<String> = users.map(known).collect();
        if users.is_empty() && device.state() == Some(State::Busy) {
            users.push(cells::UNKNOWN.to_owned());
        }
        users.sort_unstable();
        users.dedup();
        for user in users {
            *counts.entry(user).or_default() += 1;
        }
    }
    let mut counts: Vec<(String, usize)> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let texts: Vec<String> = counts
        .iter()
        .map(|(user, count)| format!("{user} {count}"))
        .collect();
    (!texts.is_empty()).then(|| texts.join("   "))
}

/// A GPU or a MIG device, in words.
struct Row {
    index: String,
    name: String,
    state: Option<State>,
    word: &'static str,
    used: String,
    total: String,
    memory_share: Option<f64>,
    /// `None` for a MIG device: there is no such thing.
    utilization: Option<String>,
    utilization_share: Option<f64>,
    /// Why it is in that state, where the occupants do not tell.
    reason: Option<String>,
    occupants: Vec<Occupant>,
}

/// A process or a claim, in words.
struct Occupant {
    user: String,
    pid: String,
    command: String,
    /// Empty for a claim.
    memory: String,
    time: String,
    /// Whether it is the reason of the GPU's state.
    counts: bool,
}

fn rows(snapshot: &Snapshot, view: &View) -> Vec<Row> {
    let mut rows = Vec::new();
    let computing = |gpu, mig| -> Vec<u32> {
        let device = snapshot.device(DeviceId { gpu, mig });
        device.computing().map(|process| process.pid).collect()
    };
    for (at, gpu) in snapshot.gpus.iter().enumerate() {
        let parts = gpu
            .mig
            .as_ref()
            .map(|mig| &mig.devices[..])
            .unwrap_or_default();
        let on_gpu = computing(at, None);
        let on_parts: Vec<u32> = parts
            .iter()
            .flat_map(|part| part.processes.items())
            .map(|p| p.pid)
            .collect();
        let own = |process: &&Process| !on_parts.contains(&process.pid);
        let processes: Option<Vec<&Process>> = gpu
            .processes
            .as_ref()
            .value()
            .map(|processes| processes.iter().filter(own).collect());
        // A GPU that is divided may have no list of its own.
        let processes = match parts.is_empty() {
            true => processes,
            false => Some(processes.unwrap_or_default()),
        };
        let utilization = gpu.utilization.gpu;
        let is_divided = gpu.mig.is_some();
        rows.push(Row {
            index: gpu.index.to_string(),
            name: model(gpu.name.as_deref()),
            state: gpu.state,
            word: match is_divided && gpu.state != Some(State::Unavailable) {
                true => "MIG",
                false => word(gpu.state, gpu.reason.as_deref()),
            },
            used: fact(gpu.memory.used, |used| gib(Some(used))),
            total: fact(gpu.memory.total, |total| gib(Some(total))),
            memory_share: share(gpu.memory.used, gpu.memory.total),
            utilization: Some(fact(utilization, |percent| format!("{percent} %"))),
            utilization_share: utilization
                .value()
                .map(|percent| f64::from(percent) / 100.0),
            reason: reason(
                gpu.state,
                gpu.reason.as_deref(),
                processes.as_deref(),
                &on_gpu,
                &gpu.claims,
            ),
            occupants: occupants(processes.as_deref(), &on_gpu, &gpu.claims, view),
        });
        for (place, part) in parts.iter().enumerate() {
            let on_part = computing(at, Some(place));
            let processes: Option<Vec<&Process>> = part
                .processes
                .as_ref()
                .value()
                .map(|processes| processes.iter().collect());
            let name = known(part.name.as_deref());
            // The GPU's own name stands above; what follows it is the profile.
            let profile = name
                .rsplit_once("MIG ")
                .map_or(&*name, |(_, profile)| profile);
            rows.push(Row {
                index: format!("{}:{}", gpu.index, part.index),
                name: profile.to_owned(),
                state: part.state,
                word: word(part.state, part.reason.as_deref()),
                used: gib(part.memory.used.value()),
                total: gib(part.memory.total.value()),
                memory_share: share(part.memory.used, part.memory.total),
                utilization: None,
                utilization_share: None,
                reason: reason(
                    part.state,
                    part.reason.as_deref(),
                    processes.as_deref(),
                    &on_part,
                    &part.claims,
                ),
                occupants: occupants(processes.as_deref(), &on_part, &part.claims, view),
            });
        }
    }
    rows
}

fn share(used: Fact<u64>, total: Fact<u64>) -> Option<f64> {
    let total = total.value().filter(|total| *total > 0)?;
    Some(used.value()? as f64 / total as f64)
}

/// A fact in a cell: unknown and not applicable look different.
fn fact<T>(fact: Fact<T>, text: impl FnOnce(T) -> String) -> String {
    match fact {
        Fact::Value(value) => text(value),
        Fact::NotApplicable => cells::NOT_APPLICABLE.to_owned(),
        Fact::Unknown => cells::UNKNOWN.to_owned(),
    }
}

/// The reason, where the occupants do not tell it. `computing` are the pids of those that
/// compute.
fn reason(
    state: Option<State>,
    reason: Option<&str>,
    processes: Option<&[&Process]>,
    computing: &[u32],
    claims: &[ClaimInfo],
) -> Option<String> {
    let computes = |process: &&Process| computing.contains(&process.pid);
    let told = match state {
        Some(State::Claimed) => !claims.is_empty(),
        Some(State::Busy) => processes.unwrap_or_default().iter().any(computes),
        _ => false,
    };
    let unlisted = processes.is_none() && state == Some(State::Free);
    let reason = reason
        .filter(|_| !told)
        .map(|text| printable(text.as_bytes()));
    let judged = || "no process list: judged by memory and utilization".to_owned();
    reason.or_else(|| unlisted.then(judged))
}

/// Those who compute first, then claims, then those who only draw.
fn occupants(
    processes: Option<&[&Process]>,
    computing: &[u32],
    claims: &[ClaimInfo],
    view: &View,
) -> Vec<Occupant> {
    let processes = processes.unwrap_or_default();
    // A launch that has become its program is one line, not two.
    let is_seen = |claim: &ClaimInfo| {
        let is_its =
            |process: &&Process| Some(process.pid) == claim.pid && process.user == claim.user;
        processes.iter().any(is_its)
    };
    let claims = claims
        .iter()
        .filter(|claim| !is_seen(claim))
        .map(|claim| Occupant {
            user: known(claim.user.as_deref()),
            pid: claim
                .pid
                .map_or(cells::UNKNOWN.into(), |pid| pid.to_string()),
            command: claimant(claim, view),
            memory: String::new(),
            time: time(claim.since, view),
            counts: true,
        });
    let shown = |process: &&&Process| Occupant {
        user: known(process.user.as_deref()),
        pid: process.pid.to_string(),
        command: known(process.command.as_deref()),
        memory: gib(process.used_memory),
        time: time(process.started, view),
        counts: computing.contains(&process.pid),
    };
    let (computing, drawing): (Vec<&&Process>, Vec<&&Process>) = processes
        .iter()
        .partition(|process| computing.contains(&process.pid));
    let computing = computing.iter().map(shown).collect::<Vec<_>>();
    computing
        .into_iter()
        .chain(claims)
        .chain(drawing.iter().map(shown))
        .collect()
}

/// What a claim is for, and what kind of claim it is where that is known.
fn claimant(claim: &ClaimInfo, view: &View) -> String {
    let command = known(claim.command.as_deref());
    let kind = match claim.kind.as_deref() {
        Some("lease") => "lease",
        Some("shell") => "shell",
        _ => return command,
    };
    let left = claim.until.zip(view.now);
    let left = left.and_then(|(until, now)| until.checked_sub(now));
    match left.filter(|left| *left > 0) {
        Some(left) => format!(
            "{command} ({kind}, {} left)",
            duration(Duration::from_secs(left))
        ),
        None => format!("{command} ({kind})"),
    }
}

/// For how long, or since when, where the time of the snapshot is not known.
fn time(since: Option<u64>, view: &View) -> String {
    let Some(since) = since else {
        return cells::UNKNOWN.into();
    };
    match view.now {
        Some(now) => duration(Duration::from_secs(now.saturating_sub(since).max(1))),
        // Days say enough of what is past.
        None => rfc3339(since).to_string().chars().take(10).collect(),
    }
}

/// The columns of the table, in their order.
struct Columns {
    index: usize,
    /// 0 where all GPUs have one name, which the headline says.
    name: usize,
    state: usize,
    memory_bar: usize,
    used: usize,
    total: usize,
    utilization_bar: usize,
    user: usize,
    since: usize,
    pid: usize,
    command: usize,
}

impl Columns {
    fn of(rows: &[Row], view: &View) -> Self {
        let widest = |texts: &mut dyn Iterator<Item = &str>, title: &str| {
            texts.map(width).max().unwrap_or(0).max(width(title))
        };
        let occupants = || rows.iter().flat_map(|row| &row.occupants);
        let known = rows.iter().map(|row| &row.name);
        let mut names = known.filter(|name| *name != cells::UNKNOWN);
        let first = names.next();
        let name = match names.any(|name| Some(name) != first) {
            true => widest(&mut rows.iter().map(|row| &*row.name), "NAME").min(MAX_NAME),
            false => 0,
        };
        let mut columns = Self {
            index: widest(&mut rows.iter().map(|row| &*row.index), "GPU"),
            name,
            state: widest(&mut rows.iter().map(|row| row.word), "STATE"),
            memory_bar: 0,
            used: widest(&mut rows.iter().map(|row| &*row.used), ""),
            total: widest(&mut rows.iter().map(|row| &*row.total), ""),
            utilization_bar: 0,
            user: widest(&mut occupants().map(|one| &*one.user), "USER").min(MAX_USER),
            since: widest(&mut occupants().map(|one| &*one.time), "SINCE"),
            pid: widest(&mut occupants().map(|one| &*one.pid), "PID"),
            command: 0,
        };
        let room = |columns: &Self| view.width.saturating_sub(columns.before_command());
        if view.width < 100 {
            columns.pid = 0;
        }
        // What there is no room for goes, the least needed first.
        if room(&columns) < MIN_COMMAND && columns.name > 0 {
            columns.name = columns.name.min(14);
        }
        if room(&columns) < MIN_COMMAND / 2 && columns.name > 0 {
            columns.name = columns.name.min(8);
        }
        if room(&columns) < MIN_COMMAND / 2 {
            columns.since = 0;
        }
        if room(&columns) < MIN_COMMAND / 4 {
            columns.name = 0;
        }
        if room(&columns) == 0 {
            columns.user = 0;
        }
        for (memory, utilization) in BARS {
            let all = memory + 1 + utilization + usize::from(utilization > 0);
            if room(&columns) >= MIN_COMMAND + all {
                (columns.memory_bar, columns.utilization_bar) = (memory, utilization);
                break;
            }
        }
        columns.command = room(&columns);
        columns
    }

    /// The width of memory: bar, used and total.
    fn memory(&self) -> usize {
        let numbers = (self.used + 1 + self.total).max(6);
        match self.memory_bar {
            0 => numbers,
            bar => bar + 1 + numbers,
        }
    }

    fn utilization(&self) -> usize {
        match self.utilization_bar {
            0 => UTILIZATION,
            bar => bar + 1 + UTILIZATION,
        }
    }

    /// The column in which the user begins.
    fn before_user(&self) -> usize {
        let columns = [
            self.index,
            self.name,
            self.state,
            self.memory(),
            self.utilization(),
        ];
        columns
            .iter()
            .filter(|width| **width > 0)
            .map(|width| width + GAP)
            .sum()
    }

    fn before_command(&self) -> usize {
        let columns = [self.user, self.since, self.pid];
        let own: usize = columns
            .iter()
            .filter(|width| **width > 0)
            .map(|width| width + GAP)
            .sum();
        self.before_user() + own
    }

    fn titles(&self) -> String {
        let mut cells = vec![right("GPU", self.index)];
        if self.name > 0 {
            cells.push(left("NAME", self.name));
        }
        let memory = if self.memory() >= 12 {
            "MEMORY (GiB)"
        } else {
            "GiB"
        };
        cells.extend([
            left("STATE", self.state),
            left(memory, self.memory()),
            left("UTIL", self.utilization()),
            self.occupant("USER", "SINCE", "PID", "COMMAND"),
        ]);
        truncate(&cells.join("  "), self.before_command() + self.command)
    }

    /// The cells of an occupant.
    fn occupant(&self, user: &str, since: &str, pid: &str, command: &str) -> String {
        let mut cells = Vec::new();
        if self.user > 0 {
            cells.push(left(user, self.user));
        }
        if self.since > 0 {
            cells.push(left(since, self.since));
        }
        if self.pid > 0 {
            cells.push(right(pid, self.pid));
        }
        cells.push(truncate(command, self.command));
        cells.join("  ")
    }

    fn of_occupant(&self, one: &Occupant) -> String {
        self.occupant(&one.user, &one.time, &one.pid, &one.command)
    }

    /// The lines of a row: its own, and those of what does not fit beside it.
    fn lines(&self, row: &Row, view: &View) -> Vec<String> {
        let style = view.style;
        let state = row.state.map_or(Look::Plain, Look::Of);
        let mut cells = vec![right(&row.index, self.index)];
        if self.name > 0 {
            cells.push(left(&row.name, self.name));
        }
        let space = " ".repeat(self.state - width(row.word));
        cells.push(style.paint(state, row.word) + &space);
        let with_bar = |share: Option<f64>, columns: usize, text: String| match columns {
            0 => text,
            _ => {
                let bar = bar(share, columns, style);
                let (used, rest) = (
                    style.paint(state, &bar.used),
                    style.paint(Look::Faint, &bar.rest),
                );
                format!("{used}{rest} {text}")
            }
        };
        let memory = format!(
            "{}/{}",
            right(&row.used, self.used),
            left(&row.total, self.total)
        );
        let memory = left(&memory, (self.used + 1 + self.total).max(6));
        cells.push(with_bar(row.memory_share, self.memory_bar, memory));
        cells.push(match &row.utilization {
            Some(text) => {
                let text = right(text, UTILIZATION);
                with_bar(row.utilization_share, self.utilization_bar, text)
            }
            None => " ".repeat(self.utilization()),
        });
        let before = self.before_user();
        let mut occupants = row.occupants.iter();
        let paint = |one: &Occupant, text: &str| match one.counts {
            true => text.to_owned(),
            false => style.paint(Look::Faint, text),
        };
        let mut lines = Vec::new();
        let room = view.width.saturating_sub(before);
        let reason = row.reason.as_deref().unwrap_or_default();
        // A reason takes the place of the occupants where it fits there, or where it has to.
        let fits = !reason.is_empty() && (width(reason) <= room || view.rows == Rows::One);
        let more = row.occupants.len().saturating_sub(1);
        if fits {
            cells.push(style.paint(Look::Faint, &truncate(reason, room)));
        } else if reason.is_empty() {
            if let Some(one) = occupants.next() {
                let count = format!(" (+{more})");
                let text = match view.rows == Rows::One && more > 0 {
                    true => truncate(&self.of_occupant(one), room - width(&count)) + &count,
                    false => self.of_occupant(one),
                };
                cells.push(paint(one, &text));
            }
        }
        lines.push(cells.join("  ").trim_end().to_owned());
        if view.rows == Rows::One {
            return lines;
        }
        if !fits {
            let indent = self.index + GAP;
            for line in wrap(reason, view.width - indent) {
                lines.push(" ".repeat(indent) + &style.paint(Look::Faint, &line));
            }
        }
        // Under the number of what is used on the whole GPU stands what each of several uses.
        let used_ends = before - GAP - self.utilization() - GAP - self.memory()
            + self.memory_bar
            + usize::from(self.memory_bar > 0)
            + self.used;
        for one in occupants {
            let memory = right(&one.memory, used_ends);
            let line = left(&memory, before) + &self.of_occupant(one);
            lines.push(style.paint(Look::Faint, line.trim_end()));
        }
        lines
    }
}

/// The state in a word.
pub(super) fn word(state: Option<State>, reason: Option<&str>) -> &'static str {
    match state {
        Some(State::Free) => "free",
        Some(State::Busy) => "busy",
        Some(State::Claimed) => "claimed",
        Some(State::Shared) => "shared",
        Some(State::Unavailable) if reason.is_some_and(|text| text.contains("is lost")) => "lost",
        Some(State::Unavailable) => "unusable",
        None => cells::UNKNOWN,
    }
}
