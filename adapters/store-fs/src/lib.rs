//! Artifacts as files: an adapter behind [`eclosion_artifact_store::BlobStore`]. Beside them what else is asked of files:
//! whether code is still what it was ([`code_files`]).
//!
//! ```text
//! DIR/stage/17          being written by a worker: preallocated, known by its token only
//! DIR/objects/ab/cdef…  sealed: read-only, named by the BLAKE3 of its bytes
//! DIR/quarantine/abcd…  was an object, until its bytes and its name differed
//! DIR/trash/17.1        was an object, until retention collected it
//! DIR/alive             there while a kernel lives here; one that finds it begins with a sync ([`life`])
//!
//!          seal                    sync
//! staged ────────► sealed ─────────────────► durable
//!    │ discard        │ verify finds a difference
//!    ▼                ▼
//!  gone           quarantined
//! ```
//!
//! Invariants: (1) Only a token or 64 hexadecimal characters ever become a name; every open is relative to a directory
//! that was opened once, and follows no link. (2) What a sealed file is called was computed here from what is in it,
//! never told by a worker. (3) When `sync` returns, everything sealed before it was called is on the disk: the file
//! before its directory, the directory before the one that holds it. (4) A failed sync is never tried again. (5) Bytes
//! are handed out only after they were compared with their name once in this life of the kernel, and `verify` finds any
//! byte of an object's file that has changed, also one that would be unpacked to the same.
//!
//! What is sealed as [`Storage::Packed`] and becomes at least a tenth smaller is kept compressed ([`packed`]), under the
//! same name: that of its raw bytes. Whoever opens it gets the raw bytes in a file of his own, in memory or without a
//! name; what readers map in common is sealed as [`Storage::Mapped`] and stays as it is. Unpacked forms are not kept for the
//! next reader: what is packed is decoded once by each, and costs a third of a second for 100 MiB, while a cache would hold
//! its raw size in memory with nobody reading, and be one more thing that retention has to find.
//!
//! What it cannot do: take a staged file away from a worker that keeps its descriptor. A worker that writes after the
//! seal damages its own output, and the next `verify` says so.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{DirBuilder, File};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use eclosion_artifact_store::{BlobStore, Storage};
use eclosion_schemas::{Digest, Error};
use rustix::fs::{CWD, FileType, MemfdFlags, Mode, OFlags, fstat};

pub mod code_files;
mod directory;
mod failure;
mod files;
mod life;
mod objects;
mod packed;

pub use directory::{Directory, Shape, free};
pub use failure::Failure;
pub use objects::ObjectStock;

use failure::failed;
use files::{hash, preallocate, sync_file};
use life::Life;
use packed::Packed;

/// Each holds a descriptor. Four workers a core that stage a dozen parts at once stay far below.
const STAGES_MAX: usize = 1024;
/// Sealed files that wait for a sync hold a descriptor each; the next seal syncs them itself.
const UNSYNCED_MAX: usize = 256;
/// Digests remembered as compared; forgotten together when there are more.
const VERIFIED_MAX: usize = 65_536;
/// An unpacked object that is handed out lies in memory up to this.
const IN_MEMORY_BYTES_MAX: u64 = 64 << 20;
/// Behind the token of a staged file that is being packed. No token ends so: what a crash leaves of it is swept.
const PACKED_SUFFIX: &str = ".packed";

/// A directory of artifacts. Calls may come from any thread.
#[derive(Debug)]
pub struct FileStore {
    stage: OwnedFd,
    objects: OwnedFd,
    quarantine: OwnedFd,
    trash: OwnedFd,
    next: AtomicU64,
    stages: Mutex<BTreeMap<u64, File>>,
    /// Taken while an object gets or loses its name.
    unsynced: Mutex<Vec<Sealed>>,
    /// Held for a whole sync, so that one that finds nothing to do waits for the one that does it.
    syncing: Mutex<()>,
    verified: Mutex<BTreeSet<Digest>>,
    failed: AtomicBool,
    life: Life,
}

