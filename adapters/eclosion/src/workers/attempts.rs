//! Attempts to workers: executed, cancelled, and had back where they would wait for long.

use std::time::Duration;

use eclosion_ipc::worker::Care;
use eclosion_pool_manager::{AHEAD_PATIENCE_MS, Launcher};
use eclosion_process::Rung;
use eclosion_schemas::certificate::Death;
use eclosion_schemas::flow::EnvironmentSpec;
use eclosion_schemas::ops::pool::ReserveRequest;
use eclosion_schemas::ops::task::Execute;
use eclosion_schemas::{EnvironmentId, Fence, TaskRef, WorkerId};

use super::limits::bounds_of;
use super::processes::SIGKILL;
use super::spans::WorkSpan;
use super::table::Entry;
use super::{WorkerHost, lock};

impl Launcher for WorkerHost {
    fn launch(&self, worker: &WorkerId, environment: &EnvironmentId, python: &str, spec: &EnvironmentSpec) {
        {
            let mut workers = lock(&self.0.workers);
            // While the kernel stops, what is still owed is left to the next one.
            if self.is_stopping() || workers.contains_key(worker) {
                return;
            }
            workers.insert(worker.clone(), Entry::starting());
        }
        self.0.environments.hold(std::path::Path::new(python));
        let (host, worker, environment) = (self.clone(), worker.clone(), environment.clone());
        let (python, spec) = (python.to_owned(), spec.clone());
        tokio::spawn(async move { host.spawn(worker, environment, python, spec).await });
    }

    fn execute(&self, worker: &WorkerId, mut execute: Execute) {
        let about = (TaskRef::new(execute.run.clone(), execute.task.clone()), execute.attempt);
        let bounds = bounds_of(&execute);
        let span = WorkSpan::begin(self.tracer(), &mut execute, worker);
        let (link, early) = {
            let mut workers = lock(&self.0.workers);
            let Some(entry) = workers.get_mut(worker) else { return };
            if entry.known.has(execute.fence) {
                (None, entry.learn(&execute, &about, bounds, span))
            } else {
                entry.take(&mut execute, &about, bounds, span);
                self.watch(worker, entry);
                (entry.link.clone(), None)
            }
        };
        self.keep_limits(worker);
        if !bounds.is_none() {
            self.look_at_limits();
        }
        if let Some(link) = link {
            if let Err(refusal) = link.execute(&execute, Care::Journaled) {
                // Its end, which is on its way, takes the attempt along.
                tracing::warn!(%worker, %refusal, "an attempt was not taken");
            }
        } else if let Some((outcome, safe, span, code)) = early {
            self.deliver(worker, about, execute.fence, (outcome, span, code), safe);
        }
    }

    fn cancel(&self, worker: &WorkerId, fence: Fence) {
        let (computing, early) = {
            let mut workers = lock(&self.0.workers);
            let Some(entry) = workers.get_mut(worker) else { return };
            entry.known.note(fence);
            let early = entry.attempts.get_mut(&fence).and_then(|attempt| attempt.early.take());
            if early.is_some() {
                entry.attempts.remove(&fence);
            }
            (entry.has(fence), early)
        };
        drop(early);
        if !computing {
            return self.idle(worker, fence);
        }
        let (host, worker) = (self.clone(), worker.clone());
        tokio::spawn(async move { host.climb(worker, fence).await });
    }

    fn stop(&self, worker: &WorkerId) {
        let link = lock(&self.0.workers).get(worker).and_then(|entry| entry.link.clone());
        match link {
            Some(link) => link.drain(),
            // Nobody listens yet, and it has nothing in hand.
            None => Launcher::kill(self, worker, "it was not needed any more"),
        }
    }

    fn kill(&self, worker: &WorkerId, reason: &str) {
        self.condemn(worker, Death::Killed { signal: SIGKILL, sender: Some(format!("eclosion: {reason}")) });
    }

    fn live(&self) -> Vec<WorkerId> {
        let workers = lock(&self.0.workers);
        workers.keys().chain(&*self.0.reporting.borrow()).cloned().collect()
    }

    fn reserved(&self) -> Vec<(WorkerId, ReserveRequest)> {
        lock(&self.0.reserved).values().cloned().collect()
    }
}

impl WorkerHost {
    /// Kills a worker, and says of its death what it was.
    pub(super) fn condemn(&self, worker: &WorkerId, verdict: Death) {
        let known = {
            let mut workers = lock(&self.0.workers);
            let entry = workers.get_mut(worker);
            entry.map(|entry| entry.verdict.get_or_insert(verdict)).is_some()
        };
        if known {
            let (host, worker) = (self.clone(), worker.clone());
            tokio::spawn(async move { WorkerHost::kill(&host, &worker).await });
        }
    }

    /// Climbs until the attempt has ended.
    pub(super) async fn climb(&self, worker: WorkerId, fence: Fence) {
        let mut rung = Some(Rung::Token);
        while let Some(step) = rung {
            let link = {
                let workers = lock(&self.0.workers);
                let Some(entry) = workers.get(&worker) else { return };
                if !entry.has(fence) && !self.calls(fence) {
                    return;
                }
                entry.link.clone()
            };
            tracing::info!(%worker, %fence, rung = step.number(), "cancelling");
            match (step.signal(), link) {
                (None, Some(link)) => {
                    // Its outcome may have come meanwhile; the next look says so.
                    let _ = link.cancel(fence, step.number());
                }
                (None, None) => {}
                (Some(signal), Some(link)) if self.is_attached(&worker) => {
                    // Its process is not ours to signal.
                    if signal == SIGKILL {
                        link.hang_up();
                    }
                }
                (Some(signal), _) => {
                    if let Some(keeper) = &*self.0.keeper.lock().await
                        && let Err(why) = keeper.signal(worker.clone(), signal, step.reaches_tree())
                    {
                        tracing::warn!(%worker, %why, "cannot be signalled");
                    }
                }
            }
            tokio::time::sleep(Duration::from_millis(step.patience_ms(self.0.config.cancel_grace_ms))).await;
            rung = step.next();
        }
    }

    /// Sees to it that nothing waits long behind one attempt: it is had back, and another worker may have it.
    pub(super) fn watch(&self, worker: &WorkerId, entry: &mut Entry) {
        if entry.attempts.len() < 2 || std::mem::replace(&mut entry.watched, true) {
            return;
        }
        let (host, worker) = (self.clone(), worker.clone());
        tokio::spawn(async move {
            let mut first = None;
            while let Some(now_first) = host.look_after(&worker, first) {
                first = Some(now_first);
                tokio::time::sleep(Duration::from_millis(AHEAD_PATIENCE_MS)).await;
            }
        });
    }

    /// Takes back what waits if the same attempt is still the first. Gives the first, `None` once nothing waits.
    pub(super) fn look_after(&self, worker: &WorkerId, was_first: Option<Fence>) -> Option<Fence> {
        let (fences, link) = {
            let mut workers = lock(&self.0.workers);
            let entry = workers.get_mut(worker)?;
            entry.watched = entry.attempts.len() > 1;
            let fences: Vec<_> = entry.attempts.keys().copied().collect();
            entry.watched.then(|| (fences, entry.link.clone()))?
        };
        let first = fences.first().copied();
        if let (true, Some(link)) = (first == was_first, link) {
            // The one that has begun goes on; that it is the first is likely, and not known here.
            fences.into_iter().for_each(|fence| _ = link.take_back(fence));
        }
        first
    }
}
