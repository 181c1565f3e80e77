//! A store in memory: for tests, for simulations and for kernels that keep nothing.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use eclosion_schemas::error::Error;
use eclosion_schemas::{Epoch, Seq};

use super::record::{Record, Stored};
use super::store::{JournalStore, Opened, Reader, RowChange, Syncer};
use crate::core::Row;

/// Clones share what is stored, so that a test can open the same "disk" again.
#[derive(Debug, Clone, Default)]
pub struct MemoryStore {
    shared: Arc<Mutex<Contents>>,
}

#[derive(Debug, Default)]
struct Contents {
    epoch: Epoch,
    records: Vec<Arc<Record>>,
    tables: BTreeMap<&'static str, BTreeMap<Vec<u8>, Vec<u8>>>,
}

impl MemoryStore {
    /// Begins another life on what is stored.
    #[must_use]
    pub fn open(&self) -> Opened {
        let mut contents = self.lock();
        contents.epoch = Epoch(contents.epoch.0 + 1);
        Opened { epoch: contents.epoch, last: contents.records.last().map_or(Seq(0), |record| record.seq) }
    }

    fn lock(&self) -> MutexGuard<'_, Contents> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl JournalStore for MemoryStore {
    fn append(&mut self, batch: &[Arc<Record>], rows: &[RowChange]) -> Result<(), Error> {
        let mut contents = self.lock();
        // Read back from bytes, as after a restart, so that nothing typed survives what a disk would not keep.
        contents.records.extend(batch.iter().map(|record| Arc::new(stored(record).into())));
        for row in rows {
            let table = contents.tables.entry(row.table).or_default();
            match &row.value {
                Some(value) => table.insert(row.key.clone(), value.clone()),
                None => table.remove(&row.key),
            };
        }
        Ok(())
    }

    fn syncer(&self) -> Result<Box<dyn Syncer>, Error> {
        Ok(Box::new(NothingToSync))
    }

    fn reader(&self) -> Arc<dyn Reader> {
        Arc::new(self.clone())
    }
}

fn stored(record: &Record) -> Stored {
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

#[derive(Debug)]
struct NothingToSync;

impl Syncer for NothingToSync {
    fn sync(&mut self, _through: Seq) -> Result<(), Error> {
        Ok(())
    }
}

impl Reader for MemoryStore {
    fn read(
        &self,
        after: Seq,
        kinds: &[&str],
        visit: &mut dyn FnMut(Record) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let records = self.lock().records.clone();
        for record in records.iter().filter(|record| record.seq > after) {
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
        let contents = self.lock();
        let Some(rows) = contents.tables.get(table) else { return Ok(Vec::new()) };
        let matching = rows
            .range(prefix.to_vec()..)
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(key, value)| (key.clone(), value.clone()));
        let limit = limit as usize;
        Ok(if newest_first {
            let all: Vec<Row> = matching.collect();
            all.into_iter().rev().take(limit).collect()
        } else {
            matching.take(limit).collect()
        })
    }
}
