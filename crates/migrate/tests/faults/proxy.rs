//! A link that misbehaves once, at a frame or a byte of one direction of one connection; later connections are sound.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use evenkeel_handover::wire::HEADER;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Both directions end.
    Cut,
    /// Both sides are told that the connection is reset.
    Reset,
    /// Only this direction ends; the other goes on.
    HalfClose,
    /// Nothing more comes through, and nobody is told.
    Stall,
    /// Byte by byte for a while.
    Trickle,
    /// Some bytes come twice.
    Double,
    /// Some bytes are missing.
    Drop,
    /// A bit is another one.
    Flip,
}

pub const FAULTS: [Fault; 8] = [
    Fault::Cut,
    Fault::Reset,
    Fault::HalfClose,
    Fault::Stall,
    Fault::Trickle,
    Fault::Double,
    Fault::Drop,
    Fault::Flip,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    ToDestination,
    ToSource,
}

/// Where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// At a byte.
    Byte(u64),
    /// So many bytes behind the beginning of the n-th frame of a kind.
    Frame { kind: u8, nth: u32, behind: u64 },
}

/// What goes wrong, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    pub fault: Fault,
    pub way: Way,
    pub place: Place,
    /// Which connection, from 0 on.
    pub connection: u32,
}

/// A proxy in threads of its own.
pub struct Proxy {
    pub address: SocketAddr,
    over: Arc<AtomicBool>,
    /// Bytes that the first connection carried: to the destination, to the source.
    pub carried: [Arc<AtomicU64>; 2],
    /// The plan was carried out.
    pub happened: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Proxy {
    pub fn new(to: SocketAddr, plan: Option<Plan>) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let over = Arc::new(AtomicBool::new(false));
        let (carried, happened) = ([Arc::default(), Arc::default()], Arc::default());
        let (theirs, counts, did) = (over.clone(), carried.clone(), Arc::clone(&happened));
        let thread = std::thread::spawn(move || serve(&listener, to, plan, &theirs, &counts, &did));
        Proxy { address, over, carried, happened, thread: Some(thread) }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        self.thread.take().unwrap().join().unwrap();
    }
}

