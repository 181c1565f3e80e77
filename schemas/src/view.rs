//! What readers see: of a run, a task, a worker, a lease, an actor.

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::certificate::DeathCertificate;
use crate::error::Error;
use crate::events::{MissCause, Unkept};
use crate::ids::{
    Attempt, Digest, EnvironmentId, Fence, Incarnation, LeaseId, RunId, Seq, TaskId, TaskRef, Tenant,
    Timestamp, WorkerId,
};
use crate::payload::Payload;
use crate::pending::PendingReason;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    Running,
    Cancelling,
    Succeeded,
    Failed,
    Cancelled,
}

impl RunState {
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, RunState::Succeeded | RunState::Failed | RunState::Cancelled)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    /// Tasks that it needs are not finished.
    Waiting,
    /// Wished for; no attempt has started.
    Ready,
    Running,
    /// Failed, and waits before the next attempt.
    Backoff,
    Succeeded,
    Failed,
    Cancelled,
    /// Never started, because a task that it needs failed or the run was cancelled.
    Skipped,
}

/// The head of a run, without its tasks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RunView {
    pub run: RunId,
    pub flow: String,
    pub state: RunState,
    pub tenant: Tenant,
    pub seed: u64,
    /// The hash of flow, code, environment, parameters and seed.
    pub content: String,
    /// Left out in `run.list`.
    #[serde(default)]
    pub parameters: BTreeMap<String, serde_json::Value>,
    pub started_at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
    /// Tasks by state, so that a list needs no tasks.
    pub counts: BTreeMap<TaskState, u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Error>,
    /// The output of the result task, once succeeded. Whole in `run.get`, left out in `run.list`; in what is published
    /// left out where it is long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Payload>,
    /// How long the result is, its files included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result_bytes: Option<u64>,
    /// Absent where no earlier result was looked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheCounts>,
    /// The run that this one computes a part of again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rerun_of: Option<RunId>,
    /// The journal position that this view reflects.
    pub seq: Seq,
}

/// Results that were not computed, and such as could have been had without.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CacheCounts {
    /// Found under their content key.
    #[serde(default)]
    pub hits: u32,
    /// Looked for and not found.
    #[serde(default)]
    pub misses: u32,
    /// Taken over from the run that this one repeats.
    #[serde(default)]
    pub taken: u32,
}

impl CacheCounts {
    /// Nothing, where nothing was looked for.
    #[must_use]
    pub fn some(self) -> Option<Self> {
        (self != Self::default()).then_some(self)
    }
}

/// How a step stands to the cache, or to the run that its own run repeats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CacheState {
    /// Not ready yet, or just being looked for.
    Waiting,
    /// Its result was found under its content key.
    Hit,
    /// Its result was taken over from the run that this one repeats.
    Taken,
    /// Looked for and not found: it is computed.
    Miss,
    /// Not looked for, because the run or the rerun says so; what it computes is kept.
    Refreshed,
    /// Its flow names no hash of its code, so no result can be told to be the same.
    Unhashed,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CacheView {
    pub state: CacheState,
    /// Where the result comes from; for a miss, the entry that came nearest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<TaskRef>,
    /// Why nothing was found: all that differs from the nearest entry.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<MissCause>,
    /// It was computed, and nobody will find it again: why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unkept: Option<Unkept>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TaskView {
    pub run: RunId,
    pub task: TaskId,
    pub function: String,
    pub state: TaskState,
    pub attempt: Attempt,
    pub failures: u32,
    /// Workers lost under it.
    pub lost: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<WorkerId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fence: Option<Fence>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Error>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub certificates: Vec<DeathCertificate>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pending: Vec<PendingReason>,
    pub needs: Vec<TaskId>,
    /// Absent where no earlier result was to be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheView>,
    pub seq: Seq,
}

/// Progress and metrics of a running attempt; published, never journaled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "tag", rename_all = "snake_case")]
pub enum TaskReport {
    #[schemars(title = "ReportProgress")]
    Progress {
        done: f64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        total: Option<f64>,
        #[serde(default)]
        text: String,
    },
    #[schemars(title = "ReportMetric")]
    Metric {
        name: String,
        value: f64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        step: Option<i64>,
    },
    /// One value of a generator. Never lost, and sent only with credit.
    #[schemars(title = "ReportItem")]
    Item {
        /// From 0 on, in each attempt.
        index: u64,
        payload: Payload,
    },
}

