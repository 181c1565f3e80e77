//! Sessions over real sockets, driven by the real client.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::future::IntoFuture;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use eclosion_bus::{Publication, Subject};
use eclosion_client::{Client, ConnectOptions};
use eclosion_ipc::worker::Acknowledged;
use eclosion_ipc::{LinkEnd, Outcome, WorkerHello, WorkerLink, WorkerReports};
use eclosion_schemas::frame::{Decoder, Envelope, Frame, FrameType, Limits, StreamId};
use eclosion_schemas::ids::{Epoch, Seq};
use eclosion_schemas::ops::kernel::{Delivery, Empty, OnFull, Stop};
use eclosion_schemas::view::TaskReport;
use eclosion_schemas::{Code, Fence, Role, WorkerId};
use support::{Commit, Count, Echo, Hold, Key, Number, Refuse, Text, World, watched};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn text(text: &str) -> Text {
    Text { text: text.into() }
}

#[tokio::test]
async fn a_client_is_welcomed_and_a_call_is_answered() {
    let world = World::new();
    let client = world.client().await;
    assert_eq!(client.welcome().instance.as_deref(), Some("test"));
    assert_eq!((client.welcome().epoch, client.role()), (Some(Epoch(3)), Role::Admin));
    assert_eq!(watched(client.call::<Echo>(text("hello")).into_future()).await, Ok(text("hello")));
}

#[tokio::test]
async fn an_error_arrives_as_it_was_given() {
    let world = World::new();
    let error = watched(world.client().await.call::<Refuse>(text("gone")).into_future()).await.unwrap_err();
    assert_eq!((error.code, error.reason.as_str()), (Code::NotFound, "test.refused"));
    assert_eq!((error.message.as_str(), error.help.as_deref()), ("gone", Some("try another")));
}

#[tokio::test]
async fn a_large_message_travels_in_fragments_both_ways() {
    let world = World::new();
    let client = world.client().await;
    let large = text(&"x".repeat(3_000_000));
    let (large_back, small_back) = watched(async {
        tokio::join!(
            client.call::<Echo>(large.clone()).into_future(),
            client.call::<Echo>(text("y")).into_future()
        )
    })
    .await;
    assert!(large_back.unwrap() == large);
    assert_eq!(small_back, Ok(text("y")));
}

#[tokio::test]
async fn a_mutating_call_carries_a_key_of_its_own_or_the_one_it_is_given() {
    let world = World::new();
    let client = world.client().await;
    let own = watched(client.call::<Key>(text("")).into_future()).await.unwrap();
    assert!(own.is_some_and(|key| key.len() > 32));
    let given = watched(client.call::<Key>(text("")).idem("mine").into_future()).await.unwrap();
    assert_eq!(given.as_deref(), Some("mine"));
}

#[tokio::test]
async fn an_unknown_operation_is_refused_with_the_nearest_name() {
    let world = World::new();
    let client = world.client().await;
    let request = eclosion_schemas::codec::encode(&Empty {}).unwrap();
    let exchange = client.open("test.ecko", request.into(), eclosion_client::CallOptions::default()).await;
    let error = watched(exchange.unwrap().reply()).await.unwrap_err();
    assert_eq!(error.code, Code::Unimplemented);
    assert_eq!(error.help.as_deref(), Some("did you mean test.echo?"));
}

#[tokio::test]
async fn a_malformed_request_is_refused_and_the_connection_stays() {
    let world = World::new();
    let client = world.client().await;
    // The last is a list whose first is what a reader by places would take.
    let listed = b"\x91\xa5first".to_vec();
    for bytes in [vec![], vec![0xc1], vec![0x91; 100], b"\x81\xa4text\x05".to_vec(), listed] {
        let exchange = client.open("test.echo", bytes.into(), eclosion_client::CallOptions::default()).await;
        let error = watched(exchange.unwrap().reply()).await.unwrap_err();
        assert_eq!((error.code, error.reason.as_str()), (Code::Invalid, "request.malformed"));
    }
    assert_eq!(watched(client.call::<Echo>(text("still")).into_future()).await, Ok(text("still")));
}

#[tokio::test]
async fn a_role_may_call_what_it_permits_and_nothing_else() {
    let world = World::new();
    let options = ConnectOptions { role: Some(Role::View), ..ConnectOptions::default() };
    let viewer = watched(Client::connect_with(&world.path, options)).await.unwrap();
    assert_eq!(viewer.role(), Role::View);
    assert_eq!(watched(viewer.call::<Echo>(text("a")).into_future()).await, Ok(text("a")));
    let stop = eclosion_schemas::ops::kernel::Empty {};
    assert_eq!(watched(viewer.call::<Stop>(stop).into_future()).await.unwrap_err().code, Code::Denied);
    // What is a worker's is not even an administrator's.
    let admin = world.client().await;
    assert_eq!(watched(admin.call::<Commit>(text("")).into_future()).await.unwrap_err().code, Code::Denied);
    for role in [Role::Worker, Role::Service] {
        let options = ConnectOptions { role: Some(role), ..ConnectOptions::default() };
        let refused = watched(Client::connect_with(&world.path, options)).await.unwrap_err();
        assert_eq!((refused.code, refused.reason.as_str()), (Code::Unimplemented, "hello.role"));
    }
}

