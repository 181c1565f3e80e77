//! Large values in shared memory that this client finds by name.
//!
//! ```text
//!   a part names a segment ──Client::object──▶ mapped, read where it lies ──dropped──▶ told to the kernel, used again
//! ```
//!
//! Invariants: (1) bytes are copied out and never referred to, as the kernel writes there again once they were given back;
//! (2) a stream that is left gives back whatever was on its way; (3) an object reads on when the connection is gone, but
//! what it reads is right only as long as the connection lasts.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bytes::Bytes;
use eclosion_schemas::frame::StreamId;
use eclosion_schemas::ops::arena::{ATTACH, AttachReply, AttachRequest, ReleaseRequest};
use eclosion_schemas::{Code, Error, Part, Segment, codec};
use shared_memory::{Shmem, ShmemConf};

use crate::connection::Shared;
use crate::{CallOptions, Client};

/// Arenas that stay mapped beside those that somebody reads.
const MAPPED_MAX: usize = 8;

/// What one connection has mapped, and what it has not given back.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    mapped: Mutex<BTreeMap<u64, Arc<Mapped>>>,
    held: Mutex<BTreeMap<(u64, u64), Segment>>,
}

/// The bytes of a part: those that rode along, or where they lie.
#[derive(Debug)]
pub struct Object(Content);

#[derive(Debug)]
enum Content {
    Carried(Bytes),
    Shared { memory: Arc<Mapped>, segment: Segment, connection: Weak<Shared> },
}

/// An arena, mapped.
struct Mapped(Shmem);

#[expect(unsafe_code, reason = "the crate's mapping holds a raw pointer")]
// SAFETY: the mapping belongs to no thread. It is read by copies alone, and what its drop does (munmap, close) may be done
// on any.
unsafe impl Send for Mapped {}
#[expect(unsafe_code, reason = "as above")]
// SAFETY: as above.
unsafe impl Sync for Mapped {}

impl std::fmt::Debug for Mapped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mapped").field("bytes", &self.0.len()).finish_non_exhaustive()
    }
}

impl Mapped {
    fn open(name: &str) -> Result<Self, Error> {
        let mapped = ShmemConf::new().os_id(format!("/{name}")).open();
        mapped
            .map(Self)
            .map_err(|why| Error::new(Code::Unavailable, "arena.attach", format!("cannot map {name}: {why}")))
    }

    /// False for a range that is not inside.
    fn copy(&self, offset: u64, into: &mut [u8]) -> bool {
        let Ok(offset) = usize::try_from(offset) else { return false };
        if offset.checked_add(into.len()).is_none_or(|end| end > self.0.len()) {
            return false;
        }
        #[expect(unsafe_code, reason = "shared bytes are copied by pointer")]
        // SAFETY: the range lies inside what is mapped, and `into` is private memory elsewhere. Another process may write
        // there meanwhile: they are bytes, of which any value is one.
        unsafe {
            std::ptr::copy_nonoverlapping(self.0.as_ptr().add(offset), into.as_mut_ptr(), into.len());
        }
        true
    }
}

impl Object {
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.0 {
            Content::Carried(bytes) => bytes.len(),
            Content::Shared { segment, .. } => usize::try_from(segment.length).unwrap_or(0),
        }
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether it lies in shared memory, and did not ride along.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        matches!(self.0, Content::Shared { .. })
    }

    /// Copies what begins at `offset` into `into`, all of it or nothing: false for a range that is not inside.
    pub fn copy_to(&self, offset: usize, into: &mut [u8]) -> bool {
        if offset.checked_add(into.len()).is_none_or(|end| end > self.len()) {
            return false;
        }
        match &self.0 {
            Content::Carried(bytes) => {
                into.copy_from_slice(&bytes[offset..offset + into.len()]);
                true
            }
            Content::Shared { memory, segment, .. } => memory.copy(segment.offset + offset as u64, into),
        }
    }

    /// A private copy.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len()];
        // Inside, by its own length.
        self.copy_to(0, &mut bytes);
        bytes
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        let Content::Shared { segment, connection, .. } = &self.0 else { return };
        if let Some(connection) = connection.upgrade() {
            connection.memory().give_back(&connection, *segment);
        }
    }
}

impl Client {
    /// The bytes of a part of a result, an item or a publication. One in shared memory is given back when the object is
    /// dropped; it is to be opened before the stream that it came on is left.
    ///
    /// # Errors
    /// `arena.stale` for one that was given back; `invalid` for a part that has neither bytes nor a place.
    pub async fn object(&self, part: &Part) -> Result<Object, Error> {
        if let Some(bytes) = part.contents() {
            return Ok(Object(Content::Carried(bytes)));
        }
        let Some(segment) = part.segment else {
            let text = "a part that neither rides along nor lies in shared memory";
            return Err(Error::invalid("arena.segment", text).help("artifact.read"));
        };
        let shared = self.shared();
        // Held from now on: whatever goes wrong gives it back.
        shared.memory().note(segment);
        let memory = self.mapped(segment.arena).await.inspect_err(|_| {
            shared.memory().give_back(shared, segment);
        })?;
        let connection = Arc::downgrade(shared);
        Ok(Object(Content::Shared { memory, segment, connection }))
    }

    async fn mapped(&self, arena: u64) -> Result<Arc<Mapped>, Error> {
        if let Some(known) = self.shared().memory().find(arena) {
            return Ok(known);
        }
        let request = codec::encode(&AttachRequest { arena })?.into();
        let options = CallOptions { credit: Some(0), ..CallOptions::default() };
        let reply = self.open(ATTACH, request, options).await?.reply().await?;
        let reply: AttachReply = codec::decode(&reply)?;
        let name = reply.name.ok_or_else(|| Error::internal("arena.attach", "the kernel names no memory"))?;
        let mapped = Arc::new(Mapped::open(&name)?);
        self.shared().memory().add(arena, Arc::clone(&mapped));
        Ok(mapped)
    }
}

impl Memory {
    /// What a stream that is left early gives back: all but what somebody reads.
    pub(crate) fn left(&self, stream: StreamId) -> ReleaseRequest {
        let keep = locked(&self.held).values().copied().collect();
        ReleaseRequest { segments: Vec::new(), stream: Some(stream.0), keep }
    }

    fn note(&self, segment: Segment) {
        locked(&self.held).insert((segment.arena, segment.generation), segment);
    }

    fn give_back(&self, connection: &Shared, segment: Segment) {
        locked(&self.held).remove(&(segment.arena, segment.generation));
        connection.release(&ReleaseRequest { segments: vec![segment], ..ReleaseRequest::default() });
    }

    fn find(&self, arena: u64) -> Option<Arc<Mapped>> {
        locked(&self.mapped).get(&arena).map(Arc::clone)
    }

    fn add(&self, arena: u64, memory: Arc<Mapped>) {
        let mut mapped = locked(&self.mapped);
        while mapped.len() >= MAPPED_MAX {
            // Numbers rise: the first was attached first.
            mapped.pop_first();
        }
        mapped.insert(arena, memory);
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
