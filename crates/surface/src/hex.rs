//! Integers that are written as `"0x…"` in documents.
//!
//! Registers, masks and identifiers are read by people who think in hexadecimal, and JSON numbers lose bits above
//! 2^53 in many readers; so every 64-bit quantity in a document is a string.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A 32-bit quantity, written `"0x1f"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hex32(pub u32);

/// A 64-bit quantity, written `"0x1f"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hex64(pub u64);

/// Parses `0x…` with at most 16 digits, lower or upper case; nothing else.
pub fn parse(text: &str) -> Option<u64> {
    let digits = text.strip_prefix("0x")?;
    if digits.is_empty() || digits.len() > 16 {
        return None;
    }
    let mut value = 0u64;
    for byte in digits.bytes() {
        let digit = (byte as char).to_digit(16)?;
        value = value << 4 | u64::from(digit);
    }
    Some(value)
}

struct HexVisitor;

impl Visitor<'_> for HexVisitor {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a hexadecimal string such as \"0x1f\"")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<u64, E> {
        parse(text).ok_or_else(|| E::invalid_value(Unexpected::Str(&text[..text.len().min(40)]), &self))
    }
}

macro_rules! hex {
    ($name:ident, $int:ty, $digits:literal) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
        impl From<$int> for $name {
            fn from(value: $int) -> Self {
                Self(value)
            }
        }
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let value = deserializer.deserialize_str(HexVisitor)?;
                let value = <$int>::try_from(value)
                    .map_err(|_| D::Error::custom(format_args!("{value:#x} does not fit {} bits", <$int>::BITS)))?;
                Ok(Self(value))
            }
        }
        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "pattern": concat!("^0x[0-9a-fA-F]{1,", $digits, "}$") })
            }
        }
    };
}

hex!(Hex32, u32, "8");
hex!(Hex64, u64, "16");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_hexadecimal_is_taken() {
        assert_eq!(parse("0x0"), Some(0));
        assert_eq!(parse("0xFf"), Some(255));
        assert_eq!(parse("0xffffffffffffffff"), Some(u64::MAX));
        for bad in ["", "0x", "12", "0x1_0", "0x+1", "-0x1", "0x10000000000000000", "0xg", "0x \u{661}"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
        assert!(serde_json::from_str::<Hex32>("\"0x100000000\"").is_err());
    }
}
