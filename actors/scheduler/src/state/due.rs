//! What has become due: instants that have come, runs that have ended, ticks that waited.
//!
//! One [`Step`] for each schedule decides at most [`TICKS_STEP_MAX`] ticks, as if each event were applied at once; what is
//! left is decided by the next step, on the state that this one led to. Late instants come first, so that ticks keep their
//! order.

use std::collections::VecDeque;

use eclosion_kernel::core::AnyEvent;
use eclosion_schemas::events::schedule::{TickCancelling, TickEnded, TickFired, TickQueued, TickSkipped};
use eclosion_schemas::schedule::{Action, Misfire, Overlap, SkipReason, TickState, TickView};
use eclosion_schemas::{Code, Error, ScheduleName, Timestamp};

use super::{Live, SCHEDULES_STEP_MAX, Schedule, State, TICKS_STEP_MAX};
use crate::trigger::Due;

pub(super) fn settle(state: &State, now: Timestamp) -> Vec<AnyEvent> {
    let due = state.index.due.iter().take_while(|(at, _)| *at <= now).map(|(_, name)| name);
    let attention = state.index.attention.iter().take(SCHEDULES_STEP_MAX);
    let mut names: Vec<&ScheduleName> = attention.chain(due.take(SCHEDULES_STEP_MAX)).collect();
    names.sort();
    names.dedup();
    let schedules = names.into_iter().filter_map(|name| Some((name, state.schedule(name)?)));
    schedules.flat_map(|(name, schedule)| Step::new(name, schedule, now).settled()).collect()
}

/// What becomes of a tick that could fire.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Placed {
    Fired(u64),
    Queued(u64),
    Skipped(SkipReason),
}

/// A schedule on its way through one step.
pub(super) struct Step<'a> {
    name: &'a ScheduleName,
    schedule: &'a Schedule,
    now: Timestamp,
    /// Fired and not ended.
    live: Vec<u64>,
    queue: VecDeque<TickView>,
    number: u64,
    through: Timestamp,
    next: Option<Due>,
    events: Vec<AnyEvent>,
}

impl<'a> Step<'a> {
    pub(super) fn new(name: &'a ScheduleName, schedule: &'a Schedule, now: Timestamp) -> Self {
        Self {
            name,
            schedule,
            now,
            live: schedule.live.keys().copied().collect(),
            queue: schedule.queue.clone(),
            number: schedule.numbers,
            through: schedule.through,
            next: schedule.next,
            events: Vec::new(),
        }
    }

    pub(super) fn into_events(self) -> Vec<AnyEvent> {
        self.events
    }

    fn settled(mut self) -> Vec<AnyEvent> {
        let schedule = self.schedule;
        for (n, live) in &schedule.live {
            if let Some(event) = ended(live, self.now) {
                self.live.retain(|other| other != n);
                self.events.push(event.into());
            }
        }
        if schedule.paused.is_none() {
            self.cancel_for_queue();
            self.take_from_queue();
            self.late();
            self.on_time();
        }
        self.events
    }

    fn take_from_queue(&mut self) {
        while self.has_room()
            && let Some(tick) = self.queue.pop_front()
        {
            self.live.push(tick.n);
            let tick = TickView { state: TickState::Starting, decided_at: self.now, ..tick };
            self.events.push(TickFired { tick, idem: None }.into());
        }
    }

    fn has_room(&self) -> bool {
        self.live.len() < self.schedule.live_max()
    }

    /// Instants that are late beyond the grace, by the misfire policy.
    fn late(&mut self) {
        let plan = &self.schedule.plan;
        let before = plan.late_before(self.now);
        let is_late = |due: &Due| due.at < before;
        let Some(first) = self.next.filter(is_late) else { return };
        let Some(last) = plan.latest(self.through, Timestamp(before.0.saturating_sub(1))) else { return };
        let kept = match plan.misfire {
            Misfire::Skip {} => 0,
            Misfire::RunOnce {} => usize::from(plan.next(last).is_none_or(|due| !self.has_come(due.at))),
            Misfire::RunAll { max } => max as usize,
        };
        let kept = self.latest_of(first.at, last, kept);
        let skipped_to = match kept.front() {
            Some(oldest) => plan.latest(self.through, Timestamp(oldest.0 - 1)),
            None => Some(last),
        };
        if let Some(skipped_to) = skipped_to {
            self.skip_row(first.at, skipped_to, SkipReason::Missed, self.why_missed(skipped_to));
        }
        for at in kept {
            if self.events.len() >= TICKS_STEP_MAX {
                return;
            }
            let late = seconds(self.now.since_ms(at));
            self.place_due(at, format!("missed, and made up for {late} later"));
        }
    }

