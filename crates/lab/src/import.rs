//! Kernels from package files that a user has.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::added::{Addition, add_under};
use crate::cache::Cache;
use crate::error::Error;
use crate::fetch::{self, Progress};
use crate::kernel::{Kernel, kernels};
use crate::tool;

/// What was imported.
#[derive(Debug)]
pub struct Imported {
    /// Kernels that can be used now.
    pub kernels: Vec<Kernel>,
    /// Kernels of the list of which not all packages are here, with the names of those that are missing. What was
    /// given of them is kept for the next import or fetch.
    pub incomplete: Vec<(Kernel, Vec<String>)>,
}

/// Takes package files: those that the compiled-in list names (by their digest) complete that kernel; all others
/// together must hold one kernel, which is added as `name`, or as its release.
pub fn import(
    files: &[&Path],
    name: Option<&str>,
    replace: bool,
    cache: &Cache,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Imported, Error> {
    for file in files {
        let meta = fs::metadata(file).map_err(Error::io("read", *file))?;
        if !meta.is_file() {
            return Err(refused(file, "is not a regular file", "name package files"));
        }
    }
    let changes = cache.change(progress)?;
    let mut imported = Imported { kernels: Vec::new(), incomplete: Vec::new() };
    let mut listed: Vec<&Kernel> = Vec::new();
    let mut others: Vec<&Path> = Vec::new();
    for file in files {
        let sha256 = fetch::sha256(file)?;
        let of: Vec<&Kernel> =
            kernels().filter(|k| k.packages().iter().any(|p| p.sha256 == sha256)).collect();
        if of.is_empty() {
            others.push(file);
            continue;
        }
        let kept = changes.partial(&sha256);
        fs::copy(file, &kept).map_err(Error::io("write", kept))?;
        for kernel in of {
            if !listed.contains(&kernel) {
                listed.push(kernel);
            }
        }
    }
    for kernel in listed {
        if cache.has(kernel) {
            progress(Progress::Line(&format!("{} is here already", kernel.name)));
            imported.kernels.push(kernel.clone());
            continue;
        }
        let parts: Vec<(&str, PathBuf)> =
            kernel.packages().iter().map(|p| (p.name.as_str(), changes.partial(&p.sha256))).collect();
        let missing: Vec<String> = kernel
            .packages()
            .iter()
            .zip(&parts)
            .filter(|(package, (_, file))| fetch::sha256(file).ok().as_ref() != Some(&package.sha256))
            .map(|(package, _)| package.name.clone())
            .collect();
        if missing.is_empty() {
            let files: Vec<&Path> = parts.iter().map(|(_, file)| file.as_path()).collect();
            fetch::import_listed(kernel, &files, cache, &changes, progress)?;
            imported.kernels.push(kernel.clone());
        } else {
            imported.incomplete.push((kernel.clone(), missing));
        }
    }
    // A package can be part of more than one kernel, so they go when all are unpacked.
    for package in imported.kernels.iter().flat_map(|kernel| kernel.packages()) {
        let wanted = |(kernel, _): &(Kernel, Vec<String>)| kernel.packages().contains(package);
        if !imported.incomplete.iter().any(wanted) {
            let _ = fs::remove_file(changes.partial(&package.sha256));
        }
    }
    if others.is_empty() {
        return Ok(imported);
    }
    let work = changes.work()?;
    let tree = work.path().join("tree");
    for file in &others {
        let package = tool::output(Command::new("dpkg-deb").arg("-f").arg(file).arg("Package"), "dpkg")?;
        let package = String::from_utf8_lossy(&package).trim().to_owned();
        if package.ends_with("-dbg") || package.ends_with("-dbgsym") {
            progress(Progress::Line(&format!("{package} is left out: it holds debugging symbols")));
            continue;
        }
        fetch::unpack_one(file, &tree)?;
    }
    let names: Vec<_> = others.iter().filter_map(|f| Some(f.file_name()?.to_string_lossy())).collect();
    let (release, image) = image_in(&tree, &names.join(", "))?;
    let addition = Addition {
        name: name.unwrap_or(&release),
        image: &image,
        modules: has_modules(&tree).then_some(&tree),
        arch: None,
        release: Some(&release),
        from: Some(&names.join(", ")),
        replace,
    };
    imported.kernels.push(add_under(&addition, cache, &changes, progress)?);
    Ok(imported)
}

fn has_modules(tree: &Path) -> bool {
    let folders = ["lib/modules", "usr/lib/modules"].map(|part| tree.join(part));
    crate::modules::Modules::scan(&folders.into_iter().filter(|f| f.is_dir()).collect::<Vec<_>>())
        .is_ok_and(|modules| !modules.files().is_empty())
}

/// The one image in an unpacked tree, and its release.
fn image_in(tree: &Path, what: &str) -> Result<(String, PathBuf), Error> {
    let mut found: Vec<(String, PathBuf)> = Vec::new();
    let list = |folder: PathBuf| fs::read_dir(folder).into_iter().flatten().flatten();
    for entry in list(tree.join("boot")) {
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(release) = name.strip_prefix("vmlinuz-") {
            found.push((release.to_owned(), entry.path()));
        }
    }
    for part in ["lib/modules", "usr/lib/modules"] {
        for entry in list(tree.join(part)) {
            found.push((entry.file_name().to_string_lossy().into_owned(), entry.path().join("vmlinuz")));
        }
    }
    // Not through links: a package must not name files of this machine.
    found.retain(|(_, path)| fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file()));
    let releases: BTreeSet<&String> = found.iter().map(|(release, _)| release).collect();
    let refused = |why: String, hint: &str| Error::Refused { what: what.to_owned(), why, hint: hint.into() };
    match releases.len() {
        0 => Err(refused(
            "no kernel image in it (boot/vmlinuz-RELEASE)".to_owned(),
            "linux-image, or from 6.19 on linux-binary and linux-modules; name all packages of the kernel",
        )),
        1 => Ok(found.swap_remove(0)),
        _ => {
            let names: Vec<&str> = releases.into_iter().map(String::as_str).collect();
            Err(refused(format!("images of {}", names.join(", ")), "import one kernel at a time"))
        }
    }
}

