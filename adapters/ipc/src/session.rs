//! A client's session: what it calls goes to the bus, what comes back goes to it.
//!
//! Owned by one supervised actor per connection, which awaits [`Session::run`]; everything a session holds (asks,
//! subscriptions, credits) ends with it, so a client that goes leaves nothing behind (P1, P5). States:
//!
//! ```text
//!   new ──first byte──▶ greeting ──HELLO/WELCOME──▶ serving ──stop──▶ draining ──nothing open──▶ over
//!    │                                  └ refused: ERROR, over   └ peer gone or malformed: over
//!    └ HTTP: one answer, over ([`http`]); another dialect: one line, over
//! ```
//!
//! - greeting: [`hello`], at most `hello_ms`;
//! - serving: [`Session::on_frame`] turns frames into streams, [`Session::serve`] turns what streams have into frames;
//! - draining: GOAWAY was said, calls under way may end, new ones are refused.
//!
//! Invariants:
//! 1. Every CALL is answered exactly once: reply, ERROR, or the end of the connection (P3).
//! 2. A stream that may not send (no credit, no room) is not polled, so what it would have sent stays where it is
//!    bounded: in the ask's items, in the subscription's queue.
//! 3. No stream waits for another: each wakes the session for itself ([`crate::ready`]).
//!
//! It deliberately knows no subsystem: an operation is what the bus's table says, except `bus.subscribe`, whose items
//! are already bytes.

mod call;
mod hello;
mod http;
pub mod serve;
mod sharing;
mod stream;

use std::collections::{BTreeMap, VecDeque};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use eclosion_bus::Bus;
use eclosion_schemas::frame::{Envelope, Flags, Frame, FrameType, StreamId};
use eclosion_schemas::{Code, Error, Retry, Role};
use tokio::time::Sleep;

use self::serve::{ServiceCall, Services, Serving};
use self::sharing::Sharing;
use self::stream::{OpenStream, Step};
use crate::arena::Objects;
use crate::connection::{Connection, End, Received};
use crate::listener::{Accepted, Peer, Place};
use crate::pages::Pages;
use crate::ready::ReadyStreams;
use crate::traffic::Traffic;
use crate::welcome::Welcome;
use crate::worker::{AttachedWorker, WorkerHello};

/// How long calls under way may take once the kernel stops.
const DRAIN: Duration = Duration::from_secs(5);
/// What one stream may send before the others are asked.
const BURST: usize = 64;

/// How a session ended.
#[derive(Debug)]
pub struct SessionEnd {
    /// The client as it named itself, once it has.
    pub client: Option<Arc<str>>,
    /// Nothing: the client left, or the kernel stopped.
    pub why: Option<Error>,
    pub calls: u64,
    /// It was no client but a worker, whose connection goes on as that.
    pub worker: Option<Box<AttachedWorker>>,
}

/// See the module.
pub struct Session {
    connection: Connection,
    bus: Bus,
    welcome: Arc<Welcome>,
    /// What HTTP may ask for.
    pages: Option<Arc<dyn Pages>>,
    peer: Peer,
    role: Role,
    client: Option<Arc<str>>,
    stopping: Option<Stopping>,
    /// Until when calls under way may end, once the kernel stops.
    draining: Option<Pin<Box<Sleep>>>,
    ready: Arc<ReadyStreams>,
    streams: BTreeMap<StreamId, OpenStream>,
    /// Of them, calls that do not stream.
    inflight: usize,
    /// Of them, subscriptions.
    subscriptions: usize,
    /// Had something to say when the connection had no room.
    starved: VecDeque<StreamId>,
    calls: u64,
    /// Where somebody gives addresses to services.
    serving: Option<Serving>,
    traffic: Arc<Traffic>,
    sharing: Sharing,
    takes_workers: bool,
    /// Its place among the connections that are allowed.
    place: Option<Place>,
}

type Stopping = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What a session waits for.
enum Event {
    Received(Received),
    Ready(StreamId),
    Serve(Box<ServiceCall>),
    Stop,
    Drained,
}

