//! `evenkeel inspect` and `evenkeel diff` on capsules, as they are run.

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use evenkeel_capsule::{Layout, Reader, Region, Section, Slices, names};
use evenkeel_state::file::{Guest, known};
use serde_json::Value;

fn compat() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/compat/v1")
}

fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_evenkeel")).args(args).output().unwrap()
}

/// The document that was printed, after it was held against its schema, and the exit code.
fn json(schema: &str, args: &[&str]) -> (Value, i32) {
    let out = run(&[args, &["--format", "json"]].concat());
    let text = String::from_utf8(out.stdout).unwrap();
    let document: Value = serde_json::from_str(&text)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&out.stderr)));
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("../../docs/schema/{schema}.json"));
    let schema: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let errors: Vec<String> =
        validator.iter_errors(&document).map(|e| format!("{e} at {}", e.instance_path())).collect();
    assert_eq!(errors, Vec::<String>::new());
    (document, out.status.code().unwrap())
}

fn guest(path: &Path) -> Guest {
    let file = fs::File::open(path).unwrap();
    Guest::read(&mut Reader::open(file, &known).unwrap()).unwrap()
}

fn write(guest: &Guest, page: &[u8], path: &Path) {
    let mut out = Cursor::new(Vec::new());
    let layout = Layout::eager(vec![Region { address: 0, length: page.len() as u64 }]);
    guest.draft().unwrap().write_with(&mut out, &layout, Slices(&[(0, page)])).unwrap();
    fs::write(path, out.into_inner()).unwrap();
}

#[test]
fn inspect_names_every_field_of_every_fixture() {
    let mut fields = 0;
    for entry in fs::read_dir(compat()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "capsule") {
            continue;
        }
        let (report, code) = json("inspect", &["inspect", "--verify", path.to_str().unwrap()]);
        assert_eq!((code, &report["verified"]), (0, &Value::Bool(true)));
        for section in report["sections"].as_array().unwrap() {
            let name = section["name"].as_str().unwrap();
            assert!(section.get("unreadable").is_none(), "{section}");
            if name == "later.word" {
                assert_eq!(section["known"], false);
            } else if !name.starts_with("memory") {
                let list = section["fields"].as_array().unwrap_or_else(|| panic!("{name} has no fields"));
                assert!(
                    list.iter().all(|field| !field["name"].as_str().unwrap().starts_with("0x")),
                    "{list:?}"
                );
                fields += list.len();
            }
        }
        let bytes = match path.file_stem().unwrap().to_str().unwrap() {
            "x86-lazy" => 512 << 10,
            "arm64-lab-eager" | "arm64-lab-lazy" => 72 << 10,
            name if name.starts_with("x86") || name == "arm64-lab-zstd" => 4 << 20,
            _ => 4 * 4096,
        };
        assert_eq!(report["memory"]["bytes"], bytes);
        let text = String::from_utf8(run(&["inspect", path.to_str().unwrap()]).stdout).unwrap();
        for words in ["KVM_CREATE_VM", "later.word: not known to this version", "saved-at"] {
            assert!(text.contains(words), "{words}: {text}");
        }
    }
    println!("{fields} fields have names");
    assert!(fields > 1000, "{fields}");
}

#[test]
fn diff_of_two_capsules_is_field_by_field() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (folder.path().join("a.capsule"), folder.path().join("b.capsule"));
    let paths = ["diff", a.to_str().unwrap(), b.to_str().unwrap()];
    let first = guest(&compat().join("x86-eager.capsule"));
    write(&first, &[1; 12288], &a);
    write(&first, &[1; 12288], &b);
    let (report, code) = json("capsule-diff", &paths);
    assert_eq!((code, report["fields"].as_array().unwrap().len()), (0, 0), "{report}");
    // RAX, a page of memory, the contract, an unknown section, and the hosts.
    let mut second = first.clone();
    let regs = second.image.items.iter_mut().find(|item| item.name == "regs").unwrap();
    let section = format!("{}/regs", regs.owner);
    regs.bytes[0] ^= 0x40;
    second.contract = None;
    second.carried.push(Section::new("another", false, vec![1]));
    let capture = |name: &str| {
        evenkeel_hosts::BUNDLED.iter().find(|b| b.name == name).unwrap().text.as_bytes().to_vec()
    };
    let mut first = first;
    first.surface = Some(capture("debian-6.1"));
    second.surface = Some(capture("debian-7.3"));
    let mut page = vec![1; 12288];
    page[5000] = 2;
    write(&first, &[1; 12288], &a);
    write(&second, &page, &b);
    let (report, code) = json("capsule-diff", &paths);
    assert_eq!(code, 1);
    let fields = report["fields"].as_array().unwrap();
    assert_eq!(fields.len(), 1, "{fields:?}");
    assert_eq!(
        (fields[0]["section"].as_str(), fields[0]["field"].as_str()),
        (Some(section.as_str()), Some("rax"))
    );
    let sections: Vec<&str> =
        report["sections"].as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap()).collect();
    assert_eq!(sections, ["another", names::CONTRACT, names::SURFACE]);
    assert!(!report["hosts"]["differences"].as_array().unwrap().is_empty(), "facet by facet");
    assert_eq!((&report["memory"]["pages"], &report["memory"]["first"][0]), (&1.into(), &"0x1000".into()));
    let text = String::from_utf8(run(&paths).stdout).unwrap();
    assert!(text.contains("rax") && text.contains("1 pages differ, at 0x1000"), "{text}");
    // One of them is no capsule, or of another architecture.
    assert_eq!(run(&["diff", a.to_str().unwrap(), "debian-6.1"]).status.code(), Some(2));
    let arm64 = compat().join("arm64-eager.capsule");
    let out = run(&["diff", a.to_str().unwrap(), arm64.to_str().unwrap()]);
    assert_eq!(out.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&out.stderr).contains("error[arch-mismatch]"));
}

#[test]
fn what_is_damaged_is_refused_with_section_and_byte() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("g.capsule");
    let good = fs::read(compat().join("x86-eager.capsule")).unwrap();
    let refused = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        let out = run(&["inspect", path.to_str().unwrap(), "--verify"]);
        assert_eq!(out.status.code(), Some(2));
        String::from_utf8(out.stderr).unwrap()
    };
    let mut changed = good.clone();
    *changed.last_mut().unwrap() ^= 1;
    let words = refused(&changed);
    assert!(
        words.contains("error[digest-mismatch]") && words.contains("section `memory` at byte"),
        "{words}"
    );
    let words = refused(&good[..good.len() - 1]);
    assert!(words.contains("error[bad-capsule]") && words.contains("the file ends here"), "{words}");
    assert!(refused(b"nothing").contains("this is not a capsule"));
    assert!(refused(b"").contains("hint:"));
}
