//! How many facts of each sort the catalog holds: printed for people, with floors under the numbers. The floors are what
//! reading KVM of 5.10 to 7.3 on both architectures has found; a number below its floor means that facts got lost.
#![allow(clippy::print_stdout, reason = "the counts are what this test is for")]

use std::collections::BTreeMap;

use evenkeel_catalog::{
    Arch, CAPABILITIES, CHOICES, DEVICE_ATTRIBUTES, FLAGS, Field, IOCTLS, MSRS, PARAMETERS, REGISTERS, REGS,
    Register, SECTIONS,
};

/// Prints a count and remembers it when it lies below its floor.
struct Counts(Vec<String>);

impl Counts {
    fn at_least(&mut self, floor: usize, what: &str, count: usize) {
        println!("{count:>6} {what}");
        if count < floor {
            self.0.push(format!("{count} {what}, and {floor} are known"));
        }
    }

    fn done(self) {
        assert!(self.0.is_empty(), "the catalog has lost facts: {:#?}", self.0);
    }
}

fn of(arch: &str, wanted: &str) -> bool {
    arch.is_empty() || arch == wanted
}

fn fields(of: impl Fn(&Register) -> bool) -> impl Iterator<Item = &'static Field> {
    REGISTERS.iter().filter(move |r| of(r)).flat_map(|r| r.fields)
}

fn flags(of: &str) -> usize {
    FLAGS.iter().filter(|f| f.of == of).count()
}

fn attributes(arch: &str, groups: &str) -> usize {
    DEVICE_ATTRIBUTES.iter().filter(|a| of(a.arch, arch) && a.group.starts_with(groups)).count()
}

#[test]
fn x86() {
    let mut counts = Counts(Vec::new());
    let c = &mut counts;
    c.at_least(128, "capabilities", CAPABILITIES.iter().filter(|c| of(c.arch, "x86_64")).count());
    c.at_least(12, "quirks", CHOICES.iter().filter(|c| c.name.starts_with("x86.quirk.")).count());
    c.at_least(12, "flags of quirks", flags("KVM_CAP_DISABLE_QUIRKS2"));
    c.at_least(4, "flags of X2APIC_API", flags("KVM_CAP_X2APIC_API"));
    c.at_least(5, "flags of DISABLE_EXITS", flags("KVM_CAP_X86_DISABLE_EXITS"));

    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for f in fields(|r| r.at.leaf.is_some() && r.at.table.is_empty()) {
        *kinds.entry(format!("{:?}", f.kind)).or_default() += 1;
    }
    // The 274 bits that KVM decides on one by one (arch/x86/kvm/cpuid.c), by what it does.
    let known = [
        ("HardwareAndKernel", 229),
        ("Vendor", 25),
        ("Synthesized", 8),
        ("Emulated", 7),
        ("Runtime", 3),
        ("Passthrough", 2),
    ];
    assert_eq!(known.iter().map(|k| k.1).sum::<usize>(), 274);
    for (kind, floor) in known {
        c.at_least(floor, &format!("CPUID bits of kind {kind}"), kinds.get(kind).copied().unwrap_or(0));
    }
    c.at_least(
        18,
        "bits of KVM's paravirtual interface",
        fields(|r| r.name == "cpuid.40000001.0.eax").count(),
    );
    c.at_least(60, "bits and numbers of Hyper-V's leaves", fields(|r| r.at.table == "hyperv").count());
    let reaching =
        |table: &str| fields(move |r| r.at.table == table).filter(|f| !f.reaches.is_empty()).count();
    c.at_least(10, "bits of KVM that enumerate what works without them", reaching(""));
    c.at_least(20, "bits of Hyper-V that do", reaching("hyperv"));

    let mut classes: BTreeMap<String, usize> = BTreeMap::new();
    for m in MSRS {
        *classes.entry(format!("{:?}", m.class)).or_default() +=
            (m.last.unwrap_or(m.msr) - m.msr + 1) as usize;
    }
    for (class, floor) in [
        ("State", 33),
        ("Feature", 23),
        ("Pmu", 68),
        ("Pv", 10),
        ("Hyperv", 58),
        ("MachineCheck", 164),
        ("Debug", 6),
        ("Cet", 7),
        ("Mtrr", 29),
        ("Apic", 65),
        ("Nested", 3),
        ("Trace", 13),
        ("Power", 2),
    ] {
        c.at_least(floor, &format!("MSRs of class {class}"), classes.get(class).copied().unwrap_or(0));
    }
    c.at_least(23, "feature MSRs as words", REGISTERS.iter().filter(|r| r.at.msr.is_some()).count());
    let vmx = |r: &Register| r.at.msr.is_some_and(|m| (0x480..=0x491).contains(&m));
    c.at_least(150, "fields of VMX MSRs", fields(vmx).count());
    // Xen's vCPU and VM attributes, SEV's, TSC offset and XSAVE components.
    c.at_least(22, "device attributes", attributes("x86_64", "KVM_X") + attributes("x86_64", "KVM_VCPU"));
    c.at_least(
        3,
        "facets of machine checks",
        CHOICES.iter().filter(|c| c.name.starts_with("x86.mce.")).count(),
    );
    // MSRs, the paravirtual ones among them, are items one by one.
    c.at_least(24, "groups of state", SECTIONS.iter().filter(|s| s.arch == Arch::X86_64).count());
    c.at_least(86, "module parameters", PARAMETERS.iter().filter(|p| of(p.arch, "x86_64")).count());
    counts.done();
}

