//! Everything that is made to go wrong, as one list.

use std::fmt;

use evenkeel_migrate::Slow;

use crate::liars::{DESTINATIONS, DestinationLie, SOURCES, SourceLie};
use crate::proxy::{FAULTS, Place, Plan, Way};

/// One thing that goes wrong in one move.
#[derive(Clone, Copy, Debug)]
pub enum Scenario {
    /// The link misbehaves.
    Link { plan: Plan, streams: u8, late: bool },
    /// A journal cannot be written at a record, which is durable all the same or not.
    Journal { source: bool, record: u32, durable: bool },
    /// A process dies before or after a record is durable.
    Crash { source: bool, record: u32, after: bool },
    /// The source is killed after so many milliseconds.
    Killed(u64),
    /// Somebody lies to the destination, and then a guest comes.
    Source(SourceLie),
    /// The destination lies.
    Destination(DestinationLie),
    /// What the VMMs cannot do.
    Engine(Engine),
    /// It is cancelled at the n-th look.
    Cancelled(u32),
}

/// What goes wrong in the VMMs.
#[derive(Clone, Copy, Debug)]
pub enum Engine {
    /// The destination does not get the lock of a disk.
    Lock,
    /// What was set is not read back.
    ReadBack,
    /// The guest does not stop.
    Pause,
    /// The log of written pages loses a page; memory is verified.
    DirtyLost { streams: u8 },
    /// The guest writes faster than the link carries.
    TooFast(Slow),
    /// Likewise, and its vCPUs cannot be slowed down.
    CannotThrottle,
}

impl Scenario {
    /// What it is counted as.
    pub fn kind(&self) -> &'static str {
        match self {
            Scenario::Link { late: false, .. } => "link",
            Scenario::Link { late: true, .. } => "link of a post-copy",
            Scenario::Journal { .. } => "journal",
            Scenario::Crash { .. } => "crash at a record",
            Scenario::Killed(_) => "killed",
            Scenario::Source(_) => "source that lies",
            Scenario::Destination(_) => "destination that lies",
            Scenario::Engine(_) => "engine",
            Scenario::Cancelled(_) => "cancelled",
        }
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

const HELLO: u8 = 1;
const CONTROL: u8 = 2;
const SECTION: u8 = 3;
const ZEROS: u8 = 4;
const BYTES: u8 = 5;
const BARRIER: u8 = 8;

/// At every boundary of messages: before it, within its header, in the last byte of that, and in its payload.
const BEHIND: [u64; 4] = [0, 7, 23, 30];

fn places(way: Way, first: bool) -> Vec<(u8, u32)> {
    match (way, first) {
        // Offer, Complete, Commit.
        (Way::ToDestination, true) => vec![
            (HELLO, 0),
            (CONTROL, 0),
            (BYTES, 0),
            (BYTES, 1),
            (ZEROS, 0),
            (BARRIER, 0),
            (BARRIER, 1),
            (SECTION, 0),
            (SECTION, 2),
            (SECTION, 4),
            (CONTROL, 1),
            (CONTROL, 2),
        ],
        (Way::ToDestination, false) => vec![(HELLO, 0), (BYTES, 0), (ZEROS, 0), (BARRIER, 0), (BARRIER, 1)],
        // Accept, Prepared, Running.
        (Way::ToSource, true) => vec![(HELLO, 0), (CONTROL, 0), (CONTROL, 1), (CONTROL, 2)],
        (Way::ToSource, false) => vec![],
    }
}

/// All of them.
pub fn all() -> Vec<Scenario> {
    let mut all = Vec::new();
    let mut seed = 0x9e37_79b9_u64;
    let mut random = |below: u64| {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 33) % below
    };
    for fault in FAULTS {
        for streams in [1, 2, 3, 8] {
            for connection in [0, 1, u32::from(streams) - 1] {
                if connection >= u32::from(streams) || streams == 2 && connection == 0 {
                    continue;
                }
                for way in [Way::ToDestination, Way::ToSource] {
                    let frames = places(way, connection == 0)
                        .into_iter()
                        .flat_map(|(kind, nth)| BEHIND.map(|behind| Place::Frame { kind, nth, behind }));
                    let bytes: Vec<Place> = (0..6)
                        .map(|_| {
                            Place::Byte(random(match (way, connection) {
                                (Way::ToSource, _) => 400,
                                (_, 0) => 300_000,
                                _ => 200,
                            }))
                        })
                        .collect();
                    for place in frames.chain(bytes) {
                        let plan = Plan { fault, way, place, connection };
                        all.push(Scenario::Link { plan, streams, late: false });
                    }
                }
            }
        }
        // Before, at and behind the commit of a post-copy; behind it, memory comes.
        for behind in [0, 40, 100, 2_000, 70_000, 200_000, 1_000_000] {
            let place = Place::Frame { kind: CONTROL, nth: 2, behind };
            let plan = Plan { fault, way: Way::ToDestination, place, connection: 0 };
            all.push(Scenario::Link { plan, streams: 1, late: true });
        }
        for (nth, behind) in [(1, 0), (1, 50), (2, 0), (2, 30), (2, 90), (2, 150), (3, 0), (3, 60)] {
            let place = Place::Frame { kind: CONTROL, nth, behind };
            let plan = Plan { fault, way: Way::ToSource, place, connection: 0 };
            all.push(Scenario::Link { plan, streams: 1, late: true });
        }
    }
    for durable in [false, true] {
        all.extend((1..=2).map(|record| Scenario::Journal { source: true, record, durable }));
        all.push(Scenario::Journal { source: false, record: 1, durable });
    }
    for after in [false, true] {
        all.extend((1..=2).map(|record| Scenario::Crash { source: true, record, after }));
        all.push(Scenario::Crash { source: false, record: 1, after });
    }
    all.extend((0..24).map(|n| Scenario::Killed(n * 7)));
    all.extend(SOURCES.map(Scenario::Source));
    all.extend(DESTINATIONS.map(Scenario::Destination));
    all.extend([0, 1, 5, 8, 12, 17, 30].map(Scenario::Cancelled));
    let engines = [
        Engine::Lock,
        Engine::ReadBack,
        Engine::Pause,
        Engine::DirtyLost { streams: 1 },
        Engine::DirtyLost { streams: 4 },
        Engine::TooFast(Slow::Pause),
        Engine::TooFast(Slow::Stop),
        Engine::TooFast(Slow::Throttle),
        Engine::TooFast(Slow::PostCopy),
        Engine::CannotThrottle,
    ];
    all.extend(engines.map(Scenario::Engine));
    all
}

/// Of the many that are alike one in so many; of the others all, but for what takes processes.
pub fn sample() -> Vec<Scenario> {
    let (mut links, mut late, mut killed) = (0, 0, 0);
    let one_in = |count: &mut u32, of: u32| {
        *count += 1;
        *count % of == 1
    };
    all()
        .into_iter()
        .filter(|scenario| match scenario {
            Scenario::Link { late: false, .. } => one_in(&mut links, 13),
            Scenario::Link { late: true, .. } => one_in(&mut late, 4),
            Scenario::Killed(_) => one_in(&mut killed, 6),
            _ => true,
        })
        .collect()
}
