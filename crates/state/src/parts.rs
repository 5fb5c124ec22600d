//! The VM that state is read from or set on: borrowed, so that any VMM can lend its own.

use evenkeel_sys::{Device, Error, Exit, Runner, System, Vcpu, Vm};

/// What runs a vCPU without running its guest.
pub trait Retire {
    /// Lets the kernel finish what the last exit left open (`immediate_exit`), executing nothing of the guest. Any other
    /// exit than [`Exit::Interrupted`] is one that the VMM has to see to before state can be saved.
    ///
    /// # Errors
    /// As the kernel says.
    fn retire(&mut self) -> Result<Exit, Error>;

    /// Enters the kernel's run loop with a signal pending: timers that expired while the vCPU stood still become
    /// interrupts, and nothing of the guest is executed.
    ///
    /// # Errors
    /// As the kernel says.
    fn settle(&mut self) -> Result<Exit, Error>;
}

impl Retire for Runner<'_, '_> {
    fn retire(&mut self) -> Result<Exit, Error> {
        self.leave_at_once(true);
        let exit = self.run();
        self.leave_at_once(false);
        exit
    }

    fn settle(&mut self) -> Result<Exit, Error> {
        self.run_signalled()
    }
}

/// A vCPU, and the way to run it.
pub struct Cpu<'g, 'b> {
    /// The vCPU.
    pub vcpu: &'g Vcpu<'b>,
    /// Retires what is pending. None where the VMM has seen to it, or where the vCPU never ran.
    pub retire: Option<&'g mut (dyn Retire + 'g)>,
}

impl<'g, 'b> Cpu<'g, 'b> {
    /// One with nothing pending.
    pub fn still(vcpu: &'g Vcpu<'b>) -> Self {
        Cpu { vcpu, retire: None }
    }

    /// One that this runner runs.
    pub fn running<'v: 'g>(runner: &'g mut Runner<'v, 'b>) -> Self
    where
        'b: 'g,
    {
        Cpu { vcpu: runner.vcpu(), retire: Some(runner) }
    }
}

/// A VM, borrowed. Its vCPUs stand still for as long.
pub struct Parts<'g, 'b> {
    /// `/dev/kvm`.
    pub system: &'g System<'b>,
    /// The VM.
    pub vm: &'g Vm<'b>,
    /// Its vCPUs, in the order in which they were created.
    pub cpus: Vec<Cpu<'g, 'b>>,
    /// The devices of KVM_CREATE_DEVICE, in the order in which they were created.
    pub devices: Vec<&'g Device<'b>>,
}

impl<'g, 'b> Parts<'g, 'b> {
    /// A VM with these vCPUs and no devices of KVM_CREATE_DEVICE.
    pub fn new(system: &'g System<'b>, vm: &'g Vm<'b>, cpus: Vec<Cpu<'g, 'b>>) -> Self {
        Parts { system, vm, cpus, devices: Vec::new() }
    }
}
