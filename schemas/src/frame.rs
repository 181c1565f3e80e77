//! Frames: the binary dialect of the socket, as bytes and as values. `PROTOCOL.md` is the contract in words.
//!
//! ```text
//! | len u32 | ver u8 | type u8 | flags u8 | codec u8 | stream u32 | hlen u16 | nfds u8 | 0 | envelope | body |
//! ```
//!
//! Nothing here reads or writes a socket: whoever owns one pushes what it received into a [`Decoder`] and takes frames
//! out, joins fragments with an [`Assembler`], and sends what [`Frame::encode`] or [`Frame::encode_head`] gave, in the
//! order in which an [`Outbox`] gives it out.
//!
//! Invariants (P-BND-2, P-BND-6):
//! 1. A header is checked against the limits as soon as its 16 bytes are there, before any byte of the frame is kept
//!    on its account; memory follows what arrived, never what was claimed.
//! 2. After an error a decoder stays failed: where the next frame starts is not known any more.
//! 3. Encoding what was decoded gives the same bytes, as long as the envelope has no unknown key.
//!
//! Deliberately absent: stream state, credits and deadlines (the transport's), and descriptors themselves: a frame only
//! says how many of them ride with its first byte.

mod assembler;
mod decoder;
mod envelope;
mod header;
mod outbox;
#[cfg(test)]
mod tests;

use bytes::{BufMut, Bytes, BytesMut};
use serde::Serialize;

pub use assembler::{Assembler, Fragments};
pub use decoder::Decoder;
pub use envelope::{Carried, Envelope, Limits};
pub use header::{Flags, FrameType, Header, StreamId, WireCodec};
pub use outbox::Outbox;

use crate::codec::{self, CodecError};
use crate::error::{Code, Error};

/// The version of the framing itself. It hardly ever changes; `api` counts additions.
pub const VERSION: u8 = 1;
/// What this release speaks, and the oldest api that it still understands.
pub const API: u32 = 1;
pub const API_COMPATIBLE: u32 = 1;
/// Said in `features` by who reads and writes bincode, where operations are known alike.
pub const BINCODE: &str = "bincode";
pub const HEADER_BYTES: usize = 16;
/// The largest value of `len`: its first byte is always zero, which tells the dialect.
pub const FRAME_BYTES_MAX: usize = (1 << 24) - 1;
/// Bytes of the header that `len` counts.
const COUNTED_BYTES: usize = HEADER_BYTES - 4;

/// One frame.
#[derive(Debug, Clone, PartialEq)]
pub struct Frame {
    pub kind: FrameType,
    pub flags: Flags,
    pub codec: WireCodec,
    pub stream: StreamId,
    /// How many descriptors ride with its first byte.
    pub descriptors: u8,
    pub envelope: Carried,
    pub body: Bytes,
}

impl Frame {
    /// A frame without flags, envelope and body.
    #[must_use]
    pub fn new(kind: FrameType, stream: StreamId) -> Self {
        Self {
            kind,
            flags: Flags::NONE,
            codec: WireCodec::None,
            stream,
            descriptors: 0,
            envelope: Carried::default(),
            body: Bytes::new(),
        }
    }

    /// A call whose body is `request` as msgpack.
    ///
    /// # Errors
    /// `Shape` when the request has no msgpack form.
    pub fn call<T: Serialize + ?Sized>(
        stream: StreamId,
        method: &str,
        request: &T,
    ) -> Result<Self, CodecError> {
        let mut frame = Self::new(FrameType::Call, stream).msgpack(request)?;
        frame.envelope.method = Some(method.to_owned());
        Ok(frame)
    }

    /// One item of a stream; with [`Frame::end`] it is the reply.
    ///
    /// # Errors
    /// `Shape` when the value has no msgpack form.
    pub fn data<T: Serialize + ?Sized>(stream: StreamId, value: &T) -> Result<Self, CodecError> {
        Self::new(FrameType::Data, stream).msgpack(value)
    }

    /// An error; it ends its stream, or on stream 0 the connection.
    #[must_use]
    pub fn error(stream: StreamId, error: &Error) -> Self {
        // An error is plain data and always has a msgpack form.
        Self::new(FrameType::Error, stream)
            .with_body(WireCodec::Msgpack, codec::encode(error).unwrap_or_default())
    }

    #[must_use]
    pub fn end(mut self) -> Self {
        self.flags |= Flags::END;
        self
    }

    #[must_use]
    pub fn with_flags(mut self, flags: Flags) -> Self {
        self.flags |= flags;
        self
    }

    #[must_use]
    pub fn with_envelope(mut self, envelope: Envelope) -> Self {
        self.envelope = envelope.into();
        self
    }

    #[must_use]
    pub fn with_descriptors(mut self, descriptors: u8) -> Self {
        self.descriptors = descriptors;
        self
    }

    #[must_use]
    pub fn with_body(mut self, codec: WireCodec, body: impl Into<Bytes>) -> Self {
        self.codec = codec;
        self.body = body.into();
        self
    }

    /// Sets the body to `value` as msgpack.
    ///
    /// # Errors
    /// `Shape` when the value has no msgpack form.
    pub fn msgpack<T: Serialize + ?Sized>(self, value: &T) -> Result<Self, CodecError> {
        Ok(self.with_body(WireCodec::Msgpack, codec::encode(value)?))
    }

    /// Decodes the body, which must be msgpack.
    ///
    /// # Errors
    /// [`CodecError`] when it is not, is out of bounds, or is not a `T`.
    pub fn decode<T: serde::de::DeserializeOwned>(&self) -> Result<T, CodecError> {
        if self.codec != WireCodec::Msgpack {
            let text = format!("the body is {:?} where msgpack is expected", self.codec);
            return Err(CodecError::Shape { text });
        }
        codec::decode(&self.body)
    }

