//! Arenas of shared memory, on a worker's stream: where a segment's bytes lie.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Worker to kernel: `arena.attach {arena}` → `{bytes}` and one descriptor, to be mapped for reading.
pub const ATTACH: &str = "arena.attach";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AttachRequest {
    pub arena: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AttachReply {
    pub bytes: u64,
}
