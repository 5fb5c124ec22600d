//! vCPUs that a guest gets while it runs: 16 registers on ports, behind which ACPI's methods look ([`crate::acpi`]).
//!
//! | ports | |
//! |---|---|
//! | first 8 | a bit for each vCPU that is plugged, to be read |
//! | last 8 | a bit for each that was plugged since the guest last looked; a 1 that is written clears it |
//!
//! Its wire is high while there is news. KVM has all vCPUs from the beginning, because neither interrupt controllers nor filters of
//! system calls take one later: one that is not plugged waits for an INIT that nobody sends. Nothing is unplugged: a guest takes a vCPU
//! offline by itself.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use evenkeel_capsule::cbor;
use rustix::event::{EventfdFlags, eventfd};
use serde::{Deserialize, Serialize};

use crate::Error;

/// Its registers.
pub const PORTS: Range<u16> = 0xcd8..0xce8;
/// The most vCPUs: the bits of eight registers.
pub const MOST: u32 = 64;
const NEWS: u16 = PORTS.start + 8;

/// What it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// How many vCPUs there can be.
    pub most: u32,
}

/// What it is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    /// How many are plugged: the first ones.
    plugged: u32,
    /// A bit for each of which the guest has not heard.
    news: u64,
}

/// What plugs vCPUs.
#[derive(Debug)]
pub struct Plug {
    config: Config,
    /// Nobody has this for longer than it takes to set a bit and a wire.
    state: Mutex<State>,
    /// Readable when the wire is to be looked at.
    bell: OwnedFd,
}

/// A bit for each of the first ones.
fn first(count: u32) -> u64 {
    1_u64.checked_shl(count).map_or(u64::MAX, |bit| bit - 1)
}

