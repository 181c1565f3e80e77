//! The other direction: calls from the kernel to a client that serves addresses of its own.
//!
//! The client says so once, with `service.declare`; [`Services`] gives it the addresses, as proxy actors that put their
//! messages in this session's line. Each becomes a CALL on an even stream:
//!
//! ```text
//!   line ─► CALL ─► open ─┬─ DATA (items, with credit) ─► the caller takes them ─► CREDIT
//!                         ├─ DATA|END, ERROR ─────────► answered
//!                         ├─ the caller leaves, or its deadline passes ─► CANCEL, forgotten
//!                         └─ the connection ends ─────► answered `service.gone`
//! ```
//!
//! Invariants: (1) a call is answered once, whatever becomes of the service (P3). (2) What is open is bounded by what the
//! addresses were declared with, items by credit (P5). (3) With the session go its addresses.

use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context as Task, Poll, Waker};
use std::time::Instant;

use bytes::Bytes;
use eclosion_bus::{Context, Refused, Responder, Timings};
use eclosion_schemas::frame::{Envelope, Frame, FrameType, StreamId, WireCodec};
use eclosion_schemas::operation::Opaque;
use eclosion_schemas::ops::service::{DeclareReply, DeclareRequest};
use eclosion_schemas::{Code, Error, Retry};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::Session;
use super::stream::Source;
use crate::ready::StreamWaker;

/// Calls that wait for room in the connection; the others wait in the mailboxes of their addresses.
const LINE_MAX: usize = 16;
/// Items that a service may send before the first of them was taken.
const CREDIT: u64 = 64;

/// Gives addresses to those who serve them; the composition root implements it.
pub trait Services: Send + Sync + 'static {
    /// The addresses are `owner`'s until what is given back is dropped. Calls to them are put into `line`.
    fn declare(&self, request: DeclareRequest, owner: Arc<str>, line: mpsc::Sender<ServiceCall>)
    -> Declaring;

    /// Of the table as it is now.
    fn describe_hash(&self) -> String;
}

pub type Declaring = Pin<Box<dyn Future<Output = Result<Declared, Error>> + Send>>;

/// Addresses that are served.
pub struct Declared {
    pub reply: DeclareReply,
    pub registration: Box<dyn Any + Send>,
}

impl std::fmt::Debug for Declared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Declared").field("reply", &self.reply).finish_non_exhaustive()
    }
}

/// A call for a service.
#[derive(Debug)]
pub struct ServiceCall {
    pub request: Opaque,
    pub context: Context,
    pub responder: Responder,
    /// Its place among the calls that the address has open.
    pub permit: OwnedSemaphorePermit,
}

impl ServiceCall {
    /// Nobody is left who could answer.
    pub fn gone(self, owner: &str) {
        self.responder.reply(Err(gone(owner)));
    }
}

/// What a service that is not there any more says.
#[must_use]
pub fn gone(owner: &str) -> Error {
    Error::new(Code::Unavailable, "service.gone", format!("{owner} has left, with this call unanswered"))
        .retry(Retry::After { after_ms: 100 })
        .help("eclosion tree")
}

/// What a session serves.
pub(super) struct Serving {
    services: Arc<dyn Services>,
    sender: mpsc::Sender<ServiceCall>,
    line: mpsc::Receiver<ServiceCall>,
    open: BTreeMap<StreamId, OpenCall>,
    /// Even, and never used twice.
    next: u32,
    owner: Arc<str>,
    kept: Kept,
}

/// Whether this connection has declared anything.
#[derive(Default)]
pub(super) enum Declaration {
    #[default]
    None,
    Pending,
    /// Held for as long as the session lives.
    Given {
        _registration: Box<dyn Any + Send>,
    },
}

pub(super) type Kept = Arc<Mutex<Declaration>>;

pub(super) fn keep(kept: &Kept, declaration: Declaration) -> Declaration {
    std::mem::replace(&mut *kept.lock().unwrap_or_else(PoisonError::into_inner), declaration)
}