fn serve(
    listener: &TcpListener,
    to: SocketAddr,
    plan: Option<Plan>,
    over: &Arc<AtomicBool>,
    carried: &[Arc<AtomicU64>; 2],
    happened: &Arc<AtomicBool>,
) {
    let mut threads = Vec::new();
    let mut number = 0;
    while !over.load(Ordering::SeqCst) {
        let Ok((source, _)) = listener.accept() else {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        };
        let Ok(destination) = TcpStream::connect(to) else { continue };
        source.set_nonblocking(false).unwrap();
        for socket in [&source, &destination] {
            socket.set_nodelay(true).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
        }
        let (source, destination) = (Arc::new(source), Arc::new(destination));
        let ends = Arc::new(AtomicBool::new(false));
        for (index, way) in [Way::ToDestination, Way::ToSource].into_iter().enumerate() {
            let (from, into) = match way {
                Way::ToDestination => (source.clone(), destination.clone()),
                Way::ToSource => (destination.clone(), source.clone()),
            };
            let plan = plan.filter(|plan| plan.connection == number && plan.way == way);
            let count = (number == 0).then(|| carried[index].clone());
            let (over, ends, happened) = (over.clone(), ends.clone(), happened.clone());
            threads.push(std::thread::spawn(move || {
                let mut line = Line { from, into, ends, over, at: 0, place: Finder::default() };
                line.carry(plan, count.as_deref(), &happened);
            }));
        }
        number += 1;
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

/// Finds frames in bytes that come in pieces.
#[derive(Default)]
struct Finder {
    /// Where the next frame begins.
    next: u64,
    head: Vec<u8>,
    seen: BTreeMap<u8, u32>,
    found: Option<u64>,
}

impl Finder {
    /// Where in the stream the fault belongs, if that is known by now.
    fn look(&mut self, at: u64, bytes: &[u8], place: Place) -> Option<u64> {
        let Place::Frame { kind, nth, behind } = place else {
            let Place::Byte(byte) = place else { unreachable!() };
            return Some(byte);
        };
        let end = at + bytes.len() as u64;
        while self.found.is_none() {
            let from = (self.next + self.head.len() as u64).max(at);
            if from >= end {
                break;
            }
            let wanted = HEADER - self.head.len();
            let here = &bytes[(from - at) as usize..];
            self.head.extend_from_slice(&here[..here.len().min(wanted)]);
            if self.head.len() < HEADER {
                break;
            }
            let length = u32::from_le_bytes(self.head[16..20].try_into().unwrap());
            let found = self.head[5];
            if found == kind && *self.seen.entry(found).or_default() == nth {
                // Of a header that is on its way already, what is left of it.
                self.found = Some((self.next + behind).max(at));
            }
            *self.seen.entry(found).or_default() += 1;
            self.next += HEADER as u64 + u64::from(length);
            self.head.clear();
        }
        self.found
    }
}

struct Line {
    from: Arc<TcpStream>,
    into: Arc<TcpStream>,
    /// The connection is to be gone.
    ends: Arc<AtomicBool>,
    over: Arc<AtomicBool>,
    at: u64,
    place: Finder,
}

impl Line {
    fn over(&self) -> bool {
        self.over.load(Ordering::SeqCst) || self.ends.load(Ordering::SeqCst)
    }

    fn carry(&mut self, mut plan: Option<Plan>, count: Option<&AtomicU64>, happened: &AtomicBool) {
        let mut piece = vec![0; 64 << 10];
        while !self.over() {
            let length = match (&*self.from).read(&mut piece) {
                Ok(0) => break,
                Ok(length) => length,
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
                Err(_) => break,
            };
            let mut bytes = piece[..length].to_vec();
            let end = self.at + length as u64;
            let place = plan.and_then(|plan| self.place.look(self.at, &bytes, plan.place));
            if let (Some(Plan { fault, .. }), Some(place)) = (plan, place)
                && (self.at..end).contains(&place)
            {
                plan = None;
                happened.store(true, Ordering::SeqCst);
                bytes = match self.misbehave(fault, (place - self.at) as usize, bytes) {
                    Some(bytes) => bytes,
                    None => return,
                };
            }
            self.at = end;
            if let Some(count) = count {
                count.store(end, Ordering::SeqCst);
            }
            if (&*self.into).write_all(&bytes).is_err() {
                break;
            }
        }
        let _ = self.into.shutdown(Shutdown::Write);
    }

    /// What is left to be sent; `None`: nothing ever.
    fn misbehave(&self, fault: Fault, here: usize, mut bytes: Vec<u8>) -> Option<Vec<u8>> {
        let mut into = &*self.into;
        match fault {
            Fault::Cut => {
                let _ = into.write_all(&bytes[..here]);
                let _ = self.from.shutdown(Shutdown::Both);
                let _ = into.shutdown(Shutdown::Both);
                return None;
            }
            Fault::Reset => {
                let _ = into.write_all(&bytes[..here]);
                for socket in [&self.from, &self.into] {
                    rustix::net::sockopt::set_socket_linger(socket, Some(Duration::ZERO)).unwrap();
                }
                // Both directions let go of the sockets.
                self.ends.store(true, Ordering::SeqCst);
                return None;
            }
            Fault::HalfClose => {
                let _ = into.write_all(&bytes[..here]);
                let _ = into.shutdown(Shutdown::Write);
                return None;
            }
            Fault::Stall => {
                let _ = into.write_all(&bytes[..here]);
                while !self.over() {
                    std::thread::sleep(Duration::from_millis(5));
                }
                return None;
            }
            Fault::Trickle => {
                let slow = (here + 40).min(bytes.len());
                into.write_all(&bytes[..here]).ok()?;
                for byte in &bytes[here..slow] {
                    into.write_all(&[*byte]).ok()?;
                    std::thread::sleep(Duration::from_micros(200));
                }
                bytes = bytes.split_off(slow);
            }
            Fault::Double => {
                let again = bytes[here..].to_vec();
                bytes.extend_from_slice(&again);
            }
            Fault::Drop => bytes.truncate(here),
            Fault::Flip => bytes[here] ^= 0x10,
        }
        Some(bytes)
    }
}
