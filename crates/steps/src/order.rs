//! What comes before what.

use std::collections::BTreeSet;

use evenkeel_catalog::{Arch, BUILT_IN_STEPS, EDGES, KNOBS, Stage};

/// Edges that go round in a circle: there is no order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cycle {
    /// The steps that wait for each other.
    pub among: Vec<String>,
}

impl std::fmt::Display for Cycle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the steps {} wait for each other", self.among.join(", "))
    }
}

impl std::error::Error for Cycle {}

/// Sorts steps by stage, then by edges (before, after), then by name. Edges that name other steps do not count.
///
/// # Errors
/// A [`Cycle`].
pub fn sort<'a>(steps: &[(&'a str, Stage)], edges: &[(&str, &str)]) -> Result<Vec<&'a str>, Cycle> {
    let mut left: BTreeSet<(Stage, &str)> = steps.iter().map(|(name, stage)| (*stage, *name)).collect();
    let mut sorted = Vec::with_capacity(left.len());
    while !left.is_empty() {
        let waits = |name: &str| edges.iter().any(|(b, a)| *a == name && left.iter().any(|(_, n)| n == b));
        // The first stage has to be through before the next one begins: on another file descriptor, at another time.
        let stage = left.iter().next().map(|(stage, _)| *stage);
        let next = left.iter().find(|(s, name)| Some(*s) == stage && !waits(name)).copied();
        let Some(next) = next else {
            return Err(Cycle { among: left.iter().map(|(_, name)| (*name).to_owned()).collect() });
        };
        left.remove(&next);
        sorted.push(next.1);
    }
    Ok(sorted)
}

/// All steps that the catalog knows for an architecture, in their order.
///
/// # Errors
/// A [`Cycle`]; the catalog's build refuses data that has one.
pub fn catalogued(arch: Arch) -> Result<Vec<&'static str>, Cycle> {
    let built_in = BUILT_IN_STEPS.iter().filter(|(a, ..)| *a == arch).map(|(_, name, stage)| (*name, *stage));
    let knobs = KNOBS.iter().filter(|k| k.arch == arch).map(|k| (k.name, k.stage));
    let steps: Vec<(&'static str, Stage)> = built_in.chain(knobs).collect();
    let edges: Vec<(&str, &str)> =
        EDGES.iter().filter(|e| e.arch == arch && e.phase == "apply").map(|e| (e.before, e.after)).collect();
    sort(&steps, &edges)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_stages_and_names_decide_in_this_order() {
        let steps =
            [("b", Stage::Vm), ("a", Stage::Vm), ("c", Stage::Vm), ("z", Stage::Vcpu), ("y", Stage::Vcpu)];
        assert_eq!(sort(&steps, &[]).unwrap(), ["a", "b", "c", "y", "z"]);
        let edges = [("c", "a"), ("z", "y"), ("nobody", "b")];
        assert_eq!(sort(&steps, &edges).unwrap(), ["b", "c", "a", "z", "y"]);
        let mut turned = steps;
        turned.reverse();
        assert_eq!(sort(&turned, &edges).unwrap(), ["b", "c", "a", "z", "y"]);
    }

    #[test]
    fn a_circle_and_a_way_back_are_errors() {
        let steps = [("a", Stage::Vm), ("b", Stage::Vm), ("c", Stage::Vcpu)];
        let circle = sort(&steps, &[("a", "b"), ("b", "a")]).unwrap_err();
        assert_eq!(circle.among, ["a", "b", "c"]);
        assert!(sort(&steps, &[("c", "a")]).is_err());
    }

    #[test]
    fn the_catalog_has_an_order_that_keeps_its_edges() {
        for arch in [Arch::X86_64, Arch::Aarch64] {
            let order = catalogued(arch).unwrap();
            assert!(order.len() >= 10, "{order:?}");
            let place = |name: &str| order.iter().position(|n| *n == name).unwrap();
            let mut edges = 0;
            for e in EDGES.iter().filter(|e| e.arch == arch && e.phase == "apply") {
                assert!(place(e.before) < place(e.after), "{} before {}", e.before, e.after);
                edges += 1;
            }
            assert!(edges >= 9, "{edges}");
        }
    }
}
