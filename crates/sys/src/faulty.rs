//! Passes calls on, except for those that a plan spoils.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::requests::KVM_SET_USER_MEMORY_REGION;
use crate::{Arg, Backend, Creates, Errno, FdKind, Handle, Ram, Refusal, Request, RunPage, Slot, Source};

/// Which calls a rule spoils. Opens and reads count as calls, named `open` and `read`.
#[derive(Clone, Debug)]
pub enum When {
    /// The call with this number, counted from 0.
    Nth(usize),
    /// Every call of this name.
    Every(String),
    /// The call of this name with this number among its like, counted from 0.
    NthOf(String, usize),
    /// Each call with this chance in a thousand, by a generator that starts from this seed.
    Random {
        /// Chance in a thousand.
        permille: u32,
        /// Where the generator starts.
        seed: u64,
    },
}

/// What happens to a spoiled call.
#[derive(Clone, Debug)]
pub enum Fault {
    /// It fails and is not made.
    Fail(Errno),
    /// It is made, but the answer is lost on the way and it fails.
    Lose(Errno),
    /// It is made, and this byte of what comes out is xored with this mask. Without effect where nothing comes out.
    Alter {
        /// Offset of the byte.
        at: usize,
        /// The bits to turn over.
        mask: u8,
    },
    /// It is made after this time.
    Delay(Duration),
    /// It returns 0 and is not made. An ioctl that creates a file descriptor has nothing to lie with and fails with
    /// EIO instead.
    Lie,
}

/// A part of a plan.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Which calls.
    pub when: When,
    /// What happens to them.
    pub fault: Fault,
}

/// Wraps a backend; the first rule of the plan that matches a call spoils it.
pub struct Faulty<B> {
    inner: B,
    plan: Vec<Rule>,
    books: Mutex<Books>,
}

#[derive(Default)]
struct Books {
    calls: usize,
    /// Per rule: calls of its name so far, or the state of its generator.
    counts: Vec<u64>,
    spoiled: Vec<(usize, String)>,
}

impl<B: Backend> Faulty<B> {
    /// Spoils calls to this backend.
    pub fn new(inner: B, plan: Vec<Rule>) -> Self {
        let start = |rule: &Rule| match rule.when {
            When::Random { seed, .. } => seed,
            _ => 0,
        };
        let counts = plan.iter().map(start).collect();
        Faulty { inner, plan, books: Mutex::new(Books { counts, ..Books::default() }) }
    }

    /// The calls that were spoiled so far: number and name.
    pub fn spoiled(&self) -> Vec<(usize, String)> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner).spoiled.clone()
    }

    fn fault(&self, name: &str) -> Option<&Fault> {
        let mut books = self.books.lock().unwrap_or_else(PoisonError::into_inner);
        let number = books.calls;
        books.calls += 1;
        let mut hit = None;
        for (rule, count) in self.plan.iter().zip(&mut books.counts) {
            let matches = match &rule.when {
                When::Nth(n) => *n == number,
                When::Every(of) => of == name,
                When::NthOf(of, n) => {
                    let before = *count;
                    *count += u64::from(of == name);
                    of == name && before == *n as u64
                }
                When::Random { permille, .. } => splitmix(count) % 1000 < u64::from(*permille),
            };
            if matches && hit.is_none() {
                hit = Some(&rule.fault);
            }
        }
        if hit.is_some() {
            books.spoiled.push((number, name.to_owned()));
        }
        hit
    }
}

/// The splitmix64 generator: small, and every seed is as good as another.
fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

fn alter(bytes: &mut [u8], at: usize, mask: u8) {
    if let Some(byte) = bytes.get_mut(at) {
        *byte ^= mask;
    }
}

impl<B: Backend> Backend for Faulty<B> {
    fn open(&self, path: &str, kind: FdKind) -> Result<Handle, Refusal> {
        match self.fault("open") {
            Some(Fault::Fail(errno)) => Err((*errno).into()),
            Some(Fault::Lose(errno)) => {
                // Nobody will ever close it.
                self.inner.close(self.inner.open(path, kind)?);
                Err((*errno).into())
            }
            Some(Fault::Lie) => Err(Errno::EIO.into()),
            Some(Fault::Delay(time)) => {
                std::thread::sleep(*time);
                self.inner.open(path, kind)
            }
            Some(Fault::Alter { .. }) | None => self.inner.open(path, kind),
        }
    }

    fn call(&self, fd: Handle, request: &Request, arg: Arg<'_>) -> Result<i32, Refusal> {
        match self.fault(request.name) {
            Some(Fault::Fail(errno)) => Err((*errno).into()),
            Some(Fault::Lose(errno)) => {
                let returned = self.inner.call(fd, request, arg)?;
                if let Some(Creates::Returned(_)) = request.creates {
                    self.inner.close(Handle(returned as u32));
                }
                Err((*errno).into())
            }
            Some(Fault::Lie) if request.creates.is_some() => Err(Errno::EIO.into()),
            Some(Fault::Lie) => Ok(0),
            Some(Fault::Delay(time)) => {
                std::thread::sleep(*time);
                self.inner.call(fd, request, arg)
            }
            Some(Fault::Alter { at, mask }) => match arg {
                Arg::Out(bytes) => {
                    let returned = self.inner.call(fd, request, Arg::Out(bytes));
                    alter(bytes, *at, *mask);
                    returned
                }
                Arg::Pointing { head, payload } => {
                    let returned = self.inner.call(fd, request, Arg::Pointing { head, payload });
                    if request.payload.is_some_and(|(_, flow)| flow.comes_out()) {
                        alter(payload, *at, *mask);
                    }
                    returned
                }
                arg => self.inner.call(fd, request, arg),
            },
            None => self.inner.call(fd, request, arg),
        }
    }

    fn read(&self, source: Source<'_>) -> Result<Vec<u8>, Refusal> {
        match self.fault("read") {
            Some(Fault::Fail(errno)) => Err((*errno).into()),
            Some(Fault::Lose(errno)) => {
                self.inner.read(source)?;
                Err((*errno).into())
            }
            Some(Fault::Lie) => Ok(Vec::new()),
            Some(Fault::Delay(time)) => {
                std::thread::sleep(*time);
                self.inner.read(source)
            }
            Some(Fault::Alter { at, mask }) => {
                let mut read = self.inner.read(source)?;
                alter(&mut read, *at, *mask);
                Ok(read)
            }
            None => self.inner.read(source),
        }
    }

    fn close(&self, fd: Handle) {
        self.inner.close(fd);
    }

    fn set_memory(&self, vm: Handle, slot: Slot, ram: Option<&Arc<Ram>>) -> Result<(), Refusal> {
        match self.fault(KVM_SET_USER_MEMORY_REGION.name) {
            Some(Fault::Fail(errno)) => Err((*errno).into()),
            Some(Fault::Lose(errno)) => {
                self.inner.set_memory(vm, slot, ram)?;
                Err((*errno).into())
            }
            Some(Fault::Lie) => Ok(()),
            Some(Fault::Delay(time)) => {
                std::thread::sleep(*time);
                self.inner.set_memory(vm, slot, ram)
            }
            Some(Fault::Alter { .. }) | None => self.inner.set_memory(vm, slot, ram),
        }
    }

    fn map_run(&self, vcpu: Handle, length: usize) -> Result<Arc<RunPage>, Refusal> {
        match self.fault("mmap") {
            Some(Fault::Fail(errno) | Fault::Lose(errno)) => Err((*errno).into()),
            Some(Fault::Lie) => Err(Errno::EIO.into()),
            _ => self.inner.map_run(vcpu, length),
        }
    }
}
