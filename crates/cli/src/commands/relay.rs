//! `evenkeel relay`: what the lab runs on each of two emulated hosts between which a guest moves while it runs.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::Global;
use crate::commands::handing::receive::own;
use crate::failure::Failure;

/// Runs a guest, or waits for one that comes, moves it to the other host when it has worked here for a while, and takes it back if it
/// is to come back. How it moved goes to standard output, a line of JSON for each move from here; what it wrote to its serial port,
/// into a file for each of its times here.
#[derive(clap::Args)]
pub struct Relay {
    /// Where the other host is.
    #[arg(long, value_name = "ADDRESS")]
    over: String,
    /// What the guest writes to its serial port while it works.
    #[arg(long, value_name = "TEXT")]
    text: String,
    /// It moves when it has written that so many times here.
    #[arg(long, value_name = "COUNT")]
    times: u32,
    /// It comes back, and ends here.
    #[arg(long)]
    back: bool,
    /// How it is moved: an option of `evenkeel migrate`.
    #[arg(long, value_name = "OPTION", allow_hyphen_values = true)]
    moving: Vec<String>,
    /// How it is waited for: an option of `evenkeel receive`.
    #[arg(long, value_name = "OPTION", allow_hyphen_values = true)]
    waiting: Vec<String>,
    /// How it runs wherever it came: an option of `evenkeel restore --run`.
    #[arg(long, value_name = "OPTION", allow_hyphen_values = true)]
    running: Vec<String>,
    /// `run` with what it takes; nothing: the guest comes from the other host.
    #[arg(last = true)]
    machine: Vec<String>,
}

fn failed(what: &str, e: &dyn std::fmt::Display) -> Failure {
    Failure { exit: 3, ..Failure::bad(format!("{what}: {e}"), "") }
}

/// The guest's serial port for its `time`th time here, as the file that a job brings back.
pub fn console(time: usize) -> String {
    format!("console.{time}")
}

impl Relay {
    /// Both of its times here, or the one.
    pub fn run(self, _: Global) -> Result<u8, Failure> {
        let program = own()?;
        let first = if self.machine.is_empty() {
            self.receive(&program, 1)
        } else {
            let mut command = Command::new(&program);
            command.args(&self.machine).args(["--control", &control(1)]);
            command
        };
        self.here(first, 1, Some(&program))?;
        if self.back {
            self.here(self.receive(&program, 2), 2, None)?;
        }
        Ok(0)
    }

    /// What waits for a guest.
    fn receive(&self, program: &Path, time: usize) -> Command {
        let mut command = Command::new(program);
        command.args(["receive", "--from", &self.over]).args(&self.waiting);
        command.args(["--", "--control", &control(time)]).args(&self.running);
        command
    }

    /// One of its times here; with the program that moves it on, unless it ends here.
    fn here(&self, mut command: Command, time: usize, mover: Option<&Path>) -> Result<(), Failure> {
        let name = PathBuf::from(console(time));
        let mut console = File::create(&name).map_err(|e| Failure::file(&name, &e))?;
        let mut process = Ended(
            command
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .spawn()
                .map_err(|e| failed("this program", &e))?,
        );
        let broken = |e: std::io::Error| failed("the guest's serial port", &e);
        let mut from =
            process.0.stdout.take().ok_or_else(|| failed("the guest's serial port", &"it is not there"))?;
        let (mut left, mut moving, mut tail) = (self.times, None, Vec::new());
        let mut buffer = [0; 4096];
        loop {
            let length = from.read(&mut buffer).map_err(broken)?;
            if length == 0 {
                break;
            }
            console.write_all(&buffer[..length]).map_err(broken)?;
            tail.extend_from_slice(&buffer[..length]);
            while let Some(at) =
                tail.windows(self.text.len()).position(|window| window == self.text.as_bytes())
            {
                tail.drain(..at + self.text.len());
                left = left.saturating_sub(1);
            }
            tail.drain(..tail.len().saturating_sub(self.text.len()));
            if let (0, None, Some(program)) = (left, &moving, mover) {
                let mut command = Command::new(program);
                command
                    .args(["--format", "json", "migrate", "--control", &control(time), "--to", &self.over])
                    .args(&self.moving);
                moving = Some(Ended(
                    command.stdin(Stdio::null()).spawn().map_err(|e| failed("this program", &e))?,
                ));
            }
        }
        if let Some(mut moving) = moving {
            moving.well("the move")?;
        } else if mover.is_some() {
            return Err(failed("the guest", &"it came to its end before it was to move"));
        }
        process.well("the guest's process")
    }
}

fn control(time: usize) -> String {
    format!("control.{time}")
}

/// A process that does not outlive this one's interest in it.
struct Ended(Child);

impl Ended {
    /// Waits until it ended as it should.
    fn well(&mut self, what: &str) -> Result<(), Failure> {
        match self.0.wait() {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(failed(what, &status)),
            Err(e) => Err(failed(what, &e)),
        }
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        // One that has ended is not there any more.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
