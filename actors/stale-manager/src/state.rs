//! The pure core of the stale manager.
//!
//! ```text
//! item   alive ──gc.collected──► moving ──moved: trashed──► trashed ──gc.purging──► purging ──moved: purged──► gone
//!          ▲                       │ kept, failed             │ │                       │ failed
//!          │                       ▼                          │ └───────────────────────┴─► trashed
//!          └──────────────── gc.restored ◄── restoring ◄──gc.restoring
//! pass   gc.pass_due ──survey, decisions, their effects──► gc.passed
//! ```
//!
//! Invariants: (1) `gc.collected` is decided only for an item that nothing known holds: not what the survey found, and
//! not what was appended since. (2) Exactly the items that are moving, restoring or purging have an effect outstanding,
//! and each pass that is due. (3) An item that is named again while it is in the trash is restored, by itself. (4) A
//! survey older than what is remembered is refused; it is taken again. With one survey an item is collected once. (5) A run comes back with what it alone
//! had named, or not yet: while any of that is still on its way into the trash, it waits. (6) What is to come back is not
//! purged.
//!
//! Memory holds unfinished runs, living workers, the newest names and what is in the trash, at most
//! [`TRASH_ITEMS_MAX`] items: the oldest are purged above that. What exists otherwise comes with a survey.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use eclosion_kernel::core::{AnyEvent, Core, Decision, Query, Reads};
use eclosion_kernel::journal::Record;
use eclosion_schemas::error::{Code, Error, Retry};
use eclosion_schemas::events::{
    ArtifactPinned, ArtifactTagged, ArtifactUnpinned, ArtifactUntagged, CollectedRun, EnvironmentFailed,
    EnvironmentReady, EnvironmentRequested, Event, GcCollected, GcErased, GcMoved, GcPassDue, GcPassed,
    GcPurging, GcRestored, GcRestoring, Moved, RunFinished, RunStarted, StepCommitted, StepReused,
    WorkerDied, WorkerRequested,
};
use eclosion_schemas::ops::gc::{
    Item, ItemKind, LogRequest, PlanReply, PurgeRequest, RestoreReply, RestoreRequest, Rule,
};
use eclosion_schemas::{Digest, EffectId, EnvironmentId, ItemId, RunId, Seq, TaskId, Timestamp, WorkerId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::options::RetentionOptions;
use crate::survey::Survey;
use crate::{plan, rows, view};

mod decide;
mod fold;

/// In the trash at a time.
pub const TRASH_ITEMS_MAX: usize = 32_768;
/// Names remembered that may be newer than a survey, and items.
const RECENT_MAX: usize = 16_384;
/// After a start, before the first pass by itself.
const FIRST_PASS_MS: u64 = 60_000;
/// Items decided together: so many records in one append.
pub(crate) const DECIDED_MAX: usize = 256;
/// Records of deletions that one record erases: ids of runs and seqs, well below what a record may hold.
const ERASED_MAX: usize = 1024;

/// See the head of this file.
#[derive(Debug, Clone)]
pub struct Stale {
    pub options: RetentionOptions,
}

/// What of the next items of a plan is to be done.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
pub struct CollectRequest {
    pub survey: Arc<Survey>,
    pub only: Option<ItemKind>,
    /// Nothing else, if it names any.
    pub items: Arc<BTreeSet<Item>>,
    pub reason: String,
    /// Nothing is decided.
    pub dry_run: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct CollectReply {
    pub plan: PlanReply,
    /// Items decided by this.
    pub decided: u64,
    /// Items that are on their way.
    pub busy: u64,
    pub tally: Tally,
}

/// What came of effects since the first record; differences of two of these tell of a pass.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Tally {
    pub collected: u64,
    pub trashed_bytes: u64,
    pub purged: u64,
    pub freed_bytes: u64,
    pub failed: u64,
}

impl Tally {
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            collected: self.collected - earlier.collected,
            trashed_bytes: self.trashed_bytes - earlier.trashed_bytes,
            purged: self.purged - earlier.purged,
            freed_bytes: self.freed_bytes - earlier.freed_bytes,
            failed: self.failed - earlier.failed,
        }
    }
}

/// What became of one effect.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Done {
    pub effect: EffectId,
    pub item: Item,
    pub outcome: Outcome,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// `erased` with a run that was purged.
    Moved {
        moved: Moved,
        erased: Vec<GcErased>,
    },
    Restored {
        error: Option<Error>,
    },
}

#[derive(Debug, Clone)]
pub enum Command {
    Collect(CollectRequest),
    Done(Vec<Done>),
    Restore(RestoreRequest),
    Purge(PurgeRequest),
    Passed(GcPassed),
    Busy,
    Trash,
    Log(LogRequest),
    Policy,
}

