//! The actor `/calls`: one Python function or generator, once, on a warm worker; nothing is journaled.
//!
//! ```text
//!   pool.call ─► lease: warm ─┬─ or the next that is free ─► worker ─► reports, outcome ─► reply
//!                             │         ▲                       │
//!        pool.reserve until it names a worker     lease: to who waits, or warm ─► pool.unreserve
//! ```
//!
//! A lease is a worker that the pool manager gives no attempt to ([`leases`]). Each call stands in the [`books`], which
//! `pool.calls` shows. Both outlive incarnations, because calls under way do.
//!
//! Invariants: (1) a call has a lease while it is at a worker. (2) A call that nobody waits for any more is cancelled, and
//! its lease is held until its worker has stopped computing. (3) At most [`CALLS_MAX`] calls are under way.
//!
//! It deliberately does not retry: whether a function may run twice only its caller knows.

mod arguments;
mod books;
mod flow;
mod leases;
mod objects;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use eclosion_bus::{Bus, InHand, TraceContext};
use eclosion_dag_tracker::environment_id;
use eclosion_kernel::Handler;
use eclosion_kernel::actor::unimplemented;
use eclosion_schemas::flow::EnvironmentSpec;
use eclosion_schemas::operation::Operation;
use eclosion_schemas::ops::pool::{CALLS, Call, CallList, CallRequest, Stream};
use eclosion_schemas::ops::task::{Execute, Limits};
use eclosion_schemas::{Attempt, Code, EnvironmentId, Error, Fence, Payload, Retry, Role};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use self::books::{Books, Entry};
use self::flow::Flow;
use self::leases::{Lease, Leases};
use crate::workers::calls::{CallLine, Word, call_id, call_run, call_task};
use crate::workers::{WorkerHost, lock};

/// Calls under way, waiting for a worker or at one.
const CALLS_MAX: usize = 256;
/// Environments whose ids are remembered: making one is a hash over JSON.
const ENVIRONMENTS_KNOWN: usize = 16;

/// See the head of this file. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Calls(Arc<Shared>);

struct Shared {
    host: WorkerHost,
    permits: Arc<Semaphore>,
    leases: Leases,
    known: Mutex<VecDeque<(EnvironmentSpec, EnvironmentId)>>,
    books: Books,
}

/// What counts of who calls.
#[derive(Clone, Copy)]
struct Caller {
    /// The kernel's holder of services, for as long as the service lives.
    lasting: bool,
    trace: Option<TraceContext>,
}

impl Handler for Calls {
    async fn handle(&mut self, message: InHand) {
        let operation = message.operation;
        let request = message.request::<Call>().or_else(|| message.request::<Stream>()).cloned();
        let streams = operation == Stream::NAME;
        let shares = message.context.shares;
        let caller = Caller {
            // No client calls this in the role of a service: it is refused there. The kernel's own holder of services does.
            lasting: message.context.role == Role::Service,
            trace: message.context.trace,
        };
        let is_list = message.request::<CallList>().is_some();
        let responder = message.finish();
        if is_list {
            return responder.reply(Ok(Box::new(self.0.books.list(CALLS_MAX))));
        }
        let Some(request) = request else {
            let own = CALLS.parse().unwrap_or_else(|_| unreachable!("a well-formed address"));
            return responder.reply(Err(unimplemented(&own, operation)));
        };
        match Arc::clone(&self.0.permits).try_acquire_owned() {
            Ok(permit) => {
                let flow = Flow::new(responder, streams, shares);
                drop(tokio::spawn(self.clone().serve(request, caller, flow, permit)));
            }
            Err(_) => {
                self.0.books.refused();
                responder.reply(Err(full()));
            }
        }
    }
}

impl Calls {
    pub(crate) fn new(host: WorkerHost, bus: Arc<OnceLock<Bus>>) -> Self {
        let books = Books::default();
        Self(Arc::new(Shared {
            leases: Leases::new(host.clone(), bus, books.clone()),
            host,
            permits: Arc::new(Semaphore::new(CALLS_MAX)),
            known: Mutex::default(),
            books,
        }))
    }

    async fn serve(self, request: CallRequest, caller: Caller, mut flow: Flow, permit: OwnedSemaphorePermit) {
        let environment = self.environment(&request.environment);
        let fence = match self.0.host.call_fence() {
            Ok(fence) => fence,
            Err(refusal) => return flow.reply(Err(refusal)),
        };
        let open = || self.0.books.open(fence, call_id(fence), &request.function, &environment);
        let entry = (!caller.lasting).then(open);
        let (outcome, lease) =
            self.perform(request, &environment, fence, caller, entry.as_ref(), &mut flow).await;
        if let Some(entry) = &entry {
            entry.ended(&outcome);
        }
        flow.reply(outcome);
        if let Some(lease) = lease {
            self.0.leases.put_back(&environment, lease).await;
        }
        drop(permit);
    }

