//! The pure core of arbitration.
//!
//! ```text
//! wish:   taken ──fits, and its turn──► lease.granted        can never fit, or taken back ──► lease.refused
//! lease:  granted ──attempt.started──► held by an attempt ──its worker let go──► free   (by fold, no event)
//!            └── wish taken back ──► lease.released            └── or its run finished before it was used
//! ```
//!
//! Clients wish and wait in the same line, by the same rules; how theirs begin and end is in [`client`].
//!
//! Invariants: (1) The sum of the leases never exceeds what there is, resource by resource. (2) A lease is granted whole
//! or not at all. (3) An attempt that was given up but still computes (timed out, cancelled) keeps its lease until its
//! worker has let go: the memory is in use whatever was decided. (4) Every wish ends by exactly one of `lease.granted`
//! and `lease.refused`; the same wish again changes nothing. (5) A wish that has waited long is not overtaken for ever:
//! from `patience_ms` on, what it needs is kept for it. (6) Nobody holds and waits: a wish holds nothing before it has
//! everything, so no two wait for each other.
//!
//! Three kinds of scarce things share one map of amounts, by their keys ([`eclosion_schemas::ops::arbitration::Scarce`]):
//! what is counted comes back with the lease; a lock is a resource of which who is alone takes all and who shares takes
//! one part; of a rate tokens are taken that do not come back, but by time ([`crate::rate`]).
//!
//! Whose turn it is: the tenant whose largest share of any resource, by its weight, is the smallest (weighted dominant
//! resource fairness); of its wishes the one of the earliest rank (class, with aging). Wishes are volatile, because the
//! pool manager makes them again; leases are in the journal. Workers hold their default lease without asking: only what
//! goes beyond it is known here.

use std::collections::{BTreeMap, BTreeSet};

use eclosion_kernel::core::{AnyEvent, Core, Decision, Reads};
use eclosion_kernel::journal::Record;
use eclosion_schemas::error::{Code, Error, Retry};
use eclosion_schemas::events::{
    AttemptStarted, AttemptStopped, Event, LeaseGranted, LeaseRefused, LeaseReleased, LeaseRenewed,
    LeaseTaken, RunCancelling, RunFinished, RunStarted, StepCommitted, StepFailed, WorkerDied,
};
use eclosion_schemas::ops::arbitration::{AcquireRequest, ReleaseRequest, never};
use eclosion_schemas::ops::lease::{ReleaseRequest as GiveBack, RenewRequest};
use eclosion_schemas::ops::pool::Taken;
use eclosion_schemas::{
    EffectId, Epoch, Fence, LeaseId, RunId, TaskId, TaskRef, Tenant, Timestamp, WorkerId,
};

use crate::desk::{Leave, Look, WishRequest};
use crate::options::ArbitrationOptions;
use crate::rate::Bucket;

pub(crate) mod client;
mod fold;
mod pace;
mod queue;
mod settle;
mod wish;

pub use queue::Queue;
pub(crate) use settle::next;
pub(crate) use wish::{Claimant, Client, Lease, LeaseHolder, Wish, WishId};

/// See the head of this file.
#[derive(Debug, Clone)]
pub struct Arbitration {
    pub options: ArbitrationOptions,
}

#[derive(Debug, Clone)]
pub enum Command {
    Acquire(AcquireRequest),
    Release(ReleaseRequest),
    Status,
    /// Of clients.
    Wish(WishRequest),
    Look(Look),
    Leave(Leave),
    Renew(RenewRequest),
    GiveBack(GiveBack),
}

/// It owes nothing to anybody: what it decides is folded by those who wait for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {}