#[derive(Debug)]
struct Sealed {
    file: File,
    shard: String,
}

impl FileStore {
    /// Opens `directory`, and creates it (0700) if it is missing. What was staged in an earlier life is kept until
    /// [`FileStore::sweep`], because a worker that outlived its kernel may still be writing it.
    ///
    /// # Errors
    /// `unavailable` `artifact.io` when the disk refuses.
    pub fn open(directory: &Path) -> Result<Self, Error> {
        Ok(Self::open_in(directory)?)
    }

    fn open_in(directory: &Path) -> Result<Self, Failure> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
        made.map_err(|why| Failure::Io { action: "creating the artifact directory", why })?;
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(CWD, directory, flags, Mode::empty()).map_err(failed("opening"))?;
        let [stage, objects, quarantine, trash] = [
            files::subdirectory(&root, "stage")?,
            files::subdirectory(&root, "objects")?,
            files::subdirectory(&root, "quarantine")?,
            files::subdirectory(&root, "trash")?,
        ];
        sync_file(&root)?;
        let stages = leftovers(&stage)?;
        let next = stages.keys().next_back().map_or(1, |last| last + 1);
        Ok(Self {
            stage,
            objects,
            quarantine,
            trash,
            next: AtomicU64::new(next),
            stages: Mutex::new(stages),
            unsynced: Mutex::default(),
            syncing: Mutex::default(),
            verified: Mutex::default(),
            failed: AtomicBool::new(false),
            life: Life::begin(root)?,
        })
    }

    /// Removes what was staged before `keep_from` and is not in `wanted`: call it once the survivors of an earlier
    /// life have attached. Returns how many files it removed.
    pub fn sweep(&self, keep_from: u64, wanted: &[u64]) -> usize {
        let swept: Vec<u64> = {
            let stages = lock(&self.stages);
            stages
                .range(..keep_from)
                .map(|(stage, _)| *stage)
                .filter(|stage| !wanted.contains(stage))
                .collect()
        };
        swept.iter().for_each(|stage| self.discard(*stage));
        swept.len()
    }

    /// The token that the next staged file gets; everything below it is older.
    #[must_use]
    pub fn next_stage(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    fn stage_file(&self, bytes: u64) -> Result<(u64, OwnedFd), Failure> {
        self.refuse_after_failure()?;
        if lock(&self.stages).len() >= STAGES_MAX {
            return Err(Failure::TooManyStages { limit: STAGES_MAX });
        }
        let token = self.next.fetch_add(1, Ordering::Relaxed);
        let name = token.to_string();
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.stage, &name, flags, Mode::RUSR | Mode::WUSR)
            .map_err(failed("staging"))?;
        let made = preallocate(&file, bytes)
            .and_then(|()| file.try_clone().map_err(|why| Failure::Io { action: "staging", why }));
        match made {
            Ok(for_worker) => {
                lock(&self.stages).insert(token, file.into());
                Ok((token, for_worker))
            }
            Err(why) => {
                files::remove(&self.stage, &name);
                Err(why)
            }
        }
    }

    fn seal_file(&self, stage: u64, storage: Storage) -> Result<(Digest, u64), Failure> {
        self.refuse_after_failure()?;
        // A seal that fails leaves nothing behind: the worker stages again.
        let file = lock(&self.stages).remove(&stage).ok_or(Failure::UnknownStage { stage })?;
        let sealed = self.name(stage, file, storage);
        if sealed.is_err() {
            files::remove(&self.stage, &stage.to_string());
        }
        let (digest, bytes, waiting) = sealed?;
        self.remember(&digest);
        if waiting >= UNSYNCED_MAX {
            self.sync_all()?;
        }
        Ok((digest, bytes))
    }

    /// Also gives how many sealed files wait for a sync now.
    fn name(&self, stage: u64, file: File, storage: Storage) -> Result<(Digest, u64, usize), Failure> {
        let length = file.metadata().map_err(|why| Failure::Io { action: "sealing", why })?.len();
        let packs =
            packed::begins_as_packed(&file)? || (storage == Storage::Packed && packed::pays(&file, length)?);
        if !packs {
            let (digest, bytes) = hash(&file)?;
            return self.give_name(&stage.to_string(), file, digest, bytes);
        }
        let packed_name = format!("{stage}{PACKED_SUFFIX}");
        let named = self.pack(&file, &packed_name);
        match named {
            Ok(_) => files::remove(&self.stage, &stage.to_string()),
            Err(_) => files::remove(&self.stage, &packed_name),
        }
        named
    }

    fn pack(&self, raw: &File, name: &str) -> Result<(Digest, u64, usize), Failure> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let out = rustix::fs::openat(&self.stage, name, flags, Mode::RUSR | Mode::WUSR);
        let out: File = out.map_err(failed("packing"))?.into();
        let (digest, bytes) = packed::pack(raw, &out)?;
        self.give_name(name, out, digest, bytes)
    }

    fn give_name(
        &self,
        staged: &str,
        file: File,
        digest: Digest,
        bytes: u64,
    ) -> Result<(Digest, u64, usize), Failure> {
        rustix::fs::fchmod(&file, Mode::RUSR).map_err(failed("sealing"))?;
        let (shard, rest) = files::names(&digest)?;
        let mut unsynced = lock(&self.unsynced);
        let directory = files::subdirectory(&self.objects, shard)?;
        // Over an object that is there already: its bytes are the same, or they were damaged. That one may be synced and
        // named by records that are; so this one's bytes are on the disk before it takes the name.
        if objects::regular(&directory, rest)?.is_some() {
            file.sync_data().map_err(|why| Failure::Io { action: "sealing", why })?;
        }
        rustix::fs::renameat(&self.stage, staged, &directory, rest).map_err(failed("sealing"))?;
        unsynced.push(Sealed { file, shard: shard.to_owned() });
        Ok((digest, bytes, unsynced.len()))
    }

    fn open_object(&self, digest: &Digest) -> Result<(File, u64), Failure> {
        let file = self.find(digest)?;
        let stat = fstat(&file).map_err(failed("opening"))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Failure::Missing { digest: digest.clone() });
        }
        Ok((file, u64::try_from(stat.st_size).unwrap_or(0)))
    }

    fn verify_once(&self, digest: &Digest, file: &File) -> Result<(), Failure> {
        if !lock(&self.verified).contains(digest) {
            self.verify_object(digest, file)?;
        }
        Ok(())
    }

    /// None for one that is its raw bytes.
    fn packed<'a>(&self, digest: &Digest, file: &'a File) -> Result<Option<Packed<'a>>, Failure> {
        Packed::of(file).map_err(|why| self.condemned(digest, file, why))
    }

    fn find(&self, digest: &Digest) -> Result<File, Failure> {
        let (shard, rest) = files::names(digest)?;
        let missing = |why| match why {
            rustix::io::Errno::NOENT => Failure::Missing { digest: digest.clone() },
            why => failed("opening")(why),
        };
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(&self.objects, shard, flags | OFlags::DIRECTORY, Mode::empty());
        let directory = directory.map_err(missing)?;
        Ok(rustix::fs::openat(directory, rest, flags, Mode::empty()).map_err(missing)?.into())
    }

    fn verify_object(&self, digest: &Digest, file: &File) -> Result<u64, Failure> {
        let (found, bytes) = raw_hash(file).map_err(|why| self.condemned(digest, file, why))?;
        self.compare(digest, found, file)?;
        Ok(bytes)
    }

    fn compare(&self, digest: &Digest, found: Digest, file: &File) -> Result<(), Failure> {
        if found != *digest {
            return Err(self.condemned(
                digest,
                file,
                Failure::HashMismatch { digest: digest.clone(), found },
            ));
        }
        self.remember(digest);
        Ok(())
    }

    /// What to say of a file that could not be read as it was written. One that is damaged goes to quarantine; one that
    /// the disk would not give stays.
    fn condemned(&self, digest: &Digest, file: &File, why: Failure) -> Failure {
        let why = match why {
            Failure::Broken => Failure::Damaged { digest: digest.clone() },
            Failure::HashMismatch { .. } => why,
            _ => return why,
        };
        lock(&self.verified).remove(digest);
        self.quarantine(digest, file).err().unwrap_or(why)
    }

    /// The raw bytes of a packed object in a file of their own, compared with its name on the way.
    fn unpack(&self, digest: &Digest, file: &File, packed: &Packed<'_>) -> Result<OwnedFd, Failure> {
        let raw: File = self.nameless(packed.length())?.into();
        let write = |chunk: &[u8], at: u64| {
            raw.write_all_at(chunk, at).map_err(|why| Failure::Io { action: "unpacking", why })
        };
        let found = packed.each(write).map_err(|why| self.condemned(digest, file, why))?;
        self.compare(digest, found, file)?;
        Ok(raw.into())
    }

    /// In memory while it is small; else on the disk, where it can be written back, and gone with its last descriptor.
    fn nameless(&self, bytes: u64) -> Result<OwnedFd, Failure> {
        if bytes > IN_MEMORY_BYTES_MAX {
            let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
            if let Ok(file) = rustix::fs::openat(&self.stage, ".", flags, Mode::RUSR | Mode::WUSR) {
                preallocate(&file, bytes)?;
                return Ok(file);
            }
        }
        let file = rustix::fs::memfd_create("eclosion-artifact", MemfdFlags::CLOEXEC);
        file.map_err(failed("unpacking"))
    }

    /// Takes the name away from a file that does not deserve it, unless another file has got it meanwhile.
    fn quarantine(&self, digest: &Digest, file: &File) -> Result<(), Failure> {
        let (shard, rest) = files::names(digest)?;
        let _naming = lock(&self.unsynced);
        let directory = files::subdirectory(&self.objects, shard)?;
        let (bad, named) = (fstat(file), fstat(self.find(digest)?));
        let (bad, named) = (bad.map_err(failed("quarantining"))?, named.map_err(failed("quarantining"))?);
        if (bad.st_dev, bad.st_ino) == (named.st_dev, named.st_ino) {
            let moved = rustix::fs::renameat(&directory, rest, &self.quarantine, digest.as_str());
            moved.map_err(failed("quarantining"))?;
            tracing::error!(%digest, "an artifact is not what it was, and was moved to quarantine");
        }
        Ok(())
    }

    fn sync_all(&self) -> Result<(), Failure> {
        let _whole = lock(&self.syncing);
        self.refuse_after_failure()?;
        let sealed = std::mem::take(&mut *lock(&self.unsynced));
        if sealed.is_empty() {
            return Ok(());
        }
        let synced = self.sync_each(&sealed);
        if synced.is_err() {
            self.failed.store(true, Ordering::Release);
        }
        synced
    }

    fn sync_each(&self, sealed: &[Sealed]) -> Result<(), Failure> {
        sealed.iter().try_for_each(|sealed| sync_file(&sealed.file))?;
        let shards: BTreeSet<&str> = sealed.iter().map(|sealed| sealed.shard.as_str()).collect();
        for shard in shards {
            sync_file(&files::subdirectory(&self.objects, shard)?)?;
        }
        sync_file(&self.objects)
    }

    fn remember(&self, digest: &Digest) {
        let mut verified = lock(&self.verified);
        if verified.len() >= VERIFIED_MAX {
            verified.clear();
        }
        verified.insert(digest.clone());
    }

    fn refuse_after_failure(&self) -> Result<(), Failure> {
        if self.failed.load(Ordering::Acquire) { Err(Failure::Poisoned) } else { Ok(()) }
    }
}

