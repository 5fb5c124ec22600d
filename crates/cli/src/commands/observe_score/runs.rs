//! Guests under a plan, on a host that lies.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use evenkeel_apply::{Applying, Plan};
use evenkeel_monitor::Irqchip;
use evenkeel_sys::{Alteration, Live, Lying, Made, System};
use evenkeel_witness::observation::{Saw, Volatile, unfold};
use evenkeel_witness::programs::x86_64::{Configure, Look, look};

use crate::failure::Failure;

/// What a guest saw, and what reading back said meanwhile.
pub struct Seen {
    /// By name; clocks and counters by what sort of thing they are.
    pub saw: BTreeMap<String, Saw>,
    /// What became of the alterations.
    pub made: Vec<Made>,
    read_back: BTreeSet<String>,
}

impl Seen {
    /// The value under this name; a word of CPUID that is 0 is not in an observation.
    pub fn value(&self, name: &str) -> Option<u64> {
        match self.saw.get(name) {
            Some(Saw::Value(value)) => Some(value.0),
            None if name.starts_with("cpuid.") => Some(0),
            _ => None,
        }
    }
}

/// Runs guests, and counts them.
pub struct Runs<'p> {
    plan: &'p Plan,
    irqchip: Irqchip,
    /// How many.
    pub made: usize,
    /// How often reading back told of an alteration.
    pub read_back: usize,
}

impl<'p> Runs<'p> {
    /// None yet.
    pub fn new(plan: &'p Plan, irqchip: Irqchip) -> Self {
        Runs { plan, irqchip, made: 0, read_back: 0 }
    }

    /// A guest on a host that alters this.
    ///
    /// # Errors
    /// The guest does not run, or not to its end.
    pub fn run(&mut self, alterations: &[Alteration], how: Look<'_>) -> Result<Seen, String> {
        self.made += 1;
        let backend = Lying::new(Live::new(), alterations.to_vec());
        let applying: RefCell<Applying<'_>> = RefCell::new(self.plan.start());
        let system = System::open(&backend).map_err(|e| e.to_string())?;
        let vm = |vm: &evenkeel_sys::Vm<'_>| {
            let _ = applying.borrow_mut().vm(vm);
            Ok(())
        };
        let vcpu = |vcpu: &evenkeel_sys::Vcpu<'_>, id| {
            let _ = applying.borrow_mut().vcpu(vcpu, id);
            Ok(())
        };
        let configure = Configure { vm: &vm, vcpu: &vcpu, ..Configure::default() };
        let seen = look(&system, self.irqchip, &configure, how, Volatile::default())
            .map_err(|e| format!("no guest runs: {e}"))?;
        let mut saw = unfold(&seen.seen);
        // Whether there is a value, not which.
        saw.extend(unfold(&seen.running).into_iter().map(|(name, saw)| match saw {
            Saw::Value(_) => (name, Saw::Executes),
            other => (name, other),
        }));
        let report = applying.borrow().report();
        let read_back = report.differences().map(|d| d.facet.clone()).collect();
        Ok(Seen { saw, made: backend.made(), read_back })
    }

    /// As [`Runs::run`], on a host that alters nothing or only what belongs to the setting: what others are compared with.
    ///
    /// # Errors
    /// The same: then there is nothing to compare with.
    pub fn reference(&mut self, setting: &[Alteration], how: Look<'_>) -> Result<Seen, Failure> {
        self.run(setting, how).map_err(|e| Failure {
            exit: 3,
            ..Failure::bad(format!("nothing was observed: {e}"), "this needs a usable /dev/kvm")
        })
    }

    /// As [`Runs::run`], where an alteration that the host refuses makes no result. Counts what is read back all the same.
    ///
    /// # Errors
    /// The guest does not run, or an alteration was not made.
    pub fn altered(&mut self, list: &[Alteration], how: Look<'_>, plain: &Seen) -> Result<Seen, String> {
        let seen = self.run(list, how)?;
        for made in &seen.made {
            match &made.refused {
                Some(why) => return Err(format!("the host refuses it here: {why}")),
                None if made.calls == 0 => return Err("nothing came to be altered".to_owned()),
                None => {}
            }
        }
        self.read_back += usize::from(seen.read_back.difference(&plain.read_back).next().is_some());
        Ok(seen)
    }
}

/// The names under which two guests saw something else.
pub fn differences(a: &Seen, b: &Seen) -> BTreeSet<String> {
    let names = a.saw.keys().chain(b.saw.keys());
    names.filter(|name| a.saw.get(*name) != b.saw.get(*name)).cloned().collect()
}
