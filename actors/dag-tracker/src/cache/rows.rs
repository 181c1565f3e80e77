//! The entries as rows of two tables, derived from records alone.
//!
//! | table | key | value |
//! |---|---|---|
//! | `cache` | content key | an [`EntryRow`] |
//! | `cache_functions` | `module:qualname`, 0, seq of the record (8 bytes, big-endian) | the same |

use std::collections::BTreeSet;

use eclosion_kernel::core::{Query, Reads};
use eclosion_kernel::journal::{Record, RowChange};
use eclosion_schemas::events::{CacheDropped, CacheNote, Event, StepCommitted, StepReused};
use eclosion_schemas::ops::cache::{CacheEntry, FindRequest, ListRequest};
use eclosion_schemas::{CacheKey, Seq, TaskRef};
use serde::{Deserialize, Serialize};

use super::ENTRIES_MAX;

const ENTRIES: &str = "cache";
const FUNCTIONS: &str = "cache_functions";
/// The newest entries of a function that a miss is compared with.
const COMPARED_MAX: u32 = 64;

#[derive(Serialize, Deserialize)]
struct EntryRow {
    seq: Seq,
    entry: CacheEntry,
}

/// Derives the rows of a record.
pub(crate) fn project(record: &Record, rows: &mut Vec<RowChange>) {
    match &*record.kind {
        StepCommitted::KIND => {
            let Some(event) = record.event::<StepCommitted>() else { return };
            if let Some(note) = &event.cache {
                kept(note, TaskRef::new(event.run.clone(), event.task.clone()), record, rows);
            }
        }
        StepReused::KIND => {
            let Some(event) = record.event::<StepReused>() else { return };
            if let Some(note) = &event.cache {
                kept(note, TaskRef::new(event.run.clone(), event.task.clone()), record, rows);
            }
        }
        CacheDropped::KIND => {
            for entry in record.event::<CacheDropped>().iter().flat_map(|event| &event.entries) {
                rows.push(RowChange { table: ENTRIES, key: entry.key.as_str().into(), value: None });
                rows.push(RowChange {
                    table: FUNCTIONS,
                    key: function_key(&entry.function, entry.seq),
                    value: None,
                });
            }
        }
        _ => {}
    }
}

fn kept(note: &CacheNote, from: TaskRef, record: &Record, rows: &mut Vec<RowChange>) {
    let function = &note.ingredients.function;
    if let Some(replaced) = note.replaces {
        rows.push(RowChange { table: FUNCTIONS, key: function_key(function, replaced), value: None });
    }
    let entry =
        CacheEntry { key: note.key.clone(), ingredients: note.ingredients.clone(), from, at: record.at };
    // Our own types always have a msgpack form; without one there would be no row, and no wrong one.
    let value = rmp_serde::to_vec_named(&EntryRow { seq: record.seq, entry }).ok();
    rows.push(RowChange { table: ENTRIES, key: note.key.as_str().into(), value: value.clone() });
    rows.push(RowChange { table: FUNCTIONS, key: function_key(function, record.seq), value });
}

fn function_key(function: &str, seq: Seq) -> Vec<u8> {
    [function_prefix(function), seq.0.to_be_bytes().to_vec()].concat()
}

fn function_prefix(function: &str) -> Vec<u8> {
    format!("{function}\0").into_bytes()
}

fn by_key(key: &CacheKey) -> Query {
    Query::Get { table: ENTRIES, key: key.as_str().into() }
}

fn newest_of(function: &str, limit: u32) -> Query {
    Query::Scan { table: FUNCTIONS, prefix: function_prefix(function), newest_first: true, limit }
}

fn listed(request: &ListRequest) -> Query {
    // One more than there may be, so that nothing is cut off without being counted.
    let limit = u32::try_from(ENTRIES_MAX).unwrap_or(u32::MAX).saturating_add(1);
    match &request.function {
        Some(function) => newest_of(function, limit),
        None => Query::Scan { table: ENTRIES, prefix: Vec::new(), newest_first: false, limit },
    }
}

pub(crate) fn find_queries(request: &FindRequest) -> Vec<Query> {
    let keyed = request.lookups.iter().filter_map(|lookup| lookup.keyed.as_ref());
    let queries: BTreeSet<Query> = keyed
        .flat_map(|keyed| [by_key(&keyed.key), newest_of(&keyed.ingredients.function, COMPARED_MAX)])
        .collect();
    queries.into_iter().collect()
}

pub(crate) fn list_queries(request: &ListRequest) -> Vec<Query> {
    vec![listed(request)]
}

pub(crate) fn entry(reads: &Reads, key: &CacheKey) -> Option<CacheEntry> {
    found(reads, &by_key(key)).next().map(|row| row.entry)
}

/// Newest first.
pub(crate) fn of_function(reads: &Reads, function: &str) -> Vec<CacheEntry> {
    found(reads, &newest_of(function, COMPARED_MAX)).map(|row| row.entry).collect()
}

/// Newest first.
pub(crate) fn list(reads: &Reads, request: &ListRequest) -> Vec<CacheEntry> {
    let mut rows: Vec<_> = found(reads, &listed(request)).collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.seq));
    rows.into_iter().map(|row| row.entry).collect()
}

fn found<'a>(reads: &'a Reads, query: &Query) -> impl Iterator<Item = EntryRow> + use<'a> {
    reads.rows(query).iter().filter_map(|(_, value)| rmp_serde::from_slice(value).ok())
}
