//! Who holds an item, in words that name him.

use std::collections::BTreeSet;

use eclosion_schemas::RunId;
use eclosion_schemas::ops::gc::ItemKind;

use crate::state::{Label, Place, State};
use crate::survey::{Found, Survey};

/// Of those who hold one item, so many are named.
const NAMED_MAX: usize = 3;

/// Empty: nothing known holds it. `leaving`: runs that the same plan collects before it.
pub(super) fn holders(
    state: &State,
    survey: &Survey,
    found: &Found,
    leaving: &BTreeSet<RunId>,
) -> Vec<String> {
    let mut holders = found.holders.clone();
    match found.item.kind {
        ItemKind::Run => {
            if let Ok(run) = RunId::new(found.item.id.as_str()) {
                holders.extend(state.runs.contains_key(&run).then(|| "it is unfinished".to_owned()));
                holders.extend(labels(state, &run));
            }
        }
        ItemKind::Log => {
            holders.extend(living(state, found));
            let unfinished: Vec<_> =
                found.named_by.iter().filter(|run| state.runs.contains_key(*run)).collect();
            holders.extend(named("unfinished run", &unfinished));
        }
        ItemKind::Artifact => {
            let kept: Vec<_> = found
                .named_by
                .iter()
                .filter(|run| !leaving.contains(*run) && !state.is_collected(run))
                .collect();
            holders.extend(named("run", &kept));
            let since = state.recent.named_after(found.item.id.as_str(), survey.as_of);
            holders.extend(since.map(|run| format!("run {run} has just named it")));
        }
        ItemKind::Environment => holders.extend(environment(state, found)),
        ItemKind::Scratch => holders.extend(living(state, found)),
        ItemKind::Segment | ItemKind::Record => {}
    }
    holders
}

fn labels(state: &State, run: &RunId) -> Option<String> {
    let labels: Vec<_> = state.labels.get(run)?.iter().collect();
    named("", &labels).map(|named| named.trim_start().to_owned())
}

impl std::fmt::Display for Label {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pin { task, holder } => write!(f, "pin of {holder} on {task}"),
            Self::Tag { path, tag } => write!(f, "tag {path}@{tag}"),
        }
    }
}

/// The worker that the item is called by.
fn living(state: &State, found: &Found) -> Option<String> {
    let is_alive = state.workers.keys().any(|worker| worker.as_str() == found.item.id.as_str());
    is_alive.then(|| format!("worker {} is alive", found.item.id))
}

fn environment(state: &State, found: &Found) -> Vec<String> {
    if let Some(building) = state.building.first() {
        return vec![format!("environment {building} is being made, and may be this one")];
    }
    let mut holders = Vec::new();
    for (id, _) in state.environments.iter().filter(|(_, place)| is_in(place, found)) {
        let runs: Vec<_> = state.runs.iter().filter(|(_, used)| *used == id).map(|(run, _)| run).collect();
        holders.extend(named("unfinished run", &runs));
        let workers: Vec<_> =
            state.workers.iter().filter(|(_, used)| *used == id).map(|(worker, _)| worker).collect();
        holders.extend(named("worker", &workers));
    }
    holders
}

/// The environments that are this directory.
pub(super) fn places<'a>(state: &'a State, found: &'a Found) -> impl Iterator<Item = &'a Place> {
    state.environments.values().filter(|place| is_in(place, found))
}

fn is_in(place: &Place, found: &Found) -> bool {
    let inside = place.python.strip_prefix(found.path.as_str());
    !found.path.is_empty() && inside.is_some_and(|rest| rest.starts_with('/'))
}

fn named<T: std::fmt::Display>(what: &str, names: &[&T]) -> Option<String> {
    let shown: Vec<_> = names.iter().take(NAMED_MAX).map(ToString::to_string).collect();
    let more = names.len().saturating_sub(shown.len());
    match (shown.is_empty(), more) {
        (true, _) => None,
        (false, 0) => Some(format!("{what} {}", shown.join(", "))),
        (false, more) => Some(format!("{what} {} and {more} more", shown.join(", "))),
    }
}
