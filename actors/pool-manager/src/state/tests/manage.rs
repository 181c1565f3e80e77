//! Drain, resume, cordon, recycle, kill: what each meets and what it leads to.

use eclosion_schemas::ops::pool::{
    ActReply, DrainRequest, ResumeRequest, UsageRequest, WorkerActRequest, WorkerUsage,
};
use eclosion_schemas::pending::PendingReason;

use super::*;

impl World {
    /// One worker that computes, one that idles.
    fn busy_and_idle() -> (World, (WorkerId, TaskRef, Fence), WorkerId) {
        let mut world = World::new(PoolOptions::new(2));
        world.run("r", "t", "e");
        for task in ["a", "b"] {
            let wish = world.wish("r", task);
            world.dispatch(&wish);
        }
        world.bring_up();
        let [busy, done] = &world.executing()[..] else { panic!("two attempts") };
        let (busy, done) = (busy.clone(), done.clone());
        world.commit(&done);
        (world, busy, done.0)
    }

    fn drain(&mut self, worker: Option<&WorkerId>, dry_run: bool) -> ActReply {
        let request = DrainRequest {
            worker: worker.cloned(),
            reason: "why".into(),
            dry_run,
            ..DrainRequest::default()
        };
        self.acted(&Command::Drain(request))
    }

    fn resume(&mut self, worker: Option<&WorkerId>) -> ActReply {
        self.acted(&Command::Resume(ResumeRequest { worker: worker.cloned(), ..ResumeRequest::default() }))
    }

    fn acted(&mut self, command: &Command) -> ActReply {
        let reply = self.send(command).reply.unwrap().unwrap();
        *reply.downcast::<ActReply>().unwrap()
    }

    fn refusal(&mut self, command: &Command) -> Error {
        self.send(command).reply.unwrap().err().unwrap()
    }

    fn owes(&self, effect: &Effect) -> bool {
        self.engine.outstanding().values().any(|owed| owed == effect)
    }
}

fn act(worker: &WorkerId) -> WorkerActRequest {
    WorkerActRequest { worker: worker.clone(), reason: "why".into(), dry_run: false }
}

#[test]
fn a_dry_run_says_what_it_meets_and_records_nothing() {
    let (mut world, busy, idle) = World::busy_and_idle();
    let before = world.journal.marks().appended;
    let dry = |worker: &WorkerId| WorkerActRequest { dry_run: true, ..act(worker) };
    for command in
        [Command::Cordon(dry(&busy.0)), Command::Recycle(dry(&busy.0)), Command::Kill(dry(&busy.0))]
    {
        let met = world.acted(&command);
        assert!(met.changed && met.dry_run, "{command:?}");
        assert_eq!((met.workers, met.attempts.len()), (vec![busy.0.clone()], 1));
        assert_eq!(met.attempts[0].task, busy.1);
    }
    assert_eq!(world.drain(None, true).workers.len(), 2);
    assert_eq!(world.drain(Some(&idle), true).attempts, []);
    assert_eq!(world.journal.marks().appended, before);
}

#[test]
fn a_drained_worker_finishes_what_it_has_in_hand_and_gets_nothing_more() {
    let (mut world, busy, idle) = World::busy_and_idle();
    world.drain(Some(&busy.0), false);
    assert!(world.owes(&Effect::Stop { worker: busy.0.clone() }));
    assert!(!world.drain(Some(&busy.0), false).changed, "the same again changes nothing");
    world.commit(&busy);
    let wish = world.wish("r", "c");
    world.dispatch(&wish);
    assert_eq!(world.executing()[0].0, idle);
    world.down(&busy.0, Death::Exited { code: 0 });
    assert!(
        world.engine.state().dead.back().is_some_and(|dead| dead.ended.as_deref() == Some("drained: why"))
    );
    world.check();
}

#[test]
fn a_drained_worker_that_ends_well_took_no_attempt_along() {
    let (mut world, busy, _) = World::busy_and_idle();
    world.drain(Some(&busy.0), false);
    let died = world.down(&busy.0, Death::Exited { code: 0 });
    let died = died.records.iter().find_map(|record| record.event::<WorkerDied>()).unwrap();
    assert!(died.wanted && died.fence == Some(busy.2));

    let (mut world, busy, _) = World::busy_and_idle();
    world.drain(Some(&busy.0), false);
    let died = world.down(&busy.0, Death::Killed { signal: 11, sender: None });
    let died = died.records.iter().find_map(|record| record.event::<WorkerDied>()).unwrap();
    assert!(!died.wanted, "it crashed on its attempt, told to end or not");
}

