//! What an emulated host finds in its memory: our init, the modules, the program. Also the contract between the two
//! sides of the lab, which is why the init uses this module's paths.

use crate::cpio::Archive;
use crate::job::Job;
use crate::modules::Module;

/// Paths inside the emulated host.
pub mod paths {
    /// Modules to load, in the order of their file names.
    pub const MODULES: &str = "/lab/modules";
    /// The program.
    pub const PROGRAM: &str = "/lab/program";
    /// The program's arguments, each ended by a zero byte.
    pub const ARGS: &str = "/lab/args";
    /// The files to bring back, each ended by a zero byte.
    pub const OUTPUTS: &str = "/lab/outputs";
    /// The program's working folder.
    pub const WORK: &str = "/lab/work";
    /// The name of the virtio-serial port that results go to.
    pub const PORT: &str = "evenkeel.result";
}

/// The initramfs of one run.
pub(crate) fn build(init: &[u8], modules: &[Module], program: &[u8], job: &Job) -> Vec<u8> {
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
    archive.file(&paths::PROGRAM[1..], program);
    archive.file(&paths::ARGS[1..], &list(&job.args));
    archive.file(&paths::OUTPUTS[1..], &list(&job.outputs));
    for (name, content) in &job.inputs {
        archive.file(&format!("{}/{name}", &paths::WORK[1..]), content);
    }
    archive.finish()
}

/// Zero-ended strings. (A zero inside one would split it; neither arguments nor paths can hold one.)
fn list(strings: &[String]) -> Vec<u8> {
    strings.iter().flat_map(|text| text.bytes().chain([0])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_files_lie_in_the_working_folder() {
        let job = Job::new("/program").arg("load").input("a.json", *b"the content");
        let archive = build(b"init", &[], b"program", &job);
        let place = |what: &[u8]| archive.windows(what.len()).position(|bytes| bytes == what);
        let (folder, name, content) =
            (place(b"lab/work\0"), place(b"lab/work/a.json\0"), place(b"the content"));
        assert!(folder.is_some() && folder < name && name < content, "{folder:?} {name:?} {content:?}");
    }
}
