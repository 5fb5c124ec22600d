//! Kernels that are not in the compiled-in list: those that a user added, and those fetched by their release.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cache::Cache;
use crate::error::Error;
use crate::fetch::Progress;
use crate::host::{Host, Lane, host, hosts, usual_lane};
use crate::image::{self, is_name};
use crate::kernel::{Arch, Kernel, Origin, Package, kernels};
use crate::modules::Modules;

/// The file that says what a kernel is.
const FILE: &str = "kernel.toml";

/// A kernel as [`FILE`] writes it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Described {
    name: String,
    arch: Arch,
    release: String,
    /// What a user added.
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<String>,
    /// The version of Debian's packages.
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    suite: Option<String>,
    #[serde(default, rename = "package", skip_serializing_if = "Vec::is_empty")]
    packages: Vec<Package>,
}

/// Writes what `kernel` is into `folder`.
pub(crate) fn write(kernel: &Kernel, folder: &Path) -> Result<(), Error> {
    let Kernel { name, arch, release, origin } = kernel.clone();
    let described = match origin {
        Origin::Added { from } => {
            Described { name, arch, release, from: Some(from), version: None, suite: None, packages: vec![] }
        }
        Origin::Debian { version, suite, packages } => {
            let (version, suite) = (Some(version), Some(suite));
            Described { name, arch, release, from: None, version, suite, packages }
        }
    };
    let path = folder.join(FILE);
    let text = toml::to_string(&described)
        .map_err(|e| Error::Kernel { what: kernel.name.clone(), why: format!("cannot be described: {e}") })?;
    fs::write(&path, text).map_err(Error::io("write", path))
}

/// What [`FILE`] in `folder` says. The folder's name and the file must agree, or it was not us who wrote it.
fn read(folder: &Path) -> Result<Kernel, String> {
    let text = fs::read_to_string(folder.join(FILE)).map_err(|e| e.to_string())?;
    let Described { name, arch, release, from, version, suite, packages } =
        toml::from_str(&text).map_err(|e| e.message().to_owned())?;
    if folder.file_name() != Some(name.as_ref()) || !is_name(&name) || !is_name(&release) {
        return Err(format!("names another kernel, {name} {release}"));
    }
    let origin = match (from, version, suite) {
        (Some(from), None, None) => Origin::Added { from },
        (None, Some(version), Some(suite)) => Origin::Debian { version, suite, packages },
        _ => return Err("does not say where the kernel is from".to_owned()),
    };
    Ok(Kernel { name, arch, release, origin })
}

/// All kernels that can be named on this machine: the list, then those that a user added, then those fetched besides.
#[derive(Clone, Debug)]
pub struct Kernels {
    kernels: Vec<Kernel>,
    /// What in the cache is not usable, in words.
    pub problems: Vec<String>,
}

impl Kernels {
    /// Looks into the cache.
    pub fn load(cache: &Cache) -> Kernels {
        let mut all = Kernels { kernels: kernels().cloned().collect(), problems: Vec::new() };
        for part in ["added", "kernels"] {
            let Ok(entries) = fs::read_dir(cache.root().join(part)) else { continue };
            let mut folders: Vec<PathBuf> =
                entries.flatten().map(|e| e.path()).filter(|folder| folder.join(FILE).exists()).collect();
            folders.sort();
            for folder in folders {
                match read(&folder) {
                    Ok(kernel) if all.get(&kernel.name).is_none() => all.kernels.push(kernel),
                    Ok(kernel) => {
                        let path = folder.display();
                        all.problems.push(format!("{path}: another kernel is called {}", kernel.name));
                    }
                    Err(why) => all.problems.push(format!("{}: {why}", folder.join(FILE).display())),
                }
            }
        }
        all
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Kernel> {
        self.kernels.iter()
    }

    /// The one with this name.
    pub fn get(&self, name: &str) -> Option<&Kernel> {
        self.iter().find(|kernel| kernel.name == name)
    }

    /// The host that `name` means: a kernel's name and a lane's suffix.
    pub fn host(&self, name: &str) -> Result<Host, Error> {
        host(name, self.iter())
    }

    /// The hosts of the list, then each kernel that a user added, in the usual lane of its architecture.
    pub fn hosts(&self) -> Vec<Host> {
        let others = self.iter().filter(|kernel| matches!(kernel.origin, Origin::Added { .. }));
        let others = others.filter_map(|kernel| Host::new(kernel, usual_lane(kernel.arch)).ok());
        hosts().into_iter().chain(others).collect()
    }
}

/// A kernel that a user brings.
#[derive(Clone, Copy, Debug)]
pub struct Addition<'a> {
    /// What it shall be called.
    pub name: &'a str,
    /// A bzImage, an arm64 Image, or that in an EFI zboot wrapper.
    pub image: &'a Path,
    /// A folder with its modules: where `make modules_install` put them, `lib/modules/RELEASE`, or a build tree.
    pub modules: Option<&'a Path>,
    /// What it is built for; the image tells, this only checks.
    pub arch: Option<Arch>,
    /// `uname -r` under it, where neither the image nor the modules tell.
    pub release: Option<&'a str>,
    /// What is said of where it comes from; the image's path if nothing.
    pub from: Option<&'a str>,
    /// Whether it takes the place of a kernel that was added under this name.
    pub replace: bool,
}

