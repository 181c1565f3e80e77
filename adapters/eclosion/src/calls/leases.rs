//! Leases: workers that calls have for the time being, and the calls that wait for one.
//!
//! ```text
//!   acquire ─┬─ one that is warm ──────────────────────────► a call has it ─► put back ─┬─► who waits first
//!            └─ waits in line ◄── handed over ◄─────────────────────────────────────────┘   else warm, then given back
//!                     └─ some task asks pool.reserve for who waits, until it names a worker
//! ```
//!
//! Calls wait in the order in which they came, and the pool manager is asked for them together: for as many workers at a
//! time as calls wait, and [`ASKING_MAX`] at most. A lease stays warm for [`WARM`] after a call, so that a loop of calls asks
//! the pool manager once. Leases and lines outlive the incarnations of `/calls`, because calls under way do.
//!
//! Invariants: (1) a lease is held by one call, is warm, or is given back. (2) While a call waits, somebody asks.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use eclosion_bus::{Bus, Responder};
use eclosion_schemas::flow::EnvironmentSpec;
use eclosion_schemas::ops::pool::{Reserve, ReserveRequest, Unreserve, UnreserveRequest};
use eclosion_schemas::pending::PendingReason;
use eclosion_schemas::{Code, EnvironmentId, Error, Retry, WorkerId};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::abandoned;
use super::books::Books;
use crate::workers::calls::Reservation;
use crate::workers::{WorkerHost, lock};

/// How long a worker stays reserved for the next call. Attempts wait as long at most, so it is short.
const WARM: Duration = Duration::from_millis(500);
/// A reservation lapses after a minute; it is renewed well before.
const RENEW: Duration = Duration::from_secs(20);
/// Workers of one environment that the pool manager is asked for at a time.
const ASKING_MAX: usize = 16;
/// Between two asks for a worker that is being started: first, and at most.
const ASK_AGAIN: Duration = Duration::from_millis(2);
const ASK_AGAIN_MAX: Duration = Duration::from_millis(50);

/// See the head of this file. Cheap to clone.
#[derive(Clone)]
pub(super) struct Leases(Arc<Shared>);

struct Shared {
    host: WorkerHost,
    bus: Arc<OnceLock<Bus>>,
    books: Books,
    tickets: AtomicU64,
    lines: Mutex<BTreeMap<EnvironmentId, Line>>,
}

/// The leases of one environment that no call holds, and the calls that have none. One of both is empty.
#[derive(Default)]
struct Line {
    /// The last used is the last.
    warm: Vec<Lease>,
    waiting: VecDeque<oneshot::Sender<Result<Lease, Error>>>,
    /// So many tasks ask the pool manager for who waits.
    asking: usize,
    /// A task looks after those that are warm.
    is_cooling: bool,
}

impl Line {
    /// Nothing here needs to be remembered.
    fn is_over(&self) -> bool {
        self.warm.is_empty() && self.waiting.is_empty() && self.asking == 0
    }
}

/// A worker that is ours for the time being.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) worker: WorkerId,
    ticket: u64,
    renewed: Instant,
    used: Instant,
    /// A service's.
    lasting: bool,
    _held: Reservation,
}

impl Lease {
    pub(super) fn renew_at(&self) -> Instant {
        self.renewed + RENEW
    }
}

/// What the pool manager says to a ticket.
enum Found {
    Lease(Lease),
    /// There is no worker for it yet: it is asked again.
    Pending(Vec<PendingReason>),
}

impl Leases {
    pub(super) fn new(host: WorkerHost, bus: Arc<OnceLock<Bus>>, books: Books) -> Self {
        Self(Arc::new(Shared { host, bus, books, tickets: AtomicU64::new(1), lines: Mutex::default() }))
    }

