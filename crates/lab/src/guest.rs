//! A kernel of the store as a guest of a monitor: its image, and an initramfs with a shell.

use std::fs;

use crate::cache::Cache;
use crate::cpio::Archive;
use crate::error::Error;
use crate::kernel::Kernel;
use crate::modules::Modules;
use crate::shell::shell_binary;

/// What a guest is booted from.
#[derive(Clone, Debug)]
pub struct Guest {
    /// The kernel's image.
    pub image: Vec<u8>,
    /// The initramfs: Debian's static busybox as `/bin/busybox`, modules in `/modules` in the order in which they load, and `/init`.
    pub initramfs: Vec<u8>,
}

impl Guest {
    /// Of a kernel that is fetched. `modules` that it does not have are built into it; `init` is a script for busybox's shell.
    ///
    /// # Errors
    /// The kernel is not in the cache, or the shell cannot be had.
    pub fn new(cache: &Cache, kernel: &Kernel, modules: &[&str], init: &str) -> Result<Guest, Error> {
        let installed = cache.installed(kernel)?;
        let image = fs::read(&installed.image).map_err(Error::io("read", &installed.image))?;
        let busybox = shell_binary(cache, kernel.arch)?;
        let busybox = fs::read(&busybox).map_err(Error::io("read", &busybox))?;
        let all = Modules::scan(&installed.modules)?;
        let own: Vec<&str> = modules.iter().copied().filter(|name| all.has(name)).collect();
        let mut archive = Archive::new();
        for folder in ["bin", "dev", "proc", "sys", "tmp", "modules"] {
            archive.folder(folder);
        }
        archive.device("dev/console", 5, 1);
        archive.file("bin/busybox", &busybox);
        for (index, module) in all.load_order(&own)?.iter().enumerate() {
            archive.file(&format!("modules/{index:03}-{}.ko", module.name), &module.content);
        }
        archive.file("init", format!("#!/bin/busybox sh\n{init}").as_bytes());
        Ok(Guest { image, initramfs: archive.finish() })
    }
}
