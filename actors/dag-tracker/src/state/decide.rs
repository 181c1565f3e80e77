//! Commands into events, and what becomes due by itself.

use eclosion_kernel::core::{AnyEvent, Decision, Reads};
use eclosion_schemas::error::RemoteException;
use eclosion_schemas::events::{
    RunCancelling, RunFinished, RunStarted, RunSummary, StepCommitted, StepFailed, StepReady,
};
use eclosion_schemas::ops::run::{
    CancelReply, CancelRequest, StartReply, StartRequest, ValidateReply, ValidateRequest,
};
use eclosion_schemas::ops::task::{BodyReply, BodyRequest, CommitReply, CommitRequest, FailRequest};
use eclosion_schemas::payload::INLINE_BYTES_MAX;
use eclosion_schemas::view::{RunState, TaskState};
use eclosion_schemas::{Code, Error, Fence, Payload, RunId, TaskId, Tenant, Timestamp, WorkerId};

use super::admission::Door;
use super::{Command, DUE_MAX, Instance, Phase, Run, State, rerun, reuse};
use crate::content;
use crate::plan::Plan;
use crate::{rows, view, why};

/// What an output's parts may need in the record beside the inline body.
const PARTS_BYTES_MAX: usize = 24 * 1024;
/// Above this an error loses what can be lost.
const ERROR_BYTES_MAX: usize = 24 * 1024;

pub(super) fn decide(
    door: &Door,
    state: &State,
    reads: &Reads,
    command: &Command,
) -> Result<Decision, Error> {
    match command {
        Command::Start(request, trace) => start(door, state, reads, request, trace.as_deref()),
        Command::Validate(request) => validate(request),
        Command::Get(request) => view::get(state, reads, request).map(Decision::reply),
        Command::List(request) => Ok(Decision::reply(view::list(state, reads, request))),
        Command::Cancel(request) => cancel(state, reads, request),
        Command::Why(request) => why::why(state, reads, request).map(Decision::reply),
        Command::Commit(request) => Ok(commit(state, request)),
        Command::Fail(request) => Ok(fail(state, request)),
        Command::Body(request) => body(state, request).map(Decision::reply),
        Command::Rerun(request, trace) => rerun::rerun(door, state, reads, request, trace.as_deref()),
        Command::Recorded(request) => rerun::recorded_reply(state, reads, request),
        Command::Find(request) => Ok(reuse::find(reads, request)),
        Command::ListCache(request) => Ok(reuse::list(state, reads, request)),
        Command::Explain(request) => why::explain(state, reads, request).map(Decision::reply),
        Command::Drop(request) => reuse::drop(state, request),
        Command::Looked(answers) => Ok(reuse::looked(state, answers)),
    }
}

fn validate(request: &ValidateRequest) -> Result<Decision, Error> {
    let plan = Plan::compile(&request.flow, &request.set)?;
    Ok(Decision::reply(ValidateReply { tasks: plan.tasks(), content: plan.content().to_owned() }))
}

fn start(
    door: &Door,
    state: &State,
    reads: &Reads,
    request: &StartRequest,
    trace: Option<&str>,
) -> Result<Decision, Error> {
    let plan = Plan::compile(&request.flow, &request.set)?;
    if let Some(key) = &request.idem
        && let Some((run, content)) = known_key(state, reads, key)
    {
        return same_key(key, run, content == plan.content());
    }
    if !request.new
        && let Some(run) = attachable(state, &plan, request.no_cache)
    {
        return Ok(Decision::reply(StartReply { run: run.clone(), attached: true, equal: None }));
    }
    door.admit(state)?;
    let run = fresh_id(state, reads);
    let tenant = request.tenant.clone().map_or_else(default_tenant, Ok)?;
    let started = RunStarted {
        run: run.clone(),
        flow: request.flow.clone(),
        parameters: plan.parameters.clone(),
        seed: plan.seed,
        content: plan.content.clone(),
        environment: plan.environment.clone(),
        tenant,
        idem: request.idem.clone(),
        no_cache: request.no_cache,
        rerun_of: None,
        trace: trace.map(str::to_owned),
    };
    let equal = equal_before(state, plan.content());
    Ok(Decision::reply(StartReply { run, attached: false, equal }).event(started))
}

