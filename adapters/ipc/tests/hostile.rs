//! Whatever comes through the socket: the connection that it came through may end, nothing else does.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use bytes::BytesMut;
use eclosion_schemas::Code;
use eclosion_schemas::frame::{Decoder, Envelope, Flags, Frame, FrameType, Limits, StreamId, WireCodec};
use proptest::prelude::*;
use support::{Echo, Text, World, watched};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A client that says exactly what it is told.
struct Raw {
    stream: tokio::net::UnixStream,
    decoder: Decoder,
}

impl Raw {
    async fn connect(path: &Path) -> Self {
        let stream = tokio::net::UnixStream::connect(path).await.unwrap();
        Self { stream, decoder: Decoder::new(Limits::DEFAULT) }
    }

    async fn greeted(path: &Path) -> Self {
        let mut raw = Self::connect(path).await;
        raw.say(&hello()).await;
        assert_eq!(raw.hear().await.map(|frame| frame.kind), Some(FrameType::Welcome));
        raw
    }

    async fn say(&mut self, frame: &Frame) {
        let mut bytes = BytesMut::new();
        frame.encode(&mut bytes).unwrap();
        // The kernel may have hung up already.
        let _ = self.stream.write_all(&bytes).await;
    }

    /// The next frame; `None` at the end.
    async fn hear(&mut self) -> Option<Frame> {
        watched(async {
            loop {
                if let Some(frame) = self.decoder.next_frame().unwrap() {
                    return Some(frame);
                }
                let mut bytes = [0; 4096];
                match self.stream.read(&mut bytes).await {
                    Ok(0) | Err(_) => return None,
                    Ok(count) => self.decoder.push(&bytes[..count]),
                }
            }
        })
        .await
    }

    async fn hears_an_error(&mut self, stream: u32, reason: &str) {
        let frame = self.hear().await.unwrap();
        assert_eq!((frame.kind, frame.stream), (FrameType::Error, StreamId(stream)));
        assert_eq!(frame.to_error().reason, reason);
    }
}

fn hello() -> Frame {
    Frame::new(FrameType::Hello, StreamId::CONNECTION)
}

fn call(stream: u32, method: &str) -> Frame {
    Frame::call(StreamId(stream), method, &Text { text: "a".into() }).unwrap()
}

async fn others_are_served(world: &World) {
    let answer =
        world.client().await.call::<Echo>(Text { text: "b".into() }).deadline(Duration::from_secs(10)).await;
    assert_eq!(answer, Ok(Text { text: "b".into() }));
}

#[tokio::test]
async fn who_does_not_say_hello_in_time_is_told_and_cut_off() {
    let world = World::with(Limits { hello_ms: 30, ..Limits::DEFAULT }, 256);
    let mut silent = Raw::connect(&world.path).await;
    silent.hears_an_error(0, "hello.late").await;
    assert_eq!(silent.hear().await, None);
    let mut slow = Raw::connect(&world.path).await;
    slow.stream.write_all(&[0, 0]).await.unwrap();
    slow.hears_an_error(0, "hello.late").await;
}

#[tokio::test]
async fn another_dialect_is_refused_in_one_line_that_it_can_read() {
    let world = World::new();
    for (said, heard) in [
        (&b"get / HTTP/1.1\r\n\r\n"[..], "this socket speaks frames"),
        (b"{\"method\":\"kernel.ping\"}\n", "{\"body\":{\"code\":\"invalid\""),
        (b"\x16\x03\x01", "this socket speaks frames"),
    ] {
        let mut stream = tokio::net::UnixStream::connect(&world.path).await.unwrap();
        stream.write_all(said).await.unwrap();
        let mut line = String::new();
        watched(stream.read_to_string(&mut line)).await.unwrap();
        assert!(line.starts_with(heard) && line.ends_with('\n'), "{line}");
    }
    others_are_served(&world).await;
}

#[tokio::test]
async fn a_client_of_another_age_is_refused() {
    let world = World::new();
    let mut raw = Raw::connect(&world.path).await;
    let envelope = Envelope { api: Some(9), api_compatible: Some(9), ..Envelope::default() };
    raw.say(&hello().with_envelope(envelope)).await;
    raw.hears_an_error(0, "hello.api").await;
    let mut raw = Raw::connect(&world.path).await;
    raw.say(&call(1, "test.echo")).await;
    raw.hears_an_error(0, "hello.missing").await;
}

