//! **Guest memory** saved as of one instant while the guest goes on, and restored before all of it is there.
//!
//! ```text
//!            guard every page        pause  save state  guard what was written since  resume
//! guest   ══╪════════════════════════╪══════════════════════════════════════════════╪═══════════════════▶
//!           └─ Guard::arm ─┘         └── Guard::freeze: as long as little was written ┘└─ Frozen: copied as it was then
//! ```
//!
//! * [`Guard`]: copy before write. All of memory is write-protected (userfaultfd) *before* the pause, while the guest runs; what it
//!   writes meanwhile is noted, and protected again in the pause. So the pause does not grow with memory. After it, whoever
//!   writes first, the guest or a device, waits until the chunk was copied; everything else is copied in its turn.
//! * [`DirtyLog`]: where there is no userfaultfd that takes faults of the kernel, memory is copied while the guest runs, and
//!   what was written meanwhile again, the last of it in the pause.
//! * [`snapshot`]: pause, save, resume and write, by one of the two, with a report of what was used and how long each step took.
//! * [`load`]: eager and verified. [`Lazy`]: the guest runs at once; a chunk is read and verified when somebody wants it first.
//!
//! Memory is copied through its file, never through the mapping that is guarded. Whatever goes wrong while it is copied,
//! nobody waits for ever: what was protected is given free, and the guest goes on.
#![forbid(unsafe_code)]

mod book;
mod eager;
mod error;
mod guard;
mod guest;
mod lazy;
mod precopy;
mod snapshot;

pub use eager::load;
pub use error::Error;
pub use guard::{Frozen, Guard, Served};
pub use guest::{CHUNK, Guest, Place};
pub use lazy::{Filled, Filling, Lazy, Loading};
pub use precopy::{Copied, DirtyLog};
pub use snapshot::{Life, Options, Report, Way, snapshot};
