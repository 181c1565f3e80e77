//! Quick attempts wait at a busy worker.

use super::cases::world;
use super::*;

/// A world whose one worker has computed `load[0]`, which took no time.
fn learned() -> World {
    let mut world = world(1);
    let wish = world.wish("r", "load[0]");
    world.dispatch(&wish);
    world.bring_up();
    let attempt = world.executing().pop().unwrap();
    world.commit(&attempt);
    world
}

/// The same with more of it to do than the worker takes, and what it was given.
fn crowded() -> (World, Vec<(WorkerId, TaskRef, Fence)>) {
    let mut world = learned();
    for n in 1..=8 {
        let wish = world.wish("r", &format!("load[{n}]"));
        world.dispatch(&wish);
    }
    let given = world.executing();
    (world, given)
}

fn tasks_of(attempts: &[(WorkerId, TaskRef, Fence)]) -> Vec<String> {
    attempts.iter().map(|(_, task, _)| task.task.to_string()).collect()
}

#[test]
fn quick_attempts_wait_at_a_busy_worker_so_that_it_need_not() {
    let (mut world, given) = crowded();
    assert_eq!(tasks_of(&given), ["load[1]", "load[2]", "load[3]", "load[4]", "load[5]"]);
    world.commit(&given[0]);
    assert_eq!(tasks_of(&world.executing()), ["load[2]", "load[3]", "load[4]", "load[5]", "load[6]"]);
    world.check();
}

#[test]
fn nothing_waits_behind_what_takes_long_or_is_not_known_to_be_quick() {
    let (mut world, given) = crowded();
    world.wait(AHEAD_PATIENCE_MS);
    world.commit(&given[1]);
    assert_eq!(tasks_of(&world.executing()), ["load[1]", "load[3]", "load[4]", "load[5]"]);
    // It took long, so that it is not quick any more.
    world.commit(&given[0]);
    assert_eq!(tasks_of(&world.executing()), ["load[3]", "load[4]", "load[5]"]);
    world.check();
}

#[test]
fn what_has_a_time_out_or_needs_a_lease_waits_in_line() {
    let mut world = learned();
    let first = world.wish("r", "load[1]");
    world.dispatch(&first);
    let mut limited = world.wish("r", "load[2]");
    limited.execute.timeout_ms = Some(1_000);
    world.dispatch(&limited);
    assert_eq!(tasks_of(&world.executing()), ["load[1]"]);
    // It is its turn, so nothing overtakes it either.
    let next = world.wish("r", "load[3]");
    world.dispatch(&next);
    assert_eq!(tasks_of(&world.executing()), ["load[1]"]);
    world.check();
}

#[test]
fn a_death_costs_the_attempt_that_was_computed_and_gives_the_others_back() {
    let (mut world, given) = crowded();
    world.down(&given[0].0, Death::Killed { signal: 9, sender: None });
    assert_eq!(world.count("attempt.stopped"), 4);
    let died = world.journal.after(Seq(0), &[WorkerDied::KIND]).records.pop().unwrap();
    let died = died.event::<WorkerDied>().unwrap();
    assert_eq!((died.fence, died.certificate.task.clone()), (Some(given[0].2), Some(given[0].1.clone())));
    world.check();
}

#[test]
fn what_a_worker_gives_back_is_stopped_and_the_rest_stays() {
    let (mut world, given) = crowded();
    let (worker, _, fence) = given[2].clone();
    world.wait(AHEAD_PATIENCE_MS);
    world.send(&Command::WorkerIdle(pool::WorkerIdleRequest { worker, fence }));
    assert_eq!(tasks_of(&world.executing()), ["load[1]", "load[2]", "load[4]", "load[5]"]);
    world.check();
}
