//! Grants: whose turn it is, and what is kept for whoever has waited long.

use super::queue::Rank;
use super::*;

/// Wishes of one tenant that are looked at behind one that does not fit, of different amounts each: what has not fitted
/// once does not fit in the same round.
const LOOK_BEHIND_MAX: usize = 64;
/// The same, of whatever amounts.
const LOOK_MAX: usize = 2_048;
/// Leases granted by one call; `settle` is called again.
const GRANTS_MAX: usize = 256;

pub(super) fn settle(
    options: &ArbitrationOptions,
    state: &State,
    queue: &mut Queue,
    epoch: Epoch,
    now: Timestamp,
) -> Vec<AnyEvent> {
    for wish in std::mem::take(&mut queue.answered) {
        if state.by_wish.contains_key(&wish) {
            queue.remove(&wish);
        }
    }
    for wish in queue.attendance.forgotten(now) {
        queue.remove(&wish);
    }
    if queue.ends_seen != state.ends {
        queue.ends_seen = state.ends;
        queue.retain(|wish| wish.task().is_none_or(|task| state.wants(&task.run)));
    }
    queue.pace.note(state.freed, now);
    let ended = client::due(options, state, &mut queue.attendance, now);
    queue.wake_at = client::wake_at(options, state, &queue.attendance);
    if queue.is_empty() || !ended.is_empty() {
        return ended;
    }
    let mut round = Round::new(options, state, queue, now);
    let mut events: Vec<AnyEvent> = Vec::new();
    while events.len() < GRANTS_MAX
        && let Some(wish) = round.next()
    {
        let counter = state.counter + 1 + events.len() as u64;
        events.push(wish.granted(lease_id(epoch, counter), now));
    }
    queue.answered = round.granted;
    if events.is_empty() {
        let refill = next_refill(options, state, queue, now);
        queue.wake_at = queue.wake_at.into_iter().chain(refill).min();
    }
    events
}

/// When a rate has what somebody waits for. What it has already is not waited for: then something else is missing.
fn next_refill(
    options: &ArbitrationOptions,
    state: &State,
    queue: &Queue,
    now: Timestamp,
) -> Option<Timestamp> {
    let ready = queue.of_rates().filter_map(|(key, amount)| state.ready_at(options, key, amount));
    ready.filter(|at| *at > now).min()
}

/// Which tasks' turn it would be if there were enough of everything, in order: as many as one round grants.
pub(crate) fn next(
    options: &ArbitrationOptions,
    state: &State,
    queue: &Queue,
    now: Timestamp,
) -> Vec<TaskRef> {
    let mut round = Round::new(options, state, queue, now);
    round.unlimited = true;
    let wishes = std::iter::from_fn(|| round.next()).take(GRANTS_MAX);
    wishes.filter_map(|wish| wish.task().cloned()).collect()
}

/// One pass over those who wait, with what it has already given away.
struct Round<'a> {
    options: &'a ArbitrationOptions,
    state: &'a State,
    queue: &'a Queue,
    now: Timestamp,
    /// Given away by this round.
    given: BTreeMap<&'a str, u64>,
    /// Added to what the state knows of the tenants.
    added: BTreeMap<&'a Tenant, BTreeMap<&'a str, u64>>,
    /// Up to which rank each tenant's wishes have been looked at.
    looked: BTreeMap<&'a Tenant, Looked>,
    /// Amounts that did not fit: nothing is given back in a round.
    unfit: BTreeSet<&'a BTreeMap<String, u64>>,
    /// Kept for whoever has waited longer than patience: nobody else gets below it.
    kept: Option<&'a Wish>,
    granted: Vec<WishId>,
    /// As if there were enough of everything.
    unlimited: bool,
}

struct Looked {
    rank: Rank,
    /// Wishes that did not fit, and how many of them had amounts of their own.
    skipped: usize,
    different: usize,
}

