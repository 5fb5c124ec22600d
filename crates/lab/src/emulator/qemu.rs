//! QEMU's command line, lane by lane.

use std::os::fd::OwnedFd;
use std::path::Path;

use crate::emulator::{Console, Plan, number};
use crate::host::Lane;
use crate::initramfs::paths;
use crate::memfile::MemFile;

/// The kernel's command line on x86: the same at every boot, so that what is captured repeats.
///
/// Under emulation a kernel that measures the time stamp counter gets another rate at each boot, so it is told one
/// (the `tsc` parameters) and the clocks to check it against are taken away. It need not be the true rate: a wrong
/// one scales the emulated host's idea of a second and nothing else. (Counting instructions instead, `-icount`, would
/// make it true, and a boot takes three to four times as long.) `oops=panic`: a kernel that broke must not answer.
const COMMAND_LINE_X86: &str = "console=ttyS0 quiet panic=-1 oops=panic \
    tsc=reliable tsc_early_khz=1000000 hpet=disable pmtmr=0";

/// The kernel's command line on arm64, where the timer's rate is a register.
const COMMAND_LINE_ARM64: &str = "console=ttyAMA0 quiet panic=-1 oops=panic";

/// What a QEMU host is made of.
pub(crate) struct Machine<'a> {
    pub lane: Lane,
    pub memory_mib: u32,
    pub image: &'a Path,
    pub initramfs: &'a MemFile,
    pub console: &'a Console,
    /// The channel to the init.
    pub port: OwnedFd,
    /// The emulator's own control socket.
    pub control: OwnedFd,
    /// The link to another host; without one the device is there all the same, and nobody is at its other end.
    pub link: Option<OwnedFd>,
    /// A raw image that other hosts may have, too.
    pub shared: Option<&'a Path>,
    /// A saved state to start from, as a file that the emulator inherits.
    pub incoming: Option<OwnedFd>,
}

impl Lane {
    /// Emulator, machine and CPU of this lane, and the kernel's command line.
    fn machine(self) -> (&'static str, &'static [&'static str], String) {
        match self {
            // QEMU 7.2 emulates cmpxchg16b in a way that crashes 6.12 in one boot of three; without it nothing is lost.
            Lane::Svm => (
                "qemu-system-x86_64",
                &["-machine", "q35", "-cpu", "EPYC,-cx16"],
                COMMAND_LINE_X86.to_owned(),
            ),
            // Not QEMU's: see `bochs`.
            Lane::Vmx => ("bochs", &[], super::bochs::COMMAND_LINE.to_owned()),
            // The architected PAuth algorithm costs most of the time under emulation; 52-bit addresses need a host
            // that is built for them.
            Lane::Arm64 => (
                "qemu-system-aarch64",
                &["-machine", "virt,virtualization=on,gic-version=3", "-cpu", "max,pauth-impdef=on,lpa2=off"],
                COMMAND_LINE_ARM64.to_owned(),
            ),
            Lane::Arm64Nvhe => (
                "qemu-system-aarch64",
                &["-machine", "virt,virtualization=on,gic-version=3", "-cpu", "neoverse-n1"],
                format!("{COMMAND_LINE_ARM64} kvm-arm.mode=nvhe"),
            ),
        }
    }
}

/// The arguments that decide what the host is, and so whether a saved state fits: all but where its files are.
pub(crate) fn identity(lane: Lane, memory_mib: u32) -> Vec<String> {
    let (program, machine, line) = lane.machine();
    let mut all = vec![program.to_owned()];
    all.extend(machine.iter().map(|text| (*text).to_owned()));
    all.extend(["-append".to_owned(), line, "-m".to_owned(), format!("{memory_mib}M")]);
    all
}

/// How to start the host.
pub(crate) fn plan(machine: Machine<'_>) -> Plan {
    let Machine { lane, memory_mib, image, initramfs, console, port, control, link, shared, incoming } =
        machine;
    let (program, ..) = lane.machine();
    let package = match program {
        "qemu-system-x86_64" => "qemu-system-x86",
        _ => "qemu-system-arm",
    };
    let mut args: Vec<String> = identity(lane, memory_mib).split_off(1);
    let fixed = "-accel tcg -smp 1 -nodefaults -no-user-config -display none -no-reboot \
                 -serial chardev:console -device virtio-serial-pci -mon chardev=control,mode=control";
    args.extend(fixed.split_whitespace().map(str::to_owned));
    let console = match console {
        Console::Kept(file) => format!("file,id=console,path={}", file.path()),
        Console::Terminal => "stdio,id=console,signal=off".to_owned(),
    };
    let link_end = match &link {
        Some(fd) => format!("socket,id=link,fd={}", number(fd)),
        None => "null,id=link".to_owned(),
    };
    for (option, value) in [
        ("-chardev", console),
        ("-chardev", format!("socket,id=port,fd={}", number(&port))),
        ("-chardev", format!("socket,id=control,fd={}", number(&control))),
        ("-chardev", link_end),
        ("-device", format!("virtserialport,chardev=port,name={}", paths::PORT)),
        ("-device", format!("virtserialport,chardev=link,name={}", paths::LINK_PORT)),
        ("-kernel", image.display().to_string()),
        ("-initrd", initramfs.path()),
    ] {
        args.extend([option.to_owned(), value]);
    }
    if let Some(path) = shared {
        // All emulators of one machine see it through the same page cache, and what a host has in its own is its own affair.
        let path = path.display().to_string().replace(',', ",,");
        let drive = format!("if=none,id=shared,format=raw,file.locking=off,file={path}");
        let disk = "virtio-blk-pci,drive=shared,share-rw=on".to_owned();
        args.extend(["-drive".to_owned(), drive, "-device".to_owned(), disk]);
    }
    if let Some(fd) = &incoming {
        args.extend(["-incoming".to_owned(), format!("fd:{}", number(fd))]);
    }
    let hand_over = [Some(port), Some(control), link, incoming].into_iter().flatten().collect();
    Plan { program, package, offline: false, farewell: None, args, hand_over }
}
