//! The line dialect over real sockets: one line of JSON for each frame, nothing but a socket and JSON at this end.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use eclosion_bus::{Publication, Subject};
use eclosion_schemas::frame::Limits;
use eclosion_schemas::ids::{Epoch, Seq};
use proptest::prelude::*;
use serde_json::{Value, json};
use support::{Echo, Text, World, watched};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

struct Lines(BufReader<tokio::net::UnixStream>);

impl Lines {
    async fn connect(world: &World) -> Self {
        Self(BufReader::new(tokio::net::UnixStream::connect(&world.path).await.unwrap()))
    }

    async fn greeted(world: &World) -> Self {
        let mut lines = Self::connect(world).await;
        lines.say(&json!({"type": "hello", "client": "lines", "api": 1})).await;
        let welcome = lines.hear().await.unwrap();
        assert_eq!((&welcome["type"], &welcome["instance"]), (&json!("welcome"), &json!("test")));
        lines
    }

    async fn say(&mut self, line: &Value) {
        self.say_raw(format!("{line}\n").as_bytes()).await;
    }

    async fn say_raw(&mut self, bytes: &[u8]) {
        // The kernel may have hung up already.
        let _ = self.0.get_mut().write_all(bytes).await;
    }

    /// The next line; `None` at the end.
    async fn hear(&mut self) -> Option<Value> {
        let mut line = String::new();
        match watched(self.0.read_line(&mut line)).await {
            Ok(0) | Err(_) => None,
            Ok(_) => Some(serde_json::from_str(&line).unwrap()),
        }
    }

    async fn hears_an_error(&mut self, stream: Option<u32>, reason: &str) {
        let line = self.hear().await.unwrap();
        assert_eq!(line["type"], "error", "{line}");
        assert_eq!(
            (line.get("stream"), &line["body"]["reason"]),
            (stream.map(Value::from).as_ref(), &json!(reason))
        );
    }
}

fn call(stream: u32, method: &str) -> Value {
    json!({"type": "call", "stream": stream, "method": method, "body": {"text": "a"}})
}

#[tokio::test]
async fn calls_and_errors_travel_as_lines() {
    let world = World::new();
    let mut lines = Lines::greeted(&world).await;
    lines.say(&call(1, "test.echo")).await;
    let answer = lines.hear().await.unwrap();
    assert_eq!(answer, json!({"type": "data", "stream": 1, "end": true, "body": {"text": "a"}}));
    lines.say(&call(3, "test.refuse")).await;
    lines.hears_an_error(Some(3), "test.refused").await;
    lines.say(&call(5, "test.ecko")).await;
    lines.hears_an_error(Some(5), "operation.unknown").await;
    lines.say(&json!({"type": "ping", "id": "p"})).await;
    assert_eq!(lines.hear().await.unwrap(), json!({"type": "pong", "id": "p"}));
}

#[tokio::test]
async fn a_large_message_is_one_line_both_ways() {
    let world = World::new();
    let mut lines = Lines::greeted(&world).await;
    let text = "x".repeat(3_000_000);
    lines.say(&json!({"type": "call", "stream": 1, "method": "test.echo", "body": {"text": text}})).await;
    assert_eq!(lines.hear().await.unwrap()["body"]["text"], text);
}

#[tokio::test]
async fn items_stop_at_the_credit_and_a_cancel_ends_a_call() {
    let world = World::new();
    let mut lines = Lines::greeted(&world).await;
    let count = |stream| json!({"type": "call", "stream": stream, "method": "test.count", "credit": 2, "body": {"number": 4}});
    lines.say(&count(1)).await;
    for n in 0..2 {
        assert_eq!(lines.hear().await.unwrap()["body"], json!({"number": n}));
    }
    // What is heard next is not the third item.
    lines.say(&json!({"type": "ping"})).await;
    assert_eq!(lines.hear().await.unwrap()["type"], "pong");
    lines.say(&json!({"type": "credit", "stream": 1, "credit": 4})).await;
    for n in 2..4 {
        assert_eq!(lines.hear().await.unwrap()["body"], json!({"number": n}));
    }
    assert_eq!(lines.hear().await.unwrap()["end"], true);
    lines.say(&call(3, "test.hold")).await;
    watched(world.holding.notified()).await;
    lines.say(&json!({"type": "cancel", "stream": 3})).await;
    lines.hears_an_error(Some(3), "call.cancelled").await;
    watched(world.holding.notified()).await;
    world.at_rest().await;
}

#[tokio::test]
async fn a_subscription_begins_with_its_snapshot() {
    let world = World::new();
    let mut lines = Lines::greeted(&world).await;
    let subject: Subject = "run/a/state".parse().unwrap();
    world.bus.retain(&subject, Publication::new(Epoch(3), Seq(1), "begun")).unwrap();
    let subscribe =
        json!({"type": "call", "stream": 1, "method": "bus.subscribe", "body": {"filter": "run/**"}});
    lines.say(&subscribe).await;
    let mut tags = Vec::new();
    for _ in 0..3 {
        tags.push(lines.hear().await.unwrap()["body"]["tag"].clone());
    }
    assert_eq!(tags, ["acknowledged", "snapshot", "snapshot_end"]);
    world.bus.publish(&subject, Publication::new(Epoch(3), Seq(2), "over"));
    let change = lines.hear().await.unwrap();
    assert_eq!((&change["body"]["seq"], &change["body"]["value"]), (&json!(2), &json!("over")));
}

