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
    OutOfMemory {
        limit_bytes: u64,
        /// What its tree held when the limiter looked; none where a cgroup's counter is the evidence.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        measured_bytes: Option<u64>,
    },
    /// Our limiter ended it: its tree had more processes than its attempt may have.
    #[schemars(title = "DeathTooManyProcesses")]
    TooManyProcesses { limit: u32, counted: u32 },
    /// It could not be started.
    #[schemars(title = "DeathStart")]
    Start { text: String },
    /// It was gone when a new kernel looked for it, or its keeper died; nobody saw the status.
    #[schemars(title = "DeathUnseen")]
    Unseen { text: String },
    /// It broke the protocol and was ended for it.
    #[schemars(title = "DeathProtocol")]
    Protocol { text: String },
    /// It was started by hand, and its connection ended; what became of its process is not known here.
    #[schemars(title = "DeathDisconnected")]
    Disconnected { text: String },
}

impl std::fmt::Display for Death {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Death::Exited { code } => write!(f, "exited with code {code}"),
            Death::Killed { signal, sender: Some(who) } => {
                write!(f, "killed by {}, sent by {who}", signal_name(*signal))
            }
            Death::Killed { signal, sender: None } => {
                write!(f, "killed by {}, sender unknown", signal_name(*signal))
            }
            Death::OutOfMemory { limit_bytes, measured_bytes: Some(held) } => {
                write!(f, "out of memory: its processes held {held} bytes, the limit is {limit_bytes}")
            }
            Death::OutOfMemory { limit_bytes, measured_bytes: None } => {
                write!(f, "out of memory at its limit of {limit_bytes} bytes, as its cgroup counted")
            }
            Death::TooManyProcesses { limit, counted } => {
                write!(f, "ended with {counted} processes, the limit is {limit}")
            }
            Death::Start { text } => write!(f, "could not be started: {text}"),
            Death::Unseen { text } => write!(f, "gone, nobody saw how: {text}"),
            Death::Protocol { text } => write!(f, "ended for breaking the protocol: {text}"),
            Death::Disconnected { text } => write!(f, "its connection ended: {text}"),
        }
    }
}

impl Death {
    /// What the task itself is to blame for, on evidence: it went beyond a limit that it was given.
    #[must_use]
    pub fn is_of_a_limit(&self) -> bool {
        matches!(self, Death::OutOfMemory { .. } | Death::TooManyProcesses { .. })
    }

    /// The dotted reason of the error that whoever waits for the task is told.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Death::OutOfMemory { .. } => "worker.oom",
            Death::TooManyProcesses { .. } => "limit.processes",
            _ => "worker.died",
        }
    }
}

/// `SIGKILL` for 9; a number that has no name here is a real-time signal, or another system's.
#[must_use]
pub fn signal_name(signal: i32) -> String {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
        "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
        "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    let name = usize::try_from(signal).ok().and_then(|signal| NAMES.get(signal.checked_sub(1)?));
    name.map_or_else(|| format!("signal {signal}"), |name| format!("SIG{name}"))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_shown_by_its_name() {
        for (signal, name) in
            [(1, "SIGHUP"), (9, "SIGKILL"), (11, "SIGSEGV"), (15, "SIGTERM"), (31, "SIGSYS")]
        {
            assert_eq!(signal_name(signal), name);
        }
        for nameless in [0, -1, 32, 64, i32::MIN] {
            assert_eq!(signal_name(nameless), format!("signal {nameless}"));
        }
        let killed = Death::Killed { signal: 9, sender: None };
        assert_eq!(killed.to_string(), "killed by SIGKILL, sender unknown");
    }
}
