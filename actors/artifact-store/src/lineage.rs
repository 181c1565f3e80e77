//! Who was made from what: the tasks of a flow that a task needs, and what follows for the artifacts of a run.
//!
//! A commit does not say what it was made from; the flow does. The inputs of a task are the outputs of the tasks that it
//! refers to (`${TASK}` in its arguments or its fan-out) or comes after. For a fan-out those are all of its instances.

use std::collections::{BTreeMap, BTreeSet};

use eclosion_schemas::flow::{FlowSpec, TaskSpec};
use eclosion_schemas::view::ArtifactView;
use serde_json::Value;

use crate::rows::LineageRow;

/// For each task the tasks that it needs, in order and once.
#[must_use]
pub fn needs(flow: &FlowSpec) -> BTreeMap<String, Vec<String>> {
    let of = |spec: &TaskSpec| -> Vec<String> {
        let mut found: BTreeSet<&str> = spec.after.iter().map(String::as_str).collect();
        spec.with.values().chain(&spec.each).for_each(|value| references(value, &mut found));
        found.into_iter().filter(|task| flow.tasks.contains_key(*task)).map(str::to_owned).collect()
    };
    flow.tasks.iter().map(|(task, spec)| (task.clone(), of(spec))).collect()
}

/// Flow files are at most 32 levels deep when they get here.
fn references<'a>(value: &'a Value, found: &mut BTreeSet<&'a str>) {
    match value {
        Value::String(text) => found.extend(text.strip_prefix("${").and_then(|rest| rest.strip_suffix('}'))),
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        Value::Object(fields) => fields.values().for_each(|field| references(field, found)),
        _ => {}
    }
}

/// The task of the flow that an instance belongs to: `train` for `train[3]`.
#[must_use]
pub fn base(task: &str) -> &str {
    task.split_once('[').map_or(task, |(base, _)| base)
}

/// Of the artifacts of a run, those that `task` was made from, nearest first.
pub(crate) fn inputs(row: &LineageRow, task: &str, all: &[ArtifactView]) -> Vec<ArtifactView> {
    let next = |task: &str| row.needs.get(task).into_iter().flatten().map(String::as_str).collect();
    reached(base(task), next, all)
}

/// Those that were made from it, nearest first.
pub(crate) fn outputs(row: &LineageRow, task: &str, all: &[ArtifactView]) -> Vec<ArtifactView> {
    let needing = |task: &str| {
        let users = row.needs.iter().filter(|(_, needs)| needs.iter().any(|need| need == task));
        users.map(|(user, _)| user.as_str()).collect()
    };
    reached(base(task), needing, all)
}

/// Level by level, so that the nearest come first; a task that was reached is not reached again.
fn reached<'a>(
    from: &'a str,
    next: impl Fn(&str) -> Vec<&'a str>,
    all: &[ArtifactView],
) -> Vec<ArtifactView> {
    let mut seen = BTreeSet::from([from]);
    let mut level: BTreeSet<&str> = BTreeSet::from([from]);
    let mut found = Vec::new();
    while !level.is_empty() {
        level = level.iter().flat_map(|task| next(task)).filter(|task| seen.insert(task)).collect();
        let on_level = all.iter().filter(|artifact| level.contains(base(artifact.task.as_str())));
        found.extend(on_level.cloned());
    }
    found
}
