//! A worker's link against a worker that is played by hand over a socketpair.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::future::Future;
use std::io::{IoSlice, IoSliceMut, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use eclosion_artifact_store::BlobStore;
use eclosion_ipc::arena::Objects;
use eclosion_ipc::worker::Acknowledged;
use eclosion_ipc::{Care, LinkEnd, Outcome, Welcome, WorkerHandle, WorkerHello, WorkerLink, WorkerReports};
use eclosion_schemas::frame::{Decoder, Envelope, Frame, FrameType, Limits, StreamId};
use eclosion_schemas::ops::artifact::{OPEN, OpenReply, OpenRequest, STAGE, StageReply, StageRequest};
use eclosion_schemas::ops::task::Execute;
use eclosion_schemas::view::TaskReport;
use eclosion_schemas::{Attempt, Code, Digest, Epoch, Error, Fence, Part, Payload};
use tokio::sync::{mpsc, oneshot};

#[path = "worker/lending.rs"]
mod lending;

/// Files without a disk; a digest is their length in hexadecimal.
#[derive(Debug, Default)]
struct Blobs {
    staged: Mutex<BTreeMap<u64, std::fs::File>>,
    sealed: Mutex<BTreeMap<String, std::fs::File>>,
    discarded: Mutex<Vec<u64>>,
    last: AtomicU64,
    /// If there is one, the next open waits for it.
    gate: Mutex<Option<std::sync::mpsc::Receiver<()>>>,
}

fn io(why: &dyn std::fmt::Display) -> Error {
    Error::internal("test.io", why.to_string())
}

impl BlobStore for Blobs {
    fn stage(&self, bytes: u64) -> Result<(u64, OwnedFd), Error> {
        let file = tempfile::tempfile().map_err(|why| io(&why))?;
        file.set_len(bytes).map_err(|why| io(&why))?;
        let theirs = file.try_clone().map_err(|why| io(&why))?;
        let stage = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        self.staged.lock().unwrap().insert(stage, file);
        Ok((stage, theirs.into()))
    }

    fn seal(&self, stage: u64) -> Result<(Digest, u64), Error> {
        let unknown = || Error::not_found("artifact.stage_unknown", "not staged");
        let file = self.staged.lock().unwrap().remove(&stage).ok_or_else(unknown)?;
        let bytes = file.metadata().map_err(|why| io(&why))?.len();
        let name = format!("{bytes:064x}");
        self.sealed.lock().unwrap().insert(name.clone(), file);
        Ok((name.parse().unwrap(), bytes))
    }

    fn discard(&self, stage: u64) {
        self.discarded.lock().unwrap().push(stage);
    }

    fn open(&self, digest: &Digest) -> Result<(OwnedFd, u64), Error> {
        if let Some(gate) = self.gate.lock().unwrap().take() {
            gate.recv_timeout(Duration::from_secs(10)).map_err(|why| io(&why))?;
        }
        let sealed = self.sealed.lock().unwrap();
        let missing = || Error::not_found("artifact.missing", "no such file");
        let file = sealed.get(digest.as_str()).ok_or_else(missing)?;
        let bytes = file.metadata().map_err(|why| io(&why))?.len();
        Ok((file.try_clone().map_err(|why| io(&why))?.into(), bytes))
    }

    fn read(&self, _: &Digest, _: u64, _: u32) -> Result<Vec<u8>, Error> {
        Ok(Vec::new())
    }

    fn verify(&self, _: &Digest) -> Result<u64, Error> {
        Ok(0)
    }

    fn sync(&self) -> Result<(), Error> {
        Ok(())
    }
}

/// What the holder was told.
#[derive(Debug)]
enum Told {
    Up(WorkerHello),
    Report(Fence, TaskReport),
    /// With what acknowledges it.
    Outcome(Fence, Outcome, oneshot::Sender<()>),
    Pong(Option<Fence>, u64),
    Closed(LinkEnd),
}

struct Holder(mpsc::UnboundedSender<Told>);

impl WorkerReports for Holder {
    fn up(&self, hello: &WorkerHello) -> bool {
        self.0.send(Told::Up(hello.clone())).unwrap();
        true
    }

    fn report(&self, fence: Fence, report: TaskReport) {
        self.0.send(Told::Report(fence, report)).unwrap();
    }

    fn outcome(&self, fence: Fence, outcome: Outcome) -> Acknowledged {
        let (safe, heard) = oneshot::channel();
        self.0.send(Told::Outcome(fence, outcome, safe)).unwrap();
        Box::pin(async move {
            let _ = heard.await;
        })
    }

    fn pong(&self, running: Option<Fence>, gil_lag_ms: u64) {
        self.0.send(Told::Pong(running, gil_lag_ms)).unwrap();
    }

    fn closed(&self, end: LinkEnd) {
        self.0.send(Told::Closed(end)).unwrap();
    }
}

/// Both ends of one stream.
struct Scene {
    worker: Worker,
    handle: WorkerHandle,
    told: mpsc::UnboundedReceiver<Told>,
    blobs: Arc<Blobs>,
    link: tokio::task::JoinHandle<()>,
}

impl Scene {
    fn begin() -> Self {
        Self::with(Arc::new(Blobs::default()))
    }

    fn with(blobs: Arc<Blobs>) -> Self {
        Self::sharing(blobs, None)
    }

    fn sharing(blobs: Arc<Blobs>, objects: Option<Objects>) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (tell, told) = mpsc::unbounded_channel();
        let welcome = Welcome {
            server: "eclosion/0.1.0".into(),
            instance: "test".into(),
            epoch: Epoch(3),
            describe_hash: String::new(),
            features: Vec::new(),
            limits: Limits::DEFAULT,
        };
        let store: Arc<dyn BlobStore> = Arc::clone(&blobs) as _;
        let (link, handle) =
            WorkerLink::new(ours.into(), Arc::new(welcome), store, Arc::new(Holder(tell))).unwrap();
        let link = match objects {
            Some(objects) => link.with_objects(objects),
            None => link,
        };
        let link = tokio::spawn(link.run());
        Self { worker: Worker::new(theirs), handle, told, blobs, link }
    }

    async fn greeted() -> Self {
        let mut scene = Self::begin();
        assert_eq!(scene.greet(None).await.envelope.resume, None);
        scene
    }

    async fn greet(&mut self, running: Option<Fence>) -> Frame {
        self.worker
            .say(&Frame::new(FrameType::Hello, StreamId::CONNECTION).msgpack(&hello(running)).unwrap());
        match self.told().await {
            Told::Up(told) => assert_eq!(told, hello(running)),
            other => panic!("{other:?}"),
        }
        let (welcome, _) = self.worker.hear().await;
        assert_eq!(welcome.kind, FrameType::Welcome);
        welcome
    }

    async fn told(&mut self) -> Told {
        watched(self.told.recv()).await.unwrap()
    }

    async fn outcome(&mut self) -> (Fence, Outcome, oneshot::Sender<()>) {
        match self.told().await {
            Told::Outcome(fence, outcome, safe) => (fence, outcome, safe),
            other => panic!("{other:?}"),
        }
    }

    async fn closed(&mut self) -> LinkEnd {
        match self.told().await {
            Told::Closed(end) => end,
            other => panic!("{other:?}"),
        }
    }
}

