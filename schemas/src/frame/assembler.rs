//! Messages in fragments: cut by the sender, joined by the receiver.
//!
//! A body over the fragment size is sent as several frames, so that control never waits behind a large one. The first
//! has the message's type, envelope, codec and descriptors, the others are DATA and have none of these; all but the
//! last have MORE, and only the last has END.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};

use super::envelope::{Carried, Limits};
use super::{Flags, Frame, FrameError, FrameType, StreamId};

/// The frames of one message; see [`Frame::fragments`]. Bodies are slices, not copies.
#[derive(Debug)]
pub struct Fragments {
    /// The frame to send next, with all of the body that is left.
    rest: Option<Frame>,
    fragment_bytes: usize,
}

impl Fragments {
    pub(super) fn of(message: Frame, fragment_bytes: usize) -> Self {
        Self { rest: Some(message), fragment_bytes: fragment_bytes.max(1) }
    }

    pub(super) fn is_over(&self) -> bool {
        self.rest.is_none()
    }

    /// Bytes of the body that did not come out yet.
    pub(super) fn left(&self) -> usize {
        self.rest.as_ref().map_or(0, |frame| frame.body.len())
    }
}

impl Iterator for Fragments {
    type Item = Frame;

    fn next(&mut self) -> Option<Frame> {
        let mut frame = self.rest.take()?;
        if frame.body.len() > self.fragment_bytes {
            let left = frame.body.split_off(self.fragment_bytes);
            self.rest = Some(Frame {
                kind: FrameType::Data,
                flags: frame.flags,
                codec: frame.codec,
                stream: frame.stream,
                descriptors: 0,
                envelope: Carried::default(),
                body: left,
            });
            frame.flags = frame.flags.without(Flags::END) | Flags::MORE;
        }
        Some(frame)
    }
}

/// Joins the fragments of one connection's messages. A frame that is no fragment passes through untouched.
///
/// Its memory: each message at most [`Limits::frame_bytes`], all unfinished ones at most [`Limits::assembly_bytes`],
/// on at most [`Limits::streams`] streams.
#[derive(Debug)]
pub struct Assembler {
    limits: Limits,
    unfinished: BTreeMap<StreamId, Unfinished>,
    /// The sum of all bodies in `unfinished`.
    bytes: usize,
}

#[derive(Debug)]
struct Unfinished {
    first: Frame,
    body: BytesMut,
}

impl Assembler {
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, unfinished: BTreeMap::new(), bytes: 0 }
    }

    /// Takes a frame and returns the message that it completes, if it completes one.
    ///
    /// # Errors
    /// [`FrameError`] when the fragments contradict each other or are over a limit: the connection must be closed.
    pub fn push(&mut self, frame: Frame) -> Result<Option<Frame>, FrameError> {
        match frame.kind {
            FrameType::Data if self.unfinished.contains_key(&frame.stream) => self.append(frame),
            // It ends the exchange, whatever was underway.
            FrameType::Error | FrameType::Cancel => {
                self.forget(frame.stream);
                self.begin(frame)
            }
            FrameType::Call if self.unfinished.contains_key(&frame.stream) => {
                Err(FrameError::Interleaved { kind: frame.kind, stream: frame.stream })
            }
            _ => self.begin(frame),
        }
    }

    /// Drops what was received of an unfinished message on this stream.
    pub fn forget(&mut self, stream: StreamId) {
        if let Some(unfinished) = self.unfinished.remove(&stream) {
            self.bytes -= unfinished.body.len();
        }
    }

    /// Bytes of unfinished messages.
    #[must_use]
    pub fn buffered(&self) -> usize {
        self.bytes
    }

    fn begin(&mut self, mut frame: Frame) -> Result<Option<Frame>, FrameError> {
        if !frame.flags.contains(Flags::MORE) {
            return Ok(Some(frame));
        }
        let divisible = matches!(frame.kind, FrameType::Call | FrameType::Data | FrameType::Error);
        if !divisible || frame.stream == StreamId::CONNECTION {
            return Err(FrameError::NoFragment { kind: frame.kind, stream: frame.stream });
        }
        let max = self.limits.streams as usize;
        if self.unfinished.len() >= max {
            return Err(FrameError::AssemblyCount { max });
        }
        self.admit(0, frame.body.len())?;
        let body = BytesMut::from(std::mem::take(&mut frame.body));
        self.unfinished.insert(frame.stream, Unfinished { first: frame, body });
        Ok(None)
    }

    fn append(&mut self, fragment: Frame) -> Result<Option<Frame>, FrameError> {
        let stream = fragment.stream;
        if fragment.descriptors != 0 || !fragment.envelope.is_empty() {
            return Err(FrameError::Interleaved { kind: fragment.kind, stream });
        }
        let Some(held) = self.unfinished.get(&stream).map(|unfinished| unfinished.body.len()) else {
            return Ok(Some(fragment));
        };
        self.admit(held, fragment.body.len())?;
        if let Some(unfinished) = self.unfinished.get_mut(&stream) {
            unfinished.body.extend_from_slice(&fragment.body);
        }
        if fragment.flags.contains(Flags::MORE) {
            return Ok(None);
        }
        let Some(Unfinished { first, body }) = self.unfinished.remove(&stream) else { return Ok(None) };
        self.bytes -= body.len();
        let flags = (first.flags | fragment.flags).without(Flags::MORE);
        Ok(Some(Frame { flags, body: Bytes::from(body), ..first }))
    }

    /// Counts `more` bytes for a message that has `held`, before they are kept.
    fn admit(&mut self, held: usize, more: usize) -> Result<(), FrameError> {
        let (message, sum) = (held + more, self.bytes + more);
        let max = self.limits.frame_bytes as usize;
        if message > max {
            return Err(FrameError::MessageSize { bytes: message, max });
        }
        let max = self.limits.assembly_bytes as usize;
        if sum > max {
            return Err(FrameError::AssemblySize { bytes: sum, max });
        }
        self.bytes = sum;
        Ok(())
    }
}
