//! Artifacts as files: staged, sealed under their digest, verified, quarantined.
//!
//! ```text
//! DIR/stage/N         preallocated, written by a worker through its descriptor
//!    seal: hash by our own reading, mode 0400, rename
//! DIR/objects/ab/cd…  named by its BLAKE3, immutable        ── verify differs ──► DIR/quarantine/
//! ```
//!
//! Everything is opened relative to the directory's own descriptor, and nothing from outside ever reaches a path: a
//! token is a number, a digest is 64 hexadecimal characters.
//!
//! Invariants: (1) an object's name is the hash of what we read from it when we sealed it. (2) [`FileStore::sync`]
//! syncs each file before the directory that names it, so a power cut leaves either no object or a whole one. (3) What
//! is left in `stage` when the store is opened belongs to nobody and is removed.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use eclosion_artifact_store::BlobStore;
use eclosion_schemas::{Code, Digest, Error, Retry};
use rustix::fs::{AtFlags, FallocateFlags, Mode, OFlags};

const STAGE: &str = "stage";
const OBJECTS: &str = "objects";
const QUARANTINE: &str = "quarantine";
/// Read at once while hashing.
const PIECE_BYTES: usize = 256 * 1024;
/// Files that may be staged at a time.
const STAGED_MAX: usize = 4096;

/// See the head of this file.
#[derive(Debug)]
pub struct FileStore {
    directory: OwnedFd,
    next: AtomicU64,
    staged: Mutex<BTreeMap<u64, OwnedFd>>,
    /// Sealed, and not on the disk yet.
    unsynced: Mutex<Vec<(Digest, File)>>,
}

impl FileStore {
    /// Opens a store, making its directories and removing what an earlier life had staged.
    ///
    /// # Errors
    /// `unavailable` when the directories cannot be made or opened.
    pub fn open(directory: &Path) -> Result<Self, Error> {
        for name in [STAGE, OBJECTS, QUARANTINE] {
            let path = directory.join(name);
            DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(|why| disk(&why))?;
        }
        for left in std::fs::read_dir(directory.join(STAGE)).map_err(|why| disk(&why))? {
            std::fs::remove_file(left.map_err(|why| disk(&why))?.path()).map_err(|why| disk(&why))?;
        }
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY;
        let opened = rustix::fs::open(directory, flags, Mode::empty()).map_err(|why| disk(&why.into()))?;
        let (staged, unsynced) = (Mutex::default(), Mutex::default());
        Ok(Self { directory: opened, next: AtomicU64::new(1), staged, unsynced })
    }

    fn open_object(&self, digest: &Digest) -> Result<File, Error> {
        let path = object_path(digest)?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        match rustix::fs::openat(&self.directory, path, flags, Mode::empty()) {
            Ok(file) => Ok(File::from(file)),
            Err(rustix::io::Errno::NOENT) => Err(missing(digest)),
            Err(why) => Err(disk(&why.into())),
        }
    }

    /// Gives a staged file its name; one of equal content may have it already.
    fn name(&self, stage: u64, digest: &Digest) -> Result<(), Error> {
        let (from, to) = (stage_path(stage), object_path(digest)?);
        let fan = &to[..to.rfind('/').unwrap_or(0)];
        match rustix::fs::mkdirat(&self.directory, fan, Mode::RWXU) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(why) => return Err(disk(&why.into())),
        }
        rustix::fs::renameat(&self.directory, from, &self.directory, to).map_err(|why| disk(&why.into()))
    }
}

