//! Nothing of a guest's state is forgotten: whatever the headers have that reads or sets state is saved by a group of state
//! that has a name, remembered in the manifest, or listed as not saved with the reason. Something new in the headers fails.

use std::collections::{BTreeMap, BTreeSet};

use evenkeel_catalog::{
    DEVICE_ATTRIBUTES, IOCTLS, REGISTER_CLASSES, REGISTERS, REGS, not_guest_visible, section,
};

use crate::header;
use crate::headers::{Define, Defines};

/// The headers are those that the catalog was last brought up to: everything in it is there, and is counted.
const NEWEST: bool = cfg!(uapi_newest);

/// How each of a kind of things is accounted for.
#[derive(Default)]
struct Account {
    saved: usize,
    remembered: usize,
    unsaved: usize,
    elsewhere: usize,
    missing: Vec<String>,
}

impl Account {
    fn count(&mut self, name: &str, entry: Option<(&[&str], &str)>) {
        match entry {
            Some((items, _)) if !items.is_empty() => {
                // What no ioctl reads is kept in the manifest; memory is copied.
                let read = |i: &&str| section(i).is_some_and(|s| !["manifest", "memory"].contains(&s.cut));
                if items.iter().any(read) { self.saved += 1 } else { self.remembered += 1 }
            }
            Some((_, reason)) if !reason.is_empty() => self.unsaved += 1,
            None if not_guest_visible(name).is_some() => self.elsewhere += 1,
            _ => self.missing.push(name.to_owned()),
        }
    }

    /// Prints the account, and fails when something is missing.
    fn close(self, kind: &str, floor: usize) {
        let counted = self.saved + self.remembered + self.unsaved + self.elsewhere;
        println!(
            "{counted} of {} {kind}: {} saved, {} in the manifest or in memory, {} not saved and why, {} of others",
            counted + self.missing.len(),
            self.saved,
            self.remembered,
            self.unsaved,
            self.elsewhere
        );
        assert!(self.missing.is_empty(), "neither saved nor said why not: {:?}", self.missing);
        assert!(counted >= floor, "only {counted} {kind} were found in the headers");
    }
}

fn all() -> Defines {
    let mut all = header(option_env!("EVENKEEL_UAPI_KVM"));
    all.extend(header(option_env!("EVENKEEL_UAPI_X86")));
    all.extend(header(option_env!("EVENKEEL_UAPI_ARM64")));
    all
}

#[test]
#[cfg_attr(not(uapi), ignore = "no KVM headers: install linux-libc-dev or set EVENKEEL_UAPI")]
fn every_ioctl_is_saved_or_says_why_not() {
    let defines = header(option_env!("EVENKEEL_UAPI_KVM"));
    let known: BTreeMap<&str, (&[&str], &str)> =
        IOCTLS.iter().map(|i| (i.name, (i.items, i.unsaved))).collect();
    let (mut every, mut pairs) = (Account::default(), Account::default());
    for name in defines.iter().filter(|(_, d)| matches!(d, Define::Ioctl(_))).map(|(name, _)| name) {
        every.count(name, known.get(name.as_str()).copied());
        if name.contains("_GET_") || name.contains("_SET_") {
            pairs.count(name, known.get(name.as_str()).copied());
        }
    }
    pairs.close("ioctls that get or set", 60);
    every.close("ioctls", 130);
}