impl Plug {
    /// Of a machine that has this many vCPUs at first, and can have so many.
    ///
    /// # Errors
    /// There can be no such machine.
    pub fn new(plugged: u32, most: u32) -> Result<Plug, Error> {
        if plugged == 0 || plugged > most || most > MOST {
            return Err(Error::Device(format!("{plugged} vCPUs of {most}; at least 1, at most {MOST}")));
        }
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|e| Error::Device(format!("eventfd: {e}")))?;
        Ok(Plug { config: Config { most }, state: Mutex::new(State { plugged, news: 0 }), bell })
    }

    /// How many vCPUs there can be.
    pub fn most(&self) -> u32 {
        self.config.most
    }

    /// How many are plugged.
    pub fn plugged(&self) -> u32 {
        self.lock().plugged
    }

    /// From now on this many are plugged. The guest hears of it when it runs; that it uses them is its own doing.
    ///
    /// # Errors
    /// There are more already, or there can be fewer.
    pub fn plug(&self, count: u32) -> Result<(), Error> {
        let mut state = self.lock();
        if count > self.config.most {
            return Err(Error::Device(format!(
                "the machine was made for {} vCPUs at most",
                self.config.most
            )));
        }
        if count < state.plugged {
            return Err(Error::Device(format!("{} vCPUs are plugged, and none is unplugged", state.plugged)));
        }
        state.news |= first(count) & !first(state.plugged);
        state.plugged = count;
        // It is full when it rings already.
        let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
        Ok(())
    }

    /// What becomes readable when [`Plug::hear`] has something to do.
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// The bell rang, or the wire is to be set anew: `wire` is told its level, and nobody else sets it meanwhile.
    pub fn hear(&self, wire: impl FnOnce(bool)) {
        let state = self.lock();
        // It is empty when somebody heard it before.
        let _ = rustix::io::read(&self.bell, &mut [0; 8]);
        wire(state.news != 0);
    }

    /// A read of the guest.
    pub fn read(&self, port: u16) -> u8 {
        let state = self.lock();
        let bits = if port < NEWS { first(state.plugged) } else { state.news };
        bits.to_le_bytes()[usize::from(port % 8)]
    }

    /// A write of the guest, and its wire's level afterwards.
    pub fn write(&self, port: u16, value: u8, wire: impl FnOnce(bool)) {
        if port >= NEWS {
            let mut state = self.lock();
            state.news &= !(u64::from(value) << (8 * (port % 8)));
            wire(state.news != 0);
        }
    }

    /// What it is: CBOR.
    pub fn config_record(&self) -> Vec<u8> {
        cbor::print(&self.config)
    }

    /// What it is at: CBOR.
    pub fn state(&self) -> Vec<u8> {
        cbor::print(&*self.lock())
    }

    /// Puts it there; the wire is to be set ([`Plug::hear`]).
    ///
    /// # Errors
    /// None of this configuration can be at this.
    pub fn set_state(&self, bytes: &[u8]) -> Result<(), Error> {
        let wrong = |what: String| Error::Device(format!("saved state of plugged vCPUs: {what}"));
        let state: State = cbor::read(bytes).map_err(|(at, what)| wrong(format!("byte {at}: {what}")))?;
        // The first vCPU was never news.
        let can_be_news = first(state.plugged) & !1;
        if !(1..=self.config.most).contains(&state.plugged) || state.news & !can_be_news != 0 {
            return Err(wrong(format!("{state:?} of {} vCPUs", self.config.most)));
        }
        *self.lock() = state;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registers(plug: &Plug) -> Vec<u8> {
        PORTS.map(|port| plug.read(port)).collect()
    }

    fn wire(plug: &Plug) -> bool {
        let mut level = None;
        plug.hear(|high| level = Some(high));
        level.unwrap()
    }

    #[test]
    fn a_guest_hears_of_each_vcpu_once() {
        let plug = Plug::new(1, 12).unwrap();
        assert_eq!(registers(&plug), [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert!(!wire(&plug));
        plug.plug(10).unwrap();
        assert_eq!(registers(&plug), [0xff, 3, 0, 0, 0, 0, 0, 0, 0xfe, 3, 0, 0, 0, 0, 0, 0]);
        assert!(wire(&plug));
        let level = |port: u16, value: u8| {
            let mut level = None;
            plug.write(port, value, |high| level = Some(high));
            level
        };
        assert_eq!(level(PORTS.start, 0xff), None, "what is plugged is only read");
        assert_eq!(level(PORTS.start + 8, 0xfe), Some(true));
        assert_eq!(level(PORTS.start + 9, 1), Some(true));
        assert_eq!(level(PORTS.start + 9, 2), Some(false));
        plug.plug(10).unwrap();
        assert!(!wire(&plug), "no news");
        plug.plug(11).unwrap();
        assert_eq!((plug.read(PORTS.start + 9), plug.plugged(), plug.most()), (4, 11, 12));
        assert!(plug.plug(13).unwrap_err().to_string().contains("12 vCPUs at most"));
        assert!(plug.plug(10).unwrap_err().to_string().contains("none is unplugged"));
        assert!(Plug::new(1, 65).is_err() && Plug::new(0, 1).is_err() && Plug::new(3, 2).is_err());
        let all = Plug::new(1, 64).unwrap();
        all.plug(64).unwrap();
        assert_eq!(registers(&all)[..9], [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe]);
    }

    #[test]
    fn what_is_saved_is_taken_and_nothing_else() {
        let plug = Plug::new(1, 4).unwrap();
        plug.plug(3).unwrap();
        plug.write(NEWS, 2, |_| {});
        let other = Plug::new(1, 4).unwrap();
        other.set_state(&plug.state()).unwrap();
        assert_eq!((registers(&other), other.state()), (registers(&plug), plug.state()));
        assert!(wire(&other), "it is still news there");
        for (plugged, news) in [(0, 0), (5, 0), (2, 4), (2, 1), (u32::MAX, 0)] {
            let refused = other.set_state(&cbor::print(&State { plugged, news })).unwrap_err();
            assert!(refused.to_string().contains("of 4 vCPUs"), "{refused}");
        }
        assert!(other.set_state(b"\xff").is_err());
        assert_eq!(other.state(), plug.state(), "what was refused changed nothing");
    }
}
