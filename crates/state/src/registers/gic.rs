//! Which revisions of the interrupt controller can be had, before and after it is initialized.

use evenkeel_surface::Hex32;
use evenkeel_sys::{Backend, Device, Error as CallError, System};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::Error;
use super::shape::{Guest, Shape, open};

/// KVM_DEV_ARM_VGIC_GRP_DIST_REGS, GICD_IIDR, and the place of the revision in it.
const DIST_REGS: u32 = 1;
const GICD_IIDR: u64 = 0x8;
const REVISION: u32 = 0xf << 12;

/// GICD_IIDR of one host: what it is, and what became of setting another revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GicRevisions {
    /// The register when nobody sets it.
    pub iidr: Hex32,
    /// Each revision, at each moment.
    pub attempts: Vec<Attempt>,
}

/// When GICD_IIDR was set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Moment {
    /// Before KVM_DEV_ARM_VGIC_CTRL_INIT; read back after it.
    BeforeInit,
    /// After it.
    AfterInit,
}

/// One revision that was set.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Attempt {
    /// When.
    pub when: Moment,
    /// The revision.
    pub revision: u32,
    /// The errno of the set; absent when it was accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errno: Option<String>,
    /// The revision that was read back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub now: Option<u32>,
}

impl Attempt {
    /// The kernel accepted the revision and has another one.
    pub fn ignored(&self) -> bool {
        self.errno.is_none() && self.now != Some(self.revision)
    }
}

/// Sets each revision from 1 to 3, on a fresh interrupt controller each time, and reads it back.
///
/// # Errors
/// There is no KVM, or no GICv3 can be made.
pub fn gic_revisions(backend: &dyn Backend) -> Result<GicRevisions, Error> {
    let system = open(backend)?;
    let guest = Guest::make(&system, Shape::Min, |_| ())?;
    let iidr = get(&guest.gic).map_err(Error::call("GICD_IIDR"))?;
    drop(guest);
    let mut attempts = Vec::new();
    for when in [Moment::BeforeInit, Moment::AfterInit] {
        for revision in 1..=3 {
            attempts.push(attempt(&system, iidr & !REVISION, when, revision)?);
        }
    }
    Ok(GicRevisions { iidr: Hex32(iidr), attempts })
}

fn attempt(system: &System<'_>, rest: u32, when: Moment, revision: u32) -> Result<Attempt, Error> {
    let guest = Guest::without_init(system, Shape::Min, |_| ())?;
    let init = || guest.init_gic().map_err(Error::call("the interrupt controller"));
    let set = || guest.gic.set_attr(DIST_REGS, GICD_IIDR, &(rest | revision << 12).to_ne_bytes());
    let done = match when {
        Moment::BeforeInit => {
            let done = set();
            init()?;
            done
        }
        Moment::AfterInit => {
            init()?;
            set()
        }
    };
    let now = get(&guest.gic).ok().map(|iidr| (iidr & REVISION) >> 12);
    Ok(Attempt { when, revision, errno: done.err().map(|e| e.why.short()), now })
}

fn get(gic: &Device<'_>) -> Result<u32, CallError> {
    gic.get_attr::<4>(DIST_REGS, GICD_IIDR).map(u32::from_ne_bytes)
}
