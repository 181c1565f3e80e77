//! Serving from here: a program that is attached answers operations at an address of its own.
//!
//! ```no_run
//! # use eclosion_schemas::operation::{Durability, NoItem, Operation, Role};
//! # struct Hello;
//! # impl Operation for Hello {
//! #     type Request = String; type Reply = String; type Item = NoItem;
//! #     const NAME: &'static str = "greeter.hello"; const ADDRESS: &'static str = "/greeter";
//! #     const ROLE: Role = Role::View; const DURABILITY: Durability = Durability::Call;
//! #     const DOC: &'static str = "Says hello."; fn example() -> String { "Ada".into() }
//! # }
//! # async fn example() -> Result<(), eclosion_schemas::Error> {
//! use eclosion_client::Service;
//! let service = Service::new("/greeter")
//!     .operation::<Hello, _, _>(|name, _| async move { Ok(format!("Hello, {name}!")) });
//! let serving = service.serve("/run/user/1000/eclosion/default.sock").await?;
//! println!("{}", serving.closed().await);
//! # Ok(()) }
//! ```
//!
//! Callers see an actor like any other: the address is in `eclosion tree`, its mailbox, deadlines and statistics are the
//! kernel's, and what dies here reaches them as `service.gone`. Bodies are msgpack whoever calls, since a caller's own come as
//! they were sent.
//!
//! Each CALL of the kernel is a task, as many at a time as the address was declared with:
//!
//! ```text
//!   CALL ─► open ─┬─ items, as far as there is credit ─► DATA
//!                 ├─ the handler returns ─────────────► DATA|END or ERROR
//!                 ├─ it panics ───────────────────────► ERROR service.panicked
//!                 └─ CANCEL, its deadline, the end ───► the handler's future is dropped
//! ```
//!
//! Invariants: (1) A call is answered once, or was cancelled. (2) Items wait for credit, so what is under way is bounded.
//! (3) With the connection end the calls and the address, at both ends. (4) What does not fit into a frame is the error of
//! its call and of no other.
//!
//! It deliberately does not begin again: [`Serving::closed`] returns, and who started the program decides whether it comes
//! back. A service that the kernel itself keeps alive is a Python object (`eclosion service start`).

use std::collections::BTreeMap;
use std::future::Future;
use std::marker::PhantomData;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use eclosion_schemas::frame::{Envelope, Frame, FrameType, StreamId, WireCodec};
use eclosion_schemas::operation::{Operation, Role, Spec};
use eclosion_schemas::ops::service::{Declare, DeclareRequest, ServedAddress, ServedOperation};
use eclosion_schemas::{Code, Error, codec};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::connection::Shared;
use crate::{Client, ConnectOptions};

/// Of a frame, for what is not its body.
const ENVELOPE_ROOM_BYTES: usize = 1024;

type Answer = Pin<Box<dyn Future<Output = Result<Vec<u8>, Error>> + Send>>;
type Handler = Arc<dyn Fn(Bytes, Sender) -> Answer + Send + Sync>;

/// Operations at one address, before they are served.
#[must_use = "a service is there once it is served"]
pub struct Service {
    address: ServedAddress,
    handlers: BTreeMap<String, Handler>,
}

impl Service {
    /// Nothing yet, at `address`: one path, as `/greeter`, whose first word is none of the kernel's.
    pub fn new(address: impl Into<String>) -> Self {
        let (address, operations) = (address.into(), Vec::new());
        let address = ServedAddress { address, waiting_max: 256, concurrency: 16, operations };
        Self { address, handlers: BTreeMap::new() }
    }

    /// Calls that may wait at the kernel, 256 unless told; more are refused there with `exhausted`.
    pub fn waiting_max(mut self, calls: u32) -> Self {
        self.address.waiting_max = calls;
        self
    }

    /// Calls that are handled at a time, 16 unless told.
    pub fn concurrency(mut self, calls: u32) -> Self {
        self.address.concurrency = calls;
        self
    }

    /// Serves an operation, whose address is this service's and not [`Operation::ADDRESS`]. The handler's future is dropped when
    /// its caller leaves, and at its deadline; a panic in it is that call's error, and the service goes on. A request that is
    /// not the operation's is refused before the handler sees it.
    pub fn operation<O, F, A>(mut self, handler: F) -> Self
    where
        O: Operation,
        F: Fn(O::Request, Called<O>) -> A + Send + Sync + 'static,
        A: Future<Output = Result<O::Reply, Error>> + Send + 'static,
    {
        self.address.operations.push(declared::<O>());
        let handler: Handler = Arc::new(move |body, sender| {
            let request = codec::decode(&body).map_err(|why| {
                let text = format!("the request of {} is malformed: {why}", O::NAME);
                Error::invalid("request.malformed", text).help(format!("eclosion describe {}", O::NAME))
            });
            match request {
                Ok(request) => {
                    let answer = handler(request, Called { sender, operation: PhantomData });
                    Box::pin(async move { Ok(codec::encode(&answer.await?)?) })
                }
                Err(refusal) => Box::pin(std::future::ready(Err(refusal))),
            }
        });
        self.handlers.insert(O::NAME.to_owned(), handler);
        self
    }

