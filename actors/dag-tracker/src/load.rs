//! A flow file's text, read: TOML or JSON. Refusals name the place by line and column and, for an unknown key, the
//! key that was probably meant.

use std::ops::Range;

use eclosion_schemas::Error;
use eclosion_schemas::flow::FlowSpec;
use eclosion_schemas::suggest::hint;

/// A longer text is no flow file; it is not even parsed.
const TEXT_BYTES_MAX: usize = 256 * 1024;

/// Reads TOML. `file` is how refusals call it.
///
/// # Errors
/// `flow.syntax` for what is no TOML, `flow.schema` for what is no flow, `flow.too_large`.
pub fn from_toml(text: &str, file: &str) -> Result<FlowSpec, Error> {
    check_size(text, file)?;
    toml::from_str(text).map_err(|why| {
        // What is nested too deeply has no place but the whole document.
        let place = why.span().map_or((1, 1), |span| position(text, &span));
        let reason = if toml::from_str::<toml::Table>(text).is_err() { "flow.syntax" } else { "flow.schema" };
        refusal(reason, file, place, why.message())
    })
}

/// Reads JSON. `file` is how refusals call it.
///
/// # Errors
/// As [`from_toml`].
pub fn from_json(text: &str, file: &str) -> Result<FlowSpec, Error> {
    check_size(text, file)?;
    serde_json::from_str(text).map_err(|why| {
        let reason = if why.is_data() { "flow.schema" } else { "flow.syntax" };
        let shown = why.to_string();
        let message = shown.rsplit_once(" at line ").map_or(shown.as_str(), |(message, _)| message);
        refusal(reason, file, (why.line(), why.column()), message)
    })
}

fn check_size(text: &str, file: &str) -> Result<(), Error> {
    if text.len() <= TEXT_BYTES_MAX {
        return Ok(());
    }
    Err(Error::invalid(
        "flow.too_large",
        format!("{file} has {} bytes, the limit is {TEXT_BYTES_MAX}", text.len()),
    )
    .help("name the flow file and not its data"))
}

/// Line and column, from 1, in characters.
fn position(text: &str, span: &Range<usize>) -> (usize, usize) {
    let before = text.get(..span.start).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

fn refusal(reason: &str, file: &str, (line, column): (usize, usize), message: &str) -> Error {
    let place = format!("{file}:{line}:{column}");
    let message = message.trim_end().replace('\n', "; ");
    let (message, help) = match unknown_key(&message) {
        Some((key, known)) => (format!("there is no key `{key}`"), hint(key, known.iter().copied())),
        None => {
            let help = "a flow has schema, name and tasks; a task has run = \"module:function\"";
            (message, help.to_owned())
        }
    };
    Error::invalid(reason, format!("{place}: {message}")).help(help)
}

/// serde says ``unknown field `x`, expected one of `a`, `b` ``.
fn unknown_key(message: &str) -> Option<(&str, Vec<&str>)> {
    let rest = message.strip_prefix("unknown field `")?;
    let (key, expected) = rest.split_once('`')?;
    let known = expected.split('`').skip(1).step_by(2).collect();
    Some((key, known))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOW: &str = r#"schema = "eclosion/flow/v1"
name = "demo"

[tasks.load]
run = "steps:load"
"#;

    #[test]
    fn toml_and_json_of_the_same_flow_are_the_same() {
        let flow = from_toml(FLOW, "flow.toml").expect("a flow");
        let json = serde_json::to_string(&flow).expect("encodes");
        assert_eq!(from_json(&json, "flow.json").expect("a flow"), flow);
    }

    #[test]
    fn an_unknown_key_is_named_with_its_place_and_a_suggestion() {
        let error = from_toml(&format!("{FLOW}retires = 2\n"), "flow.toml").expect_err("unknown key");
        assert_eq!(error.reason, "flow.schema");
        assert_eq!(error.message, "flow.toml:6:1: there is no key `retires`");
        assert_eq!(error.help.as_deref(), Some("did you mean `retries`?"));
        let json = r#"{"schema": "eclosion/flow/v1", "nmae": "x", "tasks": {}}"#;
        let error = from_json(json, "flow.json").expect_err("unknown key");
        assert_eq!(error.message, "flow.json:1:37: there is no key `nmae`");
        assert_eq!(error.help.as_deref(), Some("did you mean `name`?"));
    }

    #[test]
    fn what_cannot_be_read_says_where() {
        for (text, reason, start) in [
            ("name = \"x", "flow.syntax", "f:1:"),
            ("schema = 1\nname = \"x\"\n[tasks]\n", "flow.schema", "f:1:10"),
            ("schema = \"s\"\nname = \"x\"\n", "flow.schema", "f:1:1: missing field `tasks`"),
        ] {
            let error = from_toml(text, "f").expect_err(text);
            assert_eq!(error.reason, reason, "{text}");
            assert!(error.message.starts_with(start), "{}", error.message);
        }
        assert_eq!(from_json("{", "f").expect_err("cut off").reason, "flow.syntax");
        assert!(from_json(&format!("{{\"parameters\":{{\"a\":{}", "[".repeat(100_000)), "f").is_err());
        assert!(from_toml(&format!("a={}", "[".repeat(100_000)), "f").is_err());
        assert_eq!(from_json(&" ".repeat(300_000), "f").expect_err("long").reason, "flow.too_large");
    }
}
