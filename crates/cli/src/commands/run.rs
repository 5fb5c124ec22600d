//! `evenkeel run`.

use std::fs::File;
use std::path::PathBuf;

use evenkeel_monitor::devices::virtio::{Device, entropy::Entropy};
use evenkeel_monitor::linux::Boot;
use evenkeel_monitor::pc::Pc;
use evenkeel_monitor::{Irqchip, Machine, Shape};
use evenkeel_state::Noting;
use evenkeel_sys::{Live, System};

use super::guest::save::Luggage;
use super::guest::{Console, Running, contract, drive, failed};
use super::offloads;
use crate::Global;
use crate::failure::Failure;

/// Runs a Linux guest under a contract, its first serial port on standard output.
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
    #[arg(long, value_name = "MIB", default_value_t = 128, value_parser = clap::value_parser!(u32).range(16..=3072))]
    memory: u32,
    /// How many vCPUs.
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    vcpus: u32,
    /// How many vCPUs there can be: those beyond --vcpus are there for the guest when `evenkeel plug` says so.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=64))]
    most_vcpus: Option<u32>,
    /// What the guest is promised; what this host gives today, sealed, if not given.
    #[arg(long, value_name = "FILE")]
    contract: Option<PathBuf>,
    /// Which interrupt controllers are in the kernel, where no contract's shape says: `split` puts the I/O APIC here.
    #[arg(long, default_value = "kernel", value_parser = ["kernel", "split"], conflicts_with = "contract")]
    irqchip: String,
    /// Facets that may differ from the contract, by name: a field, or a word with all its fields.
    #[arg(long, value_name = "FACET")]
    waive: Vec<String>,
    #[command(flatten)]
    running: Running,
}

impl Run {
    /// Runs it to its end.
    pub fn run(self, _global: Global) -> Result<u8, Failure> {
        let most = self.most_vcpus.unwrap_or(self.vcpus);
        if most < self.vcpus {
            let what = format!("--most-vcpus {most} is less than --vcpus {}", self.vcpus);
            return Err(Failure::bad(what, "it counts all of them"));
        }
        let operator = self.running.operator()?;
        let kernel = File::open(&self.kernel).map_err(|e| Failure::file(&self.kernel, &e))?;
        let initramfs = match &self.initramfs {
            Some(path) => Some(std::fs::read(path).map_err(|e| Failure::file(path, &e))?),
            None => None,
        };
        let mut boot = Boot { kernel, initramfs, command_line: self.command_line };
        let mut devices: Vec<Box<dyn Device>> = vec![Box::new(Entropy::new().map_err(|e| failed(&e))?)];
        devices.extend(self.running.disks()?);
        devices.extend(self.running.links.new_devices()?);

        let host = evenkeel_hosts::capture_here()?;
        let mut promised = contract::choose(self.contract.as_deref(), &self.irqchip, most, &host)?;
        offloads::settle(&mut promised, self.contract.is_none(), &host, &devices)?;
        let irqchip = Irqchip::by_name(&promised.shape).filter(|irqchip| *irqchip != Irqchip::None);
        let irqchip = irqchip.ok_or_else(|| {
            let what = format!("the contract is for shape `{}`", promised.shape);
            Failure::bad(what, "Linux needs one for shape `kernel` or `split`: `evenkeel baseline --shape`")
        })?;
        let plan = contract::plan(&promised, &host, contract::setup(most), &self.waive)?;
        contract::preflight(&plan)?;

        let live = Live::new();
        let noting = Noting::new(&live);
        let system = System::open(&noting).map_err(|e| failed(&e))?;
        let pit = irqchip == Irqchip::Kernel;
        let shape = Shape { irqchip, pit, memory: (self.memory as usize) << 20 };
        let machine = Machine::new(&system, shape).map_err(|e| failed(&e))?;
        let mut applying = plan.start();
        // What stops a stage is in the report, which is asked below.
        let _ = applying.vm(machine.vm());
        let mut vcpus = Vec::new();
        for index in 0..most {
            let vcpu = machine.vcpu(u64::from(index)).map_err(|e| failed(&e))?;
            let _ = applying.vcpu(&vcpu, index);
            vcpus.push(vcpu);
        }
        let report = contract::keep(&plan, &applying)?;
        anstream::eprintln!(
            "contract {}: kept, {} places read back as wanted",
            report.contract.digest,
            report.kept
        );

        let (console, heard) = Console::new(self.running.snapshot_at.as_deref());
        let pc = Pc::pluggable(&machine, &vcpus, self.vcpus, devices, console, &mut boot);
        let pc = pc.map_err(|e| failed(&e))?;
        let luggage = Luggage::new(promised, &[], &host);
        drive(&pc, &noting, &luggage, &self.running, &heard, operator, None)
    }
}
