//! The matrix of arm64 registers: those of one vCPU, all that `KVM_GET_REG_LIST` names, saved on one host and set on others.
//!
//! * [`save`] makes a vCPU of a [`Shape`] and reads every register of it → a [`RegisterFile`],
//! * [`load`] makes a vCPU of the same shape on this host, sets every register of a file in the order that the catalog
//!   derives, reads each one back → [`Loaded`], which names whatever was not kept,
//! * [`gic_revisions`] tries the revisions of the interrupt controller, which are no register of a vCPU and decide
//!   nevertheless how its interrupts behave,
//! * [`matrix`] puts the reports of many hosts together.
//!
//! That a set succeeds proves nothing: every value is read back, and once more after all others were set.
//!
//! ```no_run
//! use evenkeel_state::registers::{Shape, load, save};
//!
//! let kvm = evenkeel_sys::Live::new();
//! let file = save(&kvm, &[Shape::Pmu], false)?;
//! let report = load(&kvm, &file.vcpus[0])?;
//! assert!(report.not_kept.is_empty(), "a host takes its own registers back");
//! # Ok::<(), evenkeel_state::registers::Error>(())
//! ```

mod document;
mod error;
mod gic;
mod load;
pub mod matrix;
mod order;
mod save;
mod shape;
mod value;

pub use document::{
    Became, FILE_SCHEMA, FileLoad, LOADED_SCHEMA, LoadReport, Loaded, MAX_BYTES, NotKept, Overwritten,
    RegisterFile, Saved, VcpuRegisters, parse_file, parse_report,
};
pub use error::{Error, Malformed};
pub use gic::{Attempt, GicRevisions, Moment, gic_revisions};
pub use load::{load, load_all};
pub use order::{Group, group, rank};
pub(crate) use order::{SVE_VECTOR_LENGTHS, rank_in};
pub use save::save;
pub use shape::Shape;
pub use value::Value;
