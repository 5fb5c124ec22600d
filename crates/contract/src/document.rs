//! The contract's document: TOML that people review.
//!
//! ```toml
//! schema = "evenkeel.contract/1"
//! name = "fleet-2026"
//! arch = "x86_64"
//! shape = "kernel"
//! digest = "blake3:…"
//!
//! [words]                       # what is not named is absent
//! "cpuid.7.0.ecx" = "0x400000"
//!
//! [open]                        # bits that the host decides: not sealed
//! "cpuid.7.0.ecx" = "0x80"
//!
//! [choices]
//! "x86.quirk.lint0-reenabled" = "on"
//! ```

use std::fmt::Write as _;
use std::ops::Range;

use evenkeel_catalog::CHOICES;
use evenkeel_surface::{Arch, Diagnostic, ReadError, Severity};
use toml::de::{DeTable, DeValue};

use crate::contract::{Contract, Promise, SCHEMA};
use crate::coord::Coord;

/// The most bytes that are read. A sealed contract has some 20 KiB.
pub const MAX_BYTES: usize = 1 << 20;

/// The document of `contract`, with its digest.
pub fn print(contract: &Contract) -> String {
    let body = body(contract);
    let digest = evenkeel_surface::digest(&body);
    // The digest stands in the head but is over everything else.
    let (head, rest) = body.split_once("\n\n").unwrap_or((body.as_str(), ""));
    format!("{head}\ndigest = \"{digest}\"\n\n{rest}")
}

/// The contract's identity.
pub fn digest(contract: &Contract) -> String {
    evenkeel_surface::digest(&body(contract))
}

fn body(contract: &Contract) -> String {
    let mut out = String::new();
    let quote = |text: &str| toml::Value::String(text.to_owned()).to_string();
    let _ = writeln!(
        out,
        "schema = \"{SCHEMA}\"\nname = {}\narch = \"{}\"",
        quote(&contract.name),
        contract.arch.name()
    );
    let _ = writeln!(out, "shape = {}", quote(&contract.shape));
    if contract.open_rest {
        let _ = writeln!(out, "open-rest = true");
    }
    let _ = writeln!(out, "\n[words]");
    for p in contract.words.iter() {
        let _ = writeln!(out, "\"{}\" = \"{:#x}\"", p.at, p.value);
    }
    if contract.words.iter().any(|p| p.open != 0) {
        let _ = writeln!(out, "\n[open]");
        for p in contract.words.iter().filter(|p| p.open != 0) {
            let _ = writeln!(out, "\"{}\" = \"{:#x}\"", p.at, p.open);
        }
    }
    let _ = writeln!(out, "\n[choices]");
    let mut named: Vec<(&str, &str)> = contract
        .choices
        .iter()
        .map(|(c, v)| (CHOICES[usize::from(*c)].name, CHOICES[usize::from(*c)].values[usize::from(*v)].name))
        .collect();
    named.sort_unstable();
    for (facet, value) in named {
        let _ = writeln!(out, "\"{facet}\" = \"{value}\"");
    }
    out
}

struct Reader {
    problems: Vec<Diagnostic>,
}

impl Reader {
    fn say(&mut self, code: &'static str, span: Range<usize>, message: String, hint: &str) {
        if self.problems.len() < 20 {
            let hint = hint.to_owned();
            self.problems.push(Diagnostic { code, severity: Severity::Error, message, span, hint });
        }
    }

