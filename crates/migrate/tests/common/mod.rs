//! What the tests of moves share.
#![allow(dead_code)] // each test makes use of a part

pub mod authority;
pub mod guest;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use evenkeel_handover::{Epoch, Token};
use evenkeel_migrate::{
    JournalFile, Journaling, NotSent, Policy, Progress, Received, Sent, Slow, Stream, receive, send,
};
use guest::{Copy, Truth};

pub const POLICY: Policy = Policy {
    downtime: Duration::from_millis(20),
    rounds: 3,
    slow: Slow::Pause,
    streams: 1,
    compress: false,
    verify: false,
    patience: Duration::from_millis(400),
    decide: Duration::from_secs(20),
};

/// What accepts and what connects.
pub type Accept<'a> = &'a mut (dyn FnMut(Duration) -> io::Result<Option<Box<dyn Stream>>> + Send);
pub type Connect<'a> = &'a mut dyn FnMut() -> io::Result<Box<dyn Stream>>;

/// A move of a guest that runs, between two copies; whatever comes of it, one of them runs afterwards and noticed nothing.
pub fn moved(
    folder: &Path,
    policy: Policy,
    accept: Accept<'_>,
    connect: Connect<'_>,
    watch: &mut dyn FnMut(&Progress) -> bool,
    change: impl FnOnce(&mut Copy, &mut Copy),
) -> (Result<Sent, NotSent>, Received) {
    let mut ours = JournalFile::open(&folder.join("source.journal")).unwrap();
    let mut theirs = JournalFile::open(&folder.join("destination.journal")).unwrap();
    moved_with(&mut ours, &mut theirs, policy, accept, connect, watch, change)
}

/// Likewise, with these journals.
pub fn moved_with(
    ours: &mut (dyn Journaling + Send),
    theirs: &mut (dyn Journaling + Send),
    policy: Policy,
    accept: Accept<'_>,
    connect: Connect<'_>,
    watch: &mut dyn FnMut(&Progress) -> bool,
    change: impl FnOnce(&mut Copy, &mut Copy),
) -> (Result<Sent, NotSent>, Received) {
    let truth = Arc::new(Truth::default());
    let (mut source, mut destination) = (Copy::empty(&truth), Copy::empty(&truth));
    change(&mut source, &mut destination);
    source.start();
    std::thread::sleep(Duration::from_millis(3));
    let over = AtomicBool::new(false);
    let (sent, received) = std::thread::scope(|scope| {
        let receiving = scope.spawn(|| {
            let mut go_on = |_| !over.load(Ordering::SeqCst);
            receive(&mut destination, theirs, accept, policy, &mut go_on)
        });
        let about = (Token([5; 16]), Epoch(3));
        let sent = send(&mut source, ours, connect, policy, about, watch);
        over.store(true, Ordering::SeqCst);
        (sent, receiving.join().unwrap())
    });
    let what = format!("{sent:?}, {received:?}");
    std::thread::sleep(Duration::from_millis(2));
    assert_eq!(truth.most.load(Ordering::SeqCst), 1, "{what}");
    assert_eq!(truth.wrong(), Vec::<String>::new(), "{what}");
    match (&sent, &received) {
        (Ok(_), Received::Runs(_)) => {
            assert_eq!(
                (source.runs(), destination.runs(), destination.epoch),
                (false, true, Some(4)),
                "{what}"
            );
            assert!(source.freed, "{what}");
            destination.stop();
            destination.check().unwrap_or_else(|error| panic!("{error}: {what}"));
        }
        (Err(NotSent::Failed(_) | NotSent::Refused(_)), Received::Nothing(_)) => {
            assert_eq!((source.runs(), destination.runs()), (true, false), "{what}");
            assert!(!source.freed && source.slowed() == 0 && !source.tracks(), "{what}");
        }
        _ => panic!("{what}"),
    }
    (sent, received)
}
