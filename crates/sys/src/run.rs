//! Running a vCPU: KVM_RUN, and the page in which the kernel says why it came back.
//!
//! Offsets are of `struct kvm_run` in `include/uapi/linux/kvm.h`; the same on all architectures up to the union.

use std::sync::Arc;

use crate::kick::{Kicker, Pending};
use crate::layout::{long, word};
use crate::ram::Mapping;
use crate::requests::*;
use crate::{Arg, Errno, Error, Refusal, System, Vcpu};

const IMMEDIATE_EXIT: usize = 1;
const EXIT_REASON: usize = 8;
const UNION: usize = 32;
/// The union has 256 bytes of padding in the header.
const HEAD: usize = UNION + 256;

/// The page that a vCPU shares with the kernel.
#[derive(Debug)]
pub struct RunPage(Mapping);

impl RunPage {
    pub(crate) fn new(map: Mapping) -> RunPage {
        RunPage(map)
    }

    /// Sets or clears `immediate_exit`.
    pub(crate) fn leave_at_once(&self, wanted: bool) {
        // Within the page: its length was looked at when it was mapped.
        let _ = self.0.write(IMMEDIATE_EXIT, &[u8::from(wanted)]);
    }
}

/// Why a vCPU stopped running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// A signal, or [`Runner::leave_at_once`].
    Interrupted,
    /// KVM_EXIT_IO, a write: `data` holds `count` units of `size` bytes.
    PortWrite {
        /// The port.
        port: u16,
        /// Bytes a unit.
        size: u8,
        /// All units, in order.
        data: Vec<u8>,
    },
    /// KVM_EXIT_IO, a read: to be answered with [`Runner::answer`].
    PortRead {
        /// The port.
        port: u16,
        /// Bytes a unit.
        size: u8,
        /// How many units.
        count: u32,
    },
    /// KVM_EXIT_MMIO, a write.
    MemoryWrite {
        /// The guest-physical address.
        address: u64,
        /// What is written: 1 to 8 bytes.
        data: Vec<u8>,
    },
    /// KVM_EXIT_MMIO, a read: to be answered with [`Runner::answer`].
    MemoryRead {
        /// The guest-physical address.
        address: u64,
        /// How many bytes, 1 to 8.
        length: usize,
    },
    /// KVM_EXIT_HLT: only without an APIC in the kernel.
    Halted,
    /// KVM_EXIT_SHUTDOWN: a triple fault.
    Shutdown,
    /// KVM_EXIT_IOAPIC_EOI (x86 with a split irqchip): the vector of a level-triggered interrupt was ended.
    IoapicEoi(u8),
    /// KVM_EXIT_SYSTEM_EVENT: what the guest asked for (KVM_SYSTEM_EVENT_*), with its data.
    SystemEvent(u32, Vec<u64>),
    /// KVM_EXIT_X86_RDMSR or KVM_EXIT_X86_WRMSR.
    Msr {
        /// Which MSR.
        index: u32,
        /// The value of a write; none of a read.
        write: Option<u64>,
        /// KVM_MSR_EXIT_REASON_*.
        reason: u64,
    },
    /// KVM_EXIT_HYPERCALL: number and six arguments.
    Hypercall(u64, [u64; 6]),
    /// KVM_EXIT_FAIL_ENTRY: the hardware refused the state, with its reason.
    FailEntry(u64),
    /// KVM_EXIT_INTERNAL_ERROR: KVM gave up; suberror and data.
    InternalError(u32, Vec<u64>),
    /// Any other KVM_EXIT_*, by its number.
    Other(u32),
}

/// A vCPU that can run.
#[derive(Debug)]
pub struct Runner<'v, 'b> {
    vcpu: &'v Vcpu<'b>,
    page: Arc<RunPage>,
    /// Where the answer to a read goes, and how long it must be.
    answer: Option<(usize, usize)>,
}

impl<'b> Vcpu<'b> {
    /// Maps the page that it shares with the kernel.
    pub fn runner<'v>(&'v self, system: &System<'b>) -> Result<Runner<'v, 'b>, Error> {
        let length = system.int(&KVM_GET_VCPU_MMAP_SIZE, 0)?;
        let length = usize::try_from(length).unwrap_or_default();
        let page = self.backend().map_run(self.handle(), length).map_err(|why| Error {
            ioctl: "mmap",
            argument: format!("vcpu, {length} bytes"),
            why,
        })?;
        if page.0.len() < HEAD {
            let why = Refusal::Nonsense(format!("{length} bytes are no struct kvm_run"));
            return Err(self.error(&KVM_GET_VCPU_MMAP_SIZE, "", why));
        }
        Ok(Runner { vcpu: self, page, answer: None })
    }
}

impl<'v, 'b> Runner<'v, 'b> {
    /// The vCPU.
    pub fn vcpu(&self) -> &'v Vcpu<'b> {
        self.vcpu
    }

    /// Whether the next runs come back before the guest executes anything: what is pending is retired, no more.
    pub fn leave_at_once(&self, wanted: bool) {
        self.page.leave_at_once(wanted);
    }

