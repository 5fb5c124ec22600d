//! Tells the tests whether this machine has KVM, and taps that it may make.

use std::os::linux::fs::MetadataExt as _;

fn main() {
    evenkeel_here::kvm();
    let root = std::fs::metadata("/proc/self").is_ok_and(|own| own.st_uid() == 0);
    evenkeel_here::set("tap", root && evenkeel_here::node("/dev/net/tun").exists());
}