#[tokio::test]
async fn what_breaks_the_protocol_ends_the_connection_with_a_reason() {
    let world = World::new();
    let cases: [(Frame, &str); 6] = [
        (hello(), "hello.repeated"),
        (Frame::new(FrameType::Welcome, StreamId::CONNECTION), "hello.repeated"),
        (call(2, "test.echo"), "stream.number"),
        (call(0, "test.echo"), "stream.number"),
        (Frame::new(FrameType::Ping, StreamId(1)).with_flags(Flags::MORE), "frame.fragment"),
        (call(1, "test.echo").with_descriptors(2), "frame.descriptors"),
    ];
    for (frame, reason) in cases {
        let mut raw = Raw::greeted(&world.path).await;
        raw.say(&frame).await;
        raw.hears_an_error(0, reason).await;
        assert_eq!(raw.hear().await, None);
    }
    others_are_served(&world).await;
}

#[tokio::test]
async fn a_stream_that_is_open_cannot_be_opened_again() {
    let world = World::new();
    let mut raw = Raw::greeted(&world.path).await;
    raw.say(&call(1, "test.hold")).await;
    raw.say(&call(1, "test.echo")).await;
    raw.hears_an_error(0, "stream.number").await;
}

#[tokio::test]
async fn what_is_only_unknown_costs_its_own_stream_at_most() {
    let world = World::new();
    let mut raw = Raw::greeted(&world.path).await;
    raw.say(&Frame::new(FrameType::Other(99), StreamId(5))).await;
    raw.hears_an_error(5, "frame.type").await;
    raw.say(&Frame::new(FrameType::Other(99), StreamId(7)).with_flags(Flags::IGNORE)).await;
    raw.say(&Frame::new(FrameType::Other(99), StreamId::CONNECTION)).await;
    for kind in [FrameType::Cancel, FrameType::Credit, FrameType::Data, FrameType::Error, FrameType::Pong] {
        raw.say(&Frame::new(kind, StreamId(9))).await;
    }
    raw.say(&call(11, "test.echo").with_body(WireCodec::Json, &b"{}"[..])).await;
    raw.hears_an_error(11, "request.codec").await;
    raw.say(&Frame::new(FrameType::Ping, StreamId::CONNECTION)).await;
    assert_eq!(raw.hear().await.map(|frame| frame.kind), Some(FrameType::Pong));
    raw.say(&call(13, "test.echo")).await;
    assert_eq!(raw.hear().await.unwrap().decode(), Ok(Text { text: "a".into() }));
}

#[tokio::test]
async fn data_on_a_call_of_ours_ends_that_call() {
    let world = World::new();
    let mut raw = Raw::greeted(&world.path).await;
    raw.say(&call(1, "test.hold")).await;
    watched(world.holding.notified()).await;
    raw.say(&Frame::new(FrameType::Data, StreamId(1))).await;
    raw.hears_an_error(1, "stream.data").await;
    watched(world.holding.notified()).await;
}

#[tokio::test]
async fn a_cancel_is_answered_and_a_stream_number_is_free_again() {
    let world = World::new();
    let mut raw = Raw::greeted(&world.path).await;
    raw.say(&call(1, "test.hold")).await;
    watched(world.holding.notified()).await;
    raw.say(&Frame::new(FrameType::Cancel, StreamId(1))).await;
    raw.hears_an_error(1, "call.cancelled").await;
    watched(world.holding.notified()).await;
    world.at_rest().await;
}

/// The reply to this has 15 MiB, near the most that a message may have.
fn large_call(stream: u32) -> Frame {
    Frame::call(StreamId(stream), "test.echo", &Text { text: "x".repeat(LARGE_BYTES) }).unwrap()
}

const LARGE_BYTES: usize = 15 << 20;
const FRAGMENTS: usize = LARGE_BYTES / (64 * 1024);

/// Fragments of stream 1 until another frame comes, and this one.
async fn fragments_before_another(raw: &mut Raw) -> (usize, Frame) {
    let mut fragments = 0;
    loop {
        let frame = raw.hear().await.unwrap();
        if (frame.kind, frame.stream) != (FrameType::Data, StreamId(1)) {
            return (fragments, frame);
        }
        assert!(frame.flags.contains(Flags::MORE), "all of the reply has come");
        fragments += 1;
    }
}

