//! `evenkeel run` on arm64.

use std::cell::RefCell;
use std::fs::File;
use std::path::PathBuf;

use evenkeel_monitor::aarch64::{Configure, Machine, Shape};
use evenkeel_monitor::devices::virtio::{Device, entropy::Entropy};
use evenkeel_monitor::linux::Boot;
use evenkeel_monitor::virt::Virt;
use evenkeel_state::Noting;
use evenkeel_sys::{Device as KvmDevice, Live, System, Vcpu};

use super::guest::save::Luggage;
use super::guest::{Console, Running, contract, drive, failed};
use super::offloads;
use crate::Global;
use crate::failure::Failure;

/// Runs a Linux guest under a contract, its serial port on standard output.
#[derive(clap::Args)]
pub struct Run {
    /// The kernel: an Image.
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// The initial file system.
    #[arg(long, value_name = "FILE")]
    initramfs: Option<PathBuf>,
    /// The kernel's command line.
    #[arg(long, default_value = "console=ttyS0 panic=-1")]
    command_line: String,
    /// Memory in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 128, value_parser = clap::value_parser!(u32).range(16..=3072))]
    memory: u32,
    /// How many vCPUs.
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    vcpus: u32,
    /// What the guest is promised; what this host gives today, sealed, if not given.
    #[arg(long, value_name = "FILE")]
    contract: Option<PathBuf>,
    /// Facets that may differ from the contract, by name: a field, or a word with all its fields.
    #[arg(long, value_name = "FACET")]
    waive: Vec<String>,
    #[command(flatten)]
    running: Running,
}

impl Run {
    /// Runs it to its end.
    pub fn run(self, _global: Global) -> Result<u8, Failure> {
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
        let usual = Shape::default().name();
        let mut promised = contract::choose(self.contract.as_deref(), usual, self.vcpus, &host)?;
        offloads::settle(&mut promised, self.contract.is_none(), &host, &devices)?;
        let shape = Shape::by_name(&promised.shape).ok_or_else(|| {
            let what = format!("the contract is for shape `{}`", promised.shape);
            Failure::bad(
                what,
                "Linux needs one for shape `min`, `pmu` or `full`: `evenkeel baseline --shape`",
            )
        })?;
        let plan = contract::plan(&promised, &host, contract::setup(self.vcpus), &self.waive)?;
        contract::preflight(&plan)?;

        let live = Live::new();
        let noting = Noting::new(&live);
        let system = System::open(&noting).map_err(|e| failed(&e))?;
        let applying = RefCell::new(plan.start());
        // What stops a stage is in the report, which is asked below.
        let vcpu = |vcpu: &Vcpu<'_>, id: u64| {
            let _ = applying.borrow_mut().vcpu(vcpu, id as u32);
            Ok(())
        };
        let gic = |gic: &KvmDevice<'_>| {
            let _ = applying.borrow_mut().gic(gic);
            Ok(())
        };
        let late = |vcpu: &Vcpu<'_>, id: u64| {
            let _ = applying.borrow_mut().late(vcpu, id as u32);
            Ok(())
        };
        let configure = Configure {
            // 0 is what the usual host has, where nothing is to be selected.
            vm_type: (plan.vm_type != 0).then_some(plan.vm_type),
            features: Some(plan.vcpu_features()),
            vm: &|vm| {
                let _ = applying.borrow_mut().vm(vm);
                Ok(())
            },
            vcpu: Some(&vcpu),
            gic: if plan.initializes_gic() { Some(&gic) } else { None },
            late: if plan.is_late() { Some(&late) } else { None },
            without_its: true,
            ..Configure::default()
        };
        let memory = (self.memory as usize) << 20;
        let machine = Machine::new(&system, shape, memory, u64::from(self.vcpus), &configure);
        let machine = machine.map_err(|e| failed(&e))?;
        let report = contract::keep(&plan, &applying.borrow())?;
        anstream::eprintln!(
            "contract {}: kept, {} places read back as wanted",
            report.contract.digest,
            report.kept
        );

        let (console, heard) = Console::new(self.running.snapshot_at.as_deref());
        let virt = Virt::new(&machine, devices, console, &mut boot).map_err(|e| failed(&e))?;
        let luggage = Luggage::new(promised, &[], &host);
        drive(&virt, &noting, &luggage, &self.running, &heard, operator, None)
    }
}
