//! Finding things in the catalog by number or name.

use crate::{
    CAPABILITIES, CHANGES, CHOICES, CODES, Capability, Change, Choice, Code, Field, GAPS, Gap, IOCTLS, Ioctl,
    MEASUREMENTS, MSRS, Measurement, Msr, NOT_GUEST_VISIBLE, NotGuestVisible, PARAMETERS, Parameter,
    REGISTERS, REGS, Reg, Register, SECTIONS, Section,
};

/// The MSR with this number, as an item of state.
pub fn msr(number: u32) -> Option<&'static Msr> {
    let at = MSRS.partition_point(|m| m.msr <= number).checked_sub(1)?;
    let found = &MSRS[at];
    (number <= found.last.unwrap_or(found.msr)).then_some(found)
}

/// The ONE_REG register with this id, as an item of state.
pub fn reg(id: u64) -> Option<&'static Reg> {
    let at = REGS.partition_point(|r| r.id <= id).checked_sub(1)?;
    let found = &REGS[at];
    (id <= found.last.unwrap_or(found.id)).then_some(found)
}

/// The capability with this number on this architecture (`x86_64`, `aarch64`).
pub fn capability(cap: u32, arch: &str) -> Option<&'static Capability> {
    let first = CAPABILITIES.partition_point(|c| c.cap < cap);
    CAPABILITIES[first..].iter().take_while(|c| c.cap == cap).find(|c| c.arch.is_empty() || c.arch == arch)
}

/// The facet of this name that is not a word.
pub fn choice(name: &str) -> Option<&'static Choice> {
    CHOICES.binary_search_by(|c| c.name.cmp(name)).ok().map(|i| &CHOICES[i])
}

/// The register of this name, and the field, when the name is a field's.
pub fn register(name: &str) -> Option<(&'static Register, Option<&'static Field>)> {
    REGISTERS.iter().find_map(|r| {
        let rest = name.strip_prefix(r.name)?;
        if rest.is_empty() {
            return Some((r, None));
        }
        let field = rest.strip_prefix('.')?;
        r.fields.iter().find(|f| f.name == field).map(|f| (r, Some(f)))
    })
}

/// The fields that enumerate an MSR or a hypercall behind a gate, for `msr.4b564d02` or `hypercall.b`.
pub fn enumerated_by(what: &str) -> impl Iterator<Item = (&'static Register, &'static Field)> {
    let number = |t: &str| u32::from_str_radix(t, 16).ok();
    let mine = what.strip_prefix("msr.").and_then(number);
    let covers = move |reached: &str| {
        reached == what
            || reached.strip_prefix("msr.").and_then(|run| run.split_once('-')).is_some_and(
                |(first, last)| {
                    number(first).zip(number(last)).zip(mine).is_some_and(|((a, b), n)| (a..=b).contains(&n))
                },
            )
    };
    let all =
        REGISTERS.iter().filter(|r| !r.gate.is_empty()).flat_map(|r| r.fields.iter().map(move |f| (r, f)));
    all.filter(move |(_, f)| f.reaches.iter().any(|reached| covers(reached)))
}

/// The group of state of this name.
pub fn section(name: &str) -> Option<&'static Section> {
    SECTIONS.iter().find(|s| s.name == name)
}

/// The gap with this id: state that KVM cannot save.
pub fn gap(id: &str) -> Option<&'static Gap> {
    GAPS.iter().find(|g| g.id == id)
}

/// The ledger entry with this id, in any letter case.
pub fn change(id: &str) -> Option<&'static Change> {
    CHANGES.iter().find(|c| c.id.eq_ignore_ascii_case(id))
}

/// The finding's code of this name.
pub fn code(name: &str) -> Option<&'static Code> {
    CODES.iter().find(|c| c.code == name)
}

/// The measurement of this name.
pub fn measurement(name: &str) -> Option<&'static Measurement> {
    MEASUREMENTS.binary_search_by(|m| m.name.cmp(name)).ok().map(|i| &MEASUREMENTS[i])
}

/// The ioctl of this name.
pub fn ioctl(name: &str) -> Option<&'static Ioctl> {
    IOCTLS.binary_search_by(|i| i.name.cmp(name)).ok().map(|i| &IOCTLS[i])
}

/// The module parameter of this name: `kvm_intel.nested`.
pub fn parameter(name: &str) -> Option<&'static Parameter> {
    PARAMETERS.binary_search_by(|p| p.name.cmp(name)).ok().map(|i| &PARAMETERS[i])
}

/// Why no guest can notice this name of the headers, when the catalog says so.
pub fn not_guest_visible(name: &str) -> Option<&'static NotGuestVisible> {
    NOT_GUEST_VISIBLE.iter().find(|n| n.names.contains(&name))
}
