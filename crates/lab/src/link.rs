//! Two hosts that are up at the same time, and a stream between programs on them.

use std::thread;

use crate::emulator::{Slots, socket};
use crate::error::Error;
use crate::host::Host;
use crate::job::Job;
use crate::machine::{Machine, Run};
use crate::options::Options;

/// Runs one job on each of two hosts, which are joined by a link: each program finds it as [`crate::paths::LINK`], and
/// what one writes the other reads. The stream has no end of its own, so programs have to say when they are done; when
/// one host goes down, the other's program reads an end.
pub fn run_pair(one: (&Host, &Job), other: (&Host, &Job), options: &Options) -> [Result<Run, Error>; 2] {
    for (host, _) in [one, other] {
        if !host.lane.links() {
            let error = || Error::NoLink { host: host.name.clone(), lane: host.lane };
            return [Err(error()), Err(error())];
        }
    }
    let _slots = Slots::take(2);
    let (first, second) = match socket() {
        Ok((first, second)) => (first.into(), second),
        Err(error) => {
            let again = Error::Link { why: error.to_string() };
            return [Err(error), Err(again)];
        }
    };
    let work = |(host, job): (&Host, &Job), end| {
        let mut machine = Machine::up_with(host, options, Some(end))?;
        let output = machine.run(job)?;
        Ok(Run::after(machine, output))
    };
    thread::scope(|scope| {
        // Each emulator lives and dies in the thread that started it.
        let first = scope.spawn(move || work(one, first));
        let second = scope.spawn(move || work(other, second));
        [first, second].map(|thread| {
            thread
                .join()
                .unwrap_or_else(|_| Err(Error::Link { why: "the lab's own thread panicked".to_owned() }))
        })
    })
}
