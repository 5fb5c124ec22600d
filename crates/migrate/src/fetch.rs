//! Post-copy on the side that the guest came to: memory that is missing, who waits for it, and where it goes.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use evenkeel_handover::wire::{Content, Frame};

use crate::connection::{Writer, locked};
use crate::ranges::{PAGE, Pages};
use crate::{Ask, GuestError, Lacking, Range};

/// The version of memory that comes after the commit.
pub(crate) const LATE: u32 = u32::MAX;

/// Memory that is missing.
pub(crate) struct Late {
    inside: Mutex<Inside>,
    asking: Arc<Asking>,
}

struct Inside {
    missing: Pages,
    to: Box<dyn Lacking>,
    /// Memory could not be put there: the guest cannot go on.
    broken: Option<String>,
}

/// Who waits for what, and whom to tell.
pub(crate) struct Asking {
    wanted: Mutex<BTreeSet<u64>>,
    writer: Mutex<Option<Arc<Mutex<Writer>>>>,
}

impl Asking {
    fn page(&self, address: u64) {
        if !locked(&self.wanted).insert(address) {
            return;
        }
        let writer = locked(&self.writer).clone();
        if let Some(writer) = writer {
            let mut writer = locked(&writer);
            // Where it fails the connection is lost, and all are asked for again on the next one.
            let _ = writer.put(&Frame::Want(address)).and_then(|()| writer.flush());
        }
    }
}

impl std::fmt::Debug for Late {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes are missing", self.left())
    }
}

impl Late {
    /// This memory is missing; `make` is told, and says where it goes.
    pub fn new(
        missing: &[Range],
        writer: &Arc<Mutex<Writer>>,
        make: impl FnOnce(&[Range], Ask) -> Result<Box<dyn Lacking>, GuestError>,
    ) -> Result<Arc<Late>, GuestError> {
        let asking = Arc::new(Asking { wanted: Mutex::default(), writer: Mutex::new(Some(writer.clone())) });
        let ask = asking.clone();
        let to = make(missing, Ask(Arc::new(move |address| ask.page(address))))?;
        let mut pages = Pages::default();
        for range in missing {
            pages.add(*range);
        }
        let inside = Mutex::new(Inside { missing: pages, to, broken: None });
        Ok(Arc::new(Late { inside, asking }))
    }

    /// Bytes that are missing.
    pub fn left(&self) -> u64 {
        locked(&self.inside).missing.count() * PAGE
    }

    /// Why memory could not be put where it belongs.
    pub fn broken(&self) -> Option<String> {
        locked(&self.inside).broken.clone()
    }

    /// Memory came: what of it was missing goes to its place. Whether that was the last.
    pub fn arrived(&self, address: u64, content: &Content) -> Result<bool, String> {
        let length = match content {
            Content::Zeros(length) | Content::Packed(length, _) => u64::from(*length),
            Content::Bytes(bytes) => bytes.len() as u64,
        };
        if !(address | length).is_multiple_of(PAGE) {
            return Err(format!("{length} bytes of memory at {address:#x} are no pages"));
        }
        let mut inside = locked(&self.inside);
        let before = inside.missing.count();
        for run in inside.missing.take(Range { address, length }) {
            let done = match content {
                Content::Bytes(bytes) => {
                    let at = (run.address - address) as usize;
                    inside.to.arrive(run.address, &bytes[at..at + run.length as usize])
                }
                _ => inside.to.zero(run.address, run.length),
            };
            if let Err(error) = done {
                inside.broken = Some(error.to_string());
                return Err(error.to_string());
            }
            let mut wanted = locked(&self.asking.wanted);
            let came: Vec<u64> = wanted.range(run.address..run.address + run.length).copied().collect();
            for page in came {
                wanted.remove(&page);
            }
        }
        Ok(before > 0 && inside.missing.count() == 0)
    }

    /// There is a connection again, or none. What to say first: what is missing, and then what is waited for.
    pub fn reconnected(&self, writer: Option<&Arc<Mutex<Writer>>>) -> Vec<Frame> {
        *locked(&self.asking.writer) = writer.cloned();
        let missing = locked(&self.inside).missing.ranges();
        let pairs: Vec<(u64, u64)> = missing.iter().map(|range| (range.address, range.length)).collect();
        // A list of ranges in frames of half a megabyte; an empty one says that nothing is missing any more.
        let mut frames: Vec<Frame> =
            pairs.chunks(1 << 15).map(|some| Frame::Missing(some.to_vec())).collect();
        frames.extend(locked(&self.asking.wanted).iter().map(|page| Frame::Want(*page)));
        frames
    }
}
