//! The measured matrix of arm64 registers, against what captures foretell and against what others measured.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use evenkeel_contract::View;
use evenkeel_contract::registers::expect;
use evenkeel_hosts::load;
use evenkeel_state::registers::matrix::{Cell, Matrix, parse_matrix};
use evenkeel_state::registers::{Moment, Shape};

/// Our own measurement: `evenkeel lab registers --fill`, on the lab's arm64 kernels.
fn measured() -> Matrix {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../state/tests/data/registers-arm64.json");
    parse_matrix(&std::fs::read(path).unwrap()).unwrap()
}

fn cell<'m>(matrix: &'m Matrix, shape: Shape, from: &str, to: &str) -> &'m Cell {
    let host = |name: &str| matrix.host(&format!("debian-{name}-arm64")).unwrap();
    matrix.cell(shape, false, (host(from), host(to))).unwrap()
}

fn refused(cell: &Cell) -> BTreeSet<u64> {
    cell.refused.iter().map(|r| r.id.0).collect()
}

#[test]
fn what_captures_foretell_is_what_was_measured() {
    let matrix = measured();
    let hosts: Vec<_> = matrix.hosts.iter().map(|h| load(&h.name).unwrap()).collect();
    assert!(hosts.len() >= 12, "{} kernels", hosts.len());
    let (mut cells, mut agreed, mut registers) = (0, 0, 0);
    let mut wrong: BTreeMap<(&str, u64), Vec<String>> = BTreeMap::new();
    for shape in Shape::ALL {
        for (i, from) in hosts.iter().enumerate() {
            for (j, on) in hosts.iter().enumerate() {
                let cell = matrix.cell(shape, false, (i as u16, j as u16)).expect("every pair was measured");
                assert_eq!(cell.failed, None);
                let view = |host: &evenkeel_hosts::Host| -> View {
                    host.views.iter().find(|v| v.shape == shape.name()).unwrap().clone()
                };
                let expected = expect(&view(from), &view(on));
                assert_eq!(expected.unknown, BTreeSet::new(), "{} to {}", from.name, on.name);
                let mut good = true;
                for (what, expected, measured) in [
                    ("refused", expected.refused, refused(cell)),
                    ("unsaved", expected.unsaved, cell.unsaved.iter().map(|id| id.0).collect()),
                    ("altered", expected.altered, cell.altered.iter().map(|a| a.id.0).collect()),
                ] {
                    registers += measured.len();
                    for id in expected.symmetric_difference(&measured) {
                        good = false;
                        let side = if expected.contains(id) { "foretold only" } else { "measured only" };
                        let place = format!("{}: {} to {}: {side}", shape.name(), from.name, on.name);
                        wrong.entry((what, *id)).or_default().push(place);
                    }
                }
                cells += 1;
                agreed += usize::from(good);
            }
        }
    }
    println!("{agreed} of {cells} cells are as foretold, with {registers} registers that were not kept");
    for ((what, id), places) in &wrong {
        println!("{what} {id:#x}: {} cells, {} among them", places.len(), places[0]);
    }
    assert!(wrong.is_empty(), "{} registers", wrong.len());
    assert!(cells >= 3 * 12 * 12 && registers > 1000);
}

/// What a capture says of a shape is foretold of the vCPUs that are measured: they must be made alike.
#[test]
fn shapes_are_those_of_captures() {
    let mut seen = 0;
    for bundled in evenkeel_hosts::BUNDLED.iter().filter(|b| b.name.ends_with("-arm64")) {
        let host = load(bundled.name).unwrap();
        let shapes = &host.surface.offer.shapes;
        assert_eq!(shapes.len(), Shape::ALL.len());
        for (captured, shape) in shapes.iter().zip(Shape::ALL) {
            let features: Vec<&str> = shape.feature_names().collect();
            assert_eq!(
                (captured.name.as_str(), &captured.features),
                (shape.name(), &features.iter().map(|f| (*f).to_owned()).collect())
            );
            seen += 1;
        }
    }
    assert!(seen >= 36, "{seen}");
}

