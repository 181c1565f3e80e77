//! Random moves: nothing is granted twice, nobody starves.

use super::*;

#[derive(Debug, Clone)]
enum Move {
    Acquire { run: usize, cpu: u64, memory: u64 },
    AcquireAll { run: usize, lock: u64, shared: bool, tokens: u64 },
    Again(usize),
    Release(usize),
    Start(usize),
    Commit(usize),
    Fail(usize, bool),
    Die(usize),
    Cancel(usize),
    Wait(u64),
    Restart,
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        6 => (0_usize..3, 0_u64..5_000, 0_u64..1_100)
            .prop_map(|(run, cpu, memory)| Move::Acquire { run, cpu, memory }),
        6 => (0_usize..3, 0_u64..3, any::<bool>(), 0_u64..3)
            .prop_map(|(run, lock, shared, tokens)| Move::AcquireAll { run, lock, shared, tokens }),
        1 => any::<usize>().prop_map(Move::Again),
        2 => any::<usize>().prop_map(Move::Release),
        4 => any::<usize>().prop_map(Move::Start),
        3 => any::<usize>().prop_map(Move::Commit),
        1 => (any::<usize>(), any::<bool>()).prop_map(|(one, released)| Move::Fail(one, released)),
        1 => any::<usize>().prop_map(Move::Die),
        1 => (0_usize..3).prop_map(Move::Cancel),
        2 => (0_u64..8_000).prop_map(Move::Wait),
        1 => Just(Move::Restart),
    ];
    prop::collection::vec(one, 1..80)
}

fn make(
    world: &mut World,
    said: &mut Vec<AcquireRequest>,
    started: &mut Vec<(AcquireRequest, Fence)>,
    step: &Move,
) {
    let runs = ["a", "b", "c"];
    let pick = |index: &usize| (!said.is_empty()).then(|| said[index % said.len()].clone());
    let begun = |index: &usize| (!started.is_empty()).then(|| started[index % started.len()].clone());
    match step {
        Move::Acquire { run, cpu, memory } => {
            let request = world.acquire(runs[*run], *cpu, *memory);
            said.push(request);
        }
        Move::AcquireAll { run, lock, shared, tokens } => {
            let lock = (format!("lock:{lock}"), if *shared { 1 } else { LOCK_WHOLE });
            let rate = ("rate:api".to_owned(), *tokens);
            let amounts = [lock, rate].into_iter().filter(|(_, amount)| *amount > 0).collect();
            let request = AcquireRequest { amounts, ..world.request(runs[*run], 0, 0) };
            world.send(&Command::Acquire(request.clone()));
            said.push(request);
        }
        Move::Again(one) => {
            if let Some(request) = pick(one) {
                world.send(&Command::Acquire(request));
            }
        }
        Move::Release(one) => {
            if let Some(request) = pick(one) {
                world.release(&request);
            }
        }
        Move::Start(one) => {
            let unused = pick(one).filter(|request| {
                let lease = world.lease(request).and_then(|id| world.engine.state().leases.get(&id));
                lease.is_some_and(|lease| lease.held_by().is_none())
            });
            if let Some(request) = unused {
                let fence = world.start(&request);
                started.push((request, fence));
            }
        }
        Move::Commit(one) => {
            if let Some((request, fence)) = begun(one) {
                world.commit(&request, fence);
            }
        }
        Move::Fail(one, released) => {
            if let Some((request, fence)) = begun(one) {
                world.fail(&request, fence, *released);
            }
        }
        Move::Die(one) => {
            if let Some((_, fence)) = begun(one) {
                world.die(fence);
            }
        }
        Move::Cancel(run) => {
            let run = runs[*run].parse().unwrap();
            world.foreign(RunCancelling { run, reason: String::new() });
        }
        Move::Wait(ms) => world.now = world.now.plus_ms(*ms),
        Move::Restart => world.engine.recover(&world.journal).unwrap(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn never_grants_more_than_there_is_nor_a_lock_twice_nor_a_rate_too_often(moves in moves()) {
        let mut world = World::new(with_rate("5/s burst 2"));
        for (run, tenant) in [("a", "light"), ("b", "heavy"), ("c", "light")] {
            world.run(run, tenant);
        }
        let (mut said, mut started) = (Vec::new(), Vec::new());
        for step in &moves {
            make(&mut world, &mut said, &mut started, step);
            let state = world.engine.state();
            for (resource, used) in &state.used {
                prop_assert!(*used <= world.engine.core().options.capacity(resource));
            }
            for lock in ["lock:0", "lock:1", "lock:2"] {
                let held: Vec<_> = state.leases.values().filter_map(|lease| lease.amounts.get(lock)).collect();
                prop_assert!(held.len() <= 1 || held.iter().all(|parts| **parts == 1));
            }
        }
        let mut taken: Vec<(u64, u64)> = Vec::new();
        for record in world.journal.after(Seq(0), &[LeaseGranted::KIND]).records {
            let granted = record.event::<LeaseGranted>().unwrap();
            taken.extend(granted.amounts.get("rate:api").map(|tokens| (record.at.0, *tokens)));
        }
        for (begin, _) in &taken {
            let inside = taken.iter().filter(|(at, _)| (*begin..begin + 1_000).contains(at));
            prop_assert!(inside.map(|(_, tokens)| tokens).sum::<u64>() <= 5);
        }
        world.check();
    }

    /// Whatever is asked for, and in whatever order, everybody is served once all have let go and time goes on.
    #[test]
    fn nobody_who_was_taken_starves(moves in moves()) {
        let mut world = World::new(with_rate("5/s burst 2"));
        for (run, tenant) in [("a", "light"), ("b", "heavy"), ("c", "light")] {
            world.run(run, tenant);
        }
        let (mut said, mut started) = (Vec::new(), Vec::new());
        for step in moves.iter().filter(|step| !matches!(step, Move::Restart)) {
            make(&mut world, &mut said, &mut started, step);
        }
        for _ in 0..500 {
            for (_, fence) in std::mem::take(&mut started) {
                world.die(fence);
            }
            for request in &said {
                if world.lease(request).is_some() {
                    world.release(request);
                }
            }
            world.now = world.now.plus_ms(1_000);
            world.engine.fold_new(&world.journal, &Reads::new(world.journal.epoch(), 0), world.now);
            if world.engine.volatile().is_empty() && world.engine.state().leases.is_empty() {
                break;
            }
        }
        prop_assert!(world.engine.volatile().is_empty(), "{:?}", world.engine.volatile());
        world.check();
    }
}
