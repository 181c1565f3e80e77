//! The pure core of the pool manager.
//!
//! ```text
//! environment:  requested ─► building ─built─► ready ─launches fail─► failed ─newer wish─► requested
//! worker:       requested ─up─► idle ⇄ computing ─over, not released─► cancelling ─idle─► idle
//!                   └──────────────┴──────┴── down ──┴─► dead        any ─stopping[now]─► dead (wanted)
//!                                                       idle, computing ⇄ cordoned: gets no attempt, and lives on
//! pool:         serving ⇄ drained: starts nothing, and its workers end when they have nothing in hand
//! attempt:      started ─► [waits at the worker behind others] ─► computed; stopped if the worker gives it back
//! wish:         taken ─[needs more than the default lease: attempt.waiting ─► lease.granted]─► attempt.started
//! ```
//!
//! Invariants: (1) A worker computes at most one attempt, and a fence belongs to one worker. Only quick ones wait
//! behind it, of which none needs a lease, has a limit or a time-out, so that to wait there costs nothing. (2) Fences only grow.
//! (3) One wish is answered at most once: the last wish answered for a task is remembered until its run is finished.
//! (4) No attempt of a cancelled or finished run is started. (5) Workers alive ≤ `workers_max`,
//! those started by hand and one for each service aside.
//! (6) Every effect owed hangs on a worker, an environment or a wanted lease, and goes with it. (7) A worker that is
//! stopping, cordoned or due to be recycled is given nothing. Whatever ends it between attempts or by an operator's
//! word is *wanted*: it costs no attempt its outcome, and counts against no task. (8) No attempt of a quarantined
//! content is started.
//!
//! A worker that was started by hand comes up unasked (`worker.attached`) and ends with its connection. It is preferred
//! to the pool's own, as somebody wants to see it work; it counts against no limit, is neither recycled nor ended for
//! being idle, and its end is held against no task.
//!
//! A worker is recycled after so many attempts, at an age, or with too much memory while it is idle (`PoolOptions`).
//! Calls are not counted as attempts: nobody journals them.
//!
//! Wishes and the bodies of attempts are volatile: the DAG tracker says them again. An `Execute` whose body is gone is
//! asked for with `step.body`. It does not decide whether an attempt succeeded, failed or is tried again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use eclosion_kernel::core::{AnyEvent, Core, Decision, Reads};
use eclosion_kernel::journal::Record;
use eclosion_schemas::certificate::{Death, DeathCertificate};
use eclosion_schemas::error::Error;
use eclosion_schemas::events::{
    AttemptRefused, AttemptStarted, AttemptStopped, AttemptWaiting, EnvironmentFailed, EnvironmentReady,
    EnvironmentRequested, Event, LeaseGranted, LeaseRefused, LeaseReleased, PoolDrained, PoolResumed,
    RunCancelling, RunFinished, RunStarted, StepCommitted, StepFailed, TaskQuarantined, TaskReleased,
    WorkerAttached, WorkerCordoned, WorkerDied, WorkerRequested, WorkerStarted, WorkerStopping,
    WorkerUncordoned,
};
use eclosion_schemas::flow::EnvironmentSpec;
use eclosion_schemas::ops::arbitration::{AcquireRequest, ReleaseRequest};
use eclosion_schemas::ops::pool;
use eclosion_schemas::ops::task::Execute;
use eclosion_schemas::{
    Attempt, EffectId, EnvironmentId, Epoch, Fence, LeaseId, RunId, Seq, TaskId, TaskRef, Tenant, Timestamp,
    WorkerId,
};

use crate::options::PoolOptions;

mod decide;
mod fold;
mod line;
mod manage;
mod quarantine;
mod recycle;
mod settle;

pub use line::Line;
pub(crate) use manage::why_drained;

/// Dead workers that readers are still shown.
pub const DEAD_KEPT_MAX: usize = 32;
/// Tasks that are remembered as quick.
const QUICK_KEPT_MAX: usize = 1_024;
/// A worker that has computed one attempt for this long is given nothing more; what waits there it gives back.
pub const AHEAD_PATIENCE_MS: u64 = 20;

/// See the head of this file.
#[derive(Debug, Clone)]
pub struct Pool {
    pub options: PoolOptions,
    pub bodies: Bodies,
}