impl BlobStore for FileStore {
    fn stage(&self, bytes: u64) -> Result<(u64, OwnedFd), Error> {
        if lock(&self.staged).len() >= STAGED_MAX {
            return Err(Error::new(Code::Exhausted, "artifact.staged", "too many files are staged")
                .retry(Retry::After { after_ms: 100 }));
        }
        let stage = self.next.fetch_add(1, Ordering::Relaxed);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = rustix::fs::openat(&self.directory, stage_path(stage), flags, mode)
            .map_err(|why| disk(&why.into()))?;
        let reserved =
            if bytes == 0 { Ok(()) } else { rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes) };
        let given = reserved.map_err(io::Error::from).and_then(|()| file.try_clone());
        match given {
            Ok(given) => {
                lock(&self.staged).insert(stage, file);
                Ok((stage, given))
            }
            Err(why) => {
                remove(&self.directory, stage);
                Err(disk(&why))
            }
        }
    }

    fn seal(&self, stage: u64) -> Result<(Digest, u64), Error> {
        let Some(file) = lock(&self.staged).remove(&stage) else {
            return Err(Error::not_found("artifact.stage", format!("nothing is staged as {stage}")));
        };
        // The worker may still hold its descriptor. Whatever it writes from now on is found by `verify`.
        rustix::fs::fchmod(&file, Mode::RUSR).map_err(|why| disk(&why.into()))?;
        let file = File::from(file);
        let (digest, bytes) = hash(&file).map_err(|why| disk(&why))?;
        self.name(stage, &digest)?;
        lock(&self.unsynced).push((digest.clone(), file));
        Ok((digest, bytes))
    }

    fn discard(&self, stage: u64) {
        if lock(&self.staged).remove(&stage).is_some() {
            remove(&self.directory, stage);
        }
    }

    fn open(&self, digest: &Digest) -> Result<(OwnedFd, u64), Error> {
        let file = self.open_object(digest)?;
        let bytes = file.metadata().map_err(|why| disk(&why))?.len();
        Ok((file.into(), bytes))
    }

    fn verify(&self, digest: &Digest) -> Result<u64, Error> {
        let (found, bytes) = hash(&self.open_object(digest)?).map_err(|why| disk(&why))?;
        if found == *digest {
            return Ok(bytes);
        }
        let away = format!("{QUARANTINE}/{digest}");
        let moved = rustix::fs::renameat(&self.directory, object_path(digest)?, &self.directory, away);
        moved.map_err(|why| disk(&why.into()))?;
        tracing::error!(%digest, %found, "an artifact is not what its name says; it was moved to quarantine");
        Err(Error::new(
            Code::DataLoss,
            "artifact.hash_mismatch",
            format!("{digest} is not what its name says"),
        )
        .help("it was moved to quarantine; run the task that made it again"))
    }

    fn sync(&self) -> Result<(), Error> {
        let unsynced = std::mem::take(&mut *lock(&self.unsynced));
        if unsynced.is_empty() {
            return Ok(());
        }
        let mut fans = std::collections::BTreeSet::new();
        for (digest, file) in &unsynced {
            file.sync_data().map_err(|why| disk(&why))?;
            let path = object_path(digest)?;
            fans.insert(path[..path.rfind('/').unwrap_or(0)].to_owned());
        }
        for fan in fans.iter().map(String::as_str).chain([OBJECTS]) {
            let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
            let opened = rustix::fs::openat(&self.directory, fan, flags, Mode::empty());
            opened.and_then(rustix::fs::fsync).map_err(|why| disk(&why.into()))?;
        }
        Ok(())
    }
}

fn hash(file: &File) -> io::Result<(Digest, u64)> {
    let (mut hasher, mut piece, mut at) = (blake3::Hasher::new(), vec![0; PIECE_BYTES], 0);
    loop {
        let read = std::os::unix::fs::FileExt::read_at(file, &mut piece, at)?;
        if read == 0 {
            let digest = hasher.finalize().to_hex().to_string();
            return Ok((Digest::new(digest).map_err(io::Error::other)?, at));
        }
        hasher.update(&piece[..read]);
        at += read as u64;
    }
}

