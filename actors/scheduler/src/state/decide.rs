//! Commands into events.

use std::sync::Arc;

use eclosion_kernel::core::{AnyEvent, Decision, Reads};
use eclosion_schemas::events::schedule::{
    SchedulePaused, ScheduleRemoved, ScheduleResumed, ScheduleSet, TickEnded,
};
use eclosion_schemas::ops::schedule::{
    ActRequest, Change, NextReply, NextRequest, PREVIEW_MAX, RemoveReply, SetReply, SetRequest, StateReply,
    TriggerReply, TriggerRequest,
};
use eclosion_schemas::schedule::{Action, ScheduleSpec, ScheduleState, SkipReason, TickState, TickView};
use eclosion_schemas::suggest::nearest;
use eclosion_schemas::{Code, Error, Retry, Role, ScheduleName, Timestamp};

use super::due::{Placed, Step, why_skipped};
use super::{Answer, Answered, Command, SCHEDULES_MAX, Schedule, State};
use crate::trigger::{Plan, Zones};
use crate::view;

/// A specification is carried by one record, beside which there must be room for little else.
const SPEC_BYTES_MAX: usize = 56 * 1024;
const REASON_CHARS_MAX: usize = 1_024;
/// A call waits no longer.
const DEADLINE_MS_MAX: u64 = 24 * 3_600_000;

pub(super) fn decide(
    zones: &Zones,
    state: &State,
    reads: &Reads,
    command: &Command,
    now: Timestamp,
) -> Result<Decision, Error> {
    match command {
        Command::Set(request, role) => set(zones, state, request, *role, now),
        Command::Get(request) => {
            let schedule = found(state, &request.name)?;
            Ok(Decision::reply(view::schedule(&request.name, schedule, now)))
        }
        Command::List(request) => Ok(Decision::reply(view::list(state, request, now))),
        Command::Pause(request) => pause(state, request),
        Command::Resume(request) => resume(state, &request.name, now),
        Command::Trigger(request) => trigger(state, request, now),
        Command::Remove(request) => remove(state, &request.name),
        Command::Next(request) => next(zones, state, request, now).map(Decision::reply),
        Command::History(request) => {
            let schedule = found(state, &request.name)?;
            Ok(Decision::reply(view::history(schedule, reads, request)))
        }
        Command::Answered(answered) => Ok(self::answered(state, answered, now)),
    }
}

fn found<'a>(state: &'a State, name: &ScheduleName) -> Result<&'a Schedule, Error> {
    state.schedule(name).ok_or_else(|| {
        let likely = nearest(name.as_str(), state.schedules.keys().map(ScheduleName::as_str));
        let help = likely
            .map_or_else(|| "eclosion schedule ls".to_owned(), |likely| format!("did you mean `{likely}`?"));
        Error::not_found("schedule.unknown", format!("there is no schedule {name}")).help(help)
    })
}

fn set(
    zones: &Zones,
    state: &State,
    request: &SetRequest,
    role: Role,
    now: Timestamp,
) -> Result<Decision, Error> {
    let (plan, spec) = Plan::compile(zones, &request.spec)?;
    check_size(&spec)?;
    let name = &request.name;
    let existing = state.schedule(name);
    let through = existing.map_or(now, |existing| existing.through.max(now));
    let next = plan.next(through);
    let reply =
        |change| SetReply { change, spec: spec.clone(), next: next.map(|due| plan.upcoming(name, due)) };
    if existing.is_some_and(|existing| *existing.spec == spec) {
        return Ok(Decision::reply(reply(Change::Unchanged)));
    }
    if existing.is_some() && !request.replace {
        let message = format!("there is another schedule {name}");
        return Err(Error::new(Code::Conflict, "schedule.exists", message).help(format!(
            "look at it: eclosion schedule show {name}; or repeat the command with --replace"
        )));
    }
    if next.is_none() {
        let message = format!("nothing is left of {}", view::trigger_text(&spec.trigger));
        return Err(Error::invalid("schedule.past", message)
            .help("choose a time to come; to start something now: eclosion run FLOW"));
    }
    if existing.is_none() && state.len() >= SCHEDULES_MAX {
        let message = format!("there are {SCHEDULES_MAX} schedules already");
        return Err(Error::new(Code::Exhausted, "schedule.too_many", message).help("eclosion schedule ls"));
    }
    let change = if existing.is_some() { Change::Replaced } else { Change::Created };
    let skipped = existing.map(|existing| match existing.paused {
        None => skipped_until_now(name, existing, now, SkipReason::Replaced, "the schedule was replaced"),
        Some(_) => skipped_until_now(name, existing, now, SkipReason::Paused, "the schedule was paused"),
    });
    let reply = reply(change);
    let set =
        ScheduleSet { name: name.clone(), spec: Box::new(spec), role: role.min(Role::Operate), through };
    Ok(Decision::reply(reply).events(skipped.into_iter().flatten()).event(set))
}

