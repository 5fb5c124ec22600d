//! A contract, made real: an ordered list of selectors on a VM, each **set, read back, compared, reported**.
//!
//! For another VMM this is a library that borrows its file descriptors and never owns them:
//!
//! 1. [`Plan::new`] from the contract and a capture of the host. What the host cannot give is in [`Plan::refusals`]
//!    before anything is touched, with facet, cause and remedy; what the VMM has to do itself is in [`Plan::duties`].
//! 2. [`Plan::start`], then [`Applying::vm`] before there is a vCPU, [`Applying::vcpu`] on each vCPU when it has been
//!    created (also much later), on arm64 [`Applying::gic`] and [`Applying::late`].
//! 3. After the first KVM_RUN [`Applying::reread`]; at a reset of the guest [`Applying::reset`].
//! 4. [`Applying::report`] tells per facet what the kernel really did. Only [`Report::usable`] makes a VM usable.
//!
//! Every knob that the host has and the contract does not name goes to its catalogued absent value.
#![forbid(unsafe_code)]

mod applying;
mod choices;
mod cpuid;
mod keep;
mod plan;
mod promised;
mod registers;
mod report;
pub mod score;
mod scratch;
mod topology;

pub use applying::{Applying, Halt};
pub use plan::{Duty, Plan, PlanError, Refusal, Setup, Unobserved};
pub use promised::PromisedChoice;
pub use report::{ContractInfo, HostInfo, Report, SCHEMA, Verdict};
pub use scratch::{Scratch, scratch};
pub use topology::Topology;
