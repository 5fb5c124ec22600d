//! The tests that boot a kernel are ignored, with the reason, unless EVENKEEL_REQUIRE_LAB is set: they take minutes, a
//! fetched kernel and static binaries. `vmx` is the slow lane
//! alone, `1` all others, `1,vmx` both.

fn main() {
    let lanes =
        evenkeel_here::variable("EVENKEEL_REQUIRE_LAB").map(|lanes| lanes.to_string_lossy().into_owned());
    let lanes = lanes.as_deref();
    evenkeel_here::set("lab", lanes.is_some_and(|lanes| lanes != "vmx"));
    evenkeel_here::set("lab_vmx", lanes.is_some_and(|lanes| lanes.split(',').any(|lane| lane == "vmx")));
}
