//! The bodies of the fuzz targets: hostile guests, and hostile saved states. Whatever they do, a device neither panics nor goes on
//! without end, and what it saves is what it takes.

use std::io::{Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use crate::View;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, socketpair};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::devices::ioapic::{Ioapic, PINS};
use crate::devices::keyboard::{COMMAND, DATA, Keyboard};
use crate::devices::plug::Plug;
use crate::devices::serial::{Edge, PORTS, Port};
use crate::devices::virtio::block::Block;
use crate::devices::virtio::console::Console;
use crate::devices::virtio::entropy::Entropy;
use crate::devices::virtio::net::{Config, Link, Net};
use crate::devices::virtio::{Device, State, Transport};
use crate::linux::Boot;

/// The guest's memory in bytes.
const MEMORY: usize = 1 << 18;
/// Memory for a kernel.
const KERNEL_MEMORY: usize = 4 << 20;
/// How many turns are looked at when nothing happens any more.
const TURNS: usize = 100;
/// In how many of them in a row a device may find nothing that it can use: as many as there are messages at the other side.
const IDLE: usize = 50;
/// Where a well-behaved guest would put the parts of its queues.
const RINGS: u32 = 0x1_0000;
const PART: u32 = 0x1000;
/// How many elements it would choose.
const SIZE: u32 = 16;

/// What was reached: a test that reaches nothing is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reached {
    /// Requests that a device took.
    pub requests: u64,
    /// Times that a device was made anew from what was saved.
    pub moves: u64,
    /// Saved states that were taken.
    pub taken: u64,
    /// Interrupts.
    pub interrupts: u64,
}

/// Bytes as decisions; zeroes when they are over.
struct Dice<'a>(&'a [u8]);

impl<'a> Dice<'a> {
    fn over(&self) -> bool {
        self.0.is_empty()
    }

    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn half(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    fn word(&mut self) -> u32 {
        u32::from(self.half()) | u32::from(self.half()) << 16
    }

    fn some(&mut self, most: usize) -> &'a [u8] {
        let (now, later) = self.0.split_at(most.min(self.0.len()));
        self.0 = later;
        now
    }
}

/// What is at the other side of a device.
struct Host {
    kind: u8,
    disk: OwnedFd,
    card: OwnedFd,
    wire: OwnedFd,
    keys: OwnedFd,
    typing: OwnedFd,
}

fn pair() -> (OwnedFd, OwnedFd) {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).expect("a pair of sockets")
}

impl Host {
    fn new(kind: u8) -> Host {
        let disk = memfd_create("disk", MemfdFlags::CLOEXEC).expect("memory for a disk");
        rustix::fs::ftruncate(&disk, 1 << 15).expect("memory for a disk");
        let ((card, wire), (keys, typing)) = (pair(), pair());
        Host { kind, disk, card, wire, keys, typing }
    }

    /// A device; the next one is on the same host.
    fn device(&self) -> Box<dyn Device> {
        let again = |fd: &OwnedFd| fd.try_clone().expect("a file more");
        match self.kind % 5 {
            0 => Box::new(Block::new(again(&self.disk).into(), false, "disk").expect("a disk")),
            1 => Box::new(Block::new(again(&self.disk).into(), true, "disk").expect("a disk")),
            2 => Box::new(Entropy::new().expect("a source")),
            3 => {
                let link = Link::passed(again(&self.card)).expect("a socket");
                Box::new(Net::new(link, Config { mac: [2; 6], offloads: 0 }).expect("a card"))
            }
            _ => {
                Box::new(Console::new(Some(again(&self.keys)), Box::new(std::io::sink())).expect("a console"))
            }
        }
    }

    fn transport(&self) -> Transport {
        Transport::new(self.device()).expect("its queues have sizes that are powers of two")
    }

    /// The other side does something.
    fn act(&self, bytes: &[u8]) {
        let other = if self.kind % 5 == 3 { &self.wire } else { &self.typing };
        // Full is full, and closed is closed.
        let _ = rustix::net::send(other, bytes, SendFlags::NOSIGNAL);
    }

