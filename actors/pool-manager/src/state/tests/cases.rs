//! Environments, workers, attempts and whose turn it is.

use super::*;

pub(super) fn world(workers_max: u32) -> World {
    let mut world = World::new(PoolOptions::new(workers_max));
    world.run("r", "t", "e");
    world
}

/// A world whose one worker computes `load` of run `r`.
pub(super) fn computing() -> (World, (WorkerId, TaskRef, Fence)) {
    let mut world = world(1);
    let wish = world.wish("r", "load");
    world.dispatch(&wish);
    world.bring_up();
    let attempt = world.executing().pop().unwrap();
    (world, attempt)
}

#[test]
fn a_wish_leads_through_environment_and_worker_to_an_attempt() {
    let (world, attempt) = computing();
    assert_eq!(
        world.kinds()[1..],
        [
            "environment.requested",
            "environment.ready",
            "worker.requested",
            "worker.started",
            "attempt.started"
        ]
    );
    let body = world.engine.core().bodies.take(attempt.2).unwrap();
    assert_eq!((body.fence, body.task.as_str()), (attempt.2, "load"));
    assert_eq!(attempt.2, Fence { epoch: Epoch(1), counter: 1 });
    world.check();
}

#[test]
fn a_warm_step_is_one_record_of_the_pool() {
    let (mut world, attempt) = computing();
    let next = world.wish("r", "train");
    world.dispatch(&next);
    let before = world.journal.marks().appended;
    let step = world.commit(&attempt);
    assert_eq!(world.journal.marks().appended, Seq(before.0 + 2));
    assert!(matches!(step.effects[..], [(_, Effect::Execute { .. })]));
    world.check();
}

#[test]
fn the_same_wish_again_starts_nothing_even_after_its_end() {
    let mut world = world(2);
    let wish = world.wish("r", "load");
    world.dispatch(&wish);
    world.dispatch(&wish);
    world.bring_up();
    world.dispatch(&wish);
    let attempt = world.executing().pop().unwrap();
    world.commit(&attempt);
    world.dispatch(&wish);
    assert_eq!(world.count("attempt.started"), 1);
    let mut again = wish;
    again.id.n += 1;
    world.dispatch(&again);
    assert_eq!(world.count("attempt.started"), 2);
    world.check();
}

#[test]
fn wishes_of_a_run_that_is_over_start_nothing() {
    for cancelled in [true, false] {
        let mut world = world(1);
        let wish = world.wish("r", "load");
        if cancelled {
            world.foreign(RunCancelling { run: "r".parse().unwrap(), reason: String::new() });
        } else {
            world.finish("r");
        }
        world.dispatch(&wish);
        world.bring_up();
        assert_eq!(world.count("attempt.started"), 0);
    }
}

#[test]
fn a_failed_attempt_frees_its_worker_only_when_the_worker_said_so() {
    let (mut world, attempt) = computing();
    let step = world.fail(&attempt, false);
    assert!(matches!(&step.effects[..], [(_, Effect::Cancel { fence, .. })] if *fence == attempt.2));
    assert!(world.executing().is_empty());
    let (worker, _, fence) = attempt;
    world.send(&Command::WorkerIdle(WorkerIdleRequest { worker, fence }));
    assert_eq!(world.count("attempt.stopped"), 1);
    assert!(world.engine.outstanding().is_empty());
    world.check();

    let (mut world, attempt) = computing();
    world.fail(&attempt, true);
    assert!(world.engine.outstanding().is_empty());
    world.check();
}

#[test]
fn cancelling_a_run_owes_the_cancel_of_its_attempts() {
    let (mut world, attempt) = computing();
    let waiting = world.wish("r", "train");
    world.dispatch(&waiting);
    let step = world.foreign(RunCancelling { run: "r".parse().unwrap(), reason: "enough".into() });
    assert!(matches!(step.effects[..], [(_, Effect::Cancel { .. })]));
    world.down(&attempt.0, Death::Killed { signal: 9, sender: None });
    world.bring_up();
    assert_eq!((world.count("attempt.started"), world.engine.outstanding().len()), (1, 0));
    world.check();
}

