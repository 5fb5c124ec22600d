//! The surface of a kernel that is not installed: this CPU under that kernel.
//!
//! A prediction is put together from two captures: *here* (this CPU, whatever kernel runs now) and a *donor* (that
//! kernel, on whatever CPU it was captured). What only the kernel decides is taken from the donor. What hardware and
//! kernel decide together is derived bit by bit from the catalog's kinds and from what the CPUID instruction answers
//! here. What neither tells stays unknown. Nothing predicted ever counts as more than predicted.

use std::sync::Arc;

use evenkeel_catalog::{Field, Kind, REGISTERS, Rule};
use evenkeel_surface::{Arch, CpuidEntry, Hex32, Surface};

use crate::coord::{Coord, Table};
use crate::layout::{field_mask, index_of};
use crate::view::{Evidence, View};

/// A predicted host.
#[derive(Clone, Debug)]
pub struct Prediction {
    /// The predicted values, in the shape of a capture.
    pub surface: Surface,
    /// Bits of words that are not determined.
    pub unknown: Vec<(Coord, u64)>,
}

impl Prediction {
    /// The views of the predicted host, one a shape.
    pub fn views(&self, label: &str) -> Vec<View> {
        let mut views = View::all(&self.surface, label);
        for view in &mut views {
            view.evidence = Evidence::Predicted;
            let words = Arc::make_mut(&mut view.words);
            for (at, mask) in &self.unknown {
                match words.binary_search_by_key(at, |w| w.at) {
                    Ok(i) => words[i].unknown |= mask,
                    Err(i) => words
                        .insert(i, crate::view::Word { unknown: *mask, ..crate::view::Word::new(*at, 0) }),
                }
            }
        }
        views
    }
}

/// Why nothing can be predicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unpredictable {
    /// The two captures are of different architectures.
    Architecture,
    /// The capture of this host has no answers of the CPUID instruction itself.
    NoRawCpuid,
}

impl std::fmt::Display for Unpredictable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Unpredictable::Architecture => "the kernel was captured on another architecture",
            Unpredictable::NoRawCpuid => {
                "the capture of this host does not hold what the CPUID instruction answers"
            }
        })
    }
}

impl std::error::Error for Unpredictable {}

/// Predicts `here`'s CPU under `donor`'s kernel.
///
/// # Errors
/// See [`Unpredictable`].
pub fn predict(here: &Surface, donor: &Surface) -> Result<Prediction, Unpredictable> {
    if here.arch != donor.arch {
        return Err(Unpredictable::Architecture);
    }
    if here.arch == Arch::Aarch64 {
        return Ok(arm64(here, donor));
    }
    if here.provenance.cpu.raw.is_empty() {
        return Err(Unpredictable::NoRawCpuid);
    }
    let mut surface = donor.clone();
    surface.digests = evenkeel_surface::Digests::default();
    surface.provenance.cpu = here.provenance.cpu.clone();
    // How this host would be booted is not known to differ: its own settings stand, as far as the kernel has them.
    surface.provenance.kernel.cmdline.clone_from(&here.provenance.kernel.cmdline);
    surface.provenance.parameters.clear();
    surface.provenance.mitigations.clear();
    surface.volatile = here.volatile.clone();
    surface.volatile.capabilities.clear();
    surface.offer.cpuid_stored.clear();
    let mut unknown = Vec::new();
    surface.offer.cpuid = cpuid(here, donor, &mut unknown);
    let foreign = here.provenance.cpu.vendor != donor.provenance.cpu.vendor;
    if foreign {
        // Another vendor's back-end answered the donor: of saved state, only what both agree on is worth repeating.
        let (mine, offer) = (&here.offer, &mut surface.offer);
        offer
            .msrs
            .retain(|m| mine.msrs.iter().any(|n| (n.msr, n.listed, n.write) == (m.msr, m.listed, m.write)));
        offer.msrs_refused.retain(|m| mine.msrs_refused.binary_search(m).is_ok());
        // A group that only one of the two has stays undetermined.
        offer.sections.retain(|s| mine.sections.iter().any(|t| t.item == s.item));
        for s in mine
            .sections
            .iter()
            .filter(|s| !offer.sections.iter().any(|t| t.item == s.item))
            .cloned()
            .collect::<Vec<_>>()
        {
            offer.sections.push(evenkeel_surface::Section { write: evenkeel_surface::Write::Unasked, ..s });
        }
    }
    if foreign || here.provenance.cpu.id != donor.provenance.cpu.id {
        // Feature MSRs follow CPU, microcode and mitigations: another CPU's values say nothing.
        for m in &surface.offer.feature_msrs {
            unknown.push((Coord::Msr(m.msr.0), u64::MAX));
        }
    }
    Ok(Prediction { surface, unknown })
}

