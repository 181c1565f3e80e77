//! What an operator may do to one actor. Each says what it would touch, can be tried without doing it, and is recorded
//! with its reason before it is done.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::operation;
use crate::operation::Spec;
use crate::view::ActorState;

pub(super) fn all() -> Vec<Spec> {
    vec![
        Spec::of::<Restart>(),
        Spec::of::<Kill>(),
        Spec::of::<Pause>(),
        Spec::of::<Resume>(),
        Spec::of::<Drain>(),
    ]
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ActorRequest")]
pub struct ActRequest {
    pub address: String,
    #[serde(default)]
    pub reason: String,
    /// Says what it would touch, and does nothing.
    #[serde(default)]
    pub dry_run: bool,
}

/// What an act touches.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Blast {
    pub state: ActorState,
    /// Messages that wait.
    pub queued: u64,
    pub in_hand: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
    /// What will happen, in a sentence.
    pub text: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ActorReply")]
pub struct ActReply {
    pub address: String,
    pub blast: Blast,
    /// False for a dry run.
    pub done: bool,
    /// Its number in `audit.list`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub act: Option<u64>,
    /// The life that has begun, where one has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<u32>,
}

fn example() -> ActRequest {
    ActRequest { address: "/pool".into(), reason: "it seemed stuck".into(), dry_run: true }
}

operation!(Restart {
    request: ActRequest,
    reply: ActReply,
    name: "actor.restart",
    address: super::kernel::ADDRESS,
    role: Admin,
    durability: Power,
    mutates: true,
    doc: "Ends an actor after what it has in hand and begins its next life. Nothing is lost: its mailbox and its state stay.",
    example: example(),
});

operation!(Kill {
    request: ActRequest,
    reply: ActReply,
    name: "actor.kill",
    address: super::kernel::ADDRESS,
    role: Admin,
    durability: Power,
    mutates: true,
    doc: "Ends an actor now. What it has in hand is delivered once more; it counts as a death against its restart budget.",
    example: example(),
});

operation!(Pause {
    request: ActRequest,
    reply: ActReply,
    name: "actor.pause",
    address: super::kernel::ADDRESS,
    role: Admin,
    durability: Power,
    mutates: true,
    doc: "Has an actor take no more messages. They wait in its mailbox, up to its capacity and their deadlines.",
    example: example(),
});

operation!(Resume {
    request: ActRequest,
    reply: ActReply,
    name: "actor.resume",
    address: super::kernel::ADDRESS,
    role: Admin,
    durability: Power,
    mutates: true,
    doc: "Has an actor that is paused or draining take messages again.",
    example: example(),
});

operation!(Drain {
    request: ActRequest,
    reply: ActReply,
    name: "actor.drain",
    address: super::kernel::ADDRESS,
    role: Admin,
    durability: Power,
    mutates: true,
    doc: "Has an actor take nothing new, and waits until it has handled what it has.",
    example: example(),
});