/// Copies a kernel into the cache, where it is a kernel like the others.
pub fn add(
    addition: &Addition<'_>,
    cache: &Cache,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Kernel, Error> {
    let changes = cache.change(progress)?;
    add_under(addition, cache, &changes, progress)
}

pub(crate) fn add_under(
    addition: &Addition<'_>,
    cache: &Cache,
    changes: &crate::store::Changes<'_>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Kernel, Error> {
    let name = addition.name;
    check_name(name, addition.replace, cache)?;
    let image = image::read(addition.image)?;
    let refused = |what: &Path, why: String, hint: &str| Error::Refused {
        what: what.display().to_string(),
        why,
        hint: hint.to_owned(),
    };
    if addition.arch.is_some_and(|arch| arch != image.arch) {
        let why = format!("is built for {}", image.arch.name());
        return Err(refused(addition.image, why, "leave --arch away: the image tells"));
    }
    if let Some(release) = addition.release
        && !is_name(release)
    {
        let hint = "what `make kernelrelease` prints";
        return Err(refused(Path::new(release), "is no release of a kernel".to_owned(), hint));
    }
    let mut release = image.release.clone();
    if let (Some(told), Some(said)) = (&release, addition.release)
        && told != said
    {
        let why = format!("says that it is {told}, and --release that it is {said}");
        return Err(refused(addition.image, why, "leave --release away"));
    }
    release = release.or(addition.release.map(str::to_owned));
    let modules = match addition.modules {
        Some(folder) => Some(find_modules(folder, release.as_deref())?),
        None => None,
    };
    if let Some((folder, modules)) = &modules {
        let theirs = modules.release()?.filter(|release| is_name(release));
        match (&release, theirs) {
            (Some(release), Some(theirs)) if *release != theirs => {
                let why = format!("its modules are for {theirs}, and the image is {release}");
                return Err(refused(folder, why, "build and install both again from one tree"));
            }
            (None, theirs) => release = theirs,
            _ => {}
        }
    }
    let release = release.ok_or_else(|| {
        let why = "neither the image nor its modules tell its release".to_owned();
        refused(addition.image, why, "--release RELEASE: what `make kernelrelease` prints")
    })?;

    let from = addition.from.map_or_else(|| addition.image.display().to_string(), str::to_owned);
    let kernel = Kernel { name: name.to_owned(), arch: image.arch, release, origin: Origin::Added { from } };
    let work = changes.work()?;
    let folder = work.path().join("new");
    let tree = folder.join("tree");
    put(&tree.join("boot").join(format!("vmlinuz-{}", kernel.release)), |path| {
        fs::write(path, &image.content)
    })?;
    if let Some((from, modules)) = &modules {
        let to = tree.join("lib/modules").join(&kernel.release);
        for file in modules.files().values() {
            let place = file.strip_prefix(from).unwrap_or(file);
            put(&to.join(place), |path| fs::copy(file, path).map(drop))?;
        }
    }
    let kvm = modules.as_ref().is_some_and(|(_, modules)| modules.has("kvm_amd"));
    if kernel.arch == Arch::X86_64 && !kvm {
        progress(Progress::Line("no module kvm_amd: KVM for AMD must be built in, or there is no /dev/kvm"));
    }
    write(&kernel, &folder)?;
    if let Some(old) = cache.stored()?.iter().find(|stored| stored.added && stored.name == name) {
        changes.remove(old)?;
    }
    let target = cache.root().join("added").join(name);
    changes.install(&folder, &target, Cache::limit()?, &[name], progress)?;
    Ok(kernel)
}

/// Writes a file after making its folder.
fn put(path: &Path, write: impl FnOnce(&Path) -> std::io::Result<()>) -> Result<(), Error> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    }
    write(path).map_err(Error::io("write", path))
}

