//! What needs more than a slot starts with its lease, and gives it back.

use super::cases::computing;
use super::*;

/// A world whose one worker is up, and a wish that needs four cores.
fn asking() -> (World, Wish, EffectId) {
    let (mut world, attempt) = computing();
    world.commit(&attempt);
    let mut wish = world.wish("r", "train");
    wish.execute.lease = BTreeMap::from([("cpu".to_owned(), 4), ("memory".to_owned(), 1 << 30)]);
    let step = world.dispatch(&wish);
    let [(id, Effect::Acquire(request))] = &step.effects[..] else { panic!("{step:?}") };
    assert_eq!((request.wish, request.amounts["cpu"]), (*id, 4_000));
    let id = *id;
    (world, wish, id)
}

fn granted(wish: &Wish, acquire: EffectId) -> LeaseGranted {
    LeaseGranted {
        lease: "l-1-1".parse().unwrap(),
        task: TaskRef::new(wish.execute.run.clone(), wish.execute.task.clone()),
        tenant: wish.tenant.clone(),
        amounts: BTreeMap::new(),
        wish: acquire,
    }
}

#[test]
fn what_needs_more_than_a_slot_starts_with_its_lease() {
    let (mut world, wish, acquire) = asking();
    assert!(world.executing().is_empty());
    // There is a worker; what it waits for is not the pool's to say.
    assert_eq!(world.status().pending[0].reasons, []);
    let step = world.foreign(granted(&wish, acquire));
    let started = step.records.iter().find_map(|record| record.event::<AttemptStarted>()).unwrap();
    assert_eq!(started.lease, Some("l-1-1".parse().unwrap()));
    assert_eq!((world.engine.outstanding().len(), world.engine.state().leases.len()), (1, 0));
    world.check();
}

#[test]
fn a_lease_survives_the_incarnation_that_had_asked_for_it() {
    let (before, wish, acquire) = asking();
    let mut world = before.restart();
    assert!(world.engine.outstanding().contains_key(&acquire));
    let worker = world.engine.state().workers.keys().next().unwrap().clone();
    world.up(&worker);
    world.foreign(granted(&wish, acquire));
    assert!(world.executing().is_empty());
    world.dispatch(&wish);
    assert_eq!((world.executing().len(), world.count("attempt.waiting")), (1, 1));
    world.check();
}

#[test]
fn a_lease_that_cannot_be_had_refuses_the_wish() {
    let (mut world, wish, acquire) = asking();
    let error = Error::new(Code::Exhausted, "arbitration.impossible", "too much");
    let task = TaskRef::new(wish.execute.run.clone(), wish.execute.task.clone());
    let step = world.foreign(LeaseRefused { task, wish: acquire, error });
    let refused = step.records.iter().find_map(|record| record.event::<AttemptRefused>()).unwrap();
    assert_eq!((refused.wish, refused.error.reason.as_str()), (wish.id, "arbitration.impossible"));
    assert!(world.engine.outstanding().is_empty() && world.engine.volatile().is_empty());
    world.check();
}

#[test]
fn a_lease_that_is_not_needed_is_given_back_granted_or_not() {
    for is_granted in [false, true] {
        for withdrawn in [false, true] {
            let (mut world, wish, acquire) = asking();
            // No worker is free, so that the grant is not used at once.
            let worker = world.engine.state().workers.keys().next().unwrap().clone();
            world.down(&worker, Death::Exited { code: 1 });
            if is_granted {
                world.foreign(granted(&wish, acquire));
            }
            let step = if withdrawn {
                world.send(&Command::Withdraw(WithdrawRequest { wishes: vec![wish.id] }))
            } else {
                world.foreign(RunCancelling { run: "r".parse().unwrap(), reason: String::new() })
            };
            let released = step
                .effects
                .iter()
                .any(|(_, effect)| matches!(effect, Effect::Release(request) if request.wish == acquire));
            assert!(released, "{step:?}");
            let task = TaskRef::new(wish.execute.run.clone(), wish.execute.task.clone());
            let reason = String::new();
            if is_granted {
                world.foreign(LeaseReleased { lease: "l-1-1".parse().unwrap(), reason });
            } else {
                let error = Error::new(Code::Cancelled, "arbitration.withdrawn", reason);
                world.foreign(LeaseRefused { task, wish: acquire, error });
            }
            assert!(world.engine.state().leases.is_empty() && world.engine.state().acquired.is_empty());
            world.check();
        }
    }
}
