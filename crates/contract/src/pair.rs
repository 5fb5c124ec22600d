//! Two hosts, asked everything that is asked of a kernel change when nobody names a contract.

use crate::baseline::{Conflict, baseline};
use crate::verdict::{Verdicts, fold_guests, under, unpinned};
use crate::view::View;

/// The name of the guest under the sealed baseline of the two hosts.
pub const PINNED: &str = "pinned";

/// The answers for a change from host O to host N.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// The shapes that both hosts were captured in, in O's order; never none.
    pub shapes: Vec<String>,
    /// The verdicts for the unpinned guest, then for the one under the sealed baseline of the two.
    pub guests: [Verdicts; 2],
    /// What keeps the hosts from having a common contract at all.
    pub conflicts: Vec<Conflict>,
}

/// Asks the four questions for both guests, in every shape that both hosts have. None: they have no shape in common,
/// so nothing was asked, and nothing may be concluded.
pub fn pair(o: &[View], n: &[View]) -> Option<Pair> {
    let common: Vec<(&View, &View)> = o
        .iter()
        .filter_map(|old| n.iter().find(|new| new.shape == old.shape).map(|new| (old, new)))
        .collect();
    if common.is_empty() {
        return None;
    }
    let mut conflicts: Vec<Conflict> = Vec::new();
    // A contract is for one shape: the pinned guest is asked for in each, and the answers are folded.
    let mut pinned = Vec::with_capacity(common.len());
    for (old, new) in &common {
        let meet = baseline(&[old, new], PINNED);
        for c in meet.conflicts {
            if !conflicts.contains(&c) {
                conflicts.push(c);
            }
        }
        pinned.push(under(&meet.contract, o, n));
    }
    let shapes = common.iter().map(|(old, _)| old.shape.clone()).collect();
    Some(Pair { shapes, guests: [unpinned(o, n), fold_guests(pinned)], conflicts })
}
