//! Any bytes as a kernel to boot: see the body, which the tests run too.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    evenkeel_monitor::fuzzing::kernel(bytes);
});
