//! The line dialect: each frame as one line of JSON, for a program that has no msgpack and for a person with a terminal.
//!
//! ```text
//!   {"type":"call","stream":1,"method":"run.get","body":{"run":"7k2m4q9d"}}
//!   {"type":"data","stream":1,"end":true,"body":{…}}
//! ```
//!
//! Everything above the frame is shared with the binary dialect: sessions, streams, credit, limits, errors. A line has
//! the envelope's keys, and beside them `type`, `stream` (0 if left out), `end` and `body`. Bytes are
//! `{"$b64": "…"}`; a payload's body is shown as the value that it holds, `{"$msgpack": …}`, and read in either form.
//!
//! Invariants:
//! 1. A line is bounded like a frame, and memory follows what arrived; nesting and values are counted by a loop before
//!    a decoder runs. After an error the decoder stays failed.
//! 2. Whatever is sent is a line: what has no JSON form becomes an error on its stream.
//!
//! Deliberately absent: fragments (a line is whole) and descriptors, so that a stream of lines carries no staged files.

use bytes::{Buf, BytesMut};
use eclosion_schemas::codec::{CodecError, json};
use eclosion_schemas::frame::{Envelope, Flags, Frame, FrameType, Limits, StreamId, WireCodec};
use eclosion_schemas::{Code, Error};
use serde_json::{Map, Value};

/// Why a line is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    #[error("a line is over the limit of {max} bytes")]
    Size { max: usize },
    #[error("a line is no JSON object within the limits: {0}")]
    Json(#[from] CodecError),
    #[error("a line has no `type` that this kernel knows: {shown}")]
    Type { shown: String },
    #[error("`{key}` of a line is malformed: {text}")]
    Key { key: &'static str, text: String },
}

impl LineError {
    fn reason(&self) -> &'static str {
        match self {
            LineError::Size { .. } => "line.size",
            LineError::Json(_) => "line.json",
            LineError::Type { .. } => "line.type",
            LineError::Key { .. } => "line.key",
        }
    }
}

impl From<LineError> for Error {
    fn from(why: LineError) -> Self {
        Error::invalid(why.reason(), why.to_string()).help("schemas/PROTOCOL.md tells the line dialect")
    }
}

/// The words for the types; what is not here has none.
const TYPES: [(&str, FrameType); 11] = [
    ("hello", FrameType::Hello),
    ("welcome", FrameType::Welcome),
    ("call", FrameType::Call),
    ("data", FrameType::Data),
    ("error", FrameType::Error),
    ("cancel", FrameType::Cancel),
    ("credit", FrameType::Credit),
    ("pub", FrameType::Pub),
    ("ping", FrameType::Ping),
    ("pong", FrameType::Pong),
    ("goaway", FrameType::Goaway),
];

/// An incremental decoder: push what was received, then take frames until there is none.
#[derive(Debug)]
pub(crate) struct LineDecoder {
    line_bytes_max: usize,
    buffer: BytesMut,
    /// Bytes of the buffer that are known to hold no line break.
    searched: usize,
    failed: Option<LineError>,
}

impl LineDecoder {
    pub(crate) fn new(limits: &Limits) -> Self {
        let line_bytes_max = limits.frame_bytes as usize;
        Self { line_bytes_max, buffer: BytesMut::new(), searched: 0, failed: None }
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        if self.failed.is_none() {
            self.buffer.extend_from_slice(bytes);
        }
    }

    /// Bytes of a line that has not ended.
    pub(crate) fn buffered(&self) -> usize {
        self.buffer.len()
    }

    /// The next whole line as a frame; `None` until more bytes are pushed. Empty lines are passed over.
    ///
    /// # Errors
    /// [`LineError`], now and ever after: the connection must be closed.
    pub(crate) fn next_frame(&mut self) -> Result<Option<Frame>, LineError> {
        if let Some(why) = &self.failed {
            return Err(why.clone());
        }
        self.take().inspect_err(|why| {
            self.failed = Some(why.clone());
            self.buffer = BytesMut::new();
        })
    }

    fn take(&mut self) -> Result<Option<Frame>, LineError> {
        loop {
            let found = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n');
            let end = found.map_or(self.buffer.len(), |at| self.searched + at);
            if end > self.line_bytes_max {
                return Err(LineError::Size { max: self.line_bytes_max });
            }
            if found.is_none() {
                self.searched = end;
                return Ok(None);
            }
            let line = self.buffer.split_to(end);
            self.buffer.advance(1);
            self.searched = 0;
            if !line.iter().all(u8::is_ascii_whitespace) {
                return frame_of(&line).map(Some);
            }
        }
    }
}