    /// The other side takes what there is.
    fn drain(&self) {
        let mut bytes = [0; 256];
        while matches!(rustix::io::read(&self.wire, &mut bytes), Ok(1..)) {}
    }
}

fn memory() -> View {
    View::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("some memory")
}

fn put(transport: &mut Transport, memory: &View, register: u64, value: u32) {
    transport.write(register, &value.to_le_bytes(), memory);
}

/// Where a queue's part is.
fn place(queue: u32, part: u32) -> u32 {
    RINGS + (queue * 3 + part) * PART
}

/// What a driver does first.
fn set_up(transport: &mut Transport, memory: &View) {
    for (register, value) in
        [(0x70, 0), (0x70, 3), (0x24, 1), (0x20, 1), (0x24, 0), (0x20, 1 << 5), (0x70, 11)]
    {
        put(transport, memory, register, value);
    }
    for queue in 0..2 {
        for (register, value) in [
            (0x30, queue),
            (0x38, SIZE),
            (0x80, place(queue, 0)),
            (0x90, place(queue, 1)),
            (0xa0, place(queue, 2)),
            (0x44, 1),
        ] {
            put(transport, memory, register, value);
        }
        let _ = memory.write_slice(&[0; 3 * PART as usize], GuestAddress(place(queue, 0).into()));
    }
    put(transport, memory, 0x70, 15);
}

fn wakes(transport: &Transport) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    transport.source().is_some_and(|source| {
        poll(&mut [PollFd::new(&source.as_fd(), PollFlags::IN)], Some(&now)).is_ok_and(|ready| ready > 0)
    })
}

/// A guest that does as these bytes say to a virtio device: registers, rings, memory, and saves in between.
pub fn device(bytes: &[u8]) -> Reached {
    let mut dice = Dice(bytes);
    let kind = dice.byte();
    let host = Host::new(kind);
    let memory = memory();
    let mut transport = host.transport();
    let mut reached = Reached::default();
    if kind < 200 {
        set_up(&mut transport, &memory);
    }
    while !dice.over() {
        let now = dice.byte();
        let queue = u32::from(dice.byte() % 2);
        match now % 12 {
            0 => {
                let register = u64::from(dice.byte() % 48) * 4;
                put(&mut transport, &memory, register, dice.word());
            }
            1 => {
                let data = dice.some(usize::from(now / 12));
                transport.write(dice.half().into(), data, &memory);
            }
            2 => {
                let mut data = vec![0; usize::from(now / 12)];
                transport.read(dice.half().into(), &mut data);
            }
            3 => {
                let at = dice.word() as usize % MEMORY;
                let data = dice.some(usize::from(now / 12));
                let _ = memory.write_slice(data, GuestAddress(at as u64));
            }
            // A descriptor; most of them make sense.
            4..=6 => {
                let index = dice.byte() % SIZE as u8;
                let (address, length) = match dice.byte() % 8 {
                    0 => (u64::from(dice.word()) << 20, dice.word()),
                    1 => (u64::from(dice.half()), dice.word() % MEMORY as u32),
                    _ => (u64::from(dice.half()), u32::from(dice.half() % 600)),
                };
                let flags = u16::from(dice.byte() % 8);
                let next = u16::from(dice.byte() % (SIZE as u8 + 1));
                let mut bytes = address.to_le_bytes().to_vec();
                bytes.extend(length.to_le_bytes());
                bytes.extend(flags.to_le_bytes());
                bytes.extend(next.to_le_bytes());
                let at = place(queue, 0) + 16 * u32::from(index);
                let _ = memory.write_slice(&bytes, GuestAddress(at.into()));
            }
            // A head in the available ring, and a notification.
            7 | 8 => {
                let head = u16::from(dice.byte() % (SIZE as u8 + 1));
                let ring = u64::from(place(queue, 1));
                let end: u16 = memory.read_obj(GuestAddress(ring + 2)).unwrap_or(0);
                let _ = memory.write_obj(head, GuestAddress(ring + 4 + 2 * u64::from(end % SIZE as u16)));
                let _ = memory.write_obj(end.wrapping_add(1), GuestAddress(ring + 2));
                put(&mut transport, &memory, 0x50, queue);
            }
            9 => {
                let length = dice.byte();
                host.act(dice.some(length.into()));
            }
            10 => transport.incoming(&memory),
            _ => {
                let saved = transport.record();
                reached.requests += transport.device().counts().requests;
                transport = host.transport();
                // A queue that the driver moved out of memory before it was looked at is one that no state may have.
                if transport.set_record(&saved, &memory).is_ok() {
                    assert_eq!(transport.record(), saved, "what was set is saved again");
                    reached.moves += 1;
                }
            }
        }
        reached.interrupts += u64::from(transport.raised());
    }
    settle(&mut transport, &host, &memory);
    reached.requests += transport.device().counts().requests;
    reached
}

