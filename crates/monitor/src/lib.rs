//! The **monitor**: machines of known shape, their memory, and a run loop that ends.
//!
//! A [`Machine`] is a VM with memory and, as its [`Irqchip`] says, interrupt controllers in the kernel. What else a
//! VMM decides (CPUID, capabilities, MSRs) is left to whoever makes one: [`Machine::vm`] and the vCPUs that it makes
//! are there to be configured before they run. [`run`] runs a vCPU until its [`Handler`] has enough, or the time is
//! over: nothing waits for a guest without end.
//!
//! For Linux guests there are whole machines, with [`devices`], a [`life`] that can be paused and saved, a [`control`] socket,
//! and threads that [`confine`] holds to what they need.
//!
//! What depends on the architecture is in the module of its name.
#![forbid(unsafe_code)]

pub mod aarch64;
#[cfg(target_arch = "x86_64")]
pub mod acpi;
pub mod board;
mod chassis;
pub mod confine;
pub mod control;
pub mod devices;
mod error;
pub mod fdt;
pub mod fuzzing;
pub mod life;
pub mod linux;
mod machine;
mod memory;
#[cfg(target_arch = "x86_64")]
pub mod pc;
mod run;
mod slots;
mod threads;
pub mod virt;
pub mod x86_64;

pub use error::Error;
pub use life::{End, Life, Phase};
pub use machine::{Irqchip, Machine, Shape};
pub use memory::{View, view};
pub use run::{Handler, Next, run};