    fn text<'a>(
        &mut self,
        table: &'a DeTable<'_>,
        key: &str,
        required: bool,
    ) -> Option<(&'a str, Range<usize>)> {
        let Some(value) = table.get(key) else {
            if required {
                self.say(
                    "bad-document",
                    0..0,
                    format!("`{key}` is missing"),
                    "see docs/contract.md for the format",
                );
            }
            return None;
        };
        match value.get_ref() {
            DeValue::String(text) => Some((text.as_ref(), value.span())),
            _ => {
                self.say("bad-document", value.span(), format!("`{key}` is a text"), "");
                None
            }
        }
    }

    fn masks(
        &mut self,
        table: &DeTable<'_>,
        section: &str,
        arch: Option<Arch>,
    ) -> Vec<(Coord, u64, Range<usize>)> {
        let mut masks = Vec::new();
        let Some(entries) = self.table(table, section) else { return masks };
        for (key, value) in entries {
            let name = key.get_ref().as_ref();
            let Some(at) = Coord::parse(name) else {
                let hint = "words are named cpuid.LEAF.SUBLEAF.REGISTER, msr.NUMBER, or as `evenkeel explain` lists them";
                self.say(
                    "contract-unknown-facet",
                    key.span(),
                    format!("`{}` is no word of facets", cut(name)),
                    hint,
                );
                continue;
            };
            let fits = match arch {
                Some(Arch::X86_64) => !matches!(at, Coord::Reg(_)),
                Some(Arch::Aarch64) => matches!(at, Coord::Reg(_)),
                None => true,
            };
            if !fits {
                self.say(
                    "arch-mismatch",
                    key.span(),
                    format!("`{name}` does not exist on this architecture"),
                    "",
                );
                continue;
            }
            let number = match value.get_ref() {
                DeValue::String(text) => evenkeel_surface::hex::parse(text),
                _ => None,
            };
            match number {
                Some(number) if number & !at.mask() == 0 => masks.push((at, number, key.span())),
                Some(_) => {
                    self.say("bad-document", value.span(), format!("`{name}` has {} bits", at.width()), "")
                }
                None => self.say("bad-document", value.span(), format!("`{name}`: a text like \"0x1f\""), ""),
            }
        }
        masks.sort_by_key(|m| m.0);
        for pair in masks.windows(2) {
            if pair[0].0 == pair[1].0 {
                self.say("bad-document", pair[1].2.clone(), format!("`{}` is named twice", pair[1].0), "");
            }
        }
        masks
    }

    fn table<'a>(&mut self, table: &'a DeTable<'a>, section: &str) -> Option<&'a DeTable<'a>> {
        let value = table.get(section)?;
        match value.get_ref() {
            DeValue::Table(entries) => Some(entries),
            _ => {
                self.say("bad-document", value.span(), format!("`{section}` is a table"), "");
                None
            }
        }
    }
}

fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}

