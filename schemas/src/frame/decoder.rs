//! From received bytes to frames, without I/O.

use bytes::{Bytes, BytesMut};

use super::envelope::{Carried, Limits};
use super::{Frame, FrameError, HEADER_BYTES, Header};

/// An incremental decoder: push what was received, then take frames until there is none.
///
/// Taking all frames after each push keeps its memory below one frame and one push.
///
/// ```
/// use bytes::BytesMut;
/// use eclosion_schemas::frame::{Decoder, Frame, FrameType, Limits, StreamId};
/// let mut bytes = BytesMut::new();
/// Frame::new(FrameType::Ping, StreamId::CONNECTION).encode(&mut bytes)?;
/// let mut decoder = Decoder::new(Limits::DEFAULT);
/// decoder.push(&bytes[..7]);
/// assert_eq!(decoder.next_frame()?, None);
/// decoder.push(&bytes[7..]);
/// assert_eq!(decoder.next_frame()?.map(|frame| frame.kind), Some(FrameType::Ping));
/// # Ok::<(), eclosion_schemas::frame::FrameError>(())
/// ```
#[derive(Debug)]
pub struct Decoder {
    limits: Limits,
    buffer: BytesMut,
    /// The checked header of the frame that is being received.
    header: Option<Header>,
    failed: Option<FrameError>,
}

impl Decoder {
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, buffer: BytesMut::new(), header: None, failed: None }
    }

    /// Keeps received bytes. A failed decoder keeps nothing.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.failed.is_none() {
            self.buffer.extend_from_slice(bytes);
        }
    }

    /// The next whole frame; `None` until more bytes are pushed.
    ///
    /// # Errors
    /// [`FrameError`], now and ever after: the connection must be closed.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        if let Some(why) = &self.failed {
            return Err(why.clone());
        }
        self.take().inspect_err(|why| {
            self.failed = Some(why.clone());
            self.buffer = BytesMut::new();
        })
    }

    /// Takes back what was pushed and is no frame yet: another dialect's first bytes.
    #[must_use]
    pub fn take_bytes(&mut self) -> BytesMut {
        std::mem::take(&mut self.buffer)
    }

    /// Bytes that were pushed and belong to no frame yet. More than none at the end of a connection: it broke off
    /// inside a frame.
    #[must_use]
    pub fn buffered(&self) -> usize {
        self.buffer.len()
    }

    fn take(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some(header) = self.header()? else { return Ok(None) };
        if self.buffer.len() < header.frame_bytes() {
            return Ok(None);
        }
        self.header = None;
        let bytes = self.buffer.split_to(header.frame_bytes()).freeze();
        frame(&header, &bytes).map(Some)
    }

    fn header(&mut self) -> Result<Option<Header>, FrameError> {
        if self.header.is_none()
            && let Some(bytes) = self.buffer.first_chunk::<HEADER_BYTES>()
        {
            self.header = Some(Header::parse(bytes, &self.limits)?);
        }
        Ok(self.header)
    }
}

/// `bytes` is the whole frame that `header` describes, so that no index is out of range.
fn frame(header: &Header, bytes: &Bytes) -> Result<Frame, FrameError> {
    let body = HEADER_BYTES + usize::from(header.envelope_bytes);
    Ok(Frame {
        kind: header.kind,
        flags: header.flags,
        codec: header.codec,
        stream: header.stream,
        descriptors: header.descriptors,
        envelope: Carried::read(&bytes[HEADER_BYTES..body])?,
        body: bytes.slice(body..),
    })
}
