//! What becomes of services that the kernel holds. Decided by the actor of services alone.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Event;
use crate::error::Error;
use crate::ids::{ServiceName, Timestamp};
use crate::ops::service::ServiceSpec;

/// A service is wanted from now on; its earlier deaths are forgotten.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceDeclared {
    pub name: ServiceName,
    pub spec: ServiceSpec,
    /// Why an operator began it again; empty for a start.
    #[serde(default)]
    pub reason: String,
}
event!(ServiceDeclared, "service.declared");

/// A life of it begins: its process is owed from now on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceStarted {
    pub name: ServiceName,
    pub life: u64,
}
event!(ServiceStarted, "service.started");

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceReady {
    pub name: ServiceName,
    pub life: u64,
    pub address: String,
    pub pid: u32,
}
event!(ServiceReady, "service.ready");

/// What follows the end of a life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "tag", rename_all = "snake_case")]
pub enum AfterEnd {
    /// The next life, for which the budget pays.
    #[schemars(title = "AfterEndAgain")]
    Again { at: Timestamp },
    /// The next life at once: it was the kernel that died, and not the service.
    #[schemars(title = "AfterEndResume")]
    Resume {},
    /// It ended by itself, and its policy leaves it at that.
    #[schemars(title = "AfterEndOver")]
    Over {},
    /// It has ended more often than it may, or its policy is never to begin it again.
    #[schemars(title = "AfterEndGivenUp")]
    GivenUp {},
}

/// A life of it is over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceEnded {
    pub name: ServiceName,
    pub life: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Error>,
    pub then: AfterEnd,
}
event!(ServiceEnded, "service.ended");

/// An operator has stopped it; its process is not owed any more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceStopped {
    pub name: ServiceName,
    #[serde(default)]
    pub reason: String,
}
event!(ServiceStopped, "service.stopped");

/// A service that was stopped has given way to others, and is forgotten.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceForgotten {
    pub name: ServiceName,
}
event!(ServiceForgotten, "service.forgotten");
