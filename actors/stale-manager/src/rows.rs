//! The records of deletions, as rows: table `gc_log`, key: seq (8 bytes, big-endian), value: a [`DeletionRecord`].

use eclosion_kernel::core::{Query, Reads};
use eclosion_kernel::journal::{Record, RowChange};
use eclosion_schemas::events::{Event, GcCollected, GcMoved, GcPurging, GcRestored, Moved};
use eclosion_schemas::ops::gc::{DeletionRecord, LogReply};

const LOG: &str = "gc_log";
/// One list looks at so many.
const LOG_ROWS_MAX: u32 = 10_000;

/// Derives the rows of a record: the projection of the stale manager.
pub fn project(record: &Record, rows: &mut Vec<RowChange>) {
    let row = match &*record.kind {
        GcCollected::KIND => record.event::<GcCollected>().map(|event| collected(&event, record)),
        GcPurging::KIND => record.event::<GcPurging>().map(|event| purging(&event, record)),
        GcMoved::KIND => record.event::<GcMoved>().and_then(|event| moved(&event, record)),
        GcRestored::KIND => record.event::<GcRestored>().map(|event| restored(&event, record)),
        _ => None,
    };
    if let Some(row) = row {
        let key = record.seq.0.to_be_bytes().to_vec();
        // Our own types always have a msgpack form; without one there would be no row, and no wrong one.
        rows.push(RowChange { table: LOG, key, value: rmp_serde::to_vec_named(&row).ok() });
    }
}

fn collected(event: &GcCollected, record: &Record) -> DeletionRecord {
    DeletionRecord {
        seq: record.seq,
        at: record.at,
        item: event.item.clone(),
        action: "collected".into(),
        bytes: event.bytes,
        rule: Some(event.rule),
        why: event.why.clone(),
        reason: event.reason.clone(),
    }
}

fn purging(event: &GcPurging, record: &Record) -> DeletionRecord {
    DeletionRecord {
        seq: record.seq,
        at: record.at,
        item: event.item.clone(),
        action: "purging".into(),
        bytes: 0,
        rule: Some(event.rule),
        why: event.why.clone(),
        reason: event.reason.clone(),
    }
}

/// That it arrived in the trash is no news.
fn moved(event: &GcMoved, record: &Record) -> Option<DeletionRecord> {
    let (action, bytes, why) = match &event.outcome {
        Moved::Trashed => return None,
        Moved::Purged { bytes } => ("purged", *bytes, String::new()),
        Moved::Gone => ("gone", 0, "it was not there any more".into()),
        Moved::Kept { why } => ("kept", 0, why.clone()),
        Moved::Failed { error } => ("failed", 0, error.to_string()),
    };
    let (item, action) = (event.item.clone(), action.into());
    Some(DeletionRecord {
        seq: record.seq,
        at: record.at,
        item,
        action,
        bytes,
        rule: None,
        why,
        reason: String::new(),
    })
}

fn restored(event: &GcRestored, record: &Record) -> DeletionRecord {
    let failed = event.error.as_ref();
    DeletionRecord {
        seq: record.seq,
        at: record.at,
        item: event.item.clone(),
        action: if failed.is_some() { "failed" } else { "restored" }.into(),
        bytes: event.bytes,
        rule: None,
        why: failed.map(ToString::to_string).unwrap_or_default(),
        reason: String::new(),
    }
}

pub(crate) fn newest(limit: u32) -> Query {
    Query::Scan { table: LOG, prefix: Vec::new(), newest_first: true, limit: limit.min(LOG_ROWS_MAX) }
}

pub(crate) fn log(reads: &Reads, limit: u32) -> LogReply {
    let rows = reads.rows(&newest(limit)).iter();
    LogReply { records: rows.filter_map(|(_, value)| rmp_serde::from_slice(value).ok()).collect() }
}
