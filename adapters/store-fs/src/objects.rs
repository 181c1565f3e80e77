//! Sealed artifacts as the stale manager sees them: what there is, and the way into the trash and back.
//!
//! One rename moves an object; it is taken with the lock under which objects get their names, and only if the file is
//! the one that was looked at: a step that seals the same content meanwhile gives the name to another file, which stays.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use eclosion_schemas::error::{Code, Error};
use eclosion_schemas::events::Moved;
use eclosion_schemas::ops::gc::{Item, ItemKind};
use eclosion_schemas::{Digest, ItemId, Timestamp};
use eclosion_stale_manager::{Found, Stock};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;

use crate::failure::{Failure, failed};
use crate::{FileStore, files, lock};

/// Of [`Stat::st_blocks`], whatever the file system's own blocks are.
const BLOCK_BYTES: u64 = 512;

/// See the head of this file.
#[derive(Debug, Clone)]
pub struct ObjectStock(Arc<FileStore>);

impl ObjectStock {
    #[must_use]
    pub fn new(store: Arc<FileStore>) -> Self {
        Self(store)
    }
}

impl Stock for ObjectStock {
    fn kind(&self) -> ItemKind {
        ItemKind::Artifact
    }

    fn survey(&self) -> Result<Vec<Found>, Error> {
        Ok(self.0.all_objects()?)
    }

    fn trash(&self, item: &ItemId, token: &str, place: &str) -> Moved {
        let moved = digest(item).and_then(|digest| self.0.trash_object(&digest, token, place));
        moved.unwrap_or_else(|why| Moved::Failed { error: why.into() })
    }

    fn restore(&self, item: &ItemId, place: &str) -> Result<(), Error> {
        Ok(digest(item).and_then(|digest| self.0.restore_object(&digest, place))?)
    }

    fn purge(&self, place: &str) -> Result<u64, Error> {
        Ok(self.0.purge_object(place)?)
    }
}

fn digest(item: &ItemId) -> Result<Digest, Failure> {
    Digest::new(item.as_str()).map_err(|_| Failure::NotAnItem { id: item.clone() })
}

impl FileStore {
    fn all_objects(&self) -> Result<Vec<Found>, Failure> {
        let mut all = Vec::new();
        for shard in files::list(self.objects.as_fd())? {
            let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let Ok(directory) = rustix::fs::openat(&self.objects, &shard, flags, Mode::empty()) else {
                continue;
            };
            for rest in files::list(directory.as_fd())? {
                let Ok(id) = ItemId::new(format!("{shard}{rest}")) else { continue };
                // What goes meanwhile is not there.
                let Some(stat) = regular(&directory, &rest)? else { continue };
                let mut found = Found::new(Item::new(ItemKind::Artifact, id), bytes(&stat), touched(&stat));
                found.token = token(&stat);
                found.what = "bytes".into();
                all.push(found);
            }
        }
        Ok(all)
    }

    fn trash_object(&self, digest: &Digest, expected: &str, place: &str) -> Result<Moved, Failure> {
        let (shard, rest) = files::names(digest)?;
        let _naming = lock(&self.unsynced);
        if regular(&self.trash, place)?.is_some() {
            return Ok(Moved::Trashed);
        }
        let directory = files::subdirectory(&self.objects, shard)?;
        let Some(stat) = regular(&directory, rest)? else { return Ok(Moved::Gone) };
        if token(&stat) != expected {
            return Ok(Moved::Kept { why: "a step has written the same content again".into() });
        }
        rustix::fs::renameat(&directory, rest, &self.trash, place)
            .map_err(failed("collecting an artifact"))?;
        lock(&self.verified).remove(digest);
        files::sync_file(&self.trash)?;
        files::sync_file(&directory)?;
        Ok(Moved::Trashed)
    }

    fn restore_object(&self, digest: &Digest, place: &str) -> Result<(), Failure> {
        let (shard, rest) = files::names(digest)?;
        let _naming = lock(&self.unsynced);
        let directory = files::subdirectory(&self.objects, shard)?;
        let flags = RenameFlags::NOREPLACE;
        match rustix::fs::renameat_with(&self.trash, place, &directory, rest, flags) {
            Ok(()) => {}
            // The same content was written again: one of them is enough.
            Err(Errno::EXIST) => files::remove(&self.trash, place),
            Err(Errno::NOENT) if regular(&directory, rest)?.is_some() => {}
            Err(Errno::NOENT) => return Err(Failure::Missing { digest: digest.clone() }),
            Err(why) => return Err(failed("restoring an artifact")(why)),
        }
        files::sync_file(&directory)?;
        files::sync_file(&self.trash)
    }

    fn purge_object(&self, place: &str) -> Result<u64, Failure> {
        let Some(stat) = regular(&self.trash, place)? else { return Ok(0) };
        match rustix::fs::unlinkat(&self.trash, place, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(why) => return Err(failed("purging an artifact")(why)),
        }
        files::sync_file(&self.trash)?;
        Ok(bytes(&stat))
    }
}

/// What a name in a directory is, if it is a file.
pub(crate) fn regular(directory: &OwnedFd, name: &str) -> Result<Option<Stat>, Failure> {
    match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => Ok(Some(stat)),
        Ok(_) | Err(Errno::NOENT) => Ok(None),
        Err(why) => Err(failed("looking at an artifact")(why)),
    }
}

/// What it takes, holes left out.
pub(crate) fn bytes(stat: &Stat) -> u64 {
    u64::try_from(stat.st_blocks).unwrap_or(0) * BLOCK_BYTES
}

/// When it was written or got its name, whichever is later.
pub(crate) fn touched(stat: &Stat) -> Timestamp {
    let ms = |seconds: i64, nanos: u64| u64::try_from(seconds).unwrap_or(0) * 1000 + nanos / 1_000_000;
    Timestamp(ms(stat.st_mtime, stat.st_mtime_nsec).max(ms(stat.st_ctime, stat.st_ctime_nsec)))
}

/// Another file of the same name differs in it: this one's inode is not given away while it exists.
fn token(stat: &Stat) -> String {
    format!("{}.{}.{}", stat.st_ino, stat.st_ctime, stat.st_ctime_nsec)
}

impl Failure {
    pub(crate) fn unavailable(what: impl std::fmt::Display, why: &std::io::Error) -> Error {
        Error::new(Code::Unavailable, "gc.io", format!("{what}: {why}"))
            .help("df -h and dmesg say whether the disk is full or failing")
    }
}
