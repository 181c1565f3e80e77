//! The arenas of a kernel: what it is the producer of ([`Objects`]), what it lends to workers ([`Objects::lend`]), and what
//! it writes for one client that cannot take descriptors ([`NamedObjects`]). One sum bounds them all.
//!
//! Arenas are made as they are needed, up to a sum; what is free in them is used again, because memory that was touched
//! before is eight times as fast. An arena in which nothing is held is let go of once there is enough without it.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use eclosion_schemas::{Epoch, Error, Segment};

use super::{ALIGN_BYTES, Arena, Backing, Lease, Lent, Named, Sealed, WeakArena, locked};

/// The least that an arena has.
const ARENA_BYTES_MIN: u64 = 16 << 20;
/// What may stay without being held.
const WARM_BYTES: u64 = 256 << 20;

/// Cheap to clone.
#[derive(Debug, Clone)]
pub struct Objects(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    bytes_max: u64,
    /// Of all arenas, those of others included.
    bytes: Arc<AtomicU64>,
    numbers: AtomicU64,
    arenas: Mutex<Vec<Own>>,
    lent: Mutex<Vec<WeakArena<Lent>>>,
    named: Mutex<Vec<WeakArena<Named>>>,
}

#[derive(Debug)]
struct Own {
    arena: Arena<Sealed>,
    _budget: Budget,
}

/// A share of the sum, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Budget {
    of: Arc<AtomicU64>,
    bytes: u64,
}

