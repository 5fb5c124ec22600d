//! A host for a person: a shell on its console.

use std::path::PathBuf;

use crate::apt::Apt;
use crate::cache::Cache;
use crate::emulator::{Console, Slots};
use crate::error::Error;
use crate::host::Host;
use crate::job::{Exit, Job};
use crate::kernel::Arch;
use crate::machine::{Boot, Machine, Start};
use crate::options::Options;

/// The static shell for `arch`, from Debian's package `busybox-static`; fetched into the cache where it is not there.
pub fn shell_binary(cache: &Cache, arch: Arch) -> Result<PathBuf, Error> {
    let folder = cache.root().join("tools").join(arch.name());
    let file = folder.join("busybox");
    if !file.is_file() {
        let apt = Apt::set_up(cache)?;
        if !apt.has_indexes() {
            apt.update()?;
        }
        let changes = cache.change(&mut |_| {})?;
        let tree = apt.unpack("busybox-static", arch, &changes)?;
        let found = ["bin/busybox", "usr/bin/busybox"].map(|name| tree.path().join(name));
        let found = found.into_iter().find(|file| file.is_file()).ok_or_else(|| Error::Kernel {
            what: "busybox-static".to_owned(),
            why: "the package holds no bin/busybox".to_owned(),
        })?;
        std::fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
        std::fs::rename(&found, &file).map_err(Error::io("create", &file))?;
    }
    Ok(file)
}

/// Boots `host` with its console on this terminal and a shell on it; returns when the person leaves it. `files` are
/// put into its working folder: programs to try.
pub fn shell(host: &Host, files: Vec<(String, Vec<u8>)>, options: &Options) -> Result<Exit, Error> {
    let _slot = Slots::take(1);
    let busybox = shell_binary(&options.cache, host.kernel.arch)?;
    let start = Start { host, options, console: Console::Terminal, link: None };
    let mut machine = Machine::start(start, &Boot::of(host, options)?, None)?;
    // A shell wants a terminal of its own to tell apart what is typed for whom; setsid -c gives it the console.
    let script = "./busybox mkdir -p /bin && ./busybox --install -s /bin && exec setsid -c sh";
    let tools = std::fs::read(&busybox).map_err(Error::io("read", &busybox))?;
    let mut job = Job::new(busybox).arg("sh").arg("-c").arg(script).input("busybox", tools);
    job.inputs.extend(files);
    job.console = true;
    // Nobody is timed while he looks around.
    machine.no_hurry();
    let output = machine.run(&job)?;
    machine.off()?;
    Ok(output.exit)
}
