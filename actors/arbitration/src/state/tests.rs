//! Tables of cases over arbitration, and random ones: a world of one core, a journal and foreign records.

use eclosion_kernel::engine::{Engine, Step};
use eclosion_kernel::journal::memory::MemoryStore;
use eclosion_kernel::journal::{Append, Journal, JournalStore};
use eclosion_schemas::certificate::{Death, DeathCertificate};
use eclosion_schemas::flow::{EnvironmentSpec, FlowSpec, Priority};
use eclosion_schemas::ops::arbitration::{LOCK_WHOLE, Scarce, StatusReply};
use eclosion_schemas::pending::PendingReason;
use eclosion_schemas::view::RunState;
use eclosion_schemas::{Attempt, Payload, Seq};
use proptest::prelude::*;

use super::*;

struct World {
    journal: Journal,
    engine: Engine<Arbitration>,
    now: Timestamp,
    wishes: u32,
}

impl World {
    fn new(mut options: ArbitrationOptions) -> Self {
        options.weights.insert("heavy".parse().unwrap(), 2);
        let journal = Journal::new(MemoryStore::default().open(), None);
        let engine = Engine::new(Arbitration { options });
        Self { journal, engine, now: Timestamp(1_000), wishes: 0 }
    }

    fn with_runs() -> Self {
        let mut world = Self::new(ArbitrationOptions::new(4_000, 1_000));
        for (run, tenant) in [("a", "light"), ("b", "heavy"), ("c", "light")] {
            world.run(run, tenant);
        }
        world
    }

    fn send(&mut self, command: &Command) -> Step<Effect> {
        let reads = Reads::new(self.journal.epoch(), 0);
        self.engine.handle(&self.journal, &reads, command, None, self.now)
    }

    fn foreign(&mut self, event: impl Event) -> Step<Effect> {
        let append =
            Append { events: vec![event.into()], at: self.now, cause: None, folded: Seq(0), folds: &[] };
        self.journal.append(&append).unwrap();
        self.engine.fold_new(&self.journal, &Reads::new(self.journal.epoch(), 0), self.now)
    }

    fn run(&mut self, run: &str, tenant: &str) {
        let flow = FlowSpec {
            schema: String::new(),
            name: run.into(),
            description: String::new(),
            code: "/".into(),
            code_hash: String::new(),
            source: None,
            environment: EnvironmentSpec::default(),
            parameters: BTreeMap::new(),
            tasks: BTreeMap::new(),
            result: None,
            cache: None,
        };
        self.foreign(RunStarted {
            run: run.parse().unwrap(),
            flow,
            parameters: BTreeMap::new(),
            seed: 0,
            content: run.into(),
            environment: "e".parse().unwrap(),
            tenant: tenant.parse().unwrap(),
            idem: None,
            no_cache: false,
            rerun_of: None,
            trace: None,
        });
    }

    fn request(&mut self, run: &str, cpu: u64, memory: u64) -> AcquireRequest {
        self.wishes += 1;
        let amounts = [("cpu".to_owned(), cpu), ("memory".to_owned(), memory)];
        AcquireRequest {
            wish: EffectId { seq: Seq(100), n: self.wishes },
            task: TaskRef::new(run.parse().unwrap(), format!("t{}", self.wishes).parse().unwrap()),
            tenant: if run == "b" { "heavy" } else { "light" }.parse().unwrap(),
            priority: Priority::Normal,
            amounts: amounts.into_iter().filter(|(_, amount)| *amount > 0).collect(),
            since: self.now,
        }
    }

    fn acquire(&mut self, run: &str, cpu: u64, memory: u64) -> AcquireRequest {
        let request = self.request(run, cpu, memory);
        self.send(&Command::Acquire(request.clone()));
        request
    }

    /// By arbitration's keys.
    fn acquire_all(&mut self, run: &str, amounts: &[(&str, u64)]) -> AcquireRequest {
        let amounts = amounts.iter().map(|(key, amount)| ((*key).to_owned(), *amount)).collect();
        let request = AcquireRequest { amounts, ..self.request(run, 0, 0) };
        self.send(&Command::Acquire(request.clone()));
        request
    }

    /// As the shell does when the time has come that `wake_at` names.
    fn wake(&mut self) {
        let at = self.engine.volatile().wake_at;
        self.now = at.unwrap();
        self.engine.fold_new(&self.journal, &Reads::new(self.journal.epoch(), 0), self.now);
    }

    fn status(&mut self) -> StatusReply {
        *self.send(&Command::Status).reply.unwrap().unwrap().downcast().unwrap()
    }

