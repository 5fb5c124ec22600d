//! Tells the tests what this machine has, so that what cannot run is reported as ignored, with the reason.
//! EVENKEEL_REQUIRE_KVM turns that into a failure: the tests then run, and fail. EVENKEEL_REQUIRE_LAB does the same for
//! those that boot kernels.

use std::path::PathBuf;

fn main() {
    println!("cargo::rustc-check-cfg=cfg(kvm)");
    println!("cargo::rustc-check-cfg=cfg(lab)");
    println!("cargo::rerun-if-env-changed=EVENKEEL_REQUIRE_LAB");
    if std::env::var_os("EVENKEEL_REQUIRE_LAB").is_some() {
        println!("cargo::rustc-cfg=lab");
    }
    println!("cargo::rerun-if-env-changed=EVENKEEL_REQUIRE_KVM");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=/dev/kvm");
    // Other people's measurements: a folder `shared` beside the checkout, or EVENKEEL_SHARED.
    println!("cargo::rustc-check-cfg=cfg(shared)");
    println!("cargo::rerun-if-env-changed=EVENKEEL_SHARED");
    let root = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let shared =
        std::env::var_os("EVENKEEL_SHARED").map_or_else(|| root.join("../../../shared"), PathBuf::from);
    println!("cargo::rerun-if-changed={}", shared.display());
    if shared.join("facts/arm64").is_dir() {
        println!("cargo::rustc-cfg=shared");
    }
    if std::path::Path::new("/dev/kvm").exists() || std::env::var_os("EVENKEEL_REQUIRE_KVM").is_some() {
        println!("cargo::rustc-cfg=kvm");
    }
}
