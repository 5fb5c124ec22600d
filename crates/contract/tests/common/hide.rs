//! A surface with one thing missing, for each thing in it.

use evenkeel_surface::{Surface, canonical};

/// Every surface that is `surface` without one entry of one list.
pub fn all(surface: &Surface) -> Vec<(String, Surface)> {
    let mut out = Vec::new();
    macro_rules! hide {
        ($($list:ident),*) => { $(
            for i in 0..surface.offer.$list.len() {
                let mut other = surface.clone();
                let gone = other.offer.$list.remove(i);
                canonical::seal(&mut other);
                out.push((format!("{}[{i}] {gone:?}", stringify!($list)), other));
            }
        )* };
    }
    hide!(
        capabilities,
        cpuid,
        cpuid_emulated,
        cpuid_hyperv,
        cpuid_stored,
        feature_msrs,
        msrs,
        msrs_refused,
        registers,
        attributes,
        sections,
        measured,
        unread
    );
    out
}
