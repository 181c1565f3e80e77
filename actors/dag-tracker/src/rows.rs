//! What stays of runs when they have left the memory: rows of three tables, derived from records alone. The rows of the
//! cache stand beside them: [`crate::cache::rows`].
//!
//! | table | key | value |
//! |---|---|---|
//! | `runs` | state of the run (`*` for any) · seq of `run.started`, 8 bytes big-endian | its head, as a list shows it |
//! | `steps` | run · `/` · seq, 8 bytes big-endian | a record of it |
//! | `run_keys` | idempotency key | run and content |
//!
//! An older run is shown by folding its rows into an empty state, so that it looks as it did in memory. Starts of
//! attempts are not kept, because they would double the rows of a step; an older task therefore has no `started_at`.

use std::collections::BTreeMap;
use std::sync::Arc;

use eclosion_kernel::core::{Query, Reads};
use eclosion_kernel::journal::{Record, RowChange, Stored};
use eclosion_schemas::events::{
    Event, RunCancelling, RunFinished, RunStarted, StepCommitted, StepFailed, StepMissed, StepReused,
    WorkerDied,
};
use eclosion_schemas::ops::run::ListRequest;
use eclosion_schemas::view::{RunState, RunView};
use eclosion_schemas::{Epoch, RunId, Seq, Timestamp};
use serde::{Deserialize, Serialize};

use crate::cache;
use crate::state::{Command, Fold, Run, State, fold_record};
use crate::view::LIST_ROWS_MAX;

const RUNS: &str = "runs";
const STEPS: &str = "steps";
const KEYS: &str = "run_keys";
/// The rows of one run: every instance may have been tried several times.
const STEP_ROWS_MAX: u32 = 65_536;

/// A record as a row's value. The columns of a record that showing a run does not need are left out.
#[derive(Serialize, Deserialize)]
struct StepRow {
    kind: String,
    version: u16,
    at: Timestamp,
    #[serde(with = "serde_bytes")]
    body: Vec<u8>,
}

/// Derives the rows of a record: the projection of the DAG tracker.
pub fn project(record: &Record, rows: &mut Vec<RowChange>) {
    match &*record.kind {
        RunStarted::KIND => {
            if let Some(event) = record.event::<RunStarted>() {
                rows.push(step_row(&event.run, record));
                rows.extend(event.idem.as_ref().map(|key| key_row(key, &event)));
            }
        }
        RunFinished::KIND => {
            if let Some(event) = record.event::<RunFinished>() {
                rows.push(step_row(&event.run, record));
                rows.extend(list_rows(&event, record));
            }
        }
        RunCancelling::KIND => {
            rows.extend(record.event::<RunCancelling>().map(|event| step_row(&event.run, record)));
        }
        StepCommitted::KIND => {
            rows.extend(record.event::<StepCommitted>().map(|event| step_row(&event.run, record)));
        }
        StepFailed::KIND => {
            rows.extend(record.event::<StepFailed>().map(|event| step_row(&event.run, record)))
        }
        StepReused::KIND => {
            rows.extend(record.event::<StepReused>().map(|event| step_row(&event.run, record)))
        }
        StepMissed::KIND => {
            rows.extend(record.event::<StepMissed>().map(|event| step_row(&event.run, record)))
        }
        WorkerDied::KIND => {
            let task = record.event::<WorkerDied>().and_then(|event| event.certificate.task.clone());
            rows.extend(task.map(|task| step_row(&task.run, record)));
        }
        _ => {}
    }
    cache::rows::project(record, rows);
}

fn step_row(run: &RunId, record: &Record) -> RowChange {
    let row = StepRow {
        kind: record.kind.as_ref().to_owned(),
        version: record.version,
        at: record.at,
        body: record.body.to_vec(),
    };
    let key = [step_prefix(run), record.seq.0.to_be_bytes().to_vec()].concat();
    RowChange { table: STEPS, key, value: encoded(&row) }
}

fn step_prefix(run: &RunId) -> Vec<u8> {
    format!("{run}/").into_bytes()
}

fn key_row(key: &str, event: &RunStarted) -> RowChange {
    let value = encoded(&(&event.run, &event.content));
    RowChange { table: KEYS, key: key.as_bytes().to_vec(), value }
}

fn list_rows(event: &RunFinished, record: &Record) -> Vec<RowChange> {
    let Some(summary) = &event.summary else { return Vec::new() };
    let view = RunView {
        run: event.run.clone(),
        flow: summary.flow.clone(),
        state: event.state,
        tenant: summary.tenant.clone(),
        seed: summary.seed,
        content: summary.content.clone(),
        parameters: BTreeMap::new(),
        started_at: summary.started_at,
        finished_at: Some(record.at),
        counts: summary.counts.clone(),
        error: event.error.clone(),
        result: None,
        result_bytes: None,
        cache: summary.cache,
        rerun_of: summary.rerun_of.clone(),
        seq: record.seq,
    };
    let value = encoded(&(summary.started_seq, view));
    [list_prefix(None), list_prefix(Some(event.state))]
        .map(|prefix| {
            let key = [vec![prefix], summary.started_seq.0.to_be_bytes().to_vec()].concat();
            RowChange { table: RUNS, key, value: value.clone() }
        })
        .into()
}

