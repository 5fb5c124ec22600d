//! The run loop.

use std::time::Duration;

use evenkeel_sys::{Deadline, Errno, Exit, Runner};

use crate::Error;

/// What to do after an exit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Run on.
    Go,
    /// Run on, with this for the guest that reads.
    Answer(Vec<u8>),
    /// Enough: [`run`] returns the exit.
    Stop,
}

/// Whoever plays the machine around a vCPU.
pub trait Handler {
    /// The guest stopped, and why.
    fn exit(&mut self, runner: &Runner<'_, '_>, exit: &Exit) -> Next;
}

impl<F: FnMut(&Runner<'_, '_>, &Exit) -> Next> Handler for F {
    fn exit(&mut self, runner: &Runner<'_, '_>, exit: &Exit) -> Next {
        self(runner, exit)
    }
}

/// Runs a vCPU until its handler has enough. Returns the exit that it was at.
///
/// # Errors
/// The kernel refuses to run it, or the guest is still at it when its time is over.
pub fn run(
    runner: &mut Runner<'_, '_>,
    deadline: &Deadline,
    limit: Duration,
    handler: &mut impl Handler,
) -> Result<Exit, Error> {
    deadline.arm(limit);
    let done = until(runner, deadline, handler);
    deadline.disarm();
    done.and_then(|exit| exit.ok_or(Error::Hung(limit)))
}

fn until(
    runner: &mut Runner<'_, '_>,
    deadline: &Deadline,
    handler: &mut impl Handler,
) -> Result<Option<Exit>, Error> {
    loop {
        // A guest that exits again and again must not go on for ever either.
        if deadline.expired() {
            return Ok(None);
        }
        let exit = match runner.run() {
            // A vCPU that waited for INIT or SIPI and got it: the next run enters it.
            Err(error) if error.errno() == Some(Errno::EAGAIN) => continue,
            Ok(Exit::Interrupted) => continue,
            other => other?,
        };
        match handler.exit(runner, &exit) {
            Next::Go => {}
            Next::Answer(data) => runner.answer(&data),
            Next::Stop => return Ok(Some(exit)),
        }
    }
}
