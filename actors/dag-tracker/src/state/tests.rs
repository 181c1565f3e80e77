//! A world around the core: a journal in memory, a pool manager that is played by hand, a clock that is turned.

mod attempts;
mod cache;
mod finished;
mod flows;
mod random;
mod rerun;
mod runs;

use std::any::Any;
use std::collections::BTreeMap;

use eclosion_kernel::engine::Engine;
use eclosion_kernel::journal::memory::MemoryStore;
use eclosion_kernel::journal::{Append, Journal, JournalStore};
use eclosion_schemas::certificate::{Death, DeathCertificate};
use eclosion_schemas::flow::FlowSpec;
use eclosion_schemas::ops::cache::FindReply;
use eclosion_schemas::ops::run::{CancelReply, GetReply, StartReply};
use eclosion_schemas::ops::task::{Argument, CodeSeen, CommitReply};
use eclosion_schemas::view::{RunState, TaskState, TaskView};
use eclosion_schemas::{Attempt, Code, Payload, Retry, TaskId, TaskRef, WorkerId};
use serde::de::DeserializeOwned;

use super::*;
use crate::{Plan, builder, project, view};

struct World {
    store: MemoryStore,
    journal: Journal,
    engine: Engine<DagTracker>,
    now: Timestamp,
    fences: u64,
    entropy: u64,
    /// Outputs that are not stored any more.
    collected: BTreeSet<TaskRef>,
}

impl World {
    fn new() -> Self {
        let store = MemoryStore::default();
        let journal = Journal::new(store.open(), Some(store.reader()));
        let (engine, collected) = (Engine::new(DagTracker::default()), BTreeSet::new());
        Self { store, journal, engine, now: Timestamp(1_000), fences: 0, entropy: 0, collected }
    }

