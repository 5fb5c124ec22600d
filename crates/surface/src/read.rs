//! Reading a capture: any bytes yield a surface or located diagnostics, in bounded time and memory.
//!
//! The usual file takes the fast path: one scan that splits it into its parts, one typed parse of each, and a digest
//! over the very bytes of the part. Only when something is wrong is the text walked again, entry by entry, so that a
//! reader sees all that is wrong and where, not just the first thing.

use std::ops::Range;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::canonical::{Canonical, digest};
use crate::document::{
    Arch, Attribute, Capability, CpuidEntry, Digests, FeatureMsr, Measured, MsrItem, Offer, Provenance,
    Register, SCHEMA, Section, Shape, Surface, Unread, Volatile,
};
use crate::hex::Hex32;
use crate::locate::{elements, members, offset_of, span_in};

/// Bounds on what is read.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a file. A real capture has 20 to 64 KiB.
    pub bytes: usize,
    /// Diagnostics that are collected before the reader gives up.
    pub diagnostics: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { bytes: 4 << 20, diagnostics: 20 }
    }
}

/// How bad a diagnostic is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The document cannot be used.
    Error,
    /// The document can be used, but something is odd.
    Warning,
}

/// One thing that is wrong with a document, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// The catalog's code: `bad-document`, `digest-mismatch`, `schema-newer`, `arch-mismatch`.
    pub code: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// One line.
    pub message: String,
    /// The bytes of the text that it is about.
    pub span: Range<usize>,
    /// What to do about it; may be empty.
    pub hint: String,
}

/// A document that could not be read: at least one error, and whatever else was seen.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}", .diagnostics.first().map_or("unreadable", |d| d.message.as_str()))]
pub struct ReadError {
    /// Never empty.
    pub diagnostics: Vec<Diagnostic>,
}

/// The parts of a capture file, split but not parsed.
#[derive(Debug)]
pub struct Parts<'a> {
    /// The architecture.
    pub arch: Arch,
    /// The digests that the file claims.
    pub digests: Digests,
    /// The text of `offer`.
    pub offer: &'a str,
    /// The text of `provenance`.
    pub provenance: &'a str,
    /// The text of `volatile`.
    pub volatile: &'a str,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope<'a> {
    schema: String,
    arch: Arch,
    digests: Digests,
    #[serde(borrow)]
    offer: &'a RawValue,
    #[serde(borrow)]
    provenance: &'a RawValue,
    #[serde(borrow)]
    volatile: &'a RawValue,
}

fn error(code: &'static str, message: String, span: Range<usize>, hint: &str) -> ReadError {
    let diagnostic = Diagnostic { code, severity: Severity::Error, message, span, hint: hint.to_owned() };
    ReadError { diagnostics: vec![diagnostic] }
}

/// The text of a document.
///
/// # Errors
/// Too long, or not UTF-8.
pub fn text<'a>(bytes: &'a [u8], limits: &Limits) -> Result<&'a str, ReadError> {
    if bytes.len() > limits.bytes {
        let message = format!("the file has {} bytes; at most {} are read", bytes.len(), limits.bytes);
        return Err(error(
            "bad-document",
            message,
            0..0,
            "a capture has some tens of kilobytes: is this one?",
        ));
    }
    std::str::from_utf8(bytes).map_err(|e| {
        let at = e.valid_up_to();
        error("bad-document", format!("byte {at} is not UTF-8"), at..at, "captures are UTF-8 text")
    })
}

