//! What is hot in each of the six, and what has to be there before.

use std::collections::BTreeMap;

use eclosion_arbitration::{Arbitration, ArbitrationOptions, Command as ArbitrationCommand};
use eclosion_artifact_store::{Artifacts, Command as ArtifactCommand};
use eclosion_dag_tracker::{Command as DagCommand, DagTracker, Effect as DagEffect};
use eclosion_kernel::core::{Core as _, Query, Reads};
use eclosion_pool_manager::state::Bodies;
use eclosion_pool_manager::{Command as PoolCommand, Effect as PoolEffect, Pool, PoolOptions};
use eclosion_scheduler::state::{Answer, Answered};
use eclosion_scheduler::{Command as SchedulerCommand, Effect as SchedulerEffect, Scheduler};
use eclosion_schemas::events::{AttemptStarted, RunStarted, StepCommitted};
use eclosion_schemas::flow::{EnvironmentSpec, FLOW_SCHEMA, FlowSpec, Priority, TaskSpec};
use eclosion_schemas::operation::Role;
use eclosion_schemas::ops::arbitration::{AcquireRequest, ReleaseRequest};
use eclosion_schemas::ops::artifact::GetRequest;
use eclosion_schemas::ops::pool::{DispatchRequest, EnvironmentBuiltRequest, Wish, WorkerUpRequest};
use eclosion_schemas::ops::run::StartRequest;
use eclosion_schemas::ops::schedule::SetRequest;
use eclosion_schemas::ops::task::{CommitRequest, Execute};
use eclosion_schemas::schedule::{Action, ScheduleSpec, Trigger};
use eclosion_schemas::{
    Attempt, EffectId, Epoch, Fence, Part, Payload, RunId, Seq, TaskId, TaskRef, WorkerId,
};
use eclosion_stale_manager::{RetentionOptions, Stale};

use super::core::Bare;
use crate::Failure;

const RUN: &str = "7k2m4q9d";
const SECOND_MS: u64 = 1_000;

/// One operation, again and again. What `prepare` does for so many of them is not measured.
pub(super) struct Hot {
    pub(super) name: &'static str,
    operation: Box<dyn Operation>,
}

trait Operation {
    fn prepare(&mut self, _: u32) -> Result<(), Failure> {
        Ok(())
    }
    fn operate(&mut self) -> Result<(), Failure>;
}

impl Hot {
    fn new(name: &'static str, operation: impl Operation + 'static) -> Self {
        Self { name, operation: Box::new(operation) }
    }

    pub(super) fn prepare(&mut self, operations: u32) -> Result<(), Failure> {
        self.operation.prepare(operations)
    }

    pub(super) fn operate(&mut self) -> Result<(), Failure> {
        self.operation.operate()
    }
}

pub(super) fn all() -> Result<Vec<Hot>, Failure> {
    Ok(vec![
        Hot::new("pool: claim a worker, give it back", Claim::new()?),
        Hot::new("dag: complete a step", Complete::new()),
        Hot::new("artifacts: look up", LookUp::new()?),
        Hot::new("arbitration: grant, release", Grant::new()?),
        Hot::new("scheduler: tick, answered", Tick::new()?),
        Hot::new("stale: a result is named", Touch::new()?),
    ])
}

/// A schedule that has no tick while anybody measures.
pub(super) fn never() -> Result<ScheduleSpec, Failure> {
    Ok(ScheduleSpec::new(Trigger::Cron { cron: "0 0 1 1 *".into() }, action()))
}

fn action() -> Action {
    Action::Call { operation: "kernel.status".into(), request: serde_json::json!({}), deadline_ms: 1_000 }
}

fn reads() -> Reads {
    Reads::new(Epoch(1), 7)
}

fn fence(counter: u64) -> Fence {
    Fence { epoch: Epoch(1), counter }
}

fn flow(tasks: BTreeMap<String, TaskSpec>) -> FlowSpec {
    FlowSpec {
        schema: FLOW_SCHEMA.into(),
        name: "bench".into(),
        description: String::new(),
        code: "/".into(),
        code_hash: "bench".into(),
        source: None,
        environment: EnvironmentSpec::default(),
        parameters: BTreeMap::new(),
        tasks,
        result: None,
        cache: None,
    }
}

