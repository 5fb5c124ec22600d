//! Kernel modules: which files a list of names means, in the order in which they load.
//!
//! Debian's packages hold no `modules.dep` (it is made at installation), so dependencies are read from the modules
//! themselves: the `depends=` line of their `.modinfo` section.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::Error;
use crate::tool;

/// A module, ready for finit_module(2).
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Module {
    /// Its name, with `_` where file names may have `-`.
    pub name: String,
    /// The uncompressed ELF file.
    pub content: Vec<u8>,
}

/// What the kernel looks for at the end of a signed module (include/linux/module_signature.h).
const SIGNED: &[u8] = b"~Module signature appended~\n";

impl Module {
    /// Hides the module's type information, which is there for BPF programs, and with it the signature, which would not
    /// fit any more: the kernel marks itself as tainted by an unsigned module and loads the same code. For an emulator
    /// that interprets every instruction: see the lane vmx, where reading the types is most of the time that KVM's
    /// modules take.
    pub fn hide_types(&mut self) {
        let names = names_at(&self.content).unwrap_or(0..0);
        let Some(names) = self.content.get_mut(names) else { return };
        for at in 0..names.len().saturating_sub(5) {
            if names[at] == 0 && names[at + 1..].starts_with(b".BTF") {
                names[at + 1..at + 5].copy_from_slice(b".btf");
            }
        }
        if self.content.ends_with(SIGNED) {
            self.content.truncate(self.content.len() - SIGNED.len());
        }
    }
}

/// Every module file below some folders, by name.
pub(crate) struct Modules {
    files: BTreeMap<String, PathBuf>,
}

impl Modules {
    /// Looks through `folders`, which may be none.
    pub fn scan(folders: &[PathBuf]) -> Result<Modules, Error> {
        let mut files = BTreeMap::new();
        let mut pending: Vec<PathBuf> = folders.to_vec();
        while let Some(folder) = pending.pop() {
            for entry in fs::read_dir(&folder).map_err(Error::io("read", &folder))? {
                let entry = entry.map_err(Error::io("read", &folder))?;
                let kind = entry.file_type().map_err(Error::io("read", entry.path()))?;
                if kind.is_dir() {
                    pending.push(entry.path());
                } else if let Some(name) = module_name(&entry.path()) {
                    files.insert(name, entry.path());
                }
            }
        }
        Ok(Modules { files })
    }

    /// Their files, by name.
    pub fn files(&self) -> &BTreeMap<String, PathBuf> {
        &self.files
    }

    /// The release that they were built for: what `vermagic=` says of KVM's module, or of any if there is none.
    pub fn release(&self) -> Result<Option<String>, Error> {
        let Some(file) = self.files.get("kvm").or_else(|| self.files.values().next()) else {
            return Ok(None);
        };
        let content = read(file)?;
        let Some(info) = section(&content, b".modinfo") else {
            let why = "is no 64-bit ELF file with a .modinfo section".to_owned();
            return Err(Error::Kernel { what: file.display().to_string(), why });
        };
        let line = info.split(|byte| *byte == 0).find_map(|line| line.strip_prefix(b"vermagic="));
        let word = line.and_then(|line| line.split(|byte| *byte == b' ').next());
        Ok(word.map(|word| String::from_utf8_lossy(word).into_owned()))
    }

    /// Whether `name` is a module here. One that is not may be built into the image.
    pub fn has(&self, name: &str) -> bool {
        self.files.contains_key(name)
    }

    /// `names` and all that they depend on, each once and after what it depends on.
    pub fn load_order(&self, names: &[&str]) -> Result<Vec<Module>, Error> {
        let mut order = Vec::new();
        for name in names {
            self.add(name, &mut Vec::new(), &mut order)?;
        }
        Ok(order)
    }

    fn add(&self, name: &str, above: &mut Vec<String>, order: &mut Vec<Module>) -> Result<(), Error> {
        if order.iter().any(|module| module.name == name) {
            return Ok(());
        }
        let wrong = |why: String| Error::Kernel { what: format!("module {name}"), why };
        if above.iter().any(|other| other == name) {
            return Err(wrong(format!("depends on itself through {}", above.join(", "))));
        }
        let file = self.files.get(name).ok_or_else(|| match above.last() {
            Some(user) => wrong(format!("is not among this kernel's modules, and {user} needs it")),
            None => wrong("is not among this kernel's modules".to_owned()),
        })?;
        let content = read(file)?;
        let depends = depends(&content).map_err(|why| wrong(why.to_owned()))?;
        above.push(name.to_owned());
        for other in depends {
            self.add(&other, above, order)?;
        }
        above.pop();
        order.push(Module { name: name.to_owned(), content });
        Ok(())
    }
}

