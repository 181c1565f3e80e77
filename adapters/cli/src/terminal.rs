//! What goes out: data to stdout, talk to stderr.
//!
//! Every text passes [`clean`] here, once, so that nothing a worker printed can steer a terminal. A reader who closes
//! stdout ends the command quietly ([`exit::OUTPUT_CLOSED`]); nobody listening on stderr is no reason to end at all.

use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;

use eclosion_schemas::codec::{self, json};
use eclosion_schemas::{Code, Error};
use serde::Serialize;
use serde_json::Value;

use crate::arguments::Flags;
use crate::exit;

/// Text without what a terminal would obey: control characters other than line break and tab, and marks that turn the
/// direction of writing, become `�`.
pub(crate) fn clean(text: &str) -> String {
    let text = text.replace("\r\n", "\n");
    text.chars().map(|c| if obeyed(c) { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

fn obeyed(c: char) -> bool {
    let turns = matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}');
    turns || (c.is_control() && c != '\n' && c != '\t')
}

/// One line, for where a line break would break the layout.
pub(crate) fn one_line(text: &str) -> String {
    clean(text).replace(['\n', '\t'], " ")
}

/// The flags that this command was given, which every command that we suggest repeats. Said once, before any word.
static GIVEN: OnceLock<Flags> = OnceLock::new();

pub(crate) fn given(flags: &Flags) {
    // There is one command line.
    let _ = GIVEN.set(flags.clone());
}

/// What we suggest, meant for the kernel that was asked.
fn repeated(text: &str) -> String {
    GIVEN.get().map_or_else(|| text.to_owned(), |flags| flags.repeated_in(text))
}

/// Data that has suggestions in it, as findings do.
pub(crate) fn print_advice(text: &str) -> Result<(), Error> {
    print(&repeated(text))
}

/// Data, with a line break behind it.
pub(crate) fn print(text: &str) -> Result<(), Error> {
    written(&clean(text))
}

/// A document: the fields of `value` beside `"schema": "eclosion/KIND/v1"`, on one line.
pub(crate) fn document<T: Serialize + ?Sized>(kind: &str, value: &T) -> Result<(), Error> {
    written(&with_schema(kind, shown(value)?).to_string())
}

/// A value as JSON shows it everywhere: bytes are `{"$b64": …}`, as in the line dialect.
fn shown<T: Serialize + ?Sized>(value: &T) -> Result<Value, Error> {
    let packed = codec::encode(value)?;
    // A value that is as deep as the wire allows is deeper in its document; such a one is JSON already.
    json::from_msgpack(&packed).or_else(|_| {
        serde_json::to_value(value).map_err(|why| Error::internal("output.json", why.to_string()))
    })
}

pub(crate) fn with_schema(kind: &str, value: Value) -> Value {
    let mut fields =
        serde_json::Map::from_iter([("schema".to_owned(), format!("eclosion/{kind}/v1").into())]);
    match value {
        Value::Object(own) => fields.extend(own),
        other => _ = fields.insert("value".into(), other),
    }
    Value::Object(fields)
}

fn written(text: &str) -> Result<(), Error> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{text}").and_then(|()| stdout.flush()).map_err(|why| match why.kind() {
        io::ErrorKind::BrokenPipe => {
            Error::new(Code::Unavailable, exit::OUTPUT_CLOSED, "nobody reads the output")
        }
        _ => Error::new(Code::Unavailable, "output.write", format!("the output cannot be written: {why}")),
    })
}

/// Talk, with a line break behind it. A command in it names the kernel that was asked.
pub(crate) fn talk(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{}", clean(&repeated(text)));
}

/// What somebody else said, word for word but for what would steer the terminal.
pub(crate) fn relay(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{}", clean(text));
}

/// Whether stderr is somebody's screen that may be drawn on.
pub(crate) fn draws() -> bool {
    io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Lines of the screen behind stderr; none if there is no screen.
pub(crate) fn height() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(io::stderr()).ok()?;
    Some(size.ws_row.into()).filter(|rows| *rows > 0)
}

/// Columns of the screen behind stdout; none if there is no screen.
pub(crate) fn width() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    Some(size.ws_col.into()).filter(|columns| *columns > 0)
}

/// Whether output may be colored; `NO_COLOR` is honored if it is not empty.
pub(crate) fn colors(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_what_a_terminal_would_obey() {
        assert_eq!(clean("\u{1b}[2Jgone\u{7}\u{9b}31m\u{202e}txt\r"), "�[2Jgone��31m�txt�");
        assert_eq!(clean("a\tb\r\nc\n"), "a\tb\nc\n");
        assert_eq!(one_line("  a\nb"), "  a b");
    }

    #[test]
    fn bytes_look_as_they_do_on_the_wire() {
        let payload = eclosion_schemas::Payload { body: vec![1, 2].into(), parts: Vec::new() };
        assert_eq!(shown(&payload).unwrap(), serde_json::json!({"body": {"$b64": "AQI="}}));
        let mut deep = Value::Null;
        (0..40).for_each(|_| deep = Value::Array(vec![deep.take()]));
        assert_eq!(shown(&deep).unwrap(), deep);
    }

    #[test]
    fn a_document_names_its_schema_beside_its_fields() {
        let document = with_schema("status", serde_json::json!({"pid": 1}));
        assert_eq!(document, serde_json::json!({"schema": "eclosion/status/v1", "pid": 1}));
        assert_eq!(with_schema("x", 3.into()), serde_json::json!({"schema": "eclosion/x/v1", "value": 3}));
    }
}
