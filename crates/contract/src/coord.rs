//! Where a word of facets is, and what it is called.

use std::fmt;

use evenkeel_catalog::{REGISTERS, Register};

/// One of KVM's CPUID tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// KVM_GET_SUPPORTED_CPUID.
    Supported,
    /// KVM_GET_EMULATED_CPUID.
    Emulated,
    /// KVM_GET_SUPPORTED_HV_CPUID.
    Hyperv,
}

/// The raw coordinate of a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Coord {
    /// A CPUID output register (0 to 3: EAX, EBX, ECX, EDX).
    Cpuid {
        /// Which table.
        table: Table,
        /// EAX on input.
        leaf: u32,
        /// ECX on input.
        subleaf: u32,
        /// 0: EAX, 1: EBX, 2: ECX, 3: EDX.
        register: u8,
    },
    /// A feature MSR.
    Msr(u32),
    /// An ID or firmware register, by ONE_REG id.
    Reg(u64),
}

const REGISTER_NAMES: [&str; 4] = ["eax", "ebx", "ecx", "edx"];

impl Coord {
    /// How many bits the word has.
    pub fn width(self) -> u32 {
        match self {
            Coord::Cpuid { .. } => 32,
            Coord::Msr(_) | Coord::Reg(_) => 64,
        }
    }

    /// All bits of the word.
    pub fn mask(self) -> u64 {
        if self.width() == 32 { u64::from(u32::MAX) } else { u64::MAX }
    }

    /// The catalog's entry for the word, by index into [`REGISTERS`].
    pub fn layout(self) -> Option<usize> {
        let found = |r: &Register| match self {
            Coord::Cpuid { table, leaf, subleaf, register } => {
                r.at.leaf == Some(leaf)
                    && table_of(r) == table
                    && r.at.register == REGISTER_NAMES[usize::from(register)]
                    && (r.at.subleaf..=r.at.subleaf_last.unwrap_or(r.at.subleaf)).contains(&subleaf)
            }
            Coord::Msr(msr) => r.at.msr == Some(msr),
            Coord::Reg(id) => r.at.reg == Some(id),
        };
        // Ascending by place; an entry for a run of subleaves follows those for single ones (the build script's order).
        let key = |r: &Register| (r.at.reg, r.at.msr, r.at.leaf);
        let mine = match self {
            Coord::Cpuid { leaf, .. } => (None, None, Some(leaf)),
            Coord::Msr(msr) => (None, Some(msr), None),
            Coord::Reg(id) => (Some(id), None, None),
        };
        let group = |r: &Register| (r.at.reg, r.at.msr, table_rank(r), key(r).2);
        let rank = match self {
            Coord::Cpuid { table: Table::Emulated, .. } => 1,
            Coord::Cpuid { table: Table::Hyperv, .. } => 2,
            Coord::Cpuid { table: Table::Supported, .. } => 3,
            _ => 0,
        };
        let mine = (mine.0, mine.1, rank, mine.2);
        let index = index();
        let first = index.partition_point(|i| group(&REGISTERS[*i]) < mine);
        index[first..]
            .iter()
            .take_while(|i| group(&REGISTERS[**i]) == mine)
            .copied()
            .find(|i| found(&REGISTERS[*i]))
    }

    /// The coordinate that a word's name stands for.
    pub fn parse(name: &str) -> Option<Coord> {
        let hex = |text: &str| u64::from_str_radix(text, 16).ok();
        let mut parts = name.split('.');
        let table = match parts.next()? {
            "cpuid" => Table::Supported,
            "cpuid-emulated" => Table::Emulated,
            "hv" => Table::Hyperv,
            "msr" => {
                let msr = u32::try_from(hex(parts.next()?)?).ok()?;
                return parts.next().is_none().then_some(Coord::Msr(msr));
            }
            "reg" => {
                let id = hex(parts.next()?)?;
                return parts.next().is_none().then_some(Coord::Reg(id));
            }
            _ => {
                let (register, field) = evenkeel_catalog::register(name)?;
                return register.at.reg.filter(|_| field.is_none()).map(Coord::Reg);
            }
        };
        let leaf = u32::try_from(hex(parts.next()?)?).ok()?;
        let subleaf = u32::try_from(hex(parts.next()?)?).ok()?;
        let register = parts.next()?;
        let register = REGISTER_NAMES.iter().position(|r| *r == register)? as u8;
        parts.next().is_none().then_some(Coord::Cpuid { table, leaf, subleaf, register })
    }
}