struct Worker {
    stream: UnixStream,
    decoder: Decoder,
    descriptors: Vec<OwnedFd>,
}

impl Worker {
    fn new(stream: UnixStream) -> Self {
        stream.set_nonblocking(true).unwrap();
        Self { stream, decoder: Decoder::new(Limits::DEFAULT), descriptors: Vec::new() }
    }

    fn say(&self, frame: &Frame) {
        let mut bytes = BytesMut::new();
        frame.encode(&mut bytes).unwrap();
        let sent = rustix::net::sendmsg(
            &self.stream,
            &[IoSlice::new(&bytes)],
            &mut rustix::net::SendAncillaryBuffer::default(),
            rustix::net::SendFlags::empty(),
        );
        assert_eq!(sent, Ok(bytes.len()));
    }

    async fn hear(&mut self) -> (Frame, Vec<OwnedFd>) {
        watched(async {
            loop {
                if let Some(frame) = self.decoder.next_frame().unwrap() {
                    let count = usize::from(frame.descriptors);
                    return (frame, self.descriptors.drain(..count).collect());
                }
                self.receive();
                tokio::task::yield_now().await;
            }
        })
        .await
    }

    /// Whether nothing comes although the link has had its turn.
    async fn hears_nothing(&mut self) -> bool {
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
        self.receive();
        self.decoder.next_frame().unwrap().is_none()
    }

