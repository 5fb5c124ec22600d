//! Where kernels are kept, and what is in a kernel's folder.

use std::env;
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::kernel::{Kernel, Origin};

/// The folder that holds unpacked kernels and the package indexes.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// `$EVENKEEL_CACHE`, or `evenkeel` in `$XDG_CACHE_HOME` or `~/.cache`.
    pub fn locate() -> Result<Cache, Error> {
        let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let root = set("EVENKEEL_CACHE")
            .or_else(|| set("XDG_CACHE_HOME").map(|folder| folder.join("evenkeel")))
            .or_else(|| set("HOME").map(|folder| folder.join(".cache/evenkeel")))
            .ok_or_else(|| Error::Tool {
                program: "lab".to_owned(),
                why: "neither EVENKEEL_CACHE nor XDG_CACHE_HOME nor HOME is set".to_owned(),
                hint: "EVENKEEL_CACHE names the folder for kernels".to_owned(),
            })?;
        Ok(Cache::at(root))
    }

    /// A cache in this folder, which is made when something is fetched into it.
    pub fn at(root: impl Into<PathBuf>) -> Cache {
        // apt and the emulator run in other folders, so a relative path would mean another place to them.
        let root = root.into();
        Cache { root: std::path::absolute(&root).unwrap_or(root) }
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn folder(&self, kernel: &Kernel) -> PathBuf {
        match &kernel.origin {
            Origin::Debian { .. } => self.root.join("kernels").join(&kernel.release),
            Origin::Added { .. } => self.root.join("added").join(&kernel.name).join("tree"),
        }
    }

    /// Whether `kernel` is here. Looking at it this way is not using it.
    pub fn has(&self, kernel: &Kernel) -> bool {
        Installed::at(&self.folder(kernel), &kernel.release).is_some()
    }

    /// What is here of `kernel`, to be used now, or [`Error::NotFetched`].
    pub fn installed(&self, kernel: &Kernel) -> Result<Installed, Error> {
        let root = self.folder(kernel);
        let installed = Installed::at(&root, &kernel.release)
            .ok_or_else(|| Error::NotFetched { name: kernel.name.clone(), cache: self.root.clone() })?;
        self.mark_used(kernel);
        Ok(installed)
    }
}

/// A kernel that is unpacked.
#[derive(Clone, Debug)]
pub struct Installed {
    /// The bootable image.
    pub image: PathBuf,
    /// The folders to look for modules in; none when nothing but the image was packaged.
    pub modules: Vec<PathBuf>,
}

impl Installed {
    /// Debian moved things over time: the image from /boot to beside the modules (7.2), the modules under /usr (6.19).
    pub(crate) fn at(root: &Path, release: &str) -> Option<Installed> {
        let folders = [root.join("lib/modules").join(release), root.join("usr/lib/modules").join(release)];
        let image = [root.join(format!("boot/vmlinuz-{release}"))]
            .into_iter()
            .chain(folders.iter().map(|folder| folder.join("vmlinuz")))
            .find(|file| file.is_file())?;
        let modules = folders.into_iter().filter(|folder| folder.is_dir()).collect();
        Some(Installed { image, modules })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn old_and_new_layouts_are_found() {
        for (image, modules) in [
            ("boot/vmlinuz-6.1.0-1-cloud-amd64", "lib/modules/6.1.0-1-cloud-amd64"),
            ("usr/lib/modules/6.1.0-1-cloud-amd64/vmlinuz", "usr/lib/modules/6.1.0-1-cloud-amd64"),
        ] {
            let root = tempfile::tempdir().unwrap();
            assert!(
                Installed::at(root.path(), "6.1.0-1-cloud-amd64").is_none(),
                "an empty folder is no kernel"
            );
            fs::create_dir_all(root.path().join(modules)).unwrap();
            fs::create_dir_all(root.path().join("boot")).unwrap();
            fs::write(root.path().join(image), "x").unwrap();
            let found = Installed::at(root.path(), "6.1.0-1-cloud-amd64").unwrap();
            assert_eq!(found.image, root.path().join(image));
            assert_eq!(found.modules, [root.path().join(modules)]);
        }
    }

    #[test]
    fn what_is_not_there_says_how_to_get_it() {
        let root = tempfile::tempdir().unwrap();
        let kernel = crate::kernel("debian-6.12").unwrap();
        let error = Cache::at(root.path()).installed(kernel).unwrap_err().to_string();
        assert!(error.contains("evenkeel lab fetch debian-6.12"), "{error}");
    }
}