/// Who wants nothing out of the cache is not content with a run that takes things from there.
fn attachable<'a>(state: &'a State, plan: &Plan, no_cache: bool) -> Option<&'a RunId> {
    let run = state.index.by_content.get(plan.content())?;
    state.run(run).filter(|run| run.no_cache || !no_cache).map(|run| &run.id)
}

/// The newest of the runs in memory that has succeeded with the same content.
fn equal_before(state: &State, content: &str) -> Option<RunId> {
    let finished = state.index.finished.iter().rev().filter_map(|run| state.run(run));
    let equal = finished.filter(|run| run.state == RunState::Succeeded && run.plan.content() == content);
    equal.map(|run| run.id.clone()).next()
}

fn default_tenant() -> Result<Tenant, Error> {
    Tenant::new("default").map_err(|why| Error::internal("run.tenant", why.to_string()))
}

pub(super) fn known_key(state: &State, reads: &Reads, key: &str) -> Option<(RunId, String)> {
    let in_memory = state.index.by_key.get(key).and_then(|run| state.run(run));
    in_memory.map(|run| (run.id.clone(), run.plan.content.clone())).or_else(|| rows::by_key(reads, key))
}

fn same_key(key: &str, run: RunId, same_content: bool) -> Result<Decision, Error> {
    if same_content {
        return Ok(Decision::reply(StartReply { run, attached: true, equal: None }));
    }
    Err(other_content(key, &run))
}

pub(super) fn other_content(key: &str, run: &RunId) -> Error {
    let shown: String = key.chars().take(64).collect();
    let message = format!("the key `{shown}` belongs to run {run}, which has another content");
    Error::new(Code::Conflict, "run.key", message)
        .help("take a fresh idempotency key for every run that you mean to start")
}

pub(super) fn fresh_id(state: &State, reads: &Reads) -> RunId {
    let mut round = 0;
    loop {
        let id = content::run_id(reads.entropy(), round);
        if !state.runs.contains_key(&id) {
            return id;
        }
        round += 1;
    }
}

fn cancel(state: &State, reads: &Reads, request: &CancelRequest) -> Result<Decision, Error> {
    let Some(run) = state.run(&request.run) else {
        let run =
            rows::restored(reads, &request.run).ok_or_else(|| view::no_run(state, reads, &request.run))?;
        return Ok(Decision::reply(CancelReply { state: run.state }));
    };
    if run.state != RunState::Running {
        return Ok(Decision::reply(CancelReply { state: run.state }));
    }
    let reason = request.reason.chars().take(1_024).collect();
    let cancelling = RunCancelling { run: run.id.clone(), reason };
    Ok(Decision::reply(CancelReply { state: RunState::Cancelling }).event(cancelling))
}

/// How a report of a worker relates to what is current.
enum Standing<'a> {
    Current(&'a Run, &'a Instance),
    Known,
    Stale,
}

fn standing<'a>(
    state: &'a State,
    run: &RunId,
    task: &TaskId,
    fence: Fence,
    worker: &WorkerId,
) -> Standing<'a> {
    let found = state.run(run).and_then(|run| Some((run, run.instance(run.slot(task)?)?)));
    let Some((run, instance)) = found else { return Standing::Stale };
    if instance.fence != Some(fence) || instance.worker.as_ref() != Some(worker) {
        return Standing::Stale;
    }
    match instance.phase {
        Phase::Running { .. } => Standing::Current(run, instance),
        _ if instance.reported => Standing::Known,
        _ => Standing::Stale,
    }
}

