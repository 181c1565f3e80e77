//! Runs, workers, leases and schedules, as the subsystems list them.

use std::time::Duration;

use eclosion_bus::Bus;
use eclosion_schemas::ops::{arbitration, pool, run, schedule};
use eclosion_schemas::schedule::ScheduleState;
use eclosion_schemas::view::{EnvironmentState, RunState, TaskState, WorkerState};

use super::text::Kind::{Counter, Gauge};
use super::text::Text;

/// A subsystem that is paused or stuck must not keep the others' numbers back.
const PATIENCE: Duration = Duration::from_secs(2);
/// Unfinished runs whose tasks are looked at.
const RUNS_MAX: u32 = 1_000;
const SCHEDULES_MAX: u32 = 10_000;

pub(super) async fn write(bus: &Bus, text: &mut Text) {
    let runs = |state| {
        let request = run::ListRequest { state: Some(state), limit: RUNS_MAX };
        bus.ask::<run::List>(request).deadline(PATIENCE)
    };
    let schedules = schedule::ListRequest { state: None, limit: SCHEDULES_MAX };
    let (running, cancelling, pool, calls, leases, schedules) = tokio::join!(
        runs(RunState::Running).into_future(),
        runs(RunState::Cancelling).into_future(),
        bus.ask::<pool::Status>(pool::StatusRequest {}).deadline(PATIENCE).into_future(),
        bus.ask::<pool::CallList>(pool::CallListRequest {}).deadline(PATIENCE).into_future(),
        bus.ask::<arbitration::Status>(arbitration::StatusRequest {}).deadline(PATIENCE).into_future(),
        bus.ask::<schedule::List>(schedules).deadline(PATIENCE).into_future(),
    );
    let help = "Whether what the other numbers are read from has answered.";
    let mut family = text.family("eclosion_source_up", Gauge, help);
    family.sample(&[("source", "dag")], running.is_ok() && cancelling.is_ok());
    family.sample(&[("source", "pool")], pool.is_ok());
    family.sample(&[("source", "calls")], calls.is_ok());
    family.sample(&[("source", "arbitration")], leases.is_ok());
    family.sample(&[("source", "scheduler")], schedules.is_ok());
    if let (Ok(running), Ok(cancelling)) = (running, cancelling) {
        write_runs(&running, &cancelling, text);
    }
    if let Ok(status) = pool {
        write_pool(&status, text);
    }
    if let Ok(list) = calls {
        write_calls(&list, text);
    }
    if let Ok(status) = leases {
        write_leases(&status, text);
    }
    if let Ok(list) = schedules {
        let help = "Schedules by state.";
        let states = list.schedules.iter().map(|schedule| schedule.state);
        by_state(text, "eclosion_schedules", help, SCHEDULE_STATES, states.map(|state| (state, 1)));
    }
}

const TASK_STATES: &[(TaskState, &str)] = &[
    (TaskState::Waiting, "waiting"),
    (TaskState::Ready, "ready"),
    (TaskState::Running, "running"),
    (TaskState::Backoff, "backoff"),
    (TaskState::Succeeded, "succeeded"),
    (TaskState::Failed, "failed"),
    (TaskState::Cancelled, "cancelled"),
    (TaskState::Skipped, "skipped"),
];
const WORKER_STATES: &[(WorkerState, &str)] = &[
    (WorkerState::Starting, "starting"),
    (WorkerState::Idle, "idle"),
    (WorkerState::Busy, "busy"),
    (WorkerState::Stopping, "stopping"),
    (WorkerState::Adopting, "adopting"),
    (WorkerState::Dead, "dead"),
];
const ENVIRONMENT_STATES: &[(EnvironmentState, &str)] = &[
    (EnvironmentState::Building, "building"),
    (EnvironmentState::Ready, "ready"),
    (EnvironmentState::Failed, "failed"),
];
const SCHEDULE_STATES: &[(ScheduleState, &str)] =
    &[(ScheduleState::Active, "active"), (ScheduleState::Paused, "paused"), (ScheduleState::Done, "done")];

/// A sample for every state, so that none appears and disappears.
fn by_state<S: Copy + PartialEq>(
    text: &mut Text,
    name: &'static str,
    help: &str,
    states: &[(S, &str)],
    counts: impl Iterator<Item = (S, u64)>,
) {
    let mut sums = vec![0; states.len()];
    for (state, count) in counts {
        if let Some(at) = states.iter().position(|(known, _)| *known == state) {
            sums[at] += count;
        }
    }
    let mut family = text.family(name, Gauge, help);
    for ((_, state), sum) in states.iter().zip(sums) {
        family.sample(&[("state", state)], sum);
    }
}

