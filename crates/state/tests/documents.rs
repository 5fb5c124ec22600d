//! Files of others: anything gives a value or an error, and nothing that does not belong is taken.

mod common;

use common::Fake;
use evenkeel_state::registers::matrix::{Matrix, parse_matrix};
use evenkeel_state::registers::{RegisterFile, Shape, load_all, parse_file, parse_report, save};
use proptest::prelude::*;

fn file() -> RegisterFile {
    save(&Fake::plain(), &[Shape::Min, Shape::Full], true).unwrap()
}

fn text() -> String {
    serde_json::to_string(&file()).unwrap()
}

#[test]
fn what_is_written_is_read_back() {
    assert_eq!(parse_file(text().as_bytes()).unwrap(), file());
    let report = load_all(&Fake::plain(), &[("host.json".to_owned(), file())]).unwrap();
    let bytes = serde_json::to_vec(&report).unwrap();
    assert_eq!(parse_report(&bytes).unwrap(), report);
    let matrix = Matrix::new(&[("host".to_owned(), report)], None);
    assert_eq!(matrix.cells.iter().map(|c| c.pairs.len()).sum::<usize>(), 4);
    assert_eq!(parse_matrix(&serde_json::to_vec(&matrix).unwrap()).unwrap(), matrix);
}

#[test]
fn what_does_not_belong_is_refused_with_a_reason() {
    let whole = text();
    let first = r#"{"id":"0x603000000013c080","value":"0x30d00800"}"#;
    assert!(whole.contains(first));
    for (from, to, reason) in [
        ("evenkeel.registers/1", "evenkeel.surface/1", "the schema is \"evenkeel.surface/1\""),
        ("\"arch\":\"aarch64\"", "\"arch\":\"x86_64\"", "registers of x86_64"),
        ("\"kernel\"", "\"kernal\"", "kernal"),
        ("\"shape\":\"min\"", "\"shape\":\"mini\"", "mini"),
        (first, r#"{"id":"0x603000000013c080"}"#, "needs a value or a reason"),
        (first, r#"{"id":"0x603000000013c080","value":"0x1","unread":"EIO"}"#, "needs a value or a reason"),
        (first, r#"{"id":"0x603000000013c102","value":"0x1"}"#, "is there twice"),
        (first, r#"{"id":"0x603000000013c080","value":"0x10000000000000000"}"#, "does not fit"),
        (first, r#"{"id":"0x60f000000013c080","value":"0x1"}"#, "its size is not defined"),
        (first, r#"{"id":"0x603000000013c080","value":12}"#, "hexadecimal"),
    ] {
        let error = parse_file(whole.replacen(from, to, 1).as_bytes()).unwrap_err().to_string();
        assert!(error.contains(reason), "{to}: {error}");
    }
    assert!(
        parse_file(&vec![b' '; evenkeel_state::registers::MAX_BYTES + 1])
            .unwrap_err()
            .to_string()
            .contains("at most")
    );
    let many = whole.replacen("\"vcpus\":[", &format!("\"vcpus\":[{}", vcpu().repeat(65)), 1);
    assert!(parse_file(many.as_bytes()).unwrap_err().to_string().contains("at most 64"));
}

fn vcpu() -> String {
    r#"{"shape":"min","features":[],"filled":false,"registers":[]},"#.to_owned()
}

#[test]
fn a_pair_of_hosts_that_are_not_there_is_refused() {
    let report = load_all(&Fake::plain(), &[("host.json".to_owned(), file())]).unwrap();
    let matrix = serde_json::to_string(&Matrix::new(&[("host".to_owned(), report)], None)).unwrap();
    let error = parse_matrix(matrix.replacen("[[0,0]]", "[[0,1]]", 1).as_bytes()).unwrap_err();
    assert_eq!(error.to_string(), "a cell from 0 to 1, and there are 1 hosts");
}

proptest! {
    #[test]
    fn any_change_of_one_byte_gives_a_value_or_an_error(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = text().into_bytes();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(file) = parse_file(&bytes) {
            // Whatever is taken can be loaded: registers that make no sense are told, not feared.
            load_all(&Fake::plain(), &[("host.json".to_owned(), file)]).unwrap();
        }
    }

    #[test]
    fn any_bytes_give_an_error(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(parse_file(&bytes).is_err());
        prop_assert!(parse_report(&bytes).is_err());
        prop_assert!(parse_matrix(&bytes).is_err());
    }
}
