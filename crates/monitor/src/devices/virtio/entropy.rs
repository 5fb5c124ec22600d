//! A source of random bytes (virtio 1.2, section 5.4).

use std::io::Write;

use evenkeel_capsule::cbor;
use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryMmap;

use super::Device;

/// The most bytes for one request.
const MOST: usize = 4096;

/// What it is made from: nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {}

/// The host's random bytes.
#[derive(Debug, Default)]
pub struct Entropy;

impl Device for Entropy {
    fn kind(&self) -> u32 {
        4
    }

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> &'static [u16] {
        &[64]
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn config_record(&self) -> Vec<u8> {
        cbor::print(&Config {})
    }

    fn notify(&mut self, _: usize, queue: &mut Queue, memory: &GuestMemoryMmap, _: u64) -> bool {
        let mut used = false;
        for _ in 0..queue.size() {
            let Some(chain) = queue.pop_descriptor_chain(memory) else { break };
            let head = chain.head_index();
            let mut given = 0;
            if let Ok(mut writer) = chain.writer::<()>(memory) {
                let mut bytes = vec![0; writer.available_bytes().min(MOST)];
                let got = getrandom(&mut bytes[..], GetRandomFlags::empty()).unwrap_or(0);
                if writer.write_all(&bytes[..got]).is_ok() {
                    given = got as u32;
                }
            }
            used |= queue.add_used(memory, head, given).is_ok();
        }
        used
    }
}
