//! Calls under way, and the last that are over. Served by `/calls` from its own books; nothing of it is journaled.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{CALLS, operation};
use crate::error::Error;
use crate::ids::{CallId, EnvironmentId, Timestamp, WorkerId};
use crate::operation::Spec;
use crate::pending::PendingReason;

pub(super) fn all() -> Vec<Spec> {
    vec![Spec::of::<CallList>()]
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CallState {
    /// For a worker.
    Waiting,
    Running,
    Succeeded,
    Failed,
    /// By its caller, or because nobody waited for it any more.
    Cancelled,
}

/// One call of a function, for as long as it is remembered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CallView {
    pub call: CallId,
    pub function: String,
    pub environment: EnvironmentId,
    pub state: CallState,
    pub came_at: Timestamp,
    /// When it came into its state.
    pub since: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<WorkerId>,
    /// Why it waits.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pending: Vec<PendingReason>,
    /// Without the exception's frames: those its caller was told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Error>,
}

/// Calls by what became of them, since the kernel started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CallCounts {
    pub succeeded: u64,
    pub failed: u64,
    pub cancelled: u64,
    /// Not taken, because too many were under way.
    pub refused: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CallListRequest {}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CallListReply {
    pub waiting: u32,
    pub running: u32,
    /// Of both together, at most.
    pub calls_max: u32,
    /// Those under way, oldest first.
    pub calls: Vec<CallView>,
    /// The last that are over, newest last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ended: Vec<CallView>,
    pub counts: CallCounts,
}

operation!(CallList {
    request: CallListRequest,
    reply: CallListReply,
    name: "pool.calls",
    address: CALLS,
    role: View,
    durability: Call,
    doc: "Shows calls of functions: those under way with why they wait, and the last that are over.",
    example: CallListRequest {},
});
