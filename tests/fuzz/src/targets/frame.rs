//! A socket's bytes.

use bytes::BytesMut;
use eclosion_schemas::frame::{Assembler, Decoder, Frame, FrameError, Limits};

use super::{Target, claim};
use crate::corpus;
use crate::memory::Bound;

pub(super) fn target() -> Target {
    Target {
        name: "frame",
        cases: 10_000,
        // The bytes in the buffer, in a frame, in an unfinished message and encoded again; envelopes are small structs.
        bound: Bound { each: 96, base: 64 * 1024 },
        corpus: || [corpus::golden_frames(), corpus::kept("frame")].concat(),
        check: Box::new(fuzz_frame),
    }
}

/// # Errors
/// What did not hold.
pub fn fuzz_frame(bytes: &[u8]) -> Result<(), String> {
    let (frames, end) = decode(bytes, bytes.len());
    let piece = 1 + bytes.first().map_or(0, |byte| usize::from(*byte) % 23);
    let in_pieces = decode(bytes, piece);
    // A NaN in an envelope differs from itself; nothing here carries one.
    claim((&frames, &end) == (&in_pieces.0, &in_pieces.1), || {
        format!("in pieces of {piece}: {in_pieces:?}, and at once: {:?}", (&frames, &end))
    })?;
    for frame in &frames {
        goes_round(frame)?;
    }
    assemble(frames)
}

fn decode(bytes: &[u8], piece: usize) -> (Vec<Frame>, Option<FrameError>) {
    let mut decoder = Decoder::new(Limits::DEFAULT);
    let mut frames = Vec::new();
    for piece in bytes.chunks(piece.max(1)) {
        decoder.push(piece);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(why) => return (frames, Some(why)),
            }
        }
    }
    (frames, None)
}

/// Unknown keys of an envelope are left out, so it is the value that must be the same; its bytes are from then on.
fn goes_round(frame: &Frame) -> Result<(), String> {
    let once = encoded(frame)?;
    let (again, end) = decode(&once, once.len());
    claim(end.is_none() && again.len() == 1 && again[0] == *frame, || {
        format!("{frame:?} was encoded, and is {again:?} {end:?}")
    })?;
    let twice = encoded(&again[0])?;
    claim(once == twice, || format!("{frame:?} has two encodings"))
}

fn encoded(frame: &Frame) -> Result<BytesMut, String> {
    let mut bytes = BytesMut::new();
    frame.encode(&mut bytes).map_err(|why| format!("{frame:?} was decoded and cannot be encoded: {why}"))?;
    Ok(bytes)
}

fn assemble(frames: Vec<Frame>) -> Result<(), String> {
    let limits = Limits::DEFAULT;
    let mut assembler = Assembler::new(limits);
    for frame in frames {
        let Ok(message) = assembler.push(frame) else { break };
        claim(assembler.buffered() <= limits.assembly_bytes as usize, || "too much is unfinished".into())?;
        drop(message);
    }
    Ok(())
}
