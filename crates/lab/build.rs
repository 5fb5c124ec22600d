//! The tests that boot a kernel are ignored, with the reason, unless EVENKEEL_REQUIRE_LAB is set: they take minutes, a
//! fetched kernel and static binaries.

fn main() {
    println!("cargo::rustc-check-cfg=cfg(lab)");
    println!("cargo::rerun-if-env-changed=EVENKEEL_REQUIRE_LAB");
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var_os("EVENKEEL_REQUIRE_LAB").is_some() {
        println!("cargo::rustc-cfg=lab");
    }
}
