//! The only place where the state changes.

use super::*;

pub(super) fn apply(options: &PoolOptions, state: &mut State, record: &Record) {
    let own = |n| EffectId { seq: record.seq, n };
    match &*record.kind {
        RunStarted::KIND => with(record, |event: &RunStarted| run_started(state, event)),
        RunCancelling::KIND => with(record, |event: &RunCancelling| run_cancelling(state, event, own)),
        RunFinished::KIND => with(record, |event: &RunFinished| run_finished(state, event, own)),
        StepCommitted::KIND => with(record, |event| step_committed(options, state, event, record.at)),
        StepFailed::KIND => with(record, |event: &StepFailed| step_failed(state, event, record)),
        LeaseGranted::KIND => with(record, |event| lease_granted(state, event)),
        LeaseRefused::KIND => with(record, |event| lease_refused(state, event)),
        LeaseReleased::KIND => with(record, |event| lease_released(state, event)),
        EnvironmentRequested::KIND => with(record, |event| environment_requested(state, event, record)),
        EnvironmentReady::KIND => with(record, |event| environment_ready(state, event, record.at)),
        EnvironmentFailed::KIND => with(record, |event| environment_failed(state, event, record)),
        WorkerRequested::KIND => with(record, |event| worker_requested(state, event, record)),
        WorkerStarted::KIND => with(record, |event| worker_started(state, event, record)),
        WorkerAttached::KIND => with(record, |event| worker_attached(state, event, record)),
        WorkerStopping::KIND => with(record, |event| worker_stopping(state, event, own(0))),
        WorkerDied::KIND => with(record, |event: &WorkerDied| worker_died(state, event)),
        WorkerCordoned::KIND => with(record, |event: &WorkerCordoned| {
            cordon(state, &event.worker, Some(event.reason.clone()));
        }),
        WorkerUncordoned::KIND => {
            with(record, |event: &WorkerUncordoned| cordon(state, &event.worker, None));
        }
        PoolDrained::KIND => {
            with(record, |event: &PoolDrained| state.drained = Some(event.reason.clone()));
        }
        PoolResumed::KIND => with(record, |_: &PoolResumed| state.drained = None),
        TaskQuarantined::KIND => with(record, |event| state.blame.quarantined(event, record.at)),
        TaskReleased::KIND => with(record, |event: &TaskReleased| state.blame.released(&event.content)),
        AttemptStarted::KIND => with(record, |event| attempt_started(state, event, record)),
        AttemptStopped::KIND => with(record, |event: &AttemptStopped| free(state, event.fence, record.at)),
        AttemptWaiting::KIND => with(record, |event| attempt_waiting(state, event, own(0))),
        AttemptRefused::KIND => with(record, |event| attempt_refused(state, event, own(0))),
        _ => {}
    }
}

fn with<E: Event>(record: &Record, fold: impl FnOnce(&E)) {
    if let Some(event) = record.event::<E>() {
        fold(&event);
    }
}

fn run_started(state: &mut State, event: &RunStarted) {
    let run = Run {
        tenant: event.tenant.clone(),
        environment: event.environment.clone(),
        flow: event.flow.name.as_str().into(),
        cancelling: false,
        answered: BTreeMap::new(),
    };
    state.runs.insert(event.run.clone(), run);
}

fn run_cancelling(state: &mut State, event: &RunCancelling, own: impl Fn(u32) -> EffectId) {
    state.ends += 1;
    if let Some(run) = state.runs.get_mut(&event.run) {
        run.cancelling = true;
    }
    let mut n = 0;
    let wishes: Vec<_> = of_run(&state.leases, &event.run);
    for wish in wishes {
        give_back(state, wish, own(n), "the run is cancelled");
        n += 1;
    }
    for fence in fences_of(state, &event.run) {
        let_go(state, fence, own(n));
        n += 1;
    }
}

