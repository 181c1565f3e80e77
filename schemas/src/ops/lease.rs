//! Leases of clients and services: locks, counted resources and tokens of rates for who is no task of a run. The same
//! arbitration gives them, from the same amounts, by the same rules, as it gives leases to tasks.
//!
//! Two ways to end by itself: `ttl_ms` after it was had or renewed last (`lease.acquire`), and with the call that holds it
//! (`lease.hold`: the stream is the session's part). Both survive a kernel; a hold is taken up again with its key.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::audit::Act;
use super::operation;
use crate::flow::Priority;
use crate::ids::{Fence, LeaseId, LeaseKey, Tenant, Timestamp};
use crate::operation::Spec;
use crate::pending::PendingReason;

/// Beside arbitration: waits until something is free, and notices when who holds it has left.
pub const DESK: &str = "/arbitration/leases";

/// What a lease can last at most without being renewed.
pub const TTL_MS_MAX: u64 = 7 * 24 * 3600 * 1000;

pub(super) fn all() -> Vec<Spec> {
    vec![Spec::of::<Acquire>(), Spec::of::<Hold>(), Spec::of::<Renew>(), Spec::of::<Release>()]
}

/// What is wished for; granted whole or not at all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "LeaseRequest")]
pub struct Request {
    /// As a task names them: `"db"` alone, `"db:shared"` with others who share it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub locks: Vec<String>,
    /// Anything counted; `cpu` in thousandths of a core, `memory` in bytes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub resources: BTreeMap<String, u64>,
    /// Tokens.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rates: BTreeMap<String, u64>,
    /// It ends after this, unless it is renewed. `lease.acquire` needs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_ms: Option<u64>,
    /// How long to wait for it; 0: it is had if it is free. Until the deadline of the call, if nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_ms: Option<u64>,
    /// Shown to who waits for it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub purpose: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<Tenant>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
    /// Names this claim, so that the same request again gets the same lease. The call's idempotency key, if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<LeaseKey>,
    /// Taken up again: this lease, under its key, and no other in its place. `lease.over`, if it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub again: Option<LeaseId>,
}

/// A lease that is held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "LeaseHeld")]
pub struct Held {
    pub lease: LeaseId,
    /// Who has it may give it back as its holder.
    pub key: LeaseKey,
    /// Larger than that of any lease before it: what is written under a lock can refuse who held it earlier.
    pub fence: Fence,
    pub since: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
}

operation!(Acquire {
    request: Request,
    reply: Held,
    name: "lease.acquire",
    address: DESK,
    role: Operate,
    durability: Power,
    mutates: true,
    doc: "Waits for a lease that ends by itself after ttl_ms, unless it is renewed or given back before.",
    example: Request { ttl_ms: Some(60_000), ..example() },
});

/// How it stands with a hold. The first item that has `held` says that it begins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "LeaseStanding")]
pub struct Standing {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<Held>,
    /// Why it waits: who holds what it needs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<PendingReason>,
}

/// It ended while its holder was there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "LeaseEnded")]
pub struct Ended {
    pub lease: LeaseId,
    pub reason: String,
}

operation!(Hold {
    request: Request,
    reply: Ended,
    item: Standing,
    name: "lease.hold",
    address: DESK,
    role: Operate,
    durability: Power,
    mutates: true,
    doc: "Waits for a lease and holds it for as long as the stream is open. The same key takes it up again within the grace.",
    example: example(),
});

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "LeaseRenewRequest")]
pub struct RenewRequest {
    pub lease: LeaseId,
    /// From now on.
    pub ttl_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "LeaseRenewReply")]
pub struct RenewReply {
    pub until: Timestamp,
}

operation!(Renew {
    request: RenewRequest,
    reply: RenewReply,
    name: "lease.renew",
    address: super::arbitration::ADDRESS,
    role: Operate,
    durability: Power,
    mutates: true,
    doc: "Lets a client's lease end later. What has ended cannot be renewed.",
    example: RenewRequest { lease: example_lease(), ttl_ms: 60_000 },
});

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "LeaseReleaseRequest")]
pub struct ReleaseRequest {
    pub lease: LeaseId,
    #[serde(default)]
    pub reason: String,
    /// Of its holder. Without it this is an operator's act, and recorded as that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<LeaseKey>,
    #[serde(default)]
    pub dry_run: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "LeaseReleaseReply")]
pub struct ReleaseReply {
    pub lease: LeaseId,
    /// Who holds it, and what for.
    pub holder: String,
    /// How many wait for something of it.
    pub waiting: u64,
    pub done: bool,
}

operation!(Release {
    request: ReleaseRequest,
    reply: ReleaseReply,
    name: "lease.release",
    address: DESK,
    role: Operate,
    durability: Power,
    mutates: true,
    act: |request| {
        let is_operators = request.key.is_none() && !request.dry_run;
        is_operators.then(|| Act::on(format_args!("lease {}", request.lease), &request.reason))
    },
    doc: "Gives a client's lease back. Without its key it is an operator who takes it away: that is in the audit record.",
    example: ReleaseRequest {
        lease: example_lease(),
        reason: "its holder hangs".into(),
        key: None,
        dry_run: false
    },
});

fn example() -> Request {
    Request { locks: vec!["db".into()], purpose: "migration".into(), ..Request::default() }
}

fn example_lease() -> LeaseId {
    "l-1-1".parse().unwrap_or_else(|_| unreachable!("a well-formed id"))
}