    /// A worker for one call.
    ///
    /// # Errors
    /// `cancelled` once nobody waits any more, what the environment says that cannot be built, or the pool manager.
    pub(super) async fn acquire(
        &self,
        environment: &EnvironmentId,
        spec: &EnvironmentSpec,
        responder: &Responder,
    ) -> Result<Lease, Error> {
        let (mut handed, asks) = {
            let mut lines = lock(&self.0.lines);
            let line = lines.entry(environment.clone()).or_default();
            if let Some(lease) = line.warm.pop() {
                return Ok(lease);
            }
            let (hand, handed) = oneshot::channel();
            line.waiting.retain(|waiting| !waiting.is_closed());
            line.waiting.push_back(hand);
            let asks = line.asking < line.waiting.len().min(ASKING_MAX);
            line.asking += usize::from(asks);
            (handed, asks)
        };
        if asks {
            tokio::spawn(self.clone().ask_for_who_waits(environment.clone(), spec.clone()));
        }
        tokio::select! {
            biased;
            Ok(found) = &mut handed => return found,
            () = responder.cancelled().cancelled() => {}
        }
        // Between the two, one may have been handed over.
        handed.close();
        if let Ok(Ok(lease)) = handed.try_recv() {
            self.put_back(environment, lease).await;
        }
        Err(abandoned())
    }

    /// Asks the pool manager for one worker after the other, as long as calls wait.
    async fn ask_for_who_waits(self, environment: EnvironmentId, spec: EnvironmentSpec) {
        let (mut ticket, mut pause) = (self.ticket(), ASK_AGAIN);
        loop {
            match self.reserve(ticket, &environment, &spec, false).await {
                Ok(Found::Lease(lease)) => {
                    self.put_back(&environment, lease).await;
                    (ticket, pause) = (self.ticket(), ASK_AGAIN);
                    if self.asks_no_more(&environment) {
                        return;
                    }
                    continue;
                }
                Ok(Found::Pending(why)) => self.0.books.wait(&environment, &why),
                Err(refusal) => {
                    self.refuse_who_waits(&environment, &refusal);
                    // Whoever waits next is not to be told of what was before.
                    self.give_back_ticket(std::mem::replace(&mut ticket, self.ticket())).await;
                }
            }
            if self.asks_no_more(&environment) {
                return self.give_back_ticket(ticket).await;
            }
            tokio::time::sleep(pause).await;
            pause = longer(pause);
        }
    }

    /// Fewer wait than are asked for: whoever waits next begins to ask again.
    fn asks_no_more(&self, environment: &EnvironmentId) -> bool {
        let mut lines = lock(&self.0.lines);
        let Some(line) = lines.get_mut(environment) else { return true };
        line.waiting.retain(|waiting| !waiting.is_closed());
        let asks_no_more = line.waiting.len() < line.asking;
        line.asking -= usize::from(asks_no_more);
        if line.is_over() {
            lines.remove(environment);
        }
        asks_no_more
    }

    fn refuse_who_waits(&self, environment: &EnvironmentId, refusal: &Error) {
        let waiting = lock(&self.0.lines).get_mut(environment).map(|line| std::mem::take(&mut line.waiting));
        for waiting in waiting.into_iter().flatten() {
            // One that is gone misses nothing.
            let _ = waiting.send(Err(refusal.clone()));
        }
    }

    /// A worker that no other call gets for as long as its process lives.
    ///
    /// # Errors
    /// As [`Leases::acquire`].
    pub(super) async fn acquire_lasting(
        &self,
        environment: &EnvironmentId,
        spec: &EnvironmentSpec,
        responder: &Responder,
    ) -> Result<Lease, Error> {
        let ticket = self.ticket();
        let reserved = async {
            let mut pause = ASK_AGAIN;
            loop {
                if let Found::Lease(lease) = self.reserve(ticket, environment, spec, true).await? {
                    return Ok(lease);
                }
                tokio::time::sleep(pause).await;
                pause = longer(pause);
            }
        };
        let found = tokio::select! {
            biased;
            reserved = reserved => reserved,
            () = responder.cancelled().cancelled() => Err(abandoned()),
        };
        if found.is_err() {
            self.give_back_ticket(ticket).await;
        }
        found
    }

