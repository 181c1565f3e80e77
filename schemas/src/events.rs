//! The facts in the journal. Each is decided by one actor alone and may be folded by any.
//!
//! | type | decided by | folded by |
//! |---|---|---|
//! | `run.started` `run.cancelling` `run.finished` | DAG tracker | artifact store, pool manager, arbitration, scheduler (not `cancelling`) |
//! | `step.committed` `step.failed` | DAG tracker | pool manager, arbitration, artifact store |
//! | `step.reused` | DAG tracker | artifact store |
//! | `step.ready` `step.missed` `cache.dropped` | DAG tracker | |
//! | `attempt.started` `attempt.stopped` `attempt.refused` | pool manager | DAG tracker, arbitration |
//! | `attempt.waiting` | pool manager | itself |
//! | `worker.cordoned` `worker.uncordoned` `pool.drained` `pool.resumed` `task.quarantined` `task.released` | pool manager | |
//! | `worker.requested` `worker.started` `worker.attached` `worker.stopping` `worker.died` `environment.requested` `environment.ready` `environment.failed` | pool manager | DAG tracker, arbitration |
//! | `gc.pass_due` `gc.collected` `gc.moved` `gc.purging` `gc.restoring` `gc.restored` `gc.erased` `gc.passed` | stale manager | DAG tracker, artifact store, pool manager |
//! | `lease.granted` `lease.released` `lease.refused` | arbitration | pool manager |
//! | `lease.taken` `lease.renewed` | arbitration | |
//! | `artifact.pinned` `artifact.unpinned` `artifact.tagged` `artifact.untagged` | artifact store | stale manager |
//! | `schedule.set` `schedule.paused` `schedule.resumed` `schedule.removed` ([`schedule`]) | scheduler | |
//! | `tick.fired` `tick.queued` `tick.skipped` `tick.cancelling` `tick.ended` ([`schedule`]) | scheduler | |
//! | `operator.acted` `operator.ended` | audit | |
//! | `service.declared` `service.started` `service.ready` `service.ended` `service.stopped` `service.forgotten` ([`service`]) | services | |
//!
//! Stored as msgpack named maps with type and version; a field is only ever added, with a default.

mod cache;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::certificate::DeathCertificate;
use crate::error::Error;
use crate::flow::{EnvironmentSpec, FlowSpec, Priority};
use crate::ids::{
    Attempt, EffectId, EnvironmentId, Fence, LeaseId, LeaseKey, RunId, Seq, TaskId, TaskRef, Tenant,
    Timestamp, WorkerId,
};
use crate::ops::audit::Act;
use crate::payload::Payload;
use crate::view::{CacheCounts, ClientView, RunState, TaskState};

pub use cache::{
    CacheDropped, CacheNote, DroppedEntry, Ingredients, MissCause, RerunOf, StepMissed, StepReused, Unkept,
};

/// A fact. `KIND` is its stored type, `VERSION` the version of its stored form.
pub trait Event: Serialize + DeserializeOwned + Send + Sync + 'static {
    const KIND: &'static str;
    const VERSION: u16 = 1;
}

macro_rules! event {
    ($name:ident, $kind:literal) => {
        impl Event for $name {
            const KIND: &'static str = $kind;
        }
    };
}
use event;

mod artifact;
mod gc;
mod pool;
pub mod schedule;
pub mod service;

pub use artifact::{ArtifactPinned, ArtifactTagged, ArtifactUnpinned, ArtifactUntagged};
pub use gc::{
    CollectedRun, GcCollected, GcErased, GcMoved, GcPassDue, GcPassed, GcPurging, GcRestored, GcRestoring,
    Moved,
};
pub use pool::{PoolDrained, PoolResumed, TaskQuarantined, TaskReleased, WorkerCordoned, WorkerUncordoned};