/// Why a session is over.
enum Over {
    End(End),
    /// The client broke the protocol, or may not be here; it is told.
    Refused(Error),
    /// Another dialect's last word, and the error that it stands for, if any.
    Text(String, Option<Error>),
    Worker(Box<WorkerHello>),
    Drained,
}

impl From<End> for Over {
    fn from(end: End) -> Self {
        if end.is_violation() { Over::Refused(end.into()) } else { Over::End(end) }
    }
}

impl Session {
    /// `stopping` is ready once the kernel stops: then the client is told to go.
    ///
    /// # Errors
    /// `unavailable` when the socket cannot be waited for.
    pub fn new(
        accepted: Accepted,
        bus: Bus,
        welcome: Arc<Welcome>,
        stopping: impl Future<Output = ()> + Send + 'static,
    ) -> Result<Self, Error> {
        let Accepted { stream, peer, place } = accepted;
        Ok(Self {
            connection: Connection::new(stream, welcome.limits).map_err(End::Io)?,
            bus,
            welcome,
            pages: None,
            peer,
            role: Role::View,
            client: None,
            stopping: Some(Box::pin(stopping)),
            draining: None,
            ready: Arc::default(),
            streams: BTreeMap::new(),
            inflight: 0,
            subscriptions: 0,
            starved: VecDeque::new(),
            calls: 0,
            serving: None,
            traffic: Arc::default(),
            sharing: Sharing::none(),
            takes_workers: false,
            place,
        })
    }

    /// Whoever says in HELLO that it is a worker is handed over by [`SessionEnd::worker`]; otherwise it is refused.
    #[must_use]
    pub fn take_workers(self) -> Self {
        Self { takes_workers: true, ..self }
    }

    /// The client may serve addresses of its own, with the role `service`.
    #[must_use]
    pub fn with_services(mut self, services: Arc<dyn Services>) -> Self {
        self.serving = Some(Serving::new(services));
        self
    }

    /// Large values reach a client that says so by shared memory; names in the file system begin with `tag`, of 1 to 8
    /// letters and digits.
    #[must_use]
    pub fn with_objects(self, objects: Objects, tag: impl Into<String>) -> Self {
        Self { sharing: Sharing::of(objects, tag.into()), ..self }
    }

    /// What it holds and carries is counted there, with that of other sessions.
    #[must_use]
    pub fn counted_in(mut self, traffic: Arc<Traffic>) -> Self {
        self.connection.counted_in(&traffic);
        self.traffic = traffic;
        self
    }

    /// Answers HTTP with these; without them there is nothing to be found.
    #[must_use]
    pub fn with_pages(mut self, pages: Arc<dyn Pages>) -> Self {
        self.pages = Some(pages);
        self
    }

    /// Serves until the client goes or the kernel stops. Dropping it ends the session at once.
    pub async fn run(mut self) -> SessionEnd {
        let over = match self.greet().await {
            Ok(()) => self.attend().await,
            Err(over) => over,
        };
        let Self { connection, client, calls, streams, serving, peer, place, .. } = self;
        // Asks, subscriptions and addresses go back before the last word, which may take its time.
        drop((streams, serving));
        let mut worker = None;
        let why = match over {
            Over::Worker(hello) => {
                worker = Some(Box::new(AttachedWorker { connection, hello: *hello, peer, place }));
                None
            }
            Over::Drained => {
                connection.close(None).await;
                None
            }
            Over::End(End::Closed) => None,
            Over::End(end) => Some(end.into()),
            Over::Refused(error) => {
                connection.close(Some(Frame::error(StreamId::CONNECTION, &error))).await;
                Some(error)
            }
            Over::Text(text, error) => {
                connection.close_with_text(&text).await;
                error
            }
        };
        SessionEnd { client, why, calls, worker }
    }

    async fn attend(&mut self) -> Over {
        loop {
            let event = match poll_fn(|task| self.poll_event(task)).await {
                Ok(event) => event,
                Err(end) => return end.into(),
            };
            match event {
                Event::Received(received) => {
                    if let Err(error) = self.on_frame(received) {
                        return Over::Refused(error);
                    }
                }
                Event::Ready(stream) if stream.opened_by_client() => self.serve(stream),
                Event::Ready(stream) => self.attend_service(stream),
                Event::Serve(call) => self.call_service(*call),
                Event::Stop => self.begin_drain(),
                Event::Drained => return Over::Drained,
            }
        }
    }

