//! The pure core of the scheduler.
//!
//! ```text
//! schedule:  schedule.set ──► active ◄──resumed── paused       no instant is left ──► done       removed ──► gone
//! tick:      due ──► tick.fired ──run.started (fold)──► running ──run.finished (fold)──► tick.ended
//!             │          └── refused, or answered if it is a call ───────────────────────────▲
//!             ├──► tick.queued ──the earlier one ended──► tick.fired
//!             └──► tick.skipped (missed, overlap, queue_full, superseded, paused, replaced)
//! ```
//!
//! Invariants: (1) Every instant of a schedule that is due is named by one `tick.fired` or one `tick.skipped`, alone or in a
//! row; no instant by two. (2) `through` only grows: a clock that is put back fires nothing again. (3) A tick's name,
//! schedule and instant, is the idempotency key of what it starts: a kernel that dies between deciding and starting starts
//! it once. (4) What waits and what runs is bounded by the overlap policy. (5) A step looks at the schedules that are due
//! and at no other: they are found by their next instant.
//!
//! A run's start and end are folded from the DAG tracker's own records, found by the key; what a call was answered comes
//! back as a command. It deliberately keeps no past ticks: they are rows (`rows.rs`), the latest of each schedule.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use eclosion_kernel::core::{AnyEvent, Core, Decision, Query, Reads};
use eclosion_kernel::journal::Record;
use eclosion_schemas::error::Error;
use eclosion_schemas::events::schedule::{
    SchedulePaused, ScheduleRemoved, ScheduleResumed, ScheduleSet, TickCancelling, TickEnded, TickFired,
    TickQueued, TickSkipped,
};
use eclosion_schemas::events::{Event, RunFinished, RunStarted};
use eclosion_schemas::ops::schedule::{
    ActRequest, HistoryRequest, ListRequest, NameRequest, NextRequest, SetRequest, TriggerRequest,
};
use eclosion_schemas::schedule::{Overlap, ScheduleSpec, ScheduleState, TickState, TickView};
use eclosion_schemas::{EffectId, Role, RunId, ScheduleName, Timestamp};

use crate::trigger::{Plan, Zones};

mod decide;
mod due;
mod fold;

/// Schedules there may be.
pub const SCHEDULES_MAX: usize = 100_000;
/// Schedules that one step looks at; the rest follows in the next.
const SCHEDULES_STEP_MAX: usize = 512;
/// Ticks of one schedule that one step decides.
const TICKS_STEP_MAX: usize = 64;
/// Keys of requests to fire that are remembered for each schedule.
const TRIGGER_KEYS_MAX: usize = 16;

/// The core; everything it knows is in [`State`], and the zones are part of the program.
#[derive(Debug, Clone, Default)]
pub struct Scheduler {
    pub zones: Zones,
}

#[derive(Debug, Clone)]
pub enum Command {
    /// With the rights of who asks.
    Set(Box<SetRequest>, Role),
    Get(NameRequest),
    List(ListRequest),
    Pause(ActRequest),
    Resume(ActRequest),
    Trigger(TriggerRequest),
    Remove(ActRequest),
    Next(Box<NextRequest>),
    History(HistoryRequest),
    /// What came of a start.
    Answered(Box<Answered>),
}

/// What came of the start of a tick, for as long as it still waits for that.
#[derive(Debug, Clone)]
pub struct Answered {
    pub name: ScheduleName,
    pub n: u64,
    pub key: String,
    pub outcome: Result<Answer, Error>,
}

#[derive(Debug, Clone)]
pub enum Answer {
    Run(RunId),
    Reply(serde_json::Value),
}

/// What it owes.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Start the action of the specification under this key; answered by `run.started` with the key, or by `tick.ended`.
    Start { name: ScheduleName, n: u64, key: String, spec: Arc<ScheduleSpec>, role: Role },
    /// Cancel a run for a later tick's sake; answered by `run.finished`.
    Cancel { run: RunId, name: ScheduleName },
}

#[derive(Debug, Clone, Default)]
pub struct State {
    pub(crate) schedules: BTreeMap<ScheduleName, Schedule>,
    pub(crate) index: Index,
}

/// Ways into the schedules, each kept by the function that changes what it points to.
#[derive(Debug, Clone, Default)]
pub(crate) struct Index {
    pub outstanding: BTreeMap<EffectId, Effect>,
    /// When the next tick of each active schedule fires.
    pub due: BTreeSet<(Timestamp, ScheduleName)>,
    /// Something ended, or waits and may fire.
    pub attention: BTreeSet<ScheduleName>,
    /// Ticks whose run has not started, by their keys.
    pub starting: BTreeMap<String, (ScheduleName, u64)>,
    pub runs: BTreeMap<RunId, (ScheduleName, u64)>,
}