fn table_of(r: &Register) -> Table {
    match r.at.table {
        "emulated" => Table::Emulated,
        "hyperv" => Table::Hyperv,
        _ => Table::Supported,
    }
}

fn table_rank(r: &Register) -> u8 {
    match (r.at.leaf, table_of(r)) {
        (None, _) => 0,
        (_, Table::Emulated) => 1,
        (_, Table::Hyperv) => 2,
        (_, Table::Supported) => 3,
    }
}

/// Indices into [`REGISTERS`], ordered for the search above.
fn index() -> &'static [usize] {
    static INDEX: std::sync::OnceLock<Vec<usize>> = std::sync::OnceLock::new();
    INDEX.get_or_init(|| {
        let mut index: Vec<usize> = (0..REGISTERS.len()).collect();
        index.sort_by_key(|i| {
            let r = &REGISTERS[*i];
            (r.at.reg, r.at.msr, table_rank(r), r.at.leaf, r.at.subleaf_last.is_some(), r.at.subleaf)
        });
        index
    })
}

impl fmt::Display for Coord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Coord::Cpuid { table, leaf, subleaf, register } => {
                let table = match table {
                    Table::Supported => "cpuid",
                    Table::Emulated => "cpuid-emulated",
                    Table::Hyperv => "hv",
                };
                write!(f, "{table}.{leaf:x}.{subleaf:x}.{}", REGISTER_NAMES[usize::from(register)])
            }
            Coord::Msr(msr) => write!(f, "msr.{msr:x}"),
            Coord::Reg(id) => match self.layout() {
                Some(i) => f.write_str(REGISTERS[i].name),
                None => write!(f, "reg.{id:x}"),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_coordinates_are_the_same_thing() {
        for coord in [
            Coord::Cpuid { table: Table::Supported, leaf: 7, subleaf: 0, register: 2 },
            Coord::Cpuid { table: Table::Hyperv, leaf: 0x4000_0003, subleaf: 0, register: 0 },
            Coord::Msr(0x10a),
            Coord::Reg(0x6030_0000_0001_0000),
        ] {
            assert_eq!(Coord::parse(&coord.to_string()), Some(coord), "{coord}");
        }
        for bad in [
            "",
            "cpuid",
            "cpuid.7.0",
            "cpuid.7.0.exx",
            "cpuid.7.0.ecx.shstk",
            "msr.",
            "msr.1ffffffff",
            "reg.g",
        ] {
            assert_eq!(Coord::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn every_register_of_the_catalog_finds_itself() {
        for (i, r) in REGISTERS.iter().enumerate() {
            let coord = match (r.at.leaf, r.at.msr, r.at.reg) {
                (Some(leaf), _, _) => Coord::Cpuid {
                    table: table_of(r),
                    leaf,
                    subleaf: r.at.subleaf,
                    register: REGISTER_NAMES.iter().position(|n| *n == r.at.register).unwrap() as u8,
                },
                (_, Some(msr), _) => Coord::Msr(msr),
                (_, _, id) => Coord::Reg(id.unwrap()),
            };
            let found =
                coord.layout().map(|i| &REGISTERS[i]).unwrap_or_else(|| panic!("{i}: {coord} is not found"));
            // A register of its own goes before the run of subleaves that it lies in.
            let within = r.at.subleaf_last.is_some() && found.at.subleaf_last.is_none();
            assert!(found.name == r.name || within, "{i}: {coord} is {}", found.name);
        }
    }
}
