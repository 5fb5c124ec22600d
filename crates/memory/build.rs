//! Tells the tests whether this machine has KVM, and a userfaultfd for us.

use std::fs::File;

use evenkeel_here::{kvm, kvm_required, node, set};

fn main() {
    kvm();
    let faults = File::options().read(true).write(true).open(node("/dev/userfaultfd"));
    set("uffd", kvm_required() || faults.is_ok());
}