/// Everything that follows from the records.
#[derive(Debug, Clone, Default)]
pub struct State {
    pub(crate) runs: BTreeMap<RunId, Run>,
    pub(crate) leases: BTreeMap<LeaseId, Lease>,
    /// The same by the wish that each answers.
    pub(crate) by_wish: BTreeMap<WishId, LeaseId>,
    /// The same by the attempt that holds each.
    pub(crate) by_fence: BTreeMap<Fence, LeaseId>,
    /// Sums over the leases: of all, and of each tenant.
    pub(crate) used: BTreeMap<String, u64>,
    pub(crate) used_by: BTreeMap<Tenant, BTreeMap<String, u64>>,
    /// What is left of each rate that was ever used.
    pub(crate) rates: BTreeMap<String, Bucket>,
    /// Attempts that have a worker, with or without a lease.
    pub(crate) attempts: BTreeMap<Fence, RunningAttempt>,
    pub(crate) running: BTreeMap<Tenant, u32>,
    pub(crate) counter: u64,
    /// Leases that came to an end, ever.
    pub(crate) freed: u64,
    pub(crate) clients: client::ClientLeases,
    /// Raised whenever a run is cancelled or finished: wishes may have become pointless.
    pub(crate) ends: u64,
    outstanding: BTreeMap<EffectId, Effect>,
}

#[derive(Debug, Clone)]
pub(crate) struct Run {
    pub(crate) tenant: Tenant,
    pub(crate) cancelling: bool,
    /// The last wish answered for each task; a message about an older one comes late.
    pub(crate) answered: BTreeMap<TaskId, EffectId>,
}

#[derive(Debug, Clone)]
pub(crate) struct RunningAttempt {
    pub(crate) tenant: Tenant,
    pub(crate) worker: WorkerId,
}

impl State {
    /// Whether a lease for this run would still be used.
    pub(crate) fn wants(&self, run: &RunId) -> bool {
        self.runs.get(run).is_some_and(|run| !run.cancelling)
    }

    fn is_answered(&self, task: &TaskRef, wish: EffectId) -> bool {
        let answered = self.runs.get(&task.run).and_then(|run| run.answered.get(&task.task));
        answered.is_some_and(|answered| wish <= *answered)
    }

    pub(crate) fn used(&self, resource: &str) -> u64 {
        self.used.get(resource).copied().unwrap_or_default()
    }

    /// How much of something can be had now.
    pub(crate) fn free(&self, options: &ArbitrationOptions, key: &str, now: Timestamp) -> u64 {
        match options.rate(key) {
            Some((name, rate)) => {
                self.rates.get(name).map_or(rate.burst(), |bucket| bucket.tokens(rate, now))
            }
            None => options.capacity(key).saturating_sub(self.used(key)),
        }
    }

    /// When there is this much of a rate, by time alone; none for what does not come back by time.
    pub(crate) fn ready_at(&self, options: &ArbitrationOptions, key: &str, amount: u64) -> Option<Timestamp> {
        let (name, rate) = options.rate(key)?;
        Some(self.rates.get(name)?.ready_at(rate, amount))
    }
}

impl Core for Arbitration {
    type State = State;
    type Volatile = Queue;
    type Command = Command;
    type Effect = Effect;

    const DECIDES: &'static [&'static str] =
        &[LeaseGranted::KIND, LeaseReleased::KIND, LeaseRefused::KIND, LeaseTaken::KIND, LeaseRenewed::KIND];
    const FOLDS: &'static [&'static str] = &[
        LeaseGranted::KIND,
        LeaseReleased::KIND,
        LeaseRefused::KIND,
        LeaseTaken::KIND,
        LeaseRenewed::KIND,
        RunStarted::KIND,
        RunCancelling::KIND,
        RunFinished::KIND,
        AttemptStarted::KIND,
        AttemptStopped::KIND,
        StepCommitted::KIND,
        StepFailed::KIND,
        WorkerDied::KIND,
    ];

    fn decide(
        &self,
        state: &State,
        queue: &mut Queue,
        reads: &Reads,
        command: &Command,
        now: Timestamp,
    ) -> Result<Decision, Error> {
        match command {
            Command::Acquire(request) => acquire(&self.options, state, queue, request, now),
            Command::Release(request) => Ok(release(state, queue, request)),
            Command::Status => Ok(Decision::reply(crate::view::status(&self.options, state, queue, now))),
            Command::Wish(request) => client::wish(&self.options, state, queue, reads, request, now),
            Command::Look(request) => Ok(client::look(state, queue, request)),
            Command::Leave(request) => Ok(client::leave(state, queue, request, now)),
            Command::Renew(request) => client::renew(state, request, now),
            Command::GiveBack(request) => client::give_back(state, queue, request),
        }
    }

    fn settle(&self, state: &State, queue: &mut Queue, reads: &Reads, now: Timestamp) -> Vec<AnyEvent> {
        settle::settle(&self.options, state, queue, reads.epoch(), now)
    }

    fn apply(&self, state: &mut State, record: &Record) {
        fold::apply(&self.options, state, record);
    }

    fn outstanding<'a>(&self, state: &'a State) -> &'a BTreeMap<EffectId, Effect> {
        &state.outstanding
    }

    /// Patience that runs out only keeps others back; by time alone rates become possible again, and clients' leases end.
    fn wake_at(&self, _: &State, queue: &Queue) -> Option<Timestamp> {
        queue.wake_at
    }

    fn digest(&self, state: &State) -> String {
        format!("{state:?}")
    }
}

