//! Large values on their way to one client: where it finds them, and what it has not given back yet.
//!
//! ```text
//!   a part's bytes ──┬─ the client maps by descriptor: their segment, or one of the kernel's ──┐
//!                    ├─ it finds memory by name: copied into a named arena of its own ─────────┴▶ held until released
//!                    └─ it does neither, holds too much, or nothing is free: they ride along
//! ```
//!
//! Owned by the session, and gone with it: a client that is killed leaves nothing behind (P1). Invariants:
//! 1. A segment that the client was told of stays as it is until the client gives it back, or cancels the stream that it
//!    came on and does not say that it keeps it.
//! 2. At most [`HELD_MAX`] are held for one client; what it is sent beyond that rides along, so that one who gives nothing
//!    back costs room in its own connection alone.
//! 3. A client attaches only to arenas of which it was told a segment, and names no other in what it calls.

use std::any::Any;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use bytes::Bytes;
use eclosion_bus::Delivery;
use eclosion_schemas::frame::{Frame, StreamId};
use eclosion_schemas::ops::arena::{
    ATTACH, AttachReply, AttachRequest, RELEASE, ReleaseRequest, TAKES_NAMED, TAKES_SEALED,
};
use eclosion_schemas::ops::kernel::Empty;
use eclosion_schemas::ops::pool::CallRequest;
use eclosion_schemas::view::{TaskItem, TaskReport};
use eclosion_schemas::{Epoch, Error, Hold, Part, Payload, Segment};

use crate::arena::{NamedObjects, Objects};

/// Segments that one client may have.
const HELD_MAX: usize = 64;
/// What is smaller rides along: a frame is quicker than to find out where it lies.
const SHARED_BYTES_MIN: usize = 64 * 1024;

/// How the client reads shared memory.
#[derive(Debug)]
enum Takes {
    Nothing,
    Sealed,
    Named(Box<NamedObjects>),
}

/// See the head of this file.
#[derive(Debug)]
pub(super) struct Sharing {
    objects: Option<(Objects, String)>,
    takes: Takes,
    /// By arena and generation.
    held: BTreeMap<(u64, u64), (StreamId, Hold)>,
}

impl Sharing {
    pub(super) fn none() -> Self {
        Self { objects: None, takes: Takes::Nothing, held: BTreeMap::new() }
    }

    /// Names begin with `tag`.
    pub(super) fn of(objects: Objects, tag: String) -> Self {
        Self { objects: Some((objects, tag)), ..Self::none() }
    }

    /// What the client says that it can. Returns what it is given, for WELCOME.
    pub(super) fn agree(&mut self, features: &[String], epoch: Epoch, frames: bool) -> Vec<String> {
        let Some((objects, tag)) = &self.objects else { return Vec::new() };
        let has = |word: &str| features.iter().any(|feature| feature == word);
        // Lines carry no descriptors.
        if frames && has(TAKES_SEALED) {
            self.takes = Takes::Sealed;
            return vec![TAKES_SEALED.to_owned()];
        }
        if has(TAKES_NAMED) {
            let named = NamedObjects::new(objects.clone(), tag.clone(), epoch);
            self.takes = Takes::Named(Box::new(named));
            return vec![TAKES_NAMED.to_owned()];
        }
        Vec::new()
    }

    /// Whether results may be written where the client reads them.
    pub(super) fn is_on(&self) -> bool {
        !matches!(self.takes, Takes::Nothing)
    }

    /// Answers a call about arenas; nothing for any other.
    pub(super) fn answer(&mut self, call: &Frame) -> Option<Result<(Frame, Vec<OwnedFd>), Error>> {
        match call.envelope.method.as_deref()? {
            ATTACH => Some(self.attach(call)),
            RELEASE => Some(self.release(call)),
            _ => None,
        }
    }

    fn attach(&self, call: &Frame) -> Result<(Frame, Vec<OwnedFd>), Error> {
        let AttachRequest { arena } = call.decode()?;
        let gone = || crate::arena::gone(arena);
        if self.held.range((arena, 0)..=(arena, u64::MAX)).next().is_none() {
            return Err(gone());
        }
        let (reply, descriptors) = match (&self.takes, &self.objects) {
            (Takes::Named(named), _) => {
                let (bytes, name) = named.attach(arena).ok_or_else(gone)?;
                (AttachReply { bytes, name: Some(name) }, Vec::new())
            }
            (Takes::Sealed, Some((objects, _))) => {
                let (bytes, file) = objects.attach(arena)?;
                (AttachReply { bytes, name: None }, vec![file])
            }
            _ => return Err(gone()),
        };
        Ok((Frame::data(call.stream, &reply)?.end(), descriptors))
    }

