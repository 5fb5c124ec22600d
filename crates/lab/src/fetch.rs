//! Bringing kernels into the cache.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::apt::Apt;
use crate::cache::{Cache, Installed};
use crate::error::Error;
use crate::kernel::{Kernel, Origin, Package};
use crate::tool;

/// Brings each of `kernels` into `cache`, unless it is there. `progress` is given a line for a person now and then.
///
/// The packages come from the Debian mirror that this machine's apt is set up with; apt checks the archive's
/// signature, and the SHA-256 of the list is checked after it.
pub fn fetch(kernels: &[&Kernel], cache: &Cache, progress: &mut dyn FnMut(&str)) -> Result<(), Error> {
    let missing: Vec<&Kernel> = kernels.iter().copied().filter(|k| cache.installed(k).is_err()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let apt = Apt::set_up(cache)?;
    let mut fresh = !apt.has_indexes();
    if fresh {
        progress("reading the package indexes");
        apt.update()?;
    }
    for kernel in missing {
        if let Origin::Debian { version, suite, .. } = &kernel.origin {
            progress(&format!("{}: {version} from {suite}", kernel.name));
        }
        match fetch_one(kernel, &apt, cache) {
            Err(Error::Fetch { .. }) if !fresh => {
                // Most likely the archive moved on since the indexes were read.
                progress("reading the package indexes again");
                apt.update()?;
                fresh = true;
                fetch_one(kernel, &apt, cache)?;
            }
            done => done?,
        }
    }
    Ok(())
}

fn fetch_one(kernel: &Kernel, apt: &Apt, cache: &Cache) -> Result<(), Error> {
    let target = cache.folder(kernel);
    let parent = target.parent().expect("the folder was joined to the cache's");
    fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
    // Beside the target, so that the rename at the end makes it appear whole or not at all.
    let work = tempfile::Builder::new()
        .prefix(".fetch-")
        .tempdir_in(parent)
        .map_err(Error::io("create a folder in", parent))?;
    let tree = work.path().join("tree");
    for package in kernel.packages() {
        let deb = apt.download(kernel, package, work.path())?;
        verify(&deb, package)?;
        tool::output(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&tree), "dpkg")?;
        fs::remove_file(&deb).map_err(Error::io("remove", &deb))?;
    }
    if Installed::at(&tree, &kernel.release).is_none() {
        return Err(Error::Kernel {
            what: kernel.name.clone(),
            why: format!("its packages hold no image for {}", kernel.release),
        });
    }
    match fs::rename(&tree, &target) {
        // Another process was faster.
        Err(_) if cache.installed(kernel).is_ok() => Ok(()),
        done => done.map_err(Error::io("create", target)),
    }
}

fn verify(deb: &Path, package: &Package) -> Result<(), Error> {
    let line = tool::output(Command::new("sha256sum").arg("--binary").arg(deb), "coreutils")?;
    let found = String::from_utf8_lossy(&line).split(' ').next().unwrap_or_default().to_owned();
    if found == package.sha256 {
        return Ok(());
    }
    fs::remove_file(deb).map_err(Error::io("remove", deb))?;
    Err(Error::Digest { package: package.name.clone(), expected: package.sha256.clone(), found })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_with_another_digest_is_refused_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let deb = folder.path().join("x.deb");
        fs::write(&deb, "abc").unwrap();
        let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let package = |sha256: &str| Package { name: "x".to_owned(), sha256: sha256.to_owned() };
        verify(&deb, &package(digest)).unwrap();
        let error = verify(&deb, &package(&"0".repeat(64))).unwrap_err();
        assert!(error.to_string().contains(digest), "{error}");
        assert!(!deb.exists());
    }
}
