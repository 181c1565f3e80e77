//! The actor tree: small for whoever starts a run, in full for whoever looks.

use std::collections::BTreeMap;

use eclosion_schemas::view::{ActorRow, ActorState};

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

/// A table with a row for each actor.
pub(crate) fn full(actors: &[ActorRow]) -> String {
    let heading =
        ["actor", "state", "life", "restarts", "mailbox", "handled", "dead", "current", "last error"];
    let rows = branches(actors).into_iter().map(|(label, row)| match row {
        Some(row) => vec![
            label,
            word(&row.state),
            row.incarnation.to_string(),
            format!("{}/{} in {}", row.restarts, row.restarts_max, duration(row.window_ms)),
            format!("{}/{}", row.depth, row.capacity),
            row.handled.to_string(),
            row.dead_letters.to_string(),
            row.current.clone().unwrap_or_default(),
            row.last_error.clone().unwrap_or_default(),
        ],
        None => vec![label],
    });
    table(&heading, rows)
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
