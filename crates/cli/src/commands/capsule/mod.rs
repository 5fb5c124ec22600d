//! Capsules, as they are looked at: opening one, and its sections in named fields.

pub mod diff;
pub mod inspect;
pub mod text;

use std::fs::File;
use std::io::{BufReader, Read as _};
use std::path::Path;

use evenkeel_capsule::{Entry, Provenance, Reader, Refused, cbor, header, names};
use evenkeel_state::{file, view};
use schemars::JsonSchema;
use serde::Serialize;

use crate::failure::Failure;

/// An open capsule.
pub type Open = Reader<BufReader<File>>;

/// A field of a section.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct FieldInfo {
    /// Its name.
    pub name: String,
    /// Its value: a hexadecimal number, or bytes in hexadecimal digits; long ones shortened.
    pub value: String,
    /// It holds nothing but zeros.
    #[serde(skip)]
    pub zero: bool,
    /// By which rule it is compared with itself at another time; empty where it is compared as it is.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub rule: &'static str,
}

/// Whether this file begins as a capsule does.
pub fn is_capsule(path: &Path) -> bool {
    let mut magic = [0; 8];
    path.is_file()
        && File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok()
        && magic == header::MAGIC
}

/// Opens a capsule to look at it.
pub fn open(path: &Path) -> Result<Open, Failure> {
    let file = File::open(path).map_err(|e| Failure::file(path, &e))?;
    if !file.metadata().is_ok_and(|data| data.is_file()) {
        return Err(Failure::bad(format!("{} is not a regular file", path.display()), ""));
    }
    let mut reader = Reader::inspect(BufReader::new(file)).map_err(|e| refused(path, &e))?;
    reader.read_index().map_err(|e| refused(path, &e))?;
    Ok(reader)
}

/// A capsule that was refused.
pub fn refused(path: &Path, e: &Refused) -> Failure {
    Failure { code: e.code(), ..Failure::bad(format!("{}: {e}", path.display()), e.hint()) }
}

fn plain(name: &str, value: impl ToString) -> FieldInfo {
    FieldInfo { name: name.to_owned(), value: value.to_string(), zero: false, rule: "" }
}

/// The name of a rule, as the catalog writes it.
pub fn rule(compare: evenkeel_catalog::Compare) -> &'static str {
    use evenkeel_catalog::Compare;
    match compare {
        Compare::Identical => "",
        Compare::Masked => "masked",
        Compare::Monotonic => "monotonic",
        Compare::Rearmed => "rearmed",
        Compare::Computed => "computed",
        Compare::Lost => "lost",
    }
}

/// What a section holds, in named fields; `None`: this version does not know it.
///
/// # Errors
/// It does not hold what it should.
pub fn fields(reader: &Open, entry: &Entry, bytes: &[u8]) -> Result<Option<Vec<FieldInfo>>, Refused> {
    if file::known(&entry.name).is_none_or(|newest| entry.version > newest) {
        return Ok(None);
    }
    let lies = |what: String| Refused::lies(&entry.name, entry.offset, what);
    Ok(Some(match entry.name.as_str() {
        names::CONTRACT => {
            let contract = evenkeel_contract::document::read(bytes).map_err(|e| lies(e.to_string()))?;
            vec![
                plain("name", &contract.name),
                plain("shape", &contract.shape),
                plain("digest", evenkeel_contract::document::digest(&contract)),
                plain("words", contract.words.len()),
                plain("choices", contract.choices.len()),
            ]
        }
        names::SURFACE => {
            let host = evenkeel_hosts::of_capture(&entry.name, bytes).map_err(|e| lies(e.to_string()))?;
            vec![
                plain("host", &host.stands_for),
                plain("digests.offer", &host.surface.digests.offer),
                plain("digests.provenance", &host.surface.digests.provenance),
            ]
        }
        names::MANIFEST => {
            let calls = file::manifest(bytes, entry.offset)?.calls;
            let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
            let value = |call: &evenkeel_state::Noted| match call.payload.is_empty() {
                true => hex(&call.argument),
                false => format!("{} -> {}", hex(&call.argument), hex(&call.payload)),
            };
            let name =
                |i: usize, call: &evenkeel_state::Noted| format!("{i} {} {}", file::role(call.on), call.call);
            calls.iter().enumerate().map(|(i, call)| plain(&name(i, call), value(call))).collect()
        }
        names::PROVENANCE => {
            let provenance = Provenance::read(bytes, entry.offset)?;
            let mut fields = vec![
                plain("tool", &provenance.tool),
                plain("kernel", &provenance.kernel),
                plain("saved-at", provenance.saved_at),
            ];
            for (i, host) in provenance.exposure.iter().enumerate() {
                fields.push(plain(&format!("exposure.{i}.offer"), &host.offer));
                fields.push(plain(&format!("exposure.{i}.kernel"), &host.kernel));
                fields.push(plain(&format!("exposure.{i}.contract"), &host.contract));
            }
            fields
        }
        // The monitor's: a board and its devices, each a record.
        name if file::of_machine(name) => {
            let named =
                cbor::fields(bytes).map_err(|(at, what)| Refused::lies(name, entry.offset + at, what))?;
            named.iter().map(|(name, value)| plain(name, value)).collect()
        }
        _ => {
            let item = file::item(reader.header().arch, entry, bytes.to_vec())?;
            let named = view(&item).map_err(|e| lies(e.to_string()))?;
            named
                .iter()
                .map(|field| FieldInfo {
                    name: field.name.clone(),
                    value: field.value.to_string(),
                    zero: match field.value {
                        view::Value::Number(n) => n == 0,
                        view::Value::Bytes(bytes) => bytes.iter().all(|&b| b == 0),
                    },
                    rule: rule(field.rule.compare),
                })
                .collect()
        }
    }))
}
