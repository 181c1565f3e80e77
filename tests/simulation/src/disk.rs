//! A disk that keeps what a real one would: what is written survives a killed process, only what is synced is sure to
//! survive a power cut.
//!
//! Records go through their bytes, so nothing typed survives in them. Rows are derived again after a cut, as a store
//! does that finds its tables ahead of its records.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use eclosion_kernel::core::Row;
use eclosion_kernel::journal::{Opened, Projection, Reader, Record, RowChange, Stored};
use eclosion_schemas::error::Error;
use eclosion_schemas::{Epoch, Seq};

use crate::rng::Rng;

/// Clones share the platter.
#[derive(Debug, Clone)]
pub(crate) struct Disk {
    platter: Arc<Mutex<Platter>>,
}

#[derive(Debug)]
struct Platter {
    epoch: Epoch,
    written: Vec<Arc<Record>>,
    synced: usize,
    tables: BTreeMap<&'static str, BTreeMap<Vec<u8>, Vec<u8>>>,
    projections: Vec<Projection>,
}

impl Disk {
    #[must_use]
    pub(crate) fn new(projections: Vec<Projection>) -> Self {
        let (written, tables) = (Vec::new(), BTreeMap::new());
        let platter = Platter { epoch: Epoch(0), written, synced: 0, tables, projections };
        Self { platter: Arc::new(Mutex::new(platter)) }
    }

    /// Syncs what is there and raises the epoch, as a store does before anything is served.
    #[must_use]
    pub(crate) fn open(&self) -> Opened {
        let mut platter = self.lock();
        platter.synced = platter.written.len();
        platter.epoch = Epoch(platter.epoch.0 + 1);
        Opened { epoch: platter.epoch, last: platter.written.last().map_or(Seq(0), |record| record.seq) }
    }

    /// One transaction: all of the batch and its rows, or nothing.
    pub(crate) fn write(&self, batch: &[Arc<Record>]) {
        let mut platter = self.lock();
        for record in batch {
            let record = Arc::new(Record::from(stored(record)));
            platter.project(&record);
            platter.written.push(record);
        }
    }

    pub(crate) fn sync(&self, through: Seq) {
        let mut platter = self.lock();
        let synced = platter.written.partition_point(|record| record.seq <= through);
        platter.synced = platter.synced.max(synced);
    }

    /// The power fails: of what was not synced, chance keeps a beginning.
    pub(crate) fn cut(&self, rng: &mut Rng) {
        let mut platter = self.lock();
        let kept = rng.range(platter.synced as u64, platter.written.len() as u64 + 1);
        platter.written.truncate(usize::try_from(kept).unwrap_or(usize::MAX));
        platter.synced = platter.written.len();
        platter.tables.clear();
        for record in platter.written.clone() {
            platter.project(&record);
        }
    }

    #[must_use]
    pub(crate) fn records(&self) -> Vec<Arc<Record>> {
        self.lock().written.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Platter> {
        self.platter.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Platter {
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
        for record in self.records().iter().filter(|record| record.seq > after) {
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
