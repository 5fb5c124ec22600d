//! `evenkeel observe --contract`: a guest under a contract, and what it really sees.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Write as _;

use evenkeel_apply::{Applying, Plan, Setup, Topology, Verdict};
use evenkeel_contract::Contract;
use evenkeel_contract::describe::parts;
use evenkeel_contract::layout::index_of;
use evenkeel_monitor::Irqchip;
use evenkeel_steps::{Expect, Facet, Place};
use evenkeel_witness::observation::{Observation, Saw, unfold};
use schemars::JsonSchema;
use serde::Serialize;

use crate::failure::Failure;

/// `evenkeel observe --contract`.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct ContractObserved {
    /// `evenkeel.observed-contract/1`.
    pub schema: &'static str,
    /// The contract's name.
    pub contract: String,
    /// What came of applying it, read back: `kept`, `refused` or `incomplete`.
    pub applied: &'static str,
    /// What was read back otherwise than set, by facet.
    pub read_back: Vec<String>,
    /// What the guest saw otherwise than promised.
    pub leaks: Vec<Leak>,
    /// How many words of CPUID the guest saw as promised.
    pub as_promised: usize,
    /// Words that the guest did not look at.
    pub not_seen: Vec<String>,
    /// The observation.
    pub observation: String,
}

/// Something that a guest saw otherwise than its contract says.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Leak {
    /// The facet.
    pub facet: String,
    /// In a line.
    pub title: String,
    /// What the contract says.
    pub promised: String,
    /// What the guest saw.
    pub saw: String,
}

