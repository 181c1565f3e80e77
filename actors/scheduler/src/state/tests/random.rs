//! Whatever happens, in whatever order: every instant is fired once, or skipped with a reason.

use super::*;

/// Small, fast, and the same on every machine.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31) % sides
    }
}

fn any_spec(dice: &mut Dice) -> ScheduleSpec {
    let trigger = match dice.roll(3) {
        0 => Trigger::Every { every_ms: 700 + dice.roll(20_000), anchor: Timestamp(dice.roll(9_999)) },
        1 => Trigger::Cron { cron: "*/7 * * * * *".into() },
        _ => Trigger::Cron { cron: "13,37 */2 * * * *".into() },
    };
    let misfire = match dice.roll(3) {
        0 => Misfire::Skip {},
        1 => Misfire::RunOnce {},
        _ => Misfire::RunAll { max: 1 + dice.roll(5) as u32 },
    };
    let overlap = match dice.roll(4) {
        0 => Overlap::Skip {},
        1 => Overlap::Queue { max: 1 + dice.roll(4) as u32 },
        2 => Overlap::Allow { max: 1 + dice.roll(4) as u32 },
        _ => Overlap::CancelPrevious {},
    };
    let zone = ["UTC", "Europe/Berlin", "Australia/Lord_Howe"][dice.roll(3) as usize];
    ScheduleSpec {
        zone: Some(zone.into()),
        misfire: Some(misfire),
        overlap: Some(overlap),
        grace_ms: Some(dice.roll(20_000)),
        jitter_ms: if dice.roll(2) == 0 { 0 } else { dice.roll(3_000) },
        ..ScheduleSpec::new(trigger, run_action())
    }
}

fn any_step(world: &mut World, dice: &mut Dice, running: &mut Vec<RunId>) {
    match dice.roll(12) {
        // Down for a while.
        0 => _ = world.after_ms(dice.roll(120_000)),
        // Put back.
        1 => _ = world.at(Timestamp(world.now.0 - dice.roll(30_000))),
        2 | 3 => running.extend(world.start_runs()),
        4 | 5 if !running.is_empty() => {
            let run = running.remove(dice.roll(running.len() as u64) as usize);
            world.finish(&run, RunState::Succeeded);
        }
        6 => _ = world.send(&Command::Pause(act())),
        7 => _ = world.send(&Command::Resume(act())),
        8 => _ = world.trigger(&format!("{}", dice.roll(1_000))),
        _ => _ = world.after_ms(dice.roll(9_000)),
    }
}

#[test]
fn whatever_happens_every_instant_is_fired_once_or_skipped_with_a_reason() {
    for seed in 0..300 {
        let mut dice = Dice(seed);
        let spec = any_spec(&mut dice);
        let mut world = World::with(spec.clone());
        let mut running = Vec::new();
        for _ in 0..60 {
            any_step(&mut world, &mut dice, &mut running);
            let schedule = world.engine.state().schedule(&name()).unwrap();
            assert!(schedule.live.len() <= schedule.live_max(), "seed {seed}");
        }
        let (plan, _) = Plan::compile(&Zones::default(), &spec).unwrap();
        let through = world.engine.state().schedule(&name()).unwrap().through;
        check_ledger(seed, &world, &plan, through);
        assert_eq!(world.replayed().digest(), world.engine.digest(), "seed {seed}");
    }
}

/// Fired, skipped and still waiting are, together, the instants that there were.
fn check_ledger(seed: u64, world: &World, plan: &Plan, through: Timestamp) {
    let mut met: BTreeMap<Timestamp, &'static str> = BTreeMap::new();
    let mut keys = BTreeSet::new();
    let mut waiting = BTreeSet::new();
    for record in &world.journal.after(Seq(0), Scheduler::FOLDS).records {
        let (tick, what) = if let Some(event) = record.event::<TickFired>() {
            assert!(keys.insert(event.tick.key()), "seed {seed}: {} fired twice", event.tick.key());
            (event.tick.clone(), "fired")
        } else if let Some(event) = record.event::<TickSkipped>() {
            assert!(event.tick.skipped.is_some() && !event.tick.why.is_empty(), "seed {seed}");
            (event.tick.clone(), "skipped")
        } else {
            let queued = record.event::<TickQueued>();
            waiting.extend(queued.filter(|event| !event.tick.manual).map(|event| event.tick.scheduled));
            continue;
        };
        if tick.manual {
            continue;
        }
        let (mut at, last) = (tick.scheduled, tick.last.unwrap_or(tick.scheduled));
        let mut count = 0;
        loop {
            let before = met.insert(at, what);
            assert_eq!(before, None, "seed {seed}: {at} was {before:?} and is {what}");
            waiting.remove(&at);
            count += 1;
            match plan.next(at).filter(|due| due.at <= last) {
                Some(due) => at = due.at,
                None => break,
            }
        }
        assert!(tick.at_least || tick.count == count, "seed {seed}: {count} of {tick:?}");
    }
    let queue = &world.engine.state().schedule(&name()).unwrap().queue;
    let queued: BTreeSet<_> = queue.iter().filter(|tick| !tick.manual).map(|tick| tick.scheduled).collect();
    assert_eq!(waiting, queued, "seed {seed}");
    let mut instant = plan.next(BEGIN);
    while let Some(due) = instant.filter(|due| due.at <= through) {
        let is_met = met.contains_key(&due.at) || queued.contains(&due.at);
        assert!(is_met, "seed {seed}: {} was lost", due.at);
        instant = plan.next(due.at);
    }
}

#[test]
fn what_is_written_is_what_is_replayed() {
    let mut world = World::with(with_overlap(Overlap::CancelPrevious {}));
    for _ in 0..5 {
        world.after_ms(MINUTE);
        let runs = world.start_runs();
        world.after_ms(MINUTE / 2);
        runs.iter().for_each(|run| _ = world.finish(run, RunState::Failed));
    }
    let replayed = world.replayed();
    assert_eq!(replayed.digest(), world.engine.digest());
    assert_eq!(replayed.outstanding(), world.engine.outstanding());
}
