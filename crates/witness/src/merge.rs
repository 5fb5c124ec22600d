//! What was observed, as part of a capture: unknown becomes known.

use evenkeel_catalog as catalog;
use evenkeel_surface::{Hex64, Measured, Surface, canonical};

use crate::observation::{Observation, Saw};

/// Adds the facets that this observation settles, and that only an observation settles, to a capture of the same host.
/// Their names mark them as observed. Returns how many; none, when the capture has no such shape.
pub fn merge(observation: &Observation, surface: &mut Surface) -> usize {
    let shape = surface.offer.shapes.iter().position(|s| s.name == observation.shape);
    let Some(shape) = shape.filter(|_| surface.arch == observation.arch) else { return 0 };
    let shape = Some(shape as u8);
    let mut added = 0;
    for seen in &observation.seen {
        let Saw::Value(Hex64(value)) = seen.saw else { continue };
        let known = catalog::choice(&seen.name).is_some_and(|c| !c.from.observe.is_empty());
        if !known {
            continue;
        }
        let facet = seen.name.clone();
        let list = &mut surface.offer.measured;
        list.retain(|m| !(m.facet == facet && m.shape == shape));
        let value = Hex64(value);
        list.push(Measured { facet, shape, value, accepts: Vec::new(), refuses: Vec::new() });
        added += 1;
    }
    surface.offer.measured.sort_by(|a, b| (&a.facet, a.shape).cmp(&(&b.facet, b.shape)));
    canonical::seal(surface);
    added
}
