//! The records of deletions, as rows: table `gc_log`, key: seq (8 bytes, big-endian), value: a [`DeletionRecord`]. They are
//! bounded like everything else: `gc.erased` names those that go.

use eclosion_kernel::core::{Query, Reads};
use eclosion_kernel::journal::{Reader, Record, RowChange};
use eclosion_schemas::events::{Event, GcCollected, GcErased, GcMoved, GcPurging, GcRestored, Moved};
use eclosion_schemas::ops::gc::{DeletionRecord, ItemKind, LogReply};
use eclosion_schemas::{Error, RunId, Seq};

use crate::survey::Recorded;

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
        GcErased::KIND => {
            let erased = record.event::<GcErased>();
            let seqs = erased.iter().flat_map(|event| event.records.iter());
            rows.extend(seqs.map(|seq| RowChange { table: LOG, key: key(*seq), value: None }));
            None
        }
        _ => None,
    };
    if let Some(row) = row {
        let key = key(record.seq);
        // Our own types always have a msgpack form; without one there would be no row, and no wrong one.
        rows.push(RowChange { table: LOG, key, value: rmp_serde::to_vec_named(&row).ok() });
    }
}

fn key(seq: Seq) -> Vec<u8> {
    seq.0.to_be_bytes().to_vec()
}

/// Every record of a deletion, oldest first.
///
/// # Errors
/// `unavailable` when rows cannot be read.
pub fn deletions(reader: &dyn Reader) -> Result<Vec<Recorded>, Error> {
    let rows = reader.scan(LOG, &[], false, u32::MAX)?;
    let recorded = |(key, value): (Vec<u8>, Vec<u8>)| {
        let record: DeletionRecord = rmp_serde::from_slice(&value).ok()?;
        let is_gone = record.item.kind == ItemKind::Run && matches!(&*record.action, "purged" | "gone");
        let run = if is_gone { RunId::new(record.item.id.as_str()).ok() } else { None };
        Some(Recorded { seq: record.seq, at: record.at, bytes: (key.len() + value.len()) as u64, run })
    };
    Ok(rows.into_iter().filter_map(recorded).collect())
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
