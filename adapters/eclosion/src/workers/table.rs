//! What is known of one worker that is alive, or about to be.

use std::collections::BTreeMap;
use std::sync::Arc;

use eclosion_ipc::worker::{KnownFences, Outcome, WorkerHandle};
use eclosion_process::ProcessId;
use eclosion_process::limits::Bounds;
use eclosion_schemas::certificate::Death;
use eclosion_schemas::ops::task::Execute;
use eclosion_schemas::{Attempt, EnvironmentId, Fence, TaskRef, Timestamp};
use eclosion_store_fs::code_files;
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
    /// The code that it was told last to import from.
    told: Option<Arc<Told>>,
    /// What it has imported is not what that code's hash names, or nobody here knows: it has to import anew.
    is_stale: bool,
    /// A survivor can have imported nothing before this.
    pub(super) born_at: Timestamp,
    /// What its group was told last, if there is one, and whether somebody is about to tell it more.
    kept: Option<Bounds>,
    keeping: bool,
    /// Somebody looks whether what waits here gets its turn.
    pub(super) watched: bool,
    /// How its process ended, once the keeper has said so.
    pub(super) exit: watch::Sender<Option<Exit>>,
    /// What its death is, if it is killed now: we are about to.
    pub(super) verdict: Option<Death>,
    /// It has said hello, or died before it could.
    pub(super) settled: watch::Sender<bool>,
}

/// Code that a worker was told to import from.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) root: String,
    pub(super) hash: String,
    /// What the worker was told as its hash: it imports anew whenever this changes.
    pub(super) label: String,
    /// It has imported none of it before.
    pub(super) at: Timestamp,
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
    /// By what it is computed, if its result is to be kept.
    pub(super) code: Option<Arc<Told>>,
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
            told: None,
            is_stale: true,
            kept: None,
            keeping: false,
            born_at: Timestamp::default(),
            watched: false,
            exit: watch::Sender::new(None),
            verdict: None,
            settled: watch::Sender::new(false),
        }
    }

    /// Of a worker that is started now: it has imported nothing.
    pub(super) fn starting() -> Self {
        Self { is_stale: false, ..Self::new() }
    }

    /// It is about to be sent this: what it has to import from, as it has to be told.
    pub(super) fn tell(&mut self, root: &str, hash: &str) -> Arc<Told> {
        if let Some(told) = self.told.as_ref().filter(|told| told.root == root && told.hash == hash) {
            return Arc::clone(told);
        }
        let at = code_files::now();
        let label = match std::mem::take(&mut self.is_stale) {
            true => format!("{hash}~{}", at.0),
            false => hash.to_owned(),
        };
        let told = Arc::new(Told { root: root.to_owned(), hash: hash.to_owned(), label, at });
        Arc::clone(self.told.insert(told))
    }

    /// The files were not, or not always, what this says: its next attempt imports them anew.
    pub(super) fn distrust(&mut self, told: &Arc<Told>) {
        if self.told.as_ref().is_some_and(|known| Arc::ptr_eq(known, told)) {
            (self.told, self.is_stale) = (None, true);
        }
    }

    /// What its group has to be told: the bounds of what it computes, once for each change, by one teller at a time. The
    /// teller asks again until there is nothing more.
    pub(super) fn unkept(&mut self, is_teller: bool) -> Option<Bounds> {
        if self.keeping && !is_teller {
            return None;
        }
        let bounds = self.attempts.first_key_value().map(|(_, attempt)| attempt.bounds).unwrap_or_default();
        self.keeping = self.kept.replace(bounds) != Some(bounds);
        self.keeping.then_some(bounds)
    }

    pub(super) fn has(&self, fence: Fence) -> bool {
        self.attempts.contains_key(&fence)
    }

    pub(super) fn take(
        &mut self,
        execute: &mut Execute,
        about: &(TaskRef, Attempt),
        bounds: Bounds,
        span: WorkSpan,
    ) {
        self.known.note(execute.fence);
        let told = self.tell(&execute.code, &execute.code_hash);
        execute.code_hash.clone_from(&told.label);
        let code = execute.keeps.then_some(told);
        let attempt = AtWorker { about: Some(about.clone()), early: None, bounds, code, span };
        self.attempts.insert(execute.fence, attempt);
    }

    /// What a survivor's attempt is about. Gives its outcome, if that came first.
    pub(super) fn learn(
        &mut self,
        execute: &Execute,
        about: &(TaskRef, Attempt),
        bounds: Bounds,
        span: WorkSpan,
    ) -> Option<(Outcome, Safe, WorkSpan, Option<Arc<Told>>)> {
        let fence = execute.fence;
        let (root, hash) = (execute.code.clone(), execute.code_hash.clone());
        let told = Told { root, hash, label: String::new(), at: self.born_at };
        let attempt = self.attempts.get_mut(&fence).filter(|attempt| attempt.about.is_none())?;
        attempt.about = Some(about.clone());
        attempt.bounds = bounds;
        attempt.span = span;
        attempt.code = execute.keeps.then(|| Arc::new(told));
        let (outcome, safe) = attempt.early.take()?;
        let AtWorker { span, code, .. } = self.attempts.remove(&fence)?;
        Some((outcome, safe, span, code))
    }

    /// A survivor's attempts that are over: their outcomes were heard by an earlier kernel.
    pub(super) fn forget_unwanted(&mut self, said: &[Fence], wanted: &[Fence]) {
        self.attempts.retain(|fence, _| !said.contains(fence) || wanted.contains(fence));
    }
}

