//! Records into state: each kind of event, own and foreign, has its function here.

use std::sync::Arc;

use eclosion_kernel::journal::Record;
use eclosion_schemas::events::{
    AttemptRefused, AttemptStarted, AttemptStopped, CacheDropped, EnvironmentFailed, EnvironmentReady, Event,
    GcCollected, RunCancelling, RunFinished, RunStarted, StepCommitted, StepFailed, StepMissed, StepReady,
    StepReused, WorkerDied,
};
use eclosion_schemas::view::RunState;
use eclosion_schemas::{EffectId, Fence, RunId, Seq, TaskId, Timestamp};

use super::{
    Effect, FINISHED_INSTANCES_MAX, FINISHED_RUNS_MAX, Gone, Index, Run, Slot, State, Touch, WITHDRAWALS_MAX,
};
use crate::plan::Plan;

/// The record that is being folded, and what beside its run it may change.
pub(crate) struct Fold<'a> {
    pub index: &'a mut Index,
    pub seq: Seq,
    pub at: Timestamp,
    effects: u32,
}

impl<'a> Fold<'a> {
    pub(crate) fn new(index: &'a mut Index, seq: Seq, at: Timestamp) -> Self {
        Self { index, seq, at, effects: 0 }
    }

    /// The id of the next effect of this record.
    pub(super) fn effect_id(&mut self) -> EffectId {
        self.effects += 1;
        EffectId { seq: self.seq, n: self.effects }
    }

    pub(super) fn touch(&mut self, touch: Touch) {
        self.index.touched.add(touch);
    }
}

pub(crate) fn apply(state: &mut State, record: &Record) {
    state.index.touched.begin(record.seq);
    let State { runs, index, entries } = state;
    let fold = &mut Fold::new(index, record.seq, record.at);
    match &*record.kind {
        RunStarted::KIND => with(record, |event| started(state, event, record)),
        RunCancelling::KIND => with(record, |event: &RunCancelling| {
            if let Some(run) = runs.get_mut(&event.run) {
                cancelling(run, event, fold);
            }
        }),
        RunFinished::KIND => with(record, |event| finished(state, event, record)),
        GcCollected::KIND => with(record, |event| collected(state, event)),
        StepCommitted::KIND => with(record, |event: &StepCommitted| {
            event.cache.iter().for_each(|note| entries.keep(record.seq, note));
            at_task(runs.get_mut(&event.run), &event.task, |run, slot| run.commit(slot, event, fold));
        }),
        StepReused::KIND => with(record, |event: &StepReused| {
            event.cache.iter().for_each(|note| entries.keep(record.seq, note));
            at_task(runs.get_mut(&event.run), &event.task, |run, slot| run.reused(slot, event, fold));
        }),
        StepMissed::KIND => with(record, |event: &StepMissed| {
            at_task(runs.get_mut(&event.run), &event.task, |run, slot| run.missed(slot, event, fold));
        }),
        CacheDropped::KIND => with(record, |event: &CacheDropped| {
            event.entries.iter().for_each(|entry| entries.drop(entry));
        }),
        StepFailed::KIND => with(record, |event: &StepFailed| {
            at_task(runs.get_mut(&event.run), &event.task, |run, slot| run.fail_attempt(slot, event, fold));
        }),
        StepReady::KIND => with(record, |event: &StepReady| {
            at_task(runs.get_mut(&event.run), &event.task, |run, slot| run.backoff_over(slot, fold));
        }),
        AttemptStarted::KIND => with(record, |event: &AttemptStarted| {
            at_task(runs.get_mut(&event.run), &event.task, |run, slot| run.attempt(slot, event, fold));
        }),
        AttemptStopped::KIND => with(record, |event: &AttemptStopped| {
            if let Some((run, slot)) = current(&event.fence, fold) {
                runs.get_mut(&run).into_iter().for_each(|run| run.stopped(slot, fold));
            }
        }),
        AttemptRefused::KIND => with(record, |event: &AttemptRefused| {
            at_task(runs.get_mut(&event.run), &event.task, |run, slot| run.refused(slot, event, fold));
        }),
        WorkerDied::KIND => with(record, |event: &WorkerDied| {
            if let Some((run, slot)) = event.fence.and_then(|fence| current(&fence, fold)) {
                let certificate = Arc::new(event.certificate.clone());
                runs.get_mut(&run)
                    .into_iter()
                    .for_each(|run| run.lose(slot, &certificate, event.wanted, fold));
            }
        }),
        EnvironmentFailed::KIND => with(record, |event| environment_failed(state, event, record)),
        EnvironmentReady::KIND => with(record, |event| environment_ready(state, event)),
        _ => {}
    }
}

fn with<E: Event>(record: &Record, fold: impl FnOnce(&E)) {
    if let Some(event) = record.event::<E>() {
        fold(&event);
    }
}

fn at_task(run: Option<&mut Run>, task: &TaskId, change: impl FnOnce(&mut Run, Slot)) {
    if let Some(run) = run
        && let Some(slot) = run.slot(task)
    {
        change(run, slot);
    }
}