/// On arm64 everything that a kernel lists is the donor's. What the CPU has a part in (ID registers) is the donor's only
/// on the same CPU; on another one, only what both hosts show alike is worth repeating.
fn arm64(here: &Surface, donor: &Surface) -> Prediction {
    let mut surface = donor.clone();
    surface.digests = evenkeel_surface::Digests::default();
    surface.provenance.cpu = here.provenance.cpu.clone();
    surface.provenance.kernel.cmdline.clone_from(&here.provenance.kernel.cmdline);
    surface.provenance.mitigations.clear();
    surface.volatile = here.volatile.clone();
    let mut unknown = Vec::new();
    if here.provenance.cpu.id != donor.provenance.cpu.id {
        for r in &surface.offer.registers {
            let at = Coord::Reg(r.id.0);
            let same =
                here.offer.registers.iter().any(|h| (h.id, &h.shapes, h.reset) == (r.id, &r.shapes, r.reset));
            if index_of(at) != crate::layout::UNKNOWN && !same {
                unknown.push((at, u64::MAX));
            }
        }
    }
    Prediction { surface, unknown }
}

/// `6.18` of `6.18.15+deb14-cloud-amd64`.
fn series(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(['.', '-', '+']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn entry(list: &[CpuidEntry], leaf: u32, subleaf: u32) -> Option<&CpuidEntry> {
    list.iter().find(|e| e.leaf.0 == leaf && e.subleaf.0 == subleaf)
}

fn words(e: Option<&CpuidEntry>) -> [Option<u64>; 4] {
    match e {
        Some(e) => [e.eax, e.ebx, e.ecx, e.edx].map(|v| Some(u64::from(v.0))),
        None => [None; 4],
    }
}

fn cpuid(here: &Surface, donor: &Surface, unknown: &mut Vec<(Coord, u64)>) -> Vec<CpuidEntry> {
    let mut places: Vec<(u32, u32, u32)> =
        here.offer.cpuid.iter().chain(&donor.offer.cpuid).map(|e| (e.leaf.0, e.subleaf.0, e.flags)).collect();
    places.sort_unstable();
    places.dedup_by_key(|p| (p.0, p.1));
    let kernel = series(&donor.provenance.kernel.release);
    let foreign = here.provenance.cpu.vendor != donor.provenance.cpu.vendor;
    let mut entries = Vec::with_capacity(places.len());
    for (leaf, subleaf, flags) in places {
        let mine = words(entry(&here.offer.cpuid, leaf, subleaf));
        let theirs = words(entry(&donor.offer.cpuid, leaf, subleaf));
        let raw = words(entry(&here.provenance.cpu.raw, leaf, subleaf));
        let donor_raw = words(entry(&donor.provenance.cpu.raw, leaf, subleaf));
        let mut out = [0u64; 4];
        for register in 0..4usize {
            let at = Coord::Cpuid { table: Table::Supported, leaf, subleaf, register: register as u8 };
            let known = Known {
                mine: mine[register],
                theirs: theirs[register],
                raw: raw[register].map(|r| r | cleared(leaf, register) & mine[register].unwrap_or(0)),
                donor_raw: donor_raw[register],
                foreign,
            };
            let (value, unsure) = word(at, &known, kernel);
            out[register] = value & !unsure;
            if unsure != 0 {
                unknown.push((at, unsure));
            }
        }
        let [eax, ebx, ecx, edx] = out.map(|v| Hex32(v as u32));
        entries.push(CpuidEntry { leaf: Hex32(leaf), subleaf: Hex32(subleaf), flags, eax, ebx, ecx, edx });
    }
    entries
}

/// Bits that a capture clears in the CPU's own answers, because they follow the mode that the CPU runs in: the local
/// APIC (1.EDX[9]), OSXSAVE (1.ECX[27]), OSPKE (7.ECX[4]). For those, what KVM supports here says what the CPU has.
fn cleared(leaf: u32, register: usize) -> u64 {
    match (leaf, register) {
        (1, 3) => 1 << 9,
        (1, 2) => 1 << 27,
        (7, 2) => 1 << 4,
        _ => 0,
    }
}

/// What is known about one word.
struct Known {
    /// What KVM supports here, under the kernel that runs now.
    mine: Option<u64>,
    /// What KVM supports on the donor.
    theirs: Option<u64>,
    /// What the CPU here answers itself.
    raw: Option<u64>,
    /// What the donor's CPU answers itself.
    donor_raw: Option<u64>,
    /// The donor's CPU is another vendor's.
    foreign: bool,
}

/// The predicted word, and the bits that are not determined.
fn word(at: Coord, known: &Known, kernel: Option<(u32, u32)>) -> (u64, u64) {
    let layout_index = index_of(at);
    let (mut value, mut unsure) = (0u64, 0u64);
    let mut rest = at.mask();
    let register = REGISTERS.get(usize::from(layout_index));
    for f in register.map_or(&[][..], |r| r.fields) {
        let mask = field_mask(f);
        rest &= !mask;
        match field(f, mask, known, kernel) {
            Some(bits) => value |= bits & mask,
            None => unsure |= mask,
        }
    }
    // Bits that nobody named: what neither CPU nor kernel shows is 0; what both KVMs agree on stands.
    let (mine, theirs) = (known.mine.unwrap_or(0), known.theirs.unwrap_or(0));
    let flags = register.is_some_and(|r| r.rest == Rule::Flag);
    let none = if flags { known.raw.map_or(0, |raw| !raw & !mine & !theirs) } else { 0 };
    let agreed = !(mine ^ theirs);
    value |= rest & agreed & mine;
    unsure |= rest & !agreed & !none;
    (value, unsure)
}

fn field(f: &Field, mask: u64, known: &Known, kernel: Option<(u32, u32)>) -> Option<u64> {
    let raw = known.raw.map(|v| v & mask);
    let mine = known.mine.map(|v| v & mask);
    let theirs = known.theirs.map_or(0, |v| v & mask);
    let donor_raw = known.donor_raw.map(|v| v & mask);
    if matches!(f.rule, Rule::Runtime | Rule::Template | Rule::Identity) {
        return Some(mine.unwrap_or(0));
    }
    let advertised = match (kernel, series(f.since)) {
        (Some(kernel), Some(since)) => Some(kernel >= since),
        _ => None,
    };
    match f.kind {
        // What KVM makes up, it makes up by vendor, too (nested SVM on AMD).
        Kind::Emulated | Kind::Paravirtual => (!known.foreign || mine == Some(theirs)).then_some(theirs),
        Kind::Runtime => Some(0),
        Kind::HardwareAndKernel | Kind::Passthrough => match (raw, advertised) {
            (Some(0), _) => Some(0),
            (_, Some(false)) => Some(0),
            // The kernel knows the bit and the CPU has it; the donor shows whether this kernel passes it on.
            (Some(_), _) if donor_raw.is_some_and(|d| d != 0) => Some(if theirs != 0 { mask } else { 0 }),
            (Some(_), Some(true)) if f.lo == f.hi => Some(mask),
            _ => None,
        },
        Kind::Synthesized | Kind::Vendor => match (raw, donor_raw) {
            _ if known.foreign => (mine == Some(theirs)).then_some(theirs),
            (_, _) if advertised == Some(false) => Some(0),
            (Some(r), Some(d)) if r == d => Some(theirs),
            _ => None,
        },
        Kind::Data => match (mine, raw, donor_raw) {
            // The donor's kernel passes the CPU's own answer on: so it would here.
            (_, Some(r), Some(d)) if d == theirs => Some(r),
            (Some(m), ..) if m == theirs => Some(m),
            _ => None,
        },
    }
}