    /// The last `count` instants in `[first, last]`, oldest first.
    fn latest_of(&self, first: Timestamp, last: Timestamp, count: usize) -> VecDeque<Timestamp> {
        let plan = &self.schedule.plan;
        let earlier = |at: &Timestamp| {
            let until = Timestamp(at.0.checked_sub(1)?);
            plan.latest(self.through, until).filter(|at| *at >= first)
        };
        let mut kept = VecDeque::new();
        for at in std::iter::successors(Some(last), earlier).take(count) {
            kept.push_front(at);
        }
        kept
    }

    fn why_missed(&self, last: Timestamp) -> String {
        let (late, grace) = (self.now.since_ms(last), self.schedule.plan.grace_ms);
        format!("late by {} where {} are allowed", seconds(late), seconds(grace))
    }

    fn on_time(&mut self) {
        while let Some(due) = self.next
            && self.has_come(due.at)
            && self.events.len() < TICKS_STEP_MAX
        {
            // A row of late ones that this step had no room for comes first.
            if due.at < self.schedule.plan.late_before(self.now) {
                return;
            }
            let late = self.now.since_ms(due.at);
            let why = if late < 1_000 { "due".to_owned() } else { format!("due {} ago", seconds(late)) };
            self.place_due(due.at, why);
        }
    }

    fn has_come(&self, at: Timestamp) -> bool {
        self.schedule.plan.fires_at(self.name, at) <= self.now
    }

    fn place_due(&mut self, at: Timestamp, why: String) {
        let tick = self.tick(at, why);
        self.pass(at);
        match self.place(tick.clone(), None) {
            Placed::Fired(_) | Placed::Queued(_) => {}
            Placed::Skipped(reason) => {
                let why = why_skipped(reason, self.schedule);
                self.skip(TickView { why, ..tick }, reason);
            }
        }
    }

    fn pass(&mut self, at: Timestamp) {
        self.through = self.through.max(at);
        self.next = self.schedule.plan.next(self.through);
    }

    /// Fires a tick, has it wait, or says why neither is possible; then nothing has changed.
    pub(super) fn place(&mut self, tick: TickView, idem: Option<String>) -> Placed {
        let is_free = self.queue.is_empty() && self.has_room();
        match self.schedule.plan.overlap {
            _ if is_free => self.fire(tick, idem),
            Overlap::Skip {} | Overlap::Allow { .. } => Placed::Skipped(SkipReason::Overlap),
            Overlap::Queue { max } if self.queue.len() >= max as usize => {
                Placed::Skipped(SkipReason::QueueFull)
            }
            Overlap::Queue { .. } => self.wait(tick, idem),
            Overlap::CancelPrevious {} => {
                self.supersede();
                self.wait(tick, idem)
            }
        }
    }

    fn fire(&mut self, tick: TickView, idem: Option<String>) -> Placed {
        let tick = TickView { n: self.number, state: TickState::Starting, ..tick };
        self.number += 1;
        let n = tick.n;
        self.live.push(n);
        self.events.push(TickFired { tick, idem }.into());
        Placed::Fired(n)
    }

    fn wait(&mut self, tick: TickView, idem: Option<String>) -> Placed {
        let tick = TickView { n: self.number, state: TickState::Queued, ..tick };
        self.number += 1;
        let n = tick.n;
        self.queue.push_back(tick.clone());
        self.events.push(TickQueued { tick, idem }.into());
        Placed::Queued(n)
    }

