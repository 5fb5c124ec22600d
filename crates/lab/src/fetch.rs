//! Bringing kernels into the cache.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::apt::Apt;
use crate::cache::{Cache, Installed};
use crate::download;
use crate::error::Error;
use crate::index::{Entry, Index, flavour_of};
use crate::kernel::{Arch, Kernel, Origin, Package};
use crate::store::{Changes, IMPORTED, show_bytes, stored_name};
use crate::tool;

/// What a long task says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress<'a> {
    /// A line for a person.
    Line(&'a str),
    /// A package is being downloaded.
    Bytes {
        /// The package.
        what: &'a str,
        /// How much of it is here.
        done: u64,
        /// How long it is.
        total: u64,
    },
}

/// What became of each kernel that was asked for, by name.
pub type Fetched = BTreeMap<String, Result<Here, Error>>;

/// A kernel that is in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Here {
    /// It was before.
    Already,
    /// It is now.
    New,
}

/// Brings each of `kernels` into `cache`, unless it is there. One that cannot be had does not keep the others away.
///
/// The packages come from the Debian mirror that this machine's apt is set up with; apt checks the archive's
/// signature, and a file counts only when it has the digest that is known beforehand. What was downloaded of one that
/// is interrupted is kept, and gone on with where the server allows it. Kernels that were used least recently are
/// removed when the cache would hold more than [`Cache::limit`].
///
/// # Errors
/// Nothing could be tried: there is no apt, or no archive.
pub fn fetch(
    kernels: &[&Kernel],
    cache: &Cache,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Fetched, Error> {
    let limit = Cache::limit()?;
    let mut fetched: Fetched = BTreeMap::new();
    let mut missing: Vec<&Kernel> = Vec::new();
    for kernel in kernels {
        if cache.has(kernel) {
            cache.mark_used(kernel);
            fetched.insert(kernel.name.clone(), Ok(Here::Already));
        } else if !missing.contains(kernel) {
            missing.push(kernel);
        }
    }
    if missing.is_empty() {
        return Ok(fetched);
    }
    let changes = cache.change(progress)?;
    let apt = Apt::set_up(cache)?;
    let mut served = Served { apt: &apt, index: None, fresh: false };
    let keep: Vec<&str> = kernels.iter().map(|kernel| stored_name(kernel)).collect();
    for kernel in missing {
        // Another lab can have brought it while we waited for the lock.
        if cache.has(kernel) {
            fetched.insert(kernel.name.clone(), Ok(Here::Already));
            continue;
        }
        let done = one(kernel, cache, &changes, &mut served, progress).and_then(|tree| {
            let target = cache.folder(kernel);
            changes.install(&tree.path().join("tree"), &target, limit, &keep, progress)?;
            cache.mark_used(kernel);
            Ok(Here::New)
        });
        let left = match &done {
            Ok(_) => kernel.packages(),
            Err(_) => &[],
        };
        for package in left {
            let _ = fs::remove_file(changes.partial(&package.sha256));
        }
        fetched.insert(kernel.name.clone(), done);
    }
    Ok(fetched)
}

/// The kernels that Debian's archive serves with the architecture and flavour of `release`
/// (`6.12.85+deb12-cloud-amd64`), ascending by version.
///
/// # Errors
/// The release names no flavour of an architecture of the lab, or the archive cannot be asked.
pub fn served(
    release: &str,
    cache: &Cache,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Vec<Kernel>, Error> {
    let flavour = flavour_of(release).unwrap_or_default();
    let arch = Arch::ALL.into_iter().find(|arch| {
        flavour.strip_suffix(arch.debian()).is_some_and(|rest| rest.is_empty() || rest.ends_with('-'))
    });
    let arch = arch.ok_or_else(|| Error::NotServed {
        name: release.to_owned(),
        why: "it is no release of a kernel of Debian's for an architecture of the lab".to_owned(),
        hint: "a release is like 6.12.85+deb12-cloud-amd64".to_owned(),
    })?;
    let _changes = cache.change(progress)?;
    let apt = Apt::set_up(cache)?;
    if !apt.has_indexes() {
        progress(Progress::Line("reading the package indexes"));
        apt.update()?;
    }
    Ok(apt.index()?.kernels(arch, flavour))
}

/// The archive's index, read when it is first needed, and once more when something is missing from it.
struct Served<'a> {
    apt: &'a Apt,
    index: Option<Index>,
    fresh: bool,
}

impl Served<'_> {
    fn entry(
        &mut self,
        package: &Package,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Option<Entry>, Error> {
        if self.index.is_none() {
            if !self.apt.has_indexes() {
                self.update("reading the package indexes", progress)?;
            }
            self.index = Some(self.apt.index()?);
        }
        let found = |index: &Option<Index>| index.as_ref().and_then(|i| i.find(&package.sha256)).cloned();
        if let Some(entry) = found(&self.index) {
            return Ok(Some(entry));
        }
        if !self.fresh {
            // Perhaps the archive moved on since the indexes were read.
            self.update("reading the package indexes again", progress)?;
            self.index = Some(self.apt.index()?);
        }
        Ok(found(&self.index))
    }

    fn update(&mut self, words: &str, progress: &mut dyn FnMut(Progress<'_>)) -> Result<(), Error> {
        progress(Progress::Line(words));
        self.fresh = true;
        self.apt.update()
    }
}

/// Downloads and unpacks a kernel; the result is the folder `tree` in the folder that is returned.
fn one(
    kernel: &Kernel,
    cache: &Cache,
    changes: &Changes<'_>,
    served: &mut Served<'_>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<tempfile::TempDir, Error> {
    let Origin::Debian { version, suite, .. } = &kernel.origin else {
        return Err(Error::NotServed {
            name: kernel.name.clone(),
            why: "a user brought it".to_owned(),
            hint: "evenkeel lab add, or evenkeel lab import".to_owned(),
        });
    };
    // Whether all of it can be had comes first: half a kernel is of no use.
    let mut needed = Vec::new();
    for package in kernel.packages() {
        let file = changes.partial(&package.sha256);
        if verify(&file, package).is_ok() {
            needed.push((package, file, None));
            continue;
        }
        let entry = served.entry(package, progress)?.ok_or_else(|| Error::NotServed {
            name: kernel.name.clone(),
            why: format!("{} {version} is in no index of the archive any more", package.name),
            hint: "`evenkeel lab import` takes the package files, if you have them".to_owned(),
        })?;
        needed.push((package, file, Some(entry)));
    }
    let total: u64 = needed.iter().filter_map(|(.., entry)| entry.as_ref()).map(|e| e.size).sum();
    let size = show_bytes(total);
    progress(Progress::Line(&format!("{}: {version} from {suite}, {size}", kernel.name)));
    for (package, file, entry) in &needed {
        let Some(entry) = entry else { continue };
        get(served.apt, entry, package, file, progress)?;
    }
    let files: Vec<&Path> = needed.iter().map(|(_, file, _)| file.as_path()).collect();
    let work = unpack(kernel, &files, changes)?;
    describe(kernel, cache, &work.path().join("tree"))?;
    Ok(work)
}

fn get(
    apt: &Apt,
    entry: &Entry,
    package: &Package,
    file: &Path,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(), Error> {
    let begun = fs::metadata(file).map_or(0, |meta| meta.len());
    if begun > 0 {
        let size = show_bytes(begun);
        progress(Progress::Line(&format!(
            "{}: {size} are here; the server is asked for the rest",
            package.name
        )));
    }
    let mut bytes = |done| progress(Progress::Bytes { what: &package.name, done, total: entry.size });
    let mut done = download::download(apt, entry, file, &mut bytes).and_then(|()| verify(file, package));
    if begun > 0 && done.is_err() {
        // A beginning that was no beginning of it.
        let _ = fs::remove_file(file);
        done = download::download(apt, entry, file, &mut bytes).and_then(|()| verify(file, package));
    }
    if matches!(done, Err(Error::Digest { .. })) {
        let _ = fs::remove_file(file);
    }
    done?;
    bytes(entry.size);
    Ok(())
}

/// Unpacks a kernel's packages into `tree` in a new folder.
pub(crate) fn unpack(
    kernel: &Kernel,
    files: &[&Path],
    changes: &Changes<'_>,
) -> Result<tempfile::TempDir, Error> {
    let work = changes.work()?;
    let tree = work.path().join("tree");
    for file in files {
        unpack_one(file, &tree)?;
    }
    if Installed::at(&tree, &kernel.release).is_none() {
        return Err(Error::Kernel {
            what: kernel.name.clone(),
            why: format!("its packages hold no image for {}", kernel.release),
        });
    }
    Ok(work)
}

/// Unpacks a package into a folder, without its scripts and without installing anything.
pub(crate) fn unpack_one(file: &Path, tree: &Path) -> Result<(), Error> {
    // It must not outlive us: the next lab sweeps the folder that it writes to.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", "dpkg-deb", "-x"]).arg(file).arg(tree);
    if tool::find("dpkg-deb").is_none() {
        return Err(tool::missing(&Command::new("dpkg-deb"), "dpkg", &std::io::ErrorKind::NotFound.into()));
    }
    tool::output(&mut command, "util-linux").map(drop)
}

/// Writes beside a kernel that is not in the list what it is, so that it can be named later.
fn describe(kernel: &Kernel, cache: &Cache, tree: &Path) -> Result<(), Error> {
    let listed = crate::kernel::kernels().any(|listed| cache.folder(listed) == cache.folder(kernel));
    if listed { Ok(()) } else { crate::added::write(kernel, tree) }
}

/// Puts a kernel's packages, which a user has, into the cache.
pub(crate) fn import_listed(
    kernel: &Kernel,
    files: &[&Path],
    cache: &Cache,
    changes: &Changes<'_>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(), Error> {
    let work = unpack(kernel, files, changes)?;
    let tree = work.path().join("tree");
    fs::write(tree.join(IMPORTED), "").map_err(Error::io("write", tree.join(IMPORTED)))?;
    changes.install(&tree, &cache.folder(kernel), Cache::limit()?, &[stored_name(kernel)], progress)?;
    cache.mark_used(kernel);
    Ok(())
}

fn verify(deb: &Path, package: &Package) -> Result<(), Error> {
    let found = sha256(deb)?;
    if found == package.sha256 {
        return Ok(());
    }
    Err(Error::Digest { package: package.name.clone(), expected: package.sha256.clone(), found })
}

/// The SHA-256 of a file, in hexadecimal.
pub(crate) fn sha256(file: &Path) -> Result<String, Error> {
    let line = tool::output(Command::new("sha256sum").arg("--binary").arg("--").arg(file), "coreutils")?;
    // A backslash before the digest says that the file's name is escaped.
    let line = String::from_utf8_lossy(&line);
    Ok(line.trim_start_matches('\\').split(' ').next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_with_another_digest_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let deb = folder.path().join("x\\y.deb");
        fs::write(&deb, "abc").unwrap();
        let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let package = |sha256: &str| Package { name: "x".to_owned(), sha256: sha256.to_owned() };
        verify(&deb, &package(digest)).unwrap();
        let error = verify(&deb, &package(&"0".repeat(64))).unwrap_err();
        assert!(error.to_string().contains(digest), "{error}");
    }
}
