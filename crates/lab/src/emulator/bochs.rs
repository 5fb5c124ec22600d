//! Bochs: its configuration, and the disc that it boots from. The one emulator with Intel's VMX; it interprets every
//! instruction, so a run takes a minute or two.

use std::fs;
use std::path::Path;

use crate::cache::Installed;
use crate::emulator::Plan;
use crate::error::Error;
use crate::iso;
use crate::memfile::MemFile;

/// The CPU: the newest that all of the lane's kernels boot on, so that only kernels differ. With `corei7_skylake_x` 7.3
/// panics (`fpu__init_system_xstate`: the model's sizes of XSAVE areas disagree). It has EPT with accessed and dirty
/// bits, VPID, unrestricted guests, a virtual APIC, VMCS shadowing and page-modification logging; no TSC scaling, and no
/// counters behind the PMU that it announces.
const CPU: &str = "broadwell_ult";

/// Instructions that make a second of the emulated host's time, whatever they take here: the clocks count instructions,
/// so what is captured repeats.
const INSTRUCTIONS_PER_SECOND: u32 = 50_000_000;

/// The kernel's command line. The time stamp counter counts instructions, so its rate is known; the clocks to check it
/// against are taken away (see the lane of QEMU on x86). Not `quiet`: a run takes minutes, and the console tells how
/// far it is.
pub(crate) const COMMAND_LINE: &str =
    "console=ttyS0,115200 panic=-1 oops=panic tsc=reliable tsc_early_khz=50000 hpet=disable pmtmr=0";

/// What isolinux, which the disc starts, is told.
fn loader_config() -> String {
    format!("DEFAULT lab\nPROMPT 0\nLABEL lab\nLINUX /VMLINUZ\nINITRD /INITRD\nAPPEND {COMMAND_LINE}\n")
}

/// The files of Debian's packages that make a PC boot.
const BIOS: &str = "/usr/share/bochs/BIOS-bochs-latest";
const VGA_BIOS: &str = "/usr/share/vgabios/vgabios.bin";
const LOADER: &str = "/usr/lib/ISOLINUX/isolinux.bin";
const LOADER_LIBRARY: &str = "/usr/lib/syslinux/modules/bios/ldlinux.c32";

/// The packages that bring the emulator and those files.
const PACKAGES: &str = "bochs bochsbios vgabios isolinux syslinux-common";

/// The files of a run, which must live as long as it.
#[derive(Debug)]
pub(crate) struct Files {
    config: MemFile,
    commands: MemFile,
    /// Held open for the emulator, which inherits it.
    _disc: MemFile,
    /// What the init writes to its second serial port.
    pub results: MemFile,
}

impl Files {
    /// Everything for a boot of `installed` with this initramfs.
    pub fn new(
        installed: &Installed,
        initramfs: &[u8],
        console: &MemFile,
        memory: u32,
    ) -> Result<Files, Error> {
        for file in [BIOS, VGA_BIOS] {
            present(file)?;
        }
        let kernel = fs::read(&installed.image).map_err(Error::io("read", &installed.image))?;
        let (loader, library) = (read(LOADER)?, read(LOADER_LIBRARY)?);
        let image = iso::build(
            &loader,
            &[
                ("LDLINUX.C32", &library),
                ("ISOLINUX.CFG", loader_config().as_bytes()),
                ("VMLINUZ", &kernel),
                ("INITRD", initramfs),
            ],
        );
        let disc = MemFile::new("disc", &image)?;
        let results = MemFile::new("results", b"")?;
        let text = config(memory, &disc.path(), &console.path(), &results.path());
        Ok(Files {
            config: MemFile::new("config", text.as_bytes())?,
            // The packaged Bochs is built with its debugger, which stops before the first instruction.
            commands: MemFile::new("commands", b"c\n")?,
            _disc: disc,
            results,
        })
    }

    /// Files of a boot that does not happen.
    #[cfg(test)]
    pub fn of_nothing() -> Result<Files, Error> {
        let empty = || MemFile::new("empty", b"");
        Ok(Files { config: empty()?, commands: empty()?, _disc: empty()?, results: empty()? })
    }

    /// How to start it.
    pub fn plan(&self) -> Plan {
        let args = ["-q", "-f", &self.config.path(), "-rc", &self.commands.path()].map(str::to_owned);
        let farewell = Some("ACPI control: soft power off");
        Plan {
            program: "bochs",
            package: PACKAGES,
            offline: true,
            farewell,
            args: args.into(),
            hand_over: vec![],
        }
    }
}

fn present(file: &'static str) -> Result<(), Error> {
    if Path::new(file).is_file() {
        return Ok(());
    }
    Err(Error::Tool {
        program: file.to_owned(),
        why: "not found".to_owned(),
        hint: format!("apt-get install {PACKAGES}"),
    })
}

fn read(file: &'static str) -> Result<Vec<u8>, Error> {
    present(file)?;
    fs::read(file).map_err(Error::io("read", file))
}

/// Bochs' configuration.
fn config(memory_mib: u32, disc: &str, console: &str, results: &str) -> String {
    format!(
        "megs: {memory_mib}\n\
         romimage: file={BIOS}\n\
         vgaromimage: file={VGA_BIOS}\n\
         cpu: model={CPU}, count=1, ips={INSTRUCTIONS_PER_SECOND}, reset_on_triple_fault=0\n\
         clock: sync=none, time0=utc\n\
         ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14\n\
         ata0-master: type=cdrom, path={disc}, status=inserted\n\
         boot: cdrom\n\
         com1: enabled=1, mode=file, dev={console}\n\
         com2: enabled=1, mode=file, dev={results}\n\
         display_library: rfb, options=\"timeout=0\"\n\
         sound: waveoutdrv=dummy\n\
         speaker: enabled=0\n\
         log: -\n\
         info: action=ignore\n\
         error: action=ignore\n\
         panic: action=fatal\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_names_the_files_and_the_clock() {
        let text = config(256, "/proc/self/fd/7", "/proc/self/fd/8", "/proc/self/fd/9");
        for line in [
            "megs: 256",
            "ata0-master: type=cdrom, path=/proc/self/fd/7, status=inserted",
            "com1: enabled=1, mode=file, dev=/proc/self/fd/8",
            "com2: enabled=1, mode=file, dev=/proc/self/fd/9",
            "clock: sync=none, time0=utc",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn the_kernel_is_told_the_rate_that_the_counter_has() {
        let khz = format!("tsc_early_khz={} ", INSTRUCTIONS_PER_SECOND / 1000);
        assert!(COMMAND_LINE.contains(&khz), "{COMMAND_LINE}");
        assert!(loader_config().contains(COMMAND_LINE));
    }
}
