//! Every subsystem panics at every point of handling a message, once and twice, in a kernel that runs: real shells,
//! mailboxes, supervision and journal. The caller is answered by the next incarnation, or told by name who died; what the
//! actor knows afterwards is what its records say; the others have not noticed.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test, helpers and all")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use eclosion_arbitration::{ArbitrationActor, ArbitrationOptions};
use eclosion_artifact_store::{ArtifactActor, BlobStore};
use eclosion_bus::{Address, Bus, Message};
use eclosion_dag_tracker::{DagActor, Flow};
use eclosion_kernel::actor::{CommandOf, EffectOf, Outputs, StateOf};
use eclosion_kernel::core::{AnyEvent, Core};
use eclosion_kernel::engine::Engine;
use eclosion_kernel::journal::{Journal, Projection, Record};
use eclosion_kernel::{Actor, Context, Kernel};
use eclosion_pool_manager::{EnvironmentBuilder, Launcher, PoolManager, PoolOptions};
use eclosion_scheduler::SchedulerActor;
use eclosion_schemas::events::GcErased;
use eclosion_schemas::flow::{EnvironmentSpec, FlowSpec, Priority};
use eclosion_schemas::ops::task::{Commit, CommitRequest, Execute};
use eclosion_schemas::ops::{arbitration, artifact, gc, pool, run, schedule};
use eclosion_schemas::schedule::{Action, ScheduleSpec, Trigger};
use eclosion_schemas::{
    Code, Digest, EffectId, EnvironmentId, Error, Fence, Operation, Payload, RunId, Seq, TaskRef, Timestamp,
    WorkerId,
};
use eclosion_simulation::{Point, Trap, Trapped};
use eclosion_stale_manager::{Disk, Found, Recorded, Records, RetentionOptions, StaleActor};
use eclosion_store_fs::{FileStore, ObjectStock};
use tokio::sync::watch;

/// A function that nobody finishes.
const HELD: &str = "steps:held";

/// The real actor, its core in a trap, and what its last incarnation has shown of its state.
struct Watched<A> {
    actor: Arc<A>,
    trap: Trap,
    shown: watch::Sender<String>,
}

impl<A: Actor> Actor for Watched<A> {
    type Core = Trapped<A::Core>;

    fn address(&self) -> &'static str {
        self.actor.address()
    }

    fn core(&self) -> Trapped<A::Core> {
        Trapped::new(self.actor.core(), self.trap.clone())
    }

    fn command(&self, message: &Message) -> Result<CommandOf<Self>, Error> {
        self.trap.comes(message.operation);
        self.actor.command(message)
    }

    fn perform(&self, effects: &[(EffectId, EffectOf<Self>)], context: &Context<CommandOf<Self>>) {
        self.actor.perform(effects, context);
    }

    fn target(&self, effect: &EffectOf<Self>) -> Option<&'static str> {
        self.actor.target(effect)
    }

    fn stays_inside(&self, effect: &EffectOf<Self>) -> bool {
        self.actor.stays_inside(effect)
    }

    fn can_wait(&self, event: &AnyEvent) -> bool {
        self.actor.can_wait(event)
    }

    fn adopt(&self, context: &Context<CommandOf<Self>>) -> Option<CommandOf<Self>> {
        self.actor.adopt(context)
    }

    fn publish(&self, state: &StateOf<Self>, records: &[Arc<Record>], outputs: &mut Outputs) {
        self.actor.publish(state, records, outputs);
        self.shown.send_replace(self.actor.core().digest(state));
    }

    fn projection(&self) -> Option<Projection> {
        self.actor.projection()
    }
}

/// What the test keeps of an actor.
struct Watch {
    trap: Trap,
    shown: watch::Receiver<String>,
    /// The state that the journal's records give.
    folded: Box<dyn Fn(&Journal) -> String>,
}

fn watched<A: Actor>(actor: A, watches: &mut BTreeMap<&'static str, Watch>) -> Watched<A> {
    let actor = Arc::new(actor);
    let (trap, (shown, seen)) = (Trap::default(), watch::channel(String::new()));
    let again = Arc::clone(&actor);
    let folded = Box::new(move |journal: &Journal| {
        let mut engine = Engine::new(again.core());
        engine.recover(journal).expect("it can be folded");
        engine.digest()
    });
    watches.insert(actor.address(), Watch { trap: trap.clone(), shown: seen, folded });
    Watched { actor, trap, shown }
}

