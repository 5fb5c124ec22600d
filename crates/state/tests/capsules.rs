//! Guests in capsules: out as they went in, nothing left over; and the capsules of earlier versions, which are read for ever.
//!
//! The fixtures in `tests/compat/v1` are never edited: `EVENKEEL_UPDATE=1` writes those that are missing, and none that is there.
//! Those of x86 are real: `evenkeel snapshot` wrote what is in `EVENKEEL_SNAPSHOTS`, by the fixtures' names; see
//! `tests/compat/README.md`. Those of arm64 hold whatever the catalog cuts into structures, but
//! for `arm64-lab-…`, which are real as well.

use std::fs;
use std::io::Cursor;
use std::path::PathBuf;

use evenkeel_capsule::{Draft, Exposed, Id, Layout, Provenance, Reader, Region, Section, Slices, Why, names};
use evenkeel_catalog::{self as catalog, MSRS, REGS, SECTIONS};
use evenkeel_contract::Contract;
use evenkeel_state::file::{Guest, known};
use evenkeel_state::{Image, Item, Manifest, Noted, Owner, Role, view};
use evenkeel_surface::Arch;

fn compat() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/compat/v1")
}

/// A payload with a small number in the first byte of each field of a structure; some MSRs.
fn payload(section: &catalog::Section) -> Vec<u8> {
    if section.cut == "msrs" {
        let entry = |(i, msr): (usize, &catalog::Msr)| {
            [&u64::from(msr.msr).to_le_bytes()[..], &(i as u64 + 1).to_le_bytes()].concat()
        };
        return MSRS.iter().take(3).enumerate().flat_map(entry).collect();
    }
    if section.cut == "registers" && section.arch == catalog::Arch::Aarch64 {
        // 64-bit registers of arm64, by what their ids say.
        let wide = REGS.iter().filter(|reg| reg.id >> 56 == 0x60 && reg.id >> 52 & 15 == 3);
        let entry = |(i, reg): (usize, &catalog::Reg)| {
            [&reg.id.to_le_bytes()[..], &(i as u64 + 1).to_le_bytes()].concat()
        };
        return wide.take(4).enumerate().flat_map(entry).collect();
    }
    let stride = |f: &catalog::StateField| if f.stride == 0 { f.size } else { f.stride };
    let end = |f: &catalog::StateField| (f.at + stride(f) * (f.count.max(1) - 1) + f.size) as usize;
    let mut bytes = vec![0; section.fields.iter().map(end).max().unwrap_or(0)];
    for (i, field) in section.fields.iter().enumerate().filter(|(_, f)| f.size > 0) {
        bytes[field.at as usize] = i as u8 + 1;
    }
    bytes
}

/// Whatever the catalog cuts into fixed structures and MSRs, on one or two vCPUs.
fn image(arch: Arch) -> Image {
    let of = match arch {
        Arch::X86_64 => catalog::Arch::X86_64,
        Arch::Aarch64 => catalog::Arch::Aarch64,
    };
    let mut items = Vec::new();
    for section in SECTIONS.iter().filter(|section| section.arch == of) {
        for owner in [Owner::Vm, Owner::Vcpu(0), Owner::Vcpu(1)] {
            let item = Item { owner, name: section.name.to_owned(), bytes: payload(section) };
            if !item.bytes.is_empty() && view(&item).is_ok() {
                items.push(item);
            }
        }
    }
    let call = |on, call: &str, argument: &[u8], payload: &[u8]| Noted {
        on,
        call: call.to_owned(),
        argument: argument.to_vec(),
        payload: payload.to_vec(),
    };
    let calls = vec![
        call(Role::System, "KVM_CREATE_VM", &[0; 8], &[]),
        call(Role::Vm, "KVM_ENABLE_CAP", &[7; 104], &[]),
        call(Role::Vcpu(1), "KVM_SET_CPUID2", &[1, 0, 0, 0, 0, 0, 0, 0], &[9; 40]),
        call(Role::Device(0), "KVM_SET_DEVICE_ATTR", &[3; 24], &[1, 2, 3]),
    ];
    Image { arch, manifest: Manifest { calls }, items }
}

