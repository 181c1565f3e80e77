//! The 16 bytes in front of every frame.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::envelope::Limits;
use super::{COUNTED_BYTES, FRAME_BYTES_MAX, FrameError, HEADER_BYTES, VERSION};

/// A checked header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Bytes after the first four.
    pub len: u32,
    pub kind: FrameType,
    pub flags: Flags,
    pub codec: WireCodec,
    pub stream: StreamId,
    pub envelope_bytes: u16,
    pub descriptors: u8,
}

impl Header {
    /// Reads a header and checks every length in it against the limits.
    ///
    /// # Errors
    /// [`FrameError`]; nothing after this header can be read then.
    pub fn parse(bytes: &[u8; HEADER_BYTES], limits: &Limits) -> Result<Self, FrameError> {
        let &[l0, l1, l2, l3, version, kind, flags, codec, s0, s1, s2, s3, h0, h1, descriptors, reserved] =
            bytes;
        let header = Self {
            len: u32::from_be_bytes([l0, l1, l2, l3]),
            kind: FrameType::from(kind),
            flags: Flags(flags),
            codec: WireCodec::from(codec),
            stream: StreamId(u32::from_be_bytes([s0, s1, s2, s3])),
            envelope_bytes: u16::from_be_bytes([h0, h1]),
            descriptors,
        };
        if version != VERSION {
            return Err(FrameError::Version { found: version });
        }
        if reserved != 0 {
            return Err(FrameError::Reserved { found: reserved });
        }
        header.check(limits)?;
        Ok(header)
    }

    fn check(&self, limits: &Limits) -> Result<(), FrameError> {
        let len = u64::from(self.len);
        let max = (limits.frame_bytes as usize).min(FRAME_BYTES_MAX);
        if len > max as u64 {
            return Err(FrameError::Size { bytes: len, max });
        }
        if self.envelope_bytes > limits.envelope_bytes {
            let (bytes, max) = (usize::from(self.envelope_bytes), usize::from(limits.envelope_bytes));
            return Err(FrameError::EnvelopeSize { bytes, max });
        }
        let needed = COUNTED_BYTES + usize::from(self.envelope_bytes);
        if len < needed as u64 {
            return Err(FrameError::Short { bytes: len, needed });
        }
        Ok(())
    }

    #[must_use]
    pub fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let [l0, l1, l2, l3] = self.len.to_be_bytes();
        let [s0, s1, s2, s3] = self.stream.0.to_be_bytes();
        let [h0, h1] = self.envelope_bytes.to_be_bytes();
        let (kind, codec) = (u8::from(self.kind), u8::from(self.codec));
        [l0, l1, l2, l3, VERSION, kind, self.flags.0, codec, s0, s1, s2, s3, h0, h1, self.descriptors, 0]
    }

    /// The whole frame in bytes, this header included.
    #[must_use]
    pub fn frame_bytes(&self) -> usize {
        4 + self.len as usize
    }
}

macro_rules! byte_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$item_doc:meta])* $item:ident = $number:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$item_doc])* $item,)+
            /// One that this release does not know.
            Other(u8),
        }

        impl From<u8> for $name {
            fn from(byte: u8) -> Self {
                match byte {
                    $($number => $name::$item,)+
                    other => $name::Other(other),
                }
            }
        }

        impl From<$name> for u8 {
            fn from(value: $name) -> u8 {
                match value {
                    $($name::$item => $number,)+
                    $name::Other(other) => other,
                }
            }
        }
    };
}

byte_enum!(
    /// What a frame is. One of an unknown type is answered with ERROR `unimplemented` on its stream, or skipped if it
    /// has [`Flags::IGNORE`]; the connection stays.
    FrameType {
        Hello = 1,
        Welcome = 2,
        Call = 3,
        Data = 4,
        Error = 5,
        Cancel = 6,
        Credit = 7,
        Pub = 8,
        Ping = 9,
        Pong = 10,
        Goaway = 11,
    }
);

byte_enum!(
    /// How a body is written.
    WireCodec {
        None = 0,
        Json = 1,
        Msgpack = 2,
        Bytes = 3,
        ArrowIpc = 4,
        Shm = 5,
        Utf8 = 6,
        Bincode = 7,
    }
);

/// Bits that this release does not know are kept and mean nothing.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Flags(pub u8);

impl Flags {
    pub const NONE: Self = Self(0);
    /// The last frame of its stream in this direction; DATA|END is the reply.
    pub const END: Self = Self(1);
    /// The body goes on in the next DATA frame of this stream.
    pub const MORE: Self = Self(2);
    /// Skip it if its type is unknown.
    pub const IGNORE: Self = Self(4);
    /// It goes before other streams' data.
    pub const URGENT: Self = Self(8);

    #[must_use]
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl std::ops::BitOr for Flags {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl std::ops::BitOrAssign for Flags {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

impl fmt::Debug for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names =
            [(Self::END, "END"), (Self::MORE, "MORE"), (Self::IGNORE, "IGNORE"), (Self::URGENT, "URGENT")];
        let set = names.iter().filter(|(flag, _)| self.contains(*flag)).map(|(_, name)| *name);
        let rest = self.0 & 0xf0;
        let rest = (rest != 0).then(|| format!("{rest:#x}"));
        let shown: Vec<String> = set.map(str::to_owned).chain(rest).collect();
        write!(f, "[{}]", shown.join("|"))
    }
}

/// One exchange inside a connection; a number is never used twice on a connection.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    schemars::JsonSchema,
)]
#[serde(transparent)]
pub struct StreamId(pub u32);

impl StreamId {
    /// The connection itself: HELLO, WELCOME, PING, PONG, GOAWAY, and an ERROR that ends it.
    pub const CONNECTION: Self = Self(0);

    /// Odd streams are opened by the client (or the worker), even ones by the kernel.
    #[must_use]
    pub fn opened_by_client(self) -> bool {
        self.0 % 2 == 1
    }

    #[must_use]
    pub fn opened_by_kernel(self) -> bool {
        self.0 != 0 && self.0.is_multiple_of(2)
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
