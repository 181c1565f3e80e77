//! What is due: environments to make, wishes to answer, workers to start and to stop.
//!
//! Whose turn it is: the tenant with the least running for its weight; of a tenant's wishes the one of the earliest
//! rank. Workers belong to one environment, so a wish waits for a worker of its own; while all places are taken, an idle
//! worker that nobody waits for makes room. A drained pool starts nothing and launches nobody.

mod workers;

use eclosion_schemas::ops::pool::Wish;

use super::decide::{buried, death};
use super::line::{Place, Rank, asks_for};
use super::*;

/// Attempts started by one call; `settle` is called again.
const STARTS_MAX: usize = 1_024;

pub(super) fn settle(
    pool: &Pool,
    state: &State,
    line: &mut Line,
    reads: &Reads,
    now: Timestamp,
) -> Vec<AnyEvent> {
    line.epoch = reads.epoch();
    confirm(state, line, &pool.bodies);
    drop_pointless(state, line);
    fail_calls(state, line);
    line.wake(now);
    let mut due = Due { options: &pool.options, state, epoch: reads.epoch(), now, events: Vec::new() };
    due.forget_and_declare(line);
    if due.quarantine(line) {
        return due.events;
    }
    due.leases(line);
    due.environments(line);
    let mut idle = due.idle_workers(line);
    if manage::why_drained(state, line).is_some() {
        due.end_drained(&idle);
        return due.events;
    }
    due.recycle(line, &mut idle);
    due.calls(line, &mut idle);
    due.attempts(line, &mut idle);
    due.workers(line, &idle);
    due.events
}

/// Wishes whose attempts the state shows leave the line; their bodies wait for whoever performs `Execute`.
fn confirm(state: &State, line: &mut Line, bodies: &Bodies) {
    if line.answered.is_empty() {
        return;
    }
    bodies.retain(|fence| state.fences.contains_key(&fence));
    for (id, fence) in std::mem::take(&mut line.answered) {
        if state.fences.contains_key(&fence)
            && let Some(wish) = line.drop(id)
        {
            bodies.put(Execute { fence, ..wish.execute });
        }
    }
}

fn drop_pointless(state: &State, line: &mut Line) {
    if line.ends_seen != state.ends {
        line.ends_seen = state.ends;
        line.retain(|wish| {
            state.wants(&wish.execute.run, &wish.execute.task, wish.id)
                && !state.failed_for(&wish.environment, wish.id)
        });
    }
}

/// Calls whose environment has failed, and those that meet a drained pool, are told so when they ask again.
fn fail_calls(state: &State, line: &mut Line) {
    let drained = manage::drained_error(state, line);
    for call in line.calls.values_mut().filter(|call| call.waits()) {
        if let Some(error) = &drained {
            call.error = Some(error.clone());
        }
        if let Some((at, error)) = state.failure_of(&call.environment)
            && call.mends != Some(at)
        {
            call.error = Some(error.clone());
        }
    }
}

/// Workers that may be given something now, by environment.
type Idle = BTreeMap<EnvironmentId, Vec<WorkerId>>;

/// What one call has given, which the state learns of by its own events.
#[derive(Default)]
struct Turn {
    added: BTreeMap<Tenant, u32>,
    served: BTreeMap<(EnvironmentId, Tenant), Rank>,
}

impl Turn {
    fn added_of(&self, tenant: &Tenant) -> u32 {
        self.added.get(tenant).copied().unwrap_or_default()
    }
}

struct Due<'a> {
    options: &'a PoolOptions,
    state: &'a State,
    epoch: Epoch,
    now: Timestamp,
    events: Vec<AnyEvent>,
}

