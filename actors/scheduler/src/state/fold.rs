//! Records into state. The only place where it changes.

use std::collections::VecDeque;
use std::sync::Arc;

use eclosion_kernel::journal::Record;
use eclosion_schemas::events::schedule::{
    SchedulePaused, ScheduleRemoved, ScheduleResumed, ScheduleSet, TickCancelling, TickEnded, TickFired,
    TickQueued, TickSkipped,
};
use eclosion_schemas::events::{RunFinished, RunStarted};
use eclosion_schemas::schedule::{Action, TickState, TickView};
use eclosion_schemas::view::RunState;
use eclosion_schemas::{EffectId, ScheduleName, Timestamp};

use super::{Effect, Live, Schedule, State, TRIGGER_KEYS_MAX};
use crate::trigger::{Plan, Zones};
use crate::view;

pub(super) fn apply(zones: &Zones, state: &mut State, record: &Record) {
    let touched = if let Some(event) = record.event::<ScheduleSet>() {
        set(zones, state, &event, record.at)
    } else if let Some(event) = record.event::<SchedulePaused>() {
        paused(state, &event, record.at)
    } else if let Some(event) = record.event::<ScheduleResumed>() {
        resumed(state, &event)
    } else if let Some(event) = record.event::<ScheduleRemoved>() {
        removed(state, &event.name)
    } else if let Some(event) = record.event::<TickFired>() {
        fired(state, &event, record)
    } else if let Some(event) = record.event::<TickQueued>() {
        queued(state, &event)
    } else if let Some(event) = record.event::<TickSkipped>() {
        skipped(state, &event.tick)
    } else if let Some(event) = record.event::<TickCancelling>() {
        cancelling(state, &event, effect(record))
    } else if let Some(event) = record.event::<TickEnded>() {
        ended(state, &event.tick)
    } else if let Some(event) = record.event::<RunStarted>() {
        run_started(state, &event, effect(record))
    } else if let Some(event) = record.event::<RunFinished>() {
        run_finished(state, &event)
    } else {
        None
    };
    if let Some(name) = touched {
        reindex(state, &name);
    }
}

/// One record owes one effect at most.
fn effect(record: &Record) -> EffectId {
    EffectId { seq: record.seq, n: 0 }
}

/// Brings the ways into a schedule up to date.
fn reindex(state: &mut State, name: &ScheduleName) {
    let (index, Some(schedule)) = (&mut state.index, state.schedules.get_mut(name)) else { return };
    let next = if schedule.paused.is_some() { None } else { schedule.next };
    let wanted = next.map(|due| schedule.plan.fires_at(name, due.at));
    if wanted != schedule.indexed {
        if let Some(at) = schedule.indexed {
            index.due.remove(&(at, name.clone()));
        }
        if let Some(at) = wanted {
            index.due.insert((at, name.clone()));
        }
        schedule.indexed = wanted;
    }
    match schedule.needs_attention() {
        true => _ = index.attention.insert(name.clone()),
        false => _ = index.attention.remove(name),
    }
}

fn set(zones: &Zones, state: &mut State, event: &ScheduleSet, at: Timestamp) -> Option<ScheduleName> {
    // What was accepted once may name a zone that is gone.
    let plan = Plan::compile(zones, &event.spec).map_or_else(|_| Plan::never(), |(plan, _)| plan);
    let next = plan.next(event.through);
    let (name, spec) = (event.name.clone(), Arc::new(event.spec.as_ref().clone()));
    if let Some(schedule) = state.schedules.get_mut(&name) {
        (schedule.spec, schedule.plan, schedule.role) = (spec, plan, event.role);
        (schedule.through, schedule.next, schedule.updated_at) = (event.through, next, at);
        return Some(name);
    }
    let schedule = Schedule {
        spec,
        plan,
        role: event.role,
        created_at: at,
        updated_at: at,
        paused: None,
        through: event.through,
        next,
        indexed: None,
        numbers: 0,
        live: Default::default(),
        queue: VecDeque::new(),
        last: None,
        counts: Default::default(),
        last_manual: None,
        trigger_keys: VecDeque::new(),
    };
    state.schedules.insert(name.clone(), schedule);
    Some(name)
}

fn paused(state: &mut State, event: &SchedulePaused, at: Timestamp) -> Option<ScheduleName> {
    let schedule = state.schedules.get_mut(&event.name)?;
    schedule.paused = Some((at, event.reason.clone()));
    Some(event.name.clone())
}

fn resumed(state: &mut State, event: &ScheduleResumed) -> Option<ScheduleName> {
    let schedule = state.schedules.get_mut(&event.name)?;
    schedule.paused = None;
    schedule.pass(event.through);
    Some(event.name.clone())
}

fn removed(state: &mut State, name: &ScheduleName) -> Option<ScheduleName> {
    let schedule = state.schedules.remove(name)?;
    let index = &mut state.index;
    if let Some(at) = schedule.indexed {
        index.due.remove(&(at, name.clone()));
    }
    index.attention.remove(name);
    for live in schedule.live.values() {
        forget(index, live);
    }
    None
}