    /// The body of an ERROR frame. What cannot be read as an error is an error too.
    #[must_use]
    pub fn to_error(&self) -> Error {
        self.decode().unwrap_or_else(Error::from)
    }

    #[must_use]
    pub fn is_end(&self) -> bool {
        self.flags.contains(Flags::END) || self.kind == FrameType::Error
    }

    /// Appends header, envelope and body. On an error `out` is as it was.
    ///
    /// # Errors
    /// `Size` or `EnvelopeSize` when it cannot be framed; see [`Frame::fragments`].
    pub fn encode(&self, out: &mut BytesMut) -> Result<(), FrameError> {
        self.encode_head(out)?;
        out.extend_from_slice(&self.body);
        Ok(())
    }

    /// Appends header and envelope only, for a sender that passes the body along without a copy.
    ///
    /// # Errors
    /// As [`Frame::encode`].
    pub fn encode_head(&self, out: &mut BytesMut) -> Result<(), FrameError> {
        let start = out.len();
        out.put_bytes(0, HEADER_BYTES);
        let head = self.envelope.write(out).and_then(|envelope| self.header(envelope));
        match head {
            Ok(header) => out[start..start + HEADER_BYTES].copy_from_slice(&header.to_bytes()),
            Err(why) => {
                out.truncate(start);
                return Err(why);
            }
        }
        Ok(())
    }

    fn header(&self, envelope: usize) -> Result<Header, FrameError> {
        let max = usize::from(Limits::DEFAULT.envelope_bytes);
        let Ok(envelope_bytes) = u16::try_from(envelope) else {
            return Err(FrameError::EnvelopeSize { bytes: envelope, max });
        };
        if envelope > max {
            return Err(FrameError::EnvelopeSize { bytes: envelope, max });
        }
        let bytes = COUNTED_BYTES + envelope + self.body.len();
        let len = u32::try_from(bytes).ok().filter(|_| bytes <= FRAME_BYTES_MAX);
        Ok(Header {
            len: len.ok_or(FrameError::Size { bytes: bytes as u64, max: FRAME_BYTES_MAX })?,
            kind: self.kind,
            flags: self.flags,
            codec: self.codec,
            stream: self.stream,
            envelope_bytes,
            descriptors: self.descriptors,
        })
    }

    /// Cuts the body into frames of at most `fragment_bytes` of it each. A body that fits stays one frame. Flags of
    /// an end, and they alone, move to the last.
    #[must_use]
    pub fn fragments(self, fragment_bytes: usize) -> Fragments {
        Fragments::of(self, fragment_bytes)
    }
}

/// Appends a frame's bytes; see [`Frame::encode`].
///
/// # Errors
/// As [`Frame::encode`].
pub fn encode(frame: &Frame, out: &mut BytesMut) -> Result<(), FrameError> {
    frame.encode(out)
}

/// Bytes that are no frame within the limits. The connection is at its end: answer with an ERROR on stream 0, close.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("frame version {found} is not {VERSION}")]
    Version { found: u8 },
    #[error("the last byte of the header is {found} and not 0")]
    Reserved { found: u8 },
    #[error("a frame of {bytes} bytes is shorter than its own header and envelope of {needed}")]
    Short { bytes: u64, needed: usize },
    #[error("a frame of {bytes} bytes is over the limit of {max}")]
    Size { bytes: u64, max: usize },
    #[error("an envelope of {bytes} bytes is over the limit of {max}")]
    EnvelopeSize { bytes: usize, max: usize },
    #[error("malformed envelope: {0}")]
    Envelope(#[from] CodecError),
    #[error("a {kind:?} frame on stream {stream} cannot be a fragment")]
    NoFragment { kind: FrameType, stream: StreamId },
    #[error("a {kind:?} frame came between the fragments on stream {stream}")]
    Interleaved { kind: FrameType, stream: StreamId },
    #[error("a message of {bytes} bytes in fragments is over the limit of {max}")]
    MessageSize { bytes: usize, max: usize },
    #[error("unfinished messages of {bytes} bytes in sum are over the limit of {max}")]
    AssemblySize { bytes: usize, max: usize },
    #[error("more than {max} messages are unfinished")]
    AssemblyCount { max: usize },
}

impl FrameError {
    /// The stable dotted id that travels as the error's `reason`.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            FrameError::Version { .. } => "frame.version",
            FrameError::Reserved { .. } => "frame.reserved",
            FrameError::Short { .. } => "frame.short",
            FrameError::Size { .. } | FrameError::MessageSize { .. } => "frame.size",
            FrameError::EnvelopeSize { .. } => "frame.envelope_size",
            FrameError::Envelope(_) => "frame.envelope",
            FrameError::NoFragment { .. } | FrameError::Interleaved { .. } => "frame.fragment",
            FrameError::AssemblySize { .. } | FrameError::AssemblyCount { .. } => "frame.assembly",
        }
    }
}

impl From<FrameError> for Error {
    fn from(why: FrameError) -> Self {
        let (code, help) = match why {
            FrameError::Size { .. } | FrameError::MessageSize { .. } => {
                (Code::Invalid, "send large values as staged artifacts")
            }
            FrameError::AssemblySize { .. } | FrameError::AssemblyCount { .. } => {
                (Code::Exhausted, "finish a message before beginning the next")
            }
            _ => (Code::Invalid, "schemas/PROTOCOL.md tells the frame layout"),
        };
        Error::new(code, why.reason(), why.to_string()).help(help)
    }
}
