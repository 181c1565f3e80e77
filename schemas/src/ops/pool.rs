//! Workers and environments. Served by the pool manager.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::arbitration::Waiting;
use super::operation;
use super::task::{Execute, Limits, example_fence, example_worker};
use crate::certificate::{Death, DeathCertificate};
use crate::error::Error;
use crate::flow::{EnvironmentSpec, Priority};
use crate::ids::{EffectId, EnvironmentId, Fence, Tenant, Timestamp, WorkerId};
use crate::operation::Spec;
use crate::payload::Payload;
use crate::pending::PendingReason;
use crate::view::{EnvironmentView, TaskReport, WorkerView};

mod calls;
mod manage;
pub use self::calls::*;
pub use self::manage::*;

pub const ADDRESS: &str = "/pool";
/// Serves `pool.call`: it holds reservations and owns no state, so it stands beside the pool manager.
pub const CALLS: &str = "/calls";

pub(super) fn all() -> Vec<Spec> {
    let mut all = vec![
        Spec::of::<Dispatch>(),
        Spec::of::<Withdraw>(),
        Spec::of::<WorkerUp>(),
        Spec::of::<WorkerDown>(),
        Spec::of::<WorkerIdle>(),
        Spec::of::<EnvironmentBuilt>(),
        Spec::of::<Status>(),
        Spec::of::<Call>(),
        Spec::of::<Stream>(),
        Spec::of::<Reserve>(),
        Spec::of::<Unreserve>(),
    ];
    all.extend(manage::all());
    all.extend(calls::all());
    all
}

/// The DAG tracker's wish that an attempt be started. `execute.attempt` and `execute.fence` are filled in by the pool
/// manager, which decides them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Wish {
    pub id: EffectId,
    pub execute: Execute,
    pub environment: EnvironmentId,
    pub spec: EnvironmentSpec,
    pub tenant: Tenant,
    pub priority: Priority,
    pub ready_at: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DispatchRequest {
    pub wishes: Vec<Wish>,
}

/// Taken: the incarnation that said so holds it until it is answered by `attempt.started` or withdrawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Taken {}

operation!(Dispatch {
    request: DispatchRequest,
    reply: Taken,
    name: "pool.dispatch",
    address: ADDRESS,
    role: Service,
    durability: Call,
    mutates: true,
    doc: "Wishes that attempts be started. The same wish again changes nothing.",
    example: DispatchRequest { wishes: Vec::new() },
});

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WithdrawRequest {
    pub wishes: Vec<EffectId>,
}

operation!(Withdraw {
    request: WithdrawRequest,
    reply: Taken,
    name: "pool.withdraw",
    address: ADDRESS,
    role: Service,
    durability: Call,
    mutates: true,
    doc: "Takes wishes back that no attempt has answered.",
    example: WithdrawRequest { wishes: Vec::new() },
});

/// A worker's holder has its connection: newly started, or of an earlier kernel and adopted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerUpRequest {
    pub worker: WorkerId,
    pub pid: u32,
    pub start_ticks: u64,
    pub boot_id: String,
    /// What it computes, and what it has computed and was not told that it is safe; oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attempts: Vec<Fence>,
    /// It was started by hand and attached by itself, for attempts of this environment; none for the pool's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attached: Option<EnvironmentId>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerUpReply {
    /// The attempts that it was given and that are not over; nobody waits for the outcome of another.
    pub wanted: Vec<Fence>,
}

operation!(WorkerUp {
    request: WorkerUpRequest,
    reply: WorkerUpReply,
    name: "pool.worker_up",
    address: ADDRESS,
    role: Service,
    durability: Process,
    mutates: true,
    doc: "Reports that a worker is attached.",
    example: WorkerUpRequest {
        worker: example_worker(),
        pid: 4242,
        start_ticks: 1,
        boot_id: "b".into(),
        attempts: Vec::new(),
        attached: None,
    },
});

/// A worker is gone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerDownRequest {
    pub worker: WorkerId,
    pub death: Death,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_rss_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free_memory_bytes: Option<u64>,
    #[serde(default)]
    pub last_lines: Vec<String>,
    /// The kernel itself ended it, because it stops.
    #[serde(default)]
    pub wanted: bool,
}

operation!(WorkerDown {
    request: WorkerDownRequest,
    reply: Taken,
    name: "pool.worker_down",
    address: ADDRESS,
    role: Service,
    durability: Process,
    mutates: true,
    doc: "Reports that a worker is gone.",
    example: WorkerDownRequest {
        worker: example_worker(),
        death: Death::Exited { code: 1 },
        peak_rss_bytes: None,
        free_memory_bytes: None,
        last_lines: Vec::new(),
        wanted: false
    },
});

/// A worker has stopped computing an attempt whose end the DAG tracker had decided before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerIdleRequest {
    pub worker: WorkerId,
    pub fence: Fence,
}

operation!(WorkerIdle {
    request: WorkerIdleRequest,
    reply: Taken,
    name: "pool.worker_idle",
    address: ADDRESS,
    role: Service,
    durability: Process,
    mutates: true,
    doc: "Reports that a worker stopped computing a stale attempt.",
    example: WorkerIdleRequest { worker: example_worker(), fence: example_fence() },
});

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EnvironmentBuiltRequest {
    pub environment: EnvironmentId,
    /// The interpreter, or why it cannot be built.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub python: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Error>,
}