/// Arbitration folds the same record and releases what no attempt holds, so nothing is owed for those leases.
fn run_finished(state: &mut State, event: &RunFinished, own: impl Fn(u32) -> EffectId) {
    state.ends += 1;
    for wish in of_run(&state.leases, &event.run) {
        forget_lease(state, wish);
    }
    for (fence, n) in fences_of(state, &event.run).into_iter().zip(0..) {
        let_go(state, fence, own(n));
    }
    state.runs.remove(&event.run);
    state.blame.run_finished(&event.run);
    drop_unused_environments(state);
}

fn of_run(leases: &BTreeMap<EffectId, WantedLease>, run: &RunId) -> Vec<EffectId> {
    leases.iter().filter(|(_, wanted)| wanted.task.run == *run).map(|(wish, _)| *wish).collect()
}

fn fences_of(state: &State, run: &RunId) -> Vec<Fence> {
    let given = state.workers.values().flat_map(|worker| &worker.given);
    given.filter(|computing| computing.task.run == *run).map(|computing| computing.fence).collect()
}

fn step_committed(options: &PoolOptions, state: &mut State, event: &StepCommitted, at: Timestamp) {
    state.blame.committed(&event.run, &event.task);
    let worker = state.fences.get(&event.fence).and_then(|id| state.workers.get(id));
    let first = worker.filter(|worker| worker.computing().is_some_and(|first| first.fence == event.fence));
    let took_ms = first.map(|worker| at.since_ms(worker.since));
    if let (Some(took_ms), Some(task)) = (took_ms, state.task_of_flow(&event.run, &event.task)) {
        learn(&mut state.quick, task, took_ms <= options.quick_ms);
    }
    free(state, event.fence, at);
}

fn learn(quick: &mut BTreeSet<TaskOfFlow>, task: TaskOfFlow, was_quick: bool) {
    if !was_quick {
        quick.remove(&task);
    } else if quick.insert(task) && quick.len() > QUICK_KEPT_MAX {
        quick.pop_first();
    }
}

fn step_failed(state: &mut State, event: &StepFailed, record: &Record) {
    if event.released {
        free(state, event.fence, record.at);
    } else {
        let_go(state, event.fence, EffectId { seq: record.seq, n: 0 });
    }
}

/// The attempt is over; its worker has to be brought to let go of it.
fn let_go(state: &mut State, fence: Fence, effect: EffectId) {
    let Some(id) = state.fences.get(&fence) else { return };
    let given = state.workers.get_mut(id).map(|worker| &mut worker.given);
    let Some(computing) = given.into_iter().flatten().find(|computing| computing.fence == fence) else {
        return;
    };
    if !computing.over {
        state.outstanding.remove(&computing.effect);
        computing.over = true;
        computing.effect = effect;
        state.outstanding.insert(effect, Effect::Cancel { worker: id.clone(), fence });
    }
}

/// The worker has let go of it, and goes on with what it was given next.
fn free(state: &mut State, fence: Fence, at: Timestamp) {
    let Some(id) = state.fences.remove(&fence) else { return };
    let Some(worker) = state.workers.get_mut(&id) else { return };
    let Some(place) = worker.given.iter().position(|computing| computing.fence == fence) else { return };
    let Some(computing) = worker.given.remove(place) else { return };
    worker.finished += 1;
    if place == 0 {
        worker.since = at;
    }
    if worker.given.is_empty() && worker.stopping.is_none() {
        state.idle.entry(worker.environment.clone()).or_default().insert(id);
    }
    end(state, &computing);
}

/// What goes with an attempt, however it ended.
fn end(state: &mut State, computing: &Computing) {
    state.outstanding.remove(&computing.effect);
    if let Some(running) = state.running.get_mut(&computing.tenant) {
        *running -= 1;
        if *running == 0 {
            state.running.remove(&computing.tenant);
        }
    }
}