fn started() -> Result<RunStarted, Failure> {
    Ok(RunStarted {
        run: RUN.parse()?,
        flow: flow(BTreeMap::new()),
        parameters: BTreeMap::new(),
        seed: 0,
        content: "bench".into(),
        environment: "e".parse()?,
        tenant: "t".parse()?,
        idem: None,
        no_cache: true,
        rerun_of: None,
        trace: None,
    })
}

fn committed(
    task: TaskId,
    counter: u64,
    worker: WorkerId,
    output: Payload,
) -> Result<StepCommitted, Failure> {
    let (run, attempt, fence) = (RUN.parse()?, Attempt(1), fence(counter));
    Ok(StepCommitted { run, task, attempt, fence, worker, output, lease: None, cache: None, unkept: None })
}

struct Grant {
    core: Bare<Arbitration>,
    request: AcquireRequest,
    released: ReleaseRequest,
}

impl Grant {
    fn new() -> Result<Self, Failure> {
        let mut core = Bare::new(Arbitration { options: ArbitrationOptions::new(4_000, 1 << 30) });
        core.fold(&reads(), started()?);
        let task = TaskRef::new(RUN.parse()?, "train".parse()?);
        let wish = EffectId { seq: Seq(1), n: 0 };
        let request = AcquireRequest {
            wish,
            task: task.clone(),
            tenant: "t".parse()?,
            priority: Priority::Normal,
            amounts: BTreeMap::from([("cpu".to_owned(), 2_000), ("memory".to_owned(), 1 << 20)]),
            since: core.now,
        };
        let released = ReleaseRequest { wish, reason: "bench".into(), task: Some(task) };
        Ok(Self { core, request, released })
    }
}

impl Operation for Grant {
    fn operate(&mut self) -> Result<(), Failure> {
        self.request.wish.seq.0 += 1;
        self.released.wish = self.request.wish;
        let reads = reads();
        self.core.decided.clear();
        self.core.send(&reads, &ArbitrationCommand::Acquire(self.request.clone()))?;
        self.core.send(&reads, &ArbitrationCommand::Release(self.released.clone()))?;
        decided(self.core.decided.len(), 2)
    }
}

struct Claim {
    core: Bare<Pool>,
    bodies: Bodies,
    wish: Wish,
    worker: WorkerId,
    fence: Fence,
}

impl Claim {
    fn new() -> Result<Self, Failure> {
        let bodies = Bodies::default();
        let mut core = Bare::new(Pool { options: PoolOptions::new(1), bodies: bodies.clone() });
        core.fold(&reads(), started()?);
        let wish = Wish {
            id: EffectId { seq: Seq(1), n: 0 },
            execute: execute()?,
            environment: "e".parse()?,
            spec: EnvironmentSpec::default(),
            tenant: "t".parse()?,
            priority: Priority::Normal,
            ready_at: core.now,
        };
        core.send(&reads(), &PoolCommand::Dispatch(DispatchRequest { wishes: vec![wish.clone()] }))?;
        let built = EnvironmentBuiltRequest {
            environment: "e".parse()?,
            python: Some("python3".into()),
            error: None,
        };
        core.send(&reads(), &PoolCommand::EnvironmentBuilt(built))?;
        let launched = core.owed().find_map(|(_, effect)| match effect {
            PoolEffect::Launch { worker, .. } => Some(worker.clone()),
            _ => None,
        });
        let worker = launched.ok_or("a worker is launched")?;
        let up = WorkerUpRequest {
            worker: worker.clone(),
            pid: 42,
            start_ticks: 1,
            boot_id: "b".into(),
            attempts: Vec::new(),
            attached: None,
        };
        core.send(&reads(), &PoolCommand::WorkerUp(up))?;
        let mut claim = Self { core, bodies, wish, worker, fence: Fence::default() };
        claim.given()?;
        Ok(claim)
    }