    /// Attaches with the role `service`, and serves from here on.
    ///
    /// # Errors
    /// `already_exists` for an address or an operation that another serves, `denied` for names of the kernel's own; as
    /// [`Client::connect`] otherwise.
    pub async fn serve(self, path: impl AsRef<Path>) -> Result<Serving, Error> {
        let role = Some(Role::Service);
        let client = Client::connect_with(path, ConnectOptions { role, ..ConnectOptions::default() }).await?;
        self.serve_on(client).await
    }

    /// The same on a connection that has the role `service`.
    ///
    /// # Errors
    /// As [`Service::serve`].
    pub async fn serve_on(self, client: Client) -> Result<Serving, Error> {
        let shared = client.shared();
        // Before it is declared: the first call may come with the answer, or before it.
        let desk = Desk(Arc::new(Calls {
            shared: Arc::downgrade(shared),
            handlers: self.handlers,
            open: Mutex::default(),
        }));
        if !shared.serve(desk) {
            let text = "a connection declares its addresses once";
            return Err(Error::new(Code::AlreadyExists, "service.declared", text));
        }
        client.call::<Declare>(DeclareRequest { addresses: vec![self.address] }).await?;
        Ok(Serving { client })
    }
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service").field("address", &self.address).finish_non_exhaustive()
    }
}

fn declared<O: Operation>() -> ServedOperation {
    let spec = Spec::of::<O>();
    ServedOperation {
        name: O::NAME.into(),
        role: O::ROLE,
        streams: O::STREAMS,
        mutates: O::MUTATES,
        doc: O::DOC.into(),
        request: (spec.request_schema)(),
        reply: (spec.reply_schema)(),
        item: if O::STREAMS { (spec.item_schema)() } else { serde_json::Value::Null },
        example: (spec.example)(),
    }
}

/// An address that is served. Dropping it ends that, and every call that is open.
#[derive(Debug)]
#[must_use = "dropping it ends the service"]
pub struct Serving {
    client: Client,
}

impl Serving {
    /// Returns once the connection is gone, and why.
    pub async fn closed(&self) -> Error {
        self.client.closed().await
    }
}

/// One call, for its handler.
#[derive(Debug)]
pub struct Called<O> {
    sender: Sender,
    operation: PhantomData<fn() -> O>,
}

impl<O: Operation> Called<O> {
    /// The key under which a repetition is known as such.
    #[must_use]
    pub fn idem(&self) -> Option<&str> {
        self.sender.idem.as_deref()
    }

    /// The caller's W3C traceparent.
    #[must_use]
    pub fn trace(&self) -> Option<&str> {
        self.sender.trace.as_deref()
    }

    /// Sends an item, once the caller has granted it. Of an operation that does not stream it waits until the deadline.
    ///
    /// # Errors
    /// `cancelled` when nobody listens any more, `exhausted` for an item that does not fit into a frame.
    pub async fn item(&mut self, item: O::Item) -> Result<(), Error> {
        self.sender.item(codec::encode(&item)?.into()).await
    }
}

#[derive(Debug)]
struct Sender {
    calls: Weak<Calls>,
    stream: StreamId,
    sent: u64,
    /// Items that may be sent in sum; gone with the call.
    credit: watch::Receiver<u64>,
    idem: Option<String>,
    trace: Option<String>,
}

impl Sender {
    async fn item(&mut self, body: Bytes) -> Result<(), Error> {
        let sent = self.sent;
        let granted = self.credit.wait_for(|total| *total > sent).await.is_ok();
        let calls = self.calls.upgrade().filter(|_| granted);
        let Some(shared) = calls.and_then(|calls| calls.shared.upgrade()) else {
            return Err(Error::new(Code::Cancelled, "call.abandoned", "nobody waits for the call any more"));
        };
        within(&shared, &body)?;
        self.sent += 1;
        shared.send(Frame::new(FrameType::Data, self.stream).with_body(WireCodec::Msgpack, body));
        Ok(())
    }
}

/// What a connection hands the frames of streams to that the kernel has opened.
#[derive(Debug)]
pub(crate) struct Desk(Arc<Calls>);

