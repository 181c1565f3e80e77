//! Tables of cases over the core, overlaps in [`overlap`], random ones in [`random`]: a world of one core, a journal, a clock
//! and runs that start and end.

use eclosion_kernel::engine::{Engine, Step};
use eclosion_kernel::journal::memory::MemoryStore;
use eclosion_kernel::journal::{Append, Journal, RowChange};
use eclosion_schemas::flow::{EnvironmentSpec, FlowSpec};
use eclosion_schemas::ops::schedule::{Change, HistoryReply, NextReply, SetReply, TriggerReply};
use eclosion_schemas::schedule::{Action, Misfire, ScheduleView, SkipReason, Trigger};
use eclosion_schemas::view::RunState;
use eclosion_schemas::{Code, Epoch, Seq};

use super::*;

mod overlap;
mod random;

/// A Saturday, 10:00:00 UTC.
const BEGIN: Timestamp = Timestamp(1_795_255_200_000);
const MINUTE: u64 = 60_000;

struct World {
    journal: Journal,
    engine: Engine<Scheduler>,
    now: Timestamp,
    runs: u32,
}

fn act() -> ActRequest {
    ActRequest { name: name(), reason: String::new() }
}

impl World {
    fn new() -> Self {
        let journal = Journal::new(MemoryStore::default().open(), None);
        Self { journal, engine: Engine::new(Scheduler::default()), now: BEGIN, runs: 0 }
    }

    /// With one schedule of runs.
    fn with(spec: ScheduleSpec) -> Self {
        let mut world = Self::new();
        world.set(spec);
        world
    }

    fn reads(&self) -> Reads {
        Reads::new(Epoch(1), 0)
    }

    fn send(&mut self, command: &Command) -> Step<Effect> {
        let reads = self.reads();
        self.engine.handle(&self.journal, &reads, command, None, self.now)
    }

    fn ask<T: 'static>(&mut self, command: &Command) -> Result<T, Error> {
        let reply = self.send(command).reply.unwrap()?;
        Ok(*reply.downcast::<T>().unwrap())
    }

    fn set(&mut self, spec: ScheduleSpec) -> SetReply {
        self.ask(&Command::Set(Box::new(SetRequest { name: name(), spec, replace: false }), Role::Operate))
            .unwrap()
    }

    fn view(&mut self) -> ScheduleView {
        self.ask(&Command::Get(NameRequest { name: name() })).unwrap()
    }

    fn trigger(&mut self, idem: &str) -> Result<TriggerReply, Error> {
        self.ask(&Command::Trigger(TriggerRequest {
            name: name(),
            idem: Some(idem.into()),
            reason: String::new(),
        }))
    }

    /// The clock goes on, or back; and the timer of the shell would have run out.
    fn at(&mut self, now: Timestamp) -> Vec<String> {
        self.now = now;
        let reads = self.reads();
        let step = self.engine.fold_new(&self.journal, &reads, now);
        step.records.iter().filter_map(|record| tick_text(record)).collect()
    }

    fn after_ms(&mut self, ms: u64) -> Vec<String> {
        self.at(self.now.plus_ms(ms))
    }

    fn foreign(&mut self, event: impl Event) -> Vec<String> {
        let append =
            Append { events: vec![event.into()], at: self.now, cause: None, folded: Seq(0), folds: &[] };
        self.journal.append(&append).unwrap();
        self.at(self.now)
    }

    /// The DAG tracker starts what is owed.
    fn start_runs(&mut self) -> Vec<RunId> {
        let owed: Vec<_> = self.engine.outstanding().values().cloned().collect();
        let keys = owed.into_iter().filter_map(|effect| match effect {
            Effect::Start { key, .. } => Some(key),
            Effect::Cancel { .. } => None,
        });
        let mut started = Vec::new();
        for key in keys.collect::<Vec<_>>() {
            self.runs += 1;
            let run: RunId = format!("r{}", self.runs).parse().unwrap();
            self.foreign(RunStarted {
                run: run.clone(),
                flow: flow(),
                parameters: BTreeMap::new(),
                seed: 0,
                content: String::new(),
                environment: "e".parse().unwrap(),
                tenant: "t".parse().unwrap(),
                idem: Some(key),
                no_cache: false,
                rerun_of: None,
                trace: None,
            });
            started.push(run);
        }
        started
    }

    fn finish(&mut self, run: &RunId, state: RunState) -> Vec<String> {
        self.foreign(RunFinished { run: run.clone(), state, error: None, summary: None })
    }

    fn answer(&mut self, outcome: Result<Answer, Error>) {
        let first = self.engine.outstanding().values().next().cloned();
        let Some(Effect::Start { name, n, key, .. }) = first else { panic!("nothing is started: {first:?}") };
        self.send(&Command::Answered(Box::new(Answered { name, n, key, outcome })));
    }

    /// What a kernel that starts now would know.
    fn replayed(&self) -> Engine<Scheduler> {
        let mut engine = Engine::new(Scheduler::default());
        engine.recover(&self.journal).unwrap();
        engine
    }
}