/// Nobody does anything any more: the device has enough soon, or each of its turns does something. A guest whose rings lie on top of
/// each other can make work of work without end, in its own time; no device asks for a turn that it has nothing to do in.
fn settle(transport: &mut Transport, host: &Host, memory: &View) {
    let mut idle = 0;
    for _ in 0..TURNS {
        host.drain();
        if !wakes(transport) {
            return;
        }
        let before = transport.state().queues;
        transport.incoming(memory);
        idle = if transport.state().queues == before { idle + 1 } else { 0 };
        assert!(idle < IDLE, "the device asks to be looked at without end");
    }
}

/// The first byte names a device, the others are its saved state.
pub fn saved(bytes: &[u8]) -> Reached {
    let mut reached = Reached::default();
    let Some((kind, state)) = bytes.split_first() else { return reached };
    match kind % 8 {
        5 => {
            if let Ok(it) = Ioapic::at(state) {
                assert_eq!(Ioapic::at(&it.state()).expect("what is saved is taken"), it);
                reached.taken += 1;
            }
        }
        6 if *kind >= 128 => {
            let it = Plug::new(1, 12).expect("a few vCPUs");
            if it.set_state(state).is_ok() {
                let other = Plug::new(1, 12).expect("a few vCPUs");
                other.set_state(&it.state()).expect("what is saved is taken");
                assert_eq!(it.state(), other.state());
                reached.taken += 1;
            }
        }
        6 => {
            let mut it = Keyboard::default();
            if it.set_state(state).is_ok() {
                let mut other = Keyboard::default();
                other.set_state(&it.state()).expect("what is saved is taken");
                assert_eq!(it, other);
                reached.taken += 1;
            }
        }
        7 => {
            let mut it = Port::new(Edges::default(), std::io::sink());
            if it.set_state(state).is_ok() {
                let saved = it.state();
                it.set_state(&saved).expect("what is saved is taken");
                assert_eq!(it.state(), saved);
                reached.taken += 1;
            }
        }
        _ => {
            let host = Host::new(*kind);
            let memory = memory();
            let mut transport = host.transport();
            // Bytes that nobody chose are hardly ever a state: so the upper half of these are the values in one.
            let taken = if *kind < 128 {
                transport.set_record(state, &memory)
            } else {
                let state = chosen(&mut Dice(state), &transport.state(), &memory);
                transport.set_state(&state, &memory)
            };
            if taken.is_ok() {
                let saved = transport.record();
                let mut other = host.transport();
                other.set_record(&saved, &memory).expect("what is saved is taken");
                assert_eq!(other.record(), saved);
                for queue in 0..3 {
                    host.act(&[1; 60]);
                    put(&mut transport, &memory, 0x50, queue);
                }
                settle(&mut transport, &host, &memory);
                reached.requests += transport.device().counts().requests;
                reached.taken += 1;
            }
        }
    }
    reached
}