#[tokio::test]
async fn a_stream_gives_its_items_in_order_and_then_its_reply() {
    let world = World::new();
    let client = world.client().await;
    for (items, credit) in [(0, 64), (1, 1), (500, 3), (1000, 64)] {
        let mut stream = client.stream::<Count>(Number { number: items }).credit(credit).await.unwrap();
        for n in 0..items {
            assert_eq!(watched(stream.next()).await, Some(Ok(Number { number: n })));
        }
        assert_eq!(watched(stream.next()).await, None);
        assert_eq!(watched(stream.reply()).await, Ok(Number { number: items }));
    }
}

#[tokio::test]
async fn a_slow_reader_stops_its_own_stream_and_no_other_call() {
    let world = World::new();
    let client = world.client().await;
    let mut slow = client.stream::<Count>(Number { number: 100_000 }).credit(8).await.unwrap();
    assert_eq!(watched(slow.next()).await, Some(Ok(Number { number: 0 })));
    for n in 0..100 {
        let n = text(&n.to_string());
        assert_eq!(watched(client.call::<Echo>(n.clone()).into_future()).await, Ok(n));
    }
    drop(slow);
    world.at_rest().await;
}

#[tokio::test]
async fn a_call_of_a_stream_passes_over_its_items() {
    let world = World::new();
    let client = world.client().await;
    let reply = watched(client.call::<Count>(Number { number: 300 }).into_future()).await;
    assert_eq!(reply, Ok(Number { number: 300 }));
}

#[tokio::test]
async fn dropping_a_call_cancels_it_at_the_kernel() {
    let world = World::new();
    let client = world.client().await;
    let call = client.call::<Hold>(text("")).into_future();
    let held = tokio::spawn({
        let client = client.clone();
        async move { client.call::<Hold>(text("")).await }
    });
    watched(world.holding.notified()).await;
    held.abort();
    watched(world.holding.notified()).await;
    drop(call);
    world.at_rest().await;
}

#[tokio::test]
async fn a_deadline_ends_a_call_and_its_work() {
    let world = World::new();
    let client = world.client().await;
    let call = client.call::<Hold>(text("")).deadline(Duration::from_millis(50)).into_future();
    assert_eq!(watched(call).await.unwrap_err().code, Code::Deadline);
    watched(async {
        world.holding.notified().await;
        world.holding.notified().await;
    })
    .await;
}

#[tokio::test]
async fn when_a_client_dies_everything_it_had_comes_back() {
    let mut world = World::new();
    let client = world.client().await;
    let mut streams = Vec::new();
    for _ in 0..10 {
        streams.push(client.stream::<Count>(Number { number: 1_000_000 }).await.unwrap());
        streams.last_mut().unwrap().next().await;
    }
    let mut subscription = client.subscribe("**").await.unwrap();
    assert!(matches!(watched(subscription.next()).await, Some(Ok(Delivery::Acknowledged { .. }))));
    assert_eq!(world.traffic.streams(), 11);
    assert!(world.traffic.credit() > 0, "granted and not used");
    let held = tokio::spawn({
        let client = client.clone();
        async move { client.call::<Hold>(text("")).await }
    });
    watched(world.holding.notified()).await;
    held.abort();
    drop((streams, subscription, client));
    watched(world.holding.notified()).await;
    let end = watched(world.ends.recv()).await.unwrap();
    assert!(end.why.is_none() && end.calls == 12, "{end:?}");
    assert_eq!((world.traffic.streams(), world.traffic.credit()), (0, 0));
    world.at_rest().await;
    let subject = Subject::new("a").unwrap();
    assert_eq!(world.bus.publish(&subject, Publication::new(Epoch(3), Seq(1), 1)), 0);
}

