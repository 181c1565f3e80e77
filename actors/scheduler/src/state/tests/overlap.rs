//! A tick that meets an earlier one, and what actions come to.

use super::*;

#[test]
fn a_tick_that_meets_an_earlier_one_follows_the_overlap_policy() {
    let third_minute = |overlap| {
        let mut world = World::with(with_overlap(overlap));
        let mut seen = Vec::new();
        for _ in 0..3 {
            seen.extend(world.after_ms(MINUTE));
            world.start_runs();
        }
        (seen, world)
    };
    for (overlap, expected) in [
        (Overlap::Skip {}, vec!["fired +1", "overlap +2", "overlap +3"]),
        (Overlap::Queue { max: 1 }, vec!["fired +1", "queued +2", "queuefull +3"]),
        (Overlap::Queue { max: 2 }, vec!["fired +1", "queued +2", "queued +3"]),
        (Overlap::Allow { max: 2 }, vec!["fired +1", "fired +2", "overlap +3"]),
    ] {
        let (seen, world) = third_minute(overlap);
        assert_eq!(seen, expected, "{overlap:?}");
        assert_eq!(world.replayed().digest(), world.engine.digest(), "{overlap:?}");
    }
    let (_, mut world) = third_minute(Overlap::Queue { max: 2 });
    assert_eq!(world.finish(&"r1".parse().unwrap(), RunState::Failed), ["failed +1", "fired +2"]);
    let why = world.view().why.join("\n");
    assert!(why.contains("1 wait for what is under way") && why.contains("failed"), "{why}");
}

#[test]
fn a_skipped_tick_names_the_run_that_was_in_the_way() {
    let mut world = World::with(with_overlap(Overlap::Skip {}));
    world.after_ms(MINUTE);
    let run = world.start_runs().remove(0);
    world.after_ms(MINUTE);
    let last = world.view().last.unwrap();
    assert_eq!(last.why, format!("run {run} of tick 0 had not ended"));
}

#[test]
fn a_later_tick_cancels_the_run_before_it_and_fires_when_that_has_ended() {
    let mut world = World::with(with_overlap(Overlap::CancelPrevious {}));
    world.after_ms(MINUTE);
    let run = world.start_runs().remove(0);
    assert_eq!(world.after_ms(MINUTE), ["queued +2", "cancelling #0"]);
    let cancels = |world: &World| {
        let owed = world.engine.outstanding().values();
        owed.filter(|effect| matches!(effect, Effect::Cancel { run: owed, .. } if *owed == run)).count()
    };
    assert_eq!(cancels(&world), 1);
    assert_eq!(world.after_ms(MINUTE), ["superseded +2", "queued +3"], "only the latest waits");
    assert_eq!(cancels(&world), 1, "it is canceled once");
    assert_eq!(world.finish(&run, RunState::Cancelled), ["cancelled +1", "fired +3"]);
    assert_eq!(cancels(&world), 0);
}

#[test]
fn a_run_that_has_not_started_is_canceled_once_it_has() {
    let mut world = World::with(with_overlap(Overlap::CancelPrevious {}));
    world.after_ms(MINUTE);
    assert_eq!(world.after_ms(MINUTE), ["queued +2", "cancelling #0"]);
    assert!(matches!(world.engine.outstanding().values().next(), Some(Effect::Start { .. })));
    let run = world.start_runs().remove(0);
    let owed: Vec<_> = world.engine.outstanding().values().cloned().collect();
    assert_eq!(owed, [Effect::Cancel { run, name: name() }]);
}

#[test]
fn a_later_tick_gives_up_the_call_before_it_at_once() {
    let spec = ScheduleSpec { action: call_action(), ..with_overlap(Overlap::CancelPrevious {}) };
    let mut world = World::with(spec);
    world.after_ms(MINUTE);
    assert_eq!(world.after_ms(MINUTE), ["queued +2", "cancelled +1", "fired +2"]);
    assert_eq!(world.engine.outstanding().len(), 1, "the call of the first is owed no more");
}

#[test]
fn a_call_ends_with_its_answer_or_its_refusal() {
    let mut world = World::with(ScheduleSpec { action: call_action(), ..every_minute() });
    world.after_ms(MINUTE);
    world.answer(Ok(Answer::Reply(serde_json::json!({"runs": []}))));
    world.after_ms(MINUTE);
    world.answer(Err(Error::not_found("run.unknown", "there is no such run")));
    let view = world.view();
    assert_eq!(view.counts, BTreeMap::from([(TickState::Succeeded, 1), (TickState::Failed, 1)]));
    assert!(view.why.join("\n").contains("there is no such run"), "{:?}", view.why);
    assert!(world.engine.outstanding().is_empty());
}

#[test]
fn an_answer_to_what_is_over_changes_nothing() {
    let mut world = World::with(every_minute());
    world.after_ms(MINUTE);
    let run = world.start_runs().remove(0);
    let before = world.engine.digest();
    let key = format!("schedule:nightly:{}", BEGIN.plus_ms(MINUTE));
    let late =
        |outcome| Command::Answered(Box::new(Answered { name: name(), n: 0, key: key.clone(), outcome }));
    for outcome in [Ok(Answer::Run(run)), Err(Error::internal("x", "x"))] {
        world.send(&late(outcome));
        assert_eq!(world.engine.digest(), before);
    }
}