fn frame_of(line: &[u8]) -> Result<Frame, LineError> {
    let mut keys: Map<String, Value> = json::decode(line)?;
    let kind = keys.remove("type").unwrap_or_default();
    let known = TYPES.iter().find(|(word, _)| kind == *word);
    let &(_, kind) = known.ok_or_else(|| LineError::Type { shown: shown(&kind) })?;
    let stream = match keys.remove("stream") {
        None => StreamId::CONNECTION,
        Some(stream) => serde_json::from_value(stream).map_err(|why| malformed("stream", &why))?,
    };
    let end = match keys.remove("end") {
        None => false,
        Some(end) => serde_json::from_value(end).map_err(|why| malformed("end", &why))?,
    };
    let body = keys.remove("body");
    let envelope: Envelope =
        serde_json::from_value(Value::Object(keys)).map_err(|why| malformed("envelope", &why))?;
    let mut frame = Frame::new(kind, stream);
    if envelope != Envelope::default() {
        frame = frame.with_envelope(envelope);
    }
    if let Some(body) = body {
        let packed = json::pack(&body).map_err(|why| malformed("body", &why))?;
        frame = frame.with_body(WireCodec::Msgpack, packed);
    }
    Ok(if end { frame.with_flags(Flags::END) } else { frame })
}

fn malformed(key: &'static str, why: &dyn std::fmt::Display) -> LineError {
    LineError::Key { key, text: why.to_string() }
}

/// A piece of what was there, for whoever wrote it.
fn shown(value: &Value) -> String {
    value.to_string().chars().take(40).collect()
}

/// Appends the line that shows `frame`.
pub(crate) fn encode(frame: &Frame, out: &mut BytesMut) {
    let line = line_of(frame).or_else(|why| {
        let text = format!("this message has no form in JSON: {why}");
        let error = Error::new(Code::Internal, "line.json", text).help("use the binary dialect");
        line_of(&Frame::error(frame.stream, &error))
    });
    match line {
        Ok(line) => {
            out.extend_from_slice(&line);
            out.extend_from_slice(b"\n");
        }
        // An error is plain data, so this is our own mistake.
        Err(why) => tracing::error!(%why, kind = ?frame.kind, stream = %frame.stream, "a line was not sent"),
    }
}

fn line_of(frame: &Frame) -> Result<Vec<u8>, CodecError> {
    let word = TYPES.iter().find(|(_, kind)| *kind == frame.kind).map_or("unknown", |(word, _)| *word);
    let mut keys = Map::from_iter([("type".to_owned(), Value::from(word))]);
    if frame.stream != StreamId::CONNECTION {
        keys.insert("stream".to_owned(), frame.stream.0.into());
    }
    if frame.is_end() && frame.stream != StreamId::CONNECTION {
        keys.insert("end".to_owned(), true.into());
    }
    let envelope = serde_json::to_value(&frame.envelope).map_err(|why| shape(&why))?;
    if let Value::Object(envelope) = envelope {
        keys.extend(envelope);
    }
    match frame.codec {
        WireCodec::None => {}
        WireCodec::Msgpack => drop(keys.insert("body".to_owned(), json::show(&frame.body)?)),
        _ => drop(keys.insert("body".to_owned(), json::binary(&frame.body))),
    }
    json::encode(&keys)
}