struct OpenCall {
    operation: Arc<str>,
    responder: Responder,
    /// Not taken yet.
    items: VecDeque<Opaque>,
    granted: u64,
    received: u64,
    waker: Waker,
    note: Arc<StreamWaker>,
    _permit: OwnedSemaphorePermit,
}

impl Serving {
    pub(super) fn new(services: Arc<dyn Services>) -> Self {
        let (sender, line) = mpsc::channel(LINE_MAX);
        let (open, owner, kept) = (BTreeMap::new(), Arc::from("the service"), Kept::default());
        Self { services, sender, line, open, next: 2, owner, kept }
    }

    pub(super) fn describe_hash(&self) -> String {
        self.services.describe_hash()
    }

    pub(super) fn poll_line(&mut self, task: &mut Task<'_>) -> Option<ServiceCall> {
        match self.line.poll_recv(task) {
            Poll::Ready(call) => call,
            Poll::Pending => None,
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // The addresses first: nobody is to send what would only be answered that we are gone.
        drop(keep(&self.kept, Declaration::None));
        self.line.close();
        while let Ok(call) = self.line.try_recv() {
            call.gone(&self.owner);
        }
        for (_, open) in std::mem::take(&mut self.open) {
            open.responder.reply(Err(gone(&self.owner)));
        }
    }
}

impl Session {
    /// # Errors
    /// `unimplemented` where nobody gives addresses, `already_exists` for a second declaration.
    pub(super) fn declare(&mut self, call: &Frame) -> Result<Source, Error> {
        let request: DeclareRequest = call.decode().map_err(|why| {
            let text = format!("the request of service.declare is malformed: {why}");
            Error::invalid("request.malformed", text).help("eclosion describe service.declare")
        })?;
        let Some(serving) = &mut self.serving else {
            return Err(Error::new(Code::Unimplemented, "service.none", "this kernel takes no services"));
        };
        let mut declaration = serving.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if !matches!(*declaration, Declaration::None) {
            let text = "a connection declares its addresses once";
            return Err(Error::new(Code::AlreadyExists, "service.declared", text));
        }
        *declaration = Declaration::Pending;
        drop(declaration);
        serving.owner = self.client.clone().unwrap_or_else(|| Arc::clone(&serving.owner));
        let work = serving.services.declare(request, Arc::clone(&serving.owner), serving.sender.clone());
        Ok(Source::Declaring { work, kept: Arc::clone(&serving.kept) })
    }

    /// Sends a call to the service.
    pub(super) fn call_service(&mut self, call: ServiceCall) {
        let ServiceCall { request, context, responder, permit } = call;
        let streams = responder.wants_items();
        let Some(serving) = &mut self.serving else { return };
        if responder.cancelled().is_cancelled() {
            return;
        }
        let stream = StreamId(serving.next);
        // After two thousand million calls they begin anew; those of then are long answered.
        serving.next = serving.next.checked_add(2).unwrap_or(2);
        let envelope = Envelope {
            method: Some(request.operation.to_string()),
            deadline_ms: Some(remaining_ms(&context)),
            credit: streams.then_some(CREDIT),
            idem: context.idem,
            trace: context.trace.map(|trace| trace.to_string()),
            timings: responder.timings().map(|_| true),
            ..Envelope::default()
        };
        let note = StreamWaker::new(&self.ready, stream);
        let open = OpenCall {
            operation: request.operation,
            responder,
            items: VecDeque::new(),
            granted: if streams { CREDIT } else { 0 },
            received: 0,
            waker: Waker::from(Arc::clone(&note)),
            note,
            _permit: permit,
        };
        serving.open.insert(stream, open);
        let frame = Frame::new(FrameType::Call, stream).with_envelope(envelope);
        self.send(frame.with_body(WireCodec::Msgpack, request.body));
        self.attend_service(stream);
    }

    /// The caller has taken items, or has left.
    pub(super) fn attend_service(&mut self, stream: StreamId) {
        let Some(open) = self.serving.as_mut().and_then(|serving| serving.open.get_mut(&stream)) else {
            return;
        };
        match open.attend() {
            Attended::Waits => {}
            Attended::Granted(credit) => {
                let envelope = Envelope { credit: Some(credit), ..Envelope::default() };
                self.send(Frame::new(FrameType::Credit, stream).with_envelope(envelope));
            }
            Attended::Left => {
                self.forget_call(stream);
                self.send(Frame::new(FrameType::Cancel, stream));
            }
        }
    }