/// A life that leaves something unsynced does not end in order, and its successor syncs it.
impl Drop for FileStore {
    fn drop(&mut self) {
        if lock(&self.unsynced).is_empty() && self.refuse_after_failure().is_ok() {
            self.life.end();
        }
    }
}

impl BlobStore for FileStore {
    fn stage(&self, bytes: u64) -> Result<(u64, OwnedFd), Error> {
        Ok(self.stage_file(bytes)?)
    }

    fn seal(&self, stage: u64) -> Result<(Digest, u64), Error> {
        Ok(self.seal_file(stage, Storage::Mapped)?)
    }

    fn seal_as(&self, stage: u64, storage: Storage) -> Result<(Digest, u64), Error> {
        Ok(self.seal_file(stage, storage)?)
    }

    fn discard(&self, stage: u64) {
        if lock(&self.stages).remove(&stage).is_some() {
            files::remove(&self.stage, &stage.to_string());
        }
    }

    fn open(&self, digest: &Digest) -> Result<(OwnedFd, u64), Error> {
        let (file, bytes) = self.open_object(digest)?;
        match self.packed(digest, &file)? {
            Some(packed) => Ok((self.unpack(digest, &file, &packed)?, packed.length())),
            None => {
                self.verify_once(digest, &file)?;
                Ok((file.into(), bytes))
            }
        }
    }

