//! Readers of other people's data, and small surfaces, for tests.
#![allow(dead_code)] // each test uses a part

use std::collections::BTreeMap;
use std::path::PathBuf;

use evenkeel_contract::{Contract, Coord, Promise, Table, View};
use evenkeel_surface::*;
use serde_json::Value;

/// The folder with other people's data.
fn shared() -> PathBuf {
    std::env::var_os("EVENKEEL_SHARED")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared"), PathBuf::from)
}

fn number(text: &str) -> u64 {
    let text = text.trim();
    match (text.strip_prefix("0b"), text.strip_prefix("0x")) {
        (Some(bits), _) => bits.bytes().fold(0u64, |n, b| n << 1 | u64::from(b == b'1')),
        (_, Some(digits)) => u64::from_str_radix(digits, 16).unwrap(),
        _ => text.parse().unwrap(),
    }
}

/// Bits that are `x` in a template's bitmap.
fn open_bits(text: &str) -> u64 {
    text.trim_start_matches("0b").bytes().fold(0u64, |n, b| n << 1 | u64::from(b == b'x'))
}

fn text<'a>(v: &'a Value, key: &str) -> &'a str {
    v[key].as_str().unwrap()
}

fn shapes(names: &[&str]) -> Vec<Shape> {
    names.iter().map(|n| Shape { name: (*n).to_owned(), features: Vec::new() }).collect()
}

/// The guest CPU configuration that Firecracker saw on a host (`cpu-template-helper fingerprint dump`). It tells what
/// was shown and which MSRs or registers were listed; it tells nothing of capabilities.
pub fn fingerprint(cpu: &str, kernel: &str) -> Surface {
    let path = shared().join(format!("data/firecracker/fingerprints/fingerprint_{cpu}_{kernel}host.json"));
    let doc: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let config = &doc["guest_cpu_config"];
    let mut offer = Offer { capabilities_asked: 0, ..Offer::default() };
    let mut provenance = Provenance::default();
    provenance.kernel.release = text(&doc, "kernel_version").to_owned();
    provenance.cpu.microcode = text(&doc, "microcode_version").to_owned();
    provenance.cpu.name = cpu.to_owned();
    let arm = cpu.starts_with("ARM");
    if arm {
        offer.shapes = shapes(&["pmu"]);
        let mut registers = BTreeMap::new();
        for r in config["reg_modifiers"].as_array().unwrap() {
            let bits = text(r, "bitmap");
            let id = number(text(r, "addr"));
            // KVM_REG_SIZE_MASK: 64 bits is 3; wider ones are not recorded.
            let wide = id >> 52 & 0xf > 3;
            let reset = (!wide).then(|| Hex64(number(bits)));
            let register = Register {
                id: Hex64(id),
                shapes: vec![],
                reset,
                running: false,
                mask: None,
                write: Write::Unasked,
            };
            registers.insert(id, register);
        }
        offer.registers = registers.into_values().collect();
        provenance.cpu.vendor = "ARM".to_owned();
    } else {
        offer.shapes = shapes(&["kernel"]);
        let mut cpuid = BTreeMap::new();
        for leaf in config["cpuid_modifiers"].as_array().unwrap() {
            let mut regs = [0u32; 4];
            for m in leaf["modifiers"].as_array().unwrap() {
                let at = ["eax", "ebx", "ecx", "edx"].iter().position(|n| *n == text(m, "register")).unwrap();
                regs[at] = number(text(m, "bitmap")) as u32;
            }
            let [eax, ebx, ecx, edx] = regs.map(Hex32);
            let (l, s) = (number(text(leaf, "leaf")) as u32, number(text(leaf, "subleaf")) as u32);
            let flags = leaf["flags"].as_u64().unwrap() as u32;
            cpuid.insert((l, s), CpuidEntry { leaf: Hex32(l), subleaf: Hex32(s), flags, eax, ebx, ecx, edx });
        }
        offer.cpuid = cpuid.into_values().collect();
        let vendor = &offer.cpuid[0];
        let bytes = [vendor.ebx, vendor.edx, vendor.ecx].map(|w| w.0.to_le_bytes()).concat();
        provenance.cpu.vendor = String::from_utf8(bytes).unwrap();
        provenance.cpu.id = Hex64(u64::from(offer.cpuid.iter().find(|e| e.leaf.0 == 1).unwrap().eax.0));
        let mut msrs = BTreeMap::new();
        for m in config["msr_modifiers"].as_array().unwrap() {
            let msr = number(text(m, "addr")) as u32;
            let reset = Some(Hex64(number(text(m, "bitmap"))));
            msrs.insert(
                msr,
                MsrItem { msr: Hex32(msr), listed: true, reset, running: false, write: Write::Unasked },
            );
        }
        offer.msrs = msrs.into_values().collect();
    }
    finish(if arm { Arch::Aarch64 } else { Arch::X86_64 }, offer, provenance)
}

/// Adds what a guest could read by RDMSR to a fingerprint: an observation.
pub fn observe_msrs(surface: &mut Surface, template: &str, cpu: &str, kernel: &str) {
    let name = format!("data/firecracker/guest-msr/msr_list_{template}_{cpu}_{kernel}host_6.1guest.csv");
    let text = std::fs::read_to_string(shared().join(name)).unwrap();
    let mut readable = Vec::new();
    for line in text.lines().skip(1).filter(|l| !l.is_empty()) {
        readable.push(number(line.split(',').next().unwrap()) as u32);
    }
    readable.sort_unstable();
    readable.dedup();
    let seen = |facet: String, value: u64| Measured {
        facet,
        shape: None,
        value: Hex64(value),
        accepts: vec![],
        refuses: vec![],
    };
    for msr in &readable {
        surface.offer.measured.push(seen(format!("msr.{msr:x}.read"), 1));
    }
    // 0x800 is reserved in x2APIC mode (SDM volume 3, table 12-6): a read of it says which way the host goes.
    let faults = u64::from(!readable.contains(&0x800));
    surface.offer.measured.push(seen("x86.x2apic.reserved-register-read".to_owned(), faults));
    canonical::seal(surface);
}

/// A Firecracker CPU template as a contract: what it gives is given, its `x` is open, and so is what it does not name.
pub fn template(name: &str) -> Contract {
    let path = shared().join(format!("data/firecracker/templates/{name}.json"));
    let doc: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let mut words = Vec::new();
    for leaf in doc["cpuid_modifiers"].as_array().unwrap() {
        for m in leaf["modifiers"].as_array().unwrap() {
            let register =
                ["eax", "ebx", "ecx", "edx"].iter().position(|n| *n == text(m, "register")).unwrap() as u8;
            let (leaf, subleaf) = (number(text(leaf, "leaf")) as u32, number(text(leaf, "subleaf")) as u32);
            let at = Coord::Cpuid { table: Table::Supported, leaf, subleaf, register };
            let bits = text(m, "bitmap");
            words.push(Promise { at, value: number(bits), open: open_bits(bits) & at.mask() });
        }
    }
    words.sort_by_key(|p| p.at);
    Contract { words, name: name.to_owned(), ..Contract::unpinned(Arch::X86_64, "kernel") }
}

/// A surface from its parts, sealed.
pub fn finish(arch: Arch, offer: Offer, provenance: Provenance) -> Surface {
    let mut surface = Surface {
        schema: SCHEMA.to_owned(),
        arch,
        digests: Digests::default(),
        offer,
        provenance,
        volatile: Volatile::default(),
    };
    canonical::seal(&mut surface);
    surface
}

/// The views of a surface.
pub fn views(surface: &Surface, label: &str) -> Vec<View> {
    View::all(surface, label)
}
