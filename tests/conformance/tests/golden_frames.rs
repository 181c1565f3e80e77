//! The golden frames, read as any other implementation reads them: from the files alone.
//!
//! The numbers in the JSON files are compared with `PROTOCOL.md`'s, not with the encoder's own names, so that renaming
//! or renumbering something there is found here.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use bytes::BytesMut;
use eclosion_schemas::codec::json;
use eclosion_schemas::frame::{Assembler, Decoder, Flags, Frame, FrameError, FrameType, Limits, WireCodec};
use eclosion_schemas::ops::pool::WorkerUpRequest;
use eclosion_schemas::ops::task::Execute;
use eclosion_schemas::view::TaskReport;
use eclosion_schemas::{Error, Payload};
use serde_json::Value;

struct Golden {
    name: String,
    bytes: Vec<u8>,
    says: Value,
}

fn golden() -> Vec<Golden> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../schemas/golden");
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "hex"));
    paths.sort();
    assert!(paths.len() > 30, "only {} golden files", paths.len());
    let read = |path: &Path| std::fs::read_to_string(path).unwrap();
    paths
        .iter()
        .map(|path| Golden {
            name: path.file_stem().unwrap().to_string_lossy().into_owned(),
            bytes: unhex(&read(path)),
            says: serde_json::from_str(&read(&path.with_extension("json"))).unwrap(),
        })
        .collect()
}

fn named(name: &str) -> Vec<Frame> {
    let found = golden().into_iter().find(|golden| golden.name == name).unwrap();
    decode(&found.bytes).unwrap()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.split_whitespace().flat_map(str::bytes).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

fn decode(bytes: &[u8]) -> Result<Vec<Frame>, FrameError> {
    let mut decoder = Decoder::new(Limits::DEFAULT);
    decoder.push(bytes);
    let mut frames = Vec::new();
    while let Some(frame) = decoder.next_frame()? {
        frames.push(frame);
    }
    assert_eq!(decoder.buffered(), 0);
    Ok(frames)
}

/// As `PROTOCOL.md` numbers them.
const FLAGS: [(&str, u8); 4] = [("END", 1), ("MORE", 2), ("IGNORE", 4), ("URGENT", 8)];

fn assert_says(name: &str, frame: &Frame, says: &Value) {
    assert_eq!(u64::from(u8::from(frame.kind)), says["type"], "{name}: type");
    assert_eq!(u64::from(u8::from(frame.codec)), says["codec"], "{name}: codec");
    assert_eq!(frame.stream.0, says["stream"], "{name}: stream");
    assert_eq!(u64::from(frame.descriptors), says["descriptors"], "{name}: descriptors");
    let flags: Vec<&str> =
        FLAGS.iter().filter(|(_, bit)| frame.flags.0 & bit != 0).map(|(flag, _)| *flag).collect();
    assert_eq!(serde_json::json!(flags), says["flags"], "{name}: flags");
    assert_eq!(serde_json::to_value(&frame.envelope).unwrap(), says["envelope"], "{name}: envelope");
    assert_eq!(frame.body, unhex(says["body_hex"].as_str().unwrap()), "{name}: body");
    if !says["value"].is_null() {
        assert_eq!(json::from_msgpack(&frame.body).unwrap(), says["value"], "{name}: value");
    }
}

#[test]
fn golden_frames_decode_to_what_is_stated_and_encode_to_the_same_bytes() {
    for Golden { name, bytes, says } in golden() {
        let Some(stated) = says["frames"].as_array() else { continue };
        let frames = decode(&bytes).unwrap();
        assert_eq!(frames.len(), stated.len(), "{name}");
        let mut again = BytesMut::new();
        for (frame, says) in frames.iter().zip(stated) {
            assert_says(&name, frame, says);
            frame.encode(&mut again).unwrap();
        }
        assert_eq!(again, bytes, "{name}");
    }
}

#[test]
fn golden_frames_that_must_be_refused_are_refused_for_the_stated_reason() {
    let mut reasons = BTreeSet::new();
    for Golden { name, bytes, says } in golden() {
        let Some(reason) = says["refused"].as_str() else { continue };
        let why = decode(&bytes).unwrap_err();
        assert_eq!(why.reason(), reason, "{name}");
        reasons.insert(reason.to_owned());
    }
    assert_eq!(reasons.len(), 6, "{reasons:?}");
}

#[test]
fn there_is_a_golden_frame_of_every_type_and_flag() {
    let (mut kinds, mut flags) = (BTreeSet::new(), 0);
    for golden in golden() {
        for frame in decode(&golden.bytes).unwrap_or_default() {
            kinds.insert(u8::from(frame.kind));
            flags |= frame.flags.0;
        }
    }
    assert!((1..=11).all(|kind| kinds.contains(&kind)), "{kinds:?}");
    assert_eq!(flags & 0x0f, 0x0f);
}

#[test]
fn golden_fragments_join_to_the_message_that_was_cut() {
    for (cut, whole) in [("data-end-fragments", Some("data-end")), ("call-fragments", None)] {
        let mut assembler = Assembler::new(Limits::DEFAULT);
        let fragments = named(cut);
        assert!(fragments.len() > 1, "{cut}");
        let mut messages = Vec::new();
        for fragment in fragments {
            messages.extend(assembler.push(fragment).unwrap());
        }
        assert_eq!(messages.len(), 1, "{cut}");
        assert!(!messages[0].flags.contains(Flags::MORE), "{cut}");
        if let Some(whole) = whole {
            assert_eq!(messages, named(whole));
        }
        assert_eq!(assembler.buffered(), 0);
    }
}

#[test]
fn golden_bodies_are_the_types_that_they_are_called_by() {
    let execute: Execute = named("call-execute")[0].decode().unwrap();
    assert_eq!(execute.seed, u64::MAX);
    assert_eq!(execute.arguments.len(), 2);
    let output: Payload = named("data-end")[0].decode().unwrap();
    assert_eq!(output.parts[0].stage, Some(5));
    let reports: Vec<TaskReport> =
        named("data-reports").iter().map(|frame| frame.decode().unwrap()).collect();
    assert_eq!(reports.len(), 2);
    let hello: WorkerUpRequest = named("hello-worker-running")[0].decode().unwrap();
    assert_eq!(hello.attempts[0].counter, 17);
    let raised: Error = named("error-raised")[0].to_error();
    assert_eq!(raised.remote.unwrap().cause.unwrap().kind, "builtins.KeyError");
    assert_eq!(named("reply-stage")[0].descriptors, 1);
    let unknown = named("unknown-type");
    assert_eq!(unknown[0].kind, FrameType::Other(200));
    assert_eq!(named("unknown-codec-and-flag")[0].codec, WireCodec::Other(99));
}
