//! What one worker may write: arenas that are lent to it, and loans of segments that no outcome has named yet.
//!
//! ```text
//!   lend ──▶ a loan of an attempt ──take: it is named──▶ a hold of whoever is told
//!                └ ended without being named, or the worker is gone: free again
//! ```
//!
//! Owned by the worker's link. The kernel keeps the books, so that nothing of them dies with the worker: what it wrote
//! stays readable as long as somebody holds it. An arena is handed out for writing once, and sealed as soon as it is
//! mapped; before that nothing in it can be named.

use std::os::fd::OwnedFd;

use eclosion_schemas::{Code, Error, Fence, Hold, Retry, Segment};
use std::sync::Arc;

use super::{Arena, Backing, Lease, Lent, Objects, out_of_bounds};

/// Loans that no outcome has named.
const LOANS_MAX: usize = 64;
/// What stays lent though nothing in it is held.
const WARM_BYTES: u64 = 128 << 20;

/// See the head of this file.
#[derive(Debug)]
pub struct Lender {
    objects: Objects,
    arenas: Vec<Arena<Lent>>,
    loans: Vec<(Fence, Lease)>,
}

/// What the worker is told of a loan.
#[derive(Debug)]
pub struct Lending {
    pub segment: Segment,
    /// Of its arena, if it has not come before.
    pub descriptor: Option<OwnedFd>,
    /// Arenas that the worker need not keep mapped.
    pub gone: Vec<u64>,
}

impl Lender {
    #[must_use]
    pub fn new(objects: Objects) -> Self {
        Self { objects, arenas: Vec::new(), loans: Vec::new() }
    }

    /// # Errors
    /// `exhausted`, when there is no room: then the value goes another way.
    pub fn lend(&mut self, bytes: u64, fence: Fence) -> Result<Lending, Error> {
        if self.loans.len() >= LOANS_MAX {
            return Err(no_room(&format!("{LOANS_MAX} segments are lent that no outcome has named")));
        }
        if let Some(lease) = self.arenas.iter().find_map(|arena| arena.reserve(bytes)) {
            let segment = lease.segment();
            self.loans.push((fence, lease));
            return Ok(Lending { segment, descriptor: None, gone: Vec::new() });
        }
        let gone = self.let_go(bytes);
        let arena = self.objects.lend(bytes).ok_or_else(|| no_room("all that may be shared is in use"))?;
        let descriptor = Some(arena.backing().writable()?);
        let lease = arena.reserve(bytes).ok_or_else(|| no_room("a new arena is too small"))?;
        let segment = lease.segment();
        self.loans.push((fence, lease));
        self.arenas.push(arena);
        Ok(Lending { segment, descriptor, gone })
    }

    /// The worker has mapped it.
    ///
    /// # Errors
    /// `arena.stale` for one that it was not lent.
    pub fn mapped(&self, arena: u64) -> Result<(), Error> {
        let arena = self.arenas.iter().find(|lent| lent.id() == arena).ok_or_else(|| super::gone(arena))?;
        arena.backing().seal()
    }

    /// An item or an outcome of the attempt names the segment: what it was lent for is done.
    ///
    /// # Errors
    /// `arena.segment` for what the attempt was not lent, `arena.unsealed` before the arena is mapped.
    pub fn take(&mut self, segment: &Segment, fence: Fence) -> Result<Hold, Error> {
        let is_meant = |(owner, lease): &(Fence, Lease)| *owner == fence && lease.segment() == *segment;
        let at = self.loans.iter().position(is_meant).ok_or_else(|| out_of_bounds(segment))?;
        let arena = self.arenas.iter().find(|arena| arena.id() == segment.arena);
        if !arena.is_some_and(|arena| arena.backing().is_sealed()) {
            return Err(Error::invalid("arena.unsealed", "a segment of an arena that is not mapped yet"));
        }
        let (_, lease) = self.loans.swap_remove(at);
        Ok(Hold::new(Arc::new(lease)))
    }

    /// The attempt is over: what it was lent and has not named is free again.
    pub fn ended(&mut self, fence: Fence) {
        self.loans.retain(|(owner, _)| *owner != fence);
    }

    fn let_go(&mut self, bytes: u64) -> Vec<u64> {
        let mut gone = Vec::new();
        let sum = |arenas: &[Arena<Lent>]| arenas.iter().map(|arena| arena.backing().bytes()).sum::<u64>();
        while sum(&self.arenas).saturating_add(bytes) > WARM_BYTES {
            let Some(idle) = self.arenas.iter().position(|arena| arena.segments() == 0) else { break };
            gone.push(self.arenas.remove(idle).id());
        }
        gone
    }
}

fn no_room(why: &str) -> Error {
    Error::new(Code::Exhausted, "arena.full", why.to_owned()).retry(Retry::After { after_ms: 50 })
}
