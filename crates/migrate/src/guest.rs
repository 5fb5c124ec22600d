//! What a VMM does for a guest that moves.

/// The VMM could not do what it was asked for: what, why and what helps, in words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct GuestError(pub String);

/// Guest memory: bytes from a guest-physical address on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Range {
    /// Where it begins.
    pub address: u64,
    /// How many bytes.
    pub length: u64,
}

/// A part of the state, by its name in a capsule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// `vcpu.0/regs`, `manifest`, `device.disk0`.
    pub name: String,
    /// What is in it.
    pub bytes: Vec<u8>,
}

/// The guest on the side that it leaves.
pub trait Leaving {
    /// What the destination has to know to say whether it can take the guest: contract, exposure, surface.
    fn offer(&mut self) -> Result<Vec<u8>, GuestError>;

    /// All of its memory.
    fn memory(&self) -> Vec<Range>;

    /// From now on, what is written is remembered.
    fn track(&mut self) -> Result<(), GuestError>;

    /// What was written since the last call, or since [`Leaving::track`].
    fn written(&mut self) -> Result<Vec<Range>, GuestError>;

    /// Memory as it is now. The guest may be writing to it: what is torn is written again later.
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), GuestError>;

    /// Stops all vCPUs and devices: nothing is in flight afterwards, and nothing writes to memory.
    fn pause(&mut self) -> Result<(), GuestError>;

    /// The state of a guest that is paused.
    fn state(&mut self) -> Result<Vec<Section>, GuestError>;

    /// The guest goes on, whatever happened before. Not remembering any more what is written is a part of it.
    fn resume(&mut self) -> Result<(), GuestError>;

    /// It runs elsewhere: nothing of it is needed here any more.
    fn free(&mut self);
}

/// The guest on the side that it comes to.
pub trait Arriving {
    /// Whether this host can take this guest; called before a byte of memory. The error lists the findings.
    fn accepts(&mut self, offer: &[u8]) -> Result<(), GuestError>;

    /// Bytes for memory; later ones replace earlier ones.
    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), GuestError>;

    /// Zeros for memory.
    fn zero(&mut self, address: u64, length: u64) -> Result<(), GuestError>;

    /// All is here: the state is set and read back, the locks of its storage are taken. Nothing runs.
    fn restore(&mut self, state: Vec<Section>) -> Result<(), GuestError>;

    /// It runs, with this epoch towards its storage.
    fn run(&mut self, epoch: u64) -> Result<(), GuestError>;

    /// All that came is dropped.
    fn discard(&mut self);
}