#[test]
#[cfg_attr(
    not(all(uapi, uapi_x86, uapi_arm64)),
    ignore = "no KVM headers of both architectures: set EVENKEEL_UAPI to an unpacked linux-libc-dev of 6.12 or later"
)]
fn every_group_of_attributes_is_saved_or_says_why_not() {
    let defines = all();
    let group = |name: &str| {
        let control = ["KVM_ARM_VCPU_", "KVM_ARM_VM_", "KVM_VCPU_"].iter().any(|p| name.starts_with(p));
        name.contains("_GRP_") || (control && name.ends_with("_CTRL")) || name == "KVM_DEV_VFIO_FILE"
    };
    let mut groups = Account::default();
    let mut attributes = Account::default();
    for name in defines.keys().filter(|name| group(name)) {
        let of: Vec<_> = DEVICE_ATTRIBUTES.iter().filter(|a| a.group == name).collect();
        let items: Vec<&str> = of.iter().flat_map(|a| a.items).copied().collect();
        let reason = of.first().map_or("", |a| a.unsaved);
        groups.count(name, (!of.is_empty()).then_some((items.as_slice(), reason)));
        for a in of {
            let shown = if a.attr.is_empty() { name } else { a.attr };
            attributes.count(shown, Some((a.items, a.unsaved)));
        }
    }
    groups.close("groups of device attributes", if NEWEST { 18 } else { 12 });
    attributes.close("device attributes of these groups", if NEWEST { 39 } else { 25 });
    // Xen's are passed by ioctls of their own, and 5.10 has none of them.
    let mut xen = Account::default();
    let wanted = |name: &&String| {
        ["KVM_XEN_ATTR_TYPE_", "KVM_XEN_VCPU_ATTR_TYPE_"].iter().any(|prefix| name.starts_with(prefix))
    };
    for name in defines.keys().filter(wanted) {
        let of = DEVICE_ATTRIBUTES.iter().find(|a| a.attr == name);
        xen.count(name, of.map(|a| (a.items, a.unsaved)));
    }
    xen.close("attributes of Xen", if NEWEST { 17 } else { 0 });
}

#[test]
#[cfg_attr(
    not(all(uapi, uapi_x86, uapi_arm64)),
    ignore = "no KVM headers of both architectures: set EVENKEEL_UAPI to an unpacked linux-libc-dev of 6.12 or later"
)]
fn every_class_of_registers_is_saved_or_says_why_not() {
    let defines = all();
    let mut account = Account::default();
    for (name, define) in &defines {
        let value = match define {
            Define::Class(value) => *value,
            Define::Number(value) if name.starts_with("KVM_X86_REG_TYPE_") => *value,
            _ => continue,
        };
        let class = REGISTER_CLASSES.iter().find(|c| c.name == name);
        assert!(class.is_none_or(|c| c.value == value), "{name} is {value:#x} in the headers");
        account.count(name, class.map(|c| (c.items, c.unsaved)));
    }
    // Before 6.18 x86 had none.
    account.close("classes of registers", if NEWEST { 8 } else { 5 });
}

#[test]
fn every_register_is_of_a_class_that_is_saved() {
    let classes: BTreeSet<u64> =
        REGISTER_CLASSES.iter().filter(|c| c.arch == "aarch64").map(|c| c.value).collect();
    let ids = REGS.iter().map(|r| r.id).chain(REGISTERS.iter().filter_map(|r| r.at.reg));
    let (mut count, mut strange) = (0, Vec::new());
    for id in ids {
        count += 1;
        if !classes.contains(&(id >> 16 & 0xffff & 0xfff)) {
            strange.push(format!("{id:#x}"));
        }
    }
    println!("{} of {count} known registers are of a class that is saved", count - strange.len());
    assert!(strange.is_empty(), "{strange:?}");
}

#[test]
#[cfg_attr(not(uapi_para), ignore = "no asm/kvm_para.h of x86: install linux-libc-dev or set EVENKEEL_UAPI")]
fn every_msr_of_kvm_is_known() {
    let defines = header(option_env!("EVENKEEL_UAPI_PARA"));
    let found: Vec<(&str, u64)> = defines
        .iter()
        .filter(|(name, _)| name.starts_with("MSR_KVM_"))
        .filter_map(|(name, define)| match define {
            Define::Number(n) => Some((name.as_str(), *n)),
            _ => None,
        })
        .collect();
    let unknown: Vec<_> = found
        .iter()
        .filter(|(_, n)| u32::try_from(*n).ok().and_then(evenkeel_catalog::msr).is_none())
        .collect();
    println!("{} of {} MSRs of KVM are known", found.len() - unknown.len(), found.len());
    assert!(unknown.is_empty(), "{unknown:?}");
    assert!(found.len() >= 8);
}
