//! The body of the fuzz target: any bytes give a contract or located diagnostics.

use crate::document;

/// Reads any bytes; what was read is read again from what is printed of it.
pub fn contract(bytes: &[u8]) {
    match document::read(bytes) {
        Ok(contract) => {
            let text = document::print(&contract);
            assert_eq!(document::read(text.as_bytes()).expect("what is printed is read"), contract);
        }
        Err(e) => {
            assert!(!e.diagnostics.is_empty());
            for d in &e.diagnostics {
                assert!(d.span.start <= d.span.end && d.span.end <= bytes.len().max(1), "{d:?}");
            }
        }
    }
}