fn name() -> ScheduleName {
    "nightly".parse().unwrap()
}

fn flow() -> FlowSpec {
    FlowSpec {
        schema: String::new(),
        name: "flow".into(),
        description: String::new(),
        code: "/".into(),
        code_hash: String::new(),
        source: None,
        environment: EnvironmentSpec::default(),
        parameters: BTreeMap::new(),
        tasks: BTreeMap::new(),
        result: None,
        cache: None,
    }
}

fn run_action() -> Action {
    Action::Run { flow: Box::new(flow()), set: BTreeMap::new(), tenant: None }
}

fn call_action() -> Action {
    Action::Call { operation: "run.list".into(), request: serde_json::json!({}), deadline_ms: 1_000 }
}

fn every_minute() -> ScheduleSpec {
    let trigger = Trigger::Every { every_ms: MINUTE, anchor: Timestamp(0) };
    ScheduleSpec { grace_ms: Some(10_000), ..ScheduleSpec::new(trigger, run_action()) }
}

fn with_overlap(overlap: Overlap) -> ScheduleSpec {
    ScheduleSpec { overlap: Some(overlap), ..every_minute() }
}

fn with_misfire(misfire: Misfire) -> ScheduleSpec {
    ScheduleSpec { misfire: Some(misfire), overlap: Some(Overlap::Allow { max: 64 }), ..every_minute() }
}

/// `fired +1` of the tick one minute after the beginning.
fn tick_text(record: &Record) -> Option<String> {
    let place = |tick: &TickView| {
        let minutes = |at: Timestamp| (at.0 as i64 - BEGIN.0 as i64) / MINUTE as i64;
        let last = tick.last.map(|last| format!("..{}", minutes(last))).unwrap_or_default();
        format!("+{}{last}", minutes(tick.scheduled))
    };
    let word = |reason: Option<SkipReason>| format!("{:?}", reason.unwrap()).to_lowercase();
    if let Some(event) = record.event::<TickFired>() {
        Some(format!("fired {}", place(&event.tick)))
    } else if let Some(event) = record.event::<TickQueued>() {
        Some(format!("queued {}", place(&event.tick)))
    } else if let Some(event) = record.event::<TickSkipped>() {
        Some(format!("{} {}", word(event.tick.skipped), place(&event.tick)))
    } else if let Some(event) = record.event::<TickCancelling>() {
        Some(format!("cancelling #{}", event.n))
    } else {
        let event = record.event::<TickEnded>()?;
        Some(format!("{:?} {}", event.tick.state, place(&event.tick)).to_lowercase())
    }
}

#[test]
fn a_tick_fires_at_its_instant_and_its_run_is_followed_to_its_end() {
    let mut world = World::with(every_minute());
    assert!(world.after_ms(MINUTE - 1).is_empty(), "too early");
    assert_eq!(world.engine.wake_at(), Some(BEGIN.plus_ms(MINUTE)));
    assert_eq!(world.after_ms(1), ["fired +1"]);
    let owed = world.engine.outstanding().values().next().cloned();
    assert!(
        matches!(&owed, Some(Effect::Start { key, .. }) if *key == format!("schedule:nightly:{}", BEGIN.plus_ms(MINUTE))),
        "{owed:?}"
    );
    let run = world.start_runs().remove(0);
    assert!(world.engine.outstanding().is_empty(), "a folded start is an answer");
    assert_eq!(world.view().live.first().and_then(|tick| tick.run.clone()), Some(run.clone()));
    assert_eq!(world.finish(&run, RunState::Succeeded), ["succeeded +1"]);
    let view = world.view();
    assert!(view.live.is_empty() && view.why.is_empty(), "{view:?}");
    assert_eq!(view.counts, BTreeMap::from([(TickState::Succeeded, 1)]));
    assert_eq!(world.after_ms(MINUTE), ["fired +2"]);
}

