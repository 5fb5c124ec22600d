//! The first serial port of a PC.

use std::convert::Infallible;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use evenkeel_capsule::cbor::{self, Bytes};
use serde::{Deserialize, Serialize};
use vm_superio::serial::{NoEvents, SerialState};
use vm_superio::{Serial, Trigger};

use super::interrupts::Interrupts;
use crate::Error;

/// Its ports.
pub const PORTS: std::ops::Range<u16> = 0x3f8..0x400;
/// Its interrupt.
const IRQ: u32 = 4;

/// What raises the interrupt: anything that takes an edge.
pub trait Edge: Send {
    /// An edge at this pin.
    fn edge(&self, pin: u32);
}

impl Edge for Arc<Interrupts<'_, '_>> {
    fn edge(&self, pin: u32) {
        self.pulse(pin);
    }
}

/// The line, which is still while state is set.
struct Line<E> {
    to: Arc<E>,
    still: AtomicBool,
}

impl<E: Edge> Trigger for Line<E> {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        if !self.still.load(Ordering::Relaxed) {
            self.to.edge(IRQ);
        }
        Ok(())
    }
}

/// What it is made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Its first port.
    pub port: u16,
    /// Its interrupt.
    pub irq: u32,
}

/// What it is at: the registers of a 16550, and what came in and was not read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Divisor latch: low byte, high byte.
    pub divisor: [u8; 2],
    /// Interrupt enable.
    pub interrupt_enable: u8,
    /// Interrupt identification.
    pub interrupt_identification: u8,
    /// Line control.
    pub line_control: u8,
    /// Line status.
    pub line_status: u8,
    /// Modem control.
    pub modem_control: u8,
    /// Modem status.
    pub modem_status: u8,
    /// Scratch.
    pub scratch: u8,
    /// What the guest has not read yet.
    pub input: Bytes,
}

/// The port, whose output goes to `W`.
pub struct Port<E: Edge, W: Write> {
    to: Arc<E>,
    /// What the guest writes goes through the vector to the output, some bytes at once.
    serial: Serial<Line<E>, NoEvents, Vec<u8>>,
    output: W,
}

impl<E: Edge, W: Write> Port<E, W> {
    /// A port with these interrupts.
    pub fn new(interrupts: E, output: W) -> Self {
        let to = Arc::new(interrupts);
        let line = Line { to: to.clone(), still: AtomicBool::new(false) };
        Port { to, serial: Serial::new(line, Vec::new()), output }
    }

    /// A write of the guest. What the output refuses is lost, as on a line that nobody listens to.
    pub fn write(&mut self, port: u16, data: &[u8]) {
        for byte in data {
            // Neither can fail: a vector takes all, and so does the line.
            let _ = self.serial.write(port.wrapping_sub(PORTS.start) as u8, *byte);
        }
        let said = self.serial.writer_mut();
        if !said.is_empty() {
            let _ = self.output.write_all(said).and_then(|()| self.output.flush());
            said.clear();
        }
    }

    /// A read of the guest.
    pub fn read(&mut self, port: u16, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.serial.read(port.wrapping_sub(PORTS.start) as u8)).collect()
    }

    /// What it is, for making it again: CBOR.
    pub fn config_record(&self) -> Vec<u8> {
        cbor::print(&Config { port: PORTS.start, irq: IRQ })
    }

    /// What it is at: CBOR.
    pub fn state(&self) -> Vec<u8> {
        let it = self.serial.state();
        cbor::print(&State {
            divisor: [it.baud_divisor_low, it.baud_divisor_high],
            interrupt_enable: it.interrupt_enable,
            interrupt_identification: it.interrupt_identification,
            line_control: it.line_control,
            line_status: it.line_status,
            modem_control: it.modem_control,
            modem_status: it.modem_status,
            scratch: it.scratch,
            input: Bytes(it.in_buffer),
        })
    }

    /// Puts it there. No interrupt is raised: the controller's state has it.
    ///
    /// # Errors
    /// No port can be at this.
    pub fn set_state(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let wrong = |what: String| Error::Device(format!("saved state of the serial port: {what}"));
        let it: State = cbor::read(bytes).map_err(|(at, what)| wrong(format!("byte {at}: {what}")))?;
        // Data ready, and the two bits of a transmitter that is always done.
        let status = 0x60 | u8::from(!it.input.0.is_empty());
        if it.interrupt_enable > 0xf || it.interrupt_identification > 0xf || it.line_status != status {
            return Err(wrong("bits that no register has".to_owned()));
        }
        let state = SerialState {
            baud_divisor_low: it.divisor[0],
            baud_divisor_high: it.divisor[1],
            interrupt_enable: it.interrupt_enable,
            interrupt_identification: it.interrupt_identification,
            line_control: it.line_control,
            line_status: it.line_status,
            modem_control: it.modem_control,
            modem_status: it.modem_status,
            scratch: it.scratch,
            in_buffer: it.input.0,
        };
        let line = Line { to: self.to.clone(), still: AtomicBool::new(true) };
        self.serial =
            Serial::from_state(&state, line, NoEvents, Vec::new()).map_err(|e| wrong(e.to_string()))?;
        self.serial.interrupt_evt().still.store(false, Ordering::Relaxed);
        Ok(())
    }
}
