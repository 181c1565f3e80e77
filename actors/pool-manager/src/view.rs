//! What readers see: workers, environments, and why the first of the wishes wait.

use std::collections::BTreeSet;

use eclosion_schemas::ops::arbitration::Waiting;
use eclosion_schemas::ops::pool::{StatusReply, Wish};
use eclosion_schemas::pending::PendingReason;
use eclosion_schemas::view::{EnvironmentState, EnvironmentView, WorkerState, WorkerView};
use eclosion_schemas::{EnvironmentId, Epoch, TaskRef, Timestamp, WorkerId};

use crate::options::PoolOptions;
use crate::state::{
    Computing, Dead, Environment, EnvironmentPhase, Line, State, Worker, WorkerPhase, why_drained,
};

/// Wishes whose reasons are shown; the rest is a number.
pub const PENDING_SHOWN_MAX: usize = 100;

#[must_use]
pub fn status(
    options: &PoolOptions,
    state: &State,
    line: &Line,
    epoch: Epoch,
    now: Timestamp,
) -> StatusReply {
    let pending = line.wishes().take(PENDING_SHOWN_MAX).zip(0..);
    StatusReply {
        workers: as_lent(with_usage(workers(state, epoch), line), line),
        died: state.dead.iter().map(|dead| dead.certificate.clone()).collect(),
        environments: environments(state, now),
        workers_max: options.workers_max,
        waiting: u32::try_from(line.len()).unwrap_or(u32::MAX),
        pending: pending
            .map(|(wish, ahead)| waiting(options, state, line, wish, epoch, ahead, now))
            .collect(),
        drained: why_drained(state, line).map(str::to_owned),
        containment: options.containment.clone(),
        why_no_cgroup: options.why_no_cgroup.clone(),
        quarantined: u32::try_from(state.blame.len()).unwrap_or(u32::MAX),
    }
}

/// The living.
#[must_use]
pub fn workers(state: &State, epoch: Epoch) -> Vec<WorkerView> {
    state.workers.iter().map(|(id, worker)| worker_view(id, worker, epoch)).collect()
}

fn with_usage(mut workers: Vec<WorkerView>, line: &Line) -> Vec<WorkerView> {
    for worker in &mut workers {
        if let Some(usage) = line.usage.get(&worker.worker) {
            worker.rss_bytes = Some(usage.rss_bytes);
            worker.processes = Some(usage.processes);
        }
    }
    workers
}

/// What computes a call has something in hand as well; the journal knows nothing of it.
fn as_lent(mut workers: Vec<WorkerView>, line: &Line) -> Vec<WorkerView> {
    let (reserved, serving): (BTreeSet<_>, BTreeSet<_>) =
        (line.reserved().collect(), line.serving().collect());
    for worker in &mut workers {
        worker.serves = serving.contains(&worker.worker);
        if worker.state == WorkerState::Idle && reserved.contains(&worker.worker) {
            worker.state = WorkerState::Busy;
        }
    }
    workers
}

/// The ids of the living and of the last of the dead.
#[must_use]
pub fn shown(state: &State) -> BTreeSet<WorkerId> {
    let dead = state.dead.iter().map(|dead| dead.certificate.worker.clone());
    state.workers.keys().cloned().chain(dead).collect()
}

/// Of these, those that are shown. Without an epoch: whoever is up counts as attached.
pub(crate) fn some_workers(state: &State, ids: &BTreeSet<WorkerId>) -> Vec<WorkerView> {
    let dead = state.dead.iter().filter(|dead| ids.contains(&dead.certificate.worker)).map(dead);
    let alive = ids.iter().filter_map(|id| {
        let worker = state.workers.get(id)?;
        Some(worker_view(id, worker, attached_at(worker)))
    });
    dead.chain(alive).collect()
}

fn attached_at(worker: &Worker) -> Epoch {
    match worker.phase {
        WorkerPhase::Up { epoch } => epoch,
        WorkerPhase::Requested { .. } => Epoch::default(),
    }
}

#[must_use]
pub fn environments(state: &State, now: Timestamp) -> Vec<EnvironmentView> {
    state
        .environments
        .iter()
        .map(|(id, environment)| EnvironmentView {
            environment: id.clone(),
            state: match environment.phase {
                EnvironmentPhase::Building { .. } => EnvironmentState::Building,
                EnvironmentPhase::Ready { .. } => EnvironmentState::Ready,
                EnvironmentPhase::Failed { .. } => EnvironmentState::Failed,
            },
            requirements: environment.spec.requirements.clone(),
            doing: doing(environment, now),
            error: match &environment.phase {
                EnvironmentPhase::Failed { error, .. } => Some(error.clone()),
                _ => None,
            },
        })
        .collect()
}