    fn receive(&mut self) {
        let mut bytes = vec![0; 1 << 16];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = rustix::net::RecvAncillaryBuffer::new(&mut space);
        let flags = rustix::net::RecvFlags::CMSG_CLOEXEC;
        let got = rustix::net::recvmsg(&self.stream, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags);
        let Ok(got) = got else { return };
        self.decoder.push(&bytes[..got.bytes]);
        for message in control.drain() {
            if let rustix::net::RecvAncillaryMessage::ScmRights(rights) = message {
                self.descriptors.extend(rights);
            }
        }
    }

    fn reply(&self, stream: StreamId, payload: &Payload) {
        let envelope = Envelope { stdout: Some([0, 10]), stderr: Some([5, 7]), ..Envelope::default() };
        self.say(&Frame::data(stream, payload).unwrap().end().with_envelope(envelope));
    }

    async fn stage(&mut self, stream: u32, bytes: u64) -> (u64, std::fs::File) {
        self.stage_for(stream, bytes, None).await
    }

    async fn stage_for(&mut self, stream: u32, bytes: u64, fence: Option<Fence>) -> (u64, std::fs::File) {
        self.say(&Frame::call(StreamId(stream), STAGE, &StageRequest { bytes, fence }).unwrap());
        let (reply, mut descriptors) = self.hear().await;
        assert_eq!((reply.stream, descriptors.len()), (StreamId(stream), 1), "{:?}", reply);
        (reply.decode::<StageReply>().unwrap().stage, descriptors.remove(0).into())
    }
}

async fn watched<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), work).await.expect("it hangs")
}

fn hello(running: Option<Fence>) -> WorkerHello {
    WorkerHello {
        environment: None,
        worker: "w-3-1".parse().unwrap(),
        pid: 42,
        start_ticks: 7,
        boot_id: "b".into(),
        attempts: running.into_iter().collect(),
    }
}

fn fence(counter: u64) -> Fence {
    Fence { epoch: Epoch(3), counter }
}

fn execute(counter: u64) -> Execute {
    Execute {
        run: "7k2m4q9d".parse().unwrap(),
        task: "load".parse().unwrap(),
        attempt: Attempt(1),
        fence: fence(counter),
        function: "steps:load".into(),
        code: "/code".into(),
        code_hash: String::new(),
        arguments: BTreeMap::new(),
        seed: 1,
        idempotency_key: String::new(),
        timeout_ms: None,
        lease: BTreeMap::new(),
        limits: None,
        trace: None,
        timings: false,
        keeps: false,
    }
}

fn part(stage: u64, bytes: u64) -> Part {
    Part { stage: Some(stage), bytes, codec: "bytes".into(), ..Part::default() }
}

fn payload(parts: Vec<Part>) -> Payload {
    Payload { body: Bytes::from_static(&[0xc0]), parts }
}

