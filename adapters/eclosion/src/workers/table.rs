//! What is known of one worker that is alive, or about to be.

use std::collections::BTreeMap;

use eclosion_ipc::worker::{KnownFences, Outcome, WorkerHandle};
use eclosion_process::ProcessId;
use eclosion_process::limits::Bounds;
use eclosion_schemas::certificate::Death;
use eclosion_schemas::{Attempt, EnvironmentId, Fence, TaskRef};
use tokio::sync::{oneshot, watch};

use super::spans::WorkSpan;

/// One worker that is alive, or about to be.
pub(super) struct Entry {
    pub(super) link: Option<WorkerHandle>,
    /// It was started by hand, for attempts of this environment.
    pub(super) attached: Option<EnvironmentId>,
    /// Its process, once the keeper has named it.
    pub(super) process: Option<ProcessId>,
    /// What it was given and has not concluded; it computes the first.
    pub(super) attempts: BTreeMap<Fence, AtWorker>,
    pub(super) known: KnownFences,
    /// Somebody looks whether what waits here gets its turn.
    pub(super) watched: bool,
    /// How its process ended, once the keeper has said so.
    pub(super) exit: watch::Sender<Option<Exit>>,
    /// What its death is, if it is killed now: we are about to.
    pub(super) verdict: Option<Death>,
    /// It has said hello, or died before it could.
    pub(super) settled: watch::Sender<bool>,
}

/// Told once an outcome is safe, or nobody wants it; the worker keeps its copy until then.
pub(super) type Safe = oneshot::Sender<()>;

/// An attempt that a worker computes, or is to compute.
#[derive(Default)]
pub(super) struct AtWorker {
    /// Of a survivor only the fence is known, until the pool manager has executed it once more.
    pub(super) about: Option<(TaskRef, Attempt)>,
    /// The outcome of a survivor that came before that.
    pub(super) early: Option<(Outcome, Safe)>,
    /// What its tree may take up meanwhile.
    pub(super) bounds: Bounds,
    pub(super) span: WorkSpan,
}

#[derive(Clone, Debug)]
pub(super) struct Exit {
    pub(super) death: Death,
    pub(super) peak_rss_bytes: Option<u64>,
}

impl Entry {
    pub(super) fn new() -> Self {
        Self {
            link: None,
            attached: None,
            process: None,
            attempts: BTreeMap::new(),
            known: KnownFences::default(),
            watched: false,
            exit: watch::Sender::new(None),
            verdict: None,
            settled: watch::Sender::new(false),
        }
    }

    pub(super) fn has(&self, fence: Fence) -> bool {
        self.attempts.contains_key(&fence)
    }

    pub(super) fn take(&mut self, fence: Fence, about: &(TaskRef, Attempt), bounds: Bounds, span: WorkSpan) {
        self.known.note(fence);
        self.attempts.insert(fence, AtWorker { about: Some(about.clone()), early: None, bounds, span });
    }

    /// What a survivor's attempt is about. Gives its outcome, if that came first.
    pub(super) fn learn(
        &mut self,
        fence: Fence,
        about: &(TaskRef, Attempt),
        bounds: Bounds,
        span: WorkSpan,
    ) -> Option<(Outcome, Safe, WorkSpan)> {
        let attempt = self.attempts.get_mut(&fence).filter(|attempt| attempt.about.is_none())?;
        attempt.about = Some(about.clone());
        attempt.bounds = bounds;
        attempt.span = span;
        let (outcome, safe) = attempt.early.take()?;
        let span = self.attempts.remove(&fence)?.span;
        Some((outcome, safe, span))
    }

    /// A survivor's attempts that are over: their outcomes were heard by an earlier kernel.
    pub(super) fn forget_unwanted(&mut self, said: &[Fence], wanted: &[Fence]) {
        self.attempts.retain(|fence, _| !said.contains(fence) || wanted.contains(fence));
    }
}
