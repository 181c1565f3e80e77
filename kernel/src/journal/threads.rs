//! The writer and the syncer: two threads that carry the tail to the disk.
//!
//! The writer owns the store and commits batches; while it commits, the next batch gathers (group commit). The syncer
//! syncs whatever is written, at once when somebody waits for it. Each ends when the journal is closed and drained, or poisoned;
//! each may panic and be started again by its supervisor, because all that it works on stands in the journal.

use std::sync::Arc;
use std::time::{Duration, Instant};

use eclosion_schemas::error::Error;

use super::sequencer::Journal;
use super::store::{JournalStore, Projection, RowChange, Syncer};

/// Records in one transaction.
const BATCH_RECORDS_MAX: usize = 1024;
/// Above this many bytes waiting for a checkpoint, the writer pauses for one at a batch edge.
const BACKLOG_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// What nobody waits for is synced after this.
const IDLE_SYNC: Duration = Duration::from_millis(500);
/// While nobody waits for it, the disk syncs a tenth of the time at most, and at least this often.
const RESTS: u32 = 9;
const REST_MAX: Duration = Duration::from_millis(50);

/// Writes until the journal is closed or poisoned.
///
/// # Errors
/// The failure that poisoned the journal.
pub fn write(
    journal: &Journal,
    store: &mut dyn JournalStore,
    projections: &[Projection],
) -> Result<(), Error> {
    let mut rows: Vec<RowChange> = Vec::new();
    while let Some(batch) = journal.wait_unwritten(BATCH_RECORDS_MAX) {
        rows.clear();
        for record in &batch {
            projections.iter().for_each(|project| project(record, &mut rows));
        }
        let Some(last) = batch.last().map(|record| record.seq) else { continue };
        let stored = store.append(&batch, &rows);
        if let Err(why) = stored {
            journal.poison(&format!("writing failed: {why}"));
            return Err(why);
        }
        journal.mark_written(last);
        if store.backlog_bytes() > BACKLOG_BYTES_MAX
            && let Err(why) = store.relieve()
        {
            journal.poison(&format!("the checkpoint failed: {why}"));
            return Err(why);
        }
    }
    Ok(())
}

/// Runs before the mark is raised: what the records name (files) must be on the disk before them.
pub type BeforeSync = Arc<dyn Fn() -> Result<(), Error> + Send + Sync>;

/// Syncs until the journal is closed or poisoned.
///
/// # Errors
/// The failure that poisoned the journal; it is never tried again.
pub fn sync(journal: &Journal, syncer: &mut dyn Syncer, before: &[BeforeSync]) -> Result<(), Error> {
    let mut rested = Instant::now();
    while let Some(through) = journal.wait_unsynced(rested, IDLE_SYNC) {
        let began = Instant::now();
        let synced = before.iter().try_for_each(|sync| sync()).and_then(|()| syncer.sync(through));
        if let Err(why) = synced {
            journal.poison(&format!("a sync failed: {why}"));
            return Err(why);
        }
        let took = began.elapsed();
        rested = Instant::now() + (took * RESTS).min(REST_MAX);
        journal.mark_synced(through);
    }
    Ok(())
}