/// Splits a capture into its parts without parsing them.
///
/// # Errors
/// Not a capture, or one with a newer schema.
pub fn split(text: &str) -> Result<Parts<'_>, ReadError> {
    match serde_json::from_str::<Envelope<'_>>(text) {
        Ok(envelope) if envelope.schema == SCHEMA => Ok(Parts {
            arch: envelope.arch,
            digests: envelope.digests,
            offer: envelope.offer.get(),
            provenance: envelope.provenance.get(),
            volatile: envelope.volatile.get(),
        }),
        Ok(envelope) => Err(wrong_schema(text, &envelope.schema)),
        Err(e) => {
            // A newer schema may have another envelope: its name is worth more than a complaint about a field.
            #[derive(Deserialize)]
            struct OnlySchema {
                schema: String,
            }
            if let Ok(OnlySchema { schema }) = serde_json::from_str(text)
                && schema != SCHEMA
            {
                return Err(wrong_schema(text, &schema));
            }
            let at = offset_of(text, &e);
            Err(error("bad-document", words(&e), at..at, "`evenkeel capture -o FILE` writes one"))
        }
    }
}

fn wrong_schema(text: &str, schema: &str) -> ReadError {
    let span = text.find(schema).map_or(0..0, |at| at..at + schema.len());
    let shown: String = schema.chars().take(60).collect();
    let version = schema.strip_prefix("evenkeel.surface/").and_then(|v| v.parse::<u32>().ok());
    match version {
        Some(v) if v > 1 => error(
            "schema-newer",
            format!("schema version {v}: this program reads versions up to 1"),
            span,
            "use the evenkeel that wrote the file, or a newer one",
        ),
        _ => error(
            "bad-document",
            format!("`{shown}` is not a capture's schema (`{SCHEMA}`)"),
            span,
            "give a file that `evenkeel capture` wrote",
        ),
    }
}

/// serde_json's message without the position at its end, which the span tells.
fn words(e: &serde_json::Error) -> String {
    let message = e.to_string();
    match message.rfind(" at line ") {
        Some(at) => message[..at].to_owned(),
        None => message,
    }
}

/// Reads a capture.
///
/// # Errors
/// All that is wrong with it, with places, up to the limit.
pub fn surface(bytes: &[u8], limits: &Limits) -> Result<Surface, ReadError> {
    let text = text(bytes, limits)?;
    let parts = split(text)?;
    let offer = self::offer(text, &parts, limits)?;
    let provenance = self::provenance(text, &parts)?;
    let volatile = part::<Volatile>(text, parts.volatile)?;
    Ok(Surface {
        schema: SCHEMA.to_owned(),
        arch: parts.arch,
        digests: parts.digests,
        offer,
        provenance,
        volatile,
    })
}

/// Parses and checks the `offer` of a file that was split.
///
/// # Errors
/// All that is wrong with it, with places, up to the limit.
pub fn offer(text: &str, parts: &Parts<'_>, limits: &Limits) -> Result<Offer, ReadError> {
    let offer: Offer = match serde_json::from_str(parts.offer) {
        Ok(offer) => offer,
        Err(e) => return Err(entry_by_entry(text, parts.offer, &e, limits)),
    };
    check_digest(text, "offer", parts.offer, &parts.digests.offer, &offer)?;
    let problems = contradictions(text, parts, &offer, limits);
    if problems.is_empty() { Ok(offer) } else { Err(ReadError { diagnostics: problems }) }
}

/// Parses and checks the `provenance` of a file that was split.
///
/// # Errors
/// What is wrong with it, with its place.
pub fn provenance(text: &str, parts: &Parts<'_>) -> Result<Provenance, ReadError> {
    let provenance: Provenance = part(text, parts.provenance)?;
    check_digest(text, "provenance", parts.provenance, &parts.digests.provenance, &provenance)?;
    Ok(provenance)
}

fn part<T: DeserializeOwned>(text: &str, part: &str) -> Result<T, ReadError> {
    serde_json::from_str(part).map_err(|e| {
        let at = span_in(text, part).start + offset_of(part, &e);
        error("bad-document", words(&e), at..at, "")
    })
}

