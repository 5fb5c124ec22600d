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
    /// The one job of a host that takes it when it boots, as frames that end with [`crate::frame::Kind::Off`]; its
    /// results go to [`RESULTS`].
    pub const JOB: &str = "/lab/job";
    /// The second serial port of such a host.
    pub const RESULTS: &str = "/dev/ttyS1";
    /// The link to another host, where there is one: a file to read and write.
    pub const LINK: &str = "/dev/evenkeel-link";
    /// The name of the virtio-serial port that jobs come from and results go to.
    pub const PORT: &str = "evenkeel.lab";
    /// The name of the virtio-serial port of the link.
    pub const LINK_PORT: &str = "evenkeel.link";
}

/// What is appended to the initramfs of a host that takes its one job when it boots. The kernel unpacks one archive
/// after another (Documentation/driver-api/early-userspace/buffer-format.rst).
pub(crate) fn append_job(initramfs: &mut Vec<u8>, frames: &[u8]) {
    let mut archive = Archive::new();
    archive.file(&paths::JOB[1..], frames);
    initramfs.resize(initramfs.len().next_multiple_of(512), 0);
    initramfs.extend_from_slice(&archive.finish());
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
