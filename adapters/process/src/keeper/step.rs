//! One step of the keeper, as data: what happened, and what is to be done about it.

use std::collections::BTreeMap;

use eclosion_schemas::WorkerId;

use crate::message::{FromKeeper, FromZygote, How, SpawnWorker};
use crate::procfs::ProcessId;

/// Numbers one connection; larger is newer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct KernelId(pub(super) u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ZygoteId(pub(super) u64);

/// What a zygote is chosen by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ZygoteKey {
    pub(super) environment: String,
    pub(super) python: String,
    pub(super) preload: Vec<String>,
    pub(super) args_env: BTreeMap<String, String>,
    pub(super) code_paths: Vec<String>,
}

impl ZygoteKey {
    #[must_use]
    pub(super) fn of(spawn: &SpawnWorker) -> Self {
        Self {
            environment: spawn.environment.clone(),
            python: spawn.python.clone(),
            preload: spawn.preload.clone(),
            args_env: spawn.args_env.clone(),
            code_paths: spawn.code_paths.clone(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Exit {
    pub(super) how: How,
    pub(super) peak_rss_bytes: u64,
    /// On its group's evidence.
    pub(super) oom_limit_bytes: Option<u64>,
}

#[derive(Debug)]
pub(super) enum Input {
    Hello {
        kernel: KernelId,
        instance: String,
        epoch: u32,
    },
    KernelGone {
        kernel: KernelId,
    },
    Spawn(SpawnWorker),
    Signal {
        worker: WorkerId,
        signal: i32,
        tree: bool,
    },
    Forget {
        worker: WorkerId,
    },
    Shutdown,
    Zygote {
        zygote: ZygoteId,
        said: FromZygote,
        /// For `forked`: the named process, where it descends from the keeper or has ended as its child.
        process: Option<ProcessId>,
    },
    ZygoteGone {
        zygote: ZygoteId,
        text: String,
    },
    /// A child that is no zygote ended.
    Reaped {
        process: ProcessId,
        exit: Exit,
    },
    /// The keeper has no child.
    Childless,
    Tick,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Action {
    /// From now on this one is the kernel.
    Attend(KernelId),
    /// Say why and close.
    Refuse(KernelId, String),
    Tell(FromKeeper),
    /// With the stream that was made for this worker.
    TellWithStream(WorkerId, FromKeeper),
    StartZygote(ZygoteId, ZygoteKey),
    EndZygote(ZygoteId),
    /// Make its stream and lifeline, and send the request with them.
    Fork(ZygoteId, SpawnWorker),
    /// A worker that was forked: place and brand it, before user code runs in it.
    Adopt {
        worker: WorkerId,
        process: ProcessId,
        brand: u32,
    },
    /// A fresh stream over the lifeline; `survivor` with the other end.
    HandOver(WorkerId, ProcessId),
    Signal {
        process: ProcessId,
        brand: u32,
        signal: i32,
        tree: bool,
    },
    /// Close what is held for a worker.
    Release(WorkerId),
    /// A signal to every descendant of the keeper.
    SignalAll(i32),
    Exit,
}