#[tokio::test]
async fn a_subscription_is_acknowledged_then_a_snapshot_then_changes() {
    let world = World::new();
    let subject = |text: &str| Subject::new(text).unwrap();
    let publication = |seq: u64, value: &'static str| Publication::new(Epoch(3), Seq(seq), value);
    world.bus.retain(&subject("run/a/state"), publication(1, "running")).unwrap();
    world.bus.retain(&subject("other/b"), publication(2, "hidden")).unwrap();
    let clients = [world.client().await, world.client().await];
    let mut subscriptions = Vec::new();
    for client in &clients {
        let mut subscription = client.subscribe("run/**").on_full(OnFull::Gap).await.unwrap();
        let mut next = async || watched(subscription.next()).await.unwrap().unwrap();
        assert_eq!(next().await, Delivery::Acknowledged { epoch: Epoch(3), seq: Seq(2) });
        let value = serde_json::json!("running");
        let snapshot =
            Delivery::Snapshot { subject: "run/a/state".into(), epoch: Epoch(3), seq: Seq(1), value };
        assert_eq!(next().await, snapshot);
        assert_eq!(next().await, Delivery::SnapshotEnd {});
        subscriptions.push(subscription);
    }
    world.bus.retain(&subject("run/a/state"), publication(3, "done")).unwrap();
    for subscription in &mut subscriptions {
        let value = serde_json::json!("done");
        let change = Delivery::Change { subject: "run/a/state".into(), epoch: Epoch(3), seq: Seq(3), value };
        assert_eq!(watched(subscription.next()).await, Some(Ok(change)));
    }
}

#[tokio::test]
async fn a_subscriber_that_does_not_keep_up_hears_of_the_gap_or_of_its_end() {
    let world = World::new();
    let client = world.client().await;
    let (mut gap, mut close) = (
        client.subscribe("n").on_full(OnFull::Gap).credit(4).await.unwrap(),
        client.subscribe("n").on_full(OnFull::Close).credit(4).await.unwrap(),
    );
    for subscription in [&mut gap, &mut close] {
        assert!(matches!(watched(subscription.next()).await, Some(Ok(Delivery::Acknowledged { .. }))));
        assert_eq!(watched(subscription.next()).await, Some(Ok(Delivery::SnapshotEnd {})));
    }
    let subject = Subject::new("n").unwrap();
    for n in 1..=3_000_u64 {
        world.bus.publish(&subject, Publication::new(Epoch(3), Seq(n), n));
    }
    let (mut changes, mut dropped) = (0, 0);
    while changes + dropped < 3_000 {
        match watched(gap.next()).await.unwrap().unwrap() {
            Delivery::Change { .. } => changes += 1,
            Delivery::Gap { dropped: more } => dropped += more,
            other => panic!("{other:?}"),
        }
    }
    assert!(dropped > 0);
    let error = loop {
        match watched(close.next()).await.unwrap() {
            Ok(Delivery::Change { .. }) => {}
            Ok(other) => panic!("{other:?}"),
            Err(error) => break error,
        }
    };
    assert_eq!(error.code, Code::SlowConsumer);
    assert_eq!(watched(close.next()).await, None);
}

#[tokio::test]
async fn a_client_cannot_make_publishers_wait() {
    let world = World::new();
    let client = world.client().await;
    let mut refused = client.subscribe("n").on_full(OnFull::Block).await.unwrap();
    assert_eq!(watched(refused.next()).await.unwrap().unwrap_err().code, Code::Denied);
    let mut malformed = client.subscribe("n//").await.unwrap();
    assert_eq!(watched(malformed.next()).await.unwrap().unwrap_err().reason, "name.malformed");
}

