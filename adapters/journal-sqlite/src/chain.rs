//! Checksums: over each event and the one before it, and over each row by itself.

use eclosion_kernel::journal::{Record, Stored};
use eclosion_schemas::{EffectId, Epoch, Seq, Timestamp};

/// The first 16 bytes of a BLAKE3 hash.
pub(crate) type Chain = [u8; 16];

/// Where a chain begins; a journal that was cut at a horizon begins with the chain of the last record it dropped.
pub(crate) fn genesis() -> Chain {
    first_16(&blake3::hash(b"eclosion/journal/v1"))
}

/// What the checksum of an event covers, borrowed from wherever it stands.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Link<'a> {
    pub(crate) seq: Seq,
    pub(crate) epoch: Epoch,
    pub(crate) at: Timestamp,
    pub(crate) kind: &'a str,
    pub(crate) version: u16,
    pub(crate) cause: Option<EffectId>,
    pub(crate) body: &'a [u8],
}

impl<'a> Link<'a> {
    pub(crate) fn of(record: &'a Record) -> Self {
        let Record { seq, epoch, at, version, cause, .. } = *record;
        Self { seq, epoch, at, kind: &record.kind, version, cause, body: &record.body }
    }

    pub(crate) fn to_record(self) -> Record {
        let Link { seq, epoch, at, version, cause, .. } = self;
        Stored { seq, epoch, at, kind: self.kind.into(), version, cause, body: self.body.to_vec().into() }
            .into()
    }

    /// Every field has a length of its own or comes with one, so that no two events give the same bytes.
    pub(crate) fn after(&self, previous: &Chain, scratch: &mut Vec<u8>) -> Chain {
        let cause = self.cause.unwrap_or_default();
        scratch.clear();
        scratch.extend_from_slice(previous);
        scratch.extend_from_slice(&self.seq.0.to_be_bytes());
        scratch.extend_from_slice(&self.epoch.0.to_be_bytes());
        scratch.extend_from_slice(&self.at.0.to_be_bytes());
        scratch.extend_from_slice(&self.version.to_be_bytes());
        scratch.push(u8::from(self.cause.is_some()));
        scratch.extend_from_slice(&cause.seq.0.to_be_bytes());
        scratch.extend_from_slice(&cause.n.to_be_bytes());
        // A kind is a constant of the program and a body at most 64 KiB: neither length can be cut.
        scratch.extend_from_slice(&(self.kind.len() as u32).to_be_bytes());
        scratch.extend_from_slice(&(self.body.len() as u32).to_be_bytes());
        scratch.extend_from_slice(self.kind.as_bytes());
        scratch.extend_from_slice(self.body);
        first_16(&blake3::hash(scratch))
    }
}

/// The checksum of a row: a number, as SQLite stores it.
pub(crate) fn row_sum(table: &str, key: &[u8], value: &[u8]) -> i64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(table.len() as u32).to_be_bytes());
    hasher.update(&(key.len() as u32).to_be_bytes());
    hasher.update(table.as_bytes());
    hasher.update(key);
    hasher.update(value);
    let [a, b, c, d, e, f, g, h, ..] = *hasher.finalize().as_bytes();
    i64::from_be_bytes([a, b, c, d, e, f, g, h])
}

fn first_16(hash: &blake3::Hash) -> Chain {
    let mut chain = Chain::default();
    chain.copy_from_slice(&hash.as_bytes()[..16]);
    chain
}