/// A name is a folder's, and a host's with a lane's suffix: it must mean one thing only.
fn check_name(name: &str, replace: bool, cache: &Cache) -> Result<(), Error> {
    let refused = |why: &str, hint: &str| {
        Err(Error::Refused { what: format!("`{name}`"), why: why.to_owned(), hint: hint.to_owned() })
    };
    if !is_name(name) || name == "here" {
        return refused("cannot be a kernel's name", "letters, digits and any of . _ + ~ - after the first");
    }
    let suffixes = Lane::ALL.map(Lane::suffix);
    if suffixes.into_iter().any(|suffix| !suffix.is_empty() && name.ends_with(suffix)) {
        return refused("ends like the name of a host in another lane", "another ending");
    }
    match Kernels::load(cache).get(name) {
        Some(Kernel { origin: Origin::Added { .. }, .. }) if replace => Ok(()),
        Some(Kernel { origin: Origin::Added { .. }, .. }) => {
            refused("is the name of a kernel that was added", "--replace, or `evenkeel lab remove`")
        }
        Some(_) => refused("is the name of one of Debian's kernels", "another name"),
        None => Ok(()),
    }
}

/// The folder with the modules of `release`, and the modules.
fn find_modules(folder: &Path, release: Option<&str>) -> Result<(PathBuf, Modules), Error> {
    let refused = |why: String, hint: &str| Error::Refused {
        what: folder.display().to_string(),
        why,
        hint: hint.to_owned(),
    };
    if !folder.is_dir() {
        return Err(refused(
            "is no folder".to_owned(),
            "where `make modules_install` put lib/modules/RELEASE",
        ));
    }
    let mut installed: Vec<PathBuf> = Vec::new();
    for part in ["lib/modules", "usr/lib/modules"] {
        let Ok(entries) = fs::read_dir(folder.join(part)) else { continue };
        installed.extend(entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()));
    }
    // /lib can be a link to /usr/lib.
    installed.sort_by(|a, b| a.file_name().cmp(&b.file_name()));
    installed.dedup_by(|a, b| a.file_name() == b.file_name());
    let named = |path: &&PathBuf| release.is_some_and(|r| path.file_name() == Some(r.as_ref()));
    let chosen = match installed.as_slice() {
        [] => folder.to_owned(),
        [one] => one.clone(),
        several => several.iter().find(named).cloned().ok_or_else(|| {
            let names: Vec<_> =
                several.iter().filter_map(|p| Some(p.file_name()?.to_string_lossy())).collect();
            refused(format!("holds modules of {}", names.join(", ")), "name the folder of one of them")
        })?,
    };
    let modules = Modules::scan(std::slice::from_ref(&chosen))?;
    if modules.files().is_empty() {
        return Err(refused(
            "holds no *.ko".to_owned(),
            "where `make modules_install` put lib/modules/RELEASE",
        ));
    }
    Ok((chosen, modules))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::image::tests::bzimage;
    use crate::modules::tests::module;
    use tempfile::TempDir;

    /// A kernel that a user built: an image, and modules as `make modules_install` puts them.
    pub(crate) fn built(release: &str) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("bzImage"), bzimage(release)).unwrap();
        let modules = folder.path().join("out/lib/modules/6.12.1-mine/kernel/arch/x86/kvm");
        fs::create_dir_all(&modules).unwrap();
        for (file, depends) in [("kvm.ko", ""), ("kvm-amd.ko", "kvm")] {
            fs::write(modules.join(file), module(depends)).unwrap();
        }
        fs::write(modules.join("../notes.txt"), "not a module").unwrap();
        folder
    }

    fn addition<'a>(name: &'a str, image: &'a Path, modules: Option<&'a Path>) -> Addition<'a> {
        Addition { name, image, modules, arch: None, release: None, from: None, replace: false }
    }

    fn quiet(_: Progress<'_>) {}

    #[test]
    fn an_added_kernel_is_a_host_like_the_others_until_it_is_removed() {
        let (built, folder) = (built("6.12.1-mine"), tempfile::tempdir().unwrap());
        let cache = Cache::at(folder.path());
        let (image, modules) = (built.path().join("bzImage"), built.path().join("out"));
        let mine = addition("mine", &image, Some(&modules));
        let kernel = add(&mine, &cache, &mut quiet).unwrap();
        assert_eq!((kernel.arch, kernel.release.as_str()), (Arch::X86_64, "6.12.1-mine"));
        let all = Kernels::load(&cache);
        assert_eq!(all.problems, [""; 0]);
        let host = all.host("mine").unwrap();
        assert_eq!(host.kernel, kernel);
        assert!(all.hosts().contains(&host));
        let installed = cache.installed(&kernel).unwrap();
        assert!(fs::read(installed.image).unwrap() == fs::read(&image).unwrap());
        let modules = Modules::scan(&installed.modules).unwrap();
        assert_eq!(modules.files().len(), 2);
        assert_eq!(modules.load_order(&["kvm_amd"]).unwrap().len(), 2);

        let error = add(&mine, &cache, &mut quiet).unwrap_err().to_string();
        assert!(error.contains("--replace"), "{error}");
        let again = Addition { modules: None, replace: true, ..mine };
        add(&again, &cache, &mut quiet).unwrap();
        assert!(cache.installed(&kernel).unwrap().modules.is_empty(), "the old one is gone");
        assert!(cache.remove("mine").unwrap() > 0);
        assert!(Kernels::load(&cache).host("mine").is_err());
        assert_eq!(fs::read_dir(folder.path().join("work")).unwrap().count(), 0);
    }

    #[test]
    fn a_name_means_one_thing() {
        let (built, folder) = (built("6.12.1-mine"), tempfile::tempdir().unwrap());
        let (cache, image) = (Cache::at(folder.path()), built.path().join("bzImage"));
        for (name, word) in [
            ("debian-6.12", "Debian"),
            ("here", "cannot"),
            ("../../x", "cannot"),
            ("a/b", "cannot"),
            ("", "cannot"),
            (".", "cannot"),
            ("mine-nvhe", "another lane"),
        ] {
            let error = add(&addition(name, &image, None), &cache, &mut quiet).unwrap_err().to_string();
            assert!(error.contains(word), "{name}: {error}");
        }
        assert!(cache.stored().unwrap().is_empty());
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let (built, folder) = (built("6.12.2-other"), tempfile::tempdir().unwrap());
        let (cache, image, modules) =
            (Cache::at(folder.path()), built.path().join("bzImage"), built.path().join("out"));
        let error = add(&addition("x", &image, Some(&modules)), &cache, &mut quiet).unwrap_err().to_string();
        assert!(error.contains("6.12.1-mine") && error.contains("6.12.2-other"), "{error}");
        let plain = addition("x", &image, None);
        for (bad, word) in [
            (Addition { arch: Some(Arch::Aarch64), ..plain }, "built for x86_64"),
            (Addition { release: Some("6.1"), ..plain }, "6.12.2-other"),
            (Addition { release: Some("../x"), ..plain }, "no release"),
            (Addition { modules: Some(&image), ..plain }, "no folder"),
            (Addition { modules: Some(folder.path()), ..plain }, "no *.ko"),
            (Addition { image: folder.path(), ..plain }, "no kernel image"),
        ] {
            let error = add(&bad, &cache, &mut quiet).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        // An image that does not tell, nor anybody else.
        fs::write(&image, bzimage("../../etc")).unwrap();
        let error = add(&plain, &cache, &mut quiet).unwrap_err().to_string();
        assert!(error.contains("--release"), "{error}");
        assert_eq!(
            add(&addition("x", &image, Some(&modules)), &cache, &mut quiet).unwrap().release,
            "6.12.1-mine"
        );
    }

    #[test]
    fn a_damaged_description_is_said_and_skipped() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path());
        let text = |name: &str, release: &str| {
            format!("name = \"{name}\"\narch = \"x86_64\"\nrelease = \"{release}\"\nfrom = \"x\"\n")
        };
        for (part, content) in [
            ("added/a", "name = ".to_owned()),
            ("added/b", text("c", "6.1.0")),
            ("added/d", text("d", "../../x")),
            ("added/debian-6.12", text("debian-6.12", "6.1.0")),
            ("added/e", text("e", "6.1.0").replace("from", "suite")),
        ] {
            fs::create_dir_all(folder.path().join(part)).unwrap();
            fs::write(folder.path().join(part).join(FILE), content).unwrap();
        }
        let all = Kernels::load(&cache);
        assert_eq!(all.iter().count(), kernels().count());
        assert_eq!(all.problems.len(), 5, "{:?}", all.problems);
    }
}
