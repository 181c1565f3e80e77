//! Where the time of one call went.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// One part of a call's time. Stages follow one upon the other, so that their sum is at most what the caller waited.
///
/// `queued` in the mailbox, `handled` by the actor, `journal` until the outcome was written or synced; of a Python
/// function or a service `worker` (waiting for one), `sent` (until it began), `python`, `back`; `answered` what was left
/// until the reply was there, `encoded` until it was put in line for the client. Those that a call did not pass through are
/// absent, and later releases may add some.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Stage {
    pub name: String,
    pub took_ns: u64,
}

/// What a timed call came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Timed<T> {
    pub outcome: Result<T, Error>,
    /// In order; empty where the kernel is older than timings, or has refused the call at its door.
    pub stages: Vec<Stage>,
}

/// What rides along with any call besides its request, as `kernel.describe` tells it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CallOption {
    /// The envelope's key.
    pub name: String,
    pub doc: String,
}

/// Every option that a call may name.
#[must_use]
pub fn call_options() -> Vec<CallOption> {
    let told = [
        ("deadline_ms", "how long the caller waits, from now on"),
        ("idem", "idempotency key: the same again gets the recorded reply"),
        ("trace", "W3C traceparent: what comes of the call belongs to this trace"),
        ("credit", "items that may be sent at first, where the operation streams"),
        ("timings", "true: the reply says in `stages` where the time went"),
    ];
    told.map(|(name, doc)| CallOption { name: name.to_owned(), doc: doc.to_owned() }).into()
}
