//! Prints a capture of this host on standard output, and on standard error how long it took.
#![allow(clippy::print_stdout)]

use std::process::ExitCode;

fn main() -> ExitCode {
    let live = evenkeel_sys::Live::new();
    let offline = std::env::args().any(|arg| arg == "--no-network");
    let options = evenkeel_capture::Options { network: !offline, ..Default::default() };
    match evenkeel_capture::capture_timed(&live, &options) {
        Ok((surface, timings)) => {
            print!("{}", evenkeel_surface::canonical::print(&surface));
            for (phase, time) in &timings.phases {
                eprintln!("{phase:16} {:8.3} ms", time.as_secs_f64() * 1e3);
            }
            eprintln!("{:16} {:8.3} ms", "whole", timings.whole().as_secs_f64() * 1e3);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}\nhint: {}", error.hint());
            ExitCode::FAILURE
        }
    }
}
