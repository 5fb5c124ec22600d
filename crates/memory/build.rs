//! Tells the tests whether this machine has KVM and a userfaultfd for us, so that what cannot run is reported as ignored, with the
//! reason. EVENKEEL_REQUIRE_KVM turns that into a failure: the tests then run, and fail.

fn main() {
    println!("cargo::rustc-check-cfg=cfg(kvm)");
    println!("cargo::rustc-check-cfg=cfg(uffd)");
    println!("cargo::rerun-if-env-changed=EVENKEEL_REQUIRE_KVM");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=/dev/kvm");
    println!("cargo::rerun-if-changed=/dev/userfaultfd");
    let required = std::env::var_os("EVENKEEL_REQUIRE_KVM").is_some();
    for (node, cfg) in [("/dev/kvm", "kvm"), ("/dev/userfaultfd", "uffd")] {
        if required || std::fs::File::options().read(true).write(true).open(node).is_ok() {
            println!("cargo::rustc-cfg={cfg}");
        }
    }
}
