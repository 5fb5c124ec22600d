//! Two hosts that are up at the same time, and a stream between programs on them.

use std::sync::Barrier;
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
    let both = Barrier::new(2);
    let work = |(host, job): (&Host, &Job), end| {
        let machine = Machine::up_with(host, options, Some(end));
        // The programs start when both hosts are up. Also because QEMU 7.2 can lose the news that the other end is gone
        // when it comes while a saved state is being read (seen once, on a busy machine).
        both.wait();
        let mut machine = machine?;
        let output = machine.run(job)?;
        Ok(Run::after(machine, output))
    };
    thread::scope(|scope| {
        // Each emulator lives and dies in the thread that started it.
        let work = &work;
        let first = scope.spawn(move || work(one, first));
        let second = scope.spawn(move || work(other, second));
        [first, second].map(|thread| {
            thread
                .join()
                .unwrap_or_else(|_| Err(Error::Link { why: "the lab's own thread panicked".to_owned() }))
        })
    })
}