/// What attempts that have just been started are to execute: handed from the core to whoever performs `Execute`. No
/// part of the state; what is missing here is asked for. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Bodies(Arc<Mutex<BTreeMap<Fence, Execute>>>);

impl Bodies {
    #[must_use]
    pub fn take(&self, fence: Fence) -> Option<Execute> {
        self.lock().remove(&fence)
    }

    fn put(&self, execute: Execute) {
        self.lock().insert(execute.fence, execute);
    }

    /// Drops what nobody will ask for.
    fn retain(&self, is_wanted: impl Fn(Fence) -> bool) {
        self.lock().retain(|fence, _| is_wanted(*fence));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Fence, Execute>> {
        // Every change is one insertion or removal.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Clone)]
pub enum Command {
    Dispatch(pool::DispatchRequest),
    Withdraw(pool::WithdrawRequest),
    WorkerUp(pool::WorkerUpRequest),
    WorkerDown(pool::WorkerDownRequest),
    WorkerIdle(pool::WorkerIdleRequest),
    EnvironmentBuilt(pool::EnvironmentBuiltRequest),
    /// The holders that exist, and what calls have of workers: said at the start of an incarnation, before anything is
    /// performed.
    Survivors {
        live: BTreeSet<WorkerId>,
        reserved: Vec<(WorkerId, pool::ReserveRequest)>,
    },
    Reserve(pool::ReserveRequest),
    Unreserve(pool::UnreserveRequest),
    Status,
    Drain(pool::DrainRequest),
    Resume(pool::ResumeRequest),
    Cordon(pool::WorkerActRequest),
    Recycle(pool::WorkerActRequest),
    Kill(pool::WorkerActRequest),
    Usage(pool::UsageRequest),
    Quarantine,
    Release(pool::ReleaseRequest),
}

/// What is owed to the outside and to others.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    Build {
        environment: EnvironmentId,
        spec: EnvironmentSpec,
    },
    Launch {
        worker: WorkerId,
        environment: EnvironmentId,
        python: String,
        spec: EnvironmentSpec,
    },
    /// The body is in [`Bodies`], or else with the DAG tracker (`step.body`).
    Execute {
        worker: WorkerId,
        task: TaskRef,
        fence: Fence,
    },
    Cancel {
        worker: WorkerId,
        fence: Fence,
    },
    Stop {
        worker: WorkerId,
    },
    Kill {
        worker: WorkerId,
        reason: String,
    },
    /// `arbitration.acquire`
    Acquire(AcquireRequest),
    /// `arbitration.release`
    Release(ReleaseRequest),
}

/// Everything that follows from the records.
#[derive(Debug, Clone, Default)]
pub struct State {
    pub(crate) runs: BTreeMap<RunId, Run>,
    pub(crate) environments: BTreeMap<EnvironmentId, Environment>,
    /// Alive, as far as is known.
    pub(crate) workers: BTreeMap<WorkerId, Worker>,
    /// Up, computing nothing and not stopping; derived from `workers`.
    pub(crate) idle: BTreeMap<EnvironmentId, BTreeSet<WorkerId>>,
    /// Who computes what; derived from `workers`.
    pub(crate) fences: BTreeMap<Fence, WorkerId>,
    /// Attempts given to workers; derived from `workers`.
    pub(crate) running: BTreeMap<Tenant, u32>,
    /// Leases asked for, by the wish that needs them.
    pub(crate) leases: BTreeMap<EffectId, WantedLease>,
    /// The same by the wish that arbitration was told.
    pub(crate) acquired: BTreeMap<EffectId, EffectId>,
    /// Of `leases`, those that are granted or refused and not yet used or passed on.
    pub(crate) resolved: BTreeSet<EffectId>,
    pub(crate) dead: VecDeque<Dead>,
    /// Tasks of flows that took no time to speak of, the last time.
    pub(crate) quick: BTreeSet<TaskOfFlow>,
    /// Why nothing is started, until the pool is resumed.
    pub(crate) drained: Option<String>,
    pub(crate) blame: quarantine::Blame,
    pub(crate) fence_counter: u64,
    pub(crate) worker_counter: u64,
    /// Raised whenever a run is cancelled or finished or an environment fails: wishes may have become pointless.
    pub(crate) ends: u64,
    pub(crate) outstanding: BTreeMap<EffectId, Effect>,
}

#[derive(Debug, Clone)]
pub(crate) struct Run {
    pub(crate) tenant: Tenant,
    pub(crate) environment: EnvironmentId,
    pub(crate) flow: Arc<str>,
    pub(crate) cancelling: bool,
    /// The last wish answered for each task.
    pub(crate) answered: BTreeMap<TaskId, EffectId>,
}

/// A task, whichever of its instances, in all runs of flows of one name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TaskOfFlow {
    pub(crate) flow: Arc<str>,
    pub(crate) task: String,
}

