//! Locks, rates and what they share with resources.

use super::*;

const DB_SHARED: (&str, u64) = ("lock:db", 1);

#[test]
fn a_lock_is_held_by_one_alone_or_by_many_who_share_it() {
    let mut world = World::with_runs();
    let shared: Vec<_> = (0..3).map(|_| world.acquire_all("a", &[DB_SHARED])).collect();
    let alone = world.acquire_all("a", &[DB]);
    let other = world.acquire_all("b", &[("lock:index", LOCK_WHOLE)]);
    assert!(shared.iter().chain([&other]).all(|request| world.lease(request).is_some()));
    assert!(world.lease(&alone).is_none());
    let status = world.status();
    let [PendingReason::Lock { lock, shared: false, holders }] = &status.waiting[0].reasons[..] else {
        panic!("{:?}", status.waiting)
    };
    assert_eq!((lock.as_str(), holders.len(), holders[0].task.as_ref()), ("db", 3, Some(&shared[0].task)));
    let locks: Vec<_> = status.locks.iter().map(|lock| (lock.lock.as_str(), lock.shared)).collect();
    assert_eq!(locks, [("db", true), ("index", false)]);
    shared.iter().for_each(|request| drop(world.release(request)));
    assert!(world.lease(&alone).is_some());
    let late = world.acquire_all("a", &[DB_SHARED]);
    assert!(world.lease(&late).is_none());
    world.check();
}

#[test]
fn who_wants_a_lock_alone_is_not_overtaken_for_ever_by_those_who_share_it() {
    let mut world = World::with_runs();
    let mut sharing = world.acquire_all("a", &[DB_SHARED]);
    let alone = world.acquire_all("a", &[DB]);
    let mut overtaken = 0;
    while world.lease(&alone).is_none() {
        assert!(overtaken < 10, "starved");
        world.now = world.now.plus_ms(1_000);
        let next = world.acquire_all("b", &[DB_SHARED]);
        world.release(&sharing);
        overtaken += usize::from(world.lease(&next).is_some());
        sharing = next;
    }
    assert!(overtaken > 0, "while patience lasts");
    world.check();
}

#[test]
fn locks_rates_and_resources_are_granted_together_or_not_at_all() {
    let mut world = World::new(with_rate("2/s"));
    world.run("a", "light");
    let holds = world.acquire_all("a", &[DB]);
    let all = world.acquire_all("a", &[("cpu", 4_000), DB, ("rate:api", 1)]);
    assert!(world.lease(&all).is_none());
    // It holds nothing while it waits: another gets the cores, and the rate is untouched.
    let other = world.acquire_all("a", &[("cpu", 4_000), ("rate:api", 1)]);
    assert!(world.lease(&other).is_some());
    world.release(&holds);
    assert!(world.lease(&all).is_none(), "the cores are taken");
    world.release(&other);
    assert!(world.lease(&all).is_none(), "the rate was used just now");
    world.wake();
    assert!(world.lease(&all).is_some());
    world.check();
}

#[test]
fn a_rate_spaces_what_uses_it_and_is_waited_for_by_time_alone() {
    let mut world = World::new(with_rate("4/s burst 2"));
    world.run("a", "light");
    let wishes: Vec<_> = (0..6).map(|_| world.acquire_all("a", &[("rate:api", 1)])).collect();
    let granted = |world: &World| wishes.iter().filter(|wish| world.lease(wish).is_some()).count();
    assert_eq!(granted(&world), 2);
    let status = world.status();
    let [PendingReason::Rate { rate, limit, needs: 1, free: 0, until }] = &status.waiting[0].reasons[..]
    else {
        panic!("{:?}", status.waiting)
    };
    assert_eq!((rate.as_str(), limit.as_str(), until), ("api", "4/s burst 2", &Timestamp(1_334)));
    let mut times = vec![world.now.0; 2];
    while granted(&world) < wishes.len() {
        let before = granted(&world);
        world.wake();
        times.extend(std::iter::repeat_n(world.now.0, granted(&world) - before));
    }
    // Three tokens a second behind a bucket of two.
    assert_eq!(times, [1_000, 1_000, 1_334, 1_667, 2_000, 2_334]);
    // What was taken does not come back with the lease.
    wishes.iter().for_each(|wish| drop(world.release(wish)));
    let late = world.acquire_all("a", &[("rate:api", 1)]);
    assert!(world.lease(&late).is_none());
    world.check();
}

#[test]
fn what_nobody_has_told_the_kernel_of_is_refused_by_its_name() {
    let mut world = World::new(with_rate("4/s burst 2"));
    world.run("a", "light");
    for (key, amount, told) in [
        ("rate:search", 1, "no rate `search`"),
        ("rate:api", 3, "its burst is 2"),
        ("gpu0_vram", 1, "knows nothing"),
    ] {
        let amounts = BTreeMap::from([(key.to_owned(), amount)]);
        let request = AcquireRequest { amounts, ..world.request("a", 0, 0) };
        let step = world.send(&Command::Acquire(request));
        let refused = step.records[0].event::<LeaseRefused>().unwrap();
        assert!(refused.error.message.contains(told), "{key}: {}", refused.error);
        assert!(refused.error.help.is_some());
    }
    world.check();
}
