//! Schedules: what happens on time. Served by the scheduler.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::audit::Act;
use super::operation;
use crate::ids::{ScheduleName, Timestamp};
use crate::operation::Spec;
use crate::schedule::{
    Action, ScheduleSpec, ScheduleState, ScheduleView, TickState, TickView, Trigger, UpcomingTick,
};

pub const ADDRESS: &str = "/scheduler";

/// Ticks that one preview shows.
pub const PREVIEW_MAX: u32 = 1_000;

pub(super) fn all() -> Vec<Spec> {
    vec![
        Spec::of::<Set>(),
        Spec::of::<Get>(),
        Spec::of::<List>(),
        Spec::of::<Pause>(),
        Spec::of::<Resume>(),
        Spec::of::<Fire>(),
        Spec::of::<Remove>(),
        Spec::of::<Next>(),
        Spec::of::<History>(),
    ]
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ScheduleSetRequest")]
pub struct SetRequest {
    pub name: ScheduleName,
    pub spec: ScheduleSpec,
    /// Another schedule of this name is replaced; its history stays, and no instant that it has handled ticks again.
    #[serde(default)]
    pub replace: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    Created,
    Replaced,
    /// It is there already, equal in everything.
    Unchanged,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ScheduleSetReply")]
pub struct SetReply {
    pub change: Change,
    /// Complete: with what was filled in.
    pub spec: ScheduleSpec,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<UpcomingTick>,
}

operation!(Set {
    request: SetRequest,
    reply: SetReply,
    name: "schedule.set",
    address: ADDRESS,
    role: Operate,
    durability: Power,
    mutates: true,
    act: |request| Some(on(&request.name, "")),
    doc: "Makes a schedule; one of the same name and another content is replaced only on request.",
    example: SetRequest { name: example_name(), spec: example_spec(), replace: false },
});

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ScheduleRequest")]
pub struct NameRequest {
    pub name: ScheduleName,
}

operation!(Get {
    request: NameRequest,
    reply: ScheduleView,
    name: "schedule.get",
    address: ADDRESS,
    role: View,
    durability: Call,
    doc: "Shows a schedule: when it ticks next, what is under way, and why something does not tick.",
    example: NameRequest { name: example_name() },
});

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ScheduleListRequest")]
pub struct ListRequest {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<ScheduleState>,
    /// At most this many, by name; the filter comes before the limit.
    #[serde(default = "hundred")]
    pub limit: u32,
}

fn hundred() -> u32 {
    100
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ScheduleListReply")]
pub struct ListReply {
    pub schedules: Vec<ScheduleView>,
    /// How many matched and were cut off by the limit.
    pub cut: u64,
}

operation!(List {
    request: ListRequest,
    reply: ListReply,
    name: "schedule.list",
    address: ADDRESS,
    role: View,
    durability: Call,
    doc: "Lists schedules by name.",
    example: ListRequest { state: None, limit: 100 },
});

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ScheduleActRequest")]
pub struct ActRequest {
    pub name: ScheduleName,
    #[serde(default)]
    pub reason: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ScheduleStateReply")]
pub struct StateReply {
    pub state: ScheduleState,
}

operation!(Pause {
    request: ActRequest,
    reply: StateReply,
    name: "schedule.pause",
    address: ADDRESS,
    role: Operate,
    durability: Power,
    mutates: true,
    act: |request| Some(on(&request.name, &request.reason)),
    doc: "Suspends a schedule: nothing of it fires until it is resumed, and what waited goes on waiting.",
    example: ActRequest { name: example_name(), reason: "maintenance".into() },
});

operation!(Resume {
    request: ActRequest,
    reply: StateReply,
    name: "schedule.resume",
    address: ADDRESS,
    role: Operate,
    durability: Power,
    mutates: true,
    act: |request| Some(on(&request.name, &request.reason)),
    doc: "Lets a paused schedule tick again; what was due meanwhile is skipped and recorded.",
    example: ActRequest { name: example_name(), reason: "maintenance is over".into() },
});

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ScheduleTriggerRequest")]
pub struct TriggerRequest {
    pub name: ScheduleName,
    /// The same key again gets the same tick.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idem: Option<String>,
    #[serde(default)]
    pub reason: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ScheduleTriggerReply")]
pub struct TriggerReply {
    /// Its number in the history.
    pub n: u64,
    /// `starting` or `queued`, by the overlap policy.
    pub state: TickState,
}

operation!(Fire {
    request: TriggerRequest,
    reply: TriggerReply,
    name: "schedule.trigger",
    address: ADDRESS,
    role: Operate,
    durability: Power,
    mutates: true,
    act: |request| Some(on(&request.name, &request.reason)),
    doc: "Fires a tick now, also of a paused schedule; the overlap policy holds.",
    example: TriggerRequest { name: example_name(), idem: None, reason: "the data came early".into() },
});

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ScheduleRemoveReply")]
pub struct RemoveReply {}

operation!(Remove {
    request: ActRequest,
    reply: RemoveReply,
    name: "schedule.remove",
    address: ADDRESS,
    role: Operate,
    durability: Power,
    mutates: true,
    act: |request| Some(on(&request.name, &request.reason)),
    doc: "Removes a schedule and its history; runs that it has started go on.",
    example: ActRequest { name: example_name(), reason: "the data is gone".into() },
});

/// One of `name` and `spec`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ScheduleNextRequest")]
pub struct NextRequest {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<ScheduleName>,
    /// A schedule that need not exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<ScheduleSpec>,
    /// How many, at most [`PREVIEW_MAX`].
    #[serde(default = "ten")]
    pub n: u32,
    /// Later than this; now, unless it is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Timestamp>,
}

fn ten() -> u32 {
    10
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ScheduleNextReply")]
pub struct NextReply {
    pub ticks: Vec<UpcomingTick>,
    pub zone: String,
}

operation!(Next {
    request: NextRequest,
    reply: NextReply,
    name: "schedule.next",
    address: ADDRESS,
    role: View,
    durability: Call,
    doc: "Previews the next ticks of a schedule that exists or that could be made.",
    example: NextRequest { name: Some(example_name()), spec: None, n: 5, after: None },
});

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ScheduleHistoryRequest")]
pub struct HistoryRequest {
    pub name: ScheduleName,
    /// Newest first.
    #[serde(default = "hundred")]
    pub limit: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ScheduleHistoryReply")]
pub struct HistoryReply {
    pub ticks: Vec<TickView>,
    /// How many are kept and were cut off by the limit.
    pub cut: u64,
}

operation!(History {
    request: HistoryRequest,
    reply: HistoryReply,
    name: "schedule.history",
    address: ADDRESS,
    role: View,
    durability: Call,
    doc: "Lists the latest ticks of a schedule, fired and skipped, newest first.",
    example: HistoryRequest { name: example_name(), limit: 100 },
});

fn on(name: &ScheduleName, reason: &str) -> Act {
    Act::on(format_args!("schedule {name}"), reason)
}

fn example_name() -> ScheduleName {
    "nightly".parse().unwrap_or_else(|_| unreachable!("a well-formed name"))
}

fn example_spec() -> ScheduleSpec {
    let trigger = Trigger::Cron { cron: "30 2 * * *".into() };
    let request = serde_json::json!({"limit": 10});
    let action = Action::Call { operation: "run.list".into(), request, deadline_ms: 30_000 };
    ScheduleSpec { zone: Some("Europe/Berlin".into()), ..ScheduleSpec::new(trigger, action) }
}
