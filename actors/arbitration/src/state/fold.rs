//! The only place where the state changes.

use eclosion_schemas::ops::arbitration::Scarce;

use super::*;

pub(super) fn apply(options: &ArbitrationOptions, state: &mut State, record: &Record) {
    match &*record.kind {
        RunStarted::KIND => with(record, |event: &RunStarted| {
            let (tenant, answered) = (event.tenant.clone(), BTreeMap::new());
            let run = Run { tenant, cancelling: false, answered };
            state.runs.insert(event.run.clone(), run);
        }),
        RunCancelling::KIND => with(record, |event: &RunCancelling| {
            state.ends += 1;
            if let Some(run) = state.runs.get_mut(&event.run) {
                run.cancelling = true;
            }
        }),
        RunFinished::KIND => with(record, |event| run_finished(state, event)),
        LeaseGranted::KIND => with(record, |event: &LeaseGranted| {
            answered(state, &event.task, event.wish);
            let holder = LeaseHolder::Task { task: event.task.clone(), held_by: None };
            let (tenant, amounts) = (event.tenant.clone(), event.amounts.clone());
            let wish = WishId::Task(event.wish);
            hold(options, state, &event.lease, Lease { holder, tenant, amounts, since: record.at, wish });
        }),
        LeaseTaken::KIND => with(record, |event: &LeaseTaken| {
            state.clients.taken(&event.lease, &event.client);
            let holder = LeaseHolder::Client(event.client.clone());
            let (tenant, amounts) = (event.tenant.clone(), event.amounts.clone());
            let wish = WishId::Client(event.key.clone());
            hold(options, state, &event.lease, Lease { holder, tenant, amounts, since: record.at, wish });
        }),
        LeaseRenewed::KIND => with(record, |event| renewed(state, event)),
        LeaseRefused::KIND => {
            with(record, |event: &LeaseRefused| answered(state, &event.task, event.wish));
        }
        LeaseReleased::KIND => with(record, |event: &LeaseReleased| {
            if state.leases.get(&event.lease).is_some_and(|lease| lease.client().is_some()) {
                state.clients.ended(&event.lease, &event.reason);
            }
            free(state, &event.lease);
        }),
        AttemptStarted::KIND => with(record, |event| attempt_started(state, event)),
        AttemptStopped::KIND => with(record, |event: &AttemptStopped| let_go(state, event.fence)),
        StepCommitted::KIND => with(record, |event: &StepCommitted| let_go(state, event.fence)),
        StepFailed::KIND => with(record, |event: &StepFailed| {
            if event.released {
                let_go(state, event.fence);
            }
        }),
        WorkerDied::KIND => with(record, |event| worker_died(state, event)),
        _ => {}
    }
}

fn with<E: Event>(record: &Record, fold: impl FnOnce(&E)) {
    if let Some(event) = record.event::<E>() {
        fold(&event);
    }
}

fn answered(state: &mut State, task: &TaskRef, wish: EffectId) {
    if let Some(run) = state.runs.get_mut(&task.run) {
        let answered = run.answered.entry(task.task.clone()).or_default();
        *answered = wish.max(*answered);
    }
}

fn hold(options: &ArbitrationOptions, state: &mut State, id: &LeaseId, lease: Lease) {
    state.counter += 1;
    let used_by = state.used_by.entry(lease.tenant.clone()).or_default();
    for (resource, amount) in &lease.amounts {
        if Scarce::of(resource).is_rate() {
            // A rate that is not limited any more is forgotten.
            if let Some((name, rate)) = options.rate(resource) {
                let bucket = state.rates.entry(name.to_owned());
                bucket.or_insert_with(|| Bucket::full(rate, lease.since)).take(rate, *amount, lease.since);
            }
            continue;
        }
        *state.used.entry(resource.clone()).or_default() += amount;
        *used_by.entry(resource.clone()).or_default() += amount;
    }
    if used_by.is_empty() {
        state.used_by.remove(&lease.tenant);
    }
    state.by_wish.insert(lease.wish.clone(), id.clone());
    state.leases.insert(id.clone(), lease);
}

fn renewed(state: &mut State, event: &LeaseRenewed) {
    let lease = state.leases.get_mut(&event.lease).map(|lease| &mut lease.holder);
    if let Some(LeaseHolder::Client(client)) = lease {
        state.clients.renewed(&event.lease, client.until.replace(event.until), event.until);
    }
}

fn attempt_started(state: &mut State, event: &AttemptStarted) {
    let Some(run) = state.runs.get(&event.run) else { return };
    let attempt = RunningAttempt { tenant: run.tenant.clone(), worker: event.worker.clone() };
    *state.running.entry(run.tenant.clone()).or_default() += 1;
    state.attempts.insert(event.fence, attempt);
    if let Some(id) = &event.lease
        && let Some(LeaseHolder::Task { held_by, .. }) =
            state.leases.get_mut(id).map(|lease| &mut lease.holder)
    {
        *held_by = Some((event.fence, event.worker.clone()));
        state.by_fence.insert(event.fence, id.clone());
    }
}

/// The worker of this attempt has nothing in hand any more.
fn let_go(state: &mut State, fence: Fence) {
    if let Some(attempt) = state.attempts.remove(&fence)
        && let Some(running) = state.running.get_mut(&attempt.tenant)
    {
        *running -= 1;
        if *running == 0 {
            state.running.remove(&attempt.tenant);
        }
    }
    if let Some(lease) = state.by_fence.remove(&fence) {
        free(state, &lease);
    }
}

fn worker_died(state: &mut State, event: &WorkerDied) {
    let of_worker = state.attempts.iter().filter(|(_, attempt)| attempt.worker == event.worker);
    for fence in of_worker.map(|(fence, _)| *fence).collect::<Vec<_>>() {
        let_go(state, fence);
    }
}

/// Leases of the run that no attempt holds are of no use; an attempt that still computes keeps its own.
fn run_finished(state: &mut State, event: &RunFinished) {
    state.ends += 1;
    state.runs.remove(&event.run);
    let is_of_run = |lease: &Lease| lease.task().is_some_and(|task| task.run == event.run);
    let unused = state.leases.iter().filter(|(_, lease)| is_of_run(lease) && lease.held_by().is_none());
    for lease in unused.map(|(id, _)| id.clone()).collect::<Vec<_>>() {
        free(state, &lease);
    }
}

fn free(state: &mut State, id: &LeaseId) {
    let Some(lease) = state.leases.remove(id) else { return };
    state.freed += 1;
    state.by_wish.remove(&lease.wish);
    if let Some((fence, _)) = lease.held_by() {
        state.by_fence.remove(fence);
    }
    if let Some(client) = lease.client() {
        state.clients.freed(id, client);
    }
    subtract(&mut state.used, &lease.amounts);
    if let Some(used_by) = state.used_by.get_mut(&lease.tenant) {
        subtract(used_by, &lease.amounts);
        if used_by.is_empty() {
            state.used_by.remove(&lease.tenant);
        }
    }
}

/// No zeros are kept, so that equal states are equal to the byte.
fn subtract(used: &mut BTreeMap<String, u64>, amounts: &BTreeMap<String, u64>) {
    for (resource, amount) in amounts {
        if let Some(used) = used.get_mut(resource) {
            *used = used.saturating_sub(*amount);
        }
    }
    used.retain(|_, amount| *amount > 0);
}