fn module_name(file: &Path) -> Option<String> {
    let name = file.file_name()?.to_str()?;
    let name =
        [".xz", ".zst", ".gz"].into_iter().find_map(|packed| name.strip_suffix(packed)).unwrap_or(name);
    Some(name.strip_suffix(".ko")?.replace('-', "_"))
}

fn read(file: &Path) -> Result<Vec<u8>, Error> {
    let (program, package) = match file.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => ("xz", "xz-utils"),
        Some("zst") => ("zstd", "zstd"),
        Some("gz") => ("gzip", "gzip"),
        _ => return fs::read(file).map_err(Error::io("read", file)),
    };
    tool::output(Command::new(program).arg("-dc").arg("--").arg(file), package)
}

/// The names in the `depends=` line of a module's `.modinfo`.
fn depends(elf: &[u8]) -> Result<Vec<String>, &'static str> {
    let info = section(elf, b".modinfo").ok_or("is no 64-bit ELF file with a .modinfo section")?;
    let line = info.split(|byte| *byte == 0).find_map(|line| line.strip_prefix(b"depends="));
    let line = line.ok_or("has no depends= line")?;
    let names = std::str::from_utf8(line).map_err(|_| "has a depends= line that is not text")?;
    Ok(names.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect())
}

/// Where the names of an ELF file's sections are.
fn names_at(elf: &[u8]) -> Option<Range<usize>> {
    let (table, size, index) = (number(elf, 0x28, 8)?, number(elf, 0x3a, 2)?, number(elf, 0x3e, 2)?);
    let header = elf.get(usize::try_from(table.checked_add(size.checked_mul(index)?)?).ok()?..)?;
    let start = usize::try_from(number(header, 0x18, 8)?).ok()?;
    Some(start..start.checked_add(usize::try_from(number(header, 0x20, 8)?).ok()?)?)
}

/// The content of a section of a little-endian 64-bit ELF file. Offsets are from the ELF specification's
/// `Elf64_Ehdr` and `Elf64_Shdr`.
fn section<'a>(elf: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    if !elf.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let table = usize::try_from(number(elf, 0x28, 8)?).ok()?;
    let (size, count, names) = (number(elf, 0x3a, 2)? as usize, number(elf, 0x3c, 2)?, number(elf, 0x3e, 2)?);
    let header = |index: u64| elf.get(table.checked_add(usize::try_from(index).ok()?.checked_mul(size)?)?..);
    let content = |header: &[u8]| {
        let start = usize::try_from(number(header, 0x18, 8)?).ok()?;
        elf.get(start..start.checked_add(usize::try_from(number(header, 0x20, 8)?).ok()?)?)
    };
    let names = content(header(names)?)?;
    (0..count).find_map(|index| {
        let header = header(index)?;
        let found = names.get(usize::try_from(number(header, 0, 4)?).ok()?..)?;
        (found.split(|byte| *byte == 0).next()? == name).then(|| content(header))?
    })
}