fn check_size(spec: &ScheduleSpec) -> Result<(), Error> {
    if let Action::Call { operation, deadline_ms, request } = &spec.action {
        if *deadline_ms == 0 || *deadline_ms > DEADLINE_MS_MAX {
            return Err(Error::invalid("schedule.deadline", "the deadline of a call is 1 ms to a day"));
        }
        if operation == "schedule.trigger" {
            let message = "a schedule cannot trigger schedules: it might trigger itself, for ever";
            return Err(Error::invalid("schedule.loop", message));
        }
        if names_a_segment(request) {
            let message = "an argument names shared memory, which is used again long before the next tick";
            return Err(Error::invalid("schedule.segment", message)
                .help("let large arguments be files that the function reads"));
        }
    }
    let bytes = rmp_serde::to_vec_named(spec).map_or(usize::MAX, |bytes| bytes.len());
    if bytes > SPEC_BYTES_MAX {
        let message = format!("the schedule has {bytes} bytes, and at most {SPEC_BYTES_MAX} are kept");
        return Err(Error::invalid("schedule.too_large", message)
            .help("let large parameters be files that the flow reads"));
    }
    Ok(())
}

/// Of the arguments of a function: a record must not name what is gone when it is read.
fn names_a_segment(request: &serde_json::Value) -> bool {
    let parts = request.pointer("/arguments/parts").and_then(serde_json::Value::as_array);
    parts.into_iter().flatten().any(|part| part.get("segment").is_some_and(|segment| !segment.is_null()))
}

fn pause(state: &State, request: &ActRequest) -> Result<Decision, Error> {
    let schedule = found(state, &request.name)?;
    let reply = Decision::reply(StateReply { state: ScheduleState::Paused });
    if schedule.paused.is_some() {
        return Ok(reply);
    }
    let reason = request.reason.chars().take(REASON_CHARS_MAX).collect();
    Ok(reply.event(SchedulePaused { name: request.name.clone(), reason }))
}

fn resume(state: &State, name: &ScheduleName, now: Timestamp) -> Result<Decision, Error> {
    let schedule = found(state, name)?;
    if schedule.paused.is_none() {
        return Ok(Decision::reply(StateReply { state: schedule.state() }));
    }
    let through = schedule.through.max(now);
    let state = match schedule.plan.next(through) {
        None if schedule.live.is_empty() && schedule.queue.is_empty() => ScheduleState::Done,
        _ => ScheduleState::Active,
    };
    let skipped = skipped_until_now(name, schedule, now, SkipReason::Paused, "the schedule was paused");
    let resumed = ScheduleResumed { name: name.clone(), through };
    Ok(Decision::reply(StateReply { state }).events(skipped).event(resumed))
}

fn skipped_until_now(
    name: &ScheduleName,
    schedule: &Schedule,
    now: Timestamp,
    reason: SkipReason,
    why: &str,
) -> Vec<AnyEvent> {
    let mut step = Step::new(name, schedule, now);
    step.skip_all(reason, why);
    step.into_events()
}

