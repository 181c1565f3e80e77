//! What operators did: recorded before it is done, with who, why and what it would touch; and what came of it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::operation;
use crate::error::Error;
use crate::ids::Timestamp;
use crate::operation::Spec;

pub const ADDRESS: &str = "/audit";

pub(super) fn all() -> Vec<Spec> {
    vec![Spec::of::<Begin>(), Spec::of::<End>(), Spec::of::<List>()]
}

/// Something an operator does to a part of the kernel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Act {
    /// `actor.restart`, `pool.drain`: the operation.
    pub action: String,
    /// An address, a worker, a run, a dead letter.
    pub target: String,
    /// The operator's own words; empty if none were given.
    #[serde(default)]
    pub reason: String,
    /// The client that called, as it named itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caller: Option<String>,
    /// What it was going to touch, as it was when the operator acted.
    #[serde(default)]
    pub blast: String,
}

impl Act {
    /// For whoever records it to complete: the operation, and who called.
    #[must_use]
    pub fn on(target: impl ToString, reason: &str) -> Self {
        let (target, reason) = (target.to_string(), reason.to_owned());
        Self { action: String::new(), target, reason, caller: None, blast: String::new() }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BeginReply {
    pub id: u64,
}

operation!(Begin {
    request: Act,
    reply: BeginReply,
    name: "audit.begin",
    address: ADDRESS,
    role: Admin,
    durability: Power,
    mutates: true,
    doc: "Records that an operator is about to act.",
    example: example_act(),
});

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EndRequest {
    pub id: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Error>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "AuditEndReply")]
pub struct EndReply {}

operation!(End {
    request: EndRequest,
    reply: EndReply,
    name: "audit.end",
    address: ADDRESS,
    role: Admin,
    durability: Process,
    mutates: true,
    doc: "Records what came of an act.",
    example: EndRequest { id: 1, error: None },
});

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "AuditListRequest")]
pub struct ListRequest {
    #[serde(default = "limit_default")]
    pub limit: u32,
}

fn limit_default() -> u32 {
    100
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "AuditListReply")]
pub struct ListReply {
    /// Newest first.
    pub acts: Vec<ActView>,
    /// There are more than were asked for.
    pub more: bool,
}

/// One act and what came of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ActView {
    pub id: u64,
    pub act: Act,
    pub began_at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Error>,
}

operation!(List {
    request: ListRequest,
    reply: ListReply,
    name: "audit.list",
    address: ADDRESS,
    role: View,
    durability: Call,
    doc: "Lists what operators did, newest first.",
    example: ListRequest { limit: 20 },
});

fn example_act() -> Act {
    Act {
        action: "actor.restart".into(),
        target: "/pool".into(),
        reason: "it seemed stuck".into(),
        caller: None,
        blast: String::new(),
    }
}
