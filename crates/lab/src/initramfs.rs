//! What an emulated host finds in its memory: our init and the modules. Also the contract between the two sides of the
//! lab, which is why the init uses this module's paths.

use crate::cpio::Archive;
use crate::modules::Module;

/// Paths inside the emulated host.
pub mod paths {
    /// Modules to load, in the order of their file names.
    pub const MODULES: &str = "/lab/modules";
    /// The program.
    pub const PROGRAM: &str = "/lab/program";
    /// The program's working folder.
    pub const WORK: &str = "/lab/work";
    /// The link to another host, where there is one: a file to read and write.
    pub const LINK: &str = "/dev/evenkeel-link";
    /// The name of the virtio-serial port that jobs come from and results go to.
    pub const PORT: &str = "evenkeel.lab";
    /// The name of the virtio-serial port of the link.
    pub const LINK_PORT: &str = "evenkeel.link";
}

/// The initramfs of a host.
pub(crate) fn build(init: &[u8], modules: &[Module]) -> Vec<u8> {
    let mut archive = Archive::new();
    for folder in ["dev", "proc", "sys", "tmp", "lab", "lab/modules", &paths::WORK[1..]] {
        archive.folder(folder);
    }
    // The kernel opens it for the init before anything is mounted.
    archive.device("dev/console", 5, 1);
    archive.file("init", init);
    for (index, module) in modules.iter().enumerate() {
        archive.file(&format!("lab/modules/{index:03}-{}", module.name), &module.content);
    }
    archive.finish()
}
