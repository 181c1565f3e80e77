//! B15: the journal on a disk.
//!
//! Floor: a record appended to a plain file, written and synced. Peer: the same record inserted into a SQLite table by
//! a user who wants it durable (WAL, synchronous=FULL, one transaction each). Ours is the store behind its port, with
//! chained checksums and the mark; a lone event is a batch of one. Also here: opening a journal of 100,000 events,
//! which verifies all of them; and what a step of a run costs the writer in CPU: a record with three rows, one commit.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use eclosion_journal_sqlite::{Options, SqliteJournal};
use eclosion_kernel::journal::{JournalStore, Projection, Record, RowChange, Stored, Syncer};
use eclosion_schemas::{EffectId, Epoch, Seq, Timestamp};
use rusqlite::Connection;
use rustix::time::{ClockId, clock_gettime};

use crate::Failure;
use crate::measure::{ROUNDS, Samples};
use crate::report::{Report, Role, Row};

const LONE: usize = 200;
const SYNCED: usize = 40;
/// Steps in a sample: reading the clock of a thread takes a microsecond, and what is not done in every commit counts too.
const STEPS: u32 = 200;
const STEPS_OF_A_RUN: u64 = 100;
const BATCH: u32 = 1_024;
const BATCHES: usize = 8;
const OPENED_EVENTS: u64 = 100_000;
/// A small event: a step's commit with an inline result of a few numbers.
const BODY: [u8; 160] = [0x2e; 160];

/// 200,000 in a second.
const BATCHED_NS_MAX: f64 = 5_000.0;
const LONE_NS_MAX: f64 = 30_000.0;
const OPEN_NS_MAX: f64 = 1e9;

pub(crate) fn run() -> Result<Report, Failure> {
    // Where builds go is a disk; a temporary directory may be memory.
    let directory = tempfile::tempdir_in("target").or_else(|_| tempfile::tempdir())?;
    let rows: Vec<Row> = measured(directory.path())?.into_iter().map(Samples::row).collect();
    let budget = "≥ 200,000 small events/s written; a lone event ≤ 30 µs written, ≤ 1.5 × fdatasync synced";
    Ok(Report::new("b15", "journal", budget, rows)
        .at_most(BATCHED_NS_MAX, |row| row.name == "eclosion written, batches")
        .at_most(LONE_NS_MAX, |row| row.name == "eclosion written, lone")
        .at_most(OPEN_NS_MAX, |row| row.name == "eclosion open, 100,000 events")
        .ratio("eclosion synced, lone", "file append + fdatasync", 1.5))
}

fn measured(directory: &Path) -> Result<Vec<Samples>, Failure> {
    let (mut file, mut synced_file) =
        (File::create(directory.join("floor"))?, File::create(directory.join("synced-floor"))?);
    let peer = user_table(&directory.join("peer.db"))?;
    let mut ours = Ours::open(&directory.join("ours"))?;
    // A journal of its own: a sync must not pay for what the unsynced candidates left behind.
    let mut ours_synced = Ours::open(&directory.join("synced"))?;
    let mut appended = Samples::of(Role::Floor, "file append");
    let mut synced = Samples::of(Role::Floor, "file append + fdatasync");
    let mut inserted = Samples::of(Role::Peer, "SQLite insert, synchronous=FULL");
    let mut lone = Samples::of(Role::Us, "eclosion written, lone");
    let mut lone_synced = Samples::of(Role::Us, "eclosion synced, lone");
    let mut batches = Samples::of(Role::Us, "eclosion written, batches");
    let mut opened = Samples::of(Role::Us, "eclosion open, 100,000 events");
    let mut steps = Samples::of(Role::Us, "eclosion a step, CPU of the writer");
    let mut ours_stepping = Ours::with(&directory.join("steps"), vec![rows_of_a_step])?;
    let full = directory.join("full");
    Ours::open(&full)?.fill(OPENED_EVENTS)?;
    for _ in 0..ROUNDS {
        let all = [
            &mut appended,
            &mut synced,
            &mut inserted,
            &mut lone,
            &mut lone_synced,
            &mut batches,
            &mut opened,
            &mut steps,
        ];
        all.into_iter().for_each(Samples::begin_round);
        for _ in 0..LONE {
            appended.add(took(|| Ok(file.write_all(&BODY)?))?, 1);
            lone.add(took(|| ours.append(1))?, 1);
        }
        for _ in 0..SYNCED {
            synced.add(took(|| Ok(synced_file.write_all(&BODY).and_then(|()| synced_file.sync_data())?))?, 1);
            inserted.add(took(|| insert(&peer))?, 1);
            lone_synced.add(took(|| ours_synced.append_and_sync())?, 1);
        }
        for _ in 0..BATCHES {
            batches.add(took(|| ours.append(BATCH))?, BATCH);
        }
        opened.add(took(|| Ours::open(&full).map(drop))?, 1);
        steps.add(ours_stepping.step(STEPS)?, STEPS);
    }
    Ok(vec![appended, synced, inserted, lone, lone_synced, batches, opened, steps])
}

