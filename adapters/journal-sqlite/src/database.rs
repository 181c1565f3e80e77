//! Connections and tables.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use eclosion_schemas::{Epoch, Seq};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};

use crate::Position;
use crate::chain::genesis;
use crate::error::{Damage, Failure, database, io};

/// `PRAGMA user_version` of the tables below.
const FORMAT: i64 = 2;
/// Knew no `rows_seq`: each row was put into its table together with its record.
const FORMAT_OF_COMPLETE_ROWS: i64 = 1;
/// "ECLJ", so that `file` and others can tell what it is.
const APPLICATION_ID: i64 = 0x4543_4c4a;
/// A checkpoint of the whole WAL waits this long for readers and for a checkpoint under way.
const BUSY_TIMEOUT: Duration = Duration::from_secs(1);
/// A page of the database, as SQLite writes it into the WAL: with a header of 24 bytes.
pub(crate) const FRAME_BYTES: u64 = 4096 + 24;

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value ANY NOT NULL) STRICT, WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS events (
        seq INTEGER PRIMARY KEY,
        epoch INTEGER NOT NULL,
        at INTEGER NOT NULL,
        kind TEXT NOT NULL,
        version INTEGER NOT NULL,
        cause TEXT,
        body BLOB NOT NULL,
        chain BLOB NOT NULL
    ) STRICT;
    CREATE TABLE IF NOT EXISTS rows (
        tbl TEXT NOT NULL,
        key BLOB NOT NULL,
        value BLOB NOT NULL,
        sum INTEGER NOT NULL,
        PRIMARY KEY (tbl, key)
    ) STRICT, WITHOUT ROWID;";

/// Opens a database for writing; makes it if there is none or an empty one.
pub(crate) fn open_or_create(path: &Path) -> Result<Connection, Failure> {
    create_private(path)?;
    let connection = open(path)?;
    if format(&connection).map_err(database("opening"))? == 0 {
        create(&connection).map_err(database("creating"))?;
    }
    check_format(connection)
}

/// Opens a database for writing that has been written before.
pub(crate) fn open_existing(path: &Path) -> Result<Connection, Failure> {
    let connection = open(path)?;
    if format(&connection).map_err(database("opening"))? == 0 {
        // Its tables were made in the WAL, and that is gone.
        return Err(Damage::truncated(Seq(0), 0).into());
    }
    check_format(connection)
}

fn open(path: &Path) -> Result<Connection, Failure> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(database("opening"))?;
    configure(&connection).map_err(database("opening"))?;
    Ok(connection)
}

fn format(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

fn check_format(connection: Connection) -> Result<Connection, Failure> {
    match format(&connection).map_err(database("opening"))? {
        FORMAT | FORMAT_OF_COMPLETE_ROWS => Ok(connection),
        found => Err(Failure::Format { found, known: FORMAT }),
    }
}

/// SQLite would create it readable for all. Nothing of SQLite's may be open on it in this process if it exists:
/// closing any descriptor of a file drops the process's POSIX locks on it.
fn create_private(path: &Path) -> Result<(), Failure> {
    if path.exists() {
        return Ok(());
    }
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    options.open(path).map(drop).map_err(io("create", path))
}

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    // The WAL is evidence: closing must neither empty nor delete it.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "page_size", 4096)?;
    connection.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(()))?;
    connection.pragma_update(None, "synchronous", "normal")?;
    connection.pragma_update_and_check(None, "wal_autocheckpoint", 0, |_| Ok(()))?;
    // In KiB. Appends touch the last pages only.
    connection.pragma_update(None, "cache_size", -4096)?;
    Ok(())
}

fn create(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch("BEGIN IMMEDIATE")?;
    connection.execute_batch(TABLES)?;
    let genesis = genesis();
    connection.execute(
        "INSERT OR IGNORE INTO meta (key, value) VALUES ('epoch', 0), ('base_seq', 0), ('base_chain', ?1)",
        params![genesis.as_slice()],
    )?;
    connection.pragma_update(None, "application_id", APPLICATION_ID)?;
    connection.pragma_update(None, "user_version", FORMAT)?;
    connection.execute_batch("COMMIT")
}

/// Opens a database that is one file, without a WAL: for one that is being rebuilt.
pub(crate) fn open_rollback(path: &Path) -> Result<Connection, Failure> {
    create_private(path)?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let open = || {
        let connection = Connection::open_with_flags(path, flags)?;
        if format(&connection)? == 0 {
            create(&connection)?;
        }
        Ok(connection)
    };
    open().map_err(database("rebuilding"))
}

