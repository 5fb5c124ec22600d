//! Making a VM again as a manifest says.

use std::sync::Arc;

use evenkeel_sys::layout::{long, word};
use evenkeel_sys::requests::by_name;
use evenkeel_sys::{Arg, Device, Error as CallError, Flow, Ram, Refusal, Slot, System, Vcpu, Vm};

use crate::image::Owner;
use crate::manifest::{Manifest, Noted, Role};
use crate::outcome::Refused;
use crate::parts::{Cpu, Parts};

/// A VM that was made again. The caller owns it.
#[derive(Debug)]
pub struct Made<'b> {
    /// Its vCPUs, in the manifest's order.
    pub vcpus: Vec<Vcpu<'b>>,
    /// Its devices.
    pub devices: Vec<Device<'b>>,
    /// The VM.
    pub vm: Vm<'b>,
    /// Its memory, which lives as long as the VM does.
    pub memory: Vec<(Slot, Arc<Ram>)>,
    /// Calls of the manifest that have their place in the order of restoring, after state: `restore` makes them.
    pub later: Vec<Noted>,
}

impl<'b> Made<'b> {
    /// To be lent to `restore`.
    pub fn parts<'g>(&'g self, system: &'g System<'b>) -> Parts<'g, 'b> {
        let cpus = self.vcpus.iter().map(Cpu::still).collect();
        Parts { devices: self.devices.iter().collect(), ..Parts::new(system, &self.vm, cpus) }
    }
}

/// Repeats the calls of a manifest, with this memory; calls for which `later` holds are left for `restore`.
///
/// # Errors
/// A call that the kernel refuses, or a manifest that makes no sense.
pub(crate) fn repeat<'b>(
    system: &System<'b>,
    manifest: &Manifest,
    memory: &[(Slot, Arc<Ram>)],
    later: impl Fn(&Noted) -> bool,
) -> Result<Made<'b>, Refused> {
    let mut calls = manifest.calls.iter();
    let first =
        calls.next().filter(|c| c.on == Role::System && c.call == "KVM_CREATE_VM" && c.argument.len() == 8);
    let first =
        first.ok_or_else(|| Refused::new(Owner::Vm, "manifest", "it does not begin with KVM_CREATE_VM"))?;
    let vm =
        system.create_vm(long(&first.argument, 0)).map_err(Refused::call(Owner::Vm, "manifest", "no VM"))?;
    let mut made =
        Made { vcpus: Vec::new(), devices: Vec::new(), vm, memory: memory.to_vec(), later: Vec::new() };
    let mut remembered = false;
    for call in calls {
        // Some capabilities must be there before memory is; a vCPU can need it.
        if !remembered && call.call == "KVM_CREATE_VCPU" {
            give(&made)?;
            remembered = true;
        }
        if later(call) {
            made.later.push(call.clone());
        } else {
            again(&mut made, call)?;
        }
    }
    if !remembered {
        give(&made)?;
    }
    Ok(made)
}

fn give(made: &Made<'_>) -> Result<(), Refused> {
    for (slot, ram) in &made.memory {
        made.vm.set_slot(*slot, Some(ram)).map_err(Refused::call(Owner::Vm, "manifest", "no memory"))?;
    }
    Ok(())
}

fn again<'b>(made: &mut Made<'b>, call: &Noted) -> Result<(), Refused> {
    let refused = Refused::call(Owner::Vm, "manifest", "a call that the VM was made with");
    let done = match (call.on, call.call.as_str()) {
        (Role::Vm, "KVM_CREATE_VCPU") if call.argument.len() == 8 => {
            made.vm.create_vcpu(long(&call.argument, 0)).map(|vcpu| made.vcpus.push(vcpu))
        }
        (Role::Vm, "KVM_CREATE_DEVICE") if call.argument.len() == 12 => {
            made.vm.create_device(word(&call.argument, 0)).map(|device| made.devices.push(device))
        }
        _ => {
            let vcpus: Vec<&Vcpu<'_>> = made.vcpus.iter().collect();
            let devices: Vec<&Device<'_>> = made.devices.iter().collect();
            return repeat_one(&made.vm, &vcpus, &devices, call);
        }
    };
    done.map_err(refused)
}

/// Makes one call of a manifest that creates nothing.
pub(crate) fn repeat_one(
    vm: &Vm<'_>,
    vcpus: &[&Vcpu<'_>],
    devices: &[&Device<'_>],
    call: &Noted,
) -> Result<(), Refused> {
    let owner = match call.on {
        Role::Vcpu(index) => Owner::Vcpu(index),
        _ => Owner::Vm,
    };
    let nonsense = |why: &str| Refused::new(owner, "manifest", format!("{} {why}", call.call));
    let fd = match call.on {
        Role::Vm => Some(&**vm),
        Role::Vcpu(index) => vcpus.get(index as usize).map(|vcpu| &***vcpu),
        Role::Device(index) => devices.get(index as usize).map(|device| &***device),
        Role::System => None,
    };
    let fd = fd.ok_or_else(|| nonsense("is of a vCPU or device that the manifest does not make"))?;
    let request = by_name(&call.call).filter(|r| r.creates.is_none());
    let request = request.ok_or_else(|| nonsense("is no call that selects something"))?;
    let done: Result<i32, CallError> = match (request.payload, request.flow) {
        (Some((_, flow)), _) if !flow.comes_out() => {
            let mut payload = call.payload.clone();
            fd.call(
                request,
                Arg::Pointing { head: &call.argument, payload: &mut payload },
                "from the manifest",
            )
        }
        (None, Flow::Int) if call.argument.len() == 8 => fd.int(request, long(&call.argument, 0)),
        (None, Flow::In) if call.argument.len() >= request.size() => fd.set(request, &call.argument),
        _ => Err(fd.error(
            request,
            "from the manifest",
            Refusal::Nonsense("its argument does not fit".to_owned()),
        )),
    };
    done.map(drop).map_err(Refused::call(owner, "manifest", "a call that the VM was made with"))
}
