//! Tables of cases over the pool, and random ones: a world of one pool, a journal and foreign records.

use eclosion_kernel::engine::{Engine, Step};
use eclosion_kernel::journal::memory::MemoryStore;
use eclosion_kernel::journal::{Append, Journal, JournalStore};
use eclosion_schemas::flow::{FlowSpec, Priority};
use eclosion_schemas::ops::pool::{
    DispatchRequest, EnvironmentBuiltRequest, Wish, WithdrawRequest, WorkerDownRequest, WorkerIdleRequest,
    WorkerUpRequest,
};
use eclosion_schemas::view::{RunState, WorkerState};
use eclosion_schemas::{Code, Payload};

use super::*;

mod ahead;
mod attached;
mod calls;
mod cases;
mod leases;
mod manage;
mod quarantine;
mod random;

struct World {
    journal: Journal,
    engine: Engine<Pool>,
    now: Timestamp,
    wishes: u64,
}

impl World {
    fn new(options: PoolOptions) -> Self {
        let opened = MemoryStore::default().open();
        let pool = Pool { options, bodies: Bodies::default() };
        Self {
            journal: Journal::new(opened, None),
            engine: Engine::new(pool),
            now: Timestamp(1_000),
            wishes: 0,
        }
    }

    fn status(&mut self) -> pool::StatusReply {
        let reply = self.send(&Command::Status).reply.unwrap().unwrap();
        *reply.downcast::<pool::StatusReply>().unwrap()
    }

    fn reads(&self) -> Reads {
        Reads::new(self.journal.epoch(), 0)
    }

    fn send(&mut self, command: &Command) -> Step<Effect> {
        let reads = self.reads();
        self.engine.handle(&self.journal, &reads, command, None, self.now)
    }

    /// Something that another actor decided.
    fn foreign(&mut self, event: impl Event) -> Step<Effect> {
        let events = vec![event.into()];
        let append = Append { events, at: self.now, cause: None, folded: Seq(0), folds: &[] };
        self.journal.append(&append).unwrap();
        self.fold()
    }

    fn fold(&mut self) -> Step<Effect> {
        let reads = self.reads();
        self.engine.fold_new(&self.journal, &reads, self.now)
    }

    fn wait(&mut self, ms: u64) -> Step<Effect> {
        self.now = self.now.plus_ms(ms);
        self.fold()
    }

