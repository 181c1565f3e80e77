//! The actor in a real kernel, with a pool manager that starts everything at once.

use std::collections::BTreeMap;
use std::future::{Future, IntoFuture};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use eclosion_bus::{Delivery, InHand};
use eclosion_kernel::journal::Append;
use eclosion_kernel::journal::memory::MemoryStore;
use eclosion_kernel::{Handler, Kernel};
use eclosion_schemas::events::AttemptStarted;
use eclosion_schemas::flow::FlowSpec;
use eclosion_schemas::ops::kernel::OnFull;
use eclosion_schemas::ops::pool::{Taken, Wish};
use eclosion_schemas::ops::run::{CancelRequest, RunRequest, StartRequest};
use eclosion_schemas::ops::task::{CommitReply, CommitRequest};
use eclosion_schemas::view::{RunState, TaskState};
use eclosion_schemas::{Fence, Payload, WorkerId};
use tokio::sync::mpsc;

use super::*;

/// Shows the wishes that it is asked for.
struct Pool(mpsc::UnboundedSender<Wish>);

impl Handler for Pool {
    async fn handle(&mut self, message: InHand) {
        let wishes = message.request::<pool::Dispatch>().map(|request| request.wishes.clone());
        wishes.into_iter().flatten().for_each(|wish| self.0.send(wish).expect("the test listens"));
        message.finish().reply(Ok(Box::new(Taken {})));
    }
}

struct Line {
    kernel: Kernel,
    views: RunViews,
    wishes: mpsc::UnboundedReceiver<Wish>,
}

static FENCES: AtomicU64 = AtomicU64::new(0);

impl Line {
    async fn start(store: &MemoryStore) -> Self {
        let actor = DagActor::new();
        let views = actor.views();
        let (sender, wishes) = mpsc::unbounded_channel();
        let kernel = Kernel::builder()
            .operations(eclosion_schemas::ops::table().expect("no name twice"))
            .journal(Box::new(store.clone()), store.open())
            .actor(actor)
            .service("/pool", move || Pool(sender.clone()))
            .start()
            .await
            .expect("starts");
        kernel.adopt();
        kernel.run();
        Self { kernel, views, wishes }
    }

    async fn ask<O: Operation>(&self, request: O::Request) -> O::Reply {
        within(self.kernel.bus().ask::<O>(request).into_future()).await.expect("answered")
    }

    async fn run(&self, flow: &FlowSpec) -> RunId {
        let start = StartRequest {
            flow: flow.clone(),
            set: BTreeMap::new(),
            tenant: None,
            new: true,
            idem: None,
            no_cache: false,
        };
        self.ask::<run::Start>(start).await.run
    }

    async fn wish(&mut self) -> Wish {
        within(self.wishes.recv()).await.expect("a wish")
    }

    fn attempt(&self, wish: &Wish) -> Fence {
        let journal = self.kernel.journal();
        let fence = Fence { epoch: journal.epoch(), counter: FENCES.fetch_add(1, Ordering::Relaxed) };
        let started = AttemptStarted {
            run: wish.execute.run.clone(),
            task: wish.execute.task.clone(),
            attempt: wish.execute.attempt,
            fence,
            worker: worker(),
            lease: None,
            wish: wish.id,
            reason: "idle".into(),
            content: None,
        };
        let append = Append {
            events: vec![started.into()],
            at: self.kernel.clock().now(),
            cause: None,
            folded: Seq(u64::MAX),
            folds: &[],
        };
        journal.append(&append).expect("appends");
        fence
    }

    async fn commit(&self, wish: &Wish, fence: Fence) -> CommitReply {
        let (run, task) = (wish.execute.run.clone(), wish.execute.task.clone());
        self.ask::<task::Commit>(CommitRequest {
            run,
            task,
            fence,
            worker: worker(),
            output: Payload::of(&1),
            code: None,
        })
        .await
    }
}

fn worker() -> WorkerId {
    "w-1-1".parse().expect("a worker id")
}

fn chain() -> FlowSpec {
    crate::Flow::new("f").task("a", "m:a").task("b", "m:b").with("x", "${a}").build().expect("a flow")
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("it hangs")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_goes_through_the_bus() {
    let mut line = Line::start(&MemoryStore::default()).await;
    let id = line.run(&chain()).await;
    for task in ["a", "b"] {
        let wish = line.wish().await;
        assert_eq!(wish.execute.task.as_str(), task);
        let fence = line.attempt(&wish);
        assert_eq!(line.commit(&wish, fence).await, CommitReply::Committed);
        assert_eq!(line.commit(&wish, fence).await, CommitReply::AlreadyCommitted);
    }
    let got = line.ask::<run::Get>(RunRequest { run: id.clone() }).await;
    assert_eq!((got.run.state, got.run.result.clone()), (RunState::Succeeded, Some(Payload::of(&1))));
    assert!(got.tasks.iter().all(|task| task.state == TaskState::Succeeded));
    within(line.kernel.stop()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_gets_the_states_that_are_kept_and_every_change_and_views_are_not_behind() {
    let mut line = Line::start(&MemoryStore::default()).await;
    let id = line.run(&chain()).await;
    let filter = Filter::new(format!("run/{id}/**")).expect("a filter");
    let mut subscription = line.kernel.bus().subscribe(filter, OnFull::Gap, 1_024);
    let listening = async {
        let mut seen = BTreeSet::new();
        while let Some(delivery) = subscription.next().await {
            let (Delivery::Snapshot(event) | Delivery::Change(event)) = &delivery else { continue };
            seen.insert(event.subject.to_string());
            let wire = delivery.to_wire().expect("is JSON");
            let value = serde_json::to_value(wire).expect("is JSON");
            if event.subject.as_str().split('/').count() == 3 && value["value"]["state"] == "succeeded" {
                break;
            }
        }
        seen
    };
    let working = async {
        for _ in 0..2 {
            let wish = line.wish().await;
            let fence = line.attempt(&wish);
            line.commit(&wish, fence).await;
        }
    };
    let (seen, ()) = tokio::join!(within(listening), working);
    let subjects = ["state", "task/a/state", "task/b/state"].map(|rest| format!("run/{id}/{rest}"));
    assert_eq!(seen, BTreeSet::from(subjects));
    assert_eq!(line.views.runs.get(&id).map(|head| head.state), Some(RunState::Succeeded));
    let task = line.views.tasks.get(&TaskRef::new(id, "b".parse().expect("a task id")));
    assert_eq!(task.map(|task| task.state), Some(TaskState::Succeeded));
    within(line.kernel.stop()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_kernel_goes_on_with_what_is_owed() {
    let store = MemoryStore::default();
    let mut first = Line::start(&store).await;
    let id = first.run(&chain()).await;
    let wish = first.wish().await;
    let fence = first.attempt(&wish);
    assert_eq!(first.commit(&wish, fence).await, CommitReply::Committed);
    let unanswered = first.wish().await;
    within(first.kernel.stop()).await;

    let mut second = Line::start(&store).await;
    let again = second.wish().await;
    assert_eq!(again, unanswered, "the same wish under the same id");
    assert_eq!(second.commit(&wish, fence).await, CommitReply::AlreadyCommitted);
    let cancelled = second.ask::<run::Cancel>(CancelRequest { run: id.clone(), reason: String::new() }).await;
    assert_eq!(cancelled.state, RunState::Cancelling);
    let got = second.ask::<run::Get>(RunRequest { run: id }).await;
    assert_eq!(got.run.state, RunState::Cancelled);
    within(second.kernel.stop()).await;
}