fn check_digest<T: Canonical>(
    text: &str,
    name: &str,
    raw: &str,
    claimed: &str,
    value: &T,
) -> Result<(), ReadError> {
    // The bytes of a canonical file are the canonical form; only a reformatted file is printed again.
    if digest(raw) == claimed || digest(&value.canonical()) == claimed {
        return Ok(());
    }
    let span = text.find(claimed).filter(|_| !claimed.is_empty()).map_or(0..0, |at| at..at + claimed.len());
    let message =
        format!("`{name}` does not have the digest that the file claims: it was changed after the capture");
    Err(error("digest-mismatch", message, span, "capture the host again"))
}

/// The slow walk after a failed parse: every entry of every list on its own.
fn entry_by_entry(text: &str, offer: &str, first: &serde_json::Error, limits: &Limits) -> ReadError {
    let mut problems = Vec::new();
    let say = |problems: &mut Vec<Diagnostic>, span: Range<usize>, message: String| {
        if problems.len() < limits.diagnostics {
            problems.extend(error("bad-document", message, span, "").diagnostics);
        }
    };
    let Ok(parts) = members(offer) else {
        let at = span_in(text, offer).start + offset_of(offer, first);
        return error("bad-document", words(first), at..at, "");
    };
    let mut seen: Vec<String> = Vec::new();
    for (key, value) in parts {
        let span = span_in(text, value);
        if seen.iter().any(|k| *k == key) {
            say(&mut problems, span, format!("`{key}` is given twice"));
            continue;
        }
        seen.push(key.clone().into_owned());
        let mut list = |parse: fn(&str) -> Result<(), serde_json::Error>| match elements(value) {
            Ok(entries) => {
                for entry in entries {
                    if let Err(e) = parse(entry) {
                        say(&mut problems, span_in(text, entry), format!("{key}: {}", words(&e)));
                    }
                }
            }
            Err(e) => say(&mut problems, span.clone(), format!("{key}: {}", words(&e))),
        };
        fn is<T: DeserializeOwned>(text: &str) -> Result<(), serde_json::Error> {
            serde_json::from_str::<T>(text).map(drop)
        }
        match key.as_ref() {
            "shapes" => list(is::<Shape>),
            "capabilities" => list(is::<Capability>),
            "cpuid" | "cpuid_emulated" | "cpuid_hyperv" | "cpuid_stored" => list(is::<CpuidEntry>),
            "feature_msrs" => list(is::<FeatureMsr>),
            "msrs" => list(is::<MsrItem>),
            "msrs_refused" => list(is::<Hex32>),
            "registers" => list(is::<Register>),
            "attributes" => list(is::<Attribute>),
            "sections" => list(is::<Section>),
            "measured" => list(is::<Measured>),
            "unread" => list(is::<Unread>),
            "capabilities_asked" => {
                if let Err(e) = is::<u32>(value) {
                    say(&mut problems, span, format!("{key}: {}", words(&e)));
                }
            }
            _ => say(&mut problems, span, format!("`{key}` is no part of an offer")),
        }
    }
    if problems.is_empty() {
        let at = span_in(text, offer).start + offset_of(offer, first);
        return error("bad-document", words(first), at..at, "");
    }
    ReadError { diagnostics: problems }
}

