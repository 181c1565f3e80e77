//! What the scheduler decides. Every instant that was due is named by exactly one `tick.fired` or `tick.skipped`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Event;
use crate::ids::{ScheduleName, Timestamp};
use crate::operation::Role;
use crate::schedule::{ScheduleSpec, TickView};

/// A schedule was made, or replaced by another of its name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ScheduleSet {
    pub name: ScheduleName,
    /// Complete.
    pub spec: Box<ScheduleSpec>,
    /// The rights of what it calls.
    pub role: Role,
    /// Only later instants are ticks of it.
    pub through: Timestamp,
}
event!(ScheduleSet, "schedule.set");

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SchedulePaused {
    pub name: ScheduleName,
    #[serde(default)]
    pub reason: String,
}
event!(SchedulePaused, "schedule.paused");

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ScheduleResumed {
    pub name: ScheduleName,
    /// Only later instants are ticks of it.
    pub through: Timestamp,
}
event!(ScheduleResumed, "schedule.resumed");

/// It is gone with its history. Runs that it has started go on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ScheduleRemoved {
    pub name: ScheduleName,
}
event!(ScheduleRemoved, "schedule.removed");

/// What it starts is owed from now on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TickFired {
    pub tick: TickView,
    /// The idempotency key of the request that triggered it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idem: Option<String>,
}
event!(TickFired, "tick.fired");

/// It waits for an earlier one; `tick.fired` or `tick.skipped` of the same number follows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TickQueued {
    pub tick: TickView,
    /// The idempotency key of the request that triggered it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idem: Option<String>,
}
event!(TickQueued, "tick.queued");

/// It, and those in a row with it, never fire.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TickSkipped {
    pub tick: TickView,
}
event!(TickSkipped, "tick.skipped");

/// The run that it started is to be canceled for a later tick's sake.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TickCancelling {
    pub schedule: ScheduleName,
    pub n: u64,
}
event!(TickCancelling, "tick.cancelling");

/// What it started has ended, or could not be started.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TickEnded {
    pub tick: TickView,
}
event!(TickEnded, "tick.ended");
