//! What a client serves itself: addresses of its own with operations of its own. [`manage`]: the kernel holds its process.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::operation;
use crate::operation::{Role, Spec};

pub mod manage;
pub use manage::*;

pub(super) fn all() -> Vec<Spec> {
    vec![Spec::of::<Declare>()]
}

/// Addresses of one connection.
pub const ADDRESSES_MAX: usize = 16;
/// Operations of one connection.
pub const OPERATIONS_MAX: usize = 128;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DeclareRequest {
    pub addresses: Vec<ServedAddress>,
}

/// An address, as long as the connection that declared it lives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServedAddress {
    /// `/greeter`; its first word is none of the kernel's.
    pub address: String,
    /// Calls that may wait; more are refused with `exhausted`.
    #[serde(default = "waiting_max")]
    pub waiting_max: u32,
    /// Calls that are sent to the service before it has answered those before them.
    #[serde(default = "concurrency")]
    pub concurrency: u32,
    pub operations: Vec<ServedOperation>,
}

fn waiting_max() -> u32 {
    256
}

fn concurrency() -> u32 {
    16
}

/// An operation as its service describes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServedOperation {
    /// `greeter.hello`.
    pub name: String,
    /// `view`, `operate` or `admin`.
    #[serde(default = "operate")]
    pub role: Role,
    #[serde(default)]
    pub streams: bool,
    #[serde(default)]
    pub mutates: bool,
    #[serde(default)]
    pub doc: String,
    /// JSON Schemas; `{}` admits everything. They are shown, and the service checks against them.
    #[serde(default, deserialize_with = "crate::codec::json::any")]
    pub request: Value,
    #[serde(default, deserialize_with = "crate::codec::json::any")]
    pub reply: Value,
    #[serde(default, deserialize_with = "crate::codec::json::any")]
    pub item: Value,
    #[serde(default, deserialize_with = "crate::codec::json::any")]
    pub example: Value,
}

fn operate() -> Role {
    Role::Operate
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DeclareReply {
    /// Of the table with these operations in it.
    pub describe_hash: String,
}

operation!(Declare {
    request: DeclareRequest,
    reply: DeclareReply,
    name: "service.declare",
    address: super::kernel::ADDRESS,
    role: Service,
    durability: Call,
    doc: "Serves addresses on this connection, until it ends: the kernel calls their operations on it.",
    example: DeclareRequest {
        addresses: vec![ServedAddress {
            address: "/greeter".into(),
            waiting_max: waiting_max(),
            concurrency: concurrency(),
            operations: vec![ServedOperation {
                name: "greeter.hello".into(),
                role: Role::Operate,
                streams: false,
                mutates: false,
                doc: "Says hello.".into(),
                request: serde_json::json!({"type": "object"}),
                reply: serde_json::json!({"type": "string"}),
                item: Value::Null,
                example: serde_json::json!({"name": "Ada"}),
            }],
        }],
    },
});
