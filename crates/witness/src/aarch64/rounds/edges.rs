//! What each edge of the order is there for: a guest is restored with one edge after the other the wrong way round.

use std::time::Instant;

use evenkeel_catalog::Arch;
use evenkeel_state::arm64;
use evenkeel_state::order::{Order, Phase, edges};
use evenkeel_sys::{Backend, Deadline, System};
use serde::{Deserialize, Serialize};

use super::vm::{parts, revive_in};
use super::{Error, Kept, differences, scenarios};
use crate::aarch64::session::Session;

/// An edge that was turned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turned {
    /// What the catalog has first.
    pub before: String,
    /// What it has after that.
    pub after: String,
    /// What went wrong; none where nothing showed.
    pub shown: Option<String>,
    /// Why it could not be turned: other edges ask for the same.
    pub implied: bool,
}

/// Restores with each edge turned.
///
/// # Errors
/// There is no KVM. What else goes wrong is what is looked for.
pub fn turn_edges(backend: &dyn Backend, kept: &Kept) -> Result<Vec<Turned>, Error> {
    let system = System::open(backend)?;
    let mut all = Vec::new();
    for edge in edges(Arch::Aarch64, Phase::Restore) {
        let order = Order::turned(edge);
        let shown = order
            .as_ref()
            .and_then(|order| restore(&system, kept, order).unwrap_or_else(|e| Some(e.to_string())));
        let (before, after) = (edge.before.to_owned(), edge.after.to_owned());
        all.push(Turned { before, after, shown, implied: order.is_none() });
    }
    Ok(all)
}

/// What goes wrong in this order.
fn restore(system: &System<'_>, kept: &Kept, order: &Order) -> Result<Option<String>, Error> {
    let begin = Instant::now();
    let (revived, report) = revive_in(system, &kept.saved.image, &kept.memory, order)?;
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