impl Due<'_> {
    fn push(&mut self, event: impl Event) {
        self.events.push(event.into());
    }

    /// Reservations whose worker or asker is gone, and workers that nobody has explained.
    fn forget_and_declare(&mut self, line: &mut Line) {
        let (state, now) = (self.state, self.now);
        line.calls.retain(|_, call| {
            let lost = |worker: &WorkerId| !state.workers.contains_key(worker);
            call.until > now && !call.worker.as_ref().is_some_and(lost)
        });
        line.missing.retain(|id, _| state.workers.contains_key(id));
        for (id, _) in line.missing.iter().filter(|(_, until)| **until <= now) {
            if let Some(worker) = state.workers.get(id) {
                self.events.extend(buried(worker, death(id, worker, unseen("its holder was gone"), now)));
            }
        }
    }

    /// Quarantines what has killed too many workers, and refuses wishes that wait and are equal to it. True if there
    /// were any: they leave the line once that is folded, and are given nothing before.
    fn quarantine(&mut self, line: &mut Line) -> bool {
        let blame = &self.state.blame;
        blame.due().for_each(|quarantined| self.push(quarantined));
        if line.quarantine_seen != blame.count {
            self.events.extend(line.wishes().filter_map(|wish| Some(blame.refuse(wish)?.into())));
        }
        if self.events.is_empty() {
            line.quarantine_seen = blame.count;
        }
        !self.events.is_empty()
    }

    /// Of a drained pool, whoever has nothing in hand ends. While the kernel itself ends, its host sees to that.
    fn end_drained(&mut self, idle: &Idle) {
        let Some(why) = self.state.drained.clone() else { return };
        for id in idle.values().flatten() {
            self.push(stopping(id, &format!("the pool is {why}")));
        }
    }

    /// Ends whoever has lived long enough, and takes him out of `idle`.
    fn recycle(&mut self, line: &Line, idle: &mut Idle) {
        for workers in idle.values_mut() {
            workers.retain(|id| {
                let Some(worker) = self.state.workers.get(id) else { return false };
                let reason = recycle::reason(self.options, line, id, worker, self.now);
                if let Some(reason) = &reason {
                    self.events.push(stopping(id, reason).into());
                }
                reason.is_none()
            });
        }
        idle.retain(|_, workers| !workers.is_empty());
    }

    /// Asks for leases, and passes on what came of it.
    fn leases(&mut self, line: &mut Line) {
        for id in line.asking().clone() {
            if self.state.leases.contains_key(&id) {
                line.move_to(id, Place::Asked);
            } else if let Some(wish) = line.wish(id) {
                let (run, task) = (wish.execute.run.clone(), wish.execute.task.clone());
                let (tenant, priority, since) = (wish.tenant.clone(), wish.priority, wish.ready_at);
                let amounts = asks_for(&wish.execute);
                self.push(AttemptWaiting { run, task, tenant, priority, amounts, since, wish: id });
            }
        }
        for id in &self.state.resolved {
            let Some(wanted) = self.state.leases.get(id) else { continue };
            match &wanted.phase {
                LeasePhase::Granted if line.is_asked(*id) => line.move_to(*id, Place::InLine),
                LeasePhase::Refused(error) => {
                    let TaskRef { run, task } = wanted.task.clone();
                    self.push(AttemptRefused { run, task, wish: *id, error: error.clone() });
                }
                _ => {}
            }
        }
    }

    /// Requests what is waited for and not there; gives up on what cannot be launched.
    fn environments(&mut self, line: &Line) {
        let waited = line.environments().map(|(environment, _)| environment);
        let called = line.calls.values().filter(|call| call.waits()).map(|call| &call.environment);
        let needed: BTreeSet<&EnvironmentId> = waited.chain(called).collect();
        for environment in needed {
            let known = self.state.environments.get(environment).map(|known| &known.phase);
            if matches!(known, None | Some(EnvironmentPhase::Failed { .. }))
                && let Some(spec) = spec_of(line, environment)
            {
                self.push(EnvironmentRequested { environment: environment.clone(), spec });
            }
        }
        for (id, environment) in &self.state.environments {
            let ready = matches!(environment.phase, EnvironmentPhase::Ready { .. });
            if ready && environment.launch_failures >= self.options.launch_failures_max {
                self.push(EnvironmentFailed { environment: id.clone(), error: not_launched(environment) });
            }
        }
    }

    fn idle_workers(&self, line: &Line) -> Idle {
        let mut idle = Idle::new();
        for (environment, workers) in &self.state.idle {
            let may = |id: &&WorkerId| self.is_attached(id) && self.is_free(id) && !line.is_reserved(id);
            let mut free: Vec<_> = workers.iter().filter(may).cloned().collect();
            // The last is given something first.
            free.sort_by_key(|id| self.is_by_hand(id));
            if !free.is_empty() {
                idle.insert(environment.clone(), free);
            }
        }
        idle
    }

    /// Survivors of an earlier kernel are given nothing before they have been heard of.
    fn is_attached(&self, id: &WorkerId) -> bool {
        let phase = self.state.workers.get(id).map(|worker| worker.phase);
        phase == Some(WorkerPhase::Up { epoch: self.epoch })
    }

    fn is_by_hand(&self, id: &WorkerId) -> bool {
        self.state.workers.get(id).is_some_and(|worker| worker.attached)
    }

    fn is_free(&self, id: &WorkerId) -> bool {
        self.state.workers.get(id).is_some_and(|worker| worker.cordoned.is_none())
    }

    /// Somebody waits for the answer of a call at this moment, so calls come before attempts.
    fn calls(&mut self, line: &mut Line, idle: &mut Idle) {
        let waiting = line.calls.iter().filter(|(_, call)| call.waits());
        let waiting: Vec<_> = waiting.map(|(ticket, call)| (*ticket, call.environment.clone())).collect();
        for (ticket, environment) in waiting {
            if let Some(worker) = idle.get_mut(&environment).and_then(Vec::pop) {
                line.give(ticket, &worker);
            }
        }
    }

    fn attempts(&mut self, line: &mut Line, idle: &mut Idle) {
        let mut turn = Turn::default();
        for (environment, workers) in idle {
            while let Some(worker) = workers.last() {
                if !self.give(line, environment, worker, &mut turn, false) {
                    break;
                }
                workers.pop();
            }
        }
        let waited: Vec<_> = line.environments().map(|(environment, _)| environment.clone()).collect();
        for environment in waited {
            let mut busy = self.busy_workers(line, &environment);
            while let Some((given, worker)) = busy.pop_first() {
                if !self.give(line, &environment, &worker, &mut turn, true) {
                    break;
                }
                if given < self.options.ahead_max as usize {
                    busy.insert((given + 1, worker));
                }
            }
        }
    }

    /// Workers behind whose attempt others may wait, those with the fewest first.
    fn busy_workers(&self, line: &Line, environment: &EnvironmentId) -> BTreeSet<(usize, WorkerId)> {
        let takes = |worker: &Worker| {
            let first = worker.computing().filter(|first| !first.over);
            first.is_some()
                && worker.environment == *environment
                && worker.stopping.is_none()
                && worker.cordoned.is_none()
                && worker.is_used_up(self.options, self.now).is_none()
                && worker.given.len() <= self.options.ahead_max as usize
                && self.now.since_ms(worker.since) < AHEAD_PATIENCE_MS
        };
        let busy = self
            .state
            .workers
            .iter()
            .filter(|(id, worker)| takes(worker) && self.is_attached(id) && !line.is_reserved(id));
        busy.map(|(id, worker)| (worker.given.len(), id.clone())).collect()
    }

    /// Starts an attempt of the wish whose turn it is; false if there is none, or it is not quick and has to be.
    fn give(
        &mut self,
        line: &mut Line,
        environment: &EnvironmentId,
        worker: &WorkerId,
        turn: &mut Turn,
        quick: bool,
    ) -> bool {
        if self.events.len() >= STARTS_MAX {
            return false;
        }
        let Some((tenant, rank)) = self.next_in_line(line, environment, turn) else { return false };
        let wish = rank.2;
        if quick && !line.wish(wish).is_some_and(|wish| self.is_quick(wish)) {
            return false;
        }
        let counter = self.state.fence_counter + 1 + line.answered.len() as u64;
        let fence = Fence { epoch: self.epoch, counter };
        let running = self.state.running_of(&tenant) + turn.added_of(&tenant);
        let Some(started) = self.started(line, wish, fence, worker, running, quick) else { return false };
        self.push(started);
        line.answered.push((wish, fence));
        *turn.added.entry(tenant.clone()).or_default() += 1;
        turn.served.insert((environment.clone(), tenant), rank);
        true
    }

    fn is_quick(&self, wish: &Wish) -> bool {
        let Wish { id, execute, .. } = wish;
        let task = self.state.task_of_flow(&execute.run, &execute.task);
        execute.timeout_ms.is_none()
            && execute.limits.is_none()
            && !self.state.leases.contains_key(id)
            && task.is_some_and(|task| self.state.quick.contains(&task))
    }

    fn started(
        &self,
        line: &Line,
        wish: EffectId,
        fence: Fence,
        worker: &WorkerId,
        running: u32,
        quick: bool,
    ) -> Option<AttemptStarted> {
        let said = line.wish(wish)?;
        let Wish { execute, tenant, .. } = said;
        let why = if quick { "computes quick tasks" } else { "was idle" };
        let reason = format!(
            "{worker} {why}; next of tenant {tenant}, which had {running} running at weight {}",
            self.options.weight(tenant)
        );
        Some(AttemptStarted {
            run: execute.run.clone(),
            task: execute.task.clone(),
            attempt: execute.attempt,
            fence,
            worker: worker.clone(),
            lease: self.state.leases.get(&wish).and_then(|wanted| wanted.lease.clone()),
            wish,
            reason,
            content: self.state.blame.is_suspect(execute).then(|| quarantine::content_and_function(said)),
        })
    }

    /// The wish whose turn it is, of those that this call has not served.
    fn next_in_line(&self, line: &Line, environment: &EnvironmentId, turn: &Turn) -> Option<(Tenant, Rank)> {
        let heads = line.tenants(environment)?.iter().filter_map(|(tenant, ranks)| {
            let after = turn.served.get(&(environment.clone(), tenant.clone()));
            let head = match after {
                None => ranks.first(),
                Some(rank) => {
                    ranks.range((std::ops::Bound::Excluded(*rank), std::ops::Bound::Unbounded)).next()
                }
            }?;
            let running = self.state.running_of(tenant) + turn.added_of(tenant);
            Some((tenant, *head, running))
        });
        let share =
            |tenant, running: u32| (u64::from(running) << 20) / u64::from(self.options.weight(tenant));
        heads
            .min_by_key(|(tenant, rank, running)| (share(tenant, *running), *rank))
            .map(|(tenant, rank, _)| (tenant.clone(), rank))
    }
}