fn write_runs(running: &run::ListReply, cancelling: &run::ListReply, text: &mut Text) {
    let help =
        "Unfinished runs by state; the finished are counted by eclosion_events_total{kind=\"run.finished\"}.";
    let mut family = text.family("eclosion_runs", Gauge, help);
    for (state, list) in [("running", running), ("cancelling", cancelling)] {
        family.sample(&[("state", state)], list.runs.len() as u64 + list.cut);
    }
    let help = "Tasks by state, of the newest thousand unfinished runs.";
    let all = running.runs.iter().chain(&cancelling.runs);
    let counts = all.flat_map(|run| run.counts.iter().map(|(state, count)| (*state, u64::from(*count))));
    by_state(text, "eclosion_tasks", help, TASK_STATES, counts);
}

fn write_pool(status: &pool::StatusReply, text: &mut Text) {
    let workers = status.workers.iter().map(|worker| (worker.state, 1));
    by_state(text, "eclosion_workers", "Workers by state.", WORKER_STATES, workers);
    text.family("eclosion_workers_limit", Gauge, "Workers that there may be at most.")
        .sample(&[], u64::from(status.workers_max));
    let help = "Resident memory of the workers and of what they started, where it was sampled.";
    let rss: u64 = status.workers.iter().filter_map(|worker| worker.rss_bytes).sum();
    text.family("eclosion_workers_resident_memory_bytes", Gauge, help).sample(&[], rss);
    let environments = status.environments.iter().map(|environment| (environment.state, 1));
    by_state(text, "eclosion_environments", "Environments by state.", ENVIRONMENT_STATES, environments);
    let help = "Tasks that are ready and wait for a worker.";
    text.family("eclosion_pool_waiting_tasks", Gauge, help).sample(&[], u64::from(status.waiting));
    let help = "Tasks that are refused because equal ones have killed workers.";
    text.family("eclosion_quarantined_tasks", Gauge, help).sample(&[], u64::from(status.quarantined));
    let help = "1 while an operator has drained the pool.";
    text.family("eclosion_pool_drained", Gauge, help).sample(&[], status.drained.is_some());
}

fn write_calls(list: &pool::CallListReply, text: &mut Text) {
    let help = "Calls of functions under way: waiting for a worker, or running at one.";
    let mut family = text.family("eclosion_calls", Gauge, help);
    family.sample(&[("state", "waiting")], u64::from(list.waiting));
    family.sample(&[("state", "running")], u64::from(list.running));
    text.family("eclosion_calls_limit", Gauge, "Calls that may be under way at most.")
        .sample(&[], u64::from(list.calls_max));
    let help = "Calls of functions that are over or were not taken, by what became of them.";
    let mut family = text.family("eclosion_calls_total", Counter, help);
    let pool::CallCounts { succeeded, failed, cancelled, refused } = list.counts;
    let outcomes =
        [("succeeded", succeeded), ("failed", failed), ("cancelled", cancelled), ("refused", refused)];
    for (outcome, count) in outcomes {
        family.sample(&[("outcome", outcome)], count);
    }
}

/// Resources that tasks may name are anybody's words; these two are the machine's.
fn write_leases(status: &arbitration::StatusReply, text: &mut Text) {
    let help = "Leases that are held.";
    text.family("eclosion_leases", Gauge, help).sample(&[], status.leases.len());
    let help = "Tasks that wait for a lease.";
    text.family("eclosion_lease_waiting_tasks", Gauge, help).sample(&[], status.waiting.len());
    for (name, help, amounts) in [
        ("eclosion_cpu_capacity_cores", "Cores to be leased.", &status.capacity),
        ("eclosion_cpu_free_cores", "Cores that no lease holds.", &status.free),
    ] {
        let millis = amounts.get("cpu").copied().unwrap_or_default();
        text.family(name, Gauge, help).sample(&[], super::thousandths(millis));
    }
    for (name, help, amounts) in [
        ("eclosion_memory_capacity_bytes", "Memory to be leased.", &status.capacity),
        ("eclosion_memory_free_bytes", "Memory that no lease holds.", &status.free),
    ] {
        text.family(name, Gauge, help).sample(&[], amounts.get("memory").copied().unwrap_or_default());
    }
}
