//! The kernel itself: status, the actor tree, the table of operations, subscriptions, stopping.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::operation;
use crate::ids::{EffectId, Epoch, Seq, ServiceName, Timestamp, WorkerId};
use crate::operation::Spec;
use crate::timings::CallOption;
use crate::view::ActorRow;

pub const ADDRESS: &str = "/kernel";

/// Operations that every kernel with a socket serves.
#[must_use]
pub fn all() -> Vec<Spec> {
    vec![
        Spec::of::<Ping>(),
        Spec::of::<Status>(),
        Spec::of::<Tree>(),
        Spec::of::<Describe>(),
        Spec::of::<Stop>(),
        Spec::of::<Subscribe>(),
        Spec::of::<Publish>(),
        Spec::of::<Events>(),
        Spec::of::<Processes>(),
    ]
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Empty {}

operation!(Ping {
    request: Empty,
    reply: Empty,
    name: "kernel.ping",
    address: ADDRESS,
    role: View,
    durability: Call,
    doc: "Answers.",
    example: Empty {},
});

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "KernelStatusReply")]
pub struct StatusReply {
    pub instance: String,
    pub version: String,
    pub pid: u32,
    pub epoch: Epoch,
    pub uptime_ms: u64,
    /// `starting`, `ready`, `read_only` or `draining`.
    pub state: String,
    pub appended: Seq,
    pub written: Seq,
    pub synced: Seq,
    pub state_dir: String,
    pub rss_bytes: u64,
    pub findings: Vec<String>,
    #[serde(default)]
    pub traffic: TrafficCounts,
}

/// What the clients of all connections hold now. What one of them held is not counted any more once it is gone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TrafficCounts {
    #[serde(default)]
    pub connections: u64,
    /// Calls and subscriptions that have not ended.
    #[serde(default)]
    pub streams: u64,
    /// Items that streams may send before their clients grant more.
    #[serde(default)]
    pub credit: u64,
}

operation!(Status {
    request: Empty,
    reply: StatusReply,
    name: "kernel.status",
    address: ADDRESS,
    role: View,
    durability: Call,
    doc: "Shows the kernel's state, journal marks and findings.",
    example: Empty {},
});

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TreeReply {
    /// Parents before their children.
    pub actors: Vec<ActorRow>,
}

operation!(Tree {
    request: Empty,
    reply: TreeReply,
    name: "kernel.tree",
    address: ADDRESS,
    role: View,
    durability: Call,
    doc: "Shows every actor.",
    example: Empty {},
});

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DescribeRequest {
    /// One operation; all, if none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DescribeReply {
    /// Each with name, address, role, durability, since, doc, example and the JSON Schemas of request, reply and item.
    pub operations: Vec<serde_json::Value>,
    /// What rides along with a call of any of them, beside its request.
    #[serde(default)]
    pub call_options: Vec<CallOption>,
}

operation!(Describe {
    request: DescribeRequest,
    reply: DescribeReply,
    name: "kernel.describe",
    address: ADDRESS,
    role: View,
    durability: Call,
    doc: "Describes the operations that this kernel knows.",
    example: DescribeRequest { name: None },
});

operation!(Stop {
    request: Empty,
    reply: Empty,
    name: "kernel.stop",
    address: ADDRESS,
    role: Admin,
    durability: Call,
    mutates: true,
    doc: "Stops the kernel and its workers. What they have in hand is tried again at its next start, where unfinished runs go on.",
    example: Empty {},
});

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SubscribeRequest {
    /// `run/7k2m4q9d/**`; `*` is one chunk, `**` the tail.
    pub filter: String,
    #[serde(default)]
    pub on_full: OnFull,
    /// A cursor `EPOCH:SEQ`, of the last delivery that was heard: changes since then, some of them perhaps once more.
    /// Where that cannot be, `reset` and a snapshot. Without one, a snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<String>,
}

/// What happens when a subscriber does not keep up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnFull {
    /// Drop the oldest and say how many.
    #[default]
    Gap,
    /// Keep the newest of each subject.
    Latest,
    /// End the subscription with `slow_consumer`.
    Close,
    /// Make the publisher wait; for workers only.
    Block,
}

