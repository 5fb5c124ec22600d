//! `evenkeel run`.

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use evenkeel_monitor::devices::virtio::{Device, block::Block, entropy::Entropy};
use evenkeel_monitor::linux::Boot;
use evenkeel_monitor::pc::Pc;
use evenkeel_monitor::{End, Error, Irqchip, Machine, Shape};
use evenkeel_sys::{Live, System};
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
    #[arg(long, default_value = "console=ttyS0 reboot=k panic=-1")]
    command_line: String,
    /// Memory in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 128)]
    memory: u32,
    /// How many vCPUs.
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    vcpus: u8,
    /// A disk: a raw file. May be given several times.
    #[arg(long, value_name = "FILE")]
    disk: Vec<PathBuf>,
    /// Where the interrupt controllers are: all in the kernel, or local APICs there and the I/O APIC here.
    #[arg(long, value_name = "WHERE", default_value = "kernel", value_parser = ["kernel", "split"])]
    irqchip: String,
    /// Stop after this many seconds, with exit code 3.
    #[arg(long, value_name = "SECONDS")]
    limit: Option<u64>,
    #[command(flatten)]
    operating: super::operate::Operating,
}

impl Run {
    /// Runs it to its end.
    pub fn run(self, _global: Global) -> Result<u8, Failure> {
        let failed = |e: &dyn std::fmt::Display| Failure { exit: 3, ..Failure::bad(e.to_string(), "") };
        let mut operator = self.operating.prepare()?;
        let kernel = File::open(&self.kernel).map_err(|e| Failure::file(&self.kernel, &e))?;
        let initramfs = match &self.initramfs {
            Some(path) => Some(std::fs::read(path).map_err(|e| Failure::file(path, &e))?),
            None => None,
        };
        let mut boot = Boot { kernel, initramfs, command_line: self.command_line };
        let mut devices: Vec<Box<dyn Device>> = vec![Box::new(Entropy::new().map_err(|e| failed(&e))?)];
        for (index, path) in self.disk.iter().enumerate() {
            let file =
                File::options().read(true).write(true).open(path).map_err(|e| Failure::file(path, &e))?;
            let block = Block::new(file, false, &format!("disk{index}")).map_err(|e| failed(&e))?;
            devices.push(Box::new(block));
        }
        let irqchip = Irqchip::by_name(&self.irqchip).unwrap_or_default();
        let live = Live::new();
        operator.lend(&live);
        let system = System::open(&live).map_err(|e| failed(&e))?;
        let shape = Shape { irqchip, pit: irqchip == Irqchip::Kernel, memory: (self.memory as usize) << 20 };
        let machine = Machine::new(&system, shape).map_err(|e| failed(&e))?;
        let mut vcpus = Vec::new();
        for id in 0..self.vcpus.max(1) {
            let vcpu = machine.vcpu(u64::from(id)).map_err(|e| failed(&e))?;
            let mut cpuid = offered_cpuid(&system, u32::from(id)).map_err(|e| failed(&e))?;
            // A guest asks for the paravirtual interface only where it is told that there is a hypervisor.
            cpuid.iter_mut().filter(|e| e.function == 1).for_each(|e| e.output[2] |= 1 << 31);
            vcpu.set_cpuid(&cpuid).map_err(|e| failed(&e))?;
            vcpus.push(vcpu);
        }
        let pc = Pc::new(&machine, &vcpus, devices, std::io::stdout(), &mut boot).map_err(|e| failed(&e))?;
        let save = |_: &mut File, _: &dyn Fn(u64, u64)| Err(Error::Control("it cannot be saved".to_owned()));
        let size = (vcpus.len() as u32, u64::from(self.memory) << 20);
        match operator.run(pc, size, self.limit.map(Duration::from_secs), &save)? {
            End::Reset | End::Stopped => Ok(0),
            End::TimeOver => Err(failed(&"the time is over")),
            End::Failed(why) => Err(failed(&why)),
        }
    }
}
