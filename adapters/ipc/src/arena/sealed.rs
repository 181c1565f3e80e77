//! The backing for who takes descriptors: a memfd, gone with the last descriptor and mapping of it.
//!
//! The producer maps it first, then it is sealed: its size stays, nobody can map it for writing any more, and the seals
//! stay too. So every descriptor of it that is passed on reads and no more. The kernel is the producer of [`Sealed`], a
//! worker of [`Lent`]:
//!
//! ```text
//!   made: size sealed ──descriptor to the worker──▶ it maps ──arena.mapped──▶ sealed, passed on to readers
//! ```

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use eclosion_schemas::Error;
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};

use super::mapping::Mapping;
use super::objects::Budget;
use super::{Backing, Reader, Written, unavailable};

const SEALS: SealFlags =
    SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::FUTURE_WRITE).union(SealFlags::SEAL);

/// The producer's end.
#[derive(Debug)]
pub struct Sealed {
    file: OwnedFd,
    mapping: Mapping,
}

/// The kernel's end of memory that a worker writes.
#[derive(Debug)]
pub struct Lent {
    file: OwnedFd,
    /// For reading.
    mapping: Mapping,
    is_sealed: AtomicBool,
    _budget: Budget,
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
        let file = memory(bytes)?;
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

impl Lent {
    /// # Errors
    /// As [`Sealed::new`].
    pub(super) fn new(bytes: u64, budget: Budget) -> Result<Self, Error> {
        let file = memory(bytes)?;
        // Before it leaves: what the producer could make smaller would be our own end.
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW)
            .map_err(|why| unavailable("seal it", &why))?;
        let length = usize::try_from(bytes).map_err(|why| unavailable("map it", &why))?;
        let mapping = Mapping::new(&file, length, false).map_err(|why| unavailable("map it", &why))?;
        Ok(Self { file, mapping, is_sealed: AtomicBool::new(false), _budget: budget })
    }

    /// What the producer is given, once.
    ///
    /// # Errors
    /// `exhausted` when there are no descriptors left.
    pub(super) fn writable(&self) -> Result<OwnedFd, Error> {
        self.file.try_clone().map_err(|why| unavailable("pass it on", &why))
    }

    /// The producer has mapped it: nobody else will for writing.
    ///
    /// # Errors
    /// `exhausted`, with the system's words.
    pub(super) fn seal(&self) -> Result<(), Error> {
        if !self.is_sealed() {
            rustix::fs::fcntl_add_seals(&self.file, SEALS).map_err(|why| unavailable("seal it", &why))?;
            self.is_sealed.store(true, Ordering::Release);
        }
        Ok(())
    }

    pub(super) fn is_sealed(&self) -> bool {
        self.is_sealed.load(Ordering::Acquire)
    }

    /// What readers are given.
    ///
    /// # Errors
    /// `arena.unsealed` before its producer has said that it is mapped; `exhausted` without descriptors.
    pub fn descriptor(&self) -> Result<OwnedFd, Error> {
        if !self.is_sealed() {
            return Err(unsealed(&"its producer has not mapped it"));
        }
        self.writable()
    }
}

impl Backing for Lent {
    fn bytes(&self) -> u64 {
        self.mapping.window().bytes() as u64
    }

    fn read(&self, offset: u64, length: u64) -> Option<Vec<u8>> {
        self.mapping.window().read(offset, length)
    }
}

/// `bytes`, reserved.
fn memory(bytes: u64) -> Result<OwnedFd, Error> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file =
        rustix::fs::memfd_create("eclosion-arena", flags).map_err(|why| unavailable("make it", &why))?;
    rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes)
        .map_err(|why| unavailable(&format!("reserve {bytes} bytes"), &why))?;
    Ok(file)
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

    fn read(&self, offset: u64, length: u64) -> Option<Vec<u8>> {
        self.mapping.window().read(offset, length)
    }
}

impl Written for Sealed {
    fn write(&self, offset: u64, bytes: &[u8]) {
        self.mapping.window().write(offset, bytes);
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
