//! The pure core of the DAG tracker: what runs there are, what is wished for, what is due.
//!
//! ```text
//! task instance   Waiting ──all needs succeeded──► Ready ──attempt.started──► Running ──step.committed──► Succeeded
//!   (run.rs:       │                                ▲ ▲                         │ │
//!    `enter`)      │ a need failed,                 │ └─ step.ready ─ Backoff ◄─┘ │ step.failed, retries left
//!                  ▼ or cancelled                   └──── worker.died, < 3 lost ──┤   (attempt.refused: Failed)
//!               Skipped                                Failed, Cancelled ◄────────┘ otherwise
//! run             Running ──run.cancelling──► Cancelling;  both ──every instance final, run.finished──► final
//! ```
//!
//! Invariants:
//! 1. At most one `step.committed` for a task, and only under the fence of its running attempt (P-EXEC-2).
//! 2. Nothing of a run starts or commits after its `run.cancelling` (P-EXEC-6).
//! 3. A task is wished for only when everything that it needs has succeeded (P-EXEC-7). Exactly the instances in
//!    `Ready` have a `Dispatch` outstanding, or a `Look` for an earlier result: `step.reused` makes them `Succeeded`
//!    without an attempt, `step.missed` wishes for one.
//! 4. Every run ends: an instance that is not final waits for others, for a timer, or for the answer to its wish.
//! 5. An event costs what it changes, whatever the size of its run: needs are counted for tasks, not for instances.
//!
//! Reading order: `run` (a run and the one function that moves an instance between states), `progress` (what follows
//! from an outcome), `wish` (arguments), `reuse` (earlier results), `rerun` (a finished
//! run once more), `fan_out` (lists into instances), `fold` (records), `decide` (commands).
//!
//! It deliberately keeps no large values: an output's parts are names, and the outputs of a run are dropped when it
//! has finished. Finished runs stay until [`FINISHED_RUNS_MAX`] newer ones have finished; then [`crate::rows`] has them.

#![deny(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "no clock, no chance, no order out of a hash"
)]

mod admission;
mod decide;
mod fan_out;
mod fold;
mod progress;
mod rerun;
mod reuse;
mod run;
mod wish;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;

use eclosion_kernel::core::{AnyEvent, Core, Decision, Query, Reads};
use eclosion_kernel::journal::Record;
use eclosion_schemas::events::{
    AttemptRefused, AttemptStarted, AttemptStopped, CacheDropped, EnvironmentFailed, EnvironmentReady, Event,
    GcCollected, RunCancelling, RunFinished, RunStarted, StepCommitted, StepFailed, StepMissed, StepReady,
    StepReused, WorkerDied,
};
use eclosion_schemas::ops::cache::{self as cache_ops, DropRequest, ExplainRequest, FindRequest, Lookup};
use eclosion_schemas::ops::pool::Wish;
use eclosion_schemas::ops::rerun::RerunRequest;
use eclosion_schemas::ops::run::{
    CancelRequest, ListRequest, RunRequest, StartRequest, ValidateRequest, WhyRequest,
};
use eclosion_schemas::ops::task::{BodyRequest, CommitRequest, FailRequest};
use eclosion_schemas::{EffectId, EnvironmentId, Error, Fence, RunId, Seq, TaskId, Timestamp};

pub(crate) use fold::{Fold, apply as fold_record};
pub use reuse::{Answer, Outcome};
pub(crate) use run::{Group, Instance, Phase, Run, Slot};

use crate::cache::Entries;