fn object_path(digest: &Digest) -> Result<String, Error> {
    if !digest.is_blake3() {
        return Err(Error::invalid("artifact.digest", format!("`{digest}` is no BLAKE3 digest")));
    }
    let (fan, rest) = digest.as_str().split_at(2);
    Ok(format!("{OBJECTS}/{fan}/{rest}"))
}

fn stage_path(stage: u64) -> String {
    format!("{STAGE}/{stage}")
}

fn remove(directory: impl AsFd, stage: u64) {
    if let Err(why) = rustix::fs::unlinkat(directory, stage_path(stage), AtFlags::empty()) {
        tracing::debug!(stage, %why, "a staged file is left; it goes at the next start");
    }
}

fn missing(digest: &Digest) -> Error {
    Error::not_found("artifact.missing", format!("the file of {digest} is missing"))
        .help("run the task that made it again, or: eclosion artifact ls")
}

fn disk(why: &io::Error) -> Error {
    match why.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            Error::new(Code::Exhausted, "artifact.disk", format!("the disk is full: {why}"))
                .help("free space on the state directory's disk; eclosion status shows where it is")
        }
        _ => Error::new(Code::Unavailable, "artifact.disk", format!("the artifact store's disk: {why}")),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads a whole object that was verified; for small ones.
///
/// # Errors
/// As [`BlobStore::open`].
pub fn read(store: &dyn BlobStore, digest: &Digest) -> Result<Vec<u8>, Error> {
    let (file, bytes) = store.open(digest)?;
    let mut content = Vec::with_capacity(usize::try_from(bytes).unwrap_or(0));
    File::from(file).read_to_end(&mut content).map_err(|why| disk(&why))?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn store() -> (tempfile::TempDir, FileStore) {
        let directory = tempfile::tempdir().unwrap();
        let store = FileStore::open(directory.path()).unwrap();
        (directory, store)
    }

    fn put(store: &FileStore, content: &[u8]) -> Digest {
        let (stage, file) = store.stage(content.len() as u64).unwrap();
        File::from(file).write_all(content).unwrap();
        store.seal(stage).unwrap().0
    }

    #[test]
    fn an_object_is_named_by_what_was_written() {
        let (_directory, store) = store();
        let digest = put(&store, b"wings");
        assert_eq!(digest.as_str(), blake3::hash(b"wings").to_hex().as_str());
        assert_eq!(put(&store, b"wings"), digest);
        store.sync().unwrap();
        assert_eq!((read(&store, &digest).unwrap(), store.verify(&digest).unwrap()), (b"wings".to_vec(), 5));
    }

    #[test]
    fn a_changed_object_goes_to_quarantine() {
        let (directory, store) = store();
        let digest = put(&store, b"wings");
        let path = directory.path().join(object_path(&digest).unwrap());
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, b"w1ngs").unwrap();
        assert_eq!(store.verify(&digest).unwrap_err().reason, "artifact.hash_mismatch");
        assert_eq!(store.open(&digest).unwrap_err().reason, "artifact.missing");
        assert!(directory.path().join(QUARANTINE).join(digest.as_str()).exists());
    }

    #[test]
    fn what_was_staged_by_an_earlier_life_is_removed() {
        let (directory, store) = store();
        store.stage(10).unwrap();
        let (discarded, _) = store.stage(10).unwrap();
        store.discard(discarded);
        let left = || std::fs::read_dir(directory.path().join(STAGE)).unwrap().count();
        assert_eq!(left(), 1);
        drop(store);
        FileStore::open(directory.path()).unwrap();
        assert_eq!(left(), 0);
    }

    #[test]
    fn a_digest_never_becomes_a_path() {
        let (_directory, store) = store();
        for bad in ["..", "abc", &"A".repeat(64)] {
            let digest = Digest::new(bad).unwrap();
            assert_eq!(store.open(&digest).unwrap_err().reason, "artifact.digest");
        }
        assert_eq!(store.seal(99).unwrap_err().reason, "artifact.stage");
    }
}
