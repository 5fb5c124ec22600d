//! Lists the captures in `captures/`, so that a new file there is a new bundled host.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-changed=captures");
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("captures");
    let mut files: Vec<PathBuf> = fs::read_dir(&root)
        .unwrap_or_else(|e| panic!("{}: {e}", root.display()))
        .map(|entry| entry.expect("directory entry").path())
        .filter(|path| path.extension().is_some_and(|e| e == "json"))
        .collect();
    files.sort();
    let mut out = String::from(
        "/// All captures that are part of the program, ascending by name.\npub static BUNDLED: &[Bundled] = &[\n",
    );
    for path in files {
        let name = path.file_stem().expect("it has an extension").to_string_lossy().into_owned();
        writeln!(out, "    Bundled {{ name: {name:?}, text: include_str!({path:?}) }},")
            .expect("a String takes everything");
    }
    out.push_str("];\n");
    let path = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("bundled.rs");
    fs::write(&path, out).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}
