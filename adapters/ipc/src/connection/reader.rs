//! The receiving half: bytes in, whole messages with their descriptors out.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use eclosion_schemas::frame::{Assembler, Decoder, Frame, Limits, StreamId};

use super::lines::LineDecoder;
use super::socket::Socket;
use super::{DESCRIPTORS_MAX, End};
use crate::traffic::Traffic;

/// What one system call may bring.
const READ_BYTES: usize = 64 * 1024;
/// Descriptors that arrived and that no frame has named yet. Several frames may arrive at once, each with its own.
const UNCLAIMED_MAX: usize = 4 * DESCRIPTORS_MAX;

/// A whole message, fragments joined.
#[derive(Debug)]
pub struct Received {
    pub frame: Frame,
    pub descriptors: Vec<OwnedFd>,
}

#[derive(Debug)]
pub(crate) struct Reader {
    limits: Limits,
    decoder: Decoder,
    /// In place of the other, once lines are spoken.
    lines: Option<LineDecoder>,
    assembler: Assembler,
    buffer: Box<[u8]>,
    /// In the order of their frames.
    unclaimed: VecDeque<OwnedFd>,
    /// Of messages whose last fragment is still to come.
    held: BTreeMap<StreamId, Vec<OwnedFd>>,
    first_byte: Option<u8>,
    traffic: Arc<Traffic>,
}

impl Reader {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            decoder: Decoder::new(limits),
            lines: None,
            assembler: Assembler::new(limits),
            buffer: vec![0; READ_BYTES].into(),
            unclaimed: VecDeque::new(),
            held: BTreeMap::new(),
            first_byte: None,
            traffic: Arc::default(),
        }
    }

    pub(crate) fn counted_in(&mut self, traffic: Arc<Traffic>) {
        self.traffic = traffic;
    }

    pub(crate) fn first_byte(&self) -> Option<u8> {
        self.first_byte
    }

    pub(crate) fn speaks_lines(&self) -> bool {
        self.lines.is_some()
    }

    pub(crate) fn speak_lines(&mut self) {
        let mut lines = LineDecoder::new(&self.limits);
        lines.push(&self.decoder.take_bytes());
        self.lines = Some(lines);
    }

    /// What was received and is no frame yet. No byte of it carries a descriptor that anybody could claim.
    pub(crate) fn take_bytes(&mut self) -> BytesMut {
        self.unclaimed.clear();
        self.decoder.take_bytes()
    }

    pub(crate) fn poll_receive(&mut self, socket: &Socket, task: &mut Context<'_>) -> Poll<Result<(), End>> {
        let bytes = match ready!(socket.poll_receive(task, &mut self.buffer, &mut self.unclaimed)) {
            Ok(bytes) => bytes,
            Err(why) if why.kind() == std::io::ErrorKind::ConnectionReset => 0,
            Err(why) => return Poll::Ready(Err(why.into())),
        };
        if bytes == 0 {
            let lines = self.lines.as_ref().map_or(0, LineDecoder::buffered);
            let inside = lines + self.decoder.buffered() + self.assembler.buffered() > 0;
            return Poll::Ready(Err(if inside { End::Broken } else { End::Closed }));
        }
        self.traffic.received_bytes(bytes);
        let received = &self.buffer[..bytes];
        self.first_byte = self.first_byte.or_else(|| received.first().copied());
        match &mut self.lines {
            Some(lines) => lines.push(received),
            None => self.decoder.push(received),
        }
        Poll::Ready(Ok(()))
    }

    pub(crate) fn received(&mut self) -> Result<Option<Received>, End> {
        if let Some(lines) = &mut self.lines {
            // No line names one.
            self.unclaimed.clear();
            let Some(frame) = lines.next_frame()? else { return Ok(None) };
            self.traffic.frame_received();
            return Ok(Some(Received { frame, descriptors: Vec::new() }));
        }
        while let Some(frame) = self.decoder.next_frame()? {
            self.traffic.frame_received();
            let mut descriptors = self.claim(&frame)?;
            let stream = frame.stream;
            let Some(frame) = self.assembler.push(frame)? else {
                if !descriptors.is_empty() {
                    self.held.insert(stream, descriptors);
                }
                continue;
            };
            // An ERROR or CANCEL in between drops them with the message that they came with.
            let held = self.held.remove(&stream).filter(|held| held.len() == usize::from(frame.descriptors));
            descriptors.extend(held.into_iter().flatten());
            return Ok(Some(Received { frame, descriptors }));
        }
        if self.unclaimed.len() > UNCLAIMED_MAX {
            return Err(End::Descriptors { named: 0, there: self.unclaimed.len() });
        }
        Ok(None)
    }

    fn claim(&mut self, frame: &Frame) -> Result<Vec<OwnedFd>, End> {
        let (named, there) = (usize::from(frame.descriptors), self.unclaimed.len());
        if named > DESCRIPTORS_MAX || named > there {
            return Err(End::Descriptors { named, there });
        }
        Ok(self.unclaimed.drain(..named).collect())
    }
}
