//! One connection: a Unix stream socket on which frames travel, and descriptors with them. A client whose first byte is
//! `{` sends and gets the same frames as lines of JSON ([`lines`]); one that speaks HTTP gets bytes as they are.
//!
//! Owned by whoever drives it: a [`Session`](crate::Session) or a [`WorkerLink`](crate::WorkerLink). It comes in two
//! halves over one [`Socket`], because a worker's link is written to by others than the one who reads it:
//!
//! ```text
//!   recvmsg → Reader: bytes → Decoder → Assembler → whole messages, each with its descriptors
//!   sendmsg ← Writer: bytes ← 64 KiB at a time ← Outbox: control first, streams in turn
//! ```
//!
//! Invariants:
//! 1. Memory is bounded: inwards by the [`Limits`], outwards by [`OUTGOING_BYTES_MAX`] plus one message, if the driver
//!    asks [`Writer::has_room`] before it pushes what it could also leave where it is.
//! 2. Descriptors are close-on-exec from the first moment; what nobody claimed is closed with the connection.
//! 3. Nothing blocks; a peer that takes nothing for [`STALL`] while something waits for it is given up.
//! 4. Whatever the peer sends, the worst that follows is an [`End`].

mod lines;
mod reader;
mod socket;
mod writer;

use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use eclosion_schemas::frame::{Frame, FrameError, Limits, StreamId};
use eclosion_schemas::{Code, Error};

pub use self::lines::LineError;
pub(crate) use self::reader::Reader;
pub use self::reader::Received;
pub(crate) use self::socket::Socket;
pub(crate) use self::writer::Writer;
use crate::traffic::Traffic;

/// Descriptors that may ride with one frame.
pub const DESCRIPTORS_MAX: usize = 4;
/// What may wait for a peer that reads slowly (P-BND-4).
pub const OUTGOING_BYTES_MAX: usize = 4 << 20;
/// How long a peer may take nothing of what waits for it.
pub const STALL: Duration = Duration::from_secs(30);
/// How long a last word may take to leave.
const LAST_WORD: Duration = Duration::from_secs(1);

