//! What is told of saving and restoring.

use evenkeel_sys::Error as CallError;

use crate::image::{Image, Owner};

/// A VM was saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// All that was saved. Guest memory is not in it: it is to be copied now, after items that are saved into it.
    pub image: Image,
    /// State that exists, that KVM cannot save, and whose loss the guest may notice.
    pub gaps: Vec<Found>,
    /// Groups of the catalog that this VM, or this host, does not have.
    pub absent: Vec<Absent>,
}

/// A group of state that is not there, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Absent {
    /// Whose it would be.
    pub owner: Owner,
    /// The item.
    pub item: &'static str,
    /// Why it is not there.
    pub why: &'static str,
}

/// A part that was left alone on purpose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// Whose.
    pub owner: Owner,
    /// The item: a section, or `msr.11`.
    pub item: String,
    /// Why that loses nothing.
    pub why: &'static str,
}

/// State that cannot be saved, and was found to exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The catalog's id of it, or of the nearest: `A05`.
    pub gap: String,
    /// Whose it is.
    pub owner: Owner,
    /// What was found.
    pub what: String,
}

/// Nothing was saved, or nothing restored: why. The VM that was to be saved is as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Refused {
    /// The item that it is about; empty when it is about all.
    pub item: String,
    /// Whose.
    pub owner: Owner,
    /// Why.
    pub why: String,
    /// The call that failed, where one did.
    #[source]
    pub source: Option<Box<CallError>>,
    /// What can be done; may be empty.
    pub hint: String,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.item.is_empty() {
            write!(f, "{}/{}: ", self.owner, self.item)?;
        }
        f.write_str(&self.why)?;
        match &self.source {
            Some(error) => write!(f, ": {error}"),
            None => Ok(()),
        }
    }
}

impl Refused {
    /// About an item, in words.
    pub(crate) fn new(owner: Owner, item: &str, why: impl Into<String>) -> Refused {
        Refused { item: item.to_owned(), owner, why: why.into(), source: None, hint: String::new() }
    }

    /// About an item for which this call was needed.
    pub(crate) fn call(owner: Owner, item: &str, why: &str) -> impl FnOnce(CallError) -> Refused {
        let refused = Refused::new(owner, item, why);
        move |source| Refused { source: Some(Box::new(source)), ..refused }
    }

    #[must_use]
    pub(crate) fn hint(self, hint: &str) -> Refused {
        Refused { hint: hint.to_owned(), ..self }
    }
}

/// What became of each part of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Parts (registers, attributes, structures) that hold what was saved, read back after all were set.
    pub kept: u32,
    /// Parts that run by themselves, and went on from what was saved.
    pub running: u32,
    /// Parts that show another part once more, which was kept.
    pub implied: u32,
    /// The others, in the order in which they were set.
    pub not_kept: Vec<NotKept>,
    /// Parts that are here and were not saved: they are as in a fresh VM.
    pub unsaved: Vec<Unsaved>,
    /// Parts that were not set because that loses nothing.
    pub left: Vec<Left>,
    /// What could not be carried, and the guest may notice.
    pub gaps: Vec<Found>,
}

impl Report {
    /// The guest can go on: whatever was saved is in place.
    pub fn complete(&self) -> bool {
        self.not_kept.is_empty()
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} parts kept, {} running, {} not kept", self.kept, self.running, self.not_kept.len())?;
        self.not_kept.iter().try_for_each(|part| write!(f, "\n  {part}"))
    }
}

/// A part that is here and was not saved.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unsaved {
    /// Whose.
    pub owner: Owner,
    /// The item.
    pub item: String,
    /// Which part of it.
    pub field: String,
    /// What it holds.
    pub now: Vec<u8>,
}

/// What became of a part that is not as it was saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Became {
    /// The kernel refused it.
    Refused,
    /// The kernel accepted it and has something else.
    Altered,
    /// The kernel accepted it, and it cannot be read back.
    Unreadable,
}

impl Became {
    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Became::Refused => "refused",
            Became::Altered => "altered",
            Became::Unreadable => "unreadable",
        }
    }
}

/// A part that was not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotKept {
    /// Whose.
    pub owner: Owner,
    /// The item.
    pub item: String,
    /// Which part of it: a register, an attribute; empty for all of it.
    pub field: String,
    /// What became of it.
    pub became: Became,
    /// What was saved, in the kernel's layout.
    pub wanted: Vec<u8>,
    /// What is there.
    pub now: Option<Vec<u8>>,
    /// The call that failed.
    pub error: Option<String>,
}

impl std::fmt::Display for NotKept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.owner, self.item)?;
        if !self.field.is_empty() {
            write!(f, "/{}", self.field)?;
        }
        write!(f, ": {}, saved {}", self.became.name(), number(&self.wanted))?;
        if let Some(now) = &self.now {
            write!(f, ", now {}", number(now))?;
            if self.wanted.len() > 64 {
                write!(f, ", otherwise {}", places(&self.wanted, now))?;
            }
        }
        match &self.error {
            Some(error) => write!(f, " ({error})"),
            None => Ok(()),
        }
    }
}

/// Where two long values differ: the first few runs of bytes, from and to.
fn places(wanted: &[u8], now: &[u8]) -> String {
    const MOST: usize = 12;
    let differs = |at: &usize| wanted.get(*at) != now.get(*at);
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for at in (0..wanted.len().max(now.len())).filter(differs) {
        match runs.last_mut().filter(|(_, end)| *end == at) {
            Some((_, end)) => *end = at + 1,
            None => runs.push((at, at + 1)),
        }
    }
    let mut told: Vec<String> =
        runs.iter().take(MOST).map(|(from, to)| format!("{from:#x}..{to:#x}")).collect();
    if runs.len() > MOST {
        told.push(format!("{} more", runs.len() - MOST));
    }
    format!("in bytes {}", told.join(", "))
}

/// Little-endian bytes as a number, as far as that is readable.
fn number(bytes: &[u8]) -> String {
    let shown = bytes.len().min(64);
    let digits: String = bytes[..shown].iter().rev().map(|byte| format!("{byte:02x}")).collect();
    let digits = digits.trim_start_matches('0');
    let digits = if digits.is_empty() { "0" } else { digits };
    let rest =
        if bytes.len() > shown { format!(" and {} bytes more", bytes.len() - shown) } else { String::new() };
    format!("{digits:0>1}{rest}").replacen("", "0x", 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_kept_is_told_in_a_line() {
        let mut lost = NotKept {
            owner: Owner::Vcpu(1),
            item: "arm64-registers".to_owned(),
            field: "SCTLR_EL1".to_owned(),
            became: Became::Altered,
            wanted: 0x30d0_0800_u64.to_le_bytes().to_vec(),
            now: Some(vec![0; 8]),
            error: None,
        };
        assert_eq!(lost.to_string(), "vcpu.1/arm64-registers/SCTLR_EL1: altered, saved 0x30d00800, now 0x0");
        lost.now = None;
        lost.became = Became::Refused;
        lost.error = Some("KVM_SET_ONE_REG(0x1): EINVAL".to_owned());
        assert!(lost.to_string().ends_with("refused, saved 0x30d00800 (KVM_SET_ONE_REG(0x1): EINVAL)"));
    }
}
