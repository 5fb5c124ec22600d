//! CBOR with string keys (RFC 8949): the only place that knows which crate does it.
//!
//! What is read is bounded: nesting has a limit, lengths that lie do not make room for what is not there, and what is left over
//! behind a value refuses it.

use std::fmt;

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
