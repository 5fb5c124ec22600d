//! An I/O APIC: Intel's 82093AA, with the EOI register of its successors (version 0x20). It is pure: what it sends is returned to
//! whoever has it, and nothing here knows KVM.
//!
//! A pin's level is that of its wire, high when the device asks; the polarity bit is kept and has no effect, as in KVM's own. A
//! rising edge at a masked pin is lost, a level is not: it is still there when the pin is unmasked (datasheet, section 3.2.4).

use evenkeel_capsule::cbor;
use serde::{Deserialize, Serialize};

use crate::Error;

/// Where its registers are.
pub const BASE: u64 = 0xfec0_0000;
/// How far they reach.
pub const LENGTH: u64 = 0x1000;
/// Its pins.
pub const PINS: usize = 24;

const VERSION: u32 = 0x20;
const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
const EOI: u64 = 0x40;

const VECTOR: u64 = 0xff;
const DELIVERY: u64 = 7 << 8;
const LOGICAL: u64 = 1 << 11;
/// Delivery status: always idle, since what is sent is sent at once.
const STATUS: u64 = 1 << 12;
const POLARITY: u64 = 1 << 13;
/// Remote IRR: a level was sent and not ended yet.
const REMOTE: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
const DESTINATION: u64 = 0xff << 56;
/// What the guest may write.
const WRITABLE: u64 = VECTOR | DELIVERY | LOGICAL | POLARITY | LEVEL | MASKED | DESTINATION;

/// An interrupt as a message on the bus (SDM volume 3, section 11.11).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// The lower half of the address: destination and its mode.
    pub address: u32,
    /// Vector, delivery mode, trigger mode.
    pub data: u32,
}

impl Message {
    fn of(entry: u64) -> Message {
        let logical = if entry & LOGICAL == 0 { 0 } else { 1 << 2 };
        let address = 0xfee0_0000 | ((entry >> 56) as u32) << 12 | logical;
        // Bit 14: the level is asserted. Edges ignore it.
        let data = (entry & (VECTOR | DELIVERY | LEVEL)) as u32 | 1 << 14;
        Message { address, data }
    }
}

/// What a write of the guest led to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effect {
    /// What is sent, in this order: at most one for each pin.
    pub messages: Vec<Message>,
    /// Whether a pin's message is another than before.
    pub rerouted: bool,
}

/// What it is made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Its pins.
    pub pins: u32,
    /// What its version register says.
    pub version: u32,
}

/// The controller, and its state as it is saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ioapic {
    /// The index register.
    select: u32,
    /// The identification register.
    id: u32,
    /// The levels of the wires, a bit each.
    lines: u32,
    /// The redirection table.
    table: Vec<u64>,
}

impl Default for Ioapic {
    fn default() -> Ioapic {
        Ioapic { select: 0, id: 0, lines: 0, table: vec![MASKED; PINS] }
    }
}

impl Ioapic {
    /// What every one is made from.
    pub fn config_record(&self) -> Vec<u8> {
        cbor::print(&Config { pins: PINS as u32, version: VERSION })
    }

    /// What it is at, as CBOR.
    pub fn state(&self) -> Vec<u8> {
        cbor::print(self)
    }

    /// One that is at this.
    ///
    /// # Errors
    /// It is no state that one can be at.
    pub fn at(bytes: &[u8]) -> Result<Ioapic, Error> {
        let wrong = |what: &str| Error::Device(format!("saved state of the IOAPIC: {what}"));
        let it: Ioapic = cbor::read(bytes).map_err(|(at, what)| wrong(&format!("byte {at}: {what}")))?;
        if it.table.len() != PINS {
            return Err(wrong(&format!("{} pins, not {PINS}", it.table.len())));
        }
        if it.lines >> PINS != 0 || it.id & !0x0f00_0000 != 0 || it.select > 0xff {
            return Err(wrong("bits that no register has"));
        }
        let possible = |entry: &u64| entry & !(WRITABLE | REMOTE) == 0 && entry & (REMOTE | LEVEL) != REMOTE;
        if !it.table.iter().all(possible) {
            return Err(wrong("a redirection entry that no guest can make"));
        }
        Ok(it)
    }