    /// What was started is handed over, as the shell does it.
    fn given(&mut self) -> Result<(), Failure> {
        let started = self.core.decided.iter().find_map(|event| event.get::<AttemptStarted>());
        self.fence = started.ok_or("an attempt was started")?.fence;
        self.bodies.take(self.fence).ok_or("its body was handed over")?;
        Ok(())
    }
}

fn execute() -> Result<Execute, Failure> {
    Ok(Execute {
        run: RUN.parse()?,
        task: "train".parse()?,
        attempt: Attempt(1),
        fence: Fence::default(),
        function: "steps:train".into(),
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
    })
}

impl Operation for Claim {
    fn operate(&mut self) -> Result<(), Failure> {
        let reads = reads();
        let task = self.wish.execute.task.clone();
        let committed = committed(task, self.fence.counter, self.worker.clone(), Payload::default())?;
        self.core.fold(&reads, committed);
        self.wish.id.seq.0 += 1;
        self.core.decided.clear();
        let dispatch = DispatchRequest { wishes: vec![self.wish.clone()] };
        self.core.send(&reads, &PoolCommand::Dispatch(dispatch))?;
        self.given()
    }
}

struct Complete {
    core: Bare<DagTracker>,
    worker: WorkerId,
    fences: u64,
    ready: Vec<CommitRequest>,
}

impl Complete {
    fn new() -> Self {
        let worker = WorkerId::new("w-1-1").unwrap_or_else(|_| unreachable!("a letter and two numbers"));
        Self { core: Bare::new(DagTracker::default()), worker, fences: 0, ready: Vec::new() }
    }
}

impl Operation for Complete {
    /// A run with so many steps, all of them at a worker.
    fn prepare(&mut self, operations: u32) -> Result<(), Failure> {
        let items = serde_json::json!((0..operations).collect::<Vec<_>>());
        let with = BTreeMap::from([("i".to_owned(), "${item}".into())]);
        let task = TaskSpec { run: "steps:train".into(), with, each: Some(items), ..TaskSpec::default() };
        let flow = flow(BTreeMap::from([("train".to_owned(), task)]));
        let request =
            StartRequest { flow, set: BTreeMap::new(), tenant: None, new: true, idem: None, no_cache: true };
        // Another number for each run: its name is made of it.
        let reads = Reads::new(Epoch(1), self.fences);
        self.core.send(&reads, &DagCommand::Start(Box::new(request), None))?;
        let wishes = self.core.owed().filter_map(|(_, effect)| match effect {
            DagEffect::Dispatch(wish) => Some((**wish).clone()),
            _ => None,
        });
        for wish in wishes.collect::<Vec<_>>() {
            self.fences += 1;
            let Execute { run, task, attempt, .. } = wish.execute;
            let started = AttemptStarted {
                run: run.clone(),
                task: task.clone(),
                attempt,
                fence: fence(self.fences),
                worker: self.worker.clone(),
                lease: None,
                wish: wish.id,
                reason: String::new(),
                content: None,
            };
            self.core.fold(&reads, started);
            let (fence, worker) = (fence(self.fences), self.worker.clone());
            self.ready.push(CommitRequest {
                run,
                task,
                fence,
                worker,
                output: Payload::of(&0.9),
                code: None,
            });
        }
        self.core.decided.clear();
        Ok(())
    }

    fn operate(&mut self) -> Result<(), Failure> {
        let commit = self.ready.pop().ok_or("a step is under way")?;
        self.core.decided.clear();
        self.core.send(&reads(), &DagCommand::Commit(Box::new(commit)))?;
        if self.core.decided.is_empty() { Err("nothing was committed".into()) } else { Ok(()) }
    }
}

struct LookUp {
    core: Bare<Artifacts>,
    command: ArtifactCommand,
    reads: Reads,
}

impl LookUp {
    /// The rows are those that its own projection makes of a commit.
    fn new() -> Result<Self, Failure> {
        let mut rows = Vec::new();
        for record in core_records()? {
            eclosion_artifact_store::project(&record, &mut rows);
        }
        let command = ArtifactCommand::Get(GetRequest { name: format!("{RUN}/train") });
        let mut reads = reads();
        for query in Artifacts.queries(&command) {
            let found = rows.iter().filter(|row| is_of(&query, row.table, &row.key));
            let found = found.filter_map(|row| Some((row.key.clone(), row.value.clone()?))).collect();
            reads.insert(query, found);
        }
        Ok(Self { core: Bare::new(Artifacts), command, reads })
    }
}

