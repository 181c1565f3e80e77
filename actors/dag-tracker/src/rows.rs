//! What stays of runs when they have left the memory: rows of three tables, derived from records alone. The rows of the
//! cache stand beside them: [`crate::cache::rows`].
//!
//! | table | key | value |
//! |---|---|---|
//! | `runs` | state of the run (`*` for any) · seq of `run.started`, 8 bytes big-endian | its head, as a list shows it |
//! | `steps` | run · `/` · seq, 8 bytes big-endian | a record of it |
//! | `run_keys` | idempotency key | run and content |
//! | `runs_collected` | run | when, by which rule: it is shown no more; its steps stay until `gc.erased`, and this until the record of its purge goes |
//!
//! An older run is shown by folding its rows into an empty state, so that it looks as it did in memory. Starts of
//! attempts are not kept, because they would double the rows of a step; an older task therefore has no `started_at`.

use std::collections::BTreeMap;
use std::sync::Arc;

use eclosion_kernel::core::{Query, Reads};
use eclosion_kernel::journal::{Reader, Record, RowChange, Stored};
use eclosion_schemas::events::{
    CollectedRun, Event, GcCollected, GcErased, GcRestored, RunCancelling, RunFinished, RunStarted,
    StepCommitted, StepFailed, StepMissed, StepReused, WorkerDied,
};
use eclosion_schemas::ops::gc::{Item, ItemKind};
use eclosion_schemas::ops::run::ListRequest;
use eclosion_schemas::view::{RunState, RunView};
use eclosion_schemas::{Epoch, Error, RunId, Seq, Timestamp};
use serde::{Deserialize, Serialize};

use crate::cache;
use crate::state::{Command, Fold, Run, State, fold_record};
use crate::view::LIST_ROWS_MAX;

const RUNS: &str = "runs";
const STEPS: &str = "steps";
const KEYS: &str = "run_keys";
const COLLECTED: &str = "runs_collected";
/// What a step's rows take, roughly.
const STEP_BYTES_ABOUT: u64 = 600;
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

/// That a run was collected: what is left of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Collected {
    pub(crate) at: Timestamp,
    pub(crate) why: String,
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
        GcCollected::KIND => {
            if let Some(event) = record.event::<GcCollected>() {
                rows.extend(event.run.iter().flat_map(|run| collected_rows(run, &event.why, record.at)));
            }
        }
        GcRestored::KIND => {
            if let Some(event) = record.event::<GcRestored>().filter(|event| event.error.is_none()) {
                rows.extend(event.run.iter().flat_map(|run| restored_rows(run)));
            }
        }
        GcErased::KIND => {
            rows.extend(record.event::<GcErased>().iter().flat_map(|event| erased_rows(event)));
        }
        _ => {}
    }
    cache::rows::project(record, rows);
}

/// Hidden from lists at once.
fn collected_rows(run: &CollectedRun, why: &str, at: Timestamp) -> Vec<RowChange> {
    let gone = Collected { at, why: why.to_owned() };
    let mut rows = vec![RowChange {
        table: COLLECTED,
        key: run.view.run.as_str().as_bytes().to_vec(),
        value: encoded(&gone),
    }];
    rows.extend(head_keys(run.view.state, run.started_seq).map(|key| RowChange {
        table: RUNS,
        key,
        value: None,
    }));
    rows
}

fn restored_rows(run: &CollectedRun) -> Vec<RowChange> {
    let key = run.view.run.as_str().as_bytes().to_vec();
    let mut rows = vec![RowChange { table: COLLECTED, key, value: None }];
    let value = encoded(&(run.started_seq, &run.view));
    let heads = head_keys(run.view.state, run.started_seq);
    rows.extend(heads.map(|key| RowChange { table: RUNS, key, value: value.clone() }));
    rows
}

fn erased_rows(event: &GcErased) -> Vec<RowChange> {
    // What is known of a run that is gone goes with the record of its purge.
    let forgotten = event.runs.iter().map(|run| (COLLECTED, run.as_str().as_bytes().to_vec()));
    let forgotten = forgotten.map(|(table, key)| RowChange { table, key, value: None });
    let Some(run) = &event.run else { return forgotten.collect() };
    let steps =
        event.seqs.iter().map(|seq| (STEPS, [step_prefix(run), seq.0.to_be_bytes().to_vec()].concat()));
    let keys = event.keys.iter().map(|key| (KEYS, key.as_bytes().to_vec()));
    steps.chain(keys).map(|(table, key)| RowChange { table, key, value: None }).collect()
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
    let keys = head_keys(event.state, summary.started_seq);
    keys.map(|key| RowChange { table: RUNS, key, value: value.clone() }).into()
}