#[test]
fn a_certificate_names_the_task_that_died_with_its_worker() {
    let (mut world, attempt) = computing();
    let step = world.down(&attempt.0, Death::Killed { signal: 9, sender: None });
    let died = step.records.iter().find_map(|record| record.event::<WorkerDied>()).unwrap();
    assert_eq!((died.fence, died.wanted), (Some(attempt.2), false));
    assert_eq!((died.certificate.task.as_ref(), died.certificate.pid), (Some(&attempt.1), 42));
    assert_eq!(died.certificate.last_lines, ["a last word"]);
    // The same report again.
    assert!(world.down(&attempt.0, Death::Exited { code: 0 }).records.is_empty());
    world.check();
}

#[test]
fn launches_that_fail_in_a_row_fail_the_environment_with_the_last_words() {
    let mut world = world(1);
    let wish = world.wish("r", "load");
    world.dispatch(&wish);
    world.built("e");
    for failure in 1_u32..=3 {
        let worker = world.engine.state().workers.keys().next().unwrap().clone();
        world.down(&worker, Death::Start { text: "no such file".into() });
        let due = world.engine.wake_at();
        if failure < 3 {
            assert_eq!(due, Some(world.now.plus_ms(200 << (failure - 1))));
            world.wait(due.unwrap().since_ms(world.now));
        }
    }
    let failed = world.journal.after(Seq(0), &[EnvironmentFailed::KIND]).records;
    let error = failed[0].event::<EnvironmentFailed>().unwrap().error.clone();
    assert!(error.message.contains("no such file") && error.message.contains("a last word"), "{error}");
    assert!(world.engine.volatile().is_empty());
    // The old wish comes late; a newer one is another try.
    world.dispatch(&wish);
    assert_eq!(world.count("environment.requested"), 1);
    let newer = world.wish("r", "load");
    world.dispatch(&newer);
    assert_eq!(world.count("environment.requested"), 2);
    world.check();
}

#[test]
fn an_environment_that_cannot_be_built_fails_in_the_builders_words() {
    let mut world = world(1);
    let wish = world.wish("r", "load");
    world.dispatch(&wish);
    let error = Error::invalid("environment.resolve", "no matching distribution found for sckit");
    let environment = "e".parse().unwrap();
    let built = EnvironmentBuiltRequest { environment, python: None, error: Some(error.clone()) };
    world.send(&Command::EnvironmentBuilt(built.clone()));
    world.send(&Command::EnvironmentBuilt(built));
    assert_eq!(world.count("environment.failed"), 1);
    assert!(world.engine.outstanding().is_empty());
    world.check();
}

#[test]
fn survivors_are_adopted_and_the_others_are_declared_dead() {
    let mut before = world(2);
    for task in ["a", "b"] {
        let wish = before.wish("r", task);
        before.dispatch(&wish);
    }
    before.bring_up();
    let attempts = before.executing();
    let mut world = before.restart();
    let (lives, dies) = (&attempts[0], &attempts[1]);
    world.send(&Command::Survivors { live: BTreeSet::from([lives.0.clone()]), reserved: Vec::new() });
    let died = world.journal.after(Seq(0), &[WorkerDied::KIND]).records;
    assert_eq!(died[0].event::<WorkerDied>().unwrap().fence, Some(dies.2));
    let adopting = crate::view::workers(world.engine.state(), Epoch(2));
    assert!(adopting.iter().any(|view| view.worker == lives.0 && view.state == WorkerState::Adopting));
    // Nothing is given to it before it has been heard of.
    world.commit(lives);
    let wish = world.wish("r", "c");
    world.dispatch(&wish);
    assert_eq!(world.count("attempt.started"), 2);
    world.up(&lives.0);
    assert_eq!(world.executing()[0].2, Fence { epoch: Epoch(2), counter: 3 });
    world.check();
}

#[test]
fn a_worker_whose_holder_vanished_gets_a_moment_to_be_explained() {
    let (mut world, attempt) = computing();
    world.send(&Command::Survivors { live: BTreeSet::new(), reserved: Vec::new() });
    assert_eq!(world.count("worker.died"), 0);
    let due = world.engine.wake_at().unwrap();
    world.wait(due.since_ms(world.now));
    assert_eq!(world.count("worker.died"), 1);
    assert!(world.up(&attempt.0).reply.unwrap().is_err());
    world.check();
}

