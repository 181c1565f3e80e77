//! One suite for every client: in process, over a listening socket, over an inherited one.
//!
//! A case is written against the trait alone and sees the same operations, errors, cancellations and deliveries, whichever
//! client it is given. What only an attached client can do, outlive its kernel, is shown with the real binary
//! (`adapters/cli/tests/follow.rs`).

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::future::pending;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use eclosion::bus::InHand;
use eclosion::client::ConnectOptions;
use eclosion::schemas::client::{CallOptions, Client, Deliveries, Items, RawItems};
use eclosion::schemas::frame::Limits;
use eclosion::schemas::operation::{Durability, NoItem, Operation, Role, Spec};
use eclosion::schemas::ops::kernel::Delivery;
use eclosion::schemas::{Code, Epoch, Error, codec};
use eclosion::{Handler, Kernel};
use eclosion_ipc::{Accepted, Session, Welcome};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::Notify;

/// It hangs.
const WATCHDOG: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
struct Number {
    number: u64,
}

macro_rules! operation {
    ($name:ident, $wire:literal, $role:ident, $item:ty, $streams:literal) => {
        struct $name;
        impl Operation for $name {
            type Request = Number;
            type Reply = Number;
            type Item = $item;
            const NAME: &'static str = $wire;
            const ADDRESS: &'static str = "/demo";
            const ROLE: Role = Role::$role;
            const DURABILITY: Durability = Durability::Call;
            const STREAMS: bool = $streams;
            const DOC: &'static str = "A test's.";
            fn example() -> Number {
                Number { number: 1 }
            }
        }
    };
}

operation!(Double, "demo.double", View, NoItem, false);
operation!(Refuse, "demo.refuse", View, NoItem, false);
operation!(Hold, "demo.hold", View, NoItem, false);
operation!(Die, "demo.die", View, NoItem, false);
operation!(Count, "demo.count", View, Number, true);
operation!(Command, "demo.command", Operate, NoItem, false);
operation!(Missing, "demo.missing", View, NoItem, false);

/// What the served side saw.
#[derive(Debug, Default)]
struct Seen {
    holding: Notify,
    cancelled: Notify,
    produced: AtomicU64,
}

struct Demo(Arc<Seen>);

impl Handler for Demo {
    async fn handle(&mut self, message: InHand) {
        let seen = Arc::clone(&self.0);
        assert!(message.operation != Die::NAME, "as it was asked to");
        let number = [message.request::<Double>(), message.request::<Count>()];
        let number = number.into_iter().flatten().next().map_or(0, |request| request.number);
        let (operation, responder) = (message.operation, message.finish());
        let answer = |number| -> eclosion::schemas::operation::Value { Box::new(Number { number }) };
        match operation {
            Double::NAME => responder.reply(Ok(answer(number * 2))),
            Refuse::NAME => responder.reply(Err(Error::invalid("demo.refused", "no").help("try again"))),
            Count::NAME => drop(tokio::spawn(async move {
                for number in 0..number {
                    if responder.item(answer(number)).await.is_err() {
                        return seen.cancelled.notify_one();
                    }
                    seen.produced.fetch_add(1, Ordering::SeqCst);
                }
                responder.reply(Ok(answer(number)));
            })),
            _ => drop(tokio::spawn(async move {
                seen.holding.notify_one();
                responder.cancelled().cancelled().await;
                seen.cancelled.notify_one();
            })),
        }
    }
}

struct World {
    kernel: Kernel,
    seen: Arc<Seen>,
    directory: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let seen = Arc::<Seen>::default();
        let mut builder = Kernel::builder().ephemeral().listen(directory.path().join("run/kernel.sock"));
        for spec in [
            Spec::of::<Double>(),
            Spec::of::<Refuse>(),
            Spec::of::<Hold>(),
            Spec::of::<Die>(),
            Spec::of::<Count>(),
            Spec::of::<Command>(),
        ] {
            builder = builder.operation(spec);
        }
        let demo = Arc::clone(&seen);
        let kernel = builder.service("/demo", move || Demo(Arc::clone(&demo))).start().await.unwrap();
        Self { kernel, seen, directory }
    }

    fn options(role: Option<Role>) -> ConnectOptions {
        ConnectOptions { role, ..ConnectOptions::default() }
    }

    async fn listening(&self, role: Option<Role>) -> eclosion::client::Client {
        let socket = self.directory.path().join("run/kernel.sock");
        eclosion::client::Client::connect_with(socket, Self::options(role)).await.unwrap()
    }

    /// Both ends of a pair, as a child process would inherit one of them.
    async fn inherited(&self, role: Option<Role>) -> eclosion::client::Client {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let welcome = Welcome {
            server: "eclosion/test".into(),
            instance: "test".into(),
            epoch: Epoch(1),
            describe_hash: String::new(),
            features: Vec::new(),
            limits: Limits::DEFAULT,
        };
        let accepted = Accepted::inherited(theirs.into()).unwrap();
        let session =
            Session::new(accepted, self.kernel.bus().clone(), Arc::new(welcome), pending::<()>()).unwrap();
        tokio::spawn(session.run());
        ours.set_nonblocking(true).unwrap();
        let stream = tokio::net::UnixStream::from_std(ours).unwrap();
        eclosion::client::Client::over(stream, Self::options(role)).await.unwrap()
    }
}

