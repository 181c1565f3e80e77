//! Calls at the workers: what `/calls` asks of the host, and what comes back.
//!
//! A call is no attempt. Its fence is of a number space of its own ([`Fence::of_call`]), it stands in a table of its own,
//! and its outcome goes to the one who waits and nowhere else: neither the DAG tracker nor the pool manager hears of it.
//!
//! Invariants: (1) a line in the table belongs to a worker in the host's table; with the worker it goes, and says how.
//! (2) A line has at most one outcome. (3) Progress and metrics are lossy: with too many unread, the oldest goes. Items of
//! a generator are not: no more of them come than the caller has granted.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use eclosion_ipc::arena::Objects;
use eclosion_ipc::{Care, Outcome};
use eclosion_schemas::certificate::Death;
use eclosion_schemas::ops::pool::ReserveRequest;
use eclosion_schemas::ops::task::Execute;
use eclosion_schemas::view::TaskReport;
use eclosion_schemas::{Attempt, CallId, Code, Error, Fence, Payload, Retry, RunId, TaskId, WorkerId};
use tokio::sync::Notify;

use super::spans::WorkSpan;
use super::{WorkerHost, lock};
use crate::output::Part;

/// Reports that the caller has not read.
const REPORTS_MAX: usize = 64;

/// What a worker says of one call, until it is read.
#[derive(Debug, Default)]
pub(crate) struct CallLine {
    said: Mutex<Said>,
    more: Notify,
}

#[derive(Debug, Default)]
struct Said {
    /// Items among them as many as were granted at most.
    reports: VecDeque<TaskReport>,
    lossy: usize,
    outcome: Option<Ended>,
}

/// How a call ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) result: Result<Payload, Error>,
    /// As the worker tells it, if it was asked to.
    pub(crate) ran_unix_ns: Option<[u64; 2]>,
}

/// The next word of a call.
#[derive(Debug)]
pub(crate) enum Word {
    Report(TaskReport),
    Ended(Ended),
}

/// A worker that is a call's or a service's, until this is dropped: a pool manager that begins again is told of it, and
/// gives it to nobody else.
pub(crate) struct Reservation {
    host: WorkerHost,
    ticket: u64,
}

impl std::fmt::Debug for Reservation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reservation").field("ticket", &self.ticket).finish_non_exhaustive()
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        lock(&self.host.0.reserved).remove(&self.ticket);
    }
}

/// One call at a worker, as the host knows it.
pub(super) struct AtWorker {
    worker: WorkerId,
    line: Arc<CallLine>,
    span: WorkSpan,
}

impl CallLine {
    /// Cancel-safe. After the outcome nothing comes.
    pub(crate) async fn next(&self) -> Word {
        loop {
            if let Some(word) = self.take() {
                return word;
            }
            self.more.notified().await;
        }
    }

    fn take(&self) -> Option<Word> {
        let mut said = lock(&self.said);
        if let Some(report) = said.reports.pop_front() {
            said.lossy -= usize::from(is_lossy(&report));
            return Some(Word::Report(report));
        }
        said.outcome.take().map(Word::Ended)
    }

    fn report(&self, report: TaskReport) {
        let mut said = lock(&self.said);
        if said.lossy == REPORTS_MAX
            && let Some(oldest) = said.reports.iter().position(is_lossy)
        {
            said.reports.remove(oldest);
            said.lossy -= 1;
        }
        said.lossy += usize::from(is_lossy(&report));
        said.reports.push_back(report);
        drop(said);
        self.more.notify_one();
    }

    fn conclude(&self, result: Result<Payload, Error>, ran_unix_ns: Option<[u64; 2]>) {
        lock(&self.said).outcome = Some(Ended { result, ran_unix_ns });
        self.more.notify_one();
    }
}

impl WorkerHost {
    pub(crate) fn reserve(&self, worker: &WorkerId, request: ReserveRequest) -> Reservation {
        let ticket = request.ticket;
        lock(&self.0.reserved).insert(ticket, (worker.clone(), request));
        Reservation { host: self.clone(), ticket }
    }

    /// What the kernel has in shared memory.
    pub(crate) fn objects(&self) -> Objects {
        self.0.config.objects.clone()
    }

    /// A fence for one call, never used before, not by an earlier kernel either: a survivor may still compute its call.
    pub(crate) fn call_fence(&self) -> Result<Fence, Error> {
        let epoch = u64::from(self.kernel()?.journal().epoch().0);
        let n = self.0.call_counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Ok(Fence::of_call(epoch << 32 | n & u64::from(u32::MAX)))
    }

