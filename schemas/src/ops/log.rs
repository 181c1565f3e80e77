//! The output of attempts, as recorded ranges of their worker's files.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::operation;
use super::run::example_run;
use crate::ids::{Attempt, RunId, TaskId};
use crate::operation::Spec;

pub const ADDRESS: &str = "/logs";

pub(super) fn all() -> Vec<Spec> {
    vec![Spec::of::<Read>()]
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "LogReadRequest")]
pub struct ReadRequest {
    pub run: RunId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<Attempt>,
    /// Goes on until the run ends.
    #[serde(default)]
    pub follow: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Line {
    pub task: TaskId,
    pub attempt: Attempt,
    /// `stdout` or `stderr`.
    pub stream: String,
    pub text: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "LogReadReply")]
pub struct ReadReply {
    pub lines: u64,
}

operation!(Read {
    request: ReadRequest,
    reply: ReadReply,
    item: Line,
    name: "log.read",
    address: ADDRESS,
    role: View,
    durability: Call,
    doc: "Reads what the attempts of a run printed.",
    example: ReadRequest { run: example_run(), task: None, attempt: None, follow: false },
});
