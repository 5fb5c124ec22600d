//! What must hold of the entries for KVM's interface: ioctls, attributes, flags, parameters.

use std::collections::BTreeSet;

use crate::{Data, Guest};

/// Appends a line for each rule that `data` breaks. `facet` and `item` tell what the rest of the catalog has.
pub fn check(
    data: &Data,
    facet: impl Fn(&str) -> bool,
    item: impl Fn(&str) -> bool,
    problems: &mut Vec<String>,
) {
    // A name of the headers stands for one thing, so it has one entry in all the tables together.
    let mut names = BTreeSet::new();
    let mut once = |name: &str, problems: &mut Vec<String>| {
        if name.is_empty() {
            problems.push("an entry of the interface has no name".to_owned());
        } else if !names.insert(name.to_owned()) {
            problems.push(format!("`{name}` is there twice"));
        }
    };
    let entry = |name: &str, arch: &str, guest: Guest, why: &str, problems: &mut Vec<String>| {
        if !["", "x86_64", "aarch64"].contains(&arch) {
            problems.push(format!("`{name}`: `{arch}` is no architecture"));
        }
        if why.is_empty() {
            let what =
                if guest == Guest::Yes { "what a guest notices" } else { "why a guest does not notice" };
            problems.push(format!("`{name}` does not say {what}"));
        }
    };
    let items = |name: &str, named: &[String], problems: &mut Vec<String>| {
        for missing in named.iter().filter(|i| !item(i)) {
            problems.push(format!("`{name}`: `{missing}` is no state item"));
        }
    };
    let saved = |name: &str, items: &[String], unsaved: &str, problems: &mut Vec<String>| {
        if items.is_empty() == unsaved.is_empty() {
            problems.push(format!("`{name}`: it is saved as a group of state, or says in `unsaved` why not"));
        }
    };
    for i in &data.ioctl {
        saved(&i.name, &i.items.0, &i.unsaved, problems);
        once(&i.name, problems);
        entry(&i.name, &i.arch, i.guest, &i.why, problems);
        items(&i.name, &i.items.0, problems);
        if i.fd.is_empty() || i.nr > 0xff {
            problems.push(format!("`{}`: on which descriptor, and is {:#x} its number?", i.name, i.nr));
        }
    }
    let mut groups = BTreeSet::new();
    for a in &data.device_attribute {
        let name = if a.attr.is_empty() { &a.group } else { &a.attr };
        // Two kinds of interrupt controllers have attributes of one name, each in a line of its own group.
        if !groups.insert((a.group.clone(), a.attr.clone())) {
            problems.push(format!("attribute `{name}` of `{}` is there twice", a.group));
        }
        if a.group.is_empty() {
            problems.push(format!("attribute `{name}` has no group"));
        }
        entry(name, &a.arch, a.guest, &a.why, problems);
        items(name, &a.items.0, problems);
        saved(name, &a.items.0, &a.unsaved, problems);
    }
    // Their names are also among those that no guest notices by themselves.
    for c in &data.register_class {
        if data.register_class.iter().filter(|o| o.name == c.name).count() != 1 {
            problems.push(format!("class `{}` is there twice", c.name));
        }
        entry(&c.name, &c.arch, Guest::Yes, &c.why, problems);
        items(&c.name, &c.items.0, problems);
        saved(&c.name, &c.items.0, &c.unsaved, problems);
    }
    for f in &data.flag {
        once(&f.name, problems);
        entry(&f.name, &f.arch, f.guest, &f.why, problems);
        if !f.facet.is_empty() && !facet(&f.facet) {
            problems.push(format!("`{}`: `{}` is no facet", f.name, f.facet));
        }
        if f.of.is_empty() {
            problems.push(format!("`{}`: nothing takes it", f.name));
        }
    }
    for p in &data.parameter {
        once(&p.name, problems);
        entry(&p.name, &p.arch, p.guest, &p.effect, problems);
        if !["bool", "int", "uint", "ushort", "words"].contains(&p.kind.as_str()) {
            problems.push(format!("`{}`: `{}` is no type of a parameter", p.name, p.kind));
        }
    }
    let capabilities: BTreeSet<&str> = data.capability.iter().map(|c| c.name.as_str()).collect();
    for n in &data.not_guest_visible {
        if n.reason.is_empty() {
            problems.push(format!("{:?}: without a reason", n.names));
        }
        for name in &n.names.0 {
            once(name, problems);
            if capabilities.contains(name.as_str()) {
                problems.push(format!("`{name}` is a capability with an entry, and said not to be visible"));
            }
        }
    }
}
