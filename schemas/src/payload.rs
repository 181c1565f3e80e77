//! Values between steps.
//!
//! A payload is a msgpack body with, beside it, the parts that were too large to ride along: arrays, tables, files.
//! In the body a part is the msgpack extension type 1 whose data is the part's index as a big-endian u32. Inline is
//! at most [`INLINE_BYTES_MAX`] in sum per step; a larger body becomes part 0 itself.

use std::sync::Arc;

use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::Digest;

/// What rides inside the committing record; a file per result would cost more than the record.
pub const INLINE_BYTES_MAX: usize = 32 * 1024;
/// The msgpack extension type that stands in a body for one of its parts.
pub const PART_EXTENSION: i8 = 1;

/// A value as it travels.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Payload {
    /// msgpack.
    #[serde(default, with = "serde_bytes_bytes")]
    #[schemars(schema_with = "binary")]
    pub body: Bytes,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<Part>,
}

impl Payload {
    /// Encodes a plain value as an inline payload.
    #[must_use]
    pub fn of<T: Serialize>(value: &T) -> Self {
        Self { body: rmp_serde::to_vec_named(value).unwrap_or_default().into(), parts: Vec::new() }
    }

    /// The body and all parts together.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.parts.iter().fold(self.body.len() as u64, |sum, part| sum.saturating_add(part.bytes))
    }
}

/// A large piece of a value: a file in the artifact store, or bytes that ride along where nothing is stored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Part {
    /// The content's name; empty while a worker names it by `stage` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// The token of `artifact.stage`, until the kernel has hashed the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<u64>,
    /// The bytes themselves: in items and calls, which nobody journals.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "serde_bytes_option")]
    #[schemars(schema_with = "binary_or_none")]
    pub data: Option<Bytes>,
    /// Where the bytes lie in shared memory, in calls and their items: an argument's as long as the call is under way, a
    /// result's until whoever has it gives it back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segment: Option<Segment>,
    /// What keeps the segment, in this process; it never crosses a socket.
    #[serde(skip)]
    pub hold: Hold,
    pub bytes: u64,
    /// `npy`, `arrow`, `msgpack`, `bytes` or `file`.
    pub codec: String,
    /// The file name that a `file` part had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// A hold on shared memory, as long as this or a clone of it lives. It is no part of the value: any two are equal.
#[derive(Clone, Default)]
pub struct Hold(Option<Arc<dyn Held>>);

/// What a [`Hold`] holds.
pub trait Held: Send + Sync {
    /// A private copy of the bytes; nothing if they cannot be had any more.
    fn copy(&self) -> Option<Bytes>;
}

impl Hold {
    #[must_use]
    pub fn new(held: Arc<dyn Held>) -> Self {
        Self(Some(held))
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// A private copy of the bytes that are held.
    #[must_use]
    pub fn copy(&self) -> Option<Bytes> {
        self.0.as_ref()?.copy()
    }
}

impl PartialEq for Hold {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Hold {}

impl std::fmt::Debug for Hold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.is_empty() { "nothing" } else { "held" })
    }
}

impl Part {
    /// The bytes, where this process has them: those that ride along, or a copy of those in shared memory.
    #[must_use]
    pub fn contents(&self) -> Option<Bytes> {
        self.data.clone().or_else(|| self.hold.copy())
    }
}

/// A value in shared memory. It says where, and nothing of what lies there: that is copied before it is trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Segment {
    pub arena: u64,
    pub offset: u64,
    pub length: u64,
    /// Rises with each use of the arena: a segment that was given back is known by it.
    pub generation: u64,
}

/// The JSON Schema of bytes: a msgpack bin, and in JSON what [`crate::codec::json`] says.
pub(crate) fn binary(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "string", "format": "binary"})
}

/// The same where there may be none.
mod serde_bytes_option {
    use bytes::Bytes;
    use serde::{Deserializer, Serializer};

    #[expect(clippy::ref_option, reason = "what serde calls it with")]
    pub(super) fn serialize<S: Serializer>(bytes: &Option<Bytes>, serializer: S) -> Result<S::Ok, S::Error> {
        serde_bytes::serialize(&bytes.as_deref(), serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Bytes>, D::Error> {
        let buffer: Option<serde_bytes::ByteBuf> = serde_bytes::deserialize(deserializer)?;
        Ok(buffer.map(|buffer| Bytes::from(buffer.into_vec())))
    }
}

fn binary_or_none(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": ["string", "null"], "format": "binary", "default": null})
}

/// `bytes::Bytes` as a msgpack bin, never as an array of integers.
mod serde_bytes_bytes {
    use bytes::Bytes;
    use serde::{Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
        serde_bytes::serialize(bytes.as_ref(), serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        let buffer: serde_bytes::ByteBuf = serde_bytes::deserialize(deserializer)?;
        Ok(Bytes::from(buffer.into_vec()))
    }
}