    fn supersede(&mut self) {
        for tick in std::mem::take(&mut self.queue) {
            let why = "a later tick became due while it waited".to_owned();
            self.events.push(skipped(TickView { why, ..tick }, SkipReason::Superseded, self.now).into());
        }
    }

    /// What a waiting tick is to replace: a run is asked to end, a call is given up at once.
    fn cancel_for_queue(&mut self) {
        let schedule = self.schedule;
        if !matches!(schedule.plan.overlap, Overlap::CancelPrevious {}) || self.queue.is_empty() {
            return;
        }
        for (n, live) in schedule.live.iter().filter(|(_, live)| live.ended.is_none()) {
            if is_call(schedule) && live.tick.run.is_none() {
                self.live.retain(|other| other != n);
                self.events.push(cancelled(&live.tick, self.now).into());
            } else if !live.cancelling {
                self.events.push(TickCancelling { schedule: self.name.clone(), n: *n }.into());
            }
        }
    }

    /// Everything that is due up to now, in one row.
    pub(super) fn skip_all(&mut self, reason: SkipReason, why: &str) {
        let Some(first) = self.next.filter(|due| due.at <= self.now) else { return };
        let last = self.schedule.plan.latest(self.through, self.now).unwrap_or(first.at);
        self.skip_row(first.at, last, reason, why.to_owned());
    }

    fn skip_row(&mut self, first: Timestamp, last: Timestamp, reason: SkipReason, why: String) {
        let (count, at_least) = self.schedule.plan.count(first, last);
        let tick =
            TickView { last: (last > first).then_some(last), count, at_least, ..self.tick(first, why) };
        self.pass(last);
        self.skip(tick, reason);
    }

    fn skip(&mut self, tick: TickView, reason: SkipReason) {
        let tick = TickView { n: self.number, ..tick };
        self.number += 1;
        self.events.push(skipped(tick, reason, self.now).into());
    }

    pub(super) fn tick(&self, at: Timestamp, why: String) -> TickView {
        TickView {
            schedule: self.name.clone(),
            n: self.number,
            scheduled: at,
            last: None,
            count: 1,
            at_least: false,
            manual: false,
            state: TickState::Starting,
            skipped: None,
            why,
            decided_at: self.now,
            ended_at: None,
            run: None,
            reply: None,
            error: None,
        }
    }
}

fn skipped(tick: TickView, reason: SkipReason, now: Timestamp) -> TickSkipped {
    let (state, skipped, ended_at) = (TickState::Skipped, Some(reason), Some(now));
    TickSkipped { tick: TickView { state, skipped, ended_at, ..tick } }
}

fn ended(live: &Live, now: Timestamp) -> Option<TickEnded> {
    let (state, error) = live.ended.clone()?;
    let tick = TickView { state, error, ended_at: Some(now), ..live.tick.clone() };
    Some(TickEnded { tick })
}

fn cancelled(tick: &TickView, now: Timestamp) -> TickEnded {
    let error = Error::new(Code::Cancelled, "schedule.superseded", "a later tick became due before it ended");
    let (state, error, ended_at) = (TickState::Cancelled, Some(error), Some(now));
    TickEnded { tick: TickView { state, error, ended_at, ..tick.clone() } }
}

fn is_call(schedule: &Schedule) -> bool {
    matches!(schedule.spec.action, Action::Call { .. })
}

/// Names what was in the way.
pub(super) fn why_skipped(reason: SkipReason, schedule: &Schedule) -> String {
    let holder = schedule.live.values().next().map(|live| match &live.tick.run {
        Some(run) => format!("run {run} of tick {}", live.tick.n),
        None => format!("tick {}", live.tick.n),
    });
    let holder = holder.unwrap_or_else(|| "an earlier tick".to_owned());
    match reason {
        SkipReason::QueueFull => {
            format!("{holder} had not ended, and {} ticks waited already", schedule.queue.len())
        }
        _ => format!("{holder} had not ended"),
    }
}

fn seconds(ms: u64) -> String {
    match ms % 1_000 {
        0 => format!("{} s", ms / 1_000),
        rest => format!("{}.{rest:03} s", ms / 1_000),
    }
}
