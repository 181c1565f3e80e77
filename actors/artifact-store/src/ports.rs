//! What the artifact store needs of the outside world: files, named by their content.
//!
//! A staged file has a token and no name yet. Sealing it hashes what is in it, by the kernel's own reading, and gives
//! it its digest as its name. It is durable after the next [`BlobStore::sync`], which the journal's syncer calls before
//! it raises its mark, so that no synced record names a file that a power cut could take away.

use std::os::fd::OwnedFd;

use eclosion_schemas::{Digest, Error};

/// How a sealed file is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// As its raw bytes: many readers map the one file.
    Mapped,
    /// Compressed, if that pays; whoever opens it gets the raw bytes in a file of his own.
    Packed,
}

impl Storage {
    /// Arrays and tables are mapped; anything else is read once by whoever needs it.
    #[must_use]
    pub fn of_codec(codec: &str) -> Self {
        if matches!(codec, "npy" | "arrow" | "arrow-ipc") { Self::Mapped } else { Self::Packed }
    }
}

/// Calls block for as long as the disk does; whoever is on a runtime's thread moves them to a blocking one when a file
/// is large.
pub trait BlobStore: Send + Sync + std::fmt::Debug + 'static {
    /// A preallocated file for a worker to write, and its token.
    ///
    /// # Errors
    /// `exhausted` with reason `artifact.disk` when there is no room.
    fn stage(&self, bytes: u64) -> Result<(u64, OwnedFd), Error>;

    /// Hashes a staged file and gives it its name, as [`Storage::Mapped`]. Returns its digest and length.
    ///
    /// # Errors
    /// `not_found` for a token that is not staged.
    fn seal(&self, stage: u64) -> Result<(Digest, u64), Error>;

    /// The same, kept as said by a store that can.
    ///
    /// # Errors
    /// As [`BlobStore::seal`].
    fn seal_as(&self, stage: u64, _storage: Storage) -> Result<(Digest, u64), Error> {
        self.seal(stage)
    }

    /// Removes a staged file that nobody will seal.
    fn discard(&self, stage: u64);

    /// A file to read or map, and its length.
    ///
    /// # Errors
    /// `not_found` with reason `artifact.missing`.
    fn open(&self, digest: &Digest) -> Result<(OwnedFd, u64), Error>;

    /// At most `bytes` bytes of a file from `offset` on; none at its end. Verified as by [`BlobStore::open`].
    ///
    /// # Errors
    /// As [`BlobStore::open`].
    fn read(&self, digest: &Digest, offset: u64, bytes: u32) -> Result<Vec<u8>, Error>;

    /// Reads a file and compares it with its name; one that differs is moved to quarantine. Returns its length.
    ///
    /// # Errors
    /// `data_loss` with reason `artifact.hash_mismatch`, `not_found` with reason `artifact.missing`.
    fn verify(&self, digest: &Digest) -> Result<u64, Error>;

    /// Everything sealed so far is on the disk when this returns.
    ///
    /// # Errors
    /// What is on the disk is not known any more.
    fn sync(&self) -> Result<(), Error>;
}
