//! The observation: what one guest saw on one host, by name.
//!
//! A name is a facet's, where the catalog has one (`cpuid.7.0.ecx`, `msr.10a`, `x86.x2apic.high-bits`), or says what was
//! looked at: `cr4.writable`, `insn.rdrand`, `xapic.30`. What a guest sees under another configuration than the plain one
//! has that behind an `@`: `apic.lvr@suppress-eoi-enabled`.

use std::collections::BTreeMap;
use std::fmt;

use evenkeel_surface::{Arch, Canonical, Hex32, Hex64, digest};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The schema name that this crate writes, and the newest that it reads.
pub const SCHEMA: &str = "evenkeel.observation/1";

/// What a guest saw.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Observation {
    /// [`SCHEMA`].
    pub schema: String,
    /// The architecture of guest and host.
    pub arch: Arch,
    /// The machine's shape: `kernel`, `split` or `none`.
    pub shape: String,
    /// `blake3:…` over the canonical form of `seen`.
    pub digest: String,
    /// What was seen, ascending by name. The same again on the same host. Words of CPUID that are 0 are left out.
    pub seen: Vec<Seen>,
    /// Clocks and counters, ascending by name: their values differ at every look. In no digest.
    pub running: Vec<Seen>,
    /// What was not looked at, and why, ascending by name.
    pub unasked: Vec<Unasked>,
    /// Whose guest it was. In no digest.
    pub volatile: Volatile,
}

/// One thing, and what the guest saw of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Seen {
    /// Its name; `msr.830-83e` for MSRs that all ended alike.
    pub name: String,
    /// What was seen.
    pub saw: Saw,
}

/// How a look ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Saw {
    /// A value; of a choice of the catalog, the number of its value.
    Value(Hex64),
    /// An exception.
    Fault {
        /// Its vector: 6 is #UD, 13 #GP.
        vector: u8,
        /// Its error code; 0 where there is none.
        code: Hex32,
    },
    /// An exception on arm64, as ESR_EL1 told it.
    Exception {
        /// Its class: 0 is undefined, 0x18 a trapped system register.
        class: u8,
        /// Its syndrome.
        iss: Hex32,
    },
    /// It was executed.
    Executes,
    /// The access left KVM for the program that runs the guest, as named.
    Exit(String),
    /// KVM could not execute it (KVM_EXIT_INTERNAL_ERROR): a guest that does it ends there.
    Stopped,
    /// The guest ended there, and how: a triple fault, an exit that nobody knows.
    Ends(String),
}

/// Something that was not looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Unasked {
    /// Its name.
    pub name: String,
    /// Why not.
    pub why: String,
}

/// Whose guest it was, when, and what it took.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Volatile {
    /// The program that wrote the file, with its version.
    pub tool: String,
    /// `uname -r` of the host: a hint, never an identity.
    pub kernel: String,
    /// How long the looking took, in milliseconds.
    pub took_ms: u64,
    /// How many probes the guest was given.
    pub probes: u64,
    /// How long each program took.
    pub phases: Vec<Phase>,
}

/// A program, and how long it took.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Phase {
    /// Its name.
    pub name: String,
    /// Milliseconds.
    pub ms: u64,
}

const EXCEPTIONS: [&str; 22] = [
    "#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "", "#TS", "#NP", "#SS", "#GP", "#PF", "",
    "#MF", "#AC", "#MC", "#XM", "#VE", "#CP",
];

impl fmt::Display for Saw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Saw::Value(value) => write!(f, "{value}"),
            Saw::Fault { vector, code } => {
                match EXCEPTIONS.get(usize::from(*vector)).filter(|name| !name.is_empty()) {
                    Some(name) => f.write_str(name)?,
                    None => write!(f, "exception {vector}")?,
                }
                if code.0 == 0 { Ok(()) } else { write!(f, "({code})") }
            }
            Saw::Exception { class: 0, iss: Hex32(0) } => f.write_str("undefined"),
            Saw::Exception { class, iss } => write!(f, "exception of class {class:#x}({iss})"),
            Saw::Executes => f.write_str("executes"),
            Saw::Exit(what) => write!(f, "leaves KVM: {what}"),
            Saw::Ends(how) => write!(f, "the guest ends: {how}"),
            Saw::Stopped => f.write_str("KVM cannot execute it"),
        }
    }
}

