//! Every name in the kernel's headers that could matter to a guest is in the catalog, or listed as not visible to one
//! with a reason. EVENKEEL_UAPI names the headers to check, or else those of this machine are taken
//! (`../../build/headers.rs`).
#![allow(clippy::print_stdout, reason = "how much was extracted is part of the result")]

mod complete;
mod headers;

use std::collections::BTreeMap;

use evenkeel_catalog::{
    CAPABILITIES, CHOICES, DEVICE_ATTRIBUTES, FLAGS, Guest, IOCTLS, NOT_GUEST_VISIBLE, PARAMETERS, Parameter,
    not_guest_visible, parameter,
};
use headers::{Define, Defines};

/// What the catalog knows of a name: its numbers, as different tables may give the same one.
type Known = BTreeMap<&'static str, u64>;

fn capabilities() -> Known {
    CAPABILITIES.iter().map(|c| (c.name, u64::from(c.cap))).collect()
}

fn ioctls() -> Known {
    IOCTLS.iter().map(|i| (i.name, u64::from(i.nr))).collect()
}

/// Flags, device attributes and their groups. Groups that are ioctls have no number of their own.
fn flags_and_attributes() -> Known {
    let flags = FLAGS.iter().map(|f| (f.name, f.value));
    let attributes = DEVICE_ATTRIBUTES.iter().filter(|a| !a.attr.is_empty()).map(|a| (a.attr, a.value));
    let groups = DEVICE_ATTRIBUTES.iter().map(|a| (a.group, u64::from(a.group_number)));
    let ioctls = ioctls();
    flags.chain(attributes).chain(groups.filter(|(name, _)| !ioctls.contains_key(name))).collect()
}

/// Compares one class of names, prints the counts, and returns how many were found.
fn compare(class: &str, found: &BTreeMap<&str, Option<u64>>, known: &Known) -> usize {
    let mut problems = Vec::new();
    let (mut entries, mut listed) = (0, 0);
    for (name, value) in found {
        let shown = value.map_or("no plain number".to_owned(), |v| format!("{v:#x}"));
        match (known.get(name), not_guest_visible(name)) {
            (Some(number), None) => {
                entries += 1;
                if value.is_some_and(|v| v != *number) {
                    problems
                        .push(format!("{name} is {shown} in the headers, and {number:#x} in the catalog"));
                }
            }
            (None, Some(_)) => listed += 1,
            (Some(_), Some(_)) => problems.push(format!("{name} has an entry and is said not to be visible")),
            (None, None) => {
                problems
                    .push(format!("{name} ({shown}) is neither in the catalog nor said not to be visible"));
            }
        }
    }
    println!("{class}: {} in the headers, {entries} in the catalog, {listed} not guest-visible", found.len());
    assert!(problems.is_empty(), "{class}:\n  {}", problems.join("\n  "));
    found.len()
}

/// The names that `wanted` picks, ioctls and ways of cutting a number (`_SHIFT`, `_MASK`) left out.
fn picked<'a>(defines: &'a Defines, wanted: impl Fn(&str) -> bool) -> BTreeMap<&'a str, Option<u64>> {
    let cut = |name: &str| ["_SHIFT", "_MASK"].iter().any(|end| name.ends_with(end));
    let pick = |(name, define): (&'a String, &Define)| match define {
        Define::Ioctl(_) => None,
        _ if cut(name) || !wanted(name) => None,
        Define::Number(n) => Some((name.as_str(), Some(*n))),
        Define::Class(_) | Define::Other => Some((name.as_str(), None)),
    };
    defines.iter().filter_map(pick).collect()
}

/// How the names of flags begin that calls and capabilities take, in whichever header they are.
const FLAGS_OF_CALLS: &[&str] = &[
    "GUEST_MEMFD_FLAG_",
    "KVM_BUS_LOCK_DETECTION_",
    "KVM_CLOCK_",
    "KVM_CREATE_DEVICE_",
    "KVM_DIRTY_LOG_",
    "KVM_HYPERV_EVENTFD_",
    "KVM_MEMORY_ATTRIBUTE_",
    "KVM_MEM_",
    "KVM_MSR_EXIT_",
    "KVM_MSR_FILTER_",
    "KVM_PIT_",
    "KVM_PMU_CAP_",
    "KVM_PMU_EVENT_",
    "KVM_SREGS2_",
    "KVM_VM_TYPE_ARM_",
    "KVM_XEN_EVTCHN_",
    "KVM_XEN_HVM_CONFIG_",
];

fn starts(name: &str, prefixes: &[&str]) -> bool {
    prefixes.iter().any(|prefix| name.starts_with(prefix))
}

/// The header that the build script found, under this variable.
pub(crate) fn header(variable: Option<&str>) -> Defines {
    headers::read(variable.expect("the build script names the header when it lets this test run"))
}

#[test]
#[cfg_attr(not(uapi), ignore = "no KVM headers: install linux-libc-dev or set EVENKEEL_UAPI")]
fn every_capability_is_known() {
    let defines = header(option_env!("EVENKEEL_UAPI_KVM"));
    let found = picked(&defines, |name| name.starts_with("KVM_CAP_"));
    // 5.10 has 180 of them; fewer than that, and the extraction has missed some.
    assert!(compare("capabilities", &found, &capabilities()) >= 180);
}

