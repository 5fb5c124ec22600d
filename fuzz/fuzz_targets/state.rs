//! Any bytes as a state: see the body, which the tests run too.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    evenkeel_state::fuzzing::state(bytes);
});