/// The cases for which the matrix was built.
#[test]
fn the_named_cases_are_measured() {
    let matrix = measured();
    let [pmmir, tcr2, pir, pire0, psci, bitmap] = [
        0x6030_0000_0013_c4f6u64,
        0x6030_0000_0013_c103,
        0x6030_0000_0013_c513,
        0x6030_0000_0013_c512,
        0x6030_0000_0014_0000,
        0x6030_0000_0016_0003,
    ];
    for older in ["5.10", "6.1", "6.12", "6.16", "6.17", "6.18", "6.19", "7.0", "7.1", "7.2"] {
        assert!(!refused(cell(&matrix, Shape::Min, "7.3", older)).contains(&pmmir), "{older}");
        for shape in [Shape::Pmu, Shape::Full] {
            assert!(refused(cell(&matrix, shape, "7.3", older)).contains(&pmmir), "{older}");
        }
    }
    for shape in Shape::ALL {
        assert_eq!(refused(cell(&matrix, shape, "6.12", "6.16")), [tcr2, pire0, pir].into());
        assert_eq!(refused(cell(&matrix, shape, "6.16", "6.12")), [psci, bitmap].into());
        assert_eq!(refused(cell(&matrix, shape, "6.1", "6.18")), [].into());
    }
}

/// The verdicts name the same cases: the items by `carries`, the PSCI version by `keeps`.
#[test]
fn the_named_cases_are_in_the_verdicts() {
    use evenkeel_contract::keeps::{Question, keeps};
    let refusals = |from: &str, to: &str| -> BTreeSet<String> {
        let host = |short: &str| load(&format!("debian-{short}-arm64")).unwrap();
        let (from, on) = (host(from), host(to));
        let view = |h: &evenkeel_hosts::Host| h.views.iter().find(|v| v.shape == "pmu").unwrap().clone();
        let (from, on) = (view(&from), view(&on));
        let q = Question { from: &from, on: &on, running: true, pinned: false };
        let shown = evenkeel_contract::Contract::unpinned(from.arch, &from.shape).resolve(&from);
        let items = evenkeel_contract::carries::carries(&q, &shown);
        let facets = keeps(&q, &shown);
        let refused = items.into_iter().filter(|f| f.code == "item-refused");
        refused.chain(facets.into_iter().filter(|f| f.code == "facet-lost")).map(|f| f.subject).collect()
    };
    assert_eq!(refusals("7.3", "7.2"), ["reg.603000000013c4f6".to_owned()].into());
    let three = ["reg.603000000013c103", "reg.603000000013c512", "reg.603000000013c513"];
    let up = refusals("6.12", "6.16");
    assert!(three.iter().all(|r| up.contains(*r)), "{up:?}");
    let back = refusals("6.16", "6.12");
    assert!(["arm64.psci.version", "reg.6030000000160003"].iter().all(|r| back.contains(*r)), "{back:?}");
}

/// A register that cannot be kept is one thing; a host that does not take its own registers back would be another.
#[test]
fn every_host_takes_its_own_registers_back_but_for_aliases() {
    let matrix = measured();
    for shape in Shape::ALL {
        for host in 0..matrix.hosts.len() as u16 {
            let cell = matrix.cell(shape, false, (host, host)).unwrap();
            assert_eq!((cell.refused.len(), cell.unsaved.len()), (0, 0));
            for a in &cell.altered {
                let id = a.id.0;
                let alias = |id| evenkeel_catalog::reg(id).and_then(|r| r.alias_of);
                let shown_twice = matrix_ids(cell).any(|other| alias(other) == Some(id));
                assert!(
                    alias(id).is_some() || shown_twice,
                    "{id:#x} on {}",
                    matrix.hosts[usize::from(host)].name
                );
            }
        }
    }
}

