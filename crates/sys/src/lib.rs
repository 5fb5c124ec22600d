//! Every kernel interface that evenkeel uses, through **one choke point**: [`Backend`].
//!
//! A backend opens device nodes, makes ioctls and reads what describes the host (`/proc/cmdline`, module parameters,
//! the CPUID instruction). There are five:
//!
//! * [`Live`]: the kernel itself,
//! * [`Recording`]: passes calls on to another backend and keeps an ordered [`Log`],
//! * [`Replaying`]: answers from a log; a call that is not the next one in it is an error that names both,
//! * [`Faulty`]: passes calls on, except for those that its plan makes fail, lie, dawdle or answer wrongly,
//! * [`Lying`]: sets something else than it is told, and answers as though it had not.
//!
//! On top of it is a thin typed layer, [`System`], [`Vm`], [`Vcpu`] and [`Device`], whose errors say which ioctl with
//! which argument failed and why. Nothing here depends on the architecture that it was built for except [`Live`]:
//! a log of an arm64 host replays on an x86 laptop. State that is an ioctl structure is passed as bytes, in the
//! kernel's layout, which is ABI.
//!
//! Beside it is what has no answer to record: guest memory ([`Ram`]) and faults in it ([`Uffd`]), network links, and what holds
//! threads to their system calls.
//!
//! This crate holds all of the `unsafe` code on the host's side.

mod backend;
mod bare;
mod device;
mod environment;
mod error;
mod faulty;
mod fd;
mod guard;
mod kick;
pub mod layout;
mod limits;
mod link;
mod live;
mod log;
mod lying;
mod marks;
mod net;
mod passed;
mod ram;
mod recording;
mod replaying;
mod request;
pub mod requests;
mod run;
mod system;
pub mod uffd;
mod vcpu;
mod vm;
mod watch;

pub use backend::{Arg, Backend, Handle, Slot, Source};
pub use bare::Bare;
pub use device::Device;
pub use error::{Errno, Error, Refusal};
pub use faulty::{Fault, Faulty, Rule, When};
pub use fd::Fd;
pub use guard::{bound_arenas, name_role, tell_refused_calls};
pub use kick::{Deadline, Kicker};
pub use limits::outlive_file_limit;
pub use link::{inherited, open_tap, set_tap_header, set_tap_offload, tap_kind};
pub use live::Live;
pub use log::{Entry, Log, LogError};
pub use lying::{Alteration, Lying, Made};
pub use marks::Marks;
pub use net::{Tap, vhost_features};
pub use passed::passed;
pub use ram::{Outside, Ram};
pub use recording::Recording;
pub use replaying::Replaying;
pub use request::{Creates, FdKind, Flow, Request, Tail};
pub use run::{Exit, RunPage, Runner};
pub use system::System;
pub use uffd::{Cause, Features, NoUffd, PageFault, Uffd, Watch};
pub use vcpu::{Msrs, Vcpu};
pub use vm::Vm;
pub use watch::{Call, Watcher, watch_this_thread};