async fn watched<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(WATCHDOG, work).await.unwrap()
}

/// The suite: a role and a client of each kind, to each of which every case is put.
macro_rules! suite {
    ($($case:ident),+ $(,)?) => {
        mod in_process {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                let world = super::World::new().await;
                let (all, view) = (world.kernel.client(), world.kernel.client());
                super::watched(super::$case(&world, all, view.with_role(super::Role::View))).await;
                world.kernel.shutdown().await;
            })+
        }

        mod listening {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                let world = super::World::new().await;
                let (all, view) = (world.listening(None).await, world.listening(Some(super::Role::View)).await);
                super::watched(super::$case(&world, all, view)).await;
                world.kernel.shutdown().await;
            })+
        }

        mod inherited {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                let world = super::World::new().await;
                let (all, view) = (world.inherited(None).await, world.inherited(Some(super::Role::View)).await);
                super::watched(super::$case(&world, all, view)).await;
                world.kernel.shutdown().await;
            })+
        }
    };
}

suite!(
    an_operation_is_called_by_its_type_by_its_name_and_with_json,
    what_is_refused_is_refused_with_the_same_words,
    a_call_that_is_dropped_is_cancelled_where_it_runs,
    a_call_ends_at_its_deadline,
    death_reaches_the_caller,
    items_come_as_far_as_they_are_granted_and_end_when_nobody_listens,
    what_is_published_is_heard_and_a_state_is_shown_to_who_comes_later,
    a_follower_hears_an_acknowledgement_a_snapshot_and_every_change,
);

async fn an_operation_is_called_by_its_type_by_its_name_and_with_json<C: Client>(_: &World, client: C, _: C) {
    assert_eq!(client.call::<Double>(Number { number: 21 }).await, Ok(Number { number: 42 }));
    let request = codec::encode(&Number { number: 4 }).unwrap();
    let raw = client.open(Double::NAME, request.into(), CallOptions::default()).await.unwrap();
    assert_eq!(codec::decode::<Number>(&raw.reply().await.unwrap()), Ok(Number { number: 8 }));
    assert_eq!(client.call_json(Double::NAME, &json!({"number": 5})).await, Ok(json!({"number": 10})));
    let described = client.describe(Double::NAME).await.unwrap();
    assert_eq!((&described["address"], &described["example"]), (&json!("/demo"), &json!({"number": 1})));
}

async fn what_is_refused_is_refused_with_the_same_words<C: Client>(_: &World, client: C, view: C) {
    let said = |error: Error| (error.code, error.reason);
    let one = || Number { number: 1 };
    let refused = client.call::<Refuse>(one()).await.unwrap_err();
    assert_eq!(refused.help.as_deref(), Some("try again"));
    assert_eq!(said(refused), (Code::Invalid, "demo.refused".into()));
    let missing = client.call::<Missing>(one()).await.unwrap_err();
    assert_eq!(said(missing), (Code::Unimplemented, "operation.unknown".into()));
    let malformed = client.call_json(Double::NAME, &json!({"number": "one"})).await.unwrap_err();
    assert_eq!(said(malformed), (Code::Invalid, "request.malformed".into()));
    let denied = view.call::<Command>(one()).await.unwrap_err();
    assert_eq!(said(denied), (Code::Denied, "call.role".into()));
    let reserved = client.publish("run/7k2/state", 1, false).await.unwrap_err();
    assert_eq!(said(reserved), (Code::Denied, "subject.reserved".into()));
    let filter = client.subscribe("a//b").await.unwrap().next().await.unwrap().unwrap_err();
    assert_eq!(said(filter), (Code::Invalid, "name.malformed".into()));
}

