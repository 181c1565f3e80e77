//! What readers see of runs and tasks, from the state or, for older runs, from rows.

use std::collections::BTreeMap;

use eclosion_kernel::core::Reads;
use eclosion_kernel::journal::Record;
use eclosion_schemas::ops::run::{GetReply, ListReply, ListRequest, RunRequest};
use eclosion_schemas::pending::PendingReason;
use eclosion_schemas::suggest::nearest;
use eclosion_schemas::view::{RunView, TaskView};
use eclosion_schemas::{Error, Part, Payload, RunId, TaskId};

use crate::rows;
use crate::state::{Gone, Instance, Phase, Run, Slot, State, Touch};

/// Rows of older runs that one list looks at.
pub(crate) const LIST_ROWS_MAX: u32 = 1_000;
/// The states of runs are kept for new subscribers, every one of them; a longer result is asked for with `run.get`.
const RESULT_PUBLISHED_BYTES_MAX: usize = 4 * 1024;
/// Of a part in a view, beside its codec and its name: digest, size and the names of the fields.
const PART_BYTES: usize = 128;
/// Unfinished tasks that one pending reason names.
const UPSTREAM_MAX: usize = 16;

/// The head of a run as it is published, if it is in memory: a long result is left out.
#[must_use]
pub fn run_view(state: &State, run: &RunId) -> Option<RunView> {
    let mut view = state.run(run).map(head)?;
    view.result = view.result.filter(|result| carried_bytes(result) <= RESULT_PUBLISHED_BYTES_MAX);
    Some(view)
}

/// What a payload adds to a view: its body, and what is said of each part.
fn carried_bytes(payload: &Payload) -> usize {
    let of_part = |part: &Part| PART_BYTES + part.codec.len() + part.name.as_ref().map_or(0, String::len);
    payload.body.len() + payload.parts.iter().map(of_part).sum::<usize>()
}

/// Its tasks in an order in which they can run; empty if it is not in memory.
#[must_use]
pub fn task_views(state: &State, run: &RunId) -> Vec<TaskView> {
    state.run(run).map(tasks).unwrap_or_default()
}

#[must_use]
pub fn task_view(state: &State, run: &RunId, task: &TaskId) -> Option<TaskView> {
    let run = state.run(run)?;
    task_at(run, run.slot(task)?)
}

/// What a record that was folded changed: `(run, None)` is the run's head, `(run, Some(task))` one task.
///
/// Only the newest few hundred records are known one by one; for an older one the answer is everything in memory.
#[must_use]
pub fn changed(state: &State, record: &Record) -> Vec<(RunId, Option<TaskId>)> {
    let Some(touches) = state.index.touched.by(record.seq) else {
        return state.runs.values().flat_map(all_of).collect();
    };
    let one = |touch: &Touch| match touch {
        Touch::Head(run) => vec![(run.clone(), None)],
        Touch::Task(run, slot) => {
            let id = state.run(run).and_then(|run| run.instance(*slot)).map(|instance| instance.id.clone());
            id.map(|id| (run.clone(), Some(id))).into_iter().collect()
        }
        Touch::Gone(_) => Vec::new(),
        Touch::All(run) => state.run(run).map(|run| all_of(run).collect()).unwrap_or_default(),
    };
    let mut changed: Vec<_> = touches.iter().flat_map(one).collect();
    changed.sort();
    changed.dedup();
    changed
}

/// What a record that was folded took out of memory.
#[must_use]
pub fn gone(state: &State, record: &Record) -> Vec<Gone> {
    let touches = state.index.touched.by(record.seq).into_iter().flatten();
    let gone = touches.filter_map(|touch| match touch {
        Touch::Gone(gone) => Some(gone.clone()),
        _ => None,
    });
    gone.collect()
}

fn all_of(run: &Run) -> impl Iterator<Item = (RunId, Option<TaskId>)> {
    let tasks =
        run.groups.iter().flat_map(|group| &group.instances).map(|instance| Some(instance.id.clone()));
    std::iter::once(None).chain(tasks).map(|task| (run.id.clone(), task))
}

pub(crate) fn head(run: &Run) -> RunView {
    RunView {
        run: run.id.clone(),
        flow: run.plan.flow.clone(),
        state: run.state,
        tenant: run.tenant.clone(),
        seed: run.plan.seed,
        content: run.plan.content.clone(),
        parameters: run.plan.parameters.clone(),
        started_at: run.started_at,
        finished_at: run.finished_at,
        counts: run.counts.clone(),
        error: run.error.as_deref().cloned(),
        result: run.result.clone(),
        result_bytes: run.result.as_ref().map(Payload::bytes),
        cache: run.cache.some(),
        rerun_of: run.rerun_of.as_ref().map(|rerun| rerun.run.clone()),
        seq: run.seq,
    }
}