/// Workers and environments without a process: everything is there at once, and every task but one gives its name.
#[derive(Clone, Default)]
struct Machine(Arc<OnceLock<Bus>>);

impl Machine {
    fn say<O: Operation>(&self, request: O::Request)
    where
        O::Request: Clone + Sync,
    {
        let bus = self.0.get().expect("it has started").clone();
        tokio::spawn(async move {
            // As a holder does: until somebody is there to hear it.
            while bus.ask::<O>(request.clone()).await.is_err_and(|why| why.code == Code::Unavailable) {}
        });
    }
}

impl Launcher for Machine {
    fn launch(&self, worker: &WorkerId, _: &EnvironmentId, _: &str, _: &EnvironmentSpec) {
        let (worker, pid, boot_id) = (worker.clone(), 4_242, "b".into());
        let (attempts, attached) = (Vec::new(), None);
        self.say::<pool::WorkerUp>(pool::WorkerUpRequest {
            worker,
            pid,
            start_ticks: 1,
            boot_id,
            attempts,
            attached,
        });
    }

    fn execute(&self, worker: &WorkerId, execute: Execute) {
        if execute.function != HELD {
            let Execute { run, task, fence, .. } = execute;
            let output = Payload::of(&task.as_str());
            self.say::<Commit>(CommitRequest {
                run,
                task,
                fence,
                worker: worker.clone(),
                output,
                code: None,
            });
        }
    }

    fn cancel(&self, _: &WorkerId, _: Fence) {}

    fn stop(&self, _: &WorkerId) {}

    fn kill(&self, _: &WorkerId, _: &str) {}

    fn live(&self) -> Vec<WorkerId> {
        Vec::new()
    }

    fn reserved(&self) -> Vec<(WorkerId, pool::ReserveRequest)> {
        Vec::new()
    }
}

impl EnvironmentBuilder for Machine {
    fn build(&self, environment: &EnvironmentId, _: &EnvironmentSpec) {
        let (environment, python, error) = (environment.clone(), Some("python3".into()), None);
        self.say::<pool::EnvironmentBuilt>(pool::EnvironmentBuiltRequest { environment, python, error });
    }
}

/// The rows of the kernel itself.
#[derive(Debug, Clone, Default)]
struct Rows(Arc<OnceLock<Kernel>>);

impl Rows {
    fn kernel(&self) -> &Kernel {
        self.0.get().expect("it has started")
    }
}

impl Records for Rows {
    fn written(&self) -> Seq {
        self.kernel().journal().marks().written
    }

    fn runs(&self) -> Result<Vec<Found>, Error> {
        Ok(Vec::new())
    }

    fn names(&self) -> Result<BTreeMap<Digest, Vec<RunId>>, Error> {
        eclosion_artifact_store::rows::names(&**self.kernel().reader())
    }

    fn rows(&self, _: &RunId) -> Result<Vec<GcErased>, Error> {
        Ok(Vec::new())
    }

    fn deletions(&self) -> Result<Vec<Recorded>, Error> {
        Ok(Vec::new())
    }

    fn disk(&self) -> Option<Disk> {
        None
    }
}

/// A kernel with the six, a run that has ended, one that never will, and bytes that nothing names.
struct House {
    kernel: Kernel,
    watches: BTreeMap<&'static str, Watch>,
    ended: RunId,
    held: RunId,
    _directory: tempfile::TempDir,
}

fn flow(function: &str) -> FlowSpec {
    Flow::new("demo").code("/flow").task("t0", function).build().expect("a flow")
}

