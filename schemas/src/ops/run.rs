//! Runs: start, look, cancel. Served by the DAG tracker.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::audit::Act;
use super::operation;
use crate::flow::{FLOW_SCHEMA, FlowSpec, TaskSpec};
use crate::ids::{RunId, TaskId, Tenant};
use crate::operation::Spec;
use crate::view::{RunState, RunView, TaskView};

pub const ADDRESS: &str = "/dag";

pub(super) fn all() -> Vec<Spec> {
    vec![
        Spec::of::<Start>(),
        Spec::of::<Validate>(),
        Spec::of::<Get>(),
        Spec::of::<List>(),
        Spec::of::<Cancel>(),
        Spec::of::<Why>(),
    ]
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StartRequest {
    pub flow: FlowSpec,
    /// Overrides of the flow's parameters; an unknown name is refused with a suggestion.
    #[serde(default)]
    pub set: BTreeMap<String, serde_json::Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<Tenant>,
    /// Start another run even if one of equal content is unfinished.
    #[serde(default)]
    pub new: bool,
    /// The idempotency key: the same key again gets the same run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idem: Option<String>,
    /// Compute what the cache could give, too, and keep the results there.
    #[serde(default)]
    pub no_cache: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StartReply {
    pub run: RunId,
    /// An unfinished run of equal content was there already; nothing new was started.
    pub attached: bool,
    /// A run of equal content that has succeeded before; newest first, as far as the tracker remembers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub equal: Option<RunId>,
}

operation!(Start {
    request: StartRequest,
    reply: StartReply,
    name: "run.start",
    address: ADDRESS,
    role: Operate,
    durability: Power,
    mutates: true,
    doc: "Starts a run of a flow, or attaches to an unfinished one of equal content.",
    example: StartRequest {
        flow: example_flow(),
        set: BTreeMap::new(),
        tenant: None,
        new: false,
        idem: None,
        no_cache: false,
    },
});

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ValidateRequest {
    pub flow: FlowSpec,
    #[serde(default)]
    pub set: BTreeMap<String, serde_json::Value>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ValidateReply {
    /// In an order in which they can run.
    pub tasks: Vec<TaskPlan>,
    pub content: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TaskPlan {
    pub task: String,
    pub function: String,
    pub needs: Vec<String>,
    /// Instances, where the fan-out is known before the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instances: Option<u32>,
}

operation!(Validate {
    request: ValidateRequest,
    reply: ValidateReply,
    name: "run.validate",
    address: ADDRESS,
    role: View,
    durability: Call,
    doc: "Checks a flow without starting it.",
    example: ValidateRequest { flow: example_flow(), set: BTreeMap::new() },
});

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RunRequest {
    pub run: RunId,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "RunGetReply")]
pub struct GetReply {
    pub run: RunView,
    /// In the order in which they can run.
    pub tasks: Vec<TaskView>,
}

operation!(Get {
    request: RunRequest,
    reply: GetReply,
    name: "run.get",
    address: ADDRESS,
    role: View,
    durability: Call,
    doc: "Shows a run and its tasks.",
    example: RunRequest { run: example_run() },
});

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "RunListRequest")]
pub struct ListRequest {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<RunState>,
    /// At most this many, newest first; the filter comes before the limit.
    #[serde(default = "hundred")]
    pub limit: u32,
}

fn hundred() -> u32 {
    100
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "RunListReply")]
pub struct ListReply {
    pub runs: Vec<RunView>,
    /// How many matched and were cut off by the limit.
    pub cut: u64,
}

operation!(List {
    request: ListRequest,
    reply: ListReply,
    name: "run.list",
    address: ADDRESS,
    role: View,
    durability: Call,
    doc: "Lists runs, newest first.",
    example: ListRequest { state: None, limit: 100 },
});

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CancelRequest {
    pub run: RunId,
    #[serde(default)]
    pub reason: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CancelReply {
    pub state: RunState,
}

operation!(Cancel {
    request: CancelRequest,
    reply: CancelReply,
    name: "run.cancel",
    address: ADDRESS,
    role: Operate,
    durability: Power,
    mutates: true,
    act: |request| Some(Act::on(format_args!("run {}", request.run), &request.reason)),
    doc: "Cancels a run: once acknowledged, nothing of it commits any more.",
    example: CancelRequest { run: example_run(), reason: "not needed".into() },
});

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WhyRequest {
    pub run: RunId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskId>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WhyReply {
    /// Sentences, each with the next command where there is one.
    pub findings: Vec<String>,
    pub tasks: Vec<TaskView>,
}

operation!(Why {
    request: WhyRequest,
    reply: WhyReply,
    name: "run.why",
    address: ADDRESS,
    role: View,
    durability: Call,
    doc: "Says why a run or a task waits or failed.",
    example: WhyRequest { run: example_run(), task: None },
});

pub(super) fn example_run() -> RunId {
    "7k2m4q9d".parse().unwrap_or_else(|_| unreachable!("a well-formed id"))
}

fn example_flow() -> FlowSpec {
    let task = TaskSpec { run: "steps:load".into(), ..TaskSpec::default() };
    FlowSpec {
        schema: FLOW_SCHEMA.into(),
        name: "demo".into(),
        description: String::new(),
        code: "/home/ada/flow".into(),
        code_hash: String::new(),
        source: None,
        environment: crate::flow::EnvironmentSpec::default(),
        parameters: BTreeMap::new(),
        tasks: BTreeMap::from([("load".to_owned(), task)]),
        result: None,
        cache: None,
    }
}
