//! A backend that spoils one call, counted from the moment when it is armed.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use evenkeel_sys::requests::{KVM_RUN, KVM_UNSET_SIGNAL_MASK};
use evenkeel_sys::{Arg, Backend, Errno, FdKind, Handle, Live, Ram, Refusal, Request, RunPage, Slot, Source};

/// How the call is spoiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spoil {
    /// It fails and is not made.
    Fail,
    /// It is made, and its answer is lost: it fails.
    Lose,
    /// It succeeds and is not made.
    Lie,
    /// It is made, and a bit of its answer is turned over: this one, counted around the answer.
    Alter(usize),
}

/// Turns over a bit of what came out, if something did. Only the payload of what points at one.
fn alter(bytes: &mut [u8], bit: usize) {
    if !bytes.is_empty() {
        let bit = bit % (8 * bytes.len());
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
}

/// The kernel, but for one call.
#[derive(Default)]
pub struct Trap {
    live: Live,
    calls: AtomicUsize,
    plan: Mutex<Option<(usize, Spoil)>>,
    hit: Mutex<Option<&'static str>>,
}

impl Trap {
    /// From now on, the `n`-th call is spoiled.
    pub fn arm(&self, n: usize, spoil: Spoil) {
        self.calls.store(0, Ordering::SeqCst);
        *self.plan.lock().unwrap() = Some((n, spoil));
        *self.hit.lock().unwrap() = None;
    }

    /// No more. Returns what was spoiled, and how many calls there were.
    pub fn disarm(&self) -> (Option<&'static str>, usize) {
        *self.plan.lock().unwrap() = None;
        (self.hit.lock().unwrap().take(), self.calls.load(Ordering::SeqCst))
    }
}

impl Backend for Trap {
    fn open(&self, path: &str, kind: FdKind) -> Result<Handle, Refusal> {
        self.live.open(path, kind)
    }

    fn call(&self, fd: Handle, request: &Request, arg: Arg<'_>) -> Result<i32, Refusal> {
        let number = self.calls.fetch_add(1, Ordering::SeqCst);
        let spoil = self.plan.lock().unwrap().filter(|(n, _)| *n == number).map(|(_, spoil)| spoil);
        // Without its answer a mask of signals stays, and the thread of this test would wait for ever.
        let Some(spoil) = spoil.filter(|_| request.number != KVM_UNSET_SIGNAL_MASK.number) else {
            return self.live.call(fd, request, arg);
        };
        *self.hit.lock().unwrap() = Some(request.name);
        match spoil {
            Spoil::Fail => Err(Errno::ENOMEM.into()),
            Spoil::Lose if request.name != KVM_RUN.name => {
                self.live.call(fd, request, arg)?;
                Err(Errno::ENOMEM.into())
            }
            Spoil::Lose => Err(Errno::ENOMEM.into()),
            Spoil::Lie => Ok(0),
            Spoil::Alter(bit) => match arg {
                Arg::Out(bytes) => {
                    let told = self.live.call(fd, request, Arg::Out(&mut *bytes))?;
                    alter(bytes, bit);
                    Ok(told)
                }
                Arg::Pointing { head, payload } => {
                    let told = self.live.call(fd, request, Arg::Pointing { head, payload: &mut *payload })?;
                    alter(payload, bit);
                    Ok(told)
                }
                other => self.live.call(fd, request, other),
            },
        }
    }

    fn read(&self, source: Source<'_>) -> Result<Vec<u8>, Refusal> {
        self.live.read(source)
    }

    fn close(&self, fd: Handle) {
        self.live.close(fd);
    }

    fn set_memory(&self, vm: Handle, slot: Slot, ram: Option<&Arc<Ram>>) -> Result<(), Refusal> {
        self.live.set_memory(vm, slot, ram)
    }

    fn map_run(&self, vcpu: Handle, length: usize) -> Result<Arc<RunPage>, Refusal> {
        self.live.map_run(vcpu, length)
    }
}
