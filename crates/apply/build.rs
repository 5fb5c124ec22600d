//! Tells the tests whether this machine has KVM.

fn main() {
    evenkeel_here::kvm();
}
