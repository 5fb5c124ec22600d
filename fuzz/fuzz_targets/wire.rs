//! Any bytes as frames, as a greeting and as a journal: see the body, which the tests run too.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    evenkeel_handover::fuzzing::wire(bytes);
});