/// Finished runs in memory; older ones are rows.
pub const FINISHED_RUNS_MAX: usize = 256;
/// Task instances of finished runs in memory; the newest finished run always stays.
pub const FINISHED_INSTANCES_MAX: usize = 16_384;
/// Runs that have not finished, unless something else is set.
pub const UNFINISHED_RUNS_MAX: usize = 1_024;
/// Workers that may be lost under a task before it is quarantined (P-EXEC-5).
pub const LOST_WORKERS_MAX: u32 = 3;
/// Of the error of a task that has killed so many, and of those that refuse what is equal to it.
pub(crate) const QUARANTINED: &str = "task.quarantined";
/// Withdrawals kept for a pool manager that has not heard of them; it folds `run.cancelling` as well.
const WITHDRAWALS_MAX: usize = 64;
/// Records whose changes [`crate::view::changed`] can name one by one.
const TOUCHED_RECORDS_MAX: usize = 256;
/// Due things that are decided in one step; the rest follows in the next.
const DUE_MAX: usize = 1_024;

/// The core; everything it knows is in [`State`].
#[derive(Debug, Clone, Copy)]
pub struct DagTracker {
    /// Runs that have not finished; one more is refused, and told when to come again.
    pub unfinished_max: usize,
}

impl Default for DagTracker {
    fn default() -> Self {
        Self { unfinished_max: UNFINISHED_RUNS_MAX }
    }
}

/// What it is asked. The replies are those of the operations.
#[derive(Debug, Clone)]
pub enum Command {
    /// And the trace that it belongs to.
    Start(Box<StartRequest>, Option<String>),
    Validate(Box<ValidateRequest>),
    Get(RunRequest),
    List(ListRequest),
    Cancel(CancelRequest),
    Why(WhyRequest),
    Commit(Box<CommitRequest>),
    Fail(Box<FailRequest>),
    Body(BodyRequest),
    Rerun(Box<RerunRequest>, Option<String>),
    Recorded(RunRequest),
    Find(FindRequest),
    ListCache(cache_ops::ListRequest),
    Explain(ExplainRequest),
    Drop(DropRequest),
    /// What came of looks: its own, and no operation.
    Looked(Vec<Answer>),
}

/// What it owes.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Ask the pool manager for an attempt; answered by `attempt.started{wish}`.
    Dispatch(Box<Wish>),
    /// Tell the pool manager that these wishes are taken back.
    Withdraw { wishes: Vec<EffectId> },
    /// Look for an earlier result of a step that is ready; answered by `step.reused` or `step.missed`.
    Look(Box<Look>),
}

/// A step that is ready, and what it may take.
#[derive(Debug, Clone, PartialEq)]
pub struct Look {
    pub run: RunId,
    pub task: TaskId,
    pub lookup: Lookup,
}

/// See the head of this file.
#[derive(Debug, Clone, Default)]
pub struct State {
    pub(crate) runs: BTreeMap<RunId, Run>,
    pub(crate) index: Index,
    /// What the cache keeps, in order; the entries are rows.
    pub(crate) entries: Entries,
}

/// Ways into the runs, each kept by the function that changes what it points to.
#[derive(Debug, Clone, Default)]
pub(crate) struct Index {
    pub outstanding: BTreeMap<EffectId, Effect>,
    /// Attempts that may still commit.
    pub attempts: BTreeMap<Fence, (RunId, Slot)>,
    /// Ends of time-outs and of backoffs.
    pub due: BTreeSet<(Timestamp, RunId, Slot)>,
    /// Every task is final and `run.finished` is not decided.
    pub ending: BTreeSet<RunId>,
    /// Unfinished, not cancelling.
    pub by_content: BTreeMap<String, RunId>,
    /// Idempotency keys of the runs in memory.
    pub by_key: BTreeMap<String, RunId>,
    /// Unfinished.
    pub by_environment: BTreeMap<EnvironmentId, BTreeSet<RunId>>,
    /// Every run in memory, in the order of a list.
    pub started: BTreeMap<Seq, RunId>,
    /// In the order in which they finished.
    pub finished: VecDeque<RunId>,
    pub finished_instances: usize,
    pub withdrawals: VecDeque<EffectId>,
    pub touched: Touched,
}

/// What a record changed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Touch {
    /// The run's head.
    Head(RunId),
    Task(RunId, Slot),
    /// The head and every task.
    All(RunId),
    Gone(Gone),
}

