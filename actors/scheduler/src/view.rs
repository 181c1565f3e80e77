//! What readers see: a schedule with its next tick, what is under way, and sentences that say why it does not tick.

use std::collections::BTreeMap;

use eclosion_kernel::core::Reads;
use eclosion_schemas::ops::schedule::{HistoryReply, HistoryRequest, ListReply, ListRequest};
use eclosion_schemas::schedule::{
    Action, ScheduleSpec, ScheduleState, ScheduleView, TickState, TickView, Trigger,
};
use eclosion_schemas::{Error, ScheduleName, Timestamp};

use crate::rows;
use crate::state::Schedule;
use crate::state::State;
use crate::trigger::instant_text;

/// Of an error that is kept with a tick.
const MESSAGE_CHARS_MAX: usize = 1_024;

/// Everything about one schedule.
pub(crate) fn schedule(name: &ScheduleName, schedule: &Schedule, now: Timestamp) -> ScheduleView {
    ScheduleView {
        name: name.clone(),
        state: schedule.state(),
        spec: schedule.spec.as_ref().clone(),
        next: schedule.next.map(|due| schedule.plan.upcoming(name, due)),
        through: schedule.through,
        role: schedule.role,
        created_at: schedule.created_at,
        updated_at: schedule.updated_at,
        live: schedule.live.values().map(|live| live.tick.clone()).collect(),
        queued: schedule.queue.iter().cloned().collect(),
        last: schedule.last.clone(),
        counts: schedule.counts.clone(),
        why: why(name, schedule, now),
    }
}

/// As a list shows it, and readers in this process see it.
pub(crate) fn row(name: &ScheduleName, of: &Schedule, now: Timestamp) -> ScheduleView {
    let view = schedule(name, of, now);
    ScheduleView { spec: without_tasks(view.spec), ..view }
}

fn without_tasks(mut spec: ScheduleSpec) -> ScheduleSpec {
    if let Action::Run { flow, set, .. } = &mut spec.action {
        flow.tasks.clear();
        (flow.source, flow.result) = (None, None);
        set.clear();
    }
    spec
}

pub(crate) fn list(state: &State, request: &ListRequest, now: Timestamp) -> ListReply {
    let wanted = |of: &Schedule| request.state.is_none_or(|state| of.state() == state);
    let matching = state.schedules.iter().filter(|(_, of)| wanted(of));
    let schedules: Vec<_> =
        matching.clone().take(request.limit as usize).map(|(name, of)| row(name, of, now)).collect();
    let cut = (matching.count() - schedules.len()) as u64;
    ListReply { schedules, cut }
}

/// Rows, and over them what is under way.
pub(crate) fn history(schedule: &Schedule, reads: &Reads, request: &HistoryRequest) -> HistoryReply {
    let rows = rows::found_history(reads, &request.name);
    let mut ticks: BTreeMap<u64, TickView> = rows.into_iter().map(|tick| (tick.n, tick)).collect();
    let under_way = schedule.live.values().map(|live| &live.tick).chain(&schedule.queue);
    ticks.extend(under_way.map(|tick| (tick.n, tick.clone())));
    let cut = ticks.len().saturating_sub(request.limit as usize) as u64;
    HistoryReply { ticks: ticks.into_values().rev().take(request.limit as usize).collect(), cut }
}

/// The trigger as people write it.
pub(crate) fn trigger_text(trigger: &Trigger) -> String {
    match trigger {
        Trigger::Every { every_ms, .. } => format!("every {every_ms} ms"),
        Trigger::Cron { cron } => format!("cron {cron}"),
        Trigger::At { at } => format!("at {at}"),
    }
}

fn why(name: &ScheduleName, schedule: &Schedule, now: Timestamp) -> Vec<String> {
    let mut why = Vec::new();
    if let Some((since, reason)) = &schedule.paused {
        let reason = if reason.is_empty() { String::new() } else { format!(" ({reason})") };
        let since = instant_text(*since);
        why.push(format!("it is paused since {since}{reason}; go on: eclosion schedule resume {name}"));
    }
    if schedule.plan.is_never() {
        why.push("this version cannot read its trigger any more; set it again with --replace".to_owned());
    } else if schedule.state() == ScheduleState::Done {
        why.push("every instant of it has passed".to_owned());
    }
    if schedule.through > now {
        let through = instant_text(schedule.through);
        why.push(format!(
            "the clock was put back: nothing fires again up to {through}; to begin anew, remove it and set it again"
        ));
    }
    why.extend(schedule.live.values().map(|live| under_way(&live.tick, live.cancelling)));
    if let Some(first) = schedule.queue.front() {
        let since = instant_text(first.scheduled);
        why.push(format!("{} wait for what is under way, since {since}", schedule.queue.len()));
    }
    why.extend(schedule.last.as_ref().and_then(last));
    why
}

fn under_way(tick: &TickView, cancelling: bool) -> String {
    let n = tick.n;
    match (&tick.run, cancelling) {
        (Some(run), true) => format!("tick {n} is being canceled for a later one: eclosion why {run}"),
        (Some(run), false) => format!("tick {n} runs: eclosion why {run}"),
        (None, _) if tick.state == TickState::Running => format!("tick {n} waits for the answer of its call"),
        (None, _) => format!("tick {n} is starting"),
    }
}

/// The last tick, unless all went well.
fn last(tick: &TickView) -> Option<String> {
    let at = instant_text(tick.scheduled);
    match tick.state {
        TickState::Skipped if tick.count > 1 => {
            let more = if tick.at_least { " or more" } else { "" };
            Some(format!("the last {}{more} ticks, from {at}, were skipped: {}", tick.count, tick.why))
        }
        TickState::Skipped => Some(format!("the last tick, of {at}, was skipped: {}", tick.why)),
        TickState::Failed | TickState::Cancelled => {
            let error = tick.error.as_ref().map(|error| format!(": {}", error.message)).unwrap_or_default();
            let next = tick.run.as_ref().map(|run| format!("; eclosion why {run}")).unwrap_or_default();
            let state = if tick.state == TickState::Failed { "failed" } else { "was canceled" };
            Some(format!("the last tick, of {at}, {state}{error}{next}"))
        }
        _ => None,
    }
}

/// An error that has room in the record of a tick.
pub(crate) fn bounded(error: &Error) -> Error {
    let short = |text: &str| text.chars().take(MESSAGE_CHARS_MAX).collect::<String>();
    Error {
        code: error.code,
        reason: short(&error.reason),
        message: short(&error.message),
        retry: error.retry,
        help: error.help.as_deref().map(short),
        causes: error.causes.iter().take(4).map(|cause| short(cause)).collect(),
        remote: None,
    }
}
