//! Who waits, below the table.

use super::super::cells::{Look, known, left, right};
use super::{GAP, MAX_USER, View, time};
use autocvd::WaitingRequest;
use autocvd::program::{truncate, width};
use autocvd::text::bytes;

pub(super) const TITLE: &str = "WAITING";
/// Of more requests the number is told.
const MAX_SHOWN: usize = 16;

/// A request, in words.
struct Row {
    place: String,
    user: String,
    what: String,
    time: String,
    command: String,
}

/// A line a request, and an empty one above them.
pub(super) fn lines(waiting: &[WaitingRequest], view: &View) -> Vec<String> {
    let shown = &waiting[..waiting.len().min(MAX_SHOWN)];
    let rows: Vec<Row> = shown.iter().map(|request| row(request, view)).collect();
    let widest =
        |cell: fn(&Row) -> &str| rows.iter().map(|row| width(cell(row))).max().unwrap_or(0);
    let (place, user) = (
        widest(|row| &row.place),
        widest(|row| &row.user).min(MAX_USER),
    );
    let (what, time) = (widest(|row| &row.what), widest(|row| &row.time));
    let room = view.width.saturating_sub(TITLE.len() + GAP);
    let text = |row: Row| {
        let cells = [
            right(&row.place, place) + " " + &left(&row.user, user),
            left(&row.what, what),
            left(&row.time, time),
            row.command,
        ];
        truncate(cells.join("  ").trim_end(), room)
    };
    let mut texts: Vec<String> = rows.into_iter().map(text).collect();
    if waiting.len() > MAX_SHOWN {
        texts.push(format!("and {} more", waiting.len() - MAX_SHOWN));
    }
    let mut lines = Vec::new();
    for (at, text) in texts.into_iter().enumerate() {
        let title = left(if at == 0 { TITLE } else { "" }, TITLE.len());
        if at == 0 {
            lines.push(String::new());
        }
        lines.push(format!("{}  {text}", view.style.paint(Look::Faint, &title)));
    }
    lines
}

fn row(request: &WaitingRequest, view: &View) -> Row {
    let gpus = match request.num_gpus {
        1 => "1 GPU".to_owned(),
        n => format!("{n} GPUs"),
    };
    let least = if view.style.unicode { "≥" } else { ">=" };
    let what = match (request.min_free_memory, request.share) {
        (Some(size), true) => format!("{} of {gpus}", bytes(size)),
        (None, true) => format!("a share of {gpus}"),
        (Some(size), false) => format!("{gpus} {least}{}", bytes(size)),
        (None, false) => gpus,
    };
    let age = time(request.since, view);
    Row {
        place: format!("{}.", request.place),
        user: known(request.user.as_deref()),
        what,
        time: match view.now {
            Some(_) => format!("for {age}"),
            None => format!("since {age}"),
        },
        command: known(request.command.as_deref()),
    }
}
