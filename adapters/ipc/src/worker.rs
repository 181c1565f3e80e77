//! The kernel's end of one worker's stream: attempts to it, reports and outcomes from it, files both ways.
//!
//! Owned by the worker's holder, a supervised actor that awaits [`WorkerLink::run`]. Whoever has attempts for the worker
//! holds a [`WorkerHandle`]; it writes to the socket itself when the socket takes it, so that a warm call costs no hop
//! between tasks. What the worker says goes to a [`WorkerReports`], whose implementer knows the pool and the DAG tracker.
//! States:
//!
//! ```text
//!   new ──HELLO──▶ up ──GOAWAY──▶ draining ──end of stream──▶ closed, then over once every outcome was acknowledged
//!    └──────────────┴────── end of stream, malformed ────────▶ closed
//! ```
//!
//! Invariants:
//! 1. An outcome is kept until somebody has acknowledged it: by the worker, because it is told which are safe only after
//!    that; and by the link, which ends only after the last acknowledgement (P-EXEC-1).
//! 2. A fence that was executed is not executed again (P-EXEC-2); [`attempts`] is the book of them.
//! 3. Parts reach nobody before they were sealed: hashed by the kernel, never by the worker (P-ART-1).
//! 4. A worker that breaks the protocol is cut off; its holder is told why.
//!
//! A worker that was started by hand has said HELLO to a session, which hands its connection over
//! ([`WorkerLink::attached`]).
//!
//! It deliberately does not know what an attempt is for, and never ends a process.

mod attempts;
mod files;
mod handle;
mod outcome;

use std::collections::BTreeMap;
use std::fmt;
use std::future::{Future, poll_fn};
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use eclosion_artifact_store::BlobStore;
use eclosion_schemas::frame::{Envelope, Frame, FrameType, StreamId};
use eclosion_schemas::view::TaskReport;
use eclosion_schemas::{Code, EnvironmentId, Error, Fence, Payload, Role, WorkerId};
use serde::{Deserialize, Serialize};

use self::attempts::Attempts;
pub use self::attempts::{Care, KnownFences};
use self::files::Files;
pub use self::handle::WorkerHandle;
use crate::arena::Objects;
use crate::connection::{Connection, End, Reader, Received, Socket, Writer};
use crate::listener::{Peer, Place};
use crate::welcome::Welcome;

/// From the stream's begin to HELLO: an interpreter may have to start first.
const HELLO: Duration = Duration::from_secs(30);

/// The header of WELCOME that tells a worker which was started by hand what it is called.
const WORKER_HEADER: &str = "worker";

/// How a worker introduces itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerHello {
    pub worker: WorkerId,
    pub pid: u32,
    /// With the pid and the boot, a name for the process that is never used twice.
    pub start_ticks: u64,
    pub boot_id: String,
    /// What it computes, and what it has computed and not been told that it is safe; oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attempts: Vec<Fence>,
    /// Of one that was started by hand: the environment whose attempts it takes; none for the default one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<EnvironmentId>,
}

/// A connection to the listening socket whose peer has said that it is a worker.
#[derive(Debug)]
pub struct AttachedWorker {
    pub(crate) connection: Connection,
    /// As the worker tells it: it has no name yet, and its pid is that of its own namespace.
    pub hello: WorkerHello,
    pub peer: Peer,
    pub(crate) place: Option<Place>,
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Every part of a payload names its digest.
    pub result: Result<Payload, Error>,
    /// The bytes `[from, to)` of the worker's output files that belong to the attempt.
    pub stdout: (u64, u64),
    pub stderr: (u64, u64),
    /// When the worker took it in hand and when it had ended, in nanoseconds of Unix time, if it was to say so.
    pub ran_unix_ns: Option<[u64; 2]>,
}

impl Outcome {
    /// It has not begun, and will not: whoever wants it done gives it to another worker.
    #[must_use]
    pub fn is_returned(&self) -> bool {
        self.result.as_ref().is_err_and(|error| error.reason == outcome::RETURNED)
    }
}

/// How a link ended.
#[derive(Debug)]
pub struct LinkEnd {
    /// Nothing: the worker closed its end.
    pub why: Option<Error>,
    /// Attempts whose outcome has not come.
    pub unfinished: Vec<Fence>,
    /// Staged files that no outcome has named: of no use to anybody once the process is gone, but a worker that
    /// attaches again may still name them.
    pub staged: Vec<u64>,
}

