//! Prints a capture of this host on standard output, and on standard error how long it took.
//!
//! `--no-network` leaves out tap and vhost; `--log FILE` also writes every call with its answer, a line each, and
//! `--replay FILE` captures the host of such a log instead of this one.
#![allow(clippy::print_stdout)]

use std::fs;
use std::process::ExitCode;

use evenkeel_capture::{Options, capture_timed};
use evenkeel_surface::canonical;
use evenkeel_sys::{Backend, Live, Log, Recording, Replaying};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(words) => {
            eprintln!("error: {words}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let mut arguments = std::env::args().skip(1);
    let (mut log, mut replay, mut options) = (None, None, Options::default());
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--no-network" => options.network = false,
            "--log" => log = arguments.next(),
            "--replay" => replay = arguments.next(),
            other => return Err(format!("unknown argument {other}")),
        }
    }
    if let Some(path) = replay {
        let text = fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
        let log = Log::from_json_lines(&text).map_err(|e| format!("{path}: {e}"))?;
        print(&Replaying::new(log), &options)
    } else if let Some(path) = log {
        let recording = Recording::new(Live::new());
        print(&recording, &options)?;
        fs::write(&path, recording.into_log().to_json_lines()).map_err(|e| format!("{path}: {e}"))
    } else {
        print(&Live::new(), &options)
    }
}

fn print(backend: &dyn Backend, options: &Options) -> Result<(), String> {
    let captured = capture_timed(backend, options);
    let (surface, timings) = captured.map_err(|error| format!("{error}\nhint: {}", error.hint()))?;
    print!("{}", canonical::print(&surface));
    for (phase, time) in &timings.phases {
        eprintln!("{phase:16} {:8.3} ms", time.as_secs_f64() * 1e3);
    }
    eprintln!("{:16} {:8.3} ms", "whole", timings.whole().as_secs_f64() * 1e3);
    Ok(())
}