    /// Sends a call to a worker that is reserved for it.
    ///
    /// # Errors
    /// `unavailable` when the worker is gone, what the link says otherwise; nothing was sent then.
    pub(crate) fn call(
        &self,
        worker: &WorkerId,
        execute: &Execute,
        care: Care,
    ) -> Result<Arc<CallLine>, Error> {
        let line = Arc::new(CallLine::default());
        let mut execute = Cow::Borrowed(execute);
        let span = match &execute.trace {
            Some(_) => WorkSpan::begin(self.tracer(), execute.to_mut(), worker),
            None => WorkSpan::default(),
        };
        let link = {
            let mut workers = lock(&self.0.workers);
            let entry = workers.get_mut(worker).ok_or_else(|| gone(worker, "it is gone"))?;
            let link = entry.link.clone().ok_or_else(|| gone(worker, "it is gone"))?;
            let told = entry.tell(&execute.code, &execute.code_hash);
            if told.label != execute.code_hash {
                execute.to_mut().code_hash.clone_from(&told.label);
            }
            // Under both locks: whoever removes the worker finds its calls.
            let at_worker = AtWorker { worker: worker.clone(), line: Arc::clone(&line), span };
            lock(&self.0.calls).insert(execute.fence, at_worker);
            link
        };
        if let Err(refusal) = link.execute(&execute, care) {
            lock(&self.0.calls).remove(&execute.fence);
            return Err(refusal);
        }
        Ok(line)
    }

    /// Lets a generator go on: `total` items since it began.
    pub(crate) fn grant_items(&self, worker: &WorkerId, fence: Fence, total: u64) {
        if let Some(link) = lock(&self.0.workers).get(worker).and_then(|entry| entry.link.clone()) {
            link.grant(fence, total);
        }
    }

    /// Climbs until the call is over; at the top its worker ends.
    pub(crate) async fn cancel_call(&self, worker: &WorkerId, fence: Fence) {
        self.climb(worker.clone(), fence).await;
    }

    pub(super) fn calls(&self, fence: Fence) -> bool {
        lock(&self.0.calls).contains_key(&fence)
    }

    pub(super) fn call_reported(&self, fence: Fence, report: TaskReport) {
        let line = lock(&self.0.calls).get(&fence).map(|call| Arc::clone(&call.line));
        if let Some(line) = line {
            line.report(report);
        }
    }

    pub(super) fn call_concluded(&self, fence: Fence, outcome: Outcome) {
        let Some(AtWorker { worker, line, span }) = lock(&self.0.calls).remove(&fence) else { return };
        let Outcome { result, stdout, stderr, ran_unix_ns } = outcome;
        // What comes of it is the caller's.
        let _ = span.end(result.as_ref().err(), ran_unix_ns);
        line.conclude(result, ran_unix_ns);
        // So that what a call printed is not taken for the next attempt's.
        if stdout.0 < stdout.1 || stderr.0 < stderr.1 {
            let part = Part { run: call_run(), task: call_task(fence), attempt: Attempt(1), stdout, stderr };
            if let Err(why) = self.0.config.outputs.record(&worker, &part) {
                tracing::warn!(%worker, %why, "which part of the output is whose cannot be recorded");
            }
        }
    }

    /// Every call at a worker that is gone.
    pub(super) fn calls_died(&self, worker: &WorkerId, death: &Death) {
        let died: Vec<_> = lock(&self.0.calls)
            .extract_if(.., |_, call| call.worker == *worker)
            .map(|(_, call)| call)
            .collect();
        for call in died {
            let died = gone(worker, &death.to_string());
            let _ = call.span.end(Some(&died), None);
            call.line.conclude(Err(died), None);
        }
    }
}

fn is_lossy(report: &TaskReport) -> bool {
    !matches!(report, TaskReport::Item { .. })
}

/// What a call has for a run: no run's id has this length.
pub(crate) fn call_run() -> RunId {
    "call".parse().unwrap_or_else(|_| unreachable!("a well-formed id"))
}

/// What its own output is recorded under, and what it is asked after by.
pub(crate) fn call_task(fence: Fence) -> TaskId {
    call_name(fence).parse().unwrap_or_else(|_| unreachable!("a well-formed id"))
}

pub(crate) fn call_id(fence: Fence) -> CallId {
    call_name(fence).parse().unwrap_or_else(|_| unreachable!("a well-formed id"))
}

fn call_name(fence: Fence) -> String {
    format!("{}{}-{}", CallId::PREFIX, fence.counter >> 32, fence.counter & u64::from(u32::MAX))
}

fn gone(worker: &WorkerId, why: &str) -> Error {
    let text = format!("the worker {worker} did not finish the call: {why}");
    Error::new(Code::Unavailable, "worker.died", text).retry(Retry::Now)
}
