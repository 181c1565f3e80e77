//! The files of a journal, one of them changed. Two journals: one whose records are in the WAL, one whose records are in
//! the database.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use eclosion_conformance::journal::{read_all, records};
use eclosion_journal_sqlite::{Options, SqliteJournal};
use eclosion_kernel::journal::{JournalStore, Record};
use eclosion_schemas::{Code, Epoch, Seq};
use tempfile::TempDir;

use super::{Target, claim};
use crate::memory::Bound;

const SYNCED: u64 = 30;
const WRITTEN: u64 = 40;
const FILES: [&str; 3] = ["journal.db", "journal.db-wal", "journal.mark"];

type Files = BTreeMap<&'static str, Vec<u8>>;

/// What there was before it was changed.
#[derive(Debug)]
pub struct Journal {
    originals: [Files; 2],
    expected: Vec<Arc<Record>>,
}

/// An input is a few changes: which journal, which file, and then triples of what, where and with what.
pub(super) fn target() -> Target {
    let journal = Journal::new();
    Target {
        name: "journal",
        cases: 100,
        // SQLite's memory is its own; of ours, a journal is read record by record.
        bound: Bound { each: 0, base: 8 << 20 },
        corpus: || vec![vec![0; 16], vec![1; 16], vec![2; 24], vec![255; 16], (0..32).collect()],
        check: Box::new(move |bytes| journal.as_ref().map_err(Clone::clone)?.check(bytes)),
    }
}

impl Journal {
    /// # Errors
    /// When no journal can be written here.
    pub fn new() -> Result<Self, String> {
        Self::made().map_err(|why| format!("no journal: {why}"))
    }

    fn made() -> Result<Self, Box<dyn std::error::Error>> {
        let directory = scratch()?;
        let (mut store, opened) = SqliteJournal::open(directory.path(), &Options::default())?;
        let mut syncer = store.syncer()?;
        for seq in 1..=WRITTEN {
            store.append(&records(seq..=seq, opened.epoch), &[])?;
            if seq == SYNCED {
                syncer.sync(Seq(seq))?;
            }
        }
        let in_wal = read(directory.path())?;
        store.relieve()?;
        drop((store, syncer));
        let in_database = read(directory.path())?;
        Ok(Self { originals: [in_wal, in_database], expected: records(1..=WRITTEN, Epoch(1)) })
    }

    /// # Errors
    /// What did not hold.
    pub fn check(&self, bytes: &[u8]) -> Result<(), String> {
        let directory = scratch().map_err(|why| why.to_string())?;
        let what = self.damage(bytes, &directory).map_err(|why| why.to_string())?;
        match SqliteJournal::open(directory.path(), &Options::default()) {
            Err(refusal) => {
                let help = refusal.help.as_deref().unwrap_or_default();
                let is_said = refusal.code == Code::DataLoss && help.contains("--accept-loss");
                claim(is_said, || format!("{what}: it is refused with {refusal:?}"))
            }
            Ok((store, opened)) => {
                let found = read_all(&*store.reader(), 0, &[]);
                claim(opened.last.0 >= SYNCED, || {
                    format!("{what}: only {} of {SYNCED} synced", opened.last)
                })?;
                claim(found.len() as u64 == opened.last.0, || format!("{what}: {} records", found.len()))?;
                let is_prefix =
                    found.iter().zip(&self.expected).all(|(found, expected)| is_same(found, expected));
                claim(is_prefix, || format!("{what}: other records were read"))
            }
        }
    }

    /// Writes the files with the changes that `bytes` says, all in one of them.
    fn damage(&self, bytes: &[u8], directory: &TempDir) -> std::io::Result<String> {
        let mut bytes = bytes.iter().copied().chain(std::iter::repeat(0));
        let mut byte = || usize::from(bytes.next().unwrap_or_default());
        let mut files = self.originals[byte() % 2].clone();
        let name = FILES[byte() % FILES.len()];
        let mut what = name.to_owned();
        for _ in 0..=byte() % 3 {
            let (kind, at, with) = (byte() % 4, byte() << 16 | byte() << 8 | byte(), byte());
            let Some(file) = files.get_mut(name).filter(|file| !file.is_empty()) else { continue };
            let at = at % file.len();
            what = format!("{what}, {kind} at {at} with {with}");
            match kind {
                0 => file[at] ^= 1 << (with % 8),
                1 => file[at..].iter_mut().take(1 + with).for_each(|byte| *byte = 0),
                2 => file.truncate(at),
                // As when a block is written to another place.
                _ => {
                    let from = at / 512 * 512;
                    let block: Vec<u8> = file[from..].iter().take(512).copied().collect();
                    let to = with * 512 % file.len();
                    file[to..].iter_mut().zip(block).for_each(|(byte, new)| *byte = new);
                }
            }
        }
        for (name, content) in files {
            fs::write(directory.path().join(name), content)?;
        }
        Ok(what)
    }
}

/// In memory where there is such a place: it is content that counts, and nobody waits for a disk.
fn scratch() -> std::io::Result<TempDir> {
    let shared = Path::new("/dev/shm");
    if shared.is_dir() { tempfile::tempdir_in(shared) } else { tempfile::tempdir() }
}

fn read(directory: &Path) -> std::io::Result<Files> {
    FILES.into_iter().map(|name| Ok((name, fs::read(directory.join(name))?))).collect()
}

fn is_same(found: &Record, expected: &Record) -> bool {
    (found.seq, found.epoch, found.at, &found.kind)
        == (expected.seq, expected.epoch, expected.at, &expected.kind)
        && (found.version, found.cause, &found.body) == (expected.version, expected.cause, &expected.body)
}