/// A state with values that these bytes say, and such rings in memory.
fn chosen(dice: &mut Dice<'_>, like: &State, memory: &View) -> State {
    let mut state = like.clone();
    let usual = dice.byte() < 200;
    (state.status, state.features) = (15, 1 << 32 | u64::from(dice.byte() & 0x20));
    if !usual {
        (state.status, state.features) = (dice.word(), u64::from(dice.word()) << 16);
    }
    state.selectors = [dice.byte().into(), dice.byte().into(), dice.byte().into()];
    state.interrupts = u32::from(dice.byte() % 5);
    for queue in &mut state.queues {
        queue.size = 1 << (dice.byte() % 9);
        queue.ready = dice.byte() < 240;
        queue.next_avail = dice.half();
        queue.next_used = dice.half();
        for place in [&mut queue.desc_table, &mut queue.avail_ring, &mut queue.used_ring] {
            *place = if usual { u64::from(dice.half() & 0xfff0) } else { u64::from(dice.word()) << 8 };
        }
        let end = queue.next_avail.wrapping_add(u16::from(dice.byte() % 8));
        let _ = memory.write_obj(end, GuestAddress(queue.avail_ring.wrapping_add(2)));
    }
    while !dice.over() {
        let at = dice.half();
        let _ = memory.write_slice(dice.some(16), GuestAddress(at.into()));
    }
    state
}

/// States that devices are at: for a start.
pub fn states() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    let memory = memory();
    for kind in 0..5_u8 {
        let host = Host::new(kind);
        let mut transport = host.transport();
        all.push([&[kind], &transport.record()[..]].concat());
        set_up(&mut transport, &memory);
        all.push([&[kind], &transport.record()[..]].concat());
    }
    let mut ioapic = Ioapic::default();
    all.push([&[5], &ioapic.state()[..]].concat());
    ioapic.write(0, &0x16_u32.to_le_bytes());
    ioapic.write(0x10, &0x8041_u32.to_le_bytes());
    ioapic.set(3, true);
    all.push([&[5], &ioapic.state()[..]].concat());
    let mut keyboard = Keyboard::default();
    keyboard.write(COMMAND, 0x20);
    all.push([&[6], &keyboard.state()[..]].concat());
    let plug = Plug::new(1, 12).expect("a few vCPUs");
    plug.plug(9).expect("so many");
    all.push([&[134], &plug.state()[..]].concat());
    let mut port = Port::new(Edges::default(), std::io::sink());
    for (at, byte) in [(4, 0x10), (1, 3), (0, 7), (0, 8)] {
        port.write(PORTS.start + at, &[byte]);
    }
    all.push([&[7], &port.state()[..]].concat());
    all
}

/// Counts edges.
#[derive(Clone, Default)]
struct Edges(Arc<std::sync::atomic::AtomicU64>);

impl Edge for Edges {
    fn edge(&self, _: u32) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
}

/// Takes so many bytes and no more.
struct Narrow(usize);

