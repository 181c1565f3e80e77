//! One suite for every way that large values reach a client of a session: {inherited, listening} sockets × {inline, sealed,
//! named} memory. The client has nothing but what comes through its socket.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod support;

use std::collections::{BTreeMap, VecDeque};
use std::future::pending;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use eclosion_ipc::arena::{NamedReader, Reader, SealedReader};
use eclosion_ipc::connection::Received;
use eclosion_ipc::{Accepted, Connection, Session};
use eclosion_schemas::frame::{Envelope, Frame, FrameType, Limits, StreamId};
use eclosion_schemas::operation::Operation;
use eclosion_schemas::ops::arena::{
    ATTACH, AttachReply, AttachRequest, RELEASE, ReleaseRequest, TAKES_NAMED, TAKES_SEALED,
};
use eclosion_schemas::ops::pool::{self, CallRequest};
use eclosion_schemas::{Part, Payload, Segment};

use support::{Number, World, frame, tag, watched, welcome};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    Inline,
    Sealed,
    Named,
}

fn listening(world: &World) -> UnixStream {
    UnixStream::connect(&world.path).unwrap()
}

fn inherited(world: &World) -> UnixStream {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let accepted = Accepted::inherited(ours.into()).unwrap();
    let greeting = Arc::new(welcome(Limits::DEFAULT));
    let session = Session::new(accepted, world.bus.clone(), greeting, pending()).unwrap();
    tokio::spawn(session.with_objects(world.objects.clone(), tag()).run());
    theirs
}

/// A client that does what PROTOCOL.md says, and nothing for its comfort.
struct Client {
    connection: Connection,
    next: u32,
    /// Came while an answer was waited for.
    heard: VecDeque<Received>,
    arenas: BTreeMap<u64, Box<dyn Reader>>,
}

impl Client {
    async fn greeted(stream: UnixStream, way: Way) -> Self {
        let connection = Connection::new(stream.into(), Limits::DEFAULT).unwrap();
        let mut client = Self { connection, next: 1, heard: VecDeque::new(), arenas: BTreeMap::new() };
        let features = match way {
            Way::Inline => None,
            Way::Sealed => Some(vec![TAKES_SEALED.to_owned(), TAKES_NAMED.to_owned()]),
            Way::Named => Some(vec![TAKES_NAMED.to_owned()]),
        };
        let hello = Envelope { client: Some("t".into()), api: Some(1), features, ..Envelope::default() };
        client.say(Frame::new(FrameType::Hello, StreamId::CONNECTION).with_envelope(hello)).await;
        let given = client.hear().await.frame.envelope.features.clone();
        let expected = match way {
            Way::Inline => None,
            Way::Sealed => Some(vec![TAKES_SEALED.to_owned()]),
            Way::Named => Some(vec![TAKES_NAMED.to_owned()]),
        };
        assert_eq!(given, expected, "WELCOME says what was agreed on");
        client
    }

    async fn say(&mut self, frame: Frame) {
        self.connection.send(frame, Vec::new());
        watched(std::future::poll_fn(|task| self.connection.poll_flush(task))).await.unwrap();
    }

    async fn hear(&mut self) -> Received {
        match self.heard.pop_front() {
            Some(heard) => heard,
            None => watched(self.connection.receive()).await.unwrap(),
        }
    }

    fn stream(&mut self) -> StreamId {
        let stream = StreamId(self.next);
        self.next += 2;
        stream
    }

    /// A call of the connection's own.
    async fn ask<T: serde::Serialize>(&mut self, method: &str, request: &T) -> (Frame, Vec<OwnedFd>) {
        let stream = self.stream();
        self.say(Frame::call(stream, method, request).unwrap()).await;
        loop {
            let heard = watched(self.connection.receive()).await.unwrap();
            if heard.frame.stream == stream {
                return (heard.frame, heard.descriptors);
            }
            self.heard.push_back(heard);
        }
    }

    async fn begin(&mut self, frames: u64, credit: u64) -> StreamId {
        let stream = self.stream();
        let call = Frame::call(stream, "test.frames", &Number { number: frames }).unwrap();
        let method = Some("test.frames".to_owned());
        let envelope = Envelope { method, credit: Some(credit), ..Envelope::default() };
        self.say(call.with_envelope(envelope)).await;
        stream
    }

    async fn grant(&mut self, stream: StreamId, total: u64) {
        let envelope = Envelope { credit: Some(total), ..Envelope::default() };
        self.say(Frame::new(FrameType::Credit, stream).with_envelope(envelope)).await;
    }

    async fn release(&mut self, request: &ReleaseRequest) {
        assert_eq!(self.ask(RELEASE, request).await.0.kind, FrameType::Data);
    }

    /// Why a call with an argument there is refused; nobody serves it here.
    async fn refused_call(&mut self, segment: Segment) -> String {
        let part = Part { segment: Some(segment), bytes: segment.length, ..Part::default() };
        let arguments = Payload { parts: vec![part], ..Payload::default() };
        let request = CallRequest { arguments, ..pool::Call::example() };
        self.ask(pool::Call::NAME, &request).await.0.to_error().reason
    }

