//! Tells the tests whether other people's data is there (a folder `shared` beside the checkout, or EVENKEEL_SHARED), so
//! that what cannot run is reported as ignored, with the reason.

use std::path::PathBuf;

fn main() {
    println!("cargo::rustc-check-cfg=cfg(shared)");
    println!("cargo::rerun-if-env-changed=EVENKEEL_SHARED");
    println!("cargo::rerun-if-changed=build.rs");
    let root = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let shared =
        std::env::var_os("EVENKEEL_SHARED").map_or_else(|| root.join("../../../shared"), PathBuf::from);
    println!("cargo::rerun-if-changed={}", shared.display());
    if shared.join("data/firecracker").is_dir() {
        println!("cargo::rustc-cfg=shared");
    }
}
