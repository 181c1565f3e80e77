//! The port behind which a journal is stored. SQLite and memory implement it; one conformance suite runs over both.
//!
//! Ownership: the store belongs to the writer alone; a [`Syncer`] to the syncer alone; a [`Reader`] may be shared.
//! A store checks on open what it finds (lock, chain of checksums, mark) and refuses rather than guesses.

use std::fmt::Debug;
use std::ops::ControlFlow;
use std::sync::Arc;

use eclosion_schemas::error::Error;
use eclosion_schemas::{Epoch, Seq};

use super::record::Record;
use crate::core::Row;

/// A row of a table that is derived from records, written in the same transaction as its cause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowChange {
    pub table: &'static str,
    pub key: Vec<u8>,
    /// `None` removes it.
    pub value: Option<Vec<u8>>,
}

/// Derives rows from a record. A plain function: it must not depend on anything else.
pub type Projection = fn(&Record, &mut Vec<RowChange>);

/// What a store holds when it has been opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// Raised and synced already.
    pub epoch: Epoch,
    /// The last record there is; everything up to it is synced.
    pub last: Seq,
}

pub trait JournalStore: Send + Debug + 'static {
    /// Appends records, whose seqs continue the last one, and their rows in one transaction. When it returns they are
    /// *written*: they survive the death of this process.
    ///
    /// # Errors
    /// Nothing of the batch is stored then, and the caller must not try again: the journal is poisoned.
    fn append(&mut self, batch: &[Arc<Record>], rows: &[RowChange]) -> Result<(), Error>;

    fn syncer(&self) -> Result<Box<dyn Syncer>, Error>;

    fn reader(&self) -> Arc<dyn Reader>;

    /// Bytes that wait for a checkpoint; above its limit the writer asks for one at a batch edge.
    fn backlog_bytes(&self) -> u64 {
        0
    }

    /// Brings the backlog down. Slow; called by the writer only above the limit.
    ///
    /// # Errors
    /// As [`JournalStore::append`].
    fn relieve(&mut self) -> Result<(), Error> {
        Ok(())
    }
}

pub trait Syncer: Send + Debug + 'static {
    /// Everything written up to `through` reaches the disk, then the mark that says so. When it returns those records
    /// are *synced*: they survive a power cut. A failed sync is never tried again.
    ///
    /// # Errors
    /// What is on the disk is not known any more.
    fn sync(&mut self, through: Seq) -> Result<(), Error>;
}

/// Reads what is written. Safe to call from any thread; each call blocks for its own time only.
pub trait Reader: Send + Sync + Debug + 'static {
    /// Visits the records after `after` whose kind is among `kinds` (all, if empty), in order.
    ///
    /// # Errors
    /// `data_loss` where a stored record is not what was written.
    fn read(
        &self,
        after: Seq,
        kinds: &[&str],
        visit: &mut dyn FnMut(Record) -> ControlFlow<()>,
    ) -> Result<(), Error>;

    /// # Errors
    /// `unavailable` when the store cannot be read.
    fn get(&self, table: &str, key: &[u8]) -> Result<Option<Vec<u8>>, Error>;

    /// # Errors
    /// `unavailable` when the store cannot be read.
    fn scan(&self, table: &str, prefix: &[u8], newest_first: bool, limit: u32) -> Result<Vec<Row>, Error>;
}
