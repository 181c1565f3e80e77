//! The books of one arena: what is free, what is held how often, and which generation of it. Pure.

use std::collections::BTreeMap;

use eclosion_schemas::{Error, Segment};

use super::{ALIGN_BYTES, out_of_bounds, stale};

/// Free space is taken where it fits first, so that the beginning of an arena stays warm.
#[derive(Debug)]
pub struct Space {
    arena: u64,
    /// From offset to length; neighbors are joined.
    free: BTreeMap<u64, u64>,
    held: BTreeMap<u64, Held>,
    /// Of the segment that was taken last; none has it twice.
    generation: u64,
}

#[derive(Debug)]
struct Held {
    segment: Segment,
    leases: u32,
}

impl Space {
    #[must_use]
    pub fn new(arena: u64, bytes: u64) -> Self {
        let free = BTreeMap::from([(0, bytes - bytes % ALIGN_BYTES)]);
        Self { arena, free, held: BTreeMap::new(), generation: 0 }
    }

    /// A segment of `length` bytes with one lease; nothing if no gap is large enough.
    pub fn take(&mut self, length: u64) -> Option<Segment> {
        let room = rounded(length)?;
        let (&offset, &gap) = self.free.iter().find(|(_, gap)| **gap >= room)?;
        self.free.remove(&offset);
        if gap > room {
            self.free.insert(offset + room, gap - room);
        }
        self.generation += 1;
        let segment = Segment { arena: self.arena, offset, length, generation: self.generation };
        self.held.insert(offset, Held { segment, leases: 1 });
        Some(segment)
    }

    /// # Errors
    /// `arena.stale` for one that was given back, `arena.segment` for one that never was.
    pub fn hold(&mut self, segment: &Segment) -> Result<(), Error> {
        match self.held.get_mut(&segment.offset) {
            Some(held) if held.segment == *segment => {
                held.leases += 1;
                Ok(())
            }
            Some(held) if held.segment.generation == segment.generation => Err(out_of_bounds(segment)),
            _ if segment.arena != self.arena
                || segment.generation > self.generation
                || segment.generation == 0 =>
            {
                Err(out_of_bounds(segment))
            }
            _ => Err(stale(segment)),
        }
    }

    /// One lease less; the last makes the space free. One that is not held changes nothing.
    pub fn give_back(&mut self, segment: &Segment) {
        let Some(held) = self.held.get_mut(&segment.offset) else { return };
        if held.segment != *segment {
            return;
        }
        held.leases -= 1;
        if held.leases > 0 {
            return;
        }
        self.held.remove(&segment.offset);
        let mut offset = segment.offset;
        let mut room = rounded(segment.length).unwrap_or(0);
        if let Some(after) = self.free.remove(&(offset + room)) {
            room += after;
        }
        if let Some((&before, &gap)) = self.free.range(..offset).next_back()
            && before + gap == offset
        {
            (offset, room) = (before, gap + room);
        }
        self.free.insert(offset, room);
    }

    #[must_use]
    pub fn segments(&self) -> usize {
        self.held.len()
    }

    #[must_use]
    pub fn free_bytes(&self) -> u64 {
        self.free.values().sum()
    }
}

/// An empty value has a place too.
fn rounded(length: u64) -> Option<u64> {
    length.max(1).checked_next_multiple_of(ALIGN_BYTES)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_segment_that_was_given_back_is_stale_and_one_that_never_was_is_unknown() {
        let mut space = Space::new(7, 1024);
        let first = space.take(100).unwrap();
        space.hold(&first).unwrap();
        space.give_back(&first);
        space.hold(&first).unwrap();
        space.give_back(&first);
        space.give_back(&first);
        assert_eq!(space.hold(&first).unwrap_err().reason, "arena.stale");
        let second = space.take(100).unwrap();
        assert_eq!((second.offset, second.generation), (first.offset, first.generation + 1), "recycled");
        assert_eq!(space.hold(&first).unwrap_err().reason, "arena.stale");
        for lie in [
            Segment { length: 101, ..second },
            Segment { offset: 64, ..second },
            Segment { arena: 8, ..first },
            Segment { generation: 9, ..second },
            Segment { generation: 0, ..second },
        ] {
            let refused = space.hold(&lie).unwrap_err();
            assert!(["arena.segment", "arena.stale"].contains(&refused.reason.as_str()), "{lie:?}");
        }
        space.give_back(&Segment { generation: 9, ..second });
        assert_eq!(space.segments(), 1, "a lie gives nothing back");
    }

    proptest! {
        #[test]
        fn segments_never_overlap_and_all_space_comes_back(
            steps in proptest::collection::vec((any::<bool>(), 0_u64..700, any::<prop::sample::Index>()), 0..80)
        ) {
            const BYTES: u64 = 4096;
            let mut space = Space::new(1, BYTES);
            let mut held: Vec<Segment> = Vec::new();
            for (takes, length, which) in steps {
                if takes {
                    if let Some(new) = space.take(length) {
                        prop_assert!(new.offset + new.length <= BYTES && new.offset % ALIGN_BYTES == 0);
                        for old in &held {
                            prop_assert!(new.offset >= old.offset + old.length || old.offset >= new.offset + new.length.max(1));
                            prop_assert!(new.offset != old.offset);
                        }
                        held.push(new);
                    }
                } else if !held.is_empty() {
                    let gone = held.swap_remove(which.index(held.len()));
                    space.give_back(&gone);
                    prop_assert!(space.hold(&gone).is_err());
                }
                prop_assert_eq!(space.segments(), held.len());
            }
            held.iter().for_each(|segment| space.give_back(segment));
            prop_assert_eq!(space.free_bytes(), BYTES);
            prop_assert!(space.take(BYTES).is_some(), "in one piece again");
        }
    }
}
