//! What is kept of artifacts: rows of five tables, each derived from one record alone.
//!
//! | table | key | value |
//! |---|---|---|
//! | `artifacts` | `RUN/TASK` | [`ArtifactView`] |
//! | `payloads` | `RUN/TASK` | the payload, as it was committed |
//! | `objects` | digest | an [`ObjectRow`]: the name that was given to it last |
//! | `artifact_names` | `FLOW/TASK`, 0, seq of `run.started` (8 bytes, big-endian) | the run |
//! | `lineage` | `RUN` | a [`LineageRow`]: its flow, and which task needs which |
//!
//! A version is a place in `artifact_names`: `FLOW/TASK@3` is what the third run of that flow committed for the task. So
//! a version never changes, and counting needs nothing but the rows.

use std::collections::BTreeMap;

use eclosion_kernel::core::{Query, Reads};
use eclosion_kernel::journal::{Record, RowChange};
use eclosion_schemas::events::{Event, RunStarted, StepCommitted};
use eclosion_schemas::view::ArtifactView;
use eclosion_schemas::{Digest, Payload, RunId};
use serde::{Deserialize, Serialize};

use crate::{lineage, view};

const ARTIFACTS: &str = "artifacts";
const PAYLOADS: &str = "payloads";
const OBJECTS: &str = "objects";
const NAMES: &str = "artifact_names";
const LINEAGE: &str = "lineage";

/// Artifacts that one list or one lineage looks at.
pub const ARTIFACT_ROWS_MAX: u32 = 10_000;
/// Runs of one flow that versions are counted over.
pub const VERSIONS_MAX: u32 = 65_536;
/// Objects that one look at a shard finds: with 256 shards, sixteen million.
pub const OBJECT_ROWS_MAX: u32 = 65_536;

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
        StepCommitted::KIND => {
            rows.extend(
                record.event::<StepCommitted>().map(|event| committed(&event, record)).into_iter().flatten(),
            );
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

fn committed(event: &StepCommitted, record: &Record) -> Vec<RowChange> {
    let shown = view::artifact(event, record);
    let key = shown.name.clone().into_bytes();
    let mut rows = vec![change(ARTIFACTS, key.clone(), &shown), change(PAYLOADS, key, &event.output)];
    let sealed = event.output.parts.iter().filter_map(|part| Some((part.digest.as_ref()?, part.bytes)));
    rows.extend(sealed.map(|(digest, bytes)| {
        let row = ObjectRow { name: shown.name.clone(), bytes };
        change(OBJECTS, digest.as_str().as_bytes().to_vec(), &row)
    }));
    rows
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

pub(crate) fn found_artifact(reads: &Reads, name: &str) -> Option<ArtifactView> {
    first(reads, &by_name(name)[0])
}

pub(crate) fn found_payload(reads: &Reads, name: &str) -> Option<Payload> {
    first(reads, &by_name(name)[1])
}

pub(crate) fn found_artifacts(reads: &Reads, prefix: &str) -> Vec<ArtifactView> {
    values(reads, &by_prefix(prefix)).collect()
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