/// Why a connection is at its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum End {
    #[error("the peer closed the connection")]
    Closed,
    #[error("the connection broke off inside a frame")]
    Broken,
    #[error("the peer took nothing for {} s", STALL.as_secs())]
    Stalled,
    #[error("a frame names {named} descriptors where {there} are there and {DESCRIPTORS_MAX} allowed")]
    Descriptors { named: usize, there: usize },
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Line(#[from] LineError),
    #[error("the socket failed: {0}")]
    Io(#[from] io::Error),
}

impl End {
    /// Whether the peer is to blame; it is told before the connection closes.
    #[must_use]
    pub fn is_violation(&self) -> bool {
        matches!(self, End::Frame(_) | End::Line(_) | End::Descriptors { .. })
    }
}

impl From<End> for Error {
    fn from(end: End) -> Self {
        let text = end.to_string();
        match end {
            End::Frame(why) => why.into(),
            End::Line(why) => why.into(),
            End::Descriptors { .. } => Error::invalid("frame.descriptors", text),
            End::Stalled => Error::new(Code::SlowConsumer, "connection.stalled", text),
            End::Closed => Error::new(Code::Unavailable, "connection.closed", text),
            End::Broken | End::Io(_) => Error::new(Code::Unavailable, "connection.broken", text),
        }
    }
}

/// Both halves in one hand.
#[derive(Debug)]
pub struct Connection {
    socket: Socket,
    reader: Reader,
    writer: Writer,
}

impl Connection {
    /// Takes over a connected stream socket; inside a tokio runtime with I/O.
    ///
    /// # Errors
    /// The descriptor cannot be waited for.
    pub fn new(stream: OwnedFd, limits: Limits) -> io::Result<Self> {
        Ok(Self {
            socket: Socket::new(stream)?,
            reader: Reader::new(limits),
            writer: Writer::new(limits.fragment_bytes as usize),
        })
    }

    /// What it carries is counted there from now on; what arrived before is not.
    pub(crate) fn counted_in(&mut self, traffic: &Arc<Traffic>) {
        self.reader.counted_in(Arc::clone(traffic));
        self.writer.counted_in(Arc::clone(traffic));
    }

    /// A message that was received already; never waits.
    ///
    /// # Errors
    /// [`End`] when the bytes are no frames.
    pub fn received(&mut self) -> Result<Option<Received>, End> {
        self.reader.received()
    }

    /// Receives bytes; afterwards [`Connection::received`] may have messages.
    ///
    /// # Errors
    /// [`End`], at the peer's end too.
    pub fn poll_receive(&mut self, task: &mut Context<'_>) -> Poll<Result<(), End>> {
        self.reader.poll_receive(&self.socket, task)
    }

    /// The next message. Cancel-safe.
    ///
    /// # Errors
    /// [`End`]; the connection is to be dropped.
    pub async fn receive(&mut self) -> Result<Received, End> {
        loop {
            if let Some(received) = self.received()? {
                return Ok(received);
            }
            poll_fn(|task| {
                if let Poll::Ready(Err(end)) = self.poll_flush(task) {
                    return Poll::Ready(Err(end));
                }
                // Whether or not all has left: what arrives is heard.
                self.poll_receive(task)
            })
            .await?;
        }
    }

    /// The first byte, before any of it is taken for a frame; it stays where it is.
    ///
    /// # Errors
    /// [`End`]
    pub async fn first_byte(&mut self) -> Result<u8, End> {
        loop {
            if let Some(byte) = self.reader.first_byte() {
                return Ok(byte);
            }
            poll_fn(|task| self.poll_receive(task)).await?;
        }
    }

    pub(crate) fn speaks_lines(&self) -> bool {
        self.reader.speaks_lines()
    }

    /// From here on lines are spoken: the first byte said so, and nothing has been sent.
    pub fn speak_lines(&mut self) {
        self.reader.speak_lines();
        self.writer.speak_lines();
    }

    /// Takes what has arrived and was not taken for frames, for a dialect without any.
    pub fn take_bytes(&mut self) -> BytesMut {
        self.reader.take_bytes()
    }

    /// Waits for more of them. Cancel-safe.
    ///
    /// # Errors
    /// [`End`]
    pub async fn receive_bytes(&mut self) -> Result<(), End> {
        poll_fn(|task| self.poll_receive(task)).await
    }

    /// What it consists of, for who takes it over: nothing that arrived is lost.
    pub(crate) fn into_parts(self) -> (Socket, Reader, Writer) {
        (self.socket, self.reader, self.writer)
    }

    /// Puts a frame in line. It leaves with the next flush.
    pub fn send(&mut self, frame: Frame, descriptors: Vec<OwnedFd>) {
        self.writer.push(frame, descriptors);
    }

    /// Drops what waits in line of a stream that is over. True if a message was cut off in its middle: the peer must hear
    /// that no more of it comes.
    pub fn forget(&mut self, stream: StreamId) -> bool {
        self.writer.forget(stream)
    }

    #[must_use]
    pub fn has_room(&self) -> bool {
        self.writer.has_room()
    }

    /// Whether answers to what is read next would find room.
    #[must_use]
    pub fn may_read(&self) -> bool {
        self.writer.control_frames() < writer::CONTROL_FRAMES_MAX
    }

    /// Sends what the socket takes; ready when nothing is left.
    ///
    /// # Errors
    /// [`End`]
    pub fn poll_flush(&mut self, task: &mut Context<'_>) -> Poll<Result<(), End>> {
        self.writer.poll_flush(&self.socket, task)
    }

    /// Says a last word and hangs up. The peer may be gone or deaf: it has a second.
    pub async fn close(mut self, last: Option<Frame>) {
        if let Some(frame) = last {
            self.send(frame, Vec::new());
        }
        let flush = poll_fn(|task| self.poll_flush(task));
        // Nobody is left to be told if it does not leave.
        let _ = tokio::time::timeout(LAST_WORD, flush).await;
    }

    /// The same with text, for one who does not speak frames.
    pub async fn close_with_text(mut self, text: &str) {
        self.writer.push_raw(text.as_bytes());
        self.close(None).await;
    }
}
