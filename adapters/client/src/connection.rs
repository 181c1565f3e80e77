//! One connection: a task that writes, a task that reads and deals out, and the table of open streams.
//!
//! Invariants: (1) a stream's frames arrive in order, and none after its last. (2) When either task ends, every open
//! stream hears why, once. (3) The table holds no stream that nobody listens to.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::BytesMut;
use eclosion_schemas::frame::{Assembler, Decoder, Envelope, Flags, Frame, FrameType, Limits, StreamId};
use eclosion_schemas::{Code, Error, Retry};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

/// Frames that wait to be written.
const OUTGOING_MAX: usize = 256;
const READ_BYTES: usize = 64 * 1024;
/// A body above this is sent in pieces, so that control is never stuck behind it.
const FRAGMENT_BYTES: usize = 64 * 1024;

type Inbox = mpsc::UnboundedSender<Frame>;

#[derive(Debug)]
pub(crate) struct Connection {
    outgoing: mpsc::Sender<Frame>,
    shared: Arc<Shared>,
    tasks: [AbortHandle; 2],
}

#[derive(Debug)]
struct Shared {
    next: AtomicU32,
    /// Bounded by what the kernel may send: each stream's credit.
    streams: Mutex<BTreeMap<u32, Inbox>>,
    over: watch::Sender<Option<Error>>,
}

impl Connection {
    /// Says hello and waits for the welcome.
    pub(crate) async fn open(stream: UnixStream, hello: Frame) -> Result<(Arc<Self>, Envelope), Error> {
        let (mut reading, mut writing) = stream.into_split();
        let mut bytes = BytesMut::new();
        hello.encode(&mut bytes)?;
        writing.write_all(&bytes).await.map_err(|why| broken(&why.to_string()))?;
        let mut decoder = Decoder::new(Limits::DEFAULT);
        let welcome = next(&mut reading, &mut decoder).await?;
        if welcome.kind != FrameType::Welcome {
            return Err(match welcome.kind {
                FrameType::Error => welcome.to_error(),
                other => broken(&format!("it began with {other:?}")),
            });
        }
        let shared = Arc::new(Shared {
            next: AtomicU32::new(1),
            streams: Mutex::default(),
            over: watch::Sender::new(None),
        });
        let (outgoing, frames) = mpsc::channel(OUTGOING_MAX);
        let writer = tokio::spawn(write(writing, frames, Arc::clone(&shared)));
        let reader = tokio::spawn(read(reading, decoder, outgoing.clone(), Arc::clone(&shared)));
        let tasks = [writer.abort_handle(), reader.abort_handle()];
        Ok((Arc::new(Self { outgoing, shared, tasks }), welcome.envelope))
    }

    /// A fresh stream and what comes on it.
    pub(crate) fn stream(&self) -> Result<(StreamId, mpsc::UnboundedReceiver<Frame>), Error> {
        let (inbox, frames) = mpsc::unbounded_channel();
        let number = self.shared.next.fetch_add(2, Ordering::Relaxed);
        lock(&self.shared.streams).insert(number, inbox);
        // Checked after the insertion: whoever ends the connection empties the table after it has said why.
        match &*self.shared.over.borrow() {
            None => Ok((StreamId(number), frames)),
            Some(why) => {
                self.forget(StreamId(number));
                Err(why.clone())
            }
        }
    }

    pub(crate) fn forget(&self, stream: StreamId) {
        lock(&self.shared.streams).remove(&stream.0);
    }

    /// Waits for its turn to be written.
    pub(crate) async fn send(&self, frame: Frame) -> Result<(), Error> {
        match self.outgoing.send(frame).await {
            Ok(()) => Ok(()),
            Err(_) => Err(self.why()),
        }
    }

    /// For those that cannot wait: a cancel that finds no room is not needed, as the kernel is not reading anyway.
    pub(crate) fn send_now(&self, frame: Frame) {
        let _ = self.outgoing.try_send(frame);
    }

    pub(crate) fn why(&self) -> Error {
        self.shared.over.borrow().clone().unwrap_or_else(|| broken("it was closed"))
    }

