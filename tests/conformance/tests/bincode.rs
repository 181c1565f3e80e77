//! Bincode on the wire: agreed upon for each operation, never without both ends, and nothing that hostile bytes could use.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use eclosion::bus::InHand;
use eclosion::schemas::codec::{self, positional};
use eclosion::schemas::frame::{API, Decoder, Envelope, Frame, FrameType, Limits, StreamId, WireCodec};
use eclosion::schemas::operation::{Durability, NoItem, Operation, Role, Spec, positional_schema};
use eclosion::schemas::ops::kernel::{Describe, DescribeRequest};
use eclosion::{Handler, Kernel};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
struct Text {
    text: String,
    times: u32,
}

struct Repeat;

impl Operation for Repeat {
    type Request = Text;
    type Reply = Text;
    type Item = NoItem;
    const NAME: &'static str = "demo.repeat";
    const ADDRESS: &'static str = "/demo";
    const ROLE: Role = Role::View;
    const DURABILITY: Durability = Durability::Call;
    const BY_PLACE: bool = true;
    const DOC: &'static str = "A test's.";
    fn example() -> Text {
        text("a", 2)
    }
}

fn text(text: &str, times: u32) -> Text {
    Text { text: text.into(), times }
}

struct Demo;

impl Handler for Demo {
    async fn handle(&mut self, message: InHand) {
        let Some(Text { text, times }) = message.request::<Repeat>().cloned() else { return };
        message.finish().reply(Ok(Box::new(Text { text: text.repeat(times as usize), times })));
    }
}

struct Scene {
    kernel: Kernel,
    wire: Wire,
    socket: std::path::PathBuf,
    _directory: tempfile::TempDir,
}

/// A client that is played by hand.
struct Wire {
    stream: UnixStream,
    decoder: Decoder,
    next: u32,
}

impl Scene {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("run/kernel.sock");
        let builder = Kernel::builder().ephemeral().listen(&socket).operation(Spec::of::<Repeat>());
        let kernel = builder.service("/demo", || Demo).start().await.unwrap();
        let stream = UnixStream::connect(&socket).await.unwrap();
        let mut wire = Wire { stream, decoder: Decoder::new(Limits::DEFAULT), next: 1 };
        let envelope = Envelope { api: Some(API), ..Envelope::default() };
        wire.say(Frame::new(FrameType::Hello, StreamId::CONNECTION).with_envelope(envelope)).await;
        assert_eq!(wire.hear().await.envelope.features, Some(vec!["bincode".to_owned()]));
        Self { kernel, wire, socket, _directory: directory }
    }
}

impl Wire {
    async fn say(&mut self, frame: Frame) {
        let mut bytes = bytes::BytesMut::new();
        frame.encode(&mut bytes).unwrap();
        self.stream.write_all(&bytes).await.unwrap();
    }

    async fn hear(&mut self) -> Frame {
        let mut bytes = [0; 4096];
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return frame;
            }
            let read = self.stream.read(&mut bytes).await.unwrap();
            self.decoder.push(&bytes[..read]);
        }
    }

    async fn call(&mut self, method: &str, codec: WireCodec, body: Vec<u8>, schema: Option<String>) -> Frame {
        let stream = StreamId(self.next);
        self.next += 2;
        let envelope = Envelope { method: Some(method.into()), schema, ..Envelope::default() };
        let frame = Frame::new(FrameType::Call, stream).with_envelope(envelope).with_body(codec, body);
        self.say(frame).await;
        self.hear().await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_that_both_know_is_agreed_upon_and_bodies_travel_by_place() {
    let mut scene = Scene::new().await;
    let schema = positional_schema::<Repeat>().unwrap();
    let named = codec::encode(&text("ab", 2)).unwrap();
    let first = scene.wire.call(Repeat::NAME, WireCodec::Msgpack, named, Some(schema.clone())).await;
    assert_eq!((first.codec, first.envelope.schema.clone()), (WireCodec::Msgpack, Some(schema)));
    let places = positional::encode(&text("ab", 2)).unwrap();
    let second = scene.wire.call(Repeat::NAME, WireCodec::Bincode, places, None).await;
    assert_eq!((second.codec, second.envelope.schema.clone()), (WireCodec::Bincode, None));
    assert_eq!(positional::decode::<Text>(&second.body), first.decode());
    // What is too long for it comes as msgpack.
    let places = positional::encode(&text("ab", 100_000)).unwrap();
    let long = scene.wire.call(Repeat::NAME, WireCodec::Bincode, places, None).await;
    assert_eq!((long.codec, long.is_end()), (WireCodec::Msgpack, false));
    scene.kernel.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_schema_is_answered_in_msgpack_and_not_repeated() {
    let mut scene = Scene::new().await;
    for schema in ["demo.repeat@0123", "demo.repeat", "", "kernel.ping@0"] {
        let named = codec::encode(&text("ab", 2)).unwrap();
        let answer = scene.wire.call(Repeat::NAME, WireCodec::Msgpack, named, Some(schema.into())).await;
        assert_eq!((answer.codec, answer.envelope.schema.clone()), (WireCodec::Msgpack, None), "{schema}");
        assert_eq!(answer.decode::<Text>().unwrap(), text("abab", 2));
    }
    scene.kernel.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_bytes_and_operations_without_a_layout_are_refused() {
    let mut scene = Scene::new().await;
    let refused = |frame: Frame| frame.to_error().reason;
    for body in [vec![], vec![0xff; 64], vec![0xfd, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]] {
        let answer = scene.wire.call(Repeat::NAME, WireCodec::Bincode, body, None).await;
        assert_eq!(refused(answer), "request.malformed");
    }
    assert_eq!(positional_schema::<Describe>(), None, "it does not say that it travels so");
    let request = positional::encode(&DescribeRequest { name: None }).unwrap();
    let answer = scene.wire.call(Describe::NAME, WireCodec::Bincode, request, None).await;
    assert_eq!(refused(answer), "request.codec");
    scene.kernel.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rust_client_sees_no_difference() {
    let scene = Scene::new().await;
    let client = eclosion::client::Client::connect(&scene.socket).await.unwrap();
    // By name, then by place; one that is too long either way, then by place again.
    for times in [1, 2, 100_000, 3] {
        let reply = client.call::<Repeat>(text("ab", times)).await.unwrap();
        assert_eq!((reply.text.len(), reply.times), (2 * times as usize, times));
    }
    let long = "x".repeat(100_000);
    assert_eq!(client.call::<Repeat>(text(&long, 1)).await.unwrap().text, long);
    scene.kernel.shutdown().await;
}