#[test]
fn what_was_missed_follows_the_misfire_policy() {
    // Down from +0:30 to +5:30: of +1 … +5, each is late, because the grace is ten seconds.
    for (misfire, expected) in [
        (Misfire::Skip {}, vec!["missed +1..5"]),
        (Misfire::RunOnce {}, vec!["missed +1..4", "fired +5"]),
        (Misfire::RunAll { max: 2 }, vec!["missed +1..3", "fired +4", "fired +5"]),
        (Misfire::RunAll { max: 5 }, vec!["fired +1", "fired +2", "fired +3", "fired +4", "fired +5"]),
        (Misfire::RunAll { max: 100 }, vec!["fired +1", "fired +2", "fired +3", "fired +4", "fired +5"]),
    ] {
        let mut world = World::with(with_misfire(misfire));
        assert_eq!(world.after_ms(5 * MINUTE + 30_000), expected, "{misfire:?}");
        assert!(world.after_ms(0).is_empty(), "{misfire:?}: nothing twice");
    }
}

#[test]
fn an_instant_within_the_grace_is_no_misfire_and_makes_up_for_earlier_ones() {
    // At +3:05, +3 is five seconds late.
    for (misfire, expected) in [
        (Misfire::Skip {}, vec!["missed +1..2", "fired +3"]),
        (Misfire::RunOnce {}, vec!["missed +1..2", "fired +3"]),
        (Misfire::RunAll { max: 1 }, vec!["missed +1", "fired +2", "fired +3"]),
    ] {
        let mut world = World::with(with_misfire(misfire));
        assert_eq!(world.after_ms(3 * MINUTE + 5_000), expected, "{misfire:?}");
    }
}

#[test]
fn a_month_of_misses_is_one_record_with_its_count() {
    let second = Trigger::Cron { cron: "* * * * * *".into() };
    let mut world = World::with(ScheduleSpec { trigger: second, ..with_misfire(Misfire::Skip {}) });
    world.at(BEGIN.plus_ms(30 * 24 * 3_600_000 - 500));
    let last = world.view().last.unwrap();
    assert_eq!((last.skipped, last.count, last.at_least), (Some(SkipReason::Missed), 10_000, true));
    let mut world = World::with(with_misfire(Misfire::Skip {}));
    world.at(BEGIN.plus_ms(30 * 24 * 3_600_000 + 30_000));
    let last = world.view().last.unwrap();
    assert_eq!((last.count, last.at_least), (30 * 24 * 60, false), "an interval is counted without walking");
}

#[test]
fn a_start_that_is_refused_is_recorded_with_its_error() {
    let mut world = World::with(every_minute());
    world.after_ms(MINUTE);
    world.answer(Err(Error::invalid("flow.cycle", "a needs b, and b needs a")));
    let view = world.view();
    assert_eq!(view.last.unwrap().error.unwrap().reason, "flow.cycle");
    assert!(view.live.is_empty());
    assert_eq!(world.after_ms(MINUTE), ["fired +2"], "it does not keep the next one back");
}

#[test]
fn a_clock_that_is_put_back_fires_nothing_twice() {
    let mut world = World::with(with_overlap(Overlap::Allow { max: 64 }));
    assert_eq!(world.after_ms(2 * MINUTE), ["missed +1", "fired +2"]);
    assert!(world.at(BEGIN).is_empty());
    assert!(world.view().why.join("\n").contains("the clock was put back"));
    assert!(world.at(BEGIN.plus_ms(MINUTE)).is_empty());
    assert!(world.at(BEGIN.plus_ms(2 * MINUTE)).is_empty());
    assert_eq!(world.after_ms(MINUTE), ["fired +3"]);
}

#[test]
fn what_was_due_while_it_was_paused_is_skipped_in_one_record() {
    let mut world = World::with(every_minute());
    let pause = Command::Pause(ActRequest { name: name(), reason: "maintenance".into() });
    world.send(&pause);
    assert_eq!(world.engine.wake_at(), None);
    assert!(world.after_ms(3 * MINUTE + 1).is_empty());
    let view = world.view();
    assert_eq!(view.state, ScheduleState::Paused);
    assert!(view.why.join("\n").contains("maintenance"), "{:?}", view.why);
    let step = world.send(&Command::Resume(act()));
    let seen: Vec<_> = step.records.iter().filter_map(|record| tick_text(record)).collect();
    assert_eq!(seen, ["paused +1..3"]);
    assert_eq!(world.after_ms(MINUTE), ["fired +4"]);
}

#[test]
fn a_paused_schedule_lets_nothing_out_of_its_queue() {
    let mut world = World::with(with_overlap(Overlap::Queue { max: 5 }));
    world.after_ms(MINUTE);
    let run = world.start_runs().remove(0);
    assert_eq!(world.after_ms(MINUTE), ["queued +2"]);
    world.send(&Command::Pause(act()));
    assert_eq!(world.finish(&run, RunState::Succeeded), ["succeeded +1"]);
    let step = world.send(&Command::Resume(act()));
    let seen: Vec<_> = step.records.iter().filter_map(|record| tick_text(record)).collect();
    assert_eq!(seen, ["fired +2"]);
}