    fn ask<R: 'static>(&mut self, command: Command) -> Result<R, Error> {
        self.entropy += 1;
        self.write();
        let mut reads = Reads::new(self.journal.epoch(), self.entropy);
        for query in DagTracker::default().queries(&command) {
            let reader = self.store.reader();
            let rows = match &query {
                Query::Get { table, key } => {
                    reader.get(table, key)?.map(|value| (key.clone(), value)).into_iter().collect()
                }
                Query::Scan { table, prefix, newest_first, limit } => {
                    reader.scan(table, prefix, *newest_first, *limit)?
                }
            };
            reads.insert(query, rows);
        }
        let step = self.engine.handle(&self.journal, &reads, &command, None, self.now);
        let reply: Box<dyn Any + Send> = step.reply.expect("a command is answered")?;
        Ok(*reply.downcast::<R>().expect("the reply of its operation"))
    }

    /// Somebody else decides something.
    fn fact(&mut self, event: impl Into<AnyEvent>) {
        self.append(event);
        self.wake();
    }

    fn append(&mut self, event: impl Into<AnyEvent>) {
        let append = Append {
            events: vec![event.into()],
            at: self.now,
            cause: None,
            folded: Seq(u64::MAX),
            folds: &[],
        };
        self.journal.append(&append).expect("appends");
    }

    fn wake(&mut self) {
        let reads = Reads::new(self.journal.epoch(), self.entropy);
        self.engine.fold_new(&self.journal, &reads, self.now);
    }

    /// Turns the clock and lets the core do what is due.
    fn pass_ms(&mut self, ms: u64) {
        self.now = self.now.plus_ms(ms);
        self.wake();
    }

    fn start(&mut self, flow: &FlowSpec) -> RunId {
        let request = self.request(flow);
        self.ask::<StartReply>(Command::Start(Box::new(request), None)).expect("starts").run
    }

    fn request(&self, flow: &FlowSpec) -> StartRequest {
        let (flow, set) = (flow.clone(), BTreeMap::new());
        StartRequest { flow, set, tenant: None, new: true, idem: None, no_cache: false }
    }

    fn looks(&self) -> BTreeMap<EffectId, Look> {
        let look = |(id, effect): (&EffectId, &Effect)| match effect {
            Effect::Look(look) => Some((*id, (**look).clone())),
            _ => None,
        };
        self.engine.outstanding().iter().filter_map(look).collect()
    }

    /// The shell answers looks until none is owed.
    fn look(&mut self) {
        loop {
            let (ids, lookups): (Vec<_>, Vec<_>) =
                self.looks().into_iter().map(|(id, look)| (id, look.lookup)).unzip();
            if ids.is_empty() {
                return;
            }
            let request = FindRequest { lookups: lookups.clone() };
            let reply: FindReply = self.ask(Command::Find(request)).expect("finds");
            let asked: Vec<_> = ids.into_iter().zip(lookups).collect();
            let looks = crate::look::looking(&asked, Ok(reply));
            let payloads: Vec<_> =
                looks.iter().flat_map(crate::look::named).map(|output| self.recalled(output)).collect();
            self.ask::<()>(crate::look::answers(looks, payloads)).expect("answers");
        }
    }

    /// The artifact store gives what was committed.
    fn recalled(&mut self, output: &TaskRef) -> Option<Payload> {
        if self.collected.contains(output) {
            return None;
        }
        let is_it = |run: &RunId, task: &TaskId| *run == output.run && *task == output.task;
        let committed =
            self.recorded::<StepCommitted>().into_iter().filter(|event| is_it(&event.run, &event.task));
        let committed = committed.map(|event| event.output.clone()).next();
        let reused = self.recorded::<StepReused>().into_iter().filter(|event| is_it(&event.run, &event.task));
        committed.or_else(|| reused.map(|event| event.output.clone()).next())
    }

    fn all_wishes(&self) -> Vec<Wish> {
        let wish = |effect: &Effect| match effect {
            Effect::Dispatch(wish) => Some((**wish).clone()),
            _ => None,
        };
        self.engine.outstanding().values().filter_map(wish).collect()
    }

    fn wishes(&self) -> BTreeMap<String, Wish> {
        self.all_wishes().into_iter().map(|wish| (wish.execute.task.to_string(), wish)).collect()
    }

    fn wished(&self) -> Vec<String> {
        self.wishes().into_keys().collect()
    }

    /// The pool manager answers the wish for a task.
    fn attempt(&mut self, task: &str) -> Fence {
        let wish = self.wishes().remove(task).unwrap_or_else(|| panic!("{task} is wished for"));
        self.attempt_for(&wish)
    }

    fn attempt_for(&mut self, wish: &Wish) -> Fence {
        self.fences += 1;
        let fence = Fence { epoch: self.journal.epoch(), counter: self.fences };
        self.fact(AttemptStarted {
            run: wish.execute.run.clone(),
            task: wish.execute.task.clone(),
            attempt: wish.execute.attempt,
            fence,
            worker: worker(),
            lease: None,
            wish: wish.id,
            reason: "idle".into(),
            content: None,
        });
        fence
    }

    fn commit(&mut self, run: &RunId, task: &str, fence: Fence, output: Payload) -> CommitReply {
        let hash = self.engine.state().run(run).map(|run| run.plan.code_hash.clone()).unwrap_or_default();
        self.commit_seeing(run, task, fence, output, Some(CodeSeen { hash, is_written: false }))
    }

    /// Its code was found like this.
    fn commit_seeing(
        &mut self,
        run: &RunId,
        task: &str,
        fence: Fence,
        output: Payload,
        code: Option<CodeSeen>,
    ) -> CommitReply {
        let request =
            CommitRequest { run: run.clone(), task: id(task), fence, worker: worker(), output, code };
        self.ask(Command::Commit(Box::new(request))).expect("answers")
    }

    /// From wish to result.
    fn succeed<T: serde::Serialize>(&mut self, run: &RunId, task: &str, value: &T) {
        let fence = self.attempt(task);
        assert_eq!(self.commit(run, task, fence, Payload::of(value)), CommitReply::Committed, "{task}");
    }

    fn fail(&mut self, run: &RunId, task: &str, fence: Fence) -> CommitReply {
        let error = Error::internal("task.raised", "boom").retry(Retry::Now);
        let request = FailRequest { run: run.clone(), task: id(task), fence, worker: worker(), error };
        self.ask(Command::Fail(Box::new(request))).expect("answers")
    }

    fn kill(&mut self, run: &RunId, task: &str, fence: Fence) {
        let certificate = DeathCertificate {
            worker: worker(),
            pid: 1,
            death: Death::Killed { signal: 9, sender: None },
            at: self.now,
            task: Some(TaskRef::new(run.clone(), id(task))),
            attempt: Some(Attempt(1)),
            peak_rss_bytes: None,
            free_memory_bytes: None,
            last_lines: vec!["so long".into()],
        };
        self.fact(WorkerDied { worker: worker(), certificate, fence: Some(fence), wanted: false });
    }

    fn cancel(&mut self, run: &RunId) -> RunState {
        let request = CancelRequest { run: run.clone(), reason: "enough".into() };
        self.ask::<CancelReply>(Command::Cancel(request)).expect("cancels").state
    }

    fn get(&mut self, run: &RunId) -> GetReply {
        self.ask(Command::Get(RunRequest { run: run.clone() })).expect("is known")
    }

    fn state_of(&mut self, run: &RunId) -> RunState {
        self.get(run).run.state
    }

    fn task(&self, run: &RunId, task: &str) -> TaskView {
        view::task_view(self.engine.state(), run, &id(task)).unwrap_or_else(|| panic!("{task} exists"))
    }

    fn tasks(&self, run: &RunId) -> Vec<(String, TaskState)> {
        let views = view::task_views(self.engine.state(), run);
        views.into_iter().map(|view| (view.task.to_string(), view.state)).collect()
    }

    /// The events of a kind, typed.
    fn recorded<E: Event>(&mut self) -> Vec<std::sync::Arc<E>> {
        self.journal.after(Seq(0), &[E::KIND]).records.iter().filter_map(|record| record.event()).collect()
    }

    /// Everything that is in the tail reaches the store, rows included.
    fn write(&mut self) {
        loop {
            let batch = self.journal.unwritten(1_024);
            let Some(last) = batch.last().map(|record| record.seq) else { return };
            let mut rows = Vec::new();
            batch.iter().for_each(|record| project(record, &mut rows));
            self.store.append(&batch, &rows).expect("memory");
            self.journal.mark_written(last);
        }
    }

    /// The kernel dies and starts again on what is stored. Nothing may have changed.
    fn restart(&mut self) {
        self.write();
        let (digest, owed) = (self.engine.digest(), self.engine.outstanding().clone());
        self.journal = Journal::new(self.store.open(), Some(self.store.reader()));
        self.engine = Engine::new(DagTracker::default());
        self.engine.recover(&self.journal).expect("recovers");
        assert_eq!(self.engine.digest(), digest, "replay gives the same state");
        assert_eq!(self.engine.outstanding(), &owed);
    }

    /// What must hold after every event, whatever happened.
    fn check(&self) {
        let state = self.engine.state();
        let mut ready = BTreeSet::new();
        for run in state.runs.values() {
            let mut counts = BTreeMap::<TaskState, u32>::new();
            let mut open = 0;
            for instance in run.groups.iter().flat_map(|group| &group.instances) {
                *counts.entry(instance.phase.state()).or_default() += 1;
                open += u32::from(!instance.phase.is_final());
                if let Phase::Ready { wish } = instance.phase {
                    ready.insert(wish);
                }
                if let Phase::Running { fence, .. } = instance.phase {
                    assert!(state.index.attempts.contains_key(&fence));
                }
            }
            assert_eq!((&counts, open), (&run.counts, run.open), "{}", run.id);
            assert_eq!(open == 0, run.state.is_final(), "{} ends exactly when everything has", run.id);
        }
        let wished =
            state.index.outstanding.iter().filter(|(_, effect)| !matches!(effect, Effect::Withdraw { .. }));
        let wished = wished.map(|(id, _)| *id).collect::<BTreeSet<_>>();
        assert_eq!(wished, ready, "wished or looked for is what is ready");
    }
}