/// What is in memory no more: a run, or the stand-in of a fan-out whose list has become known.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gone {
    pub run: RunId,
    pub tasks: Vec<TaskId>,
    /// The run has left the memory as a whole.
    pub head: bool,
}

/// The changes of the newest records. For readers alone: nothing is decided by it and the digest leaves it out.
#[derive(Clone, Default)]
pub(crate) struct Touched(pub VecDeque<(Seq, BTreeSet<Touch>)>);

impl fmt::Debug for Touched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Touched")
    }
}

impl Touched {
    fn begin(&mut self, seq: Seq) {
        if self.0.len() == TOUCHED_RECORDS_MAX {
            self.0.pop_front();
        }
        self.0.push_back((seq, BTreeSet::new()));
    }

    fn add(&mut self, touch: Touch) {
        if let Some((_, touches)) = self.0.back_mut() {
            touches.insert(touch);
        }
    }

    /// `None`: too long ago.
    pub(crate) fn by(&self, seq: Seq) -> Option<&BTreeSet<Touch>> {
        let at = self.0.binary_search_by_key(&seq, |(seq, _)| *seq).ok()?;
        self.0.get(at).map(|(_, touches)| touches)
    }
}

impl State {
    pub(crate) fn run(&self, run: &RunId) -> Option<&Run> {
        self.runs.get(run)
    }

    /// Runs that have not finished.
    #[must_use]
    pub fn unfinished(&self) -> usize {
        self.runs.len() - self.index.finished.len()
    }

    /// The ids of the runs in memory, in the order in which they started.
    pub fn run_ids(&self) -> impl DoubleEndedIterator<Item = &RunId> {
        self.index.started.values()
    }
}

impl Core for DagTracker {
    type State = State;
    type Volatile = ();
    type Command = Command;
    type Effect = Effect;

    const DECIDES: &'static [&'static str] = &[
        RunStarted::KIND,
        RunCancelling::KIND,
        RunFinished::KIND,
        StepCommitted::KIND,
        StepFailed::KIND,
        StepReady::KIND,
        StepReused::KIND,
        StepMissed::KIND,
        CacheDropped::KIND,
    ];
    const FOLDS: &'static [&'static str] = &[
        RunStarted::KIND,
        RunCancelling::KIND,
        RunFinished::KIND,
        StepCommitted::KIND,
        StepFailed::KIND,
        StepReady::KIND,
        StepReused::KIND,
        StepMissed::KIND,
        CacheDropped::KIND,
        AttemptStarted::KIND,
        AttemptStopped::KIND,
        AttemptRefused::KIND,
        WorkerDied::KIND,
        EnvironmentFailed::KIND,
        EnvironmentReady::KIND,
        GcCollected::KIND,
    ];

    fn queries(&self, command: &Command) -> Vec<Query> {
        crate::rows::queries(command)
    }

    fn decide(
        &self,
        state: &State,
        _volatile: &mut (),
        reads: &Reads,
        command: &Command,
        now: Timestamp,
    ) -> Result<Decision, Error> {
        decide::decide(&admission::Door { unfinished_max: self.unfinished_max, now }, state, reads, command)
    }

    fn settle(&self, state: &State, _volatile: &mut (), _reads: &Reads, now: Timestamp) -> Vec<AnyEvent> {
        decide::due(state, now)
    }

    fn apply(&self, state: &mut State, record: &Record) {
        fold::apply(state, record);
    }

    fn outstanding<'a>(&self, state: &'a State) -> &'a BTreeMap<EffectId, Effect> {
        &state.index.outstanding
    }

    fn wake_at(&self, state: &State, _volatile: &()) -> Option<Timestamp> {
        state.index.due.first().map(|(at, _, _)| *at)
    }

    fn digest(&self, state: &State) -> String {
        format!("{state:#?}")
    }
}

#[cfg(test)]
mod tests;