#[test]
fn equal_content_is_the_same_schedule_and_other_content_needs_to_be_meant() {
    let mut world = World::new();
    assert_eq!(world.set(every_minute()).change, Change::Created);
    let complete = world.view().spec;
    assert_eq!(world.set(every_minute()).change, Change::Unchanged);
    assert_eq!(world.set(complete).change, Change::Unchanged, "what was filled in may be said");
    let other = with_overlap(Overlap::Allow { max: 2 });
    let set = |replace| {
        let request = SetRequest { name: name(), spec: other.clone(), replace };
        Command::Set(Box::new(request), Role::Admin)
    };
    let refused = world.ask::<SetReply>(&set(false)).unwrap_err();
    assert!(refused.code == Code::Conflict && refused.help.is_some_and(|help| help.contains("--replace")));
    world.now = world.now.plus_ms(MINUTE);
    assert_eq!(world.ask::<SetReply>(&set(true)).unwrap().change, Change::Replaced);
    let view = world.view();
    assert_eq!(view.last.unwrap().skipped, Some(SkipReason::Replaced), "what was due is not lost silently");
    assert_eq!(view.role, Role::Operate, "no schedule has more rights than this");
    assert_eq!(world.after_ms(MINUTE), ["fired +2"]);
}

#[test]
fn a_trigger_fires_once_for_its_key_whatever_the_schedule_does() {
    let mut world = World::with(every_minute());
    world.send(&Command::Pause(act()));
    let first = world.trigger("a").unwrap();
    assert_eq!(first.state, TickState::Starting);
    assert_eq!(world.trigger("a").unwrap(), first, "the same key again");
    let refused = world.trigger("b").unwrap_err();
    assert!(refused.code == Code::Precondition && refused.message.contains("tick 0"), "{refused}");
    assert_eq!(world.engine.outstanding().len(), 1);
    world.send(&Command::Resume(act()));
    let run = world.start_runs().remove(0);
    world.finish(&run, RunState::Succeeded);
    assert_eq!(world.trigger("b").unwrap().n, 1);
}

#[test]
fn triggers_within_a_millisecond_have_names_of_their_own() {
    let mut world = World::with(with_overlap(Overlap::Allow { max: 3 }));
    for key in ["a", "b", "c"] {
        world.trigger(key).unwrap();
    }
    let keys: BTreeSet<_> = world.view().live.iter().map(TickView::key).collect();
    assert_eq!(keys.len(), 3, "{keys:?}");
}

#[test]
fn a_one_shot_is_done_after_its_instant() {
    let at = Trigger::At { at: "2026-11-21T10:01:00Z".into() };
    let mut world = World::with(ScheduleSpec { trigger: at.clone(), ..every_minute() });
    assert_eq!(world.after_ms(MINUTE), ["fired +1"]);
    let run = world.start_runs().remove(0);
    world.finish(&run, RunState::Succeeded);
    let view = world.view();
    assert_eq!((view.state, view.next), (ScheduleState::Done, None));
    assert_eq!(world.set(ScheduleSpec { trigger: at.clone(), ..every_minute() }).change, Change::Unchanged);
    let spec = ScheduleSpec { trigger: at, ..every_minute() };
    let late = SetRequest { name: "late".parse().unwrap(), spec, replace: false };
    let refused = world.ask::<SetReply>(&Command::Set(Box::new(late), Role::Operate)).unwrap_err();
    assert_eq!(refused.reason, "schedule.past");
}

#[test]
fn a_removed_schedule_leaves_nothing_behind() {
    let mut world = World::with(with_overlap(Overlap::Queue { max: 5 }));
    world.after_ms(MINUTE);
    world.start_runs();
    world.after_ms(MINUTE);
    world.trigger("a").unwrap();
    world.send(&Command::Remove(act()));
    assert_eq!(world.engine.digest(), Scheduler::default().digest(&State::default()));
    assert!(world.finish(&"r1".parse().unwrap(), RunState::Succeeded).is_empty());
    let refused = world.ask::<ScheduleView>(&Command::Get(NameRequest { name: name() })).unwrap_err();
    assert_eq!(refused.code, Code::NotFound);
}

