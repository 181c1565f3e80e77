//! A finished run once more, from a step on. Served by the DAG tracker.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::operation;
use super::run::{ADDRESS, RunRequest, example_run};
use crate::flow::FlowSpec;
use crate::ids::{RunId, TaskId};
use crate::operation::Spec;

pub(super) fn all() -> Vec<Spec> {
    vec![Spec::of::<Rerun>(), Spec::of::<Recorded>()]
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RerunRequest {
    pub run: RunId,
    /// Tasks, or instances of fan-outs, to compute again with all that needs them. None: what is not committed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<TaskId>,
    /// The flow as it is now; none: as the run recorded it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flow: Option<FlowSpec>,
    /// Beside the parameters that the run was given.
    #[serde(default)]
    pub set: BTreeMap<String, serde_json::Value>,
    /// Results are taken over even where code or environment are not those that made them.
    #[serde(default)]
    pub keep: bool,
    /// Say what would be taken over and what computed; start nothing.
    #[serde(default)]
    pub dry_run: bool,
    /// The idempotency key: the same key again gets the same run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idem: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RerunReply {
    /// None for a dry run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunId>,
    /// The key was used before: nothing new was started.
    pub attached: bool,
    /// In an order in which they can run.
    pub steps: Vec<RerunStep>,
}

/// What becomes of one task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RerunStep {
    pub task: String,
    pub fate: RerunFate,
    /// Instances whose result is there to be taken over.
    pub taken: u32,
    pub why: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RerunFate {
    /// Its result is taken over, if it is still stored.
    Taken,
    /// A fan-out of which some instances are taken over and the others computed.
    Partly,
    Computed,
}

operation!(Rerun {
    request: RerunRequest,
    reply: RerunReply,
    name: "run.rerun",
    address: ADDRESS,
    role: Operate,
    durability: Power,
    mutates: true,
    doc: "Starts a run that takes over committed results of a finished one and computes the rest.",
    example: RerunRequest {
        run: example_run(),
        from: Vec::new(),
        flow: None,
        set: BTreeMap::new(),
        keep: false,
        dry_run: true,
        idem: None,
    },
});

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RecordedReply {
    pub flow: FlowSpec,
    pub parameters: BTreeMap<String, serde_json::Value>,
}

operation!(Recorded {
    request: RunRequest,
    reply: RecordedReply,
    name: "run.flow",
    address: ADDRESS,
    role: View,
    durability: Call,
    doc: "Gives a run's flow and parameters as they were when it was started.",
    example: RunRequest { run: example_run() },
});