/// A run was accepted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RunStarted {
    pub run: RunId,
    pub flow: FlowSpec,
    /// Defaults of the flow with what the caller set.
    pub parameters: BTreeMap<String, serde_json::Value>,
    pub seed: u64,
    pub content: String,
    pub environment: EnvironmentId,
    pub tenant: Tenant,
    /// The caller's idempotency key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idem: Option<String>,
    /// Nothing is taken from the cache; what is computed is put there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_cache: bool,
    /// It computes again a part of an earlier run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rerun_of: Option<Box<RerunOf>>,
    /// W3C traceparent: what comes of the run belongs to this trace, in later lives of the kernel as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
}
event!(RunStarted, "run.started");

/// Its cancellation was accepted: nothing of it starts or commits any more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RunCancelling {
    pub run: RunId,
    pub reason: String,
}
event!(RunCancelling, "run.cancelling");

/// Every task of it is in a final state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RunFinished {
    pub run: RunId,
    /// `succeeded`, `failed` or `cancelled`.
    pub state: RunState,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Error>,
    /// What a list of runs shows of it, so that a row can be derived from this record alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<Box<RunSummary>>,
}
event!(RunFinished, "run.finished");

/// The head of a finished run; its parameters stand in `run.started`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RunSummary {
    pub flow: String,
    pub tenant: Tenant,
    pub seed: u64,
    pub content: String,
    /// The seq of `run.started`: the order of a list.
    pub started_seq: Seq,
    pub started_at: Timestamp,
    pub counts: BTreeMap<TaskState, u32>,
    /// Steps whose result came out of the cache, or was looked for there in vain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheCounts>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rerun_of: Option<RunId>,
}

/// An attempt was given to a worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AttemptStarted {
    pub run: RunId,
    pub task: TaskId,
    pub attempt: Attempt,
    pub fence: Fence,
    pub worker: WorkerId,
    /// Only where the task asked for more than a worker's default lease.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<LeaseId>,
    /// The DAG tracker's wish that this answers.
    pub wish: EffectId,
    /// Why this worker, and why now.
    pub reason: String,
    /// What is computed, as quarantine tells tasks apart. Only of a task that has lost a worker before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}
event!(AttemptStarted, "attempt.started");

/// A worker stopped computing an attempt that was over already (timed out or cancelled): its slot is free.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AttemptStopped {
    pub worker: WorkerId,
    pub fence: Fence,
}
event!(AttemptStopped, "attempt.stopped");

/// An attempt needs more than a worker's default lease: arbitration is asked for it before a worker is chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AttemptWaiting {
    pub run: RunId,
    pub task: TaskId,
    pub tenant: Tenant,
    pub priority: Priority,
    pub amounts: BTreeMap<String, u64>,
    pub since: Timestamp,
    /// The DAG tracker's wish.
    pub wish: EffectId,
}
event!(AttemptWaiting, "attempt.waiting");

/// A wish for an attempt ended without one: what it asks for can never be granted, or it was taken back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AttemptRefused {
    pub run: RunId,
    pub task: TaskId,
    /// The DAG tracker's wish that this answers.
    pub wish: EffectId,
    pub error: Error,
}
event!(AttemptRefused, "attempt.refused");

/// The one result of a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StepCommitted {
    pub run: RunId,
    pub task: TaskId,
    pub attempt: Attempt,
    pub fence: Fence,
    pub worker: WorkerId,
    pub output: Payload,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<LeaseId>,
    /// Under which key it is found again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<Box<CacheNote>>,
    /// Why it is not found again, where it was to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unkept: Option<Unkept>,
}
event!(StepCommitted, "step.committed");

/// An attempt ended without a result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StepFailed {
    pub run: RunId,
    pub task: TaskId,
    pub attempt: Attempt,
    pub fence: Fence,
    pub worker: WorkerId,
    pub error: Error,
    /// The worker itself reported it and is free again; otherwise (time-out) it must still be stopped.
    pub released: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<LeaseId>,
}
event!(StepFailed, "step.failed");

