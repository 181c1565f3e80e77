//! Who waits for a worker, and in which order. Volatile: the DAG tracker says its wishes again.
//!
//! A wish stands in one place: `Later` (not before its time), `Asking` and `Asked` (for a lease), or `InLine`, by
//! environment, by tenant, by rank. It is taken out only when the state shows its attempt, because an append may find that others were
//! first and the decision be made again.

use eclosion_schemas::ops::pool::Wish;
use eclosion_schemas::ops::task::Execute;

use super::*;

/// Earliest first; see [`eclosion_schemas::flow::Priority::rank`].
pub(super) type Rank = (Timestamp, Timestamp, EffectId);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Later,
    /// Arbitration is to be asked.
    Asking,
    /// Arbitration was asked.
    Asked,
    InLine,
}

impl Place {
    pub(super) fn when_ready(wish: &Wish) -> Self {
        if asks_for(&wish.execute).is_empty() { Place::InLine } else { Place::Asking }
    }
}

/// What it needs beyond the default lease of a worker, as arbitration counts it.
pub(super) fn asks_for(execute: &Execute) -> BTreeMap<String, u64> {
    let mut amounts = execute.lease.clone();
    amounts.retain(|resource, amount| if resource == "cpu" { *amount > 1 } else { *amount > 0 });
    if let Some(cpu) = amounts.get_mut("cpu") {
        *cpu = cpu.saturating_mul(1_000);
    }
    amounts
}

#[derive(Debug, Clone)]
struct Waiting {
    wish: Wish,
    rank: Rank,
    place: Place,
}

#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) environment: EnvironmentId,
    pub(super) spec: EnvironmentSpec,
    pub(super) worker: Option<WorkerId>,
    /// Its environment has failed since it came.
    pub(super) error: Option<Error>,
    /// The failure of its environment that stood there when it came, and that is mended for it.
    pub(super) mends: Option<Seq>,
    pub(super) until: Timestamp,
    /// A service's: it pays for a worker beyond the most that tasks may have.
    pub(super) lasting: bool,
}

impl Call {
    pub(super) fn waits(&self) -> bool {
        self.worker.is_none() && self.error.is_none()
    }
}

/// See the head of this file.
#[derive(Debug, Default)]
pub struct Line {
    wishes: BTreeMap<EffectId, Waiting>,
    in_line: BTreeMap<EnvironmentId, BTreeMap<Tenant, BTreeSet<Rank>>>,
    asking: BTreeSet<EffectId>,
    later: BTreeSet<(Timestamp, EffectId)>,
    /// Wishes answered by the events of the last `settle`, if those were appended.
    pub(super) answered: Vec<(EffectId, Fence)>,
    /// This life of the kernel, once `settle` has been called.
    pub(super) epoch: Epoch,
    /// Up to which of the state's `ends` pointless wishes have been dropped.
    pub(super) ends_seen: u64,
    /// Without a holder, and declared dead at this time.
    pub(super) missing: BTreeMap<WorkerId, Timestamp>,
    /// Reservations, by ticket.
    pub(super) calls: BTreeMap<u64, Call>,
    /// Why nothing is started any more in this life of the kernel.
    pub(super) closing: Option<String>,
    /// Up to which of the state's quarantines the wishes here have been compared with them.
    pub(super) quarantine_seen: u64,
    /// What workers took up when they were looked at last.
    pub(crate) usage: BTreeMap<WorkerId, pool::WorkerUsage>,
}

impl Line {
    #[must_use]
    pub fn len(&self) -> usize {
        self.wishes.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.wishes.is_empty()
    }

    pub(super) fn contains(&self, wish: EffectId) -> bool {
        self.wishes.contains_key(&wish)
    }

    pub(crate) fn wish(&self, id: EffectId) -> Option<&Wish> {
        self.wishes.get(&id).map(|waiting| &waiting.wish)
    }

    /// In the order of their ids.
    pub(crate) fn wishes(&self) -> impl Iterator<Item = &Wish> {
        self.wishes.values().map(|waiting| &waiting.wish)
    }

    pub(super) fn insert(&mut self, wish: Wish, place: Place, aging_ms: u64) {
        let rank = (wish.priority.rank(wish.ready_at, aging_ms), wish.ready_at, wish.id);
        let waiting = Waiting { wish, rank, place };
        self.stand(&waiting);
        self.wishes.insert(waiting.wish.id, waiting);
    }

    pub(super) fn drop(&mut self, id: EffectId) -> Option<Wish> {
        let waiting = self.wishes.remove(&id)?;
        self.leave(&waiting);
        Some(waiting.wish)
    }

    pub(super) fn move_to(&mut self, id: EffectId, place: Place) {
        let Some(mut waiting) = self.wishes.remove(&id) else { return };
        self.leave(&waiting);
        waiting.place = place;
        self.stand(&waiting);
        self.wishes.insert(id, waiting);
    }

    fn stand(&mut self, waiting: &Waiting) {
        let Waiting { wish, rank, place } = waiting;
        match place {
            Place::Later => drop(self.later.insert((wish.ready_at, wish.id))),
            Place::Asking => drop(self.asking.insert(wish.id)),
            Place::Asked => {}
            Place::InLine => {
                let tenants = self.in_line.entry(wish.environment.clone()).or_default();
                tenants.entry(wish.tenant.clone()).or_default().insert(*rank);
            }
        }
    }