fn id(task: &str) -> TaskId {
    task.parse().expect("a task id")
}

fn worker() -> WorkerId {
    "w-1-1".parse().expect("a worker id")
}

/// The value of an argument that is one payload.
fn value<T: DeserializeOwned>(wish: &Wish, argument: &str) -> T {
    match &wish.execute.arguments[argument] {
        Argument::Value { payload } => rmp_serde::from_slice(&payload.body).expect("msgpack"),
        Argument::List { .. } => panic!("{argument} is a list of outputs"),
    }
}

/// The values of an argument that is a list of outputs.
fn values<T: DeserializeOwned>(wish: &Wish, argument: &str) -> Vec<T> {
    match &wish.execute.arguments[argument] {
        Argument::List { payloads } => {
            payloads.iter().map(|payload| rmp_serde::from_slice(&payload.body).expect("msgpack")).collect()
        }
        Argument::Value { .. } => panic!("{argument} is one value"),
    }
}

/// `a → b → c`, each with its predecessor's output.
fn chain() -> FlowSpec {
    builder::Flow::new("chain")
        .task("a", "m:a")
        .task("b", "m:b")
        .with("x", "${a}")
        .task("c", "m:c")
        .with("x", "${b}")
        .build()
        .expect("a flow")
}

fn single(change: impl FnOnce(builder::Task) -> builder::Task) -> FlowSpec {
    change(builder::Flow::new("single").task("a", "m:a")).build().expect("a flow")
}
