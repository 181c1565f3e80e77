//! A disk that keeps what a real one would, and no more.
//!
//! ```text
//! write ──► in the page cache: survives a killed process
//! sync ───► on the platter: survives a power cut
//! failed sync ──► taken for clean by the cache, and not on the platter: a later sync has nothing to do for it
//! cut ────► of what is not on the platter, chance keeps each block whole, torn, or not at all
//! open ───► up to the first record that is not whole; refused if that is below the mark
//! ```
//!
//! Records go through their bytes, so nothing typed survives in them. Rows are derived again after a cut, as a store
//! does that finds its tables ahead of its records.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use eclosion_kernel::core::Row;
use eclosion_kernel::journal::{Opened, Projection, Reader, Record, RowChange, Stored};
use eclosion_schemas::error::{Code, Error};
use eclosion_schemas::{Epoch, Seq};

use crate::mutants::Mutant;
use crate::rng::Rng;

/// Records that share a block reach the platter together.
const BLOCK_RECORDS_MAX: u64 = 4;

/// Clones share the platter.
#[derive(Debug, Clone)]
pub(crate) struct Disk {
    platter: Arc<Mutex<Platter>>,
}

#[derive(Debug)]
struct Platter {
    epoch: Epoch,
    written: Vec<Block>,
    /// What the mark says.
    mark: usize,
    tables: BTreeMap<&'static str, BTreeMap<Vec<u8>, Vec<u8>>>,
    projections: Vec<Projection>,
    fails: Option<Failing>,
    mutant: Option<Mutant>,
}

/// What the next operation of its kind comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failing {
    /// EIO of a write.
    Write,
    /// ENOSPC of a write.
    Full,
    /// EIO of a sync.
    Sync,
}