fn shape(why: &serde_json::Error) -> CodecError {
    CodecError::Shape { text: why.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(limits: &Limits, pieces: &[&[u8]]) -> Result<Vec<Frame>, LineError> {
        let mut decoder = LineDecoder::new(limits);
        let mut frames = Vec::new();
        for piece in pieces {
            decoder.push(piece);
            while let Some(frame) = decoder.next_frame()? {
                frames.push(frame);
            }
        }
        Ok(frames)
    }

    fn one(line: &str) -> Result<Frame, LineError> {
        frames(&Limits::DEFAULT, &[line.as_bytes(), b"\n"]).map(|mut frames| frames.remove(0))
    }

    #[test]
    fn a_line_is_a_frame_however_it_is_cut() {
        let line =
            br#"{"type":"call","stream":3,"method":"run.get","deadline_ms":50,"later":1,"body":{"run":"a"}}"#;
        let text = [&line[..], b"\r\n \n", line, b"\n"].concat();
        for cut in 0..text.len() {
            let frames = frames(&Limits::DEFAULT, &[&text[..cut], &text[cut..]]).unwrap();
            assert_eq!(frames.len(), 2, "cut at {cut}");
            assert_eq!((frames[0].kind, frames[0].stream), (FrameType::Call, StreamId(3)));
            assert_eq!(frames[1].envelope.deadline_ms, Some(50));
            assert_eq!(frames[1].decode(), Ok(serde_json::json!({"run": "a"})));
        }
    }

    #[test]
    fn what_is_shown_is_read_back_as_it_was() {
        let payload =
            eclosion_schemas::Payload::of(&serde_json::json!({"x": [1, 2.5, null], "nested": {"$": "y"}}));
        // Bytes, infinity, a number.
        let odd = [&[0x93, 0xc4, 2, 0xff, 0, 0xcb, 0x7f, 0xf0][..], &[0; 6], &[7]].concat();
        for frame in [
            Frame::data(StreamId(5), &payload).unwrap().end(),
            Frame::new(FrameType::Data, StreamId(5)).with_body(WireCodec::Msgpack, odd),
            Frame::error(StreamId(1), &Error::not_found("a.b", "c")).end(),
            Frame::new(FrameType::Goaway, StreamId::CONNECTION)
                .with_envelope(Envelope { reason: Some("kernel.stopping".into()), ..Envelope::default() }),
        ] {
            let mut out = BytesMut::new();
            encode(&frame, &mut out);
            let line = String::from_utf8(out.to_vec()).unwrap();
            let read = one(line.trim_end()).unwrap();
            assert_eq!((read.kind, read.flags, &read.envelope), (frame.kind, frame.flags, &frame.envelope));
            // The keys of a map come in another order.
            let mut again = BytesMut::new();
            encode(&read, &mut again);
            assert_eq!((again, read.body.len()), (out, frame.body.len()), "{line}");
        }
    }

    #[test]
    fn a_payloads_body_is_shown_as_its_value_and_a_part_by_its_index() {
        let payload = eclosion_schemas::Payload::of(&serde_json::json!({"score": 0.5}));
        let mut out = BytesMut::new();
        encode(&Frame::data(StreamId(1), &payload).unwrap().end(), &mut out);
        let line: Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(line["body"]["body"], serde_json::json!({"$msgpack": {"score": 0.5}}));
        let call =
            one(r#"{"type":"call","stream":1,"body":{"arguments":{"body":{"$msgpack":[{"$part":2}]}}}}"#);
        let body = call.unwrap().body;
        assert!(body.ends_with(&[0x91, 0xd6, 1, 0, 0, 0, 2]), "{body:?}");
    }

    #[test]
    fn what_is_no_line_is_refused_with_its_reason_and_ever_after() {
        let deep = format!(r#"{{"type":"call","body":{}{}}}"#, "[".repeat(40), "]".repeat(40));
        for (line, reason) in [
            ("[]", "line.json"),
            ("{", "line.json"),
            ("{\"type\":\"call\"}x", "line.json"),
            (deep.as_str(), "line.json"),
            ("{}", "line.type"),
            (r#"{"type":7}"#, "line.type"),
            (r#"{"type":"call","stream":-1}"#, "line.key"),
            (r#"{"type":"call","stream":4294967296}"#, "line.key"),
            (r#"{"type":"data","end":"yes"}"#, "line.key"),
            (r#"{"type":"call","method":[]}"#, "line.key"),
            (r#"{"type":"call","body":{"$b64":"?"}}"#, "line.key"),
        ] {
            assert_eq!(one(line).map_err(|why| why.reason()), Err(reason), "{line}");
        }
        let mut decoder = LineDecoder::new(&Limits { frame_bytes: 40, ..Limits::DEFAULT });
        decoder.push(&[b'{'; 41]);
        let refused = decoder.next_frame();
        assert_eq!(refused, Err(LineError::Size { max: 40 }));
        decoder.push(b"\n{\"type\":\"ping\"}\n");
        assert_eq!((decoder.next_frame(), decoder.buffered()), (refused, 0));
    }
}
