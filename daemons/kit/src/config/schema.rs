//! Which keys a configuration type has, found by deserialising it from a probe instead of a file.

use serde::{
    Deserializer,
    de::{self, DeserializeOwned, DeserializeSeed, MapAccess, Visitor, value::StrDeserializer},
    forward_to_deserialize_any,
};

/// A key that may be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Dotted, e.g. `grpc.listen`.
    pub path: String,
    /// What is written there.
    pub kind: Kind,
}

impl Key {
    /// The variable that sets it, e.g. `CODERING_GRPC_LISTEN`.
    pub fn variable(&self) -> String {
        format!("CODERING_{}", self.path.replace('.', "_").to_ascii_uppercase())
    }
}

/// What kind of value a key has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Text, and whatever else is written as text: paths, durations, sizes, choices.
    Text,
    /// `true` or `false`.
    Bool,
    /// A whole number.
    Integer,
    /// A number.
    Float,
    /// A list of texts.
    List,
    /// A table with free keys and text values.
    Map,
}

/// Every key of `T`, in the order of its fields.
pub fn keys<T: DeserializeOwned>() -> Vec<Key> {
    let mut found = Vec::new();
    walk::<T>(&mut Vec::new(), &mut found);
    found
}

fn walk<T: DeserializeOwned>(path: &mut Vec<&'static str>, found: &mut Vec<Key>) {
    // A probe never yields a value: what it finds comes back as its error.
    match T::deserialize(Probe { path }).err() {
        Some(Found::Table(fields)) => {
            for field in fields {
                path.push(field);
                walk::<T>(path, found);
                path.pop();
            }
        }
        Some(Found::Leaf(kind)) => found.push(Key { path: path.join("."), kind }),
        None => {}
    }
}

/// Leads to one key and stops there.
struct Probe<'a> {
    path: &'a [&'static str],
}

#[derive(Debug)]
enum Found {
    Table(&'static [&'static str]),
    Leaf(Kind),
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a probe, not a document")
    }
}

impl std::error::Error for Found {}

impl de::Error for Found {
    // A field that reads its value its own way (a duration, a choice) wraps the probe's answer in a message.
    fn custom<M: std::fmt::Display>(_: M) -> Self {
        Self::Leaf(Kind::Text)
    }
}

macro_rules! leaves {
    ($($method:ident $kind:ident),*) => {
        $(fn $method<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Found> { Err(Found::Leaf(Kind::$kind)) })*
    };
}

impl<'de> Deserializer<'de> for Probe<'_> {
    type Error = Found;

    leaves!(deserialize_any Text, deserialize_bool Bool, deserialize_f32 Float, deserialize_f64 Float,
        deserialize_i8 Integer, deserialize_i16 Integer, deserialize_i32 Integer, deserialize_i64 Integer,
        deserialize_u8 Integer, deserialize_u16 Integer, deserialize_u32 Integer, deserialize_u64 Integer,
        deserialize_seq List, deserialize_map Map);

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Found> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Found> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Found> {
        match self.path.split_first() {
            None => Err(Found::Table(fields)),
            Some((&key, rest)) => visitor.visit_map(OneField { key: Some(key), rest }),
        }
    }

    forward_to_deserialize_any! {
        i128 u128 char str string bytes byte_buf unit unit_struct tuple tuple_struct enum identifier ignored_any
    }
}

struct OneField<'a> {
    key: Option<&'static str>,
    rest: &'a [&'static str],
}

impl<'de> MapAccess<'de> for OneField<'_> {
    type Error = Found;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Found> {
        self.key.take().map(|key| seed.deserialize(StrDeserializer::new(key))).transpose()
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Found> {
        seed.deserialize(Probe { path: self.rest })
    }
}
