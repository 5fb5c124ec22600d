//! One stream between the two sides: frames out, and frames in by a thread of its own.

use std::io;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use evenkeel_handover::wire::{Content, Decoder, Encoder, Frame};
use evenkeel_handover::{Digest, Message};

use crate::Stream;
use crate::fetch::{LATE, Late};

/// What came on a stream.
#[derive(Debug)]
pub(crate) struct Event {
    /// Which [`Connection`] it came on.
    pub from: u64,
    pub what: What,
}

#[derive(Debug)]
pub(crate) enum What {
    /// With what came on this stream before it, where that matters.
    Frame(Frame, Option<Digest>),
    /// The last memory that was missing is here.
    Whole,
    /// The stream ended, or is not what it should be: why.
    Lost(String),
}

/// How many events the readers of all streams are ahead: with the largest frames, the most memory that a peer can make this
/// side hold, but for one frame a stream.
pub(crate) const AHEAD: usize = 8;
/// Frames are gathered into writes of about this size.
const GATHER: usize = 256 << 10;
/// The most frames on one stream that carry neither memory nor state.
const MOST_TALK: u32 = 1 << 16;

pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The half that sends.
pub(crate) struct Writer {
    out: Box<dyn Stream>,
    encoder: Encoder,
    buffer: Vec<u8>,
    /// Bytes that were sent.
    pub sent: u64,
}

impl Writer {
    /// Sends a frame, perhaps with others.
    pub fn put(&mut self, frame: &Frame) -> io::Result<()> {
        self.encoder.put(frame, &mut self.buffer).map_err(io::Error::other)?;
        self.gathered()
    }

    /// Sends memory likewise.
    pub fn memory(&mut self, version: u32, at: u64, packed: Option<u32>, bytes: &[u8]) -> io::Result<()> {
        self.encoder.put_memory(version, at, packed, bytes, &mut self.buffer).map_err(io::Error::other)?;
        self.gathered()
    }

    fn gathered(&mut self) -> io::Result<()> {
        if self.buffer.len() >= GATHER { self.flush() } else { Ok(()) }
    }

    /// Sends what was gathered.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.write_all(&self.buffer)?;
        self.out.flush()?;
        self.sent += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// What was put on this stream of the guest.
    pub fn digest(&self) -> Digest {
        self.encoder.digest()
    }
}

/// Where a reader waits until the other streams are as far as it is.
#[derive(Default)]
struct Gate {
    /// How often it may still pass; `None`: the connection is over.
    passes: Mutex<Option<u32>>,
    changed: Condvar,
}

/// A connection to the peer.
pub(crate) struct Connection {
    /// Unique in this process's move.
    pub id: u64,
    pub writer: Arc<Mutex<Writer>>,
    handle: Box<dyn Stream>,
    gate: Arc<Gate>,
    late: Arc<Mutex<Option<Arc<Late>>>>,
    patience: Duration,
}

impl Connection {
    /// On a stream that was opened or accepted. `number` is the one that this side gives its frames; the peer says which stream it is.
    pub fn new(
        stream: Box<dyn Stream>,
        (id, number): (u64, u16),
        events: SyncSender<Event>,
        patience: Duration,
    ) -> io::Result<Connection> {
        stream.patience(patience)?;
        let (from, handle) = (stream.again()?, stream.again()?);
        let gate = Arc::new(Gate { passes: Mutex::new(Some(0)), changed: Condvar::new() });
        let late = Arc::new(Mutex::new(None));
        let mut reader = Reader { from, id, events, gate: gate.clone(), late: late.clone(), talk: 0 };
        // It ends when the stream is closed, or nobody takes its events.
        std::thread::spawn(move || reader.read());
        let buffer = Vec::with_capacity(GATHER * 2);
        let writer = Writer { out: stream, encoder: Encoder::new(number), buffer, sent: 0 };
        Ok(Connection { id, writer: Arc::new(Mutex::new(writer)), handle, gate, late, patience })
    }

