//! What follows from an outcome: tasks become ready, are tried again, fail, are skipped.

use std::sync::Arc;

use eclosion_schemas::certificate::DeathCertificate;
use eclosion_schemas::events::{AttemptRefused, AttemptStarted, RunFinished, StepCommitted, StepFailed};
use eclosion_schemas::flow::Backoff;
use eclosion_schemas::view::RunState;
use eclosion_schemas::{Code, EffectId, Error, Payload, Retry, RunId, TaskId};

use super::fold::Fold;
use super::run::{Output, Phase, Run, Slot};
use super::{Effect, LOST_WORKERS_MAX, QUARANTINED, Touch, fan_out};
use crate::content;

/// The part of a backoff that jitter may take away: one fifth, in thousandths.
const JITTER_PER_MILLE: u64 = 200;

impl Run {
    /// Wishes for everything that needs nothing.
    pub(super) fn begin(&mut self, fold: &mut Fold<'_>) {
        let first: Vec<usize> = (0..self.groups.len()).filter(|task| self.groups[*task].unmet == 0).collect();
        self.open_groups(first, fold);
    }

    /// Everything that these tasks need has succeeded. A fan-out over nothing succeeds at once and opens others.
    fn open_groups(&mut self, mut tasks: Vec<usize>, fold: &mut Fold<'_>) {
        tasks.reverse();
        while let Some(task) = tasks.pop() {
            if let Err(error) = fan_out::expand(self, task, fold) {
                self.fail(slot(task, 0), Arc::new(error), fold);
                continue;
            }
            for slot in self.slots_of(index(task), self.groups[task].instances.len()) {
                self.wish(slot, fold);
            }
            if self.groups[task].left == 0 {
                tasks.extend(self.close_group(task).into_iter().rev());
            }
        }
        // The last task may have been a fan-out over nothing, whose end is no instance's end.
        if self.open == 0 {
            fold.index.ending.insert(self.id.clone());
        }
    }

    /// Every instance of a task has succeeded: gives the tasks that need nothing else any more.
    fn close_group(&mut self, task: usize) -> Vec<usize> {
        let outputs = |group: &mut super::Group| -> Arc<[_]> {
            group.instances.iter_mut().map(|instance| instance.output.take().unwrap_or_default()).collect()
        };
        let group = &mut self.groups[task];
        group.output = match self.plan.tasks[task].is_fan_out() {
            true => Output::List(outputs(group)),
            false => {
                Output::One(group.instances.first_mut().and_then(|one| one.output.take()).unwrap_or_default())
            }
        };
        let plan = Arc::clone(&self.plan);
        if plan.tasks[task].dependants.iter().any(|dependant| plan.tasks[*dependant].cache.is_some()) {
            self.groups[task].output_hash = self.groups[task].output.hash();
        }
        let mut opened = Vec::new();
        for dependant in &plan.tasks[task].dependants {
            let group = &mut self.groups[*dependant];
            group.unmet -= 1;
            if group.unmet == 0 && !group.skipped && self.state == RunState::Running {
                opened.push(*dependant);
            }
        }
        opened
    }

    /// Owes a look for an earlier result, or a wish for an instance; fails it where its environment is known not to be.
    pub(super) fn wish(&mut self, slot: Slot, fold: &mut Fold<'_>) {
        if let Some(look) = self.look(slot) {
            let wish = fold.effect_id();
            self.enter(slot, Phase::Ready { wish }, fold);
            fold.index.outstanding.insert(wish, Effect::Look(Box::new(look)));
            return;
        }
        if let Some(error) = self.environment_error.clone() {
            return self.fail(slot, error, fold);
        }
        let id = fold.effect_id();
        match self.wish_for(slot, id, fold.at) {
            Ok(wish) => {
                self.enter(slot, Phase::Ready { wish: id }, fold);
                fold.index.outstanding.insert(id, Effect::Dispatch(Box::new(wish)));
            }
            Err(error) => self.fail(slot, Arc::new(error), fold),
        }
    }

    pub(super) fn attempt(&mut self, slot: Slot, event: &AttemptStarted, fold: &mut Fold<'_>) {
        let deadline =
            self.task(slot).and_then(|task| task.timeout_ms).map(|timeout_ms| fold.at.plus_ms(timeout_ms));
        let Some(instance) = self.instance_mut(slot) else { return };
        if instance.phase != (Phase::Ready { wish: event.wish }) {
            // The answer to a wish that was taken back, or a second one: what it computes is stale.
            return;
        }
        instance.attempt = event.attempt;
        instance.fence = Some(event.fence);
        instance.worker = Some(event.worker.clone());
        instance.lease = event.lease.clone();
        instance.reported = false;
        instance.started_at = Some(fold.at);
        instance.ended_at = None;
        self.enter(slot, Phase::Running { fence: event.fence, deadline }, fold);
    }

    /// The pool manager will never start it: what it asks for cannot be had.
    pub(super) fn refused(&mut self, slot: Slot, event: &AttemptRefused, fold: &mut Fold<'_>) {
        if self.instance(slot).is_some_and(|instance| instance.phase == (Phase::Ready { wish: event.wish })) {
            self.fail(slot, Arc::new(event.error.clone()), fold);
        }
    }

