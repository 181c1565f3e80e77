//! The writer's half: one connection, one transaction a batch.

use std::cell::Cell;
use std::fmt;
use std::sync::Arc;

use eclosion_kernel::journal::{JournalStore, Reader, Record, RowChange, Syncer};
use eclosion_schemas::Seq;
use eclosion_schemas::error::Error;
use rusqlite::{Connection, params};

use crate::chain::{Link, row_sum};
use crate::database::{FRAME_BYTES, checkpoint, set_rows_seq};
use crate::error::{Failure, database};
use crate::pending::{Change, change};
use crate::reader::ReaderPool;
use crate::syncer::WalSyncer;
use crate::{Position, Shared};

/// The WAL is measured after about this much was written to it.
const MEASURE_BYTES: u64 = 1024 * 1024;
/// What a commit adds beside its bodies: a leaf of the events.
const COMMIT_BYTES: u64 = FRAME_BYTES;

/// A journal on the disk, as the writer thread owns it.
pub struct SqliteJournal {
    connection: Connection,
    shared: Arc<Shared>,
    readers: Arc<ReaderPool>,
    /// In the WAL when it was last measured.
    backlog_bytes: Cell<u64>,
    unmeasured_bytes: Cell<u64>,
}

impl SqliteJournal {
    pub(crate) fn new(connection: Connection, shared: Arc<Shared>) -> Result<Self, Failure> {
        let readers = Arc::new(ReaderPool::new(Arc::clone(&shared)));
        let backlog_bytes = checkpoint(&connection, "NOOP")?.frames * FRAME_BYTES;
        Ok(Self {
            connection,
            shared,
            readers,
            backlog_bytes: Cell::new(backlog_bytes),
            unmeasured_bytes: Cell::new(0),
        })
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    fn write(&mut self, batch: &[Arc<Record>], rows: &[RowChange]) -> Result<(), Failure> {
        let last = self.shared.written();
        let pending = &self.shared.pending;
        let (rows, at_once) = if pending.gathers() { (rows, &[][..]) } else { (&[][..], rows) };
        let gathered = pending.read();
        let carries = gathered.is_due();
        let due = gathered.changes().filter(|_| carries);
        let changes = due.chain(at_once.iter().map(change));
        let (last, bytes) = transact(&self.connection, last, batch, changes, carries.then_some(last.seq))?;
        drop(gathered);
        pending.gather(batch.len(), rows, carries);
        self.unmeasured_bytes.set(self.unmeasured_bytes.get() + bytes + COMMIT_BYTES);
        self.shared.advance(last);
        Ok(())
    }
}

/// Writes a batch after `last` and rows, whole or not at all; with them, the table has those of all records up to
/// `rows_seq`, if that is given. Gives the new last record and about how many bytes it took.
pub(crate) fn transact<'a>(
    connection: &Connection,
    last: Position,
    batch: &[Arc<Record>],
    rows: impl Iterator<Item = Change<'a>>,
    rows_seq: Option<Seq>,
) -> Result<(Position, u64), Failure> {
    let run = |sql: &str| connection.prepare_cached(sql).and_then(|mut statement| statement.execute([]));
    run("BEGIN IMMEDIATE").map_err(database("writing"))?;
    let written = insert_events(connection, last, batch).and_then(|(last, bytes)| {
        let more = change_rows(connection, rows).map_err(database("writing"))?;
        if let Some(seq) = rows_seq {
            set_rows_seq(connection, seq).map_err(database("writing"))?;
        }
        run("COMMIT").map_err(database("writing"))?;
        Ok((last, bytes + more))
    });
    if written.is_err() && !connection.is_autocommit() {
        // The failure that led here is the one worth telling.
        let _ = run("ROLLBACK");
    }
    written
}

fn insert_events(
    connection: &Connection,
    from: Position,
    batch: &[Arc<Record>],
) -> Result<(Position, u64), Failure> {
    let sql = "INSERT INTO events (seq, epoch, at, kind, version, cause, body, chain)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
    let mut insert = connection.prepare_cached(sql).map_err(database("writing"))?;
    let mut last = from;
    let mut bytes = 0;
    let mut scratch = Vec::with_capacity(512);
    for record in batch {
        let link = Link::of(record);
        if link.seq != last.seq.next() {
            return Err(Failure::OutOfOrder { expected: last.seq.next(), found: link.seq });
        }
        last = Position { seq: link.seq, chain: link.after(&last.chain, &mut scratch) };
        let row = params![
            link.seq.0.cast_signed(),
            link.epoch.0,
            link.at.0.cast_signed(),
            link.kind,
            link.version,
            link.cause.map(|cause| cause.to_string()),
            link.body,
            last.chain.as_slice(),
        ];
        insert.execute(row).map_err(database("writing"))?;
        bytes += scratch.len() as u64;
    }
    Ok((last, bytes))
}

fn change_rows<'a>(connection: &Connection, rows: impl Iterator<Item = Change<'a>>) -> rusqlite::Result<u64> {
    let mut rows = rows.peekable();
    if rows.peek().is_none() {
        return Ok(0);
    }
    let mut put =
        connection.prepare_cached("REPLACE INTO rows (tbl, key, value, sum) VALUES (?1, ?2, ?3, ?4)")?;
    let mut remove = connection.prepare_cached("DELETE FROM rows WHERE tbl = ?1 AND key = ?2")?;
    let mut bytes = 0;
    for (table, key, value) in rows {
        match value {
            Some(value) => {
                put.execute(params![table, key, value, row_sum(table, key, value)])?;
                bytes += (key.len() + value.len()) as u64;
            }
            None => {
                remove.execute(params![table, key])?;
            }
        }
    }
    Ok(bytes)
}

impl JournalStore for SqliteJournal {
    fn append(&mut self, batch: &[Arc<Record>], rows: &[RowChange]) -> Result<(), Error> {
        self.shared.refuse_after_failure()?;
        let written = self.write(batch, rows);
        Ok(self.shared.remember_failure(written)?)
    }

    fn syncer(&self) -> Result<Box<dyn Syncer>, Error> {
        self.shared.refuse_after_failure()?;
        Ok(Box::new(WalSyncer::open(Arc::clone(&self.shared))?))
    }

    fn reader(&self) -> Arc<dyn Reader> {
        Arc::clone(&self.readers) as Arc<dyn Reader>
    }

    fn backlog_bytes(&self) -> u64 {
        if self.unmeasured_bytes.get() >= MEASURE_BYTES
            && let Ok(found) = checkpoint(&self.connection, "NOOP")
        {
            self.backlog_bytes.set(found.frames * FRAME_BYTES);
            self.unmeasured_bytes.set(0);
        }
        self.backlog_bytes.get() + self.unmeasured_bytes.get()
    }

    fn relieve(&mut self) -> Result<(), Error> {
        self.shared.refuse_after_failure()?;
        let relieved = checkpoint(&self.connection, "RESTART");
        let relieved = self.shared.remember_failure(relieved)?;
        if relieved.busy {
            tracing::warn!(
                frames = relieved.frames,
                "the journal's WAL could not begin anew: somebody was reading"
            );
        }
        // SQLite begins the WAL anew with the next commit, so a measurement now would still show the old one. If it
        // was busy, the next attempt follows the next measurement.
        self.backlog_bytes.set(0);
        self.unmeasured_bytes.set(0);
        self.shared.count_restart(relieved.busy);
        Ok(())
    }
}

impl fmt::Debug for SqliteJournal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteJournal").field("shared", &self.shared).finish_non_exhaustive()
    }
}