fn guest(arch: Arch) -> Guest {
    let mut guest = Guest::new(Id(*b"guest of long ag"), image(arch));
    let contract = Contract {
        name: "fixture".into(),
        arch,
        shape: if arch == Arch::X86_64 { "split" } else { "full" }.into(),
        words: vec![],
        choices: vec![],
        open_rest: true,
    };
    guest.contract = Some(evenkeel_contract::document::print(&contract).into_bytes());
    let host = Exposed { offer: "blake3:00".into(), contract: String::new(), kernel: "6.1.0".into() };
    guest.provenance = Some(Provenance {
        tool: "evenkeel 0.1.0".into(),
        kernel: "6.12.0".into(),
        saved_at: 1_800_000_000,
        exposure: vec![host],
    });
    guest.carried = vec![Section { version: 3, ..Section::new("later.word", false, vec![1, 2, 3]) }];
    guest
}

fn memory() -> Vec<(u64, Vec<u8>)> {
    let text: Vec<u8> = (0..4096_u32).map(|i| (i / 16) as u8).collect();
    vec![(0, [text, vec![0; 4096], vec![5; 4096]].concat()), (1 << 32, vec![0; 4096])]
}

fn write(guest: &Guest, kind: &str) -> Vec<u8> {
    write_with(guest, kind, &memory())
}

fn write_with(guest: &Guest, kind: &str, memory: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let regions =
        memory.iter().map(|(address, b)| Region { address: *address, length: b.len() as u64 }).collect();
    let base = Layout { chunk: 8192, ..Layout::eager(regions) };
    let layout = match kind {
        "lazy" => Layout { lazy: true, ..base },
        "zstd" => Layout { level: Some(3), ..base },
        _ => base,
    };
    let slices: Vec<(u64, &[u8])> = memory.iter().map(|(address, bytes)| (*address, &bytes[..])).collect();
    let mut out = Cursor::new(Vec::new());
    guest.draft().unwrap().write_with(&mut out, &layout, Slices(&slices)).unwrap();
    out.into_inner()
}

/// A fixture out of a snapshot, with what every fixture has beside its state. Of the kernel its version is told, and not whose it
/// is. Of memory that is held whole, the part with the guest's tables, code and stacks is kept.
fn fixture(snapshot: &[u8], kind: &str, keep: usize) -> Vec<u8> {
    let mut reader = Reader::open(Cursor::new(snapshot), &known).unwrap();
    let mut saved = Guest::read(&mut reader).unwrap();
    let length = reader.index().unwrap().bytes() as usize;
    let base = if saved.image.arch == Arch::Aarch64 { ARM64_RAM } else { 0 };
    let mut bytes = vec![0; length];
    reader
        .load(|address, part| {
            bytes[(address - base) as usize..][..part.len()].copy_from_slice(part);
            Ok(())
        })
        .unwrap();
    bytes.truncate(keep);
    let beside = guest(saved.image.arch);
    (saved.contract, saved.carried) = (beside.contract, beside.carried);
    let mut provenance = saved.provenance.unwrap();
    provenance.kernel.truncate(provenance.kernel.find(['-', '+']).unwrap_or(provenance.kernel.len()));
    saved.provenance = Some(provenance);
    write_with(&saved, kind, &[(base, bytes)])
}

/// Where the memory of an arm64 witness begins.
const ARM64_RAM: u64 = 0x4000_0000;

/// Real guests of arm64 kernels: the fixture's name, how it is written, and how many bytes of memory are kept.
const ARM64_LAB: [(&str, &str, usize); 3] = [
    ("arm64-lab-eager", "eager", 72 << 10),
    ("arm64-lab-lazy", "lazy", 72 << 10),
    ("arm64-lab-zstd", "zstd", 4 << 20),
];

fn read(bytes: &[u8]) -> Result<Guest, evenkeel_capsule::Refused> {
    Guest::read(&mut Reader::open(Cursor::new(bytes), &known)?)
}

/// A capsule with this section besides what a guest must have.
fn with(arch: Arch, section: Section) -> Vec<u8> {
    let mut draft: Draft = guest(arch).draft().unwrap();
    draft.put(section);
    let mut out = Cursor::new(Vec::new());
    draft.write(&mut out).unwrap();
    out.into_inner()
}

#[test]
fn a_guest_comes_out_as_it_went_in() {
    for arch in [Arch::X86_64, Arch::Aarch64] {
        let guest = guest(arch);
        assert!(guest.image.items.len() > 8, "{arch:?}: {} items", guest.image.items.len());
        for kind in ["eager", "lazy", "zstd"] {
            assert_eq!(read(&write(&guest, kind)).unwrap(), guest);
        }
    }
}

