//! Finds out what a type reads, by having it read nothing in particular.
//!
//! The type is asked to deserialize itself from a source that notes each question and answers with the least there is: zero,
//! an empty text, no element. Lists and options are filled down to a depth, each depth in turn, and each variant of each
//! enumeration is chosen in turn. What came of it must survive bincode unchanged: a field that is skipped when it is empty
//! does not. A type that asks what is there (`deserialize_any`, names of fields) cannot be read by place.

use std::fmt;

use serde::de::value::U32Deserializer;
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess,
    SeqAccess, VariantAccess, Visitor,
};
use serde::{Serialize, forward_to_deserialize_any};

use super::{decode, encode};

/// Lists and options are filled this deep. Types that go deeper have no layout: nor have recursive ones, which a few bytes
/// could make deeper than any stack.
const FILL_MAX: usize = 12;
const DEPTH_MAX: usize = 24;
/// Choices of variants that are tried at each depth; a type with more has no layout.
const RUNS_MAX: usize = 512;

pub(super) fn layout<T: Serialize + DeserializeOwned>() -> Option<u64> {
    let mut hash = Hash::default();
    for fill in 0..=FILL_MAX {
        let mut choices = Vec::new();
        for run in 0.. {
            if run == RUNS_MAX {
                return None;
            }
            let mut probe =
                Probe { hash: &mut hash, fill, depth: 0, leaves: 0, choices: &mut choices, at: 0 };
            let value = T::deserialize(&mut probe).ok()?;
            let bytes = encode(&value).ok()?;
            let again: T = decode(&bytes).ok()?;
            if encode(&again).ok()? != bytes {
                return None;
            }
            if !advance(&mut choices) {
                break;
            }
        }
    }
    Some(hash.0)
}

/// The next combination of variants; false after the last.
fn advance(choices: &mut Vec<Choice>) -> bool {
    while let Some(last) = choices.last_mut() {
        last.taken += 1;
        if last.taken < last.of {
            return true;
        }
        choices.pop();
    }
    false
}

/// FNV-1a: the same in every process.
struct Hash(u64);

impl Default for Hash {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hash {
    fn note(&mut self, word: &str) {
        for byte in word.bytes().chain([0]) {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

#[derive(Clone, Copy)]
struct Choice {
    taken: usize,
    of: usize,
}

struct Probe<'a> {
    hash: &'a mut Hash,
    fill: usize,
    depth: usize,
    /// What has taken a byte so far.
    leaves: usize,
    choices: &'a mut Vec<Choice>,
    at: usize,
}

/// The type cannot be read by place.
#[derive(Debug)]
struct Unfit;

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("it cannot be read by place")
    }
}

impl std::error::Error for Unfit {}

impl de::Error for Unfit {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self
    }
}

impl Probe<'_> {
    fn leaf(&mut self, word: &str) {
        self.hash.note(word);
        self.leaves += 1;
    }

    fn deeper<T>(&mut self, within: impl FnOnce(&mut Self) -> Result<T, Unfit>) -> Result<T, Unfit> {
        if self.depth == DEPTH_MAX {
            return Err(Unfit);
        }
        self.depth += 1;
        let found = within(self);
        self.depth -= 1;
        found
    }

    fn is_filled(&self) -> Result<bool, Unfit> {
        match self.depth < self.fill {
            false if self.fill == FILL_MAX => Err(Unfit),
            filled => Ok(filled),
        }
    }

    fn choose(&mut self, of: usize) -> Result<usize, Unfit> {
        if of == 0 {
            return Err(Unfit);
        }
        if self.at == self.choices.len() {
            self.choices.push(Choice { taken: 0, of });
        }
        self.at += 1;
        Ok(self.choices[self.at - 1].taken)
    }

    fn places<'de, V: Visitor<'de>>(&mut self, places: usize, visitor: V) -> Result<V::Value, Unfit> {
        self.deeper(|probe| visitor.visit_seq(Places { probe, left: places, is_list: false }))
    }
}

macro_rules! leaves {
    ($($method:ident $visit:ident($least:expr),)+) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Unfit> {
            self.leaf(stringify!($method));
            visitor.$visit($least)
        })+
    };
}