#[test]
fn a_drained_pool_starts_nothing_ends_its_workers_and_serves_again_when_it_is_resumed() {
    let (mut world, busy, idle) = World::busy_and_idle();
    let met = world.drain(None, false);
    assert_eq!((met.changed, met.workers.len(), met.attempts.len()), (true, 2, 1));
    assert!(world.owes(&Effect::Stop { worker: idle.clone() }));
    assert!(!world.owes(&Effect::Stop { worker: busy.0.clone() }), "it has something in hand");
    let wish = world.wish("r", "c");
    world.dispatch(&wish);
    world.commit(&busy);
    assert!(world.owes(&Effect::Stop { worker: busy.0.clone() }));
    world.down(&idle, Death::Exited { code: 0 });
    world.down(&busy.0, Death::Exited { code: 0 });
    assert_eq!((world.engine.outstanding().len(), world.executing().len()), (0, 0));
    let status = world.send(&Command::Status).reply.unwrap().unwrap();
    let status = status.downcast::<pool::StatusReply>().unwrap();
    assert_eq!(status.drained.as_deref(), Some("drained: why"));
    assert_eq!(status.pending[0].reasons, [PendingReason::Drained { reason: "drained: why".into() }]);

    // It outlives the kernel; the wish is said again by the DAG tracker.
    let mut world = world.restart();
    world.dispatch(&wish);
    assert_eq!(world.count("worker.requested"), 2);
    assert!(world.resume(None).changed && !world.resume(None).changed);
    world.bring_up();
    assert_eq!(world.executing().len(), 1);
    world.check();
}

#[test]
fn a_drain_that_ends_with_the_kernel_is_no_record_and_ends_nobody() {
    let (mut world, busy, idle) = World::busy_and_idle();
    let before = world.journal.marks().appended;
    let request = DrainRequest { ends_with_kernel: true, ..DrainRequest::default() };
    assert!(world.acted(&Command::Drain(request)).changed);
    let wish = world.wish("r", "c");
    world.dispatch(&wish);
    assert_eq!(world.journal.marks().appended, before);
    assert!(!world.owes(&Effect::Stop { worker: idle }));
    world.commit(&busy);
    assert!(world.executing().is_empty());
    world.wait(600_000);
    assert_eq!(world.engine.wake_at(), None, "nothing is due while it ends");
    let mut next = world.restart();
    next.dispatch(&wish);
    next.up(&busy.0);
    assert_eq!(next.executing().len(), 1);
}

#[test]
fn a_call_that_meets_a_drained_pool_is_told_so() {
    let (mut world, ..) = World::busy_and_idle();
    world.drain(None, false);
    let request = pool::ReserveRequest {
        lasting: false,
        ticket: 1,
        environment: "e".parse().unwrap(),
        spec: EnvironmentSpec::default(),
    };
    let reply = world.send(&Command::Reserve(request)).reply.unwrap().unwrap();
    let error = reply.downcast::<pool::ReserveReply>().unwrap().error.unwrap();
    assert_eq!((error.code, error.reason.as_str()), (Code::Unavailable, "pool.drained"));
}

#[test]
fn a_cordoned_worker_lives_on_with_nothing_until_it_is_resumed() {
    let (mut world, _, idle) = World::busy_and_idle();
    assert!(world.acted(&Command::Cordon(act(&idle))).changed);
    assert!(!world.acted(&Command::Cordon(act(&idle))).changed);
    let wish = world.wish("r", "c");
    world.dispatch(&wish);
    assert_eq!(world.executing().len(), 1, "only what ran before");
    world.wait(600_000);
    assert!(!world.owes(&Effect::Stop { worker: idle.clone() }), "it is there to be looked at");
    assert_eq!(world.restart().engine.digest(), world.engine.digest());
    assert!(world.resume(Some(&idle)).changed);
    assert_eq!(world.executing().len(), 2);
    world.check();
}

#[test]
fn a_killed_worker_takes_its_attempt_along_and_that_counts_against_nobody() {
    let (mut world, busy, _) = World::busy_and_idle();
    world.drain(Some(&busy.0), false);
    let met = world.acted(&Command::Kill(act(&busy.0)));
    assert!(met.changed && met.attempts.len() == 1, "a kill hurries a drain");
    let reason = "killed by an operator: why".to_owned();
    assert!(world.owes(&Effect::Kill { worker: busy.0.clone(), reason }));
    assert!(!world.owes(&Effect::Stop { worker: busy.0.clone() }));
    assert!(!world.acted(&Command::Recycle(act(&busy.0))).changed);
    let died = world.down(&busy.0, Death::Killed { signal: 9, sender: Some("eclosion".into()) });
    let died = died.records.iter().find_map(|record| record.event::<WorkerDied>()).unwrap();
    assert!(died.wanted && died.fence == Some(busy.2));
    assert!(!world.engine.outstanding().values().any(|owed| matches!(owed, Effect::Kill { .. })));
    world.check();
}