fn start(function: &str, key: &str) -> run::StartRequest {
    run::StartRequest {
        flow: flow(function),
        set: BTreeMap::new(),
        tenant: None,
        new: true,
        idem: Some(key.into()),
        no_cache: false,
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("it hangs")
}

/// What nothing tells of, and what is there in a moment.
async fn until(reached: impl Fn() -> bool) {
    while !reached() {
        tokio::task::yield_now().await;
    }
}

impl House {
    async fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let files = Arc::new(FileStore::open(directory.path()).expect("a store"));
        let (stage, fd) = files.stage(4).expect("a file");
        File::from(fd).write_all(b"lost").expect("written");
        files.seal(stage).expect("sealed");
        let (machine, rows, bus) = (Machine::default(), Rows::default(), Arc::<OnceLock<Bus>>::default());
        let retention = RetentionOptions { unnamed_ms: 0, interval_ms: 0, ..RetentionOptions::default() };
        let stock = Arc::new(ObjectStock::new(Arc::clone(&files)));
        let stale = StaleActor::new(retention, vec![stock], Arc::new(rows.clone()));
        let (passes, passing) = (stale.clone(), Arc::clone(&bus));
        let launcher: Arc<dyn Launcher> = Arc::new(machine.clone());
        let pool = PoolManager::new(PoolOptions::new(2), launcher, Arc::new(machine.clone()));
        let mut watches = BTreeMap::new();
        let kernel = Kernel::builder()
            .operations(eclosion_schemas::ops::table().expect("a table"))
            .actor(watched(ArtifactActor::new(files), &mut watches))
            .actor(watched(ArbitrationActor::new(ArbitrationOptions::new(8_000, 1_000)), &mut watches))
            .actor(watched(pool, &mut watches))
            .actor(watched(DagActor::new(), &mut watches))
            .actor(watched(SchedulerActor::new(), &mut watches))
            .actor(watched(stale, &mut watches))
            .service(eclosion_stale_manager::PASSES, move || passes.passes(Arc::clone(&passing)))
            .start()
            .await
            .expect("it starts");
        machine.0.get_or_init(|| kernel.bus().clone());
        bus.get_or_init(|| kernel.bus().clone());
        rows.0.get_or_init(|| kernel.clone());
        kernel.adopt();
        kernel.run();
        let ended = kernel.bus().ask::<run::Start>(start("steps:work", "ended")).await.expect("starts").run;
        let held = kernel.bus().ask::<run::Start>(start(HELD, "held")).await.expect("starts").run;
        loop {
            let request = run::RunRequest { run: ended.clone() };
            let view = kernel.bus().ask::<run::Get>(request).await.expect("it is known");
            if view.run.state.is_final() {
                break;
            }
        }
        Self { kernel, watches, ended, held, _directory: directory }
    }

    /// Something that each of them decides; what it was answered, in short.
    async fn ask(&self, address: &str) -> Result<String, Error> {
        let bus = self.kernel.bus();
        let to: Address = address.parse().expect("an address");
        match address {
            artifact::ADDRESS => {
                let name = format!("{}/t0", self.ended);
                let request = artifact::PinRequest { name, holder: "ada".into(), reason: String::new() };
                let reply = bus.ask::<artifact::Pin>(request).to(&to).await?;
                Ok(reply.holders.join(" "))
            }
            arbitration::ADDRESS => {
                let task = TaskRef::new(self.held.clone(), "t0".parse().expect("a task"));
                let wish = EffectId { seq: Seq(1_000_000), n: 0 };
                let (tenant, amounts) = ("ada".parse().expect("a tenant"), [("memory".into(), 10)].into());
                let (priority, since) = (Priority::Normal, Timestamp(0));
                let request = arbitration::AcquireRequest { wish, task, tenant, priority, amounts, since };
                bus.ask::<arbitration::Acquire>(request).await.map(|_| String::new())
            }
            pool::ADDRESS => {
                let request = pool::DrainRequest { reason: "a driver".into(), ..Default::default() };
                bus.ask::<pool::Drain>(request).await.map(|_| String::new())
            }
            run::ADDRESS => {
                let reply = bus.ask::<run::Start>(start(HELD, "again")).await?;
                Ok(reply.run.to_string())
            }
            schedule::ADDRESS => {
                let action =
                    Action::Run { flow: Box::new(flow("steps:work")), set: BTreeMap::new(), tenant: None };
                let trigger = Trigger::Every { every_ms: 3_600_000, anchor: Timestamp(0) };
                let name = "hourly".parse().expect("a name");
                let spec = ScheduleSpec::new(trigger, action);
                let request = schedule::SetRequest { name, spec, replace: false };
                bus.ask::<schedule::Set>(request).await.map(|_| String::new())
            }
            gc::ADDRESS => {
                let reply = bus.ask::<gc::Apply>(gc::ApplyRequest::default()).await?;
                Ok(reply.collected.to_string())
            }
            other => panic!("{other}"),
        }
    }

    /// What the actor knows is what the journal says.
    async fn converges(&mut self, address: &'static str) {
        let journal = Arc::clone(self.kernel.journal());
        let watch = self.watches.get_mut(address).expect("an actor");
        while *watch.shown.borrow_and_update() != (watch.folded)(&journal) {
            watch.shown.changed().await.expect("it lives");
        }
    }

    /// Of all that was appended by now.
    async fn count(&self, kind: &str) -> usize {
        let journal = self.kernel.journal();
        let appended = journal.marks().appended;
        until(|| journal.marks().written >= appended).await;
        let mut count = 0;
        let counted = self.kernel.reader().read(Seq(0), &[kind], &mut |_| {
            count += 1;
            std::ops::ControlFlow::Continue(())
        });
        counted.expect("it can be read");
        count
    }
}