    fn leave(&mut self, waiting: &Waiting) {
        let Waiting { wish, rank, place } = waiting;
        match place {
            Place::Later => drop(self.later.remove(&(wish.ready_at, wish.id))),
            Place::Asking => drop(self.asking.remove(&wish.id)),
            Place::Asked => {}
            Place::InLine => {
                let Some(tenants) = self.in_line.get_mut(&wish.environment) else { return };
                let Some(ranks) = tenants.get_mut(&wish.tenant) else { return };
                ranks.remove(rank);
                if ranks.is_empty() {
                    tenants.remove(&wish.tenant);
                }
                if tenants.is_empty() {
                    self.in_line.remove(&wish.environment);
                }
            }
        }
    }

    /// Those whose time has come stand where they belong from now on.
    pub(super) fn wake(&mut self, now: Timestamp) {
        while let Some((_, id)) = self.later.first().copied().filter(|(at, _)| *at <= now) {
            let place = self.wish(id).map_or(Place::InLine, Place::when_ready);
            self.move_to(id, place);
        }
    }

    pub(super) fn next_later(&self) -> Option<Timestamp> {
        self.later.first().map(|(at, _)| *at)
    }

    pub(super) fn is_asked(&self, id: EffectId) -> bool {
        self.wishes.get(&id).is_some_and(|waiting| waiting.place == Place::Asked)
    }

    pub(super) fn asking(&self) -> &BTreeSet<EffectId> {
        &self.asking
    }

    /// Environments that somebody waits for a worker of, and how many do.
    pub(super) fn environments(&self) -> impl Iterator<Item = (&EnvironmentId, usize)> {
        self.in_line
            .iter()
            .map(|(environment, tenants)| (environment, tenants.values().map(BTreeSet::len).sum()))
    }

    pub(super) fn tenants(&self, environment: &EnvironmentId) -> Option<&BTreeMap<Tenant, BTreeSet<Rank>>> {
        self.in_line.get(environment)
    }

    /// What the environment is made from, said by one of the wishes for it.
    pub(super) fn spec_of(&self, environment: &EnvironmentId) -> Option<&EnvironmentSpec> {
        let ranks = self.in_line.get(environment)?.values().next()?;
        self.wish(ranks.first()?.2).map(|wish| &wish.spec)
    }

    pub(super) fn retain(&mut self, is_wanted: impl Fn(&Wish) -> bool) {
        let gone: Vec<_> = self.wishes().filter(|wish| !is_wanted(wish)).map(|wish| wish.id).collect();
        for id in gone {
            self.drop(id);
        }
    }

    pub(super) fn miss(&mut self, worker: &WorkerId, until: Timestamp) {
        self.missing.insert(worker.clone(), until);
    }

    /// Of those that are alive.
    pub(super) fn note_usage(&mut self, request: &pool::UsageRequest, is_alive: impl Fn(&WorkerId) -> bool) {
        self.usage.retain(|worker, _| is_alive(worker));
        let alive = request.workers.iter().filter(|usage| is_alive(&usage.worker));
        self.usage.extend(alive.map(|usage| (usage.worker.clone(), usage.clone())));
    }

    pub(super) fn found(&mut self, worker: &WorkerId) {
        self.missing.remove(worker);
    }

    /// Takes or renews a reservation. `failure` is the one that its environment has at the moment.
    pub(super) fn reserve(
        &mut self,
        request: &pool::ReserveRequest,
        failure: Option<Seq>,
        until: Timestamp,
    ) -> &Call {
        let call = self.calls.entry(request.ticket).or_insert_with(|| Call {
            environment: request.environment.clone(),
            spec: request.spec.clone(),
            worker: None,
            error: None,
            mends: failure,
            until,
            lasting: request.lasting,
        });
        call.until = until;
        call
    }

    pub(super) fn unreserve(&mut self, ticket: u64) {
        self.calls.remove(&ticket);
    }

    /// The most workers that there may be: `workers_max`, and one for each service.
    pub(super) fn most(&self, workers_max: u32) -> usize {
        workers_max as usize + self.calls.values().filter(|call| call.lasting).count()
    }

    /// Reservations that have waited longer for a worker.
    pub(super) fn calls_before(&self, ticket: u64) -> u32 {
        let waiting = self.calls.range(..ticket).filter(|(_, call)| call.waits()).count();
        u32::try_from(waiting).unwrap_or(u32::MAX)
    }

    /// The workers that services have.
    pub(crate) fn serving(&self) -> impl Iterator<Item = &WorkerId> {
        self.calls.values().filter(|call| call.lasting).filter_map(|call| call.worker.as_ref())
    }

    /// What it needs beyond a worker is not granted yet: it stands in no worker's line.
    pub(crate) fn wants_lease(&self, id: EffectId) -> bool {
        let place = self.wishes.get(&id).map(|waiting| waiting.place);
        matches!(place, Some(Place::Asking | Place::Asked))
    }

    /// The workers that calls and services have.
    pub(crate) fn reserved(&self) -> impl Iterator<Item = &WorkerId> {
        self.calls.values().filter_map(|call| call.worker.as_ref())
    }

    pub(super) fn is_reserved(&self, worker: &WorkerId) -> bool {
        self.calls.values().any(|call| call.worker.as_ref() == Some(worker))
    }

    pub(super) fn give(&mut self, ticket: u64, worker: &WorkerId) {
        if let Some(call) = self.calls.get_mut(&ticket) {
            call.worker = Some(worker.clone());
        }
    }
}
