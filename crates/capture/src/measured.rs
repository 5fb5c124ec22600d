//! The list of measured facets.

use evenkeel_surface::{Hex64, Measured};

use crate::Parts;

impl Parts<'_> {
    /// Writes a measured value down.
    pub(crate) fn measured(&mut self, facet: &str, shape: Option<u8>, value: u64) {
        self.measured_choice(facet, shape, value, Vec::new(), Vec::new());
    }

    /// Writes a measured value down, with the values that were set and kept, and those that were not.
    pub(crate) fn measured_choice(
        &mut self,
        facet: &str,
        shape: Option<u8>,
        value: u64,
        accepts: Vec<u64>,
        refuses: Vec<u64>,
    ) {
        let hex = |values: Vec<u64>| values.into_iter().map(Hex64).collect();
        let entry = Measured {
            facet: facet.to_owned(),
            shape,
            value: Hex64(value),
            accepts: hex(accepts),
            refuses: hex(refuses),
        };
        self.offer.measured.push(entry);
    }
}
