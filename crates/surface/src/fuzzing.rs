//! The body of the fuzz target: any bytes give a surface or located diagnostics.

use crate::{Limits, canonical, read};

/// Reads any bytes; what was read is read again from what is printed of it.
pub fn surface(bytes: &[u8]) {
    match read::surface(bytes, &Limits::default()) {
        Ok(surface) => {
            let text = canonical::print(&surface);
            let again = read::surface(text.as_bytes(), &Limits::default()).expect("what is printed is read");
            assert_eq!(again, surface);
        }
        Err(e) => {
            assert!(!e.diagnostics.is_empty() && e.diagnostics.len() <= Limits::default().diagnostics + 1);
            for d in &e.diagnostics {
                assert!(d.span.start <= d.span.end && d.span.end <= bytes.len().max(1), "{d:?}");
            }
        }
    }
}
