//! What is kept of artifacts: rows of nine tables, each derived from one record alone.
//!
//! | table | key | value |
//! |---|---|---|
//! | `artifacts` | `RUN/TASK` | an [`ArtifactRow`]: what is shown of it, and its payload if that is small |
//! | `payloads` | `RUN/TASK` | a larger payload, as it was committed |
//! | `artifact_order` | its seq, see [`order_key`] | `RUN/TASK` |
//! | `objects` | digest | an [`ObjectRow`]: the name that was given to it last |
//! | `artifact_names` | `FLOW/TASK`, 0, seq of `run.started` (8 bytes, big-endian) | the run |
//! | `artifact_tags` | `FLOW/TASK`, 0, tag | a [`TagView`]: where it leads |
//! | `artifact_tag_history` | `FLOW/TASK`, 0, tag, 0, seq (8 bytes, big-endian) | the same, as it was then |
//! | `artifacts_hidden` | `RUN` | since when: the run was collected, and may be restored |
//! | `lineage` | `RUN` | a [`LineageRow`]: its flow, and which task needs which |
//!
//! A version is a place in `artifact_names`: `FLOW/TASK@3` is what the third run of that flow committed for the task. So
//! a version never changes, and counting needs nothing but the rows.
//!
//! A list reads `artifacts` only, so a row of it stays small: what a step returned inline goes beside it when it is more
//! than [`SMALL_BYTES`].

use std::collections::BTreeMap;

use eclosion_kernel::core::{Query, Reads};
use eclosion_kernel::journal::{Record, RowChange};
use eclosion_schemas::events::{
    ArtifactTagged, ArtifactUntagged, Event, GcCollected, GcErased, GcRestored, RunStarted, StepCommitted,
    StepReused,
};
use eclosion_schemas::ops::artifact::{TagView, TagsRequest};
use eclosion_schemas::view::ArtifactView;
use eclosion_schemas::{Digest, Payload, RunId, Seq};
use serde::{Deserialize, Serialize};

use crate::view::Made;
use crate::{lineage, view};

mod collected;

pub(crate) use collected::{collected_runs, is_collected};
pub use collected::{erasable, names};

const ARTIFACTS: &str = "artifacts";
const PAYLOADS: &str = "payloads";
const ORDER: &str = "artifact_order";
const TAGS: &str = "artifact_tags";
const TAG_HISTORY: &str = "artifact_tag_history";
const OBJECTS: &str = "objects";
const NAMES: &str = "artifact_names";
const LINEAGE: &str = "lineage";
const COLLECTED: &str = "artifacts_hidden";

/// Artifacts that one list or one lineage looks at.
pub const ARTIFACT_ROWS_MAX: u32 = 10_000;
/// Runs of one flow that versions are counted over.
pub const VERSIONS_MAX: u32 = 65_536;
/// Objects that one look at a shard finds: with 256 shards, sixteen million.
pub const OBJECT_ROWS_MAX: u32 = 65_536;

