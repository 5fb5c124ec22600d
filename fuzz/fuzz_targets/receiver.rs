//! Any source that a destination may meet: see the body, which the tests run too.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    evenkeel_migrate::fuzzing::receiver(bytes);
});