    fn release(&mut self, request: &AcquireRequest) -> Step<Effect> {
        let (wish, task) = (request.wish, Some(request.task.clone()));
        self.send(&Command::Release(ReleaseRequest { wish, reason: "withdrawn".into(), task }))
    }

    fn lease(&self, request: &AcquireRequest) -> Option<LeaseId> {
        self.engine.state().by_wish.get(&request.wish).cloned()
    }

    /// Its attempt is given to a worker of the same number.
    fn start(&mut self, request: &AcquireRequest) -> Fence {
        let fence = Fence { epoch: Epoch(1), counter: u64::from(request.wish.n) };
        let lease = self.lease(request);
        self.foreign(AttemptStarted {
            run: request.task.run.clone(),
            task: request.task.task.clone(),
            attempt: Attempt(1),
            fence,
            worker: worker(fence),
            lease,
            wish: request.wish,
            reason: String::new(),
            content: None,
        });
        fence
    }

    fn commit(&mut self, request: &AcquireRequest, fence: Fence) {
        self.foreign(StepCommitted {
            run: request.task.run.clone(),
            task: request.task.task.clone(),
            attempt: Attempt(1),
            fence,
            worker: worker(fence),
            output: Payload::default(),
            lease: None,
            cache: None,
        });
    }

    fn fail(&mut self, request: &AcquireRequest, fence: Fence, released: bool) {
        self.foreign(StepFailed {
            run: request.task.run.clone(),
            task: request.task.task.clone(),
            attempt: Attempt(1),
            fence,
            worker: worker(fence),
            error: Error::internal("task.raised", "boom"),
            released,
            lease: None,
        });
    }

    fn die(&mut self, fence: Fence) {
        let certificate = DeathCertificate {
            worker: worker(fence),
            pid: 1,
            death: Death::Exited { code: 1 },
            at: self.now,
            task: None,
            attempt: None,
            peak_rss_bytes: None,
            free_memory_bytes: None,
            last_lines: Vec::new(),
        };
        self.foreign(WorkerDied { worker: worker(fence), certificate, fence: Some(fence), wanted: false });
    }

    fn free(&self, resource: &str) -> u64 {
        self.engine.core().options.capacity(resource) - self.engine.state().used(resource)
    }

    fn check(&self) {
        let state = self.engine.state();
        let mut used: BTreeMap<String, u64> = BTreeMap::new();
        for lease in state.leases.values() {
            for (resource, amount) in &lease.amounts {
                if !Scarce::of(resource).is_rate() {
                    *used.entry(resource.clone()).or_default() += amount;
                }
            }
        }
        assert_eq!(used, state.used);
        for (resource, used) in used {
            assert!(used <= self.engine.core().options.capacity(&resource), "{used} of {resource}");
        }
        assert_eq!(state.leases.len(), state.by_wish.len());
        let mut store = MemoryStore::default();
        store.append(&self.journal.unwritten(usize::MAX), &[]).unwrap();
        let mut replayed = Engine::new(self.engine.core().clone());
        replayed.recover(&Journal::new(store.open(), Some(store.reader()))).unwrap();
        assert_eq!(replayed.digest(), self.engine.digest());
    }
}

fn worker(fence: Fence) -> WorkerId {
    format!("w-1-{}", fence.counter).parse().unwrap()
}

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
    assert_eq!((&holders[0].task, holders[0].since), (&held.task, Timestamp(1_000)));
    assert_eq!((status.tenants.len(), status.tenants[1].running), (2, 1));
}

const DB: (&str, u64) = ("lock:db", LOCK_WHOLE);
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
    assert_eq!((lock.as_str(), holders.len(), &holders[0].task), ("db", 3, &shared[0].task));
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

fn with_rate(rate: &str) -> ArbitrationOptions {
    let mut options = ArbitrationOptions::new(4_000, 1_000);
    options.rates.insert("api".into(), rate.parse().unwrap());
    options
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

#[test]
fn many_who_wait_for_the_same_do_not_hide_one_who_could_go_on() {
    let mut world = World::with_runs();
    world.acquire_all("a", &[DB]);
    (0..200).for_each(|_| drop(world.acquire_all("a", &[DB])));
    let other = world.acquire_all("a", &[("lock:index", LOCK_WHOLE)]);
    assert!(world.lease(&other).is_some());
    let status = world.status();
    assert_eq!((status.waiting_count, status.waiting.len(), status.next.len()), (200, 100, 100));
    assert_eq!(status.next[0], status.waiting[0].task);
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
                lease.is_some_and(|lease| lease.held_by.is_none())
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
