//! msgpack and JSON as they stand in frames, in lines and in the journal: read as each of the types that are read there.

use std::sync::{Arc, OnceLock};

use eclosion_schemas::codec::{self, json};
use eclosion_schemas::events;
use eclosion_schemas::frame::{Decoder, Envelope, Limits};
use eclosion_schemas::operation::Spec;
use eclosion_schemas::ops::task::Execute;
use eclosion_schemas::view::TaskReport;
use eclosion_schemas::{Error, Payload, ops};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Target, claim};
use crate::corpus;
use crate::memory::Bound;

pub(super) fn target() -> Target {
    Target {
        name: "message",
        cases: 2_500,
        // A byte of msgpack may be a whole value of JSON, which is 32 bytes and a key; a list reserves before it fills.
        bound: Bound { each: 512, base: 4 << 20 },
        corpus: || [examples(), bodies(), corpus::kept("message")].concat(),
        check: Box::new(fuzz_message),
    }
}

/// Every operation's own example.
fn examples() -> Vec<Vec<u8>> {
    operations().iter().filter_map(|spec| json::pack(&(spec.example)()).ok()).collect()
}

fn operations() -> &'static [Arc<Spec>] {
    static OPERATIONS: OnceLock<Vec<Arc<Spec>>> = OnceLock::new();
    OPERATIONS.get_or_init(|| ops::table().map(|table| table.iter().cloned().collect()).unwrap_or_default())
}

fn bodies() -> Vec<Vec<u8>> {
    let mut bodies = Vec::new();
    for golden in corpus::golden_frames() {
        let mut decoder = Decoder::new(Limits::DEFAULT);
        decoder.push(&golden);
        while let Ok(Some(frame)) = decoder.next_frame() {
            bodies.push(frame.body.to_vec());
            bodies.extend(codec::encode(&*frame.envelope).ok());
        }
    }
    bodies.retain(|body| !body.is_empty());
    bodies
}

/// # Errors
/// What did not hold.
pub fn fuzz_message(bytes: &[u8]) -> Result<(), String> {
    goes_round::<Envelope>(bytes)?;
    goes_round::<Error>(bytes)?;
    goes_round::<Payload>(bytes)?;
    goes_round::<Execute>(bytes)?;
    goes_round::<TaskReport>(bytes)?;
    goes_round::<events::RunStarted>(bytes)?;
    goes_round::<events::AttemptStarted>(bytes)?;
    goes_round::<events::StepCommitted>(bytes)?;
    goes_round::<events::WorkerDied>(bytes)?;
    requests(bytes)?;
    in_lines(bytes)
}

fn goes_round<T: DeserializeOwned + Serialize>(bytes: &[u8]) -> Result<(), String> {
    let name = std::any::type_name::<T>();
    let Ok(value) = codec::decode::<T>(bytes) else { return Ok(()) };
    let encode = |value: &T| codec::encode(value).map_err(|why| format!("a {name} cannot be encoded: {why}"));
    let once = encode(&value)?;
    let again: T = codec::decode(&once).map_err(|why| format!("a {name} does not come back: {why}"))?;
    claim(encode(&again)? == once, || format!("a {name} comes back as another"))
}

/// As the request of every operation, as a session reads it, and as people are shown it.
fn requests(bytes: &[u8]) -> Result<(), String> {
    for spec in operations() {
        let Ok(request) = (spec.decode_request)(bytes) else { continue };
        claim((spec.show_request)(&*request).is_some(), || {
            format!("a request of {} cannot be shown", spec.name)
        })?;
    }
    Ok(())
}

/// The other dialect: what is shown of msgpack is read as the same msgpack, as far as JSON can say it.
fn in_lines(bytes: &[u8]) -> Result<(), String> {
    if let Ok(shown) = json::from_msgpack(bytes) {
        let packed = json::pack(&shown).map_err(|why| format!("{shown} cannot be packed: {why}"))?;
        let again =
            json::from_msgpack(&packed).map_err(|why| format!("{shown} does not come back: {why}"))?;
        claim(again == shown, || format!("{shown} comes back as {again}"))?;
    }
    drop(json::show(bytes));
    if let Ok(packed) = json::to_msgpack(bytes) {
        codec::decode::<serde::de::IgnoredAny>(&packed)
            .map_err(|why| format!("a line was packed into what cannot be read: {why}"))?;
    }
    drop(json::decode::<Payload>(bytes));
    Ok(())
}