    fn ticket(&self) -> u64 {
        self.0.tickets.fetch_add(1, Ordering::Relaxed)
    }

    async fn reserve(
        &self,
        ticket: u64,
        environment: &EnvironmentId,
        spec: &EnvironmentSpec,
        lasting: bool,
    ) -> Result<Found, Error> {
        let (environment, spec) = (environment.clone(), spec.clone());
        let request = ReserveRequest { ticket, environment, spec, lasting };
        let reply = match self.bus()?.ask::<Reserve>(request.clone()).await {
            Ok(reply) => reply,
            // It is restarting; the next incarnation is asked.
            Err(refusal) if refusal.retry != Retry::Never => return Ok(Found::Pending(Vec::new())),
            Err(refusal) => return Err(refusal),
        };
        if let Some(error) = reply.error {
            return Err(error);
        }
        let Some(worker) = reply.worker else { return Ok(Found::Pending(reply.pending)) };
        let now = Instant::now();
        let _held = self.0.host.reserve(&worker, request);
        Ok(Found::Lease(Lease { worker, ticket, renewed: now, used: now, lasting, _held }))
    }

    pub(super) async fn renew(&self, lease: &mut Lease, environment: &EnvironmentId, spec: &EnvironmentSpec) {
        lease.renewed = Instant::now();
        let Ok(bus) = self.bus() else { return };
        let (environment, spec) = (environment.clone(), spec.clone());
        let request = ReserveRequest { ticket: lease.ticket, environment, spec, lasting: lease.lasting };
        if let Err(why) = bus.ask::<Reserve>(request).await {
            tracing::warn!(worker = %lease.worker, %why, "a reservation was not renewed");
        }
    }

    pub(super) async fn give_back(&self, lease: Lease) {
        self.give_back_ticket(lease.ticket).await;
    }

    async fn give_back_ticket(&self, ticket: u64) {
        let Ok(bus) = self.bus() else { return };
        if let Err(why) = bus.ask::<Unreserve>(UnreserveRequest { ticket }).await {
            tracing::debug!(ticket, %why, "a reservation was not given back; it lapses");
        }
    }

    /// A call is over: its worker goes to the next one that waits, else it stays for a while.
    pub(super) async fn put_back(&self, environment: &EnvironmentId, mut lease: Lease) {
        lease.used = Instant::now();
        // One that is warm is not renewed, and must not lapse; and a service's worker is beyond what the pool may have.
        if lease.lasting || lease.renewed.elapsed() > RENEW {
            return self.give_back(lease).await;
        }
        let was_cooling = {
            let mut lines = lock(&self.0.lines);
            let line = lines.entry(environment.clone()).or_default();
            while let Some(waiting) = line.waiting.pop_front() {
                match waiting.send(Ok(lease)) {
                    Err(Ok(back)) => lease = back,
                    Ok(()) | Err(Err(_)) => return,
                }
            }
            line.warm.push(lease);
            std::mem::replace(&mut line.is_cooling, true)
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
                let mut lines = lock(&self.0.lines);
                let Some(line) = lines.get_mut(&environment) else { return };
                let cold: Vec<_> = line.warm.extract_if(.., |lease| lease.used.elapsed() >= WARM).collect();
                line.is_cooling = !line.warm.is_empty();
                let is_over = !line.is_cooling;
                if line.is_over() {
                    lines.remove(&environment);
                }
                (cold, is_over)
            };
            for lease in cold {
                self.give_back(lease).await;
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

/// Slowly, so that a worker that is there waits for an eighth of its start at most.
fn longer(pause: Duration) -> Duration {
    (pause + pause / 8).min(ASK_AGAIN_MAX)
}
