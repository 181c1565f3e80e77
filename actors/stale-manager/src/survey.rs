//! What was found: on disk by the ports, and in the rows of those who name it.
//!
//! A survey is true of the moment that it was taken at. What was appended since then is in the state of the core: a
//! decision looks at both.

use eclosion_schemas::events::CollectedRun;
use eclosion_schemas::ops::gc::Item;
use eclosion_schemas::{RunId, Seq, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One thing that is there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Found {
    pub item: Item,
    /// For people: the name of a flow, of an artifact, a path.
    pub what: String,
    /// What it takes on disk.
    pub bytes: u64,
    pub last_used: Timestamp,
    /// Tells it from another thing that takes its name later.
    pub token: String,
    /// The runs that need it. Complete: a run that is not named here does not need it.
    pub named_by: Vec<RunId>,
    /// Who else holds it, in words: what only the port can see.
    pub holders: Vec<String>,
    /// Where interpreters in it are; of an environment.
    pub path: String,
    /// Of a run.
    pub run: Option<Box<CollectedRun>>,
}

impl Found {
    #[must_use]
    pub fn new(item: Item, bytes: u64, last_used: Timestamp) -> Self {
        Self {
            item,
            what: String::new(),
            bytes,
            last_used,
            token: String::new(),
            named_by: Vec::new(),
            holders: Vec::new(),
            path: String::new(),
            run: None,
        }
    }
}

/// The file system of the state directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Disk {
    pub free_bytes: u64,
    pub total_bytes: u64,
}

/// A record of a deletion, as retention looks at it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Recorded {
    pub seq: Seq,
    pub at: Timestamp,
    pub bytes: u64,
    /// The run that it says is gone for good.
    pub run: Option<RunId>,
}

/// See the head of this file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Survey {
    /// Every record up to here was in the rows that were read.
    pub as_of: Seq,
    pub found: Vec<Found>,
    /// Every record of a deletion, oldest first.
    pub records: Vec<Recorded>,
    pub disk: Option<Disk>,
    /// What could not be looked at: nothing of it is collected.
    pub unreadable: Vec<String>,
}