fn matrix_ids(cell: &Cell) -> impl Iterator<Item = u64> {
    cell.altered.iter().map(|a| a.id.0)
}

/// Kernels that accept another revision of the interrupt controller and ignore it, those that refuse, those that do it.
#[test]
fn revisions_of_the_interrupt_controller_are_as_known() {
    let matrix = measured();
    let after = |name: &str, revision: u32| {
        let host = &matrix.hosts[usize::from(matrix.host(&format!("debian-{name}-arm64")).unwrap())];
        let mut attempts = host.gic.attempts.iter();
        let a = attempts.find(|a| a.when == Moment::AfterInit && a.revision == revision).unwrap();
        (a.errno.clone(), a.now, a.ignored())
    };
    let refused = Some("EINVAL".to_owned());
    for name in ["6.12.43", "6.12.74", "6.12.85", "6.16", "6.17", "6.18", "6.19"] {
        assert_eq!(after(name, 1), (None, Some(3), true), "{name}");
        assert_eq!(after(name, 2), (None, Some(3), true), "{name}");
        assert_eq!(after(name, 3), (None, Some(3), false), "{name}");
    }
    for name in ["6.1", "6.12.107", "6.12", "7.0", "7.1", "7.2", "7.3"] {
        assert_eq!(after(name, 1), (refused.clone(), Some(3), false), "{name}");
        assert_eq!(after(name, 2), (None, Some(2), false), "{name}");
        assert_eq!(after(name, 3), (None, Some(3), false), "{name}");
    }
    assert_eq!(after("5.10", 1), (refused.clone(), Some(2), false));
    assert_eq!(after("5.10", 2), (None, Some(2), false));
    assert_eq!(after("5.10", 3), (refused, Some(2), false));
    // Before initialization the register is there since 6.17.
    for host in &matrix.hosts {
        let before = host.gic.attempts.iter().filter(|a| a.when == Moment::BeforeInit);
        let busy = before.filter(|a| a.errno.as_deref() == Some("EBUSY")).count();
        let known = ["6.17", "6.18", "6.19", "7.0", "7.1", "7.2", "7.3"];
        let newer = known.iter().any(|n| host.name == format!("debian-{n}-arm64"));
        assert_eq!(busy, if newer { 0 } else { 3 }, "{}", host.name);
    }
}

/// The same matrix as others measured it, in the folder that is `shared` with this repository.
mod facts {
    use super::*;

    /// Kernels there, and the lab's. Of 7.2 the lab has 7.2.12, one point release before.
    const KERNELS: [(&str, &str); 12] = [
        ("5.10.223", "5.10"),
        ("6.1.192", "6.1"),
        ("6.12.43", "6.12.43"),
        ("6.12.107", "6.12.107"),
        ("6.16.12", "6.16"),
        ("6.17.13", "6.17"),
        ("6.18.15", "6.18"),
        ("6.19.14", "6.19"),
        ("7.0.13", "7.0"),
        ("7.1.13", "7.1"),
        ("7.2.13", "7.2"),
        ("7.3.4", "7.3"),
    ];

    /// Bits of values that differ from those measured there, and why.
    const EXPLAINED: &[(u64, u64, &str)] = &[(
        0x6030_0000_0013_dce0,
        1 << 2,
        "PMCR_EL0.C resets the cycle counter when it is written and means nothing when it is read. KVM makes the register \
         with the bit set; there it was clear in what 6.1 saved, and set in what 5.10 saved",
    )];

    fn read(name: &str) -> String {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let shared =
            std::env::var_os("EVENKEEL_SHARED").map_or_else(|| root.join("../../../shared"), PathBuf::from);
        let path = shared.join("facts/arm64").join(name);
        std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    fn lab(kernel: &str) -> &'static str {
        KERNELS.iter().find(|(k, _)| *k == kernel).unwrap_or_else(|| panic!("{kernel} is not in the lab")).1
    }

