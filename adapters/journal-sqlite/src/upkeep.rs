//! What follows a sync and nobody waits for: raising the mark, and checkpoints.
//!
//! A thread of the syncer's. It is handed the position of each sync and works on the newest only, so it is behind by
//! one write of the mark at most. Whoever is told *synced* does not wait for it: the records are on the disk already,
//! and the mark is there to notice a disk that loses them later. The mark still never runs ahead of a sync.
//!
//! It ends with the syncer, after the last position was marked. A failure of it is a failure of the journal.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};

use rusqlite::Connection;

use crate::database::{FRAME_BYTES, checkpoint};
use crate::error::{Failure, io};
use crate::mark::MarkFile;
use crate::{Position, Shared};

/// Above this, what was synced is also carried into the database: some milliseconds, every thousand commits or so.
const CHECKPOINT_BYTES: u64 = 4 * 1024 * 1024;

#[derive(Debug)]
pub(crate) struct Upkeep {
    slot: Arc<Slot>,
    thread: Option<JoinHandle<()>>,
}

/// The newest synced position that was not marked yet.
#[derive(Debug, Default)]
struct Slot {
    work: Mutex<Work>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Work {
    synced: Option<Position>,
    closed: bool,
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> Option<Position> {
        let mut work = self.lock();
        loop {
            if let Some(position) = work.synced.take() {
                return Some(position);
            }
            if work.closed {
                return None;
            }
            work = self.changed.wait(work).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Upkeep {
    pub(crate) fn start(
        shared: Arc<Shared>,
        mark: MarkFile,
        connection: Connection,
    ) -> Result<Self, Failure> {
        let slot = Arc::new(Slot::default());
        let directory = shared.places.directory.clone();
        let work = Arc::clone(&slot);
        let thread = Builder::new()
            .name("journal-upkeep".into())
            .spawn(move || run(&shared, &work, mark, &connection));
        let thread = thread.map_err(io("start a thread for", &directory))?;
        Ok(Self { slot, thread: Some(thread) })
    }

    pub(crate) fn synced(&self, position: Position) {
        self.slot.lock().synced = Some(position);
        self.slot.changed.notify_one();
    }

    /// It ends by itself only when it has failed.
    pub(crate) fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

fn run(shared: &Shared, slot: &Slot, mut mark: MarkFile, connection: &Connection) {
    while let Some(position) = slot.next() {
        let done = mark.write(position, shared.epoch).and_then(|()| relieve(connection));
        if shared.remember_failure(done).is_err() {
            return;
        }
    }
}

fn relieve(connection: &Connection) -> Result<(), Failure> {
    if checkpoint(connection, "NOOP")?.waiting * FRAME_BYTES > CHECKPOINT_BYTES {
        checkpoint(connection, "PASSIVE")?;
    }
    Ok(())
}

impl Drop for Upkeep {
    fn drop(&mut self) {
        self.slot.lock().closed = true;
        self.slot.changed.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the upkeep of the journal panicked");
        }
    }
}