/// What is well formed but cannot all be true.
fn contradictions(text: &str, parts: &Parts<'_>, offer: &Offer, limits: &Limits) -> Vec<Diagnostic> {
    let mut found: Vec<(&str, usize, String)> = Vec::new();
    let shapes = offer.shapes.len();
    let in_range = |list: &[u8]| list.iter().all(|i| usize::from(*i) < shapes);
    let mut ascending = |key: &'static str, ok: &mut dyn FnMut(usize) -> bool, len: usize| {
        for i in 1..len {
            if !ok(i) {
                found.push((key, i, format!("{key}: this entry is there twice, or they do not ascend")));
            }
        }
    };
    ascending(
        "capabilities",
        &mut |i| offer.capabilities[i - 1].cap < offer.capabilities[i].cap,
        offer.capabilities.len(),
    );
    for (key, table) in [
        ("cpuid", &offer.cpuid),
        ("cpuid_emulated", &offer.cpuid_emulated),
        ("cpuid_hyperv", &offer.cpuid_hyperv),
        ("cpuid_stored", &offer.cpuid_stored),
    ] {
        let place = |i: usize| (table[i].leaf, table[i].subleaf);
        ascending(key, &mut |i| place(i - 1) < place(i), table.len());
    }
    ascending(
        "feature_msrs",
        &mut |i| offer.feature_msrs[i - 1].msr < offer.feature_msrs[i].msr,
        offer.feature_msrs.len(),
    );
    ascending("msrs", &mut |i| offer.msrs[i - 1].msr < offer.msrs[i].msr, offer.msrs.len());
    ascending(
        "msrs_refused",
        &mut |i| offer.msrs_refused[i - 1] < offer.msrs_refused[i],
        offer.msrs_refused.len(),
    );
    ascending(
        "registers",
        &mut |i| {
            let (a, b) = (&offer.registers[i - 1], &offer.registers[i]);
            a.id < b.id
                || (a.id == b.id && !a.shapes.is_empty() && a.shapes.iter().all(|s| !b.shapes.contains(s)))
        },
        offer.registers.len(),
    );
    for (i, c) in offer.capabilities.iter().enumerate() {
        let apart = c.system.is_some() && c.vm.len() == shapes;
        if c.all.is_some() == apart || (c.all.is_some() && (c.system.is_some() || !c.vm.is_empty())) {
            found.push((
                "capabilities",
                i,
                "capabilities: an answer for all, or one for the system and each shape".into(),
            ));
        }
        if c.cap >= offer.capabilities_asked {
            found.push(("capabilities", i, format!("capabilities: {} was not asked for", c.cap)));
        }
    }
    for (i, msr) in offer.msrs_refused.iter().enumerate() {
        if offer.msrs.binary_search_by_key(msr, |m| m.msr).is_ok() {
            found.push(("msrs_refused", i, format!("msrs_refused: {msr} is among `msrs` too")));
        }
    }
    let mut shape_lists = Vec::new();
    shape_lists.extend(offer.registers.iter().enumerate().map(|(i, r)| ("registers", i, r.shapes.clone())));
    shape_lists.extend(offer.attributes.iter().enumerate().map(|(i, a)| ("attributes", i, a.shapes.clone())));
    shape_lists.extend(offer.sections.iter().enumerate().map(|(i, s)| ("sections", i, s.shapes.clone())));
    shape_lists.extend(
        offer.measured.iter().enumerate().map(|(i, m)| ("measured", i, m.shape.into_iter().collect())),
    );
    for (key, i, list) in shape_lists {
        if !in_range(&list) {
            found.push((key, i, format!("{key}: names a shape that is not in `shapes`")));
        }
    }
    let foreign = match parts.arch {
        Arch::Aarch64 => [
            ("cpuid", offer.cpuid.len()),
            ("feature_msrs", offer.feature_msrs.len()),
            ("msrs", offer.msrs.len()),
        ],
        Arch::X86_64 => [("", 0); 3],
    };
    for (key, len) in foreign {
        if len > 0 {
            found.push((key, 0, format!("{key}: an {} host has none", parts.arch.name())));
        }
    }
    if found.is_empty() {
        return Vec::new();
    }
    found.truncate(limits.diagnostics);
    let parts_of = members(parts.offer).unwrap_or_default();
    found
        .into_iter()
        .map(|(key, i, message)| {
            let entry = parts_of
                .iter()
                .find(|(k, _)| k == key)
                .and_then(|(_, list)| elements(list).ok()?.get(i).copied())
                .map_or(0..0, |entry| span_in(text, entry));
            Diagnostic {
                code: "bad-document",
                severity: Severity::Error,
                message,
                span: entry,
                hint: String::new(),
            }
        })
        .collect()
}