/// An observation that is being made.
#[derive(Clone, Debug, Default)]
pub struct Record {
    seen: BTreeMap<String, Saw>,
    running: BTreeMap<String, Saw>,
    unasked: BTreeMap<String, String>,
    /// How many probes the guest was given.
    pub probes: u64,
}

impl Record {
    /// This was seen.
    pub fn saw(&mut self, name: impl Into<String>, saw: Saw) {
        self.seen.insert(name.into(), saw);
    }

    /// This value was seen.
    pub fn value(&mut self, name: impl Into<String>, value: u64) {
        self.saw(name, Saw::Value(Hex64(value)));
    }

    /// This was seen, and it runs by itself.
    pub fn runs(&mut self, name: impl Into<String>, saw: Saw) {
        self.running.insert(name.into(), saw);
    }

    /// This was not looked at.
    pub fn unasked(&mut self, name: impl Into<String>, why: impl Into<String>) {
        self.unasked.insert(name.into(), why.into());
    }

    /// What was seen under this name.
    pub fn get(&self, name: &str) -> Option<&Saw> {
        self.seen.get(name)
    }

    /// The value that was seen under this name.
    pub fn number(&self, name: &str) -> Option<u64> {
        match self.seen.get(name)? {
            Saw::Value(value) => Some(value.0),
            _ => None,
        }
    }

    /// What was seen and runs by itself.
    pub fn running(&self, name: &str) -> Option<&Saw> {
        self.running.get(name)
    }

    /// Forgets what was seen with this suffix just as it was seen without it; what is only there, or only not there,
    /// stays, the latter as 0 of CPUID.
    pub fn drop_like(&mut self, suffix: &str) {
        let words: Vec<String> = self
            .seen
            .keys()
            .filter(|name| name.starts_with("cpuid.") && !name.contains('@'))
            .filter(|name| !self.seen.contains_key(&format!("{name}{suffix}")))
            .map(|name| format!("{name}{suffix}"))
            .collect();
        self.seen.extend(words.into_iter().map(|name| (name, Saw::Value(Hex64(0)))));
        let plain = self.seen.clone();
        self.seen.retain(|name, saw| {
            name.strip_suffix(suffix).and_then(|name| plain.get(name)).is_none_or(|other| other != saw)
        });
        self.running.retain(|name, _| !name.ends_with(suffix));
    }

    /// The whole.
    pub fn finish(self, arch: Arch, shape: &str, volatile: Volatile) -> Observation {
        let list = |map: BTreeMap<String, Saw>| {
            fold(map.into_iter().map(|(name, saw)| Seen { name, saw }).collect())
        };
        let seen = list(self.seen);
        Observation {
            schema: SCHEMA.to_owned(),
            arch,
            shape: shape.to_owned(),
            digest: digest(&seen.canonical()),
            seen,
            running: list(self.running),
            unasked: self.unasked.into_iter().map(|(name, why)| Unasked { name, why }).collect(),
            volatile: Volatile { probes: self.probes, ..volatile },
        }
    }
}

/// `msr.` and a number, or a run of them, and what follows: `msr.c0010000.write` is `("msr", 0xc0010000, …, ".write")`.
fn number(name: &str) -> Option<(&str, u64, u64, &str)> {
    let (kind, rest) = name.split_once('.')?;
    if kind != "msr" && kind != "x2apic" {
        return None;
    }
    let end = rest.find(['.', '@']).unwrap_or(rest.len());
    let (digits, tail) = rest.split_at(end);
    let hex = |t: &str| u64::from_str_radix(t, 16).ok();
    let (first, last) = digits.split_once('-').unwrap_or((digits, digits));
    Some((kind, hex(first)?, hex(last)?, tail))
}