impl ContractObserved {
    /// The exit code: 0 when the guest saw what was promised, 1 when not, 3 when it did not look everywhere.
    pub fn code(&self) -> u8 {
        match (self.leaks.is_empty() && self.applied == "kept", self.not_seen.is_empty()) {
            (false, _) => 1,
            (true, false) => 3,
            (true, true) => 0,
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut w = String::new();
        let _ = writeln!(
            w,
            "contract {}, read back: {}; {} words of CPUID seen as promised, {} facets not",
            self.contract,
            self.applied,
            self.as_promised,
            self.leaks.len()
        );
        for leak in &self.leaks {
            let _ = writeln!(
                w,
                "  {}: {} promised, the guest saw {}  ({})",
                leak.facet, leak.promised, leak.saw, leak.title
            );
        }
        let silent: Vec<&str> = self
            .read_back
            .iter()
            .map(String::as_str)
            .filter(|facet| !self.leaks.iter().any(|leak| leak.facet == *facet))
            .collect();
        if !silent.is_empty() {
            let _ = writeln!(
                w,
                "Read back otherwise than set, and not seen by this guest: {}",
                silent.join(", ")
            );
        }
        if !self.not_seen.is_empty() {
            let _ = writeln!(w, "Not looked at: {}", self.not_seen.join(", "));
        }
        if self.applied != "kept" {
            let _ = writeln!(
                w,
                "hint: `evenkeel apply CONTRACT -o OTHER` writes a contract that this host can keep"
            );
        }
        w
    }
}

/// Runs the witness under a contract, whatever reading back says, and compares.
pub fn observe(contract: &Contract) -> Result<(ContractObserved, Observation), Failure> {
    let cannot = |e: &dyn std::fmt::Display| Failure {
        exit: 3,
        ..Failure::bad(format!("nothing was observed: {e}"), "this needs a usable /dev/kvm")
    };
    let host = evenkeel_hosts::capture_here()?;
    // The witness brings a second vCPU up.
    let setup = Setup { topology: Topology { vcpus: 2, threads: 1 }, ..Setup::default() };
    let plan = Plan::new(contract, &host, setup).map_err(|e| {
        Failure::bad(e.to_string(), "`evenkeel baseline here` makes a contract for this host")
    })?;
    let applying: RefCell<Applying<'_>> = RefCell::new(plan.start());
    let seen = super::observe::under(
        super::observe::known(&contract.shape, Irqchip::by_name)?,
        // A guest that is started again gets the contract again. What reading back says is in the report; here the guest
        // is asked all the same.
        &|vm| {
            *applying.borrow_mut() = plan.start();
            let _ = applying.borrow_mut().vm(vm);
            Ok(())
        },
        &|vcpu, id| {
            let _ = applying.borrow_mut().vcpu(vcpu, id);
            Ok(())
        },
    )
    .map_err(|e| cannot(&e))?;
    let report = applying.borrow().report();
    let (leaks, as_promised, not_seen) = against(&plan.shown_cpuid(0), &unfold(&seen.seen));
    let observed = ContractObserved {
        schema: "evenkeel.observed-contract/1",
        contract: contract.name.clone(),
        applied: match report.verdict {
            Verdict::Kept | Verdict::Waived => "kept",
            Verdict::Refused => "refused",
            Verdict::Incomplete => "incomplete",
        },
        read_back: report.findings().into_iter().map(str::to_owned).collect(),
        leaks,
        as_promised,
        not_seen,
        observation: seen.digest.clone(),
    };
    Ok((observed, seen))
}

/// What a guest saw in the places of `expected`.
fn against(expected: &[Expect], seen: &BTreeMap<String, Saw>) -> (Vec<Leak>, usize, Vec<String>) {
    let (mut leaks, mut as_promised, mut not_seen) = (Vec::new(), 0, Vec::new());
    for e in expected {
        let (Place::Cpuid(leaf, subleaf, register), Facet::Word(at)) = (e.place, e.facet) else { continue };
        let register = ["eax", "ebx", "ecx", "edx"][usize::from(register & 3)];
        let name = format!("cpuid.{leaf:x}.{subleaf:x}.{register}");
        match seen.get(&name) {
            Some(Saw::Value(value)) => {
                let differs = (value.0 ^ e.wanted) & e.mask;
                as_promised += usize::from(differs == 0);
                leaks.extend(parts(at, index_of(at), differs).into_iter().map(|part| Leak {
                    promised: part.show(e.wanted),
                    saw: part.show(value.0),
                    title: part.title.to_owned(),
                    facet: part.name,
                }));
            }
            // Leaves of nothing but zeroes are not in an observation.
            None if e.wanted & e.mask == 0 => as_promised += 1,
            _ => not_seen.push(name),
        }
    }
    (leaks, as_promised, not_seen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use evenkeel_contract::Coord;
    use evenkeel_surface::Hex64;

    fn expect(name: &str, wanted: u64) -> Expect {
        let at = Coord::parse(name).unwrap();
        let Coord::Cpuid { leaf, subleaf, register, .. } = at else { panic!("{name}") };
        Expect {
            place: Place::Cpuid(leaf, subleaf, register),
            mask: 0xffff_ffff,
            wanted,
            facet: Facet::Word(at),
            fresh: false,
        }
    }

    #[test]
    fn what_leaks_is_named_by_its_facet() {
        let seen = [("cpuid.7.0.ecx", 0x80), ("cpuid.7.0.ebx", 1)];
        let seen = seen.map(|(name, value)| (name.to_owned(), Saw::Value(Hex64(value)))).into();
        let (leaks, fine, not_seen) = against(
            &[
                expect("cpuid.7.0.ecx", 0),
                expect("cpuid.7.0.ebx", 1),
                expect("cpuid.7.0.edx", 4),
                expect("cpuid.d.1.eax", 0),
            ],
            &seen,
        );
        assert_eq!(leaks.len(), 1, "{leaks:?}");
        assert_eq!((leaks[0].facet.as_str(), leaks[0].saw.as_str()), ("cpuid.7.0.ecx.shstk", "0x1"));
        assert_eq!((fine, not_seen), (2, vec!["cpuid.7.0.edx".to_owned()]));
    }
}
