//! From the worker's last frame of an attempt to an outcome whose parts have names.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use eclosion_artifact_store::{BlobStore, Storage};
use eclosion_schemas::frame::{Frame, FrameType};
use eclosion_schemas::{Code, Error, Part, Payload, Retry};

use super::Outcome;

/// The reason of an outcome that says: it was given back before it began.
pub(super) const RETURNED: &str = "task.returned";

/// Smaller files are hashed where we are: handing them over would cost as much.
const INLINE_BYTES: u64 = 64 * 1024;

/// # Errors
/// The worker broke the protocol.
pub(super) fn read(frame: &Frame, is_call: bool) -> Result<Outcome, Error> {
    let result = match frame.kind {
        FrameType::Error => Err(frame.to_error()),
        _ => Ok(frame.decode::<Payload>()?),
    };
    // Of a call's, whether it may, `Files::hold` says.
    let is_unkept = is_call && result.as_ref().is_ok_and(|payload| carried(payload).is_ok());
    let nameless = |part: &Part| part.digest.is_none() && part.stage.is_none();
    if !is_unkept && result.as_ref().is_ok_and(|payload| payload.parts.iter().any(nameless)) {
        return Err(Error::invalid("task.payload", "a part of a payload names neither digest nor stage"));
    }
    let range = |range: Option<[u64; 2]>| range.map_or((0, 0), |[from, to]| (from, to.max(from)));
    let (stdout, stderr) = (range(frame.envelope.stdout), range(frame.envelope.stderr));
    Ok(Outcome { result, stdout, stderr, ran_unix_ns: frame.envelope.ran })
}

/// The parts of an item, or of a call's result, ride with it or lie in shared memory: nothing hashes them, and no file of
/// theirs would ever be sealed.
///
/// # Errors
/// The worker broke the protocol.
pub(super) fn carried(payload: &Payload) -> Result<(), Error> {
    let carried = |part: &Part| match (&part.data, &part.segment) {
        (Some(data), None) => data.len() as u64 == part.bytes,
        (None, Some(segment)) => segment.length == part.bytes,
        _ => false,
    };
    match payload.parts.iter().all(carried) {
        true => Ok(()),
        false => Err(Error::invalid("task.payload", "a part of an item has not the bytes that it says")),
    }
}

/// Whether there is nothing to seal.
pub(super) fn is_named(outcome: &Outcome) -> bool {
    outcome.result.iter().flat_map(|payload| &payload.parts).all(|part| part.stage.is_none())
}

/// Of an attempt that was cancelled before the worker had it.
pub(super) fn cancelled() -> Outcome {
    without_output("task.cancelled", "the attempt was cancelled before it began")
}

/// Of an attempt that another worker may have.
pub(super) fn returned() -> Outcome {
    without_output(RETURNED, "the attempt was given back before it began")
}

fn without_output(reason: &str, text: &str) -> Outcome {
    let result = Err(Error::new(Code::Cancelled, reason, text));
    Outcome { result, stdout: (0, 0), stderr: (0, 0), ran_unix_ns: None }
}

/// Gives every staged part its name. `staged` are the stages that the attempt may name, with their lengths.
pub(super) async fn sealed(
    outcome: Outcome,
    staged: BTreeMap<u64, u64>,
    store: Arc<dyn BlobStore>,
) -> Outcome {
    let Outcome { result, stdout, stderr, ran_unix_ns } = outcome;
    let result = match result {
        Ok(payload) => seal(payload, staged, store).await,
        Err(error) => Err(error),
    };
    Outcome { result, stdout, stderr, ran_unix_ns }
}

async fn seal(
    payload: Payload,
    staged: BTreeMap<u64, u64>,
    store: Arc<dyn BlobStore>,
) -> Result<Payload, Error> {
    let is_small = staged.values().fold(0_u64, |sum, bytes| sum.saturating_add(*bytes)) <= INLINE_BYTES;
    if is_small {
        return seal_now(payload, staged, store.as_ref());
    }
    let sealing = tokio::task::spawn_blocking(move || seal_now(payload, staged, store.as_ref()));
    sealing.await.unwrap_or_else(|why| Err(Error::internal("artifact.seal", why.to_string())))
}

fn seal_now(
    mut payload: Payload,
    mut staged: BTreeMap<u64, u64>,
    store: &dyn BlobStore,
) -> Result<Payload, Error> {
    let mut names = BTreeMap::new();
    let sealed = payload.parts.iter_mut().try_for_each(|part| -> Result<(), Error> {
        let Some(stage) = part.stage else { return Ok(()) };
        // Two parts may share one file, which is sealed once.
        let (digest, bytes) = match names.entry(stage) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => {
                staged.remove(&stage).ok_or_else(|| not_staged(stage))?;
                unknown.insert(store.seal_as(stage, Storage::of_codec(&part.codec))?)
            }
        };
        (part.digest, part.stage, part.bytes) = (Some(digest.clone()), None, *bytes);
        Ok(())
    });
    // After a failure: what was not sealed will not be.
    staged.into_keys().for_each(|stage| store.discard(stage));
    sealed.map(|()| payload)
}

fn not_staged(stage: u64) -> Error {
    let text = format!("the attempt has staged no file {stage}");
    Error::not_found("artifact.stage_unknown", text).retry(Retry::Now)
}
