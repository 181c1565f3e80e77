//! What follows a sync and nobody waits for: syncing the mark, and checkpoints.
//!
//! A thread of the syncer's. When it is called it lets some more syncs pass and then works for all of them. Whoever is
//! told *synced* does not wait for it: the records are on the disk already, and the mark, which is there to notice a disk
//! that loses them later, is written already and only not synced.
//!
//! It ends with the syncer, after the last work was done. A failure of it is a failure of the journal.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use rusqlite::Connection;

use crate::Shared;
use crate::database::{FRAME_BYTES, checkpoint};
use crate::error::{Failure, io};
use crate::mark::MarkFile;

/// Above this, what was synced is also carried into the database: some milliseconds, every thousand commits or so.
const CHECKPOINT_BYTES: u64 = 4 * 1024 * 1024;

/// Syncs that come within this share one sync of the mark.
const GATHER: Duration = Duration::from_millis(5);

#[derive(Debug)]
pub(crate) struct Upkeep {
    slot: Arc<Slot>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Slot {
    work: Mutex<Work>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Work {
    due: bool,
    closed: bool,
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there is something to do; false once there never will be.
    fn next(&self) -> bool {
        let idle = |work: &mut Work| !work.due && !work.closed;
        let work = self.changed.wait_while(self.lock(), idle).unwrap_or_else(PoisonError::into_inner);
        let gathering = self.changed.wait_timeout_while(work, GATHER, |work| !work.closed);
        let (mut work, _) = gathering.unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut work.due)
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
            .spawn(move || run(&shared, &work, &mark, &connection));
        let thread = thread.map_err(io("start a thread for", &directory))?;
        Ok(Self { slot, thread: Some(thread) })
    }

    pub(crate) fn call(&self) {
        let called = std::mem::replace(&mut self.slot.lock().due, true);
        if !called {
            self.slot.changed.notify_one();
        }
    }

    /// It ends by itself only when it has failed.
    pub(crate) fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

fn run(shared: &Shared, slot: &Slot, mark: &MarkFile, connection: &Connection) {
    while slot.next() {
        let done = mark.sync().and_then(|()| relieve(connection));
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
