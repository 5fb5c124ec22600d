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

    /// Lets the vCPUs run for less of the time, so that they write less: they stand for `percent` of it, 0 to 99. Resuming ends it.
    ///
    /// # Errors
    /// This VMM cannot.
    fn throttle(&mut self, percent: u8) -> Result<(), GuestError> {
        Err(GuestError(format!("this guest cannot be slowed down by {percent} %")))
    }

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

    /// Memory as it came, to compare it with the source's. Nothing runs.
    ///
    /// # Errors
    /// It cannot be read back, so it cannot be verified.
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), GuestError> {
        Err(GuestError(format!("{} bytes of memory at {address:#x} cannot be read back here", into.len())))
    }

    /// Post-copy, before [`Arriving::restore`]: this memory is not here, and comes while the guest runs. Whoever touches it has to wait,
    /// and `ask` has to hear which page is touched (from any thread, as often as one likes). The guest's pages are then given to what
    /// is returned, in a thread of the engine, each once, also while [`Arriving::restore`] is under way.
    ///
    /// # Errors
    /// This VMM has no post-copy, or memory that it does not work for.
    fn missing(&mut self, missing: &[Range], ask: Ask) -> Result<Box<dyn Lacking>, GuestError> {
        drop(ask);
        Err(GuestError(format!("no post-copy here: {} ranges of memory would be missing", missing.len())))
    }

    /// Post-copy: there is nobody to ask for memory, so all vCPUs stand until [`Arriving::go_on`]. Some may stand at a page already.
    ///
    /// # Errors
    /// They cannot be stopped.
    fn hold(&mut self) -> Result<(), GuestError> {
        Err(GuestError("this guest cannot be held".to_owned()))
    }

    /// Post-copy: memory comes again.
    ///
    /// # Errors
    /// It cannot go on.
    fn go_on(&mut self) -> Result<(), GuestError> {
        Err(GuestError("this guest cannot go on".to_owned()))
    }
}

/// Memory that is missing and comes after all.
pub trait Lacking: Send {
    /// Bytes for pages that are missing: they are there at once or not at all, and who waits for them goes on.
    ///
    /// # Errors
    /// They cannot be put there: the guest cannot go on without them.
    fn arrive(&mut self, address: u64, bytes: &[u8]) -> Result<(), GuestError>;

    /// Zeros likewise.
    ///
    /// # Errors
    /// As for bytes.
    fn zero(&mut self, address: u64, length: u64) -> Result<(), GuestError>;
}

/// Asks the source for a page that is missing, before its turn. It may be cloned and used by any thread; it does not wait for the page.
#[derive(Clone)]
pub struct Ask(pub(crate) std::sync::Arc<dyn Fn(u64) + Send + Sync>);

impl Ask {
    /// Somebody waits for the page with this guest-physical address.
    pub fn page(&self, address: u64) {
        (self.0)(address & !0xfff);
    }
}

impl std::fmt::Debug for Ask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ask")
    }
}
