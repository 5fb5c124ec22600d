//! What `snapshot` and `restore` do on one architecture in another way than on the other.

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "aarch64")]
pub use aarch64::{ARCH, Stop, keep, take};
use evenkeel_apply::{Report, Verdict};
use evenkeel_contract::Contract;
#[cfg(target_arch = "x86_64")]
pub use x86_64::{ARCH, Stop, keep, take};

use crate::failure::Failure;

/// What is to be saved.
pub struct Wanted<'w> {
    /// The contract that the guest is under.
    pub contract: Option<&'w Contract>,
    /// The machine's shape, where there is no contract.
    pub shape: Option<&'w str>,
    /// How many vCPUs.
    pub vcpus: u32,
    /// What it is stopped in.
    pub stop: &'w Stop,
}

/// A guest that is to be moved was not under its contract.
fn under(report: &Report) -> Result<(), Failure> {
    match report.verdict {
        Verdict::Kept | Verdict::Waived => Ok(()),
        Verdict::Refused | Verdict::Incomplete => Err(Failure {
            exit: 1,
            ..Failure::bad(
                format!("this host does not keep the contract: {}", report.findings().join(", ")),
                "`evenkeel apply` says what differs, and writes a contract that this host can keep",
            )
        }),
    }
}

fn cannot(e: &dyn std::fmt::Display) -> Failure {
    Failure { exit: 3, ..Failure::bad(format!("nothing was saved: {e}"), "this needs a usable /dev/kvm") }
}
