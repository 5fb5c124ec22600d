//! Any bytes as a guest of the serial port, the keyboard controller and the IOAPIC: see the body, which the tests run too.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    evenkeel_monitor::fuzzing::ports(bytes);
});
