//! Which types have a layout, and what hostile bytes come to.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde::{Deserialize, Serialize};

use super::*;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Plain {
    number: u64,
    text: String,
    maybe: Option<Vec<Shade>>,
    more: BTreeMap<String, (i32, f64)>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Shade {
    Dark,
    Grey(u8),
    Light { lumen: u32, names: Vec<String> },
}

#[test]
fn a_type_whose_fields_have_places_has_a_layout_and_survives() {
    assert!(layout::<Plain>().is_some());
    let plain = Plain {
        number: u64::MAX,
        text: "x".repeat(300),
        maybe: Some(vec![
            Shade::Dark,
            Shade::Grey(7),
            Shade::Light { lumen: 1, names: vec![String::new(), "a".into()] },
        ]),
        more: BTreeMap::from([("k".into(), (-1, 0.5))]),
    };
    assert_eq!(decode::<Plain>(&encode(&plain).unwrap()), Ok(plain));
}

#[test]
fn the_layout_changes_with_whatever_moves_a_field() {
    macro_rules! layout_of {
        ($body:tt) => {{
            #[derive(Serialize, Deserialize)]
            struct Same $body
            layout::<Same>()
        }};
    }
    let layouts = [
        layout_of!({ a: u32, b: u32 }),
        layout_of!({ b: u32, a: u32 }),
        layout_of!({ a: u64, b: u32 }),
        layout_of!({ a: u32, b: Option<u32> }),
        layout_of!({ a: u32, b: Vec<u32> }),
        layout_of!({ a: u32, b: u32, c: bool }),
        layout_of!({ a: u32 }),
    ];
    let mut different: Vec<_> = layouts.iter().map(|layout| layout.unwrap()).collect();
    different.sort_unstable();
    different.dedup();
    assert_eq!(different.len(), layouts.len());
    assert_eq!(layout_of!({ a: u32, b: u32 }), layouts[0]);
}

#[test]
fn what_cannot_be_read_by_its_place_has_no_layout() {
    #[derive(Serialize, Deserialize)]
    struct Skips {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        gone: Option<u8>,
        after: u8,
    }
    #[derive(Serialize, Deserialize)]
    struct SkipsText {
        #[serde(default, skip_serializing_if = "String::is_empty")]
        gone: String,
    }
    #[derive(Serialize, Deserialize)]
    struct Deep {
        list: Vec<Option<Skips>>,
    }
    #[derive(Serialize, Deserialize)]
    #[serde(tag = "tag")]
    enum Tagged {
        One { a: u8 },
    }
    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Untagged {
        One(u8),
    }
    #[derive(Serialize, Deserialize)]
    struct Flat {
        #[serde(flatten)]
        more: BTreeMap<String, u8>,
    }
    #[derive(Serialize, Deserialize)]
    struct Recursive {
        next: Option<Box<Recursive>>,
        also: Vec<Recursive>,
    }
    #[derive(Serialize, Deserialize)]
    enum InVariant {
        Dark,
        Light(Deep),
    }
    let none = [
        layout::<Skips>(),
        layout::<SkipsText>(),
        layout::<Deep>(),
        layout::<InVariant>(),
        layout::<Tagged>(),
        layout::<Untagged>(),
        layout::<Flat>(),
        // Any number of these is as long as none of them.
        layout::<Vec<()>>(),
        layout::<serde_json::Value>(),
        layout::<crate::ops::kernel::Delivery>(),
        layout::<crate::ops::run::StartRequest>(),
        // A few bytes of it would be deeper than any stack.
        layout::<Recursive>(),
    ];
    assert_eq!(none, [None; 12]);
}

#[test]
fn hostile_bytes_are_refused_before_anything_is_taken_for_them() {
    // A list that claims 2^63 elements, a text that claims 2^40 bytes.
    let huge = [0xfd, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
    assert!(decode::<Vec<u64>>(&huge).is_err());
    assert!(decode::<String>(&huge).is_err());
    assert!(decode::<BTreeMap<u8, u8>>(&huge).is_err());
    assert_eq!(decode::<u8>(&[1, 2]), Err(CodecError::Trailing { bytes: 1 }));
    assert!(decode::<Shade>(&[9]).is_err(), "there is no such variant");
    assert!(decode::<Vec<u8>>(&vec![0; BYTES_MAX + 1]).is_err());
    assert!(encode(&vec![0_u8; BYTES_MAX + 1]).is_err());
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        if let Ok(plain) = decode::<Plain>(&bytes) {
            // NaN is not equal to itself; its bytes are.
            let again = encode(&plain).unwrap();
            prop_assert_eq!(encode(&decode::<Plain>(&again).unwrap()).unwrap(), again);
        }
        let _ = (decode::<Vec<String>>(&bytes), decode::<Option<Shade>>(&bytes), decode::<bool>(&bytes));
    }
}
