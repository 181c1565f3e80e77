//! Everybody's half: a few connections that can only read.
//!
//! A read goes page by page and holds a connection only while it fetches one, never while the caller looks at it: an
//! open read would keep the WAL from beginning anew, and a slow visitor would keep others waiting. What is written is
//! seen at once; records are proven against the chain as they are read, rows against their own checksum.
//!
//! Rows are read from two places, their table and what is still gathered for it ([`crate::pending`]). While a scan takes
//! its first step nothing can be carried over; from then on it sees the table as it was, whatever happens to it.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use eclosion_kernel::core::Row;
use eclosion_kernel::journal::{Reader, Record};
use eclosion_schemas::Seq;
use eclosion_schemas::error::{Code, Error};
use rusqlite::{Connection, OptionalExtension, params};

use crate::chain::row_sum;
use crate::database::open_reader;
use crate::error::{Failure, database};
use crate::{Position, Shared, scan};

const CONNECTIONS_MAX: usize = 4;
const WAIT_MAX: Duration = Duration::from_secs(5);
/// Records and bytes of bodies in one page.
const PAGE_RECORDS: usize = 1024;
const PAGE_BYTES: usize = 1024 * 1024;

#[derive(Debug)]
pub(crate) struct ReaderPool {
    shared: Arc<Shared>,
    pool: Mutex<Pool>,
    returned: Condvar,
}

#[derive(Debug, Default)]
struct Pool {
    idle: Vec<Connection>,
    open: usize,
}

impl ReaderPool {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, pool: Mutex::default(), returned: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, read: impl FnOnce(&Connection) -> Result<T, Failure>) -> Result<T, Failure> {
        let connection = self.take()?;
        let mut borrowed = Borrowed { connection: None, pool: self };
        // Whatever becomes of the read, the connection goes back.
        read(borrowed.connection.insert(connection))
    }

    fn take(&self) -> Result<Connection, Failure> {
        let deadline = Instant::now() + WAIT_MAX;
        let mut pool = self.lock();
        loop {
            if let Some(connection) = pool.idle.pop() {
                return Ok(connection);
            }
            if pool.open < CONNECTIONS_MAX {
                pool.open += 1;
                drop(pool);
                return open_reader(&self.shared.places.database).inspect_err(|_| self.give(None));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Failure::ReadersBusy { waited_ms: WAIT_MAX.as_millis() as u64 });
            }
            (pool, _) = self.returned.wait_timeout(pool, left).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn give(&self, connection: Option<Connection>) {
        let mut pool = self.lock();
        match connection {
            Some(connection) => pool.idle.push(connection),
            None => pool.open -= 1,
        }
        drop(pool);
        self.returned.notify_one();
    }

    /// The next records of `kinds` after `from`, and where the page ends.
    fn page(&self, from: Position, kinds: &[&str]) -> Result<(Vec<Record>, Position, bool), Failure> {
        let mut records = Vec::new();
        let (mut seen, mut bytes) = (0, 0);
        let last = self.with(|connection| {
            scan::walk(connection, from, |link, _| {
                if kinds.is_empty() || kinds.contains(&link.kind) {
                    records.push(link.to_record());
                }
                seen += 1;
                bytes += link.body.len();
                if seen >= PAGE_RECORDS || bytes >= PAGE_BYTES {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            })
        })?;
        Ok((records, last, seen >= PAGE_RECORDS || bytes >= PAGE_BYTES))
    }
}

/// Goes back into the pool, also when the read panics.
struct Borrowed<'a> {
    connection: Option<Connection>,
    pool: &'a ReaderPool,
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        self.pool.give(self.connection.take());
    }
}

impl Reader for ReaderPool {
    fn read(
        &self,
        after: Seq,
        kinds: &[&str],
        visit: &mut dyn FnMut(Record) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let Some(mut from) = self.with(|connection| scan::position(connection, after))? else {
            return Ok(());
        };
        loop {
            let (records, last, more) = self.page(from, kinds)?;
            for record in records {
                if record.seq > after && visit(record).is_break() {
                    return Ok(());
                }
            }
            if !more {
                return Ok(());
            }
            from = last;
        }
    }

