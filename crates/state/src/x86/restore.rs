//! Setting, reading back, and accounting for every item.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use evenkeel_catalog::Arch as CatalogArch;
use evenkeel_surface::Arch;
use evenkeel_sys::layout::*;
use evenkeel_sys::requests::*;
use evenkeel_sys::{Error, Refusal};

use super::clock::{self, Clock, Policy};
use super::host::{Host, TSC_OFFSET};
use super::plan;
use super::readback::{ReadBack, not_kept};
use super::{groups, lapic, msrs, xen};
use crate::order::{Order, Phase};
use crate::{Found, Image, Item, Left, Noted, Owner, Parts, Refused, Report, Role};

/// How to set state.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// What the guest's clocks do.
    pub clocks: Policy,
    /// Nothing is read back, and so nothing is known of what was set: for benches.
    pub unverified: bool,
}

/// Sets an image in a VM that was made as its manifest says and has the guest's memory, and has not run yet.
///
/// # Errors
/// The image is not for this VM: nothing was set.
pub fn restore(parts: &mut Parts<'_, '_>, image: &Image, options: &Options) -> Result<Report, Refused> {
    let host = Host::ask(parts)?;
    restore_with(parts, image, options, &host, Order::catalogued(CatalogArch::X86_64, Phase::Restore))
}

/// A part of an item that is set in one go.
struct Step<'i> {
    rank: u32,
    owner: Owner,
    item: &'i Item,
    /// Which MSRs, for the item that holds many of different ranks.
    msrs: Vec<(u32, u64)>,
}

/// The same, with what was asked of the host earlier, and in this order.
///
/// # Errors
/// As [`restore`].
pub fn restore_with(
    parts: &mut Parts<'_, '_>,
    image: &Image,
    options: &Options,
    host: &Host,
    order: &Order,
) -> Result<Report, Refused> {
    check(parts, image)?;
    let begin = Instant::now();
    let offsets =
        (0..parts.cpus.len() as u32).map(Owner::Vcpu).filter(|owner| has_offset(image, host, *owner));
    let mut setting = Setting {
        parts,
        image,
        options,
        host,
        offsets: offsets.collect(),
        failed: BTreeMap::new(),
        report: Report::default(),
    };
    for step in steps(image, order) {
        setting.set(&step);
    }
    setting.debug();
    let Setting { failed, mut report, .. } = setting;
    let back = ReadBack { image, host, clocks: options.clocks, failed: &failed, begin };
    if !options.unverified {
        back.read(parts, &mut report);
    }
    Ok(report)
}

/// The image is one of a VM like this.
fn check(parts: &Parts<'_, '_>, image: &Image) -> Result<(), Refused> {
    let hint = "nothing is left over: the image is refused as a whole";
    if image.arch != Arch::X86_64 {
        return Err(Refused::new(Owner::Vm, "", format!("the image is of {}", image.arch.name())));
    }
    let mut seen = BTreeSet::new();
    for item in &image.items {
        let refused = |why: &str| Err(Refused::new(item.owner, &item.name, why).hint(hint));
        match (plan::belongs(&item.name), item.owner) {
            (None, _) => return refused("no such item is known"),
            (Some(true), Owner::Vcpu(index)) if (index as usize) < parts.cpus.len() => {}
            (Some(false), Owner::Vm) => {}
            _ => return refused("this VM has no such part"),
        }
        if !seen.insert((item.owner, &item.name)) {
            return refused("it is there twice");
        }
        if let Some(why) = misshapen(item) {
            return refused(&why);
        }
    }
    for owner in (0..parts.cpus.len() as u32).map(Owner::Vcpu) {
        if !seen.iter().any(|(of, _)| *of == owner) {
            return Err(Refused::new(owner, "", "the image has no such vCPU").hint("make as many as it has"));
        }
    }
    Ok(())
}

/// What is wrong with an item's length.
fn misshapen(item: &Item) -> Option<String> {
    let length = item.bytes.len();
    let fixed = |size: usize| (length != size).then(|| format!("{length} bytes, and {size} are right"));
    let many = |each: usize| {
        (length == 0 || !length.is_multiple_of(each))
            .then(|| format!("{length} bytes are no entries of {each}"))
    };
    match item.name.as_str() {
        "xsave2" => {
            (!(X86_XSAVE..=X86_XSAVE + (64 << 10)).contains(&length)).then(|| format!("{length} bytes"))
        }
        "cpuid" => many(X86_CPUID_ENTRY),
        "msrs" => many(X86_MSR_ENTRY),
        "xen-vcpu" | "xen-vm" => many(X86_XEN_ATTR),
        "ssp" => many(16),
        "mce" | "tsc-offset" => fixed(8),
        "tsc-khz" => fixed(4),
        "irqchip" => fixed(3 * X86_IRQCHIP),
        "nested-state" => (length < X86_NESTED_STATE || length != word(&item.bytes, 4) as usize)
            .then(|| format!("{length} bytes")),
        "sregs" => fixed(X86_SREGS),
        "sregs2" => fixed(X86_SREGS2),
        "fpu" => fixed(X86_FPU),
        "xsave" => fixed(X86_XSAVE),
        name => {
            let group = groups::by_name(name)?;
            fixed(group.get.size())
        }
    }
}