impl<'a> Round<'a> {
    fn new(options: &'a ArbitrationOptions, state: &'a State, queue: &'a Queue, now: Timestamp) -> Self {
        let oldest = queue.by_age().next();
        let kept = oldest.filter(|wish| now.since_ms(wish.since) >= options.patience_ms);
        Self {
            options,
            state,
            queue,
            now,
            given: BTreeMap::new(),
            added: BTreeMap::new(),
            looked: BTreeMap::new(),
            unfit: BTreeSet::new(),
            kept,
            granted: Vec::new(),
            unlimited: false,
        }
    }

    /// The next wish that is granted, and accounted for.
    fn next(&mut self) -> Option<&'a Wish> {
        if let Some(kept) = self.kept
            && self.fits(kept)
        {
            self.kept = None;
            return Some(self.grant(kept));
        }
        loop {
            let (tenant, rank) = self.turn()?;
            let wish = self.queue.get(&rank.2)?;
            let is_granted = self.granted.contains(&wish.id);
            let is_known = !is_granted && self.unfit.contains(&wish.amounts);
            let grant = !is_granted && !is_known && self.fits(wish) && self.spares(wish);
            let looked = self.looked.entry(tenant).or_insert_with(|| Looked {
                rank: rank.clone(),
                skipped: 0,
                different: 0,
            });
            looked.rank = rank;
            if grant {
                return Some(self.grant(wish));
            }
            looked.skipped += 1;
            if !is_known && !is_granted {
                looked.different += 1;
                self.unfit.insert(&wish.amounts);
            }
        }
    }

    fn grant(&mut self, wish: &'a Wish) -> &'a Wish {
        let added = self.added.entry(&wish.tenant).or_default();
        for (resource, amount) in &wish.amounts {
            *added.entry(resource).or_default() += amount;
            *self.given.entry(resource).or_default() += amount;
        }
        self.granted.push(wish.id.clone());
        wish
    }

    fn free(&self, resource: &str) -> u64 {
        if self.unlimited {
            return u64::MAX;
        }
        let given = self.given.get(resource).copied().unwrap_or_default();
        self.state.free(self.options, resource, self.now).saturating_sub(given)
    }

    fn fits(&self, wish: &Wish) -> bool {
        wish.amounts.iter().all(|(resource, amount)| *amount <= self.free(resource))
    }

    /// Whether granting it leaves alone what is kept for another.
    fn spares(&self, wish: &Wish) -> bool {
        let Some(kept) = self.kept.filter(|kept| kept.id != wish.id) else { return true };
        wish.amounts.iter().all(|(resource, amount)| {
            let needed = kept.amounts.get(resource).copied().unwrap_or_default();
            needed == 0 || *amount == 0 || self.free(resource) >= needed.saturating_add(*amount)
        })
    }

    /// The tenant with the smallest share, and its next wish.
    fn turn(&self) -> Option<(&'a Tenant, Rank)> {
        let next = self.queue.by_tenant().iter().filter_map(|(tenant, ranks)| {
            let rank = match self.looked.get(tenant) {
                None => ranks.first(),
                Some(looked) if looked.different > LOOK_BEHIND_MAX || looked.skipped > LOOK_MAX => None,
                Some(Looked { rank, .. }) => {
                    ranks.range((std::ops::Bound::Excluded(rank), std::ops::Bound::Unbounded)).next()
                }
            }?;
            Some((self.share(tenant), rank, tenant))
        });
        next.min().map(|(_, rank, tenant)| (tenant, rank.clone()))
    }

    /// The largest part of any resource that the tenant holds, for its weight; in millionths.
    fn share(&self, tenant: &Tenant) -> u64 {
        let held = self.state.used_by.get(tenant);
        let added = self.added.get(tenant);
        let parts = self.options.capacity.iter().map(|(resource, capacity)| {
            let held = held.and_then(|held| held.get(resource)).copied().unwrap_or_default();
            let added = added.and_then(|added| added.get(resource.as_str())).copied().unwrap_or_default();
            let part = u128::from(held + added) * 1_000_000 / u128::from((*capacity).max(1));
            u64::try_from(part).unwrap_or(u64::MAX)
        });
        parts.max().unwrap_or_default() / u64::from(self.options.weight(tenant))
    }
}