fn stopping(worker: &WorkerId, reason: &str) -> WorkerStopping {
    WorkerStopping { worker: worker.clone(), reason: reason.into(), now: false }
}

/// How many workers of an environment are above the least that is kept.
fn spare(options: &PoolOptions, state: &State, environment: &EnvironmentId) -> usize {
    let own = |worker: &&Worker| worker.environment == *environment && !worker.attached;
    let alive = state.workers.values().filter(own).count();
    let used = state.runs.values().any(|run| run.environment == *environment);
    if used { alive.saturating_sub(options.workers_min as usize) } else { alive }
}

fn spec_of(line: &Line, environment: &EnvironmentId) -> Option<EnvironmentSpec> {
    let called = || line.calls.values().find(|call| call.environment == *environment).map(|call| &call.spec);
    line.spec_of(environment).or_else(called).cloned()
}

/// When the next worker may be launched, after the last failure.
fn launch_at(options: &PoolOptions, environment: &Environment) -> Timestamp {
    match environment.launch_failures {
        0 => Timestamp(0),
        failures => environment.launch_failed_at.plus_ms(options.launch_backoff_ms << (failures - 1).min(16)),
    }
}

fn not_launched(environment: &Environment) -> Error {
    let message = format!(
        "{} workers in a row could not be started; the last {}",
        environment.launch_failures, environment.launch_error
    );
    Error::new(eclosion_schemas::Code::Unavailable, "environment.launch", message)
        .help("eclosion doctor; then look at the environment's preloads and start the run again")
}

