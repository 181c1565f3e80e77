//! What readers see: what is free, who holds what since when, and who waits for whom.

use std::collections::BTreeMap;

use eclosion_schemas::Timestamp;
use eclosion_schemas::ops::arbitration::{
    LOCK_WHOLE, LockStatus, RateStatus, Scarce, StatusReply, TenantShare, Waiting,
};
use eclosion_schemas::pending::{Holder, PendingReason};
use eclosion_schemas::view::{ClientView, LeaseView};

use crate::options::ArbitrationOptions;
use crate::state::{Claimant, Client, Queue, State, Wish};

/// Wishes that are shown with their reasons, oldest first.
pub const WAITING_SHOWN_MAX: usize = 100;
/// Holders named for one resource, largest first.
pub const HOLDERS_SHOWN_MAX: usize = 16;

#[must_use]
pub fn status(options: &ArbitrationOptions, state: &State, queue: &Queue, now: Timestamp) -> StatusReply {
    StatusReply {
        capacity: options.capacity.clone(),
        free: free(options, state, now),
        leases: leases(state),
        waiting: queue
            .by_age()
            .take(WAITING_SHOWN_MAX)
            .map(|wish| Waiting {
                task: wish.task().cloned(),
                client: client(&wish.whose),
                reasons: reasons(options, state, wish, now),
            })
            .collect(),
        tenants: tenants(options, state, queue),
        locks: locks(state),
        rates: rates(options, state, now),
        waiting_count: queue.len() as u64,
        next: crate::state::next(options, state, queue, now).into_iter().take(WAITING_SHOWN_MAX).collect(),
    }
}

#[must_use]
pub fn leases(state: &State) -> Vec<LeaseView> {
    state
        .leases
        .iter()
        .map(|(id, lease)| LeaseView {
            lease: id.clone(),
            task: lease.task().cloned(),
            tenant: lease.tenant.clone(),
            amounts: lease.amounts.clone(),
            since: lease.since,
            client: lease.client().cloned(),
        })
        .collect()
}

/// A client that waits: its time has not begun.
fn client(whose: &Claimant) -> Option<ClientView> {
    let Claimant::Client(Client { name, purpose, bound, .. }) = whose else { return None };
    Some(ClientView { name: name.clone(), purpose: purpose.clone(), until: None, bound: *bound })
}

fn free(options: &ArbitrationOptions, state: &State, now: Timestamp) -> BTreeMap<String, u64> {
    let keys = options.capacity.keys();
    keys.map(|resource| (resource.clone(), state.free(options, resource, now))).collect()
}

/// Locks that are held, each once.
fn locks(state: &State) -> Vec<LockStatus> {
    let held = state.used.keys().filter_map(|key| match Scarce::of(key) {
        Scarce::Lock(lock) => Some((key, lock)),
        _ => None,
    });
    held.map(|(key, lock)| LockStatus {
        lock: lock.to_owned(),
        shared: state.used(key) < LOCK_WHOLE,
        holders: holders(state, key),
    })
    .collect()
}

fn rates(options: &ArbitrationOptions, state: &State, now: Timestamp) -> Vec<RateStatus> {
    let rates = options.rates.iter().map(|(name, rate)| {
        let key = Scarce::Rate(name).to_string();
        let free = state.free(options, &key, now);
        let next = state.ready_at(options, &key, (free + 1).min(rate.burst()));
        RateStatus {
            rate: name.clone(),
            limit: rate.to_string(),
            free,
            burst: rate.burst(),
            next_at: next.unwrap_or(now).max(now),
        }
    });
    rates.collect()
}

/// Everything of which less is free than it needs, with those who hold it. If there is enough of everything, it waits
/// for its turn: then the first thing it needs is named with all its holders.
pub(crate) fn reasons(
    options: &ArbitrationOptions,
    state: &State,
    wish: &Wish,
    now: Timestamp,
) -> Vec<PendingReason> {
    let reason = |(key, needs): (&String, &u64)| reason(options, state, key, *needs, now);
    let lacks: Vec<_> = wish
        .amounts
        .iter()
        .filter(|(key, needs)| state.free(options, key, now) < **needs)
        .map(reason)
        .collect();
    if lacks.is_empty() { wish.amounts.iter().take(1).map(reason).collect() } else { lacks }
}

fn reason(
    options: &ArbitrationOptions,
    state: &State,
    key: &str,
    needs: u64,
    now: Timestamp,
) -> PendingReason {
    let free = state.free(options, key, now);
    match Scarce::of(key) {
        Scarce::Resource(resource) => PendingReason::Resource {
            resource: resource.to_owned(),
            needs,
            free,
            capacity: options.capacity(key),
            holders: holders(state, key),
        },
        Scarce::Lock(lock) => PendingReason::Lock {
            lock: lock.to_owned(),
            shared: needs < LOCK_WHOLE,
            holders: holders(state, key),
        },
        Scarce::Rate(rate) => PendingReason::Rate {
            rate: rate.to_owned(),
            limit: options.rates.get(rate).map(ToString::to_string).unwrap_or_default(),
            needs,
            free,
            until: state.ready_at(options, key, needs).unwrap_or(now).max(now),
        },
    }
}

fn holders(state: &State, resource: &str) -> Vec<Holder> {
    let mut holders: Vec<Holder> = state
        .leases
        .iter()
        .filter_map(|(id, lease)| {
            let amount = *lease.amounts.get(resource)?;
            Some(Holder {
                lease: id.clone(),
                task: lease.task().cloned(),
                client: lease.client().map(ToString::to_string),
                worker: lease.held_by().map(|(_, worker)| worker.clone()),
                amount,
                since: lease.since,
            })
        })
        .collect();
    holders.sort_by(|a, b| b.amount.cmp(&a.amount).then_with(|| a.since.cmp(&b.since)));
    holders.truncate(HOLDERS_SHOWN_MAX);
    holders
}

/// Tenants that run, hold or wait, and those that have a weight of their own.
fn tenants(options: &ArbitrationOptions, state: &State, queue: &Queue) -> Vec<TenantShare> {
    let mut names: Vec<_> =
        state.running.keys().chain(state.used_by.keys()).chain(options.weights.keys()).collect();
    names.extend(queue.by_age().map(|wish| &wish.tenant));
    names.sort();
    names.dedup();
    let share = |tenant: &eclosion_schemas::Tenant| TenantShare {
        tenant: tenant.clone(),
        weight: options.weight(tenant),
        running: state.running.get(tenant).copied().unwrap_or_default(),
    };
    names.into_iter().map(share).collect()
}