    pub(super) fn commit(&mut self, slot: Slot, event: &StepCommitted, fold: &mut Fold<'_>) {
        let Some(instance) = self.instance_mut(slot).filter(|instance| !instance.phase.is_final()) else {
            return;
        };
        instance.attempt = event.attempt;
        instance.fence = Some(event.fence);
        instance.worker = Some(event.worker.clone());
        instance.reported = true;
        instance.error = None;
        instance.unkept = event.unkept;
        self.succeed(slot, event.output.clone(), fold);
    }

    pub(super) fn succeed(&mut self, slot: Slot, output: Payload, fold: &mut Fold<'_>) {
        let task = slot.task as usize;
        if self.plan.result == Some(task) {
            self.result = Some(output.clone());
        }
        self.instance_mut(slot).into_iter().for_each(|instance| instance.output = Some(output.clone()));
        self.enter(slot, Phase::Succeeded, fold);
        self.groups[task].left -= 1;
        if self.groups[task].left == 0 {
            let opened = self.close_group(task);
            self.open_groups(opened, fold);
        }
    }

    pub(super) fn fail_attempt(&mut self, slot: Slot, event: &StepFailed, fold: &mut Fold<'_>) {
        let id = self.id.clone();
        let cancelled = self.state == RunState::Cancelling;
        let Some((retries, backoff)) = self.task(slot).map(|task| (task.retries, task.backoff.clone()))
        else {
            return;
        };
        let Some(instance) = self.instance_mut(slot).filter(|instance| !instance.phase.is_final()) else {
            return;
        };
        let error = Arc::new(event.error.clone());
        instance.attempt = event.attempt;
        instance.fence = Some(event.fence);
        instance.worker = Some(event.worker.clone());
        instance.reported = event.released;
        instance.ended_at = Some(fold.at);
        instance.error = Some(Arc::clone(&error));
        if cancelled {
            return self.enter(slot, Phase::Cancelled, fold);
        }
        instance.failures += 1;
        // What the worker itself calls hopeless would fail alike: arguments that do not fit, a module that is not there.
        let is_doomed = event.released && event.error.retry == Retry::Never;
        if is_doomed || instance.failures > retries {
            return self.fail(slot, error, fold);
        }
        let jitter = content::jitter(&id, &instance.id, instance.failures, JITTER_PER_MILLE + 1);
        let until = fold.at.plus_ms(delay_ms(&backoff, instance.failures, jitter));
        self.enter(slot, Phase::Backoff { until }, fold);
    }

    pub(super) fn backoff_over(&mut self, slot: Slot, fold: &mut Fold<'_>) {
        if self.instance(slot).is_some_and(|instance| matches!(instance.phase, Phase::Backoff { .. })) {
            self.wish(slot, fold);
        }
    }

    /// Its worker is gone. One that was told to go does not count against the task; one that was killed because the
    /// task went beyond a limit counts as a failure as well, since the next attempt would most likely do the same.
    pub(crate) fn lose(
        &mut self,
        slot: Slot,
        certificate: &Arc<DeathCertificate>,
        wanted: bool,
        fold: &mut Fold<'_>,
    ) {
        let (id, cancelled) = (self.id.clone(), self.state == RunState::Cancelling);
        let retries = self.task(slot).map_or(0, |task| task.retries);
        let Some(instance) = self.instance_mut(slot).filter(|instance| !instance.phase.is_final()) else {
            return;
        };
        instance.ended_at = Some(fold.at);
        instance.certificates.push(Arc::clone(certificate));
        // As many as could matter to a reader; wanted deaths are not counted and must not pile up either.
        if instance.certificates.len() > LOST_WORKERS_MAX as usize {
            instance.certificates.remove(0);
        }
        instance.lost += u32::from(!wanted);
        let overstepped = !wanted && certificate.death.is_of_a_limit();
        instance.failures += u32::from(overstepped);
        let failures = instance.failures;
        if cancelled {
            return self.enter(slot, Phase::Cancelled, fold);
        }
        if overstepped && failures > retries {
            return self.fail(slot, Arc::new(beyond_limit(certificate)), fold);
        }
        if instance.lost >= LOST_WORKERS_MAX {
            let error = quarantine(&id, &instance.certificates);
            return self.fail(slot, Arc::new(error), fold);
        }
        self.wish(slot, fold);
    }

    /// Its worker stopped computing it. Only a cancellation asks for that while an attempt is current; whatever else
    /// led to it, the task must not wait for ever.
    pub(super) fn stopped(&mut self, slot: Slot, fold: &mut Fold<'_>) {
        match self.state {
            RunState::Running => self.wish(slot, fold),
            _ => self.enter(slot, Phase::Cancelled, fold),
        }
    }

    pub(super) fn without_environment(&mut self, error: &Arc<Error>, fold: &mut Fold<'_>) {
        self.environment_error = Some(Arc::clone(error));
        for slot in self.wished.clone() {
            self.fail(slot, Arc::clone(error), fold);
        }
    }

