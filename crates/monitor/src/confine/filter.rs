//! From rules to the program that the kernel runs at each system call of a thread.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

use super::Error;
use super::rules::{Only, Rule, Thread, number};

#[cfg(target_arch = "x86_64")]
const ARCH: TargetArch = TargetArch::x86_64;
#[cfg(target_arch = "aarch64")]
const ARCH: TargetArch = TargetArch::aarch64;

/// The program for a thread of this kind: what no rule has is refused with SIGSYS, which ends the process.
///
/// # Errors
/// The rules make no program: a condition has no argument of that number, or they are too many.
pub fn compile<'r>(rules: impl IntoIterator<Item = &'r Rule>, thread: Thread) -> Result<BpfProgram, Error> {
    let wrong = |e: &dyn std::fmt::Display| Error::Filter(format!("{thread}: {e}"));
    let mut calls: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for rule in rules.into_iter().filter(|rule| rule.threads.contains(&thread)) {
        // A call that this architecture has not got needs no rule.
        let Some(number) = number(rule.call) else { continue };
        let condition = match rule.only {
            Only::Any => None,
            Only::Is(argument, value) => {
                // The kernel takes these arguments as 32 bits: what is above them decides nothing.
                Some(SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value.into()))
            }
            Only::Own(argument) => {
                let own = std::process::id().into();
                Some(SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, own))
            }
            Only::Without(argument, bits) => Some(SeccompCondition::new(
                argument,
                SeccompCmpArgLen::Qword,
                SeccompCmpOp::MaskedEq(bits.into()),
                0,
            )),
        };
        let of_call = calls.entry(number.into()).or_default();
        if let Some(condition) = condition {
            let condition = condition.map_err(|e| wrong(&e))?;
            of_call.push(SeccompRule::new(vec![condition]).map_err(|e| wrong(&e))?);
        }
    }
    SeccompFilter::new(calls, SeccompAction::Trap, SeccompAction::Allow, ARCH)
        .and_then(BpfProgram::try_from)
        .map_err(|e| wrong(&e))
}

/// Puts this thread under the program, for good.
///
/// # Errors
/// The kernel has no seccomp filters.
pub fn apply(program: &BpfProgram) -> Result<(), Error> {
    seccompiler::apply_filter(program).map_err(|e| Error::Filter(e.to_string()))
}