operation!(EnvironmentBuilt {
    request: EnvironmentBuiltRequest,
    reply: Taken,
    name: "pool.environment_built",
    address: ADDRESS,
    role: Service,
    durability: Process,
    mutates: true,
    doc: "Reports that an environment was built, or why not.",
    example: EnvironmentBuiltRequest {
        environment: example_environment(),
        python: Some("/usr/bin/python3".into()),
        error: None
    },
});

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "PoolStatusRequest")]
pub struct StatusRequest {}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "PoolStatusReply")]
pub struct StatusReply {
    /// The living.
    pub workers: Vec<WorkerView>,
    /// How the last of the others died, newest last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub died: Vec<DeathCertificate>,
    pub environments: Vec<EnvironmentView>,
    pub workers_max: u32,
    /// Wishes not answered yet.
    pub waiting: u32,
    /// Why the first of them wait.
    #[serde(default)]
    pub pending: Vec<Waiting>,
    /// Nothing is started, for this reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drained: Option<String>,
    /// How limits of memory and processes are kept: `sampling`, or `cgroup and sampling`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub containment: String,
    /// Why the system does not keep them as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why_no_cgroup: Option<String>,
    /// Tasks that are refused because equal ones have killed workers.
    #[serde(default)]
    pub quarantined: u32,
}

operation!(Status {
    request: StatusRequest,
    reply: StatusReply,
    name: "pool.status",
    address: ADDRESS,
    role: View,
    durability: Call,
    doc: "Shows workers, environments and what waits.",
    example: StatusRequest {},
});

/// One call of a Python function that is not part of a run and not journaled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CallRequest {
    pub function: String,
    pub code: String,
    /// With another one, modules from `code` are imported again.
    #[serde(default)]
    pub code_hash: String,
    #[serde(default)]
    pub environment: EnvironmentSpec,
    /// Keyword arguments as one msgpack map; empty for none.
    #[serde(default)]
    pub arguments: Payload,
    /// More of them, as plain data.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub with: BTreeMap<String, serde_json::Value>,
    /// How long the function may take, from when a worker has it; then it is cancelled. None: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// What the worker keeps it to, `open_files` and `file_bytes`; `processes` is refused, as nobody counts those of a call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
}

operation!(Call {
    request: CallRequest,
    reply: Payload,
    item: TaskReport,
    name: "pool.call",
    address: CALLS,
    role: Operate,
    durability: Call,
    mutates: true,
    doc: "Calls a Python function on a warm worker; nothing is journaled.",
    example: CallRequest {
        function: "math:hypot".into(),
        code: "/".into(),
        code_hash: String::new(),
        environment: EnvironmentSpec::default(),
        arguments: Payload::default(),
        with: BTreeMap::new(),
        timeout_ms: None,
        limits: None
    },
});

operation!(Stream {
    request: CallRequest,
    reply: Payload,
    item: TaskReport,
    name: "pool.stream",
    address: CALLS,
    role: Operate,
    durability: Call,
    mutates: true,
    doc: "Calls a Python generator on a warm worker: its values are the items, what it returns is the reply.",
    example: CallRequest {
        function: "os:walk".into(),
        code: "/".into(),
        code_hash: String::new(),
        environment: EnvironmentSpec::default(),
        arguments: Payload::default(),
        with: BTreeMap::from([("top".to_owned(), "/etc/ssl".into())]),
        timeout_ms: None,
        limits: None
    },
});

/// For a call: an idle worker that gets no attempt meanwhile.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ReserveRequest {
    /// The asker's own number; the same again renews the reservation.
    pub ticket: u64,
    pub environment: EnvironmentId,
    pub spec: EnvironmentSpec,
    /// It holds its worker for good, as a service does: the pool may have one worker more.
    #[serde(default)]
    pub lasting: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ReserveReply {
    /// Nothing yet: one is being started or waited for; ask again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<WorkerId>,
    /// There will be none: the environment was built in vain since this ticket was first seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Error>,
    /// Why there is none yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pending: Vec<PendingReason>,
}

operation!(Reserve {
    request: ReserveRequest,
    reply: ReserveReply,
    name: "pool.reserve",
    address: ADDRESS,
    role: Service,
    durability: Call,
    mutates: true,
    doc: "Reserves an idle worker for a call that is not journaled; it ends when it is not renewed for a minute.",
    example: ReserveRequest {
        ticket: 1,
        environment: example_environment(),
        spec: EnvironmentSpec::default(),
        lasting: false
    },
});

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UnreserveRequest {
    pub ticket: u64,
}

operation!(Unreserve {
    request: UnreserveRequest,
    reply: Taken,
    name: "pool.unreserve",
    address: ADDRESS,
    role: Service,
    durability: Call,
    mutates: true,
    doc: "Gives a reserved worker back.",
    example: UnreserveRequest { ticket: 1 },
});

fn example_environment() -> EnvironmentId {
    "0f3a".parse().unwrap_or_else(|_| unreachable!("a well-formed id"))
}
