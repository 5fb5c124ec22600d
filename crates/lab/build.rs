//! The tests that boot a kernel are ignored, with the reason, unless EVENKEEL_REQUIRE_LAB is set: they take minutes, a
//! fetched kernel and static binaries. `vmx` is the slow lane
//! alone, `1` all others, `1,vmx` both.

fn main() {
    println!("cargo::rustc-check-cfg=cfg(lab)");
    println!("cargo::rustc-check-cfg=cfg(lab_vmx)");
    println!("cargo::rerun-if-env-changed=EVENKEEL_REQUIRE_LAB");
    println!("cargo::rerun-if-changed=build.rs");
    if let Some(lanes) = std::env::var_os("EVENKEEL_REQUIRE_LAB") {
        let lanes = lanes.to_string_lossy().into_owned();
        if lanes != "vmx" {
            println!("cargo::rustc-cfg=lab");
        }
        if lanes.split(',').any(|lane| lane == "vmx") {
            println!("cargo::rustc-cfg=lab_vmx");
        }
    }
}