#[tokio::test]
async fn limits_are_told_and_enforced_call_by_call() {
    let limits = Limits { inflight: 2, subscriptions: 1, streams: 4, ..Limits::DEFAULT };
    let world = World::with(limits, 256);
    let client = world.client().await;
    assert_eq!(client.welcome().limits, Some(limits));
    let hold = || {
        tokio::spawn({
            let client = client.clone();
            async move { client.call::<Hold>(text("")).await }
        })
    };
    let held = [hold(), hold()];
    watched(async {
        world.holding.notified().await;
        world.holding.notified().await;
    })
    .await;
    let refused = watched(client.call::<Echo>(text("")).into_future()).await.unwrap_err();
    assert_eq!((refused.code, refused.reason.as_str()), (Code::Exhausted, "connection.limit"));
    let mut first = client.subscribe("a").await.unwrap();
    assert!(watched(first.next()).await.unwrap().is_ok());
    let mut second = client.subscribe("a").await.unwrap();
    assert_eq!(watched(second.next()).await.unwrap().unwrap_err().code, Code::Exhausted);
    held.iter().for_each(tokio::task::JoinHandle::abort);
    watched(async {
        while client.call::<Echo>(text("")).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn when_the_kernel_stops_calls_end_and_new_ones_are_refused() {
    let mut world = World::new();
    let client = world.client().await;
    let mut subscription = client.subscribe("a").await.unwrap();
    assert!(watched(subscription.next()).await.unwrap().is_ok());
    world.stop.send_replace(true);
    loop {
        match watched(subscription.next()).await.unwrap() {
            Ok(_) => {}
            Err(error) => break assert_eq!(error.reason, "kernel.stopping"),
        }
    }
    assert!(watched(world.ends.recv()).await.unwrap().why.is_none());
    assert_eq!(watched(client.closed()).await.code, Code::Unavailable);
    let late = watched(client.call::<Echo>(text("")).into_future()).await.unwrap_err();
    assert_eq!(late.code, Code::Unavailable);
}

#[tokio::test]
async fn whoever_waits_hears_that_the_connection_is_gone() {
    let world = World::new();
    let client = world.client().await;
    let held = tokio::spawn({
        let client = client.clone();
        async move { client.call::<Hold>(text("")).await }
    });
    watched(world.holding.notified()).await;
    // From here on only the patience of a kernel that stops takes time.
    tokio::time::pause();
    world.stop.send_replace(true);
    let error = watched(held).await.unwrap().unwrap_err();
    assert_eq!(error.code, Code::Unavailable, "{error:?}");
}

#[tokio::test]
async fn a_socket_that_nobody_listens_on_says_what_to_run() {
    let directory = tempfile::tempdir().unwrap();
    let error = watched(Client::connect(directory.path().join("none.sock"))).await.unwrap_err();
    assert_eq!((error.code, error.help.as_deref()), (Code::Unavailable, Some("eclosion up")));
}

/// What `python -m eclosion.worker --connect` says first.
fn worker_hello() -> Frame {
    let hello = WorkerHello {
        worker: "w-0-0".parse().unwrap(),
        pid: 1,
        start_ticks: 2,
        boot_id: "b".into(),
        attempts: Vec::new(),
        environment: Some("0f3a".parse().unwrap()),
    };
    let envelope = Envelope { role: Some(Role::Worker), ..Envelope::default() };
    let frame = Frame::new(FrameType::Hello, StreamId::CONNECTION).with_envelope(envelope);
    frame.msgpack(&hello).unwrap()
}

#[tokio::test]
async fn a_worker_that_dials_is_handed_over_with_all_that_it_said_and_its_place() {
    let mut world = World::taking_workers();
    let mut stream = tokio::net::UnixStream::connect(&world.path).await.unwrap();
    let mut bytes = BytesMut::new();
    worker_hello().encode(&mut bytes).unwrap();
    Frame::new(FrameType::Ping, StreamId::CONNECTION).encode(&mut bytes).unwrap();
    stream.write_all(&bytes).await.unwrap();
    let end = watched(world.ends.recv()).await.unwrap();
    let worker = end.worker.unwrap();
    assert!(end.why.is_none() && worker.peer.is_ourselves());
    assert_eq!(worker.hello.environment, Some("0f3a".parse().unwrap()));

    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let name: WorkerId = "a-3-1".parse().unwrap();
    let welcome = Arc::new(support::welcome(Limits::DEFAULT));
    let store = Arc::new(support::NoFiles);
    let (link, handle) = WorkerLink::attached(*worker, name.clone(), welcome, store, Arc::new(Ups(tell)));
    let link = tokio::spawn(link.run());
    let hello = watched(told.recv()).await.unwrap();
    assert_eq!((hello.worker, hello.pid), (name, std::process::id()), "the operating system knows better");
    let mut heard = Decoder::new(Limits::DEFAULT);
    let mut kinds = Vec::new();
    while kinds.len() < 2 {
        let mut bytes = BytesMut::new();
        assert_ne!(watched(stream.read_buf(&mut bytes)).await.unwrap(), 0);
        heard.push(&bytes);
        while let Some(frame) = heard.next_frame().unwrap() {
            kinds.push((frame.kind, frame.envelope.headers.clone()));
        }
    }
    let named = Some([("worker".to_owned(), "a-3-1".to_owned())].into());
    assert_eq!(kinds, [(FrameType::Welcome, named), (FrameType::Pong, None)], "what came early is not lost");

    handle.hang_up();
    assert_eq!(watched(stream.read(&mut [0; 1])).await.unwrap(), 0);
    watched(link).await.unwrap();
}

/// Remembers who came up.
struct Ups(tokio::sync::mpsc::UnboundedSender<WorkerHello>);

impl WorkerReports for Ups {
    fn up(&self, hello: &WorkerHello) -> bool {
        self.0.send(hello.clone()).is_ok()
    }

    fn report(&self, _: Fence, _: TaskReport) {}

    fn outcome(&self, _: Fence, _: Outcome) -> Acknowledged {
        Box::pin(std::future::ready(()))
    }

    fn closed(&self, _: LinkEnd) {}
}