    /// The outcome, and the lease that is to be put back.
    async fn perform(
        &self,
        mut request: CallRequest,
        environment: &EnvironmentId,
        fence: Fence,
        caller: Caller,
        entry: Option<&Entry>,
        flow: &mut Flow,
    ) -> (Result<Payload, Error>, Option<Lease>) {
        let spec = request.environment.clone();
        // Until the call is over, also for one that nobody waits for any more: the worker reads there.
        let _held = match objects::put(&mut request.arguments, &self.0.host.objects()) {
            Ok(held) => held,
            Err(refusal) => return (Err(refusal), None),
        };
        let timed = flow.responder().timings().is_some();
        let execute = match execute(request, fence, caller.trace, timed) {
            Ok(execute) => execute,
            Err(refusal) => return (Err(refusal), None),
        };
        loop {
            let acquired = match caller.lasting {
                true => self.0.leases.acquire_lasting(environment, &spec, flow.responder()).await,
                false => self.0.leases.acquire(environment, &spec, flow.responder()).await,
            };
            let mut lease = match acquired {
                Ok(lease) => lease,
                Err(refusal) => return (Err(refusal), None),
            };
            flow.responder().ended("worker");
            if let Some(entry) = entry {
                entry.runs(&lease.worker);
            }
            match self.0.host.call(&lease.worker, &execute, flow.begin()) {
                Ok(line) => {
                    let outcome = self.attend(&mut lease, environment, &spec, &execute, &line, flow).await;
                    return (outcome, Some(lease));
                }
                // A lease may outlive its worker; nothing was sent.
                Err(refusal) if refusal.reason == "worker.died" => self.0.leases.give_back(lease).await,
                Err(refusal) => return (Err(refusal), Some(lease)),
            }
        }
    }

    /// Until the call is over. Once nobody waits for it, it is cancelled, and its end is waited for all the same.
    async fn attend(
        &self,
        lease: &mut Lease,
        environment: &EnvironmentId,
        spec: &EnvironmentSpec,
        execute: &Execute,
        line: &CallLine,
        flow: &mut Flow,
    ) -> Result<Payload, Error> {
        let mut wanted = true;
        let mut timed_out = None;
        // Set only where there is a limit.
        let ends = execute.timeout_ms.map(|timeout_ms| Instant::now() + Duration::from_millis(timeout_ms));
        loop {
            if let Some(total) = flow.due() {
                self.0.host.grant_items(&lease.worker, execute.fence, total);
            }
            tokio::select! {
                biased;
                word = line.next(), if !flow.holds() => match word {
                    Word::Report(report) => flow.pass(report),
                    Word::Ended(ended) => {
                        let outcome = flow.came_back(ended);
                        return timed_out.map_or(outcome, Err);
                    }
                },
                () = tokio::time::sleep_until(ends.unwrap_or_else(Instant::now)), if wanted && ends.is_some() => {
                    wanted = false;
                    timed_out = Some(too_long(execute));
                    flow.abandon();
                    let (host, worker, fence) = (self.0.host.clone(), lease.worker.clone(), execute.fence);
                    tokio::spawn(async move { host.cancel_call(&worker, fence).await });
                }
                () = flow.responder().cancelled().cancelled(), if wanted => {
                    wanted = false;
                    flow.abandon();
                    let (host, worker, fence) = (self.0.host.clone(), lease.worker.clone(), execute.fence);
                    tokio::spawn(async move { host.cancel_call(&worker, fence).await });
                }
                () = flow.more(), if wanted => flow.resume(),
                () = tokio::time::sleep_until(lease.renew_at()) => {
                    self.0.leases.renew(lease, environment, spec).await;
                }
            }
        }
    }

    fn environment(&self, spec: &EnvironmentSpec) -> EnvironmentId {
        let mut known = lock(&self.0.known);
        if let Some((_, id)) = known.iter().find(|(known, _)| known == spec) {
            return id.clone();
        }
        let id = environment_id(spec);
        known.truncate(ENVIRONMENTS_KNOWN - 1);
        known.push_front((spec.clone(), id.clone()));
        id
    }
}

fn execute(
    request: CallRequest,
    fence: Fence,
    trace: Option<TraceContext>,
    timings: bool,
) -> Result<Execute, Error> {
    if request.limits.is_some_and(|limits| limits.processes.is_some()) {
        return Err(Error::invalid("call.limits", "a call has no limit of processes: nobody counts them")
            .help("make it a task of a flow, `processes = 4` in [tasks.NAME], and: eclosion run FLOW.toml"));
    }
    let arguments = arguments::of(&request)?;
    Ok(Execute {
        run: call_run(),
        task: call_task(fence),
        attempt: Attempt(1),
        fence,
        function: request.function,
        code: request.code,
        code_hash: request.code_hash,
        arguments,
        seed: fence.counter & u64::from(u32::MAX),
        idempotency_key: call_id(fence).to_string(),
        timeout_ms: request.timeout_ms,
        lease: BTreeMap::new(),
        limits: request.limits.and_then(Limits::any),
        trace: trace.map(|trace| trace.to_string()),
        timings,
        keeps: false,
    })
}

fn too_long(execute: &Execute) -> Error {
    let timeout_ms = execute.timeout_ms.unwrap_or_default();
    let text = format!("{} did not finish within {timeout_ms} ms and was cancelled", execute.function);
    Error::new(Code::Deadline, "call.timeout", text)
        .help("raise `timeout` of the task, `timeout_ms` of pool.call")
}

fn full() -> Error {
    let text = format!("{CALLS_MAX} calls are under way, the most that there may be");
    Error::new(Code::Exhausted, "call.full", text).retry(Retry::After { after_ms: 50 })
}

fn abandoned() -> Error {
    Error::new(Code::Cancelled, "call.abandoned", "nobody waits for the call any more")
}
