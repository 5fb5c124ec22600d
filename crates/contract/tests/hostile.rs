//! Captures and contracts are hostile files: any bytes give a value or located diagnostics, in bounded time and memory.

mod common;

use std::time::{Duration, Instant};

use common::{finish, views};
use evenkeel_contract::baseline::baseline;
use evenkeel_contract::document;
use evenkeel_surface::*;

fn small() -> Surface {
    let mut offer = Offer { capabilities_asked: 300, ..Offer::default() };
    offer.shapes = vec![Shape { name: "kernel".into(), features: vec!["irqchip=kernel".into()] }];
    offer.capabilities = vec![Capability { cap: 129, all: Some(15), system: None, vm: vec![] }];
    let entry = |leaf, eax| CpuidEntry {
        leaf: Hex32(leaf),
        subleaf: Hex32(0),
        flags: 0,
        eax: Hex32(eax),
        ebx: Hex32(0x7568_7541),
        ecx: Hex32(1),
        edx: Hex32(2),
    };
    offer.cpuid = vec![entry(0, 13), entry(1, 0x800f12)];
    offer.msrs = vec![MsrItem {
        msr: Hex32(0x174),
        listed: true,
        reset: Some(Hex64(0)),
        running: false,
        write: Write::Kept,
    }];
    offer.msrs_refused = vec![Hex32(0x1db)];
    finish(Arch::X86_64, offer, Provenance::default())
}

fn read(bytes: &[u8]) -> Result<Surface, ReadError> {
    read::surface(bytes, &Limits::default())
}

/// Every error says something, points into the text, and there are not too many.
fn decent(bytes: &[u8], e: &ReadError) {
    assert!(!e.diagnostics.is_empty() && e.diagnostics.len() <= 20);
    for d in &e.diagnostics {
        assert!(!d.message.is_empty() && d.message.len() < 500, "{d:?}");
        assert!(
            d.span.start <= d.span.end && d.span.end <= bytes.len().max(1),
            "{d:?} in {} bytes",
            bytes.len()
        );
        assert!(evenkeel_catalog::code(d.code).is_some(), "{} is explained in the catalog", d.code);
    }
}

#[test]
fn a_capture_cut_anywhere_is_an_error() {
    let text = canonical::print(&small());
    assert!(read(text.as_bytes()).is_ok());
    for end in 0..text.len() - 2 {
        let cut = &text.as_bytes()[..end];
        decent(cut, &read(cut).expect_err("a cut file was read"));
    }
}

#[test]
fn any_flipped_bit_is_noticed_or_harmless() {
    let text = canonical::print(&small());
    let original = small();
    for at in 0..text.len() {
        for bit in 0..8 {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1 << bit;
            match read(&bytes) {
                Err(e) => decent(&bytes, &e),
                // The digests cover what counts; only the part that may change anyway can have changed.
                Ok(s) => assert_eq!(
                    (&s.offer, &s.provenance),
                    (&original.offer, &original.provenance),
                    "byte {at} bit {bit}"
                ),
            }
        }
    }
}

#[test]
fn every_kind_of_mistake_is_told_with_its_place() {
    let good = canonical::print(&small());
    let cases: &[(&str, &str, &str, &str)] = &[
        ("a newer schema", "evenkeel.surface/1", "evenkeel.surface/7", "schema version 7"),
        ("another schema", "evenkeel.surface/1", "qemu.dump/1", "not a capture's schema"),
        ("an unknown key", "\"feature_msrs\":[]", "\"feature_msrs\":[],\"extra\":1", "no part of an offer"),
        ("a key twice", "\"feature_msrs\":[]", "\"feature_msrs\":[],\"feature_msrs\":[]", "twice"),
        ("a key missing", "\"feature_msrs\":[],\n", "", "missing field"),
        ("a wrong type", "\"listed\":true", "\"listed\":1", "msrs: invalid type"),
        ("no hexadecimal", "\"msr\":\"0x174\"", "\"msr\":\"374\"", "hexadecimal"),
        ("too many bits", "\"leaf\":\"0x1\"", "\"leaf\":\"0x1ffffffff\"", "does not fit 32 bits"),
        ("an unknown architecture", "\"arch\":\"x86_64\"", "\"arch\":\"vax\"", "vax"),
        ("an edited value", "\"edx\":\"0x2\"", "\"edx\":\"0x3\"", "changed after the capture"),
        ("a wrong digest", "\"offer\":\"blake3:", "\"offer\":\"blake3:0", "changed after the capture"),
    ];
    for (what, from, to, says) in cases {
        assert!(good.contains(from), "{what}: the sample has no {from}");
        let bad = good.replacen(from, to, 1);
        let e = read(bad.as_bytes()).expect_err(what);
        decent(bad.as_bytes(), &e);
        assert!(e.diagnostics.iter().any(|d| d.message.contains(says)), "{what}: {:?}", e.diagnostics);
    }
}

