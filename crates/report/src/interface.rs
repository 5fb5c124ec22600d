//! What a name of KVM's headers, or a module parameter, means: ioctls, device attributes, flags, and why the rest of the
//! names are nowhere else.

use std::fmt::Write as _;

use evenkeel_catalog::{self as catalog, Guest};

use crate::style::{HEAD, WIDTH, paint, wrap};

fn guest(g: Guest) -> &'static str {
    match g {
        Guest::No => "a guest cannot notice",
        Guest::Indirect => "a guest can notice indirectly",
        Guest::Yes => "a guest can notice",
    }
}

/// Which kernels, in words; empty for all that were read.
fn kernels(since: &str, until: &str) -> String {
    match (since, until) {
        ("", "") => String::new(),
        (since, "") => format!("; since {since}"),
        ("", until) => format!("; until {until}"),
        (since, until) => format!("; {since} to {until}"),
    }
}

fn entry(name: &str, what: &str, sees: Guest, why: &str, kernels: &str) -> String {
    let text = format!("{}{kernels}. {why}", guest(sees));
    format!("{}: {what}\n  {}\n", paint(HEAD, name), wrap(&text, WIDTH, "      "))
}

/// The explanation of an ioctl, a device attribute, a flag, a module parameter or a name that has no entry of its own.
pub(crate) fn explain(name: &str) -> Option<String> {
    let mut out = String::new();
    if let Some(p) = catalog::parameter(name) {
        let what = format!("a parameter of KVM, {}", p.kind);
        out += &entry(p.name, &what, p.guest, p.effect, &kernels(p.since, p.until));
    }
    if let Some(i) = catalog::ioctl(name) {
        let fds: Vec<String> = i.fd.iter().map(|fd| format!("{fd:?}").to_lowercase()).collect();
        let what = format!("an ioctl of the {} (number {:#x})", fds.join(" and "), i.nr);
        out += &entry(i.name, &what, i.guest, i.why, &kernels(i.since, ""));
        if !i.items.is_empty() {
            let _ = writeln!(out, "  items of state: {}", i.items.join(", "));
        }
    }
    for a in
        catalog::DEVICE_ATTRIBUTES.iter().filter(|a| a.attr == name || (a.attr.is_empty() && a.group == name))
    {
        let what = format!(
            "an attribute of the {} (group {} {})",
            format!("{:?}", a.fd).to_lowercase(),
            a.group,
            a.group_number
        );
        out += &entry(name, &what, a.guest, a.why, &kernels(a.since, ""));
    }
    for f in catalog::FLAGS.iter().filter(|f| f.name == name) {
        out += &entry(f.name, &format!("{:#x} of {}", f.value, f.of), f.guest, f.why, &kernels(f.since, ""));
        if !f.facet.is_empty() {
            let _ = writeln!(out, "  selects a value of {}", f.facet);
        }
    }
    if out.is_empty() {
        let n = catalog::not_guest_visible(name)?;
        out =
            format!("{}: no guest can notice it\n  {}\n", paint(HEAD, name), wrap(n.reason, WIDTH, "      "));
    }
    Some(out)
}