fn attempt_started(state: &mut State, event: &AttemptStarted, record: &Record) {
    state.fence_counter = state.fence_counter.max(event.fence.counter);
    forget_lease(state, event.wish);
    let Some(run) = state.runs.get_mut(&event.run) else { return };
    answer(run, &event.task, event.wish);
    let tenant = run.tenant.clone();
    let Some(worker) = state.workers.get_mut(&event.worker) else { return };
    if let Some(idle) = state.idle.get_mut(&worker.environment) {
        idle.remove(&event.worker);
    }
    let task = TaskRef::new(event.run.clone(), event.task.clone());
    let effect = EffectId { seq: record.seq, n: 0 };
    if worker.given.is_empty() {
        worker.since = record.at;
    }
    worker.given.push_back(Computing {
        task: task.clone(),
        tenant: tenant.clone(),
        attempt: event.attempt,
        fence: event.fence,
        over: false,
        content: event.content.clone(),
        effect,
    });
    *state.running.entry(tenant).or_default() += 1;
    state.fences.insert(event.fence, event.worker.clone());
    let execute = Effect::Execute { worker: event.worker.clone(), task, fence: event.fence };
    state.outstanding.insert(effect, execute);
}

/// An older wish may be answered after a newer one.
fn answer(run: &mut Run, task: &TaskId, wish: EffectId) {
    let answered = run.answered.entry(task.clone()).or_default();
    *answered = wish.max(*answered);
}

fn attempt_waiting(state: &mut State, event: &AttemptWaiting, acquire: EffectId) {
    let task = TaskRef::new(event.run.clone(), event.task.clone());
    let request = AcquireRequest {
        wish: acquire,
        task: task.clone(),
        tenant: event.tenant.clone(),
        priority: event.priority,
        amounts: event.amounts.clone(),
        since: event.since,
    };
    state.outstanding.insert(acquire, Effect::Acquire(request));
    state.acquired.insert(acquire, event.wish);
    state.leases.insert(event.wish, WantedLease { task, acquire, lease: None, phase: LeasePhase::Asked });
}

fn attempt_refused(state: &mut State, event: &AttemptRefused, effect: EffectId) {
    state.ends += 1;
    if let Some(run) = state.runs.get_mut(&event.run) {
        answer(run, &event.task, event.wish);
    }
    match state.leases.get(&event.wish).map(|wanted| &wanted.phase) {
        Some(LeasePhase::Refused(_)) => forget_lease(state, event.wish),
        Some(_) => give_back(state, event.wish, effect, "the wish was taken back"),
        None => {}
    }
}

fn lease_granted(state: &mut State, event: &LeaseGranted) {
    let Some(wish) = state.acquired.get(&event.wish).copied() else { return };
    if let Some(wanted) = state.leases.get_mut(&wish) {
        wanted.lease = Some(event.lease.clone());
        if wanted.phase == LeasePhase::Asked {
            state.outstanding.remove(&wanted.acquire);
            wanted.phase = LeasePhase::Granted;
            state.resolved.insert(wish);
        }
    }
}

fn lease_refused(state: &mut State, event: &LeaseRefused) {
    let Some(wish) = state.acquired.get(&event.wish).copied() else { return };
    let Some(wanted) = state.leases.get_mut(&wish) else { return };
    if wanted.phase == LeasePhase::Asked {
        state.outstanding.remove(&wanted.acquire);
        wanted.phase = LeasePhase::Refused(event.error.clone());
        state.resolved.insert(wish);
    } else {
        forget_lease(state, wish);
    }
}

fn lease_released(state: &mut State, event: &LeaseReleased) {
    let released = state.leases.iter().find(|(_, wanted)| wanted.lease.as_ref() == Some(&event.lease));
    if let Some(wish) = released.map(|(wish, _)| *wish) {
        forget_lease(state, wish);
    }
}

/// Owes arbitration the return of a lease, granted or not.
fn give_back(state: &mut State, wish: EffectId, effect: EffectId, reason: &str) {
    let Some(wanted) = state.leases.get_mut(&wish) else { return };
    match wanted.phase {
        LeasePhase::Releasing(_) => {}
        LeasePhase::Refused(_) => forget_lease(state, wish),
        LeasePhase::Asked | LeasePhase::Granted => {
            state.outstanding.remove(&wanted.acquire);
            state.resolved.remove(&wish);
            wanted.phase = LeasePhase::Releasing(effect);
            let (wish, task) = (wanted.acquire, Some(wanted.task.clone()));
            let release = ReleaseRequest { wish, reason: reason.into(), task };
            state.outstanding.insert(effect, Effect::Release(release));
        }
    }
}