fn trigger(state: &State, request: &TriggerRequest, now: Timestamp) -> Result<Decision, Error> {
    let schedule = found(state, &request.name)?;
    let known = |key: &String| schedule.trigger_keys.iter().find(|(known, _)| known == key);
    if let Some((_, n)) = request.idem.as_ref().and_then(known) {
        let is_queued = schedule.queue.iter().any(|tick| tick.n == *n);
        let state = if is_queued { TickState::Queued } else { TickState::Starting };
        return Ok(Decision::reply(TriggerReply { n: *n, state }));
    }
    let mut step = Step::new(&request.name, schedule, now);
    let at = schedule.last_manual.map_or(now, |last| now.max(last.plus_ms(1)));
    let tick = TickView { manual: true, ..step.tick(at, "triggered by hand".to_owned()) };
    let reply = match step.place(tick, request.idem.clone()) {
        Placed::Fired(n) => TriggerReply { n, state: TickState::Starting },
        Placed::Queued(n) => TriggerReply { n, state: TickState::Queued },
        Placed::Skipped(reason) => return Err(in_the_way(&request.name, schedule, reason)),
    };
    Ok(Decision::reply(reply).events(step.into_events()))
}

fn in_the_way(name: &ScheduleName, schedule: &Schedule, reason: SkipReason) -> Error {
    let message = format!("{name} cannot fire now: {}", why_skipped(reason, schedule));
    let error = Error::new(Code::Precondition, "schedule.overlap", message);
    error.retry(Retry::After { after_ms: 1_000 }).help(format!("eclosion schedule show {name}"))
}

/// What it has started as runs goes on; a call under way is given up.
fn remove(state: &State, name: &ScheduleName) -> Result<Decision, Error> {
    found(state, name)?;
    Ok(Decision::reply(RemoveReply {}).event(ScheduleRemoved { name: name.clone() }))
}

fn next(zones: &Zones, state: &State, request: &NextRequest, now: Timestamp) -> Result<NextReply, Error> {
    let unnamed =
        || ScheduleName::new("unnamed").map_err(|why| Error::internal("schedule.name", why.to_string()));
    let (name, plan, spec, after) = match (&request.name, &request.spec) {
        (name, Some(spec)) => {
            let (plan, spec) = Plan::compile(zones, spec)?;
            (name.clone().map_or_else(unnamed, Ok)?, plan, Arc::new(spec), now)
        }
        (Some(name), None) => {
            let schedule = found(state, name)?;
            let after = if schedule.paused.is_some() { schedule.through.max(now) } else { schedule.through };
            (name.clone(), schedule.plan.clone(), Arc::clone(&schedule.spec), after)
        }
        (None, None) => return Err(Error::invalid("schedule.next", "neither a name nor a specification")),
    };
    let after = request.after.unwrap_or(after);
    let ticks = plan.preview(&name, after, request.n.min(PREVIEW_MAX));
    Ok(NextReply { ticks, zone: spec.zone.clone().unwrap_or_default() })
}

/// The start of a tick was answered; whatever else has ended the tick meanwhile was first.
fn answered(state: &State, answered: &Answered, now: Timestamp) -> Decision {
    let Answered { name, n, key, outcome } = answered;
    let none = Decision::reply(());
    let live = state.schedule(name).and_then(|schedule| schedule.live.get(n));
    let Some(live) = live.filter(|live| live.tick.key() == *key && live.tick.run.is_none()) else {
        return none;
    };
    let ended = |state, reply, error| {
        let tick = TickView { state, reply, error, ended_at: Some(now), ..live.tick.clone() };
        Decision::reply(()).event(TickEnded { tick })
    };
    match outcome {
        Ok(Answer::Reply(reply)) => ended(TickState::Succeeded, Some(reply.clone()), None),
        Err(error) => ended(TickState::Failed, None, Some(view::bounded(error))),
        // `run.started` would have been folded before: the run belongs to an earlier schedule of this name.
        Ok(Answer::Run(run)) => {
            let message = format!("run {run} was started for this instant already");
            let error = Error::new(Code::AlreadyExists, "schedule.tick_repeated", message);
            ended(TickState::Failed, None, Some(error.help(format!("eclosion runs show {run}"))))
        }
    }
}
