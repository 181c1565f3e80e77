//! The syncer's half: the WAL to the disk, then the mark; the rest follows in [`crate::upkeep`].
//!
//! It syncs through a descriptor of its own, so that neither SQLite's locks nor the writer's connection are touched.
//! Closing a descriptor of the WAL is harmless; one of `journal.db` must never be opened here, because closing it
//! would drop SQLite's POSIX locks of the whole process.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use eclosion_kernel::journal::Syncer;
use eclosion_schemas::Seq;
use eclosion_schemas::error::Error;

use crate::Shared;
use crate::database::open_existing;
use crate::error::{Failure, io};
use crate::mark::MarkFile;
use crate::upkeep::Upkeep;

#[derive(Debug)]
pub(crate) struct WalSyncer {
    shared: Arc<Shared>,
    wal: File,
    inode: u64,
    mark: MarkFile,
    upkeep: Upkeep,
}

impl WalSyncer {
    pub(crate) fn open(shared: Arc<Shared>) -> Result<Self, Failure> {
        let (wal, inode) = open_wal(&shared)?;
        let mark = MarkFile::open(&shared.places.mark)?;
        let connection = open_existing(&shared.places.database)?;
        let upkeep = Upkeep::start(Arc::clone(&shared), mark.try_clone()?, connection)?;
        Ok(Self { shared, wal, inode, mark, upkeep })
    }

    fn carry(&mut self, through: Seq) -> Result<(), Failure> {
        // Read before the sync: what is written while it runs is not covered by it. It may be more than `through`; the
        // mark says what the journal must hold, and the caller alone says what may be told.
        let written = self.shared.written();
        if written.seq < through {
            return Err(Failure::OutOfOrder { expected: written.seq, found: through });
        }
        if self.upkeep.has_ended() {
            return Err(Failure::Poisoned { why: "the upkeep of the journal ended".into() });
        }
        let path = &self.shared.places.wal;
        if std::fs::metadata(path).map_err(io("find", path))?.ino() != self.inode {
            (self.wal, self.inode) = open_wal(&self.shared)?;
        }
        self.wal.sync_data().map_err(io("sync", path))?;
        self.mark.write(written, self.shared.epoch)?;
        self.upkeep.call();
        Ok(())
    }
}

fn open_wal(shared: &Shared) -> Result<(File, u64), Failure> {
    let path = &shared.places.wal;
    let wal = File::open(path).map_err(io("open", path))?;
    let inode = wal.metadata().map_err(io("read", path))?.ino();
    Ok((wal, inode))
}

impl Syncer for WalSyncer {
    fn sync(&mut self, through: Seq) -> Result<(), Error> {
        self.shared.refuse_after_failure()?;
        let carried = self.carry(through);
        Ok(self.shared.remember_failure(carried)?)
    }
}