#[derive(Debug, Clone)]
struct Block {
    record: Arc<Record>,
    kept: Kept,
    health: Health,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kept {
    /// In the cache, and known to be missing on the platter.
    Dirty,
    /// In the cache, and believed to be on the platter: its sync has failed.
    Clean,
    Durable,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Health {
    Whole,
    Torn,
    Missing,
}

impl Disk {
    #[must_use]
    pub(crate) fn new(projections: Vec<Projection>, mutant: Option<Mutant>) -> Self {
        let (written, tables) = (Vec::new(), BTreeMap::new());
        let platter = Platter { epoch: Epoch(0), written, mark: 0, tables, projections, fails: None, mutant };
        Self { platter: Arc::new(Mutex::new(platter)) }
    }

    /// Verifies what is there, syncs it and raises the epoch, as a store does before anything is served.
    ///
    /// # Errors
    /// `data_loss` when less is whole than the mark promises.
    pub(crate) fn open(&self) -> Result<Opened, Error> {
        let mut platter = self.lock();
        let is_whole = |block: &Block| block.health == Health::Whole;
        if platter.mutant == Some(Mutant::ReplayPastBad) {
            platter.written.retain(is_whole);
        }
        let whole = platter.written.iter().take_while(|block| is_whole(block)).count();
        if whole < platter.mark {
            let text = format!("{whole} records are whole, and {} were synced", platter.mark);
            return Err(Error::new(Code::DataLoss, "journal.truncated", text));
        }
        platter.written.truncate(whole);
        if platter.mutant != Some(Mutant::OpenWithoutSync) {
            platter.open_tail();
        }
        platter.mark = whole;
        platter.derive();
        if platter.mutant != Some(Mutant::FenceWithoutEpoch) || platter.epoch == Epoch(0) {
            platter.epoch = Epoch(platter.epoch.0 + 1);
        }
        let last = platter.written.last().map_or(Seq(0), |block| block.record.seq);
        let reused = platter.mutant == Some(Mutant::ReuseSeq) && last > Seq(0);
        Ok(Opened { epoch: platter.epoch, last: if reused { Seq(last.0 - 1) } else { last } })
    }

    pub(crate) fn fail_next(&self, failing: Failing) {
        self.lock().fails = Some(failing);
    }

    /// One transaction: all of the batch and its rows, or nothing.
    ///
    /// # Errors
    /// What the disk was told to answer.
    pub(crate) fn write(&self, batch: &[Arc<Record>]) -> Result<(), Error> {
        let mut platter = self.lock();
        match platter.fails.take_if(|failing| *failing != Failing::Sync) {
            None => {}
            Some(failing) => {
                let text = if failing == Failing::Full { "no space left" } else { "input/output error" };
                return Err(Error::new(Code::Unavailable, "journal.io", text));
            }
        }
        for record in batch {
            let record = Arc::new(Record::from(stored(record)));
            platter.project(&record);
            platter.written.push(Block { record, kept: Kept::Dirty, health: Health::Whole });
        }
        Ok(())
    }

    /// # Errors
    /// What the disk was told to answer. Which of it is on the platter, nobody knows.
    pub(crate) fn sync(&self, through: Seq, rng: &mut Rng) -> Result<(), Error> {
        let mut platter = self.lock();
        if platter.fails.take_if(|failing| *failing == Failing::Sync).is_some() {
            for block in platter.written.iter_mut().filter(|block| block.kept == Kept::Dirty) {
                block.kept = if rng.per_mille(300) { Kept::Durable } else { Kept::Clean };
            }
            if platter.mutant != Some(Mutant::RetryFailedSync) {
                return Err(Error::new(Code::Unavailable, "journal.io", "input/output error"));
            }
        }
        let through = platter.written.partition_point(|block| block.record.seq <= through);
        if platter.mutant != Some(Mutant::LyingSync) || rng.per_mille(500) {
            platter.sync_dirty(through);
        }
        platter.mark = platter.mark.max(through);
        Ok(())
    }

    /// The power fails. Gives how many records are torn, and how many have not reached the platter at all.
    pub(crate) fn cut(&self, rng: &mut Rng) -> (u64, u64) {
        let mut platter = self.lock();
        let mut index = 0;
        while index < platter.written.len() {
            let end = index + usize::try_from(rng.range(1, BLOCK_RECORDS_MAX + 1)).unwrap_or(1);
            let health = match rng.range(0, 10) {
                0..6 => Health::Whole,
                6..8 => Health::Torn,
                _ => Health::Missing,
            };
            for block in platter.written.iter_mut().take(end).skip(index) {
                block.health = if block.kept == Kept::Durable { Health::Whole } else { health };
            }
            index = end;
        }
        // What is whole by chance is on the platter.
        for block in platter.written.iter_mut().filter(|block| block.health == Health::Whole) {
            block.kept = Kept::Durable;
        }
        let count = |health| platter.written.iter().filter(|block| block.health == health).count() as u64;
        (count(Health::Torn), count(Health::Missing))
    }

    /// Every record up to here survives whatever comes.
    pub(crate) fn mark(&self) -> Seq {
        let platter = self.lock();
        let last = platter.mark.checked_sub(1).and_then(|last| platter.written.get(last));
        last.map_or(Seq(0), |block| block.record.seq)
    }

    /// From after one seq up to another.
    #[must_use]
    pub(crate) fn between(&self, after: Seq, through: Seq) -> Vec<Arc<Record>> {
        let platter = self.lock();
        let from = platter.written.partition_point(|block| block.record.seq <= after);
        let wanted = platter.written.iter().skip(from);
        wanted.map(|block| Arc::clone(&block.record)).take_while(|record| record.seq <= through).collect()
    }

    #[must_use]
    pub(crate) fn records(&self) -> Vec<Arc<Record>> {
        self.lock().written.iter().map(|block| Arc::clone(&block.record)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Platter> {
        self.platter.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Platter {
    fn sync_dirty(&mut self, through: usize) {
        for block in self.written.iter_mut().take(through).filter(|block| block.kept == Kept::Dirty) {
            block.kept = Kept::Durable;
        }
    }

    /// What was found behind the mark is written once more and synced, before anybody is told of it: a sync alone would
    /// leave out what a failed one has marked as clean.
    fn open_tail(&mut self) {
        self.written.iter_mut().for_each(|block| block.kept = Kept::Durable);
    }

    fn derive(&mut self) {
        self.tables.clear();
        for block in self.written.clone() {
            self.project(&block.record);
        }
    }

    fn project(&mut self, record: &Record) {
        let mut rows: Vec<RowChange> = Vec::new();
        self.projections.iter().for_each(|project| project(record, &mut rows));
        for row in rows {
            let table = self.tables.entry(row.table).or_default();
            match row.value {
                Some(value) => table.insert(row.key, value),
                None => table.remove(&row.key),
            };
        }
    }
}

/// What is left of a record in its bytes.
#[must_use]
pub(crate) fn stored(record: &Record) -> Stored {
    Stored {
        seq: record.seq,
        epoch: record.epoch,
        at: record.at,
        kind: Arc::clone(&record.kind),
        version: record.version,
        cause: record.cause,
        body: record.body.clone(),
    }
}

impl Reader for Disk {
    fn read(
        &self,
        after: Seq,
        kinds: &[&str],
        visit: &mut dyn FnMut(Record) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        for record in &self.between(after, Seq(u64::MAX)) {
            let wanted = kinds.is_empty() || kinds.contains(&&*record.kind);
            if wanted && visit(stored(record).into()).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn get(&self, table: &str, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        Ok(self.lock().tables.get(table).and_then(|rows| rows.get(key)).cloned())
    }

    fn scan(&self, table: &str, prefix: &[u8], newest_first: bool, limit: u32) -> Result<Vec<Row>, Error> {
        let platter = self.lock();
        let Some(rows) = platter.tables.get(table) else { return Ok(Vec::new()) };
        let matching = rows.range(prefix.to_vec()..).take_while(|(key, _)| key.starts_with(prefix));
        let mut matching: Vec<Row> = matching.map(|(key, value)| (key.clone(), value.clone())).collect();
        if newest_first {
            matching.reverse();
        }
        matching.truncate(limit as usize);
        Ok(matching)
    }
}
