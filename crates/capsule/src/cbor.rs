//! CBOR with string keys (RFC 8949): the only place that knows which crate does it.
//!
//! What is read is bounded: nesting has a limit, lengths that lie do not make room for what is not there, and what is left over
//! behind a value refuses it.

use std::fmt;

use ciborium::Value;
use serde::de::{DeserializeOwned, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// How deep values are nested at most.
const DEPTH: usize = 16;

/// Bytes, which serde would take for a list of numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

/// A value as CBOR.
pub fn print<T: Serialize>(value: &T) -> Vec<u8> {
    let mut out = Vec::new();
    // A Vec takes everything, and what is printed are plain structures with string keys.
    ciborium::into_writer(value, &mut out).expect("plain values can be written to memory");
    out
}

/// The value in these bytes.
///
/// # Errors
/// At which byte it stops being one, where that is known, and why.
pub fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, (u64, String)> {
    let mut rest = bytes;
    let value = ciborium::de::from_reader_with_recursion_limit(&mut rest, DEPTH);
    let at = (bytes.len() - rest.len()) as u64;
    match value {
        Ok(value) if rest.is_empty() => Ok(value),
        Ok(_) => Err((at, "there is more behind its value".to_owned())),
        Err(ciborium::de::Error::Syntax(at)) => Err((at as u64, "this is not CBOR".to_owned())),
        Err(ciborium::de::Error::Semantic(_, what)) => Err((at, what)),
        Err(ciborium::de::Error::Io(_)) => Err((at, "it ends early".to_owned())),
        Err(ciborium::de::Error::RecursionLimitExceeded) => Err((at, "it is nested too deep".to_owned())),
    }
}

/// What a value holds, each with its way through maps and lists: `state.queues.0.size`. Bytes that are a map themselves, as
/// devices' records are, are looked into.
///
/// # Errors
/// As [`read`].
pub fn fields(bytes: &[u8]) -> Result<Vec<(String, String)>, (u64, String)> {
    let mut fields = Vec::new();
    walk(&read(bytes)?, String::new(), DEPTH, &mut fields);
    Ok(fields)
}

fn walk(value: &Value, name: String, depth: usize, fields: &mut Vec<(String, String)>) {
    let below = |key: &str| if name.is_empty() { key.to_owned() } else { format!("{name}.{key}") };
    let mut say = |value: String| fields.push((name.clone(), value));
    match value {
        Value::Map(entries) => {
            for (key, value) in entries {
                let key = key.as_text().map_or_else(|| format!("{key:?}"), str::to_owned);
                walk(value, below(&key), depth, fields);
            }
        }
        Value::Array(values) => {
            for (i, value) in values.iter().enumerate() {
                walk(value, below(&i.to_string()), depth, fields);
            }
        }
        Value::Bytes(bytes) => match read(bytes) {
            Ok(inner @ Value::Map(_)) if depth > 0 => walk(&inner, name, depth - 1, fields),
            _ => say(bytes.iter().map(|byte| format!("{byte:02x}")).collect()),
        },
        Value::Text(text) => say(text.clone()),
        Value::Integer(number) => say(i128::from(*number).to_string()),
        Value::Bool(yes) => say(yes.to_string()),
        Value::Null => say("none".to_owned()),
        other => say(format!("{other:?}")),
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        struct Taker;
        impl Visitor<'_> for Taker {
            type Value = Bytes;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Bytes, E> {
                Ok(Bytes(bytes.to_vec()))
            }
            fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Bytes, E> {
                Ok(Bytes(bytes))
            }
        }
        deserializer.deserialize_byte_buf(Taker)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_value_holds_is_named() {
        #[derive(Serialize)]
        struct Outer {
            kind: &'static str,
            list: Vec<u64>,
            state: Bytes,
            nothing: Option<u8>,
        }
        #[derive(Serialize)]
        struct Inner {
            on: bool,
            raw: Bytes,
        }
        let state = Bytes(print(&Inner { on: true, raw: Bytes(vec![0xab, 1]) }));
        let bytes = print(&Outer { kind: "disk", list: vec![7, 8], state, nothing: None });
        let expected = [
            ("kind", "disk"),
            ("list.0", "7"),
            ("list.1", "8"),
            ("state.on", "true"),
            ("state.raw", "ab01"),
            ("nothing", "none"),
        ];
        assert_eq!(fields(&bytes).unwrap(), expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
        assert!(fields(&bytes[..bytes.len() - 1]).is_err());
    }
}
