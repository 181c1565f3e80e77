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

mod clients;
mod grants;
mod locks;
mod places;
mod random;

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
        self.engine.state().by_wish.get(&WishId::Task(request.wish)).cloned()
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
            unkept: None,
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

const DB: (&str, u64) = ("lock:db", LOCK_WHOLE);

fn with_rate(rate: &str) -> ArbitrationOptions {
    let mut options = ArbitrationOptions::new(4_000, 1_000);
    options.rates.insert("api".into(), rate.parse().unwrap());
    options
}