    /// The half that sends, as soon as who has it is done, but not later than the patience allows.
    pub fn writing(&self) -> io::Result<MutexGuard<'_, Writer>> {
        let begin = Instant::now();
        loop {
            match self.writer.try_lock() {
                Ok(writer) => return Ok(writer),
                Err(TryLockError::Poisoned(poisoned)) => return Ok(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) if begin.elapsed() > self.patience => {
                    return Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        "the peer takes nothing of what is sent",
                    ));
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_micros(100)),
            }
        }
    }

    /// Sends something, now.
    pub fn tell(&self, frame: &Frame) -> io::Result<()> {
        let mut writer = self.writing()?;
        writer.put(frame)?;
        writer.flush()
    }

    /// Says something, now.
    pub fn say(&self, message: Message) -> io::Result<()> {
        self.tell(&Frame::Control(message))
    }

    /// The reader goes on behind a greeting or a barrier.
    pub fn pass(&self) {
        if let Some(passes) = &mut *locked(&self.gate.passes) {
            *passes += 1;
        }
        self.gate.changed.notify_all();
    }

    /// Memory that comes from now on was missing, and goes there.
    pub fn fetch(&self, late: &Arc<Late>) {
        *locked(&self.late) = Some(late.clone());
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        *locked(&self.gate.passes) = None;
        self.gate.changed.notify_all();
        self.handle.close();
    }
}

struct Reader {
    from: Box<dyn Stream>,
    id: u64,
    events: SyncSender<Event>,
    gate: Arc<Gate>,
    late: Arc<Mutex<Option<Arc<Late>>>>,
    talk: u32,
}

impl Reader {
    fn read(&mut self) {
        if let Err(why) = self.frames() {
            // Nobody may be there any more to hear it.
            let _ = self.events.send(Event { from: self.id, what: What::Lost(why) });
        }
    }

    fn frames(&mut self) -> Result<(), String> {
        let (mut decoder, mut piece) = (Decoder::any(), vec![0; 256 << 10]);
        let mut greeted = false;
        loop {
            let mut arrived = match self.from.read(&mut piece) {
                Ok(0) if decoder.is_between_frames() => return Err("the peer closed it".to_owned()),
                Ok(0) => return Err("it ends within a frame".to_owned()),
                Ok(length) => &piece[..length],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.to_string()),
            };
            while let Some(frame) = decoder.take(&mut arrived).map_err(|refused| refused.to_string())? {
                let hello = matches!(frame, Frame::Hello(_));
                // Who is refused at once hears why.
                let refusal = matches!(frame, Frame::Words(_)) && !greeted;
                if hello == greeted && !refusal {
                    let what = if greeted { "the peer greets twice" } else { "the peer does not greet" };
                    return Err(format!("{what}: this is no stream of a move"));
                }
                greeted |= hello;
                let waits = hello || matches!(frame, Frame::Barrier(_));
                let Some(what) = self.what(frame, &decoder)? else { continue };
                if self.events.send(Event { from: self.id, what }).is_err() || (waits && !self.waited()) {
                    return Ok(());
                }
            }
        }
    }

    /// What it is for the side's own thread; memory that was missing does not get there.
    fn what(&mut self, frame: Frame, decoder: &Decoder) -> Result<Option<What>, String> {
        let digest = matches!(frame, Frame::Barrier(_) | Frame::Control(Message::Complete(..)));
        let digest = digest.then(|| decoder.digest());
        Ok(Some(match frame {
            Frame::Memory { version, address, content } => {
                let content = unpacked(content)?;
                if version != LATE {
                    return Ok(Some(What::Frame(Frame::Memory { version, address, content }, None)));
                }
                let late = locked(&self.late).clone();
                let late =
                    late.ok_or_else(|| format!("memory at {address:#x} is late, and is not missing"))?;
                match late.arrived(address, &content)? {
                    true => What::Whole,
                    false => return Ok(None),
                }
            }
            Frame::Hello(_) | Frame::Control(_) | Frame::Words(_) | Frame::Want(_) | Frame::Missing(_) => {
                self.talk += u32::from(!matches!(frame, Frame::Want(_)));
                if self.talk > MOST_TALK {
                    return Err("the peer talks without an end".to_owned());
                }
                What::Frame(frame, digest)
            }
            other => What::Frame(other, digest),
        }))
    }

    fn waited(&self) -> bool {
        let mut passes = locked(&self.gate.passes);
        loop {
            match &mut *passes {
                None => return false,
                Some(0) => {
                    passes = self.gate.changed.wait(passes).unwrap_or_else(PoisonError::into_inner);
                }
                Some(left) => {
                    *left -= 1;
                    return true;
                }
            }
        }
    }
}

/// As it was before it was compressed.
pub(crate) fn unpacked(content: Content) -> Result<Content, String> {
    let Content::Packed(length, packed) = content else { return Ok(content) };
    let mut bytes = vec![0; length as usize];
    match lz4_flex::block::decompress_into(&packed, &mut bytes) {
        Ok(whole) if whole == bytes.len() => Ok(Content::Bytes(bytes)),
        _ => Err(format!("{} packed bytes are not the {length} that they should be", packed.len())),
    }
}