fn commit(state: &State, request: &CommitRequest) -> Decision {
    let CommitRequest { run, task, fence, worker, output, code } = request;
    let (run, instance) = match standing(state, run, task, *fence, worker) {
        Standing::Current(run, instance) if run.state == RunState::Running => (run, instance),
        Standing::Known if is_succeeded(state, run, task) => {
            return Decision::reply(CommitReply::AlreadyCommitted);
        }
        _ => return Decision::reply(CommitReply::Stale),
    };
    if let Err(error) = check_output(output) {
        return Decision::reply(CommitReply::Stale).event(failed(run, instance, *fence, worker, error, true));
    }
    let note = run.slot(task).and_then(|slot| run.note(slot, state));
    let unkept = note.as_ref().and_then(|note| reuse::unkept(&note.ingredients, code.as_ref()));
    Decision::reply(CommitReply::Committed).event(StepCommitted {
        run: run.id.clone(),
        task: instance.id.clone(),
        attempt: instance.attempt,
        fence: *fence,
        worker: worker.clone(),
        output: output.clone(),
        lease: instance.lease.clone(),
        cache: note.filter(|_| unkept.is_none()),
        unkept,
    })
}

/// What a running attempt is to execute, for a pool manager that was told and has forgotten.
fn body(state: &State, request: &BodyRequest) -> Result<BodyReply, Error> {
    let found = state.run(&request.run).and_then(|run| Some((run, run.slot(&request.task)?)));
    let current = found.filter(|(run, slot)| {
        let phase = run.instance(*slot).map(|instance| &instance.phase);
        run.state == RunState::Running
            && matches!(phase, Some(Phase::Running { fence, .. }) if *fence == request.fence)
    });
    let Some((run, slot)) = current else { return Ok(BodyReply { execute: None }) };
    let attempt = run.instance(slot).map(|instance| instance.attempt).unwrap_or_default();
    run.execute(slot, attempt, request.fence).map(|execute| BodyReply { execute: Some(execute) })
}

fn is_succeeded(state: &State, run: &RunId, task: &TaskId) -> bool {
    let instance = state.run(run).and_then(|run| run.instance(run.slot(task)?));
    instance.is_some_and(|instance| instance.phase == Phase::Succeeded)
}

/// What could not be journaled or read again ends the attempt instead of going round for ever.
fn check_output(output: &Payload) -> Result<(), Error> {
    let parts = rmp_serde::to_vec_named(&output.parts).map_or(usize::MAX, |parts| parts.len());
    if output.body.len() > INLINE_BYTES_MAX || parts > PARTS_BYTES_MAX {
        let message = format!(
            "the output has {} bytes inline and {} parts, which is too much for one step",
            output.body.len(),
            output.parts.len()
        );
        return Err(Error::invalid("output.too_large", message)
            .help("return large values as one array, table or file instead of many small ones"));
    }
    if output.parts.iter().any(|part| part.segment.is_some()) {
        let message = "a part of the output names shared memory, which is used again: no record may name it";
        return Err(Error::invalid("output.segment", message));
    }
    match output.parts.iter().any(|part| part.digest.is_none()) {
        true => Err(Error::invalid("output.unstored", "a part of the output was never stored")),
        false => Ok(()),
    }
}

fn fail(state: &State, request: &FailRequest) -> Decision {
    let FailRequest { run, task, fence, worker, error } = request;
    match standing(state, run, task, *fence, worker) {
        Standing::Current(run, instance) => Decision::reply(CommitReply::Committed).event(failed(
            run,
            instance,
            *fence,
            worker,
            bounded(error),
            true,
        )),
        Standing::Known => Decision::reply(CommitReply::AlreadyCommitted),
        Standing::Stale => Decision::reply(CommitReply::Stale),
    }
}

fn failed(
    run: &Run,
    instance: &Instance,
    fence: Fence,
    worker: &WorkerId,
    error: Error,
    released: bool,
) -> StepFailed {
    StepFailed {
        run: run.id.clone(),
        task: instance.id.clone(),
        attempt: instance.attempt,
        fence,
        worker: worker.clone(),
        error,
        released,
        lease: instance.lease.clone(),
    }
}