fn doing(environment: &Environment, now: Timestamp) -> String {
    match &environment.phase {
        EnvironmentPhase::Building { .. } => {
            format!("being built for {} s", now.since_ms(environment.since) / 1_000)
        }
        EnvironmentPhase::Ready { .. } if environment.launch_failures > 0 => {
            format!("a worker could not be started: {}", environment.launch_error)
        }
        EnvironmentPhase::Ready { python } => python.clone(),
        EnvironmentPhase::Failed { error, .. } => error.message.clone(),
    }
}

pub(crate) fn worker_view(id: &WorkerId, worker: &Worker, epoch: Epoch) -> WorkerView {
    let computing = worker.computing();
    WorkerView {
        worker: id.clone(),
        environment: worker.environment.clone(),
        state: worker_state(worker, epoch),
        pid: worker.pid,
        since: worker.since,
        task: computing.map(|computing| computing.task.clone()),
        fence: computing.map(|computing| computing.fence),
        finished: worker.finished,
        certificate: None,
        started_at: worker.started_at,
        held: worker
            .stopping
            .as_ref()
            .map(|stopping| stopping.reason.clone())
            .or_else(|| worker.cordoned.clone()),
        rss_bytes: None,
        processes: None,
        attached: worker.attached,
        serves: false,
    }
}

fn worker_state(worker: &Worker, epoch: Epoch) -> WorkerState {
    match (worker.phase, worker.computing()) {
        (WorkerPhase::Requested { .. }, _) => WorkerState::Starting,
        (WorkerPhase::Up { epoch: attached }, _) if attached != epoch => WorkerState::Adopting,
        (_, Some(Computing { over: true, .. })) => WorkerState::Stopping,
        _ if worker.stopping.is_some() => WorkerState::Stopping,
        (_, Some(_)) => WorkerState::Busy,
        (_, None) => WorkerState::Idle,
    }
}

fn dead(dead: &Dead) -> WorkerView {
    WorkerView {
        worker: dead.certificate.worker.clone(),
        environment: dead.environment.clone(),
        state: WorkerState::Dead,
        pid: dead.certificate.pid,
        since: dead.certificate.at,
        task: dead.certificate.task.clone(),
        fence: None,
        finished: dead.finished,
        certificate: Some(dead.certificate.clone()),
        started_at: None,
        held: dead.ended.clone(),
        rss_bytes: dead.certificate.peak_rss_bytes,
        processes: None,
        attached: dead.attached,
        serves: false,
    }
}

fn waiting(
    options: &PoolOptions,
    state: &State,
    line: &Line,
    wish: &Wish,
    epoch: Epoch,
    ahead: u32,
    now: Timestamp,
) -> Waiting {
    let reasons = match why_drained(state, line) {
        Some(why) => vec![PendingReason::Drained { reason: why.to_owned() }],
        // Arbitration says what that is.
        None if line.wants_lease(wish.id) => Vec::new(),
        None => reasons(options, state, line, &wish.environment, epoch, ahead, now),
    };
    let task = TaskRef::new(wish.execute.run.clone(), wish.execute.task.clone());
    Waiting { task: Some(task), client: None, reasons }
}

/// Why there is no worker of this environment, for a task or a call.
pub(crate) fn reasons(
    options: &PoolOptions,
    state: &State,
    line: &Line,
    environment: &EnvironmentId,
    epoch: Epoch,
    ahead: u32,
    now: Timestamp,
) -> Vec<PendingReason> {
    if let Some(found) = state.environments.get(environment)
        && !matches!(found.phase, EnvironmentPhase::Ready { .. })
    {
        return vec![PendingReason::Environment {
            environment: environment.clone(),
            doing: doing(found, now),
        }];
    }
    let alive = state.workers.iter();
    let adopting = alive.clone().filter(|(_, worker)| worker_state(worker, epoch) == WorkerState::Adopting);
    let mut reasons: Vec<_> =
        adopting.map(|(id, _)| PendingReason::Adoption { worker: id.clone() }).collect();
    let computing = alive.filter(|(_, worker)| !worker.given.is_empty()).map(|(id, _)| id);
    let serving: BTreeSet<_> = line.serving().collect();
    let busy: BTreeSet<_> =
        computing.chain(line.reserved()).filter(|worker| !serving.contains(worker)).collect();
    let busy = busy.into_iter().cloned().collect();
    reasons.push(PendingReason::Worker { busy, max: options.workers_max, ahead });
    reasons
}