/// One item of a subscription.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "tag", rename_all = "snake_case")]
pub enum Delivery {
    /// The first item: subscribed, as of this position.
    #[schemars(title = "DeliveryAcknowledged")]
    Acknowledged { epoch: Epoch, seq: Seq },
    /// The cursor cannot be gone on from: what was folded so far is to be forgotten, a snapshot follows.
    #[schemars(title = "DeliveryReset")]
    Reset { why: String },
    /// A retained state, before any change.
    #[schemars(title = "DeliverySnapshot")]
    Snapshot {
        subject: String,
        epoch: Epoch,
        seq: Seq,
        #[serde(deserialize_with = "crate::codec::json::any")]
        value: serde_json::Value,
    },
    #[schemars(title = "DeliverySnapshotEnd")]
    SnapshotEnd {},
    #[schemars(title = "DeliveryChange")]
    Change {
        subject: String,
        epoch: Epoch,
        seq: Seq,
        #[serde(deserialize_with = "crate::codec::json::any")]
        value: serde_json::Value,
    },
    /// This many were dropped here.
    #[schemars(title = "DeliveryGap")]
    Gap { dropped: u64 },
}

operation!(Subscribe {
    request: SubscribeRequest,
    reply: Empty,
    item: Delivery,
    name: "bus.subscribe",
    address: ADDRESS,
    role: View,
    durability: Call,
    doc: "Subscribes: an acknowledgement, a snapshot of retained states, then changes.",
    example: SubscribeRequest { filter: "run/**".into(), on_full: OnFull::Gap, start: None },
});

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PublishRequest {
    /// `desk/guest`; its first word is none of the kernel's.
    pub subject: String,
    #[serde(deserialize_with = "crate::codec::json::any")]
    pub value: serde_json::Value,
    /// It is a state: the last one is kept, and shown to later subscribers. It goes with the kernel.
    #[serde(default)]
    pub keep: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PublishReply {
    /// Subscribers who were there.
    pub heard: u64,
}

operation!(Publish {
    request: PublishRequest,
    reply: PublishReply,
    name: "bus.publish",
    address: ADDRESS,
    role: Operate,
    durability: Call,
    doc: "Tells all who subscribe to a subject of the application's own.",
    example: PublishRequest { subject: "desk/guest".into(), value: "Ada".into(), keep: false },
});

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EventsRequest {
    /// Records after this one; the last `tail` records, if it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Seq>,
    #[serde(default = "tail_default")]
    pub tail: u32,
    /// `run.started`, or `run.*` for a family; all kinds, if empty.
    #[serde(default)]
    pub kinds: Vec<String>,
    /// Goes on with what is recorded from now on.
    #[serde(default)]
    pub follow: bool,
}

fn tail_default() -> u32 {
    20
}

/// One record of the journal, as it may be shown: synced.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EventItem {
    pub seq: Seq,
    pub epoch: Epoch,
    pub at: Timestamp,
    pub kind: String,
    pub version: u16,
    /// The effect whose performance led to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<EffectId>,
    #[serde(deserialize_with = "crate::codec::json::any")]
    pub event: serde_json::Value,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EventsReply {
    /// Give it as `after` to go on from here.
    pub last: Seq,
    pub shown: u64,
}

operation!(Events {
    request: EventsRequest,
    reply: EventsReply,
    item: EventItem,
    name: "kernel.events",
    address: ADDRESS,
    role: View,
    durability: Call,
    doc: "Shows what the journal recorded, in order, and what it records from now on.",
    example: EventsRequest { after: None, tail: 20, kinds: vec!["run.*".into()], follow: false },
});

/// A process that belongs to this kernel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ProcessRow {
    pub pid: u32,
    pub parent: u32,
    /// `kernel`, `keeper`, `zygote`, `worker`, `service`, or `child` for what one of those started.
    pub kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<WorkerId>,
    /// What it serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceName>,
    pub command: String,
    pub rss_bytes: u64,
    /// Of one core, since it started.
    pub cpu_permille: u32,
    pub age_s: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ProcessesReply {
    /// Parents before their children.
    pub processes: Vec<ProcessRow>,
}

operation!(Processes {
    request: Empty,
    reply: ProcessesReply,
    name: "kernel.processes",
    address: ADDRESS,
    role: View,
    durability: Call,
    doc: "Shows every process of this kernel, with what it uses.",
    example: Empty {},
});