    /// An instance has failed for good: what needs its task will never run.
    fn fail(&mut self, slot: Slot, error: Arc<Error>, fold: &mut Fold<'_>) {
        let Some(instance) = self.instance_mut(slot) else { return };
        instance.error = Some(Arc::clone(&error));
        if self.error.is_none() {
            self.error = self.instance(slot).map(|instance| Arc::new(self.of_run(&error, &instance.id)));
        }
        self.enter(slot, Phase::Failed, fold);
        let mut failed = vec![slot.task as usize];
        let plan = Arc::clone(&self.plan);
        while let Some(task) = failed.pop() {
            for dependant in &plan.tasks[task].dependants {
                if !std::mem::replace(&mut self.groups[*dependant].skipped, true) {
                    self.skip_waiting(*dependant, fold);
                    failed.push(*dependant);
                }
            }
        }
    }

    /// Its error because of the error of one of its tasks; the exception itself stays with the task.
    fn of_run(&self, error: &Error, task: &TaskId) -> Error {
        let mut of_run = error.clone();
        of_run.message = format!("task `{task}` failed: {}", error.message);
        of_run.remote = None;
        of_run.next(&format!("eclosion why {}", self.id))
    }

    fn skip_waiting(&mut self, task: usize, fold: &mut Fold<'_>) {
        for slot in self.slots_of(index(task), self.groups[task].instances.len()) {
            if self.instance(slot).is_some_and(|instance| instance.phase == Phase::Waiting) {
                self.enter(slot, Phase::Skipped, fold);
            }
        }
    }

    /// Ends what has no attempt, takes time-outs from the rest, and gives the wishes to withdraw.
    pub(super) fn cancel(&mut self, fold: &mut Fold<'_>) -> Vec<EffectId> {
        let mut withdrawn = Vec::new();
        for slot in self.slots().collect::<Vec<_>>() {
            let Some(instance) = self.instance(slot) else { continue };
            let ended = if instance.attempt.0 == 0 { Phase::Skipped } else { Phase::Cancelled };
            let next = match &instance.phase {
                Phase::Ready { wish } => {
                    withdrawn.push(*wish);
                    ended
                }
                Phase::Waiting | Phase::Backoff { .. } => ended,
                Phase::Running { fence, .. } => Phase::Running { fence: *fence, deadline: None },
                _ => continue,
            };
            self.enter(slot, next, fold);
        }
        withdrawn
    }

    pub(super) fn finish(&mut self, event: &RunFinished, fold: &mut Fold<'_>) {
        for slot in self.slots().collect::<Vec<_>>() {
            if self.instance(slot).is_some_and(|instance| !instance.phase.is_final()) {
                self.enter(slot, Phase::Skipped, fold);
            }
        }
        self.state = event.state;
        self.error = event.error.clone().map(Arc::new);
        self.finished_at = Some(fold.at);
        self.seq = fold.seq;
        if event.state != RunState::Succeeded {
            self.result = None;
        }
        for group in &mut self.groups {
            group.output = Output::None;
            group.instances.iter_mut().for_each(|instance| instance.output = None);
        }
        fold.touch(Touch::Head(self.id.clone()));
    }
}

fn slot(task: usize, instance: usize) -> Slot {
    Slot { task: index(task), index: index(instance) }
}

/// Tasks and instances are limited far below u32.
fn index(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// `initial · factorⁿ⁻¹`, at most `max`, less up to a fifth.
fn delay_ms(backoff: &Backoff, failures: u32, jitter_per_mille: u64) -> u64 {
    let mut delay_ms = backoff.initial_ms.min(backoff.max_ms);
    for _ in 1..failures {
        // By repeated multiplication: powi may differ between machines, and a replay must not.
        let next = delay_ms as f64 * backoff.factor;
        delay_ms = if next >= backoff.max_ms as f64 { backoff.max_ms } else { next as u64 };
    }
    delay_ms - delay_ms.saturating_mul(jitter_per_mille) / 1_000
}

fn beyond_limit(certificate: &DeathCertificate) -> Error {
    let message = format!("the task went beyond its limit: {} {}", certificate.worker, certificate.death);
    let help = match certificate.death.reason() {
        "limit.processes" => "raise `processes` of the task, or let it start fewer",
        _ => "raise `memory` of the task, or give it less at a time",
    };
    Error::new(Code::Exhausted, certificate.death.reason(), message).help(help)
}

fn quarantine(run: &RunId, certificates: &[Arc<DeathCertificate>]) -> Error {
    let deaths =
        certificates.iter().map(|certificate| format!("{} {}", certificate.worker, certificate.death));
    let message = format!("{LOST_WORKERS_MAX} workers died while computing it; it is not tried again");
    let help = format!(
        "look at the last lines of each worker: eclosion why {run}; then run it with less input or more memory"
    );
    let error = Error::new(Code::Unavailable, QUARANTINED, message).help(help);
    deaths.fold(error, Error::cause)
}