    fn run(&mut self, run: &str, tenant: &str, environment: &str) {
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
            environment: environment.parse().unwrap(),
            tenant: tenant.parse().unwrap(),
            idem: None,
            no_cache: false,
            rerun_of: None,
            trace: None,
        });
    }

    fn wish(&mut self, run: &str, task: &str) -> Wish {
        let known = self.engine.state().runs[&run.parse().unwrap()].clone();
        // The seq of a record, as the DAG tracker's effects have it: later wishes have larger ids.
        self.wishes += 1;
        let id =
            EffectId { seq: Seq(self.journal.marks().appended.0), n: u32::try_from(self.wishes).unwrap() };
        Wish {
            id,
            execute: Execute {
                run: run.parse().unwrap(),
                task: task.parse().unwrap(),
                attempt: Attempt(1),
                fence: Fence::default(),
                function: "steps:load".into(),
                code: "/".into(),
                code_hash: String::new(),
                arguments: BTreeMap::new(),
                seed: 0,
                idempotency_key: String::new(),
                timeout_ms: None,
                lease: BTreeMap::new(),
                limits: None,
                trace: None,
                timings: false,
                keeps: false,
            },
            environment: known.environment,
            spec: EnvironmentSpec::default(),
            tenant: known.tenant,
            priority: Priority::Normal,
            ready_at: self.now,
        }
    }

    fn dispatch(&mut self, wish: &Wish) -> Step<Effect> {
        self.send(&Command::Dispatch(DispatchRequest { wishes: vec![wish.clone()] }))
    }

    fn built(&mut self, environment: &str) -> Step<Effect> {
        self.send(&Command::EnvironmentBuilt(EnvironmentBuiltRequest {
            environment: environment.parse().unwrap(),
            python: Some("python3".into()),
            error: None,
        }))
    }

    fn up(&mut self, worker: &WorkerId) -> Step<Effect> {
        self.send(&Command::WorkerUp(WorkerUpRequest {
            worker: worker.clone(),
            pid: 42,
            start_ticks: 1,
            boot_id: "b".into(),
            attempts: Vec::new(),
            attached: None,
        }))
    }

    /// A worker that was started by hand says that it is there.
    fn attach(&mut self, worker: &str, environment: &str) -> WorkerId {
        let worker: WorkerId = worker.parse().unwrap();
        self.send(&Command::WorkerUp(WorkerUpRequest {
            worker: worker.clone(),
            pid: 7,
            start_ticks: 1,
            boot_id: "b".into(),
            attempts: Vec::new(),
            attached: Some(environment.parse().unwrap()),
        }));
        worker
    }

    fn down(&mut self, worker: &WorkerId, death: Death) -> Step<Effect> {
        self.send(&Command::WorkerDown(WorkerDownRequest {
            worker: worker.clone(),
            death,
            peak_rss_bytes: Some(1),
            free_memory_bytes: None,
            last_lines: vec!["a last word".into()],
            wanted: false,
        }))
    }

    /// Builds, launches and attaches whatever is owed.
    fn bring_up(&mut self) {
        loop {
            let owed: Vec<_> = self.engine.outstanding().values().cloned().collect();
            let mut done = true;
            for effect in owed {
                match effect {
                    Effect::Build { environment, .. } => drop(self.built(environment.as_str())),
                    Effect::Launch { worker, .. } => drop(self.up(&worker)),
                    _ => continue,
                }
                done = false;
            }
            if done {
                return;
            }
        }
    }

    fn executing(&self) -> Vec<(WorkerId, TaskRef, Fence)> {
        let effects = self.engine.outstanding().values();
        let executing = effects.filter_map(|effect| match effect {
            Effect::Execute { worker, task, fence } => Some((worker.clone(), task.clone(), *fence)),
            _ => None,
        });
        executing.collect()
    }

    fn commit(&mut self, (worker, task, fence): &(WorkerId, TaskRef, Fence)) -> Step<Effect> {
        self.foreign(StepCommitted {
            run: task.run.clone(),
            task: task.task.clone(),
            attempt: Attempt(1),
            fence: *fence,
            worker: worker.clone(),
            output: Payload::default(),
            lease: None,
            cache: None,
            unkept: None,
        })
    }

    fn fail(&mut self, (worker, task, fence): &(WorkerId, TaskRef, Fence), released: bool) -> Step<Effect> {
        self.foreign(StepFailed {
            run: task.run.clone(),
            task: task.task.clone(),
            attempt: Attempt(1),
            fence: *fence,
            worker: worker.clone(),
            error: Error::internal("task.raised", "boom"),
            released,
            lease: None,
        })
    }

    fn finish(&mut self, run: &str) {
        let run = run.parse().unwrap();
        self.foreign(RunFinished { run, state: RunState::Succeeded, error: None, summary: None });
    }

    fn kinds(&self) -> Vec<String> {
        self.journal.after(Seq(0), Pool::FOLDS).records.iter().map(|record| record.kind.to_string()).collect()
    }

    fn count(&self, kind: &str) -> usize {
        self.kinds().iter().filter(|known| *known == kind).count()
    }

    /// The same journal, read back from bytes by another kernel.
    fn restart(&self) -> World {
        let mut store = MemoryStore::default();
        store.append(&self.journal.after(Seq(0), Pool::FOLDS).records, &[]).unwrap();
        let lives = std::iter::repeat_with(|| store.open());
        let opened = lives.take(self.journal.epoch().0 as usize + 1).last().unwrap();
        let journal = Journal::new(opened, Some(store.reader()));
        let mut engine = Engine::new(self.engine.core().clone());
        engine.recover(&journal).unwrap();
        World { journal, engine, now: self.now, wishes: self.wishes }
    }

    /// The next incarnation, in the same life of the kernel.
    fn begin_again(&mut self) {
        let mut engine = Engine::new(self.engine.core().clone());
        engine.recover(&self.journal).unwrap();
        self.engine = engine;
    }

    /// Invariants of the head comment, and the one over replay.
    fn check(&self) {
        let state = self.engine.state();
        let max = self.engine.core().options.workers_max as usize;
        assert!(state.own_workers() <= max, "{} workers", state.workers.len());
        let computing: BTreeMap<Fence, WorkerId> = state
            .workers
            .iter()
            .flat_map(|(id, worker)| worker.given.iter().map(|given| (given.fence, id.clone())))
            .collect();
        assert_eq!(computing, state.fences);
        let running: u32 = state.running.values().sum();
        assert_eq!(running as usize, computing.len());
        let idle: BTreeSet<_> = state.idle.values().flatten().cloned().collect();
        let free = state.workers.iter().filter(|(_, worker)| {
            let up = matches!(worker.phase, WorkerPhase::Up { .. });
            up && worker.given.is_empty() && worker.stopping.is_none()
        });
        assert_eq!(idle, free.map(|(id, _)| id.clone()).collect());
        assert_eq!(self.restart().engine.digest(), self.engine.digest());
        self.check_fences();
    }

    fn check_fences(&self) {
        let mut last = Fence::default();
        let mut answered = BTreeSet::new();
        for record in self.journal.after(Seq(0), &[AttemptStarted::KIND]).records {
            let started = record.event::<AttemptStarted>().unwrap();
            assert!(started.fence > last, "{} after {last}", started.fence);
            assert!(answered.insert(started.wish), "{} was answered twice", started.wish);
            last = started.fence;
        }
    }
}