impl Write for Narrow {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let taken = bytes.len().min(self.0);
        self.0 -= taken;
        Ok(taken)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A guest that does as these bytes say to the serial port, the keyboard controller and the IOAPIC.
pub fn ports(bytes: &[u8]) -> Reached {
    let mut dice = Dice(bytes);
    let edges = Edges::default();
    let mut serial = Port::new(edges.clone(), Narrow(64));
    let mut keyboard = Keyboard::default();
    let mut ioapic = Ioapic::default();
    let mut reached = Reached::default();
    while !dice.over() {
        let now = dice.byte();
        let port = PORTS.start + u16::from(now >> 4) % 8;
        match now % 12 {
            0 | 1 => {
                let length = usize::from(now >> 4);
                serial.write(port, dice.some(length));
            }
            2 => assert_eq!(serial.read(port, usize::from(now)).len(), usize::from(now)),
            3 => {
                let at = if now & 16 == 0 { DATA } else { COMMAND };
                keyboard.write(at, dice.byte());
                keyboard.read(if now & 32 == 0 { DATA } else { COMMAND });
            }
            // A register of the IOAPIC, by the index and the window.
            4..=6 => {
                ioapic.write(0, &u32::from(dice.byte() % 0x48).to_le_bytes());
                let effect = ioapic.write(0x10, &dice.word().to_le_bytes());
                reached.interrupts += sent(&ioapic, &effect.messages);
            }
            7 => {
                let at = u64::from(dice.half() % 0x60);
                let effect = ioapic.write(at, dice.some(usize::from(now >> 4)));
                reached.interrupts += sent(&ioapic, &effect.messages);
                ioapic.read(at, &mut vec![0; usize::from(now >> 3)]);
            }
            8 | 9 => {
                let pin = u32::from(dice.byte() % (PINS as u8 + 2));
                let message = ioapic.set(pin, now & 16 != 0);
                reached.interrupts += sent(&ioapic, message.as_slice());
            }
            10 => {
                let messages = ioapic.eoi(dice.byte());
                reached.interrupts += sent(&ioapic, &messages);
            }
            _ => {
                let again = Ioapic::at(&ioapic.state()).expect("what a guest makes of it can be restored");
                assert_eq!(again, ioapic);
                let edges_before = edges.0.load(std::sync::atomic::Ordering::Relaxed);
                let saved = serial.state();
                serial.set_state(&saved).expect("what a guest makes of it can be restored");
                assert_eq!(serial.state(), saved);
                assert_eq!(edges.0.load(std::sync::atomic::Ordering::Relaxed), edges_before, "no edge more");
                let saved = keyboard.state();
                keyboard.set_state(&saved).expect("what a guest makes of it can be restored");
                reached.moves += 1;
            }
        }
    }
    reached.interrupts += edges.0.load(std::sync::atomic::Ordering::Relaxed);
    reached
}

/// The first byte chooses the protocol, the others are a kernel's file. What is taken is within memory and leaves alone what else is
/// there.
pub fn kernel(bytes: &[u8]) -> Reached {
    let mut reached = Reached::default();
    let Some((how, image)) = bytes.split_first() else { return reached };
    let kernel = memfd_create("kernel", MemfdFlags::CLOEXEC).expect("memory for a kernel");
    let mut kernel = std::fs::File::from(kernel);
    kernel.write_all(image).expect("memory for a kernel");
    kernel.rewind().expect("a file");
    let archive = vec![0xa5; 5000];
    let mut boot = Boot { kernel, initramfs: Some(archive.clone()), command_line: "quiet".to_owned() };
    let loaded = match how % 2 {
        #[cfg(target_arch = "x86_64")]
        0 => pc_kernel(&mut boot),
        _ => arm64_kernel(&mut boot),
    };
    if let Some((memory, entry, at)) = loaded {
        let mut there = vec![0; archive.len()];
        memory.read_slice(&mut there, GuestAddress(at)).expect("the archive is within memory");
        assert!(there == archive && memory.address_in_range(GuestAddress(entry)));
        reached.taken = 1;
    }
    reached
}

/// A kernel in memory, its entry, and where the archive is.
type Kernel = (View, u64, u64);

#[cfg(target_arch = "x86_64")]
fn pc_kernel(boot: &mut Boot) -> Option<Kernel> {
    use crate::linux::{pvh, x86_64 as linux};
    let ram = Arc::new(evenkeel_sys::Ram::new(KERNEL_MEMORY).expect("some memory"));
    let memory = crate::view(&ram, 0).expect("some memory");
    let entry = linux::load(&memory, &ram, boot, 0xe_0000).ok()?;
    let number = |at: u64| memory.read_obj::<u32>(GuestAddress(at)).expect("low memory");
    // Where the parameters and the module list have it.
    Some(match entry {
        linux::Entry::Long(entry) => (memory.clone(), entry, number(0x9000 + 0x218).into()),
        linux::Entry::Pvh(entry) => {
            assert_eq!(number(pvh::START_INFO.into()), 0x336e_c578);
            (memory.clone(), entry.into(), number(number(u64::from(pvh::START_INFO) + 16).into()).into())
        }
    })
}

fn arm64_kernel(boot: &mut Boot) -> Option<Kernel> {
    let begin = GuestAddress(crate::aarch64::MEMORY_BASE);
    let memory = View::from_ranges(&[(begin, KERNEL_MEMORY)]).expect("some memory");
    let loaded = crate::linux::aarch64::load(&memory, boot).ok()?;
    Some((memory, loaded.entry, loaded.initramfs?.0))
}

/// At most one message a pin, and each is that of a pin.
fn sent(ioapic: &Ioapic, messages: &[crate::devices::ioapic::Message]) -> u64 {
    let routes = ioapic.routes();
    assert!(messages.len() <= PINS && messages.iter().all(|message| routes.contains(message)));
    messages.len() as u64
}
