//! Reads `data/`, checks it, and turns it into constants. Whatever the checks find stops the build with the file's
//! name: a catalog that contradicts itself is never compiled in.

mod check;
mod headers;
mod interface;
mod knobs;
pub mod layouts;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

use serde::Deserialize;

/// Text, as the build script holds it.
pub type Str = String;

/// A list that prints as a static slice does in Rust source.
#[derive(Clone, Default, Deserialize)]
#[serde(transparent)]
pub struct List<T>(pub Vec<T>);

impl<T: std::fmt::Debug> std::fmt::Debug for List<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("&")?;
        f.debug_list().entries(&self.0).finish()
    }
}

impl<T> std::ops::Deref for List<T> {
    type Target = Vec<T>;
    fn deref(&self) -> &Vec<T> {
        &self.0
    }
}

macro_rules! record {
    ($($item:item)*) => { $(
        #[derive(Clone, Debug, Default, Deserialize)]
        #[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
        $item
    )* };
}
macro_rules! names {
    ($($(#[$meta:meta])* pub enum $name:ident { $($(#[$vmeta:meta])* $variant:ident,)* })*) => { $(
        $(#[$meta])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum $name { $($(#[$vmeta])* $variant,)* }

        /// As Rust source: variants of several enums share names.
        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(match self { $(Self::$variant => concat!(stringify!($name), "::", stringify!($variant)),)* })
            }
        }
    )* };
}

#[allow(dead_code)]
mod model {
    use super::*;
    include!("../src/model.rs");
    include!("../src/items.rs");
    include!("../src/interface.rs");
    include!("../src/knobs.rs");
}
pub use model::*;

/// Everything in `data/`.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Data {
    register: Vec<Register>,
    choice: Vec<Choice>,
    knob: Vec<Knob>,
    reading: Vec<Reading>,
    duty: Vec<Duty>,
    msr: Vec<Msr>,
    reg: Vec<Reg>,
    section: Vec<Section>,
    gap: Vec<Gap>,
    translator: Vec<Translator>,
    time: Vec<Time>,
    layout: Vec<layouts::Layout>,
    structure: Vec<layouts::Structure>,
    edge: Vec<Edge>,
    capability: Vec<Capability>,
    measurement: Vec<Measurement>,
    constraint: Vec<Constraint>,
    code: Vec<Code>,
    ioctl: Vec<Ioctl>,
    device_attribute: Vec<DeviceAttribute>,
    register_class: Vec<RegisterClass>,
    flag: Vec<Flag>,
    parameter: Vec<Parameter>,
    not_guest_visible: Vec<NotGuestVisible>,
    #[serde(skip)]
    change: Vec<Change>,
}

fn toml_files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(dir)
        .unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
        .map(|entry| entry.expect("directory entry").path())
        .filter(|path| path.extension().is_some_and(|e| e == "toml"))
        .collect();
    files.sort();
    files
}

