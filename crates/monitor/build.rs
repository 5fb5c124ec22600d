//! Tells the tests whether this machine has KVM, and taps that it may make.

fn main() {
    evenkeel_here::kvm();
    evenkeel_here::tap();
}