#[tokio::test]
async fn an_attempt_is_sent_at_once_and_its_outcome_comes_back() {
    let mut scene = Scene::greeted().await;
    scene.handle.execute(&execute(1), Care::Journaled).unwrap();
    let (call, _) = scene.worker.hear().await;
    assert_eq!((call.stream, call.envelope.method.as_deref()), (StreamId(2), Some("task.execute")));
    assert_eq!(call.decode(), Ok(execute(1)));
    let report = TaskReport::Metric { name: "loss".into(), value: 0.5, step: Some(1) };
    scene.worker.say(&Frame::data(call.stream, &report).unwrap());
    match scene.told().await {
        Told::Report(of, told) => assert_eq!((of, told), (fence(1), report)),
        other => panic!("{other:?}"),
    }
    scene.worker.reply(call.stream, &payload(Vec::new()));
    let (of, outcome, _safe) = scene.outcome().await;
    assert_eq!(of, fence(1));
    assert_eq!(
        outcome,
        Outcome { result: Ok(payload(Vec::new())), stdout: (0, 10), stderr: (5, 7), ran_unix_ns: None }
    );
}

#[tokio::test]
async fn what_user_code_raised_is_an_outcome_too() {
    let mut scene = Scene::greeted().await;
    scene.handle.execute(&execute(1), Care::Journaled).unwrap();
    let (call, _) = scene.worker.hear().await;
    let error = Error::new(Code::Internal, "task.raised", "boom");
    scene.worker.say(&Frame::error(call.stream, &error));
    assert_eq!(scene.outcome().await.1.result, Err(error));
}

#[tokio::test]
async fn attempts_wait_for_hello_and_say_which_outcomes_are_safe() {
    let mut scene = Scene::begin();
    scene.handle.execute(&execute(1), Care::Journaled).unwrap();
    scene.handle.execute(&execute(2), Care::Journaled).unwrap();
    assert!(scene.worker.hears_nothing().await);
    scene.greet(None).await;
    let (first, _) = scene.worker.hear().await;
    let (second, _) = scene.worker.hear().await;
    assert_eq!((second.decode(), second.envelope.safe_below), (Ok(execute(2)), Some(fence(1))));
    scene.worker.reply(first.stream, &payload(Vec::new()));
    let (_, _, safe) = scene.outcome().await;
    safe.send(()).unwrap();
    scene.worker.reply(second.stream, &payload(Vec::new()));
    let (_, _, _unsafe) = scene.outcome().await;
    scene.handle.execute(&execute(3), Care::Journaled).unwrap();
    let (third, _) = scene.worker.hear().await;
    assert_eq!((third.decode(), third.envelope.safe_below), (Ok(execute(3)), Some(fence(2))));
}

#[tokio::test]
async fn an_outcome_said_again_after_an_adoption_is_reported_and_the_attempt_is_not_executed_again() {
    let mut scene = Scene::begin();
    let resume = scene.greet(Some(fence(5))).await.envelope.resume.as_ref().unwrap()[0];
    let (credit, _) = scene.worker.hear().await;
    assert_eq!((credit.kind, credit.stream), (FrameType::Credit, resume));
    scene.handle.execute(&execute(5), Care::Journaled).unwrap();
    scene.worker.reply(resume, &payload(Vec::new()));
    let (of, _, safe) = scene.outcome().await;
    assert_eq!(of, fence(5));
    scene.handle.execute(&execute(6), Care::Journaled).unwrap();
    let (next, _) = scene.worker.hear().await;
    assert_eq!((next.decode(), next.envelope.safe_below), (Ok(execute(6)), Some(fence(5))));
    drop(safe);
}

#[tokio::test]
async fn what_has_not_begun_can_be_had_back_wherever_it_waits() {
    let mut scene = Scene::greeted().await;
    for counter in 1..=5 {
        scene.handle.execute(&execute(counter), Care::Journaled).unwrap();
    }
    for _ in 1..=4 {
        scene.worker.hear().await;
    }
    assert!(scene.handle.take_back(fence(5)));
    let (of, outcome, _safe) = scene.outcome().await;
    assert!(of == fence(5) && outcome.is_returned());
    assert!(scene.handle.take_back(fence(4)));
    let (cancel, _) = scene.worker.hear().await;
    assert_eq!((cancel.kind, cancel.envelope.rung), (FrameType::Cancel, Some(0)));
    assert!(!scene.handle.take_back(fence(5)));
}