fn current(fence: &Fence, fold: &Fold<'_>) -> Option<(RunId, Slot)> {
    fold.index.attempts.get(fence).cloned()
}

fn started(state: &mut State, event: &RunStarted, record: &Record) {
    let State { runs, index, .. } = state;
    let (plan, refusal) = match Plan::of(event) {
        Ok(plan) => (plan, None),
        // Another version accepted what this one does not: the run ends and says so.
        Err(why) => (Plan::empty(event), Some(Arc::new(why))),
    };
    let mut run = Run::new(event, plan, record.seq, record.at);
    run.error = refusal;
    index.by_content.insert(event.content.clone(), event.run.clone());
    index.by_key.extend(event.idem.clone().map(|key| (key, event.run.clone())));
    index.by_environment.entry(event.environment.clone()).or_default().insert(event.run.clone());
    index.started.insert(record.seq, event.run.clone());
    let fold = &mut Fold::new(index, record.seq, record.at);
    fold.touch(Touch::All(event.run.clone()));
    run.begin(fold);
    runs.insert(event.run.clone(), run);
}

fn cancelling(run: &mut Run, event: &RunCancelling, fold: &mut Fold<'_>) {
    if run.state != RunState::Running {
        return;
    }
    run.state = RunState::Cancelling;
    run.cancel_reason = Some(event.reason.clone());
    run.seq = fold.seq;
    forget_content(run, fold.index);
    let withdrawn = run.cancel(fold);
    if !withdrawn.is_empty() {
        withdraw(withdrawn, fold);
    }
    fold.touch(Touch::All(run.id.clone()));
}

fn withdraw(wishes: Vec<EffectId>, fold: &mut Fold<'_>) {
    let id = fold.effect_id();
    fold.index.outstanding.insert(id, Effect::Withdraw { wishes });
    fold.index.withdrawals.push_back(id);
    if fold.index.withdrawals.len() > WITHDRAWALS_MAX
        && let Some(oldest) = fold.index.withdrawals.pop_front()
    {
        fold.index.outstanding.remove(&oldest);
    }
}

fn forget_content(run: &Run, index: &mut Index) {
    if index.by_content.get(run.plan.content()) == Some(&run.id) {
        index.by_content.remove(run.plan.content());
    }
}

fn finished(state: &mut State, event: &RunFinished, record: &Record) {
    let State { runs, index, .. } = state;
    let Some(run) = runs.get_mut(&event.run).filter(|run| !run.state.is_final()) else { return };
    let fold = &mut Fold::new(index, record.seq, record.at);
    run.finish(event, fold);
    fold.touch(Touch::All(run.id.clone()));
    forget_content(run, index);
    index.ending.remove(&run.id);
    if let Some(runs_of) = index.by_environment.get_mut(run.plan.environment()) {
        runs_of.remove(&run.id);
        if runs_of.is_empty() {
            index.by_environment.remove(run.plan.environment());
        }
    }
    index.finished.push_back(run.id.clone());
    index.finished_instances += run.instances();
    evict(state);
}

fn evict(state: &mut State) {
    let is_full = |index: &Index| {
        index.finished.len() > FINISHED_RUNS_MAX || index.finished_instances > FINISHED_INSTANCES_MAX
    };
    while state.index.finished.len() > 1 && is_full(&state.index) {
        let Some(oldest) = state.index.finished.pop_front() else { return };
        forget(state, &oldest);
    }
}

/// The run leaves the memory; rows have it.
fn forget(state: &mut State, run: &RunId) {
    let State { runs, index, .. } = state;
    let Some(run) = runs.remove(run) else { return };
    index.finished_instances -= run.instances();
    index.started.remove(&run.started_seq);
    let tasks = run.groups.iter().flat_map(|group| &group.instances).map(|instance| instance.id.clone());
    index.touched.add(Touch::Gone(Gone { run: run.id.clone(), tasks: tasks.collect(), head: true }));
    if let Some(key) = &run.idem
        && index.by_key.get(key) == Some(&run.id)
    {
        index.by_key.remove(key);
    }
}

/// The stale manager collects finished runs alone.
fn collected(state: &mut State, event: &GcCollected) {
    let Some(run) = crate::rows::run_of(&event.item) else { return };
    let known = state.index.finished.len();
    state.index.finished.retain(|finished| *finished != run);
    if state.index.finished.len() < known {
        forget(state, &run);
    }
}

fn environment_failed(state: &mut State, event: &EnvironmentFailed, record: &Record) {
    let State { runs, index, .. } = state;
    let error = Arc::new(event.error.clone());
    let waiting = index.by_environment.get(&event.environment).cloned().unwrap_or_default();
    let fold = &mut Fold::new(index, record.seq, record.at);
    for id in waiting {
        if let Some(run) = runs.get_mut(&id).filter(|run| run.state == RunState::Running) {
            run.without_environment(&error, fold);
        }
    }
}

fn environment_ready(state: &mut State, event: &EnvironmentReady) {
    let State { runs, index, .. } = state;
    for id in index.by_environment.get(&event.environment).into_iter().flatten() {
        if let Some(run) = runs.get_mut(id) {
            run.environment_error = None;
        }
    }
}
