//! In which order items of state are read or set: as the catalog's edges say, for both architectures.

use std::collections::HashMap;
use std::sync::OnceLock;

use evenkeel_catalog::{Arch, EDGES, Edge};

/// How many items must come before each item, at the least. Ascending is an order that keeps every edge; items of one rank
/// have no order among them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranks(HashMap<&'static str, u32>);

impl Ranks {
    /// From edges. Edges that go round in a circle have no order, and the catalog's build refuses such data; here the
    /// search ends nevertheless.
    pub fn of_edges<'e>(edges: impl Iterator<Item = &'e Edge> + Clone) -> Ranks {
        let mut ranks: HashMap<&'static str, u32> = HashMap::new();
        // No way is longer than there are edges.
        for _ in 0..edges.clone().count() {
            let mut changed = false;
            for edge in edges.clone() {
                let least = ranks.get(edge.before).copied().unwrap_or(0) + 1;
                let rank = ranks.entry(edge.after).or_default();
                changed |= *rank < least;
                *rank = least.max(*rank);
            }
            if !changed {
                break;
            }
        }
        Ranks(ranks)
    }

    /// The rank of an item; one that no edge names may come first.
    pub fn of(&self, item: &str) -> u32 {
        self.0.get(item).copied().unwrap_or(0)
    }
}

/// The edges of an architecture and a phase: `save` or `restore`.
pub fn edges(arch: Arch, phase: &str) -> impl Iterator<Item = &'static Edge> + Clone {
    EDGES.iter().filter(move |edge| edge.arch == arch && edge.phase == phase)
}

/// The ranks of all items of an architecture when state is saved.
pub fn saving(arch: Arch) -> &'static Ranks {
    static RANKS: [OnceLock<Ranks>; 2] = [OnceLock::new(), OnceLock::new()];
    RANKS[usize::from(arch == Arch::Aarch64)].get_or_init(|| Ranks::of_edges(edges(arch, "save")))
}

/// The ranks of all items of an architecture when state is restored.
pub fn restoring(arch: Arch) -> &'static Ranks {
    static RANKS: [OnceLock<Ranks>; 2] = [OnceLock::new(), OnceLock::new()];
    RANKS[usize::from(arch == Arch::Aarch64)].get_or_init(|| Ranks::of_edges(edges(arch, "restore")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_edge_is_kept_by_the_ranks() {
        let mut seen = 0;
        for arch in [Arch::X86_64, Arch::Aarch64] {
            for (phase, ranks) in [("save", saving(arch)), ("restore", restoring(arch))] {
                for edge in edges(arch, phase) {
                    assert!(ranks.of(edge.before) < ranks.of(edge.after), "{} {}", edge.before, edge.after);
                    seen += 1;
                }
            }
        }
        assert!(seen > 60, "{seen} edges");
    }

    #[test]
    fn without_an_edge_the_order_is_another() {
        let mut decisive = 0;
        for left_out in edges(Arch::Aarch64, "restore") {
            let ranks =
                Ranks::of_edges(edges(Arch::Aarch64, "restore").filter(|e| !std::ptr::eq(*e, left_out)));
            decisive += usize::from(ranks != *restoring(Arch::Aarch64));
        }
        assert!(decisive > 20, "{decisive} edges");
    }
}