/// In the list of all runs, and in that of its state.
fn head_keys(state: RunState, started: Seq) -> [Vec<u8>; 2] {
    [list_prefix(None), list_prefix(Some(state))]
        .map(|prefix| [vec![prefix], started.0.to_be_bytes().to_vec()].concat())
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
        Command::Start(request, _) => request.idem.iter().map(|key| key_query(key)).collect(),
        Command::Get(request) => of_run(&request.run),
        Command::Why(request) => of_run(&request.run),
        Command::Cancel(request) => of_run(&request.run),
        Command::List(request) => vec![list_query(request)],
        Command::Rerun(request, _) => {
            request.idem.iter().map(|key| key_query(key)).chain(of_run(&request.run)).collect()
        }
        Command::Recorded(request) => of_run(&request.run),
        Command::Explain(request) => of_run(&request.run),
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

fn of_run(run: &RunId) -> Vec<Query> {
    vec![steps_query(run), collected_query(run)]
}

fn collected_query(run: &RunId) -> Query {
    Query::Get { table: COLLECTED, key: run.as_str().as_bytes().to_vec() }
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

/// What a run was started with; nothing of one that was collected.
pub(crate) fn started(reads: &Reads, run: &RunId) -> Option<RunStarted> {
    if collected(reads, run).is_some() {
        return None;
    }
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

/// When and why a run was collected, if it was.
pub(crate) fn collected(reads: &Reads, run: &RunId) -> Option<Collected> {
    rmp_serde::from_slice(reads.get(COLLECTED, run.as_str().as_bytes())?).ok()
}

/// A run as it was when it finished; nothing of one that was collected.
pub(crate) fn restored(reads: &Reads, run: &RunId) -> Option<Run> {
    if collected(reads, run).is_some() {
        return None;
    }
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

/// Every finished run that is not collected, the oldest first: the seq of its start, its head, and the bytes of its rows.
///
/// # Errors
/// `unavailable` when rows cannot be read.
pub fn finished(reader: &dyn Reader) -> Result<Vec<(CollectedRun, u64)>, Error> {
    let heads = reader.scan(RUNS, &[list_prefix(None)], false, u32::MAX)?;
    let mut found = Vec::with_capacity(heads.len());
    for (_, value) in heads {
        let Ok((started_seq, view)) = rmp_serde::from_slice::<(Seq, RunView)>(&value) else { continue };
        // A list's rows, and for each task about two records of some hundred bytes: reading them all would cost more
        // than what is decided by it.
        let tasks: u64 = view.counts.values().map(|count| u64::from(*count)).sum();
        let bytes = value.len() as u64 * 2 + tasks * STEP_BYTES_ABOUT;
        found.push((CollectedRun { started_seq, view }, bytes));
    }
    Ok(found)
}

/// The rows of a run that are erased when it is purged.
///
/// # Errors
/// `unavailable` when rows cannot be read.
pub fn erasable(reader: &dyn Reader, run: &RunId) -> Result<GcErased, Error> {
    let mut erased = GcErased { run: Some(run.clone()), ..GcErased::default() };
    let prefix = step_prefix(run);
    for (key, value) in reader.scan(STEPS, &prefix, false, u32::MAX)? {
        let Some(seq) = key.get(prefix.len()..).and_then(|seq| seq.try_into().ok()) else { continue };
        erased.seqs.push(Seq(u64::from_be_bytes(seq)));
        let row = rmp_serde::from_slice::<StepRow>(&value).ok().filter(|row| row.kind == RunStarted::KIND);
        let started = row.and_then(|row| rmp_serde::from_slice::<RunStarted>(&row.body).ok());
        erased.keys.extend(started.and_then(|started| started.idem));
    }
    Ok(erased)
}

/// The run that an event of the stale manager is about.
pub(crate) fn run_of(item: &Item) -> Option<RunId> {
    if item.kind == ItemKind::Run { RunId::new(item.id.as_str()).ok() } else { None }
}
