//! What operators decide: drain, resume, cordon, recycle, kill. Each says what it meets; a dry run says only that.
//!
//! | act | a worker | the pool |
//! |---|---|---|
//! | drain | is given nothing, finishes what it has in hand, ends | starts nothing; its workers end one by one |
//! | recycle | the same; who waits for it gets another | |
//! | cordon | is given nothing, lives on | |
//! | kill | dies with what it has in hand, which is tried again | |
//! | resume | a cordoned one is given attempts again; one that ends cannot be held | serves again |
//!
//! What is so already changes nothing. A drain that ends with the kernel is no record: it stands in the line.

use eclosion_schemas::{Code, Retry};

use super::*;

pub(super) fn drain(state: &State, line: &mut Line, request: &pool::DrainRequest) -> Result<Decision, Error> {
    let Some(worker) = &request.worker else { return Ok(drain_pool(state, line, request)) };
    let event =
        WorkerStopping { worker: worker.clone(), reason: told("drained", &request.reason), now: false };
    end(state, line, event, request.dry_run)
}

fn drain_pool(state: &State, line: &mut Line, request: &pool::DrainRequest) -> Decision {
    let changed = state.drained.is_none() && line.closing.is_none();
    let reply = met(state, line, state.workers.keys(), changed, request.dry_run);
    let reason = told("drained", &request.reason);
    if request.dry_run || !changed {
        return reply;
    }
    if request.ends_with_kernel {
        line.closing = Some(reason);
        return reply;
    }
    reply.event(PoolDrained { reason })
}

pub(super) fn resume(
    state: &State,
    line: &mut Line,
    request: &pool::ResumeRequest,
) -> Result<Decision, Error> {
    let reason = request.reason.clone();
    let Some(id) = &request.worker else {
        let changed = state.drained.is_some() || line.closing.is_some();
        let reply = met(state, line, [], changed, request.dry_run);
        if request.dry_run {
            return Ok(reply);
        }
        line.closing = None;
        return Ok(if state.drained.is_some() { reply.event(PoolResumed { reason }) } else { reply });
    };
    let worker = known(state, id)?;
    if let Some(stopping) = &worker.stopping {
        let message = format!("{id} ends: {}", stopping.reason);
        return Err(Error::new(Code::Precondition, "worker.ending", message)
            .help("another one is started when it is needed: eclosion pool ls"));
    }
    let changed = worker.cordoned.is_some();
    let reply = met(state, line, [id], changed, request.dry_run);
    Ok(match changed && !request.dry_run {
        true => reply.event(WorkerUncordoned { worker: id.clone(), reason }),
        false => reply,
    })
}

pub(super) fn cordon(
    state: &State,
    line: &Line,
    request: &pool::WorkerActRequest,
) -> Result<Decision, Error> {
    let worker = known(state, &request.worker)?;
    let changed = worker.cordoned.is_none() && worker.stopping.is_none();
    let reply = met(state, line, [&request.worker], changed, request.dry_run);
    let reason = told("cordoned", &request.reason);
    Ok(match changed && !request.dry_run {
        true => reply.event(WorkerCordoned { worker: request.worker.clone(), reason }),
        false => reply,
    })
}

pub(super) fn recycle(
    state: &State,
    line: &Line,
    request: &pool::WorkerActRequest,
) -> Result<Decision, Error> {
    let reason = told("recycled", &request.reason);
    end(state, line, WorkerStopping { worker: request.worker.clone(), reason, now: false }, request.dry_run)
}

pub(super) fn kill(state: &State, line: &Line, request: &pool::WorkerActRequest) -> Result<Decision, Error> {
    let reason = told("killed by an operator", &request.reason);
    end(state, line, WorkerStopping { worker: request.worker.clone(), reason, now: true }, request.dry_run)
}

fn end(state: &State, line: &Line, event: WorkerStopping, dry_run: bool) -> Result<Decision, Error> {
    let worker = known(state, &event.worker)?;
    let changed = worker.stopping.as_ref().is_none_or(|before| event.now && !before.now);
    let reply = met(state, line, [&event.worker], changed, dry_run);
    Ok(if changed && !dry_run { reply.event(event) } else { reply })
}

fn known<'a>(state: &'a State, id: &WorkerId) -> Result<&'a Worker, Error> {
    state.workers.get(id).ok_or_else(|| {
        Error::not_found("worker.unknown", format!("there is no worker {id}")).help("eclosion pool ls")
    })
}

fn met<'a>(
    state: &State,
    line: &Line,
    workers: impl IntoIterator<Item = &'a WorkerId>,
    changed: bool,
    dry_run: bool,
) -> Decision {
    let workers: Vec<_> = workers.into_iter().cloned().collect();
    let given = workers.iter().filter_map(|id| Some((id, &state.workers.get(id)?.given)));
    let attempts = given.flat_map(|(id, given)| {
        given.iter().map(|one| pool::AttemptAtWorker {
            worker: id.clone(),
            task: one.task.clone(),
            attempt: one.attempt,
        })
    });
    let attempts = attempts.collect();
    let waiting = u32::try_from(line.len()).unwrap_or(u32::MAX);
    Decision::reply(pool::ActReply { changed, workers, attempts, waiting, dry_run })
}

fn told(what: &str, reason: &str) -> String {
    if reason.is_empty() { what.to_owned() } else { format!("{what}: {reason}") }
}

/// Why nothing is started at the moment.
pub(crate) fn why_drained<'a>(state: &'a State, line: &'a Line) -> Option<&'a str> {
    state.drained.as_deref().or(line.closing.as_deref())
}

/// What a call is told that asks for a worker meanwhile.
pub(super) fn drained_error(state: &State, line: &Line) -> Option<Error> {
    let why = why_drained(state, line)?;
    let error = Error::new(Code::Unavailable, "pool.drained", format!("the pool takes nothing new: {why}"))
        .retry(Retry::After { after_ms: 1_000 });
    Some(error.help("eclosion pool resume"))
}
