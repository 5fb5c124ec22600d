//! `evenkeel run` on arm64.

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use evenkeel_monitor::End;
use evenkeel_monitor::aarch64::{Configure, Machine, Shape};
use evenkeel_monitor::devices::virtio::{Device, block::Block, entropy::Entropy};
use evenkeel_monitor::linux::Boot;
use evenkeel_monitor::virt::Virt;
use evenkeel_sys::{Live, System};

use crate::Global;
use crate::failure::Failure;

/// Runs a Linux guest, its serial port on standard output.
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
    #[arg(long, value_name = "MIB", default_value_t = 128)]
    memory: u32,
    /// How many vCPUs.
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    vcpus: u8,
    /// What the vCPUs are made with: min, pmu, full.
    #[arg(long, default_value = "full", value_parser = shape)]
    shape: Shape,
    /// A disk: a raw file. May be given several times.
    #[arg(long, value_name = "FILE")]
    disk: Vec<PathBuf>,
    /// Stop after this many seconds, with exit code 3.
    #[arg(long, value_name = "SECONDS")]
    limit: Option<u64>,
}

fn shape(name: &str) -> Result<Shape, String> {
    Shape::by_name(name).ok_or_else(|| "one of min, pmu, full".to_owned())
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
        let mut devices: Vec<Box<dyn Device>> = vec![Box::new(Entropy)];
        for (index, path) in self.disk.iter().enumerate() {
            let file =
                File::options().read(true).write(true).open(path).map_err(|e| Failure::file(path, &e))?;
            let block = Block::new(file, false, &format!("disk{index}")).map_err(|e| failed(&e))?;
            devices.push(Box::new(block));
        }
        let live = Live::new();
        let system = System::open(&live).map_err(|e| failed(&e))?;
        let configure = Configure { without_its: true, ..Configure::default() };
        let memory = (self.memory as usize) << 20;
        let vcpus = u64::from(self.vcpus.max(1));
        let machine =
            Machine::new(&system, self.shape, memory, vcpus, &configure).map_err(|e| failed(&e))?;
        let virt = Virt::new(&machine, devices, std::io::stdout(), &mut boot).map_err(|e| failed(&e))?;
        match virt.run(self.limit.map(Duration::from_secs)) {
            End::Reset | End::Off | End::Stopped => Ok(0),
            End::TimeOver => Err(failed(&"the time is over")),
            End::Failed(why) => Err(failed(&why)),
        }
    }
}
