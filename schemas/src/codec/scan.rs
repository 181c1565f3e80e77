//! The scan over msgpack bytes, before any decoder: a loop with a stack of fixed size.

use std::ops::Range;

use super::{Bounds, CodecError};

/// The scan's own stack; [`Bounds::nesting`] beyond it is cut to it.
const NESTING_MAX: usize = 64;

/// Checks that the bytes are exactly one msgpack value within [`Bounds::DEFAULT`].
///
/// # Errors
/// [`CodecError`], never `Shape`.
pub fn scan(bytes: &[u8]) -> Result<(), CodecError> {
    scan_with(bytes, Bounds::DEFAULT)
}

/// Checks that the bytes are exactly one msgpack value within bounds. Allocates nothing.
///
/// # Errors
/// [`CodecError`], never `Shape`.
pub fn scan_with(bytes: &[u8], bounds: Bounds) -> Result<(), CodecError> {
    let nesting = bounds.nesting.min(NESTING_MAX);
    // How many values each open array or map still waits for, innermost last.
    let mut open = [0_usize; NESTING_MAX];
    let mut depth = 0;
    let mut elements = 0;
    let mut cursor = Cursor { bytes, at: 0 };
    loop {
        elements += 1;
        if elements > bounds.elements {
            return Err(CodecError::Elements { max: bounds.elements });
        }
        let children = cursor.value()?;
        if let Some(children) = children {
            if depth == nesting {
                return Err(CodecError::Nesting { max: nesting });
            }
            open[depth] = children;
            depth += 1;
        }
        while depth > 0 && open[depth - 1] == 0 {
            depth -= 1;
        }
        if depth == 0 {
            break;
        }
        open[depth - 1] -= 1;
    }
    match bytes.len() - cursor.at {
        0 => Ok(()),
        bytes => Err(CodecError::Trailing { bytes }),
    }
}

/// Where the values of an array lie in `bytes`; `None` if the value is not an array. The bytes must have passed
/// [`scan`].
///
/// # Errors
/// [`CodecError`] where the bytes end too early.
pub fn elements(bytes: &[u8]) -> Result<Option<Vec<Range<usize>>>, CodecError> {
    let is_array = matches!(bytes.first(), Some(0x90..=0x9f | 0xdc | 0xdd));
    let mut cursor = Cursor { bytes, at: 0 };
    let Some(count) = cursor.value()?.filter(|_| is_array) else { return Ok(None) };
    (0..count).map(|_| cursor.whole()).collect::<Result<_, _>>().map(Some)
}

/// Where a key lies, and its value.
pub type Entry = (Range<usize>, Range<usize>);

/// Where the keys and values of a map lie in `bytes`; `None` if the value is not a map. The bytes must have passed
/// [`scan`].
///
/// # Errors
/// [`CodecError`] where the bytes end too early.
pub fn entries(bytes: &[u8]) -> Result<Option<Vec<Entry>>, CodecError> {
    let is_map = matches!(bytes.first(), Some(0x80..=0x8f | 0xde | 0xdf));
    let mut cursor = Cursor { bytes, at: 0 };
    let Some(count) = cursor.value()?.filter(|_| is_map) else { return Ok(None) };
    let entry = |_| Ok((cursor.whole()?, cursor.whole()?));
    (0..count / 2).map(entry).collect::<Result<_, _>>().map(Some)
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    /// Passes over a scalar, or over the head of an array or map, whose number of values it returns.
    fn value(&mut self) -> Result<Option<usize>, CodecError> {
        let start = self.at;
        let marker = self.uint(1)?;
        match marker {
            0x00..=0x7f | 0xe0..=0xff | 0xc0 | 0xc2 | 0xc3 => Ok(None),
            0x80..=0x8f => self.open(start, (marker & 0x0f) * 2),
            0x90..=0x9f => self.open(start, marker & 0x0f),
            0xa0..=0xbf => self.skip(start, marker & 0x1f),
            0xc4 | 0xd9 => self.sized(start, 1, 0),
            0xc5 | 0xda => self.sized(start, 2, 0),
            0xc6 | 0xdb => self.sized(start, 4, 0),
            0xc7 => self.sized(start, 1, 1),
            0xc8 => self.sized(start, 2, 1),
            0xc9 => self.sized(start, 4, 1),
            0xcc | 0xd0 => self.skip(start, 1),
            0xcd | 0xd1 => self.skip(start, 2),
            0xca | 0xce | 0xd2 => self.skip(start, 4),
            0xcb | 0xcf | 0xd3 => self.skip(start, 8),
            // A fixed extension: one byte of type before its data.
            0xd4..=0xd8 => self.skip(start, 1 + (1 << (marker - 0xd4))),
            0xdc => self.counted(start, 2, 1),
            0xdd => self.counted(start, 4, 1),
            0xde => self.counted(start, 2, 2),
            0xdf => self.counted(start, 4, 2),
            _ => Err(CodecError::Marker { at: start }),
        }
    }

    /// Passes over one value with all that is in it.
    fn whole(&mut self) -> Result<Range<usize>, CodecError> {
        let start = self.at;
        let mut missing = 1;
        while missing > 0 {
            missing += self.value()?.unwrap_or(0);
            missing -= 1;
        }
        Ok(start..self.at)
    }

    /// A big-endian number of `width` bytes.
    fn uint(&mut self, width: usize) -> Result<u64, CodecError> {
        let field = self.bytes.get(self.at..self.at + width).ok_or(CodecError::Truncated { at: self.at })?;
        self.at += width;
        Ok(field.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    /// A length of `width` bytes, then that many bytes and `extra`.
    fn sized(&mut self, start: usize, width: usize, extra: u64) -> Result<Option<usize>, CodecError> {
        let length = self.uint(width)?;
        self.skip(start, length + extra)
    }

    /// A count of `width` bytes, of entries of `values` values each.
    fn counted(&mut self, start: usize, width: usize, values: u64) -> Result<Option<usize>, CodecError> {
        let count = self.uint(width)?;
        self.open(start, count * values)
    }

    fn skip(&mut self, start: usize, claimed: u64) -> Result<Option<usize>, CodecError> {
        self.at += self.within(start, claimed)?;
        Ok(None)
    }

    /// The shortest value is one byte, so there are never more values than bytes left.
    fn open(&mut self, start: usize, claimed: u64) -> Result<Option<usize>, CodecError> {
        self.within(start, claimed).map(Some)
    }

    fn within(&self, start: usize, claimed: u64) -> Result<usize, CodecError> {
        let left = self.bytes.len() - self.at;
        match usize::try_from(claimed) {
            Ok(length) if length <= left => Ok(length),
            _ => Err(CodecError::Length { at: start, claimed, left }),
        }
    }
}
