//! A link that misbehaves once, at a byte of one direction, on the first connection; later connections are sound.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Both directions end.
    Cut,
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

pub const FAULTS: [Fault; 7] =
    [Fault::Cut, Fault::HalfClose, Fault::Stall, Fault::Trickle, Fault::Double, Fault::Drop, Fault::Flip];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    ToDestination,
    ToSource,
}

/// A proxy in threads of its own.
pub struct Proxy {
    pub path: PathBuf,
    over: Arc<AtomicBool>,
    /// Bytes that the first connection carried: to the destination, to the source.
    pub carried: [Arc<AtomicU64>; 2],
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Proxy {
    pub fn new(folder: &Path, to: PathBuf, plan: Option<(Fault, Way, u64)>) -> Proxy {
        let path = folder.join("proxy");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let over = Arc::new(AtomicBool::new(false));
        let carried = [Arc::default(), Arc::default()];
        let (theirs, counts) = (over.clone(), carried.clone());
        let thread = std::thread::spawn(move || serve(&listener, &to, plan, &theirs, &counts));
        Proxy { path, over, carried, thread: Some(thread) }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        self.thread.take().unwrap().join().unwrap();
    }
}

fn serve(
    listener: &UnixListener,
    to: &Path,
    plan: Option<(Fault, Way, u64)>,
    over: &Arc<AtomicBool>,
    carried: &[Arc<AtomicU64>; 2],
) {
    let open: Arc<Mutex<Vec<UnixStream>>> = Arc::default();
    let mut threads = Vec::new();
    let mut first = true;
    while !over.load(Ordering::SeqCst) {
        let Ok((source, _)) = listener.accept() else {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        };
        let Ok(destination) = UnixStream::connect(to) else { continue };
        source.set_nonblocking(false).unwrap();
        for (index, way) in [Way::ToDestination, Way::ToSource].into_iter().enumerate() {
            let (from, into) = match way {
                Way::ToDestination => (source.try_clone().unwrap(), destination.try_clone().unwrap()),
                Way::ToSource => (destination.try_clone().unwrap(), source.try_clone().unwrap()),
            };
            let fault =
                plan.filter(|(_, where_to, _)| first && *where_to == way).map(|(fault, _, at)| (fault, at));
            let count = first.then(|| carried[index].clone());
            open.lock().unwrap().push(from.try_clone().unwrap());
            let over = over.clone();
            threads.push(std::thread::spawn(move || carry(from, into, fault, count.as_deref(), &over)));
        }
        first = false;
    }
    // What is stalled or open ends with the test.
    for stream in open.lock().unwrap().iter() {
        let _ = stream.shutdown(Shutdown::Both);
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

fn carry(
    mut from: UnixStream,
    mut into: UnixStream,
    mut fault: Option<(Fault, u64)>,
    count: Option<&AtomicU64>,
    over: &AtomicBool,
) {
    let (mut at, mut piece) = (0_u64, vec![0; 64 << 10]);
    while let Ok(length) = from.read(&mut piece) {
        if length == 0 {
            break;
        }
        let mut bytes = piece[..length].to_vec();
        let end = at + length as u64;
        if let Some((kind, place)) = fault.filter(|(_, place)| (at..end).contains(place)) {
            fault = None;
            let here = (place - at) as usize;
            match kind {
                Fault::Cut => {
                    let _ = into.write_all(&bytes[..here]);
                    let _ = from.shutdown(Shutdown::Both);
                    let _ = into.shutdown(Shutdown::Both);
                    return;
                }
                Fault::HalfClose => {
                    let _ = into.write_all(&bytes[..here]);
                    let _ = into.shutdown(Shutdown::Write);
                    return;
                }
                Fault::Stall => {
                    let _ = into.write_all(&bytes[..here]);
                    while !over.load(Ordering::SeqCst) {
                        std::thread::sleep(Duration::from_millis(5));
                    }
                    return;
                }
                Fault::Trickle => {
                    let slow = (here + 40).min(bytes.len());
                    if into.write_all(&bytes[..here]).is_err() {
                        return;
                    }
                    for byte in &bytes[here..slow] {
                        if into.write_all(&[*byte]).is_err() {
                            return;
                        }
                        std::thread::sleep(Duration::from_micros(200));
                    }
                    bytes = bytes.split_off(slow);
                }
                Fault::Double => {
                    let again = bytes[here..].to_vec();
                    bytes.extend_from_slice(&again);
                }
                Fault::Drop => {
                    bytes.truncate(here);
                }
                Fault::Flip => bytes[here] ^= 0x10,
            }
        }
        at = end;
        if let Some(count) = count {
            count.store(at, Ordering::SeqCst);
        }
        if into.write_all(&bytes).is_err() {
            break;
        }
    }
    let _ = into.shutdown(Shutdown::Write);
}