    fn read(&self, digest: &Digest, offset: u64, bytes: u32) -> Result<Vec<u8>, Error> {
        let (file, _) = self.open_object(digest)?;
        self.verify_once(digest, &file)?;
        if let Some(packed) = self.packed(digest, &file)? {
            let piece = packed.read(offset, bytes as usize);
            return Ok(piece.map_err(|why| self.condemned(digest, &file, why))?);
        }
        let mut piece = vec![0; bytes as usize];
        let read = file.read_at(&mut piece, offset);
        piece.truncate(read.map_err(|why| Failure::Io { action: "reading an artifact", why })?);
        Ok(piece)
    }

    fn verify(&self, digest: &Digest) -> Result<u64, Error> {
        let (file, _) = self.open_object(digest)?;
        Ok(self.verify_object(digest, &file)?)
    }

    fn sync(&self) -> Result<(), Error> {
        Ok(self.sync_all()?)
    }
}

/// Reads a whole object; for small ones.
///
/// # Errors
/// As [`BlobStore::open`].
pub fn read(store: &dyn BlobStore, digest: &Digest) -> Result<Vec<u8>, Error> {
    let (file, bytes) = store.open(digest)?;
    let mut content = Vec::with_capacity(usize::try_from(bytes).unwrap_or(0));
    let read = File::from(file).read_to_end(&mut content);
    read.map_err(|why| Failure::Io { action: "reading an artifact", why })?;
    Ok(content)
}

/// What an earlier life left in `stage/`; anything else in there is removed.
fn leftovers(stage: &OwnedFd) -> Result<BTreeMap<u64, File>, Failure> {
    let mut stages = BTreeMap::new();
    for name in files::list(stage.as_fd())? {
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let token = name.parse().ok().filter(|_| stages.len() < STAGES_MAX);
        match token.zip(rustix::fs::openat(stage, &name, flags, Mode::empty()).ok()) {
            Some((token, file)) => {
                stages.insert(token, file.into());
            }
            None => files::remove(stage, &name),
        }
    }
    Ok(stages)
}

/// The name of the raw bytes, and their length.
fn raw_hash(file: &File) -> Result<(Digest, u64), Failure> {
    match Packed::of(file)? {
        Some(packed) => Ok((packed.each(|_, _| Ok(()))?, packed.length())),
        None => hash(file),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each critical section ends by one plain change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
