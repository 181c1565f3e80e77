//! Values as bytes: msgpack with named fields, and JSON for the line dialect.
//!
//! Every byte that comes from outside passes [`scan`] before a decoder sees it. The scan is a loop, not a recursion:
//! a message of 768 nested arrays is 769 bytes long and overflows a 2 MiB stack in a debug build of a recursive
//! decoder, and an overflow aborts the whole process, which no supervisor can catch.
//!
//! Invariants (P-BND-5, P-BND-6):
//! 1. No recursion deeper than [`Bounds::nesting`] on any input, in any build.
//! 2. No allocation that is proportional to a length that was only claimed: a count never exceeds the bytes left.
//! 3. One message is exactly one value; what trails it is refused.
//!
//! [`scan`] knows nothing of types; [`decode`] is scan plus serde; [`json`] holds the JSON counterpart and the
//! translation between the two; [`positional`] is bincode, for equal types in Rust.

pub mod json;
pub mod positional;
mod scan;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use scan::{Entry, elements, entries, scan, scan_with};

use crate::error::{Code, Error};

/// What a message may cost before it is decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Arrays and maps inside each other; a scalar has nesting 0.
    pub nesting: usize,
    /// Values in sum, keys included. In memory a value costs up to a hundred times its shortest encoding.
    pub elements: usize,
}

impl Bounds {
    pub const DEFAULT: Self = Self { nesting: 32, elements: 1 << 20 };
}

impl Default for Bounds {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// Bytes that are not one well-formed value within its bounds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    #[error("the value ends before its last byte, at byte {at}")]
    Truncated { at: usize },
    #[error("{bytes} bytes follow the value")]
    Trailing { bytes: usize },
    #[error("values are nested deeper than {max}")]
    Nesting { max: usize },
    #[error("a length at byte {at} claims {claimed} where {left} bytes are left")]
    Length { at: usize, claimed: u64, left: usize },
    #[error("more than {max} values in one message")]
    Elements { max: usize },
    #[error("byte {at} starts no value")]
    Marker { at: usize },
    #[error("{text}")]
    Shape { text: String },
}

impl CodecError {
    /// The stable dotted id that travels as the error's `reason`.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            CodecError::Truncated { .. } => "codec.truncated",
            CodecError::Trailing { .. } => "codec.trailing",
            CodecError::Nesting { .. } => "codec.nesting",
            CodecError::Length { .. } => "codec.length",
            CodecError::Elements { .. } => "codec.elements",
            CodecError::Marker { .. } => "codec.marker",
            CodecError::Shape { .. } => "codec.shape",
        }
    }
}

impl From<CodecError> for Error {
    fn from(why: CodecError) -> Self {
        Error::new(Code::Invalid, why.reason(), why.to_string())
    }
}

/// Decodes one msgpack value that came from outside.
///
/// ```
/// let bytes = eclosion_schemas::codec::encode(&vec![1u8, 2, 3])?;
/// assert_eq!(eclosion_schemas::codec::decode::<Vec<u8>>(&bytes)?, [1, 2, 3]);
/// # Ok::<(), eclosion_schemas::codec::CodecError>(())
/// ```
///
/// # Errors
/// [`CodecError`] when the bytes are out of bounds, or are not a `T`.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    scan(bytes)?;
    rmp_serde::from_slice(bytes).map_err(|why| CodecError::Shape { text: why.to_string() })
}

/// Encodes a value as msgpack with named fields.
///
/// # Errors
/// [`CodecError::Shape`] when the value has no msgpack form, which our own types always have.
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, CodecError> {
    rmp_serde::to_vec_named(value).map_err(|why| CodecError::Shape { text: why.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nested(depth: usize) -> Vec<u8> {
        let mut bytes = vec![0x91; depth];
        bytes.push(0xc0);
        bytes
    }

    #[test]
    fn nesting_is_allowed_up_to_its_bound_and_not_beyond() {
        for depth in [0, 31, 32] {
            assert_eq!(scan(&nested(depth)), Ok(()), "{depth}");
        }
        for depth in [33, 768, 100_000] {
            assert_eq!(scan(&nested(depth)), Err(CodecError::Nesting { max: 32 }), "{depth}");
            assert!(decode::<serde_json::Value>(&nested(depth)).is_err(), "{depth}");
        }
    }

    #[test]
    fn a_claimed_length_never_exceeds_the_bytes_left() {
        let array = [0xdd, 0xff, 0xff, 0xff, 0xff];
        assert_eq!(scan(&array), Err(CodecError::Length { at: 0, claimed: u64::from(u32::MAX), left: 0 }));
        let map = [0xdf, 0xff, 0xff, 0xff, 0xff, 0xc0];
        assert!(matches!(scan(&map), Err(CodecError::Length { .. })));
        for marker in [0xc6, 0xc9, 0xdb] {
            assert!(matches!(scan(&[marker, 0xff, 0xff, 0xff, 0xff, 1]), Err(CodecError::Length { .. })));
        }
    }

    #[test]
    fn a_message_is_exactly_one_value() {
        assert_eq!(scan(&[]), Err(CodecError::Truncated { at: 0 }));
        assert_eq!(scan(&[0x92, 0xc0]), Err(CodecError::Length { at: 0, claimed: 2, left: 1 }));
        assert_eq!(scan(&[0xc0, 0xc0]), Err(CodecError::Trailing { bytes: 1 }));
        assert_eq!(scan(&[0xc1]), Err(CodecError::Marker { at: 0 }));
    }

    #[test]
    fn many_small_values_are_refused_before_they_grow_in_memory() {
        let count = u32::try_from(Bounds::DEFAULT.elements).unwrap();
        let mut bytes = vec![0xdd];
        bytes.extend(count.to_be_bytes());
        bytes.resize(5 + count as usize, 0xa0);
        assert_eq!(scan(&bytes), Err(CodecError::Elements { max: Bounds::DEFAULT.elements }));
    }

    #[test]
    fn every_kind_of_value_is_passed_over_by_its_own_length() {
        let value = serde_json::json!({
            "small": 1, "negative": -200, "wide": u64::MAX, "float": 0.5, "none": null, "yes": true,
            "text": "x".repeat(300), "long": "y".repeat(70_000), "list": vec![0; 20], "map": {"a": {"b": []}},
        });
        assert_eq!(scan(&encode(&value).unwrap()), Ok(()));
        // fixext 1, 2, 4, 8, 16 and ext 8, 16, 32
        for bytes in [
            vec![0xd4, 1, 0],
            vec![0xd5, 1, 0, 0],
            vec![0xd6, 1, 0, 0, 0, 0],
            [vec![0xd7, 1], vec![0; 8]].concat(),
            [vec![0xd8, 1], vec![0; 16]].concat(),
            vec![0xc7, 1, 1, 0],
            vec![0xc8, 0, 1, 1, 0],
            vec![0xc9, 0, 0, 0, 1, 1, 0],
        ] {
            assert_eq!(scan(&bytes), Ok(()), "{bytes:?}");
            assert!(scan(&bytes[..bytes.len() - 1]).is_err(), "{bytes:?}");
        }
    }
}