fn forget(index: &mut super::Index, live: &Live) {
    index.starting.remove(&live.tick.key());
    if let Some(effect) = live.effect {
        index.outstanding.remove(&effect);
    }
    if let Some(run) = &live.tick.run {
        index.runs.remove(run);
    }
}

impl Schedule {
    fn pass(&mut self, through: Timestamp) {
        if through > self.through {
            self.through = through;
            self.next = self.plan.next(through);
        }
    }

    /// What every record of a tick says, whatever becomes of it.
    fn meet(&mut self, tick: &TickView, idem: Option<&String>) {
        self.numbers = self.numbers.max(tick.n + 1);
        self.queue.retain(|queued| queued.n != tick.n);
        if tick.manual {
            self.last_manual = self.last_manual.max(Some(tick.scheduled));
        } else {
            self.pass(tick.last.unwrap_or(tick.scheduled));
        }
        if let Some(key) = idem {
            if self.trigger_keys.len() == TRIGGER_KEYS_MAX {
                self.trigger_keys.pop_front();
            }
            self.trigger_keys.push_back((key.clone(), tick.n));
        }
    }

    fn over(&mut self, tick: &TickView) {
        *self.counts.entry(tick.state).or_default() += tick.count;
        self.last = Some(TickView { reply: None, ..tick.clone() });
    }
}

fn fired(state: &mut State, event: &TickFired, record: &Record) -> Option<ScheduleName> {
    let (tick, id) = (&event.tick, effect(record));
    let name = tick.schedule.clone();
    let schedule = state.schedules.get_mut(&name)?;
    schedule.meet(tick, event.idem.as_ref());
    let (key, spec) = (tick.key(), Arc::clone(&schedule.spec));
    let mut tick = tick.clone();
    match &spec.action {
        Action::Run { .. } => _ = state.index.starting.insert(key.clone(), (name.clone(), tick.n)),
        Action::Call { .. } => tick.state = TickState::Running,
    }
    let start = Effect::Start { name: name.clone(), n: tick.n, key, spec, role: schedule.role };
    state.index.outstanding.insert(id, start);
    schedule.live.insert(tick.n, Live { tick, effect: Some(id), cancelling: false, ended: None });
    Some(name)
}

fn queued(state: &mut State, event: &TickQueued) -> Option<ScheduleName> {
    let name = event.tick.schedule.clone();
    let schedule = state.schedules.get_mut(&name)?;
    schedule.meet(&event.tick, event.idem.as_ref());
    schedule.queue.push_back(event.tick.clone());
    Some(name)
}

fn skipped(state: &mut State, tick: &TickView) -> Option<ScheduleName> {
    let schedule = state.schedules.get_mut(&tick.schedule)?;
    schedule.meet(tick, None);
    schedule.over(tick);
    Some(tick.schedule.clone())
}

fn cancelling(state: &mut State, event: &TickCancelling, id: EffectId) -> Option<ScheduleName> {
    let live = state.schedules.get_mut(&event.schedule)?.live.get_mut(&event.n)?;
    live.cancelling = true;
    // Without a run there is nothing to cancel yet: its start is owed, and then this.
    if let Some(run) = live.tick.run.clone() {
        live.effect = Some(id);
        state.index.outstanding.insert(id, Effect::Cancel { run, name: event.schedule.clone() });
    }
    Some(event.schedule.clone())
}

fn run_started(state: &mut State, event: &RunStarted, id: EffectId) -> Option<ScheduleName> {
    let (name, n) = state.index.starting.remove(event.idem.as_ref()?)?;
    let live = state.schedules.get_mut(&name)?.live.get_mut(&n)?;
    if let Some(start) = live.effect.take() {
        state.index.outstanding.remove(&start);
    }
    (live.tick.run, live.tick.state) = (Some(event.run.clone()), TickState::Running);
    state.index.runs.insert(event.run.clone(), (name.clone(), n));
    if live.cancelling {
        live.effect = Some(id);
        let cancel = Effect::Cancel { run: event.run.clone(), name: name.clone() };
        state.index.outstanding.insert(id, cancel);
    }
    Some(name)
}

fn run_finished(state: &mut State, event: &RunFinished) -> Option<ScheduleName> {
    let (name, n) = state.index.runs.remove(&event.run)?;
    let live = state.schedules.get_mut(&name)?.live.get_mut(&n)?;
    if let Some(effect) = live.effect.take() {
        state.index.outstanding.remove(&effect);
    }
    let ended = match event.state {
        RunState::Succeeded => TickState::Succeeded,
        RunState::Cancelled => TickState::Cancelled,
        RunState::Failed | RunState::Running | RunState::Cancelling => TickState::Failed,
    };
    live.ended = Some((ended, event.error.as_ref().map(view::bounded)));
    Some(name)
}

fn ended(state: &mut State, tick: &TickView) -> Option<ScheduleName> {
    let schedule = state.schedules.get_mut(&tick.schedule)?;
    if let Some(live) = schedule.live.remove(&tick.n) {
        forget(&mut state.index, &live);
    }
    schedule.over(tick);
    Some(tick.schedule.clone())
}
