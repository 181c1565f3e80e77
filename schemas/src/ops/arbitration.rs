//! Resources, locks, rates and leases. Served by arbitration.

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::operation;
use super::pool::Taken;
use crate::error::{Code, Error};
use crate::flow::Priority;
use crate::ids::{EffectId, TaskRef, Tenant, Timestamp};
use crate::operation::Spec;
use crate::pending::{Holder, PendingReason};
use crate::view::{ClientView, LeaseView};

pub const ADDRESS: &str = "/arbitration";

pub(super) fn all() -> Vec<Spec> {
    vec![Spec::of::<Acquire>(), Spec::of::<Release>(), Spec::of::<Status>()]
}

/// All of a lock. Who is alone takes all, who shares takes one part.
pub const LOCK_WHOLE: u64 = 1 << 20;

/// What a key of a map of amounts stands for: `lock:db`, `rate:openai`, and any other word for what is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scarce<'a> {
    Resource(&'a str),
    /// [`LOCK_WHOLE`], or 1 where it is shared.
    Lock(&'a str),
    /// Tokens.
    Rate(&'a str),
}

impl<'a> Scarce<'a> {
    #[must_use]
    pub fn of(key: &'a str) -> Self {
        match key.split_once(':') {
            Some(("lock", name)) => Self::Lock(name),
            Some(("rate", name)) => Self::Rate(name),
            _ => Self::Resource(key),
        }
    }

    #[must_use]
    pub fn is_rate(self) -> bool {
        matches!(self, Self::Rate(_))
    }
}

/// The key.
impl fmt::Display for Scarce<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resource(name) => f.write_str(name),
            Self::Lock(name) => write!(f, "lock:{name}"),
            Self::Rate(name) => write!(f, "rate:{name}"),
        }
    }
}

/// Why a wish for this much can never be granted, if it cannot. `ceilings` is the most that one wish can get, by key;
/// locks need no mention.
#[must_use]
pub fn never(ceilings: &BTreeMap<String, u64>, key: &str, amount: u64) -> Option<Error> {
    let refused = |message: String, help: String| {
        Some(Error::new(Code::Exhausted, "arbitration.impossible", message).help(help))
    };
    match (Scarce::of(key), ceilings.get(key)) {
        (Scarce::Lock(_), _) => None,
        (_, Some(ceiling)) if amount <= *ceiling => None,
        (Scarce::Rate(name), Some(burst)) => refused(
            format!("it needs {amount} of rate `{name}` at once, and its burst is {burst}"),
            format!("raise it where the kernel is started: rates.{name} = \"60/min burst {amount}\""),
        ),
        (Scarce::Rate(name), None) => refused(
            format!("there is no rate `{name}`"),
            format!("say it where the kernel is started: rates.{name} = \"60/min\""),
        ),
        (Scarce::Resource(name), Some(ceiling)) => refused(
            format!("it needs {amount} of {name}, and there is {ceiling} in all"),
            format!("ask for less in `resources`, or give the kernel more {name}"),
        ),
        (Scarce::Resource(name), None) => refused(
            format!("it needs {amount} of {name}, of which the kernel knows nothing"),
            format!("say how much there is where the kernel is started: resources.{name} = {amount}"),
        ),
    }
}

/// The pool manager's wish for a lease; answered by `lease.granted` or `lease.refused`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AcquireRequest {
    pub wish: EffectId,
    pub task: TaskRef,
    pub tenant: Tenant,
    pub priority: Priority,
    /// `cpu` in thousandths of a core, `memory` in bytes; locks and rates by the keys of [`Scarce`].
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
    /// Locks that are held or waited for.
    #[serde(default)]
    pub locks: Vec<LockStatus>,
    #[serde(default)]
    pub rates: Vec<RateStatus>,
    /// How many wishes wait in all; those shown are the oldest.
    #[serde(default)]
    pub waiting_count: u64,
    /// Which tasks' turn it would be if there were enough of everything, in order.
    #[serde(default)]
    pub next: Vec<TaskRef>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LockStatus {
    pub lock: String,
    /// It is held by some who share it.
    pub shared: bool,
    pub holders: Vec<Holder>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RateStatus {
    pub rate: String,
    /// `60/min burst 10`
    pub limit: String,
    /// Tokens that can be had now.
    pub free: u64,
    pub burst: u64,
    /// When there is one more.
    pub next_at: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Waiting {
    /// Absent where a client waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskRef>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<ClientView>,
    pub reasons: Vec<PendingReason>,
}

/// Who waits, in a word.
impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.task, &self.client) {
            (Some(task), _) => task.fmt(f),
            (None, Some(client)) => client.fmt(f),
            (None, None) => f.write_str("somebody"),
        }
    }
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
