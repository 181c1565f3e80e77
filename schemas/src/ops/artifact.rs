//! Artifacts: outputs of steps, by name and by content. Served by the artifact store; `artifact.stage` and
//! `artifact.open` are served to a worker by its own holder, as they pass descriptors.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::operation;
use crate::ids::{Digest, Fence, RunId, TaskRef};
use crate::operation::Spec;
use crate::payload::Payload;
use crate::view::ArtifactView;

mod labels;

pub use labels::{
    Pin, PinReply, PinRequest, PinView, Pins, PinsReply, PinsRequest, Search, SearchReply, SearchRequest,
    Tag, TagReply, TagRequest, TagView, Tags, TagsReply, TagsRequest, Unpin, Untag, UntagReply, UntagRequest,
};

pub const ADDRESS: &str = "/artifacts";
/// Who reads files for clients.
pub const FILES: &str = "/artifacts/files";

/// Worker to kernel: `artifact.stage {bytes}` → `{stage}` and one descriptor, open for writing, preallocated.
pub const STAGE: &str = "artifact.stage";
/// Worker to kernel: `artifact.open {digest}` → `{bytes}` and one descriptor, open for reading.
pub const OPEN: &str = "artifact.open";

pub(super) fn all() -> Vec<Spec> {
    let own = [
        Spec::of::<List>(),
        Spec::of::<Get>(),
        Spec::of::<Read>(),
        Spec::of::<Recall>(),
        Spec::of::<Verify>(),
        Spec::of::<Lineage>(),
    ];
    own.into_iter().chain(labels::all()).collect()
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StageRequest {
    pub bytes: u64,
    /// The attempt whose outcome will name the file; a worker may have others in hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fence: Option<Fence>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StageReply {
    pub stage: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OpenRequest {
    pub digest: Digest,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OpenReply {
    pub bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ArtifactListRequest")]
pub struct ListRequest {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunId>,
    /// Names that start with this.
    #[serde(default)]
    pub prefix: String,
    #[serde(default = "thousand")]
    pub limit: u32,
}

fn thousand() -> u32 {
    1000
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ArtifactListReply")]
pub struct ListReply {
    pub artifacts: Vec<ArtifactView>,
    pub cut: u64,
}

operation!(List {
    request: ListRequest,
    reply: ListReply,
    name: "artifact.list",
    address: ADDRESS,
    role: View,
    durability: Call,
    doc: "Lists artifacts by name.",
    example: ListRequest { run: None, prefix: String::new(), limit: 1000 },
});

/// By `name` (newest version, or `name@version`) or by digest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ArtifactGetRequest")]
pub struct GetRequest {
    pub name: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ArtifactGetReply")]
pub struct GetReply {
    pub artifact: ArtifactView,
    /// The value as it was committed; bytes of its parts come as items before this.
    pub payload: Payload,
}

/// A piece of a part, verified against its digest before the first piece was sent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Piece {
    pub part: u32,
    #[serde(with = "serde_bytes")]
    #[schemars(schema_with = "crate::payload::binary")]
    pub bytes: Vec<u8>,
}

operation!(Get {
    request: GetRequest,
    reply: GetReply,
    item: Piece,
    name: "artifact.get",
    address: FILES,
    role: View,
    durability: Call,
    doc: "Fetches an artifact, verified.",
    example: GetRequest { name: "7k2m4q9d/report".into() },
});

operation!(Read {
    request: OpenRequest,
    reply: OpenReply,
    item: Piece,
    name: "artifact.read",
    address: FILES,
    role: View,
    durability: Call,
    doc: "Fetches one file of the store by its digest, verified: a part of what a call has returned, too.",
    example: OpenRequest {
        digest: "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
            .parse()
            .unwrap_or_else(|_| unreachable!("a well-formed digest"))
    },
});

/// Outputs that are to be used again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RecallRequest {
    pub outputs: Vec<TaskRef>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RecallReply {
    /// In the order of the request; nothing where a record or a file is gone.
    pub payloads: Vec<Option<Payload>>,
}

operation!(Recall {
    request: RecallRequest,
    reply: RecallReply,
    name: "artifact.recall",
    address: FILES,
    role: Service,
    durability: Call,
    doc: "Gives committed outputs of which every file is still there and still what its name says.",
    example: RecallRequest { outputs: Vec::new() },
});

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct VerifyRequest {
    /// Every artifact, if none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct VerifyReply {
    pub checked: u64,
    pub bytes: u64,
    /// Digests whose file is missing or differs; differing files were moved to quarantine.
    pub bad: Vec<Digest>,
}

operation!(Verify {
    request: VerifyRequest,
    reply: VerifyReply,
    name: "artifact.verify",
    address: FILES,
    role: Operate,
    durability: Call,
    doc: "Reads artifacts and compares them with their names.",
    example: VerifyRequest { name: None },
});

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LineageReply {
    /// What it was made from, nearest first.
    pub inputs: Vec<ArtifactView>,
    /// What was made from it.
    pub outputs: Vec<ArtifactView>,
}

operation!(Lineage {
    request: GetRequest,
    reply: LineageReply,
    name: "artifact.lineage",
    address: ADDRESS,
    role: View,
    durability: Call,
    doc: "Shows what an artifact was made from, and what was made from it.",
    example: GetRequest { name: "7k2m4q9d/report".into() },
});