fn acquire(
    options: &ArbitrationOptions,
    state: &State,
    queue: &mut Queue,
    request: &AcquireRequest,
    now: Timestamp,
) -> Result<Decision, Error> {
    let taken = Decision::reply(Taken {});
    if state.is_answered(&request.task, request.wish) || queue.contains(&WishId::Task(request.wish)) {
        return Ok(taken);
    }
    let refused = |error| LeaseRefused { task: request.task.clone(), wish: request.wish, error };
    if !state.wants(&request.task.run) {
        let message = format!("run {} is over", request.task.run);
        return Ok(taken.event(refused(Error::new(Code::Cancelled, "arbitration.run_over", message))));
    }
    if let Some(impossible) = impossible(options, &request.amounts) {
        return Ok(taken.event(refused(impossible)));
    }
    admit(options, state, queue, &request.tenant, now)?;
    queue.insert(request.clone().into(), options.aging_ms);
    Ok(taken)
}

/// Places are bounded, in all and for each tenant. Nothing that was taken is lost by it: a refused wish was never taken,
/// and whoever made it is told when a place is likely to be free.
fn admit(
    options: &ArbitrationOptions,
    state: &State,
    queue: &Queue,
    tenant: &Tenant,
    now: Timestamp,
) -> Result<(), Error> {
    let of_tenant = queue.of_tenant(tenant);
    let (waiting, max, whose) = if of_tenant >= options.wishes_of_tenant_max {
        (of_tenant, options.wishes_of_tenant_max, format!(" of tenant {tenant}"))
    } else if queue.len() >= options.wishes_max {
        (queue.len(), options.wishes_max, String::new())
    } else {
        return Ok(());
    };
    let message = format!("{waiting} wishes{whose} wait already, the most that are held is {max}");
    let after_ms = queue.pace.place_in_ms(state.freed, now);
    Err(Error::new(Code::Exhausted, "arbitration.wishes", message).retry(Retry::After { after_ms }))
}

/// The first thing of which more is asked for than there ever is.
fn impossible(options: &ArbitrationOptions, amounts: &BTreeMap<String, u64>) -> Option<Error> {
    let ceilings = options.ceilings();
    amounts.iter().find_map(|(key, amount)| never(&ceilings, key, *amount))
}

/// Always leads to an event, because the pool manager owes the return until it has seen one.
fn release(state: &State, queue: &mut Queue, request: &ReleaseRequest) -> Decision {
    let taken = Decision::reply(Taken {});
    let (wish, reason) = (WishId::Task(request.wish), request.reason.clone());
    let lease = state.by_wish.get(&wish).and_then(|id| Some((id, state.leases.get(id)?)));
    match lease {
        Some((id, lease)) if lease.held_by().is_none() => {
            taken.event(LeaseReleased { lease: id.clone(), reason })
        }
        // It is in use, and is released when its worker lets go.
        Some(_) => taken,
        None => {
            let Some(task) = request.task.clone().or_else(|| queue.task(&wish)) else { return taken };
            queue.remove(&wish);
            let error = Error::new(Code::Cancelled, "arbitration.withdrawn", reason);
            taken.event(LeaseRefused { task, wish: request.wish, error })
        }
    }
}

/// Ids made here are well formed: a letter and two numbers.
fn lease_id(epoch: Epoch, counter: u64) -> LeaseId {
    LeaseId::new(format!("l-{epoch}-{counter}")).unwrap_or_else(|_| unreachable!("a letter and two numbers"))
}

#[cfg(test)]
mod tests;