/// Everything that is set, in order: by rank over all vCPUs, then by owner.
fn steps<'i>(image: &'i Image, order: &Order) -> Vec<Step<'i>> {
    let mut steps: Vec<Step<'i>> = Vec::with_capacity(image.items.len());
    for item in &image.items {
        let owner = item.owner;
        if item.name != "msrs" {
            steps.push(Step { rank: order.rank(&item.name), owner, item, msrs: Vec::new() });
            continue;
        }
        let mut by_rank: BTreeMap<u32, Vec<(u32, u64)>> = BTreeMap::new();
        for (msr, value) in msrs::unpack(&item.bytes) {
            by_rank.entry(order.rank(&format!("msr.{msr:x}"))).or_default().push((msr, value));
        }
        steps.extend(by_rank.into_iter().map(|(rank, msrs)| Step { rank, owner, item, msrs }));
    }
    steps.sort_by_key(|step| (step.rank, step.owner));
    steps
}

struct Setting<'p, 'g, 'b, 'i> {
    parts: &'p Parts<'g, 'b>,
    image: &'i Image,
    options: &'p Options,
    host: &'p Host,
    /// Whose TSC is carried by its offset.
    offsets: BTreeSet<Owner>,
    /// What failed: by item, or by MSR.
    failed: BTreeMap<(Owner, String), Error>,
    report: Report,
}

impl Setting<'_, '_, '_, '_> {
    fn set(&mut self, step: &Step<'_>) {
        if step.item.name == "msrs" {
            self.set_msrs(step);
        } else if let Err(error) = self.set_item(step.owner, step.item) {
            self.failed.insert((step.owner, step.item.name.clone()), error);
        }
    }

    fn set_item(&mut self, owner: Owner, item: &Item) -> Result<(), Error> {
        let bytes = &item.bytes;
        let Owner::Vcpu(index) = owner else {
            let vm = self.parts.vm;
            return match item.name.as_str() {
                "irqchip" => bytes
                    .chunks_exact(X86_IRQCHIP)
                    .try_for_each(|chip| vm.set(&KVM_SET_IRQCHIP, chip).map(drop)),
                "clock" => {
                    let clock = Clock::read(bytes);
                    vm.set(&KVM_SET_CLOCK, &clock.to_set(self.host.clock.unwrap_or(0), self.options.clocks))
                        .map(drop)
                }
                "pit2" => vm.set(&KVM_SET_PIT2, bytes).map(drop),
                _ => xen::set(vm, false, bytes),
            };
        };
        let vcpu = self.parts.cpus[index as usize].vcpu;
        match item.name.as_str() {
            "cpuid" => {
                let entries: Vec<CpuidEntry> =
                    bytes.chunks_exact(X86_CPUID_ENTRY).map(CpuidEntry::from_bytes).collect();
                vcpu.set_cpuid(&entries)
            }
            "mce" => {
                let wanted = long(bytes, 0);
                let there = vcpu.msrs().get(&[msrs::MCG_CAP]).remove(0);
                if there.is_ok_and(|cap| cap == wanted) { Ok(()) } else { vcpu.setup_mce(wanted) }
            }
            "nested-state" => vcpu.set(&KVM_SET_NESTED_STATE, bytes).map(drop),
            "ssp" => bytes.chunks_exact(16).try_for_each(|r| vcpu.set_one_reg(long(r, 0), &r[8..])),
            "tsc-khz" => {
                // Where nothing has to be changed nothing is asked for: not every kernel can.
                let khz = word(bytes, 0);
                let there = vcpu.int(&KVM_GET_TSC_KHZ, 0);
                if there.is_ok_and(|now| now.cast_unsigned() == khz) {
                    return Ok(());
                }
                vcpu.int(&KVM_SET_TSC_KHZ, khz.into()).map(drop)
            }
            "tsc-offset" => match self.offset(owner, long(bytes, 0))? {
                Some(offset) => vcpu.set_attr(TSC_OFFSET.0, TSC_OFFSET.1, &offset.to_ne_bytes()),
                None => self.write_tsc(owner),
            },
            "sregs2" if !self.host.sregs2 => vcpu.set(&KVM_SET_SREGS, &as_sregs(bytes)).map(drop),
            "lapic" => {
                if let lapic::Set::Cleared = lapic::set(vcpu, bytes, self.x2apic(owner))? {
                    let what = "the one-shot timer has fired, and its initial count reads 0 now".to_owned();
                    self.report.gaps.push(Found { gap: "G06".to_owned(), owner, what });
                }
                Ok(())
            }
            "xen-vcpu" => xen::set(vcpu, true, bytes),
            name => match groups::by_name(name) {
                Some(group) => vcpu.set(group.set, bytes).map(drop),
                None => Err(vcpu.error(&KVM_SET_REGS, name, Refusal::Nonsense("no such group".to_owned()))),
            },
        }
    }

