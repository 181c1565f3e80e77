//! The journal in one SQLite database: an adapter behind [`eclosion_kernel::journal::JournalStore`].
//!
//! ```text
//! DIR/lock           held (flock) for as long as a kernel lives on DIR; names its pid
//! DIR/journal.db     tables `meta`, `events`, `rows`, in WAL mode with synchronous=NORMAL; rows follow their records
//! DIR/journal.db-wal what is written; kept for ever, emptied by checkpoints only
//! DIR/journal.mark   what is synced: last seq and its chain, in two alternating slots
//! DIR/damaged-N      copies of a journal that was refused at record N
//! ```
//!
//! Ownership: [`SqliteJournal`] is the writer's (one connection, one transaction a batch), `syncer::WalSyncer` the
//! syncer's (a descriptor of the WAL, the mark, a connection for checkpoints), `reader::ReaderPool` everybody's
//! (read-only connections). They share [`Shared`] and nothing else.
//!
//! SQLite is not trusted with what it cannot promise. It opens a WAL with a flipped bit in the middle and silently
//! drops what follows; so each event row carries a checksum chained over the one before, and the mark remembers how
//! far the chain had come when it was synced. Invariants:
//! 1. *written*: `append` returned; the frames are in the page cache and survive the death of the process.
//! 2. *synced*: the WAL was synced after the commit, and then the mark was written. The mark never runs ahead of a sync;
//!    its own sync follows within milliseconds, because it is not what makes a record durable: it is there to notice a
//!    disk that loses later what it had.
//! 3. Opening goes lock → chain → mark → tail written again and synced → epoch raised and synced. Damage is refused and left as it
//!    is, with a copy beside it; [`Options::accept_loss`] goes on from the last record that is whole.
//! 4. A failed write, sync, mark or checkpoint is never tried again: everything is refused from then on.
//!
//! It does not decide who may append, in which order or when to sync: that is the kernel's sequencer. The stored
//! format is described in `schemas/PROTOCOL.md`, "The journal on disk", and read by a decoder in another language.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use eclosion_kernel::journal::{Opened, Projection};
use eclosion_schemas::error::Error;
use eclosion_schemas::{Epoch, Seq};

mod chain;
mod database;
mod error;
mod lock;
mod mark;
mod pending;
mod reader;
mod salvage;
mod scan;
mod syncer;
mod upkeep;
mod wal;
mod writer;

pub use error::Failure;
pub use writer::SqliteJournal;

use chain::Chain;
use error::{Damage, io};
use lock::DirectoryLock;
use mark::{Mark, MarkFile};
use pending::Pending;

/// What the WAL is made to begin with: some more than the syncer lets it hold before a checkpoint.
const WAL_BYTES: u64 = 6 * 1024 * 1024;

/// How a directory is opened.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Go on from the last whole record of a damaged journal, instead of refusing it. The damaged files stay beside it.
    pub accept_loss: bool,
    /// What derives rows, all of them: after a death the newest are derived again, after an accepted loss all.
    pub projections: Vec<Projection>,
}

/// A place in the chain: the last record that was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) seq: Seq,
    pub(crate) chain: Chain,
}

/// What writer, syncer and readers know of each other.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) places: Places,
    pub(crate) epoch: Epoch,
    pub(crate) pending: Pending,
    written: Mutex<Position>,
    failed: OnceLock<Arc<str>>,
    restarts: AtomicU64,
    restarts_busy: AtomicU64,
    /// Released when the last of the three is gone.
    _lock: DirectoryLock,
}

impl Shared {
    pub(crate) fn written(&self) -> Position {
        *self.position()
    }

    pub(crate) fn advance(&self, to: Position) {
        *self.position() = to;
    }

    pub(crate) fn refuse_after_failure(&self) -> Result<(), Failure> {
        self.failed.get().map_or(Ok(()), |why| Err(Failure::Poisoned { why: Arc::clone(why) }))
    }

    /// What failed once is never tried again, by none of them.
    pub(crate) fn remember_failure<T>(&self, outcome: Result<T, Failure>) -> Result<T, Failure> {
        outcome.inspect_err(|failure| {
            self.failed.get_or_init(|| failure.to_string().into());
        })
    }

    pub(crate) fn count_restart(&self, busy: bool) {
        self.restarts.fetch_add(1, Ordering::Relaxed);
        self.restarts_busy.fetch_add(u64::from(busy), Ordering::Relaxed);
    }

    fn position(&self) -> MutexGuard<'_, Position> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The files of one journal.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    pub(crate) directory: PathBuf,
    pub(crate) database: PathBuf,
    pub(crate) wal: PathBuf,
    pub(crate) mark: PathBuf,
}

impl Places {
    fn below(directory: &Path) -> Self {
        let at = |name: &str| directory.join(name);
        Self {
            directory: directory.to_owned(),
            database: at("journal.db"),
            wal: at("journal.db-wal"),
            mark: at("journal.mark"),
        }
    }

    /// Makes names that were created in the directory durable.
    pub(crate) fn sync_directory(&self) -> Result<(), Failure> {
        let directory = File::open(&self.directory).map_err(io("open", &self.directory))?;
        directory.sync_all().map_err(io("sync", &self.directory))
    }
}

