//! Calls and services reserve workers.

use super::cases::{computing, world};
use super::*;
use eclosion_schemas::pending::PendingReason;

fn reserve(world: &mut World, ticket: u64, environment: &str) -> pool::ReserveReply {
    reserve_for(world, ticket, environment, false)
}

fn reserve_for(world: &mut World, ticket: u64, environment: &str, lasting: bool) -> pool::ReserveReply {
    let environment = environment.parse().unwrap();
    let request = pool::ReserveRequest { ticket, environment, spec: EnvironmentSpec::default(), lasting };
    let reply = world.send(&Command::Reserve(request)).reply.unwrap().unwrap();
    *reply.downcast::<pool::ReserveReply>().unwrap()
}

#[test]
fn a_call_whose_environment_cannot_be_built_is_told_so_and_a_later_one_has_it_built_again() {
    let mut world = world(1);
    let error = Error::invalid("environment.resolve", "no such package");
    for (round, ticket) in [(1, 7), (2, 8)] {
        let reply = reserve(&mut world, ticket, "broken");
        assert_eq!((reply.worker, reply.error), (None, None));
        assert_eq!(world.count("environment.requested"), round);
        let environment = "broken".parse().unwrap();
        let built = EnvironmentBuiltRequest { environment, python: None, error: Some(error.clone()) };
        world.send(&Command::EnvironmentBuilt(built));
        // As often as it asks, until it gives its ticket back; and nothing is built for its sake any more.
        for _ in 0..2 {
            assert_eq!(reserve(&mut world, ticket, "broken").error, Some(error.clone()));
        }
        world.send(&Command::Unreserve(pool::UnreserveRequest { ticket }));
        assert_eq!(world.count("environment.requested"), round);
        world.check();
    }
    reserve(&mut world, 9, "other");
    let known: Vec<_> = world.engine.state().environments.keys().map(ToString::to_string).collect();
    assert_eq!(known, ["other"]);
}

#[test]
fn a_call_reserves_an_idle_worker_until_it_is_over_or_forgotten() {
    for forgotten in [false, true] {
        let (mut world, attempt) = computing();
        assert_eq!(reserve(&mut world, 7, "e").worker, None);
        world.commit(&attempt);
        assert_eq!(reserve(&mut world, 7, "e").worker, Some(attempt.0.clone()));
        let wish = world.wish("r", "train");
        world.dispatch(&wish);
        assert!(world.executing().is_empty());
        if forgotten {
            let due = world.engine.wake_at().unwrap();
            world.wait(due.since_ms(world.now));
        } else {
            world.send(&Command::Unreserve(pool::UnreserveRequest { ticket: 7 }));
        }
        assert_eq!(world.executing().len(), 1);
    }
}

#[test]
fn a_service_has_a_worker_beyond_those_that_tasks_may_have() {
    let (mut world, _) = computing();
    assert_eq!(reserve(&mut world, 7, "e").worker, None);
    assert_eq!(world.count("worker.requested"), 1, "a call waits for the one that there may be");
    assert_eq!(reserve_for(&mut world, 8, "e", true).worker, None);
    assert_eq!(world.count("worker.requested"), 2);
    world.bring_up();
    // Who asks first gets it, and the service's right to one is not used up by that.
    assert!(reserve(&mut world, 7, "e").worker.is_some());
    assert_eq!(reserve_for(&mut world, 8, "e", true).worker, None);
    world.send(&Command::Unreserve(pool::UnreserveRequest { ticket: 7 }));
    let served = reserve_for(&mut world, 8, "e", true).worker.unwrap();
    assert_eq!(world.count("worker.requested"), 2);
    let status = world.status();
    let shown = status.workers.iter().map(|worker| (worker.worker == served, worker.serves, worker.state));
    let mut shown: Vec<_> = shown.collect();
    shown.sort_by_key(|(is_served, ..)| *is_served);
    assert_eq!(shown, [(false, false, WorkerState::Busy), (true, true, WorkerState::Busy)]);
    // It is beyond what tasks may have, and so none of those that are in their way.
    let Some(PendingReason::Worker { busy, .. }) = reserve(&mut world, 9, "e").pending.pop() else {
        panic!("it waits for a worker")
    };
    assert!(!busy.contains(&served), "{busy:?}");
}

#[test]
fn a_pool_that_begins_again_leaves_calls_and_services_what_they_have() {
    let (mut world, _) = computing();
    assert_eq!(reserve_for(&mut world, 8, "e", true).worker, None);
    world.bring_up();
    let worker = reserve_for(&mut world, 8, "e", true).worker.unwrap();
    world.wait(59_000);
    world.begin_again();
    let spec = EnvironmentSpec::default();
    let request = pool::ReserveRequest { ticket: 8, environment: "e".parse().unwrap(), spec, lasting: true };
    let live = world.engine.state().workers.keys().cloned().collect();
    world.send(&Command::Survivors { live, reserved: vec![(worker.clone(), request)] });
    world.wait(50_000);
    assert_eq!(world.count("worker.stopping"), 0, "it is nobody's to end");
    assert_eq!(reserve(&mut world, 9, "e").worker, None, "nor to give");
    assert_eq!(reserve_for(&mut world, 8, "e", true).worker, Some(worker));
}

#[test]
fn a_call_that_waits_is_told_who_has_the_workers_and_how_many_are_before_it() {
    let (mut world, attempt) = computing();
    let of_worker = |reply: pool::ReserveReply| match reply.pending.first() {
        Some(PendingReason::Worker { busy, max: 1, ahead }) => (busy.clone(), *ahead),
        other => panic!("{other:?}"),
    };
    assert_eq!(of_worker(reserve(&mut world, 7, "e")), (vec![attempt.0.clone()], 0));
    assert_eq!(of_worker(reserve(&mut world, 8, "e")), (vec![attempt.0.clone()], 1));
    world.commit(&attempt);
    assert_eq!(reserve(&mut world, 7, "e").worker, Some(attempt.0.clone()));
    // Another call has it now, which is as good a reason as a task.
    assert_eq!(of_worker(reserve(&mut world, 8, "e")), (vec![attempt.0.clone()], 0));
    world.wait(1);
    let built = reserve(&mut world, 9, "unbuilt");
    world.wait(1);
    let again = reserve(&mut world, 9, "unbuilt");
    assert!(built.worker.is_none());
    assert!(matches!(again.pending[..], [PendingReason::Environment { .. }]), "{:?}", again.pending);
}
