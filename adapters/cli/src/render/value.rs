//! A value as a person reads it: scalars as `key: value`, lists of flat maps as tables under their key.

use std::fmt;

use eclosion_schemas::codec;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::table;

/// Beyond this the value is for a program: `--json`.
const ROWS_MAX: usize = 200;
const TEXT_CHARS_MAX: usize = 2_000;

/// The whole value; keys in the order that [`key_order`] found, which a JSON map has lost.
pub(crate) fn text(value: &Value, order: &[String]) -> String {
    match value {
        Value::Object(fields) => fields_text(fields, order),
        Value::Array(items) => match rows_of(items) {
            Some(rows) => rows_text(&rows, order),
            None => compact(value),
        },
        scalar => cell(scalar),
    }
}

/// Tables first, because what is short should stand last, where the eye is.
fn fields_text(fields: &Map<String, Value>, order: &[String]) -> String {
    let (mut tables, mut lines) = (Vec::new(), Vec::new());
    for key in sorted(fields.keys().map(String::as_str), order) {
        let value = fields.get(key).unwrap_or(&Value::Null);
        match value.as_array().and_then(|items| rows_of(items)) {
            Some(rows) => tables.push(format!("{key}\n{}", rows_text(&rows, order))),
            None => lines.push(format!("{key}: {}", cell(value))),
        }
    }
    tables.extend((!lines.is_empty()).then(|| lines.join("\n")));
    tables.join("\n")
}

fn sorted<'a>(keys: impl Iterator<Item = &'a str>, order: &[String]) -> Vec<&'a str> {
    let mut keys: Vec<_> = keys.collect();
    keys.sort_by_key(|key| (order.iter().position(|known| known == key).unwrap_or(usize::MAX), *key));
    keys.dedup();
    keys
}

/// A list of at least one map that holds no list or map itself.
fn rows_of(items: &[Value]) -> Option<Vec<&Map<String, Value>>> {
    let flat = |row: &&Map<String, Value>| row.values().all(|value| !value.is_array() && !value.is_object());
    let rows: Option<Vec<_>> = items.iter().map(|item| item.as_object().filter(flat)).collect();
    rows.filter(|rows| !rows.is_empty())
}

fn rows_text(rows: &[&Map<String, Value>], order: &[String]) -> String {
    let columns = sorted(rows.iter().flat_map(|row| row.keys().map(String::as_str)), order);
    let cells = |row: &&Map<String, Value>| {
        columns.iter().map(|key| row.get(*key).map(cell).unwrap_or_default()).collect()
    };
    let shown = table(&columns, rows.iter().take(ROWS_MAX).map(cells));
    match rows.len().saturating_sub(ROWS_MAX) {
        0 => shown,
        cut => format!("{shown}\n{cut} more rows: --json"),
    }
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => shortened(text),
        Value::Number(number) if number.is_f64() => {
            number.as_f64().map_or_else(|| number.to_string(), decimal)
        }
        Value::Array(_) | Value::Object(_) => compact(value),
        other => other.to_string(),
    }
}

/// Four decimals, and as a power of ten where these would show nothing.
fn decimal(number: f64) -> String {
    match number.abs() {
        0.0 => "0".into(),
        size if !(0.001..1e9).contains(&size) => format!("{number:.3e}"),
        _ => format!("{number:.4}"),
    }
}

fn compact(value: &Value) -> String {
    shortened(&value.to_string())
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(TEXT_CHARS_MAX) {
        Some((at, _)) => format!("{}… (--json shows all)", &text[..at]),
        None => text.to_owned(),
    }
}

/// The names of a msgpack value's fields, as its author ordered them; at most [`KEYS_MAX`].
pub(crate) fn key_order(msgpack: &[u8]) -> Vec<String> {
    codec::decode::<Keys>(msgpack).map(|keys| keys.0).unwrap_or_default()
}

