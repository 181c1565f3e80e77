//! The backing for who takes descriptors: a memfd, gone with the last descriptor and mapping of it.
//!
//! The producer maps it first, then it is sealed: its size stays, nobody can map it for writing any more, and the seals
//! stay too. So every descriptor of it that is passed on reads and no more.

use std::os::fd::{AsFd, OwnedFd};

use eclosion_schemas::Error;
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};

use super::mapping::Mapping;
use super::{Backing, Reader, unavailable};

const SEALS: SealFlags =
    SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::FUTURE_WRITE).union(SealFlags::SEAL);

/// The producer's end.
#[derive(Debug)]
pub struct Sealed {
    file: OwnedFd,
    mapping: Mapping,
}

/// A reader's end.
#[derive(Debug)]
pub struct SealedReader(Mapping);

impl Sealed {
    /// `bytes`, reserved.
    ///
    /// # Errors
    /// `exhausted` when the memory is not there.
    pub fn new(bytes: u64) -> Result<Self, Error> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file =
            rustix::fs::memfd_create("eclosion-arena", flags).map_err(|why| unavailable("make it", &why))?;
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes)
            .map_err(|why| unavailable(&format!("reserve {bytes} bytes"), &why))?;
        let length = usize::try_from(bytes).map_err(|why| unavailable("map it", &why))?;
        let mapping = Mapping::new(&file, length, true).map_err(|why| unavailable("map it", &why))?;
        rustix::fs::fcntl_add_seals(&file, SEALS).map_err(|why| unavailable("seal it", &why))?;
        Ok(Self { file, mapping })
    }

    /// What others are given.
    ///
    /// # Errors
    /// `exhausted` when there are no descriptors left.
    pub fn descriptor(&self) -> Result<OwnedFd, Error> {
        self.file.try_clone().map_err(|why| unavailable("pass it on", &why))
    }
}

impl SealedReader {
    /// Maps what was received. It must be sealed: what can shrink would end whoever reads it.
    ///
    /// # Errors
    /// `arena.unsealed`, or what the system refuses.
    pub fn new(file: impl AsFd) -> Result<Self, Error> {
        let seals = rustix::fs::fcntl_get_seals(&file).map_err(|why| unsealed(&why))?;
        if !seals.contains(SEALS) {
            return Err(unsealed(&"it can still be changed"));
        }
        let found = rustix::fs::fstat(&file).map_err(|why| unavailable("look at it", &why))?;
        let bytes = usize::try_from(found.st_size).map_err(|why| unavailable("map it", &why))?;
        Ok(Self(Mapping::new(file, bytes, false).map_err(|why| unavailable("map it", &why))?))
    }
}

impl Backing for Sealed {
    fn bytes(&self) -> u64 {
        self.mapping.window().bytes() as u64
    }

    fn write(&self, offset: u64, bytes: &[u8]) {
        self.mapping.window().write(offset, bytes);
    }

    fn read(&self, offset: u64, length: u64) -> Option<Vec<u8>> {
        self.mapping.window().read(offset, length)
    }
}

impl Reader for SealedReader {
    fn copy(&self, offset: u64, length: u64) -> Option<Vec<u8>> {
        self.0.window().read(offset, length)
    }

    fn address(&self) -> usize {
        self.0.window().address()
    }
}

fn unsealed(why: &dyn std::fmt::Display) -> Error {
    Error::invalid("arena.unsealed", format!("a descriptor that is no sealed memory: {why}"))
}