#[cfg(test)]
mod tests {
    use eclosion_schemas::Epoch;

    use super::*;

    fn fence(counter: u64) -> Fence {
        Fence { epoch: Epoch(1), counter }
    }

    fn limited(memory_bytes: Option<u64>) -> AtWorker {
        AtWorker { bounds: Bounds { memory_bytes, processes: None }, ..AtWorker::default() }
    }

    #[test]
    fn a_group_is_told_the_bounds_of_what_is_computed_by_one_teller_at_a_time() {
        let mut entry = Entry::starting();
        assert_eq!(entry.unkept(false), Some(Bounds::default()), "what an earlier kernel said is not known");
        entry.attempts.insert(fence(1), limited(Some(10)));
        entry.attempts.insert(fence(2), limited(None));
        assert_eq!(entry.unkept(false), None, "somebody is at it, and asks again");
        assert_eq!(entry.unkept(true), Some(limited(Some(10)).bounds), "of the first, which is computed");
        assert_eq!(entry.unkept(true), None);
        assert_eq!(entry.unkept(false), None, "nothing has changed");
        entry.attempts.remove(&fence(1));
        assert_eq!(entry.unkept(false), Some(Bounds::default()));
        assert_eq!(entry.unkept(true), None);
        entry.attempts.clear();
        assert_eq!(entry.unkept(false), None, "an idle worker is held by nothing, and was told so");
    }

    #[test]
    fn a_worker_imports_anew_what_it_may_have_imported_wrongly() {
        let mut entry = Entry::starting();
        let first = entry.tell("/flow", "a");
        assert_eq!(first.label, "a", "one that is started has imported nothing");
        assert!(Arc::ptr_eq(&entry.tell("/flow", "a"), &first));
        entry.distrust(&first);
        let again = entry.tell("/flow", "a");
        assert!(again.label.starts_with("a~"), "{again:?}");
        entry.distrust(&first);
        assert!(Arc::ptr_eq(&entry.tell("/flow", "a"), &again), "that was said of what came before");
        assert_eq!(entry.tell("/flow", "b").label, "b", "another hash is another import anyway");
        let survivor = Entry::new().tell("/flow", "a");
        assert!(survivor.label.starts_with("a~"), "nobody here knows what it has imported: {survivor:?}");
    }
}
