//! Large values in shared memory: arenas, segments of them, and who holds which.
//!
//! An arena has one producer, who maps it and writes segments of it; others read. Two backings, one behavior, which one
//! suite of tests holds both to: [`Sealed`], a memfd that is passed by descriptor and sealed so that nobody can make it
//! smaller or map it anew for writing; and [`Named`], for who cannot take descriptors, found under a name in the file
//! system. The books of each are the kernel's, also of those that a worker writes ([`Lent`]): so whoever dies, what it
//! held falls here. A [`Segment`](eclosion_schemas::Segment) says where a value lies:
//!
//! ```text
//!   free ──take──▶ held by n leases ──the last is dropped──▶ free again, one generation later
//!            └ lent to a worker (a loan: it may write) ──named in what it says──▶ held for who reads it
//! ```
//!
//! Invariants:
//! 1. Space is reserved when an arena is made: touching it is never SIGBUS, and what does not fit is refused there.
//! 2. Nothing here makes a reference to shared bytes: they are copied in and out, as another process may write them at any
//!    time. Bytes are copied before they are trusted, hashed or kept.
//! 3. A segment that was given back is known by its generation: to name it again is the error `arena.stale`.
//! 4. The books ([`Space`]) are in private memory. There are no locks and no counters in what is shared.
//! 5. A lease is a value; it falls with whatever holds it, so a connection that closes gives back what it had.
//!
//! It deliberately hashes nothing and knows no codecs. `unsafe` is in [`mapping`] and [`named`] alone.

mod lender;
mod mapping;
mod named;
mod objects;
mod sealed;
mod space;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bytes::Bytes;
use eclosion_schemas::{Code, Error, Held, Hold, Part, Retry, Segment};

pub use self::lender::{Lender, Lending};
pub use self::named::{FOLDER, Named, NamedReader, claim, is_ours};
pub use self::objects::{NamedObjects, Objects};
pub use self::sealed::{Lent, Sealed, SealedReader};
pub use self::space::Space;

/// Segments begin on a cache line, which is enough for any element of an array.
pub const ALIGN_BYTES: u64 = 64;

/// Memory that other processes map too.
pub trait Backing: std::fmt::Debug + Send + Sync + 'static {
    fn bytes(&self) -> u64;

    /// A private copy; nothing for a range that is not inside.
    fn read(&self, offset: u64, length: u64) -> Option<Vec<u8>>;
}

/// Memory whose producer is this process.
pub trait Written: Backing {
    /// Copies into it; the caller has checked the range.
    fn write(&self, offset: u64, bytes: &[u8]);
}

/// The other end of a [`Backing`], in any process.
pub trait Reader: std::fmt::Debug + Send + Sync {
    /// A private copy; nothing for a range that is not inside.
    fn copy(&self, offset: u64, length: u64) -> Option<Vec<u8>>;

    /// Where it is mapped: of use for nothing but telling whether an address lies inside.
    fn address(&self) -> usize;
}

/// One producer's memory and its books. Cheap to clone.
#[derive(Debug)]
pub struct Arena<B> {
    id: u64,
    backing: Arc<B>,
    space: Arc<Mutex<Space>>,
}

/// A hold on one segment and its memory; the segment is free again when its last lease is dropped.
#[derive(Debug)]
pub struct Lease {
    segment: Segment,
    space: Arc<Mutex<Space>>,
    memory: Arc<dyn Backing>,
}

/// An arena that goes with its last owner and its last lease.
#[derive(Debug)]
struct WeakArena<B> {
    id: u64,
    backing: Weak<B>,
    space: Weak<Mutex<Space>>,
}

impl<B: Backing> Arena<B> {
    pub fn new(id: u64, backing: B) -> Self {
        let space = Space::new(id, backing.bytes());
        Self { id, backing: Arc::new(backing), space: Arc::new(Mutex::new(space)) }
    }

    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    #[must_use]
    pub fn backing(&self) -> &B {
        &self.backing
    }