    /// First what is here already, then what waits for the socket, so that one system call carries all answers.
    fn poll_event(&mut self, task: &mut Context<'_>) -> Poll<Result<Event, End>> {
        loop {
            if self.connection.may_read()
                && let Some(received) = self.connection.received()?
            {
                return Poll::Ready(Ok(Event::Received(received)));
            }
            if let Some(stream) = self.ready.pop(task) {
                return Poll::Ready(Ok(Event::Ready(stream)));
            }
            let flushed = self.connection.poll_flush(task)?;
            if self.connection.has_room()
                && let Some(stream) = self.starved.pop_front()
            {
                return Poll::Ready(Ok(Event::Ready(stream)));
            }
            if self.connection.has_room()
                && let Some(call) = self.serving.as_mut().and_then(|serving| serving.poll_line(task))
            {
                return Poll::Ready(Ok(Event::Serve(Box::new(call))));
            }
            if let Some(event) = self.poll_stop(flushed.is_ready(), task) {
                return Poll::Ready(Ok(event));
            }
            if !self.connection.may_read() {
                // Progress of the flush wakes the task.
                return Poll::Pending;
            }
            std::task::ready!(self.connection.poll_receive(task))?;
        }
    }

    fn poll_stop(&mut self, flushed: bool, task: &mut Context<'_>) -> Option<Event> {
        if let Some(stopping) = &mut self.stopping
            && stopping.as_mut().poll(task).is_ready()
        {
            self.stopping = None;
            return Some(Event::Stop);
        }
        let patience = self.draining.as_mut()?.as_mut().poll(task);
        (patience.is_ready() || (flushed && self.streams.is_empty())).then_some(Event::Drained)
    }

    fn begin_drain(&mut self) {
        let goaway = Frame::new(FrameType::Goaway, StreamId::CONNECTION);
        let reason = Some("kernel.stopping".to_owned());
        self.connection.send(goaway.with_envelope(Envelope { reason, ..Envelope::default() }), Vec::new());
        self.draining = Some(Box::pin(tokio::time::sleep(DRAIN)));
        // A subscription never ends by itself.
        let subscriptions = self.streams.iter().filter(|(_, open)| open.is_subscription());
        for stream in subscriptions.map(|(stream, _)| *stream).collect::<Vec<_>>() {
            self.close_stream(stream);
            self.send(Frame::error(stream, &stopping()));
        }
    }

    /// # Errors
    /// The client broke the protocol: the connection is over.
    fn on_frame(&mut self, received: Received) -> Result<(), Error> {
        let Received { frame, descriptors } = received;
        // No client's frame carries any; whatever came is closed here.
        drop(descriptors);
        let is_ours = frame.stream != StreamId::CONNECTION && !frame.stream.opened_by_client();
        // A call there is refused as any other with a number that is not the client's.
        if is_ours && frame.kind != FrameType::Call {
            return self.on_service_frame(frame);
        }
        match frame.kind {
            FrameType::Call => return self.on_call(frame),
            FrameType::Cancel => {
                if self.close_stream(frame.stream) {
                    self.send(Frame::error(frame.stream, &cancelled()));
                }
            }
            FrameType::Credit => {
                if let Some(open) = self.streams.get_mut(&frame.stream) {
                    open.credit(frame.envelope.credit.unwrap_or(0));
                    self.serve(frame.stream);
                }
            }
            FrameType::Ping => self.pong(&frame),
            // The other end of a stream that we have closed, or a client that says goodbye and then closes.
            FrameType::Pong | FrameType::Goaway => {}
            FrameType::Error if frame.stream == StreamId::CONNECTION => return Err(frame.to_error()),
            FrameType::Error => {
                self.close_stream(frame.stream);
            }
            FrameType::Data => {
                if self.close_stream(frame.stream) {
                    let text = "a stream of this operation carries data from the kernel only";
                    self.send(Frame::error(frame.stream, &Error::invalid("stream.data", text)));
                }
            }
            FrameType::Hello | FrameType::Welcome => {
                return Err(Error::invalid(
                    "hello.repeated",
                    "HELLO is said once, and WELCOME by the kernel",
                ));
            }
            FrameType::Pub | FrameType::Other(_) => self.not_understood(&frame),
        }
        Ok(())
    }

