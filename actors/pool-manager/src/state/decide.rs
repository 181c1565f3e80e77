//! Commands, one function each. All of them may come twice; what is known already changes nothing.

use super::line::Place;
use super::*;

/// A reservation that is not renewed ends after this.
const RESERVED_MS: u64 = 60_000;

pub(super) fn decide(
    options: &PoolOptions,
    state: &State,
    line: &mut Line,
    reads: &Reads,
    command: &Command,
    now: Timestamp,
) -> Result<Decision, Error> {
    match command {
        Command::Dispatch(request) => dispatch(options, state, line, request, now),
        Command::Withdraw(request) => Ok(withdraw(state, line, request)),
        Command::WorkerUp(request) => worker_up(state, line, reads, request),
        Command::WorkerDown(request) => Ok(worker_down(state, request, now)),
        Command::WorkerIdle(request) => Ok(worker_idle(state, request)),
        Command::EnvironmentBuilt(request) => environment_built(state, request),
        Command::Survivors { live, reserved } => {
            reserve_again(state, line, reserved, now);
            Ok(survivors(options, state, line, reads, live, now))
        }
        Command::Reserve(request) => {
            Ok(Decision::reply(reserve(options, state, line, reads.epoch(), request, now)))
        }
        Command::Unreserve(request) => {
            line.unreserve(request.ticket);
            Ok(Decision::reply(pool::Taken {}))
        }
        Command::Drain(request) => manage::drain(state, line, request),
        Command::Resume(request) => manage::resume(state, line, request),
        Command::Cordon(request) => manage::cordon(state, line, request),
        Command::Recycle(request) => manage::recycle(state, line, request),
        Command::Kill(request) => manage::kill(state, line, request),
        Command::Usage(request) => {
            line.note_usage(request, |worker| state.workers.contains_key(worker));
            Ok(Decision::reply(pool::Taken {}))
        }
        Command::Quarantine => Ok(Decision::reply(state.blame.list())),
        Command::Release(request) => quarantine::release(state, request),
        Command::Status => Ok(Decision::reply(crate::view::status(options, state, line, reads.epoch(), now))),
    }
}

fn dispatch(
    options: &PoolOptions,
    state: &State,
    line: &mut Line,
    request: &pool::DispatchRequest,
    now: Timestamp,
) -> Result<Decision, Error> {
    if line.len() + request.wishes.len() > options.wishes_max {
        let message = format!("the pool holds {} wishes, the most it takes", line.len());
        return Err(Error::new(eclosion_schemas::Code::Exhausted, "pool.wishes", message)
            .retry(eclosion_schemas::Retry::After { after_ms: 100 }));
    }
    let mut refused: Vec<AnyEvent> = Vec::new();
    for wish in &request.wishes {
        let execute = &wish.execute;
        let wanted = state.wants(&execute.run, &execute.task, wish.id);
        if !wanted || state.failed_for(&wish.environment, wish.id) {
            continue;
        }
        match state.blame.refuse(wish) {
            Some(refusal) => refused.push(refusal.into()),
            None => line.take(wish, options.aging_ms, now),
        }
    }
    Ok(Decision::reply(pool::Taken {}).events(refused))
}

/// An environment that has failed before is built again for whoever comes now; what it says then is the answer.
fn reserve(
    options: &PoolOptions,
    state: &State,
    line: &mut Line,
    epoch: Epoch,
    request: &pool::ReserveRequest,
    now: Timestamp,
) -> pool::ReserveReply {
    if let Some(error) = manage::drained_error(state, line) {
        return pool::ReserveReply { error: Some(error), ..Default::default() };
    }
    let failure = state.failure_of(&request.environment).map(|(at, _)| at);
    let call = line.reserve(request, failure, now.plus_ms(RESERVED_MS));
    let (worker, error) = (call.worker.clone(), call.error.clone());
    if worker.is_some() || error.is_some() {
        return pool::ReserveReply { worker, error, ..Default::default() };
    }
    let worker = settle::give_idle(state, line, epoch, request);
    let pending = match worker {
        Some(_) => Vec::new(),
        None => {
            let ahead = line.calls_before(request.ticket);
            crate::view::reasons(options, state, line, &request.environment, epoch, ahead, now)
        }
    };
    pool::ReserveReply { worker, error: None, pending }
}

/// What an earlier incarnation had given to calls is still theirs.
fn reserve_again(
    state: &State,
    line: &mut Line,
    reserved: &[(WorkerId, pool::ReserveRequest)],
    now: Timestamp,
) {
    for (worker, request) in reserved.iter().filter(|(worker, _)| state.workers.contains_key(worker)) {
        line.reserve(request, None, now.plus_ms(RESERVED_MS));
        line.give(request.ticket, worker);
    }
}

/// A lease that was asked for is given back by what folds `attempt.refused`.
fn withdraw(state: &State, line: &mut Line, request: &pool::WithdrawRequest) -> Decision {
    let mut refused: Vec<AnyEvent> = Vec::new();
    for wish in &request.wishes {
        line.drop(*wish);
        if let Some(wanted) = state.leases.get(wish)
            && !matches!(wanted.phase, LeasePhase::Releasing(_))
        {
            let error =
                Error::new(eclosion_schemas::Code::Cancelled, "pool.withdrawn", "the wish was taken back");
            let TaskRef { run, task } = wanted.task.clone();
            refused.push(AttemptRefused { run, task, wish: *wish, error }.into());
        }
    }
    Decision::reply(pool::Taken {}).events(refused)
}

