//! One stream between the two sides: frames out, and frames in by a thread of their own.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::time::Duration;

use evenkeel_handover::Message;
use evenkeel_handover::wire::{Decoder, Encoder, Frame};

/// What carries bytes between two sides.
pub trait Stream: Read + Write + Send {
    /// Another handle of the same stream.
    fn again(&self) -> io::Result<Box<dyn Stream>>;
    /// Nothing more is sent or received on any handle.
    fn close(&self);
    /// Reads and writes that take longer than this fail.
    fn patience(&self, patience: Duration) -> io::Result<()>;
}

macro_rules! stream {
    ($kind:ty, $ready:expr) => {
        impl Stream for $kind {
            fn again(&self) -> io::Result<Box<dyn Stream>> {
                Ok(Box::new(self.try_clone()?))
            }
            fn close(&self) {
                // A peer that is gone already has closed it.
                let _ = self.shutdown(Shutdown::Both);
            }
            fn patience(&self, patience: Duration) -> io::Result<()> {
                let ready: fn(&$kind) -> io::Result<()> = $ready;
                ready(self)?;
                self.set_write_timeout(Some(patience))
            }
        }
    };
}

stream!(UnixStream, |_| Ok(()));
// The last small frame of a phase must not wait for an acknowledgement.
stream!(TcpStream, |stream| stream.set_nodelay(true));

/// What comes from the peer.
#[derive(Debug)]
pub(crate) enum Event {
    Frame(Frame),
    /// The stream ended, or is not what it should be: why.
    Lost(String),
}

/// A connection to the peer.
pub struct Connection {
    out: Box<dyn Stream>,
    encoder: Encoder,
    buffer: Vec<u8>,
    events: Receiver<Event>,
    reader: Option<std::thread::JoinHandle<()>>,
    /// Bytes that were sent.
    pub(crate) sent: u64,
}

/// How many frames the reader is ahead: with the largest ones, the most memory that a peer can make this side hold.
const AHEAD: usize = 8;
/// Frames are gathered into writes of about this size.
const GATHER: usize = 256 << 10;

impl Connection {
    /// On a stream that was opened or accepted.
    ///
    /// # Errors
    /// The stream is unusable.
    pub fn new(stream: Box<dyn Stream>, patience: Duration) -> io::Result<Connection> {
        stream.patience(patience)?;
        let from = stream.again()?;
        let (sender, events) = mpsc::sync_channel(AHEAD);
        let reader = std::thread::spawn(move || read(from, &sender));
        let buffer = Vec::with_capacity(GATHER * 2);
        Ok(Connection {
            out: stream,
            encoder: Encoder::new(0),
            buffer,
            events,
            reader: Some(reader),
            sent: 0,
        })
    }

    /// Sends a frame, perhaps with others.
    pub(crate) fn put(&mut self, frame: &Frame) -> io::Result<()> {
        self.encoder.put(frame, &mut self.buffer).map_err(io::Error::other)?;
        if self.buffer.len() >= GATHER { self.flush() } else { Ok(()) }
    }

    /// Sends what was gathered.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.out.write_all(&self.buffer)?;
        self.sent += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Says something, now.
    pub(crate) fn say(&mut self, message: Message) -> io::Result<()> {
        self.put(&Frame::Control(message))?;
        self.flush()
    }

    /// What came, if anything does within this time.
    pub(crate) fn event(&self, wait: Duration) -> Option<Event> {
        match self.events.recv_timeout(wait) {
            Ok(event) => Some(event),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Event::Lost("the stream ended".to_owned())),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.out.close();
        // The reader may wait to hand over a frame: nobody takes it any more.
        let (_, none) = mpsc::sync_channel(0);
        self.events = none;
        if let Some(reader) = self.reader.take() {
            // It panics nowhere.
            let _ = reader.join();
        }
    }
}

fn read(mut from: Box<dyn Stream>, events: &SyncSender<Event>) {
    let (mut decoder, mut piece) = (Decoder::new(0), vec![0; 256 << 10]);
    loop {
        let mut arrived = match from.read(&mut piece) {
            Ok(0) => break drop(events.send(Event::Lost(ended(&decoder)))),
            Ok(length) => &piece[..length],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => break drop(events.send(Event::Lost(error.to_string()))),
        };
        loop {
            let event = match decoder.take(&mut arrived) {
                Ok(Some(frame)) => Event::Frame(frame),
                Ok(None) => break,
                Err(refused) => return drop(events.send(Event::Lost(refused.to_string()))),
            };
            if events.send(event).is_err() {
                return;
            }
        }
    }
}

fn ended(decoder: &Decoder) -> String {
    let words = if decoder.is_between_frames() { "the peer closed it" } else { "it ends within a frame" };
    words.to_owned()
}
