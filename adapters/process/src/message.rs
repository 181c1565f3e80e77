//! What kernel, keeper, zygotes and workers say to each other beside the frames: one JSON object per packet.
//!
//! Every message has exactly one key, its name. Unknown fields are ignored, so that either side may be newer. A packet
//! is at most [`MESSAGE_BYTES_MAX`] long; descriptors ride along with the packet that names them.

use std::collections::BTreeMap;

use eclosion_schemas::WorkerId;
use serde::{Deserialize, Serialize};

/// Longest packet, either way. A longer one ends the connection.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// How many workers one `welcome` packet lists: `128 × (96 bytes of id + 208 of the rest) < 64 KiB`.
pub const WELCOME_WORKERS_MAX: usize = 128;

/// kernel → keeper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToKeeper {
    Hello {
        instance: String,
        epoch: u32,
    },
    Spawn(SpawnWorker),
    Signal {
        worker: WorkerId,
        signal: i32,
        tree: bool,
    },
    /// The exit was journaled; its record may go.
    Forget {
        worker: WorkerId,
    },
    Shutdown {},
}

/// A worker to start, with everything that its zygote is chosen by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpawnWorker {
    pub worker: WorkerId,
    /// The environment's id; with `python`, `preload`, `args_env` and `code_paths` it names the zygote.
    pub environment: String,
    pub python: String,
    /// Added to the zygote's cleared environment.
    #[serde(default)]
    pub args_env: BTreeMap<String, String>,
    #[serde(default)]
    pub preload: Vec<String>,
    /// Append files; made by the zygote if they do not exist.
    pub stdout: String,
    pub stderr: String,
    /// The worker's scratch directory, made on first use.
    pub cwd: String,
    /// Put last on the module path: the runtime's own directories.
    #[serde(default)]
    pub code_paths: Vec<String>,
}

/// keeper → kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromKeeper {
    /// In parts: `more` says that another welcome follows.
    Welcome {
        pid: u32,
        workers: Vec<KnownWorker>,
        #[serde(default)]
        more: bool,
    },
    /// + its fresh stream.
    Survivor {
        worker: WorkerId,
        pid: u32,
        start_ticks: u64,
    },
    /// + its stream.
    Spawned {
        worker: WorkerId,
        pid: u32,
        start_ticks: u64,
    },
    SpawnFailed {
        worker: WorkerId,
        error: String,
    },
    Exited {
        worker: WorkerId,
        pid: u32,
        #[serde(flatten)]
        how: How,
        peak_rss_bytes: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        oom_limit_bytes: Option<u64>,
    },
    /// The connection ends after this.
    Refused {
        error: String,
    },
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    Code(i32),
    Signal(i32),
}

/// One worker as the keeper knows it: alive, or dead and not yet forgotten.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownWorker {
    pub worker: WorkerId,
    pub pid: u32,
    pub start_ticks: u64,
    pub alive: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<How>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_rss_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oom_limit_bytes: Option<u64>,
}

/// keeper → zygote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToZygote {
    /// + stream, lifeline.
    Fork { worker: WorkerId, stdout: String, stderr: String, scratch: String },
}

/// zygote → keeper.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromZygote {
    Ready {
        pid: u32,
    },
    /// It could not import its preloads, or one of them computed.
    Failed {
        error: String,
    },
    Forked {
        worker: WorkerId,
        pid: u32,
    },
    ForkFailed {
        worker: WorkerId,
        error: String,
    },
}

/// keeper → worker, over its lifeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToWorker {
    /// + a fresh stream, which replaces the old one.
    Adopt {},
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_the_shape_that_python_reads() {
        let exited = FromKeeper::Exited {
            worker: WorkerId::new("w-1-1").unwrap(),
            pid: 7,
            how: How::Signal(9),
            peak_rss_bytes: 1024,
            oom_limit_bytes: None,
        };
        let text = serde_json::to_string(&exited).unwrap();
        assert_eq!(text, r#"{"exited":{"worker":"w-1-1","pid":7,"signal":9,"peak_rss_bytes":1024}}"#);
        assert_eq!(serde_json::from_str::<FromKeeper>(&text).unwrap(), exited);
        assert_eq!(serde_json::to_string(&ToWorker::Adopt {}).unwrap(), r#"{"adopt":{}}"#);
        let ready = r#"{"ready":{"pid":3,"python":"3.11.7","threads":["MainThread"]}}"#;
        assert_eq!(serde_json::from_str::<FromZygote>(ready).unwrap(), FromZygote::Ready { pid: 3 });
    }

    #[test]
    fn a_full_welcome_fits_one_packet() {
        let known = KnownWorker {
            worker: WorkerId::new("w".repeat(96)).unwrap(),
            pid: u32::MAX,
            start_ticks: u64::MAX,
            alive: false,
            status: Some(How::Code(i32::MIN)),
            peak_rss_bytes: Some(u64::MAX),
            oom_limit_bytes: Some(u64::MAX),
        };
        let welcome =
            FromKeeper::Welcome { pid: u32::MAX, workers: vec![known; WELCOME_WORKERS_MAX], more: true };
        assert!(serde_json::to_vec(&welcome).unwrap().len() <= MESSAGE_BYTES_MAX);
    }
}