    fn release(&mut self, call: &Frame) -> Result<(Frame, Vec<OwnedFd>), Error> {
        let ReleaseRequest { segments, stream, keep } = call.decode()?;
        for segment in &segments {
            self.held.remove(&key(segment));
        }
        if let Some(stream) = stream {
            let keep: Vec<_> = keep.iter().map(key).collect();
            self.held.retain(|key, (of, _)| of.0 != stream || keep.contains(key));
        }
        Ok((Frame::data(call.stream, &Empty {})?.end(), Vec::new()))
    }

    /// Arguments of a call may name shared memory that this client holds, and no other.
    ///
    /// # Errors
    /// `arena.segment` for what it was not told of, or has given back.
    pub(super) fn check(&self, request: &(dyn Any + Send)) -> Result<(), Error> {
        let Some(call) = request.downcast_ref::<CallRequest>() else { return Ok(()) };
        let named = call.arguments.parts.iter().filter_map(|part| part.segment.as_ref());
        match named.into_iter().find(|segment| !self.held.contains_key(&key(segment))) {
            None => Ok(()),
            Some(segment) => {
                let text =
                    format!("segment {} of arena {} is not this client's", segment.generation, segment.arena);
                Err(Error::invalid("arena.segment", text)
                    .help("send the bytes, or keep what was received until the call is over"))
            }
        }
    }

    /// `encode` is given the item as this client can read it.
    pub(super) fn item<T>(
        &mut self,
        stream: StreamId,
        item: &(dyn Any + Send),
        encode: impl Fn(&(dyn Any + Send)) -> T,
    ) -> T {
        if let Some(TaskReport::Item { index, payload }) = item.downcast_ref()
            && let Some(payload) = self.placed(stream, payload)
        {
            return encode(&TaskReport::Item { index: *index, payload });
        }
        self.reply(stream, item, encode)
    }

    /// As [`Sharing::item`].
    pub(super) fn reply<T>(
        &mut self,
        stream: StreamId,
        reply: &(dyn Any + Send),
        encode: impl Fn(&(dyn Any + Send)) -> T,
    ) -> T {
        match reply.downcast_ref().and_then(|payload| self.placed(stream, payload)) {
            Some(placed) => encode(&placed),
            None => encode(reply),
        }
    }

    /// What is published as a payload or an item of a task may lie in shared memory; all else is encoded once for all.
    pub(super) fn delivery(&mut self, stream: StreamId, delivery: &Delivery) -> Result<Bytes, Error> {
        if let Delivery::Change(event) | Delivery::Snapshot(event) = delivery {
            let is_change = matches!(delivery, Delivery::Change(_));
            if let Some(placed) = event.value().and_then(|payload| self.placed(stream, payload)) {
                return event.encoded_as(&placed, is_change).map(Bytes::from);
            }
            if let Some(TaskItem { attempt, index, payload }) = event.value()
                && let Some(payload) = self.placed(stream, payload)
            {
                let item = TaskItem { attempt: *attempt, index: *index, payload };
                return event.encoded_as(&item, is_change).map(Bytes::from);
            }
        }
        delivery.encoded().map(Bytes::from_owner)
    }

    /// The payload as this client can read it; nothing if it is so already.
    fn placed(&mut self, stream: StreamId, payload: &Payload) -> Option<Payload> {
        let is_large = |part: &Part| {
            part.data.as_ref().is_some_and(|data| data.len() >= SHARED_BYTES_MIN) && self.is_on()
        };
        if !payload.parts.iter().any(|part| part.segment.is_some() || is_large(part)) {
            return None;
        }
        let mut placed = payload.clone();
        for part in &mut placed.parts {
            if self.held.len() >= HELD_MAX || !self.place(stream, part) {
                (part.data, part.segment) = (part.contents(), None);
            }
            // What stays with the message must not outlive what the client gives back.
            part.hold = Hold::default();
        }
        Some(placed)
    }

    /// False, if the part has to ride along.
    fn place(&mut self, stream: StreamId, part: &mut Part) -> bool {
        let small = part.data.as_ref().is_some_and(|data| data.len() < SHARED_BYTES_MIN);
        let lies = part.segment.is_some() && !part.hold.is_empty();
        let lease = match (&mut self.takes, &self.objects) {
            _ if small => return false,
            (Takes::Sealed, _) if lies => {
                let Some(segment) = part.segment else { return false };
                self.held.insert(key(&segment), (stream, part.hold.clone()));
                return true;
            }
            (Takes::Sealed, Some((objects, _))) => part.contents().and_then(|bytes| objects.put(&[&bytes])),
            (Takes::Named(named), _) => part.contents().and_then(|bytes| named.put(&[&bytes])),
            _ => None,
        };
        let Some(lease) = lease else { return false };
        let segment = lease.segment();
        (part.segment, part.data) = (Some(segment), None);
        self.held.insert(key(&segment), (stream, lease.into_part("").hold));
        true
    }
}

fn key(segment: &Segment) -> (u64, u64) {
    (segment.arena, segment.generation)
}
