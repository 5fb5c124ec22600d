//! What comes before what, when state is saved or set: the catalog's edges as ranks.
//!
//! A rank says how many items must come before, at the least. Ascending, over all vCPUs at once, is an order that keeps every
//! edge. Items that no edge names have the rank of their class.

use std::collections::HashMap;
use std::sync::OnceLock;

use evenkeel_catalog::{Arch, EDGES, Edge};

/// Saving or setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// State is read.
    Save,
    /// State is set.
    Restore,
}

impl Phase {
    /// The word in the catalog.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Save => "save",
            Phase::Restore => "restore",
        }
    }
}

/// Ranks of the items of one architecture in one phase.
#[derive(Clone, Debug)]
pub struct Order {
    ranks: HashMap<String, u32>,
}

/// Edges that go round in a circle have no order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Circle;

impl Order {
    /// The catalog's. Its edges have no circle: a test sees to that.
    pub fn catalogued(arch: Arch, phase: Phase) -> &'static Order {
        static ORDERS: [OnceLock<Order>; 4] = [const { OnceLock::new() }; 4];
        let place = usize::from(arch == Arch::Aarch64) * 2 + usize::from(phase == Phase::Restore);
        ORDERS[place].get_or_init(|| {
            Order::new(edges(arch, phase).map(|e| (e.before, e.after)))
                .unwrap_or(Order { ranks: HashMap::new() })
        })
    }

    /// The catalog's with one edge the other way round: what goes wrong then shows what the edge is for. None where the
    /// other edges ask for the same.
    pub fn turned(edge: &Edge) -> Option<Order> {
        let phase = if edge.phase == "save" { Phase::Save } else { Phase::Restore };
        let others = edges(edge.arch, phase).filter(|e| (e.before, e.after) != (edge.before, edge.after));
        Order::new(others.map(|e| (e.before, e.after)).chain([(edge.after, edge.before)])).ok()
    }

    /// The order of these edges (before, after). An edge of a class, such as `msrs`, holds for each of its items.
    ///
    /// # Errors
    /// There is none.
    pub fn new<'a>(edges: impl Iterator<Item = (&'a str, &'a str)>) -> Result<Order, Circle> {
        let mut edges: Vec<(&str, &str)> = edges.collect();
        let mut names: Vec<&str> = edges.iter().flat_map(|&(before, after)| [before, after]).collect();
        names.sort_unstable();
        names.dedup();
        for at in 0..edges.len() {
            let (before, class) = edges[at];
            edges.extend(names.iter().filter(|n| class_of(n) == Some(class)).map(|n| (before, *n)));
        }
        let mut ranks: HashMap<String, u32> = names.iter().map(|n| ((*n).to_owned(), 0)).collect();
        // No way is longer than there are names: what still moves then goes round.
        for _ in 0..=names.len() {
            let mut moved = false;
            for (before, after) in &edges {
                let least = ranks.get(*before).copied().unwrap_or(0) + 1;
                if let Some(rank) = ranks.get_mut(*after).filter(|rank| **rank < least) {
                    *rank = least;
                    moved = true;
                }
            }
            if !moved {
                return Ok(Order { ranks });
            }
        }
        Err(Circle)
    }

    /// An item's rank.
    pub fn rank(&self, name: &str) -> u32 {
        let known = |name: &str| self.ranks.get(name).copied();
        known(name).or_else(|| class_of(name).and_then(known)).unwrap_or(0)
    }
}

/// The class of an item that is one of many.
fn class_of(name: &str) -> Option<&'static str> {
    name.starts_with("msr.").then_some("msrs")
}

/// The catalog's edges of an architecture and phase.
pub fn edges(arch: Arch, phase: Phase) -> impl Iterator<Item = &'static Edge> {
    EDGES.iter().filter(move |e| e.arch == arch && e.phase == phase.name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_edge_is_kept_and_none_goes_round() {
        for arch in [Arch::X86_64, Arch::Aarch64] {
            for phase in [Phase::Save, Phase::Restore] {
                let order = Order::new(edges(arch, phase).map(|e| (e.before, e.after))).unwrap();
                for e in edges(arch, phase) {
                    assert!(order.rank(e.before) < order.rank(e.after), "{} before {}", e.before, e.after);
                }
            }
        }
        assert!(edges(Arch::X86_64, Phase::Restore).count() > 40);
        assert_eq!(Order::new([("a", "b"), ("b", "a")].into_iter()).unwrap_err(), Circle);
    }

    #[test]
    fn an_edge_of_a_class_holds_for_its_items() {
        let order = Order::new([("cpuid", "msrs"), ("msr.1", "msr.2")].into_iter()).unwrap();
        assert_eq!(["cpuid", "msr.1", "msr.2", "msr.3", "regs"].map(|n| order.rank(n)), [0, 1, 2, 1, 0]);
    }

    #[test]
    fn a_turned_edge_is_turned_or_implied() {
        let (mut turned, mut implied) = (0, 0);
        for arch in [Arch::X86_64, Arch::Aarch64] {
            for e in edges(arch, Phase::Restore) {
                match Order::turned(e) {
                    Some(order) => {
                        assert!(order.rank(e.after) < order.rank(e.before), "{} {}", e.before, e.after);
                        turned += 1;
                    }
                    None => implied += 1,
                }
            }
        }
        assert!(turned > 40, "{turned} turned, {implied} implied");
    }
}