    /// What the service says on a stream that we opened.
    ///
    /// # Errors
    /// It sent more items than it may: the connection is over.
    pub(super) fn on_service_frame(&mut self, frame: Frame) -> Result<(), Error> {
        let stream = frame.stream;
        // One that is not open was cancelled.
        let Some(open) = self.serving.as_mut().and_then(|serving| serving.open.get_mut(&stream)) else {
            return Ok(());
        };
        match frame.kind {
            FrameType::Data if !frame.is_end() => {
                open.item(&frame)?;
                self.attend_service(stream);
            }
            FrameType::Data => {
                if let Some(open) = self.forget_call(stream) {
                    open.came_back(&frame);
                    open.reply(&frame.body);
                }
            }
            FrameType::Error => {
                if let Some(open) = self.forget_call(stream) {
                    open.came_back(&frame);
                    open.responder.reply(Err(frame.to_error()));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn forget_call(&mut self, stream: StreamId) -> Option<OpenCall> {
        self.serving.as_mut()?.open.remove(&stream)
    }
}

enum Attended {
    Waits,
    Granted(u64),
    Left,
}

impl OpenCall {
    fn item(&mut self, frame: &Frame) -> Result<(), Error> {
        self.received += 1;
        if self.received > self.granted {
            let text =
                format!("item {} of {} where {} were granted", self.received, self.operation, self.granted);
            return Err(Error::invalid("stream.credit", text));
        }
        self.items.push_back(Opaque::new(&self.operation, &frame.body)?);
        Ok(())
    }

    /// Hands items on as far as the caller takes them.
    fn attend(&mut self) -> Attended {
        self.note.rearm();
        let task = Task::from_waker(&self.waker);
        if self.responder.cancelled().poll_cancelled(&task).is_ready() {
            return Attended::Left;
        }
        while let Some(item) = self.items.pop_front() {
            match self.responder.try_item(Box::new(item.clone())) {
                Ok(()) => {}
                Err(Refused::Full(_)) => {
                    self.items.push_front(item);
                    if self.responder.poll_credit(&task).is_pending() {
                        break;
                    }
                }
                Err(_) => return Attended::Left,
            }
        }
        let taken = self.received - self.items.len() as u64;
        // Half of it at once, so that not every item costs a frame.
        if self.granted > 0 && taken + CREDIT >= self.granted + CREDIT / 2 {
            self.granted = taken + CREDIT;
            return Attended::Granted(self.granted);
        }
        Attended::Waits
    }

    fn came_back(&self, last: &Frame) {
        if let Some(timings) = self.responder.timings() {
            note_ran(timings, last.envelope.ran);
        }
    }

    fn reply(self, body: &Bytes) {
        // What the caller has not taken is not lost: it may go over the line's bound by what credit admits.
        let Self { operation, responder, items, .. } = self;
        if !items.is_empty() {
            let last = Opaque::new(&operation, body);
            tokio::spawn(async move {
                for item in items {
                    if responder.item(Box::new(item)).await.is_err() {
                        return;
                    }
                }
                responder.reply(last.map(|last| Box::new(last) as _));
            });
            return;
        }
        responder.reply(Opaque::new(&operation, body).map(|reply| Box::new(reply) as _));
    }
}

/// Notes the stages of what another process did and has answered just now: `sent`, `python` and `back`, or `back` alone
/// where it does not say when it had it in hand.
pub fn note_ran(timings: &Timings, ran_unix_ns: Option<[u64; 2]>) {
    if let Some([began, ended]) = ran_unix_ns {
        timings.ended_at_unix_ns("sent", began);
        timings.ended_at_unix_ns("python", ended);
    }
    timings.ended("back");
}

fn remaining_ms(context: &Context) -> u64 {
    let left = context.deadline.saturating_duration_since(Instant::now());
    u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1)
}
