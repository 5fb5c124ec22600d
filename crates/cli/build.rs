//! Tells the tests what this machine has: KVM, other people's measurements, a program of an older build, and
//! whether kernels shall be booted.

fn main() {
    evenkeel_here::kvm();
    evenkeel_here::tap();
    evenkeel_here::shared("facts/arm64");
    evenkeel_here::set("older", evenkeel_here::variable("EVENKEEL_OLDER").is_some());
    evenkeel_here::set("lab", evenkeel_here::variable("EVENKEEL_REQUIRE_LAB").is_some());
}