fn forget_lease(state: &mut State, wish: EffectId) {
    state.resolved.remove(&wish);
    if let Some(wanted) = state.leases.remove(&wish) {
        state.acquired.remove(&wanted.acquire);
        state.outstanding.remove(&wanted.acquire);
        if let LeasePhase::Releasing(effect) = wanted.phase {
            state.outstanding.remove(&effect);
        }
    }
}

fn environment_requested(state: &mut State, event: &EnvironmentRequested, record: &Record) {
    drop_failed_environments(state);
    let effect = EffectId { seq: record.seq, n: 0 };
    let environment = Environment {
        spec: event.spec.clone(),
        phase: EnvironmentPhase::Building { effect },
        since: record.at,
        launch_failures: 0,
        launch_error: String::new(),
        launch_failed_at: Timestamp(0),
    };
    state.environments.insert(event.environment.clone(), environment);
    let build = Effect::Build { environment: event.environment.clone(), spec: event.spec.clone() };
    state.outstanding.insert(effect, build);
}

fn environment_ready(state: &mut State, event: &EnvironmentReady, at: Timestamp) {
    let Some(environment) = state.environments.get_mut(&event.environment) else { return };
    end_build(&mut state.outstanding, environment);
    environment.phase = EnvironmentPhase::Ready { python: event.python.clone() };
    environment.since = at;
}

fn environment_failed(state: &mut State, event: &EnvironmentFailed, record: &Record) {
    state.ends += 1;
    let Some(environment) = state.environments.get_mut(&event.environment) else { return };
    end_build(&mut state.outstanding, environment);
    environment.phase = EnvironmentPhase::Failed { at: record.seq, error: event.error.clone() };
    environment.since = record.at;
}

/// What nothing uses is forgotten; whoever needs it again requests it again, and its builder finds it built.
fn drop_unused_environments(state: &mut State) {
    let State { environments, workers, runs, outstanding, .. } = state;
    environments.retain(|id, environment| {
        let used = is_used(id, runs, workers);
        if !used {
            end_build(outstanding, environment);
        }
        used
    });
}

/// Calls leave no other trace: what they asked for in vain must not pile up.
fn drop_failed_environments(state: &mut State) {
    let State { environments, workers, runs, .. } = state;
    environments.retain(|id, environment| {
        !matches!(environment.phase, EnvironmentPhase::Failed { .. }) || is_used(id, runs, workers)
    });
}

fn is_used(id: &EnvironmentId, runs: &BTreeMap<RunId, Run>, workers: &BTreeMap<WorkerId, Worker>) -> bool {
    runs.values().any(|run| run.environment == *id)
        || workers.values().any(|worker| worker.environment == *id)
}

fn end_build(outstanding: &mut BTreeMap<EffectId, Effect>, environment: &Environment) {
    if let EnvironmentPhase::Building { effect } = &environment.phase {
        outstanding.remove(effect);
    }
}

fn worker_requested(state: &mut State, event: &WorkerRequested, record: &Record) {
    state.worker_counter += 1;
    let effect = EffectId { seq: record.seq, n: 0 };
    let Some(environment) = state.environments.get(&event.environment) else { return };
    let EnvironmentPhase::Ready { python } = &environment.phase else { return };
    let launch = Effect::Launch {
        worker: event.worker.clone(),
        environment: event.environment.clone(),
        python: python.clone(),
        spec: environment.spec.clone(),
    };
    state.outstanding.insert(effect, launch);
    let worker = Worker {
        environment: event.environment.clone(),
        pid: 0,
        phase: WorkerPhase::Requested { effect },
        since: record.at,
        given: VecDeque::new(),
        stopping: None,
        cordoned: None,
        finished: 0,
        started_at: None,
        attached: false,
    };
    state.workers.insert(event.worker.clone(), worker);
}