fn is_of(query: &Query, table: &str, key: &[u8]) -> bool {
    match query {
        Query::Get { table: of, key: sought } => *of == table && sought == key,
        Query::Scan { table: of, prefix, .. } => *of == table && key.starts_with(prefix),
    }
}

fn core_records() -> Result<Vec<eclosion_kernel::journal::Record>, Failure> {
    let step = committed("train".parse()?, 1, "w-1-1".parse()?, named(1)?)?;
    let events = [started()?.into(), step.into()];
    Ok(events
        .iter()
        .zip(1..)
        .map(|(event, seq)| super::core::record(event, seq, eclosion_schemas::Timestamp(seq)))
        .collect())
}

fn named(n: u64) -> Result<Payload, Failure> {
    let digest = Some(format!("{n:064x}").parse()?);
    let part = Part { digest, bytes: 1 << 20, codec: "npy".into(), ..Part::default() };
    Ok(Payload { parts: vec![part], ..Payload::default() })
}

impl Operation for LookUp {
    fn operate(&mut self) -> Result<(), Failure> {
        Ok(self.core.send(&self.reads, &self.command)?)
    }
}

struct Tick {
    core: Bare<Scheduler>,
}

impl Tick {
    fn new() -> Result<Self, Failure> {
        let mut core = Bare::new(Scheduler::default());
        let every = Trigger::Every { every_ms: SECOND_MS, anchor: core.now };
        let spec = ScheduleSpec::new(every, action());
        let set = SetRequest { name: "nightly".parse()?, spec, replace: false };
        core.send(&reads(), &SchedulerCommand::Set(Box::new(set), Role::Operate))?;
        Ok(Self { core })
    }
}

impl Operation for Tick {
    fn operate(&mut self) -> Result<(), Failure> {
        let reads = reads();
        self.core.now = self.core.now.plus_ms(SECOND_MS);
        self.core.decided.clear();
        self.core.settle(&reads);
        let owed = self.core.owed().find_map(|(_, effect)| match effect {
            SchedulerEffect::Start { name, n, key, .. } => Some((name.clone(), *n, key.clone())),
            SchedulerEffect::Cancel { .. } => None,
        });
        let (name, n, key) = owed.ok_or("a tick is owed")?;
        let outcome = Ok(Answer::Reply(serde_json::Value::Null));
        let answered = Answered { name, n, key, outcome };
        self.core.send(&reads, &SchedulerCommand::Answered(Box::new(answered)))?;
        decided(self.core.decided.len(), 2)
    }
}

struct Touch {
    core: Bare<Stale>,
    run: RunId,
    counter: u64,
    ready: Vec<StepCommitted>,
}

impl Touch {
    fn new() -> Result<Self, Failure> {
        let mut core = Bare::new(Stale { options: RetentionOptions::default() });
        core.fold(&reads(), started()?);
        Ok(Self { core, run: RUN.parse()?, counter: 0, ready: Vec::new() })
    }
}

impl Operation for Touch {
    fn prepare(&mut self, operations: u32) -> Result<(), Failure> {
        self.ready.clear();
        for _ in 0..operations {
            self.counter += 1;
            let step = committed("train".parse()?, self.counter, "w-1-1".parse()?, named(self.counter)?)?;
            self.ready.push(StepCommitted { run: self.run.clone(), ..step });
        }
        Ok(())
    }

    fn operate(&mut self) -> Result<(), Failure> {
        let step = self.ready.pop().ok_or("a step was committed")?;
        self.core.fold(&reads(), step);
        Ok(())
    }
}

/// What an operation decides, so that none is measured that does nothing.
fn decided(events: usize, expected: usize) -> Result<(), Failure> {
    if events == expected {
        Ok(())
    } else {
        Err(format!("{events} events were decided, and {expected} expected").into())
    }
}
