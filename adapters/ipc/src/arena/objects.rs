//! The kernel's own arenas: what it is the producer of, for workers to read.
//!
//! Arenas are made as they are needed, up to a sum; what is free in them is used again, because memory that was touched
//! before is eight times as fast. An arena in which nothing is held is let go of once there is enough without it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use eclosion_schemas::{Error, Segment};

use super::{ALIGN_BYTES, Arena, Backing, Lease, Sealed, locked};

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
    numbers: AtomicU64,
    arenas: Mutex<Vec<Arena<Sealed>>>,
}

impl Objects {
    /// At most `bytes_max` in all.
    #[must_use]
    pub fn new(bytes_max: u64) -> Self {
        Self(Arc::new(Shared { bytes_max, numbers: AtomicU64::new(1), arenas: Mutex::default() }))
    }

    /// Copies bytes into shared memory: a copy and nothing else, once there is a warm arena. Nothing if there is no room:
    /// then they travel inline.
    #[must_use]
    pub fn put(&self, pieces: &[&[u8]]) -> Option<Lease> {
        let arenas = locked(&self.0.arenas).clone();
        if let Some(lease) = arenas.iter().find_map(|arena| arena.put(pieces)) {
            return Some(lease);
        }
        let length = pieces.iter().map(|piece| piece.len() as u64).sum();
        self.grow(length)?.put(pieces)
    }

    /// One more hold on a segment.
    ///
    /// # Errors
    /// `arena.stale`, also if its whole arena is gone.
    pub fn lease(&self, segment: &Segment) -> Result<Lease, Error> {
        self.arena(segment.arena).ok_or_else(|| super::stale(segment))?.lease(segment)
    }

    #[must_use]
    pub fn arena(&self, id: u64) -> Option<Arena<Sealed>> {
        locked(&self.0.arenas).iter().find(|arena| arena.id() == id).cloned()
    }

    /// Segments that are held, and bytes of all arenas.
    #[must_use]
    pub fn counts(&self) -> (usize, u64) {
        let arenas = locked(&self.0.arenas);
        (arenas.iter().map(Arena::segments).sum(), arenas.iter().map(|arena| arena.backing().bytes()).sum())
    }

    fn grow(&self, length: u64) -> Option<Arena<Sealed>> {
        let bytes = length.max(ARENA_BYTES_MIN).checked_next_multiple_of(ALIGN_BYTES)?;
        let mut arenas = locked(&self.0.arenas);
        let sum = |arenas: &[Arena<Sealed>]| arenas.iter().map(|arena| arena.backing().bytes()).sum::<u64>();
        // Whoever reads one still has it mapped; it is only not used again.
        while sum(&arenas).saturating_add(bytes) > self.0.bytes_max.min(WARM_BYTES) {
            let Some(idle) = arenas.iter().position(|arena| arena.segments() == 0) else { break };
            arenas.remove(idle);
        }
        if sum(&arenas).saturating_add(bytes) > self.0.bytes_max {
            return None;
        }
        let made = Sealed::new(bytes).inspect_err(|why| tracing::warn!(%why, "no arena")).ok()?;
        let arena = Arena::new(self.0.numbers.fetch_add(1, Ordering::Relaxed), made);
        arenas.push(arena.clone());
        Some(arena)
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
