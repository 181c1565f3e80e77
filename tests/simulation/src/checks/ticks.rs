//! What the records say of schedules, read without the scheduler: every instant is named once and in order, a tick fires
//! once and ends once, and the run that it starts exists once.

use std::collections::{BTreeMap, BTreeSet};

use eclosion_kernel::journal::Record;
use eclosion_schemas::events::schedule::{
    SchedulePaused, ScheduleRemoved, ScheduleResumed, ScheduleSet, TickEnded, TickFired, TickQueued,
    TickSkipped,
};
use eclosion_schemas::events::{GcErased, RunStarted};
use eclosion_schemas::schedule::{TickView, Trigger};
use eclosion_schemas::{RunId, ScheduleName, Timestamp};

use crate::world::World;

#[derive(Debug, Default)]
pub(super) struct Ticks {
    schedules: BTreeMap<ScheduleName, Track>,
    /// Keys of all ticks that have fired, and the runs that they have led to.
    fired: BTreeSet<String>,
    runs: BTreeMap<String, RunId>,
}

#[derive(Debug)]
struct Track {
    every_ms: u64,
    jitter_ms: u64,
    /// The first instant that no record has named.
    next: Timestamp,
    is_paused: bool,
    numbers: u64,
    live: BTreeSet<u64>,
    queued: BTreeSet<u64>,
}

impl Ticks {
    pub(super) fn read(&mut self, record: &Record) -> Result<(), String> {
        if let Some(set) = record.event::<ScheduleSet>() {
            self.set(&set)?;
        } else if let Some(paused) = record.event::<SchedulePaused>() {
            self.track(&paused.name)?.is_paused = true;
        } else if let Some(resumed) = record.event::<ScheduleResumed>() {
            let track = self.track(&resumed.name)?;
            track.is_paused = false;
            track.has_named(&resumed.name, resumed.through)?;
        } else if let Some(removed) = record.event::<ScheduleRemoved>() {
            self.schedules.remove(&removed.name);
        } else if let Some(fired) = record.event::<TickFired>() {
            let tick = &fired.tick;
            let track = self.track(&tick.schedule)?;
            track.meet(tick)?;
            if !track.live.insert(tick.n) {
                return Err(format!("tick {} of {} fired twice", tick.n, tick.schedule));
            }
            self.fired.insert(tick.key());
        } else if let Some(queued) = record.event::<TickQueued>() {
            let track = self.track(&queued.tick.schedule)?;
            track.meet(&queued.tick)?;
            track.queued.insert(queued.tick.n);
        } else if let Some(skipped) = record.event::<TickSkipped>() {
            if skipped.tick.skipped.is_none() {
                return Err(format!("tick {} was skipped without a reason", skipped.tick.n));
            }
            self.track(&skipped.tick.schedule)?.meet(&skipped.tick)?;
        } else if let Some(ended) = record.event::<TickEnded>() {
            let tick = &ended.tick;
            if !self.track(&tick.schedule)?.live.remove(&tick.n) {
                return Err(format!("tick {} of {} ended and was not live", tick.n, tick.schedule));
            }
        } else if let Some(started) = record.event::<RunStarted>() {
            self.run_started(&started)?;
        } else if let Some(erased) = record.event::<GcErased>() {
            erased.keys.iter().for_each(|key| _ = self.runs.remove(key));
        }
        Ok(())
    }

    fn set(&mut self, set: &ScheduleSet) -> Result<(), String> {
        let Trigger::Every { every_ms, anchor } = &set.spec.trigger else {
            return Err(format!("{} is no interval", set.name));
        };
        let (every_ms, phase) = (*every_ms, anchor.0 % every_ms);
        let past = (set.through.0 - phase) / every_ms;
        let next = Timestamp((past + 1) * every_ms + phase);
        let jitter_ms = set.spec.jitter_ms;
        if let Some(track) = self.schedules.get_mut(&set.name) {
            track.has_named(&set.name, set.through)?;
            (track.every_ms, track.jitter_ms, track.next) = (every_ms, jitter_ms, next);
            return Ok(());
        }
        let (live, queued) = (BTreeSet::new(), BTreeSet::new());
        let track = Track { every_ms, jitter_ms, next, is_paused: false, numbers: 0, live, queued };
        self.schedules.insert(set.name.clone(), track);
        Ok(())
    }

    fn run_started(&mut self, started: &RunStarted) -> Result<(), String> {
        let Some(key) = started.idem.as_ref().filter(|key| key.starts_with("schedule:")) else {
            return Ok(());
        };
        if !self.fired.contains(key) {
            return Err(format!("run {} was started for {key}, which has not fired", started.run));
        }
        match self.runs.insert(key.clone(), started.run.clone()) {
            None => Ok(()),
            Some(first) => Err(format!("{key} has two runs: {first} and {}", started.run)),
        }
    }

    fn track(&mut self, name: &ScheduleName) -> Result<&mut Track, String> {
        self.schedules.get_mut(name).ok_or_else(|| format!("there is no schedule {name}"))
    }
}

impl Track {
    /// Every instant up to there has a record.
    fn has_named(&self, name: &ScheduleName, through: Timestamp) -> Result<(), String> {
        if self.next <= through {
            return Err(format!("{name} passes over {} in silence", self.next.0));
        }
        Ok(())
    }

    /// Instants come in order, none twice and none left out; what had waited was named then.
    fn meet(&mut self, tick: &TickView) -> Result<(), String> {
        if self.queued.remove(&tick.n) {
            return Ok(());
        }
        let said = format!("tick {} of {} at {}", tick.n, tick.schedule, tick.scheduled.0);
        if tick.n != self.numbers {
            return Err(format!("{said} is not number {}", self.numbers));
        }
        self.numbers += 1;
        if tick.manual {
            return Ok(());
        }
        if tick.scheduled != self.next {
            return Err(format!("{said} is not the next instant, {}", self.next.0));
        }
        let last = tick.last.unwrap_or(tick.scheduled);
        let count = last.since_ms(tick.scheduled) / self.every_ms + 1;
        if count != tick.count && !tick.at_least {
            return Err(format!("{said} stands for {} instants, and there are {count}", tick.count));
        }
        self.next = last.plus_ms(self.every_ms);
        Ok(())
    }
}

impl World {
    /// Something is called for a tick.
    pub(crate) fn check_call(&mut self, key: &str) {
        if !self.checks.on_disk.ticks.fired.contains(key) {
            self.fail(format!("{key} is called, and has not fired"));
        }
    }

    /// Nothing has gone wrong for a while: whatever was due by now has a record.
    pub(crate) fn check_due(&mut self) {
        const SLACK_MS: u64 = 500;
        let now = self.now();
        let late = self
            .checks
            .on_disk
            .ticks
            .schedules
            .iter()
            .find(|(_, track)| !track.is_paused && now.since_ms(track.next) > track.jitter_ms + SLACK_MS);
        if let Some((name, track)) = late {
            let text = format!("{name} passes over {} in silence, it is {} now", track.next.0, now.0);
            self.fail(text);
        }
    }

    /// At the end of everything: what has fired has ended.
    pub(super) fn overdue(&self) -> Option<String> {
        let mut schedules = self.checks.on_disk.ticks.schedules.iter();
        let (name, track) = schedules.find(|(_, track)| !track.live.is_empty())?;
        Some(format!("ticks {:?} of {name} have not ended", track.live))
    }
}