    /// The message of each pin: what KVM must know to tell of its EOI.
    pub fn routes(&self) -> Vec<Message> {
        self.table.iter().map(|entry| Message::of(*entry)).collect()
    }

    /// A wire's level. Returns what is sent.
    pub fn set(&mut self, pin: u32, high: bool) -> Option<Message> {
        let index = pin as usize;
        let entry = *self.table.get(index)?;
        let was = self.lines >> pin & 1 == 1;
        self.lines = self.lines & !(1 << pin) | u32::from(high) << pin;
        if entry & LEVEL == 0 {
            return (high && !was && entry & MASKED == 0).then(|| Message::of(entry));
        }
        self.serve(index)
    }

    /// The local APICs ended this vector.
    pub fn eoi(&mut self, vector: u8) -> Vec<Message> {
        let mut sent = Vec::new();
        for index in 0..PINS {
            let entry = &mut self.table[index];
            if *entry & REMOTE != 0 && *entry & VECTOR == u64::from(vector) {
                *entry &= !REMOTE;
                sent.extend(self.serve(index));
            }
        }
        sent
    }

    /// Sends what a level-triggered pin asks for.
    fn serve(&mut self, index: usize) -> Option<Message> {
        let entry = &mut self.table[index];
        let wanted = self.lines >> index & 1 == 1 && *entry & (LEVEL | REMOTE | MASKED) == LEVEL;
        wanted.then(|| {
            *entry |= REMOTE;
            Message::of(*entry)
        })
    }

    /// A read of the guest at this offset.
    pub fn read(&self, at: u64, data: &mut [u8]) {
        data.fill(0);
        let value = match at & !3 {
            SELECT => self.select,
            WINDOW => self.register(),
            _ => 0,
        };
        let bytes = value.to_le_bytes();
        let from = (at & 3) as usize;
        let length = data.len().min(bytes.len() - from);
        data[..length].copy_from_slice(&bytes[from..from + length]);
    }

    /// A write of the guest at this offset.
    pub fn write(&mut self, at: u64, data: &[u8]) -> Effect {
        let mut word = [0; 4];
        let length = data.len().min(4);
        word[..length].copy_from_slice(&data[..length]);
        let value = u32::from_le_bytes(word);
        match at {
            SELECT => self.select = value & 0xff,
            WINDOW if data.len() >= 4 => return self.set_register(value),
            EOI => return Effect { messages: self.eoi(value as u8), rerouted: false },
            _ => {}
        }
        Effect::default()
    }

    fn register(&self) -> u32 {
        match self.select {
            // Identification, and the arbitration identification that follows it.
            0 | 2 => self.id,
            1 => VERSION | (PINS as u32 - 1) << 16,
            select => match self.place(select) {
                Some((index, shift)) => (self.table[index] >> shift) as u32,
                None => 0,
            },
        }
    }

    fn set_register(&mut self, value: u32) -> Effect {
        if self.select == 0 {
            self.id = value & 0x0f00_0000;
        }
        let Some((index, shift)) = self.place(self.select) else { return Effect::default() };
        let old = self.table[index];
        let half = 0xffff_ffff_u64 << shift;
        let mut new = old & !half | u64::from(value) << shift;
        new = new & WRITABLE | old & REMOTE;
        if new & LEVEL == 0 {
            // Older drivers end a level that got stuck by this: edge, and level again.
            new &= !REMOTE;
        }
        self.table[index] = new & !STATUS;
        Effect {
            messages: self.serve(index).into_iter().collect(),
            rerouted: Message::of(old) != Message::of(new),
        }
    }

    /// The entry of the table that this register is a half of.
    fn place(&self, select: u32) -> Option<(usize, u32)> {
        let from = select.checked_sub(0x10)?;
        let index = from as usize / 2;
        (index < PINS).then_some((index, from % 2 * 32))
    }
}