/// What it owes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Look, decide, follow.
    Pass,
    Trash {
        item: Item,
        token: String,
        place: String,
    },
    Restore {
        item: Item,
        place: String,
    },
    Purge {
        item: Item,
        place: String,
    },
}

/// Everything that follows from the records.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// Unfinished, and the environment that each needs.
    pub(crate) runs: BTreeMap<RunId, EnvironmentId>,
    /// Who holds artifacts of a run: pins by artifact and holder, tags by what they are of.
    pub(crate) labels: BTreeMap<RunId, BTreeSet<Label>>,
    /// Where each tag leads.
    pub(crate) tags: BTreeMap<(String, String), RunId>,
    /// Alive, or asked for.
    pub(crate) workers: BTreeMap<WorkerId, EnvironmentId>,
    /// Being made; where they will be is not known yet.
    pub(crate) building: BTreeSet<EnvironmentId>,
    /// Where the environments that are in use are, and when each was made ready or got a worker last.
    pub(crate) environments: BTreeMap<EnvironmentId, Place>,
    pub(crate) recent: Recent,
    pub(crate) kept: BTreeMap<Item, Kept>,
    /// Of those, the ones that are in the trash, oldest first.
    pub(crate) trashed: BTreeSet<(Timestamp, Item)>,
    pub(crate) trash_bytes: u64,
    /// In the trash, and named again.
    pub(crate) wanted: BTreeSet<Item>,
    pub(crate) tally: Tally,
    /// Records of deletions up to here are erased.
    pub(crate) forgotten: Seq,
    pub(crate) passes: u64,
    pub(crate) due: Option<EffectId>,
    pub(crate) last_pass: Option<Timestamp>,
    pub(crate) findings: Vec<String>,
    outstanding: BTreeMap<EffectId, Effect>,
}

/// What keeps a run because of one of its artifacts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Label {
    Pin { task: TaskId, holder: String },
    Tag { path: String, tag: String },
}

#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) python: String,
    pub(crate) used: Timestamp,
}

/// An item that was collected and is not gone.
#[derive(Debug, Clone)]
pub(crate) struct Kept {
    pub(crate) phase: Phase,
    pub(crate) since: Timestamp,
    pub(crate) bytes: u64,
    pub(crate) rule: Rule,
    pub(crate) what: String,
    pub(crate) of: Vec<RunId>,
    pub(crate) run: Option<Box<CollectedRun>>,
    /// Its name in the trash: the effect that moved it there.
    pub(crate) place: EffectId,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Moving,
    Trashed,
    Restoring,
    Purging,
}

/// What a survey may not have seen: the newest names of contents, and items that were collected and are not any more.
#[derive(Debug, Clone, Default)]
pub(crate) struct Recent {
    by_digest: BTreeMap<Digest, (Seq, RunId)>,
    by_seq: BTreeSet<(Seq, Digest)>,
    left: BTreeMap<Item, Seq>,
    left_by_seq: BTreeSet<(Seq, Item)>,
    /// What was up to here is forgotten.
    pub(crate) floor: Seq,
}

impl Recent {
    pub(crate) fn add(&mut self, digest: &Digest, seq: Seq, run: &RunId) {
        if let Some((earlier, _)) = self.by_digest.insert(digest.clone(), (seq, run.clone())) {
            self.by_seq.remove(&(earlier, digest.clone()));
        }
        self.by_seq.insert((seq, digest.clone()));
        while self.by_seq.len() > RECENT_MAX {
            let Some((seq, digest)) = self.by_seq.pop_first() else { return };
            self.by_digest.remove(&digest);
            self.floor = self.floor.max(seq);
        }
    }

    /// It is gone, or where it was before: a survey of earlier says nothing about it.
    pub(crate) fn leave(&mut self, item: &Item, seq: Seq) {
        if let Some(earlier) = self.left.insert(item.clone(), seq) {
            self.left_by_seq.remove(&(earlier, item.clone()));
        }
        self.left_by_seq.insert((seq, item.clone()));
        while self.left_by_seq.len() > RECENT_MAX {
            let Some((seq, item)) = self.left_by_seq.pop_first() else { return };
            self.left.remove(&item);
            self.floor = self.floor.max(seq);
        }
    }

    pub(crate) fn has_left_after(&self, item: &Item, as_of: Seq) -> bool {
        self.left.get(item).is_some_and(|seq| *seq > as_of)
    }

    /// The run that named it after `as_of`.
    pub(crate) fn named_after(&self, digest: &str, as_of: Seq) -> Option<&RunId> {
        let digest = Digest::new(digest).ok()?;
        self.by_digest.get(&digest).filter(|(seq, _)| *seq > as_of).map(|(_, run)| run)
    }
}

/// When this incarnation first looked at the clock.
#[derive(Debug, Default)]
pub struct Begun(Option<Timestamp>);