#[derive(Debug, Clone)]
pub(crate) struct Environment {
    pub(crate) spec: EnvironmentSpec,
    pub(crate) phase: EnvironmentPhase,
    pub(crate) since: Timestamp,
    /// Launches that failed in a row, and the words of the last.
    pub(crate) launch_failures: u32,
    pub(crate) launch_error: String,
    pub(crate) launch_failed_at: Timestamp,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum EnvironmentPhase {
    Building {
        effect: EffectId,
    },
    Ready {
        python: String,
    },
    /// Wishes older than this have been told.
    Failed {
        at: Seq,
        error: Error,
    },
}

#[derive(Debug, Clone)]
pub(crate) struct Worker {
    pub(crate) environment: EnvironmentId,
    pub(crate) pid: u32,
    pub(crate) phase: WorkerPhase,
    /// When it began to compute the first of them, or to have nothing.
    pub(crate) since: Timestamp,
    /// Attempts, oldest first: it computes the first, and the others wait there.
    pub(crate) given: VecDeque<Computing>,
    /// The order to stop it.
    pub(crate) stopping: Option<Stopping>,
    /// Why it is given nothing, though it lives on.
    pub(crate) cordoned: Option<String>,
    pub(crate) finished: u64,
    /// When it was attached first.
    pub(crate) started_at: Option<Timestamp>,
    /// It was started by hand.
    pub(crate) attached: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stopping {
    pub(crate) effect: EffectId,
    pub(crate) reason: String,
    /// With what it has in hand.
    pub(crate) now: bool,
}

impl Worker {
    pub(crate) fn computing(&self) -> Option<&Computing> {
        self.given.front()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WorkerPhase {
    Requested {
        effect: EffectId,
    },
    /// Attached to the kernel of this epoch, or to be adopted from it.
    Up {
        epoch: Epoch,
    },
}

#[derive(Debug, Clone)]
pub(crate) struct Computing {
    pub(crate) task: TaskRef,
    pub(crate) tenant: Tenant,
    pub(crate) attempt: Attempt,
    pub(crate) fence: Fence,
    /// It is over for the DAG tracker, and the worker has still to let go.
    pub(crate) over: bool,
    /// See [`AttemptStarted::content`].
    pub(crate) content: Option<String>,
    /// What is owed for it: `Execute`, then `Cancel`.
    pub(crate) effect: EffectId,
}

#[derive(Debug, Clone)]
pub(crate) struct WantedLease {
    pub(crate) task: TaskRef,
    /// What arbitration was told; also the id of the effect that is owed.
    pub(crate) acquire: EffectId,
    pub(crate) lease: Option<LeaseId>,
    pub(crate) phase: LeasePhase,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum LeasePhase {
    Asked,
    Granted,
    Refused(Error),
    /// Not needed any more; given back by an effect of this id.
    Releasing(EffectId),
}

#[derive(Debug, Clone)]
pub(crate) struct Dead {
    pub(crate) environment: EnvironmentId,
    pub(crate) finished: u64,
    /// Why it was told to end, if it was.
    pub(crate) ended: Option<String>,
    /// It was started by hand.
    pub(crate) attached: bool,
    pub(crate) certificate: DeathCertificate,
}

impl State {
    /// Whether this wish may still be answered: its run goes on, and no attempt has answered it or a later one.
    pub(crate) fn wants(&self, run: &RunId, task: &TaskId, wish: EffectId) -> bool {
        self.runs.get(run).is_some_and(|run| {
            !run.cancelling && run.answered.get(task).is_none_or(|answered| *answered < wish)
        })
    }

    /// When this environment failed and why, unless it is being built again.
    pub(crate) fn failure_of(&self, environment: &EnvironmentId) -> Option<(Seq, &Error)> {
        match &self.environments.get(environment)?.phase {
            EnvironmentPhase::Failed { at, error } => Some((*at, error)),
            _ => None,
        }
    }

    /// Whether this environment has failed after the wish was made.
    pub(crate) fn failed_for(&self, environment: &EnvironmentId, wish: EffectId) -> bool {
        self.failure_of(environment).is_some_and(|(at, _)| wish.seq < at)
    }

    /// `None` for a run that is over.
    pub(crate) fn task_of_flow(&self, run: &RunId, task: &TaskId) -> Option<TaskOfFlow> {
        let name = task.as_str().split('[').next().unwrap_or_default();
        Some(TaskOfFlow { flow: Arc::clone(&self.runs.get(run)?.flow), task: name.to_owned() })
    }

    /// Workers that the pool itself has started or asked for.
    pub(crate) fn own_workers(&self) -> usize {
        self.workers.values().filter(|worker| !worker.attached).count()
    }

    pub(crate) fn running_of(&self, tenant: &Tenant) -> u32 {
        self.running.get(tenant).copied().unwrap_or_default()
    }
}

const OWN: [&str; 18] = [
    EnvironmentRequested::KIND,
    EnvironmentReady::KIND,
    EnvironmentFailed::KIND,
    WorkerRequested::KIND,
    WorkerStarted::KIND,
    WorkerAttached::KIND,
    WorkerStopping::KIND,
    WorkerDied::KIND,
    AttemptStarted::KIND,
    AttemptStopped::KIND,
    AttemptWaiting::KIND,
    AttemptRefused::KIND,
    WorkerCordoned::KIND,
    WorkerUncordoned::KIND,
    PoolDrained::KIND,
    PoolResumed::KIND,
    TaskQuarantined::KIND,
    TaskReleased::KIND,
];
/// Decided by the DAG tracker and by arbitration.
const FOREIGN: [&str; 8] = [
    RunStarted::KIND,
    RunCancelling::KIND,
    RunFinished::KIND,
    StepCommitted::KIND,
    StepFailed::KIND,
    LeaseGranted::KIND,
    LeaseRefused::KIND,
    LeaseReleased::KIND,
];
const FOLDED: [&str; OWN.len() + FOREIGN.len()] = {
    let mut kinds = [""; OWN.len() + FOREIGN.len()];
    let mut at = 0;
    while at < kinds.len() {
        kinds[at] = if at < OWN.len() { OWN[at] } else { FOREIGN[at - OWN.len()] };
        at += 1;
    }
    kinds
};

impl Core for Pool {
    type State = State;
    type Volatile = Line;
    type Command = Command;
    type Effect = Effect;

    const DECIDES: &'static [&'static str] = &OWN;
    const FOLDS: &'static [&'static str] = &FOLDED;

    fn decide(
        &self,
        state: &State,
        line: &mut Line,
        reads: &Reads,
        command: &Command,
        now: Timestamp,
    ) -> Result<Decision, Error> {
        decide::decide(&self.options, state, line, reads, command, now)
    }

    fn settle(&self, state: &State, line: &mut Line, reads: &Reads, now: Timestamp) -> Vec<AnyEvent> {
        settle::settle(self, state, line, reads, now)
    }

    fn apply(&self, state: &mut State, record: &Record) {
        fold::apply(&self.options, state, record);
    }

    fn outstanding<'a>(&self, state: &'a State) -> &'a BTreeMap<EffectId, Effect> {
        &state.outstanding
    }

    fn wake_at(&self, state: &State, line: &Line) -> Option<Timestamp> {
        settle::wake_at(&self.options, state, line)
    }

    fn digest(&self, state: &State) -> String {
        format!("{state:?}")
    }
}

/// Ids made here are well formed: a letter and two numbers.
fn worker_id(epoch: Epoch, counter: u64) -> WorkerId {
    WorkerId::new(format!("w-{epoch}-{counter}")).unwrap_or_else(|_| unreachable!("a letter and two numbers"))
}

/// What a certificate says of a worker that nobody saw die.
fn unseen(text: &str) -> Death {
    Death::Unseen { text: text.into() }
}

#[cfg(test)]
mod tests;