/// Keys beyond this are in alphabetical order.
const KEYS_MAX: usize = 256;

#[derive(Default)]
struct Keys(Vec<String>);

impl Keys {
    fn add(&mut self, more: Keys) {
        for key in more.0 {
            if self.0.len() < KEYS_MAX && !self.0.contains(&key) {
                self.0.push(key);
            }
        }
    }
}

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FindKeys)
    }
}

/// Recursive, over a value whose nesting the codec has bounded.
struct FindKeys;

macro_rules! no_keys {
    ($($visit:ident($kind:ty)),* $(,)?) => { $(
        fn $visit<E>(self, _: $kind) -> Result<Keys, E> {
            Ok(Keys::default())
        }
    )* };
}

impl<'de> Visitor<'de> for FindKeys {
    type Value = Keys;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a msgpack value")
    }

    no_keys!(
        visit_bool(bool),
        visit_i64(i64),
        visit_u64(u64),
        visit_f64(f64),
        visit_str(&str),
        visit_bytes(&[u8])
    );

    fn visit_unit<E>(self) -> Result<Keys, E> {
        Ok(Keys::default())
    }

    /// An extension.
    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Keys, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Keys::default())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Keys, A::Error> {
        let mut keys = Keys::default();
        while let Some(more) = items.next_element::<Keys>()? {
            keys.add(more);
        }
        Ok(keys)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Keys, A::Error> {
        let mut keys = Keys::default();
        while let Some(key) = fields.next_key::<KeyText>()? {
            keys.add(Keys(vec![key.0]));
            keys.add(fields.next_value::<Keys>()?);
        }
        Ok(keys)
    }
}

/// A key as JSON shows it, be it text or a number.
struct KeyText(String);

impl<'de> Deserialize<'de> for KeyText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let key = Value::deserialize(deserializer)?;
        Ok(Self(key.as_str().map_or_else(|| key.to_string(), str::to_owned)))
    }
}

#[cfg(test)]
mod tests {
    use serde::Serialize;

    use super::*;

    #[derive(Serialize)]
    struct Row {
        rank: u32,
        model: &'static str,
        held_out: f64,
    }

    #[derive(Serialize)]
    struct Report {
        leaderboard: Vec<Row>,
        best: &'static str,
    }

    #[test]
    fn a_leaderboard_is_a_table_under_its_name_in_its_authors_order_and_scalars_follow() {
        let leaderboard = vec![
            Row { rank: 1, model: "linear", held_out: 0.98765 },
            Row { rank: 2, model: "forest", held_out: 0.00001 },
        ];
        let bytes = codec::encode(&Report { leaderboard, best: "linear" }).unwrap();
        let value = codec::json::from_msgpack(&bytes).unwrap();
        let expected = "\
leaderboard
 rank   model    held_out
──────────────────────────
 1      linear   0.9877
 2      forest   1.000e-5
──────────────────────────
best: linear";
        assert_eq!(text(&value, &key_order(&bytes)), expected);
    }

    #[test]
    fn values_of_other_shapes_are_shown_as_they_are() {
        let shown = |value: Value| text(&value, &[]);
        assert_eq!(shown(serde_json::json!([1, 2])), "[1,2]");
        assert_eq!(shown("done".into()), "done");
        assert_eq!(shown(Value::Null), "-");
        assert_eq!(
            shown(serde_json::json!({"a": {"b": []}, "n": 12345678901_u64})),
            "a: {\"b\":[]}\nn: 12345678901"
        );
        assert!(shown("é".repeat(3_000).into()).ends_with("(--json shows all)"));
    }

    #[test]
    fn bytes_that_are_no_value_have_no_order() {
        assert!(key_order(&[0xc1]).is_empty());
        // An extension, as a part is one.
        assert_eq!(key_order(&[0x81, 0xa1, b'r', 0xd6, 1, 0, 0, 0, 0]), ["r"]);
    }
}