#[tokio::test]
async fn a_worker_that_claims_more_than_it_may_keep_is_cut_off() {
    let mut scene = Scene::begin();
    let hello = WorkerHello { attempts: (1..=64).map(fence).collect(), ..hello(None) };
    scene.worker.say(&Frame::new(FrameType::Hello, StreamId::CONNECTION).msgpack(&hello).unwrap());
    assert_eq!(scene.closed().await.why.unwrap().reason, "hello.attempts");
}

#[tokio::test]
async fn an_outcome_outlives_the_stream_that_it_came_through() {
    let mut scene = Scene::greeted().await;
    scene.handle.execute(&execute(1), Care::Journaled).unwrap();
    let (call, _) = scene.worker.hear().await;
    scene.worker.reply(call.stream, &payload(Vec::new()));
    drop(scene.worker);
    let (_, _, safe) = match watched(scene.told.recv()).await.unwrap() {
        Told::Outcome(fence, outcome, safe) => (fence, outcome, safe),
        other => panic!("{other:?}"),
    };
    match watched(scene.told.recv()).await.unwrap() {
        Told::Closed(end) => assert!(end.why.is_none() && end.unfinished.is_empty(), "{end:?}"),
        other => panic!("{other:?}"),
    }
    assert!(!scene.link.is_finished());
    safe.send(()).unwrap();
    watched(scene.link).await.unwrap();
}

#[tokio::test]
async fn a_worker_that_goes_leaves_the_names_of_what_it_had() {
    let mut scene = Scene::greeted().await;
    scene.handle.execute(&execute(1), Care::Journaled).unwrap();
    scene.handle.execute(&execute(2), Care::Journaled).unwrap();
    for _ in 1..=2 {
        scene.worker.hear().await;
    }
    let (stage, _file) = scene.worker.stage(1, 10).await;
    scene.worker.stream.shutdown(std::net::Shutdown::Both).unwrap();
    let end = scene.closed().await;
    assert!(end.why.is_none(), "{end:?}");
    assert_eq!((end.unfinished, end.staged), (vec![fence(1), fence(2)], vec![stage]));
    assert!(scene.handle.is_closed());
    assert_eq!(scene.handle.execute(&execute(3), Care::Journaled).unwrap_err().code, Code::Unavailable);
    watched(scene.link).await.unwrap();
}

#[tokio::test]
async fn staged_files_pass_as_descriptors_and_are_named_by_the_kernel() {
    for bytes in [100, 2_000_000] {
        let mut scene = Scene::greeted().await;
        scene.handle.execute(&execute(1), Care::Journaled).unwrap();
        let (call, _) = scene.worker.hear().await;
        let (stage, mut file) = scene.worker.stage(1, bytes).await;
        let (unused, _) = scene.worker.stage(3, bytes).await;
        file.write_all(b"written by the worker").unwrap();
        scene.worker.reply(call.stream, &payload(vec![part(stage, bytes)]));
        let (_, outcome, _safe) = scene.outcome().await;
        let sealed = &outcome.result.unwrap().parts[0];
        assert_eq!((sealed.stage, sealed.bytes), (None, bytes));
        assert_eq!(*scene.blobs.discarded.lock().unwrap(), [unused]);

        let digest = sealed.digest.clone().unwrap();
        scene.worker.say(&Frame::call(StreamId(5), OPEN, &OpenRequest { digest }).unwrap());
        let (reply, mut descriptors) = scene.worker.hear().await;
        assert_eq!(reply.decode(), Ok(OpenReply { bytes }));
        let (mut file, mut text) = (std::fs::File::from(descriptors.remove(0)), [0; 21]);
        file.rewind().unwrap();
        file.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"written by the worker");
    }
}