/// An idle worker for a call that asks at this moment.
pub(super) fn give_idle(
    state: &State,
    line: &mut Line,
    epoch: Epoch,
    request: &pool::ReserveRequest,
) -> Option<WorkerId> {
    let up = WorkerPhase::Up { epoch };
    let free = state.idle.get(&request.environment)?.iter().find(|id| {
        let attached = |worker: &Worker| worker.phase == up && worker.cordoned.is_none();
        state.workers.get(*id).is_some_and(attached) && !line.is_reserved(id)
    });
    let worker = free?.clone();
    line.give(request.ticket, &worker);
    Some(worker)
}

/// The earliest time at which something becomes due without a record or a command.
pub(super) fn wake_at(options: &PoolOptions, state: &State, line: &Line) -> Option<Timestamp> {
    let up = WorkerPhase::Up { epoch: line.epoch };
    let drained = manage::why_drained(state, line).is_some();
    let waiting = line.environments().filter(|_| !drained).filter_map(|(id, _)| {
        let environment = state.environments.get(id)?;
        let starts = |worker: &Worker| {
            worker.environment == *id && matches!(worker.phase, WorkerPhase::Requested { .. })
        };
        let blocked = state.own_workers() >= line.most(options.workers_max)
            || environment.launch_failures == 0
            || state.workers.values().any(starts);
        (!blocked).then(|| launch_at(options, environment))
    });
    let mut idle = Vec::new();
    for (environment, workers) in state.idle.iter().filter(|_| !drained) {
        let unused = workers.iter().filter(|id| !line.is_reserved(id));
        let attached = unused
            .filter_map(|id| state.workers.get(id))
            .filter(|worker| worker.phase == up && worker.cordoned.is_none() && !worker.attached);
        idle.extend(attached.clone().filter_map(|worker| worker.recycle_at(options)).min());
        if line.tenants(environment).is_none() && spare(options, state, environment) > 0 {
            idle.extend(attached.map(|worker| worker.since.plus_ms(options.idle_ms)).min());
        }
    }
    let reserved = line.calls.values().map(|call| call.until);
    waiting.chain(idle).chain(reserved).chain(line.next_later()).chain(line.missing.values().copied()).min()
}
