//! Things in a directory as the stale manager sees them: logs, scratch, environments. What belongs together (the three
//! files of a worker's output) is one item.
//!
//! ```text
//! DIRECTORY/NAME…   ── trash: gathered in TRASH/PLACE.part, then renamed ──► TRASH/PLACE/NAME…  ── purge ──► gone
//!        ▲───────────────────────────────── restore ────────────────────────────┘
//! ```
//!
//! Both directories are in one file system. Each call may be repeated after a death at any point: what was gathered is
//! found gathered, what is half restored is restored, what is half purged is purged.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use eclosion_schemas::error::Error;
use eclosion_schemas::events::Moved;
use eclosion_schemas::ops::gc::{Item, ItemKind};
use eclosion_schemas::{ItemId, Timestamp};
use eclosion_stale_manager::{Disk, Found, Stock};

use crate::Failure;

const BLOCK_BYTES: u64 = 512;
/// Deeper is not measured; nothing that is made here is.
const DEPTH_MAX: u32 = 64;

/// What the entries of one directory are to the stale manager.
pub trait Shape: Send + Sync + std::fmt::Debug + 'static {
    fn kind(&self) -> ItemKind;

    /// The item that an entry belongs to; `None` for what is not to be collected.
    fn item_of(&self, name: &str) -> Option<String>;

    /// The entries of an item that may be there.
    fn names_of(&self, item: &str) -> Vec<String> {
        vec![item.to_owned()]
    }

    /// Adds what only this kind knows: names, holders, the time of last use.
    fn describe(&self, directory: &Path, found: &mut Found);

    /// Keeps others from taking the item into use while it is moved; it is let go when the answer is dropped.
    ///
    /// # Errors
    /// Who uses it, in words.
    fn claim(&self, _directory: &Path, _item: &str) -> Result<Vec<File>, String> {
        Ok(Vec::new())
    }
}

/// See the head of this file.
#[derive(Debug)]
pub struct Directory<S> {
    shape: S,
    directory: PathBuf,
    trash: PathBuf,
}

impl<S: Shape> Directory<S> {
    /// Neither needs to exist.
    pub fn new(shape: S, directory: PathBuf, trash: PathBuf) -> Self {
        Self { shape, directory, trash }
    }

    fn all(&self) -> io::Result<Vec<Found>> {
        let mut items: BTreeMap<String, (u64, u64, u64)> = BTreeMap::new();
        for entry in entries(&self.directory)? {
            let Some(item) = entry.file_name().to_str().and_then(|name| self.shape.item_of(name)) else {
                continue;
            };
            // What goes meanwhile is not there.
            let Ok(found) = entry.metadata() else { continue };
            let sum = items.entry(item).or_default();
            sum.0 += measure(&entry.path(), DEPTH_MAX);
            sum.1 = sum.1.max(modified_ms(&found));
            sum.2 = sum.2.max(found.ino());
        }
        let found = items.into_iter().filter_map(|(name, (bytes, used_ms, inode))| {
            let item = Item::new(self.shape.kind(), ItemId::new(name).ok()?);
            let mut found = Found::new(item, bytes, Timestamp(used_ms));
            found.token = inode.to_string();
            self.shape.describe(&self.directory, &mut found);
            Some(found)
        });
        Ok(found.collect())
    }

    fn gather(&self, item: &str, place: &str) -> io::Result<Moved> {
        let (whole, part) = (self.trash.join(place), self.trash.join(format!("{place}.part")));
        if whole.exists() {
            return Ok(Moved::Trashed);
        }
        let is_there = self.shape.names_of(item).iter().any(|name| self.directory.join(name).exists());
        if !is_there && !part.exists() {
            return Ok(Moved::Gone);
        }
        let claim = match self.shape.claim(&self.directory, item) {
            Ok(claim) => claim,
            Err(why) => return Ok(Moved::Kept { why }),
        };
        fs::create_dir_all(&part)?;
        for name in self.shape.names_of(item) {
            rename(&self.directory.join(&name), &part.join(&name))?;
        }
        sync(&part)?;
        fs::rename(&part, &whole)?;
        drop(claim);
        sync(&self.trash)?;
        sync(&self.directory)?;
        Ok(Moved::Trashed)
    }