#[tokio::test]
async fn ping_and_cancel_overtake_a_large_reply() {
    let world = World::new();
    let mut raw = Raw::greeted(&world.path).await;
    raw.say(&large_call(1)).await;
    let first = raw.hear().await.unwrap();
    assert_eq!((first.stream, first.body.len()), (StreamId(1), 64 * 1024));
    // What the socket holds when PING is said cannot be overtaken; that is a few fragments of 240.
    raw.say(&Frame::new(FrameType::Ping, StreamId::CONNECTION)).await;
    let (before, pong) = fragments_before_another(&mut raw).await;
    assert_eq!(pong.kind, FrameType::Pong);
    assert!(before < FRAGMENTS / 4, "PONG came behind {before} fragments");

    raw.say(&Frame::new(FrameType::Cancel, StreamId(1))).await;
    let (before, last) = fragments_before_another(&mut raw).await;
    assert!(before < FRAGMENTS / 4, "the end of what was cancelled came behind {before} fragments");
    assert_eq!((last.kind, last.stream), (FrameType::Error, StreamId(1)));
    assert_eq!(last.to_error().reason, "call.cancelled");
    raw.say(&Frame::new(FrameType::Ping, StreamId::CONNECTION)).await;
    assert_eq!(raw.hear().await.map(|frame| frame.kind), Some(FrameType::Pong), "nothing of it is left");
}

#[tokio::test]
async fn pings_of_one_who_reads_nothing_do_not_fill_the_memory() {
    let mut world = World::new();
    let mut raw = Raw::greeted(&world.path).await;
    let envelope = Envelope { id: Some("x".repeat(90)), ..Envelope::default() };
    let mut ping = BytesMut::new();
    Frame::new(FrameType::Ping, StreamId::CONNECTION).with_envelope(envelope).encode(&mut ping).unwrap();
    let flood = ping.repeat(64 * 1024 / ping.len());
    // The kernel stops reading once its answers find no room, and then nothing more can be written.
    let mut written = 0;
    let full = async {
        loop {
            written += raw.stream.write(&flood).await.unwrap();
        }
    };
    let stopped: Result<(), _> = tokio::time::timeout(Duration::from_millis(500), full).await;
    assert!(stopped.is_err() && written < 16 << 20, "{written}");
    others_are_served(&world).await;
    drop(raw);
    assert!(watched(world.ends.recv()).await.is_some());
}

#[tokio::test]
async fn above_the_cap_a_connection_is_told_so_and_room_comes_back() {
    let world = World::with(Limits::DEFAULT, 2);
    let first = Raw::greeted(&world.path).await;
    let _second = Raw::greeted(&world.path).await;
    let refused = watched(eclosion_client::Client::connect(&world.path)).await.unwrap_err();
    assert_eq!((refused.code, refused.reason.as_str()), (Code::Exhausted, "connection.limit"));
    drop(first);
    watched(async {
        while eclosion_client::Client::connect(&world.path).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// The bytes of the golden frames, of all kinds, good and bad.
fn golden() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../schemas/golden");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let hex = files.iter().filter(|path| path.extension().is_some_and(|extension| extension == "hex"));
    let bytes = |path| -> Vec<u8> {
        let text: String = std::fs::read_to_string(path).unwrap().split_whitespace().collect();
        (0..text.len() / 2).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap()).collect()
    };
    hex.map(bytes).collect()
}

/// Golden frames in any order, some of their bytes changed, cut anywhere.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let frames = golden();
    assert!(frames.len() > 20);
    let some = proptest::collection::vec(proptest::sample::select(frames), 1..5);
    (
        some,
        proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        any::<prop::sample::Index>(),
    )
        .prop_map(|(frames, changes, cut)| {
            let mut bytes = frames.concat();
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
    let mut greeting = BytesMut::new();
    hello().encode(&mut greeting).unwrap();
    let ended = || runtime.block_on(watched(ends.borrow_mut().recv())).is_some();
    let cases = ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(cases, |(bytes in mutated(), is_greeted in any::<bool>())| {
        let mut stream = UnixStream::connect(&world.path).unwrap();
        if is_greeted {
            stream.write_all(&greeting).unwrap();
        }
        // The kernel may hang up in the middle.
        let _ = stream.write_all(&bytes);
        drop(stream);
        // A panic would end the session without a word.
        prop_assert!(ended());
        runtime.block_on(others_are_served(&world));
        prop_assert!(ended());
    });
    runtime.block_on(world.at_rest());
}