/// Of each: where it is, the message that it panics of, and the record that this leads to, which must be there once.
const SIX: [(&str, &str, &str); 6] = [
    (artifact::ADDRESS, artifact::Pin::NAME, "artifact.pinned"),
    (arbitration::ADDRESS, arbitration::Acquire::NAME, "lease.granted"),
    (pool::ADDRESS, pool::Drain::NAME, "pool.drained"),
    (run::ADDRESS, run::Start::NAME, "run.started"),
    (schedule::ADDRESS, schedule::Set::NAME, "schedule.set"),
    // What a pass asks of it.
    (gc::ADDRESS, "gc.collect", "gc.collected"),
];

async fn panics((address, operation, kind): (&'static str, &'static str, &str), point: Point, times: u32) {
    let mut house = House::new().await;
    let before = house.count(kind).await;
    let trap = house.watches[address].trap.clone();
    trap.arm_for(operation, point, times);
    let answer = house.ask(address).await;
    let what = format!("{address} {point:?} {times}");
    // Where the record is there already, the second delivery may have nothing left to decide, and nothing springs again.
    let sprung = trap.sprung();
    trap.disarm();
    let appended = matches!(point, Point::AfterAppend | Point::AfterApply);
    assert!(sprung == u64::from(times) || appended && sprung == 1, "{what}: it sprang {sprung} times");
    match &answer {
        Ok(_) => assert!(sprung == 1, "{what}: it was answered after two panics"),
        Err(why) => {
            assert_eq!((why.reason.as_str(), sprung), ("actor.died", 2), "{what}: {why}");
            // It is buried right after whoever asked was told.
            let is_dead =
                || house.kernel.bus().dead_letters().iter().any(|dead| dead.address.as_str() == address);
            until(is_dead).await;
        }
    }
    let row = |address: &str| house.kernel.rows().into_iter().find(|row| row.address == address).unwrap();
    // Its supervisor begins the next one a moment after the death that whoever asked was told of.
    until(|| u64::from(row(address).incarnation.0) > sprung).await;
    assert_eq!(u64::from(row(address).incarnation.0), 1 + sprung, "{what}");
    let others: BTreeSet<_> =
        SIX.iter().map(|(other, ..)| *other).filter(|other| *other != address).collect();
    assert!(others.iter().all(|other| row(other).incarnation.0 == 1), "{what}: another one died, too");
    house.converges(address).await;
    // Whoever asks again changes nothing but what was lost, and the record is there once.
    let again = house.ask(address).await;
    assert!(again.is_ok(), "{what}: {again:?}");
    if address != gc::ADDRESS {
        assert!(answer.is_err() || answer == again, "{what}: {answer:?}, then {again:?}");
    }
    house.converges(address).await;
    assert_eq!(house.count(kind).await, before + 1, "{what}");
    house.kernel.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_of_the_six_panics_at_each_of_four_points_and_its_caller_is_answered() {
    for actor in SIX {
        for point in Point::ALL {
            within(panics(actor, point, 1)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_panic_on_the_same_message_names_who_died_to_its_caller() {
    for actor in SIX {
        for point in Point::ALL {
            within(panics(actor, point, 2)).await;
        }
    }
}
