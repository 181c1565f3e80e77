//! Attempts. What the kernel asks of a worker (`task.execute`), and what a worker's holder asks of the DAG tracker
//! (`step.commit`, `step.fail`).

use std::collections::BTreeMap;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::operation;
use super::run::{ADDRESS, example_run};
use crate::error::Error;
use crate::ids::{Attempt, Epoch, Fence, RunId, TaskId, WorkerId};
use crate::operation::Spec;
use crate::payload::Payload;
use crate::view::TaskReport;

pub(super) fn all() -> Vec<Spec> {
    vec![Spec::of::<Commit>(), Spec::of::<Fail>(), Spec::of::<Body>()]
}

/// One attempt, as it is sent to a worker: the request of `task.execute`. Its items are [`TaskReport`]s, its reply a
/// [`Payload`] whose new parts name a `stage`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Execute {
    pub run: RunId,
    pub task: TaskId,
    pub attempt: Attempt,
    pub fence: Fence,
    /// `module:qualname`.
    pub function: String,
    /// Where modules are imported from, absolute.
    pub code: String,
    /// What the files had when the flow was read. A worker imports anew whenever it is told another text, so it may be
    /// given one with a mark behind it.
    pub code_hash: String,
    pub arguments: BTreeMap<String, Argument>,
    /// From (run seed, task): the same in every attempt.
    pub seed: u64,
    pub idempotency_key: String,
    /// None: no limit. The kernel enforces it; the worker only shows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// What the attempt holds: `cpu` in cores, `memory` in bytes. Beyond its memory it is killed.
    #[serde(default)]
    pub lease: BTreeMap<String, u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// W3C traceparent of the attempt itself: what user code traces is below it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
    /// Somebody wants to know where the time goes: the outcome says when the worker had it in hand.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub timings: bool,
    /// Its result is to be kept under a content key: who reports it says what its code was by then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keeps: bool,
}

/// What an attempt may not go beyond, apart from its lease and its time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "AttemptLimits")]
pub struct Limits {
    /// Processes in the worker's tree, itself included. The kernel counts, and kills.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processes: Option<u32>,
    /// Open descriptors (RLIMIT_NOFILE). The worker sets it; the task gets an `OSError`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_files: Option<u32>,
    /// The length of a file that it writes (RLIMIT_FSIZE), in bytes. The same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_bytes: Option<u64>,
}

impl Limits {
    /// None, if nothing is limited.
    #[must_use]
    pub fn any(self) -> Option<Self> {
        (self != Self::default()).then_some(self)
    }
}

/// One keyword argument.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "tag", rename_all = "snake_case")]
pub enum Argument {
    #[schemars(title = "ArgumentValue")]
    Value { payload: Payload },
    /// The outputs of a fan-out, in order. Shared, because every instance of a later fan-out is given the same.
    #[schemars(title = "ArgumentList")]
    List {
        #[schemars(with = "Vec<Payload>")]
        payloads: Arc<[Payload]>,
    },
}

/// The name of the operation that a worker serves.
pub const EXECUTE: &str = "task.execute";
/// What a worker's stream carries before its reply.
pub type ExecuteItem = TaskReport;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CommitRequest {
    pub run: RunId,
    pub task: TaskId,
    pub fence: Fence,
    pub worker: WorkerId,
    /// Every part names its digest.
    pub output: Payload,
    /// Nothing: nobody looked, or the files could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<CodeSeen>,
}

/// The files of a step's code, as they were found when its result was there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CodeSeen {
    pub hash: String,
    /// One of them was written after its worker was told to import them: what it had imported may be neither this nor
    /// what the run names, even if both are the same.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_written: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CommitReply {
    Committed,
    /// The same fence committed before.
    AlreadyCommitted,
    /// Another fence is current, or the task is over: the result is dropped.
    Stale,
}

operation!(Commit {
    request: CommitRequest,
    reply: CommitReply,
    name: "step.commit",
    address: ADDRESS,
    role: Worker,
    durability: Process,
    mutates: true,
    doc: "Commits the result of an attempt under its fence.",
    example: CommitRequest {
        run: example_run(),
        task: example_task(),
        fence: example_fence(),
        worker: example_worker(),
        output: Payload::default(),
        code: None,
    },
});

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FailRequest {
    pub run: RunId,
    pub task: TaskId,
    pub fence: Fence,
    pub worker: WorkerId,
    pub error: Error,
}

operation!(Fail {
    request: FailRequest,
    reply: CommitReply,
    name: "step.fail",
    address: ADDRESS,
    role: Worker,
    durability: Process,
    mutates: true,
    doc: "Reports that an attempt ended without a result.",
    example: FailRequest {
        run: example_run(),
        task: example_task(),
        fence: example_fence(),
        worker: example_worker(),
        error: Error::internal("task.raised", "boom")
    },
});

/// What an attempt consists of, asked for by the pool manager when an incarnation that knew it died between
/// `attempt.started` and its execution.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BodyRequest {
    pub run: RunId,
    pub task: TaskId,
    pub fence: Fence,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BodyReply {
    /// Nothing, if another fence is current or the task is over: there is nothing to execute any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub execute: Option<Execute>,
}

operation!(Body {
    request: BodyRequest,
    reply: BodyReply,
    name: "step.body",
    address: ADDRESS,
    role: Service,
    durability: Call,
    doc: "Gives what the current attempt of a task is to execute.",
    example: BodyRequest { run: example_run(), task: example_task(), fence: example_fence() },
});

pub(super) fn example_task() -> TaskId {
    "train[0]".parse().unwrap_or_else(|_| unreachable!("a well-formed id"))
}

pub(crate) fn example_worker() -> WorkerId {
    "w-1-1".parse().unwrap_or_else(|_| unreachable!("a well-formed id"))
}

pub(super) fn example_fence() -> Fence {
    Fence { epoch: Epoch(1), counter: 1 }
}
