//! Facts about artifacts that no run decides: what is held, and what has a name given by people.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Event;
use crate::ids::{RunId, TaskId};

/// Somebody holds an artifact: it is not collected before every holder has let go. The same holder again changes the
/// reason.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ArtifactPinned {
    pub run: RunId,
    pub task: TaskId,
    /// Whoever says so: a person, a service, an alias in production.
    pub holder: String,
    #[serde(default)]
    pub reason: String,
}
event!(ArtifactPinned, "artifact.pinned");

/// That holder has let go.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ArtifactUnpinned {
    pub run: RunId,
    pub task: TaskId,
    pub holder: String,
    #[serde(default)]
    pub reason: String,
}
event!(ArtifactUnpinned, "artifact.unpinned");

/// A tag of `FLOW/TASK` leads to this artifact from now on, wherever it led before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ArtifactTagged {
    /// `FLOW/TASK`
    pub path: String,
    pub tag: String,
    pub run: RunId,
    pub task: TaskId,
    #[serde(default)]
    pub reason: String,
}
event!(ArtifactTagged, "artifact.tagged");

/// A tag leads nowhere any more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ArtifactUntagged {
    /// `FLOW/TASK`
    pub path: String,
    pub tag: String,
    #[serde(default)]
    pub reason: String,
}
event!(ArtifactUntagged, "artifact.untagged");