    fn get(&self, table: &str, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        if let Some(changed) = self.shared.pending.read().get(table, key) {
            return Ok(changed.clone());
        }
        let sql = "SELECT value, sum FROM rows WHERE tbl = ?1 AND key = ?2";
        let found = self.with(|connection| {
            let mut statement = connection.prepare_cached(sql).map_err(database("reading"))?;
            let row = statement.query_row(params![table, key], |row| Ok((row.get(0)?, row.get(1)?)));
            row.optional().map_err(database("reading"))
        })?;
        let Some((value, sum)): Option<(Vec<u8>, i64)> = found else { return Ok(None) };
        check(table, key, &value, sum)?;
        Ok(Some(value))
    }

    fn scan(&self, table: &str, prefix: &[u8], newest_first: bool, limit: u32) -> Result<Vec<Row>, Error> {
        let end = end_of(prefix);
        let below = if end.is_some() { "AND key < ?3" } else { "AND ?3 IS NULL" };
        let order = if newest_first { "DESC" } else { "ASC" };
        let sql = format!(
            "SELECT key, value, sum FROM rows WHERE tbl = ?1 AND key >= ?2 {below} ORDER BY key {order} LIMIT ?4"
        );
        let (found, changed) = self.with(|connection| {
            let read = || {
                let mut statement = connection.prepare_cached(&sql)?;
                let pending = self.shared.pending.read();
                let changed = pending.below(table, prefix);
                // Each change may remove one of those that are found.
                let limit = i64::from(limit) + changed.len() as i64;
                let mut rows = statement.query(params![table, prefix, end, limit])?;
                let mut next = summed_row(rows.next()?)?;
                drop(pending);
                let mut found: Vec<(Row, i64)> = Vec::new();
                while let Some(row) = next {
                    found.push(row);
                    next = summed_row(rows.next()?)?;
                }
                Ok((found, changed))
            };
            read().map_err(database("reading"))
        })?;
        let found = found
            .into_iter()
            .map(|((key, value), sum)| check(table, &key, &value, sum).map(|()| (key, value)))
            .collect::<Result<Vec<Row>, Error>>()?;
        Ok(if changed.is_empty() { found } else { merge(found, changed, newest_first, limit as usize) })
    }
}

fn summed_row(row: Option<&rusqlite::Row<'_>>) -> rusqlite::Result<Option<(Row, i64)>> {
    row.map(|row| Ok(((row.get(0)?, row.get(1)?), row.get(2)?))).transpose()
}

fn merge(
    found: Vec<Row>,
    changed: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    newest_first: bool,
    limit: usize,
) -> Vec<Row> {
    let mut rows: BTreeMap<_, _> = found.into_iter().collect();
    for (key, value) in changed {
        match value {
            Some(value) => drop(rows.insert(key, value)),
            None => drop(rows.remove(&key)),
        }
    }
    if newest_first {
        rows.into_iter().rev().take(limit).collect()
    } else {
        rows.into_iter().take(limit).collect()
    }
}

fn check(table: &str, key: &[u8], value: &[u8], sum: i64) -> Result<(), Error> {
    if row_sum(table, key, value) == sum {
        return Ok(());
    }
    let message = format!("a row of `{table}` is not what was written");
    Err(Error::new(Code::DataLoss, "journal.row", message).help(
        "rows are derived from the journal: stop the kernel, and start it with eclosion up --accept-loss",
    ))
}

/// The first key behind all that start with `prefix`; `None` if there is none.
fn end_of(prefix: &[u8]) -> Option<Vec<u8>> {
    let keep = prefix.iter().rposition(|byte| *byte != u8::MAX)?;
    let mut end = prefix[..=keep].to_vec();
    end[keep] += 1;
    Some(end)
}