    fn pong(&mut self, ping: &Frame) {
        // Long enough for any id of ours, short enough that a thousand of them are nothing.
        const ID_BYTES_MAX: usize = 96;
        let id = ping.envelope.id.clone().filter(|id| id.len() <= ID_BYTES_MAX);
        let pong = Frame::new(FrameType::Pong, ping.stream);
        self.send(pong.with_envelope(Envelope { id, ..Envelope::default() }));
    }

    fn not_understood(&mut self, frame: &Frame) {
        if frame.flags.contains(Flags::IGNORE) {
            return;
        }
        if frame.stream == StreamId::CONNECTION {
            // An ERROR there ends the connection, which a frame of a later release need not.
            return tracing::debug!(kind = ?frame.kind, "a frame was not understood");
        }
        let text = format!("this kernel takes no frame of type {}", u8::from(frame.kind));
        self.close_stream(frame.stream);
        self.send(Frame::error(frame.stream, &Error::new(Code::Unimplemented, "frame.type", text)));
    }

    /// Sends what a stream has, as far as its credit, the connection's room and its burst go.
    fn serve(&mut self, stream: StreamId) {
        for _ in 0..BURST {
            let Some(open) = self.streams.get_mut(&stream) else { return };
            if !self.connection.has_room() {
                if !self.starved.contains(&stream) {
                    self.starved.push_back(stream);
                }
                return;
            }
            match open.poll(stream, &mut self.sharing) {
                Step::Item(body) => self.send(body.into_frame(stream)),
                Step::Idle => return,
                Step::Reply(body) => return self.conclude(stream, body.into_frame(stream).end()),
                Step::Error(error) => return self.conclude(stream, Frame::error(stream, &error)),
            }
        }
        if let Some(open) = self.streams.get(&stream) {
            open.wake();
        }
    }

    /// Sends the last word of a stream.
    fn conclude(&mut self, stream: StreamId, mut answer: Frame) {
        if let Some(stages) = self.streams.get(&stream).and_then(OpenStream::stages) {
            answer.envelope.stages = Some(stages);
        }
        if let Some(schema) = self.streams.get_mut(&stream).and_then(OpenStream::schema) {
            answer.envelope.schema = Some(schema);
        }
        self.end_stream(stream);
        self.send(answer);
    }

    fn insert_stream(&mut self, stream: StreamId, open: OpenStream) {
        self.inflight += usize::from(!open.is_streaming());
        self.subscriptions += usize::from(open.is_subscription());
        self.streams.insert(stream, open);
    }

    /// Ends a stream whose last items may still wait in line.
    fn end_stream(&mut self, stream: StreamId) -> bool {
        let Some(open) = self.streams.remove(&stream) else { return false };
        self.inflight -= usize::from(!open.is_streaming());
        self.subscriptions -= usize::from(open.is_subscription());
        true
    }

    /// Ends a stream and drops what waits in line of it. True if the client is owed a last word: the call was open, or its
    /// reply has left in part.
    fn close_stream(&mut self, stream: StreamId) -> bool {
        let was_cut = self.connection.forget(stream);
        self.end_stream(stream) || was_cut
    }

    fn send(&mut self, frame: Frame) {
        self.connection.send(frame, Vec::new());
    }
}

fn cancelled() -> Error {
    Error::new(Code::Cancelled, "call.cancelled", "the caller cancelled the call")
}

fn stopping() -> Error {
    Error::new(Code::Unavailable, "kernel.stopping", "the kernel stops")
        .retry(Retry::After { after_ms: 1_000 })
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("client", &self.client)
            .field("peer", &self.peer)
            .field("role", &self.role)
            .field("streams", &self.streams.len())
            .field("calls", &self.calls)
            .finish_non_exhaustive()
    }
}
