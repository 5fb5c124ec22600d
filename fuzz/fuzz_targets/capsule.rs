//! Any bytes as a capsule: see the body, which the tests run too.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut sealed = bytes.to_vec();
    evenkeel_capsule::fuzzing::reseal(&mut sealed);
    for bytes in [bytes, &sealed] {
        evenkeel_capsule::fuzzing::capsule(bytes);
        evenkeel_state::fuzzing::guest(bytes);
    }
});
