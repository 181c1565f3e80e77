//! Wishes that wait, by tenant and rank. Volatile: the pool manager and the clients' desk make them again.
//!
//! A wish is taken out only when the state shows what became of it, because an append may find that others were first
//! and the decision be made again.

use eclosion_schemas::ops::arbitration::Scarce;

use super::client::Attendance;
use super::pace::Pace;
use super::*;

/// Earliest first; see [`eclosion_schemas::flow::Priority::rank`].
pub(super) type Rank = (Timestamp, Timestamp, WishId);

/// See the head of this file.
#[derive(Debug, Default)]
pub struct Queue {
    wishes: BTreeMap<WishId, (Wish, Rank)>,
    by_tenant: BTreeMap<Tenant, BTreeSet<Rank>>,
    by_age: BTreeSet<(Timestamp, WishId)>,
    /// Wishes answered by the last `settle` or `release`, if its events were appended.
    pub(super) answered: Vec<WishId>,
    /// Up to which of the state's `ends` pointless wishes have been dropped.
    pub(super) ends_seen: u64,
    /// Parts of rates that are waited for, each once, with how many wait for it.
    of_rates: BTreeMap<(String, u64), u32>,
    /// When the first of them comes back.
    pub(super) wake_at: Option<Timestamp>,
    pub(super) pace: Pace,
    pub(super) attendance: Attendance,
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

    pub(super) fn contains(&self, wish: &WishId) -> bool {
        self.wishes.contains_key(wish)
    }

    pub(crate) fn get(&self, wish: &WishId) -> Option<&Wish> {
        self.wishes.get(wish).map(|(wish, _)| wish)
    }

    pub(super) fn task(&self, wish: &WishId) -> Option<TaskRef> {
        self.get(wish)?.task().cloned()
    }

    pub(super) fn insert(&mut self, wish: Wish, aging_ms: u64) {
        let rank = (wish.priority.rank(wish.since, aging_ms), wish.since, wish.id.clone());
        self.by_tenant.entry(wish.tenant.clone()).or_default().insert(rank.clone());
        self.by_age.insert((wish.since, wish.id.clone()));
        for (key, amount) in rates_of(&wish) {
            *self.of_rates.entry((key.clone(), *amount)).or_default() += 1;
        }
        self.wishes.insert(wish.id.clone(), (wish, rank));
    }

    pub(super) fn remove(&mut self, id: &WishId) {
        self.attendance.answered(id);
        let Some((wish, rank)) = self.wishes.remove(id) else { return };
        self.by_age.remove(&(wish.since, id.clone()));
        for (key, amount) in rates_of(&wish) {
            if let std::collections::btree_map::Entry::Occupied(mut entry) =
                self.of_rates.entry((key.clone(), *amount))
            {
                *entry.get_mut() -= 1;
                if *entry.get() == 0 {
                    entry.remove();
                }
            }
        }
        if let Some(ranks) = self.by_tenant.get_mut(&wish.tenant) {
            ranks.remove(&rank);
            if ranks.is_empty() {
                self.by_tenant.remove(&wish.tenant);
            }
        }
    }

    pub(super) fn retain(&mut self, is_wanted: impl Fn(&Wish) -> bool) {
        let gone = self.wishes.values().filter(|(wish, _)| !is_wanted(wish));
        for wish in gone.map(|(wish, _)| wish.id.clone()).collect::<Vec<_>>() {
            self.remove(&wish);
        }
    }

    pub(super) fn by_tenant(&self) -> &BTreeMap<Tenant, BTreeSet<Rank>> {
        &self.by_tenant
    }

    /// Who has waited longest comes first.
    pub(crate) fn by_age(&self) -> impl Iterator<Item = &Wish> {
        self.by_age.iter().filter_map(|(_, wish)| self.get(wish))
    }
}

fn rates_of(wish: &Wish) -> impl Iterator<Item = (&String, &u64)> {
    wish.amounts.iter().filter(|(key, _)| Scarce::of(key).is_rate())
}
