//! What operators decide about workers, and what the pool manager holds against tasks.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Event;
use crate::certificate::DeathCertificate;
use crate::ids::{RunId, TaskId, WorkerId};

/// A worker gets no attempt any more, and lives on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerCordoned {
    pub worker: WorkerId,
    pub reason: String,
}
event!(WorkerCordoned, "worker.cordoned");

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerUncordoned {
    pub worker: WorkerId,
    pub reason: String,
}
event!(WorkerUncordoned, "worker.uncordoned");

/// No attempt is started and no worker launched, until `pool.resumed`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PoolDrained {
    pub reason: String,
}
event!(PoolDrained, "pool.drained");

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PoolResumed {
    pub reason: String,
}
event!(PoolResumed, "pool.resumed");

/// A task has killed three workers: what is equal to it is refused, in whatever run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TaskQuarantined {
    /// The hash of what it computes; see the head of the pool manager's `state/quarantine.rs`.
    pub content: String,
    /// `module:qualname`.
    pub function: String,
    /// Where it happened.
    pub run: RunId,
    pub task: TaskId,
    pub certificates: Vec<DeathCertificate>,
}
event!(TaskQuarantined, "task.quarantined");

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TaskReleased {
    pub content: String,
    pub reason: String,
}
event!(TaskReleased, "task.released");