fn list_prefix(state: Option<RunState>) -> u8 {
    match state {
        None => b'*',
        Some(RunState::Running) => b'r',
        Some(RunState::Cancelling) => b'g',
        Some(RunState::Succeeded) => b's',
        Some(RunState::Failed) => b'f',
        Some(RunState::Cancelled) => b'c',
    }
}

/// Our own types always have a msgpack form; without one there would be no row, and no wrong one.
fn encoded<T: Serialize>(value: &T) -> Option<Vec<u8>> {
    rmp_serde::to_vec_named(value).ok()
}

pub(crate) fn queries(command: &Command) -> Vec<Query> {
    match command {
        Command::Start(request) => request.idem.iter().map(|key| key_query(key)).collect(),
        Command::Get(request) => vec![steps_query(&request.run)],
        Command::Why(request) => vec![steps_query(&request.run)],
        Command::Cancel(request) => vec![steps_query(&request.run)],
        Command::List(request) => vec![list_query(request)],
        Command::Rerun(request) => {
            request.idem.iter().map(|key| key_query(key)).chain([steps_query(&request.run)]).collect()
        }
        Command::Recorded(request) => vec![steps_query(&request.run)],
        Command::Explain(request) => vec![steps_query(&request.run)],
        Command::Find(request) => cache::rows::find_queries(request),
        Command::ListCache(request) => cache::rows::list_queries(request),
        Command::Validate(_)
        | Command::Commit(_)
        | Command::Fail(_)
        | Command::Body(_)
        | Command::Drop(_)
        | Command::Looked(_) => Vec::new(),
    }
}

fn key_query(key: &str) -> Query {
    Query::Get { table: KEYS, key: key.as_bytes().to_vec() }
}

fn steps_query(run: &RunId) -> Query {
    Query::Scan { table: STEPS, prefix: step_prefix(run), newest_first: false, limit: STEP_ROWS_MAX }
}

fn list_query(request: &ListRequest) -> Query {
    let prefix = vec![list_prefix(request.state)];
    Query::Scan { table: RUNS, prefix, newest_first: true, limit: LIST_ROWS_MAX }
}

pub(crate) fn by_key(reads: &Reads, key: &str) -> Option<(RunId, String)> {
    rmp_serde::from_slice(reads.get(KEYS, key.as_bytes())?).ok()
}

/// Finished runs by the seq of their start; among them such as are still in memory.
pub(crate) fn listed(reads: &Reads, request: &ListRequest) -> Vec<(Seq, RunView)> {
    let rows = reads.rows(&list_query(request));
    rows.iter().filter_map(|(_, value)| rmp_serde::from_slice(value).ok()).collect()
}

/// What a run was started with.
pub(crate) fn started(reads: &Reads, run: &RunId) -> Option<RunStarted> {
    let (key, value) = reads.rows(&steps_query(run)).first()?;
    record(run, key, value)?.event::<RunStarted>().map(|event| event.as_ref().clone())
}

fn record(run: &RunId, key: &[u8], value: &[u8]) -> Option<Record> {
    let seq = Seq(u64::from_be_bytes(key.get(step_prefix(run).len()..)?.try_into().ok()?));
    let row: StepRow = rmp_serde::from_slice(value).ok()?;
    Some(Record::from(Stored {
        seq,
        epoch: Epoch(0),
        at: row.at,
        kind: row.kind.into(),
        version: row.version,
        cause: None,
        body: row.body.into(),
    }))
}

/// A run as it was when it finished.
pub(crate) fn restored(reads: &Reads, run: &RunId) -> Option<Run> {
    let mut state = State::default();
    for (key, value) in reads.rows(&steps_query(run)) {
        let record = record(run, key, value)?;
        match record.event::<WorkerDied>() {
            Some(event) => restore_loss(&mut state, &event, &record),
            None => fold_record(&mut state, &record),
        }
    }
    state.runs.remove(run)
}

/// The attempt's start has no row, so its task is found by what the certificate names.
fn restore_loss(state: &mut State, event: &WorkerDied, record: &Record) {
    let State { runs, index, .. } = state;
    let Some(task) = &event.certificate.task else { return };
    let Some(run) = runs.get_mut(&task.run) else { return };
    if let Some(slot) = run.slot(&task.task) {
        let fold = &mut Fold::new(index, record.seq, record.at);
        run.lose(slot, &Arc::new(event.certificate.clone()), event.wanted, fold);
    }
}
