//! Files that are whole or not there, and claims that one of many gets.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use evenkeel_files::{Claim, ClaimError, random_id, replace};

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_file_is_the_old_one_or_the_new_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("f");
    let fill = |text: &'static str| move |file: &mut File| file.write_all(text.as_bytes());
    replace(&path, fill("old")).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"old");
    replace(&path, fill("new")).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new");
    // Whatever goes wrong after whichever byte, the file is what it was, and nothing lies beside it.
    for bytes in 0..64 {
        let failed: io::Result<()> = replace(&path, |file| {
            file.write_all(&vec![b'x'; bytes])?;
            Err(io::Error::from(io::ErrorKind::StorageFull))
        });
        assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(names(folder.path()), ["f"]);
    }
    std::os::unix::fs::symlink(&path, folder.path().join("link")).unwrap();
    replace(&folder.path().join("link"), fill("through")).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"through");
    assert!(replace(folder.path(), fill("x")).is_err(), "a folder is not replaced");
}

#[test]
fn of_many_that_claim_one_gets_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("g.capsule");
    fs::write(&path, "").unwrap();
    let won: usize = std::thread::scope(|scope| {
        let tries: Vec<_> = (0..16)
            .map(|i| {
                let path = &path;
                scope.spawn(move || usize::from(Claim::take(path, "17", &format!("number {i}")).is_ok()))
            })
            .collect();
        tries.into_iter().map(|t| t.join().unwrap()).sum()
    });
    assert_eq!(won, 1);
}

#[test]
fn a_claim_follows_the_guest_and_not_the_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("g.capsule");
    fs::write(&path, "").unwrap();
    let claim = Claim::take(&path, "17", "restored by process 4, at noon\n").unwrap();
    let Err(ClaimError::Taken { said, note }) = Claim::take(&folder.path().join("copy.capsule"), "17", "me")
    else {
        panic!("the same guest under another name")
    };
    assert_eq!((said.as_str(), note.as_path()), ("restored by process 4, at noon", claim.note()));
    std::os::unix::fs::symlink(&path, folder.path().join("link")).unwrap();
    assert!(Claim::take(&folder.path().join("link"), "17", "me").is_err());
    let other = Claim::take(&path, "18", "me").unwrap();
    other.release().unwrap();
    claim.release().unwrap();
    Claim::take(&path, "17", "me").unwrap().release().unwrap();
    // What is dropped stays taken.
    drop(Claim::take(&path, "17", "me").unwrap());
    assert!(matches!(Claim::take(&path, "17", "me"), Err(ClaimError::Taken { .. })));
}

#[test]
fn where_nothing_can_be_written_down_nothing_is_claimed() {
    let gone = Path::new("/nowhere/at/all/g.capsule");
    assert!(matches!(Claim::take(gone, "17", "me"), Err(ClaimError::Io { .. })));
}

#[test]
fn ids_differ() {
    assert_ne!(random_id().unwrap(), random_id().unwrap());
}