#[tokio::test]
async fn a_role_is_less_on_request_and_calls_are_limited() {
    let world = World::with(Limits { inflight: 1, ..Limits::DEFAULT }, 8);
    let mut lines = Lines::connect(&world).await;
    lines.say(&json!({"type": "hello", "role": "view"})).await;
    assert_eq!(lines.hear().await.unwrap()["role"], "view");
    lines.say(&json!({"type": "call", "stream": 1, "method": "kernel.stop", "body": {}})).await;
    lines.hears_an_error(Some(1), "call.role").await;
    lines.say(&call(3, "test.hold")).await;
    lines.say(&call(5, "test.hold")).await;
    lines.hears_an_error(Some(5), "connection.limit").await;
}

#[tokio::test]
async fn what_is_no_line_ends_the_connection_with_a_reason() {
    let world = World::with(Limits { frame_bytes: 1000, ..Limits::DEFAULT }, 8);
    let deep = format!("{{\"type\":\"call\",\"stream\":1,\"body\":{}\n", "[".repeat(900));
    let long = [b' '; 1001];
    let twice = json!({"type": "hello"}).to_string() + "\n";
    for (bytes, reason) in [
        (&b"{]\n"[..], "line.json"),
        (deep.as_bytes(), "line.json"),
        (&long[..], "line.size"),
        (b"{\"type\":\"shout\"}\n", "line.type"),
        (b"{\"type\":\"call\",\"stream\":\"1\"}\n", "line.key"),
        (b"{\"type\":\"call\",\"stream\":2,\"method\":\"test.echo\"}\n", "stream.number"),
        (twice.as_bytes(), "hello.repeated"),
        (&[0; 1001], "line.size"),
    ] {
        let mut lines = Lines::greeted(&world).await;
        lines.say_raw(bytes).await;
        lines.hears_an_error(None, reason).await;
        assert_eq!(lines.hear().await, None);
    }
    let mut late = Lines::connect(&world).await;
    late.say(&call(1, "test.echo")).await;
    late.hears_an_error(None, "hello.missing").await;
}

/// Whole lines of all kinds, in any order, some of their bytes changed, cut anywhere.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let known = vec![
        call(1, "test.echo").to_string(),
        call(3, "test.hold").to_string(),
        json!({"type": "call", "stream": 5, "method": "bus.subscribe", "credit": 3, "body": {"filter": "**"}}).to_string(),
        json!({"type": "call", "stream": 7, "body": {"$b64": "AQI="}, "deadline_ms": 1, "idem": "k"}).to_string(),
        json!({"type": "call", "stream": 9, "method": "test.count", "body": {"$msgpack": [{"$part": 1}]}}).to_string(),
        json!({"type": "credit", "stream": 5, "credit": 9}).to_string(),
        json!({"type": "cancel", "stream": 3, "rung": 1}).to_string(),
        json!({"type": "error", "stream": 3, "body": {"code": "internal"}}).to_string(),
        json!({"type": "data", "stream": 1, "end": true, "body": 1.5e300}).to_string(),
        json!({"type": "ping", "id": "\u{1f98b}"}).to_string(),
    ];
    let some = proptest::collection::vec(proptest::sample::select(known), 1..6);
    let changes = proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    (some, changes, any::<prop::sample::Index>()).prop_map(|(lines, changes, cut)| {
        let mut bytes = (lines.join("\n") + "\n").into_bytes();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let cut = cut.index(bytes.len());
        // Half of them whole.
        if cut % 2 == 0 {
            bytes.truncate(cut);
        }
        bytes
    })
}

#[test]
fn no_bytes_end_more_than_their_own_connection() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut world = runtime.block_on(async { World::new() });
    let (_, no_ends) = tokio::sync::mpsc::unbounded_channel();
    let ends = std::cell::RefCell::new(std::mem::replace(&mut world.ends, no_ends));
    let ended = || runtime.block_on(watched(ends.borrow_mut().recv())).is_some();
    let cases = ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(cases, |(bytes in mutated())| {
        let mut stream = UnixStream::connect(&world.path).unwrap();
        stream.write_all(b"{\"type\":\"hello\"}\n").unwrap();
        // The kernel may hang up in the middle.
        let _ = stream.write_all(&bytes);
        drop(stream);
        // A panic would end the session without a word.
        prop_assert!(ended());
        let client = runtime.block_on(world.client());
        let echo = client.call::<Echo>(Text { text: "b".into() }).deadline(Duration::from_secs(10));
        prop_assert!(runtime.block_on(std::future::IntoFuture::into_future(echo)).is_ok());
        drop(client);
        prop_assert!(ended());
    });
    runtime.block_on(world.at_rest());
}

#[tokio::test]
async fn a_worker_cannot_speak_lines_as_no_descriptors_travel_with_them() {
    let world = World::taking_workers();
    let mut lines = Lines::connect(&world).await;
    lines.say(&json!({"type": "hello", "client": "lines", "api": 1, "role": "worker"})).await;
    lines.hears_an_error(None, "hello.role").await;
}
