//! Why something waits: the pending reason. It names actual holders.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::{EnvironmentId, LeaseId, TaskId, TaskRef, Timestamp, WorkerId};

/// Who holds what a waiting task needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Holder {
    pub lease: LeaseId,
    /// Absent where a client holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskRef>,
    /// The client that holds it, and what for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<WorkerId>,
    pub amount: u64,
    pub since: Timestamp,
}

/// Who holds it, in a word.
impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.task, &self.client) {
            (Some(task), _) => task.fmt(f),
            (None, Some(client)) => f.write_str(client),
            (None, None) => self.lease.fmt(f),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "tag", rename_all = "snake_case")]
pub enum PendingReason {
    /// Tasks that it needs are not finished.
    #[schemars(title = "PendingUpstream")]
    Upstream { tasks: Vec<TaskId> },
    /// Its environment is being built.
    #[schemars(title = "PendingEnvironment")]
    Environment { environment: EnvironmentId, doing: String },
    /// All workers of its pool are busy.
    #[schemars(title = "PendingWorker")]
    Worker { busy: Vec<WorkerId>, max: u32, ahead: u32 },
    /// Nothing is started: the pool is drained.
    #[schemars(title = "PendingDrained")]
    Drained { reason: String },
    /// A resource is held by others.
    #[schemars(title = "PendingResource")]
    Resource { resource: String, needs: u64, free: u64, capacity: u64, holders: Vec<Holder> },
    /// A lock is held by others, or by one who does not share it.
    #[schemars(title = "PendingLock")]
    Lock {
        lock: String,
        /// It would share it.
        shared: bool,
        holders: Vec<Holder>,
    },
    /// It would be too often.
    #[schemars(title = "PendingRate")]
    Rate {
        rate: String,
        /// `60/min burst 10`
        limit: String,
        needs: u64,
        free: u64,
        /// Not before this.
        until: Timestamp,
    },
    /// It failed and waits before the next attempt.
    #[schemars(title = "PendingBackoff")]
    Backoff { until: Timestamp, failures: u32, last_error: String },
    /// The workers of an earlier kernel are being asked whether they still compute it.
    #[schemars(title = "PendingAdoption")]
    Adoption { worker: WorkerId },
}