/// One value that a task of a run has yielded, as it is published; the task's result has them all.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TaskItem {
    pub attempt: Attempt,
    pub index: u64,
    pub payload: Payload,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WorkerState {
    Starting,
    Idle,
    Busy,
    Stopping,
    /// Of an earlier kernel, not attached yet.
    Adopting,
    Dead,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerView {
    pub worker: WorkerId,
    pub environment: EnvironmentId,
    pub state: WorkerState,
    pub pid: u32,
    pub since: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskRef>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fence: Option<Fence>,
    pub finished: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<DeathCertificate>,
    /// When its process was attached first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// Why it gets no attempt: it is cordoned, or it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<String>,
    /// Resident memory of it and all that came of it, where it was sampled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rss_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processes: Option<u32>,
    /// It was started by hand, and ends with its connection.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub attached: bool,
    /// A service has it, for as long as that runs; the most workers that there may be do not count it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub serves: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EnvironmentState {
    Building,
    Ready,
    Failed,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EnvironmentView {
    pub environment: EnvironmentId,
    pub state: EnvironmentState,
    pub requirements: Vec<String>,
    /// What it is doing, in the builder's words.
    #[serde(default)]
    pub doing: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Error>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LeaseView {
    pub lease: LeaseId,
    /// Absent where a client holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskRef>,
    pub tenant: Tenant,
    pub amounts: BTreeMap<String, u64>,
    pub since: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<ClientView>,
}

/// A client that holds a lease, or waits for one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ClientView {
    /// As it named itself, with its pid.
    pub name: String,
    /// What for, in its own words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub purpose: String,
    /// It ends then, unless it is renewed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// It ends with the session that holds it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub bound: bool,
}

impl fmt::Display for ClientView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.purpose.as_str() {
            "" => f.write_str(&self.name),
            purpose => write!(f, "{}: {purpose}", self.name),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ArtifactView {
    pub name: String,
    pub version: u32,
    pub run: RunId,
    pub task: TaskId,
    /// Absent for an inline value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    pub bytes: u64,
    pub codec: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    pub created_at: Timestamp,
    pub seq: Seq,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ActorState {
    #[default]
    Starting,
    Ready,
    Busy,
    Stuck,
    Paused,
    Draining,
    Backoff,
    Failed,
    Stopped,
}

/// Of a sample of recent messages, within 13 %.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Latency {
    pub p50_us: f64,
    pub p99_us: f64,
}

/// One row of `eclosion tree`. `accepted = handled + dropped + expired + cancelled + dead_letters + depth + in_hand`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ActorRow {
    pub address: String,
    pub state: ActorState,
    pub incarnation: Incarnation,
    /// Restarts inside the window that the budget counts.
    pub restarts: u32,
    pub restarts_max: u32,
    pub window_ms: u64,
    /// Messages that wait.
    pub depth: u64,
    pub capacity: u64,
    #[serde(default)]
    pub accepted: u64,
    pub handled: u64,
    /// By the policy for a full mailbox.
    #[serde(default)]
    pub dropped: u64,
    /// Their deadline passed while they waited.
    #[serde(default)]
    pub expired: u64,
    /// Withdrawn by whoever asked.
    #[serde(default)]
    pub cancelled: u64,
    /// Never accepted: the mailbox was full or draining.
    #[serde(default)]
    pub refused: u64,
    /// Times a message came back from an incarnation that died.
    #[serde(default)]
    pub redelivered: u64,
    pub dead_letters: u64,
    #[serde(default)]
    pub in_hand: u64,
    /// How long the oldest message has waited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_ms: Option<u64>,
    /// How long the same message has been in hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_hand_ms: Option<u64>,
    /// Over the last full second, as is `busy_permille`: the part of it with something in hand.
    #[serde(default)]
    pub accepted_per_s: u64,
    #[serde(default)]
    pub busy_permille: u16,
    /// From accepted to taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait: Option<Latency>,
    /// From taken until the actor takes the next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handling: Option<Latency>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}