#[test]
fn nothing_is_left_over() {
    let refused = |arch, section| read(&with(arch, section)).unwrap_err();
    let x86 = Arch::X86_64;
    let regs = image(x86).items.iter().find(|item| item.name == "regs").unwrap().bytes.clone();
    // State of no section, of nobody, in another form of a number, of another architecture, and optional state.
    for name in
        ["vm/of-no-kernel", "vcpu.01/regs", "vcpu.x/regs", "device.0/regs", "regs", "vcpu.4294967296/regs"]
    {
        let refused = refused(x86, Section::new(name, true, regs.clone()));
        assert_eq!(refused.section, name);
        assert!(matches!(refused.why, Why::UnknownCritical { .. }), "{refused}");
    }
    let foreign = refused(Arch::Aarch64, Section::new("vcpu.0/regs", true, regs.clone()));
    assert!(foreign.to_string().contains("no such state of aarch64"), "{foreign}");
    // Too short, and too long.
    for length in [0, regs.len() - 1, regs.len() + 1] {
        let mut bytes = regs.clone();
        bytes.resize(length, 0);
        let refused = refused(x86, Section::new("vcpu.7/regs", true, bytes));
        assert_eq!(refused.section, "vcpu.7/regs");
        assert!(matches!(refused.why, Why::Lies(_)) && refused.offset > 128, "{refused}");
    }
    for manifest in [vec![], vec![0xa0], vec![0xff], vec![0xa1, 0x65, b'c', b'a', b'l', b'l', b's', 0x80, 0]]
    {
        assert_eq!(refused(x86, Section::new(names::MANIFEST, true, manifest)).section, names::MANIFEST);
    }
    let mut out = Cursor::new(Vec::new());
    let mut without = Draft::new(x86, Id([0; 16]));
    without.put(Section::new("vcpu.0/regs", true, regs));
    without.write(&mut out).unwrap();
    assert!(matches!(read(out.get_ref()).unwrap_err().why, Why::Missing), "a guest without a manifest");
    // What would be refused is not written.
    let mut twice = guest(x86);
    twice.image.items.push(twice.image.items[0].clone());
    assert!(twice.draft().is_err());
    let mut foreign = guest(x86);
    foreign.image.arch = Arch::Aarch64;
    assert!(foreign.draft().is_err());
}

#[test]
fn capsules_of_version_1_are_read() {
    let mut seen = 0;
    for (arch, short) in [(Arch::X86_64, "x86"), (Arch::Aarch64, "arm64")] {
        for kind in ["eager", "lazy", "zstd"] {
            let path = compat().join(format!("{short}-{kind}.capsule"));
            if !path.exists() && std::env::var_os("EVENKEEL_UPDATE").is_some() {
                fs::create_dir_all(compat()).unwrap();
                let written = match (arch, std::env::var_os("EVENKEEL_SNAPSHOTS")) {
                    (Arch::Aarch64, _) => write(&guest(arch), kind),
                    (_, Some(folder)) => fixture(
                        &fs::read(PathBuf::from(folder).join(path.file_name().unwrap())).unwrap(),
                        kind,
                        if kind == "lazy" { 512 << 10 } else { usize::MAX },
                    ),
                    (_, None) => panic!("EVENKEEL_SNAPSHOTS names no folder with a real {}", path.display()),
                };
                fs::write(&path, written).unwrap();
            }
            let bytes = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            let mut reader = Reader::open(Cursor::new(&bytes), &known).unwrap();
            reader.verify().unwrap();
            assert_eq!((reader.header().arch, reader.header().lazy), (arch, kind == "lazy"));
            assert_eq!(reader.header().compressed, kind == "zstd");
            let read = Guest::read(&mut reader).unwrap();
            // What it holds was written down when it was made; today's catalog may know more, and never less.
            let roots = fs::read_to_string(compat().join("roots")).unwrap_or_default();
            let line = format!(
                "{} {} {}\n",
                path.file_name().unwrap().display(),
                reader.header().root,
                read.image.items.len()
            );
            if !roots.contains(&line) && std::env::var_os("EVENKEEL_UPDATE").is_some() {
                assert!(
                    !roots.contains(path.file_name().unwrap().to_str().unwrap()),
                    "it was edited: {line}"
                );
                fs::write(compat().join("roots"), roots.clone() + &line).unwrap();
            } else {
                assert!(roots.contains(&line), "a fixture was edited, or an item of it is lost: {line}");
            }
            assert_eq!(read.carried, guest(arch).carried);
            assert_eq!(read.contract, guest(arch).contract);
            let mut loaded = Vec::new();
            let put = |address, bytes: &[u8]| {
                loaded.push((address, bytes.to_vec()));
                Ok(())
            };
            let all = reader.load(put).unwrap();
            if arch == Arch::Aarch64 {
                assert_eq!(read.image.manifest, image(arch).manifest);
                assert_eq!(read.provenance, guest(arch).provenance);
                let mut zeros = memory();
                zeros.iter_mut().for_each(|(_, bytes)| bytes.fill(0));
                for (address, bytes) in &loaded {
                    let (begin, into) = zeros.iter_mut().rfind(|(begin, _)| begin <= address).unwrap();
                    into[(address - *begin) as usize..][..bytes.len()].copy_from_slice(bytes);
                }
                assert_eq!(zeros, memory());
            } else {
                let made =
                    |call: &str| read.image.manifest.calls.iter().filter(|noted| noted.call == call).count();
                assert_eq!((made("KVM_CREATE_VM"), made("KVM_CREATE_VCPU")), (1, 2));
                assert_eq!(all.bytes + all.zero, if kind == "lazy" { 512 << 10 } else { 4 << 20 });
                // The page tables are the guest's, and CR3 is where they are: real state of real memory.
                let sregs = |n| {
                    read.image.items.iter().find(|i| i.owner == Owner::Vcpu(n) && i.name.starts_with("sregs"))
                };
                let cr3 = u64::from_le_bytes(sregs(0).unwrap().bytes[240..248].try_into().unwrap());
                let page = loaded.iter().rfind(|(address, _)| *address <= cr3).expect("it has page tables");
                assert_eq!(page.1[(cr3 - page.0) as usize] & 1, 1, "the first entry at {cr3:#x} is present");
            }
            for item in &read.image.items {
                assert!(
                    view(item).unwrap().iter().all(|field| field.known),
                    "{item:?}: every field has a name"
                );
            }
            seen += 1;
        }
    }
    assert_eq!(seen, 6);
}