#[tokio::test]
async fn an_attempt_that_is_given_back_takes_no_file_of_the_one_that_stages() {
    let mut scene = Scene::greeted().await;
    scene.handle.execute(&execute(1), Care::Journaled).unwrap();
    scene.handle.execute(&execute(2), Care::Journaled).unwrap();
    let (first, _) = scene.worker.hear().await;
    let (second, _) = scene.worker.hear().await;
    let (stage, _file) = scene.worker.stage_for(1, 100, Some(fence(1))).await;
    let returned = Error::new(Code::Cancelled, "task.returned", "it had not begun");
    scene.worker.say(&Frame::error(second.stream, &returned));
    assert_eq!(scene.outcome().await.0, fence(2));
    scene.worker.reply(first.stream, &payload(vec![part(stage, 100)]));
    let (of, outcome, _safe) = scene.outcome().await;
    assert_eq!((of, outcome.result.unwrap().parts[0].bytes), (fence(1), 100));
    assert!(scene.blobs.discarded.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_file_that_another_worker_staged_is_not_sealed_for_this_one() {
    let blobs = Arc::new(Blobs::default());
    let (foreign, _file) = blobs.stage(10).unwrap();
    let mut scene = Scene::with(Arc::clone(&blobs));
    scene.greet(None).await;
    scene.handle.execute(&execute(1), Care::Journaled).unwrap();
    let (call, _) = scene.worker.hear().await;
    scene.worker.reply(call.stream, &payload(vec![part(foreign, 10)]));
    let error = scene.outcome().await.1.result.unwrap_err();
    assert_eq!(error.reason, "artifact.stage_unknown");
    assert!(blobs.staged.lock().unwrap().contains_key(&foreign));
}

#[tokio::test]
async fn a_resumed_attempt_names_files_that_it_staged_before() {
    let blobs = Arc::new(Blobs::default());
    let (stage, _file) = blobs.stage(10).unwrap();
    let mut scene = Scene::with(Arc::clone(&blobs));
    let resume = scene.greet(Some(fence(5))).await.envelope.resume.as_ref().unwrap()[0];
    scene.worker.reply(resume, &payload(vec![part(stage, 10)]));
    assert!(scene.outcome().await.1.result.unwrap().parts[0].digest.is_some());
}

#[tokio::test]
async fn a_file_that_takes_long_to_open_keeps_nothing_else_of_the_link_waiting() {
    let mut scene = Scene::greeted().await;
    let (open, gate) = std::sync::mpsc::channel();
    *scene.blobs.gate.lock().unwrap() = Some(gate);
    let digest: Digest = "0".repeat(64).parse().unwrap();
    scene.worker.say(&Frame::call(StreamId(1), OPEN, &OpenRequest { digest }).unwrap());
    scene.worker.stage(3, 100).await;
    open.send(()).unwrap();
    let (opened, _) = scene.worker.hear().await;
    assert_eq!((opened.stream, opened.to_error().reason.as_str()), (StreamId(1), "artifact.missing"));
}

#[tokio::test]
async fn a_request_for_a_file_is_refused_in_its_own_stream() {
    let mut scene = Scene::greeted().await;
    let digest: Digest = "0".repeat(64).parse().unwrap();
    scene.worker.say(&Frame::call(StreamId(1), OPEN, &OpenRequest { digest }).unwrap());
    assert_eq!(scene.worker.hear().await.0.to_error().reason, "artifact.missing");
    scene.worker.say(&Frame::call(StreamId(3), "run.start", &()).unwrap());
    assert_eq!(scene.worker.hear().await.0.to_error().code, Code::Unimplemented);
    scene.worker.say(&Frame::call(StreamId(5), STAGE, &"nonsense").unwrap());
    assert_eq!(scene.worker.hear().await.0.to_error().code, Code::Invalid);
}

#[tokio::test]
async fn a_cancel_climbs_at_the_worker_and_takes_back_what_was_not_sent() {
    let mut scene = Scene::greeted().await;
    for counter in 1..=5 {
        scene.handle.execute(&execute(counter), Care::Journaled).unwrap();
    }
    let (call, _) = scene.worker.hear().await;
    for _ in 2..=4 {
        scene.worker.hear().await;
    }
    for rung in [1, 2] {
        assert!(scene.handle.cancel(fence(1), rung));
        let (cancel, _) = scene.worker.hear().await;
        assert_eq!(
            (cancel.kind, cancel.stream, cancel.envelope.rung),
            (FrameType::Cancel, call.stream, Some(rung))
        );
    }
    assert!(scene.handle.cancel(fence(5), 1));
    let (of, outcome, _safe) = scene.outcome().await;
    assert_eq!((of, outcome.result.unwrap_err().reason.as_str()), (fence(5), "task.cancelled"));
    assert!(!scene.handle.cancel(fence(6), 1));
}

#[tokio::test]
async fn a_drained_worker_gets_nothing_new() {
    let mut scene = Scene::greeted().await;
    scene.handle.drain();
    scene.handle.drain();
    assert_eq!(scene.worker.hear().await.0.kind, FrameType::Goaway);
    assert_eq!(scene.handle.execute(&execute(1), Care::Journaled).unwrap_err().reason, "worker.draining");
    assert!(scene.worker.hears_nothing().await);
}

#[tokio::test]
async fn a_ping_tells_what_runs_and_how_long_the_lock_was_held() {
    let mut scene = Scene::greeted().await;
    scene.handle.ping();
    assert_eq!(scene.worker.hear().await.0.kind, FrameType::Ping);
    let envelope = Envelope { running: Some(fence(9)), gil_lag_ms: Some(12), ..Envelope::default() };
    scene.worker.say(&Frame::new(FrameType::Pong, StreamId::CONNECTION).with_envelope(envelope));
    match scene.told().await {
        Told::Pong(running, lag) => assert_eq!((running, lag), (Some(fence(9)), 12)),
        other => panic!("{other:?}"),
    }
    scene.worker.say(&Frame::new(FrameType::Ping, StreamId::CONNECTION));
    assert_eq!(scene.worker.hear().await.0.kind, FrameType::Pong);
}

#[tokio::test]
async fn a_worker_that_breaks_the_protocol_is_cut_off_and_its_holder_told_why() {
    let nameless = payload(vec![Part { stage: None, ..part(0, 1) }]);
    let cases = [
        (Frame::data(StreamId(2), &nameless).unwrap().end(), "task.payload"),
        (Frame::data(StreamId(2), &"no payload").unwrap().end(), "codec.shape"),
        (Frame::new(FrameType::Hello, StreamId::CONNECTION), "hello.repeated"),
        (Frame::call(StreamId(4), STAGE, &StageRequest { bytes: 1, fence: None }).unwrap(), "stream.number"),
        (Frame::new(FrameType::Data, StreamId(2)).with_descriptors(1), "frame.descriptors"),
    ];
    for (frame, reason) in cases {
        let mut scene = Scene::greeted().await;
        scene.handle.execute(&execute(1), Care::Journaled).unwrap();
        scene.worker.hear().await;
        scene.worker.say(&frame);
        let end = scene.closed().await;
        assert_eq!((end.why.unwrap().reason.as_str(), end.unfinished), (reason, vec![fence(1)]));
        watched(scene.link).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_never_says_hello_is_given_up() {
    let mut scene = Scene::begin();
    let end = loop {
        if let Ok(told) = scene.told.try_recv() {
            break told;
        }
        tokio::time::advance(Duration::from_secs(1)).await;
    };
    match end {
        Told::Closed(end) => assert_eq!(end.why.unwrap().reason, "hello.late"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_large_attempt_travels_in_fragments_and_one_that_is_too_large_is_refused() {
    let mut scene = Scene::greeted().await;
    let value = eclosion_schemas::ops::task::Argument::Value {
        payload: Payload { body: vec![0; 20 << 20].into(), parts: Vec::new() },
    };
    let mut large = execute(1);
    large.arguments.insert("x".into(), value);
    let refused = scene.handle.execute(&large, Care::Journaled).unwrap_err();
    assert_eq!((refused.code, refused.reason.as_str()), (Code::Exhausted, "frame.size"));
    // The refusal is none of the fence.
    scene.handle.execute(&execute(1), Care::Journaled).unwrap();
    assert_eq!(scene.worker.hear().await.0.decode(), Ok(execute(1)));
}
