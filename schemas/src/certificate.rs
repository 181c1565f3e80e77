//! Why something died: the death certificate.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::{Attempt, TaskRef, Timestamp, WorkerId};

/// How a worker's process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "tag", rename_all = "snake_case")]
pub enum Death {
    /// It called exit.
    #[schemars(title = "DeathExited")]
    Exited { code: i32 },
    /// A signal ended it; `sender` is named only on evidence.
    #[schemars(title = "DeathKilled")]
    Killed {
        signal: i32,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sender: Option<String>,
    },
    /// Out of memory, on evidence of a cgroup counter or our own limiter.
    #[schemars(title = "DeathOutOfMemory")]
    OutOfMemory { limit_bytes: u64 },
    /// It could not be started.
    #[schemars(title = "DeathStart")]
    Start { text: String },
    /// It was gone when a new kernel looked for it, or its keeper died; nobody saw the status.
    #[schemars(title = "DeathUnseen")]
    Unseen { text: String },
    /// It broke the protocol and was ended for it.
    #[schemars(title = "DeathProtocol")]
    Protocol { text: String },
}

impl std::fmt::Display for Death {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Death::Exited { code } => write!(f, "exited with code {code}"),
            Death::Killed { signal, sender: Some(who) } => {
                write!(f, "killed by signal {signal}, sent by {who}")
            }
            Death::Killed { signal, sender: None } => write!(f, "killed by signal {signal}, sender unknown"),
            Death::OutOfMemory { limit_bytes } => {
                write!(f, "out of memory at its limit of {limit_bytes} bytes")
            }
            Death::Start { text } => write!(f, "could not be started: {text}"),
            Death::Unseen { text } => write!(f, "gone, nobody saw how: {text}"),
            Death::Protocol { text } => write!(f, "ended for breaking the protocol: {text}"),
        }
    }
}

/// Everything known about the death of one worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DeathCertificate {
    pub worker: WorkerId,
    pub pid: u32,
    pub death: Death,
    pub at: Timestamp,
    /// What it was computing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskRef>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<Attempt>,
    /// Peak resident memory in bytes, where the process was waited for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_rss_bytes: Option<u64>,
    /// Memory free on the machine when it was found dead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free_memory_bytes: Option<u64>,
    /// The last lines of its output, oldest first.
    #[serde(default)]
    pub last_lines: Vec<String>,
}
