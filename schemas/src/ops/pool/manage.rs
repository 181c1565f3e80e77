//! What operators do with workers, and with tasks that kill them. Each says what it meets, and with `dry_run` only that.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ADDRESS, Taken, operation};
use crate::certificate::DeathCertificate;
use crate::ids::{Attempt, RunId, TaskId, TaskRef, Timestamp, WorkerId};
use crate::operation::Spec;
use crate::ops::audit::Act;
use crate::ops::task::example_worker;

pub(super) fn all() -> Vec<Spec> {
    vec![
        Spec::of::<Drain>(),
        Spec::of::<Resume>(),
        Spec::of::<Cordon>(),
        Spec::of::<Recycle>(),
        Spec::of::<Kill>(),
        Spec::of::<Usage>(),
        Spec::of::<Quarantine>(),
        Spec::of::<Release>(),
    ]
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DrainRequest {
    /// One worker; the whole pool, if none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<WorkerId>,
    #[serde(default)]
    pub reason: String,
    #[serde(default)]
    pub dry_run: bool,
    /// Of the whole pool: nothing is recorded, and the next kernel starts as if it had not been said.
    #[serde(default)]
    pub ends_with_kernel: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ResumeRequest {
    /// A cordoned worker; the whole pool, if none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<WorkerId>,
    #[serde(default)]
    pub reason: String,
    #[serde(default)]
    pub dry_run: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerActRequest {
    pub worker: WorkerId,
    #[serde(default)]
    pub reason: String,
    #[serde(default)]
    pub dry_run: bool,
}

/// What an act meets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ActReply {
    /// Something changes, or would; otherwise it was so already.
    pub changed: bool,
    pub workers: Vec<WorkerId>,
    /// What they have in hand: finished first, or lost and tried again if they are killed.
    pub attempts: Vec<AttemptAtWorker>,
    /// Tasks that are ready and wait for a worker.
    pub waiting: u32,
    #[serde(default)]
    pub dry_run: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AttemptAtWorker {
    pub worker: WorkerId,
    pub task: TaskRef,
    pub attempt: Attempt,
}

operation!(Drain {
    request: DrainRequest,
    reply: ActReply,
    name: "pool.drain",
    address: ADDRESS,
    role: Operate,
    durability: Power,
    mutates: true,
    act: |request| (!request.dry_run && !request.ends_with_kernel)
        .then(|| on(request.worker.as_ref(), &request.reason)),
    doc: "Starts no attempt any more, on one worker or at all; what is in hand is finished, then the workers end.",
    example: DrainRequest { reason: "a new driver".into(), ..DrainRequest::default() },
});

operation!(Resume {
    request: ResumeRequest,
    reply: ActReply,
    name: "pool.resume",
    address: ADDRESS,
    role: Operate,
    durability: Power,
    mutates: true,
    act: |request| (!request.dry_run).then(|| on(request.worker.as_ref(), &request.reason)),
    doc: "Starts attempts again, after the pool was drained or a worker cordoned.",
    example: ResumeRequest::default(),
});

operation!(Cordon {
    request: WorkerActRequest,
    reply: ActReply,
    name: "pool.cordon",
    address: ADDRESS,
    role: Operate,
    durability: Power,
    mutates: true,
    act: on_worker,
    doc: "Gives a worker no attempt any more; it lives on, to be looked at.",
    example: example_act("its memory grows"),
});

operation!(Recycle {
    request: WorkerActRequest,
    reply: ActReply,
    name: "pool.recycle",
    address: ADDRESS,
    role: Operate,
    durability: Power,
    mutates: true,
    act: on_worker,
    doc: "Ends a worker once it has finished what it has in hand; another one is started when it is needed.",
    example: example_act("a module was changed on disk"),
});

operation!(Kill {
    request: WorkerActRequest,
    reply: ActReply,
    name: "pool.kill",
    address: ADDRESS,
    role: Operate,
    durability: Power,
    mutates: true,
    act: on_worker,
    doc: "Kills a worker and all that came of it; what it has in hand is tried again and does not count against the task.",
    example: example_act("it hangs in a driver"),
});

/// What the tree of one worker takes up at the moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerUsage {
    pub worker: WorkerId,
    pub rss_bytes: u64,
    pub processes: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UsageRequest {
    pub workers: Vec<WorkerUsage>,
}

operation!(Usage {
    request: UsageRequest,
    reply: Taken,
    name: "pool.usage",
    address: ADDRESS,
    role: Service,
    durability: Call,
    doc: "Reports what workers take up; by it idle ones are recycled.",
    example: UsageRequest {
        workers: vec![WorkerUsage { worker: example_worker(), rss_bytes: 50 << 20, processes: 1 }]
    },
});

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct QuarantineRequest {}

/// A task that killed workers; what is equal to it is refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct QuarantinedTask {
    /// What it is released by; a beginning that is enough to tell it from others will do.
    pub content: String,
    pub function: String,
    pub run: RunId,
    pub task: TaskId,
    pub since: Timestamp,
    pub certificates: Vec<DeathCertificate>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct QuarantineReply {
    pub tasks: Vec<QuarantinedTask>,
}

operation!(Quarantine {
    request: QuarantineRequest,
    reply: QuarantineReply,
    name: "pool.quarantine",
    address: ADDRESS,
    role: View,
    durability: Call,
    doc: "Lists the tasks that are refused because they have killed three workers.",
    example: QuarantineRequest {},
});

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "QuarantineReleaseRequest")]
pub struct ReleaseRequest {
    pub content: String,
    #[serde(default)]
    pub reason: String,
    #[serde(default)]
    pub dry_run: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "QuarantineReleaseReply")]
pub struct ReleaseReply {
    pub task: QuarantinedTask,
    #[serde(default)]
    pub dry_run: bool,
}

operation!(Release {
    request: ReleaseRequest,
    reply: ReleaseReply,
    name: "pool.release",
    address: ADDRESS,
    role: Operate,
    durability: Power,
    mutates: true,
    act: |request| (!request.dry_run)
        .then(|| Act::on(format_args!("task {}", request.content), &request.reason)),
    doc: "Lets a quarantined task, and what is equal to it, be tried again.",
    example: ReleaseRequest {
        content: "5f2a".into(),
        reason: "the library was mended".into(),
        dry_run: false
    },
});

/// One worker, or the whole pool.
fn on(worker: Option<&WorkerId>, reason: &str) -> Act {
    let target = worker.map_or_else(|| "the pool".to_owned(), |worker| format!("worker {worker}"));
    Act::on(target, reason)
}

fn on_worker(request: &WorkerActRequest) -> Option<Act> {
    (!request.dry_run).then(|| on(Some(&request.worker), &request.reason))
}

fn example_act(reason: &str) -> WorkerActRequest {
    WorkerActRequest { worker: example_worker(), reason: reason.into(), dry_run: false }
}
