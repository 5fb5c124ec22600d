//! Any bytes as the saved state of a device: see the body, which the tests run too.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    evenkeel_monitor::fuzzing::saved(bytes);
});