/// A payload of at most this much lies in the row of its artifact.
const SMALL_BYTES: usize = 1024;
/// Of the descriptor of a part: a digest, a codec, a name.
const PART_BYTES: usize = 256;
/// Artifacts that one page of a search is made of.
pub const PAGE_NAMES_MAX: usize = 256;
/// Seqs that one bucket of `artifact_order` spans, and buckets that one page looks into.
const BUCKET_SEQS: u64 = 1024;
const BUCKETS: u64 = 4;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ArtifactRow {
    pub view: ArtifactView,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<Payload>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ObjectRow {
    pub name: String,
    pub bytes: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LineageRow {
    pub flow: String,
    pub needs: BTreeMap<String, Vec<String>>,
}

/// Derives the rows of a record: the projection of the artifact store.
pub fn project(record: &Record, rows: &mut Vec<RowChange>) {
    match &*record.kind {
        RunStarted::KIND => rows
            .extend(record.event::<RunStarted>().map(|event| started(&event, record)).into_iter().flatten()),
        StepCommitted::KIND | StepReused::KIND => {
            rows.extend(Made::by(record).map(|event| made(&event, record)).into_iter().flatten());
        }
        ArtifactTagged::KIND => {
            rows.extend(
                record.event::<ArtifactTagged>().map(|event| tagged(&event, record)).into_iter().flatten(),
            );
        }
        ArtifactUntagged::KIND => {
            rows.extend(
                record
                    .event::<ArtifactUntagged>()
                    .map(|event| untagged(&event, record))
                    .into_iter()
                    .flatten(),
            );
        }
        GcErased::KIND => {
            rows.extend(record.event::<GcErased>().iter().flat_map(|event| collected::erased(event)))
        }
        GcCollected::KIND => {
            rows.extend(record.event::<GcCollected>().and_then(|event| collected::hidden(&event, record)));
        }
        GcRestored::KIND => {
            rows.extend(record.event::<GcRestored>().and_then(|event| collected::shown(&event)))
        }
        _ => {}
    }
}

fn started(event: &RunStarted, record: &Record) -> Vec<RowChange> {
    let flow = &event.flow;
    let row = LineageRow { flow: flow.name.clone(), needs: lineage::needs(flow) };
    let mut rows = vec![change(LINEAGE, event.run.as_str().as_bytes().to_vec(), &row)];
    rows.extend(flow.tasks.keys().map(|task| {
        let key = [version_prefix(&flow.name, task), record.seq.0.to_be_bytes().to_vec()].concat();
        change(NAMES, key, &event.run)
    }));
    rows
}

fn made(event: &Made, record: &Record) -> Vec<RowChange> {
    let shown = view::artifact(event, record);
    let key = shown.name.clone().into_bytes();
    let mut rows = vec![change(ORDER, order_key(record.seq), &shown.name)];
    let output = event.output();
    let small = output.body.len() + output.parts.len() * PART_BYTES <= SMALL_BYTES;
    if !small {
        rows.push(change(PAYLOADS, key.clone(), output));
    }
    let row = ArtifactRow { view: shown.clone(), payload: small.then(|| output.clone()) };
    rows.push(change(ARTIFACTS, key, &row));
    let sealed = output.parts.iter().filter_map(|part| Some((part.digest.as_ref()?, part.bytes)));
    rows.extend(sealed.map(|(digest, bytes)| {
        let row = ObjectRow { name: shown.name.clone(), bytes };
        change(OBJECTS, digest.as_str().as_bytes().to_vec(), &row)
    }));
    rows
}

fn tagged(event: &ArtifactTagged, record: &Record) -> [RowChange; 2] {
    let view = TagView {
        path: event.path.clone(),
        tag: event.tag.clone(),
        artifact: Some(format!("{}/{}", event.run, event.task)),
        reason: event.reason.clone(),
        at: record.at,
        seq: record.seq,
    };
    let key = tag_key(&event.path, &event.tag);
    [change(TAGS, key.clone(), &view), change(TAG_HISTORY, history_key(key, record.seq), &view)]
}

fn untagged(event: &ArtifactUntagged, record: &Record) -> [RowChange; 2] {
    let view = TagView {
        path: event.path.clone(),
        tag: event.tag.clone(),
        artifact: None,
        reason: event.reason.clone(),
        at: record.at,
        seq: record.seq,
    };
    let key = tag_key(&event.path, &event.tag);
    let gone = RowChange { table: TAGS, key: key.clone(), value: None };
    [gone, change(TAG_HISTORY, history_key(key, record.seq), &view)]
}

/// Rows are found by prefix alone, so the seqs are in buckets: the bucket is the prefix.
#[must_use]
pub fn order_key(seq: Seq) -> Vec<u8> {
    [bucket_key(seq.0 / BUCKET_SEQS), seq.0.to_be_bytes().to_vec()].concat()
}

fn bucket_key(bucket: u64) -> Vec<u8> {
    bucket.to_be_bytes().to_vec()
}

fn tag_key(path: &str, tag: &str) -> Vec<u8> {
    format!("{path}\0{tag}").into_bytes()
}

fn history_key(key: Vec<u8>, seq: Seq) -> Vec<u8> {
    [key, vec![0], seq.0.to_be_bytes().to_vec()].concat()
}

/// Our own types always have a msgpack form; without one there would be no row, and no wrong one.
fn change<T: Serialize>(table: &'static str, key: Vec<u8>, value: &T) -> RowChange {
    RowChange { table, key, value: rmp_serde::to_vec_named(value).ok() }
}

fn version_prefix(flow: &str, task: &str) -> Vec<u8> {
    format!("{flow}/{task}\0").into_bytes()
}

pub(crate) fn by_name(name: &str) -> [Query; 2] {
    [ARTIFACTS, PAYLOADS].map(|table| Query::Get { table, key: name.as_bytes().to_vec() })
}

pub(crate) fn by_prefix(prefix: &str) -> Query {
    let prefix = prefix.as_bytes().to_vec();
    Query::Scan { table: ARTIFACTS, prefix, newest_first: false, limit: ARTIFACT_ROWS_MAX }
}

pub(crate) fn lineage_of(run: &str) -> Query {
    Query::Get { table: LINEAGE, key: run.as_bytes().to_vec() }
}

pub(crate) fn object(digest: &str) -> Query {
    Query::Get { table: OBJECTS, key: digest.as_bytes().to_vec() }
}

pub(crate) fn objects(shard: u8) -> Query {
    let prefix = format!("{shard:02x}").into_bytes();
    Query::Scan { table: OBJECTS, prefix, newest_first: false, limit: OBJECT_ROWS_MAX }
}

pub(crate) fn runs_of(flow: &str, task: &str) -> Query {
    let prefix = version_prefix(flow, task);
    Query::Scan { table: NAMES, prefix, newest_first: false, limit: VERSIONS_MAX }
}

pub(crate) fn tag(path: &str, tag: &str) -> Query {
    Query::Get { table: TAGS, key: tag_key(path, tag) }
}

/// One more than is shown, so that it is known whether there are more.
pub(crate) fn tags(request: &TagsRequest) -> Query {
    let table = if request.history { TAG_HISTORY } else { TAGS };
    let limit = request.limit.min(ARTIFACT_ROWS_MAX).saturating_add(1);
    Query::Scan { table, prefix: request.prefix.clone().into_bytes(), newest_first: false, limit }
}

/// The newest artifacts, or those before a seq: of the bucket that it is in, and of some below.
pub(crate) fn page(before: Option<Seq>) -> Vec<Query> {
    let scan = |prefix, limit| Query::Scan { table: ORDER, prefix, newest_first: true, limit };
    match before {
        None => vec![scan(Vec::new(), PAGE_NAMES_MAX as u32)],
        Some(before) => {
            let buckets =
                buckets(before).into_iter().map(|bucket| scan(bucket_key(bucket), BUCKET_SEQS as u32));
            buckets.collect()
        }
    }
}

/// Highest first.
fn buckets(before: Seq) -> Vec<u64> {
    let Some(last) = before.0.checked_sub(1) else { return Vec::new() };
    let top = last / BUCKET_SEQS;
    (top.saturating_sub(BUCKETS - 1)..=top).rev().collect()
}

/// Names, newest first, and before which seq to go on; `None` when there are no more.
pub(crate) fn found_page(reads: &Reads, before: Option<Seq>) -> (Vec<String>, Option<Seq>) {
    let queries = page(before);
    let mut found: Vec<(Seq, String)> = queries.iter().flat_map(|query| ordered(reads, query)).collect();
    found.retain(|(seq, _)| before.is_none_or(|before| *seq < before));
    let is_cut = found.len() > PAGE_NAMES_MAX || (before.is_none() && found.len() == PAGE_NAMES_MAX);
    found.truncate(PAGE_NAMES_MAX);
    let lowest = before.and_then(|before| buckets(before).last().copied()).unwrap_or_default() * BUCKET_SEQS;
    let next = if is_cut { found.last().map(|(seq, _)| *seq) } else { Some(Seq(lowest)) };
    (found.into_iter().map(|(_, name)| name).collect(), next.filter(|seq| seq.0 > 0))
}

fn ordered(reads: &Reads, query: &Query) -> Vec<(Seq, String)> {
    let rows = reads.rows(query).iter().filter_map(|(key, name)| {
        let seq = u64::from_be_bytes(key.get(8..16)?.try_into().ok()?);
        Some((Seq(seq), rmp_serde::from_slice(name).ok()?))
    });
    rows.collect()
}

/// The artifacts of these names, and the flows of their runs.
pub(crate) fn views(names: &[String]) -> Vec<Query> {
    let names = names.iter().take(PAGE_NAMES_MAX);
    let mut queries: Vec<Query> = names
        .flat_map(|name| {
            let [artifact, _] = by_name(name);
            let run = name.split_once('/').map_or(name.as_str(), |(run, _)| run);
            [artifact, lineage_of(run)]
        })
        .collect();
    queries.sort();
    queries.dedup();
    queries
}

/// Each with the name of its flow; what is not there is left out.
pub(crate) fn found_views(reads: &Reads, names: &[String]) -> Vec<(ArtifactView, String)> {
    let names = names.iter().take(PAGE_NAMES_MAX);
    let found = names.filter_map(|name| {
        let view = found_artifact(reads, name)?;
        let flow = found_lineage(reads, view.run.as_str()).map(|row| row.flow).unwrap_or_default();
        Some((view, flow))
    });
    found.collect()
}

pub(crate) fn found_tag(reads: &Reads, path: &str, name: &str) -> Option<TagView> {
    first(reads, &tag(path, name))
}

pub(crate) fn found_tags(reads: &Reads, request: &TagsRequest) -> Vec<TagView> {
    values(reads, &tags(request)).collect()
}

pub(crate) fn found_artifact(reads: &Reads, name: &str) -> Option<ArtifactView> {
    first::<ArtifactRow>(reads, &by_name(name)[0]).map(|row| row.view)
}

pub(crate) fn found_payload(reads: &Reads, name: &str) -> Option<Payload> {
    let [artifact, payload] = by_name(name);
    first::<ArtifactRow>(reads, &artifact)?.payload.or_else(|| first(reads, &payload))
}

pub(crate) fn found_artifacts(reads: &Reads, prefix: &str) -> Vec<ArtifactView> {
    values::<ArtifactRow>(reads, &by_prefix(prefix)).map(|row| row.view).collect()
}

pub(crate) fn found_lineage(reads: &Reads, run: &str) -> Option<LineageRow> {
    first(reads, &lineage_of(run))
}

pub(crate) fn found_object(reads: &Reads, digest: &str) -> Option<ObjectRow> {
    first(reads, &object(digest))
}

pub(crate) fn found_objects(reads: &Reads, shard: u8) -> Vec<(Digest, u64)> {
    let rows = reads.rows(&objects(shard)).iter();
    rows.filter_map(|(key, value)| {
        let digest = Digest::new(std::str::from_utf8(key).ok()?).ok()?;
        Some((digest, rmp_serde::from_slice::<ObjectRow>(value).ok()?.bytes))
    })
    .collect()
}

/// The runs of a flow that has this task, oldest first.
pub(crate) fn found_runs(reads: &Reads, flow: &str, task: &str) -> Vec<RunId> {
    values(reads, &runs_of(flow, task)).collect()
}

fn first<T: serde::de::DeserializeOwned>(reads: &Reads, query: &Query) -> Option<T> {
    values(reads, query).next()
}

fn values<'a, T: serde::de::DeserializeOwned>(
    reads: &'a Reads,
    query: &Query,
) -> impl Iterator<Item = T> + use<'a, T> {
    reads.rows(query).iter().filter_map(|(_, value)| rmp_serde::from_slice(value).ok())
}