/// Opens a connection that can only read.
pub(crate) fn open_reader(path: &Path) -> Result<Connection, Failure> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let open = || {
        let connection = Connection::open_with_flags(path, flags)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.pragma_update(None, "cache_size", -1024)?;
        Ok(connection)
    };
    open().map_err(database("opening"))
}

/// The epoch of the last life on this journal.
pub(crate) fn epoch(connection: &Connection) -> Result<Epoch, Failure> {
    let read = connection.query_row("SELECT value FROM meta WHERE key = 'epoch'", [], |row| row.get(0));
    read.map(Epoch).map_err(database("reading"))
}

/// The last record whose rows are all in their table; `None` if that is the last one there is.
pub(crate) fn rows_seq(connection: &Connection) -> Result<Option<Seq>, Failure> {
    let sql = "SELECT value FROM meta WHERE key = 'rows_seq'";
    let read = connection.query_row(sql, [], |row| row.get::<_, i64>(0)).optional();
    read.map(|seq| seq.map(|seq| Seq(seq.cast_unsigned()))).map_err(database("reading"))
}

/// From now on rows follow their records, of which `last` is the last.
pub(crate) fn let_rows_follow(connection: &Connection, last: Seq) -> Result<(), Failure> {
    let begin = || {
        connection.execute_batch("BEGIN IMMEDIATE")?;
        set_rows_seq(connection, last)?;
        connection.pragma_update(None, "user_version", FORMAT)?;
        connection.execute_batch("COMMIT")
    };
    begin().map_err(database("opening"))
}

/// From now on each row is put into its table together with its record.
pub(crate) fn keep_rows_complete(connection: &Connection) -> Result<(), Failure> {
    let kept = connection.execute("DELETE FROM meta WHERE key = 'rows_seq'", []);
    kept.map(drop).map_err(database("opening"))
}

pub(crate) fn set_rows_seq(connection: &Connection, seq: Seq) -> rusqlite::Result<()> {
    let mut set = connection.prepare_cached("REPLACE INTO meta (key, value) VALUES ('rows_seq', ?1)")?;
    set.execute([seq.0.cast_signed()]).map(drop)
}

pub(crate) fn raise_epoch(connection: &Connection, epoch: Epoch) -> Result<(), Failure> {
    let raised = connection.execute("UPDATE meta SET value = ?1 WHERE key = 'epoch'", params![epoch.0]);
    raised.map(drop).map_err(database("raising the epoch of"))
}

/// Where the chain begins: before the first record that is kept.
pub(crate) fn base(connection: &Connection) -> Result<Position, Failure> {
    let value = |key: &str| format!("(SELECT value FROM meta WHERE key = '{key}')");
    let sql = format!("SELECT {}, {}", value("base_seq"), value("base_chain"));
    let mut statement = connection.prepare_cached(&sql).map_err(database("reading"))?;
    let read = statement.query_row([], |row| {
        Ok(Position { seq: Seq(row.get::<_, i64>(0)?.cast_unsigned()), chain: row.get(1)? })
    });
    read.map_err(database("reading"))
}

pub(crate) fn set_base(connection: &Connection, base: Position) -> Result<(), Failure> {
    let set = || {
        let mut set = connection.prepare("UPDATE meta SET value = ?2 WHERE key = ?1")?;
        set.execute(params!["base_seq", base.seq.0.cast_signed()])?;
        set.execute(params!["base_chain", base.chain.as_slice()])
    };
    set().map(drop).map_err(database("rebuilding"))
}

/// What a checkpoint reports.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Checkpointed {
    /// Somebody was in the way of a complete one.
    pub(crate) busy: bool,
    /// Frames in the WAL since it was last begun anew.
    pub(crate) frames: u64,
    /// Those of them that are not in the database yet.
    pub(crate) waiting: u64,
}

/// `mode`: `NOOP` only looks, `PASSIVE` does what is in nobody's way, `RESTART` also waits until the WAL begins anew.
pub(crate) fn checkpoint(connection: &Connection, mode: &str) -> Result<Checkpointed, Failure> {
    let run = || {
        let mut statement = connection.prepare_cached(&format!("PRAGMA wal_checkpoint({mode})"))?;
        statement.query_row([], |row| {
            let (frames, done): (i64, i64) = (row.get(1)?, row.get(2)?);
            Ok(Checkpointed {
                busy: row.get::<_, i64>(0)? != 0,
                frames: u64::try_from(frames).unwrap_or(0),
                waiting: u64::try_from(frames - done).unwrap_or(0),
            })
        })
    };
    run().map_err(database("checkpointing"))
}
