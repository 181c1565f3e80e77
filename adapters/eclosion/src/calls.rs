//! The actor `/calls`: one Python function or generator, once, on a warm worker; nothing is journaled.
//!
//! ```text
//!   pool.call ─► lease: warm ─┬─ or pool.reserve until it names a worker ─► worker ─► reports, outcome ─► reply
//!                             └─ or handed over by a call that ends                       │
//!                                                        lease: to who waits, or warm ◄───┘ ─► pool.unreserve
//! ```
//!
//! A lease is a worker that the pool manager gives no attempt to. It serves one call at a time, and stays for [`WARM`]
//! after it, so that a loop of calls asks the pool manager once. Owned here: leases and who waits for one; both outlive
//! incarnations, because calls under way do.
//!
//! Invariants: (1) a lease is held by one call, is warm, or is given back. (2) A call that nobody waits for any more is
//! cancelled, and its lease is held until its worker has stopped computing. (3) At most [`CALLS_MAX`] calls are under way.
//! Each stands in the books (`calls/books.rs`), which `pool.calls` shows.
//!
//! It deliberately does not retry: whether a function may run twice only its caller knows.

mod arguments;
mod books;
mod flow;
mod objects;

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use eclosion_bus::{Bus, InHand, Responder, TraceContext};
use eclosion_dag_tracker::environment_id;
use eclosion_kernel::Handler;
use eclosion_kernel::actor::unimplemented;
use eclosion_schemas::flow::EnvironmentSpec;
use eclosion_schemas::operation::Operation;
use eclosion_schemas::ops::pool::{
    CALLS, Call, CallList, CallRequest, Reserve, ReserveRequest, Stream, Unreserve, UnreserveRequest,
};
use eclosion_schemas::ops::task::{Execute, Limits};
use eclosion_schemas::{Attempt, Code, EnvironmentId, Error, Fence, Payload, Retry, Role, WorkerId};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::Instant;

use self::books::{Books, Entry};
use self::flow::Flow;
use crate::workers::calls::{CallLine, Reservation, Word, call_id, call_run, call_task};
use crate::workers::{WorkerHost, lock};

/// Calls under way, waiting for a worker or at one.
const CALLS_MAX: usize = 256;
/// How long a worker stays reserved for the next call. Attempts wait as long at most, so it is short.
const WARM: Duration = Duration::from_millis(500);
/// A reservation lapses after a minute; it is renewed well before.
const RENEW: Duration = Duration::from_secs(20);
/// Between two asks for a worker that is being started: first, and at most.
const ASK_AGAIN: Duration = Duration::from_millis(2);
const ASK_AGAIN_MAX: Duration = Duration::from_millis(50);
/// Environments whose ids are remembered: making one is a hash over JSON.
const ENVIRONMENTS_KNOWN: usize = 16;

/// See the head of this file. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Calls(Arc<Shared>);

struct Shared {
    host: WorkerHost,
    bus: Arc<OnceLock<Bus>>,
    permits: Arc<Semaphore>,
    tickets: AtomicU64,
    leases: Mutex<BTreeMap<EnvironmentId, Leases>>,
    known: Mutex<VecDeque<(EnvironmentSpec, EnvironmentId)>>,
    books: Books,
}

/// The leases of one environment that no call holds, and the calls that have none. One of both is empty.
#[derive(Default)]
struct Leases {
    /// The last used is the last.
    warm: Vec<Lease>,
    waiting: VecDeque<oneshot::Sender<Lease>>,
    /// A task looks after those that are warm.
    is_cooling: bool,
}

