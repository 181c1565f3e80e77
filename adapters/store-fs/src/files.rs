//! Files below a directory that is open: nothing here takes a path.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use eclosion_schemas::Digest;
use rustix::fs::{AtFlags, Dir, FallocateFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::failure::{Failure, failed};

/// What is read at once when a file is hashed.
const CHUNK_BYTES: usize = 256 * 1024;

/// The names of an object's directory and, in it, of its file.
pub(crate) fn names(digest: &Digest) -> Result<(&str, &str), Failure> {
    if !digest.is_blake3() {
        return Err(Failure::NotADigest(digest.clone()));
    }
    Ok(digest.as_str().split_at(2))
}

/// Opens a directory inside another, and makes it if it is missing.
pub(crate) fn subdirectory(parent: &OwnedFd, name: &str) -> Result<OwnedFd, Failure> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = || rustix::fs::openat(parent, name, flags, Mode::empty());
    match open() {
        Err(Errno::NOENT) => {}
        opened => return opened.map_err(failed("opening a directory of artifacts")),
    }
    match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => open().map_err(failed("opening a directory of artifacts")),
        Err(why) => Err(failed("creating a directory of artifacts")(why)),
    }
}

/// Reserves the space, so that a worker that maps the file is never killed by a full disk.
pub(crate) fn preallocate(file: &OwnedFd, bytes: u64) -> Result<(), Failure> {
    if bytes == 0 {
        return Ok(());
    }
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, bytes) {
        Ok(()) => Ok(()),
        Err(Errno::OPNOTSUPP) => write_zeros(file, bytes),
        Err(Errno::NOSPC | Errno::DQUOT | Errno::FBIG) => Err(Failure::NoRoom { bytes }),
        Err(why) => Err(failed("reserving space")(why)),
    }
}

/// For file systems that cannot reserve: what is written has its place.
fn write_zeros(file: &OwnedFd, bytes: u64) -> Result<(), Failure> {
    let zeros = vec![0; CHUNK_BYTES];
    let mut done = 0;
    while done < bytes {
        let left = usize::try_from(bytes - done).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
        match rustix::io::pwrite(file, &zeros[..left], done) {
            Ok(written) => done += written as u64,
            Err(Errno::INTR) => {}
            Err(Errno::NOSPC | Errno::DQUOT | Errno::FBIG) => return Err(Failure::NoRoom { bytes }),
            Err(why) => return Err(failed("reserving space")(why)),
        }
    }
    Ok(())
}

/// The name of what is in a file, and its length. Reads at offsets of its own: the worker shares the descriptor's.
pub(crate) fn hash(file: &File) -> Result<(Digest, u64), Failure> {
    let reading = |why| Failure::Io { action: "reading an artifact", why };
    let length = file.metadata().map_err(reading)?.len();
    let mut hasher = blake3::Hasher::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut offset = 0;
    loop {
        match file.read_at(&mut chunk, offset) {
            Ok(0) => break,
            Ok(read) => {
                hasher.update(&chunk[..read]);
                offset += read as u64;
            }
            Err(why) if why.kind() == std::io::ErrorKind::Interrupted => {}
            Err(why) => return Err(reading(why)),
        }
    }
    if offset != length {
        return Err(Failure::Changed);
    }
    Ok((digest_of(&hasher)?, length))
}

pub(crate) fn digest_of(hasher: &blake3::Hasher) -> Result<Digest, Failure> {
    let name = hasher.finalize().to_hex();
    let malformed = |why: eclosion_schemas::InvalidId| std::io::Error::other(why.to_string());
    Digest::new(name.as_str())
        .map_err(malformed)
        .map_err(|why| Failure::Io { action: "naming an artifact", why })
}

/// A file or a directory.
pub(crate) fn sync_file(file: impl AsFd) -> Result<(), Failure> {
    rustix::fs::fsync(file).map_err(failed("syncing artifacts"))
}

/// What cannot be removed now is found again by the next sweep.
pub(crate) fn remove(directory: &OwnedFd, name: &str) {
    match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(why) => tracing::warn!(name, %why, "a staged file could not be removed"),
    }
}

/// Names that are text; others were not made here.
pub(crate) fn list(directory: BorrowedFd<'_>) -> Result<Vec<String>, Failure> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory).map_err(failed("listing staged files"))? {
        let entry = entry.map_err(failed("listing staged files"))?;
        if let Ok(name) = entry.file_name().to_str()
            && name != "."
            && name != ".."
        {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}