struct Calls {
    /// The connection holds this.
    shared: Weak<Shared>,
    handlers: BTreeMap<String, Handler>,
    open: Mutex<BTreeMap<StreamId, Open>>,
}

/// A call that is not answered.
struct Open {
    task: AbortHandle,
    credit: watch::Sender<u64>,
}

impl Drop for Open {
    /// One that has answered is at its end already.
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Desk {
    /// The connection is gone: nobody waits for what is in hand.
    pub(crate) fn close(&self) {
        let open = std::mem::take(&mut *self.0.open());
        drop(open);
    }

    /// A frame of a stream that is the kernel's.
    pub(crate) fn take(&self, frame: Frame) {
        match frame.kind {
            FrameType::Call => self.call(frame),
            FrameType::Cancel => drop(self.0.close(frame.stream)),
            FrameType::Credit => {
                if let Some(open) = self.0.open().get(&frame.stream) {
                    let total = frame.envelope.credit.unwrap_or(0);
                    open.credit.send_modify(|granted| *granted = total.max(*granted));
                }
            }
            _ => {}
        }
    }

    fn call(&self, frame: Frame) {
        let (stream, body) = (frame.stream, frame.body.clone());
        let Envelope { method, credit, deadline_ms, idem, trace, .. } = frame.envelope.into_inner();
        let (granting, granted) = watch::channel(credit.unwrap_or(0));
        let (calls, handler) = (Arc::clone(&self.0), self.0.handlers.get(method.as_deref().unwrap_or("")));
        let sender = Sender { calls: Arc::downgrade(&self.0), stream, sent: 0, credit: granted, idem, trace };
        // The handler's first steps run in its own task as well: what panics there is answered there.
        let handler = handler.cloned();
        let answering = Answering { calls, stream };
        // Held until the call stands in the table, so that its end finds it there.
        let mut open = self.0.open();
        let task = tokio::spawn(async move {
            let Some(handler) = handler else { return answering.refuse(&unknown(method.as_deref())) };
            let wait = Duration::from_millis(deadline_ms.unwrap_or(u64::MAX >> 16));
            match tokio::time::timeout(wait, async { handler(body, sender).await }).await {
                Ok(Ok(reply)) => answering.reply(reply),
                Ok(Err(refusal)) => answering.refuse(&refusal),
                Err(_) => answering.refuse(&Error::deadline("the call")),
            }
        });
        open.insert(stream, Open { task: task.abort_handle(), credit: granting });
    }
}

impl Calls {
    fn open(&self) -> MutexGuard<'_, BTreeMap<StreamId, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self, stream: StreamId) -> Option<Open> {
        self.open().remove(&stream)
    }

    /// Sends the last frame of a call, unless it was cancelled.
    fn end(&self, stream: StreamId, frame: Frame) {
        let open = self.close(stream);
        if let Some(shared) = self.shared.upgrade().filter(|_| open.is_some()) {
            shared.send(frame);
        }
    }
}

impl std::fmt::Debug for Calls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Calls").field("open", &self.open().len()).finish_non_exhaustive()
    }
}

/// Owes the answer to one call. Dropped without one, its handler has panicked, or the call was cancelled.
struct Answering {
    calls: Arc<Calls>,
    stream: StreamId,
}

impl Answering {
    fn reply(self, body: Vec<u8>) {
        if let Some(refusal) = self.calls.shared.upgrade().and_then(|shared| within(&shared, &body).err()) {
            return self.refuse(&refusal);
        }
        let frame = Frame::new(FrameType::Data, self.stream).with_body(WireCodec::Msgpack, body).end();
        self.calls.end(self.stream, frame);
    }

    fn refuse(self, refusal: &Error) {
        self.calls.end(self.stream, Frame::error(self.stream, refusal));
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        let error = Error::internal("service.panicked", "the service panicked at this call");
        // One that was answered or cancelled is not open any more.
        self.calls.end(self.stream, Frame::error(self.stream, &error));
    }
}

fn within(shared: &Shared, body: &[u8]) -> Result<(), Error> {
    let max = (shared.limits().frame_bytes as usize).saturating_sub(ENVELOPE_ROOM_BYTES);
    if body.len() > max {
        let text = format!("a message of {} bytes is over the limit of {max}", body.len());
        return Err(Error::new(Code::Exhausted, "frame.size", text).help("send large values as artifacts"));
    }
    Ok(())
}

fn unknown(method: Option<&str>) -> Error {
    let shown: String = method.unwrap_or_default().chars().take(64).collect();
    Error::new(Code::Unimplemented, "operation.unknown", format!("there is no {shown} here"))
}