/// As a list shows it, and [`crate::rows`] keep it.
fn row(run: &Run) -> RunView {
    RunView { parameters: BTreeMap::new(), result: None, result_bytes: None, ..head(run) }
}

pub(crate) fn tasks(run: &Run) -> Vec<TaskView> {
    run.slots().filter_map(|slot| task_at(run, slot)).collect()
}

pub(crate) fn task_at(run: &Run, slot: Slot) -> Option<TaskView> {
    let (task, instance) = run.task(slot).zip(run.instance(slot))?;
    let needs =
        task.needs.iter().filter_map(|need| TaskId::new(run.plan.tasks.get(*need)?.name.as_str()).ok());
    Some(TaskView {
        run: run.id.clone(),
        task: instance.id.clone(),
        function: task.function.clone(),
        state: instance.phase.state(),
        attempt: instance.attempt,
        failures: instance.failures,
        lost: instance.lost,
        worker: instance.worker.clone(),
        fence: instance.fence,
        started_at: instance.started_at,
        ended_at: instance.ended_at,
        error: instance.error.as_deref().cloned(),
        certificates: instance.certificates.iter().map(|certificate| certificate.as_ref().clone()).collect(),
        pending: pending(run, slot, instance),
        needs: needs.collect(),
        cache: run.cache_view(slot),
        seq: instance.seq,
    })
}

/// Why it waits, as far as the DAG tracker knows: pool manager and arbitration know why a ready task does.
fn pending(run: &Run, slot: Slot, instance: &Instance) -> Vec<PendingReason> {
    match &instance.phase {
        Phase::Waiting => vec![PendingReason::Upstream { tasks: upstream(run, slot) }],
        Phase::Backoff { until } => vec![PendingReason::Backoff {
            until: *until,
            failures: instance.failures,
            last_error: instance.error.as_ref().map(|error| error.message.clone()).unwrap_or_default(),
        }],
        _ => Vec::new(),
    }
}

fn upstream(run: &Run, slot: Slot) -> Vec<TaskId> {
    let needs = run.task(slot).map(|task| task.needs.as_slice()).unwrap_or_default();
    let unfinished = needs.iter().filter_map(|need| run.groups.get(*need)).flat_map(|group| &group.instances);
    let unfinished = unfinished.filter(|instance| instance.phase != Phase::Succeeded);
    unfinished.take(UPSTREAM_MAX).map(|instance| instance.id.clone()).collect()
}

pub(crate) fn get(state: &State, reads: &Reads, request: &RunRequest) -> Result<GetReply, Error> {
    let reply = |run: &Run| GetReply { run: head(run), tasks: tasks(run) };
    if let Some(run) = state.run(&request.run) {
        return Ok(reply(run));
    }
    rows::restored(reads, &request.run)
        .map(|run| reply(&run))
        .ok_or_else(|| no_run(state, reads, &request.run))
}

pub(crate) fn list(state: &State, reads: &Reads, request: &ListRequest) -> ListReply {
    let wanted = |view: &RunView| request.state.is_none_or(|state| view.state == state);
    let in_memory =
        state.index.started.iter().rev().filter_map(|(seq, id)| Some((*seq, row(state.run(id)?))));
    let older =
        rows::listed(reads, request).into_iter().filter(|(_, view)| !state.runs.contains_key(&view.run));
    let mut runs: Vec<_> = in_memory.chain(older).filter(|(_, view)| wanted(view)).collect();
    runs.sort_by_key(|(seq, _)| std::cmp::Reverse(*seq));
    let cut = runs.len().saturating_sub(request.limit as usize) as u64;
    runs.truncate(request.limit as usize);
    ListReply { runs: runs.into_iter().map(|(_, view)| view).collect(), cut }
}

pub(crate) fn no_run(state: &State, reads: &Reads, run: &RunId) -> Error {
    if let Some(collected) = rows::collected(reads, run) {
        let message =
            format!("run {run} was collected (at {} ms since 1970): {}", collected.at, collected.why);
        return Error::not_found("run.collected", message).help(format!(
            "eclosion gc restore run/{run}, while it is in the trash; eclosion gc log says more"
        ));
    }
    let likely = nearest(run.as_str(), state.runs.keys().map(RunId::as_str));
    let help =
        likely.map_or_else(|| "eclosion runs ls".to_owned(), |likely| format!("did you mean `{likely}`?"));
    Error::not_found("run.unknown", format!("there is no run {run}; it may have been collected")).help(help)
}
