//! What workers say: that they are there, how far an attempt is, and how it ended. Of a result that is to be kept, what
//! its code is by then is looked at before it is reported.

use std::path::Path;
use std::sync::{Arc, Mutex};

use eclosion_bus::{Publication, Subject, TraceContext};
use eclosion_ipc::worker::{Acknowledged, LinkEnd, Outcome, WorkerHello, WorkerReports};
use eclosion_kernel::Kernel;
use eclosion_pool_manager::Launcher;
use eclosion_schemas::ops::pool::{WorkerIdle, WorkerIdleRequest, WorkerUp, WorkerUpRequest};
use eclosion_schemas::ops::task::{CodeSeen, Commit, CommitReply, CommitRequest, Fail, FailRequest};
use eclosion_schemas::view::{TaskItem, TaskReport};
use eclosion_schemas::{Attempt, Error, Fence, TaskRef, WorkerId};
use tokio::sync::oneshot;

use super::spans::WorkSpan;
use super::table::{AtWorker, Safe, Told};
use super::{WorkerHost, lock};
use crate::output::Part;
use crate::report::{until_heard, until_heard_within};

/// What one worker's link says.
pub(super) struct Reports {
    pub(super) host: WorkerHost,
    pub(super) worker: WorkerId,
    pub(super) end: Mutex<Option<LinkEnd>>,
}

impl WorkerReports for Reports {
    /// What a survivor computes is always wanted here: whether it is stale, the DAG tracker says.
    fn up(&self, hello: &WorkerHello) -> bool {
        let Ok(kernel) = self.host.kernel().cloned() else { return false };
        if hello.attempts.iter().any(|fence| fence.is_of_call()) {
            // Nothing says when it would be done.
            Launcher::kill(
                &self.host,
                &self.worker,
                "its call was an earlier kernel's, and nobody waits for it",
            );
            return false;
        }
        let settled = {
            let mut workers = lock(&self.host.0.workers);
            let Some(entry) = workers.get_mut(&self.worker) else { return false };
            for fence in &hello.attempts {
                entry.known.note(*fence);
                entry.attempts.insert(*fence, AtWorker::default());
            }
            entry.settled.clone()
        };
        let request = WorkerUpRequest {
            worker: self.worker.clone(),
            pid: hello.pid,
            start_ticks: hello.start_ticks,
            boot_id: hello.boot_id.clone(),
            attempts: hello.attempts.clone(),
            attached: self.host.environment_of_attached(&self.worker),
        };
        let host = self.host.clone();
        tokio::spawn(async move {
            match until_heard::<WorkerUp>(kernel.bus(), request.clone()).await {
                Ok(reply) => {
                    let mut workers = lock(&host.0.workers);
                    let entry = workers.get_mut(&request.worker);
                    entry
                        .into_iter()
                        .for_each(|entry| entry.forget_unwanted(&request.attempts, &reply.wanted));
                }
                Err(_) => host.kill(&request.worker).await,
            }
            settled.send_replace(true);
        });
        true
    }

    fn closed(&self, end: LinkEnd) {
        *lock(&self.end) = Some(end);
    }

    fn report(&self, fence: Fence, report: TaskReport) {
        if fence.is_of_call() {
            return self.host.call_reported(fence, report);
        }
        let Ok(kernel) = self.host.kernel() else { return };
        let about = {
            let workers = lock(&self.host.0.workers);
            let attempt = workers.get(&self.worker).and_then(|entry| entry.attempts.get(&fence));
            attempt.and_then(|attempt| attempt.about.clone())
        };
        let Some((task, attempt)) = about else { return };
        let kind = if matches!(report, TaskReport::Item { .. }) { "item" } else { "report" };
        let subject = format!("run/{}/task/{}/{kind}", task.run, task.task);
        let Ok(subject) = subject.parse::<Subject>() else { return };
        let journal = kernel.journal();
        let (epoch, synced) = (journal.epoch(), journal.marks().synced);
        let publication = match report {
            TaskReport::Item { index, payload } => {
                let weight_bytes = payload.bytes();
                Publication::new(epoch, synced, TaskItem { attempt, index, payload }).weighing(weight_bytes)
            }
            report => Publication::new(epoch, synced, report),
        };
        kernel.bus().publish(&subject, publication);
    }

    fn outcome(&self, fence: Fence, outcome: Outcome) -> Acknowledged {
        if fence.is_of_call() {
            self.host.call_concluded(fence, outcome);
            return Box::pin(std::future::ready(()));
        }
        let (safe, heard) = oneshot::channel();
        self.host.concluded(&self.worker, fence, outcome, safe);
        Box::pin(async move {
            // The sender is dropped either way.
            let _ = heard.await;
        })
    }
}