/// The end of an acknowledgement.
pub type Acknowledged = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What the worker's holder makes of what the worker says. Called on the link's own task: it returns at once.
pub trait WorkerReports: Send + Sync + 'static {
    /// The worker is there. Returns whether the outcomes of what it runs or has run are still wanted.
    fn up(&self, hello: &WorkerHello) -> bool;

    fn report(&self, fence: Fence, report: TaskReport);

    /// What is returned is ready once the outcome is safe, or nobody wants it; it is polled until then. The worker keeps
    /// its copy as long.
    fn outcome(&self, fence: Fence, outcome: Outcome) -> Acknowledged;

    /// The worker answered a ping.
    fn pong(&self, _running: Option<Fence>, _gil_lag_ms: u64) {}

    /// The stream is over. Outcomes that have come are still being delivered.
    fn closed(&self, end: LinkEnd);
}

/// See the module.
pub struct WorkerLink {
    shared: Arc<Shared>,
    reader: Reader,
    files: Files,
    reports: Arc<dyn WorkerReports>,
    welcome: Arc<Welcome>,
    /// Outcomes on their way to being safe; at most as many as attempts at the worker.
    delivering: Vec<(Fence, Acknowledged)>,
    /// The streams of attempts that ran before this link began: their files were staged through another.
    resumed: Vec<StreamId>,
    /// Said already, of a worker that was started by hand.
    said: Option<WorkerHello>,
    /// Its place among the connections that are allowed.
    _place: Option<Place>,
}

/// What link and handles have in common.
pub(crate) struct Shared {
    socket: Socket,
    state: Mutex<State>,
}

pub(crate) struct State {
    writer: Writer,
    attempts: Attempts,
    /// HELLO was answered.
    is_up: bool,
    draining: bool,
    closed: Option<Error>,
    /// Outcomes that did not come from the worker: of attempts that were taken back before they were sent.
    withdrawn: Vec<(Fence, Outcome)>,
    /// The link's task.
    task: Option<Waker>,
}

impl WorkerLink {
    /// Takes over the kernel's end of a stream; inside a tokio runtime with I/O.
    ///
    /// # Errors
    /// `unavailable` when the socket cannot be waited for.
    pub fn new(
        stream: OwnedFd,
        welcome: Arc<Welcome>,
        store: Arc<dyn BlobStore>,
        reports: Arc<dyn WorkerReports>,
    ) -> Result<(Self, WorkerHandle), Error> {
        let connection = Connection::new(stream, welcome.limits).map_err(End::Io)?;
        Ok(Self::over(connection, welcome, store, reports))
    }

    /// Takes over the connection of a worker that was started by hand. It is told `name` in WELCOME.
    pub fn attached(
        worker: AttachedWorker,
        name: WorkerId,
        welcome: Arc<Welcome>,
        store: Arc<dyn BlobStore>,
        reports: Arc<dyn WorkerReports>,
    ) -> (Self, WorkerHandle) {
        let AttachedWorker { connection, hello, peer, place } = worker;
        let (link, handle) = Self::over(connection, welcome, store, reports);
        let pid = peer.pid.unwrap_or(hello.pid);
        let said = Some(WorkerHello { worker: name, pid, attempts: Vec::new(), ..hello });
        (Self { said, _place: place, ..link }, handle)
    }

    fn over(
        connection: Connection,
        welcome: Arc<Welcome>,
        store: Arc<dyn BlobStore>,
        reports: Arc<dyn WorkerReports>,
    ) -> (Self, WorkerHandle) {
        let (socket, reader, writer) = connection.into_parts();
        let state = State {
            writer,
            attempts: Attempts::default(),
            is_up: false,
            draining: false,
            closed: None,
            withdrawn: Vec::new(),
            task: None,
        };
        let shared = Arc::new(Shared { socket, state: Mutex::new(state) });
        let handle = WorkerHandle::new(Arc::clone(&shared));
        let link = Self {
            shared,
            reader,
            files: Files::new(store),
            reports,
            welcome,
            delivering: Vec::new(),
            resumed: Vec::new(),
            said: None,
            _place: None,
        };
        (link, handle)
    }

    /// The worker may read what the kernel puts there, and write results where whoever waits for them reads them.
    #[must_use]
    pub fn with_objects(mut self, objects: Objects) -> Self {
        self.files.share(objects);
        self
    }

    /// Until the stream is over and every outcome that came through it is acknowledged. Dropped before that, the worker
    /// is cut off; over its next stream it says again what was not acknowledged.
    pub async fn run(mut self) {
        let why = match self.greet().await {
            Ok(()) => poll_fn(|task| self.poll(task)).await,
            Err(why) => why,
        };
        self.close(why);
        poll_fn(|task| self.poll_delivered(task)).await;
    }

