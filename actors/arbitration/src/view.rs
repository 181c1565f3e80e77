//! What readers see: what is free, who holds what since when, and who waits for whom.

use std::collections::BTreeMap;

use eclosion_schemas::ops::arbitration::{AcquireRequest, StatusReply, TenantShare, Waiting};
use eclosion_schemas::pending::{Holder, PendingReason};
use eclosion_schemas::view::LeaseView;

use crate::options::ArbitrationOptions;
use crate::state::{Queue, State};

/// Wishes that are shown with their reasons, oldest first.
pub const WAITING_SHOWN_MAX: usize = 100;
/// Holders named for one resource, largest first.
pub const HOLDERS_SHOWN_MAX: usize = 16;

#[must_use]
pub fn status(options: &ArbitrationOptions, state: &State, queue: &Queue) -> StatusReply {
    StatusReply {
        capacity: options.capacity.clone(),
        free: free(options, state),
        leases: leases(state),
        waiting: queue
            .by_age()
            .take(WAITING_SHOWN_MAX)
            .map(|request| Waiting { task: request.task.clone(), reasons: reasons(options, state, request) })
            .collect(),
        tenants: tenants(options, state, queue),
    }
}

#[must_use]
pub fn leases(state: &State) -> Vec<LeaseView> {
    state
        .leases
        .iter()
        .map(|(id, lease)| LeaseView {
            lease: id.clone(),
            task: lease.task.clone(),
            tenant: lease.tenant.clone(),
            amounts: lease.amounts.clone(),
            since: lease.since,
        })
        .collect()
}

fn free(options: &ArbitrationOptions, state: &State) -> BTreeMap<String, u64> {
    let free = |(resource, capacity): (&String, &u64)| {
        (resource.clone(), capacity.saturating_sub(state.used(resource)))
    };
    options.capacity.iter().map(free).collect()
}

/// Every resource of which less is free than it needs, with those who hold it. If there is enough of everything, it
/// waits for its turn: then the first resource it needs is named with all its holders.
fn reasons(options: &ArbitrationOptions, state: &State, request: &AcquireRequest) -> Vec<PendingReason> {
    let free = free(options, state);
    let reason = |(resource, needs): (&String, &u64)| PendingReason::Resource {
        resource: resource.clone(),
        needs: *needs,
        free: free.get(resource).copied().unwrap_or_default(),
        capacity: options.capacity(resource),
        holders: holders(state, resource),
    };
    let lacking =
        |(resource, needs): &(&String, &u64)| free.get(*resource).copied().unwrap_or_default() < **needs;
    let lacks: Vec<_> = request.amounts.iter().filter(lacking).map(reason).collect();
    if lacks.is_empty() { request.amounts.iter().take(1).map(reason).collect() } else { lacks }
}

fn holders(state: &State, resource: &str) -> Vec<Holder> {
    let mut holders: Vec<Holder> = state
        .leases
        .iter()
        .filter_map(|(id, lease)| {
            let amount = *lease.amounts.get(resource)?;
            Some(Holder {
                lease: id.clone(),
                task: lease.task.clone(),
                worker: lease.held_by.as_ref().map(|(_, worker)| worker.clone()),
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
    names.extend(queue.by_age().map(|request| &request.tenant));
    names.sort();
    names.dedup();
    let share = |tenant: &eclosion_schemas::Tenant| TenantShare {
        tenant: tenant.clone(),
        weight: options.weight(tenant),
        running: state.running.get(tenant).copied().unwrap_or_default(),
    };
    names.into_iter().map(share).collect()
}