    /// What takes this thread, which is to run the vCPU, out of KVM_RUN.
    pub fn kicker(&self) -> Kicker {
        Kicker::new(self.page.clone())
    }

    /// Runs the guest until it stops.
    pub fn run(&mut self) -> Result<Exit, Error> {
        self.answer = None;
        match self.vcpu.call(&KVM_RUN, Arg::Int(0), "") {
            Ok(_) => self.exit(),
            Err(error) if matches!(error.why, Refusal::Errno(Errno::EINTR)) => Ok(Exit::Interrupted),
            Err(error) => Err(error),
        }
    }

    /// Runs with a signal pending: the kernel comes as far as it does before it would enter the guest, turns timers that
    /// expired meanwhile into interrupts, and comes back. Nothing of the guest is executed. A mask that was set with
    /// KVM_SET_SIGNAL_MASK is gone afterwards.
    pub fn run_signalled(&mut self) -> Result<Exit, Error> {
        let mut mask = [0; 12];
        mask[..4].copy_from_slice(&8_u32.to_ne_bytes());
        mask[4..].copy_from_slice(&Pending::MASK.to_ne_bytes());
        let pending = Pending::new();
        self.vcpu.set(&KVM_SET_SIGNAL_MASK, &mask)?;
        let exit = self.run();
        let unset = self.vcpu.int(&KVM_UNSET_SIGNAL_MASK, 0);
        drop(pending);
        unset.and(exit)
    }

    /// Answers the read that the guest stopped at. Bytes that are missing are 0xff, as on a bus where nobody answers;
    /// bytes that are too many are dropped.
    pub fn answer(&mut self, data: &[u8]) {
        if let Some((at, length)) = self.answer.take() {
            let mut bytes = vec![0xff; length];
            let given = data.len().min(length);
            bytes[..given].copy_from_slice(&data[..given]);
            self.put(at, &bytes);
        }
    }

    fn exit(&mut self) -> Result<Exit, Error> {
        let mut head = [0; HEAD];
        // The length was looked at when the page was mapped.
        let _ = self.page.0.read(0, &mut head);
        let at = |offset: usize| UNION + offset;
        let words = |count: u32, offset: usize| -> Vec<u64> {
            (0..count.min(16) as usize).map(|n| long(&head, at(offset) + 8 * n)).collect()
        };
        Ok(match word(&head, EXIT_REASON) {
            2 => return self.port(&head),
            5 => Exit::Halted,
            6 => {
                let (address, length) = (long(&head, at(0)), (word(&head, at(16)) as usize).min(8));
                if head[at(20)] != 0 {
                    Exit::MemoryWrite { address, data: head[at(8)..at(8) + length].to_vec() }
                } else {
                    self.answer = Some((at(8), length));
                    Exit::MemoryRead { address, length }
                }
            }
            3 => {
                let arg = |n: usize| long(&head, at(8) + 8 * n);
                Exit::Hypercall(long(&head, at(0)), [arg(0), arg(1), arg(2), arg(3), arg(4), arg(5)])
            }
            8 => Exit::Shutdown,
            9 => Exit::FailEntry(long(&head, at(0))),
            10 => Exit::Interrupted,
            17 => Exit::InternalError(word(&head, at(0)), words(word(&head, at(4)), 8)),
            24 => Exit::SystemEvent(word(&head, at(0)), words(word(&head, at(4)), 8)),
            26 => Exit::IoapicEoi(head[at(0)]),
            reason @ (29 | 30) => {
                if reason == 29 {
                    self.answer = Some((at(24), 8));
                }
                Exit::Msr {
                    index: word(&head, at(16)),
                    write: (reason == 30).then(|| long(&head, at(24))),
                    reason: u64::from(word(&head, at(8))),
                }
            }
            other => Exit::Other(other),
        })
    }

    /// Port I/O, whose data lie where the kernel says.
    fn port(&mut self, head: &[u8]) -> Result<Exit, Error> {
        let (direction, size) = (head[UNION], head[UNION + 1]);
        let port = u16::from_ne_bytes([head[UNION + 2], head[UNION + 3]]);
        let (count, offset) = (word(head, UNION + 4), long(head, UNION + 8));
        let length = usize::from(size).saturating_mul(count as usize);
        let place = usize::try_from(offset).unwrap_or(usize::MAX);
        let mut data = vec![0; length.min(self.page.0.len())];
        if self.page.0.read(place, &mut data).is_err() || data.len() != length {
            let why = Refusal::Nonsense(format!("{length} bytes of port I/O at {offset:#x}"));
            return Err(self.vcpu.error(&KVM_RUN, "", why));
        }
        if direction == 1 {
            return Ok(Exit::PortWrite { port, size, data });
        }
        self.answer = Some((place, length));
        Ok(Exit::PortRead { port, size, count })
    }

    fn put(&self, at: usize, bytes: &[u8]) {
        // Within the page: the header's places were looked at when it was mapped, the others when they were told.
        let _ = self.page.0.write(at, bytes);
    }
}