fn worker_attached(state: &mut State, event: &WorkerAttached, record: &Record) {
    let worker = Worker {
        environment: event.environment.clone(),
        pid: event.pid,
        phase: WorkerPhase::Up { epoch: record.epoch },
        since: record.at,
        given: VecDeque::new(),
        stopping: None,
        cordoned: None,
        finished: 0,
        started_at: Some(record.at),
        attached: true,
    };
    state.idle.entry(event.environment.clone()).or_default().insert(event.worker.clone());
    state.workers.insert(event.worker.clone(), worker);
}

fn worker_started(state: &mut State, event: &WorkerStarted, record: &Record) {
    let Some(worker) = state.workers.get_mut(&event.worker) else { return };
    if let WorkerPhase::Requested { effect } = worker.phase {
        state.outstanding.remove(&effect);
        worker.since = record.at;
        worker.started_at = Some(record.at);
        if let Some(environment) = state.environments.get_mut(&worker.environment) {
            environment.launch_failures = 0;
        }
    }
    worker.phase = WorkerPhase::Up { epoch: record.epoch };
    worker.pid = event.pid;
    if worker.given.is_empty() && worker.stopping.is_none() {
        state.idle.entry(worker.environment.clone()).or_default().insert(event.worker.clone());
    }
}

fn worker_stopping(state: &mut State, event: &WorkerStopping, effect: EffectId) {
    let Some(worker) = state.workers.get_mut(&event.worker) else { return };
    let hurries = |before: &Stopping| event.now && !before.now;
    if !worker.stopping.as_ref().is_none_or(hurries) {
        return;
    }
    let (reason, id) = (event.reason.clone(), event.worker.clone());
    let owed = match event.now {
        true => Effect::Kill { worker: id, reason: reason.clone() },
        false => Effect::Stop { worker: id },
    };
    if let Some(before) = worker.stopping.replace(Stopping { effect, reason, now: event.now }) {
        state.outstanding.remove(&before.effect);
    }
    state.outstanding.insert(effect, owed);
    if let Some(idle) = state.idle.get_mut(&worker.environment) {
        idle.remove(&event.worker);
    }
}

fn cordon(state: &mut State, worker: &WorkerId, reason: Option<String>) {
    if let Some(worker) = state.workers.get_mut(worker) {
        worker.cordoned = reason;
    }
}

fn worker_died(state: &mut State, event: &WorkerDied) {
    let Some(worker) = state.workers.remove(&event.worker) else { return };
    if let Some(idle) = state.idle.get_mut(&worker.environment) {
        idle.remove(&event.worker);
        if idle.is_empty() {
            state.idle.remove(&worker.environment);
        }
    }
    if let WorkerPhase::Requested { effect } = worker.phase {
        state.outstanding.remove(&effect);
        if let (false, Some(environment)) = (event.wanted, state.environments.get_mut(&worker.environment)) {
            environment.launch_failures += 1;
            environment.launch_error = words(&event.certificate);
            environment.launch_failed_at = event.certificate.at;
        }
    }
    if let Some(stopping) = &worker.stopping {
        state.outstanding.remove(&stopping.effect);
    }
    if let (Some(first), false) = (worker.computing(), event.wanted || worker.attached) {
        state.blame.lost(first, &event.certificate);
    }
    for computing in &worker.given {
        state.fences.remove(&computing.fence);
        end(state, computing);
    }
    if state.dead.len() == DEAD_KEPT_MAX {
        state.dead.pop_front();
    }
    let Worker { environment, finished, attached, .. } = worker;
    let ended = worker.stopping.map(|stopping| stopping.reason);
    state.dead.push_back(Dead {
        environment,
        finished,
        ended,
        attached,
        certificate: event.certificate.clone(),
    });
    drop_unused_environments(state);
}

/// The death and what the worker last said.
fn words(certificate: &DeathCertificate) -> String {
    match certificate.last_lines.last() {
        Some(line) => format!("{}; its last words: {line}", certificate.death),
        None => certificate.death.to_string(),
    }
}
