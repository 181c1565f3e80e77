use super::*;

fn stream() -> StreamId {
    StreamId(7)
}

fn bytes_of(frame: &Frame) -> Vec<u8> {
    let mut out = BytesMut::new();
    frame.encode(&mut out).unwrap();
    out.to_vec()
}

fn decode_all(bytes: &[u8], limits: Limits) -> Result<Vec<Frame>, FrameError> {
    let mut decoder = Decoder::new(limits);
    decoder.push(bytes);
    let mut frames = Vec::new();
    while let Some(frame) = decoder.next_frame()? {
        frames.push(frame);
    }
    Ok(frames)
}

fn header(len: u32, version: u8, envelope: u16, reserved: u8) -> Vec<u8> {
    let mut bytes = len.to_be_bytes().to_vec();
    bytes.extend([version, 9, 0, 0, 0, 0, 0, 0]);
    bytes.extend(envelope.to_be_bytes());
    bytes.extend([0, reserved]);
    bytes
}

#[test]
fn a_frame_survives_the_wire_byte_by_byte() {
    let mut call = Frame::call(stream(), "run.get", &serde_json::json!({"run": "7k2m4q9d"})).unwrap();
    call.envelope.deadline_ms = Some(30_000);
    call = call.with_flags(Flags::URGENT).with_descriptors(2);
    let bytes = bytes_of(&call);
    let mut decoder = Decoder::new(Limits::DEFAULT);
    for byte in &bytes[..bytes.len() - 1] {
        decoder.push(&[*byte]);
        assert_eq!(decoder.next_frame(), Ok(None));
    }
    decoder.push(&bytes[bytes.len() - 1..]);
    assert_eq!(decoder.next_frame(), Ok(Some(call)));
    assert_eq!(decoder.buffered(), 0);
}

#[test]
fn a_bad_header_is_refused_before_its_frame_arrives() {
    let refused = |bytes: &[u8]| decode_all(bytes, Limits::DEFAULT).unwrap_err();
    assert_eq!(refused(&header(12, 2, 0, 0)), FrameError::Version { found: 2 });
    assert_eq!(refused(&header(12, 1, 0, 1)), FrameError::Reserved { found: 1 });
    assert_eq!(refused(&header(11, 1, 0, 0)), FrameError::Short { bytes: 11, needed: 12 });
    assert_eq!(refused(&header(12, 1, 1, 0)), FrameError::Short { bytes: 12, needed: 13 });
    assert_eq!(refused(&header(1 << 24, 1, 0, 0)), FrameError::Size { bytes: 1 << 24, max: FRAME_BYTES_MAX });
    assert_eq!(
        refused(&header(100_000, 1, 16_385, 0)),
        FrameError::EnvelopeSize { bytes: 16_385, max: 16_384 }
    );
    assert_eq!(decode_all(&header(FRAME_BYTES_MAX as u32, 1, 16_384, 0), Limits::DEFAULT), Ok(Vec::new()));
}

#[test]
fn a_failed_decoder_stays_failed_and_keeps_nothing() {
    let mut decoder = Decoder::new(Limits::DEFAULT);
    decoder.push(&header(12, 9, 0, 0));
    assert!(decoder.next_frame().is_err());
    decoder.push(&bytes_of(&Frame::new(FrameType::Ping, StreamId::CONNECTION)));
    assert_eq!(decoder.next_frame(), Err(FrameError::Version { found: 9 }));
    assert_eq!(decoder.buffered(), 0);
}

#[test]
fn an_envelope_ignores_unknown_keys_and_refuses_a_wrong_shape() {
    let with = |value: serde_json::Value| {
        let envelope = codec::encode(&value).unwrap();
        let mut bytes = header(12 + envelope.len() as u32, 1, envelope.len() as u16, 0);
        bytes.extend(envelope);
        decode_all(&bytes, Limits::DEFAULT)
    };
    let frames = with(serde_json::json!({"method": "a.b", "tomorrow": [1, {"x": 2}]})).unwrap();
    assert_eq!(frames[0].envelope.method.as_deref(), Some("a.b"));
    assert!(matches!(with(serde_json::json!({"method": 5})), Err(FrameError::Envelope(_))));
    assert!(matches!(with(serde_json::json!("method")), Err(FrameError::Envelope(_))));
    assert_eq!(with(serde_json::json!({"method": null})).unwrap()[0].envelope, Carried::default());
}

