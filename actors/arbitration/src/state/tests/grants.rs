//! What fits is granted, whose turn it is, and when a lease of a task ends.

use super::*;

#[test]
fn grants_what_fits_and_lets_the_rest_wait() {
    let mut world = World::with_runs();
    let first = world.acquire("a", 3_000, 0);
    let second = world.acquire("a", 2_000, 0);
    assert!(world.lease(&first).is_some() && world.lease(&second).is_none());
    let fence = world.start(&first);
    world.commit(&first, fence);
    assert!(world.lease(&first).is_none() && world.lease(&second).is_some());
    world.check();
}

#[test]
fn a_lease_is_granted_whole_or_not_at_all() {
    let mut world = World::with_runs();
    world.acquire("a", 1_000, 900);
    let both = world.acquire("a", 1_000, 200);
    assert!(world.lease(&both).is_none());
    assert_eq!((world.free("cpu"), world.free("memory")), (3_000, 100));
    world.check();
}

#[test]
fn what_can_never_fit_is_refused_at_once_and_told_how_much_there_is() {
    let mut world = World::with_runs();
    let request = world.request("a", 5_000, 0);
    let step = world.send(&Command::Acquire(request));
    let refused = step.records[0].event::<LeaseRefused>().unwrap();
    assert_eq!(
        (refused.error.code, refused.error.reason.as_str()),
        (Code::Exhausted, "arbitration.impossible")
    );
    assert!(refused.error.message.contains("4000"), "{}", refused.error);
    assert!(world.engine.volatile().is_empty());
    world.check();
}

#[test]
fn the_same_wish_again_gets_nothing_more() {
    let mut world = World::with_runs();
    let request = world.acquire("a", 1_000, 0);
    world.send(&Command::Acquire(request.clone()));
    let fence = world.start(&request);
    world.commit(&request, fence);
    // The message comes late: the lease was used and is gone.
    world.send(&Command::Acquire(request));
    assert_eq!((world.free("cpu"), world.engine.volatile().len()), (4_000, 0));
    world.check();
}

#[test]
fn an_attempt_given_up_keeps_its_lease_until_its_worker_lets_go() {
    for ends_by_death in [true, false] {
        let mut world = World::with_runs();
        let request = world.acquire("a", 1_000, 0);
        let fence = world.start(&request);
        world.fail(&request, fence, false);
        world.foreign(RunFinished {
            run: "a".parse().unwrap(),
            state: RunState::Failed,
            error: None,
            summary: None,
        });
        assert_eq!(world.free("cpu"), 3_000);
        match ends_by_death {
            true => world.die(fence),
            false => drop(world.foreign(AttemptStopped { worker: worker(fence), fence })),
        }
        assert_eq!(world.free("cpu"), 4_000);
        world.check();
    }
}

#[test]
fn a_lease_that_was_never_used_goes_with_its_run() {
    let mut world = World::with_runs();
    world.acquire("a", 4_000, 0);
    let waiting = world.acquire("a", 1_000, 0);
    world.foreign(RunFinished {
        run: "a".parse().unwrap(),
        state: RunState::Failed,
        error: None,
        summary: None,
    });
    assert_eq!((world.free("cpu"), world.lease(&waiting), world.engine.volatile().len()), (4_000, None, 0));
    world.check();
}

#[test]
fn a_wish_taken_back_ends_by_an_event_granted_or_not() {
    let mut world = World::with_runs();
    let granted = world.acquire("a", 4_000, 0);
    let waiting = world.acquire("a", 1_000, 0);
    assert!(world.release(&waiting).records.iter().any(|record| record.is::<LeaseRefused>()));
    assert!(world.engine.volatile().is_empty());
    assert!(world.release(&granted).records.iter().any(|record| record.is::<LeaseReleased>()));
    // Arbitration has restarted and knows nothing of this one.
    let forgotten = world.request("a", 1_000, 0);
    assert!(world.release(&forgotten).records.iter().any(|record| record.is::<LeaseRefused>()));
    assert_eq!(world.free("cpu"), 4_000);
    world.check();
}

#[test]
fn tenants_get_their_dominant_share_by_weight() {
    let mut world = World::with_runs();
    let all = world.acquire("c", 4_000, 0);
    let light: Vec<_> = (0..6).map(|_| world.acquire("a", 500, 10)).collect();
    let heavy: Vec<_> = (0..6).map(|_| world.acquire("b", 500, 10)).collect();
    world.release(&all);
    let count = |all: &[AcquireRequest]| all.iter().filter(|one| world.lease(one).is_some()).count();
    // Eight fit; two for one, until the heavy one has all that it wants.
    assert_eq!((count(&light), count(&heavy)), (3, 5));
    world.check();
}

#[test]
fn a_large_wish_is_overtaken_only_while_patience_lasts() {
    let mut world = World::with_runs();
    let small = world.acquire("a", 1_000, 0);
    let large = world.acquire("a", 4_000, 0);
    let overtakes = world.acquire("a", 1_000, 0);
    assert!(world.lease(&overtakes).is_some());
    world.now = world.now.plus_ms(6_000);
    let late = world.acquire("b", 1_000, 0);
    let other = world.acquire("b", 0, 100);
    assert!(world.lease(&late).is_none(), "it would take what is kept");
    assert!(world.lease(&other).is_some(), "nobody keeps memory");
    for request in [small, overtakes] {
        world.release(&request);
    }
    assert!(world.lease(&large).is_some() && world.lease(&late).is_none());
    world.check();
}

#[test]
fn a_higher_class_comes_first_until_the_others_have_waited_long() {
    for (waited_ms, first_is_old) in [(1_000, false), (31_000, true)] {
        let mut options = ArbitrationOptions::new(1_000, 0);
        // Patience is another rule, for what does not fit.
        options.patience_ms = u64::MAX;
        let mut world = World::new(options);
        world.run("a", "light");
        let held = world.acquire("a", 1_000, 0);
        let old = world.acquire("a", 1_000, 0);
        world.now = world.now.plus_ms(waited_ms);
        let mut urgent = world.request("a", 1_000, 0);
        urgent.priority = Priority::Interactive;
        world.send(&Command::Acquire(urgent));
        world.release(&held);
        assert_eq!(world.lease(&old).is_some(), first_is_old, "after {waited_ms} ms");
        world.check();
    }
}

#[test]
fn status_names_the_holders_with_amounts_and_since_when() {
    let mut world = World::with_runs();
    let held = world.acquire("a", 3_000, 0);
    let fence = world.start(&held);
    world.acquire("b", 2_000, 100);
    let reply = world.send(&Command::Status).reply.unwrap().unwrap();
    let status = reply.downcast::<StatusReply>().unwrap();
    let [PendingReason::Resource { resource, needs, free, capacity, holders }] =
        &status.waiting[0].reasons[..]
    else {
        panic!("{:?}", status.waiting)
    };
    assert_eq!((resource.as_str(), *needs, *free, *capacity), ("cpu", 2_000, 1_000, 4_000));
    assert_eq!((holders[0].amount, &holders[0].worker), (3_000, &Some(worker(fence))));
    assert_eq!((holders[0].task.as_ref(), holders[0].since), (Some(&held.task), Timestamp(1_000)));
    assert_eq!((status.tenants.len(), status.tenants[1].running), (2, 1));
}
