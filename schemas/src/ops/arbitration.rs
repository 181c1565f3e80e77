//! Resources and leases. Served by arbitration.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::operation;
use super::pool::Taken;
use crate::flow::Priority;
use crate::ids::{EffectId, TaskRef, Tenant, Timestamp};
use crate::operation::Spec;
use crate::pending::PendingReason;
use crate::view::LeaseView;

pub const ADDRESS: &str = "/arbitration";

pub(super) fn all() -> Vec<Spec> {
    vec![Spec::of::<Acquire>(), Spec::of::<Release>(), Spec::of::<Status>()]
}

/// The pool manager's wish for a lease; answered by `lease.granted` or `lease.refused`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AcquireRequest {
    pub wish: EffectId,
    pub task: TaskRef,
    pub tenant: Tenant,
    pub priority: Priority,
    /// `cpu` in thousandths of a core, `memory` in bytes.
    pub amounts: BTreeMap<String, u64>,
    pub since: Timestamp,
}

operation!(Acquire {
    request: AcquireRequest,
    reply: Taken,
    name: "arbitration.acquire",
    address: ADDRESS,
    role: Service,
    durability: Call,
    mutates: true,
    doc: "Wishes for a lease. What can never be granted is answered by lease.refused at once.",
    example: AcquireRequest {
        wish: EffectId::default(),
        task: TaskRef::new(super::run::example_run(), super::task::example_task()),
        tenant: example_tenant(),
        priority: Priority::Normal,
        amounts: BTreeMap::from([("cpu".to_owned(), 1000)]),
        since: Timestamp(0)
    },
});

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ReleaseRequest {
    pub wish: EffectId,
    pub reason: String,
    /// Whose wish it was; said again, because wishes are forgotten when arbitration restarts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskRef>,
}

operation!(Release {
    request: ReleaseRequest,
    reply: Taken,
    name: "arbitration.release",
    address: ADDRESS,
    role: Service,
    durability: Process,
    mutates: true,
    doc: "Takes a wish for a lease back, granted or not.",
    example: ReleaseRequest { wish: EffectId::default(), reason: "withdrawn".into(), task: None },
});

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ArbitrationStatusRequest")]
pub struct StatusRequest {}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ArbitrationStatusReply")]
pub struct StatusReply {
    pub capacity: BTreeMap<String, u64>,
    pub free: BTreeMap<String, u64>,
    pub leases: Vec<LeaseView>,
    pub waiting: Vec<Waiting>,
    /// Weight and use of each tenant.
    pub tenants: Vec<TenantShare>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Waiting {
    pub task: TaskRef,
    pub reasons: Vec<PendingReason>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TenantShare {
    pub tenant: Tenant,
    pub weight: u32,
    /// Attempts that it has running.
    pub running: u32,
}

operation!(Status {
    request: StatusRequest,
    reply: StatusReply,
    name: "arbitration.status",
    address: ADDRESS,
    role: View,
    durability: Call,
    doc: "Shows capacity, leases, and what waits for whom.",
    example: StatusRequest {},
});

fn example_tenant() -> Tenant {
    "default".parse().unwrap_or_else(|_| unreachable!("a well-formed id"))
}