impl WorkerHost {
    /// An attempt has its outcome. Of one that is over already, nobody wants to know.
    pub(super) fn concluded(&self, worker: &WorkerId, fence: Fence, outcome: Outcome, safe: Safe) {
        let (about, span, code) = {
            let mut workers = lock(&self.0.workers);
            let Some(entry) = workers.get_mut(worker) else { return };
            match entry.attempts.remove(&fence) {
                Some(AtWorker { about: Some(about), span, code, .. }) => (about, span, code),
                Some(AtWorker { about: None, bounds, code, span, .. }) => {
                    let early = Some((outcome, safe));
                    entry.attempts.insert(fence, AtWorker { about: None, early, bounds, code, span });
                    return;
                }
                None => return,
            }
        };
        self.keep_limits(worker);
        match outcome.is_returned() {
            true => self.idle(worker, fence),
            false => self.deliver(worker, about, fence, (outcome, span, code), safe),
        }
    }

    /// Records what an attempt printed, and takes its outcome to the DAG tracker.
    pub(super) fn deliver(
        &self,
        worker: &WorkerId,
        (task, attempt): (TaskRef, Attempt),
        fence: Fence,
        (outcome, span, code): (Outcome, WorkSpan, Option<Arc<Told>>),
        safe: Safe,
    ) {
        let Ok(kernel) = self.kernel().cloned() else { return };
        let Outcome { result, stdout, stderr, ran_unix_ns } = outcome;
        let trace = span.end(result.as_ref().err(), ran_unix_ns);
        let part = Part { run: task.run.clone(), task: task.task.clone(), attempt, stdout, stderr };
        if let Err(why) = self.0.config.outputs.record(worker, &part) {
            tracing::warn!(%worker, %why, "which part of the output is whose cannot be recorded");
        }
        let (host, worker) = (self.clone(), worker.clone());
        tokio::spawn(async move {
            let result = match (result, code) {
                (Ok(output), Some(told)) => Ok((output, host.look_at_code(&worker, told).await)),
                (result, _) => result.map(|output| (output, None)),
            };
            let heard = conclude((&kernel, trace), &worker, task, fence, result).await;
            if matches!(heard, Ok(CommitReply::Stale)) {
                host.idle(&worker, fence);
            }
            drop(safe);
        });
    }

    /// What the code of a result is by now. A worker that may have imported something else imports it anew.
    async fn look_at_code(&self, worker: &WorkerId, told: Arc<Told>) -> Option<CodeSeen> {
        let (files, looked) = (Arc::clone(&self.0.config.code), Arc::clone(&told));
        let look = tokio::task::spawn_blocking(move || files.look(Path::new(&looked.root), looked.at));
        let seen = look.await.unwrap_or_else(|why| Err(Error::internal("code.look", why.to_string())));
        let seen =
            seen.inspect_err(|why| tracing::warn!(%worker, root = told.root, %why, "code cannot be read"));
        if !seen.as_ref().is_ok_and(|seen| !seen.is_written && seen.hash == told.hash)
            && let Some(entry) = lock(&self.0.workers).get_mut(worker)
        {
            entry.distrust(&told);
        }
        seen.ok()
    }

    pub(super) fn idle(&self, worker: &WorkerId, fence: Fence) {
        let Ok(kernel) = self.kernel().cloned() else { return };
        let request = WorkerIdleRequest { worker: worker.clone(), fence };
        tokio::spawn(async move { until_heard::<WorkerIdle>(kernel.bus(), request).await });
    }
}

async fn conclude(
    (kernel, trace): (&Kernel, Option<TraceContext>),
    worker: &WorkerId,
    task: TaskRef,
    fence: Fence,
    result: Result<(eclosion_schemas::Payload, Option<CodeSeen>), Error>,
) -> Result<CommitReply, Error> {
    let (TaskRef { run, task }, worker) = (task, worker.clone());
    let refusal = match result {
        Ok((output, code)) => {
            let (run, task, worker) = (run.clone(), task.clone(), worker.clone());
            let commit = CommitRequest { run, task, fence, worker, output, code };
            match until_heard_within::<Commit>(kernel.bus(), trace, commit).await {
                Ok(reply) => return Ok(reply),
                // It cannot be committed as it is (too large, say): that is the attempt's failure.
                Err(refusal) => refusal,
            }
        }
        Err(error) => error,
    };
    let fail = FailRequest { run, task, fence, worker, error: refusal };
    until_heard_within::<Fail>(kernel.bus(), trace, fail).await
}
