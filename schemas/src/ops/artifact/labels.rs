//! What people say about artifacts: tags, which move; pins, which hold; and the search for one.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ADDRESS, FILES};
use crate::ids::{RunId, Seq, Timestamp};
use crate::operation::Spec;
use crate::ops::audit::Act;
use crate::ops::operation;
use crate::view::ArtifactView;

pub(super) fn all() -> Vec<Spec> {
    vec![
        Spec::of::<Tag>(),
        Spec::of::<Untag>(),
        Spec::of::<Tags>(),
        Spec::of::<Pin>(),
        Spec::of::<Unpin>(),
        Spec::of::<Pins>(),
        Spec::of::<Search>(),
    ]
}

/// Where a tag leads, or once led.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TagView {
    /// `FLOW/TASK`; with the tag it is a name: `FLOW/TASK@TAG`.
    pub path: String,
    pub tag: String,
    /// `RUN/TASK`; none: the tag was taken away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact: Option<String>,
    #[serde(default)]
    pub reason: String,
    pub at: Timestamp,
    pub seq: Seq,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ArtifactTagRequest")]
pub struct TagRequest {
    /// `RUN/TASK`, `FLOW/TASK`, `FLOW/TASK@VERSION`, `FLOW/TASK@TAG` or a digest.
    pub name: String,
    /// Begins with a letter, so that it is no version.
    pub tag: String,
    #[serde(default)]
    pub reason: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ArtifactTagReply")]
pub struct TagReply {
    /// `FLOW/TASK`
    pub path: String,
    pub tag: String,
    /// `RUN/TASK`, to which it leads now.
    pub artifact: String,
}

operation!(Tag {
    request: TagRequest,
    reply: TagReply,
    name: "artifact.tag",
    address: FILES,
    role: Operate,
    durability: Power,
    mutates: true,
    act: |request| Some(Act::on(format_args!("{} as {}", request.name, request.tag), &request.reason)),
    doc: "Lets a tag lead to an artifact, wherever it led before.",
    example: TagRequest { name: "automl/report@3".into(), tag: "production".into(), reason: String::new() },
});

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ArtifactUntagRequest")]
pub struct UntagRequest {
    /// `FLOW/TASK`
    pub path: String,
    pub tag: String,
    #[serde(default)]
    pub reason: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ArtifactUntagReply")]
pub struct UntagReply {}

operation!(Untag {
    request: UntagRequest,
    reply: UntagReply,
    name: "artifact.untag",
    address: ADDRESS,
    role: Operate,
    durability: Power,
    mutates: true,
    act: |request| Some(Act::on(format_args!("{}@{}", request.path, request.tag), &request.reason)),
    doc: "Takes a tag away; its history stays.",
    example: UntagRequest { path: "automl/report".into(), tag: "production".into(), reason: String::new() },
});

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ArtifactTagsRequest")]
pub struct TagsRequest {
    /// Paths that start with this: a flow, or `FLOW/TASK`.
    #[serde(default)]
    pub prefix: String,
    /// Also where they led before, oldest first.
    #[serde(default)]
    pub history: bool,
    #[serde(default = "super::thousand")]
    pub limit: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ArtifactTagsReply")]
pub struct TagsReply {
    pub tags: Vec<TagView>,
    /// There are more than the limit.
    pub more: bool,
}

operation!(Tags {
    request: TagsRequest,
    reply: TagsReply,
    name: "artifact.tags",
    address: ADDRESS,
    role: View,
    durability: Call,
    doc: "Lists tags and where they lead, or led.",
    example: TagsRequest { prefix: "automl/".into(), history: false, limit: 1000 },
});

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PinView {
    /// `RUN/TASK`
    pub artifact: String,
    pub holder: String,
    #[serde(default)]
    pub reason: String,
    pub since: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ArtifactPinRequest")]
pub struct PinRequest {
    /// As in `artifact.tag`; what it leads to now is held.
    pub name: String,
    /// Who holds it.
    #[serde(default = "operator")]
    pub holder: String,
    #[serde(default)]
    pub reason: String,
}

fn operator() -> String {
    "operator".into()
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ArtifactPinReply")]
pub struct PinReply {
    /// `RUN/TASK`
    pub artifact: String,
    /// Everybody who holds it now.
    pub holders: Vec<String>,
}

operation!(Pin {
    request: PinRequest,
    reply: PinReply,
    name: "artifact.pin",
    address: FILES,
    role: Operate,
    durability: Power,
    mutates: true,
    act: |request| Some(Act::on(&request.name, &request.reason)),
    doc: "Holds an artifact, so that it is not collected.",
    example: PinRequest {
        name: "automl/report@production".into(),
        holder: "operator".into(),
        reason: "served".into()
    },
});

operation!(Unpin {
    request: PinRequest,
    reply: PinReply,
    name: "artifact.unpin",
    address: FILES,
    role: Operate,
    durability: Power,
    mutates: true,
    act: |request| Some(Act::on(&request.name, &request.reason)),
    doc: "Lets an artifact go that this holder has pinned.",
    example: PinRequest {
        name: "automl/report@production".into(),
        holder: "operator".into(),
        reason: "replaced".into()
    },
});

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ArtifactPinsRequest")]
pub struct PinsRequest {
    /// Artifacts whose name `RUN/TASK` starts with this.
    #[serde(default)]
    pub prefix: String,
    #[serde(default = "super::thousand")]
    pub limit: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ArtifactPinsReply")]
pub struct PinsReply {
    pub pins: Vec<PinView>,
    /// There are more than the limit.
    pub more: bool,
}

operation!(Pins {
    request: PinsRequest,
    reply: PinsReply,
    name: "artifact.pins",
    address: ADDRESS,
    role: View,
    durability: Call,
    doc: "Lists what is pinned, by whom and why.",
    example: PinsRequest { prefix: String::new(), limit: 1000 },
});

/// Every condition that is given must hold. Newest first.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ArtifactSearchRequest")]
pub struct SearchRequest {
    /// Words, each of which occurs in the name, flow, file name, codec or digest; case does not matter.
    #[serde(default)]
    pub text: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flow: Option<String>,
    /// The task of the flow; every instance of a fan-out is of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub codec: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_min: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_max: Option<u64>,
    /// Only what is older than this: the `more` of an earlier reply.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Seq>,
    #[serde(default = "hundred")]
    pub limit: u32,
}

fn hundred() -> u32 {
    100
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ArtifactSearchReply")]
pub struct SearchReply {
    pub artifacts: Vec<ArtifactView>,
    /// How many artifacts were compared.
    pub looked: u64,
    /// There may be more that are older than this; none: these are all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub more: Option<Seq>,
}

operation!(Search {
    request: SearchRequest,
    reply: SearchReply,
    name: "artifact.search",
    address: FILES,
    role: View,
    durability: Call,
    doc: "Finds artifacts by what is known of them, newest first.",
    example: SearchRequest { text: "report".into(), limit: 100, ..SearchRequest::default() },
});