fn took(work: impl FnOnce() -> Result<(), Failure>) -> Result<Duration, Failure> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed())
}

fn user_table(path: &Path) -> Result<Connection, Failure> {
    let connection = Connection::open(path)?;
    connection.execute_batch(
        "PRAGMA journal_mode = wal; PRAGMA synchronous = full;
         CREATE TABLE events (seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, body BLOB NOT NULL) STRICT",
    )?;
    Ok(connection)
}

fn insert(peer: &Connection) -> Result<(), Failure> {
    let mut insert = peer.prepare_cached("INSERT INTO events (kind, body) VALUES (?1, ?2)")?;
    insert.execute(rusqlite::params!["step.committed", BODY.as_slice()])?;
    Ok(())
}

struct Ours {
    store: SqliteJournal,
    syncer: Box<dyn Syncer>,
    epoch: Epoch,
    last: u64,
}

impl Ours {
    fn open(directory: &Path) -> Result<Self, Failure> {
        Self::with(directory, Vec::new())
    }

    fn with(directory: &Path, projections: Vec<Projection>) -> Result<Self, Failure> {
        let options = Options { projections, ..Options::default() };
        let (store, opened) = SqliteJournal::open(directory, &options)?;
        let syncer = store.syncer()?;
        Ok(Self { store, syncer, epoch: opened.epoch, last: opened.last.0 })
    }

    /// As the writer thread does it, with the pause for a restart checkpoint where it is due.
    fn append(&mut self, records: u32) -> Result<(), Failure> {
        let batch: Vec<_> =
            (self.last + 1..=self.last + u64::from(records)).map(|seq| small(seq, self.epoch)).collect();
        self.store.append(&batch, &[])?;
        self.last += u64::from(records);
        if self.store.backlog_bytes() > 64 * 1024 * 1024 {
            self.store.relieve()?;
        }
        Ok(())
    }

    fn append_and_sync(&mut self) -> Result<(), Failure> {
        self.append(1)?;
        Ok(self.syncer.sync(Seq(self.last))?)
    }

    /// The CPU time of so many commits, each of one record and its rows.
    fn step(&mut self, steps: u32) -> Result<Duration, Failure> {
        let begin = clock_gettime(ClockId::ThreadCPUTime);
        let mut rows = Vec::new();
        for _ in 0..steps {
            self.last += 1;
            let record = small(self.last, self.epoch);
            rows.clear();
            rows_of_a_step(&record, &mut rows);
            self.store.append(&[record], &rows)?;
        }
        let took = clock_gettime(ClockId::ThreadCPUTime) - begin;
        if self.store.backlog_bytes() > 64 * 1024 * 1024 {
            self.store.relieve()?;
        }
        Ok(took.try_into()?)
    }

    fn fill(&mut self, events: u64) -> Result<(), Failure> {
        while self.last < events {
            self.append(BATCH)?;
        }
        Ok(self.syncer.sync(Seq(self.last))?)
    }
}

fn small(seq: u64, epoch: Epoch) -> Arc<Record> {
    let cause = Some(EffectId { seq: Seq(seq.saturating_sub(1)), n: 0 });
    let (kind, body) = ("step.committed".into(), BODY.to_vec().into());
    Arc::new(Stored { seq: Seq(seq), epoch, at: Timestamp(seq), kind, version: 1, cause, body }.into())
}

/// Of the sizes that a step with an inline result leaves: what a run is shown from, what the artifact is, its payload.
fn rows_of_a_step(record: &Record, rows: &mut Vec<RowChange>) {
    let run = (record.seq.0 / STEPS_OF_A_RUN).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let name = format!("r-{run:016x}/l{}", record.seq).into_bytes();
    let step = [format!("r-{run:016x}/").into_bytes(), record.seq.0.to_be_bytes().to_vec()].concat();
    rows.push(RowChange { table: "steps", key: step, value: Some(vec![0x2e; 200]) });
    rows.push(RowChange { table: "artifacts", key: name.clone(), value: Some(vec![0x2e; 100]) });
    rows.push(RowChange { table: "payloads", key: name, value: Some(vec![0x2e; 12]) });
}