/// Reads a contract.
///
/// # Errors
/// All that is wrong with it, with places; bounded in number, time and memory.
pub fn read(bytes: &[u8]) -> Result<Contract, ReadError> {
    let mut r = Reader { problems: Vec::new() };
    if bytes.len() > MAX_BYTES {
        r.say("bad-document", 0..0, format!("{} bytes; at most {MAX_BYTES} are read", bytes.len()), "");
        return Err(ReadError { diagnostics: r.problems });
    }
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(e) => {
            let at = e.valid_up_to();
            r.say("bad-document", at..at, format!("byte {at} is not UTF-8"), "contracts are TOML, in UTF-8");
            return Err(ReadError { diagnostics: r.problems });
        }
    };
    let (table, errors) = DeTable::parse_recoverable(text);
    for e in errors {
        r.say("bad-document", e.span().unwrap_or(0..0), e.message().to_owned(), "");
    }
    let table = table.get_ref();
    if let Some((schema, span)) = r.text(table, "schema", true)
        && schema != SCHEMA
    {
        match schema.strip_prefix("evenkeel.contract/").and_then(|v| v.parse::<u32>().ok()) {
            Some(v) if v > 1 => {
                r.say(
                    "schema-newer",
                    span,
                    format!("schema version {v}: this program reads up to 1"),
                    "use a newer evenkeel",
                );
                return Err(ReadError { diagnostics: r.problems });
            }
            _ => r.say(
                "bad-document",
                span,
                format!("`{}` is not a contract's schema (`{SCHEMA}`)", cut(schema)),
                "",
            ),
        }
    }
    for (key, _) in table {
        let known = ["schema", "name", "arch", "shape", "digest", "open-rest", "words", "open", "choices"];
        if !known.contains(&key.get_ref().as_ref()) {
            r.say(
                "bad-document",
                key.span(),
                format!("`{}` is no part of a contract", cut(key.get_ref())),
                "",
            );
        }
    }
    let name = r.text(table, "name", true).map(|t| t.0.to_owned());
    let arch = r.text(table, "arch", true).and_then(|(arch, span)| match arch {
        "x86_64" => Some(Arch::X86_64),
        "aarch64" => Some(Arch::Aarch64),
        other => {
            r.say("bad-document", span, format!("`{}` is no architecture", cut(other)), "x86_64 or aarch64");
            None
        }
    });
    let shape = r.text(table, "shape", true).map(|t| t.0.to_owned());
    let claimed = r.text(table, "digest", false).map(|(d, span)| (d.to_owned(), span));
    let open_rest = match table.get("open-rest").map(|v| (v.get_ref(), v.span())) {
        None => false,
        Some((DeValue::Boolean(b), _)) => *b,
        Some((_, span)) => {
            r.say("bad-document", span, "`open-rest` is true or false".to_owned(), "");
            false
        }
    };
    let words = r.masks(table, "words", arch);
    let open = r.masks(table, "open", arch);
    let mut promises: Vec<Promise> =
        words.iter().map(|(at, value, _)| Promise { at: *at, value: *value, open: 0 }).collect();
    for (at, mask, span) in open {
        match promises.binary_search_by_key(&at, |p| p.at) {
            Ok(i) if promises[i].value & mask != 0 => {
                r.say(
                    "bad-document",
                    span,
                    format!("`{at}`: bits both given and open"),
                    "clear them in one of the two",
                );
            }
            Ok(i) => promises[i].open = mask,
            Err(i) => promises.insert(i, Promise { at, value: 0, open: mask }),
        }
    }
    let choices = choices(&mut r, table, arch);
    if let (Some(name), Some(arch), Some(shape), true) = (name, arch, shape, r.problems.is_empty()) {
        let contract = Contract { name, arch, shape, words: promises, choices, open_rest };
        if let Some((claimed, span)) = claimed
            && claimed != digest(&contract)
        {
            let hint = "remove the `digest` line of a contract that you change on purpose";
            r.say(
                "digest-mismatch",
                span,
                "the contract does not have the digest that it claims".to_owned(),
                hint,
            );
            return Err(ReadError { diagnostics: r.problems });
        }
        return Ok(contract);
    }
    if r.problems.is_empty() {
        r.say("bad-document", 0..0, "not a contract".to_owned(), "");
    }
    Err(ReadError { diagnostics: r.problems })
}

fn choices(r: &mut Reader, table: &DeTable<'_>, arch: Option<Arch>) -> Vec<(u16, u8)> {
    let mut choices = Vec::new();
    let Some(entries) = r.table(table, "choices") else { return choices };
    for (key, value) in entries {
        let name = key.get_ref().as_ref();
        let Some(index) = CHOICES.iter().position(|c| c.name == name) else {
            r.say(
                "contract-unknown-facet",
                key.span(),
                format!("`{}` is no facet that has choices", cut(name)),
                "",
            );
            continue;
        };
        let facet = &CHOICES[index];
        let x86 = facet.arch == evenkeel_catalog::Arch::X86_64;
        if arch.is_some_and(|a| (a == Arch::X86_64) != x86) {
            r.say("arch-mismatch", key.span(), format!("`{name}` does not exist on this architecture"), "");
            continue;
        }
        let DeValue::String(wanted) = value.get_ref() else {
            r.say("bad-document", value.span(), format!("`{name}` is given by a value's name"), "");
            continue;
        };
        match facet.values.iter().position(|v| v.name == wanted.as_ref()) {
            Some(value) => choices.push((index as u16, value as u8)),
            None => {
                let names: Vec<&str> = facet.values.iter().map(|v| v.name).collect();
                let message = format!("`{}` is no value of `{name}`", cut(wanted));
                r.say("bad-document", value.span(), message, &format!("one of {}", names.join(", ")));
            }
        }
    }
    choices.sort_unstable();
    choices
}