/// A worker that is ours for the time being.
#[derive(Debug)]
struct Lease {
    ticket: u64,
    worker: WorkerId,
    renewed: Instant,
    used: Instant,
    /// A service's.
    lasting: bool,
    _held: Reservation,
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
        Self(Arc::new(Shared {
            host,
            bus,
            permits: Arc::new(Semaphore::new(CALLS_MAX)),
            tickets: AtomicU64::new(1),
            leases: Mutex::default(),
            known: Mutex::default(),
            books: Books::default(),
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
            self.put_back(&environment, lease).await;
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
                true => self.acquire_lasting(environment, &spec, flow.responder()).await,
                false => self.acquire(environment, &spec, entry, flow.responder()).await,
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
                Err(refusal) if refusal.reason == "worker.died" => self.give_back(lease.ticket).await,
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
                () = tokio::time::sleep_until(ends.unwrap_or(lease.renewed)), if wanted && ends.is_some() => {
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
                () = tokio::time::sleep_until(lease.renewed + RENEW) => self.renew(lease, environment, spec).await,
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

    /// A worker for one call.
    ///
    /// # Errors
    /// `cancelled` once nobody waits any more, what the environment says that cannot be built, or the pool manager.
    async fn acquire(
        &self,
        environment: &EnvironmentId,
        spec: &EnvironmentSpec,
        entry: Option<&Entry>,
        responder: &Responder,
    ) -> Result<Lease, Error> {
        let mut handed = {
            let mut leases = lock(&self.0.leases);
            let leases = leases.entry(environment.clone()).or_default();
            if let Some(lease) = leases.warm.pop() {
                return Ok(lease);
            }
            let (hand, handed) = oneshot::channel();
            leases.waiting.retain(|waiting| !waiting.is_closed());
            leases.waiting.push_back(hand);
            handed
        };
        let ticket = self.0.tickets.fetch_add(1, Ordering::Relaxed);
        let found = tokio::select! {
            biased;
            Ok(lease) = &mut handed => Ok(lease),
            reserved = self.reserve(ticket, environment, spec, false, entry) => reserved,
            () = responder.cancelled().cancelled() => Err(abandoned()),
        };
        // Between the two, one may have been handed over as well.
        handed.close();
        if !matches!(&found, Ok(lease) if lease.ticket == ticket) {
            self.give_back(ticket).await;
        }
        if let Ok(second) = handed.try_recv() {
            self.put_back(environment, second).await;
        }
        found
    }

    /// A worker that no other call gets for as long as its process lives.
    ///
    /// # Errors
    /// As [`Calls::acquire`].
    async fn acquire_lasting(
        &self,
        environment: &EnvironmentId,
        spec: &EnvironmentSpec,
        responder: &Responder,
    ) -> Result<Lease, Error> {
        let ticket = self.0.tickets.fetch_add(1, Ordering::Relaxed);
        let found = tokio::select! {
            biased;
            reserved = self.reserve(ticket, environment, spec, true, None) => reserved,
            () = responder.cancelled().cancelled() => Err(abandoned()),
        };
        if found.is_err() {
            self.give_back(ticket).await;
        }
        found
    }

    async fn reserve(
        &self,
        ticket: u64,
        environment: &EnvironmentId,
        spec: &EnvironmentSpec,
        lasting: bool,
        entry: Option<&Entry>,
    ) -> Result<Lease, Error> {
        let mut pause = ASK_AGAIN;
        loop {
            let (environment, spec) = (environment.clone(), spec.clone());
            let request = ReserveRequest { ticket, environment, spec, lasting };
            match self.bus()?.ask::<Reserve>(request.clone()).await {
                Ok(reply) => {
                    if let Some(error) = reply.error {
                        return Err(error);
                    }
                    if let Some(worker) = reply.worker {
                        let now = Instant::now();
                        let _held = self.0.host.reserve(&worker, request);
                        return Ok(Lease { ticket, worker, renewed: now, used: now, lasting, _held });
                    }
                    if let Some(entry) = entry {
                        entry.waits(reply.pending);
                    }
                }
                // It is restarting; the next incarnation is asked.
                Err(refusal) if refusal.retry != Retry::Never => {}
                Err(refusal) => return Err(refusal),
            }
            tokio::time::sleep(pause).await;
            // Slowly, so that a worker that is there waits for an eighth of its start at most.
            pause = (pause + pause / 8).min(ASK_AGAIN_MAX);
        }
    }

    async fn renew(&self, lease: &mut Lease, environment: &EnvironmentId, spec: &EnvironmentSpec) {
        lease.renewed = Instant::now();
        let Ok(bus) = self.bus() else { return };
        let (environment, spec) = (environment.clone(), spec.clone());
        let request = ReserveRequest { ticket: lease.ticket, environment, spec, lasting: lease.lasting };
        if let Err(why) = bus.ask::<Reserve>(request).await {
            tracing::warn!(worker = %lease.worker, %why, "a reservation was not renewed");
        }
    }

    async fn give_back(&self, ticket: u64) {
        let Ok(bus) = self.bus() else { return };
        if let Err(why) = bus.ask::<Unreserve>(UnreserveRequest { ticket }).await {
            tracing::debug!(ticket, %why, "a reservation was not given back; it lapses");
        }
    }

    /// A call is over: its worker goes to the next one that waits, else it stays for a while.
    async fn put_back(&self, environment: &EnvironmentId, mut lease: Lease) {
        lease.used = Instant::now();
        // One that is warm is not renewed, and must not lapse; and a service's worker is beyond what the pool may have.
        if lease.lasting || lease.renewed.elapsed() > RENEW {
            return self.give_back(lease.ticket).await;
        }
        let was_cooling = {
            let mut leases = lock(&self.0.leases);
            let leases = leases.entry(environment.clone()).or_default();
            while let Some(waiting) = leases.waiting.pop_front() {
                match waiting.send(lease) {
                    Ok(()) => return,
                    Err(back) => lease = back,
                }
            }
            leases.warm.push(lease);
            std::mem::replace(&mut leases.is_cooling, true)
        };
        if !was_cooling {
            tokio::spawn(self.clone().cool(environment.clone()));
        }
    }

    /// Gives leases of one environment back that nobody used for a while, until none is left.
    async fn cool(self, environment: EnvironmentId) {
        loop {
            tokio::time::sleep(WARM / 2).await;
            let (cold, is_over) = {
                let mut all = lock(&self.0.leases);
                let Some(leases) = all.get_mut(&environment) else { return };
                let cold: Vec<_> = leases.warm.extract_if(.., |lease| lease.used.elapsed() >= WARM).collect();
                leases.is_cooling = !leases.warm.is_empty();
                let is_over = !leases.is_cooling;
                if is_over && leases.waiting.is_empty() {
                    all.remove(&environment);
                }
                (cold, is_over)
            };
            for lease in cold {
                self.give_back(lease.ticket).await;
            }
            if is_over {
                return;
            }
        }
    }

    fn bus(&self) -> Result<&Bus, Error> {
        self.0.bus.get().ok_or_else(|| {
            Error::new(Code::Unavailable, "kernel.starting", "the kernel is starting").retry(Retry::Now)
        })
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
