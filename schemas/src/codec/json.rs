//! JSON: for people, shells and the line dialect. Same field names as msgpack.
//!
//! What JSON has no form for travels as an object with one key: bytes as `{"$b64": "…"}`, or as `{"$msgpack": …}` where
//! they are msgpack themselves, a part of a payload as `{"$part": 0}`, a number that is not finite as
//! `{"$float": "nan"}`. [`to_msgpack`] and [`pack`] read all four back.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::{Deserialize, DeserializeOwned, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::{Error as _, Serialize, SerializeMap, SerializeSeq, Serializer};
use serde_bytes::ByteBuf;
use serde_json::{Map, Value};

use super::{Bounds, CodecError};
use crate::payload::PART_EXTENSION;

/// The only key of an object that stands for bytes.
pub const BYTES_KEY: &str = "$b64";
/// The only key of an object that stands for bytes which are the msgpack of its value.
pub const MSGPACK_KEY: &str = "$msgpack";
/// The only key of an object that stands for a part of a payload.
pub const PART_KEY: &str = "$part";
/// The only key of an object that stands for a number that is not finite.
pub const FLOAT_KEY: &str = "$float";

/// Checks nesting and the number of values; whether it is JSON at all is the decoder's to say. Allocates nothing.
///
/// # Errors
/// `Nesting` or `Elements`.
pub fn scan(text: &[u8]) -> Result<(), CodecError> {
    let Bounds { nesting, elements } = Bounds::DEFAULT;
    let (mut depth, mut values) = (0_usize, 1_usize);
    let (mut in_string, mut escaped) = (false, false);
    for byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'[' | b'{' => {
                depth += 1;
                values += 1;
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            b',' | b':' => values += 1,
            _ => {}
        }
        if depth > nesting {
            return Err(CodecError::Nesting { max: nesting });
        }
        if values > elements {
            return Err(CodecError::Elements { max: elements });
        }
    }
    Ok(())
}

/// Decodes one JSON value that came from outside.
///
/// # Errors
/// [`CodecError`] when the text is out of bounds, or is not a `T`.
pub fn decode<T: DeserializeOwned>(text: &[u8]) -> Result<T, CodecError> {
    scan(text)?;
    serde_json::from_slice(text).map_err(shape)
}

/// One line of JSON, without its line break.
///
/// # Errors
/// `Shape` when the value has no JSON form.
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, CodecError> {
    serde_json::to_vec(value).map_err(shape)
}

/// JSON in, msgpack with the same fields out; `{"$b64": "…"}` becomes bytes.
///
/// # Errors
/// [`CodecError`] when the text is out of bounds or not JSON, or its base64 is malformed.
pub fn to_msgpack(text: &[u8]) -> Result<Vec<u8>, CodecError> {
    pack(&decode(text)?)
}

/// The same for a value that [`decode`] has read, so that its nesting is bounded.
///
/// # Errors
/// `Shape` where base64 is malformed.
pub fn pack(value: &Value) -> Result<Vec<u8>, CodecError> {
    super::encode(&Packed(value))
}

/// msgpack in, the JSON value that shows it out.
///
/// # Errors
/// [`CodecError`] when the bytes are out of bounds.
pub fn from_msgpack(bytes: &[u8]) -> Result<Value, CodecError> {
    super::decode::<Shown>(bytes).map(|shown| shown.0)
}

/// As [`from_msgpack`], with the body of each payload shown as the value that it holds.
///
/// # Errors
/// As [`from_msgpack`].
pub fn show(bytes: &[u8]) -> Result<Value, CodecError> {
    let mut value = from_msgpack(bytes)?;
    show_bodies(&mut value);
    Ok(value)
}

fn show_bodies(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(show_bodies),
        Value::Object(fields) => {
            for (key, field) in fields {
                let held = (key == "body").then(|| held_value(field)).flatten();
                match held {
                    Some(held) => *field = marked(MSGPACK_KEY, held),
                    None => show_bodies(field),
                }
            }
        }
        _ => {}
    }
}