    /// The bytes of the only part, and where they lay.
    async fn read(&mut self, payload: &Payload, way: Way) -> (Vec<u8>, Option<Segment>) {
        let part = &payload.parts[0];
        if let Some(data) = &part.data {
            assert!(part.segment.is_none());
            return (data.to_vec(), None);
        }
        let segment = part.segment.unwrap();
        if !self.arenas.contains_key(&segment.arena) {
            let (reply, mut descriptors) = self.ask(ATTACH, &AttachRequest { arena: segment.arena }).await;
            let AttachReply { bytes, name } = reply.decode().unwrap();
            assert!(bytes >= segment.offset + segment.length);
            let reader: Box<dyn Reader> = match way {
                Way::Inline => panic!("an inline client was told of a segment"),
                Way::Sealed => Box::new(SealedReader::new(descriptors.pop().unwrap()).unwrap()),
                Way::Named => Box::new(NamedReader::new(&name.unwrap()).unwrap()),
            };
            assert!(descriptors.is_empty());
            self.arenas.insert(segment.arena, reader);
        }
        (self.arenas[&segment.arena].copy(segment.offset, segment.length).unwrap(), Some(segment))
    }
}

/// The suite.
async fn holds(connect: fn(&World) -> UnixStream, way: Way) {
    const CREDIT: u64 = 3;
    const FRAMES: u64 = 8;
    let world = World::new();
    let mut client = Client::greeted(connect(&world), way).await;

    // As many items as were granted, and then control alone: the PONG is next, though more frames are made.
    let stream = client.begin(FRAMES, CREDIT).await;
    let mut seen = 0;
    let mut granted = CREDIT;
    loop {
        let Received { frame: said, .. } = client.hear().await;
        assert_eq!((said.stream, said.kind), (stream, FrameType::Data), "{way:?}");
        let is_reply = said.is_end();
        let payload: Payload = said.decode().unwrap();
        let expected = frame(seen);
        if way != Way::Inline {
            assert!(said.body.len() < 2_000, "{way:?}: what is large lies elsewhere");
        }
        if !is_reply && seen + 1 == granted {
            client.say(Frame::new(FrameType::Ping, StreamId::CONNECTION)).await;
            assert_eq!(client.hear().await.frame.kind, FrameType::Pong, "{way:?}: nothing without credit");
        }
        let (bytes, segment) = client.read(&payload, way).await;
        assert!(bytes == expected, "{way:?}: frame {seen}");
        assert_eq!(segment.is_some(), way != Way::Inline && expected.len() >= 64 * 1024, "{way:?}");
        if let Some(segment) = segment {
            assert_eq!(client.arenas[&segment.arena].copy(u64::MAX, 1), None);
            client.release(&ReleaseRequest { segments: vec![segment], ..ReleaseRequest::default() }).await;
            client.release(&ReleaseRequest { segments: vec![segment], ..ReleaseRequest::default() }).await;
        }
        if is_reply || seen + 1 == granted {
            assert_eq!(world.objects.counts().0, 0, "{way:?}: what was given back is free");
        }
        if is_reply {
            break;
        }
        seen += 1;
        if seen == granted {
            granted += CREDIT;
            client.grant(stream, granted).await;
        }
    }
    assert_eq!(seen, FRAMES);

    // What it was not told of, it is not shown, and a call of it cannot name.
    let refused = client.ask(ATTACH, &AttachRequest { arena: 1 }).await.0.to_error();
    assert_eq!(refused.reason, "arena.stale", "{way:?}");
    let strange = Segment { arena: 1, offset: 0, length: 64, generation: 1 };
    assert_eq!(client.refused_call(strange).await, "arena.segment", "{way:?}");

    // A stream that it leaves gives back what came on it, but what it says that it keeps.
    let stream = client.begin(FRAMES, 3).await;
    let first: Payload = client.hear().await.frame.decode().unwrap();
    let kept = first.parts[0].segment;
    client.say(Frame::new(FrameType::Cancel, stream)).await;
    while client.hear().await.frame.kind != FrameType::Error {}
    let left =
        ReleaseRequest { stream: Some(stream.0), keep: kept.into_iter().collect(), segments: Vec::new() };
    client.release(&left).await;
    assert_eq!(world.objects.counts().0, usize::from(way != Way::Inline), "{way:?}");
    if let Some(kept) = kept {
        assert_eq!(
            client.refused_call(kept).await,
            "address.unserved",
            "{way:?}: as far as to who would take it"
        );
    }
    let (bytes, _) = client.read(&first, way).await;
    assert!(bytes == frame(0), "{way:?}: what it keeps is as it was");

    // Gone without a word, in the middle of a frame: nothing of it is left.
    client.begin(1_000, 1_000).await;
    client.hear().await;
    drop(client);
    watched(async {
        while world.objects.counts().0 > 0 || (way == Way::Named && names() > 0) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    world.at_rest().await;
}

fn names() -> usize {
    let prefix = format!("ecl.{}.", tag());
    let names = std::fs::read_dir("/dev/shm").unwrap().flatten().map(|entry| entry.file_name());
    names.filter(|name| name.to_string_lossy().starts_with(&prefix)).count()
}

#[tokio::test]
async fn large_values_cross_a_listening_socket_inline() {
    holds(listening, Way::Inline).await;
}

#[tokio::test]
async fn large_values_cross_a_listening_socket_by_sealed_memory() {
    holds(listening, Way::Sealed).await;
}

#[tokio::test]
async fn large_values_cross_either_socket_by_named_memory() {
    // One after the other: both look whether a name of this process is left.
    holds(listening, Way::Named).await;
    holds(inherited, Way::Named).await;
}

#[tokio::test]
async fn large_values_cross_an_inherited_socket_inline() {
    holds(inherited, Way::Inline).await;
}

#[tokio::test]
async fn large_values_cross_an_inherited_socket_by_sealed_memory() {
    holds(inherited, Way::Sealed).await;
}