#[test]
fn arm64() {
    let mut counts = Counts(Vec::new());
    let c = &mut counts;
    c.at_least(72, "capabilities", CAPABILITIES.iter().filter(|c| of(c.arch, "aarch64")).count());
    c.at_least(10, "vCPU features", flags("KVM_ARM_VCPU_INIT"));
    let id = |r: &Register| r.at.reg.is_some_and(|id| id >> 16 & 0xfff == 0x13);
    c.at_least(61, "ID registers", REGISTERS.iter().filter(|r| id(r)).count());
    c.at_least(380, "fields of ID registers, with their safe direction", fields(id).count());
    c.at_least(13, "of which signed", fields(id).filter(|f| f.signed).count());
    // The version of PSCI is a choice; the others are words.
    let firmware = |id: u64| [0x14, 0x16].contains(&(id >> 16 & 0xfff));
    let words = REGISTERS.iter().filter(|r| r.at.reg.is_some_and(firmware)).count();
    let choices = CHOICES.iter().filter(|c| c.name == "arm64.psci.version").count();
    c.at_least(8, "firmware registers", words + choices);
    let count = |groups: &str| attributes("aarch64", groups);
    c.at_least(21, "attributes of the vGIC and the ITS", count("KVM_DEV_ARM_"));
    c.at_least(5, "attributes of the PMU", count("KVM_ARM_VCPU_PMU_V3_CTRL"));
    c.at_least(4, "interrupts of the timers", count("KVM_ARM_VCPU_TIMER_CTRL"));
    c.at_least(1, "attributes of stolen time", count("KVM_ARM_VCPU_PVTIME_CTRL"));
    c.at_least(1, "filters of firmware calls", count("KVM_ARM_VM_SMCCC_CTRL"));
    let choice = |name: &str| CHOICES.iter().filter(|c| c.name == name).count();
    c.at_least(2, "facets of RAS", CHOICES.iter().filter(|c| c.name.starts_with("arm64.ras.")).count());
    c.at_least(1, "revisions of the vGIC", choice("arm64.vgic.iidr"));
    c.at_least(1, "widths of guest physical addresses", choice("arm64.ipa-size"));
    let state: u64 = REGS.iter().map(|r| r.last.unwrap_or(r.id) - r.id + 1).sum();
    c.at_least(300, "registers as items of state", state as usize);
    c.at_least(20, "groups of state", SECTIONS.iter().filter(|s| s.arch == Arch::Aarch64).count());
    c.at_least(7, "parameters", PARAMETERS.iter().filter(|p| p.arch == "aarch64").count());
    c.at_least(90, "ioctls of both architectures", IOCTLS.len());
    counts.done();
}
