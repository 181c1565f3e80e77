//! What a schedule is: when it ticks, what a tick starts, and what happens when the two do not go together.
//!
//! A tick is named by its schedule and the instant that it stands for, and this name is the idempotency key of whatever it
//! starts. What a client leaves out is filled in when the schedule is accepted, so that what is shown is complete:
//!
//! | left out | filled in |
//! |---|---|
//! | `zone` | `UTC` |
//! | `missing` | `shift_forward` |
//! | `repeated` | `both` for a cron expression whose hour is `*`, else `first` |
//! | `misfire` | `run_once` |
//! | `grace_ms` | [`GRACE_MS_DEFAULT`] |
//! | `overlap` | `queue` with the same bound for `run_all`, else `skip` |

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::flow::FlowSpec;
use crate::ids::{RunId, ScheduleName, Tenant, Timestamp};
use crate::operation::Role;

/// A tick that is later than this is a misfire.
pub const GRACE_MS_DEFAULT: u64 = 60_000;

/// See the head of this file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ScheduleSpec {
    pub trigger: Trigger,
    pub action: Action,
    /// The IANA zone in which local times of the trigger are meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Of a local time that does not exist, because clocks were put forward.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing: Option<MissingTime>,
    /// Of a local time that exists twice, because clocks were put back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repeated: Option<RepeatedTime>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub misfire: Option<Misfire>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlap: Option<Overlap>,
    /// Each tick fires up to this much after its instant; how much follows from its name alone.
    #[serde(default)]
    pub jitter_ms: u64,
}

impl ScheduleSpec {
    /// Everything else as it is filled in.
    #[must_use]
    pub fn new(trigger: Trigger, action: Action) -> Self {
        Self {
            trigger,
            action,
            zone: None,
            missing: None,
            repeated: None,
            misfire: None,
            grace_ms: None,
            overlap: None,
            jitter_ms: 0,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "tag", rename_all = "snake_case")]
pub enum Trigger {
    /// At `anchor` and every whole number of `every_ms` from it, in both directions of time. The anchor is
    /// 1970-01-01T00:00:00Z unless it is set, so every ten minutes is :00, :10, :20 on every machine.
    #[schemars(title = "TriggerEvery")]
    Every {
        every_ms: u64,
        #[serde(default)]
        anchor: Timestamp,
    },
    /// Five fields (minute hour day month weekday), or six with the second in front; or `@hourly` and the like.
    #[schemars(title = "TriggerCron")]
    Cron { cron: String },
    /// Once: an instant such as `2026-11-21T08:00:00Z`, or a local time of the zone without an offset.
    #[schemars(title = "TriggerAt")]
    At { at: String },
}

/// What a tick starts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "tag", rename_all = "snake_case")]
pub enum Action {
    #[schemars(title = "ActionRun")]
    Run {
        flow: Box<FlowSpec>,
        #[serde(default)]
        set: BTreeMap<String, serde_json::Value>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tenant: Option<Tenant>,
    },
    /// Any operation of the table that does not stream, with the rights of who made the schedule and `operate` at most.
    #[schemars(title = "ActionCall")]
    Call {
        operation: String,
        #[serde(default)]
        request: serde_json::Value,
        #[serde(default = "default_deadline_ms")]
        deadline_ms: u64,
    },
}

fn default_deadline_ms() -> u64 {
    30_000
}

/// A local time that does not exist: 02:30 on the night in which 02:00 is followed by 03:00.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MissingTime {
    /// There is no such tick.
    Skip,
    /// As late as it would have been had clocks not been put forward: 03:30.
    ShiftForward,
}

/// A local time that exists twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RepeatedTime {
    First,
    Second,
    Both,
}

/// Ticks that could not fire within the grace, because the kernel was down or the clock jumped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "tag", rename_all = "snake_case")]
pub enum Misfire {
    #[schemars(title = "MisfireSkip")]
    Skip {},
    /// The latest of them, unless one is due on time as well.
    #[schemars(title = "MisfireRunOnce")]
    RunOnce {},
    /// The latest `max` of them, oldest first.
    #[schemars(title = "MisfireRunAll")]
    RunAll { max: u32 },
}

/// A tick that is due while what an earlier one started has not ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "tag", rename_all = "snake_case")]
pub enum Overlap {
    #[schemars(title = "OverlapSkip")]
    Skip {},
    /// It waits behind at most `max - 1` others.
    #[schemars(title = "OverlapQueue")]
    Queue { max: u32 },
    /// At most `max` at a time.
    #[schemars(title = "OverlapAllow")]
    Allow { max: u32 },
    /// The earlier one is canceled, and this one fires once it has ended.
    #[schemars(title = "OverlapCancelPrevious")]
    CancelPrevious {},
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TickState {
    /// Due, and waiting for an earlier one.
    Queued,
    /// Decided; what it starts has not been acknowledged.
    Starting,
    Running,
    Succeeded,
    Failed,
    Cancelled,
    /// It never fires; `skipped` says why.
    Skipped,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SkipReason {
    /// Late beyond the grace, and the misfire policy does not make up for it.
    Missed,
    /// What an earlier tick started had not ended.
    Overlap,
    /// As many as may wait already waited.
    QueueFull,
    /// It waited for an earlier one to be canceled, and a later one became due.
    Superseded,
    Paused,
    /// The schedule was replaced before it fired.
    Replaced,
}

/// One tick, or a row of ticks that were skipped together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TickView {
    pub schedule: ScheduleName,
    /// Of this schedule, from 0.
    pub n: u64,
    /// The instant that it stands for; of several, the first.
    pub scheduled: Timestamp,
    /// Of several, the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<Timestamp>,
    pub count: u64,
    /// There were more than `count`, and nobody counted them.
    #[serde(default)]
    pub at_least: bool,
    /// By `schedule.trigger`.
    #[serde(default)]
    pub manual: bool,
    pub state: TickState,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<SkipReason>,
    /// A sentence: why it was decided as it was.
    pub why: String,
    pub decided_at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunId>,
    /// What a call was answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply: Option<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Error>,
}

impl TickView {
    /// The idempotency key of what it starts.
    #[must_use]
    pub fn key(&self) -> String {
        let kind = if self.manual { "manual:" } else { "" };
        format!("schedule:{}:{kind}{}", self.schedule, self.scheduled)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleState {
    Active,
    Paused,
    /// It has no tick any more.
    Done,
}

/// A tick that is to come.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct UpcomingTick {
    pub scheduled: Timestamp,
    /// With jitter.
    pub fires_at: Timestamp,
    /// As RFC 3339 writes it.
    pub utc: String,
    /// The same with the offset of the zone.
    pub local: String,
    /// What clocks that are put forward or back had to do with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<DstRule>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DstRule {
    /// The local time that was meant does not exist.
    ShiftedForward,
    /// The local time exists twice; this is the first.
    RepeatedFirst,
    RepeatedSecond,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ScheduleView {
    pub name: ScheduleName,
    pub state: ScheduleState,
    /// Complete. In lists the flow's tasks are left out.
    pub spec: ScheduleSpec,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<UpcomingTick>,
    /// Whatever was due up to here has fired or was skipped.
    pub through: Timestamp,
    /// The rights that its calls have.
    pub role: Role,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    /// Fired and not ended.
    pub live: Vec<TickView>,
    pub queued: Vec<TickView>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<TickView>,
    /// How many ended in each state.
    pub counts: BTreeMap<TickState, u64>,
    /// Sentences: why it does not tick, or what the last tick met.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub why: Vec<String>,
}
