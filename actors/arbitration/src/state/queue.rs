//! Wishes that wait, by tenant and rank. Volatile: the pool manager makes them again.
//!
//! A wish is taken out only when the state shows what became of it, because an append may find that others were first
//! and the decision be made again.

use eclosion_schemas::ops::arbitration::Scarce;

use super::pace::Pace;
use super::*;

/// Earliest first; see [`eclosion_schemas::flow::Priority::rank`].
pub(super) type Rank = (Timestamp, Timestamp, EffectId);

/// See the head of this file.
#[derive(Debug, Default)]
pub struct Queue {
    wishes: BTreeMap<EffectId, (AcquireRequest, Rank)>,
    by_tenant: BTreeMap<Tenant, BTreeSet<Rank>>,
    by_age: BTreeSet<(Timestamp, EffectId)>,
    /// Wishes answered by the last `settle` or `release`, if its events were appended.
    pub(super) answered: Vec<EffectId>,
    /// Up to which of the state's `ends` pointless wishes have been dropped.
    pub(super) ends_seen: u64,
    /// Parts of rates that are waited for, each once, with how many wait for it.
    of_rates: BTreeMap<(String, u64), u32>,
    /// When the first of them comes back.
    pub(super) wake_at: Option<Timestamp>,
    pub(super) pace: Pace,
}

impl Queue {
    #[must_use]
    pub fn len(&self) -> usize {
        self.wishes.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.wishes.is_empty()
    }

    pub(super) fn of_tenant(&self, tenant: &Tenant) -> usize {
        self.by_tenant.get(tenant).map_or(0, BTreeSet::len)
    }

    /// Keys and amounts of rates that are waited for.
    pub(super) fn of_rates(&self) -> impl Iterator<Item = (&str, u64)> {
        self.of_rates.keys().map(|(key, amount)| (key.as_str(), *amount))
    }

    pub(super) fn contains(&self, wish: EffectId) -> bool {
        self.wishes.contains_key(&wish)
    }

    pub(crate) fn get(&self, wish: EffectId) -> Option<&AcquireRequest> {
        self.wishes.get(&wish).map(|(request, _)| request)
    }

    pub(super) fn task(&self, wish: EffectId) -> Option<TaskRef> {
        self.get(wish).map(|request| request.task.clone())
    }

    pub(super) fn insert(&mut self, request: AcquireRequest, aging_ms: u64) {
        let rank = (request.priority.rank(request.since, aging_ms), request.since, request.wish);
        self.by_tenant.entry(request.tenant.clone()).or_default().insert(rank);
        self.by_age.insert((request.since, request.wish));
        for (key, amount) in rates_of(&request) {
            *self.of_rates.entry((key.clone(), *amount)).or_default() += 1;
        }
        self.wishes.insert(request.wish, (request, rank));
    }

    pub(super) fn remove(&mut self, wish: EffectId) {
        let Some((request, rank)) = self.wishes.remove(&wish) else { return };
        self.by_age.remove(&(request.since, wish));
        for (key, amount) in rates_of(&request) {
            if let std::collections::btree_map::Entry::Occupied(mut entry) =
                self.of_rates.entry((key.clone(), *amount))
            {
                *entry.get_mut() -= 1;
                if *entry.get() == 0 {
                    entry.remove();
                }
            }
        }
        if let Some(ranks) = self.by_tenant.get_mut(&request.tenant) {
            ranks.remove(&rank);
            if ranks.is_empty() {
                self.by_tenant.remove(&request.tenant);
            }
        }
    }

    pub(super) fn retain(&mut self, is_wanted: impl Fn(&AcquireRequest) -> bool) {
        let gone = self.wishes.values().filter(|(request, _)| !is_wanted(request));
        for wish in gone.map(|(request, _)| request.wish).collect::<Vec<_>>() {
            self.remove(wish);
        }
    }

    pub(super) fn by_tenant(&self) -> &BTreeMap<Tenant, BTreeSet<Rank>> {
        &self.by_tenant
    }

    /// Who has waited longest comes first.
    pub(crate) fn by_age(&self) -> impl Iterator<Item = &AcquireRequest> {
        self.by_age.iter().filter_map(|(_, wish)| self.get(*wish))
    }
}

fn rates_of(request: &AcquireRequest) -> impl Iterator<Item = (&String, &u64)> {
    request.amounts.iter().filter(|(key, _)| Scarce::of(key).is_rate())
}