impl<'de> Deserializer<'de> for &mut Probe<'_> {
    type Error = Unfit;

    leaves! {
        deserialize_bool visit_bool(false),
        deserialize_i8 visit_i8(0),
        deserialize_i16 visit_i16(0),
        deserialize_i32 visit_i32(0),
        deserialize_i64 visit_i64(0),
        deserialize_i128 visit_i128(0),
        deserialize_u8 visit_u8(0),
        deserialize_u16 visit_u16(0),
        deserialize_u32 visit_u32(0),
        deserialize_u64 visit_u64(0),
        deserialize_u128 visit_u128(0),
        deserialize_f32 visit_f32(0.0),
        deserialize_f64 visit_f64(0.0),
        deserialize_char visit_char('\0'),
        deserialize_str visit_str(""),
        deserialize_string visit_string(String::new()),
        deserialize_bytes visit_bytes(&[]),
        deserialize_byte_buf visit_byte_buf(Vec::new()),
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Unfit> {
        self.leaf("option");
        match self.is_filled()? {
            true => self.deeper(|probe| visitor.visit_some(probe)),
            false => visitor.visit_none(),
        }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Unfit> {
        self.hash.note("unit");
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Unfit> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Unfit> {
        self.deeper(|probe| visitor.visit_newtype_struct(probe))
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Unfit> {
        self.leaf("list");
        let left = usize::from(self.is_filled()?);
        self.deeper(|probe| visitor.visit_seq(Places { probe, left, is_list: true }))
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, Unfit> {
        self.hash.note(&format!("tuple {len}"));
        self.places(len, visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, Unfit> {
        self.deserialize_tuple(len, visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Unfit> {
        self.leaf("map");
        let left = usize::from(self.is_filled()?);
        self.deeper(|probe| visitor.visit_map(Places { probe, left, is_list: true }))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Unfit> {
        fields.iter().for_each(|field| self.hash.note(field));
        self.deserialize_tuple(fields.len(), visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Unfit> {
        variants.iter().for_each(|variant| self.hash.note(variant));
        self.leaf("variant");
        let chosen = self.choose(variants.len())?;
        let chosen = u32::try_from(chosen).map_err(|_| Unfit)?;
        self.deeper(|probe| visitor.visit_enum(Variant { probe, chosen }))
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Unfit> {
        Err(Unfit)
    }

    forward_to_deserialize_any! { identifier ignored_any }

    fn is_human_readable(&self) -> bool {
        false
    }
}

/// Elements of a list, fields of a struct, entries of a map.
struct Places<'p, 'a> {
    probe: &'p mut Probe<'a>,
    left: usize,
    /// How many there are is part of the bytes: each must take some, or a few bytes could claim any number of them.
    is_list: bool,
}

impl Places<'_, '_> {
    fn one<'de, T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Unfit> {
        let before = self.probe.leaves;
        let value = seed.deserialize(&mut *self.probe)?;
        if self.is_list && self.probe.leaves == before { Err(Unfit) } else { Ok(value) }
    }
}

impl<'de> SeqAccess<'de> for Places<'_, '_> {
    type Error = Unfit;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Unfit> {
        let Some(left) = self.left.checked_sub(1) else { return Ok(None) };
        self.left = left;
        self.one(seed).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.left)
    }
}

impl<'de> MapAccess<'de> for Places<'_, '_> {
    type Error = Unfit;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Unfit> {
        self.next_element_seed(seed)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Unfit> {
        seed.deserialize(&mut *self.probe)
    }
}

struct Variant<'p, 'a> {
    probe: &'p mut Probe<'a>,
    chosen: u32,
}

impl<'de> EnumAccess<'de> for Variant<'_, '_> {
    type Error = Unfit;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Unfit> {
        let number: U32Deserializer<Unfit> = self.chosen.into_deserializer();
        Ok((seed.deserialize(number)?, self))
    }
}

impl<'de> VariantAccess<'de> for Variant<'_, '_> {
    type Error = Unfit;

    fn unit_variant(self) -> Result<(), Unfit> {
        self.probe.hash.note("unit variant");
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Unfit> {
        seed.deserialize(self.probe)
    }

    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, Unfit> {
        self.probe.deserialize_tuple(len, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Unfit> {
        self.probe.deserialize_struct("", fields, visitor)
    }
}
