//! Rows that were written, as their records were, and do not stand in their table yet.
//!
//! The rows of a record belong to places all over the table's tree. Put there with each commit they cost it four pages
//! beside the one that its records need, and more where a page has to be split: most of what a small commit costs. So
//! they gather here, in the order of their keys, and the writer carries a hundred or so of them over in one transaction.
//!
//! ```text
//! append ──► records committed ──► rows gathered here ──(a later commit)──► rows in their table, `meta.rows_seq` raised
//! death  ──► what was gathered is gone ──► open derives it again from the records behind `meta.rows_seq`
//! ```
//!
//! Invariants: (1) The table has all rows of the records up to `meta.rows_seq`; both change in one transaction.
//! (2) Table and gathered rows together are the rows of all records whose `append` has returned: see
//! [`crate::reader`] for how they are read as one. (3) Only the writer changes what is gathered. (4) A journal that was
//! opened without projections could not derive anything again; it gathers nothing.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use eclosion_kernel::journal::{Projection, RowChange};
use eclosion_schemas::Seq;
use rusqlite::Connection;

use crate::error::Failure;
use crate::{Position, database, salvage, scan, writer};

/// Rows, and bytes of them, above which the next commit carries them over: half a millisecond. Twice as many would save a
/// twentieth.
const ROWS_MAX: usize = 128;
const BYTES_MAX: usize = 256 * 1024;
/// Records without rows are no work, but an open should not have to look through all of them.
const RECORDS_MAX: usize = 4096;

/// Table, key and value; no value removes the row.
pub(crate) type Change<'a> = (&'a str, &'a [u8], Option<&'a [u8]>);

pub(crate) fn change(row: &RowChange) -> Change<'_> {
    (row.table, &row.key, row.value.as_deref())
}

#[derive(Debug)]
pub(crate) struct Pending {
    gathers: bool,
    gathered: RwLock<Gathered>,
}

/// The last change of each row.
#[derive(Debug, Default)]
pub(crate) struct Gathered {
    tables: BTreeMap<&'static str, BTreeMap<Vec<u8>, Option<Vec<u8>>>>,
    rows: usize,
    bytes: usize,
    records: usize,
}

impl Pending {
    /// For a journal that ends with `last`; what was gathered in the last life is derived again.
    pub(crate) fn begin(
        connection: &Connection,
        last: Position,
        projections: &[Projection],
    ) -> Result<Self, Failure> {
        let gathers = !projections.is_empty();
        match database::rows_seq(connection)? {
            Some(carried) if gathers => derive(connection, carried, last, projections)?,
            None if gathers => database::let_rows_follow(connection, last.seq)?,
            Some(carried) if carried == last.seq => database::keep_rows_complete(connection)?,
            // Complete already; or rows are missing, and whoever opens it with projections will derive them.
            None | Some(_) => {}
        }
        Ok(Self { gathers, gathered: RwLock::default() })
    }

    pub(crate) fn gathers(&self) -> bool {
        self.gathers
    }

    /// Nothing is carried over while this is held; so hold it shortly.
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Gathered> {
        self.gathered.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The rows of `records` more, which are committed. `carried`: with them, everything gathered before was.
    pub(crate) fn gather(&self, records: usize, rows: &[RowChange], carried: bool) {
        let mut gathered = self.gathered.write().unwrap_or_else(PoisonError::into_inner);
        if carried {
            *gathered = Gathered::default();
        }
        gathered.add(records, rows);
    }
}

impl Gathered {
    pub(crate) fn is_due(&self) -> bool {
        self.rows >= ROWS_MAX || self.bytes >= BYTES_MAX || self.records >= RECORDS_MAX
    }

    pub(crate) fn changes(&self) -> impl Iterator<Item = Change<'_>> {
        self.tables.iter().flat_map(|(table, rows)| {
            rows.iter().map(|(key, value)| (*table, key.as_slice(), value.as_deref()))
        })
    }

    /// `None` if the row has not changed; `Some(None)` if it was removed.
    pub(crate) fn get(&self, table: &str, key: &[u8]) -> Option<&Option<Vec<u8>>> {
        self.tables.get(table)?.get(key)
    }

    pub(crate) fn below(&self, table: &str, prefix: &[u8]) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
        let from = (Bound::Included(prefix), Bound::Unbounded);
        let found = self.tables.get(table).into_iter().flat_map(|rows| rows.range::<[u8], _>(from));
        let found = found.take_while(|(key, _)| key.starts_with(prefix));
        found.map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    fn add(&mut self, records: usize, rows: &[RowChange]) {
        for row in rows {
            self.bytes += row.key.len() + row.value.as_ref().map_or(0, Vec::len);
            self.tables.entry(row.table).or_default().insert(row.key.clone(), row.value.clone());
        }
        self.rows += rows.len();
        self.records += records;
    }
}

/// Puts the rows of the records after `carried` into their table.
fn derive(
    connection: &Connection,
    carried: Seq,
    last: Position,
    projections: &[Projection],
) -> Result<(), Failure> {
    let from = scan::position(connection, carried)?;
    let mut from = from.map_or_else(|| database::base(connection), Ok)?;
    while from.seq < last.seq {
        let (batch, to) = salvage::page(connection, from, last.seq)?;
        let mut rows = Vec::new();
        for record in &batch {
            projections.iter().for_each(|project| project(record, &mut rows));
        }
        writer::transact(connection, from, &[], rows.iter().map(change), Some(to.seq))?;
        from = to;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
