//! What can be said about schedules.

use clap::{ArgGroup, Args, Subcommand, ValueHint};
use eclosion_schemas::ScheduleName;
use eclosion_schemas::schedule::{Misfire, MissingTime, Overlap, RepeatedTime, ScheduleState};

use crate::values;

#[derive(Debug, Subcommand)]
pub(crate) enum Schedule {
    /// Make a schedule that runs a flow, or calls an operation.
    Add(Box<AddSchedule>),
    /// List schedules by name.
    Ls {
        /// active, paused or done.
        #[arg(long, value_parser = values::word::<ScheduleState>)]
        state: Option<ScheduleState>,
        #[arg(long, default_value_t = 100, value_parser = values::at_least_one())]
        limit: u32,
    },
    /// Show a schedule, what is under way, and why something does not tick.
    Show { name: ScheduleName },
    /// Preview ticks of a schedule, or of one that could be made; the latter needs no kernel.
    Next(Box<NextTicks>),
    /// Suspend a schedule.
    Pause {
        name: ScheduleName,
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// Let it tick again; what was due meanwhile is skipped and recorded.
    Resume {
        name: ScheduleName,
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// Fire a tick now.
    Trigger {
        name: ScheduleName,
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// Remove a schedule and its history; runs that it has started go on.
    Rm {
        name: ScheduleName,
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// Show the latest ticks, fired and skipped, newest first.
    History {
        name: ScheduleName,
        #[arg(long, default_value_t = 20, value_parser = values::at_least_one())]
        limit: u32,
    },
}

/// When it ticks.
#[derive(Debug, Args)]
pub(crate) struct When {
    /// Such as 10m, 1h30m or 500ms; counted from the anchor.
    #[arg(long, value_name = "DURATION", value_parser = values::duration_ms)]
    pub(crate) every: Option<u64>,
    /// The instant that --every counts from, such as 2026-01-01T00:00:00Z; the beginning of 1970 if it is not set.
    #[arg(long, value_name = "INSTANT", requires = "every")]
    pub(crate) anchor: Option<String>,
    /// Minute hour day month weekday, or with the second in front; or @hourly and the like.
    #[arg(long, value_name = "EXPRESSION")]
    pub(crate) cron: Option<String>,
    /// Once: 2026-12-24T18:00:00Z, a local time of the zone without Z, or +10m from now.
    #[arg(long, value_name = "INSTANT", allow_hyphen_values = true)]
    pub(crate) at: Option<String>,
    /// The zone of local times, such as Europe/Berlin [default: UTC].
    #[arg(long)]
    pub(crate) zone: Option<String>,
    /// A local time that does not exist: skip or shift_forward [default: shift_forward].
    #[arg(long, value_name = "RULE", value_parser = values::word::<MissingTime>)]
    pub(crate) missing: Option<MissingTime>,
    /// A local time that exists twice: first, second or both [default: both if the hour is *, else first].
    #[arg(long, value_name = "RULE", value_parser = values::word::<RepeatedTime>)]
    pub(crate) repeated: Option<RepeatedTime>,
    /// Fire up to this much later; how much follows from the tick's name.
    #[arg(long, value_name = "DURATION", value_parser = values::duration_ms, default_value = "0s")]
    pub(crate) jitter: u64,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("trigger").args(["every", "cron", "at"]).required(true))]
#[command(group = ArgGroup::new("action").args(["flow", "call"]).required(true))]
pub(crate) struct AddSchedule {
    pub(crate) name: ScheduleName,
    /// flow.toml, flow.json, or FILE.py:NAME.
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) flow: Option<String>,
    /// Set a parameter of the flow: JSON, else text. The path of an existing file becomes absolute.
    #[arg(long = "set", value_name = "NAME=VALUE", requires = "flow")]
    pub(crate) set: Vec<String>,
    /// Call an operation in place of running a flow.
    #[arg(long, num_args = 1..=2, value_names = ["OPERATION", "JSON"])]
    pub(crate) call: Option<Vec<String>>,
    /// How long a call may take.
    #[arg(long, value_name = "DURATION", value_parser = values::duration_ms, default_value = "30s", requires = "call")]
    pub(crate) deadline: u64,
    #[command(flatten)]
    pub(crate) when: When,
    /// Ticks that were missed: skip, run_once or run_all:N [default: run_once].
    #[arg(long, value_name = "POLICY", value_parser = values::misfire)]
    pub(crate) misfire: Option<Misfire>,
    /// A tick that is later than this was missed [default: 60s].
    #[arg(long, value_name = "DURATION", value_parser = values::duration_ms)]
    pub(crate) grace: Option<u64>,
    /// While an earlier tick has not ended: skip, queue:N, allow:N or cancel_previous [default: skip].
    #[arg(long, value_name = "POLICY", value_parser = values::overlap)]
    pub(crate) overlap: Option<Overlap>,
    /// Replace another schedule of this name.
    #[arg(long)]
    pub(crate) replace: bool,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("which").args(["name", "every", "cron", "at"]).required(true))]
pub(crate) struct NextTicks {
    pub(crate) name: Option<ScheduleName>,
    #[command(flatten)]
    pub(crate) when: When,
    /// How many.
    #[arg(short = 'n', long = "count", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) n: u32,
    /// Later than this instant [default: now].
    #[arg(long, value_name = "INSTANT")]
    pub(crate) after: Option<String>,
}