    fn bring_back(&self, item: &str, place: &str) -> io::Result<()> {
        let whole = self.trash.join(place);
        let is_there = || self.shape.names_of(item).iter().any(|name| self.directory.join(name).exists());
        if !whole.exists() {
            return if is_there() { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) };
        }
        fs::create_dir_all(&self.directory)?;
        for name in self.shape.names_of(item) {
            let (from, to) = (whole.join(&name), self.directory.join(&name));
            if !to.exists() {
                rename(&from, &to)?;
            }
        }
        sync(&self.directory)?;
        // What was made again meanwhile stays, and this copy goes.
        remove(&whole)?;
        sync(&self.trash)
    }

    fn empty(&self, place: &str) -> io::Result<u64> {
        let whole = self.trash.join(place);
        let bytes = measure(&whole, DEPTH_MAX);
        remove(&whole)?;
        if self.trash.exists() {
            sync(&self.trash)?;
            // Unless there is more in it.
            let _ = fs::remove_dir(&self.trash);
        }
        Ok(bytes)
    }
}

impl<S: Shape> Stock for Directory<S> {
    fn kind(&self) -> ItemKind {
        self.shape.kind()
    }

    fn survey(&self) -> Result<Vec<Found>, Error> {
        self.all().map_err(|why| Failure::unavailable(self.directory.display(), &why))
    }

    fn trash(&self, item: &ItemId, _: &str, place: &str) -> Moved {
        match self.gather(item.as_str(), place) {
            Ok(moved) => moved,
            Err(why) => Moved::Failed { error: Failure::unavailable(format!("collecting {item}"), &why) },
        }
    }

    fn restore(&self, item: &ItemId, place: &str) -> Result<(), Error> {
        let back = self.bring_back(item.as_str(), place);
        back.map_err(|why| Failure::unavailable(format!("restoring {item}"), &why))
    }

    fn purge(&self, place: &str) -> Result<u64, Error> {
        self.empty(place).map_err(|why| Failure::unavailable(format!("purging {place}"), &why))
    }
}

/// How full the file system is that a path is on.
#[must_use]
pub fn free(path: &Path) -> Option<Disk> {
    let found = rustix::fs::statvfs(path).ok()?;
    Some(Disk {
        free_bytes: found.f_bavail.saturating_mul(found.f_frsize),
        total_bytes: found.f_blocks.saturating_mul(found.f_frsize),
    })
}

/// None, if the directory is not there.
fn entries(directory: &Path) -> io::Result<Vec<fs::DirEntry>> {
    match fs::read_dir(directory) {
        Ok(entries) => entries.collect(),
        Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(why) => Err(why),
    }
}

/// What deleting it gives back: a file that has another name elsewhere (a package in its installer's cache) gives nothing.
fn measure(path: &Path, depth: u32) -> u64 {
    let Ok(found) = fs::symlink_metadata(path) else { return 0 };
    let own = if found.is_dir() || found.nlink() == 1 { found.blocks() * BLOCK_BYTES } else { 0 };
    if !found.is_dir() || depth == 0 {
        return own;
    }
    let inside = entries(path).unwrap_or_default();
    own + inside.iter().map(|entry| measure(&entry.path(), depth - 1)).sum::<u64>()
}

fn modified_ms(found: &fs::Metadata) -> u64 {
    u64::try_from(found.mtime()).unwrap_or(0) * 1000
        + u64::try_from(found.mtime_nsec()).unwrap_or(0) / 1_000_000
}

/// What is not there was moved by an earlier life.
fn rename(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(why) if why.kind() != io::ErrorKind::NotFound => Err(why),
        _ => Ok(()),
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(why) if why.kind() != io::ErrorKind::NotFound => Err(why),
        _ => Ok(()),
    }
}

fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}
