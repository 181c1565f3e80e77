//! What the records and the disk say of retention, read without the stale manager: who holds what, and whether it is there.

use std::collections::{BTreeMap, BTreeSet};

use eclosion_kernel::journal::Record;
use eclosion_schemas::events::{
    ArtifactPinned, ArtifactTagged, ArtifactUnpinned, ArtifactUntagged, EnvironmentReady, GcCollected,
    GcErased, GcMoved, GcPurging, GcRestored, Moved, RunFinished, RunStarted, StepCommitted, StepReused,
    WorkerDied, WorkerRequested,
};
use eclosion_schemas::ops::gc::{Item, ItemKind};
use eclosion_schemas::ops::task::{Argument, Execute};
use eclosion_schemas::{EnvironmentId, ItemId, Payload, RunId, Seq, TaskRef, WorkerId};
use eclosion_stale_manager::state::{CollectReply, CollectRequest, Done, Outcome};

use super::Checks;
use crate::files;
use crate::world::World;

#[derive(Debug, Default)]
pub(super) struct Retained {
    /// Unfinished, with what each needs.
    runs: BTreeMap<RunId, EnvironmentId>,
    workers: BTreeMap<WorkerId, EnvironmentId>,
    /// Found or built for somebody who still uses it; whoever comes later has it looked for again.
    ready: BTreeSet<EnvironmentId>,
    /// Which runs name a content, and since when.
    names: BTreeMap<Item, BTreeMap<RunId, Seq>>,
    pins: BTreeSet<(RunId, String, String)>,
    tags: BTreeMap<(String, String), RunId>,
    /// In the trash, or on their way there; true for what is to leave it for good.
    collected: BTreeMap<Item, bool>,
}

impl Retained {
    pub(super) fn read(&mut self, record: &Record) -> Result<(), String> {
        if let Some(event) = record.event::<RunStarted>() {
            self.runs.insert(event.run.clone(), event.environment.clone());
        } else if let Some(event) = record.event::<RunFinished>() {
            self.runs.remove(&event.run);
            self.forget_unused();
        } else if let Some(event) = record.event::<StepCommitted>() {
            self.name(&event.run, &event.output, record.seq);
        } else if let Some(event) = record.event::<StepReused>() {
            self.name(&event.run, &event.output, record.seq);
        } else if let Some(event) = record.event::<WorkerRequested>() {
            self.workers.insert(event.worker.clone(), event.environment.clone());
        } else if let Some(event) = record.event::<WorkerDied>() {
            self.workers.remove(&event.worker);
            self.forget_unused();
        } else if let Some(event) = record.event::<EnvironmentReady>() {
            self.ready.insert(event.environment.clone());
        } else if let Some(event) = record.event::<ArtifactPinned>() {
            self.pins.insert((event.run.clone(), event.task.to_string(), event.holder.clone()));
        } else if let Some(event) = record.event::<ArtifactUnpinned>() {
            self.pins.remove(&(event.run.clone(), event.task.to_string(), event.holder.clone()));
        } else if let Some(event) = record.event::<ArtifactTagged>() {
            self.tags.insert((event.path.clone(), event.tag.clone()), event.run.clone());
        } else if let Some(event) = record.event::<ArtifactUntagged>() {
            self.tags.remove(&(event.path.clone(), event.tag.clone()));
        } else {
            self.collecting(record)?;
        }
        Ok(())
    }

    fn collecting(&mut self, record: &Record) -> Result<(), String> {
        if let Some(event) = record.event::<GcCollected>() {
            if let Some(holder) = self.holder(&event.item) {
                return Err(format!("{} was collected, and {holder} holds it", event.item));
            }
            if self.collected.insert(event.item.clone(), false).is_some() {
                return Err(format!("{} was collected twice", event.item));
            }
        } else if let Some(event) = record.event::<GcPurging>() {
            // Of the others a new one may be where it was; of these, what is in the trash comes back.
            let comes_back = matches!(event.item.kind, ItemKind::Run | ItemKind::Artifact);
            if let Some(holder) = self.holder(&event.item).filter(|_| comes_back) {
                return Err(format!("{} is purged, and {holder} holds it", event.item));
            }
            match self.collected.get_mut(&event.item) {
                Some(purging) => *purging = true,
                None => return Err(format!("{} is purged, and was not collected", event.item)),
            }
        } else if let Some(event) = record.event::<GcRestored>() {
            if event.error.is_none() {
                self.collected.remove(&event.item);
            }
        } else if let Some(event) = record.event::<GcMoved>() {
            if matches!(event.outcome, Moved::Purged { .. } | Moved::Gone) {
                self.collected.remove(&event.item);
            } else if let Some(purging) = self.collected.get_mut(&event.item) {
                // It stays in the trash; that it is back where it was has a record of its own.
                *purging = false;
            }
        } else if let Some(event) = record.event::<GcErased>()
            && let Some(run) = &event.run
        {
            self.names.values_mut().for_each(|runs| _ = runs.remove(run));
        }
        Ok(())
    }

    fn name(&mut self, run: &RunId, output: &Payload, seq: Seq) {
        for (item, _) in files::artifacts(output) {
            self.names.entry(item).or_default().entry(run.clone()).or_insert(seq);
        }
    }

    fn forget_unused(&mut self) {
        let Self { ready, runs, workers, .. } = self;
        ready.retain(|id| runs.values().chain(workers.values()).any(|used| used == id));
    }