    fn close(&mut self, why: Option<Error>) {
        if let Some(why) = &why {
            tracing::warn!(%why, "a worker was cut off");
        }
        let unfinished = {
            let mut state = self.shared.locked();
            let gone = || Error::new(Code::Unavailable, "worker.gone", "the worker is gone");
            state.closed = Some(why.clone().unwrap_or_else(gone));
            state.attempts.close()
        };
        self.shared.socket.shutdown();
        let staged = self.files.take_staged();
        self.reports.closed(LinkEnd { why, unfinished, staged });
    }

    async fn greet(&mut self) -> Result<(), Option<Error>> {
        let late = || Error::new(Code::Deadline, "hello.late", "the worker did not say HELLO");
        let said = self.said.take();
        let name = said.as_ref().map(|hello| hello.worker.clone());
        let hello = match said {
            Some(hello) => hello,
            None => tokio::time::timeout(HELLO, self.hello()).await.unwrap_or_else(|_| Err(Some(late())))?,
        };
        let is_wanted = self.reports.up(&hello);
        let wanted = if is_wanted { hello.attempts.as_slice() } else { &[] };
        let mut state = self.shared.locked();
        self.resumed = wanted.iter().map(|fence| state.attempts.resume(*fence)).collect();
        let mut welcome = self.welcome.frame(Role::Worker, self.resumed.clone());
        if let Some(name) = name {
            welcome.envelope.headers = Some(BTreeMap::from([(WORKER_HEADER.to_owned(), name.to_string())]));
        }
        state.writer.push(welcome, Vec::new());
        for stream in &self.resumed {
            state.writer.push(handle::credit(*stream, attempts::ITEMS_AHEAD), Vec::new());
        }
        state.is_up = true;
        state.pump();
        Ok(())
    }

    async fn hello(&mut self) -> Result<WorkerHello, Option<Error>> {
        let received = loop {
            if let Some(received) = self.reader.received().map_err(ended)? {
                break received;
            }
            let (reader, shared) = (&mut self.reader, &self.shared);
            poll_fn(|task| reader.poll_receive(&shared.socket, task)).await.map_err(ended)?;
        };
        if received.frame.kind != FrameType::Hello {
            return Err(Some(Error::invalid("hello.missing", "a worker begins with HELLO")));
        }
        let hello: WorkerHello = received.frame.decode().map_err(|why| Some(Error::from(why)))?;
        if hello.attempts.len() > attempts::KEPT_MAX + 1 {
            return Err(Some(Error::invalid(
                "hello.attempts",
                "a worker that names more attempts than it may keep",
            )));
        }
        Ok(hello)
    }

