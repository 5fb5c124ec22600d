//! What each edge of the order is there for: a guest is saved or restored with one edge after the other the wrong way round.

use std::time::Instant;

use evenkeel_catalog::{Arch, Edge};
use evenkeel_state::arm64;
use evenkeel_state::order::{Order, Phase, edges};
use evenkeel_sys::{Backend, Deadline, System};
use serde::{Deserialize, Serialize};

use super::vm::{Copied, parts, revive_in};
use super::{Error, Kept, differences, scenarios};
use crate::aarch64::session::Session;

/// An edge that was turned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turned {
    /// What the catalog has first.
    pub before: String,
    /// What it has after that.
    pub after: String,
    /// `save` or `restore`.
    pub phase: String,
    /// What went wrong; none where nothing showed.
    pub shown: Option<String>,
    /// Why it could not be turned: other edges ask for the same.
    pub implied: bool,
}

/// Saves or restores with each edge turned.
///
/// # Errors
/// There is no KVM. What else goes wrong is what is looked for.
pub fn turn_edges(backend: &dyn Backend, kept: &Kept) -> Result<Vec<Turned>, Error> {
    let system = System::open(backend)?;
    let mut all = Vec::new();
    let both = edges(Arch::Aarch64, Phase::Save).chain(edges(Arch::Aarch64, Phase::Restore));
    for edge in both {
        let order = Order::turned(edge);
        let shown = order.as_ref().and_then(|order| {
            let gone = match edge.phase {
                "save" => save(&system, kept, edge, order),
                _ => restore(&system, kept, &kept.memory, order),
            };
            gone.unwrap_or_else(|e| Some(e.to_string()))
        });
        all.push(Turned {
            before: edge.before.to_owned(),
            after: edge.after.to_owned(),
            phase: edge.phase.to_owned(),
            shown,
            implied: order.is_none(),
        });
    }
    Ok(all)
}

/// What goes wrong with a guest that was saved in this order. Memory is saved by whoever saves the guest: turned, it is
/// what it was before.
fn save(system: &System<'_>, kept: &Kept, edge: &Edge, order: &Order) -> Result<Option<String>, Error> {
    let catalogued = Order::catalogued(Arch::Aarch64, Phase::Restore);
    if edge.after == "arm64-guest-memory" {
        return match &kept.early {
            Some(early) => restore(system, kept, early, catalogued),
            None => Ok(None),
        };
    }
    let begin = Instant::now();
    let (revived, _) = revive_in(system, &kept.saved.image, &kept.memory, catalogued)?;
    let manifest = &kept.saved.image.manifest;
    let saved = arm64::save_in(&mut parts(&revived.machine, Vec::new()), manifest, order)?;
    Ok(differences(&kept.saved.image, &saved.image, begin).into_iter().next())
}

/// What goes wrong when it is restored in this order, with this memory.
fn restore(
    system: &System<'_>,
    kept: &Kept,
    memory: &Copied,
    order: &Order,
) -> Result<Option<String>, Error> {
    let begin = Instant::now();
    let (revived, report) = revive_in(system, &kept.saved.image, memory, order)?;
    if let Some(lost) = report.not_kept.first() {
        return Ok(Some(lost.to_string()));
    }
    let again = arm64::save(&mut parts(&revived.machine, Vec::new()), &kept.saved.image.manifest)?;
    if let Some(difference) = differences(&kept.saved.image, &again.image, begin).into_iter().next() {
        return Ok(Some(difference));
    }
    let deadline = Deadline::new();
    let mut session = Session::new(&revived.machine, 0, &deadline)?;
    let met = scenarios::check(kept.trial.scenario, &revived.machine, &mut session, &kept.left)?;
    Ok(met.into_iter().next())
}