/// Writes MSRs with consecutive numbers that ended alike, and without a value, as one.
fn fold(list: Vec<Seen>) -> Vec<Seen> {
    // By number for once: names as text have `msr.1000` before `msr.2`.
    let (mut numbered, mut folded): (Vec<Seen>, Vec<Seen>) =
        list.into_iter().partition(|s| number(&s.name).is_some() && !matches!(s.saw, Saw::Value(_)));
    numbered.sort_by(|a, b| {
        let key =
            |s: &Seen| number(&s.name).map(|(k, first, _, tail)| (k.to_owned(), tail.to_owned(), first));
        key(a).cmp(&key(b))
    });
    let mut runs: Vec<Seen> = Vec::new();
    for seen in numbered {
        let joined = runs.last().and_then(|last| {
            let ((k, first, end, t), (kind, next, _, tail)) = (number(&last.name)?, number(&seen.name)?);
            (k == kind && t == tail && last.saw == seen.saw && next == end + 1)
                .then(|| format!("{kind}.{first:x}-{next:x}{tail}"))
        });
        match (joined, runs.last_mut()) {
            (Some(name), Some(last)) => last.name = name,
            _ => runs.push(seen),
        }
    }
    folded.extend(runs);
    folded.sort_by(|a, b| a.name.cmp(&b.name));
    folded
}

/// The most MSRs that a run in a document may stand for: more is nonsense.
const LONGEST: u64 = 1 << 16;

/// What was seen, by single names.
pub fn unfold(list: &[Seen]) -> BTreeMap<String, Saw> {
    let mut all = BTreeMap::new();
    for seen in list {
        match number(&seen.name) {
            Some((kind, first, last, tail)) if first < last && last - first <= LONGEST => {
                for n in first..=last {
                    all.insert(format!("{kind}.{n:x}{tail}"), seen.saw.clone());
                }
            }
            _ => {
                all.insert(seen.name.clone(), seen.saw.clone());
            }
        }
    }
    all
}

/// Why a document is no observation.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It is too long.
    #[error("longer than {MAX_BYTES} bytes")]
    Long,
    /// It is not what the schema says.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// It is of another schema.
    #[error("schema `{0}`; {SCHEMA} is the only one known")]
    Schema(String),
    /// It was changed after it was written.
    #[error("the digest of `seen` is another one: the file was changed")]
    Digest,
}

/// No observation is longer.
pub const MAX_BYTES: usize = 16 << 20;

/// Reads one.
///
/// # Errors
/// See [`ReadError`].
pub fn read(bytes: &[u8]) -> Result<Observation, ReadError> {
    if bytes.len() > MAX_BYTES {
        return Err(ReadError::Long);
    }
    let observation: Observation = serde_json::from_slice(bytes)?;
    if observation.schema != SCHEMA {
        return Err(ReadError::Schema(observation.schema.chars().take(60).collect()));
    }
    if observation.digest != digest(&observation.seen.canonical()) {
        return Err(ReadError::Digest);
    }
    Ok(observation)
}

impl Observation {
    /// The text of its file.
    pub fn print(&self) -> String {
        self.canonical() + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_msrs_fold_and_unfold() {
        let mut record = Record::default();
        let gp = Saw::Fault { vector: 13, code: Hex32(0) };
        for n in [8u64, 9, 10, 0x10, 0x11, 0x12] {
            record.saw(format!("msr.{n:x}"), gp.clone());
        }
        record.value("msr.b", 5);
        record.saw("msr.9.write", Saw::Executes);
        record.saw("msr.a.write", gp.clone());
        record.saw("cr0.writable", Saw::Stopped);
        let before = record.seen.clone();
        let made = record.finish(Arch::X86_64, "kernel", Volatile::default());
        let names: Vec<&str> = made.seen.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names, ["cr0.writable", "msr.10-12", "msr.8-a", "msr.9.write", "msr.a.write", "msr.b"]);
        assert_eq!(unfold(&made.seen), before);
        let text = made.print();
        assert_eq!(read(text.as_bytes()).unwrap(), made);
        assert!(matches!(read(text.replace("0x5", "0x6").as_bytes()), Err(ReadError::Digest)));
        assert!(matches!(read(text.replace("tion/1", "tion/9").as_bytes()), Err(ReadError::Schema(_))));
        assert!(matches!(read(b"{"), Err(ReadError::Json(_))));
    }
}
