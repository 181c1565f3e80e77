//! Results that are used again: look at them, ask why one was not, drop them. Served by the DAG tracker.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::audit::Act;
use super::operation;
use super::run::{ADDRESS, example_run};
use super::task::example_task;
use crate::events::{Ingredients, MissCause};
use crate::ids::{CacheKey, RunId, TaskId, TaskRef, Timestamp};
use crate::operation::Spec;
use crate::view::CacheView;

pub(super) fn all() -> Vec<Spec> {
    vec![Spec::of::<List>(), Spec::of::<Explain>(), Spec::of::<Drop>(), Spec::of::<Find>()]
}

/// One result that is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CacheEntry {
    pub key: CacheKey,
    pub ingredients: Ingredients,
    /// Whose output it is.
    pub from: TaskRef,
    /// When it was computed or last used again.
    pub at: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "CacheListRequest")]
pub struct ListRequest {
    /// `module:qualname`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub function: Option<String>,
    #[serde(default = "hundred")]
    pub limit: u32,
}

fn hundred() -> u32 {
    100
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "CacheListReply")]
pub struct ListReply {
    /// Newest first.
    pub entries: Vec<CacheEntry>,
    /// How many matched and were cut off by the limit.
    pub cut: u64,
    /// Entries of all functions; above `entries_max` the oldest are dropped.
    pub entries_total: u64,
    pub entries_max: u64,
}

operation!(List {
    request: ListRequest,
    reply: ListReply,
    name: "cache.list",
    address: ADDRESS,
    role: View,
    durability: Call,
    doc: "Lists results that are kept under their content keys, newest first.",
    example: ListRequest { function: None, limit: 100 },
});

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "CacheExplainRequest")]
pub struct ExplainRequest {
    pub run: RunId,
    pub task: TaskId,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "CacheExplainReply")]
pub struct ExplainReply {
    /// Absent where no earlier result was to be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheView>,
    /// Sentences, each with the next command where there is one.
    pub findings: Vec<String>,
}

operation!(Explain {
    request: ExplainRequest,
    reply: ExplainReply,
    name: "cache.explain",
    address: ADDRESS,
    role: View,
    durability: Call,
    doc: "Says whether a step's result was used again, from where, or what differed.",
    example: ExplainRequest { run: example_run(), task: example_task() },
});

/// Exactly one of key, function and all is given.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "CacheDropRequest")]
pub struct DropRequest {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<CacheKey>,
    /// `module:qualname`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub function: Option<String>,
    #[serde(default)]
    pub all: bool,
    #[serde(default)]
    pub reason: String,
}

impl DropRequest {
    fn target(&self) -> String {
        match (&self.key, &self.function) {
            (Some(key), _) => format!("key {key}"),
            (None, Some(function)) => function.clone(),
            (None, None) if self.all => "all of it".to_owned(),
            (None, None) => "nothing".to_owned(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "CacheDropReply")]
pub struct DropReply {
    pub dropped: u64,
}

operation!(Drop {
    request: DropRequest,
    reply: DropReply,
    name: "cache.drop",
    address: ADDRESS,
    role: Operate,
    durability: Power,
    mutates: true,
    act: |request| Some(Act::on(request.target(), &request.reason)),
    doc: "Drops entries: their steps are computed the next time. No output is deleted.",
    example: DropRequest { function: Some("steps:load".into()), ..DropRequest::default() },
});

/// A step that is ready and whose result may exist already.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Lookup {
    /// The output to take over from the run that is repeated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recall: Option<TaskRef>,
    /// The content key, with what it is made of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keyed: Option<Keyed>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Keyed {
    pub key: CacheKey,
    pub ingredients: Ingredients,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FindRequest {
    pub lookups: Vec<Lookup>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FindReply {
    /// In the order of the request.
    pub found: Vec<Found>,
}

/// What the entries say. Whether the output is still stored, the artifact store knows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Found {
    /// The entry under the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entry: Option<TaskRef>,
    /// Without one: what differs from the nearest entry of the function.
    #[serde(default)]
    pub causes: Vec<MissCause>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nearest: Option<TaskRef>,
}

operation!(Find {
    request: FindRequest,
    reply: FindReply,
    name: "cache.find",
    address: ADDRESS,
    role: Service,
    durability: Call,
    doc: "Finds entries by their keys; the DAG tracker asks itself, because only a question reads rows.",
    example: FindRequest { lookups: Vec::new() },
});