    /// Counters that the vCPUs of both hosts have (the physical one came after 6.1): they went on between being set
    /// and being read, and were counted there as different. Here they are not, as they should go on.
    fn counters(from: &str, to: &str) -> usize {
        let old = [from, to].iter().any(|kernel| ["5.10.223", "6.1.192"].contains(kernel));
        if old { 1 } else { 2 }
    }

    #[cfg_attr(not(shared), ignore = "needs ../shared/facts/arm64/RESTORE-MATRIX.txt")]
    #[test]
    fn counts_are_the_same() {
        let matrix = measured();
        let text = read("RESTORE-MATRIX.txt");
        let (mut shape, mut columns, mut cells) = (None, Vec::new(), 0);
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                ["##", name, ..] => (shape, columns) = (Shape::by_name(name), Vec::new()),
                _ if shape.is_some() && columns.is_empty() => columns = words,
                [from, counts @ ..] if shape.is_some() && counts.len() == columns.len() => {
                    for (to, counts) in columns.iter().zip(counts) {
                        compare(&matrix, shape.unwrap(), from, to, counts);
                        cells += 1;
                    }
                }
                _ => {}
            }
        }
        println!("{cells} cells are the same");
        assert_eq!(cells, 3 * 12 * 12);
    }

    fn compare(matrix: &Matrix, shape: Shape, from: &str, to: &str, counts: &str) {
        let place = format!("{} {from} to {to}", shape.name());
        let theirs: Vec<usize> = counts.split('/').map(|n| n.parse().unwrap()).collect();
        let cell = cell(matrix, shape, lab(from), lab(to));
        assert_eq!([cell.refused.len(), cell.unsaved.len()], theirs[..2], "{place}");
        // There every register was read back at once: what others change later was not seen, and what others put
        // right later was counted.
        let at_once = cell.altered.iter().filter(|a| !a.later).count() + cell.settled.len();
        assert_eq!(at_once + counters(from, to), theirs[2], "{place}");
    }

    #[cfg_attr(not(shared), ignore = "needs ../shared/facts/arm64/RESTORE-CAUSES.txt")]
    #[test]
    fn names_are_the_same() {
        let matrix = measured();
        let text = read("RESTORE-CAUSES.txt");
        let (mut here, mut part, mut names) = (None, "", 0);
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                ["###", shape, from, "->", to] => {
                    let shape = Shape::by_name(shape.trim_end_matches(':')).unwrap();
                    here = Some((cell(&matrix, shape, lab(from), lab(to)), line));
                }
                ["RST" | "RSTNEW" | "RSTDIFF", _] => part = words[0],
                [name, rest @ ..] if here.is_some() => {
                    let (cell, line) = here.unwrap();
                    let id = id_of(name);
                    let found = match part {
                        "RST" => cell.refused.iter().any(|r| r.id.0 == id && r.errno == rest[0]),
                        "RSTNEW" => cell.unsaved.iter().any(|i| i.0 == id),
                        _ if evenkeel_catalog::reg(id).is_some_and(|r| r.running) => true,
                        _ => {
                            let now = rest.iter().find_map(|w| w.strip_prefix("now=")).unwrap();
                            let settled = cell.settled.iter().any(|i| i.0 == id);
                            let mut altered = cell.altered.iter().filter(|a| a.id.0 == id);
                            settled || altered.any(|a| !a.later && same(id, now, &a.now))
                        }
                    };
                    assert!(found, "{line}: {part}: {name} {rest:?}");
                    names += 1;
                }
                _ => {}
            }
        }
        for (id, bits, why) in EXPLAINED {
            println!("explained: bits {bits:#x} of {id:#x}: {why}");
        }
        println!("{names} names with errno or value are the same");
        assert!(names > 300, "{names}");
    }

    /// Values stand there as bytes, the lowest first and without zeroes at the end.
    fn same(id: u64, bytes: &str, value: &Option<evenkeel_state::registers::Value>) -> bool {
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
        let bytes: Vec<u8> = bytes.as_bytes().chunks(2).map(byte).collect();
        let theirs = evenkeel_state::registers::Value::from_bytes(&bytes).as_u64().unwrap();
        let free: u64 = EXPLAINED.iter().filter(|e| e.0 == id).map(|e| e.1).sum();
        value
            .as_ref()
            .and_then(evenkeel_state::registers::Value::as_u64)
            .is_some_and(|ours| (ours ^ theirs) & !free == 0)
    }

    /// The register that has this name there.
    fn id_of(name: &str) -> u64 {
        let number = |rest: &str| rest.trim_matches(['[', ']']).parse::<u64>().unwrap();
        if let Some(index) = name.strip_prefix("DEMUX_CCSIDR") {
            return 0x6020_0000_0011_0000 + number(index);
        }
        if let Some(index) = name.strip_prefix("PMEVCNTR") {
            return 0x6030_0000_0013_df40 + number(index);
        }
        match name {
            "FW_PSCI_VERSION" => 0x6030_0000_0014_0000,
            "FW_SMCCC_WA3" => 0x6030_0000_0014_0003,
            "FW_STD_BMAP" => 0x6030_0000_0016_0000,
            "FW_STD_HYP_BMAP" => 0x6030_0000_0016_0001,
            "FW_VENDOR_HYP_BMAP" => 0x6030_0000_0016_0002,
            "FW_VENDOR_HYP_BMAP_2" => 0x6030_0000_0016_0003,
            "TIMER_CNT" => 0x6030_0000_0013_df1a,
            "CNTPCT_EL0(PTIMER_CNT)" => 0x6030_0000_0013_df01,
            "CNTV_CTL_EL0(TIMER_CTL)" => 0x6030_0000_0013_df19,
            name => {
                let item = evenkeel_catalog::REGS.iter().find(|r| r.name == name).map(|r| r.id);
                let facet = format!("arm64.{}", name.to_lowercase().replace('_', "-"));
                let facet =
                    evenkeel_catalog::REGISTERS.iter().find(|r| r.name == facet).and_then(|r| r.at.reg);
                item.or(facet).unwrap_or_else(|| panic!("which register is {name}?"))
            }
        }
    }
}

