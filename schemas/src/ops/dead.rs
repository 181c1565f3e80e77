//! Dead letters: messages whose handling died twice, or whose address was closed while they waited.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::kernel::ADDRESS;
use super::operation;
use crate::error::Error;
use crate::operation::Spec;

pub(super) fn all() -> Vec<Spec> {
    vec![Spec::of::<List>(), Spec::of::<Show>(), Spec::of::<Replay>(), Spec::of::<Drop>()]
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DeadLetterView {
    pub id: u64,
    pub address: String,
    pub operation: String,
    pub why: String,
    pub deliveries: u8,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caller: Option<String>,
    pub age_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "DeadListRequest")]
pub struct ListRequest {
    #[serde(default = "limit_default")]
    pub limit: u32,
}

fn limit_default() -> u32 {
    100
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "DeadListReply")]
pub struct ListReply {
    /// Newest first.
    pub letters: Vec<DeadLetterView>,
    /// Kept in all.
    pub kept: u64,
    /// Pushed out by newer ones.
    pub forgotten: u64,
}

operation!(List {
    request: ListRequest,
    reply: ListReply,
    name: "dead.list",
    address: ADDRESS,
    role: View,
    durability: Call,
    doc: "Lists dead letters, newest first.",
    example: ListRequest { limit: 20 },
});

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ShowRequest {
    pub id: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ShowReply {
    pub letter: DeadLetterView,
    /// The request, where it has a form that may be shown.
    #[serde(default, deserialize_with = "crate::codec::json::any")]
    pub request: serde_json::Value,
}

operation!(Show {
    request: ShowRequest,
    reply: ShowReply,
    name: "dead.show",
    address: ADDRESS,
    role: View,
    durability: Call,
    doc: "Shows a dead letter with its request.",
    example: ShowRequest { id: 1 },
});

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "DeadActRequest")]
pub struct ActRequest {
    pub id: u64,
    #[serde(default)]
    pub reason: String,
    /// Says what it would do, and does nothing.
    #[serde(default)]
    pub dry_run: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "DeadActReply")]
pub struct ActReply {
    pub letter: DeadLetterView,
    /// False for a dry run.
    pub done: bool,
    /// Its number in `audit.list`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub act: Option<u64>,
    /// It was delivered, and its handler refused it with this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<Error>,
}

operation!(Replay {
    request: ActRequest,
    reply: ActReply,
    name: "dead.replay",
    address: ADDRESS,
    role: Admin,
    durability: Power,
    mutates: true,
    doc: "Delivers a dead letter again and says whether it was handled. Whoever asked has had the refusal, and hears nothing.",
    example: ActRequest { id: 1, reason: "mended".into(), dry_run: true },
});

operation!(Drop {
    request: ActRequest,
    reply: ActReply,
    name: "dead.drop",
    address: ADDRESS,
    role: Admin,
    durability: Power,
    mutates: true,
    doc: "Drops a dead letter for good.",
    example: ActRequest { id: 1, reason: "not wanted any more".into(), dry_run: true },
});