/// A task that waited after a failure is wished for again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StepReady {
    pub run: RunId,
    pub task: TaskId,
}
event!(StepReady, "step.ready");

/// A worker was asked for. Its process is an effect of this; `worker.ready` is not journaled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerRequested {
    pub worker: WorkerId,
    pub environment: EnvironmentId,
}
event!(WorkerRequested, "worker.requested");

/// A worker's process exists and is attached: enough to find it again after a crash. Recorded once more by every kernel
/// that adopts it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerStarted {
    pub worker: WorkerId,
    pub pid: u32,
    /// In clock ticks since boot, from /proc/PID/stat: with the pid it names one process.
    pub start_ticks: u64,
    pub boot_id: String,
}
event!(WorkerStarted, "worker.started");

/// A worker that was started by hand has attached. It ends with its connection: no kernel starts, adopts or kills it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerAttached {
    pub worker: WorkerId,
    pub environment: EnvironmentId,
    pub pid: u32,
}
event!(WorkerAttached, "worker.attached");

/// A worker is to end once it has nothing in hand; it gets no attempt any more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerStopping {
    pub worker: WorkerId,
    pub reason: String,
    /// It is killed with what it has in hand, which is tried again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub now: bool,
}
event!(WorkerStopping, "worker.stopping");

/// A worker is gone, and every attempt on it is lost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerDied {
    pub worker: WorkerId,
    pub certificate: DeathCertificate,
    /// The attempt that it takes along.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fence: Option<Fence>,
    /// It was told to stop and nothing was lost.
    #[serde(default)]
    pub wanted: bool,
}
event!(WorkerDied, "worker.died");

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EnvironmentRequested {
    pub environment: EnvironmentId,
    pub spec: EnvironmentSpec,
}
event!(EnvironmentRequested, "environment.requested");

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EnvironmentReady {
    pub environment: EnvironmentId,
    /// The interpreter to start.
    pub python: String,
}
event!(EnvironmentReady, "environment.ready");

/// It cannot be built: what waits for it fails with these words.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EnvironmentFailed {
    pub environment: EnvironmentId,
    pub error: Error,
}
event!(EnvironmentFailed, "environment.failed");

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LeaseGranted {
    pub lease: LeaseId,
    pub task: TaskRef,
    pub tenant: Tenant,
    pub amounts: BTreeMap<String, u64>,
    /// The pool manager's wish that this answers.
    pub wish: EffectId,
}
event!(LeaseGranted, "lease.granted");

/// Released without an attempt of its own having ended: the wish was withdrawn, or a client gave it back or left.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LeaseReleased {
    pub lease: LeaseId,
    pub reason: String,
}
event!(LeaseReleased, "lease.released");

/// A client has got what it asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LeaseTaken {
    pub lease: LeaseId,
    pub key: LeaseKey,
    pub tenant: Tenant,
    pub amounts: BTreeMap<String, u64>,
    /// Who, what for, until when.
    pub client: ClientView,
}
event!(LeaseTaken, "lease.taken");

/// A client's lease ends later than was said before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LeaseRenewed {
    pub lease: LeaseId,
    pub until: Timestamp,
}
event!(LeaseRenewed, "lease.renewed");

/// A wish for a lease ended without one: it can never fit, or it was taken back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LeaseRefused {
    pub task: TaskRef,
    /// The pool manager's wish that this answers.
    pub wish: EffectId,
    pub error: Error,
}
event!(LeaseRefused, "lease.refused");

/// An operator is about to act on a part of the kernel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OperatorActed {
    /// Counts the acts of this state directory, from 1.
    pub id: u64,
    pub act: Act,
}
event!(OperatorActed, "operator.acted");

/// What came of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OperatorEnded {
    pub id: u64,
    pub act: Act,
    /// When it was begun.
    pub began_at: Timestamp,
    /// Why it was not done, or not known to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Error>,
}
event!(OperatorEnded, "operator.ended");