/// The command, where there is nothing to measure.
mod command {
    use std::process::{Command, Output};

    fn run(args: &[&str]) -> (i32, String) {
        let out: Output = Command::new(env!("CARGO_BIN_EXE_evenkeel")).args(args).output().unwrap();
        assert_eq!(out.stdout, b"", "an error has no data on standard output");
        (out.status.code().unwrap(), String::from_utf8(out.stderr).unwrap())
    }

    #[cfg(not(target_arch = "aarch64"))]
    #[test]
    fn another_architecture_is_told_where_to_go() {
        let (code, words) = run(&["registers", "save"]);
        assert_eq!(code, 3, "{words}");
        assert!(
            words.contains("on arm64 only, and this is") && words.contains("evenkeel lab registers"),
            "{words}"
        );
    }

    #[test]
    fn files_that_are_none_are_bad_input_that_names_what_writes_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file.json");
        let path = path.to_str().unwrap();
        assert_eq!(run(&["registers", "load", path]).0, 2);
        for content in ["", "{}", r#"{"schema":"evenkeel.surface/1"}"#] {
            std::fs::write(path, content).unwrap();
            let (code, words) = run(&["registers", "load", path]);
            assert_eq!(code, 2, "{words}");
            assert!(words.contains(path) && words.contains("evenkeel registers save"), "{words}");
        }
        assert_eq!(run(&["registers", "load", folder.path().to_str().unwrap()]).0, 2, "a folder");
    }

    #[test]
    fn only_arm64_kernels_have_registers_by_id() {
        let (code, words) = run(&["lab", "registers", "debian-6.1", "-o", "/nowhere"]);
        assert_eq!(code, 2, "{words}");
        assert!(words.contains("debian-6.1 is not for arm64"), "{words}");
    }
}