fn number(bytes: &[u8], at: usize, length: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(length)?)?;
    Some(bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The smallest ELF file with a .modinfo section.
    pub(crate) fn module(depends: &str) -> Vec<u8> {
        let names = b"\0.names\0.modinfo\0";
        let info = format!("license=GPL\0depends={depends}\0name=x\0vermagic=6.12.1-mine SMP mod_unload \0");
        let mut elf = vec![0; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let names_at = elf.len();
        elf.extend_from_slice(names);
        let info_at = elf.len();
        elf.extend_from_slice(info.as_bytes());
        let table = elf.len();
        elf[0x28..0x30].copy_from_slice(&(table as u64).to_le_bytes());
        elf[0x3a..0x3c].copy_from_slice(&64u16.to_le_bytes());
        elf[0x3c..0x3e].copy_from_slice(&2u16.to_le_bytes());
        for (name, at, length) in [(1u32, names_at, names.len()), (8, info_at, info.len())] {
            let mut header = [0; 64];
            header[..4].copy_from_slice(&name.to_le_bytes());
            header[0x18..0x20].copy_from_slice(&(at as u64).to_le_bytes());
            header[0x20..0x28].copy_from_slice(&(length as u64).to_le_bytes());
            elf.extend_from_slice(&header);
        }
        elf
    }

    fn tree(modules: &[(&str, &str)]) -> (tempfile::TempDir, Modules) {
        let folder = tempfile::tempdir().unwrap();
        for (file, depends) in modules {
            let path = folder.path().join("kernel/some/where").join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, module(depends)).unwrap();
        }
        let modules = Modules::scan(&[folder.path().to_owned()]).unwrap();
        (folder, modules)
    }

    fn names(order: &[Module]) -> Vec<&str> {
        order.iter().map(|module| module.name.as_str()).collect()
    }

    #[test]
    fn dependencies_come_first_and_once() {
        let (_folder, modules) = tree(&[
            ("kvm-amd.ko", "kvm"),
            ("kvm.ko", "irqbypass"),
            ("irqbypass.ko", ""),
            ("vhost_net.ko", "vhost,tun,tap"),
            ("vhost.ko", "vhost_iotlb"),
            ("vhost_iotlb.ko", ""),
            ("tap.ko", "tun"),
            ("tun.ko", ""),
        ]);
        let order = modules.load_order(&["kvm_amd", "tun", "vhost_net"]).unwrap();
        let expected = ["irqbypass", "kvm", "kvm_amd", "tun", "vhost_iotlb", "vhost", "tap", "vhost_net"];
        assert_eq!(names(&order), expected);
        assert!(modules.has("kvm_amd") && !modules.has("virtio_pci"));
    }

    #[test]
    fn modules_tell_the_release_that_they_are_for() {
        let (folder, modules) = tree(&[("kvm.ko", "irqbypass"), ("irqbypass.ko", "")]);
        assert_eq!(modules.release().unwrap().as_deref(), Some("6.12.1-mine"));
        let (_folder, none) = tree(&[]);
        assert_eq!(none.release().unwrap(), None);
        fs::write(folder.path().join("kernel/some/where/kvm.ko"), "these are words").unwrap();
        let error = modules.release().unwrap_err().to_string();
        assert!(error.contains("kvm.ko") && error.contains("ELF"), "{error}");
    }

    #[test]
    fn compressed_modules_are_unpacked() {
        let (folder, _) = tree(&[("a.ko", ""), ("b-c.ko", "a"), ("d.ko", "b_c")]);
        let file = |name: &str| folder.path().join("kernel/some/where").join(name);
        tool::output(Command::new("xz").arg(file("a.ko")), "xz-utils").unwrap();
        tool::output(Command::new("gzip").arg(file("b-c.ko")), "gzip").unwrap();
        let modules = Modules::scan(&[folder.path().to_owned()]).unwrap();
        let order = modules.load_order(&["d"]).unwrap();
        assert_eq!(names(&order), ["a", "b_c", "d"]);
        assert!(order.iter().all(|module| module.content.starts_with(b"\x7fELF")));
    }

    #[test]
    fn a_missing_dependency_and_a_cycle_are_named() {
        let (_folder, modules) = tree(&[("a.ko", "b"), ("b.ko", "a"), ("c.ko", "gone")]);
        let error = modules.load_order(&["a"]).unwrap_err().to_string();
        assert!(error.contains("depends on itself through a, b"), "{error}");
        let error = modules.load_order(&["c"]).unwrap_err().to_string();
        assert!(error.contains("module gone") && error.contains("c needs it"), "{error}");
    }

    #[test]
    fn types_and_signature_are_hidden_and_nothing_else() {
        let plain = module("kvm");
        let mut signed = plain.clone();
        signed.extend_from_slice(b"the signature");
        signed.extend_from_slice(SIGNED);
        let mut found = Module { name: "x".into(), content: signed };
        found.hide_types();
        assert_eq!(found.content, [&plain[..], b"the signature"].concat());
        // A section of types in place of the other one.
        let at = plain.windows(9).position(|w| w == b"\0.modinfo").unwrap();
        let mut typed = plain.clone();
        typed[at..at + 6].copy_from_slice(b"\0.BTF\0");
        let mut found = Module { name: "x".into(), content: typed.clone() };
        assert!(section(&found.content, b".BTF").is_some());
        found.hide_types();
        assert!(section(&found.content, b".BTF").is_none());
        let changed = found.content.iter().zip(&typed).filter(|(a, b)| a != b).count();
        assert_eq!((found.content.len(), changed), (typed.len(), 3));
        for length in 0..typed.len() {
            Module { name: "x".into(), content: typed[..length].to_vec() }.hide_types();
        }
    }

    #[test]
    fn any_bytes_are_refused_in_words() {
        let good = module("kvm");
        assert_eq!(depends(&good).unwrap(), ["kvm"]);
        for length in 0..good.len() {
            let _ = depends(&good[..length]);
        }
        for at in 0..good.len() {
            let mut damaged = good.clone();
            damaged[at] = 0xff;
            let _ = depends(&damaged);
        }
        assert!(depends(b"").is_err());
        assert!(depends(&[0x7f; 4096]).is_err());
    }
}
