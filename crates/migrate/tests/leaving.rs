//! A destination that is done with its streams as soon as its guest runs, and a source that reads slowly.

mod common;

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use common::POLICY;
use common::guest::{Copy, Truth};
use evenkeel_handover::{DestinationAt as At, Epoch, Token};
use evenkeel_migrate::{JournalFile, Policy, Received, Stream, receive, send};

/// A stream of which everything is read late.
struct Late(UnixStream);

impl Read for Late {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.0.read(into);
        std::thread::sleep(Duration::from_millis(40));
        read
    }
}

impl Write for Late {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Stream for Late {
    fn again(&self) -> io::Result<Box<dyn Stream>> {
        Ok(Box::new(Late(self.0.try_clone()?)))
    }
    fn close(&self) {
        self.0.close();
    }
    fn patience(&self, patience: Duration) -> io::Result<()> {
        self.0.patience(patience)
    }
}

#[test]
fn that_it_runs_is_heard_though_the_other_streams_end_before_it_is_read() {
    for streams in [2, 8] {
        let folder = tempfile::tempdir().unwrap();
        let journal = |name: &str| JournalFile::open(&folder.path().join(name)).unwrap();
        let (mut ours, mut theirs) = (journal("a"), journal("b"));
        let truth = Arc::new(Truth::default());
        let (mut source, mut destination) = (Copy::empty(&truth), Copy::empty(&truth));
        source.start();
        let policy = Policy { streams, ..POLICY };
        let (give, take) = channel::<UnixStream>();
        let (sent, took) = std::thread::scope(|scope| {
            let there = scope.spawn(move || {
                // It owns what accepts, and is gone with it.
                let mut accept = |wait| match take.recv_timeout(wait) {
                    Ok(stream) => Ok(Some(Box::new(stream) as Box<dyn Stream>)),
                    Err(RecvTimeoutError::Timeout) => Ok(None),
                    Err(error) => Err(io::Error::other(error)),
                };
                let mut go_on = |at| !matches!(at, At::Runs(_));
                let received = receive(&mut destination, &mut theirs, &mut accept, policy, &mut go_on);
                drop(take);
                assert!(matches!(received, Received::Runs(_)), "{received:?}");
                destination.stop();
                destination.check().unwrap();
            });
            let mut opened = 0;
            let mut connect = || -> io::Result<Box<dyn Stream>> {
                let (own, other) = UnixStream::pair()?;
                give.send(other).map_err(io::Error::other)?;
                opened += 1;
                Ok(if opened == 1 { Box::new(Late(own)) } else { Box::new(own) })
            };
            let begin = Instant::now();
            let about = (Token([7; 16]), Epoch(1));
            let sent = send(&mut source, &mut ours, &mut connect, policy, about, &mut |_| true);
            there.join().unwrap();
            (sent, begin.elapsed())
        });
        let sent = sent.unwrap_or_else(|error| panic!("{streams} streams: {error}"));
        assert!(sent.bytes > 0 && took < policy.decide, "{streams} streams took {took:?}");
        assert!(source.freed);
    }
}