    fn is_collected(&self, run: &RunId) -> bool {
        ItemId::new(run.as_str()).is_ok_and(|id| self.collected.contains_key(&Item::new(ItemKind::Run, id)))
    }

    /// Somebody who holds it, in words.
    fn holder(&self, item: &Item) -> Option<String> {
        let id = item.id.as_str();
        match item.kind {
            ItemKind::Run => {
                let live = self.runs.keys().find(|run| run.as_str() == id).map(|_| "its own end".to_owned());
                let pin = self.pins.iter().find(|(run, ..)| run.as_str() == id);
                let tag = self.tags.iter().find(|(_, run)| run.as_str() == id);
                live.or_else(|| pin.map(|(_, task, holder)| format!("a pin of {holder} on {task}")))
                    .or_else(|| tag.map(|((path, tag), _)| format!("the tag {path}@{tag}")))
            }
            ItemKind::Artifact => {
                let mut runs = self.names.get(item).into_iter().flat_map(BTreeMap::keys);
                runs.find(|run| !self.is_collected(run)).map(|run| format!("run {run}"))
            }
            ItemKind::Log | ItemKind::Scratch => {
                let mut workers = self.workers.keys();
                workers.find(|worker| worker.as_str() == id).map(|worker| format!("worker {worker}"))
            }
            ItemKind::Environment if self.ready.iter().all(|ready| ready.as_str() != id) => None,
            ItemKind::Environment => {
                let run = self
                    .runs
                    .iter()
                    .find(|(_, used)| used.as_str() == id)
                    .map(|(run, _)| format!("run {run}"));
                let mut workers = self.workers.iter();
                run.or_else(|| {
                    let worker = workers.find(|(_, used)| used.as_str() == id);
                    worker.map(|(worker, _)| format!("worker {worker}"))
                })
            }
            ItemKind::Segment | ItemKind::Record => None,
        }
    }

    /// Contents that a kept run names, each with the first record that does.
    fn owed(&self) -> impl Iterator<Item = (&Item, Seq)> {
        self.names.iter().filter_map(|(item, runs)| {
            let kept = runs.iter().filter(|(run, _)| !self.is_collected(run)).map(|(_, seq)| *seq);
            Some((item, kept.min()?))
        })
    }
}

impl World {
    /// Named by a kept run, and not to be found; what is on its way out of the trash is not counted.
    pub(super) fn missing_files(&self) -> impl Iterator<Item = (Item, Seq)> {
        let Checks { on_disk, unlucky, .. } = &self.checks;
        let retained = &on_disk.retained;
        let missing = retained.owed().filter(move |(item, _)| {
            !self.files.holds(item) && !retained.collected.contains_key(*item) && !unlucky.contains(*item)
        });
        missing.map(|(item, seq)| (item.clone(), seq))
    }

    /// Something was moved on the disk: the record that says so is there.
    pub(crate) fn check_move(&mut self, done: &Done) {
        let collected = &self.checks.on_disk.retained.collected;
        let Outcome::Moved { moved, .. } = &done.outcome else { return };
        let item = &done.item;
        match moved {
            Moved::Trashed if !collected.contains_key(item) => {
                self.fail(format!("{item} is moved into the trash without a record"));
            }
            Moved::Purged { bytes: 1.. } if collected.get(item) != Some(&true) => {
                self.fail(format!("{item} is purged without a record"));
            }
            _ => {}
        }
    }

    /// Nothing but what was asked for.
    pub(super) fn check_asked(&mut self, record: &Record) {
        let Some(collected) = record.event::<GcCollected>() else { return };
        let asked = collected.reason.strip_prefix("apply ").and_then(|number| number.parse::<usize>().ok());
        let shown = asked.and_then(|number| self.checks.applied.get(number));
        if shown.is_some_and(|shown| !shown.contains(&collected.item)) {
            self.fail(format!("{} was collected, and no plan has shown it", collected.item));
        }
    }

    pub(crate) fn check_collected(&mut self, request: &CollectRequest, reply: &CollectReply) {
        let decided = usize::try_from(reply.decided).unwrap_or(usize::MAX);
        let most = if request.items.is_empty() { reply.plan.items.len() } else { request.items.len() };
        if decided > most {
            self.fail(format!("{decided} items were decided, and {most} were to be"));
        }
    }

    /// Whether all that the attempt reads is there. What survived a power cut by chance alone may lack its files: its
    /// reader fails then, and says so.
    pub(crate) fn check_inputs(&mut self, execute: &Execute) -> bool {
        let payloads = execute.arguments.values().flat_map(|argument| match argument {
            Argument::Value { payload } => vec![payload],
            Argument::List { payloads } => payloads.iter().collect(),
        });
        let items = payloads.flat_map(|payload| files::artifacts(payload).map(|(item, _)| item));
        let missing: Vec<_> = items.filter(|item| !self.files.holds(item)).collect();
        let excused = |item: &Item| self.checks.unlucky.contains(item) || self.files.is_trashed(item);
        if let Some(item) = missing.iter().find(|item| !excused(item)) {
            let text = format!("{}/{} needs {item}, and it is gone", execute.run, execute.task);
            self.fail(text);
        }
        missing.is_empty()
    }

    /// Outputs of kept runs, and what may be brought back.
    pub(crate) fn known_artifacts(&self) -> Vec<TaskRef> {
        self.checks.on_disk.outputs.keys().cloned().collect()
    }

    pub(crate) fn trashed_items(&self) -> Vec<Item> {
        self.checks.on_disk.retained.collected.keys().cloned().collect()
    }
}
