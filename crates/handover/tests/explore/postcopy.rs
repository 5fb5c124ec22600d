//! After the commit of a post-copy: the connection comes and goes, messages are lost and come again, either side crashes.

use std::collections::{BTreeSet, HashSet};

use evenkeel_handover::postcopy::{Fetcher, Input, Server};
use evenkeel_handover::{Epoch, Message, Output, Token};

const TOKEN: Token = Token([1; 16]);
const EPOCH: Epoch = Epoch(8);

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct World {
    server: Option<Server>,
    /// The source still has memory.
    memory: bool,
    fetcher: Option<Fetcher>,
    runs: bool,
    connected: bool,
    /// Pages that the destination lacks.
    missing: u8,
    net: BTreeSet<Message>,
}

impl World {
    fn fetcher_hears(mut self, input: Input) -> Result<World, String> {
        let Some(fetcher) = &mut self.fetcher else { return Ok(self) };
        let stands = matches!(input, Input::Disconnected);
        for output in fetcher.step(input) {
            match output {
                Output::Run(epoch) if epoch == EPOCH => self.runs = true,
                Output::Send(message) => drop(self.net.insert(message)),
                Output::Stuck(_) => self.runs = false,
                other => return Err(format!("a fetcher said {other:?}")),
            }
        }
        if stands && self.missing > 0 && self.runs {
            return Err("it runs, and nobody can give it memory".to_owned());
        }
        Ok(self)
    }

    fn server_hears(mut self, input: Input) -> Result<World, String> {
        let Some(server) = &mut self.server else { return Ok(self) };
        for output in server.step(input) {
            match output {
                Output::Free if self.missing > 0 => return Err("memory is dropped that is needed".to_owned()),
                Output::Free => self.memory = false,
                other => return Err(format!("a server of pages said {other:?}")),
            }
        }
        Ok(self)
    }

    fn next(&self) -> Vec<Result<World, String>> {
        let mut all = Vec::new();
        let with = |change: &dyn Fn(&mut World)| {
            let mut world = self.clone();
            change(&mut world);
            world
        };
        if self.connected {
            let lost = with(&|w| w.connected = false);
            all.push(
                lost.fetcher_hears(Input::Disconnected).and_then(|w| w.server_hears(Input::Disconnected)),
            );
            if self.missing > 0 && self.server.is_some() && self.memory && self.fetcher.is_some() {
                let page = with(&|w| w.missing -= 1);
                let last = page.missing == 0;
                all.push(if last { page.fetcher_hears(Input::LastPage) } else { Ok(page) });
            }
        } else if self.server.is_some() && self.fetcher.is_some() {
            let up = with(&|w| w.connected = true);
            all.push(up.fetcher_hears(Input::Connected).and_then(|w| w.server_hears(Input::Connected)));
        }
        for message in self.net.clone() {
            all.push(self.clone().server_hears(Input::Received(message)));
        }
        // A source that did not hear that it runs says so again; it may come at any time.
        all.push(self.clone().fetcher_hears(Input::Received(Message::Commit(TOKEN, EPOCH))));
        let down = with(&|w| (w.server, w.memory, w.connected) = (None, false, false));
        all.push(down.fetcher_hears(Input::Disconnected));
        all.push(Ok(with(&|w| (w.fetcher, w.runs, w.connected) = (None, false, false))));
        all
    }

    /// Nothing goes wrong any more: all memory arrives, and the guest runs.
    fn ends_well(&self) -> Result<(), String> {
        let mut world = self.clone();
        world.net.clear();
        if !world.connected {
            world.connected = true;
            world = world.fetcher_hears(Input::Connected)?;
        }
        if !world.runs {
            return Err("both sides are there, and it does not run".to_owned());
        }
        while world.missing > 0 {
            world.missing -= 1;
            if world.missing == 0 {
                world = world.fetcher_hears(Input::LastPage)?;
            }
        }
        world = world.fetcher_hears(Input::Connected)?;
        for message in world.net.clone() {
            world = world.server_hears(Input::Received(message))?;
        }
        (world.runs && !world.memory).then_some(()).ok_or_else(|| format!("{world:?}"))
    }
}

#[test]
fn after_the_commit_of_a_post_copy_nothing_but_a_crash_loses_the_guest() {
    let first = World {
        server: Some(Server::new(TOKEN)),
        memory: true,
        fetcher: Some(Fetcher::new(TOKEN, EPOCH)),
        runs: true,
        connected: true,
        missing: 3,
        net: BTreeSet::new(),
    };
    let mut known = HashSet::from([first.clone()]);
    let mut left = vec![first];
    let mut live = 0;
    while let Some(world) = left.pop() {
        if world.server.is_some() && world.fetcher.is_some() {
            live += 1;
            world.ends_well().unwrap_or_else(|e| panic!("{e}: from {world:?}"));
        }
        for next in world.next() {
            let next = next.unwrap_or_else(|e| panic!("{e}: from {world:?}"));
            if known.insert(next.clone()) {
                left.push(next);
            }
        }
    }
    println!("post-copy: {} states, {live} of them with both sides", known.len());
    assert!(known.len() > 20);
}
