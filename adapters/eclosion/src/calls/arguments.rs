//! From one msgpack map to keyword arguments, each a payload of its own. Nothing is decoded but the names, nothing copied.

use std::collections::BTreeMap;

use eclosion_schemas::ops::pool::CallRequest;
use eclosion_schemas::ops::task::Argument;
use eclosion_schemas::{Error, Payload, codec};

/// # Errors
/// `invalid` for an argument that is there twice, and as [`split`].
pub(super) fn of(request: &CallRequest) -> Result<BTreeMap<String, Argument>, Error> {
    let mut arguments = split(&request.arguments)?;
    for (name, value) in &request.with {
        let payload = Payload::of(value);
        if arguments.insert(name.clone(), Argument::Value { payload }).is_some() {
            return Err(Error::invalid("call.arguments", format!("the argument {name} is given twice")));
        }
    }
    Ok(arguments)
}

/// # Errors
/// `invalid` for bytes that are not one map with texts as keys.
fn split(arguments: &Payload) -> Result<BTreeMap<String, Argument>, Error> {
    let Payload { body, parts } = arguments;
    if body.is_empty() {
        return Ok(BTreeMap::new());
    }
    codec::scan(body)?;
    let entries = codec::entries(body)?.ok_or_else(|| {
        Error::invalid("call.arguments", "the arguments of a call are one msgpack map")
            .help("pass large values as parts of the map's values")
    })?;
    let mut split = BTreeMap::new();
    for (name, value) in entries {
        let name: String = codec::decode(&body[name])?;
        // A value names its parts by their places among all parts.
        let payload = Payload { body: body.slice(value), parts: parts.clone() };
        split.insert(name, Argument::Value { payload });
    }
    Ok(split)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_argument_is_a_payload_of_its_own() {
        let split = split(&Payload::of(&serde_json::json!({"x": 2, "deep": {"y": [1, 2]}}))).unwrap();
        let value = |name: &str| match &split[name] {
            Argument::Value { payload } => codec::decode::<serde_json::Value>(&payload.body).unwrap(),
            Argument::List { .. } => panic!("one value"),
        };
        assert_eq!(value("x"), 2);
        assert_eq!(value("deep"), serde_json::json!({"y": [1, 2]}));
    }

    #[test]
    fn what_is_no_map_of_names_is_refused() {
        for body in [&[0x91, 0x01][..], &[0x81, 0x01, 0x01], &[0x81, 0xa1], &[0x81, 0xa1, b'x', 0xc1]] {
            let refused = split(&Payload { body: body.to_vec().into(), parts: Vec::new() }).unwrap_err();
            assert_eq!(refused.code, eclosion_schemas::Code::Invalid, "{body:?}");
        }
        assert!(split(&Payload::default()).unwrap().is_empty());
    }
}
