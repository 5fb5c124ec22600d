//! For **build scripts**: tells the tests of a crate what this machine has, as a `cfg`, so that what cannot run is reported as
//! ignored, with the reason. EVENKEEL_REQUIRE_* turns that into a failure: the tests then run, and fail.
//!
//! A build script that calls any of these runs again when it, or what it asked for, changes.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// `cfg(kvm)`: there is a /dev/kvm, or EVENKEEL_REQUIRE_KVM says that there must be.
pub fn kvm() {
    let there = kvm_required() || node("/dev/kvm").exists();
    set("kvm", there);
}

/// Sets `tap` where this user may make network interfaces.
pub fn tap() {
    use std::os::linux::fs::MetadataExt as _;
    let root = std::fs::metadata("/proc/self").is_ok_and(|own| own.st_uid() == 0);
    set("tap", root && node("/dev/net/tun").exists());
}

/// Whether EVENKEEL_REQUIRE_KVM is set: what a machine with KVM usually has must be there, too.
pub fn kvm_required() -> bool {
    variable("EVENKEEL_REQUIRE_KVM").is_some()
}

/// `cfg(shared)`: other people's data is there, with this folder in it. It is in a folder `shared` beside the checkout, or where
/// EVENKEEL_SHARED says.
pub fn shared(folder: &str) {
    let beside =
        || PathBuf::from(variable("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("../../../shared");
    let shared = variable("EVENKEEL_SHARED").map_or_else(beside, PathBuf::from);
    println!("cargo::rerun-if-changed={}", shared.display());
    set("shared", shared.join(folder).is_dir());
}

/// A `cfg` that exists, and whether it is set.
pub fn set(cfg: &str, there: bool) {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg({cfg})");
    if there {
        println!("cargo::rustc-cfg={cfg}");
    }
}

/// A variable of the environment that something depends on.
pub fn variable(name: &str) -> Option<OsString> {
    println!("cargo::rerun-if-env-changed={name}");
    std::env::var_os(name)
}

/// A device node that something depends on.
pub fn node(path: &str) -> &Path {
    println!("cargo::rerun-if-changed={path}");
    Path::new(path)
}