#[test]
fn contradictions_are_told_many_at_once() {
    let mut s = small();
    s.offer.cpuid.push(s.offer.cpuid[1]);
    s.offer.cpuid.push(s.offer.cpuid[1]);
    s.offer.msrs_refused.push(Hex32(0x174));
    s.offer.msrs_refused.sort();
    s.offer.capabilities.push(Capability { cap: 130, all: Some(1), system: Some(2), vm: vec![1] });
    s.offer.capabilities.push(Capability { cap: 900, all: Some(1), system: None, vm: vec![] });
    s.offer.measured.push(Measured {
        facet: "x".into(),
        shape: Some(9),
        value: Hex64(0),
        accepts: vec![],
        refuses: vec![],
    });
    canonical::seal(&mut s);
    let text = canonical::print(&s);
    let e = read(text.as_bytes()).unwrap_err();
    decent(text.as_bytes(), &e);
    assert!(e.diagnostics.len() >= 6, "{:#?}", e.diagnostics);
    assert!(
        e.diagnostics.iter().all(|d| !d.span.is_empty()),
        "each points at an entry: {:#?}",
        e.diagnostics
    );

    let mut arm = small();
    arm.arch = Arch::Aarch64;
    canonical::seal(&mut arm);
    let e = read(canonical::print(&arm).as_bytes()).unwrap_err();
    assert!(e.diagnostics.iter().any(|d| d.message.contains("aarch64 host has none")), "{e:?}");
}

#[test]
fn huge_and_deep_input_is_refused_quickly() {
    let start = Instant::now();
    let huge = vec![b' '; (4 << 20) + 1];
    decent(&huge, &read(&huge).unwrap_err());
    let deep = "[".repeat(2 << 20);
    decent(deep.as_bytes(), &read(deep.as_bytes()).unwrap_err());
    let nested = format!(
        "{{\"schema\":\"evenkeel.surface/1\",\"arch\":\"x86_64\",\"digests\":{}",
        "{\"a\":".repeat(100_000)
    );
    decent(nested.as_bytes(), &read(nested.as_bytes()).unwrap_err());
    let utf8 = [b"{\"schema\":\"".as_slice(), &[0xff, 0xfe], b"\"}"].concat();
    assert!(read(&utf8).unwrap_err().diagnostics[0].message.contains("UTF-8"));
    assert!(document::read(&vec![b'#'; (1 << 20) + 1]).is_err());
    assert!(document::read(format!("x = {}", "[".repeat(500_000)).as_bytes()).is_err());
    assert!(document::read(format!("{} = 1", "a.".repeat(200_000) + "b").as_bytes()).is_err());
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}

fn contract_text() -> String {
    document::print(&baseline(&[&views(&small(), "h")[0]], "sample").contract)
}

#[test]
fn contracts_cut_or_flipped_never_panic_and_never_lie() {
    let text = contract_text();
    let original = document::read(text.as_bytes()).unwrap();
    for end in 0..text.len() {
        if let Err(e) = document::read(&text.as_bytes()[..end]) {
            decent(&text.as_bytes()[..end], &e);
        }
    }
    for at in 0..text.len() {
        for bit in [0, 1, 5, 7] {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1 << bit;
            match document::read(&bytes) {
                Err(e) => decent(&bytes, &e),
                // A comment, a space, or the digest's own key spelt out of existence is refused; what is read is the same.
                Ok(c) => assert_eq!(c, original, "byte {at} bit {bit}"),
            }
        }
    }
}

#[test]
fn every_mistake_in_a_contract_is_told_with_its_place() {
    let text = r#"schema = "evenkeel.contract/1"
name = "n"
arch = "x86_64"
shape = "kernel"
extra = 1
[words]
"cpuid.7.0.ecx" = "0x80"
"cpuid.7.0.exx" = "0x1"
"cpuid.1.0.ecx" = 7
"cpuid.1.0.edx" = "0x1ffffffff"
"reg.6030000000130000" = "0x1"
[open]
"cpuid.7.0.ecx" = "0x80"
[choices]
"x86.no-such-facet" = "on"
"x86.x2apic.suppress-eoi-broadcast" = "sometimes"
"#;
    let e = document::read(text.as_bytes()).unwrap_err();
    decent(text.as_bytes(), &e);
    let all: Vec<&str> = e.diagnostics.iter().map(|d| d.message.as_str()).collect();
    for part in [
        "extra",
        "exx",
        "cpuid.1.0.ecx",
        "32 bits",
        "architecture",
        "both given and open",
        "no-such-facet",
        "sometimes",
    ] {
        assert!(all.iter().any(|m| m.contains(part)), "{part}: {all:#?}");
    }
    assert!(e.diagnostics.iter().all(|d| !d.span.is_empty()));
    let newer = document::read(b"schema = \"evenkeel.contract/9\"\nfuture = {}\n").unwrap_err();
    assert_eq!((newer.diagnostics.len(), newer.diagnostics[0].code), (1, "schema-newer"));
    let edited = contract_text().replacen("name = \"sample\"", "name = \"other\"", 1);
    assert_eq!(document::read(edited.as_bytes()).unwrap_err().diagnostics[0].code, "digest-mismatch");
    let twice = contract_text().replacen(
        "[words]",
        "[words]\n\"cpuid.1.0.eax\" = \"0x1\"\n\"cpuid.1.0.eax\" = \"0x1\"",
        1,
    );
    assert!(document::read(twice.as_bytes()).is_err());
}
