//! Results that are used again: what makes two steps equal, what was found, what was not and why.
//!
//! An entry of the cache is derived from the `step.committed` or `step.reused` that carries a [`CacheNote`]; the newest
//! record under a key is the entry. It names whose output it is and holds no output itself.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Event, event};
use crate::ids::{CacheKey, EnvironmentId, RunId, Seq, TaskId, TaskRef};
use crate::payload::Payload;

/// What a step's result depends on. The key is made of it; a miss is explained by comparing it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Ingredients {
    /// `module:qualname`.
    pub function: String,
    /// The text of `cache`.
    pub version: String,
    pub code_hash: String,
    pub environment: EnvironmentId,
    /// A short hash of each argument's content; of many arguments, the last stand together under `…`.
    pub arguments: BTreeMap<String, String>,
    /// The task's own, where one was set and counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
}

/// Makes the record that carries it an entry of the cache.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CacheNote {
    pub key: CacheKey,
    pub ingredients: Ingredients,
    /// The record whose entry this one takes the place of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaces: Option<Seq>,
}

/// Why a result that was to be kept is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Unkept {
    /// The files of its code were written while its worker had them: nobody can say what it was computed by.
    CodeChanged,
    /// Nobody could read them when the result was there.
    CodeUnseen,
}

/// Why a result could not be used again.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "tag", rename_all = "snake_case")]
pub enum MissCause {
    /// Nothing of this function is kept.
    #[schemars(title = "MissNoEntry")]
    NoEntry,
    #[schemars(title = "MissVersion")]
    Version { was: String },
    #[schemars(title = "MissCode")]
    Code,
    #[schemars(title = "MissEnvironment")]
    Environment,
    #[schemars(title = "MissArgument")]
    Argument { name: String },
    #[schemars(title = "MissSeed")]
    Seed,
    /// The key is known, and the output is not stored any more.
    #[schemars(title = "MissCollected")]
    Collected,
    /// The run that is repeated has no result of it, or it is not stored any more.
    #[schemars(title = "MissNotCommitted")]
    NotCommitted,
}

/// A task has its result without an attempt: no worker had it in hand, and no fence was given out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StepReused {
    pub run: RunId,
    pub task: TaskId,
    pub output: Payload,
    /// Whose output it is.
    pub from: TaskRef,
    /// It was taken over from the run that this one repeats; otherwise it was found under its content key.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_taken: bool,
    /// This record is the entry from now on: what is used does not grow old.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<Box<CacheNote>>,
}
event!(StepReused, "step.reused");

/// A result was looked for and is not there: the task is computed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StepMissed {
    pub run: RunId,
    pub task: TaskId,
    pub causes: Vec<MissCause>,
    /// The entry that came nearest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nearest: Option<TaskRef>,
}
event!(StepMissed, "step.missed");

/// Entries of the cache that are no more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CacheDropped {
    pub entries: Vec<DroppedEntry>,
    pub reason: String,
}
event!(CacheDropped, "cache.dropped");

/// One of them, with all that its rows are found by.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DroppedEntry {
    pub key: CacheKey,
    pub function: String,
    pub seq: Seq,
}

/// Which run a run repeats, and what of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RerunOf {
    pub run: RunId,
    /// Tasks or instances that were named: they are computed, whatever is stored.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<TaskId>,
    /// Tasks whose committed results are taken over, as far as they are still stored.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub taken: Vec<String>,
}