#[test]
fn what_is_too_large_is_not_encoded() {
    let mut out = BytesMut::from(&b"before"[..]);
    let large =
        Frame::new(FrameType::Data, stream()).with_body(WireCodec::Bytes, vec![0; FRAME_BYTES_MAX - 11]);
    assert!(matches!(large.encode(&mut out), Err(FrameError::Size { .. })));
    let mut wide = Frame::new(FrameType::Data, stream());
    wide.envelope.subject = Some("s".repeat(70_000));
    assert!(matches!(wide.encode(&mut out), Err(FrameError::EnvelopeSize { .. })));
    assert_eq!(&out[..], b"before");
}

#[test]
fn unknown_types_codecs_and_flags_are_kept_as_they_are() {
    let mut bytes = header(12, 1, 0, 0);
    bytes[5] = 200;
    bytes[6] = 0xf4;
    bytes[7] = 99;
    let frames = decode_all(&bytes, Limits::DEFAULT).unwrap();
    assert_eq!(frames[0].kind, FrameType::Other(200));
    assert_eq!(frames[0].codec, WireCodec::Other(99));
    assert!(frames[0].flags.contains(Flags::IGNORE));
    assert_eq!(bytes_of(&frames[0]), bytes);
}

#[test]
fn a_message_in_fragments_is_joined_again() {
    let body: Vec<u8> = (0..=255).cycle().take(1000).collect();
    let mut call =
        Frame::new(FrameType::Call, stream()).with_body(WireCodec::Bytes, body).with_descriptors(1).end();
    call.envelope.method = Some("a.b".into());
    let mut assembler = Assembler::new(Limits::DEFAULT);
    let fragments: Vec<Frame> = call.clone().fragments(300).collect();
    assert_eq!(fragments.len(), 4);
    let (last, first) = fragments.split_last().unwrap();
    for fragment in first {
        assert!(!fragment.is_end());
        assert_eq!(assembler.push(fragment.clone()), Ok(None));
    }
    // Other streams pass in between.
    let other = Frame::new(FrameType::Data, StreamId(9)).end();
    assert_eq!(assembler.push(other.clone()), Ok(Some(other)));
    assert_eq!(assembler.push(last.clone()), Ok(Some(call)));
    assert_eq!(assembler.buffered(), 0);
}

#[test]
fn an_error_or_a_cancel_drops_what_was_unfinished() {
    for kind in [FrameType::Error, FrameType::Cancel] {
        let mut assembler = Assembler::new(Limits::DEFAULT);
        let part = Frame::new(FrameType::Call, stream()).with_flags(Flags::MORE);
        assert_eq!(assembler.push(part.with_body(WireCodec::Bytes, vec![0; 50])), Ok(None));
        assert_eq!(assembler.buffered(), 50);
        let end = Frame::new(kind, stream());
        assert_eq!(assembler.push(end.clone()), Ok(Some(end)));
        assert_eq!(assembler.buffered(), 0);
    }
}

#[test]
fn fragments_are_bounded_by_message_by_connection_and_by_number() {
    let limits = Limits { frame_bytes: 100, assembly_bytes: 150, streams: 2, ..Limits::DEFAULT };
    let part = |stream: u32, bytes: usize| {
        Frame::new(FrameType::Data, StreamId(stream))
            .with_flags(Flags::MORE)
            .with_body(WireCodec::Bytes, vec![0; bytes])
    };
    let mut assembler = Assembler::new(limits);
    assert_eq!(assembler.push(part(1, 100)), Ok(None));
    assert_eq!(assembler.push(part(1, 1)), Err(FrameError::MessageSize { bytes: 101, max: 100 }));
    assert_eq!(assembler.push(part(2, 51)), Err(FrameError::AssemblySize { bytes: 151, max: 150 }));
    assert_eq!(assembler.push(part(2, 0)), Ok(None));
    assert_eq!(assembler.push(part(3, 0)), Err(FrameError::AssemblyCount { max: 2 }));
    assert_eq!(
        assembler.push(Frame { kind: FrameType::Call, ..part(1, 0) }),
        Err(FrameError::Interleaved { kind: FrameType::Call, stream: StreamId(1) })
    );
    assert!(matches!(assembler.push(part(0, 1)), Err(FrameError::NoFragment { .. })));
    assembler.forget(StreamId(1));
    assembler.forget(StreamId(2));
    assert_eq!(assembler.buffered(), 0);
}

#[test]
fn an_error_frame_carries_an_error_and_anything_else_becomes_one() {
    let error = Error::not_found("run.unknown", "there is no run x").help("eclosion runs");
    let frame = Frame::error(stream(), &error);
    assert_eq!(frame.to_error(), error);
    assert!(frame.is_end());
    assert_eq!(Frame::new(FrameType::Error, stream()).to_error().code, Code::Invalid);
}
