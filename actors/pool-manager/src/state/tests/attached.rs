//! Workers that were started by hand: preferred, counted nowhere, ended by nobody, and not blamed on tasks.

use super::*;

const DISCONNECTED: &str = "the worker closed it";

fn disconnected() -> Death {
    Death::Disconnected { text: DISCONNECTED.into() }
}

fn world() -> World {
    let mut world = World::new(PoolOptions { recycle_age_ms: 1_000, ..PoolOptions::new(1) });
    world.run("r", "t", "e");
    world
}

#[test]
fn one_that_was_started_by_hand_is_given_work_at_once_and_needs_no_environment() {
    let mut world = world();
    let by_hand = world.attach("a-1-1", "e");
    let wish = world.wish("r", "load");
    world.dispatch(&wish);
    let (worker, task, _) = world.executing().pop().unwrap();
    assert_eq!((worker, task.task.as_str()), (by_hand, "load"));
    assert_eq!(world.count(WorkerRequested::KIND), 0);
    world.check();
}

#[test]
fn it_is_preferred_to_the_pools_own_and_takes_no_place_of_theirs() {
    let mut world = world();
    let by_hand = world.attach("a-1-1", "e");
    for task in ["load", "train"] {
        let wish = world.wish("r", task);
        world.dispatch(&wish);
    }
    world.bring_up();
    let executing = world.executing();
    let at_work: Vec<_> = executing.iter().map(|(worker, ..)| worker.as_str()).collect();
    assert_eq!(at_work, ["a-1-1", "w-1-1"], "the pool's one place is still free");
    executing.iter().for_each(|attempt| drop(world.commit(attempt)));
    let next = world.wish("r", "report");
    world.dispatch(&next);
    assert_eq!(world.executing().pop().unwrap().0, by_hand);
    world.check();
}

#[test]
fn it_gets_nothing_of_another_environment_and_makes_no_room_for_it() {
    let mut world = world();
    let by_hand = world.attach("a-1-1", "other");
    let wish = world.wish("r", "load");
    world.dispatch(&wish);
    world.bring_up();
    assert_ne!(world.executing().pop().unwrap().0, by_hand);
    assert_eq!(world.count(WorkerStopping::KIND), 0);
    world.check();
}

#[test]
fn nobody_ends_it_for_being_idle_or_old() {
    let mut world = world();
    world.attach("a-1-1", "e");
    world.wait(3_600_000);
    assert_eq!((world.engine.wake_at(), world.count(WorkerStopping::KIND)), (None, 0));
    world.check();
}

#[test]
fn with_its_connection_its_attempt_is_lost_and_that_is_held_against_no_task() {
    let mut world = world();
    for n in 1..=5 {
        let by_hand = world.attach(&format!("a-1-{n}"), "e");
        let wish = world.wish("r", "load");
        world.dispatch(&wish);
        let attempt = world.executing().pop().unwrap();
        world.down(&by_hand, disconnected());
        let died = world.journal.after(Seq(0), &[WorkerDied::KIND]).records.pop().unwrap();
        let died = died.event::<WorkerDied>().unwrap();
        assert_eq!((died.fence, died.wanted), (Some(attempt.2), false));
        assert_eq!(died.certificate.death.to_string(), format!("its connection ended: {DISCONNECTED}"));
    }
    assert_eq!(world.count(TaskQuarantined::KIND), 0);
    world.check();
}

#[test]
fn the_next_kernel_does_not_wait_for_it() {
    let mut world = world();
    world.attach("a-1-1", "e");
    let mut next = world.restart();
    next.send(&Command::Survivors { live: BTreeSet::new(), reserved: Vec::new() });
    assert!(next.engine.state().workers.is_empty());
    next.check();
}
