//! Naming what differs in a word: fields where the catalog knows them, bits where it does not.

use evenkeel_catalog::{REGISTERS, Rule};
use evenkeel_surface::Arch;

use crate::coord::{Coord, Table};
use crate::finding::Axis;
use crate::layout::{UNKNOWN, field_mask, layout};
use crate::view::View;

/// A part of a word that has a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// `cpuid.7.0.ecx.shstk`, `cpuid.7.0.ecx[26]`, or the word's own name.
    pub name: String,
    /// In a line; may be empty.
    pub title: &'static str,
    /// The bits, in place.
    pub mask: u64,
    /// How far to shift a value right.
    pub lo: u32,
}

impl Part {
    /// The part's value in `word`, as text.
    pub fn show(&self, word: u64) -> String {
        format!("{:#x}", (word & self.mask) >> self.lo)
    }
}

/// The named parts of the word at `at` that `bits` touches.
pub fn parts(at: Coord, layout_index: u16, bits: u64) -> Vec<Part> {
    let mut left = bits & at.mask();
    let mut parts = Vec::new();
    if let Some(register) = REGISTERS.get(usize::from(layout_index)) {
        for f in register.fields {
            let mask = field_mask(f);
            if left & mask != 0 {
                parts.push(Part {
                    name: format!("{at}.{}", f.name),
                    title: f.title,
                    mask,
                    lo: u32::from(f.lo),
                });
                left &= !mask;
            }
        }
    }
    let whole = layout_index == UNKNOWN
        || REGISTERS
            .get(usize::from(layout_index))
            .is_some_and(|r| r.fields.is_empty() && r.rest != Rule::Flag);
    if whole && left != 0 {
        let title = REGISTERS.get(usize::from(layout_index)).map_or("", |r| r.title);
        parts.push(Part { name: at.to_string(), title, mask: at.mask(), lo: 0 });
        return parts;
    }
    while left != 0 {
        let bit = left.trailing_zeros();
        parts.push(Part { name: format!("{at}[{bit}]"), title: "", mask: 1 << bit, lo: bit });
        left &= left - 1;
    }
    parts
}

/// The whole word as a part.
pub fn whole(at: Coord) -> Part {
    Part { name: at.to_string(), title: "", mask: at.mask(), lo: 0 }
}

/// The raw coordinate of a part, for people and for JSON.
pub fn coordinate(at: Coord, part: &Part) -> String {
    let bits = match (part.mask.count_ones(), part.mask == at.mask()) {
        (_, true) => String::new(),
        (1, _) => format!(" bit {}", part.lo),
        (n, _) => format!(" bits {}:{}", part.lo + n - 1, part.lo),
    };
    match at {
        Coord::Cpuid { table, leaf, subleaf, register } => {
            let register = ["EAX", "EBX", "ECX", "EDX"][usize::from(register)];
            let table = match table {
                Table::Supported => "",
                Table::Emulated => " (emulated)",
                Table::Hyperv => " (Hyper-V)",
            };
            format!("CPUID{table} leaf {leaf:#x} subleaf {subleaf:#x} {register}{bits}")
        }
        Coord::Msr(msr) => format!("MSR {msr:#x}{bits}"),
        Coord::Reg(id) => format!("ONE_REG {id:#x}{bits}"),
    }
}

/// What a difference in `mask` of the word at `at` comes from, as far as the two hosts tell.
pub fn axis(a: &View, b: &View, at: Coord, layout_index: u16, mask: u64) -> Axis {
    let raw = |v: &View| v.raw.binary_search_by_key(&at, |w| w.at).ok().map(|i| v.raw[i].value);
    if a.arch == Arch::X86_64
        && matches!(at, Coord::Cpuid { table: Table::Supported, .. })
        && let (Some(x), Some(y)) = (raw(a), raw(b))
    {
        // The instruction itself answers differently: no kernel can give back what the CPU does not have.
        if (x ^ y) & mask != 0 {
            return Axis::Cpu;
        }
        return kernel_or_boot(a, b);
    }
    let (x, y) = (&a.host.provenance.cpu, &b.host.provenance.cpu);
    if x.id != y.id || x.vendor != y.vendor || x.microcode != y.microcode {
        return Axis::Cpu;
    }
    if layout(layout_index).hardware & mask != 0 && !a.raw.is_empty() && *a.raw != *b.raw {
        return Axis::Cpu;
    }
    kernel_or_boot(a, b)
}

/// Kernel, unless the same kernel was started otherwise.
pub fn kernel_or_boot(a: &View, b: &View) -> Axis {
    let (x, y) = (&a.host.provenance, &b.host.provenance);
    let same_kernel = x.kernel.release == y.kernel.release && x.kernel.version == y.kernel.version;
    let same_boot = x.kernel.cmdline == y.kernel.cmdline
        && x.parameters == y.parameters
        && x.mitigations == y.mitigations;
    if same_kernel && !same_boot { Axis::Boot } else { Axis::Kernel }
}
