//! The sending half: frames in, bytes out, as fast as the peer takes them.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, BytesMut};
use eclosion_schemas::frame::{Frame, Outbox, StreamId};
use tokio::time::Sleep;

use super::lines;
use super::socket::Socket;
use super::{End, OUTGOING_BYTES_MAX, STALL};
use crate::traffic::Traffic;

/// Frames are encoded until there is this much for one system call. What is encoded is past being overtaken.
const FILL_BYTES: usize = 64 * 1024;
/// Answers of the connection itself that may wait; beyond it nothing more is read.
pub(crate) const CONTROL_FRAMES_MAX: usize = 1024;

#[derive(Debug)]
pub(crate) struct Writer {
    outbox: Outbox<Vec<OwnedFd>>,
    /// Its descriptors must ride with its own first byte, so it waits until everything before has left.
    parked: VecDeque<(Frame, Vec<OwnedFd>)>,
    buffer: BytesMut,
    /// They ride with the first byte of `buffer`.
    descriptors: Vec<OwnedFd>,
    speaks_lines: bool,
    /// Running while the peer takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
    traffic: Arc<Traffic>,
}

impl Writer {
    pub(crate) fn new(fragment_bytes: usize) -> Self {
        Self {
            outbox: Outbox::new(fragment_bytes),
            parked: VecDeque::new(),
            buffer: BytesMut::new(),
            descriptors: Vec::new(),
            speaks_lines: false,
            stalled: None,
            traffic: Arc::default(),
        }
    }

    pub(crate) fn counted_in(&mut self, traffic: Arc<Traffic>) {
        self.traffic = traffic;
    }

    /// To be called before anything is pushed: a line is whole, so that nothing may be cut.
    pub(crate) fn speak_lines(&mut self) {
        self.outbox = Outbox::new(usize::MAX);
        self.speaks_lines = true;
    }

    pub(crate) fn push(&mut self, mut frame: Frame, descriptors: Vec<OwnedFd>) {
        frame.descriptors = u8::try_from(descriptors.len()).unwrap_or(u8::MAX);
        let attachment = (!descriptors.is_empty()).then_some(descriptors);
        self.outbox.push(frame, attachment);
    }

    pub(crate) fn push_raw(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// True if a message was cut off in its middle.
    pub(crate) fn forget(&mut self, stream: StreamId) -> bool {
        self.outbox.forget(stream)
    }

    pub(crate) fn has_room(&self) -> bool {
        self.outbox.bytes() + self.buffer.len() < OUTGOING_BYTES_MAX
    }

    pub(crate) fn control_frames(&self) -> usize {
        self.outbox.control_frames()
    }

    /// Sends what the socket takes at once. True when nothing is left.
    pub(crate) fn try_flush(&mut self, socket: &Socket) -> io::Result<bool> {
        while self.fill() {
            match socket.try_send(&self.buffer, &self.descriptors) {
                Ok(sent) => self.sent(sent),
                Err(why) if why.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(why) => return Err(why),
            }
        }
        Ok(true)
    }

    pub(crate) fn poll_flush(&mut self, socket: &Socket, task: &mut Context<'_>) -> Poll<Result<(), End>> {
        while self.fill() {
            match socket.poll_send(task, &self.buffer, &self.descriptors) {
                Poll::Ready(Ok(sent)) => self.sent(sent),
                Poll::Ready(Err(why)) => return Poll::Ready(Err(ended(why))),
                Poll::Pending => return self.poll_stalled(task),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn sent(&mut self, bytes: usize) {
        self.buffer.advance(bytes);
        self.traffic.sent_bytes(bytes);
        if bytes > 0 {
            // The peer has its own copies now.
            self.descriptors.clear();
            self.stalled = None;
        }
    }

    fn poll_stalled(&mut self, task: &mut Context<'_>) -> Poll<Result<(), End>> {
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(STALL)));
        stalled.as_mut().poll(task).map(|()| Err(End::Stalled))
    }

    /// Encodes frames into the buffer. False when there is nothing to send.
    fn fill(&mut self) -> bool {
        while self.buffer.len() < FILL_BYTES {
            let next = match self.parked.pop_front() {
                Some((frame, descriptors)) => Some((frame, Some(descriptors))),
                None => self.outbox.pop(),
            };
            let Some((frame, descriptors)) = next else { break };
            if self.speaks_lines {
                lines::encode(&frame, &mut self.buffer);
                self.traffic.frame_sent();
                continue;
            }
            if let Some(descriptors) = descriptors {
                if !self.buffer.is_empty() {
                    self.parked.push_back((frame, descriptors));
                    break;
                }
                self.descriptors = descriptors;
            }
            if let Err(why) = frame.encode(&mut self.buffer) {
                // Bodies are checked before they are pushed and our envelopes are short, so this is our own mistake.
                tracing::error!(%why, kind = ?frame.kind, stream = %frame.stream, "a frame was not sent");
                self.descriptors.clear();
                continue;
            }
            self.traffic.frame_sent();
        }
        !self.buffer.is_empty()
    }
}

fn ended(why: io::Error) -> End {
    match why.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => End::Closed,
        _ => End::Io(why),
    }
}