#[test]
fn a_preview_changes_nothing_and_shows_what_will_fire() {
    let mut world = World::with(every_minute());
    let before = world.engine.digest();
    let request = NextRequest { name: Some(name()), spec: None, n: 2, after: None };
    let stored: NextReply = world.ask(&Command::Next(Box::new(request.clone()))).unwrap();
    let unsaved = NextRequest { name: None, spec: Some(every_minute()), ..request };
    let unsaved: NextReply = world.ask(&Command::Next(Box::new(unsaved))).unwrap();
    assert_eq!(stored, unsaved);
    assert_eq!(stored.ticks[1].utc, "2026-11-21T10:02:00+00:00");
    assert_eq!(world.engine.digest(), before);
}

#[test]
fn a_call_whose_arguments_name_shared_memory_is_refused() {
    let segment = serde_json::json!({"arena": 1, "offset": 0, "length": 64, "generation": 1});
    let set = |part: serde_json::Value| {
        let request = serde_json::json!({"function": "m:f", "arguments": {"parts": [part]}});
        let action = Action::Call { operation: "pool.call".into(), request, deadline_ms: 1_000 };
        let spec = ScheduleSpec { action, ..every_minute() };
        let request = SetRequest { name: name(), spec, replace: false };
        World::new().ask::<SetReply>(&Command::Set(Box::new(request), Role::Operate))
    };
    let refused = set(serde_json::json!({"codec": "npy", "segment": segment})).unwrap_err();
    assert_eq!(refused.reason, "schedule.segment");
    assert!(set(serde_json::json!({"codec": "npy", "segment": null, "data": {"$b64": ""}})).is_ok());
}

#[test]
fn a_flow_that_no_record_can_carry_is_refused() {
    let mut flow = flow();
    flow.description = "x".repeat(60_000);
    let action = Action::Run { flow: Box::new(flow), set: BTreeMap::new(), tenant: None };
    let request =
        SetRequest { name: name(), spec: ScheduleSpec { action, ..every_minute() }, replace: false };
    let refused = World::new().ask::<SetReply>(&Command::Set(Box::new(request), Role::Operate)).unwrap_err();
    assert_eq!(refused.reason, "schedule.too_large");
}

#[test]
fn a_step_looks_only_at_what_is_due() {
    let mut world = World::new();
    for i in 0..2_000 {
        let trigger = Trigger::Every { every_ms: 10 * MINUTE, anchor: Timestamp(i * 250) };
        let request = SetRequest {
            name: format!("s{i}").parse().unwrap(),
            spec: ScheduleSpec { trigger, ..every_minute() },
            replace: false,
        };
        world.ask::<SetReply>(&Command::Set(Box::new(request), Role::Operate)).unwrap();
    }
    assert_eq!(world.engine.state().index.due.len(), 2_000);
    // Anchors are spread over 500 s: those of the first second are due at once, and no other.
    let first = world.engine.wake_at().unwrap();
    assert_eq!(world.at(first.plus_ms(999)).len(), 4);
    assert_eq!(world.engine.wake_at(), Some(first.plus_ms(1_000)));
}

#[test]
fn history_keeps_the_latest_ticks_and_forgets_with_the_schedule() {
    let mut world = World::with(every_minute());
    for _ in 0..200 {
        world.after_ms(MINUTE);
    }
    let mut rows = BTreeMap::new();
    let fold = |world: &World, rows: &mut BTreeMap<Vec<u8>, Vec<u8>>| {
        rows.clear();
        for record in &world.journal.after(Seq(0), Scheduler::FOLDS).records {
            let mut changes: Vec<RowChange> = Vec::new();
            crate::rows::project(record, &mut changes);
            for change in changes {
                match change.value {
                    Some(value) => _ = rows.insert(change.key, value),
                    None => _ = rows.remove(&change.key),
                }
            }
        }
    };
    fold(&world, &mut rows);
    assert_eq!(rows.len(), crate::rows::TICKS_KEPT as usize);
    let mut reads = world.reads();
    reads.insert(crate::rows::history(&name()), rows.clone().into_iter().collect());
    let command = Command::History(HistoryRequest { name: name(), limit: 3 });
    let step = world.engine.handle(&world.journal, &reads, &command, None, world.now);
    let reply = step.reply.unwrap().unwrap().downcast::<HistoryReply>().unwrap();
    let shown: Vec<_> = reply.ticks.iter().map(|tick| (tick.n, tick.state)).collect();
    assert_eq!(shown, [(199, TickState::Skipped), (198, TickState::Skipped), (197, TickState::Skipped)]);
    world.send(&Command::Remove(act()));
    fold(&world, &mut rows);
    assert!(rows.is_empty());
}