fn refused(what: &Path, why: &str, hint: &str) -> Error {
    Error::Refused { what: what.display().to_string(), why: why.to_owned(), hint: hint.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::added::{Kernels, tests::built};
    use crate::image::tests::bzimage;

    /// A package with these files, made by dpkg-deb.
    fn deb(folder: &Path, package: &str, fill: impl FnOnce(&Path)) -> PathBuf {
        let root = folder.join(package);
        fs::create_dir_all(root.join("DEBIAN")).unwrap();
        let control = format!(
            "Package: {package}\nVersion: 1\nArchitecture: amd64\nMaintainer: me <me@example>\nDescription: x\n"
        );
        fs::write(root.join("DEBIAN/control"), control).unwrap();
        fill(&root);
        let file = folder.join(format!("{package}.deb"));
        let mut command = Command::new("dpkg-deb");
        tool::output(command.args(["-Znone", "--root-owner-group", "-b"]).arg(&root).arg(&file), "dpkg")
            .unwrap();
        file
    }

    fn image(root: &Path, release: &str) {
        fs::create_dir_all(root.join("boot")).unwrap();
        fs::write(root.join(format!("boot/vmlinuz-{release}")), bzimage(release)).unwrap();
    }

    fn quiet(_: Progress<'_>) {}

    #[test]
    fn packages_that_a_user_built_are_a_kernel() {
        let (folder, built) = (tempfile::tempdir().unwrap(), built("6.12.1-mine"));
        let cache = Cache::at(folder.path().join("cache"));
        let binary = deb(folder.path(), "linux-image-6.12.1-mine", |root| image(root, "6.12.1-mine"));
        let modules = deb(folder.path(), "linux-modules-6.12.1-mine", |root| {
            fs::rename(built.path().join("out/lib"), root.join("lib")).unwrap();
        });
        let symbols = deb(folder.path(), "linux-image-6.12.1-mine-dbg", |root| image(root, "6.12.9"));
        let files: [&Path; 3] = [&binary, &modules, &symbols];
        let imported = import(&files, None, false, &cache, &mut quiet).unwrap();
        assert_eq!(imported.kernels[0].name, "6.12.1-mine");
        let host = Kernels::load(&cache).host("6.12.1-mine").unwrap();
        assert_eq!(cache.installed(&host.kernel).unwrap().modules.len(), 1);
        let named = import(&files, Some("mine"), false, &cache, &mut quiet).unwrap();
        assert_eq!(named.kernels[0].name, "mine");
        assert!(import(&files, Some("debian-6.12"), false, &cache, &mut quiet).is_err());
    }

    #[test]
    fn what_holds_no_kernel_or_two_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().join("cache"));
        let empty = deb(folder.path(), "empty", |_| {});
        let link = deb(folder.path(), "link", |root| {
            fs::create_dir(root.join("boot")).unwrap();
            std::os::unix::fs::symlink("/etc/passwd", root.join("boot/vmlinuz-6.1.0")).unwrap();
        });
        let two = deb(folder.path(), "two", |root| {
            image(root, "6.1.0");
            image(root, "6.2.0");
        });
        let garbage = folder.path().join("garbage.deb");
        fs::write(&garbage, "these are words").unwrap();
        for (file, word) in [
            (&empty, "no kernel image"),
            (&link, "no kernel image"),
            (&two, "6.1.0, 6.2.0"),
            (&garbage, "dpkg-deb"),
            (&folder.path().to_owned(), "not a regular file"),
            (&folder.path().join("none.deb"), "No such file"),
        ] {
            let error = import(&[file], Some("x"), false, &cache, &mut quiet).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        assert!(cache.stored().unwrap().is_empty());
        assert_eq!(fs::read_dir(cache.root().join("work")).unwrap().count(), 0);
    }

    /// A package that writes outside of the folder that it is unpacked to.
    #[test]
    fn a_package_that_climbs_out_is_kept_in() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().join("cache"));
        let stage = folder.path().join("stage");
        fs::create_dir_all(stage.join("inner")).unwrap();
        fs::write(stage.join("climbed"), "x").unwrap();
        fs::write(stage.join("inner/control"), "Package: evil\nVersion: 1\nArchitecture: amd64\n").unwrap();
        fs::write(stage.join("inner/debian-binary"), "2.0\n").unwrap();
        let script = "tar -cf control.tar ./control && tar -P -cf data.tar ../climbed && \
                      ar rc ../evil.deb debian-binary control.tar data.tar";
        let mut command = Command::new("sh");
        tool::output(command.args(["-c", script]).current_dir(stage.join("inner")), "binutils").unwrap();
        assert!(import(&[&stage.join("evil.deb")], Some("x"), false, &cache, &mut quiet).is_err());
        assert!(!cache.root().join("climbed").exists() && !cache.root().join("work/climbed").exists());
        assert!(cache.stored().unwrap().is_empty());
    }
}
