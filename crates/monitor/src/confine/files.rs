//! No path at all: a landlock domain that grants nothing. What the kernel lacks is told.

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, LandlockStatus, Ruleset, RulesetAttr,
    RulesetStatus, Scope,
};

use super::Error;

/// What landlock takes away here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The version of landlock's interface that this kernel has; none if it has none, or if it is not switched on.
    pub abi: Option<i32>,
    /// What it does not take away here, in words; the filters of system calls do all the same, as no thread may open,
    /// connect or bind.
    pub lacks: Vec<&'static str>,
}

/// What came with which version of the interface.
const CAME: [(i32, &str); 6] = [
    (1, "opening, executing and making files"),
    (2, "renaming and linking between directories"),
    (3, "truncating files by path"),
    (4, "binding and connecting TCP sockets"),
    (5, "ioctls on devices that are opened later"),
    (6, "abstract unix sockets and signals to other processes"),
];

/// Takes every path from this thread and all that it starts from now on. Descriptors that are open stay.
///
/// # Errors
/// The kernel has landlock, and refuses all the same.
pub fn none() -> Result<Files, Error> {
    let failed = |e: &dyn std::fmt::Display| Error::Landlock(e.to_string());
    let newest = ABI::V6;
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(newest))
        .and_then(|r| r.handle_access(AccessNet::from_all(newest)))
        .and_then(|r| r.scope(Scope::from_all(newest)))
        .and_then(Ruleset::create)
        .and_then(|r| r.restrict_self())
        .map_err(|e| failed(&e))?;
    let abi = match status.landlock {
        LandlockStatus::NotEnabled | LandlockStatus::NotImplemented => None,
        LandlockStatus::Available { effective_abi, kernel_abi } => {
            Some(kernel_abi.unwrap_or(effective_abi as i32))
        }
    };
    if abi.is_some() && status.ruleset == RulesetStatus::NotEnforced {
        return Err(failed(&"the kernel has it, and does not enforce it"));
    }
    let lacks = CAME.iter().filter(|(since, _)| abi.is_none_or(|abi| abi < *since)).map(|(_, what)| *what);
    Ok(Files { abi, lacks: lacks.collect() })
}