/// An error that fits into a record whatever a worker made of it: the innermost frames and the beginnings of texts.
fn bounded(error: &Error) -> Error {
    let fits = rmp_serde::to_vec_named(error).is_ok_and(|encoded| encoded.len() <= ERROR_BYTES_MAX);
    if fits {
        return error.clone();
    }
    let mut error = error.clone();
    error.reason = cut(&error.reason, 128);
    error.message = cut(&error.message, 2_048);
    error.help = error.help.map(|help| cut(&help, 1_024));
    error.causes = error.causes.iter().take(8).map(|cause| cut(cause, 256)).collect();
    error.remote = error.remote.map(|remote| Box::new(bounded_remote(*remote)));
    error
}

fn bounded_remote(mut remote: RemoteException) -> RemoteException {
    let surplus = remote.frames.len().saturating_sub(20);
    remote.frames.drain(..surplus);
    for frame in &mut remote.frames {
        frame.file = cut(&frame.file, 256);
        frame.function = cut(&frame.function, 128);
        frame.source = cut(&frame.source, 256);
    }
    RemoteException {
        lang: cut(&remote.lang, 32),
        kind: cut(&remote.kind, 256),
        text: cut(&remote.text, 2_048),
        frames: remote.frames,
        notes: Vec::new(),
        cause: None,
        truncated: true,
    }
}

/// At most `max` bytes, on a character's edge.
fn cut(text: &str, max: usize) -> String {
    let mut end = max.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

/// Runs to end, time-outs and backoffs that are over. At most [`DUE_MAX`] at once; `settle` is called again.
pub(super) fn due(state: &State, now: Timestamp) -> Vec<AnyEvent> {
    let ended = state.index.ending.iter().filter_map(|run| state.run(run)).map(|run| finished(run).into());
    let over = state.index.due.iter().take_while(|(at, _, _)| *at <= now);
    let over = over.filter_map(|(_, run, slot)| {
        let run = state.run(run)?;
        let instance = run.instance(*slot)?;
        match instance.phase {
            Phase::Backoff { .. } => {
                Some(StepReady { run: run.id.clone(), task: instance.id.clone() }.into())
            }
            Phase::Running { fence, .. } => {
                timed_out(run, instance, fence, run.task(*slot)?.timeout_ms).map(AnyEvent::from)
            }
            _ => None,
        }
    });
    let surplus = reuse::surplus(state);
    ended.chain(over).take(DUE_MAX).chain(surplus).collect()
}

fn timed_out(run: &Run, instance: &Instance, fence: Fence, timeout_ms: Option<u64>) -> Option<StepFailed> {
    let worker = instance.worker.as_ref()?;
    let message =
        format!("attempt {} did not finish within {} ms", instance.attempt, timeout_ms.unwrap_or_default());
    let error = Error::new(Code::Deadline, "task.timeout", message).help(format!(
        "raise `timeout` in [tasks.{}]",
        instance.id.as_str().split('[').next().unwrap_or_default()
    ));
    Some(failed(run, instance, fence, worker, error, false))
}

fn finished(run: &Run) -> RunFinished {
    let failed = run.error.is_some() || run.counts.contains_key(&TaskState::Failed);
    let (state, error) = match (run.state, failed) {
        (RunState::Cancelling, _) => (RunState::Cancelled, Some(cancelled(run))),
        (_, true) => (RunState::Failed, run.error.as_deref().cloned()),
        (_, false) => (RunState::Succeeded, None),
    };
    RunFinished { run: run.id.clone(), state, error, summary: Some(Box::new(summary(run))) }
}

fn cancelled(run: &Run) -> Error {
    let reason = run.cancel_reason.as_deref().filter(|reason| !reason.is_empty());
    let message = reason.map_or_else(
        || "the run was cancelled".to_owned(),
        |reason| format!("the run was cancelled: {reason}"),
    );
    Error::new(Code::Cancelled, "run.cancelled", message)
}

fn summary(run: &Run) -> RunSummary {
    RunSummary {
        flow: run.plan.flow.clone(),
        tenant: run.tenant.clone(),
        seed: run.plan.seed,
        content: run.plan.content.clone(),
        started_seq: run.started_seq,
        started_at: run.started_at,
        counts: run.counts.clone(),
        cache: run.cache.some(),
        rerun_of: run.rerun_of.as_ref().map(|rerun| rerun.run.clone()),
    }
}
