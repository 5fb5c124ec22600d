//! As much of an i8042 as Linux needs to find no keyboard, and to reset the machine.

use evenkeel_capsule::cbor;
use serde::{Deserialize, Serialize};

use crate::Error;

/// Data and status.
pub const DATA: u16 = 0x60;
/// Commands and status.
pub const COMMAND: u16 = 0x64;

/// Both ports disabled, no interrupts.
const CONFIGURATION: u8 = 0x30;
const OUTPUT_FULL: u8 = 1;
const RESET: u8 = 0xfe;

/// What it is made from: nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {}

/// The controller, and its state as it is saved.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keyboard {
    answer: Option<u8>,
    /// The next byte of data is the controller's, not a keyboard's.
    expects: bool,
}

impl Keyboard {
    /// What it is, for making it again: CBOR.
    pub fn config_record(&self) -> Vec<u8> {
        cbor::print(&Config {})
    }

    /// What it is at: CBOR.
    pub fn state(&self) -> Vec<u8> {
        cbor::print(self)
    }

    /// Puts it there.
    ///
    /// # Errors
    /// No controller can be at this.
    pub fn set_state(&mut self, bytes: &[u8]) -> Result<(), Error> {
        *self = cbor::read(bytes).map_err(|(at, what)| {
            Error::Device(format!("saved state of the keyboard controller: byte {at}: {what}"))
        })?;
        Ok(())
    }

    /// A read of the guest.
    pub fn read(&mut self, port: u16) -> u8 {
        match port {
            COMMAND => {
                if self.answer.is_some() {
                    OUTPUT_FULL
                } else {
                    0
                }
            }
            _ => self.answer.take().unwrap_or(0),
        }
    }

    /// A write of the guest; true when it asks for a reset.
    pub fn write(&mut self, port: u16, value: u8) -> bool {
        if port != COMMAND {
            self.expects = false;
            return false;
        }
        match value {
            0x20 => self.answer = Some(CONFIGURATION),
            0x60 | 0xd1..=0xd4 => self.expects = true,
            // Self-test; test of the first and the second port: there is none.
            0xaa => self.answer = Some(0x55),
            0xab | 0xa9 => self.answer = Some(1),
            RESET => return true,
            _ => {}
        }
        false
    }
}
