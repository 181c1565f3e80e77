//! The actor tree: small for whoever starts a run, in full for whoever looks.

use std::collections::BTreeMap;

use eclosion_schemas::view::{ActorRow, ActorState, Latency};

use super::{duration, table, word};

/// Branches, then what only matters when something is wrong.
pub(crate) fn small(actors: &[ActorRow]) -> String {
    let lines = branches(actors).into_iter().map(|(label, row)| match row {
        Some(row) if row.restarts > 0 => {
            format!("{label}  {}, restarted {} times", word(&row.state), row.restarts)
        }
        Some(row) => format!("{label}  {}", word(&row.state)),
        None => label,
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// A screen narrower than this is not shown how long things took, and notes only up to here.
const LATENCIES_WIDTH: usize = 110;
const NARROW_NOTE_CHARS: usize = 22;

/// A table with a row for each actor, for a screen of so many columns, or none.
pub(crate) fn full(actors: &[ActorRow], width: Option<usize>) -> String {
    let wide = width.is_none_or(|width| width >= LATENCIES_WIDTH);
    let heading = ["actor", "state", "life", "waiting", "handled", "in/s", "busy"];
    let latencies = ["wait p50/p99", "handling p50/p99"];
    let heading: Vec<_> =
        heading.into_iter().chain(latencies.into_iter().filter(|_| wide)).chain(["note"]).collect();
    let rows = branches(actors).into_iter().map(|(label, row)| match row {
        Some(row) => {
            let latencies =
                [&row.wait, &row.handling].map(|latency| latency.as_ref().map_or_else(String::new, took));
            let mut cells = vec![
                label,
                word(&row.state),
                row.incarnation.to_string(),
                if wide { format!("{}/{}", row.depth, row.capacity) } else { row.depth.to_string() },
                row.handled.to_string(),
                row.accepted_per_s.to_string(),
                format!("{}%", row.busy_permille / 10),
            ];
            cells.extend(latencies.into_iter().filter(|_| wide));
            cells.push(if wide { note(row) } else { cut(&note(row)) });
            cells
        }
        None => vec![label],
    });
    table(&heading, rows)
}

fn cut(note: &str) -> String {
    match note.char_indices().nth(NARROW_NOTE_CHARS) {
        Some((at, _)) => format!("{}…", &note[..at]),
        None => note.to_owned(),
    }
}

/// `12µs/1.4ms`
fn took(latency: &Latency) -> String {
    let short = |us: f64| match us {
        0.0..1_000.0 => format!("{us:.0}µs"),
        1_000.0..1_000_000.0 => format!("{:.1}ms", us / 1e3),
        _ => format!("{:.1}s", us / 1e6),
    };
    format!("{}/{}", short(latency.p50_us), short(latency.p99_us))
}

/// What is not as it usually is, and what is in hand.
fn note(row: &ActorRow) -> String {
    let mut notes = Vec::new();
    if row.restarts > 0 {
        notes.push(format!(
            "restarted {} of {} times in {}",
            row.restarts,
            row.restarts_max,
            duration(row.window_ms)
        ));
    }
    let counts = [
        (row.dead_letters, "dead letters"),
        (row.refused, "refused"),
        (row.expired, "expired"),
        (row.dropped, "dropped"),
    ];
    notes
        .extend(counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")));
    notes.extend(row.current.iter().cloned());
    notes.extend(row.last_error.iter().map(|error| format!("last: {error}")));
    notes.join(", ")
}

/// How many are in which state; one line.
pub(crate) fn summary(actors: &[ActorRow]) -> String {
    let well = actors.iter().filter(|row| matches!(row.state, ActorState::Ready | ActorState::Busy)).count();
    match well == actors.len() {
        true => format!("{} actors, all ready", actors.len()),
        false => format!("{} actors, {well} of them ready", actors.len()),
    }
}

#[derive(Default)]
struct Node<'a> {
    row: Option<&'a ActorRow>,
    children: BTreeMap<&'a str, Node<'a>>,
}

/// Each actor behind its branch, parents before children. A parent that is no actor itself has a line, too.
fn branches(actors: &[ActorRow]) -> Vec<(String, Option<&ActorRow>)> {
    let mut root = Node::default();
    for row in actors {
        let mut node = &mut root;
        for chunk in row.address.split('/').filter(|chunk| !chunk.is_empty()) {
            node = node.children.entry(chunk).or_default();
        }
        node.row = Some(row);
    }
    let mut lines = Vec::new();
    grow(&root, "", &mut lines);
    lines
}

/// As deep as an address has chunks, which the kernel bounds.
fn grow<'a>(node: &Node<'a>, indent: &str, lines: &mut Vec<(String, Option<&'a ActorRow>)>) {
    let last = node.children.len().saturating_sub(1);
    for (index, (chunk, child)) in node.children.iter().enumerate() {
        let (branch, below) = if index == last { ("└─", "   ") } else { ("├─", "│  ") };
        lines.push((format!("{indent}{branch} {chunk}"), child.row));
        grow(child, &format!("{indent}{below}"), lines);
    }
}

#[cfg(test)]
mod tests {
    use eclosion_schemas::Incarnation;

    use super::*;

    fn row(address: &str, restarts: u32) -> ActorRow {
        ActorRow {
            address: address.into(),
            state: ActorState::Ready,
            incarnation: Incarnation(1),
            restarts,
            restarts_max: 5,
            window_ms: 60_000,
            depth: 0,
            capacity: 64,
            accepted: 3,
            handled: 3,
            dropped: 0,
            expired: 0,
            cancelled: 0,
            refused: 0,
            redelivered: 0,
            dead_letters: 0,
            in_hand: 0,
            oldest_ms: None,
            in_hand_ms: None,
            accepted_per_s: 0,
            busy_permille: 0,
            wait: None,
            handling: None,
            current: None,
            last_error: None,
        }
    }

    #[test]
    fn what_is_out_of_the_ordinary_is_noted() {
        let mut busy = row("/pool", 2);
        assert_eq!(note(&row("/dag", 0)), "");
        (busy.dead_letters, busy.current, busy.last_error) =
            (1, Some("pool.dispatch".into()), Some("as asked".into()));
        busy.wait = Some(Latency { p50_us: 12.4, p99_us: 1_440.0 });
        let expected = "restarted 2 of 5 times in 1m00s, 1 dead letters, pool.dispatch, last: as asked";
        assert_eq!(note(&busy), expected);
        assert!(full(&[busy.clone()], None).contains("12µs/1.4ms"));
        assert!(!full(&[busy], Some(80)).contains("12µs"));
    }

    #[test]
    fn actors_stand_below_their_parents_even_if_those_are_none() {
        let actors =
            [row("/artifacts", 0), row("/artifacts/files", 0), row("/sessions/1", 0), row("/dag", 2)];
        let expected = "\
├─ artifacts  ready
│  └─ files  ready
├─ dag  ready, restarted 2 times
└─ sessions
   └─ 1  ready";
        assert_eq!(small(&actors), expected);
        assert_eq!(summary(&actors), "4 actors, all ready");
    }
}
