//! Services that the kernel holds itself: started in a worker, begun again when they die, durable.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::super::audit::Act;
use super::super::operation;
use crate::error::Error;
use crate::flow::EnvironmentSpec;
use crate::ids::{ServiceName, Timestamp};
use crate::operation::Spec;

pub const ADDRESS: &str = "/services";

/// What a kernel with workers serves.
#[must_use]
pub fn managed() -> Vec<Spec> {
    vec![
        Spec::of::<Start>(),
        Spec::of::<Stop>(),
        Spec::of::<Restart>(),
        Spec::of::<List>(),
        Spec::of::<Up>(),
        Spec::of::<Down>(),
    ]
}

/// What a service is made of, and when it is begun again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceSpec {
    /// `module:Class`, decorated with `@service`.
    pub object: String,
    /// The root of its code: what modules are imported from.
    pub code: String,
    #[serde(default)]
    pub environment: EnvironmentSpec,
    #[serde(default)]
    pub restart: RestartPolicy,
    /// More restarts than this within the window, and it has failed.
    #[serde(default = "restarts_max")]
    pub restarts_max: u32,
    #[serde(default = "window_ms")]
    pub window_ms: u64,
}

fn restarts_max() -> u32 {
    5
}

fn window_ms() -> u64 {
    30_000
}

/// When a service that has ended is begun again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RestartPolicy {
    Never,
    /// When it was killed, failed or lost its kernel; not when it ended by itself.
    #[default]
    OnFailure,
    Always,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ServiceState {
    /// A worker is found for it, and it makes its object.
    Starting,
    /// Its address is served.
    Ready,
    /// It has ended, and is begun again in a moment.
    Backoff,
    /// It has ended more often than it may, or may not be begun again.
    Failed,
    /// It has ended by itself, or an operator has stopped it.
    Stopped,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceView {
    pub name: ServiceName,
    pub spec: ServiceSpec,
    pub state: ServiceState,
    pub since: Timestamp,
    /// The n-th process of it; the first is 1.
    pub life: u64,
    /// Restarts inside the window that the budget counts.
    pub restarts: u32,
    /// Where it is called, while it is ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// When it is begun again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub again_at: Option<Timestamp>,
    /// How its last life ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<Error>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ServiceStartRequest")]
pub struct StartRequest {
    pub name: ServiceName,
    pub spec: ServiceSpec,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ServiceReply")]
pub struct ServiceReply {
    pub service: ServiceView,
}

operation!(Start {
    request: StartRequest,
    reply: ServiceReply,
    name: "service.start",
    address: ADDRESS,
    role: Operate,
    durability: Power,
    mutates: true,
    act: |request| Some(on(&request.name, "")),
    doc: "Starts a Python object as a service, and begins it again as its policy says, in later lives of the kernel too.",
    example: StartRequest { name: example_name(), spec: example_spec() },
});

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ServiceStopRequest")]
pub struct StopRequest {
    pub name: ServiceName,
    #[serde(default)]
    pub reason: String,
}

operation!(Stop {
    request: StopRequest,
    reply: ServiceReply,
    name: "service.stop",
    address: ADDRESS,
    role: Operate,
    durability: Power,
    mutates: true,
    act: |request| Some(on(&request.name, &request.reason)),
    doc: "Ends a service; it is not begun again before it is started or restarted.",
    example: StopRequest { name: example_name(), reason: "no longer needed".into() },
});

operation!(Restart {
    request: StopRequest,
    reply: ServiceReply,
    name: "service.restart",
    address: ADDRESS,
    role: Operate,
    durability: Power,
    mutates: true,
    act: |request| Some(on(&request.name, &request.reason)),
    doc: "Begins the next life of a service, with its code as it is now. Its earlier deaths are forgotten.",
    example: StopRequest { name: example_name(), reason: "new code".into() },
});

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ServiceListRequest")]
pub struct ListRequest {
    /// One of them; all, if none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<ServiceName>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ServiceListReply")]
pub struct ListReply {
    pub services: Vec<ServiceView>,
}

operation!(List {
    request: ListRequest,
    reply: ListReply,
    name: "service.ls",
    address: ADDRESS,
    role: View,
    durability: Call,
    doc: "Lists the services that the kernel holds.",
    example: ListRequest { name: None },
});

/// One life of a service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct ServiceLife {
    pub name: ServiceName,
    pub life: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ServiceUpRequest")]
pub struct UpRequest {
    pub of: ServiceLife,
    pub address: String,
    pub pid: u32,
}

/// Taken note of; what is about a life that is over changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ServiceNoted")]
pub struct Noted {}

operation!(Up {
    request: UpRequest,
    reply: Noted,
    name: "service.up",
    address: ADDRESS,
    role: Service,
    durability: Process,
    mutates: true,
    doc: "Reports that a service's address is served.",
    example: UpRequest {
        of: ServiceLife { name: example_name(), life: 1 },
        address: "/counter".into(),
        pid: 4242
    },
});

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ServiceDownRequest")]
pub struct DownRequest {
    pub of: ServiceLife,
    /// How it ended; nothing, if by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Error>,
}

operation!(Down {
    request: DownRequest,
    reply: Noted,
    name: "service.down",
    address: ADDRESS,
    role: Service,
    durability: Process,
    mutates: true,
    doc: "Reports that a service has ended.",
    example: DownRequest { of: ServiceLife { name: example_name(), life: 1 }, error: None },
});

fn on(name: &ServiceName, reason: &str) -> Act {
    Act::on(format_args!("service {name}"), reason)
}

fn example_name() -> ServiceName {
    ServiceName::new("counter").unwrap_or_else(|_| unreachable!("a well-formed name"))
}

fn example_spec() -> ServiceSpec {
    ServiceSpec {
        object: "counter:Counter".into(),
        code: "/home/ada/desk".into(),
        environment: EnvironmentSpec::default(),
        restart: RestartPolicy::OnFailure,
        restarts_max: restarts_max(),
        window_ms: window_ms(),
    }
}