/// The value in a payload's body, if that is what it is.
fn held_value(shown: &Value) -> Option<Value> {
    let text = sole(shown.as_object()?, BYTES_KEY)?.as_str()?;
    from_msgpack(&STANDARD.decode(text).ok()?).ok()
}

fn shape(why: serde_json::Error) -> CodecError {
    CodecError::Shape { text: why.to_string() }
}

/// A JSON value on its way to msgpack. Recursive, over a value that [`scan`] has bounded.
struct Packed<'a>(&'a Value);

impl Serialize for Packed<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::Array(items) => {
                let mut list = serializer.serialize_seq(Some(items.len()))?;
                items.iter().try_for_each(|item| list.serialize_element(&Packed(item)))?;
                list.end()
            }
            Value::Object(fields) => {
                if let Some((key, value)) = fields.iter().next().filter(|_| fields.len() == 1)
                    && let Some(marked) = Marked::of(key, value)
                {
                    return marked.serialize(serializer);
                }
                let mut map = serializer.serialize_map(Some(fields.len()))?;
                fields.iter().try_for_each(|(key, value)| map.serialize_entry(key, &Packed(value)))?;
                map.end()
            }
            scalar => scalar.serialize(serializer),
        }
    }
}

/// What an object with one key may stand for.
enum Marked<'a> {
    Base64(&'a str),
    Msgpack(&'a Value),
    Part(u32),
    Float(f64),
}

impl<'a> Marked<'a> {
    fn of(key: &str, value: &'a Value) -> Option<Self> {
        match key {
            BYTES_KEY => value.as_str().map(Marked::Base64),
            MSGPACK_KEY => Some(Marked::Msgpack(value)),
            PART_KEY => value.as_u64().and_then(|index| u32::try_from(index).ok()).map(Marked::Part),
            FLOAT_KEY => value.as_str().and_then(|text| text.parse().ok()).map(Marked::Float),
            _ => None,
        }
    }

    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Marked::Base64(text) => {
                serializer.serialize_bytes(&STANDARD.decode(text).map_err(S::Error::custom)?)
            }
            Marked::Msgpack(value) => serializer.serialize_bytes(&pack(value).map_err(S::Error::custom)?),
            Marked::Part(index) => {
                let data = ByteBuf::from(index.to_be_bytes());
                serializer
                    .serialize_newtype_struct(rmp_serde::MSGPACK_EXT_STRUCT_NAME, &(PART_EXTENSION, data))
            }
            Marked::Float(number) => serializer.serialize_f64(*number),
        }
    }
}

fn sole<'a>(fields: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    if fields.len() == 1 { fields.get(key) } else { None }
}

/// Bytes as JSON shows them.
#[must_use]
pub fn binary(bytes: &[u8]) -> Value {
    marked(BYTES_KEY, STANDARD.encode(bytes))
}

fn marked(key: &str, value: impl Into<Value>) -> Value {
    Value::Object(Map::from_iter([(key.to_owned(), value.into())]))
}

/// A msgpack value as JSON shows it.
struct Shown(Value);

impl<'de> Deserialize<'de> for Shown {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Show).map(Shown)
    }
}

struct Show;

impl<'de> Visitor<'de> for Show {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a msgpack value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        let finite = serde_json::Number::from_f64(value).map(Value::Number);
        Ok(finite.unwrap_or_else(|| marked(FLOAT_KEY, value.to_string().to_lowercase())))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(text.into())
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Value, E> {
        Ok(binary(bytes))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Shown(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some((Shown(key), Shown(value))) = entries.next_entry()? {
            let key = if let Value::String(text) = key { text } else { key.to_string() };
            fields.insert(key, value);
        }
        Ok(Value::Object(fields))
    }

    /// How rmp-serde hands an extension over: a pair of its type and its data.
    fn visit_newtype_struct<D: Deserializer<'de>>(self, extension: D) -> Result<Value, D::Error> {
        let (kind, data) = <(i8, ByteBuf)>::deserialize(extension)?;
        let index = <[u8; 4]>::try_from(data.as_slice()).map(u32::from_be_bytes);
        Ok(match (kind, index) {
            (PART_EXTENSION, Ok(index)) => marked(PART_KEY, index),
            _ => binary(&data),
        })
    }
}

