//! Every journal store, over the same cases.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use eclosion_conformance::journal::{Disk, MemoryDisk};
use eclosion_conformance::journal_conforms;
use eclosion_journal_sqlite::{Options, SqliteJournal};
use eclosion_kernel::journal::Opened;
use eclosion_schemas::error::Error;

struct Directory(tempfile::TempDir);

impl Default for Directory {
    fn default() -> Self {
        Self(tempfile::tempdir().unwrap())
    }
}

impl Disk for Directory {
    type Store = SqliteJournal;

    fn open(&self) -> Result<(SqliteJournal, Opened), Error> {
        SqliteJournal::open(&self.0.path().join("state"), &Options::default())
    }
}

journal_conforms!(memory, super::MemoryDisk);
journal_conforms!(sqlite, super::Directory);