impl Drop for Budget {
    fn drop(&mut self) {
        self.of.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Objects {
    /// At most `bytes_max` in all.
    #[must_use]
    pub fn new(bytes_max: u64) -> Self {
        Self(Arc::new(Shared {
            bytes_max,
            bytes: Arc::default(),
            numbers: AtomicU64::new(1),
            arenas: Mutex::default(),
            lent: Mutex::default(),
            named: Mutex::default(),
        }))
    }

    /// Copies bytes into shared memory: a copy and nothing else, once there is a warm arena. Nothing if there is no room:
    /// then they travel inline.
    #[must_use]
    pub fn put(&self, pieces: &[&[u8]]) -> Option<Lease> {
        let arenas: Vec<_> = locked(&self.0.arenas).iter().map(|own| own.arena.clone()).collect();
        if let Some(lease) = arenas.iter().find_map(|arena| arena.put(pieces)) {
            return Some(lease);
        }
        let length = pieces.iter().map(|piece| piece.len() as u64).sum();
        self.grow(length)?.put(pieces)
    }

    /// One more hold on a segment, of whichever arena.
    ///
    /// # Errors
    /// `arena.stale`, also if its whole arena is gone.
    pub fn lease(&self, segment: &Segment) -> Result<Lease, Error> {
        if let Some(arena) = self.arena(segment.arena) {
            return arena.lease(segment);
        }
        self.lent(segment.arena).ok_or_else(|| super::stale(segment))?.lease(segment)
    }

    #[must_use]
    pub fn arena(&self, id: u64) -> Option<Arena<Sealed>> {
        let arenas = locked(&self.0.arenas);
        arenas.iter().map(|own| &own.arena).find(|arena| arena.id() == id).cloned()
    }

    /// What a reader of an arena is given: its length and a descriptor.
    ///
    /// # Errors
    /// `arena.stale` for one that is gone.
    pub fn attach(&self, id: u64) -> Result<(u64, OwnedFd), Error> {
        if let Some(arena) = self.arena(id) {
            return Ok((arena.backing().bytes(), arena.backing().descriptor()?));
        }
        let arena = self.lent(id).ok_or_else(|| super::gone(id))?;
        Ok((arena.backing().bytes(), arena.backing().descriptor()?))
    }

    /// Segments that are held, and bytes of all arenas.
    #[must_use]
    pub fn counts(&self) -> (usize, u64) {
        let own: usize = locked(&self.0.arenas).iter().map(|own| own.arena.segments()).sum();
        let others = held(&self.0.lent) + held(&self.0.named);
        (own + others, self.0.bytes.load(Ordering::Relaxed))
    }

    /// Memory for a worker to write; nothing if there is no room.
    pub(super) fn lend(&self, length: u64) -> Option<Arena<Lent>> {
        let bytes = arena_bytes(length)?;
        self.let_go(bytes);
        let made = Lent::new(bytes, self.budget(bytes)?);
        let made = made.inspect_err(|why| tracing::warn!(%why, "no arena")).ok()?;
        let arena = Arena::new(self.number(), made);
        remember(&self.0.lent, &arena);
        Some(arena)
    }

    fn lent(&self, id: u64) -> Option<Arena<Lent>> {
        locked(&self.0.lent).iter().find(|arena| arena.id == id)?.upgrade()
    }

    fn grow(&self, length: u64) -> Option<Arena<Sealed>> {
        let bytes = arena_bytes(length)?;
        self.let_go(bytes);
        let budget = self.budget(bytes)?;
        let made = Sealed::new(bytes).inspect_err(|why| tracing::warn!(%why, "no arena")).ok()?;
        let arena = Arena::new(self.number(), made);
        locked(&self.0.arenas).push(Own { arena: arena.clone(), _budget: budget });
        Some(arena)
    }

    /// Lets arenas go in which nothing is held, if another one of `bytes` would be more than is to stay warm. Whoever reads
    /// one still has it mapped; it is only not used again.
    fn let_go(&self, bytes: u64) {
        let mut arenas = locked(&self.0.arenas);
        let most = self.0.bytes_max.min(WARM_BYTES);
        while self.0.bytes.load(Ordering::Relaxed).saturating_add(bytes) > most {
            let Some(idle) = arenas.iter().position(|own| own.arena.segments() == 0) else { break };
            arenas.remove(idle);
        }
    }

    fn budget(&self, bytes: u64) -> Option<Budget> {
        let of = Arc::clone(&self.0.bytes);
        let taken = of.fetch_add(bytes, Ordering::Relaxed);
        // Given back at once if it was too much.
        let budget = Budget { of, bytes };
        (taken.saturating_add(bytes) <= self.0.bytes_max).then_some(budget)
    }

    fn number(&self) -> u64 {
        self.0.numbers.fetch_add(1, Ordering::Relaxed)
    }
}

/// Of others, who keep it.
fn remember<B: Backing>(known: &Mutex<Vec<WeakArena<B>>>, arena: &Arena<B>) {
    let mut known = locked(known);
    known.retain(|arena| arena.upgrade().is_some());
    known.push(arena.downgrade());
}

fn held<B: Backing>(known: &Mutex<Vec<WeakArena<B>>>) -> usize {
    locked(known).iter().filter_map(WeakArena::upgrade).map(|arena| arena.segments()).sum()
}

fn arena_bytes(length: u64) -> Option<u64> {
    length.max(ARENA_BYTES_MIN).checked_next_multiple_of(ALIGN_BYTES)
}

/// What one client reads by name; its names go with it.
#[derive(Debug)]
pub struct NamedObjects {
    objects: Objects,
    tag: String,
    epoch: Epoch,
    arenas: Vec<(Arena<Named>, Budget)>,
}

impl NamedObjects {
    /// Names begin with `tag`, of 1 to 8 letters and digits, and the epoch: see [`Named::sweep`].
    #[must_use]
    pub fn new(objects: Objects, tag: String, epoch: Epoch) -> Self {
        Self { objects, tag, epoch, arenas: Vec::new() }
    }

    /// As [`Objects::put`].
    pub fn put(&mut self, pieces: &[&[u8]]) -> Option<Lease> {
        if let Some(lease) = self.arenas.iter().find_map(|(arena, _)| arena.put(pieces)) {
            return Some(lease);
        }
        let bytes = arena_bytes(pieces.iter().map(|piece| piece.len() as u64).sum())?;
        if self.arenas.iter().map(|(arena, _)| arena.backing().bytes()).sum::<u64>() + bytes > WARM_BYTES {
            // Whoever has one mapped reads on; its name is gone.
            self.arenas.retain(|(arena, _)| arena.segments() > 0);
        }
        let budget = self.objects.budget(bytes)?;
        let made = Named::new(&self.tag, self.epoch, bytes);
        let made = made.inspect_err(|why| tracing::warn!(%why, "no arena")).ok()?;
        let arena = Arena::new(self.objects.number(), made);
        remember(&self.objects.0.named, &arena);
        self.arenas.push((arena.clone(), budget));
        arena.put(pieces)
    }

    /// The length and the name of one of them.
    #[must_use]
    pub fn attach(&self, id: u64) -> Option<(u64, String)> {
        let (arena, _) = self.arenas.iter().find(|(arena, _)| arena.id() == id)?;
        Some((arena.backing().bytes(), arena.backing().name().to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_recycled_and_what_is_full_is_said() {
        let objects = Objects::new(40 << 20);
        let value = vec![7; 16 << 20];
        let first = objects.put(&[&value]).unwrap();
        let place = first.segment();
        drop(first);
        assert_eq!(objects.lease(&place).unwrap_err().reason, "arena.stale");
        let again = objects.put(&[&value]).unwrap();
        assert_eq!((again.segment().arena, again.segment().offset), (place.arena, place.offset));
        let second = objects.put(&[&value]).unwrap();
        assert!(objects.put(&[&value]).is_none(), "the third is over the sum, and travels inline");
        assert_eq!(objects.counts(), (2, 32 << 20));
        drop((again, second));
        // Nothing of this size fits into one of them: they make room for a larger one.
        let large = objects.put(&[&vec![1; 30 << 20]]).unwrap();
        assert_eq!(objects.counts(), (1, 30 << 20));
        assert_eq!(objects.lease(&place).unwrap_err().reason, "arena.stale", "its arena is gone");
        drop(large);
        assert_eq!(objects.counts().0, 0);
    }
}