#[test]
#[cfg_attr(not(uapi), ignore = "no KVM headers: install linux-libc-dev or set EVENKEEL_UAPI")]
fn every_ioctl_is_known() {
    let defines = header(option_env!("EVENKEEL_UAPI_KVM"));
    let found = defines.iter().filter_map(|(name, define)| match define {
        Define::Ioctl(n) => Some((name.as_str(), Some(u64::from(*n)))),
        _ => None,
    });
    assert!(compare("ioctls", &found.collect(), &ioctls()) >= 130);
}

#[test]
#[cfg_attr(not(uapi), ignore = "no KVM headers: install linux-libc-dev or set EVENKEEL_UAPI")]
fn every_flag_and_device_of_the_common_header_is_known() {
    let defines = header(option_env!("EVENKEEL_UAPI_KVM"));
    let found = picked(&defines, |name| {
        starts(name, &["KVM_DEV_", "KVM_X86_", "KVM_X2APIC_", "KVM_ARM_"]) || starts(name, FLAGS_OF_CALLS)
    });
    assert!(compare("flags and devices of linux/kvm.h", &found, &flags_and_attributes()) >= 20);
}

#[test]
#[cfg_attr(
    not(all(uapi, uapi_x86)),
    ignore = "no KVM headers for x86: install linux-libc-dev or set EVENKEEL_UAPI"
)]
fn every_quirk_flag_and_attribute_of_x86_is_known() {
    let mut defines = header(option_env!("EVENKEEL_UAPI_X86"));
    // Some names of x86 were in the common header up to 6.1.
    defines.extend(header(option_env!("EVENKEEL_UAPI_KVM")));
    let known = flags_and_attributes();
    let quirks = picked(&defines, |name| name.starts_with("KVM_X86_QUIRK_"));
    assert!(compare("quirks of x86", &quirks, &known) >= 5);
    let apic = picked(&defines, |name| name.starts_with("KVM_X2APIC_"));
    assert!(compare("flags of x2APIC", &apic, &known) >= 2);
    let found = picked(&defines, |name| {
        starts(name, &["KVM_X86_", "KVM_VCPU_", "KVM_DEV_", "KVM_XEN_ATTR_TYPE_", "KVM_XEN_VCPU_ATTR_TYPE_"])
            || starts(name, FLAGS_OF_CALLS)
    });
    assert!(compare("types, attributes and flags of x86", &found, &known) >= 2);
}

#[test]
#[cfg_attr(
    not(uapi_arm64),
    ignore = "no KVM headers for arm64: install linux-libc-dev-arm64-cross, or set EVENKEEL_UAPI to an unpacked linux-libc-dev of 6.12 or later"
)]
fn every_feature_and_attribute_of_arm64_is_known() {
    let defines = header(option_env!("EVENKEEL_UAPI_ARM64"));
    let found = picked(&defines, |name| {
        // KVM_ARM64_* are sizes of vector state in ONE_REG ids.
        starts(name, &["KVM_DEV_", "KVM_VCPU_", "KVM_ARM_", "KVM_PMU_EVENT_", "VGIC_LEVEL_INFO_"])
            || (name.starts_with("KVM_VGIC_") && name.contains("_ADDR_TYPE"))
    });
    assert!(compare("features and attributes of arm64", &found, &flags_and_attributes()) >= 50);
}

#[test]
#[cfg_attr(
    not(all(uapi_newest, uapi, uapi_x86, uapi_arm64)),
    ignore = "the headers are older than the catalog, or not all here: set EVENKEEL_UAPI to an unpacked linux-libc-dev of 7.3 or later"
)]
fn every_name_of_the_catalog_is_in_the_newest_headers() {
    let mut all = header(option_env!("EVENKEEL_UAPI_KVM"));
    all.extend(header(option_env!("EVENKEEL_UAPI_X86")));
    all.extend(header(option_env!("EVENKEEL_UAPI_ARM64")));
    let names =
        [capabilities(), ioctls(), flags_and_attributes()].into_iter().flatten().map(|(name, _)| name);
    let unknown: Vec<&str> = names.filter(|name| !all.contains_key(*name)).collect();
    assert!(unknown.is_empty(), "no header has {unknown:?}");
}

#[test]
fn flags_of_quirks_lead_to_their_choices() {
    for quirk in CHOICES.iter().filter(|c| c.name.starts_with("x86.quirk.")) {
        assert!(FLAGS.iter().any(|f| f.facet == quirk.name), "no flag leads to {}", quirk.name);
    }
    let reasons = NOT_GUEST_VISIBLE.iter().map(|n| n.names.len()).sum::<usize>();
    assert!(reasons >= 100, "only {reasons} names are said not to be visible");
}

#[test]
fn parameters_of_the_modules_are_all_there() {
    let (arm64, modules): (Vec<_>, Vec<_>) = PARAMETERS.iter().partition(|p| p.name.starts_with("kvm-arm."));
    for guest in [Guest::No, Guest::Indirect, Guest::Yes] {
        let of = |list: &[&Parameter]| list.iter().filter(|p| p.guest == guest).count();
        println!("guest-visible {guest:?}: {} of the modules, {} of arm64", of(&modules), of(&arm64));
    }
    // What the sources of 5.10 to 7.3 have; those that went away stay known.
    assert!(modules.len() >= 86 && arm64.len() >= 7, "{} and {}", modules.len(), arm64.len());
    assert!(PARAMETERS.iter().all(|p| parameter(p.name).is_some_and(|found| found.effect == p.effect)));
}
