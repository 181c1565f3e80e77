//! What retention needs of the rows, and does to them: which contents are named by whom, and what goes with a run.
//!
//! The artifacts of a collected run are hidden until it is restored or erased. Versions keep their places when runs are
//! erased, so that no other version changes.

use std::collections::BTreeMap;

use eclosion_kernel::core::{Query, Reads};
use eclosion_kernel::journal::{Reader, Record, RowChange};
use eclosion_schemas::error::{Code, Error};
use eclosion_schemas::events::{GcCollected, GcErased, GcRestored};
use eclosion_schemas::ops::gc::{Item, ItemKind};
use eclosion_schemas::view::ArtifactView;
use eclosion_schemas::{Digest, Part, Payload, RunId, TaskId};

use super::{
    ARTIFACTS, ArtifactRow, COLLECTED, LINEAGE, OBJECTS, ORDER, ObjectRow, PAYLOADS, change, order_key,
};

/// Every content that an artifact names, and the runs that named it.
///
/// # Errors
/// `unavailable` when rows cannot be read; `data_loss` for one that is not understood: it might name anything.
pub fn names(reader: &dyn Reader) -> Result<BTreeMap<Digest, Vec<RunId>>, Error> {
    let mut names: BTreeMap<Digest, Vec<RunId>> = BTreeMap::new();
    // In pieces, because all of them together may be large.
    for (table, first) in
        [ARTIFACTS, PAYLOADS].into_iter().flat_map(|table| (0..=u8::MAX).map(move |byte| (table, byte)))
    {
        for (key, value) in reader.scan(table, &[first], false, u32::MAX)? {
            let name = String::from_utf8_lossy(&key);
            let run = name.split('/').next().and_then(|run| RunId::new(run).ok());
            let run = run.ok_or_else(|| unreadable(&name))?;
            for part in parts(table, &value).ok_or_else(|| unreadable(&name))? {
                let Some(digest) = part.digest else { continue };
                let runs = names.entry(digest).or_default();
                if runs.last() != Some(&run) {
                    runs.push(run.clone());
                }
            }
        }
    }
    Ok(names)
}

fn parts(table: &str, value: &[u8]) -> Option<Vec<Part>> {
    if table == PAYLOADS {
        return rmp_serde::from_slice::<Payload>(value).ok().map(|payload| payload.parts);
    }
    match rmp_serde::from_slice::<ArtifactRow>(value) {
        Ok(row) => Some(row.payload.map(|payload| payload.parts).unwrap_or_default()),
        // As it was before small payloads lay in it: the payload has a row of its own.
        Err(_) => rmp_serde::from_slice::<ArtifactView>(value).ok().map(|_| Vec::new()),
    }
}

fn unreadable(name: &str) -> Error {
    Error::new(Code::DataLoss, "artifact.row", format!("the row of artifact {name} cannot be read"))
}

/// What of a run is erased from these tables.
///
/// # Errors
/// `unavailable` when rows cannot be read.
pub fn erasable(reader: &dyn Reader, run: &RunId) -> Result<GcErased, Error> {
    let prefix = format!("{run}/");
    let mut erased = GcErased { run: Some(run.clone()), ..GcErased::default() };
    for (key, value) in reader.scan(ARTIFACTS, prefix.as_bytes(), false, u32::MAX)? {
        let name = String::from_utf8_lossy(&key).into_owned();
        erased.tasks.extend(name.strip_prefix(&prefix).and_then(|task| TaskId::new(task).ok()));
        let view = rmp_serde::from_slice::<ArtifactRow>(&value).ok().map(|row| row.view);
        erased.made.extend(view.map(|view| view.seq));
        let payload = reader.get(PAYLOADS, &key)?.map(|payload| (PAYLOADS, payload));
        let (table, value) = payload.unwrap_or((ARTIFACTS, value));
        for digest in parts(table, &value).unwrap_or_default().into_iter().filter_map(|part| part.digest) {
            let row = reader.get(OBJECTS, digest.as_str().as_bytes())?;
            let row: Option<ObjectRow> = row.and_then(|row| rmp_serde::from_slice(&row).ok());
            if row.is_some_and(|row| row.name == name) {
                erased.digests.push(digest);
            }
        }
    }
    Ok(erased)
}

pub(super) fn erased(event: &GcErased) -> Vec<RowChange> {
    let Some(run) = &event.run else { return Vec::new() };
    let gone = |table, key: Vec<u8>| RowChange { table, key, value: None };
    let mut rows = [LINEAGE, COLLECTED].map(|table| gone(table, run.as_str().as_bytes().to_vec())).to_vec();
    for task in &event.tasks {
        let key = format!("{run}/{task}").into_bytes();
        rows.extend([ARTIFACTS, PAYLOADS].map(|table| gone(table, key.clone())));
    }
    rows.extend(event.made.iter().map(|seq| gone(ORDER, order_key(*seq))));
    rows.extend(event.digests.iter().map(|digest| gone(OBJECTS, digest.as_str().as_bytes().to_vec())));
    rows
}

pub(super) fn hidden(event: &GcCollected, record: &Record) -> Option<RowChange> {
    run_in(&event.item).map(|key| change(COLLECTED, key, &record.at))
}

pub(super) fn shown(event: &GcRestored) -> Option<RowChange> {
    let key = run_in(&event.item).filter(|_| event.error.is_none())?;
    Some(RowChange { table: COLLECTED, key, value: None })
}

/// The run, if it is one.
fn run_in(item: &Item) -> Option<Vec<u8>> {
    (item.kind == ItemKind::Run).then(|| item.id.as_str().as_bytes().to_vec())
}

/// When runs were collected: those whose names begin so.
pub(crate) fn collected_runs(run: &str) -> Query {
    let (prefix, limit) = (run.as_bytes().to_vec(), u32::MAX);
    Query::Scan { table: COLLECTED, prefix, newest_first: false, limit }
}

/// `asked`: what [`collected_runs`] was asked for.
pub(crate) fn is_collected(reads: &Reads, asked: &str, run: &str) -> bool {
    reads.rows(&collected_runs(asked)).iter().any(|(key, _)| key == run.as_bytes())
}
