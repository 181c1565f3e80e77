//! Values as bincode: between two programs in Rust that know one type alike, and nobody else.
//!
//! Fields have places and no names, so both ends must mean the same ones: [`layout`] is the hash of the fields, their names,
//! order and types, and bodies travel like this only where both ends have found the same. Not every type has a layout: what
//! is skipped, flattened or told by a tag inside cannot be read by its place, and a [`probe`] of the type finds that out.
//!
//! Never on disk, and never to another language. The crate is pinned and has no maintainer any more: this module is all that
//! uses it, and `wincode` writes the same bytes.
//!
//! Bytes from outside (P-BND-6): a length is checked against [`BYTES_MAX`] before anything is taken for it, recursive types
//! have no layout, and neither have lists whose elements take no bytes.

mod probe;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::CodecError;

/// Longer values travel as msgpack, whose elements are counted before they are decoded.
pub const BYTES_MAX: usize = 64 * 1024;

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<BYTES_MAX>()
}

/// The hash of where a type has its fields; `None` for one that cannot be read by place.
///
/// ```
/// use eclosion_schemas::codec::positional::layout;
/// assert_eq!(layout::<(u32, String)>(), layout::<(u32, String)>());
/// assert_ne!(layout::<(u32, String)>(), layout::<(String, u32)>());
/// assert_eq!(layout::<serde_json::Value>(), None);
/// ```
#[must_use]
pub fn layout<T: Serialize + DeserializeOwned>() -> Option<u64> {
    probe::layout::<T>()
}

/// # Errors
/// `Shape` for a value that is longer than [`BYTES_MAX`], or has no such form.
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, CodecError> {
    let bytes = bincode::serde::encode_to_vec(value, config()).map_err(shape)?;
    match bytes.len() <= BYTES_MAX {
        true => Ok(bytes),
        false => Err(shape(format!("{} bytes where {BYTES_MAX} are allowed", bytes.len()))),
    }
}

/// Decodes one value that came from outside. Its type must have a [`layout`].
///
/// # Errors
/// `Shape` or `Trailing` for bytes that are not one `T`.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    if bytes.len() > BYTES_MAX {
        return Err(shape(format!("{} bytes where {BYTES_MAX} are allowed", bytes.len())));
    }
    let (value, used) = bincode::serde::decode_from_slice(bytes, config()).map_err(shape)?;
    match bytes.len() - used {
        0 => Ok(value),
        left => Err(CodecError::Trailing { bytes: left }),
    }
}

fn shape(why: impl std::fmt::Display) -> CodecError {
    CodecError::Shape { text: why.to_string() }
}

#[cfg(test)]
mod tests;