    /// A segment that somebody else will write. Nothing if there is no room.
    #[must_use]
    pub fn reserve(&self, length: u64) -> Option<Lease> {
        let segment = locked(&self.space).take(length)?;
        Some(self.held(segment))
    }

    /// A private copy of a segment's bytes.
    ///
    /// # Errors
    /// `arena.stale` for a segment that was given back, `arena.segment` for one that never was.
    pub fn read(&self, segment: &Segment) -> Result<Vec<u8>, Error> {
        // Held meanwhile, so that the bytes are those of the generation that was asked for.
        let lease = self.lease(segment)?;
        let bytes = self.backing.read(segment.offset, segment.length);
        drop(lease);
        bytes.ok_or_else(|| out_of_bounds(segment))
    }

    /// One more hold on a segment.
    ///
    /// # Errors
    /// As [`Arena::read`].
    pub fn lease(&self, segment: &Segment) -> Result<Lease, Error> {
        locked(&self.space).hold(segment)?;
        Ok(self.held(*segment))
    }

    fn held(&self, segment: Segment) -> Lease {
        Lease { segment, space: Arc::clone(&self.space), memory: Arc::clone(&self.backing) as _ }
    }

    fn downgrade(&self) -> WeakArena<B> {
        let (backing, space) = (Arc::downgrade(&self.backing), Arc::downgrade(&self.space));
        WeakArena { id: self.id, backing, space }
    }

    /// How many segments are held.
    #[must_use]
    pub fn segments(&self) -> usize {
        locked(&self.space).segments()
    }
}

impl<B: Written> Arena<B> {
    /// Copies `pieces`, one behind the other, into a segment of their own. Nothing if there is no room: then the bytes
    /// travel inline.
    #[must_use]
    pub fn put(&self, pieces: &[&[u8]]) -> Option<Lease> {
        let length = pieces.iter().map(|piece| piece.len() as u64).sum();
        let lease = self.reserve(length)?;
        let mut offset = lease.segment.offset;
        for piece in pieces {
            self.backing.write(offset, piece);
            offset += piece.len() as u64;
        }
        Some(lease)
    }
}

impl<B> WeakArena<B> {
    fn upgrade(&self) -> Option<Arena<B>> {
        Some(Arena { id: self.id, backing: self.backing.upgrade()?, space: self.space.upgrade()? })
    }
}

impl<B> Clone for Arena<B> {
    fn clone(&self) -> Self {
        Self { id: self.id, backing: Arc::clone(&self.backing), space: Arc::clone(&self.space) }
    }
}

impl Lease {
    #[must_use]
    pub fn segment(&self) -> Segment {
        self.segment
    }

    /// A part of a payload that names the segment and holds it.
    #[must_use]
    pub fn into_part(self, codec: &str) -> Part {
        let segment = self.segment;
        let (codec, bytes) = (codec.to_owned(), segment.length);
        Part { segment: Some(segment), hold: Hold::new(Arc::new(self)), bytes, codec, ..Part::default() }
    }
}

impl Held for Lease {
    fn copy(&self) -> Option<Bytes> {
        self.memory.read(self.segment.offset, self.segment.length).map(Bytes::from)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        locked(&self.space).give_back(&self.segment);
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn stale(segment: &Segment) -> Error {
    let text = format!("generation {} of offset {} is gone", segment.generation, segment.offset);
    Error::new(Code::Precondition, "arena.stale", text).retry(Retry::Never).help("send the value again")
}

pub(crate) fn gone(arena: u64) -> Error {
    Error::new(Code::Precondition, "arena.stale", format!("there is no arena {arena} any more"))
}

fn out_of_bounds(segment: &Segment) -> Error {
    let Segment { arena, offset, length, .. } = segment;
    Error::invalid("arena.segment", format!("arena {arena} has no segment of {length} bytes at {offset}"))
}

/// What the operating system refuses when memory is to be shared.
fn unavailable(what: &str, why: &dyn std::fmt::Display) -> Error {
    Error::new(Code::Exhausted, "arena.memory", format!("no shared memory: cannot {what}: {why}"))
        .retry(Retry::After { after_ms: 1_000 })
        .help("df /dev/shm")
}
