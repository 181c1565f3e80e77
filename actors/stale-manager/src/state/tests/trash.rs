//! On the way into the trash, back from it, and out of it for good.

use super::*;

#[test]
fn what_is_named_again_while_it_is_in_the_trash_comes_back_by_itself() {
    let mut world = World::new(options());
    world.put("artifact/d", 5, 50);
    assert_eq!(world.apply().decided, 1);
    world.begin("live");
    world.commit("live", "d");
    assert_eq!(world.trashed(), [""; 0]);
    world.perform();
    world.perform();
    assert!(world.engine.state().kept.is_empty(), "{:?}", world.engine.state().kept);
    assert!(world.engine.outstanding().is_empty());
}

#[test]
fn a_result_that_is_used_again_holds_its_objects_as_one_that_was_computed_does() {
    let mut world = World::new(options());
    world.put("artifact/d", 5, 50);
    assert_eq!(world.apply().decided, 1);
    world.begin("live");
    world.reuse("live", "d");
    world.perform();
    world.perform();
    assert!(world.engine.state().kept.is_empty(), "{:?}", world.engine.state().kept);
    assert_eq!(world.apply().decided, 0);
}

#[test]
fn an_item_that_could_not_be_moved_is_as_if_it_had_not_been_collected() {
    for moved in [
        Moved::Kept { why: "in use".into() },
        Moved::Failed { error: Error::internal("gc.io", "no".to_owned()) },
        Moved::Gone,
    ] {
        let mut world = World::new(options());
        world.put("artifact/d", 5, 50);
        world.apply();
        let (effect, _) =
            world.engine.outstanding().iter().next().map(|(id, work)| (*id, work.clone())).unwrap();
        let item: Item = "artifact/d".parse().unwrap();
        let done = Done { effect, item, outcome: Outcome::Moved { moved, erased: Vec::new() } };
        world.send(&Command::Done(vec![done.clone()]));
        // Said once more, as after a lost answer.
        world.send(&Command::Done(vec![done]));
        let state = world.engine.state();
        assert!(state.kept.is_empty() && world.engine.outstanding().is_empty());
        assert_eq!(world.replayed(), world.engine.digest());
    }
}

#[test]
fn with_one_survey_an_item_is_collected_once_whatever_became_of_it() {
    for (name, moved) in [
        ("kept", Moved::Kept { why: "in use".into() }),
        ("failed", Moved::Failed { error: Error::internal("gc.io", "no".to_owned()) }),
        ("gone", Moved::Gone),
        ("purged", Moved::Trashed),
    ] {
        let mut world = World::new(RetentionOptions { trash_grace_ms: 0, ..options() });
        world.put("artifact/d", 5, 50);
        assert_eq!(world.apply().decided, 1, "{name}");
        world.moved("artifact/d", moved);
        if name == "purged" {
            assert_eq!(world.apply().decided, 1, "its grace is over");
            world.moved("artifact/d", Moved::Purged { bytes: 5 });
        }
        assert_eq!(world.apply().decided, 0, "{name}: a pass would go on without end");
        // What is found later is looked at again.
        world.survey.as_of = world.engine.depends_on();
        assert_eq!(world.apply().decided, 1, "{name}");
        assert_eq!(world.replayed(), world.engine.digest());
    }
}

#[test]
fn the_trash_is_purged_when_its_grace_is_over_and_not_before() {
    let mut world = World::new(options());
    world.put("artifact/d", 5, 50);
    world.apply();
    world.perform();
    assert_eq!(named(&world.plan().items), []);
    world.now = world.now.plus_ms(10 * MINUTE);
    assert_eq!(named(&world.plan().items), [("artifact/d".to_owned(), Rule::Grace)]);
    world.apply();
    world.perform();
    assert_eq!(world.trashed(), [""; 0]);
    assert_eq!(world.restore("artifact/d").unwrap_err().reason, "gc.not_in_trash");
}

#[test]
fn a_run_that_is_restored_brings_what_only_it_named() {
    let runs = Limits { count_max: 0, ..NEVER };
    let mut world = World::new(RetentionOptions { runs, ..options() });
    world.put("run/old", 1, 50);
    world.put("artifact/d", 5, 50).named_by = vec!["old".parse().unwrap()];
    assert_eq!(world.apply().decided, 2);
    world.perform();
    let restored: Vec<_> = world.restore("run/old").unwrap().iter().map(Item::to_string).collect();
    assert_eq!(restored, ["run/old", "artifact/d"]);
    world.perform();
    assert!(world.engine.state().kept.is_empty());
}

/// A run in the trash, and on its way there what only that run had named.
fn half_collected(objects: &[&str]) -> World {
    let runs = Limits { count_max: 0, ..NEVER };
    let mut world = World::new(RetentionOptions { runs, ..options() });
    world.put("run/old", 1, 50);
    for object in objects {
        world.put(object, 5, 50).named_by = vec!["old".parse().unwrap()];
    }
    assert_eq!(world.apply().decided, 1 + objects.len() as u64);
    assert_eq!(world.trashed(), ["run/old"]);
    world
}

#[test]
fn a_run_comes_back_with_what_it_alone_had_named_or_not_yet() {
    // What becomes of the object, and what comes back with the run then.
    let failed = Moved::Failed { error: Error::internal("gc.io", "no".to_owned()) };
    for (moved, expected) in [
        (Moved::Trashed, vec!["run/old", "artifact/d"]),
        (Moved::Kept { why: "in use".into() }, vec!["run/old"]),
        (failed, vec!["run/old"]),
        (Moved::Gone, vec!["run/old"]),
    ] {
        let mut world = half_collected(&["artifact/d"]);
        let refused = world.restore("run/old").unwrap_err();
        assert_eq!(refused.reason, "gc.moving");
        assert!(refused.message.contains("artifact/d"), "{refused}");
        world.moved("artifact/d", moved.clone());
        let restored = world.restore("run/old").unwrap();
        assert_eq!(restored.iter().map(Item::to_string).collect::<Vec<_>>(), expected, "{moved:?}");
        world.perform();
        assert!(world.engine.state().kept.is_empty(), "{moved:?}");
        assert_eq!(world.replayed(), world.engine.digest());
    }
}

#[test]
fn a_run_that_is_pinned_in_the_trash_waits_for_what_is_on_its_way_and_is_not_purged() {
    let mut world = half_collected(&["artifact/d", "artifact/e"]);
    world.pin("old");
    let restoring = |world: &World| {
        let owed = world.engine.outstanding().values();
        owed.filter(|effect| matches!(effect, Effect::Restore { .. })).count()
    };
    world.perform_some(1);
    assert_eq!((restoring(&world), world.trashed().len()), (0, 2), "it waits for the other one");
    // Its time in the trash is over, and somebody empties it.
    world.now = world.now.plus_ms(10 * MINUTE);
    assert_eq!(named(&world.plan().items), []);
    assert_eq!(world.purge(None).unwrap(), 0);
    for item in ["run/old", "artifact/d"] {
        assert_eq!(world.purge(Some(item)).unwrap_err().reason, "gc.moving", "{item}");
    }
    world.perform();
    assert_eq!(restoring(&world), 3, "all come back");
    world.perform();
    assert!(world.engine.state().kept.is_empty(), "{:?}", world.engine.state().kept);
    assert_eq!(world.replayed(), world.engine.digest());
}
