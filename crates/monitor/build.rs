//! Tells the tests whether this machine has KVM, and taps that it may make, so that what cannot run is reported as ignored, with
//! the reason.
//! EVENKEEL_REQUIRE_KVM turns that into a failure: the tests then run, and fail.

fn main() {
    println!("cargo::rustc-check-cfg=cfg(kvm)");
    println!("cargo::rerun-if-env-changed=EVENKEEL_REQUIRE_KVM");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=/dev/kvm");
    if std::path::Path::new("/dev/kvm").exists() || std::env::var_os("EVENKEEL_REQUIRE_KVM").is_some() {
        println!("cargo::rustc-cfg=kvm");
    }
    println!("cargo::rustc-check-cfg=cfg(tap)");
    println!("cargo::rerun-if-changed=/dev/net/tun");
    let root = std::os::linux::fs::MetadataExt::st_uid;
    let root = std::fs::metadata("/proc/self").is_ok_and(|own| root(&own) == 0);
    if root && std::path::Path::new("/dev/net/tun").exists() {
        println!("cargo::rustc-cfg=tap");
    }
}