fn main() {
    println!("cargo::rerun-if-changed=data");
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-changed=src/model.rs");
    println!("cargo::rerun-if-changed=src/items.rs");
    println!("cargo::rerun-if-changed=src/interface.rs");
    println!("cargo::rerun-if-changed=src/knobs.rs");
    headers::tell();
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let mut all = Data::default();
    let mut problems = Vec::new();
    let read = |path: &Path| fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let folders = ["data/x86", "data/arm64", "data/interface", "data"];
    for path in folders.iter().flat_map(|folder| toml_files(&root.join(folder))) {
        match toml::from_str::<Data>(&read(&path)) {
            Ok(mut data) => {
                all.register.append(&mut data.register);
                all.choice.append(&mut data.choice);
                all.knob.append(&mut data.knob);
                all.reading.append(&mut data.reading);
                all.duty.append(&mut data.duty);
                all.msr.append(&mut data.msr);
                all.reg.append(&mut data.reg);
                all.section.append(&mut data.section);
                all.gap.append(&mut data.gap);
                all.translator.append(&mut data.translator);
                all.time.append(&mut data.time);
                all.layout.append(&mut data.layout);
                all.structure.append(&mut data.structure);
                all.edge.append(&mut data.edge);
                all.capability.append(&mut data.capability);
                all.measurement.append(&mut data.measurement);
                all.constraint.append(&mut data.constraint);
                all.code.append(&mut data.code);
                all.ioctl.append(&mut data.ioctl);
                all.device_attribute.append(&mut data.device_attribute);
                all.register_class.append(&mut data.register_class);
                all.flag.append(&mut data.flag);
                all.parameter.append(&mut data.parameter);
                all.not_guest_visible.append(&mut data.not_guest_visible);
            }
            Err(e) => problems.push(format!("{}: {e}", path.display())),
        }
    }
    for path in toml_files(&root.join("data/ledger")) {
        match toml::from_str::<Change>(&read(&path)) {
            Ok(change) => {
                let stem = path.file_stem().unwrap_or_default().to_string_lossy();
                if change.id != stem {
                    problems.push(format!("{}: its id is `{}`", path.display(), change.id));
                }
                all.change.push(change);
            }
            Err(e) => problems.push(format!("{}: {e}", path.display())),
        }
    }
    let arch_order = |a: Arch| a == Arch::Aarch64;
    all.register.sort_by_key(|r| {
        (
            r.at.reg,
            r.at.msr,
            r.at.table.clone(),
            r.at.leaf,
            r.at.subleaf_last.is_some(),
            r.at.subleaf,
            r.at.register.clone(),
        )
    });
    all.choice.sort_by(|a, b| a.name.cmp(&b.name));
    all.knob.sort_by(|a, b| a.name.cmp(&b.name));
    all.reading.sort_by(|a, b| a.choice.cmp(&b.choice));
    all.duty.sort_by(|a, b| (&a.choice, a.value).cmp(&(&b.choice, b.value)));
    all.msr.sort_by_key(|m| m.msr);
    all.reg.sort_by_key(|r| r.id);
    all.section.sort_by_key(|s| (arch_order(s.arch), s.name.clone()));
    all.gap.sort_by(|a, b| a.id.cmp(&b.id));
    all.translator.sort_by(|a, b| a.id.cmp(&b.id));
    all.capability.sort_by_key(|c| (c.cap, c.arch.clone()));
    all.measurement.sort_by(|a, b| a.name.cmp(&b.name));
    all.code.sort_by(|a, b| a.code.cmp(&b.code));
    all.change.sort_by(|a, b| a.id.cmp(&b.id));
    all.ioctl.sort_by(|a, b| a.name.cmp(&b.name));
    all.flag.sort_by(|a, b| a.name.cmp(&b.name));
    all.parameter.sort_by(|a, b| a.name.cmp(&b.name));
    all.time.sort_by(|a, b| a.of.cmp(&b.of));
    layouts::lay_out(&mut all, &mut problems);
    check::check(&all, &mut problems);
    layouts::check(&all, &mut problems);
    if !problems.is_empty() {
        for problem in &problems {
            println!("cargo::error={}", problem.replace('\n', "  "));
        }
        std::process::exit(1);
    }

    let mut out = String::new();
    emit(
        &mut out,
        "REGISTERS",
        "Register",
        "All registers of facets, ascending by where they are.",
        &all.register,
    );
    emit(&mut out, "CHOICES", "Choice", "All facets that are not words, ascending by name.", &all.choice);
    emit(
        &mut out,
        "KNOBS",
        "Knob",
        "All ioctls that select values of choices, ascending by name.",
        &all.knob,
    );
    emit(
        &mut out,
        "READINGS",
        "Reading",
        "How ioctls show values of choices, ascending by choice.",
        &all.reading,
    );
    emit(&mut out, "DUTIES", "Duty", "What values need from a VMM, ascending by choice.", &all.duty);
    emit(&mut out, "MSRS", "Msr", "All MSRs known as items of state, ascending by number.", &all.msr);
    emit(
        &mut out,
        "REGS",
        "Reg",
        "All ONE_REG registers known as items of state, ascending by id.",
        &all.reg,
    );
    emit(
        &mut out,
        "SECTIONS",
        "Section",
        "All groups of state with an ioctl pair of their own.",
        &all.section,
    );
    emit(&mut out, "GAPS", "Gap", "State that KVM cannot save, ascending by id.", &all.gap);
    emit(
        &mut out,
        "TRANSLATORS",
        "Translator",
        "Rewrites of saved state that lose nothing.",
        &all.translator,
    );
    emit(&mut out, "TIMES", "Time", "The quantities of time among items of state, ascending.", &all.time);
    emit(&mut out, "EDGES", "Edge", "What must come before what, when state is saved or set.", &all.edge);
    emit(
        &mut out,
        "CAPABILITIES",
        "Capability",
        "All capabilities known by name, ascending by number.",
        &all.capability,
    );
    emit(
        &mut out,
        "MEASUREMENTS",
        "Measurement",
        "All measurements that captures make, ascending by name.",
        &all.measurement,
    );
    emit(&mut out, "CONSTRAINTS", "Constraint", "What cannot be chosen apart.", &all.constraint);
    emit(&mut out, "CODES", "Code", "The codes of findings, ascending.", &all.code);
    emit(&mut out, "IOCTLS", "Ioctl", "The ioctls of x86 and arm64, ascending by name.", &all.ioctl);
    emit(
        &mut out,
        "DEVICE_ATTRIBUTES",
        "DeviceAttribute",
        "The device attributes of x86 and arm64.",
        &all.device_attribute,
    );
    emit(
        &mut out,
        "REGISTER_CLASSES",
        "RegisterClass",
        "The classes of registers of x86 and arm64.",
        &all.register_class,
    );
    emit(&mut out, "FLAGS", "Flag", "What ioctls and capabilities take, ascending by name.", &all.flag);
    emit(&mut out, "PARAMETERS", "Parameter", "The parameters of KVM, ascending by name.", &all.parameter);
    emit(
        &mut out,
        "NOT_GUEST_VISIBLE",
        "NotGuestVisible",
        "What the headers name and no x86 or arm64 guest can notice.",
        &all.not_guest_visible,
    );
    emit(&mut out, "CHANGES", "Change", "The ledger, ascending by id.", &all.change);
    let path = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("data.rs");
    fs::write(&path, out).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

fn emit<T: std::fmt::Debug>(out: &mut String, name: &str, ty: &str, doc: &str, items: &[T]) {
    writeln!(out, "/// {doc}\npub static {name}: &[{ty}] = &{items:?};").expect("a String takes everything");
}
