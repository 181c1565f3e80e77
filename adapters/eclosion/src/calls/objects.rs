//! Large arguments of a call by shared memory: put there before it begins, held until it is over.
//!
//! What has no room there rides along in the frames as before, as far as a frame goes. The bytes are the caller's: nothing
//! here looks at them.

use eclosion_ipc::arena::{Lease, Objects};
use eclosion_schemas::{Error, Payload};

/// Below it, a frame is quicker than to find out where it lies.
pub(super) const OBJECT_BYTES_MIN: usize = 64 * 1024;

/// Moves the large parts into shared memory. What a part names there already is held as well.
///
/// # Errors
/// `arena.stale` for a segment that was given back, and `arena.segment` for one that never was.
pub(super) fn put(arguments: &mut Payload, objects: &Objects) -> Result<Vec<Lease>, Error> {
    let mut held = Vec::new();
    for part in &mut arguments.parts {
        if let Some(segment) = &part.segment {
            held.push(objects.lease(segment)?);
            part.bytes = segment.length;
            continue;
        }
        let Some(data) = part.data.as_ref().filter(|data| data.len() >= OBJECT_BYTES_MIN) else { continue };
        let Some(lease) = objects.put(&[data]) else { continue };
        (part.segment, part.bytes, part.data) = (Some(lease.segment()), data.len() as u64, None);
        held.push(lease);
    }
    Ok(held)
}