fn worker_up(
    state: &State,
    line: &mut Line,
    reads: &Reads,
    request: &pool::WorkerUpRequest,
) -> Result<Decision, Error> {
    let Some(worker) = state.workers.get(&request.worker) else {
        if let Some(environment) = &request.attached {
            return Ok(Decision::reply(pool::WorkerUpReply::default()).event(WorkerAttached {
                worker: request.worker.clone(),
                environment: environment.clone(),
                pid: request.pid,
            }));
        }
        // It was declared dead, and its attempt went elsewhere.
        let message = format!("{} is not a worker of this pool any more", request.worker);
        return Err(Error::not_found("worker.unknown", message).help("end it: its attempt went elsewhere"));
    };
    line.found(&request.worker);
    let wanted = worker.given.iter().map(|computing| computing.fence).collect();
    let reply = Decision::reply(pool::WorkerUpReply { wanted });
    match worker.phase {
        WorkerPhase::Up { epoch } if epoch == reads.epoch() => Ok(reply),
        _ => Ok(reply.event(WorkerStarted {
            worker: request.worker.clone(),
            pid: request.pid,
            start_ticks: request.start_ticks,
            boot_id: request.boot_id.clone(),
        })),
    }
}

fn worker_down(state: &State, request: &pool::WorkerDownRequest, now: Timestamp) -> Decision {
    let taken = Decision::reply(pool::Taken {});
    match state.workers.get(&request.worker) {
        None => taken,
        Some(worker) => {
            let mut died = death(&request.worker, worker, request.death.clone(), now);
            died.certificate.peak_rss_bytes = request.peak_rss_bytes;
            died.certificate.free_memory_bytes = request.free_memory_bytes;
            died.certificate.last_lines.clone_from(&request.last_lines);
            died.wanted |= request.wanted;
            taken.events(buried(worker, died))
        }
    }
}

/// What waited at the worker had not begun: it was stopped, and only the first attempt was lost with it.
pub(super) fn buried(worker: &Worker, died: WorkerDied) -> Vec<AnyEvent> {
    let waiting = worker.given.iter().skip(1);
    let stopped =
        waiting.map(|ahead| AttemptStopped { worker: died.worker.clone(), fence: ahead.fence }.into());
    stopped.collect::<Vec<_>>().into_iter().chain([died.into()]).collect()
}

pub(super) fn death(id: &WorkerId, worker: &Worker, death: Death, now: Timestamp) -> WorkerDied {
    let computing = worker.computing();
    let wanted = worker.stopping.as_ref().is_some_and(|stopping| {
        // One that ends well had not begun what it had in hand: its outcome would have come before its end.
        stopping.now || computing.is_none() || death == Death::Exited { code: 0 }
    });
    WorkerDied {
        worker: id.clone(),
        certificate: DeathCertificate {
            worker: id.clone(),
            pid: worker.pid,
            death,
            at: now,
            task: computing.map(|computing| computing.task.clone()),
            attempt: computing.map(|computing| computing.attempt),
            peak_rss_bytes: None,
            free_memory_bytes: None,
            last_lines: Vec::new(),
        },
        fence: computing.map(|computing| computing.fence),
        wanted,
    }
}

/// The holder has been told by the DAG tracker that the attempt is over; there is nothing to check that against.
fn worker_idle(state: &State, request: &pool::WorkerIdleRequest) -> Decision {
    let taken = Decision::reply(pool::Taken {});
    match state.fences.get(&request.fence) {
        Some(worker) if *worker == request.worker => {
            taken.event(AttemptStopped { worker: worker.clone(), fence: request.fence })
        }
        _ => taken,
    }
}

fn environment_built(state: &State, request: &pool::EnvironmentBuiltRequest) -> Result<Decision, Error> {
    let taken = Decision::reply(pool::Taken {});
    let environment = request.environment.clone();
    let building = state
        .environments
        .get(&environment)
        .is_some_and(|environment| matches!(environment.phase, EnvironmentPhase::Building { .. }));
    match (&request.python, &request.error) {
        _ if !building => Ok(taken),
        (_, Some(error)) => Ok(taken.event(EnvironmentFailed { environment, error: error.clone() })),
        (Some(python), None) => Ok(taken.event(EnvironmentReady { environment, python: python.clone() })),
        (None, None) => {
            let message = "a built environment has either an interpreter or an error";
            Err(Error::invalid("environment.outcome", message))
        }
    }
}

/// Those of earlier kernels that have no holder are dead. One of this kernel's has lost its holder while nobody
/// listened: its report may still wait in the mailbox and say more, so it gets a moment.
fn survivors(
    options: &PoolOptions,
    state: &State,
    line: &mut Line,
    reads: &Reads,
    live: &BTreeSet<WorkerId>,
    now: Timestamp,
) -> Decision {
    let mut died: Vec<AnyEvent> = Vec::new();
    for (id, worker) in state.workers.iter().filter(|(id, _)| !live.contains(*id)) {
        match worker.phase {
            // Its launch is still owed, and performed again.
            WorkerPhase::Requested { .. } => {}
            WorkerPhase::Up { epoch } if epoch == reads.epoch() => {
                line.miss(id, now.plus_ms(options.missing_ms));
            }
            WorkerPhase::Up { .. } => {
                let text = "it did not survive the kernel that had started it";
                died.extend(buried(worker, death(id, worker, unseen(text), now)));
            }
        }
    }
    Decision::reply(pool::Taken {}).events(died)
}

impl Line {
    /// Puts a wish where it belongs. The same wish again changes nothing.
    fn take(&mut self, wish: &pool::Wish, aging_ms: u64, now: Timestamp) {
        if !self.contains(wish.id) {
            let place = if wish.ready_at > now { Place::Later } else { Place::when_ready(wish) };
            self.insert(wish.clone(), place, aging_ms);
        }
    }
}
