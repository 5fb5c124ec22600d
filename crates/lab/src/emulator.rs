//! The emulator: its command line, and its life as a process of ours.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::initramfs::paths;
use crate::kernel::Arch;
use crate::tool;

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

/// The most that a console or a result may write. A kernel that prints for ever must not fill the disk.
const MOST_BYTES: u64 = 512 << 20;

/// The files of one run, in a folder of its own.
pub(crate) struct Files {
    pub image: PathBuf,
    pub initramfs: PathBuf,
    pub console: PathBuf,
    pub result: PathBuf,
    /// What the emulator itself says.
    pub words: PathBuf,
}

impl Files {
    pub fn in_folder(folder: &Path, image: &Path) -> Files {
        Files {
            image: image.to_owned(),
            initramfs: folder.join("initramfs"),
            console: folder.join("console"),
            result: folder.join("result"),
            words: folder.join("words"),
        }
    }
}

/// The emulator's arguments.
fn arguments(arch: Arch, memory_mib: u32, files: &Files) -> Vec<String> {
    let (machine, line): (&[&str], _) = match arch {
        // QEMU 7.2 emulates cmpxchg16b in a way that crashes 6.12 in one boot of three; without it nothing is lost.
        Arch::X86_64 => (&["-machine", "q35", "-cpu", "EPYC,-cx16"], COMMAND_LINE_X86),
        // The architected PAuth algorithm costs most of the time under emulation; 52-bit addresses need a host
        // that is built for them.
        Arch::Aarch64 => (
            &["-machine", "virt,virtualization=on,gic-version=3", "-cpu", "max,pauth-impdef=on,lpa2=off"],
            COMMAND_LINE_ARM64,
        ),
    };
    let mut all: Vec<String> = machine.iter().map(|text| (*text).to_owned()).collect();
    let fixed = "-accel tcg -smp 1 -nodefaults -no-user-config -display none -monitor none -no-reboot \
                 -serial chardev:console -device virtio-serial-pci";
    all.extend(fixed.split_whitespace().map(str::to_owned));
    let port = format!("virtserialport,chardev=result,name={}", paths::PORT);
    for (option, value) in [
        ("-m", format!("{memory_mib}M")),
        ("-chardev", format!("file,id=console,path={}", escaped(&files.console))),
        ("-chardev", format!("file,id=result,path={}", escaped(&files.result))),
        ("-device", port),
        ("-kernel", files.image.display().to_string()),
        ("-initrd", files.initramfs.display().to_string()),
        ("-append", line.to_owned()),
    ] {
        all.extend([option.to_owned(), value]);
    }
    all
}

/// A comma in a value is doubled.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

/// The running emulator. It dies with this value, and with the thread that started it.
pub(crate) struct Emulator {
    child: Child,
    started: Instant,
}

/// How the emulator's life ended.
pub(crate) enum Ending {
    /// By itself.
    Exited(ExitStatus),
    /// Killed: the time was up.
    TimedOut,
    /// Killed: it wrote more than [`MOST_BYTES`].
    Flooded,
}

impl Emulator {
    /// Starts the emulator for `arch`.
    pub fn start(arch: Arch, memory_mib: u32, files: &Files) -> Result<Emulator, Error> {
        let (program, package) = match arch {
            Arch::X86_64 => ("qemu-system-x86_64", "qemu-system-x86"),
            Arch::Aarch64 => ("qemu-system-aarch64", "qemu-system-arm"),
        };
        let missing = |program: &str, package: &str| Error::Tool {
            program: program.to_owned(),
            why: "not found".to_owned(),
            hint: format!("apt-get install {package}"),
        };
        tool::find(program).ok_or_else(|| missing(program, package))?;
        tool::find("setpriv").ok_or_else(|| missing("setpriv", "util-linux"))?;
        let words = File::create(&files.words).map_err(Error::io("create", &files.words))?;
        let also = words.try_clone().map_err(Error::io("use", &files.words))?;
        // setpriv becomes the emulator, with the kernel's order to kill it when we are gone, however we went.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--", program])
            .args(arguments(arch, memory_mib, files))
            .stdin(Stdio::null())
            .stdout(words)
            .stderr(also)
            .spawn()
            .map_err(Error::io("start", program))?;
        Ok(Emulator { child, started: Instant::now() })
    }

    /// Waits for the end, and calls `seen` with the number of result bytes whenever it has grown.
    pub fn wait(
        mut self,
        files: &Files,
        timeout: Duration,
        mut seen: impl FnMut(u64),
    ) -> Result<Ending, Error> {
        let mut last = 0;
        loop {
            let ended = self.child.try_wait().map_err(Error::io("wait for", "the emulator"))?;
            let size = length(&files.result);
            if size > last {
                last = size;
                seen(size);
            }
            if let Some(status) = ended {
                return Ok(Ending::Exited(status));
            }
            if size > MOST_BYTES || length(&files.console) > MOST_BYTES {
                return Ok(Ending::Flooded);
            }
            if self.started.elapsed() > timeout {
                return Ok(Ending::TimedOut);
            }
            sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        // Harmless when it has exited: its number is not used again before it is waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A file's length; 0 when it is not there (yet).
fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |data| data.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_with_commas_stay_whole() {
        let files = Files::in_folder(Path::new("/tmp/a,b"), Path::new("/k"));
        let all = arguments(Arch::X86_64, 192, &files);
        assert!(all.contains(&"file,id=console,path=/tmp/a,,b/console".to_owned()), "{all:?}");
        assert!(all.contains(&"192M".to_owned()));
    }

    #[test]
    fn the_emulator_dies_with_its_value() {
        let child = Command::new("sleep").arg("600").spawn().unwrap();
        let id = child.id();
        drop(Emulator { child, started: Instant::now() });
        assert!(!Path::new(&format!("/proc/{id}")).exists());
    }

    #[test]
    fn the_time_is_up() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::in_folder(folder.path(), Path::new("/k"));
        let child = Command::new("sleep").arg("600").spawn().unwrap();
        let id = child.id();
        let emulator = Emulator { child, started: Instant::now() };
        let ending = emulator.wait(&files, Duration::from_millis(50), |_| ()).unwrap();
        assert!(matches!(ending, Ending::TimedOut));
        assert!(!Path::new(&format!("/proc/{id}")).exists());
    }
}