#[test]
fn an_idle_worker_ends_and_its_death_was_wanted() {
    let (mut world, attempt) = computing();
    world.commit(&attempt);
    let due = world.engine.wake_at().unwrap();
    assert_eq!(due, world.now.plus_ms(60_000));
    let step = world.wait(60_000);
    assert!(matches!(step.effects[..], [(_, Effect::Stop { .. })]));
    let step = world.down(&attempt.0, Death::Exited { code: 0 });
    assert!(step.records.iter().find_map(|record| record.event::<WorkerDied>()).unwrap().wanted);
    assert_eq!((world.engine.outstanding().len(), world.engine.wake_at()), (0, None));
    world.check();
}

#[test]
fn an_idle_worker_makes_room_for_another_environment() {
    let (mut world, attempt) = computing();
    world.commit(&attempt);
    world.run("s", "t", "other");
    let wish = world.wish("s", "load");
    world.dispatch(&wish);
    world.built("other");
    assert_eq!(world.count("worker.stopping"), 1);
    world.down(&attempt.0, Death::Exited { code: 0 });
    world.bring_up();
    assert_eq!(world.executing()[0].1.run.as_str(), "s");
    world.check();
}

#[test]
fn tenants_share_workers_by_weight() {
    let mut options = PoolOptions::new(6);
    options.weights.insert("heavy".parse().unwrap(), 2);
    let mut world = World::new(options);
    world.run("h", "heavy", "e");
    world.run("l", "light", "e");
    for task in 0..9 {
        for run in ["l", "h"] {
            let wish = world.wish(run, &format!("t{task}"));
            world.dispatch(&wish);
        }
    }
    world.bring_up();
    let heavy = world.executing().iter().filter(|(_, task, _)| task.run.as_str() == "h").count();
    assert_eq!((heavy, world.executing().len()), (4, 6));
    world.check();
}

#[test]
fn a_class_is_served_first_until_the_others_have_waited_long() {
    for (waited_ms, first) in [(1_000, "urgent"), (31_000, "patient")] {
        let (mut world, attempt) = computing();
        let patient = world.wish("r", "patient");
        world.dispatch(&patient);
        world.wait(waited_ms);
        let mut urgent = world.wish("r", "urgent");
        urgent.priority = Priority::Interactive;
        world.dispatch(&urgent);
        world.commit(&attempt);
        assert_eq!(world.executing()[0].1.task.as_str(), first, "after {waited_ms} ms");
        world.check();
    }
}

#[test]
fn a_wish_for_later_waits_for_its_time() {
    let mut world = world(1);
    let mut wish = world.wish("r", "load");
    wish.ready_at = world.now.plus_ms(500);
    world.dispatch(&wish);
    assert_eq!(world.engine.wake_at(), Some(wish.ready_at));
    assert_eq!(world.count("environment.requested"), 0);
    world.wait(500);
    world.bring_up();
    assert_eq!(world.executing().len(), 1);
}

#[test]
fn status_names_who_is_waited_for_and_tells_the_living_from_the_dead() {
    let (mut world, attempt) = computing();
    let wish = world.wish("r", "train");
    world.dispatch(&wish);
    let reply = world.send(&Command::Status).reply.unwrap().unwrap();
    let status = reply.downcast::<pool::StatusReply>().unwrap();
    assert_eq!((status.waiting, status.workers[0].state), (1, WorkerState::Busy));
    let reason = &status.pending[0].reasons[0];
    let eclosion_schemas::pending::PendingReason::Worker { busy, max: 1, .. } = reason else {
        panic!("{reason:?}")
    };
    assert_eq!(busy, std::slice::from_ref(&attempt.0));

    world.down(&attempt.0, Death::Exited { code: 3 });
    let reply = world.send(&Command::Status).reply.unwrap().unwrap();
    let status = reply.downcast::<pool::StatusReply>().unwrap();
    assert!(status.workers.iter().all(|worker| worker.worker != attempt.0));
    assert_eq!((&status.died[0].worker, &status.died[0].task), (&attempt.0, &Some(attempt.1)));
}

#[test]
fn what_no_run_uses_is_forgotten() {
    let (mut world, attempt) = computing();
    world.commit(&attempt);
    world.finish("r");
    world.wait(60_000);
    world.down(&attempt.0, Death::Exited { code: 0 });
    assert!(world.engine.state().environments.is_empty() && world.engine.state().runs.is_empty());
    world.check();
}
