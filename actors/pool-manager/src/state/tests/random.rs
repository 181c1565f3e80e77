use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Move {
    Wish { run: u8, task: u8, lease: bool, class: u8 },
    Again,
    BringUp,
    Commit(u8),
    Fail(u8, bool),
    Idle(u8),
    Down(u8),
    Cancel(u8),
    Grant(u8),
    Refuse(u8),
    Wait(u16),
    Restart,
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        6 => (0_u8..3, 0_u8..6, any::<bool>(), 0_u8..3)
            .prop_map(|(run, task, lease, class)| Move::Wish { run, task, lease, class }),
        1 => Just(Move::Again),
        4 => Just(Move::BringUp),
        4 => any::<u8>().prop_map(Move::Commit),
        2 => (any::<u8>(), any::<bool>()).prop_map(|(one, released)| Move::Fail(one, released)),
        2 => any::<u8>().prop_map(Move::Idle),
        2 => any::<u8>().prop_map(Move::Down),
        1 => (0_u8..3).prop_map(Move::Cancel),
        2 => any::<u8>().prop_map(Move::Grant),
        1 => any::<u8>().prop_map(Move::Refuse),
        2 => (0_u16..20_000).prop_map(Move::Wait),
        1 => Just(Move::Restart),
    ];
    prop::collection::vec(one, 1..60)
}

fn pick<T: Clone>(all: &[T], index: u8) -> Option<T> {
    (!all.is_empty()).then(|| all[index as usize % all.len()].clone())
}

fn acquires(world: &World) -> Vec<AcquireRequest> {
    let effects = world.engine.outstanding().values();
    let acquires = effects.filter_map(|effect| match effect {
        Effect::Acquire(request) => Some(request.clone()),
        _ => None,
    });
    acquires.collect()
}

fn make(world: &mut World, said: &mut Vec<Wish>, step: &Move) {
    let run = |number: &u8| format!("r{number}");
    match step {
        Move::Wish { run: number, task, lease, class } => {
            let mut wish = world.wish(&run(number), &format!("t{task}"));
            wish.priority = [Priority::Interactive, Priority::Normal, Priority::Batch][*class as usize];
            if *lease {
                wish.execute.lease.insert("memory".into(), 1 << 20);
            }
            said.push(wish.clone());
            world.dispatch(&wish);
        }
        Move::Again => {
            world.send(&Command::Dispatch(DispatchRequest { wishes: said.clone() }));
        }
        Move::BringUp => world.bring_up(),
        Move::Commit(one) => {
            if let Some(attempt) = pick(&world.executing(), *one) {
                world.commit(&attempt);
            }
        }
        Move::Fail(one, released) => {
            if let Some(attempt) = pick(&world.executing(), *one) {
                world.fail(&attempt, *released);
            }
        }
        Move::Idle(one) => {
            let holding: Vec<_> = world.engine.state().fences.clone().into_iter().collect();
            if let Some((fence, worker)) = pick(&holding, *one) {
                world.send(&Command::WorkerIdle(WorkerIdleRequest { worker, fence }));
            }
        }
        Move::Down(one) => {
            let workers: Vec<_> = world.engine.state().workers.keys().cloned().collect();
            if let Some(worker) = pick(&workers, *one) {
                world.down(&worker, Death::Exited { code: 1 });
            }
        }
        Move::Cancel(number) => {
            world.foreign(RunCancelling { run: run(number).parse().unwrap(), reason: String::new() });
        }
        Move::Grant(one) => {
            if let Some(AcquireRequest { wish, task, tenant, amounts, .. }) = pick(&acquires(world), *one) {
                let lease = format!("l-{wish}").parse().unwrap();
                world.foreign(LeaseGranted { lease, task, tenant, amounts, wish });
            }
        }
        Move::Refuse(one) => {
            if let Some(AcquireRequest { wish, task, .. }) = pick(&acquires(world), *one) {
                world.foreign(LeaseRefused { task, wish, error: Error::internal("no", "no") });
            }
        }
        Move::Wait(ms) => drop(world.wait(u64::from(*ms))),
        // The incarnation panics: what is volatile is gone.
        Move::Restart => {
            world.engine.recover(&world.journal).unwrap();
            world.fold();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn keeps_its_invariants_whatever_happens(moves in moves(), workers_max in 1_u32..5) {
        let mut world = World::new(PoolOptions::new(workers_max));
        for (run, tenant) in [("r0", "a"), ("r1", "b"), ("r2", "a")] {
            world.run(run, tenant, if run == "r2" { "other" } else { "e" });
        }
        let mut said = Vec::new();
        for step in &moves {
            make(&mut world, &mut said, step);
        }
        world.check();
        // A timer that is due and changes nothing would be a busy loop.
        for _ in 0..100 {
            let Some(due) = world.engine.wake_at() else { break };
            let before = (world.journal.marks().appended, world.engine.volatile().len());
            let late = due <= world.now;
            let ms = due.since_ms(world.now);
            world.wait(ms);
            prop_assert!(!late || before != (world.journal.marks().appended, world.engine.volatile().len())
                || world.engine.wake_at().is_none_or(|next| next > world.now), "due again and again at {due}");
        }
    }
}
