//! What `/artifacts/files` asks `/artifacts` for, beside the operations that everybody may call. Between the two actors
//! of this crate.

use eclosion_schemas::operation::{Durability, NoItem, Operation, Role};
use eclosion_schemas::ops::artifact::ADDRESS;
use eclosion_schemas::view::ArtifactView;
use eclosion_schemas::{Digest, Seq};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

macro_rules! inner {
    ($name:ident, $request:ty, $reply:ty, $wire:literal, $doc:literal, $example:expr) => {
        #[doc = $doc]
        #[derive(Debug, Clone, Copy)]
        pub struct $name;

        impl Operation for $name {
            type Request = $request;
            type Reply = $reply;
            type Item = NoItem;
            const NAME: &'static str = $wire;
            const ADDRESS: &'static str = ADDRESS;
            const ROLE: Role = Role::Service;
            const DURABILITY: Durability = Durability::Call;
            const DOC: &'static str = $doc;

            fn example() -> $request {
                $example
            }
        }
    };
}

/// A digest, `FLOW/TASK` or `FLOW/TASK@TAG`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ResolveRequest {
    pub name: String,
}

/// `RUN/TASK`, oldest first. Of a path the n-th is version n; it may not have been committed.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ResolveReply {
    pub names: Vec<String>,
}

inner!(
    Resolve,
    ResolveRequest,
    ResolveReply,
    "artifact.resolve",
    "Lists the artifacts that a name may stand for.",
    ResolveRequest { name: "automl/report".into() }
);

#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema)]
pub struct ObjectsRequest {
    pub shard: u8,
}

/// Digests that begin with this byte, and their lengths.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ObjectsReply {
    pub objects: Vec<(Digest, u64)>,
}

inner!(
    Objects,
    ObjectsRequest,
    ObjectsReply,
    "artifact.objects",
    "Lists the objects that records name.",
    ObjectsRequest { shard: 0 }
);

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct PageRequest {
    /// Only older ones; none: the newest.
    pub before: Option<Seq>,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct PageReply {
    /// `RUN/TASK`, newest first; there may be none in this part.
    pub names: Vec<String>,
    /// Where to go on; none: these were the last.
    pub before: Option<Seq>,
}

inner!(
    Page,
    PageRequest,
    PageReply,
    "artifact.page",
    "Lists artifacts, newest first, part by part.",
    PageRequest { before: None }
);

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ViewsRequest {
    /// `RUN/TASK`, at most [`crate::rows::PAGE_NAMES_MAX`].
    pub names: Vec<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ViewsReply {
    /// Each with the name of its flow.
    pub views: Vec<(ArtifactView, String)>,
}

inner!(
    Views,
    ViewsRequest,
    ViewsReply,
    "artifact.views",
    "Shows the artifacts of these names.",
    ViewsRequest { names: vec!["7k2m4q9d/report".into()] }
);
