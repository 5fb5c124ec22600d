//! `evenkeel run`.

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use evenkeel_monitor::devices::serial;
use evenkeel_monitor::linux::{Boot, x86_64 as linux};
use evenkeel_monitor::{Irqchip, Machine, Shape, view};
use evenkeel_sys::{Deadline, Exit, Live, System};
use evenkeel_witness::programs::x86_64::offered_cpuid;

use crate::Global;
use crate::failure::Failure;

/// Runs a Linux guest, its first serial port on standard output.
#[derive(clap::Args)]
pub struct Run {
    /// The kernel: a bzImage or an ELF file.
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// The initial file system.
    #[arg(long, value_name = "FILE")]
    initramfs: Option<PathBuf>,
    /// The kernel's command line.
    #[arg(long, default_value = "console=ttyS0 reboot=k panic=-1 pci=off")]
    command_line: String,
    /// Memory in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 128)]
    memory: u32,
    /// Stop after this many seconds, with exit code 3.
    #[arg(long, value_name = "SECONDS")]
    limit: Option<u64>,
}

impl Run {
    /// Runs it to its end.
    pub fn run(self, _global: Global) -> Result<u8, Failure> {
        let failed = |e: &dyn std::fmt::Display| Failure { exit: 3, ..Failure::bad(e.to_string(), "") };
        let kernel = File::open(&self.kernel).map_err(|e| Failure::file(&self.kernel, &e))?;
        let initramfs = match &self.initramfs {
            Some(path) => Some(std::fs::read(path).map_err(|e| Failure::file(path, &e))?),
            None => None,
        };
        let mut boot = Boot { kernel, initramfs, command_line: self.command_line };
        let live = Live::new();
        let system = System::open(&live).map_err(|e| failed(&e))?;
        let shape = Shape { irqchip: Irqchip::Kernel, pit: true, memory: (self.memory as usize) << 20 };
        let machine = Machine::new(&system, shape).map_err(|e| failed(&e))?;
        let memory = view(machine.ram(), 0).map_err(|e| failed(&e))?;
        let entry = linux::load(&memory, machine.ram(), &mut boot).map_err(|e| failed(&e))?;
        let vcpu = machine.vcpu(0).map_err(|e| failed(&e))?;
        let mut cpuid = offered_cpuid(&system, 0).map_err(|e| failed(&e))?;
        // A guest asks for the paravirtual interface only where it is told that there is a hypervisor.
        cpuid.iter_mut().filter(|e| e.function == 1).for_each(|e| e.output[2] |= 1 << 31);
        vcpu.set_cpuid(&cpuid).map_err(|e| failed(&e))?;
        linux::enter(&vcpu, entry).map_err(|e| failed(&e))?;
        let mut runner = vcpu.runner(&system).map_err(|e| failed(&e))?;
        let mut port = serial::Port::new(machine.vm(), std::io::stdout());
        let deadline = Deadline::new();
        if let Some(limit) = self.limit {
            deadline.arm(Duration::from_secs(limit));
        }
        let mut exits = 0_u64;
        loop {
            if deadline.expired() {
                let regs = vcpu.get(&evenkeel_sys::requests::KVM_GET_REGS, 144).map_err(|e| failed(&e))?;
                let rip = evenkeel_sys::layout::long(&regs, 128);
                return Err(failed(&format!("the time is over, at {rip:#x} after {exits} exits")));
            }
            exits += 1;
            match runner.run().map_err(|e| failed(&e))? {
                Exit::PortWrite { port: at, data, .. } if serial::PORTS.contains(&at) => {
                    port.write(at, &data)
                }
                Exit::PortRead { port: at, size, count } if serial::PORTS.contains(&at) => {
                    let data = port.read(at, usize::from(size) * count as usize);
                    runner.answer(&data);
                }
                Exit::PortWrite { port: 0x64, data, .. } if data == [0xfe] => return Ok(0),
                Exit::PortRead { port: 0x64, .. } => runner.answer(&[0]),
                Exit::Interrupted | Exit::PortWrite { .. } | Exit::MemoryWrite { .. } => {}
                Exit::PortRead { .. } | Exit::MemoryRead { .. } => runner.answer(&[]),
                Exit::Shutdown => return Ok(0),
                other => return Err(failed(&format!("the guest stopped: {other:?}"))),
            }
        }
    }
}