    /// Ready with the reason at the end of the stream.
    fn poll(&mut self, task: &mut Context<'_>) -> Poll<Option<Error>> {
        loop {
            loop {
                match self.reader.received() {
                    Ok(Some(received)) => {
                        if let Err(error) = self.on_frame(received) {
                            return Poll::Ready(Some(error));
                        }
                    }
                    Ok(None) => break,
                    Err(end) => return Poll::Ready(ended(end)),
                }
            }
            // Pending or not: the stream goes on meanwhile.
            let _ = self.poll_delivered(task);
            let answers = self.files.poll(task);
            if let Poll::Ready(Err(end)) = self.poll_shared(answers, task) {
                return Poll::Ready(ended(end));
            }
            match self.reader.poll_receive(&self.shared.socket, task) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(end)) => return Poll::Ready(ended(end)),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Sends what waits; leaves the waker for the handles.
    fn poll_shared(&mut self, answers: Vec<files::Answer>, task: &mut Context<'_>) -> Poll<Result<(), End>> {
        let shared = Arc::clone(&self.shared);
        let mut state = shared.locked();
        for (frame, descriptors) in answers {
            state.writer.push(frame, descriptors);
        }
        for (fence, outcome) in std::mem::take(&mut state.withdrawn) {
            let outcome = self.reports.outcome(fence, outcome);
            self.delivering.push((fence, outcome));
            // Polled for the first time with the next turn.
            task.waker().wake_by_ref();
        }
        match &mut state.task {
            Some(waker) => waker.clone_from(task.waker()),
            none => *none = Some(task.waker().clone()),
        }
        state.writer.poll_flush(&shared.socket, task)
    }

    /// Ready when nothing is left to be acknowledged.
    fn poll_delivered(&mut self, task: &mut Context<'_>) -> Poll<()> {
        let mut acknowledged = Vec::new();
        self.delivering.retain_mut(|(fence, safe)| {
            let is_safe = safe.as_mut().poll(task).is_ready();
            if is_safe {
                acknowledged.push(*fence);
            }
            !is_safe
        });
        if !acknowledged.is_empty() {
            let mut state = self.shared.locked();
            acknowledged.into_iter().for_each(|fence| state.attempts.acknowledged(fence));
            state.pump();
        }
        if self.delivering.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// # Errors
    /// The worker broke the protocol.
    fn on_frame(&mut self, received: Received) -> Result<(), Error> {
        let Received { frame, descriptors } = received;
        // No worker's frame carries any.
        drop(descriptors);
        match frame.kind {
            FrameType::Call => {
                let shared = Arc::clone(&self.shared);
                self.files.on_call(&frame, |fence| shared.locked().attempts.shares(fence))?;
            }
            FrameType::Data if !frame.is_end() => self.on_report(&frame)?,
            FrameType::Error if frame.stream == StreamId::CONNECTION => return Err(frame.to_error()),
            FrameType::Data | FrameType::Error => self.on_outcome(&frame)?,
            FrameType::Pong => {
                self.reports.pong(frame.envelope.running, frame.envelope.gil_lag_ms.unwrap_or(0));
            }
            FrameType::Ping => {
                let pong = Frame::new(FrameType::Pong, frame.stream);
                let id =
                    frame.envelope.id.clone().filter(|id| id.len() <= eclosion_schemas::ids::ID_BYTES_MAX);
                let pong = pong.with_envelope(Envelope { id, ..Envelope::default() });
                self.shared.locked().writer.push(pong, Vec::new());
            }
            FrameType::Hello | FrameType::Welcome => {
                return Err(Error::invalid(
                    "hello.repeated",
                    "HELLO is said once, and WELCOME by the kernel",
                ));
            }
            // It gave up a request for a file, whose answer it will not read; or a later release's word.
            _ => {}
        }
        Ok(())
    }

    fn on_report(&mut self, frame: &Frame) -> Result<(), Error> {
        let Some(fence) = self.shared.locked().attempts.fence(frame.stream) else { return Ok(()) };
        match frame.decode::<TaskReport>() {
            Ok(mut report) => {
                if let TaskReport::Item { payload, .. } = &mut report {
                    outcome::carried(payload)?;
                    self.count_item(frame.stream)?;
                    self.files.hold(payload, fence)?;
                }
                self.reports.report(fence, report);
            }
            // A later release's report; the attempt goes on.
            Err(why) => tracing::debug!(%fence, %why, "a report was not understood"),
        }
        Ok(())
    }

    fn count_item(&self, stream: StreamId) -> Result<(), Error> {
        let mut state = self.shared.locked();
        if let Some(total) = state.attempts.item(stream)? {
            state.writer.push(handle::credit(stream, total), Vec::new());
        }
        Ok(())
    }

    fn on_outcome(&mut self, frame: &Frame) -> Result<(), Error> {
        // Decoded before the book is told, so that an attempt that ends malformed is counted as unfinished.
        let Some(fence) = self.shared.locked().attempts.fence(frame.stream) else { return Ok(()) };
        let mut outcome = outcome::read(frame, fence.is_of_call())?;
        if let Ok(payload) = &mut outcome.result {
            self.files.hold(payload, fence)?;
        }
        self.files.ended(fence);
        {
            let mut state = self.shared.locked();
            state.attempts.ended(frame.stream);
            state.pump();
        }
        let is_resumed = self.resumed.contains(&frame.stream);
        let staged = self.files.staged_of(fence, &outcome, is_resumed);
        let safe = if outcome::is_named(&outcome) {
            self.reports.outcome(fence, outcome)
        } else {
            let (store, reports) = (self.files.store(), Arc::clone(&self.reports));
            Box::pin(async move {
                let outcome = outcome::sealed(outcome, staged, store).await;
                reports.outcome(fence, outcome).await;
            })
        };
        self.delivering.push((fence, safe));
        Ok(())
    }
}

fn ended(end: End) -> Option<Error> {
    match end {
        End::Closed => None,
        end => Some(end.into()),
    }
}

impl Shared {
    pub(crate) fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what the socket takes at once; the link's task does the rest.
    pub(crate) fn flush_now(&self, mut state: MutexGuard<'_, State>) {
        // A failure is the link's to find.
        let flushed = state.writer.try_flush(&self.socket).unwrap_or(false);
        if flushed && state.withdrawn.is_empty() {
            return;
        }
        let task = state.task.take();
        drop(state);
        if let Some(task) = task {
            task.wake();
        }
    }
}

impl State {
    /// Puts the attempts in line that may go now.
    pub(crate) fn pump(&mut self) {
        if !self.is_up {
            return;
        }
        while let Some(frame) = self.attempts.next() {
            self.writer.push(frame, Vec::new());
        }
    }
}

impl fmt::Debug for WorkerLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerLink").field("delivering", &self.delivering.len()).finish_non_exhaustive()
    }
}