#[test]
fn guests_of_arm64_kernels_are_read() {
    let mut kernels = Vec::new();
    for (name, kind, keep) in ARM64_LAB {
        let path = compat().join(format!("{name}.capsule"));
        let update = std::env::var_os("EVENKEEL_UPDATE").is_some();
        if !path.exists() && update {
            let folder = std::env::var_os("EVENKEEL_SNAPSHOTS").expect("EVENKEEL_SNAPSHOTS names a folder");
            let snapshot = fs::read(PathBuf::from(folder).join(path.file_name().unwrap())).unwrap();
            fs::write(&path, fixture(&snapshot, kind, keep)).unwrap();
        }
        let bytes = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert!(bytes.len() < 128 << 10, "{name}: {} bytes", bytes.len());
        let mut reader = Reader::open(Cursor::new(&bytes), &known).unwrap();
        reader.verify().unwrap();
        let read = Guest::read(&mut reader).unwrap();
        let line = format!("{name}.capsule {} {}\n", reader.header().root, read.image.items.len());
        let roots = fs::read_to_string(compat().join("roots")).unwrap();
        if update && !roots.contains(&format!("{name}.capsule ")) {
            fs::write(compat().join("roots"), roots + &line).unwrap();
        } else {
            assert!(roots.contains(&line), "a fixture was edited, or an item of it is lost: {line}");
        }
        assert_eq!((reader.header().arch, reader.header().lazy), (Arch::Aarch64, kind == "lazy"));
        let made = |call: &str| read.image.manifest.calls.iter().filter(|n| n.call == call).count();
        assert_eq!([made("KVM_CREATE_VM"), made("KVM_CREATE_VCPU"), made("KVM_CREATE_DEVICE")], [1, 2, 2]);
        for item in &read.image.items {
            let fields = view(item).unwrap();
            assert!(fields.iter().all(|field| field.known), "{item:?}: every field has a name");
        }
        // What runs next is in memory: vCPU 0 stands in the guest's own code.
        let registers = read.image.item(Owner::Vcpu(0), "arm64-registers").unwrap();
        let pc =
            view(registers).unwrap().into_iter().find(|field| field.raw == 0x6030_0000_0010_0040).unwrap();
        let view::Value::Number(pc) = pc.value else { panic!("{pc:?}") };
        let mut next = [0; 4];
        let put = |address: u64, part: &[u8]| {
            let from = pc.checked_sub(address).and_then(|at| part.get(at as usize..at as usize + 4));
            if let Some(from) = from {
                next.copy_from_slice(from);
            }
            Ok(())
        };
        let all = reader.load(put).unwrap();
        assert_eq!(all.bytes + all.zero, keep as u64);
        assert_ne!(next, [0; 4], "{name}: an instruction at {pc:#x}");
        kernels.push(read.provenance.unwrap().kernel);
    }
    assert_eq!(kernels.iter().collect::<std::collections::BTreeSet<_>>().len(), 3, "{kernels:?}");
}