    pub(crate) async fn closed(&self) -> Error {
        let mut over = self.shared.over.subscribe();
        match over.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or_else(|| broken("it was closed")),
            Err(_) => broken("it was closed"),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl Shared {
    fn end(&self, why: Error) {
        self.over.send_if_modified(|over| {
            let first = over.is_none();
            if first {
                *over = Some(why);
            }
            first
        });
        // A stream whose inbox is gone finds the reason in `over`.
        lock(&self.streams).clear();
    }

    fn deal(&self, frame: Frame) {
        let mut streams = lock(&self.streams);
        let (number, last) = (frame.stream.0, frame.is_end() || frame.kind == FrameType::Error);
        let gone = streams.get(&number).is_some_and(|inbox| inbox.send(frame).is_err());
        if gone || last {
            streams.remove(&number);
        }
    }
}

async fn write(mut stream: OwnedWriteHalf, mut frames: mpsc::Receiver<Frame>, shared: Arc<Shared>) {
    let mut bytes = BytesMut::with_capacity(READ_BYTES);
    while let Some(frame) = frames.recv().await {
        let mut encoded = encode(frame, &mut bytes);
        // What waits already goes out with it.
        while encoded.is_ok() && bytes.len() < READ_BYTES {
            match frames.try_recv() {
                Ok(frame) => encoded = encode(frame, &mut bytes),
                Err(_) => break,
            }
        }
        let written = match encoded {
            Ok(()) => stream.write_all(&bytes).await.map_err(|why| broken(&why.to_string())),
            Err(why) => Err(why),
        };
        if let Err(why) = written {
            return shared.end(why);
        }
        bytes.clear();
    }
}

fn encode(frame: Frame, bytes: &mut BytesMut) -> Result<(), Error> {
    for fragment in frame.fragments(FRAGMENT_BYTES) {
        fragment.encode(bytes)?;
    }
    Ok(())
}

async fn read(
    mut stream: OwnedReadHalf,
    mut decoder: Decoder,
    outgoing: mpsc::Sender<Frame>,
    shared: Arc<Shared>,
) {
    let mut assembler = Assembler::new(Limits::DEFAULT);
    let mut leaving = None;
    let why = loop {
        let frame = match next(&mut stream, &mut decoder).await {
            Ok(frame) => frame,
            Err(why) => break leaving.unwrap_or(why),
        };
        match frame.kind {
            FrameType::Ping => {
                let pong = Frame::new(FrameType::Pong, frame.stream).with_body(frame.codec, frame.body);
                // A kernel that takes nothing is not waiting for this either.
                let _ = outgoing.try_send(pong);
            }
            FrameType::Goaway => leaving = Some(told_to_go(&frame)),
            FrameType::Data | FrameType::Error if frame.stream != StreamId::CONNECTION => {
                match assembler.push(frame) {
                    Ok(Some(whole)) => shared.deal(whole),
                    Ok(None) => {}
                    Err(why) => break why.into(),
                }
            }
            FrameType::Error => break frame.to_error(),
            _ if frame.flags.contains(Flags::IGNORE) => {}
            other => tracing::debug!(?other, "a frame that a client has no use for"),
        }
    };
    shared.end(why);
}

async fn next(stream: &mut OwnedReadHalf, decoder: &mut Decoder) -> Result<Frame, Error> {
    let mut bytes = BytesMut::with_capacity(READ_BYTES);
    loop {
        if let Some(frame) = decoder.next_frame()? {
            return Ok(frame);
        }
        bytes.clear();
        match stream.read_buf(&mut bytes).await {
            Ok(0) => return Err(broken("the kernel closed it")),
            Ok(_) => decoder.push(&bytes),
            Err(why) => return Err(broken(&why.to_string())),
        }
    }
}

fn told_to_go(frame: &Frame) -> Error {
    let reason = frame.envelope.reason.as_deref().unwrap_or("it is stopping");
    Error::new(Code::Unavailable, "client.goaway", format!("the kernel ended the connection: {reason}"))
        .retry(Retry::After { after_ms: 500 })
        .help("eclosion status")
}

fn broken(text: &str) -> Error {
    Error::new(
        Code::Unavailable,
        "client.disconnected",
        format!("the connection to the kernel is over: {text}"),
    )
    .retry(Retry::After { after_ms: 500 })
    .help("eclosion status")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