#[test]
fn who_is_not_there_or_ends_already_is_refused_with_a_way_on() {
    let (mut world, busy, _) = World::busy_and_idle();
    let nobody: WorkerId = "w-9-9".parse().unwrap();
    for command in
        [Command::Cordon(act(&nobody)), Command::Recycle(act(&nobody)), Command::Kill(act(&nobody))]
    {
        let error = world.refusal(&command);
        assert_eq!((error.code, error.reason.as_str()), (Code::NotFound, "worker.unknown"));
        assert!(error.help.is_some());
    }
    world.drain(Some(&busy.0), false);
    let again = ResumeRequest { worker: Some(busy.0), ..ResumeRequest::default() };
    assert_eq!(world.refusal(&Command::Resume(again)).reason, "worker.ending");
}

#[test]
fn a_worker_is_recycled_after_so_many_attempts_and_none_is_lost() {
    let mut world = World::new(PoolOptions { recycle_attempts: 2, ..PoolOptions::new(1) });
    world.run("r", "t", "e");
    for task in ["a", "b", "c", "d", "e"] {
        let wish = world.wish("r", task);
        world.dispatch(&wish);
    }
    let mut finished = 0;
    while finished < 5 {
        world.bring_up();
        for attempt in world.executing() {
            world.commit(&attempt);
            finished += 1;
        }
        let stopping = world.engine.outstanding().values().find_map(|owed| match owed {
            Effect::Stop { worker } => Some(worker.clone()),
            _ => None,
        });
        if let Some(worker) = stopping {
            assert_eq!(world.engine.state().workers[&worker].finished, 2);
            world.down(&worker, Death::Exited { code: 0 });
        }
        world.check();
    }
    let reasons: Vec<_> = world.journal.after(Seq(0), &[WorkerStopping::KIND]).records;
    let reasons: Vec<_> =
        reasons.iter().map(|record| record.event::<WorkerStopping>().unwrap().reason.clone()).collect();
    assert_eq!(reasons, ["recycled after 2 attempts", "recycled after 2 attempts"]);
    assert_eq!(world.count("attempt.started"), 5);
}

#[test]
fn a_worker_is_recycled_at_its_age_but_not_in_the_middle_of_an_attempt() {
    let options = PoolOptions { recycle_age_ms: 10_000, idle_ms: 3_600_000, ..PoolOptions::new(1) };
    let mut world = World::new(options);
    world.run("r", "t", "e");
    let wish = world.wish("r", "a");
    world.dispatch(&wish);
    world.bring_up();
    let attempt = world.executing().pop().unwrap();
    world.wait(20_000);
    assert_eq!(world.count("worker.stopping"), 0);
    world.commit(&attempt);
    assert_eq!(world.count("worker.stopping"), 1);
    world.down(&attempt.0, Death::Exited { code: 0 });

    // One that idles is woken for it.
    let wish = world.wish("r", "b");
    world.dispatch(&wish);
    world.bring_up();
    let attempt = world.executing().pop().unwrap();
    world.commit(&attempt);
    let due = world.engine.wake_at().unwrap();
    world.wait(due.since_ms(world.now));
    assert_eq!(world.count("worker.stopping"), 2);
    world.check();
}

#[test]
fn an_idle_worker_that_holds_too_much_is_recycled_and_a_busy_one_is_not() {
    let (world, busy, idle) = World::busy_and_idle();
    let mut world = world.with(|options| options.recycle_rss_bytes = 100);
    for (worker, rss_bytes, stops) in [(&busy.0, 500, 0), (&idle, 100, 0), (&idle, 101, 1)] {
        let usage = WorkerUsage { worker: worker.clone(), rss_bytes, processes: 1 };
        world.send(&Command::Usage(UsageRequest { workers: vec![usage] }));
        assert_eq!(world.count("worker.stopping"), stops, "{worker} with {rss_bytes}");
    }
    world.check();
}

impl World {
    /// The same pool with other options, which are no part of its state.
    fn with(mut self, change: impl FnOnce(&mut PoolOptions)) -> World {
        let mut core = self.engine.core().clone();
        change(&mut core.options);
        self.engine = Engine::new(core);
        self.engine.recover(&self.journal).unwrap();
        self
    }
}
