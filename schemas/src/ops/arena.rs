//! Arenas of shared memory, on the streams of workers and clients: where a segment's bytes lie, who may write them, and
//! that nobody reads them any more. They belong to one connection, so that no table has them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::Fence;
use crate::payload::Segment;

/// To the kernel: `arena.attach {arena}` → `{bytes}` and one descriptor, to be mapped for reading; or `{bytes, name}`, for
/// who said in HELLO that it has no use for descriptors.
pub const ATTACH: &str = "arena.attach";
/// Worker to kernel: `arena.lend {bytes, fence}` → `{segment}`, to be written and named in an item or the outcome of that
/// call. With the first segment of an arena comes one descriptor, to be mapped for writing and told by [`MAPPED`].
pub const LEND: &str = "arena.lend";
/// Worker to kernel: `arena.mapped {arena}` → `{}`: from then on nobody can map it for writing.
pub const MAPPED: &str = "arena.mapped";
/// Client to kernel: `arena.release {segments}` → `{}`: it has done with them.
pub const RELEASE: &str = "arena.release";

/// In HELLO's `features`: the client maps memory that it is passed by descriptor, or finds by name.
pub const TAKES_SEALED: &str = "arena.sealed";
pub const TAKES_NAMED: &str = "arena.named";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AttachRequest {
    pub arena: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AttachReply {
    pub bytes: u64,
    /// Of shared memory (`shm_open`), if no descriptor comes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LendRequest {
    pub bytes: u64,
    pub fence: Fence,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LendReply {
    pub segment: Segment,
    /// Arenas that will not be lent again: they need not stay mapped.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gone: Vec<u64>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MappedRequest {
    pub arena: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ArenaReleaseRequest")]
pub struct ReleaseRequest {
    /// One that was given back already changes nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub segments: Vec<Segment>,
    /// A stream that the client has cancelled: whatever came on it, and is not in `keep`, is given back as well, also
    /// what was still on its way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<u32>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keep: Vec<Segment>,
}