impl SqliteJournal {
    /// Begins another life on `directory`, which is created (0700) if it is missing. Nothing is served before this has
    /// returned: everything in the journal is verified and synced, and the epoch is raised and synced.
    ///
    /// # Errors
    /// `conflict` `journal.locked` while another kernel lives there; `data_loss` `journal.truncated` or
    /// `journal.corrupt` when records are missing or differ; `unavailable` `journal.io` when the disk refuses.
    pub fn open(directory: &Path, options: &Options) -> Result<(Self, Opened), Error> {
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(io("create", directory))?;
        let places = Places::below(&fs::canonicalize(directory).map_err(io("find", directory))?);
        let lock = DirectoryLock::take(&places.directory)?;
        salvage::finish(&places)?;
        let verified = match verify(&places) {
            Err(Failure::Damaged(damage)) if options.accept_loss => {
                salvage::rebuild(&places, &damage, &options.projections)?;
                verify(&places)
            }
            Err(Failure::Damaged(damage)) => return Err(salvage::refuse(&places, *damage).into()),
            verified => verified,
        }?;
        Ok(begin(places, lock, verified, &options.projections)?)
    }
}

/// How often the writer had to pause until the WAL began anew, and how often somebody's read was in the way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pauses {
    pub pauses: u64,
    pub busy: u64,
}

impl SqliteJournal {
    #[must_use]
    pub fn pauses(&self) -> Pauses {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Pauses { pauses: read(&self.shared().restarts), busy: read(&self.shared().restarts_busy) }
    }
}

/// A journal that holds what it promised.
struct Verified {
    connection: rusqlite::Connection,
    last: Position,
    mark: Option<Mark>,
    epoch: Epoch,
}

fn verify(places: &Places) -> Result<Verified, Failure> {
    let mark = MarkFile::read(&places.mark).map_err(|failure| failure.promising(0))?;
    let promised = mark.map_or(0, |mark| mark.last.seq.0);
    // SQLite would take an empty file for a new database, and delete the WAL that belongs to it.
    let length = std::fs::metadata(&places.database).map_or(0, |found| found.len());
    if promised > 0 && length == 0 {
        return Err(Failure::Damaged(Box::new(Damage::truncated(Seq(0), promised))));
    }
    let check = || {
        let connection = if promised > 0 {
            database::open_existing(&places.database)?
        } else {
            database::open_or_create(&places.database)?
        };
        let last = scan::verify(&connection, mark.map(|mark| mark.last))?;
        if mark.is_none() && last.seq > Seq(0) {
            return Err(Damage::corrupt(Seq(0), "journal.mark is missing").into());
        }
        let epoch = database::epoch(&connection)?;
        Ok(Verified { connection, last, mark, epoch })
    };
    check().map_err(|failure: Failure| failure.promising(promised))
}

/// Fills the WAL up with zeros, which SQLite takes for what follows a torn tail. A sync then finds blocks that are there
/// and has no metadata to write, which halves it. Once in the life of a WAL, and only while nobody writes to it.
fn lengthen(mut wal: &File) -> std::io::Result<()> {
    let missing = WAL_BYTES.saturating_sub(wal.metadata()?.len());
    std::io::copy(&mut std::io::repeat(0).take(missing), &mut wal).map(drop)
}

/// Writes the same bytes over themselves. A sync that failed in an earlier life has left pages in the cache that count as
/// clean and are not on the disk: they are read as if nothing had happened, and the next sync has nothing to do for them.
fn write_again(path: &Path) -> std::io::Result<()> {
    const CHUNK_BYTES: usize = 256 * 1024;
    let wal = OpenOptions::new().read(true).write(true).open(path)?;
    let (mut chunk, mut at) = (vec![0; CHUNK_BYTES], 0);
    loop {
        let read = wal.read_at(&mut chunk, at)?;
        let Some(bytes) = chunk.get(..read).filter(|bytes| !bytes.is_empty()) else { return Ok(()) };
        wal.write_all_at(bytes, at)?;
        at += read as u64;
    }
}

/// Syncs what was found and raises the epoch: nothing that is read from now on can disappear again.
fn begin(
    places: Places,
    lock: DirectoryLock,
    verified: Verified,
    projections: &[Projection],
) -> Result<(SqliteJournal, Opened), Failure> {
    let Verified { connection, last, mark, epoch } = verified;
    let epoch = Epoch(epoch.max(mark.map_or(Epoch(0), |mark| mark.epoch)).0 + 1);
    if last.seq > mark.map_or(Seq(0), |mark| mark.last.seq) {
        write_again(&places.wal).map_err(io("write again", &places.wal))?;
    }
    let pending = Pending::begin(&connection, last, projections)?;
    database::raise_epoch(&connection, epoch)?;
    let wal = OpenOptions::new().append(true).open(&places.wal).map_err(io("open", &places.wal))?;
    if let Err(why) = lengthen(&wal) {
        tracing::warn!(%why, "the journal's WAL has no room reserved; syncs take longer");
    }
    wal.sync_data().map_err(io("sync", &places.wal))?;
    places.sync_directory()?;
    mark::write_synced(&places.mark, last, epoch)?;
    places.sync_directory()?;
    let shared = Arc::new(Shared {
        places,
        epoch,
        pending,
        written: Mutex::new(last),
        failed: OnceLock::new(),
        restarts: AtomicU64::new(0),
        restarts_busy: AtomicU64::new(0),
        _lock: lock,
    });
    let journal = SqliteJournal::new(connection, shared)?;
    Ok((journal, Opened { epoch, last: last.seq }))
}
