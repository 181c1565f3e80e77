//! Who waits behind whom, and what happens when there is no place left.

use super::*;

#[test]
fn many_who_wait_for_the_same_do_not_hide_one_who_could_go_on() {
    let mut world = World::with_runs();
    world.acquire_all("a", &[DB]);
    (0..200).for_each(|_| drop(world.acquire_all("a", &[DB])));
    let other = world.acquire_all("a", &[("lock:index", LOCK_WHOLE)]);
    assert!(world.lease(&other).is_some());
    let status = world.status();
    assert_eq!((status.waiting_count, status.waiting.len(), status.next.len()), (200, 100, 100));
    assert_eq!(Some(&status.next[0]), status.waiting[0].task.as_ref());
    world.check();
}

#[test]
fn places_are_bounded_for_each_tenant_and_who_is_refused_is_told_when_to_come_again() {
    let mut options = ArbitrationOptions::new(1_000, 0);
    (options.wishes_max, options.wishes_of_tenant_max) = (4, 3);
    let mut world = World::new(options);
    for (run, tenant) in [("a", "light"), ("b", "heavy")] {
        world.run(run, tenant);
    }
    let first = world.acquire("a", 1_000, 0);
    let waiting: Vec<_> = (0..3).map(|_| world.acquire("a", 1_000, 0)).collect();
    let refused = |world: &mut World, run: &str| {
        let request = world.request(run, 1_000, 0);
        let step = world.send(&Command::Acquire(request));
        let error = step.reply.unwrap().unwrap_err();
        let Retry::After { after_ms } = error.retry else { panic!("{error}") };
        assert_eq!((error.code, error.reason.as_str()), (Code::Exhausted, "arbitration.wishes"));
        (error.message.contains("of tenant light"), after_ms)
    };
    assert!(refused(&mut world, "a").0);
    let other = world.acquire("b", 1_000, 0);
    assert!(!refused(&mut world, "b").0, "all places are taken");
    // Leases end every two seconds; nothing that was taken is lost.
    let mut order = vec![first];
    order.extend(waiting);
    order.push(other);
    let mut served = 0;
    while let Some(held) = order.iter().find(|wish| world.lease(wish).is_some()).cloned() {
        world.now = world.now.plus_ms(2_000);
        world.release(&held);
        served += 1;
    }
    assert_eq!(served, 5);
    (0..4).for_each(|_| drop(world.acquire("a", 1_000, 0)));
    assert_eq!(refused(&mut world, "a"), (true, 2_000));
    world.check();
}