impl State {
    /// Whether this run is in the trash: what only it names may follow.
    pub(crate) fn is_collected(&self, run: &RunId) -> bool {
        item_of_run(run)
            .and_then(|item| self.kept.get(&item))
            .is_some_and(|kept| kept.phase != Phase::Restoring)
    }

    /// It, or a run that it is in the trash with, was named again.
    pub(crate) fn comes_back(&self, item: &Item) -> bool {
        let of = self.kept.get(item).into_iter().flat_map(|kept| kept.of.iter().filter_map(item_of_run));
        self.wanted.contains(item) || of.into_iter().any(|run| self.wanted.contains(&run))
    }

    /// Items on their way.
    pub(crate) fn busy(&self) -> u64 {
        (self.outstanding.len() - usize::from(self.due.is_some())) as u64
    }

    #[must_use]
    pub fn findings(&self) -> &[String] {
        &self.findings
    }
}

pub(crate) fn item_of_run(run: &RunId) -> Option<Item> {
    Some(Item::new(ItemKind::Run, ItemId::new(run.as_str()).ok()?))
}

impl Core for Stale {
    type State = State;
    type Volatile = Begun;
    type Command = Command;
    type Effect = Effect;

    const DECIDES: &'static [&'static str] = &[
        GcPassDue::KIND,
        GcCollected::KIND,
        GcMoved::KIND,
        GcPurging::KIND,
        GcRestoring::KIND,
        GcRestored::KIND,
        GcErased::KIND,
        GcPassed::KIND,
    ];
    const FOLDS: &'static [&'static str] = &[
        GcPassDue::KIND,
        GcCollected::KIND,
        GcMoved::KIND,
        GcPurging::KIND,
        GcRestoring::KIND,
        GcRestored::KIND,
        GcErased::KIND,
        GcPassed::KIND,
        RunStarted::KIND,
        RunFinished::KIND,
        StepCommitted::KIND,
        StepReused::KIND,
        WorkerRequested::KIND,
        WorkerDied::KIND,
        EnvironmentRequested::KIND,
        EnvironmentReady::KIND,
        EnvironmentFailed::KIND,
        ArtifactPinned::KIND,
        ArtifactUnpinned::KIND,
        ArtifactTagged::KIND,
        ArtifactUntagged::KIND,
    ];

    fn queries(&self, command: &Command) -> Vec<Query> {
        match command {
            Command::Log(request) => vec![rows::newest(request.limit)],
            _ => Vec::new(),
        }
    }

    fn decide(
        &self,
        state: &State,
        begun: &mut Begun,
        reads: &Reads,
        command: &Command,
        now: Timestamp,
    ) -> Result<Decision, Error> {
        match command {
            Command::Collect(request) => decide::collect(&self.options, state, request, now),
            Command::Done(done) => Ok(decide::done(state, done)),
            Command::Restore(request) => decide::restore(state, request),
            Command::Purge(request) => decide::purge(state, request),
            Command::Passed(passed) => Ok(Decision::reply(()).event(passed.clone())),
            Command::Busy => Ok(Decision::reply((state.busy(), state.tally))),
            Command::Trash => Ok(Decision::reply(view::trash(&self.options, state))),
            Command::Log(request) => Ok(Decision::reply(rows::log(reads, request.limit))),
            Command::Policy => {
                let next = next_pass(&self.options, state, begun);
                Ok(Decision::reply(view::policy(&self.options, state, next)))
            }
        }
    }

    fn settle(&self, state: &State, begun: &mut Begun, _: &Reads, now: Timestamp) -> Vec<AnyEvent> {
        begun.0.get_or_insert(now);
        let mut due = decide::named_again(state);
        if state.due.is_none() && next_pass(&self.options, state, begun).is_some_and(|next| now >= next) {
            due.push(GcPassDue { pass: state.passes + 1 }.into());
        }
        due
    }

    fn apply(&self, state: &mut State, record: &Record) {
        fold::apply(state, record);
    }

    fn outstanding<'a>(&self, state: &'a State) -> &'a BTreeMap<EffectId, Effect> {
        &state.outstanding
    }

    fn wake_at(&self, state: &State, begun: &Begun) -> Option<Timestamp> {
        if state.due.is_some() { None } else { next_pass(&self.options, state, begun) }
    }

    fn digest(&self, state: &State) -> String {
        format!("{state:?}")
    }
}

/// An interval after the last one, and not in the first minute of an incarnation: others are starting then.
fn next_pass(options: &RetentionOptions, state: &State, begun: &Begun) -> Option<Timestamp> {
    if options.interval_ms == 0 {
        return None;
    }
    let begun = begun.0?.plus_ms(FIRST_PASS_MS.min(options.interval_ms));
    Some(state.last_pass.map_or(begun, |last| last.plus_ms(options.interval_ms).max(begun)))
}

#[cfg(test)]
mod tests;