async fn a_call_that_is_dropped_is_cancelled_where_it_runs<C: Client>(world: &World, client: C, _: C) {
    let calling = tokio::spawn(async move { client.call::<Hold>(Number::default()).await });
    world.seen.holding.notified().await;
    calling.abort();
    world.seen.cancelled.notified().await;
}

async fn a_call_ends_at_its_deadline<C: Client>(world: &World, client: C, _: C) {
    let late = client.call::<Hold>(Number::default()).deadline(Duration::from_millis(20)).await;
    assert_eq!(late.unwrap_err().code, Code::Deadline);
    world.seen.cancelled.notified().await;
}

async fn death_reaches_the_caller<C: Client>(_: &World, client: C, _: C) {
    let died = client.call::<Die>(Number::default()).await.unwrap_err();
    assert_eq!((died.code, died.reason.as_str()), (Code::Unavailable, "actor.died"));
    // With what it has died of, and where the message is now.
    assert!(died.message.contains("as it was asked to"), "{died}");
    assert!(died.help.as_deref().is_some_and(|help| help.contains("eclosion dead ls")), "{died}");
    // Its next life answers.
    assert_eq!(client.call::<Double>(Number { number: 1 }).await, Ok(Number { number: 2 }));
}

async fn items_come_as_far_as_they_are_granted_and_end_when_nobody_listens<C: Client>(
    world: &World,
    client: C,
    _: C,
) {
    let mut items = client.stream::<Count>(Number { number: 10 }).credit(4).await.unwrap();
    let mut counted = Vec::new();
    while let Some(item) = items.next().await {
        counted.push(item.unwrap().number);
    }
    assert_eq!(counted, (0..10).collect::<Vec<_>>());
    assert_eq!(items.reply().await, Ok(Number { number: 10 }));

    let before = world.seen.produced.load(Ordering::SeqCst);
    let mut endless = client.stream::<Count>(Number { number: u64::MAX }).credit(4).await.unwrap();
    assert_eq!(endless.next().await, Some(Ok(Number { number: 0 })));
    drop(endless);
    world.seen.cancelled.notified().await;
    // One was taken, and four were granted at first: of more nobody has heard.
    let produced = world.seen.produced.load(Ordering::SeqCst) - before;
    assert!((1..=5).contains(&produced), "{produced}");
}

async fn what_is_published_is_heard_and_a_state_is_shown_to_who_comes_later<C: Client>(
    _: &World,
    client: C,
    view: C,
) {
    let mut listening = view.subscribe("desk/**").await.unwrap();
    assert!(matches!(listening.next().await, Some(Ok(Delivery::Acknowledged { .. }))));
    assert_eq!(listening.next().await, Some(Ok(Delivery::SnapshotEnd {})));
    assert_eq!(client.publish("desk/guest", json!({"name": "Ada"}), false).await, Ok(1));
    assert_eq!(client.publish("desk/open", true, true).await, Ok(1));
    for told in [json!({"name": "Ada"}), json!(true)] {
        let Some(Ok(Delivery::Change { value, .. })) = listening.next().await else { unreachable!() };
        assert_eq!(value, told);
    }
    drop(listening);
    let mut later = view.subscribe("desk/**").await.unwrap();
    later.next().await;
    let Some(Ok(Delivery::Snapshot { subject, value, .. })) = later.next().await else { unreachable!() };
    assert_eq!((subject.as_str(), value), ("desk/open", json!(true)));
    assert_eq!(later.next().await, Some(Ok(Delivery::SnapshotEnd {})));
}

async fn a_follower_hears_an_acknowledgement_a_snapshot_and_every_change<C: Client>(
    _: &World,
    client: C,
    view: C,
) {
    client.publish("desk/count", 0, true).await.unwrap();
    let mut follow = view.follow("desk/*", Duration::ZERO);
    assert!(matches!(follow.next().await, Ok(Delivery::Acknowledged { .. })));
    assert!(matches!(follow.next().await, Ok(Delivery::Snapshot { value, .. }) if value == json!(0)));
    assert_eq!(follow.next().await, Ok(Delivery::SnapshotEnd {}));
    for count in 1..=100 {
        client.publish("desk/count", count, true).await.unwrap();
        let told = follow.next().await;
        assert!(matches!(&told, Ok(Delivery::Change { value, .. }) if *value == json!(count)), "{told:?}");
    }
}
