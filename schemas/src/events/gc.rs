//! Facts of the stale manager: what was collected, by which rule, and what became of it.
//!
//! ```text
//! gc.collected ─► moved into the trash: gc.moved{trashed} ─► grace over, quota, or asked: gc.purging ─► gc.moved{purged}
//!                   └─ gone or in use meanwhile: gc.moved{gone, kept, failed}   └─ gc.restoring ─► gc.restored
//! ```
//!
//! Whoever keeps rows of a thing hides them at `gc.collected`, shows them again at `gc.restored`, and deletes them at
//! `gc.erased`, which names them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Event;
use crate::error::Error;
use crate::ids::{Digest, EffectId, RunId, Seq, TaskId};
use crate::ops::gc::{Item, PassCause, Rule};
use crate::view::RunView;

/// It is time to look for what can be collected.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GcPassDue {
    pub pass: u64,
}
event!(GcPassDue, "gc.pass_due");

/// The record of a deletion: nothing known held this item when it was appended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GcCollected {
    pub item: Item,
    pub bytes: u64,
    pub rule: Rule,
    /// The rule in words, with its figures.
    pub why: String,
    /// What the item is, for people.
    pub what: String,
    /// What tells the thing that was looked at from one that took its name later.
    #[serde(default)]
    pub token: String,
    /// The collected runs that named it: with the last of them it is restored.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub of: Vec<RunId>,
    /// Of a run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<Box<CollectedRun>>,
    /// Who asked, in his words; empty for the kernel itself.
    #[serde(default)]
    pub reason: String,
}
event!(GcCollected, "gc.collected");

/// The head of a collected run, so that the rows of a list can be derived again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CollectedRun {
    /// The seq of `run.started`.
    pub started_seq: Seq,
    pub view: RunView,
}

/// What came of moving an item into the trash, or of purging it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GcMoved {
    pub item: Item,
    /// The effect that this ends.
    pub effect: EffectId,
    pub outcome: Moved,
}
event!(GcMoved, "gc.moved");

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Moved {
    Trashed,
    /// Its space is free.
    Purged {
        bytes: u64,
    },
    /// It was not there any more.
    Gone,
    /// It is not what was looked at, or somebody outside uses it.
    Kept {
        why: String,
    },
    Failed {
        error: Error,
    },
}

/// An item leaves the trash for good.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GcPurging {
    pub item: Item,
    pub rule: Rule,
    pub why: String,
    #[serde(default)]
    pub reason: String,
}
event!(GcPurging, "gc.purging");

/// An item is to go back to where it was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GcRestoring {
    pub item: Item,
    pub reason: String,
}
event!(GcRestoring, "gc.restoring");

/// It is back, or could not be brought back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GcRestored {
    pub item: Item,
    /// The effect that this ends.
    pub effect: EffectId,
    #[serde(default)]
    pub what: String,
    #[serde(default)]
    pub bytes: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<Box<CollectedRun>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Error>,
}
event!(GcRestored, "gc.restored");

/// Rows that are deleted: with a run that was purged, or records of deletions that were kept for long enough. Several of
/// these, if they are many.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GcErased {
    pub run: Option<RunId>,
    /// Of the DAG tracker's records of the run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub seqs: Vec<Seq>,
    /// Idempotency keys that led to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<String>,
    /// Tasks whose artifacts have rows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<TaskId>,
    /// The seqs by which its artifacts were ordered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub made: Vec<Seq>,
    /// Contents whose last name was one of these artifacts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub digests: Vec<Digest>,
    /// Records of deletions, the oldest there were.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub records: Vec<Seq>,
    /// Runs whose purge was one of those records: from now on they are not known to have existed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub runs: Vec<RunId>,
    /// What those records took.
    #[serde(default)]
    pub bytes: u64,
}
event!(GcErased, "gc.erased");

/// A pass is over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GcPassed {
    pub cause: PassCause,
    #[serde(default)]
    pub reason: String,
    /// The effect that this ends, of a pass that was due.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effect: Option<EffectId>,
    pub collected: u64,
    pub purged: u64,
    /// Given back to the disk.
    pub freed_bytes: u64,
    /// Rules hit them, and somebody holds them.
    pub held: u64,
    /// Everything that retention looks after, trash included, at the end.
    pub used_bytes: u64,
    pub findings: Vec<String>,
}
event!(GcPassed, "gc.passed");