    fn x2apic(&self, owner: Owner) -> bool {
        let base = |name: &str, at: usize| self.image.item(owner, name).map(|item| long(&item.bytes, at));
        base("sregs2", APIC_BASE).or_else(|| base("sregs", APIC_BASE)).is_some_and(|b| b & lapic::X2APIC != 0)
    }

    /// The offset that gives this vCPU its TSC here; none where it takes MSR_IA32_TSC.
    fn offset(&self, owner: Owner, saved: u64) -> Result<Option<u64>, Error> {
        let (Some(clock), Some(khz)) =
            (self.image.item(Owner::Vm, "clock"), self.image.item(owner, "tsc-khz"))
        else {
            return Ok(None);
        };
        let clock = Clock::read(&clock.bytes);
        if !self.offsets.contains(&owner) {
            return Ok(None);
        }
        let mut here = vec![0; X86_CLOCK];
        groups::fill(self.parts.vm, &KVM_GET_CLOCK, &mut here, 0)?;
        if !Clock::read(&here).is_whole() {
            // A VM that never ran has no master clock yet, and tells no time; setting its clock looks for one.
            let first = clock.to_set(self.host.clock.unwrap_or(0), self.options.clocks);
            self.parts.vm.set(&KVM_SET_CLOCK, &first)?;
            groups::fill(self.parts.vm, &KVM_GET_CLOCK, &mut here, 0)?;
        }
        Ok(clock::offset(clock, saved, word(&khz.bytes, 0), Clock::read(&here), self.options.clocks))
    }

    /// Writes MSR_IA32_TSC as it was saved, where the host does not tell TSC and time together.
    fn write_tsc(&self, owner: Owner) -> Result<(), Error> {
        let (Owner::Vcpu(index), Some(item)) = (owner, self.image.item(owner, "msrs")) else { return Ok(()) };
        let saved = msrs::unpack(&item.bytes).into_iter().find(|(msr, _)| *msr == msrs::TSC);
        let Some(saved) = saved.filter(|_| self.offsets.contains(&owner)) else { return Ok(()) };
        self.parts.cpus[index as usize].vcpu.msrs().set(&[saved]).remove(0)
    }

    fn set_msrs(&mut self, step: &Step<'_>) {
        let Owner::Vcpu(index) = step.owner else { return };
        let mut wanted = Vec::with_capacity(step.msrs.len());
        for &(msr, value) in &step.msrs {
            // Carried by its offset; it is read back all the same.
            if msr == msrs::TSC && self.offsets.contains(&step.owner) {
                continue;
            }
            let why = msrs::left_alone(msr);
            match why {
                Some(why) => {
                    self.report.left.push(Left { owner: step.owner, item: format!("msr.{msr:x}"), why })
                }
                None => wanted.push((msr, value)),
            }
        }
        if wanted.is_empty() {
            return;
        }
        let results = self.parts.cpus[index as usize].vcpu.msrs().set(&wanted);
        for ((msr, _), result) in wanted.iter().zip(results) {
            if let Err(error) = result {
                self.failed.insert((step.owner, format!("msr.{msr:x}")), error);
            }
        }
    }

    /// What a debugger outside selected: behind the registers, because a single step is of the instruction at hand.
    fn debug(&mut self) {
        for call in self.image.manifest.calls.iter().filter(|c| is_later(c)) {
            let Role::Vcpu(index) = call.on else { continue };
            let Some(cpu) = self.parts.cpus.get(index as usize) else { continue };
            if let Err(error) = cpu.vcpu.set(&KVM_SET_GUEST_DEBUG, &call.argument) {
                let item =
                    Item { owner: Owner::Vcpu(index), name: "vm-config".to_owned(), bytes: Vec::new() };
                not_kept(&mut self.report, &item, "guest-debug", &call.argument, None, Some(&error));
            }
        }
    }
}

/// The TSC of this vCPU is carried by its offset.
pub(super) fn has_offset(image: &Image, host: &Host, owner: Owner) -> bool {
    let whole = image.item(Owner::Vm, "clock").is_some_and(|c| Clock::read(&c.bytes).is_whole());
    whole && host.tsc_offset && image.item(owner, "tsc-offset").is_some()
}

/// A call of the manifest that is made when all state is in place.
pub(super) fn is_later(call: &Noted) -> bool {
    call.call == "KVM_SET_GUEST_DEBUG"
}

/// Where `kvm_sregs` and `kvm_sregs2` have the APIC's base.
const APIC_BASE: usize = 272;

/// The older structure: the PDPTRs come from memory then, and pending interrupts are among the events.
fn as_sregs(sregs2: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; X86_SREGS];
    bytes[..X86_SREGS2_FLAGS].copy_from_slice(&sregs2[..X86_SREGS2_FLAGS]);
    bytes
}