#[derive(Debug, Clone)]
pub(crate) struct Schedule {
    pub spec: Arc<ScheduleSpec>,
    pub plan: Plan,
    pub role: Role,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    /// Since when, and why.
    pub paused: Option<(Timestamp, String)>,
    /// Every instant up to here was fired or skipped, or waits in `queue`.
    pub through: Timestamp,
    /// The first instant behind `through`.
    pub next: Option<crate::trigger::Due>,
    /// Where it stands in [`Index::due`].
    indexed: Option<Timestamp>,
    /// The number of the next tick.
    pub numbers: u64,
    pub live: BTreeMap<u64, Live>,
    pub queue: VecDeque<TickView>,
    /// The last that was skipped or has ended.
    pub last: Option<TickView>,
    pub counts: BTreeMap<TickState, u64>,
    /// The instant of the last tick that was triggered.
    pub last_manual: Option<Timestamp>,
    /// Of requests to fire, with the tick that each got.
    pub trigger_keys: VecDeque<(String, u64)>,
}

/// A tick that has fired.
#[derive(Debug, Clone)]
pub(crate) struct Live {
    pub tick: TickView,
    /// The start or the cancellation that is owed.
    pub effect: Option<EffectId>,
    pub cancelling: bool,
    /// How its run ended, until `tick.ended` says so.
    pub ended: Option<(TickState, Option<Error>)>,
}

impl Schedule {
    pub(crate) fn state(&self) -> ScheduleState {
        match (&self.paused, &self.next) {
            (Some(_), _) => ScheduleState::Paused,
            (None, None) if self.live.is_empty() && self.queue.is_empty() => ScheduleState::Done,
            (None, _) => ScheduleState::Active,
        }
    }

    pub(crate) fn live_max(&self) -> usize {
        match self.plan.overlap {
            Overlap::Allow { max } => max as usize,
            Overlap::Skip {} | Overlap::Queue { .. } | Overlap::CancelPrevious {} => 1,
        }
    }

    /// Whether a step would decide something although no instant has come.
    fn needs_attention(&self) -> bool {
        let cancels = matches!(self.plan.overlap, Overlap::CancelPrevious {});
        let moves =
            self.live.len() < self.live_max() || cancels && self.live.values().any(|live| !live.cancelling);
        self.live.values().any(|live| live.ended.is_some())
            || self.paused.is_none() && !self.queue.is_empty() && moves
    }
}

impl State {
    pub(crate) fn schedule(&self, name: &ScheduleName) -> Option<&Schedule> {
        self.schedules.get(name)
    }

    /// How many schedules there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.schedules.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.schedules.is_empty()
    }
}

impl Core for Scheduler {
    type State = State;
    type Volatile = ();
    type Command = Command;
    type Effect = Effect;

    const DECIDES: &'static [&'static str] = &[
        ScheduleSet::KIND,
        SchedulePaused::KIND,
        ScheduleResumed::KIND,
        ScheduleRemoved::KIND,
        TickFired::KIND,
        TickQueued::KIND,
        TickSkipped::KIND,
        TickCancelling::KIND,
        TickEnded::KIND,
    ];
    const FOLDS: &'static [&'static str] = &[
        ScheduleSet::KIND,
        SchedulePaused::KIND,
        ScheduleResumed::KIND,
        ScheduleRemoved::KIND,
        TickFired::KIND,
        TickQueued::KIND,
        TickSkipped::KIND,
        TickCancelling::KIND,
        TickEnded::KIND,
        RunStarted::KIND,
        RunFinished::KIND,
    ];

    fn queries(&self, command: &Command) -> Vec<Query> {
        match command {
            Command::History(request) => vec![crate::rows::history(&request.name)],
            _ => Vec::new(),
        }
    }

    fn decide(
        &self,
        state: &State,
        (): &mut (),
        reads: &Reads,
        command: &Command,
        now: Timestamp,
    ) -> Result<Decision, Error> {
        decide::decide(&self.zones, state, reads, command, now)
    }

    fn settle(&self, state: &State, (): &mut (), _: &Reads, now: Timestamp) -> Vec<AnyEvent> {
        due::settle(state, now)
    }

    fn apply(&self, state: &mut State, record: &Record) {
        fold::apply(&self.zones, state, record);
    }

    fn outstanding<'a>(&self, state: &'a State) -> &'a BTreeMap<EffectId, Effect> {
        &state.index.outstanding
    }

    fn wake_at(&self, state: &State, (): &()) -> Option<Timestamp> {
        state.index.due.first().map(|(at, _)| *at)
    }

    fn digest(&self, state: &State) -> String {
        format!("{state:#?}")
    }
}

#[cfg(test)]
mod tests;
