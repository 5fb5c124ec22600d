//! The value of a register of any size.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error as _, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The most bytes that a register has: KVM_REG_SIZE_MASK names sizes up to 2048 bits.
const MOST: usize = 256;

/// The value of a register, as a number: written `"0x1f"` without leading zeroes, whatever the register's size.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Value(
    /// Little-endian, without zero bytes at the end.
    Vec<u8>,
);

impl Value {
    /// From the bytes of a register, which are little-endian.
    pub fn from_bytes(bytes: &[u8]) -> Value {
        let length = bytes.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1);
        Value(bytes[..length].to_vec())
    }

    /// The bytes for a register of `size` bytes; none when the value does not fit.
    pub fn to_bytes(&self, size: usize) -> Option<Vec<u8>> {
        let mut bytes = self.0.clone();
        (bytes.len() <= size).then(|| {
            bytes.resize(size, 0);
            bytes
        })
    }

    /// The value, where it fits 64 bits.
    pub fn as_u64(&self) -> Option<u64> {
        self.to_bytes(8).map(|bytes| evenkeel_sys::layout::long(&bytes, 0).to_le())
    }

    fn parse(text: &str) -> Option<Value> {
        let digits = text.strip_prefix("0x")?;
        if digits.is_empty() || digits.len() > 2 * MOST {
            return None;
        }
        let mut bytes = vec![0u8; digits.len().div_ceil(2)];
        for (place, digit) in digits.bytes().rev().enumerate() {
            let digit = char::from(digit).to_digit(16)?;
            bytes[place / 2] |= (digit as u8) << (4 * (place % 2));
        }
        Some(Value::from_bytes(&bytes))
    }
}

impl From<u64> for Value {
    fn from(value: u64) -> Value {
        Value::from_bytes(&value.to_le_bytes())
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.split_last() {
            None => f.write_str("0x0"),
            Some((last, rest)) => {
                write!(f, "{last:#x}")?;
                rest.iter().rev().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

struct ValueVisitor;

impl Visitor<'_> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a hexadecimal string such as \"0x1f\", of at most 2048 bits")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Value, E> {
        Value::parse(text).ok_or_else(|| {
            let start: String = text.chars().take(40).collect();
            E::custom(format_args!("{start:?} is no hexadecimal string of at most 2048 bits"))
        })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(ValueVisitor).map_err(D::Error::custom)
    }
}

impl JsonSchema for Value {
    fn schema_name() -> Cow<'static, str> {
        "Value".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^0x[0-9a-fA-F]{1,512}$" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_any_size_survive_being_written() {
        for (bytes, text) in [
            (vec![0; 8], "0x0"),
            (vec![1, 0, 0, 0], "0x1"),
            (vec![0xde, 0xc0, 0x0a], "0xac0de"),
            (vec![0x10; 256], &format!("0x{}", "10".repeat(256)) as &str),
        ] {
            let value = Value::from_bytes(&bytes);
            assert_eq!(value.to_string(), text);
            assert_eq!(Value::parse(text).unwrap(), value);
            assert_eq!(value.to_bytes(bytes.len()).unwrap(), bytes);
        }
        assert_eq!(Value::from(0x1_0003).as_u64(), Some(0x1_0003));
        assert_eq!(Value::from(0x100).to_bytes(1), None, "a value that is too large is not cut");
    }

    #[test]
    fn only_plain_hexadecimal_is_taken() {
        for bad in ["", "0x", "12", "0xg", "-0x1", "0x \u{661}", &format!("0x{}", "0".repeat(513))] {
            assert_eq!(Value::parse(bad), None, "{bad:?}");
        }
    }
}