/// Reads any value as JSON: bytes, which JSON has no word for, become `{"$b64": "…"}`. For a field that holds whatever
/// somebody published.
///
/// # Errors
/// What the format says of its own text.
pub fn any<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<serde_json::Value, D::Error> {
    deserializer.deserialize_any(AnyVisitor)
}

struct AnyVisitor;

/// One value of a sequence or map, read the same way.
struct AnyJson(serde_json::Value);

impl<'de> serde::Deserialize<'de> for AnyJson {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        any(deserializer).map(AnyJson)
    }
}

impl<'de> serde::de::Visitor<'de> for AnyVisitor {
    type Value = serde_json::Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Self::Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Self::Value, E> {
        Ok(value.into())
    }

    fn visit_bytes<E>(self, value: &[u8]) -> Result<Self::Value, E> {
        Ok(binary(value))
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(serde_json::Value::Null)
    }

    fn visit_none<E>(self) -> Result<Self::Value, E> {
        Ok(serde_json::Value::Null)
    }

    fn visit_some<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        any(deserializer)
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let mut values = Vec::new();
        while let Some(AnyJson(value)) = items.next_element()? {
            values.push(value);
        }
        Ok(values.into())
    }

    fn visit_map<A: serde::de::MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        let mut map = serde_json::Map::new();
        while let Some((key, AnyJson(value))) = entries.next_entry::<String, AnyJson>()? {
            map.insert(key, value);
        }
        Ok(map.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nesting_is_allowed_up_to_its_bound_and_not_beyond() {
        for (depth, fits) in [(31, true), (32, true), (33, false), (768, false), (100_000, false)] {
            let text = "[".repeat(depth) + &"]".repeat(depth);
            assert_eq!(decode::<Value>(text.as_bytes()).is_ok(), fits, "{depth}");
        }
    }

    #[test]
    fn brackets_inside_a_string_open_nothing() {
        let text = serde_json::to_vec(&format!("\\\"{}", "[".repeat(100))).unwrap();
        assert!(decode::<String>(&text).is_ok());
    }

    #[test]
    fn bytes_travel_both_ways_and_the_rest_is_shown() {
        let packed = to_msgpack(br#"{"a": {"$b64": "AQI="}, "b": [1, -2, 0.5, null, "x"]}"#).unwrap();
        let shown = from_msgpack(&packed).unwrap();
        assert_eq!(shown, serde_json::json!({"a": {"$b64": "AQI="}, "b": [1, -2, 0.5, null, "x"]}));
        assert!(packed.windows(4).any(|window| window == [0xc4, 2, 1, 2]), "{packed:?}");
        // A part, a foreign extension, NaN, and a map whose key is a number.
        let odd =
            [&[0x94, 0xd6, 1, 0, 0, 0, 3, 0xd4, 9, 7, 0xcb, 0x7f, 0xf8][..], &[0; 6], &[0x81, 5, 6]].concat();
        let shown = from_msgpack(&odd).unwrap();
        assert_eq!(shown, serde_json::json!([{"$part": 3}, {"$b64": "Bw=="}, {"$float": "nan"}, {"5": 6}]));
        assert_eq!(to_msgpack(&serde_json::to_vec(&shown).unwrap()).unwrap()[..7], odd[..7]);
        assert!(to_msgpack(br#"{"$b64": "?"}"#).is_err());
    }
}
